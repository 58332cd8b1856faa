package tree_test

import (
	"net"
	"testing"

	"google.golang.org/grpc"

	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// liar is a parent that welcomes every child, says that headquarters is far ahead, and then sends what is no message.
type liar struct {
	treev1.UnimplementedTreeServiceServer
}

const farAhead = 1 << 40

func (liar) Attach(stream grpc.BidiStreamingServer[treev1.AttachRequest, treev1.AttachResponse]) error {
	if _, err := stream.Recv(); err != nil {
		return err
	}
	w := &treev1.Welcome{Group: "hq", Site: "liar", Position: position(farAhead)}
	if err := stream.Send(&treev1.AttachResponse{Kind: &treev1.AttachResponse_Welcome{Welcome: w}}); err != nil {
		return err
	}
	if err := stream.Send(&treev1.AttachResponse{}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

func TestAttach_GoesOnToTheNextParentAfterRubbish(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", []string{"hq-a"})[0]
	gd := f.group("hq/gd", []string{"gd-a"}, "hq-a")[0]
	addr := f.addr(7400)
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	treev1.RegisterTreeServiceServer(srv, liar{})
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	defer func() { srv.Stop(); <-done }()
	gd.cfg.Parents = append([]string{addr}, gd.cfg.Parents...)

	f.start("gd-a")
	until(t, "the reason is said", func() bool {
		g := groupOf(gd.node.Health(), "hq/gd")
		return g.GetState() == "degraded" && has(g.GetReason(), addr+": ") && has(g.GetReason(), "after the welcome")
	})
	f.start("hq-a")
	root(t, []*site{hq}).publish("app", "web", "x")
	until(t, "the child follows the right parent", func() bool { return gd.shows("app", "web", "x") })
	until(t, "all is well", func() bool { return groupOf(gd.node.Health(), "hq/gd").GetParent() == "hq" })
	if head := gd.node.Roster().Head; head >= farAhead {
		t.Errorf("headquarters is still thought to be at revision %d", head)
	}
}
