package tree_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/fanout-io/fanout/pkg/tree"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// one is a listener of one connection.
type one struct {
	conns chan net.Conn
	addr  net.Addr
	once  sync.Once
}

func (l *one) Accept() (net.Conn, error) {
	c, ok := <-l.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (l *one) Close() error {
	l.once.Do(func() { close(l.conns) })
	return nil
}

func (l *one) Addr() net.Addr { return l.addr }

// serveHealth is a ServeTunnel.
func serveHealth(ctx context.Context, c *tree.TunnelConn) {
	server := grpc.NewServer(grpc.Creds(tree.TunnelCredentials()))
	healthv1.RegisterHealthServer(server, health.NewServer())
	l := &one{conns: make(chan net.Conn, 1), addr: c.LocalAddr()}
	l.conns <- c
	defer context.AfterFunc(ctx, server.Stop)()
	_ = server.Serve(l)
}

// through calls a group through the tunnel of whoever is the root among these.
func through(group string, from ...*site) error {
	for _, s := range from {
		if s.node == nil {
			continue
		}
		t, ok := s.node.Toward(group)
		if !ok {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		client := healthv1.NewHealthClient(t.Conn)
		if _, err := client.Check(ctx, &healthv1.HealthCheckRequest{}); err != nil {
			return err
		}
		// More than one message of the tunnel holds.
		_, err := client.Check(ctx, &healthv1.HealthCheckRequest{Service: strings.Repeat("x", 1<<20)})
		if status.Code(err) != codes.NotFound {
			return err
		}
		return nil
	}
	return errors.New("nobody has a tunnel")
}

func TestTunnel_ParentCallsItsChildren(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", three)
	gd := f.group("hq/gd", []string{"gd-a"}, three...)
	sz := f.group("hq/gd/sz", []string{"sz-a"}, "gd-a")
	for _, s := range append(gd, sz...) {
		s.cfg.ServeTunnel = serveHealth
	}
	f.start("hq-a", "hq-b", "hq-c", "gd-a", "sz-a")
	until(t, "headquarters calls the province", func() bool { return through("hq/gd", hq...) == nil })
	until(t, "the way to the city leads there too", func() bool { return through("hq/gd/sz", hq...) == nil })
	until(t, "the province calls the city", func() bool { return through("hq/gd/sz", gd...) == nil })
	if err := through("hq/hn", hq...); err == nil {
		t.Error("a group that is not there was called")
	}

	first := root(t, hq)
	first.kill()
	var rest []*site
	for _, s := range hq {
		if s != first {
			rest = append(rest, s)
		}
	}
	until(t, "the next root calls the province", func() bool { return through("hq/gd", rest...) == nil })

	gd[0].kill()
	until(t, "a group that is gone has no tunnel", func() bool {
		for _, s := range rest {
			if len(s.node.Tunnels()) > 0 {
				return false
			}
		}
		return true
	})
	gd[0].start()
	until(t, "it is back", func() bool { return through("hq/gd", rest...) == nil })
}

func TestTunnel_NobodyElseOpensOne(t *testing.T) {
	f := newFabric(t)
	f.group("hq", []string{"hq-a"})[0].cfg.AuthorizePeer = func(_ context.Context, group, site string) error {
		if group == "hq/bad" {
			return errors.New("no")
		}
		return nil
	}
	f.start("hq-a")
	hq := f.sites["hq-a"]
	until(t, "a root", func() bool { return hq.node.IsRoot() })
	for _, c := range []struct {
		req  *treev1.TunnelRequest
		want codes.Code
	}{
		{&treev1.TunnelRequest{Kind: &treev1.TunnelRequest_Hello{Hello: &treev1.TunnelHello{Group: "hq/bad", Site: "x"}}}, codes.PermissionDenied},
		{&treev1.TunnelRequest{Kind: &treev1.TunnelRequest_Hello{Hello: &treev1.TunnelHello{Group: "hq/gd", Site: "x"}}}, codes.FailedPrecondition}, // not attached
		{&treev1.TunnelRequest{Kind: &treev1.TunnelRequest_Data{Data: []byte("x")}}, codes.InvalidArgument},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		conn, err := hq.dial(ctx, hq.cfg.FabricAdvertise)
		if err != nil {
			t.Fatal(err)
		}
		stream, err := treev1.NewTreeServiceClient(conn).Tunnel(ctx)
		if err != nil {
			t.Fatal(err)
		}
		_ = stream.Send(c.req)
		if _, err := stream.Recv(); status.Code(err) != c.want {
			t.Errorf("%v: %v, want %s", c.req, err, c.want)
		}
	}
}
