package tree_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/tree"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// saved is what a site's catalog is when it is written and read again.
func (s *site) saved() *catalog.Snapshot {
	s.f.t.Helper()
	var b bytes.Buffer
	if _, err := s.node.Catalog().WriteTo(&b); err != nil {
		s.f.t.Fatal(err)
	}
	m, err := catalog.Restore(&b)
	if err != nil {
		s.f.t.Fatal(err)
	}
	return m.Snapshot()
}

// publishMany publishes many refs at once.
func (s *site) publishMany(n int) {
	s.f.t.Helper()
	var changes []*catalogv1.Change
	for i := range n {
		changes = append(changes, publishChange(fmt.Sprint("many/", i), "v1", fmt.Sprint(i), 0))
	}
	results, err := s.node.Propose(s.f.t.Context(), "test", changes...)
	if err != nil {
		s.f.t.Fatal(err)
	}
	for _, r := range results {
		if r.Err != nil {
			s.f.t.Fatal(r.Err)
		}
	}
}

// unpublish returns the tombstone's revision.
func (s *site) unpublish(repo, tag string) uint64 {
	s.f.t.Helper()
	rec, _ := s.node.Catalog().Get(catalog.Ref{Repository: repo, Tag: tag})
	results, err := s.node.Propose(s.f.t.Context(), "test", &catalogv1.Change{Kind: &catalogv1.Change_Unpublish{Unpublish: &catalogv1.Unpublish{
		Expect: rec.GetRevision(), Repository: repo, Tag: tag, Origin: "hq-a",
	}}})
	if err != nil || results[0].Err != nil {
		s.f.t.Fatal(err, results)
	}
	return results[0].Revision
}

// renew loses the disks of a group and founds it anew.
func renew(t testing.TB, sites []*site) *site {
	t.Helper()
	for _, s := range sites {
		s.kill()
	}
	for _, s := range sites {
		s.wipe()
		s.start()
	}
	r := root(t, sites)
	until(t, "the new catalog is founded", func() bool { return r.position().GetEpoch() != "" })
	return r
}

// TestRestore_ChildrenFollowOn: records, tombstones and groups are taken over in parts, also when an earlier run was broken off, and the children that
// are not ahead follow without receiving anything anew.
func TestRestore_ChildrenFollowOn(t *testing.T) {
	f := newFabric(t)
	hq := calm(f.group("hq", three))
	gd := f.group("hq/gd", []string{"gd-a"}, three...)
	f.start("hq-a", "hq-b", "hq-c", "gd-a")
	root(t, hq).publish("app", "v1", "one")
	hq[0].publishMany(999)
	until(t, "the ref is known there", func() bool { return hq[0].shows("app", "v1", "one") })
	hq[0].unpublish("app", "v1")
	until(t, "it follows", func() bool { return gd[0].position().GetRevision() == 1001 })
	until(t, "its sites are known", func() bool {
		g, _ := hq[0].node.Catalog().Group("hq/gd")
		return len(g.GetSites()) == 1 && hq[0].position().GetRevision() == 1001
	})
	saved := hq[0].saved()
	gd[0].kill() // so that what is known of it comes from what was saved

	r := renew(t, hq)
	parts, err := r.node.BeginRestore(t.Context(), saved)
	if err != nil || parts < 3 {
		t.Fatalf("%d parts: %v", parts, err)
	}
	if !r.node.Catalog().Restoring() {
		t.Fatal("it is whole without its last part")
	}
	// The next root founds nothing in its place, and goes about its other duties.
	r.kill()
	next := root(t, []*site{hq[0], hq[1], hq[2]})
	next.misses(r)
	if !next.node.Catalog().Restoring() || next.position().GetEpoch() != "" {
		t.Fatalf("a catalog was founded in the middle of a restore: %v", next.position())
	}
	r.start()
	if _, err := next.node.RestoreCatalog(t.Context(), "alice", saved); err != nil {
		t.Fatal(err)
	}
	now := next.node.Catalog()
	if p := now.Position(); now.Restoring() || p.GetRevision() != 1001 || p.GetEpoch() == saved.Position().GetEpoch() || !bytes.Equal(p.GetSum(), saved.Position().GetSum()) {
		t.Errorf("restored to %v", p)
	}
	if rec, _ := now.Get(catalog.Ref{Repository: "app", Tag: "v1"}); !rec.GetDeleted() || now.Len() != 1000 {
		t.Errorf("%d records, and of the tombstone %v", now.Len(), rec)
	}
	if g, _ := now.Group("hq/gd"); len(g.GetSites()) != 1 {
		t.Errorf("the group below: %v", g)
	}
	gd[0].start()
	next.publish("app", "v2", "two")
	until(t, "it follows on", func() bool { return gd[0].shows("app", "v2", "two") })
	if n, sent := next.counter("fanout_tree_resyncs_sent_total"), next.counter("fanout_tree_records_sent_total"); n != 0 || sent != 1 {
		t.Errorf("%v resyncs, %v records, for one new record", n, sent)
	}
	if everything(gd[0]) != everything(next) {
		t.Error("they differ")
	}
	if _, err := next.node.RestoreCatalog(t.Context(), "alice", saved); !errors.Is(err, tree.ErrRefused) || !has(err.Error(), "dataDir") {
		t.Errorf("over a catalog that is in use: %v", err)
	}
}

// misses waits until a root has seen to its group after another member was lost: it then says so of that one.
func (s *site) misses(other *site) {
	s.f.t.Helper()
	until(s.f.t, "the root has seen to its group", func() bool {
		return siteOf(s.node.Health(), other.cfg.Site).GetState() == "unreachable"
	})
}

func TestRestore_Refusals(t *testing.T) {
	f := newFabric(t)
	hq := calm(f.group("hq", []string{"hq-a", "hq-b"}))
	gd := f.group("hq/gd", []string{"gd-a"}, "hq-a")
	f.start("hq-a", "hq-b", "gd-a")
	r := root(t, hq)
	follower := hq[0]
	if r == follower {
		follower = hq[1]
	}
	until(t, "it is founded", func() bool { return r.position().GetEpoch() != "" })
	whole := r.saved()
	half := catalog.New()
	half.Apply(&catalogv1.Command{Changes: []*catalogv1.Change{{Kind: &catalogv1.Change_RestoreCatalog{RestoreCatalog: &catalogv1.RestoreCatalog{Id: "x", Begin: true}}}}})
	until(t, "the province has a root", gd[0].node.IsRoot)
	for _, c := range []struct {
		at    *site
		saved *catalog.Snapshot
		kind  error
		word  string
	}{
		{gd[0], whole, tree.ErrRefused, "at headquarters, hq"},
		{follower, whole, tree.ErrNotRoot, ""},
		{r, catalog.New().Snapshot(), tree.ErrRefused, "empty"},
		{r, half.Snapshot(), tree.ErrRefused, "half-restored"},
	} {
		if _, err := c.at.node.RestoreCatalog(t.Context(), "alice", c.saved); !errors.Is(err, c.kind) || !has(err.Error(), c.word) {
			t.Errorf("at %s: %v, want %v with %q", c.at.cfg.Site, err, c.kind, c.word)
		}
	}
	if r.node.Catalog().Restoring() {
		t.Error("a refusal left it half restored")
	}
}

// TestAccept_ReplacesWhatIsHeld: a group, and then the one below it, takes over an epoch that does not continue its own, when it is told to and not before.
func TestAccept_ReplacesWhatIsHeld(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", []string{"hq-a"})
	gd := calm(f.group("hq/gd", trio("gd"), "hq-a"))
	sz := f.group("hq/gd/sz", []string{"sz-a"}, "gd-a", "gd-b", "gd-c")
	f.start("hq-a", "gd-a", "gd-b", "gd-c", "sz-a")
	for _, s := range gd { // whoever does not report is unreachable after a while, which is worse than what is waited for here
		s.node.Report(&treev1.SiteHealth{State: "synced", RegistryOk: true}, nil)
	}
	first := root(t, hq).publish("app", "v1", "one")
	hq[0].publish("app", "gone", "gone")
	until(t, "all follow", func() bool { return sz[0].shows("app", "gone", "gone") })
	// The province's root may be another one at each step: with so short timeouts a busy machine alone brings an election about.
	if _, _, err := acceptAt(t, gd, ""); !errors.Is(err, tree.ErrRefused) || !has(err.Error(), "no foreign epoch") {
		t.Errorf("nothing foreign is offered: %v", err)
	}
	old := root(t, gd).position().GetEpoch()

	renew(t, hq)
	if again := hq[0].publish("app", "v1", "another"); again > first {
		t.Fatalf("revision %d: the new catalog is not behind the old one", again)
	}
	said := func(sites []*site) {
		t.Helper()
		until(t, sites[0].cfg.Group+" says what to do", func() bool {
			r := root(t, sites)
			h := groupOf(r.node.Health(), r.cfg.Group)
			return h.GetState() == "degraded" && has(h.GetReason(), "foreign epoch: ") && has(h.GetReason(), "fanoutctl --server "+r.cfg.FabricAdvertise+" epoch accept")
		})
	}
	said(gd)
	for _, s := range gd {
		if !s.shows("app", "v1", "one") {
			t.Errorf("%s did not keep what it had", s.cfg.Site)
		}
	}
	// A name that nobody offers changes nothing, and is taken back.
	if _, _, err := acceptAt(t, gd, "another"); err != nil {
		t.Fatal(err)
	}
	said(gd)
	if _, _, err := acceptAt(t, gd, old); err != nil || root(t, gd).node.Catalog().Accepted() != "" {
		t.Fatalf("taken back: %v", err)
	}
	term := root(t, gd).node.Term()
	epoch, held := acceptOffered(t, gd)
	if epoch != hq[0].position().GetEpoch() || held.GetEpoch() != old || held.GetRevision() != 2 {
		t.Fatalf("accepted %s in place of %v", epoch, held)
	}
	for _, s := range gd {
		until(t, s.cfg.Site+" has the new catalog", func() bool {
			return s.shows("app", "v1", "another") && s.node.Catalog().Len() == 1 && s.node.Catalog().Accepted() == "" && s.node.Catalog().Resyncing() == ""
		})
	}
	if n := hq[0].counter("fanout_tree_resyncs_sent_total"); n != 1 && root(t, gd).node.Term() == term {
		t.Errorf("%v resyncs", n)
	}
	until(t, "all is well there", func() bool {
		h := groupOf(root(t, gd).node.Health(), "hq/gd")
		return h != nil && h.GetState() != "degraded"
	})
	// The city below is asked itself.
	said(sz)
	if !sz[0].shows("app", "gone", "gone") {
		t.Error("the city did not keep what it had")
	}
	acceptOffered(t, sz)
	hq[0].publish("app", "v2", "two")
	for _, s := range append(gd, sz...) {
		until(t, s.cfg.Site+" goes on", func() bool { return s.shows("app", "v2", "two") && everything(s) == everything(hq[0]) })
	}
}

func trio(group string) []string { return []string{group + "-a", group + "-b", group + "-c"} }

// acceptAt accepts an epoch at the group's root, wherever that is by then.
func acceptAt(t testing.TB, sites []*site, epoch string) (accepted string, held *catalogv1.Position, err error) {
	t.Helper()
	err = reordered(t, sites, func(ctx context.Context, n *tree.Node) (err error) {
		for {
			if accepted, held, err = n.AcceptEpoch(ctx, "alice", epoch); epoch == "" || !errors.Is(err, tree.ErrUnknownOutcome) {
				return err // to name an epoch a second time changes nothing
			}
		}
	})
	return accepted, held, err
}

// acceptOffered accepts what the parent offers, as soon as it does, and returns that and what it replaces.
func acceptOffered(t testing.TB, sites []*site) (epoch string, held *catalogv1.Position) {
	t.Helper()
	was := root(t, sites).position()
	until(t, "an epoch is offered", func() bool {
		var err error
		if epoch, held, err = acceptAt(t, sites, ""); err == nil {
			return true
		}
		// A root that loses its office in the middle can't say what became of it.
		now := root(t, sites).node.Catalog()
		if epoch, held = now.Accepted(), was; epoch == "" && now.Position().GetEpoch() != was.GetEpoch() {
			epoch = now.Position().GetEpoch()
		}
		return epoch != ""
	})
	return epoch, held
}

func TestAccept_Refusals(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", []string{"hq-a"})
	gd := calm(f.group("hq/gd", []string{"gd-a", "gd-b"}, "hq-a"))
	f.start("gd-a", "gd-b")
	r := root(t, gd)
	follower := gd[0]
	if r == follower {
		follower = gd[1]
	}
	check := func(s *site, epoch string, kind error, word string) {
		t.Helper()
		if _, _, err := s.node.AcceptEpoch(t.Context(), "alice", epoch); !errors.Is(err, kind) || !has(err.Error(), word) {
			t.Errorf("at %s: %v, want %v with %q", s.cfg.Site, err, kind, word)
		}
	}
	check(r, "", tree.ErrRefused, "attached to no parent")
	check(r, "no epoch!", tree.ErrRefused, "write 1 to")
	check(follower, "", tree.ErrNotRoot, "")
	f.start("hq-a")
	root(t, hq)
	check(hq[0], "e9", tree.ErrRefused, "headquarters")
}
