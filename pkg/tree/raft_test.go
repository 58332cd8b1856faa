package tree_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/tree"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

var three = []string{"hq-a", "hq-b", "hq-c"}

func TestGroup_FoundsItselfAndProposesFromAnyMember(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", three)
	f.start(three...)
	root(t, hq)
	for i, s := range hq {
		s.publish("app", fmt.Sprint("v", i), fmt.Sprint(i))
	}
	for _, s := range hq {
		until(t, "all members hold all", func() bool { return s.position().GetRevision() == 3 && len(s.node.Catalog().Members()) == 3 })
		if got := s.node.Catalog().Settings().GetSubscribe().GetRepositories(); len(got) != 1 {
			t.Errorf("settings at %s: %v", s.cfg.Site, got)
		}
		if n := len(s.node.Servers()); n != 3 {
			t.Errorf("%d servers", n)
		}
	}
	for _, s := range hq {
		until(t, "the roster is known", func() bool {
			r := s.node.Roster()
			return r.Root != "" && r.RootAddr != "" && len(r.Members) == 2 && r.Head == 3
		})
	}
}

func TestFounding_WaitsForAllAndRefusesOtherLists(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", three)
	f.start("hq-a", "hq-b")
	until(t, "the reason names the missing one", func() bool { return has(hq[0].node.Waiting(), "hq-c") })
	hq[2].cfg.Members = map[string]string{"hq-b": hq[1].cfg.RaftListen, "hq-c": hq[2].cfg.RaftListen}
	f.start("hq-c")
	until(t, "the reason names the list", func() bool {
		return has(hq[0].node.Waiting(), "raft.members") && has(hq[0].node.Waiting(), "hq-c")
	})
	if hq[0].node.Term() > 0 {
		t.Error("founded all the same")
	}
	hq[2].kill()
	hq[2].cfg.Members = hq[0].cfg.Members
	f.start("hq-c")
	root(t, hq)
}

func TestGroup_LosesNothingAcknowledgedWhenRootsDie(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", three)
	f.start(three...)
	root(t, hq).publish("app", "first", "0")
	ctx, cancel := context.WithCancel(context.Background())
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		acked = map[string]uint64{}
	)
	nodes := []*tree.Node{hq[0].node, hq[1].node, hq[2].node}
	var nodesMu sync.Mutex
	for w := range 3 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				nodesMu.Lock()
				n := nodes[(w+i)%3]
				nodesMu.Unlock()
				tag := fmt.Sprintf("w%d-%d", w, i)
				once, stop := context.WithTimeout(ctx, 2*time.Second)
				res, err := n.Propose(once, "test", publishChange("app", tag, tag, 0))
				stop()
				if err == nil && res[0].Err == nil {
					mu.Lock()
					acked[tag] = res[0].Revision
					mu.Unlock()
				}
			}
		})
	}
	enough := func(k int) func() bool {
		return func() bool { mu.Lock(); defer mu.Unlock(); return len(acked) >= k }
	}
	for round := range 4 {
		mu.Lock()
		k := len(acked)
		mu.Unlock()
		until(t, "progress", enough(k+20))
		victim := root(t, hq)
		victim.kill()
		victim.start()
		for i, s := range hq {
			nodesMu.Lock()
			nodes[i] = s.node
			nodesMu.Unlock()
		}
		t.Logf("round %d: %s was killed after %d", round, victim.cfg.Site, k)
	}
	mu.Lock()
	k := len(acked)
	mu.Unlock()
	until(t, "progress", enough(k+20))
	cancel()
	wg.Wait()
	last := root(t, hq).publish("app", "last", "last")
	revisions := map[uint64]string{}
	for _, s := range hq {
		until(t, "all members are there", func() bool { return s.position().GetRevision() >= last })
		for tag, revision := range acked {
			rec, ok := s.node.Catalog().Get(catalog.Ref{Repository: "app", Tag: tag})
			if !ok || rec.Revision != revision || rec.Target.Digest != digest(tag) {
				t.Fatalf("%s lost %s, which was acknowledged as revision %d: %v", s.cfg.Site, tag, revision, rec)
			}
			if other, taken := revisions[revision]; taken && other != tag {
				t.Fatalf("revision %d was given to %s and %s", revision, other, tag)
			}
			revisions[revision] = tag
		}
		if everything(s) != everything(hq[0]) || !proto.Equal(s.position(), hq[0].position()) {
			t.Errorf("%s differs from %s", s.cfg.Site, hq[0].cfg.Site)
		}
	}
	t.Logf("%d acknowledged", len(acked))
}

func TestGroup_SnapshotsByBytesAndRestarts(t *testing.T) {
	f := newFabric(t)
	one := f.group("hq", []string{"solo"})
	one[0].cfg.SnapshotBytes = 4 << 10
	f.start("solo")
	for i := range 60 {
		one[0].publish("app", fmt.Sprint("v", i), fmt.Sprint(i))
	}
	before := everything(one[0])
	if err := one[0].stop(); err != nil {
		t.Fatal(err)
	}
	one[0].start()
	until(t, "it comes up with what it had", func() bool { return one[0].position().GetRevision() == 60 && everything(one[0]) == before })
	one[0].publish("app", "more", "more")
}

func TestGroup_EmptyDiskJoinsAsAnotherServer(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", three)
	f.start(three...)
	root(t, hq).publish("app", "v1", "1")
	lost := root(t, hq) // even the root
	lost.kill()
	lost.wipe()
	lost.start()
	until(t, "the new server votes", func() bool {
		for _, s := range lost.node.Servers() {
			if s.ID == lost.cfg.Site+"/i2" && s.Voter {
				return len(lost.node.Servers()) == 3
			}
		}
		return false
	})
	until(t, "it has the catalog", func() bool { return lost.shows("app", "v1", "1") })
	until(t, "the catalog has it", func() bool {
		for _, m := range lost.node.Catalog().Members() {
			if m.Site == lost.cfg.Site && m.Incarnation == "i2" {
				return true
			}
		}
		return false
	})
	// The group of three survives the loss of another now.
	for _, s := range hq {
		if s != lost {
			s.kill()
			break
		}
	}
	lost.publish("app", "v2", "2")
}

func TestRaftListener_AnswersOnlyForTheServerItIs(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", []string{"solo"})
	f.start("solo")
	root(t, hq)
	open := func(to string) error {
		conn, err := net.Dial("tcp", hq[0].cfg.RaftListen)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		data, _ := proto.Marshal(&treev1.RaftHello{
			Group: "hq", Site: "solo", Incarnation: "x", Purpose: &treev1.RaftHello_Channel{Channel: &treev1.RaftChannel{To: to}},
		})
		if _, err := conn.Write(append(binary.BigEndian.AppendUint32([]byte{0xFA}, uint32(len(data))), data...)); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		_, err = conn.Read(make([]byte, 1))
		return err
	}
	if err := open("solo/i0"); !errors.Is(err, io.EOF) {
		t.Errorf("a channel to the server that was there before: %v, want it closed", err)
	}
	var timeout net.Error
	if err := open("solo/i1"); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("a channel to the server: %v, want it open", err)
	}
	for _, bytes := range [][]byte{{0}, {0xFA, 0xFF, 0xFF, 0xFF, 0xFF}, {0xFA, 0, 0, 0, 2, 0xFF, 0xFF}} {
		conn, err := net.Dial("tcp", hq[0].cfg.RaftListen)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write(bytes)
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("% x was not refused: %v", bytes, err)
		}
		_ = conn.Close()
	}
}

func TestPropose_RevisionsStayConsecutiveAmongRefusals(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", []string{"solo"})
	f.start("solo")
	root(t, hq)
	hq[0].publish("app", "taken", "x")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var wg sync.WaitGroup
	for w := range 20 {
		wg.Go(func() {
			tag := fmt.Sprint("v", w)
			res, err := hq[0].node.Propose(ctx, fmt.Sprint("actor", w%2),
				publishChange("app", "taken", tag, 77),        // conflict
				publishChange("app", tag, "a", 0),             // taken
				publishChange("app", tag, "a", 0),             // conflict, by the one before
				publishChange("app", "taken", "x", 1),         // unchanged
				publishChange("app", "UPPER/../"+tag, "x", 0), // invalid
				&catalogv1.Change{Kind: &catalogv1.Change_Unpublish{Unpublish: &catalogv1.Unpublish{Repository: "app", Tag: "nothing"}}}, // unchanged
				publishChange("app", tag+"-b", "b", 0), // taken
			)
			if err != nil {
				t.Error(err)
				return
			}
			want := []error{catalog.ErrConflict, nil, catalog.ErrConflict, catalog.ErrUnchanged, catalog.ErrInvalid, catalog.ErrUnchanged, nil}
			for i, r := range res {
				if !errors.Is(r.Err, want[i]) {
					t.Errorf("change %d: %v, want %v", i, r.Err, want[i])
				}
			}
		})
	}
	wg.Wait()
	if got := hq[0].position().GetRevision(); got != 41 {
		t.Errorf("revision %d, want 41: none skipped, none twice", got)
	}
}

func TestPropose_SaysWhatItKnows(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", three)
	f.start("hq-a")
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if _, err := hq[0].node.Propose(ctx, "test", publishChange("app", "v1", "1", 0)); !errors.Is(err, tree.ErrNoRoot) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without a root: %v", err)
	}
	if _, ok := hq[0].node.RootContext(context.Background()); ok {
		t.Error("a root's context at a member that is not the root")
	}
	f.start("hq-b", "hq-c")
	r := root(t, hq)
	rooted, ok := r.node.RootContext(context.Background())
	if !ok {
		t.Fatal("no context at the root")
	}
	if _, err := r.node.Propose(rooted, "test", &catalogv1.Change{}); !errors.Is(err, tree.ErrRubbish) {
		t.Errorf("a change without a kind must not reach the log: %v", err)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	<-rooted.Done()
	if !errors.Is(context.Cause(rooted), tree.ErrNotRoot) {
		t.Errorf("cause %v", context.Cause(rooted))
	}
}

// hungRoot takes proposals and never answers, as an agent whose machine was paused.
type hungRoot struct {
	treev1.UnimplementedTreeServiceServer
	asked chan struct{}
}

func (h *hungRoot) Propose(ctx context.Context, _ *treev1.ProposeRequest) (*treev1.ProposeResponse, error) {
	h.asked <- struct{}{}
	<-ctx.Done()
	return nil, ctx.Err()
}

func (h *hungRoot) Vouch(ctx context.Context, _ *treev1.VouchRequest) (*treev1.VouchResponse, error) {
	h.asked <- struct{}{}
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestPropose_LetsGoOfARootThatHangs: a proposal that waits for a root that answers nothing ends when another is elected, and can be made again there.
func TestPropose_LetsGoOfARootThatHangs(t *testing.T) {
	f := newFabric(t)
	hq := calm(f.group("hq", three))
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
	go func() {
		_, err := me.node.Propose(ctx, "test", publishChange("app", "v1", "1", 0))
		done <- err
	}()
	<-hung.asked
	if _, err := r.node.Lead(ctx, next.cfg.Site); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if !errors.Is(err, tree.ErrUnknownOutcome) {
			t.Errorf("the proposal ended with %v", err)
		}
	case <-time.After(patience / 2):
		t.Fatal("the proposal still waits for the root that was")
	}
	me.publish("app", "v1", "1")
	until(t, "it is published", func() bool { return next.shows("app", "v1", "1") })
}

func TestRun_EndsAtACommandThatItDoesNotUnderstand(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", []string{"solo"})
	f.start("solo")
	root(t, hq)
	hq[0].publish("app", "v1", "1")
	_ = hq[0].node.ApplyRaw([]byte{0xff, 0xff})
	if err := <-hq[0].done; !errors.Is(err, tree.ErrBroken) || !errors.Is(err, catalog.ErrUnknown) {
		t.Fatalf("Run ended with %v", err)
	}
	hq[0].done <- nil
	hq[0].kill()
	hq[0].start() // it is not skipped after a restart either
	if err := <-hq[0].done; !errors.Is(err, tree.ErrBroken) {
		t.Fatalf("Run ended with %v", err)
	}
	hq[0].done <- nil
}

func TestWitness_HandsLeadershipOn(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", three)
	hq[0].cfg.RegistryType = "none"
	f.start(three...)
	for _, s := range hq {
		s.node.Report(&treev1.SiteHealth{State: "synced", RegistryOk: true}, nil)
	}
	for range 3 {
		until(t, "a root with a registry", func() bool {
			return !hq[0].node.IsRoot() && (hq[1].node.IsRoot() || hq[2].node.IsRoot())
		})
		r := root(t, hq[1:])
		until(t, "the root is the carrier", func() bool { return r.node.Roster().IsCarrier || !r.node.IsRoot() })
		r.kill()
		r.start()
		r.node.Report(&treev1.SiteHealth{State: "synced", RegistryOk: true}, nil)
	}
}

func TestCarrier_IsTheFirstWhoseRegistryWorks(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", three)
	f.start(three...)
	r := root(t, hq)
	for _, s := range hq {
		s.node.Report(&treev1.SiteHealth{State: "synced", RegistryOk: s != r}, nil)
	}
	want := ""
	for _, s := range hq {
		if s != r && want == "" {
			want = s.cfg.Site
		}
	}
	for _, s := range hq {
		until(t, "the carrier is known everywhere", func() bool {
			return s.node.Roster().Carrier == want && s.node.Roster().IsCarrier == (s.cfg.Site == want)
		})
	}
	r.node.Report(&treev1.SiteHealth{State: "synced", RegistryOk: true}, nil)
	until(t, "the root again", func() bool { return r.node.Roster().Carrier == r.cfg.Site })
}
