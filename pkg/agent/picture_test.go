package agent

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// TestTree_WorstAndLag: a group keeps its own state, and says the worst of what is below it and where; lag is told from the time of what a site lacks, not from when it was heard.
func TestTree_WorstAndLag(t *testing.T) {
	oci := runTree(t, nil, "hq")["hq"] // a registry for the province, behind a gate
	g := newGate(t, "http://"+oci.reg)
	g.refuses(func(r *http.Request) bool {
		return r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/app/web/")
	})
	tree := runTree(t, map[string]*gate{"hq/gd": g}, "hq", "hq/gd")
	hq := tree["hq"]
	hq.push("app/web:1")
	tree["hq/gd"].state("app/web:1", "failed")
	var groups []*adminv1.TreeGroup
	waitFor(t, "headquarters sees it", func() error {
		groups = hq.tree("").GetGroups()
		if len(groups) != 2 || len(groups[1].GetMembers()) != 1 || groups[1].GetMembers()[0].GetState() != "degraded" || groups[0].GetState() != "synced" {
			return fmt.Errorf("%v", groups)
		}
		return nil
	})
	top, gd := groups[0], groups[1]
	if top.GetWorst() != "degraded" || top.GetWorstAt() != "hq/gd" || gd.GetWorst() != "degraded" {
		t.Errorf("the worst: %v", groups)
	}
	m := gd.GetMembers()[0]
	if m.GetLag() != 0 || m.GetLagSeconds() <= 0 || gd.GetLagSeconds() < m.GetLagSeconds() || top.GetLagSeconds() != 0 {
		t.Errorf("lag: %v, of the group %f, at headquarters %f", m, gd.GetLagSeconds(), top.GetLagSeconds())
	}
	if m.GetDisk().GetTotal() <= 0 || m.GetDisk().GetFree() <= 0 || m.GetRegistryDisk() != nil || top.GetMembers()[0].GetRegistryDisk().GetTotal() <= 0 {
		t.Errorf("disks: %v, %v", m, top.GetMembers()[0])
	}
	hung, release := make(chan struct{}), make(chan struct{})
	once := sync.OnceFunc(func() { close(hung) })
	let := sync.OnceFunc(func() { close(release) })
	t.Cleanup(let)
	g.refuses(func(r *http.Request) bool {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/app/web/") {
			once()
			<-release
		}
		return false
	})
	tree["hq/gd"].queue.hurry()
	<-hung
	waitFor(t, "it is degraded while the next attempt hangs", func() error {
		m := hq.tree("").GetGroups()[1].GetMembers()[0]
		if m.GetState() != "degraded" || !strings.Contains(m.GetReason(), "app/web:1") || !strings.Contains(m.GetReason(), "403") || !strings.Contains(m.GetReason(), "tried again now") {
			return fmt.Errorf("%v", m)
		}
		return nil
	})
	let()
	waitFor(t, "it is mended", func() error {
		groups := hq.tree("").GetGroups()
		if groups[0].GetWorst() != "synced" || groups[1].GetLagSeconds() != 0 {
			return fmt.Errorf("%v", groups)
		}
		return nil
	})
}

func TestWorst(t *testing.T) {
	groups := []*adminv1.TreeGroup{
		{Group: "hq", State: "synced"}, {Group: "hq/gd", Parent: "hq", State: "behind"}, {Group: "hq/gd/fs", Parent: "hq/gd", State: "synced"},
		{Group: "hq/gd/sz", State: "degraded"},                // attached to none: it counts by its path
		{Group: "hq/gd/zh", Parent: "hq", State: "conflict"},  // it went over to headquarters
		{Group: "hq/hn", Parent: "hq/hn/cs", State: "synced"}, // in a picture taken during a change
		{Group: "hq/hn/cs", Parent: "hq/hn", State: "syncing"},
	}
	worst(groups)
	var got []string
	for _, g := range groups {
		got = append(got, g.GetWorst()+" at "+g.GetWorstAt())
	}
	want := "conflict at hq/gd/zh, degraded at hq/gd/sz, synced at hq/gd/fs, degraded at hq/gd/sz, conflict at hq/gd/zh, syncing at hq/hn/cs, syncing at hq/hn/cs"
	if strings.Join(got, ", ") != want {
		t.Errorf("%s", strings.Join(got, ", "))
	}
}

// TestTree_RateOfNothing: the rate is a mean of some seconds, and where nothing is under way any more it is none.
func TestTree_RateOfNothing(t *testing.T) {
	tree := runTree(t, nil, "hq", "hq/gd")
	hq, gd := tree["hq"], tree["hq/gd"]
	hq.push("app/web:1")
	waitFor(t, "its content has come", func() error {
		if gd.fetcher.Rate() == 0 {
			return errors.New("nothing has")
		}
		return nil
	})
	gd.state("app/web:1", "")
	waitFor(t, "nothing is under way", func() error {
		if n := len(gd.fetcher.Active()); n > 0 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	mean := gd.fetcher.Rate()
	if h := gd.health(nil, 1, false); mean == 0 || h.GetRate() != 0 {
		t.Errorf("the mean is %d, and the rate %d", mean, h.GetRate())
	}
	waitFor(t, "headquarters sees it", func() error {
		for _, g := range hq.tree("hq/gd").GetGroups() {
			if m := g.GetMembers()[0]; m.GetState() != "synced" || m.GetRate() != 0 {
				return fmt.Errorf("%v", m)
			}
		}
		return nil
	})
}

// TestTree_MemberAway: a group is as its worst site is, and whether its root answers is said apart.
func TestTree_MemberAway(t *testing.T) {
	hq := runTree(t, nil, "hq")["hq"]
	for _, c := range []struct {
		g       *treev1.GroupHealth
		answers bool
	}{
		{&treev1.GroupHealth{Group: "hq/gd", Root: "gd-b", State: "unreachable", Reason: "gd-a: no contact", LastContact: timestamppb.Now()}, true},
		{&treev1.GroupHealth{Group: "hq/gd", Root: "gd-b", State: "unreachable", Reason: "its stream broke", LastContact: timestamppb.Now(), Lost: true}, false},
		{&treev1.GroupHealth{Group: "hq/gd", State: "unknown"}, false},
	} {
		g := hq.treeGroup(c.g, []*treev1.SiteHealth{{Site: "gd-a", Group: "hq/gd", State: "unreachable"}, {Site: "gd-b", Group: "hq/gd", State: "synced"}}, 0)
		if g.GetState() != "unreachable" || g.GetAnswers() != c.answers || g.GetLastContact() != c.g.GetLastContact() {
			t.Errorf("%v: %v", c.g, g)
		}
	}
}

// TestTree_LagOfTheUnheard: a root that has heard nothing of a site yet does not know how far it is; a site that said that it has nothing lacks all.
func TestTree_LagOfTheUnheard(t *testing.T) {
	hq := runTree(t, nil, "hq")["hq"]
	hq.push("app/web:1")
	var head uint64
	waitFor(t, "it is published", func() error {
		if head = hq.node.Roster().Head; head == 0 {
			return errors.New("nothing is")
		}
		return nil
	})
	of := func(g *treev1.GroupHealth, h *treev1.SiteHealth) *adminv1.TreeGroup {
		return hq.treeGroup(g, []*treev1.SiteHealth{h}, head)
	}
	away := of(&treev1.GroupHealth{Group: "hq/gd", State: "unreachable"}, &treev1.SiteHealth{Site: "gd-a", Group: "hq/gd", State: "unreachable"})
	if m := away.GetMembers()[0]; away.GetLag() != 0 || away.GetLagSeconds() != 0 || m.GetLag() != 0 || m.GetLagSeconds() != 0 {
		t.Errorf("nothing is known of it: %v", away)
	}
	starting := of(&treev1.GroupHealth{Group: "hq/gd", Position: &catalogv1.Position{Revision: head}}, &treev1.SiteHealth{Site: "gd-a", Group: "hq/gd", State: "unknown", LastContact: timestamppb.Now(), Starting: true})
	if m := starting.GetMembers()[0]; starting.GetLagSeconds() != 0 || m.GetLag() != 0 || m.GetLagSeconds() != 0 {
		t.Errorf("it does not know yet what it has: %v", starting)
	}
	empty := of(&treev1.GroupHealth{Group: "hq/gd", Position: &catalogv1.Position{}}, &treev1.SiteHealth{Site: "gd-a", Group: "hq/gd", LastContact: timestamppb.Now()})
	if m := empty.GetMembers()[0]; empty.GetLag() != head || empty.GetLagSeconds() <= 0 || m.GetLag() != head || m.GetLagSeconds() <= 0 {
		t.Errorf("it lacks all: %v", empty)
	}
}

// TestWhere_SinceIsNotBeforeThePush: a site that is away lacks a ref since it was pushed, not since before that; or since it was last heard.
func TestWhere_SinceIsNotBeforeThePush(t *testing.T) {
	hq := runTree(t, nil, "hq")["hq"]
	ref := at("app/web:1")
	hq.push(ref.String())
	waitFor(t, "it is published", func() error {
		if raw, _ := hq.record(ref); raw == nil {
			return errors.New("it is not")
		}
		return nil
	})
	raw, _ := hq.record(ref)
	pushed := raw.GetPublishedAt().AsTime()
	for heard, want := range map[*timestamppb.Timestamp]time.Time{
		timestamppb.New(pushed.Add(-time.Hour)): pushed, timestamppb.New(pushed.Add(time.Hour)): pushed.Add(time.Hour),
	} {
		s := hq.siteRef(hq.node.Health(ref), &treev1.SiteHealth{Site: "gd-a", Group: "hq/gd", State: "unreachable", LastContact: heard}, ref, raw)
		if s.GetState() != "waiting" || !s.GetSince().AsTime().Equal(want) {
			t.Errorf("heard of at %v: %v, pushed at %v", heard, s, pushed)
		}
	}
	// Of whom nobody here has heard it is not known what he shows, though he be unreachable.
	if s := hq.siteRef(hq.node.Health(ref), &treev1.SiteHealth{Site: "gd-a", Group: "hq/gd", State: "unreachable", Reason: "not heard of since"}, ref, raw); s.GetState() != "unknown" || s.GetReason() != "not heard of since" {
		t.Errorf("never heard of: %v", s)
	}
}
