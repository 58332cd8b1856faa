package tree_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"strings"
	"testing"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/tree"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// newcomer adds a site that is not started, whose file lists itself and a few others.
func (f *fabric) newcomer(name string, like *site, lists ...*site) *site {
	s := &site{f: f, incarnation: 1, cfg: like.cfg}
	s.cfg.Site, s.cfg.RaftListen, s.cfg.RaftAdvertise = name, f.addr(7401), ""
	host, _, _ := net.SplitHostPort(s.cfg.RaftListen)
	s.cfg.FabricAdvertise = net.JoinHostPort(host, "7400")
	s.cfg.Members = map[string]string{name: s.cfg.RaftListen}
	for _, l := range lists {
		s.cfg.Members[l.cfg.Site] = l.cfg.RaftListen
	}
	f.sites[name] = s
	return s
}

// reordered does something at the group's root, wherever that is by then.
func reordered(t testing.TB, sites []*site, do func(ctx context.Context, n *tree.Node) error) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		err := do(ctx, root(t, sites).node)
		if !errors.Is(err, tree.ErrNotRoot) {
			return err
		}
	}
}

// repeated is reordered for what may be asked for again, and is where its outcome is not known.
func repeated(t testing.TB, sites []*site, do func(ctx context.Context, n *tree.Node) error) error {
	t.Helper()
	for {
		if err := reordered(t, sites, do); !errors.Is(err, tree.ErrUnknownOutcome) {
			return err
		}
	}
}

func add(t testing.TB, sites []*site, s *site) {
	t.Helper()
	err := repeated(t, sites, func(ctx context.Context, n *tree.Node) error {
		_, err := n.AddMember(ctx, "ann", s.cfg.Site, s.cfg.RaftListen)
		return err
	})
	if err != nil {
		t.Fatalf("adding %s: %v", s.cfg.Site, err)
	}
}

func remove(t testing.TB, sites []*site, name string) error {
	t.Helper()
	return repeated(t, sites, func(ctx context.Context, n *tree.Node) error { return n.RemoveMember(ctx, "ann", name) })
}

// voters are the sites that have a vote as a member sees it.
func voters(s *site) string {
	var out []string
	for _, server := range s.node.Servers() {
		if server.Voter {
			out = append(out, server.Site)
		}
	}
	return strings.Join(out, " ")
}

func members(s *site) string {
	var out []string
	for _, m := range s.node.Catalog().Members() {
		out = append(out, m.Site)
	}
	return strings.Join(out, " ")
}

func wantErr(t testing.TB, err, kind error, words ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%v, want %v", err, kind)
	}
	for _, w := range words {
		if err == nil || !has(err.Error(), w) {
			t.Errorf("no %q in: %v", w, err)
		}
	}
}

// TestMembers_GrowFromOneToThreeAndBack: the child follows all the time, and nothing is sent to it twice.
func TestMembers_GrowFromOneToThreeAndBack(t *testing.T) {
	f := newFabric(t)
	a := f.group("hq", []string{"hq-a"})[0]
	b := f.newcomer("hq-b", a, a)
	c := f.newcomer("hq-c", a, b) // it does not even list the root
	gd := f.group("hq/gd", []string{"gd-a"}, "hq-a", "hq-b", "hq-c")[0]
	f.start("hq-a", "gd-a")
	hq := []*site{a, b, c}
	pushes := 0
	push := func() {
		t.Helper()
		pushes++
		tag := fmt.Sprint("v", pushes)
		root(t, hq).publish("app", tag, tag)
		until(t, "the child has it", func() bool { return gd.shows("app", tag, tag) })
	}
	push()
	if !a.node.IsRoot() {
		t.Fatal("no root")
	}
	epoch := a.position().GetEpoch()
	for i, s := range []*site{b, c} {
		s.start()
		until(t, "it is told what is missing", func() bool { return has(s.node.Waiting(), "member add "+s.cfg.Site) })
		add(t, hq, s)
		until(t, "it has a vote", func() bool { return len(strings.Fields(voters(a))) == i+2 })
		push()
	}
	until(t, "all know all", func() bool {
		for _, s := range hq {
			if members(s) != "hq-a hq-b hq-c" || voters(s) != "hq-a hq-b hq-c" || everything(s) != everything(a) {
				return false
			}
		}
		return true
	})
	// The founder, whose file lists itself alone, may go: the others are a majority.
	a.kill()
	push()
	a.start()
	until(t, "the founder follows", func() bool { return everything(a) == everything(b) })
	for _, s := range []*site{a, b} {
		if err := remove(t, hq, s.cfg.Site); err != nil {
			t.Fatal(err)
		}
		push()
	}
	until(t, "one is left", func() bool { return voters(c) == "hq-c" && members(c) == "hq-c" })
	push()
	c.kill()
	c.start()
	push()
	if got := c.position(); got.GetEpoch() != epoch || got.GetRevision() != uint64(pushes) {
		t.Errorf("position %v, want revision %d of %s", got, pushes, epoch)
	}
	for _, s := range append(hq, gd) {
		if n := s.counter("fanout_tree_resyncs_sent_total"); n != 0 {
			t.Errorf("%s sent %v resyncs", s.cfg.Site, n)
		}
	}
	for _, s := range []*site{a, b} {
		until(t, "it knows that it was removed", func() bool { return s.node.Removed() && has(s.node.Waiting(), "was removed from group hq") })
	}
}

func TestMembers_WhoeverWasRemovedStaysOutUntilAdded(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", three) // every file lists all three, and goes on to
	f.start(three...)
	root(t, hq).publish("app", "v1", "1")
	stay, c := hq[:2], hq[2]
	c.node.Report(&treev1.SiteHealth{State: "synced", RegistryOk: true}, nil)
	until(t, "it is shown", func() bool { return siteOf(root(t, hq).node.Health(), "hq-c").GetState() == "synced" })
	out := func() {
		t.Helper()
		until(t, "it says so", func() bool { return c.node.Removed() && has(c.node.Waiting(), "was removed from group hq") })
		for _, s := range stay {
			until(t, "it is out", func() bool { return voters(s) == "hq-a hq-b" && members(s) == "hq-a hq-b" })
		}
	}
	if err := remove(t, hq, "hq-c"); err != nil {
		t.Fatal(err)
	}
	out()
	if err := remove(t, stay, "hq-c"); err != nil {
		t.Errorf("once more: %v", err)
	}
	// Not seen in the tree any more either.
	r := root(t, stay)
	until(t, "it is not shown", func() bool { v := r.node.Health(); return siteOf(v, "hq-c") == nil && siteOf(v, "hq-a") != nil })
	// Nor by another root, by itself after a restart, or as another server.
	for _, s := range stay {
		s.kill()
		s.start()
	}
	root(t, stay).publish("app", "v2", "2")
	c.kill()
	c.start()
	out()
	c.kill()
	c.wipe()
	c.start()
	out()
	if c.node.Term() > 0 || c.shows("app", "v1", "1") {
		t.Error("a removed site with an empty disk founded a group or was taken in")
	}
	add(t, stay, c)
	until(t, "it is in again", func() bool {
		return voters(c) == "hq-a hq-b hq-c" && c.shows("app", "v2", "2") && !c.node.Removed() && c.node.Waiting() == ""
	})
	// With its old disk, too: it is the group's own.
	if err := remove(t, hq, "hq-c"); err != nil {
		t.Fatal(err)
	}
	out()
	root(t, stay).publish("app", "v3", "3")
	add(t, stay, c)
	until(t, "it is in again", func() bool { return voters(c) == "hq-a hq-b hq-c" && c.shows("app", "v3", "3") && !c.node.Removed() })
}

func TestMembers_RemovedWhileDown(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", three)
	f.start(three...)
	root(t, hq).publish("app", "v1", "1")
	until(t, "all are known", func() bool { return members(hq[0]) == "hq-a hq-b hq-c" })
	hq[2].kill()
	stay := hq[:2]
	live := root(t, stay)
	other := stay[0]
	if live == other {
		other = stay[1]
	}
	wantErr(t, remove(t, stay, other.cfg.Site), tree.ErrRefused, "hq-c can't be reached", "remove it first")
	wantErr(t, remove(t, stay, live.cfg.Site), tree.ErrRefused, "hq-c can't be reached")
	if err := remove(t, stay, "hq-c"); err != nil {
		t.Fatal(err)
	}
	root(t, stay).publish("app", "v2", "2")
	// It comes back, as itself and believing in a group of three; and one of those two goes. The two can't decide anything without the third.
	hq[2].start()
	until(t, "it is told", func() bool { return hq[2].node.Removed() && has(hq[2].node.Waiting(), "member add hq-c") })
	stay[1].kill()
	until(t, "there is no root", func() bool { return !stay[0].node.IsRoot() && stay[0].node.Waiting() != "" })
	ctx, cancel := context.WithTimeout(context.Background(), 8*quick().Election)
	defer cancel()
	for _, s := range []*site{stay[0], hq[2]} {
		if _, err := s.node.Propose(ctx, "test", publishChange("app", "v3", "3", 0)); err == nil {
			t.Errorf("%s published with a member that was removed", s.cfg.Site)
		}
	}
	stay[1].start()
	root(t, stay)
	for _, s := range stay {
		until(t, "nothing is lost", func() bool { return s.shows("app", "v2", "2") })
	}
}

func TestMembers_RefusalsInWords(t *testing.T) {
	f := newFabric(t)
	a := f.group("hq", []string{"hq-a"})[0]
	f.group("hq/gd", []string{"gd-a"}, "hq-a")
	f.start("hq-a", "gd-a")
	hq := []*site{a}
	root(t, hq)
	until(t, "the child is known", func() bool { g, _ := a.node.Catalog().Group("hq/gd"); return len(g.GetSites()) == 1 })
	ctx := context.Background()
	addAt := func(site, addr string) error {
		_, err := a.node.AddMember(ctx, "ann", site, addr)
		return err
	}
	wantErr(t, addAt("x y", "127.0.0.1:1"), catalog.ErrInvalid, "x y")
	wantErr(t, addAt("hq-b", "nowhere"), catalog.ErrInvalid, "HOST:PORT")
	wantErr(t, addAt("hq-b", a.cfg.RaftListen), tree.ErrRefused, "that of site hq-a")
	wantErr(t, addAt("hq-a", "127.0.0.1:1"), tree.ErrRefused, "is a member of hq at "+a.cfg.RaftListen)
	wantErr(t, addAt("gd-a", "127.0.0.1:1"), tree.ErrRefused, "group hq/gd")
	wantErr(t, a.node.RemoveMember(ctx, "ann", "hq-z"), tree.ErrNotMember, "member list")
	wantErr(t, a.node.RemoveMember(ctx, "ann", "hq-a"), tree.ErrRefused, "last member")
	if err := addAt("hq-a", a.cfg.RaftListen); err != nil {
		t.Errorf("what is so already: %v", err)
	}
	for i := 1; i < tree.MaxMembers; i++ {
		for range 2 { // asked twice, added once
			if err := addAt(fmt.Sprint("hq-", i), fmt.Sprint("127.0.0.1:", i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	wantErr(t, addAt("hq-b", "127.0.0.1:99"), tree.ErrRefused, "7 members")
	wantErr(t, addAt("hq-1", "127.0.0.1:99"), tree.ErrRefused, "127.0.0.1:1;")
	if n := len(a.node.Pending()); n != tree.MaxMembers-1 {
		t.Errorf("%d are pending", n)
	}
	// Nobody waits for those who never came, and the group is well.
	a.node.Report(&treev1.SiteHealth{State: "synced", RegistryOk: true}, nil)
	until(t, "well", func() bool { g := groupOf(a.node.Health(), "hq"); return g.GetState() == "synced" && len(g.Sites) == 1 })
	// The root has contact with its own group all the time.
	contact := groupOf(a.node.Health(), "hq").GetLastContact().AsTime()
	until(t, "heard again", func() bool { return groupOf(a.node.Health(), "hq").GetLastContact().AsTime().After(contact) })
	_, err := a.node.Lead(ctx, "hq-1")
	wantErr(t, err, tree.ErrRefused, "has not come")
	for i := 1; i < tree.MaxMembers; i++ {
		if err := a.node.RemoveMember(ctx, "ann", fmt.Sprint("hq-", i)); err != nil {
			t.Fatal(err)
		}
	}
	if members(a) != "hq-a" {
		t.Errorf("members %s", members(a))
	}
	if _, err := f.sites["gd-a"].node.AddMember(ctx, "ann", "gd-b", "127.0.0.1:1"); err != nil {
		t.Error(err)
	}
}

// TestMembers_AnotherGroupsLogIsNotTakenIn: raft compares index and term alone, and would take another group's entries for its own.
func TestMembers_AnotherGroupsLogIsNotTakenIn(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", []string{"hq-a"})
	a := hq[0]
	f.start("hq-a")
	root(t, hq).publish("app", "ours", "1")
	other := f.newcomer("hq-x", a)
	d := f.newcomer("hq-d", a, other)
	other.cfg.Members = maps.Clone(d.cfg.Members)
	f.start("hq-x", "hq-d")
	root(t, []*site{other, d}).publish("app", "theirs", "2")
	until(t, "it has it", func() bool { return d.shows("app", "theirs", "2") })
	other.kill()
	d.kill()
	add(t, hq, d)
	d.cfg.Members = map[string]string{"hq-d": d.cfg.RaftListen, "hq-a": a.cfg.RaftListen}
	d.start()
	until(t, "it is told", func() bool { return has(d.node.Waiting(), "another group's") })
	if voters(a) != "hq-a" || len(a.node.Servers()) != 1 {
		t.Fatalf("taken in: %v", a.node.Servers())
	}
	d.kill()
	d.wipe()
	d.start()
	until(t, "with an empty disk it is", func() bool { return voters(a) == "hq-a hq-d" && d.shows("app", "ours", "1") })
	if d.shows("app", "theirs", "2") || everything(a) != everything(d) {
		t.Error("entries of two groups are mixed")
	}
}

// TestMembers_AGroupOfItsOwnIsSaidToBeOne: with the disk of a group of one an agent leads itself, whatever its file says.
func TestMembers_AGroupOfItsOwnIsSaidToBeOne(t *testing.T) {
	f := newFabric(t)
	a := f.group("hq", []string{"hq-a"})[0]
	d := f.newcomer("hq-d", a)
	f.start("hq-a", "hq-d")
	root(t, []*site{a}).publish("app", "ours", "1")
	root(t, []*site{d}).publish("app", "theirs", "2")
	d.kill()
	d.cfg.Members = map[string]string{"hq-d": d.cfg.RaftListen, "hq-a": a.cfg.RaftListen}
	d.start()
	add(t, []*site{a}, d)
	until(t, "it is said", func() bool { return has(d.node.Estranged(), "raft.members lists hq-a") })
	if len(a.node.Servers()) != 1 || a.node.Estranged() != "" {
		t.Errorf("at hq-a: %v, %s", a.node.Servers(), a.node.Estranged())
	}
	d.kill()
	d.wipe()
	d.start()
	until(t, "it joins", func() bool {
		return d.shows("app", "ours", "1") && !d.shows("app", "theirs", "2") && d.node.Estranged() == ""
	})
}

func TestMembers_TheNextRootFinishesARemoval(t *testing.T) {
	f := newFabric(t)
	hq := calm(f.group("hq", three))
	f.start(three...)
	until(t, "all are known", func() bool { return members(root(t, hq)) == "hq-a hq-b hq-c" })
	// What a root leaves that dies between the two steps; and it is the root itself that is to go.
	var r *site
	until(t, "the root is marked", func() bool {
		r = root(t, hq)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		gone := &catalogv1.Member{Site: r.cfg.Site, Removed: true}
		res, err := r.node.Propose(ctx, "test", &catalogv1.Change{Kind: &catalogv1.Change_SetMember{SetMember: &catalogv1.SetMember{Member: gone}}})
		if err == nil && res[0].Err != nil {
			t.Fatal(res[0].Err)
		}
		// Who lost its office meanwhile can't say what became of it; the next root can.
		return err == nil || root(t, hq).node.Catalog().Member(r.cfg.Site).GetRemoved()
	})
	for _, s := range hq {
		if s != r {
			until(t, "the rest is finished", func() bool { return len(s.node.Servers()) == 2 && !has(voters(s), r.cfg.Site) })
		}
	}
	until(t, "it knows", func() bool { return r.node.Removed() && !r.node.IsRoot() })
}

func TestLead_GoesWhereItIsToldAndNotToTheUnfit(t *testing.T) {
	f := newFabric(t)
	hq := calm(f.group("hq", three))
	hq[2].cfg.RegistryType = "none"
	f.start(three...)
	report := func() {
		for _, s := range hq {
			if s.node != nil {
				s.node.Report(&treev1.SiteHealth{State: "synced", RegistryOk: s != hq[2]}, nil)
			}
		}
	}
	report()
	lead := func(site string) (got string, err error) {
		err = reordered(t, hq, func(ctx context.Context, n *tree.Node) error { got, err = n.Lead(ctx, site); return err })
		return got, err
	}
	for _, name := range []string{"hq-a", "hq-b", "hq-b", "hq-a"} {
		if got, err := lead(name); err != nil || got != name {
			t.Fatalf("lead %s: %s, %v", name, got, err)
		}
		until(t, name+" is the root", func() bool { return f.sites[name].node.IsRoot() })
	}
	until(t, "the root knows them all", func() bool { return len(hq[0].node.Roster().Members) == 1 && members(hq[0]) == "hq-a hq-b hq-c" })
	_, err := lead("hq-c")
	wantErr(t, err, tree.ErrRefused, "witness")
	if got, err := lead(""); err != nil || got != "hq-b" {
		t.Errorf("any other: %s, %v", got, err)
	}
	until(t, "hq-b is the root", func() bool { return hq[1].node.IsRoot() })
	_, err = lead("hq-z")
	wantErr(t, err, tree.ErrNotMember)
	hq[0].kill()
	_, err = lead("hq-a")
	wantErr(t, err, tree.ErrRefused, "can't be reached")
	_, err = lead("")
	wantErr(t, err, tree.ErrRefused, "no other member")
}

func TestGroupOfTwo_SaysWhatItCannotSurvive(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", []string{"hq-a", "hq-b"})
	f.start("hq-a", "hq-b")
	for _, s := range hq {
		s.node.Report(&treev1.SiteHealth{State: "synced", RegistryOk: true}, nil)
	}
	health := func() *treev1.GroupHealth { return groupOf(root(t, hq).node.Health(), "hq") }
	until(t, "it is said", func() bool {
		g := health()
		return g.GetState() == "synced" && has(g.GetReason(), "two members and no witness") && has(g.GetReason(), "nothing is published")
	})
	w := f.newcomer("hq-w", hq[0], hq[0])
	w.cfg.RegistryType = "none"
	add(t, hq, w)
	w.start()
	w.node.Report(&treev1.SiteHealth{State: "witness"}, nil)
	until(t, "a witness ends that", func() bool {
		g := health()
		return g.GetState() == "synced" && g.GetReason() == "" && len(g.Sites) == 3
	})
}
