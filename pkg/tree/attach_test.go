package tree_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/tree"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

func subscribe(patterns ...string) *catalogv1.GroupSettings {
	return &catalogv1.GroupSettings{Subscribe: &catalogv1.Subscription{Repositories: patterns}, Labels: map[string]string{"tier": "test"}}
}

// shelf is a ManifestStore.
type shelf struct {
	mu   sync.Mutex
	held map[string]*transferv1.Manifest
	puts int
}

func (s *shelf) Closure(rec *catalogv1.Record) []*transferv1.Manifest {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.held[rec.GetTarget().GetDigest()]; m != nil {
		return []*transferv1.Manifest{m}
	}
	return nil
}

func (s *shelf) Put(list []*transferv1.Manifest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range list {
		s.held[m.Digest] = m
		s.puts++
	}
	return nil
}

func newShelf(contents ...string) *shelf {
	s := &shelf{held: map[string]*transferv1.Manifest{}}
	for _, c := range contents {
		s.held[digest(c)] = &transferv1.Manifest{Digest: digest(c), Content: []byte(c)}
	}
	return s
}

func TestAttach_RecordsAndManifestsCascade(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", three)
	gd := f.group("hq/gd", []string{"gd-a"}, three...)
	sz := f.group("hq/gd/sz", []string{"sz-a", "sz-b", "sz-c"}, "gd-a")
	for _, s := range hq {
		s.cfg.Manifests = newShelf("one", "two")
	}
	shelves := []*shelf{newShelf(), newShelf()}
	gd[0].cfg.Manifests, sz[0].cfg.Manifests = shelves[0], shelves[1]
	sz[1].cfg.Manifests, sz[2].cfg.Manifests = shelves[1], shelves[1]
	f.start("hq-a", "hq-b", "hq-c", "gd-a", "sz-a", "sz-b", "sz-c")
	root(t, hq)
	hq[1].publish("app", "v1", "one")
	for _, s := range append(gd, sz...) {
		until(t, s.cfg.Site+" shows it", func() bool { return s.shows("app", "v1", "one") })
	}
	until(t, "the other groups are settled", func() bool {
		return gd[0].node.IsRoot() && gd[0].node.Roster().Parent == "hq" && root(t, sz).node.Roster().Parent == "hq/gd"
	})
	hq[2].publish("app", "v2", "two")
	for _, s := range append(gd, sz...) {
		until(t, s.cfg.Site+" shows it", func() bool { return s.shows("app", "v2", "two") && everything(s) == everything(hq[0]) })
	}
	for i, sh := range shelves {
		sh.mu.Lock()
		if sh.held[digest("two")] == nil {
			t.Errorf("tier %d: the manifest was not sent ahead", i+1)
		}
		sh.mu.Unlock()
	}
	for _, s := range sz {
		until(t, "parents are known at each member", func() bool {
			r := s.node.Roster()
			return len(r.Parents) == 1 && r.Parents[0].Site == "gd-a" && r.Parent == "hq/gd" && r.Head == 2
		})
	}
	until(t, "headquarters remembers all below", func() bool {
		g, _ := hq[0].node.Catalog().Group("hq/gd/sz")
		return g != nil && len(g.Sites) == 3
	})
}

func TestAttach_GoesOnFromThePosition(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", []string{"hq-a"})
	gd := f.group("hq/gd", []string{"gd-a"}, "hq-a")
	f.start("hq-a", "gd-a")
	for i := range 10 {
		root(t, hq).publish("app", fmt.Sprint("v", i), fmt.Sprint(i))
	}
	until(t, "it has ten", func() bool { return gd[0].position().GetRevision() == 10 })
	for i := range 5 {
		if i%2 == 0 {
			gd[0].kill()
			gd[0].start()
		} else {
			gd[0].cut()
		}
		hq[0].publish("app", fmt.Sprint("w", i), fmt.Sprint(i))
		until(t, "it follows", func() bool { return gd[0].position().GetRevision() == uint64(11+i) })
	}
	// A record may be under way at each of the five breaks.
	if sent := hq[0].counter("fanout_tree_records_sent_total"); sent < 15 || sent > 20 {
		t.Errorf("%v records were sent, want each of 15 once, or twice when it was under way", sent)
	}
	if n := hq[0].counter("fanout_tree_resyncs_sent_total"); n != 0 {
		t.Errorf("%v resyncs", n)
	}
	if everything(gd[0]) != everything(hq[0]) {
		t.Error("they differ")
	}
}

func TestAttach_ScopeChangeResyncs(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", []string{"hq-a"})
	gd := f.group("hq/gd", []string{"gd-a"}, "hq-a")
	sz := f.group("hq/gd/sz", []string{"sz-a"}, "gd-a")
	gd[0].cfg.Settings, sz[0].cfg.Settings = subscribe("a/**"), subscribe("a/**")
	f.start("hq-a", "gd-a")
	root(t, hq)
	hq[0].publish("a/x", "v1", "ax")
	hq[0].publish("b/x", "v1", "bx")
	hq[0].publish("c/x", "v1", "cx")
	until(t, "it has its part, and its position goes on", func() bool {
		return gd[0].shows("a/x", "v1", "ax") && gd[0].position().GetRevision() == 3 && gd[0].node.Catalog().Len() == 1
	})
	// A city that wants more makes the province want more.
	sz[0].cfg.Settings = subscribe("a/**", "b/**")
	f.start("sz-a")
	until(t, "both have both parts", func() bool {
		return gd[0].shows("b/x", "v1", "bx") && sz[0].shows("b/x", "v1", "bx") && sz[0].shows("a/x", "v1", "ax") && sz[0].node.Catalog().Len() == 2
	})
	if hq[0].counter("fanout_tree_resyncs_sent_total") == 0 {
		t.Error("no resync")
	}
	// Less: what leaves the scope is dropped. The demand of a city that is away stays.
	sz[0].kill()
	gd[0].kill()
	gd[0].cfg.Settings = subscribe("c/**")
	gd[0].start()
	until(t, "the province has its part and the city's", func() bool { return gd[0].shows("c/x", "v1", "cx") && gd[0].node.Catalog().Len() == 3 })
	sz[0].cfg.Settings = subscribe("b/**")
	sz[0].start()
	until(t, "what nobody wants is dropped", func() bool {
		return sz[0].node.Catalog().Len() == 1 && sz[0].shows("b/x", "v1", "bx") && gd[0].node.Catalog().Len() == 2 && !gd[0].shows("a/x", "v1", "ax")
	})
	hq[0].publish("b/x", "v1", "bx2")
	until(t, "and it goes on", func() bool { return sz[0].shows("b/x", "v1", "bx2") })
}

func TestAttach_ConvergesHoweverItIsCut(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", three)
	gd := f.group("hq/gd", []string{"gd-a", "gd-b", "gd-c"}, three...)
	sz := f.group("hq/gd/sz", []string{"sz-a"}, "gd-a", "gd-b", "gd-c")
	sz[0].cfg.Settings = subscribe("app0/**", "app1/**", "app0", "app1")
	f.start("hq-a", "hq-b", "hq-c", "gd-a", "gd-b", "gd-c", "sz-a")
	root(t, hq)
	all := append(append(append([]*site{}, hq...), gd...), sz...)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(rand.IntN(60)) * time.Millisecond):
				all[rand.IntN(len(all))].cut()
			}
		}
	})
	for i := range 150 {
		hq[i%3].publish(fmt.Sprint("app", i%3), fmt.Sprint("v", i%20), fmt.Sprint(i))
		if i%50 == 25 {
			victim := root(t, gd)
			victim.kill()
			victim.start()
		}
	}
	close(stop)
	wg.Wait()
	want := root(t, hq)
	for _, s := range gd {
		until(t, s.cfg.Site+" equals headquarters", func() bool {
			return s.position().GetRevision() == want.position().GetRevision() && everything(s) == everything(want)
		})
	}
	view := want.node.Catalog().View(&catalogv1.Scope{AnyOf: []*catalogv1.Subscription{sz[0].cfg.Settings.Subscribe}}).Digest()
	until(t, "the city has its part", func() bool { return everything(sz[0]) == view })
}

func TestAttach_ForeignEpochIsSaidAndNothingTaken(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", []string{"hq-a"})
	gd := f.group("hq/gd", []string{"gd-a"}, "hq-a")
	f.start("hq-a", "gd-a")
	root(t, hq).publish("app", "v1", "one")
	until(t, "it follows", func() bool { return gd[0].shows("app", "v1", "one") })
	hq[0].kill()
	hq[0].wipe()
	hq[0].start()
	root(t, hq).publish("app", "v1", "another")
	until(t, "headquarters is told, in words", func() bool {
		g := groupOf(hq[0].node.Health(), "hq/gd")
		return g.GetState() == "degraded" && has(g.GetReason(), "foreign epoch")
	})
	if !gd[0].shows("app", "v1", "one") {
		t.Error("it did not keep what it had")
	}
}

func TestAttach_RefusesWhoDoesNotBelong(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", []string{"hq-a"})
	gd := f.group("hq/gd", []string{"gd-a"}, "hq-a")
	hq[0].cfg.AuthorizePeer = func(_ context.Context, group, site string) error {
		if group == "hq/gd" && site == "gd-x" {
			return fmt.Errorf("the certificate says otherwise")
		}
		return nil
	}
	f.start("hq-a")
	root(t, hq)
	conn, err := gd[0].dialTest(hq[0].cfg.FabricAdvertise)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		hello *treev1.Hello
		code  codes.Code
		word  string
	}{
		{&treev1.Hello{Group: "hq", Site: "hq-b"}, codes.PermissionDenied, "does not lie below"},
		{&treev1.Hello{Group: "hqx/gd", Site: "gd-a"}, codes.PermissionDenied, "does not lie below"},
		{&treev1.Hello{Group: "hq/gd", Site: "gd-x"}, codes.PermissionDenied, "certificate"},
		{&treev1.Hello{Group: "hq/gd", Site: "gd-a", Demand: &catalogv1.Scope{AnyOf: []*catalogv1.Subscription{{Repositories: []string{"["}}}}}, codes.InvalidArgument, "malformed"},
		{nil, codes.InvalidArgument, "hello"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		stream, err := treev1.NewTreeServiceClient(conn).Attach(ctx)
		if err != nil {
			t.Fatal(err)
		}
		req := &treev1.AttachRequest{Kind: &treev1.AttachRequest_Ack{}}
		if c.hello != nil {
			req.Kind = &treev1.AttachRequest_Hello{Hello: c.hello}
		}
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		if status.Code(err) != c.code || !has(err.Error(), c.word) {
			t.Errorf("hello %v: %v, want %v with %q", c.hello, err, c.code, c.word)
		}
		cancel()
	}
	if _, err := treev1.NewTreeServiceClient(conn).Propose(t.Context(), &treev1.ProposeRequest{Site: "gd-a", Changes: []*catalogv1.Change{publishChange("app", "v1", "x", 0)}}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a proposal from outside: %v", err)
	}
	if _, err := treev1.NewTreeServiceClient(conn).Propose(t.Context(), &treev1.ProposeRequest{Site: "hq-a", Changes: []*catalogv1.Change{{}}}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a change without a kind: %v", err)
	}
	gd[0].cut()
}

func TestAttach_SlowChildCostsOthersNothing(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", []string{"hq-a"})
	gd := f.group("hq/gd", []string{"gd-a"}, "hq-a")
	f.start("hq-a", "gd-a")
	root(t, hq)
	conn, err := gd[0].dialTest(hq[0].cfg.FabricAdvertise)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := treev1.NewTreeServiceClient(conn).Attach(ctx)
	if err != nil {
		t.Fatal(err)
	}
	all := &catalogv1.Scope{AnyOf: []*catalogv1.Subscription{{Repositories: []string{"**"}}}}
	if err := stream.Send(&treev1.AttachRequest{Kind: &treev1.AttachRequest_Hello{Hello: &treev1.Hello{Group: "hq/slow", Site: "slow-a", Demand: all}}}); err != nil {
		t.Fatal(err)
	}
	// It reads nothing. Records of some size fill its window.
	for i := range 40 {
		change := publishChange("app", fmt.Sprint("v", i), fmt.Sprint(i), 0)
		for k := range 100 {
			change.GetPublish().Referrers = append(change.GetPublish().Referrers, &catalogv1.Descriptor{Digest: digest(fmt.Sprint(i, k)), Size: 1, MediaType: "m"})
		}
		if res, err := hq[0].node.Propose(ctx, "test", change); err != nil || res[0].Err != nil {
			t.Fatal(err, res)
		}
	}
	until(t, "the other has all", func() bool { return gd[0].position().GetRevision() == 40 })
	until(t, "the slow one is let go", func() bool {
		return hq[0].counter("fanout_tree_children") == 1
	})
	cancel()
}

func TestAttach_RubbishFromAParentIsRefused(t *testing.T) {
	rubbish := map[string]*treev1.Records{
		"manifest":    {Position: position(1), Manifests: []*transferv1.Manifest{{Digest: digest("x"), Content: []byte("y")}}},
		"no position": {},
		"order":       {Position: position(5), Records: []*catalogv1.Record{record(3), record(2)}},
		"beyond":      {Position: position(5), Records: []*catalogv1.Record{record(9)}},
	}
	for name, records := range rubbish {
		t.Run(name, func(t *testing.T) {
			f := newFabric(t)
			hq := f.group("hq", []string{"hq-a"})
			gd := f.group("hq/gd", []string{"gd-a"}, "hq-a")
			stop := fakeParent(t, hq[0].cfg.FabricAdvertise, records)
			defer stop()
			f.start("gd-a")
			until(t, "the state says so", func() bool {
				g := groupOf(gd[0].node.Health(), "hq/gd")
				return g.GetState() == "degraded" && (has(g.GetReason(), "refused") || has(g.GetReason(), "unacceptable"))
			})
			if gd[0].node.Catalog().Len() != 0 {
				t.Error("something was taken in")
			}
		})
	}
}

func position(revision uint64) *catalogv1.Position {
	return &catalogv1.Position{Epoch: "e", Revision: revision, Sum: make([]byte, 16), Scope: "s"}
}

func record(revision uint64) *catalogv1.Record {
	return &catalogv1.Record{
		Repository: "app", Tag: fmt.Sprint("v", revision), Revision: revision, Sum: make([]byte, 16), Target: &catalogv1.Descriptor{Digest: digest("x")},
	}
}

// TestAttach_ParentThatWasAwayIsFoundSoon: only a refusal makes the pauses long.
func TestAttach_ParentThatWasAwayIsFoundSoon(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", []string{"hq-a", "hq-b"})
	gd := f.group("hq/gd", []string{"gd-a"}, "hq-a", "hq-b")
	gd[0].cfg.Timeouts.Backoff = time.Hour
	asked := func(more int) func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		want := gd[0].dials + more
		return func() bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			return gd[0].dials >= want
		}
	}
	f.start("gd-a")
	until(t, "it asks again and again while no parent answers", asked(12))
	until(t, "it says so of each, in words", func() bool {
		said := groupOf(gd[0].node.Health(), "hq/gd").GetReason()
		return said == fmt.Sprintf("not attached to a parent: %s: connection refused; %s: connection refused", hq[0].cfg.FabricAdvertise, hq[1].cfg.FabricAdvertise)
	})
	f.start("hq-a")
	until(t, "it asks again and again while the parent has no root", asked(12))
	f.start("hq-b")
	until(t, "it attaches", func() bool { return gd[0].node.Roster().Parent == "hq" })
}

func TestFallback_AttachesHigherUpAndComesBack(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", []string{"hq-a"})
	gd := f.group("hq/gd", []string{"gd-a"}, "hq-a")
	sz := f.group("hq/gd/sz", []string{"sz-a"}, "gd-a")
	sz[0].cfg.FallbackParents = []string{hq[0].cfg.FabricAdvertise}
	sz[0].cfg.Settings = &catalogv1.GroupSettings{Subscribe: &catalogv1.Subscription{Repositories: []string{"app"}}}
	f.start("hq-a", "gd-a", "sz-a")
	root(t, hq).publish("app", "v1", "1")
	until(t, "it follows its parent", func() bool { return sz[0].shows("app", "v1", "1") && sz[0].node.Roster().Parent == "hq/gd" })
	gd[0].kill()
	until(t, "it attaches to headquarters", func() bool { return sz[0].node.Roster().Parent == "hq" })
	hq[0].publish("app", "v2", "2")
	until(t, "it follows there", func() bool { return sz[0].shows("app", "v2", "2") })
	until(t, "headquarters sees who is away and who is not", func() bool {
		v := hq[0].node.Health()
		return groupOf(v, "hq/gd").GetState() == "unreachable" && groupOf(v, "hq/gd/sz").GetParent() == "hq" && groupOf(v, "hq/gd/sz").GetState() != "unreachable"
	})
	gd[0].start()
	until(t, "it comes back", func() bool { return sz[0].node.Roster().Parent == "hq/gd" })
	hq[0].publish("app", "v3", "3")
	until(t, "it follows its parent again", func() bool {
		return sz[0].shows("app", "v3", "3") && proto.Equal(sz[0].position(), wantPosition(gd[0], sz[0]))
	})
	defer func() {
		if t.Failed() {
			for _, s := range f.sites {
				t.Log(s.cfg.Site, s.node.Health().Groups)
			}
		}
	}()
	until(t, "headquarters sees that", func() bool {
		v := hq[0].node.Health()
		return groupOf(v, "hq/gd").GetState() != "unreachable" && groupOf(v, "hq/gd/sz").GetParent() == "hq/gd" && groupOf(v, "hq/gd/sz").GetState() != "unreachable"
	})
	// Its scope is its own demand, whoever it is attached to: neither there nor back was everything sent anew.
	for _, s := range []*site{hq[0], gd[0]} {
		if n := s.counter("fanout_tree_resyncs_sent_total"); n != 0 {
			t.Errorf("%s sent %v resyncs", s.cfg.Site, n)
		}
	}
}

// wantPosition is what a child's position is when it has all.
func wantPosition(parent, child *site) *catalogv1.Position {
	return parent.node.Catalog().View(catalog.Union(&catalogv1.Scope{AnyOf: []*catalogv1.Subscription{child.cfg.Settings.Subscribe}})).Position()
}

// A city can't see that its province is cut off: its own stream is as good as ever. So it is told, at all its members.
func TestAttach_CutOffIsToldDownward(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", []string{"hq-a"})
	gd := f.group("hq/gd", []string{"gd-a"}, "hq-a")
	sz := f.group("hq/gd/sz", []string{"sz-a", "sz-b", "sz-c"}, "gd-a")
	f.start("hq-a", "gd-a", "sz-a", "sz-b", "sz-c")
	at := func(s *site) string { return s.node.Roster().CutOff.GetGroup() }
	all := func(what, want string) {
		t.Helper()
		for _, s := range sz {
			until(t, s.cfg.Site+" knows: "+what, func() bool { return s.node.Roster().Parent == "hq/gd" && at(s) == want })
		}
	}
	all("all are attached", "")
	hq[0].kill()
	all("the province is cut off", "hq/gd")
	since := gd[0].node.Roster().CutOff.GetSince().AsTime()
	if got := sz[1].node.Roster().CutOff.GetSince().AsTime(); !got.Equal(since) {
		t.Errorf("since %v at the province, %v in the city", since, got)
	}
	if s := root(t, sz); s.node.Roster().Head != 0 {
		t.Errorf("head %d", s.node.Roster().Head)
	}
	gd[0].kill()
	for _, s := range sz {
		until(t, s.cfg.Site+" knows that its own group is now", func() bool { return at(s) == "hq/gd/sz" })
	}
	gd[0].start()
	all("it is the province again", "hq/gd")
	hq[0].start()
	all("all are attached again", "")
}

// TestLostWords: that the parent's root lost its office is told as that, and not in the word by which members tell it each other; other reasons stay as they are.
func TestLostWords(t *testing.T) {
	for _, c := range []struct {
		status     error
		from, want string
	}{
		{tree.EndOfOffice(), "hq", "who was root of hq is it no more; the next one is looked for"},
		{tree.EndOfOffice(), "", "it is not the root of its group now"},
		{status.Error(codes.FailedPrecondition, "stopped"), "hq", "stopped"},
		{status.Error(codes.Unavailable, "error reading from server: EOF"), "hq", "the connection was cut"},
	} {
		if got := tree.LostWords(c.status, c.from); got != c.want {
			t.Errorf("%v, from %q: %q, want %q", c.status, c.from, got, c.want)
		}
	}
}
