package tree_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/tree"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

func startChange(id string, allGroups bool, refs ...catalog.Ref) *catalogv1.Change {
	r := &catalogv1.Rollout{Id: id, Plan: &catalogv1.Plan{AllGroups: allGroups, Waves: []*catalogv1.Wave{
		{Name: "one", Groups: []string{"hq/gd"}, MaxConcurrent: 1, OnFailure: "pause", OnOffline: "skip"}}}}
	for _, ref := range refs {
		r.Items = append(r.Items, &catalogv1.RolloutItem{Repository: ref.Repository, Tag: ref.Tag, Target: &catalogv1.Descriptor{Digest: digest("new")}})
	}
	return &catalogv1.Change{Kind: &catalogv1.Change_StartRollout{StartRollout: &catalogv1.StartRollout{Rollout: r}}}
}

func observeChange(id string, seen uint64, state string) *catalogv1.Change {
	return &catalogv1.Change{Kind: &catalogv1.Change_ObserveRollout{ObserveRollout: &catalogv1.ObserveRollout{
		Id: id, Seen: seen, Groups: []*catalogv1.ObservedGroup{{Group: "hq/gd", State: state}}}}}
}

// TestPropose_Rollouts: a person's word on a promotion is passed on from any member, and what is refused keeps its kind on the way; what is seen of a rollout is the root's to say;
// and a staged push is that of the root's own group, whatever its proposer says.
func TestPropose_Rollouts(t *testing.T) {
	f := newFabric(t)
	hq := calm(f.group("hq", three))
	f.start(three...)
	r := root(t, hq)
	until(t, "it is founded", func() bool { return r.position().GetEpoch() != "" })
	other := hq[slices.IndexFunc(hq, func(s *site) bool { return s != r })]
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	propose := func(s *site, c *catalogv1.Change) error {
		t.Helper()
		res, err := s.node.Propose(ctx, "ann", c)
		if err != nil {
			t.Fatal(err)
		}
		return res[0].Err
	}
	web := catalog.Ref{Repository: "prod/web", Tag: "v1"}
	if err := propose(other, &catalogv1.Change{Kind: &catalogv1.Change_SetPolicies{SetPolicies: &catalogv1.SetPolicies{Policies: []*catalogv1.Policy{
		{Name: "releases", Repositories: []string{"prod/**"}, Delivery: "staged"}}}}}); err != nil {
		t.Fatal(err)
	}
	push := publishChange("prod/web", "v1", "a", 0)
	push.GetPublish().Group = "hq/gd"
	if err := propose(other, push); err != nil {
		t.Fatal(err)
	}
	rec, _ := r.node.Catalog().Get(web)
	if hq, gd := catalog.Project(rec, "hq"), catalog.Project(rec, "hq/gd"); hq.Deleted || hq.Target.Digest != digest("a") || !gd.Deleted {
		t.Errorf("a staged push: hq is to show %v, hq/gd %v", hq, gd)
	}
	if err := propose(other, startChange("r1", false, web)); err != nil {
		t.Fatal(err)
	}
	rec, _ = r.node.Catalog().Get(web)
	if err := propose(other, publishChange("prod/web", "v1", "b", rec.GetRevision())); !errors.Is(err, catalog.ErrUnderRollout) {
		t.Errorf("a push under a rollout: %v", err)
	}
	if _, err := other.node.Propose(ctx, "ann", observeChange("r1", 1, "staged")); !errors.Is(err, tree.ErrRubbish) {
		t.Errorf("a member that is not the root says what was seen: %v", err)
	}
	if err := propose(r, observeChange("r1", 1, "staged")); err != nil {
		t.Error(err)
	}
	steer := &catalogv1.Change{Kind: &catalogv1.Change_SteerRollout{SteerRollout: &catalogv1.SteerRollout{Id: "r1", Verb: "abort"}}}
	if err := propose(other, steer); err != nil {
		t.Error(err)
	}
	if err := propose(other, steer); !errors.Is(err, catalog.ErrUnchanged) {
		t.Errorf("aborted twice: %v", err)
	}
}

// TestPropose_RevisionsThatAreNotCounted: pushes that stand behind changes which take more than one revision, or one that the root did not count, are taken all the same.
func TestPropose_RevisionsThatAreNotCounted(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", []string{"solo"})
	f.start("solo")
	r := root(t, hq)
	until(t, "it is founded", func() bool { return r.position().GetEpoch() != "" })
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	const n = 5
	a := func(w int) catalog.Ref { return catalog.Ref{Repository: "a", Tag: fmt.Sprint("v", w)} }
	b := func(w int) catalog.Ref { return catalog.Ref{Repository: "b", Tag: fmt.Sprint("v", w)} }
	var wg sync.WaitGroup
	for w := range n {
		wg.Go(func() {
			id := fmt.Sprint("r", w)
			for _, changes := range [][]*catalogv1.Change{
				{startChange(id, true, a(w), b(w)), publishChange("c", a(w).Tag, "x", 0)},
				{observeChange(id, 1, "staged"), publishChange("c", a(w).Tag+"-b", "x", 0)},
				{observeChange(id, 2, "delivered"), publishChange("c", a(w).Tag+"-c", "x", 0)},
			} {
				res, err := r.node.Propose(ctx, "ann", changes...)
				if err != nil {
					t.Error(err)
					return
				}
				for i, x := range res {
					if x.Err != nil {
						t.Errorf("%s: change %d: %v", id, i, x.Err)
					}
				}
			}
			// A push takes over what was promoted of both refs: two revisions.
			rec, _ := r.node.Catalog().Get(a(w))
			res, err := r.node.Propose(ctx, "ann", publishChange("a", a(w).Tag, "y", rec.GetRevision()), publishChange("c", a(w).Tag+"-d", "x", 0))
			if err != nil || res[0].Err != nil || res[1].Err != nil {
				t.Error(err, res)
			}
		})
	}
	wg.Wait()
	if got := r.position().GetRevision(); got != n*(2+2+4+2) {
		t.Errorf("revision %d, want %d: none skipped, none twice", got, n*(2+2+4+2))
	}
	for w := range n {
		rec, _ := r.node.Catalog().Get(b(w))
		if len(rec.GetReleases()) > 0 || rec.GetTarget().GetDigest() != digest("new") {
			t.Errorf("%s is %v", b(w), rec)
		}
	}
}

// TestAttach_TellsAGroupOfItsSubtreeAlone: no word of another province comes to a province or its cities, neither in what is sent as it changes nor in a resync; what each is to
// show is as headquarters has it.
func TestAttach_TellsAGroupOfItsSubtreeAlone(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", []string{"solo"})
	gd := f.group("hq/gd", []string{"gd-a"}, "solo")
	gx := f.group("hq/gx", []string{"gx-a"}, "solo")
	sz := f.group("hq/gd/sz", []string{"sz-a"}, "gd-a")
	f.start("solo", "gd-a", "gx-a", "sz-a")
	r := root(t, hq)
	change := func(c *catalogv1.Change) {
		t.Helper()
		res, err := r.node.Propose(t.Context(), "ann", c)
		if err != nil || res[0].Err != nil {
			t.Fatal(err, res)
		}
	}
	r.publish("prod/web", "v1", "old")
	web := catalog.Ref{Repository: "prod/web", Tag: "v1"}
	start := startChange("r1", false, web)
	start.GetStartRollout().GetRollout().GetPlan().Waves[0].Groups = []string{"hq/gd", "hq/gd/sz", "hq/gx"}
	start.GetStartRollout().GetRollout().GetPlan().Waves[0].MaxConcurrent = 3
	change(start)
	seen := observeChange("r1", 1, "staged")
	for _, g := range []string{"hq/gd/sz", "hq/gx"} {
		seen.GetObserveRollout().Groups = append(seen.GetObserveRollout().Groups, &catalogv1.ObservedGroup{Group: g, State: "staged"})
	}
	change(seen)
	rec, _ := r.node.Catalog().Get(web)
	if !slices.Equal(rec.GetReleases()[0].GetGroups(), []string{"hq/gd", "hq/gd/sz", "hq/gx"}) {
		t.Fatalf("%v", rec)
	}
	told := func() {
		t.Helper()
		for _, c := range []struct {
			at    *site
			group string
			not   []string
		}{{gd[0], "hq/gd", []string{"hq/gx"}}, {sz[0], "hq/gd/sz", []string{"hq/gx"}}, {gx[0], "hq/gx", []string{"hq/gd"}}} {
			until(t, c.group+" has received it", func() bool { return c.at.position().GetRevision() == rec.GetRevision() })
			got, _ := c.at.node.Catalog().Get(web)
			if catalog.ShownBy(got, c.group) != digest("new") {
				t.Errorf("%s shows %v", c.group, got)
			}
			var all bytes.Buffer
			if _, err := c.at.node.Catalog().WriteTo(&all); err != nil {
				t.Fatal(err)
			}
			for _, word := range c.not {
				if bytes.Contains(all.Bytes(), []byte(word)) {
					t.Errorf("the catalog of %s has a word of %s: %v", c.group, word, got)
				}
			}
			// Proved equal by one value all the same.
			demand := catalog.Union(&catalogv1.Scope{AnyOf: []*catalogv1.Subscription{{Repositories: []string{"**"}}}})
			if here, there := r.node.Catalog().View(demand).For(c.group).Digest(), c.at.node.Catalog().View(demand).For(c.group).Digest(); here != there {
				t.Errorf("%s has %s, headquarters has for it %s", c.group, there, here)
			}
		}
	}
	told()
	for _, s := range []*site{gd[0], gx[0], sz[0]} {
		s.kill()
		s.wipe()
		s.start()
	}
	told()
}

// TestRestore_CarriesDelivery: policies, headquarters' freeze, and rollouts come with a saved catalog.
func TestRestore_CarriesDelivery(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", []string{"solo"})
	f.start("solo")
	r := root(t, hq)
	until(t, "the catalog is founded", func() bool { return r.position().GetEpoch() != "" })
	change := func(c *catalogv1.Change) {
		t.Helper()
		res, err := r.node.Propose(t.Context(), "ann", c)
		if err != nil || res[0].Err != nil {
			t.Fatal(err, res)
		}
	}
	change(&catalogv1.Change{Kind: &catalogv1.Change_SetPolicies{SetPolicies: &catalogv1.SetPolicies{Policies: []*catalogv1.Policy{
		{Name: "releases", Repositories: []string{"prod/**"}, Delivery: "staged"}}}}})
	change(&catalogv1.Change{Kind: &catalogv1.Change_SetFreeze{SetFreeze: &catalogv1.SetFreeze{Freeze: &catalogv1.Freeze{
		Group: "hq", Reason: "stocktaking", By: "ann", Until: timestamppb.New(time.Now().Add(time.Hour))}}}})
	change(startChange("r1", false, catalog.Ref{Repository: "prod/web", Tag: "v1"}))
	change(observeChange("r1", 1, "staged"))
	change(startChange("r2", false, catalog.Ref{Repository: "prod/web", Tag: "v2"}))
	change(&catalogv1.Change{Kind: &catalogv1.Change_SteerRollout{SteerRollout: &catalogv1.SteerRollout{Id: "r2", Verb: "abort"}}})
	saved := hq[0].saved()
	r = renew(t, hq)
	if _, err := r.node.RestoreCatalog(t.Context(), "ann", saved); err != nil {
		t.Fatal(err)
	}
	now := r.saved() // as a member that comes later reads it
	if p := now.Policies(); len(p) != 1 || p[0].GetName() != "releases" {
		t.Errorf("policies %v", p)
	}
	if f := now.Freeze(); f.GetReason() != "stocktaking" || !f.GetUntil().AsTime().Equal(saved.Freeze().GetUntil().AsTime()) {
		t.Errorf("freeze %v", f)
	}
	if a, b := now.Rollout("r1"), now.Rollout("r2"); a.GetPhase() != "paused" || a.GetResumePhase() != "running" || b.GetPhase() != "aborted" {
		t.Errorf("rollouts %v, %v", a, b)
	}
	change(&catalogv1.Change{Kind: &catalogv1.Change_SteerRollout{SteerRollout: &catalogv1.SteerRollout{Id: "r1", Verb: "resume"}}})
	if a := r.node.Catalog().Rollout("r1"); a.GetPhase() != "running" {
		t.Errorf("resumed: %v", a)
	}
}
