package tree_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/tree"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// dialTest opens a connection that the site's cut closes.
func (s *site) dialTest(addr string) (grpc.ClientConnInterface, error) {
	if s.conns == nil {
		s.conns = map[string]*grpc.ClientConn{}
	}
	c, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err == nil {
		s.f.t.Cleanup(func() { _ = c.Close() })
	}
	return c, err
}

// fakeParent is a parent that welcomes everybody and then sends these records.
func fakeParent(t *testing.T, addr string, records *treev1.Records) (stop func()) {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	treev1.RegisterTreeServiceServer(server, &badParent{records: records})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(ln)
	}()
	return func() {
		server.Stop()
		<-done
	}
}

type badParent struct {
	treev1.UnimplementedTreeServiceServer
	records *treev1.Records
}

func (p *badParent) Attach(stream grpc.BidiStreamingServer[treev1.AttachRequest, treev1.AttachResponse]) error {
	w := &treev1.Welcome{Group: "hq", Site: "hq-a", Position: position(5)}
	if err := stream.Send(&treev1.AttachResponse{Kind: &treev1.AttachResponse_Welcome{Welcome: w}}); err != nil {
		return err
	}
	if err := stream.Send(&treev1.AttachResponse{Kind: &treev1.AttachResponse_Records{Records: p.records}}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

func TestHealth_RollsUpToHeadquarters(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", three)
	gd := f.group("hq/gd", []string{"gd-a", "gd-b", "gd-c"}, three...)
	sz := f.group("hq/gd/sz", []string{"sz-a"}, "gd-a", "gd-b", "gd-c")
	f.start("hq-a", "hq-b", "hq-c", "gd-a", "gd-b", "gd-c", "sz-a")
	all := append(append(append([]*site{}, hq...), gd...), sz...)
	for _, s := range all {
		s.node.Report(&treev1.SiteHealth{State: "synced", RegistryOk: true}, nil)
	}
	var v tree.HealthView
	at := func(what string, ok func() bool) {
		t.Helper()
		defer func() {
			if t.Failed() {
				for _, g := range v.Groups {
					t.Log(g)
				}
				for _, s := range v.Sites {
					t.Log(s)
				}
			}
		}()
		ref := catalog.Ref{Repository: "app", Tag: "v1"}
		until(t, what, func() bool { v = root(t, hq).node.Health(ref); return ok() })
	}
	at("all are synced", func() bool {
		ok := len(v.Groups) == 3 && len(v.Sites) == 7
		for _, g := range v.Groups {
			ok = ok && g.State == "synced"
		}
		return ok
	})
	if v.Groups[0].Group != "hq" || v.Groups[1].Group != "hq/gd" || v.Groups[2].Group != "hq/gd/sz" {
		t.Errorf("order of groups: %v", v.Groups)
	}
	first := groupOf(v, "hq").GetLastContact().AsTime()
	at("the root's own group is heard of again and again, though nothing changes in it", func() bool { return groupOf(v, "hq").GetLastContact().AsTime().After(first) })
	ref := catalog.Ref{Repository: "app", Tag: "v1"}
	sz[0].node.Report(&treev1.SiteHealth{State: "syncing", Revision: 7}, map[string]*treev1.PendingRef{"app:v1": {Revision: 7, State: "failed", Reason: "500"}})
	at("a pending ref is seen", func() bool {
		p := v.Pending("sz-a", ref)
		return p.GetReason() == "500" && siteOf(v, "sz-a").GetRevision() == 7 && groupOf(v, "hq/gd/sz").GetState() == "syncing"
	})
	sz[0].node.Report(&treev1.SiteHealth{State: "synced", Revision: 7}, nil)
	at("it is settled", func() bool { return v.Pending("sz-a", ref) == nil && siteOf(v, "sz-a").GetState() == "synced" })

	// A member that is not the root dies, then the city.
	var victim *site
	for _, s := range gd {
		if s != root(t, gd) {
			victim = s
		}
	}
	victim.kill()
	sz[0].kill()
	at("they are unreachable, since when is known, and the others are not", func() bool {
		m, c, g := siteOf(v, victim.cfg.Site), siteOf(v, "sz-a"), groupOf(v, "hq/gd/sz")
		return m.GetState() == "unreachable" && m.LastContact != nil && c.GetState() == "unreachable" && c.LastContact != nil && g.GetState() == "unreachable" &&
			siteOf(v, root(t, gd).cfg.Site).GetState() == "synced"
	})
	// The province's root dies as well: another takes over and tells all anew.
	victim.start()
	victim.node.Report(&treev1.SiteHealth{State: "synced", RegistryOk: true}, nil)
	at("it is back", func() bool { return siteOf(v, victim.cfg.Site).GetState() == "synced" })
	r := root(t, gd)
	r.kill()
	at("the new root speaks for the province", func() bool {
		return siteOf(v, r.cfg.Site).GetState() == "unreachable" && siteOf(v, "sz-a").GetState() == "unreachable" && siteOf(v, victim.cfg.Site).GetState() == "synced"
	})
	// Headquarters restarts: what is away is remembered.
	for _, s := range append(gd, hq...) {
		s.kill()
	}
	f.start(three...)
	at("a restarted headquarters knows who is away", func() bool {
		return len(v.Groups) == 3 && len(v.Sites) == 7 && groupOf(v, "hq/gd").GetState() == "unreachable" && siteOf(v, "sz-a").GetState() == "unreachable" &&
			groupOf(v, "hq/gd/sz").GetState() == "unreachable"
	})
}

func TestHealth_PendingIsBounded(t *testing.T) {
	table := tree.NewTable("hq/gd", "gd-a", "gd-a")
	pending := map[string]*treev1.PendingRef{}
	for i := range 1500 {
		pending[fmt.Sprintf("app:v%d", i)] = &treev1.PendingRef{Revision: uint64(i + 1)}
	}
	table.Report(&treev1.SiteHealth{Site: "gd-a", Group: "hq/gd", Revision: 1500}, pending)
	h := table.View().Sites[0]
	if h.PendingTotal != 1500 || h.PendingFrom != 1001 || len(table.PendingOf("gd-a")) != 1000 {
		t.Errorf("total %d, from %d, kept %d", h.PendingTotal, h.PendingFrom, len(table.PendingOf("gd-a")))
	}
	for i := range 700 {
		delete(pending, fmt.Sprintf("app:v%d", i))
	}
	table.Report(&treev1.SiteHealth{Site: "gd-a", Group: "hq/gd", Revision: 1500}, pending)
	h = table.View().Sites[0]
	if h.PendingTotal != 800 || h.PendingFrom != 0 || len(table.PendingOf("gd-a")) != 800 {
		t.Errorf("total %d, from %d, kept %d", h.PendingTotal, h.PendingFrom, len(table.PendingOf("gd-a")))
	}
}

func TestHealth_ChildSpeaksOfItsSubtreeAlone(t *testing.T) {
	hq := tree.NewTable("hq", "", "hq-a")
	gd, hn := hq.Source("hq/gd"), hq.Source("hq/hn")
	say := func(s *tree.Table, u *treev1.HealthUpdate, ignored int) {
		t.Helper()
		n, err := s.Merge(u)
		if err != nil || n != ignored {
			t.Errorf("%d ignored, %v; want %d", n, err, ignored)
		}
	}
	say(hn, &treev1.HealthUpdate{Full: true, Sites: []*treev1.SiteHealth{{Site: "hn-a", Group: "hq/hn", State: "synced"}}, Groups: []*treev1.GroupHealth{{Group: "hq/hn"}}}, 0)
	say(gd, &treev1.HealthUpdate{
		Full:         true,
		Groups:       []*treev1.GroupHealth{{Group: "hq"}, {Group: "hq/hn"}, {Group: "hq/gdx"}, {Group: "hq/gd"}, {Group: "hq/gd/sz"}},
		Sites:        []*treev1.SiteHealth{{Site: "hq-a", Group: "hq/gd"}, {Site: "hn-a", Group: "hq/gd"}, {Site: "gd-a", Group: "hq/gd"}, {Site: "x", Group: "hq"}},
		Pending:      []*treev1.PendingRef{{Site: "hn-a", Repository: "app", Tag: "v1"}, {Site: "hq-a", Repository: "app", Tag: "v1"}},
		RemovedSites: []string{"hn-a"},
		Settled:      []*treev1.SettledRef{{Site: "hn-a", Repository: "app", Tag: "v1"}},
	}, 3+3+2)
	v := hq.View()
	if s := siteOf(v, "hn-a"); s.GetGroup() != "hq/hn" || s.GetState() != "synced" || siteOf(v, "hq-a") != nil || len(v.Groups) != 3 {
		t.Errorf("a child spoke of others: %v", v)
	}
	for _, bad := range []*treev1.HealthUpdate{
		{Sites: []*treev1.SiteHealth{{Group: "hq/gd"}}},
		{Groups: []*treev1.GroupHealth{{Group: "hq/gd", State: "a\nb"}}},
		{Pending: []*treev1.PendingRef{nil}},
	} {
		if _, err := gd.Merge(bad); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
}

// A table that is told by differences, cut anywhere, comes to equal the one that tells; and at no moment does it take a ref for delivered that is not.
func TestHealth_DifferencesConvergeAndNeverDeceive(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 1))
		at := tree.NewTable("hq/gd/sz", "sz-a", "sz-a")
		mid := tree.NewTable("hq/gd", "")
		midIn := mid.Source("hq/gd/sz")
		top := tree.NewTable("hq", "")
		topIn := top.Source("hq/gd")
		at.InParts(5)
		mid.InParts(3)
		delivered := map[string]uint64{} // truth: ref to the revision that the site shows
		wanted := map[string]uint64{}
		head := uint64(0)
		pass := func(from, to *tree.Table) {
			if u, _ := from.Diff(); u != nil {
				if _, err := to.Merge(proto.CloneOf(u)); err != nil {
					t.Fatal(err)
				}
			}
		}
		check := func(where string, table *tree.Table) {
			h := siteOf(table.View(), "sz-a")
			pending := table.PendingOf("sz-a")
			for ref, revision := range wanted {
				if h.GetRevision() >= revision && pending[ref] == nil && (h.GetPendingFrom() == 0 || revision < h.GetPendingFrom()) && delivered[ref] < revision {
					t.Fatalf("seed %d: %s takes %s at %d for delivered, the site shows %d", seed, where, ref, revision, delivered[ref])
				}
			}
		}
		for range 400 {
			switch rng.IntN(6) {
			case 0, 1: // refs change; updates have several parts
				for range 1 + rng.IntN(10) {
					head++
					wanted[fmt.Sprintf("app:v%d", rng.IntN(60))] = head
				}
			case 2:
				for ref := range wanted {
					if rng.IntN(3) == 0 {
						delivered[ref] = wanted[ref]
					}
				}
			case 3:
				pending := map[string]*treev1.PendingRef{}
				for ref, revision := range wanted {
					if delivered[ref] < revision {
						pending[ref] = &treev1.PendingRef{Revision: revision, Attempts: uint32(rng.IntN(3))}
					}
				}
				at.Report(&treev1.SiteHealth{Site: "sz-a", Group: "hq/gd/sz", State: "syncing", Revision: head}, pending)
			case 4:
				pass(at, midIn)
			case 5:
				if rng.IntN(20) == 0 { // a new stream reads from the start
					midIn.Leave("gone")
					midIn = mid.Source("hq/gd/sz")
					*at = at.Again()
				}
				pass(mid, topIn)
			}
			check("the province", mid)
			check("headquarters", top)
		}
		for range 200 {
			pass(at, midIn)
			pass(mid, topIn)
			check("the province", mid)
			check("headquarters", top)
		}
		want, got := at.PendingOf("sz-a"), top.PendingOf("sz-a")
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Fatalf("seed %d: headquarters differs: %s", seed, diff)
		}
		if s := siteOf(top.View(), "sz-a"); len(want) > 0 && s.GetPendingTotal() != uint64(len(want)) && s.GetPendingFrom() == 0 {
			t.Fatalf("seed %d: %v", seed, s)
		}
	}
}

func TestHealth_ManyRemovalsAreForgottenAndMadeGood(t *testing.T) {
	at := tree.NewTable("hq/gd", "gd-a", "gd-a")
	top := tree.NewTable("hq", "")
	in := top.Source("hq/gd")
	drain := func() {
		for more := true; more; {
			var u *treev1.HealthUpdate
			if u, more = at.Diff(); u != nil {
				if _, err := in.Merge(proto.CloneOf(u)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	report := func(round int) {
		pending := map[string]*treev1.PendingRef{}
		for i := range 1000 {
			pending[fmt.Sprintf("app:r%d-%d", round, i)] = &treev1.PendingRef{Revision: 1}
		}
		at.Report(&treev1.SiteHealth{Site: "gd-a", Group: "hq/gd", Revision: 1}, pending)
	}
	report(0)
	drain()
	for round := range 60 {
		report(round + 1)
	}
	drain()
	if diff := cmp.Diff(at.PendingOf("gd-a"), top.PendingOf("gd-a"), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

// TestTable_NewRootBelow: a child whose root has changed names only whom its new root has heard of. Of the others is kept what was heard before, whatever the new root then says of not having heard of them.
func TestTable_NewRootBelow(t *testing.T) {
	hq := tree.NewTable("hq", "", "hq-a")
	hq.Remembers(map[string][]string{"hq/gd": {"gd-a", "gd-b"}, "hq/gd/sz": {"sz-a"}})
	at := &catalogv1.Position{Epoch: "e", Revision: 5}
	site := func(name, group string) *treev1.SiteHealth {
		return &treev1.SiteHealth{Site: name, Group: group, State: "synced", Revision: 5, Version: "v1", RegistryType: "harbor"}
	}
	if _, err := hq.Source("hq/hn").Merge(&treev1.HealthUpdate{ // what is told first of somebody may be that he was not heard of
		Full: true, Groups: []*treev1.GroupHealth{{Group: "hq/hn/cs", State: "unreachable", Reason: "not heard of"}}, Sites: []*treev1.SiteHealth{{Site: "cs-a", Group: "hq/hn/cs", State: "unreachable", Reason: "not heard of"}},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := hq.Source("hq/hn").Merge(&treev1.HealthUpdate{Full: true}); err != nil {
		t.Fatal(err)
	}
	old := hq.Source("hq/gd")
	if _, err := old.Merge(&treev1.HealthUpdate{
		Full:    true,
		Groups:  []*treev1.GroupHealth{{Group: "hq/gd", Root: "gd-a", Position: at, State: "synced"}, {Group: "hq/gd/sz", Root: "sz-a", Position: at, State: "synced"}, {Group: "hq/gd/gone", Root: "x", Position: at, State: "synced"}},
		Sites:   []*treev1.SiteHealth{site("gd-a", "hq/gd"), site("gd-b", "hq/gd"), site("sz-a", "hq/gd/sz"), site("x", "hq/gd/gone")},
		Pending: []*treev1.PendingRef{{Site: "sz-a", Repository: "app/web", Tag: "1", State: "failed", Revision: 4}},
	}); err != nil {
		t.Fatal(err)
	}
	old.Leave("no contact")
	ref := catalog.Ref{Repository: "app/web", Tag: "1"}
	look := func(state string) {
		t.Helper()
		v := hq.View(ref)
		if len(v.Groups) != 2 || len(v.Sites) != 3 {
			t.Fatalf("%d groups and %d sites: %v", len(v.Groups), len(v.Sites), v)
		}
		for _, h := range v.Sites {
			want, contact := state, true
			if h.Site == "gd-b" {
				want = "synced"
			}
			if h.State != want || h.Revision != 5 || h.Version != "v1" || (h.LastContact != nil) != contact {
				t.Errorf("want %s: %v", want, h)
			}
		}
		for _, g := range v.Groups {
			if lost := g.Group == "hq/gd/sz"; g.Lost != lost || g.LastContact == nil || lost && (g.State != state || g.Position.GetRevision() != 5) {
				t.Errorf("group: %v", g)
			}
		}
		if v.Pending("sz-a", ref) == nil {
			t.Error("what is pending there is forgotten")
		}
	}
	look2 := func(merge *treev1.HealthUpdate, s *tree.Table, state string) {
		t.Helper()
		if ignored, err := s.Merge(merge); err != nil || ignored > 0 {
			t.Fatal(ignored, err)
		}
		look(state)
	}
	fresh := hq.Source("hq/gd")
	look2(&treev1.HealthUpdate{Full: true, Groups: []*treev1.GroupHealth{{Group: "hq/gd", Root: "gd-b", Position: at, State: "unknown", Reason: "gd-a: not heard of yet"}}, Sites: []*treev1.SiteHealth{site("gd-b", "hq/gd")}}, fresh, "unknown")
	unheard := &treev1.HealthUpdate{
		Groups: []*treev1.GroupHealth{{Group: "hq/gd/sz", State: "unreachable", Reason: "not heard of"}},
		Sites:  []*treev1.SiteHealth{{Site: "gd-a", Group: "hq/gd", State: "unreachable", Reason: "not heard of"}, {Site: "sz-a", Group: "hq/gd/sz", State: "unreachable", Reason: "not heard of"}},
	}
	look2(unheard, fresh, "unreachable")
	again := hq.Source("hq/gd") // and again, in one update
	whole := proto.CloneOf(unheard)
	whole.Full = true
	whole.Groups = append(whole.Groups, &treev1.GroupHealth{Group: "hq/gd", Root: "gd-b", Position: at, State: "unreachable"})
	whole.Sites = append(whole.Sites, site("gd-b", "hq/gd"))
	fresh.Leave("gone")
	look2(whole, again, "unreachable")

	// The next root is gone before it had time to say so: then they are no less away.
	brief := hq.Source("hq/gd")
	look2(&treev1.HealthUpdate{Full: true, Groups: []*treev1.GroupHealth{{Group: "hq/gd", Root: "gd-b", Position: at, State: "unknown"}}, Sites: []*treev1.SiteHealth{site("gd-b", "hq/gd")}}, brief, "unknown")
	brief.Leave("gone")
	for _, h := range hq.View(ref).Sites {
		if h.State != "unreachable" || h.Revision != 5 || h.LastContact == nil {
			t.Errorf("after its province is gone: %v", h)
		}
	}
	if _, err := again.Merge(whole); err != nil {
		t.Fatal(err)
	}

	// It is back, and has nothing pending: nobody says so of a ref that the new root never knew.
	if _, err := again.Merge(&treev1.HealthUpdate{Sites: []*treev1.SiteHealth{site("sz-a", "hq/gd/sz")}}); err != nil {
		t.Fatal(err)
	}
	if v := hq.View(ref); v.Pending("sz-a", ref) != nil {
		t.Error("what was pending before is still said to be")
	}
}
