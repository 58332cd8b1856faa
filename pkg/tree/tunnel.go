package tree

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// maxTunnelData bounds the data of one message.
const maxTunnelData = 64 << 10

// Tunnel is a connection to the root of a child group. It stands while the child is attached.
type Tunnel struct {
	// Group and Site of the child's root.
	Group, Site string
	Conn        grpc.ClientConnInterface
}

// tunnel is one that stands.
type tunnel struct {
	site string
	cc   *grpc.ClientConn
}

// Tunnels lists the tunnels to the groups that are attached here, by group; none but at a root.
func (n *Node) Tunnels() []Tunnel {
	o := n.office.Load()
	if o == nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []Tunnel
	for group, c := range o.children {
		if c.tunnel != nil {
			out = append(out, Tunnel{Group: group, Site: c.tunnel.site, Conn: c.tunnel.cc})
		}
	}
	slices.SortFunc(out, func(x, y Tunnel) int { return cmp.Compare(x.Group, y.Group) })
	return out
}

// Toward gives the tunnel that leads to a group: to itself, or to one above it.
func (n *Node) Toward(group string) (Tunnel, bool) {
	var found Tunnel
	for _, t := range n.Tunnels() {
		if within(group, t.Group) && len(t.Group) > len(found.Group) {
			found = t
		}
	}
	return found, found.Conn != nil
}

// TunnelConn is the child's end of a tunnel.
type TunnelConn struct {
	net.Conn
	auth credentials.AuthInfo
}

// tunnelCredentials tells a server on a TunnelConn who the parent is, as the connection that carries the tunnel proved it. What passes is protected by that connection.
type tunnelCredentials struct {
	credentials.TransportCredentials
}

// TunnelCredentials are what a server on a TunnelConn must be made with.
func TunnelCredentials() credentials.TransportCredentials {
	return tunnelCredentials{insecure.NewCredentials()}
}

func (c tunnelCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	t, ok := conn.(*TunnelConn)
	if !ok {
		return nil, nil, fmt.Errorf("%T is no tunnel", conn)
	}
	if t.auth == nil {
		return c.TransportCredentials.ServerHandshake(conn)
	}
	return conn, t.auth, nil
}

func (c tunnelCredentials) Clone() credentials.TransportCredentials {
	return tunnelCredentials{c.TransportCredentials.Clone()}
}

// Tunnel implements the tree service.
func (s *service) Tunnel(stream grpc.BidiStreamingServer[treev1.TunnelRequest, treev1.TunnelResponse]) error {
	o := s.n.office.Load()
	if o == nil {
		return toStatus(ErrNotRoot)
	}
	return s.n.serveStream(o, stream.Context(), s.n.cfg.Timeouts.Silence, func(h *held) error { return o.serveTunnel(h, stream) })
}

func (o *office) serveTunnel(h *held, stream grpc.BidiStreamingServer[treev1.TunnelRequest, treev1.TunnelResponse]) error {
	req, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := req.GetHello()
	if hello.GetGroup() == "" || !word(hello.GetGroup(), hello.GetSite()) {
		return rubbish("malformed tunnel's hello")
	}
	if err := o.n.cfg.AuthorizePeer(h.ctx, hello.GetGroup(), hello.GetSite()); err != nil {
		return refused("%v", err)
	}
	h.busy.Store(true) // it may carry nothing for ever: that the other side is gone is found by the connection, and by Attach
	near, far := net.Pipe()
	defer far.Close()
	var used atomic.Bool
	dial := func(context.Context, string) (net.Conn, error) {
		if used.Swap(true) {
			return nil, errors.New("the tunnel has ended")
		}
		return near, nil
	}
	opts := append(slices.Clone(o.n.cfg.TunnelOptions), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(dial), grpc.WithIdleTimeout(0))
	cc, err := grpc.NewClient("passthrough:///"+hello.GetGroup(), opts...)
	if err != nil {
		return fmt.Errorf("tunnel to %s: %w", hello.GetGroup(), err)
	}
	defer cc.Close()
	defer near.Close()
	t := &tunnel{site: hello.GetSite(), cc: cc}
	c := o.setTunnel(hello.GetGroup(), t)
	if c == nil {
		return status.Errorf(codes.FailedPrecondition, "%s is not attached here", hello.GetGroup())
	}
	defer o.dropTunnel(c, t)
	defer context.AfterFunc(c.held.ctx, func() { far.Close() })()
	if err := stream.Send(&treev1.TunnelResponse{}); err != nil {
		return err
	}
	cc.Connect()
	return carry(h.ctx, far, func() { h.cancel(errAgain) }, func() ([]byte, error) {
		req, err := stream.Recv()
		return req.GetData(), err
	}, func(data []byte) error { return stream.Send(&treev1.TunnelResponse{Data: data}) })
}

// setTunnel takes the place of an earlier tunnel; nil when the group is not attached.
func (o *office) setTunnel(group string, t *tunnel) *child {
	o.mu.Lock()
	defer o.mu.Unlock()
	c := o.children[group]
	if c == nil {
		return nil
	}
	if c.tunnel != nil {
		_ = c.tunnel.cc.Close()
	}
	c.tunnel = t
	return c
}

func (o *office) dropTunnel(c *child, t *tunnel) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if c.tunnel == t {
		c.tunnel = nil
	}
}

// carry moves bytes between a pipe and a stream until one of them or ctx ends. It closes the pipe, and calls stop, which must end what waits at the stream.
func carry(ctx context.Context, pipe net.Conn, stop func(), recv func() ([]byte, error), send func([]byte) error) error {
	defer context.AfterFunc(ctx, func() { pipe.Close() })()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	defer pipe.Close()
	up := make(chan error, 1)
	wg.Go(func() {
		buf := make([]byte, maxTunnelData)
		for {
			n, err := pipe.Read(buf)
			if err == nil {
				err = send(slices.Clone(buf[:n]))
			}
			if err != nil {
				up <- err
				return
			}
		}
	})
	down := make(chan error, 1)
	go func() { // ends with the stream's context, at the latest
		for {
			data, err := recv()
			if err == nil && len(data) > maxTunnelData {
				err = rubbish("%d bytes in one message of a tunnel", len(data))
			}
			if err == nil {
				_, err = pipe.Write(data)
			}
			if err != nil {
				down <- err
				return
			}
		}
	}()
	select {
	case err := <-up:
		return err
	case err := <-down:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// keepTunnel lets the parent call this member while the group is attached to it. A parent that knows no tunnels is left in peace.
func (a *attachClient) keepTunnel(h *held, addr string) {
	cfg := &a.o.n.cfg
	if cfg.ServeTunnel == nil {
		return
	}
	pauses := backoff{limit: cfg.Timeouts.Backoff}
	for h.ctx.Err() == nil {
		stood, err := a.tunnel(h.ctx, addr)
		if h.ctx.Err() != nil || status.Code(err) == codes.Unimplemented {
			return
		}
		if stood {
			pauses.reset()
		}
		a.o.n.log.Debug("the tunnel to the parent ended", "error", err)
		if !pause(h.ctx, pauses.step()) {
			return
		}
	}
}

func (a *attachClient) tunnel(ctx context.Context, addr string) (stood bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := a.o.n.cfg.DialTunnel(ctx, addr)
	if err != nil {
		return false, err
	}
	stream, err := treev1.NewTreeServiceClient(conn).Tunnel(ctx)
	if err != nil {
		return false, err
	}
	cfg := &a.o.n.cfg
	hello := &treev1.TunnelHello{Group: cfg.Group, Site: cfg.Site}
	if err := stream.Send(&treev1.TunnelRequest{Kind: &treev1.TunnelRequest_Hello{Hello: hello}}); err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	if _, err := stream.Recv(); err != nil {
		return false, err
	}
	near, far := net.Pipe()
	c := &TunnelConn{Conn: near}
	if p, ok := peer.FromContext(stream.Context()); ok {
		c.auth = p.AuthInfo
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer near.Close()
	wg.Go(func() {
		defer far.Close()
		cfg.ServeTunnel(ctx, c)
	})
	return true, carry(ctx, far, cancel, func() ([]byte, error) {
		resp, err := stream.Recv()
		return resp.GetData(), err
	}, func(data []byte) error {
		return stream.Send(&treev1.TunnelRequest{Kind: &treev1.TunnelRequest_Data{Data: data}})
	})
}
