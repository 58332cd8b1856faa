package tree_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/tree"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// sync fails the test unless the site's catalog becomes current in time.
func (s *site) sync() {
	s.f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.node.Sync(ctx); err != nil {
		s.f.t.Fatalf("%s: %v", s.cfg.Site, err)
	}
}

func TestSync_ShowsAtEveryMemberWhatAnotherAcknowledged(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", three)
	f.start(three...)
	root(t, hq)
	for i := range 60 {
		at, other := hq[i%3], hq[(i+1+i%2)%3]
		tag := fmt.Sprint("v", i)
		at.publish("app", tag, tag)
		if i == 30 { // whoever is root then
			r := root(t, hq)
			r.kill()
			r.start()
		}
		other.sync()
		if !other.shows("app", tag, tag) {
			t.Fatalf("%s was acknowledged at %s, and is not to be seen at %s", tag, at.cfg.Site, other.cfg.Site)
		}
	}
}

// TestSync_NotByARootWithoutAMajority: a root that is cut off holds its office for a while, and doesn't know what others decide meanwhile.
func TestSync_NotByARootWithoutAMajority(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", three)
	for _, s := range hq {
		// Long enough that it still holds office when it is asked.
		s.cfg.Timeouts.Heartbeat, s.cfg.Timeouts.Election, s.cfg.Timeouts.Lease = 3*time.Second, 3*time.Second, 3*time.Second
	}
	f.start(three...)
	r := root(t, hq)
	r.publish("app", "v1", "1")
	r.sync()
	for _, s := range hq {
		if s != r {
			s.kill()
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if !r.node.IsRoot() {
		t.Fatal("it gave its office up before it was asked")
	}
	if err := r.node.Sync(ctx); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, tree.ErrNoRoot) {
		t.Errorf("a root without fellows vouched for its catalog: %v", err)
	}
}

// TestSync_AskedOfTheNextRoot: the root that was asked hangs, and another is elected.
func TestSync_AskedOfTheNextRoot(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", three)
	f.start(three...)
	r := root(t, hq)
	var me, next *site
	for _, s := range hq {
		if s != r {
			me, next = s, me
		}
	}
	until(t, "all are connected", func() bool { return len(me.node.Roster().Members) == 2 && len(r.node.Roster().Members) == 2 })
	ln, err := net.Listen("tcp", f.addr(7400))
	if err != nil {
		t.Fatal(err)
	}
	hung := &hungRoot{asked: make(chan struct{}, 10)}
	server := grpc.NewServer()
	treev1.RegisterTreeServiceServer(server, hung)
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(ln) }()
	defer func() { server.Stop(); <-served }()
	f.mu.Lock()
	me.detour = map[string]string{r.cfg.FabricAdvertise: ln.Addr().String()}
	f.mu.Unlock()
	me.cut()

	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- me.node.Sync(ctx) }()
	<-hung.asked
	if _, err := r.node.Lead(ctx, next.cfg.Site); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("the next root was not asked: %v", err)
	}
}

// TestSync_AfterASnapshot: a member whose state comes from a snapshot alone knows how far it is.
func TestSync_AfterASnapshot(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", three)
	f.start(three...)
	r := root(t, hq)
	for i := range 10 {
		r.publish("app", fmt.Sprint("v", i), fmt.Sprint(i))
	}
	var me *site
	for _, s := range hq {
		if s != r {
			me = s
		}
	}
	me.sync()
	until(t, "the group's members are in its catalog", func() bool { return len(me.node.Catalog().Members()) == 3 })
	me.sync()
	if err := me.node.TakeSnapshot(); err != nil {
		t.Fatal(err)
	}
	if err := me.stop(); err != nil {
		t.Fatal(err)
	}
	me.start()
	me.sync()
	if _, ok := me.node.Catalog().Get(catalog.Ref{Repository: "app", Tag: "v9"}); !ok {
		t.Error("what the snapshot has is not to be seen")
	}
}

// TestSync_OfOneMember costs no entry of the log: its disk may be full.
func TestSync_OfOneMember(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", []string{"solo"})
	f.start("solo")
	root(t, hq)
	hq[0].publish("app", "v1", "1")
	hq[0].full.Store(true)
	hq[0].sync()
	hq[0].full.Store(false)
}

// TestSync_OfARootFromASnapshot: a snapshot may end with an entry that is no command, which no other member's catalog is ever said to have reached.
func TestSync_OfARootFromASnapshot(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", three)
	f.start(three...)
	r := root(t, hq)
	r.publish("app", "v1", "1")
	until(t, "the group's members are in its catalog", func() bool { return len(r.node.Catalog().Members()) == 3 })
	var me *site
	for _, s := range hq {
		if s.sync(); s != r {
			me = s
		}
	}
	if err := r.node.TakeSnapshot(); err != nil {
		t.Fatal(err)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r.start()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	until(t, r.cfg.Site+" is the root again", func() bool {
		if next := root(t, hq); next != r {
			_, _ = next.node.Lead(ctx, r.cfg.Site) // until it can
		}
		return r.node.IsRoot()
	})
	me.sync()
}
