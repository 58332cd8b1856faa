package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/store"
	"github.com/fanout-io/fanout/pkg/transfer"
	"github.com/fanout-io/fanout/pkg/tree"
)

// Reverse fetch: a parent that lacks content which a site below still has gets it back through the tunnel that the child keeps open. It goes upward only when nobody
// in the group nor above can give it, whole content only, and what is asked for from above is never asked for above: so no two sites wait for each other.

const (
	// belowScheme begins the address of a child group that is reached through its tunnel.
	belowScheme = "below:"
	// nearTimeout bounds the search for a site that has a blob.
	nearTimeout = 10 * time.Second
	// askedAtOnce is how many children are asked at a time.
	askedAtOnce = 8
)

// tunnelOptions are what connections through tunnels are made with. They need no keepalive: the connection that carries the tunnel has one.
func (a *Agent) tunnelOptions() []grpc.DialOption {
	return append(transfer.DialOptions(), grpc.WithStatsHandler(a.counts.links.through(a.cfg.Group, func() string { return linkChild })),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: math.MaxInt64}), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(tree.MaxMessage)))
}

// serveTunnel answers the group above.
func (a *Agent) serveTunnel(ctx context.Context, conn *tree.TunnelConn) {
	server := grpc.NewServer(append(transfer.ServerOptions(), grpc.StatsHandler(a.counts.links.through(a.cfg.Group, func() string { return linkParent })),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: math.MaxInt64}), grpc.MaxRecvMsgSize(tree.MaxMessage), grpc.Creds(tree.TunnelCredentials()))...)
	transferv1.RegisterTransferServiceServer(server, a.transfer)
	adminv1.RegisterAdminServiceServer(server, aboveAdmin{s: &admin{a: a, tunnel: true}})
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	if err := server.Serve(newOneConn(conn)); err != nil && ctx.Err() == nil {
		a.logger.Debug("serving the tunnel ended", "error", err)
	}
}

// aboveAdmin is what of the admin service a group above may call: to look, to have what the catalog says put right, and to have a group forgotten that is away.
type aboveAdmin struct {
	adminv1.UnimplementedAdminServiceServer
	s *admin
}

// View implements adminv1.AdminServiceServer.
func (x aboveAdmin) View(ctx context.Context, req *adminv1.ViewRequest) (*adminv1.ViewResponse, error) {
	return x.s.View(ctx, req)
}

// Why implements adminv1.AdminServiceServer.
func (x aboveAdmin) Why(ctx context.Context, req *adminv1.WhyRequest) (*adminv1.WhyResponse, error) {
	return x.s.Why(ctx, req)
}

// Top implements adminv1.AdminServiceServer.
func (x aboveAdmin) Top(ctx context.Context, req *adminv1.TopRequest) (*adminv1.TopResponse, error) {
	return x.s.Top(ctx, req)
}

// Members implements adminv1.AdminServiceServer.
func (x aboveAdmin) Members(ctx context.Context, req *adminv1.MembersRequest) (*adminv1.MembersResponse, error) {
	return x.s.Members(ctx, req)
}

// Events implements adminv1.AdminServiceServer.
func (x aboveAdmin) Events(req *adminv1.EventsRequest, stream grpc.ServerStreamingServer[adminv1.EventsResponse]) error {
	if req.GetOf() == "" {
		return status.Error(codes.InvalidArgument, "of what is not said")
	}
	return x.s.Events(req, stream)
}

// Verify implements adminv1.AdminServiceServer.
func (x aboveAdmin) Verify(req *adminv1.VerifyRequest, stream grpc.ServerStreamingServer[adminv1.VerifyResponse]) error {
	return x.s.Verify(req, stream)
}

// ForgetGroup implements adminv1.AdminServiceServer. It forgets only what is away, and what comes back is taken in again.
func (x aboveAdmin) ForgetGroup(ctx context.Context, req *adminv1.ForgetGroupRequest) (*adminv1.ForgetGroupResponse, error) {
	return x.s.ForgetGroup(ctx, req)
}

// oneConn is a listener that accepts one connection, and then waits to be closed.
type oneConn struct {
	conn   chan net.Conn
	addr   net.Addr
	closed chan struct{}
	once   sync.Once
}

func newOneConn(c net.Conn) *oneConn {
	l := &oneConn{conn: make(chan net.Conn, 1), addr: c.LocalAddr(), closed: make(chan struct{})}
	l.conn <- c
	return l
}

// Accept implements net.Listener.
func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *oneConn) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements net.Listener.
func (l *oneConn) Addr() net.Addr { return l.addr }

// dialTransfer gives a client for a fabric address, or for a child group by its tunnel.
func (a *Agent) dialTransfer(ctx context.Context, addr string) (transferv1.TransferServiceClient, error) {
	group, below := strings.CutPrefix(addr, belowScheme)
	if !below {
		return a.peers.transfer(ctx, addr)
	}
	t, ok := a.node.Toward(group)
	if !ok {
		return nil, fmt.Errorf("%w: group %s is no longer attached here", transfer.ErrUnavailable, group)
	}
	return transferv1.NewTransferServiceClient(t.Conn), nil
}

// below lists the children that may have what a repository holds, in a random order.
func (a *Agent) below(repository string) []transfer.Source {
	snap := a.node.Catalog()
	var out []transfer.Source
	for _, t := range a.node.Tunnels() {
		if g, ok := snap.Group(t.Group); ok && catalog.MatchScope(g.GetDemand(), repository) {
			out = append(out, transfer.Source{Site: t.Site, Addr: belowScheme + t.Group, Upstream: true})
		}
	}
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// resort finds the children below which a blob is whole, for when nobody else could give it.
func (a *Agent) resort(ctx context.Context, req transfer.Request) ([]transfer.Source, error) {
	ctx, cancel := context.WithTimeout(ctx, nearTimeout)
	defer cancel()
	var mu sync.Mutex
	var found []transfer.Source
	var g errgroup.Group
	g.SetLimit(askedAtOnce)
	for _, s := range a.below(req.Repository) {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			if len(a.havingWhole(ctx, req, []transfer.Source{s})) == 0 {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			if found = append(found, s); len(found) > 1 {
				cancel() // one more than is needed
			}
			return nil
		})
	}
	_ = g.Wait()
	return found, nil
}

// near finds a fellow, or a site below, that has a blob whole.
func (a *Agent) near(ctx context.Context, p *transferv1.Purpose, digest string) (transferv1.TransferServiceClient, *transferv1.Purpose, error) {
	p = a.asKnownHere(p)
	req := transfer.Request{Repository: p.GetRepository(), Tag: p.GetTag(), Revision: p.GetRevision(), Root: p.GetRoot(), Digest: digest}
	sources := a.havingWhole(ctx, req, a.fellows())
	if len(sources) == 0 {
		sources, _ = a.resort(ctx, req)
	}
	for _, s := range sources {
		if client, err := a.dialTransfer(ctx, s.Addr); err == nil {
			return client, p, nil
		}
	}
	return nil, nil, fmt.Errorf("%w: %s, nor at any site below %s", transfer.ErrNotFound, digest, a.cfg.Group)
}

// asKnownHere gives a purpose of a group above the revision that this group has of the ref: a fellow would wait for one that is not here yet.
func (a *Agent) asKnownHere(p *transferv1.Purpose) *transferv1.Purpose {
	rec, _ := a.node.Catalog().Get(catalog.Ref{Repository: p.GetRepository(), Tag: p.GetTag()})
	return &transferv1.Purpose{Repository: p.GetRepository(), Tag: p.GetTag(), Revision: min(p.GetRevision(), rec.GetRevision()), Root: p.GetRoot()}
}

func (a *Agent) fellows() []transfer.Source {
	var out []transfer.Source
	for _, m := range a.node.Roster().Members {
		if m.Site != a.cfg.Site {
			out = append(out, transfer.Source{Site: m.Site, Addr: m.Addr})
		}
	}
	return out
}

// manifestNear asks the fellows for what they have at hand, and the groups below.
func (a *Agent) manifestNear(ctx context.Context, p *transferv1.Purpose, digest string) (store.Manifest, error) {
	p = a.asKnownHere(p)
	m, err := a.askManifests(ctx, a.fellows(), p, digest, true)
	if err == nil {
		return m, nil
	}
	return a.askManifests(ctx, a.below(p.GetRepository()), p, digest, false)
}

// authorizeAbove lets a group above read what is under a record that is held here. It is asked when content was lost there, so the record may be older or newer here;
// what the asker has beyond this group's scope it can't get here.
func (a *Agent) authorizeAbove(ctx context.Context, p *transferv1.Purpose, digests ...string) error {
	ref := catalog.Ref{Repository: p.GetRepository(), Tag: p.GetTag()}
	rec, ok := a.node.Catalog().Get(ref)
	root := rootOf(rec, p.GetRoot())
	if !ok || root == nil {
		return fmt.Errorf("%w: %s under %s", transfer.ErrNotFound, p.GetRoot(), ref)
	}
	set, err := a.closureOf(ctx, root, func(ctx context.Context, d string) (registry.Manifest, error) {
		m, err := a.manifestAtHand(ctx, p.GetRepository(), d)
		if errors.Is(err, transfer.ErrNotFound) {
			m, err = a.manifestNear(ctx, p, d)
		}
		return registry.Manifest(m), err
	})
	if err != nil {
		return fmt.Errorf("%w: reading what is under %s: %w", transfer.ErrUnavailable, root.GetDigest(), err)
	}
	for _, d := range digests {
		if !set[d] {
			return fmt.Errorf("%w: %s is not under %s of %s", transfer.ErrDenied, d, root.GetDigest(), ref)
		}
	}
	return nil
}

var _ net.Listener = (*oneConn)(nil)
