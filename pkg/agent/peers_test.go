package agent

import (
	"fmt"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
)

func TestPeersAreBounded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	go func() { _ = srv.Serve(l) }()
	defer srv.Stop()
	p := newPeers(nil, "hq")
	defer p.close()
	inUse, err := p.conn(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := inUse.(*grpc.ClientConn)
	c.Connect()
	for s := c.GetState(); s != connectivity.Ready; s = c.GetState() {
		if !c.WaitForStateChange(t.Context(), s) {
			t.Fatal("it never connects")
		}
	}
	for port := range 4 * maxPeers {
		if _, err := p.conn(t.Context(), fmt.Sprintf("127.0.0.1:%d", 20000+port)); err != nil {
			t.Fatal(err)
		}
	}
	if len(p.conns) != maxPeers {
		t.Errorf("%d connections, want %d", len(p.conns), maxPeers)
	}
	if again, err := p.conn(t.Context(), l.Addr().String()); err != nil || again != inUse {
		t.Errorf("the one in use was closed: %v", err)
	}
	if p.conns[peerKey{"127.0.0.1:20000", laneControl}] != nil {
		t.Error("the oldest was kept")
	}
}
