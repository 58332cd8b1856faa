package catalog_test

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/fanout-io/fanout/pkg/catalog"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

var (
	planned  = []string{"hq", "hq/a", "hq/b", "hq/c", "hq/d", "hq/e"}
	everyone = append([]string{"hq/late"}, planned...) // one that no plan knows
	moving   = []catalog.Ref{{Repository: "app", Tag: "v1"}, {Repository: "app", Tag: "v2"}, {Repository: "rel/x", Tag: "v1"}}
	drawRef  = rapid.SampledFrom(moving)
)

func drawDuration(t *rapid.T, what string, choices ...time.Duration) *durationpb.Duration {
	return durationpb.New(rapid.SampledFrom(choices).Draw(t, what))
}

func drawGates(t *rapid.T, what string) (out []*catalogv1.Gate) {
	for range rapid.SampledFrom([]int{0, 0, 0, 1, 2}).Draw(t, what) {
		g := &catalogv1.Gate{Kind: &catalogv1.Gate_Approval{Approval: &catalogv1.Approval{}}}
		if rapid.Bool().Draw(t, "check?") {
			g = &catalogv1.Gate{Kind: &catalogv1.Gate_Check{Check: &catalogv1.Check{
				Url: "http://x/", Interval: durationpb.New(time.Second), Timeout: durationpb.New(time.Hour)}}}
		}
		out = append(out, g)
	}
	return out
}

// drawPlan draws a plan in which everything has an end.
func drawPlan(t *rapid.T) *catalogv1.Plan {
	plan := &catalogv1.Plan{AllGroups: rapid.Bool().Draw(t, "all groups")}
	left := rapid.Permutation(planned).Draw(t, "order")
	for i := range rapid.IntRange(1, 3).Draw(t, "waves") {
		n := rapid.IntRange(1, 2).Draw(t, "groups")
		w := &catalogv1.Wave{
			Name: fmt.Sprint("w", i), Groups: slices.Clone(left[:n]),
			MaxConcurrent: rapid.Uint32Range(1, 2).Draw(t, "max concurrent"), MaxFailures: rapid.Uint32Range(0, 1).Draw(t, "max failures"),
			Soak: drawDuration(t, "soak", 0, 0, time.Minute, time.Hour), Deadline: drawDuration(t, "deadline", time.Minute, time.Hour),
			Before: drawGates(t, "before"), After: drawGates(t, "after"),
			OnFailure: rapid.SampledFrom([]string{"pause", "abort", "rollback"}).Draw(t, "on failure"),
			OnOffline: rapid.SampledFrom([]string{"wait", "skip", "fail"}).Draw(t, "on offline"),
		}
		if rapid.IntRange(0, 3).Draw(t, "window?") == 0 {
			w.Window = &catalogv1.Window{Allow: []string{"0 1 * * * / 4h"}}
		}
		left = left[n:]
		plan.Waves = append(plan.Waves, w)
	}
	return plan
}

func drawStart(t *rapid.T) *catalogv1.Change {
	r := &catalogv1.Rollout{Id: fmt.Sprint("r", rapid.IntRange(1, 200).Draw(t, "rollout")), Plan: drawPlan(t)}
	for _, ref := range rapid.SliceOfNDistinct(drawRef, 1, 2, rapid.ID[catalog.Ref]).Draw(t, "refs") {
		r.Items = append(r.Items, &catalogv1.RolloutItem{
			Repository: ref.Repository, Tag: ref.Tag, Target: descriptor(drawTarget.Draw(t, "target")), Referrers: drawDescriptors(t)})
	}
	return &catalogv1.Change{Kind: &catalogv1.Change_StartRollout{StartRollout: &catalogv1.StartRollout{
		Rollout: r, Supersede: rapid.Bool().Draw(t, "supersede")}}}
}

// drawRollout draws one that is known, mostly one that goes on; nil: there is none.
func drawRollout(t *rapid.T, snap *catalog.Snapshot) *catalogv1.Rollout {
	all := snap.Rollouts()
	going := slices.DeleteFunc(slices.Clone(all), catalog.Ended)
	if len(going) > 0 && rapid.IntRange(0, 4).Draw(t, "going?") > 0 {
		all = going
	}
	if len(all) == 0 {
		return nil
	}
	return rapid.SampledFrom(all).Draw(t, "which rollout")
}

func drawObservation(t *rapid.T, r *catalogv1.Rollout) *catalogv1.Change {
	if rapid.Bool().Draw(t, "all is well") {
		return &catalogv1.Change{Kind: &catalogv1.Change_ObserveRollout{ObserveRollout: observeWell(r)}}
	}
	o := &catalogv1.ObserveRollout{
		Id: r.Id, Seen: r.Version - rapid.Uint64Range(0, min(1, r.Version)).Draw(t, "late"), WindowOpen: rapid.Bool().Draw(t, "window"),
		Elapsed: drawDuration(t, "elapsed", 0, time.Minute, time.Hour),
	}
	states := rapid.SampledFrom([]string{"staged", "staged", "delivered", "delivered", "delivered", "pending", "failed", "offline", "frozen"})
	for _, g := range everyone {
		if rapid.IntRange(0, 2).Draw(t, "look") > 0 {
			o.Groups = append(o.Groups, &catalogv1.ObservedGroup{Group: g, State: states.Draw(t, "state"), Reason: "x", Sites: rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"s1", "s2"}), 0, 2, rapid.ID).Draw(t, "sites")})
		}
	}
	if rapid.Bool().Draw(t, "check?") {
		o.Check = &catalogv1.ObservedCheck{
			Wave: r.Wave, After: rapid.Bool().Draw(t, "after"), Index: rapid.Uint32Range(0, 1).Draw(t, "index"), Passed: rapid.Bool().Draw(t, "passed"), Detail: "503",
		}
	}
	return &catalogv1.Change{Kind: &catalogv1.Change_ObserveRollout{ObserveRollout: o}}
}

var steerings = []string{"pause", "resume", "approve", "reject", "skip", "retry", "abort", "rollback", "resume", "approve", "approve"}

// drawDelivery draws a change that has to do with rollouts.
func drawDelivery(t *rapid.T, snap *catalog.Snapshot) *catalogv1.Change {
	ref := drawRef.Draw(t, "ref")
	held, _ := snap.Get(ref)
	next := snap.Position().GetRevision() + 1
	kind := rapid.IntRange(0, 19).Draw(t, "delivery")
	switch kind {
	case 0, 1, 2:
		return drawStart(t)
	case 3, 4:
		return &catalogv1.Change{Kind: &catalogv1.Change_Publish{Publish: &catalogv1.Publish{
			Revision: next, Expect: held.GetRevision(), Repository: ref.Repository, Tag: ref.Tag, Group: "hq",
			Target: descriptor(drawTarget.Draw(t, "target")), Referrers: drawDescriptors(t),
		}}}
	case 5:
		return &catalogv1.Change{Kind: &catalogv1.Change_Unpublish{Unpublish: &catalogv1.Unpublish{
			Revision: next, Expect: held.GetRevision(), Repository: ref.Repository, Tag: ref.Tag}}}
	case 6:
		set := &catalogv1.SetPolicies{}
		if rapid.IntRange(0, 3).Draw(t, "policies") > 0 {
			set.Policies = []*catalogv1.Policy{{Name: "p", Repositories: []string{"rel/**"}, Delivery: "staged", MaxFreeze: durationpb.New(time.Hour)}}
		}
		return &catalogv1.Change{Kind: &catalogv1.Change_SetPolicies{SetPolicies: set}}
	case 7:
		f := &catalogv1.Freeze{Group: "hq", Until: timestamppb.New(snap.Clock().Add(time.Hour)), Reason: "r"}
		if rapid.Bool().Draw(t, "thaw") {
			f = nil
		}
		return &catalogv1.Change{Kind: &catalogv1.Change_SetFreeze{SetFreeze: &catalogv1.SetFreeze{Freeze: f}}}
	case 8:
		return &catalogv1.Change{Kind: &catalogv1.Change_SetFreezesAbove{SetFreezesAbove: &catalogv1.SetFreezesAbove{Freezes: []*catalogv1.Freeze{
			{Group: rapid.SampledFrom([]string{"hq", "hq/a"}).Draw(t, "above"), Until: timestamppb.New(time.Unix(500, 0))}}}}}
	}
	r := drawRollout(t, snap)
	if r == nil {
		return drawStart(t)
	}
	if kind > 12 {
		return drawObservation(t, r)
	}
	return &catalogv1.Change{Kind: &catalogv1.Change_SteerRollout{SteerRollout: &catalogv1.SteerRollout{
		Id: r.Id, Verb: rapid.SampledFrom(steerings).Draw(t, "verb"), Group: rapid.SampledFrom(planned).Draw(t, "group"),
	}}}
}

// showsNaively says what a group shows of a record, by the rule as it is written.
func showsNaively(rec *catalogv1.Record, group string) string {
	out := rec.GetTarget().GetDigest()
	if rec.GetDeleted() {
		out = ""
	}
	for _, r := range rec.GetReleases() {
		if slices.Contains(r.Groups, group) {
			out = r.Target.GetDigest()
		}
	}
	return out
}

// TestRollouts_Random: whatever comes, in whatever order, every bound of every plan is kept, each group shows what it should, and in the end every rollout ends.
func TestRollouts_Random(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, clock := catalog.New(), int64(1000)
		apply := func(c *catalogv1.Change) catalog.Result {
			return m.Apply(&catalogv1.Command{Actor: "ann", Time: timestamppb.New(time.Unix(clock, 0)), Changes: []*catalogv1.Change{c}})[0]
		}
		m.Apply(foundCommand())
		for range rapid.IntRange(1, 60).Draw(t, "commands") {
			if rapid.IntRange(0, 7).Draw(t, "restart") == 0 {
				again, err := catalog.Restore(bytes.NewReader(snapshotBytes(t, m.Snapshot())))
				if err != nil {
					t.Fatal(err)
				}
				m = again
			}
			clock += rapid.SampledFrom([]int64{0, 1, 10, 120, 4000, 300_000}).Draw(t, "time passes")
			before := m.Snapshot()
			c := drawDelivery(t, before)
			data := snapshotBytes(t, before)
			res := apply(c)
			after := m.Snapshot()
			if res.Err != nil && !equalButClock(t, data, after) {
				t.Fatalf("refused with %v, and yet something changed", res.Err)
			}
			checkInvariants(t, after)
			checkRefs(t, before, after, res)
			checkRollouts(t, before, after, c)
			checkShown(t, before, after, c)
		}
		finishAll(t, m, &clock, apply)
	})
}

// equalButClock says whether a state is what was written, the clock aside, which goes on also with what is refused.
func equalButClock(t *rapid.T, data []byte, after *catalog.Snapshot) bool {
	m, err := catalog.Restore(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	m.Apply(&catalogv1.Command{Time: timestamppb.New(after.Clock())})
	return bytes.Equal(snapshotBytes(t, m.Snapshot()), snapshotBytes(t, after))
}

// checkRefs: a result names the records that changed, no more and no fewer.
func checkRefs(t *rapid.T, before, after *catalog.Snapshot, res catalog.Result) {
	named, changed := map[catalog.Ref]bool{}, map[catalog.Ref]bool{}
	for _, ref := range res.Refs {
		named[ref] = true
	}
	for rec := range after.Since(0) {
		if old, _ := before.Get(catalog.RefOf(rec)); old != rec {
			changed[catalog.RefOf(rec)] = true
			if rec.Revision <= before.Position().GetRevision() {
				t.Fatalf("%s changed at revision %d", catalog.RefOf(rec), rec.Revision)
			}
		}
	}
	if !maps.Equal(named, changed) {
		t.Fatalf("changed are %v, named are %v", changed, named)
	}
}

func checkRollouts(t *rapid.T, before, after *catalog.Snapshot, c *catalogv1.Change) {
	ended := 0
	under := map[catalog.Ref]string{}
	for _, r := range after.Rollouts() {
		if catalog.Ended(r) {
			ended++
		}
		checkWaves(t, r)
		checkBounds(t, before.Rollout(r.Id), r, c)
		for _, it := range r.Items {
			ref := catalog.Ref{Repository: it.Repository, Tag: it.Tag}
			active := after.ActiveRollout(ref)
			if catalog.Ended(r) == (active == r) {
				t.Fatalf("%s is %s, %s is under %v", r.Id, r.Phase, ref, active.GetId())
			}
			if other := under[ref]; !catalog.Ended(r) && other != "" {
				t.Fatalf("%s is under %s and under %s", ref, other, r.Id)
			}
			if !catalog.Ended(r) {
				under[ref] = r.Id
			}
			rec, _ := after.Get(ref)
			for _, rel := range rec.GetReleases() {
				for _, g := range r.Groups {
					if rel.Rollout == r.Id && !r.Settled && slices.Contains(rel.Groups, g.Group) && r.Waves[g.Wave].Opened == nil {
						t.Fatalf("%s: %s was released before its wave was opened", r.Id, g.Group)
					}
				}
			}
		}
	}
	if ended > 100 {
		t.Fatalf("%d ended rollouts are remembered", ended)
	}
}

// checkWaves: one wave at most is open, those before it are over, and those after it have not begun.
func checkWaves(t *rapid.T, r *catalogv1.Rollout) {
	forward := !catalog.Ended(r) && r.Phase != "rolling-back" && r.ResumePhase != "rolling-back"
	for i, w := range r.Waves {
		want := "open"
		switch {
		case uint32(i) < r.Wave:
			want = "succeeded"
		case uint32(i) > r.Wave:
			want = "pending"
		}
		is := w.Phase
		switch is {
		case "awaiting-window", "awaiting-approval", "checking", "running", "soaking":
			is = "open"
		}
		if forward && is != want || !forward && is != "succeeded" && is != "failed" && is != "skipped" {
			t.Fatalf("%s %s, wave %d: %s is %s", r.Id, r.Phase, r.Wave, w.Name, w.Phase)
		}
		if plan := r.Plan.Waves[i]; w.Phase == "succeeded" {
			passed := 0
			for _, g := range w.Gates {
				if g.Result == "passed" {
					passed++
				}
			}
			if w.Soaked.AsDuration() < plan.Soak.AsDuration() || passed != len(plan.Before)+len(plan.After) {
				t.Fatalf("%s: %s succeeded, soaked %v of %v, %d gates passed", r.Id, w.Name, w.Soaked.AsDuration(), plan.Soak.AsDuration(), passed)
			}
		}
	}
}

// checkBounds checks the step from one state of a rollout to the next; before is nil where it has just started.
func checkBounds(t *rapid.T, before, r *catalogv1.Rollout, c *catalogv1.Change) {
	o := c.GetObserveRollout()
	backIn := -1
	for i, plan := range r.Plan.Waves {
		running, back, failed := 0, 0, 0
		for _, g := range r.Groups {
			if int(g.Wave) != i {
				continue
			}
			switch {
			case g.Phase == "running" && !catalog.Ended(r):
				running++
			case g.Phase == "rolling-back" && r.Phase == "rolling-back":
				back++
			case g.Phase == "failed" && !g.Counted:
				failed++
			}
		}
		if running > int(plan.MaxConcurrent) || back > int(plan.MaxConcurrent) {
			t.Fatalf("%s: %d released and %d taken back at once, %d may", r.Id, running, back, plan.MaxConcurrent)
		}
		if back > 0 && backIn >= 0 {
			t.Fatalf("%s: waves %d and %d are rolled back at once", r.Id, backIn, i)
		}
		if back > 0 {
			backIn = i
		}
		if forward := !catalog.Ended(r) && r.Phase != "paused" && r.Phase != "rolling-back"; forward && i == int(r.Wave) && failed > int(plan.MaxFailures) {
			t.Fatalf("%s is %s: %d groups failed, %d may", r.Id, r.Phase, failed, plan.MaxFailures)
		}
	}
	for i, g := range r.Groups {
		was := before.GetGroups()
		if before == nil {
			was = make([]*catalogv1.RolloutGroup, len(r.Groups))
		}
		checkRelease(t, before, r, was[i], g, o)
	}
	if resumed := c.GetSteerRollout().GetVerb() == "resume"; before.GetPhase() == "paused" && r.Phase == "paused" && !resumed {
		for i, w := range r.Waves {
			if !proto.Equal(w, before.Waves[i]) {
				t.Fatalf("%s: wave %s went on while paused: %v, %v", r.Id, w.Name, before.Waves[i], w)
			}
		}
	}
	if int(before.GetWave()) < len(before.GetWaves()) {
		w, is := before.Waves[before.Wave], r.Waves[before.Wave]
		if soaked := is.Soaked.AsDuration() - w.Soaked.AsDuration(); w.Phase == "soaking" && soaked > o.GetElapsed().AsDuration() {
			t.Fatalf("%s: soaked %v in %v", r.Id, soaked, o.GetElapsed().AsDuration())
		}
	}
}

// checkRelease: a group is released only when its content is there, or nobody waits for it, and never while paused.
func checkRelease(t *rapid.T, before, r *catalogv1.Rollout, was, g *catalogv1.RolloutGroup, o *catalogv1.ObserveRollout) {
	if g.Attempts == was.GetAttempts() {
		return
	}
	state := ""
	for _, s := range o.GetGroups() {
		if s.Group == g.Group {
			state = s.State
		}
	}
	away := state == "offline" || state == "frozen"
	skipped := away && r.Plan.Waves[g.Wave].OnOffline == "skip"
	if was.GetPhase() != "staged" && state != "staged" && state != "delivered" && !skipped {
		t.Fatalf("%s: %s was released: it was %s, and seen as %q", r.Id, g.Group, was.GetPhase(), state)
	}
	if before.GetPhase() == "paused" && r.Phase == "paused" || catalog.Ended(before) {
		t.Fatalf("%s: %s was released while %s", r.Id, g.Group, before.GetPhase())
	}
	if w := r.Plan.Waves[g.Wave]; w.Window != nil && !o.GetWindowOpen() {
		t.Fatalf("%s: %s was released outside the window", r.Id, g.Group)
	}
}

// checkShown: under a rollout a group shows the target if it was released, and else what it showed before; and nothing but a rollout that has its groups, a push and the settling
// of what all groups were to show changes what a group shows.
func checkShown(t *rapid.T, before, after *catalog.Snapshot, c *catalogv1.Change) {
	for _, r := range after.Rollouts() {
		justBack := r.Phase == "rolled-back" && before.Rollout(r.Id).GetPhase() != "rolled-back"
		for i, it := range r.Items {
			rec, _ := after.Get(catalog.Ref{Repository: it.Repository, Tag: it.Tag})
			rel := slices.IndexFunc(rec.GetReleases(), func(rel *catalogv1.Release) bool { return rel.Rollout == r.Id })
			pushed := slices.ContainsFunc(rec.GetReleases()[rel+1:], func(rel *catalogv1.Release) bool { return rel.Rollout == "" })
			for _, g := range r.Groups {
				want := g.Before[i]
				if rel >= 0 && slices.Contains(rec.Releases[rel].Groups, g.Group) {
					want = it.Target.Digest
				}
				if got := showsNaively(rec, g.Group); got != want && (!catalog.Ended(r) || justBack) && (g.Group != "hq" || !pushed) {
					t.Fatalf("%s %s: %s shows %s of %s:%s, not %s", r.Id, r.Phase, g.Group, got, it.Repository, it.Tag, want)
				}
			}
		}
	}
	for _, ref := range moving {
		was, _ := before.Get(ref)
		rec, _ := after.Get(ref)
		for _, g := range everyone {
			v := catalog.Project(rec, g)
			got := ""
			if v != nil && !v.Deleted {
				got = v.Target.Digest
			}
			if got != showsNaively(rec, g) {
				t.Fatalf("%s: Project says that %s shows %s, it shows %s", ref, g, got, showsNaively(rec, g))
			}
			if got != "" && !slices.ContainsFunc(catalog.Content(rec), func(c catalog.Target) bool { return c.Descriptor.Digest == got }) {
				t.Fatalf("%s: %s shows %s, which is not in its content", ref, g, got)
			}
			rollout := c.GetStartRollout() != nil || c.GetSteerRollout() != nil || c.GetObserveRollout() != nil
			staged := c.GetPublish() != nil && after.PolicyFor(ref.Repository).GetDelivery() == "staged"
			if had := showsNaively(was, g); got != had && (rollout || staged && g != "hq") && !mayChange(before, after, was, rec, g) {
				t.Fatalf("%s: %s came to show %s instead of %s", ref, g, got, had)
			}
			if old := showsNaively(was, g); old != "" && old != v.GetTarget().GetDigest() && !slices.Contains(v.History, old) && len(rec.History) < 10 {
				t.Fatalf("%s: %s showed %s, which is not in its history %v", ref, g, old, v.History)
			}
		}
	}
}

// mayChange says whether a rollout released something to a group, or took it back; or what all groups that another knew show was made the base for those that it did not know.
func mayChange(before, after *catalog.Snapshot, was, rec *catalogv1.Record, group string) bool {
	in := func(rec *catalogv1.Record, id string) (named bool, all int) {
		for _, rel := range rec.GetReleases() {
			if rel.Rollout == id {
				return slices.Contains(rel.Groups, group), len(rel.Groups)
			}
		}
		return false, 0
	}
	for _, r := range after.Rollouts() {
		had, all := in(was, r.Id)
		has, _ := in(rec, r.Id)
		settled := r.Settled && !before.Rollout(r.Id).GetSettled()
		switch {
		case had != has && (!settled || r.Phase == "rolled-back"):
			return true
		case settled && r.Phase == "succeeded" && r.Plan.AllGroups && all == len(r.Groups) && !had:
			return true
		}
	}
	return false
}

// finishAll does what a root and a willing person do, or a root alone whose groups are silent, until every rollout has ended, or waits for a person.
func finishAll(t *rapid.T, m *catalog.Machine, clock *int64, apply func(*catalogv1.Change) catalog.Result) {
	silent := rapid.Bool().Draw(t, "silent")
	for range 200 {
		going := slices.DeleteFunc(m.Snapshot().Rollouts(), func(r *catalogv1.Rollout) bool {
			return catalog.Ended(r) || silent && (r.Phase == "paused" || r.Phase == "awaiting-approval")
		})
		if len(going) == 0 {
			return
		}
		for _, r := range going {
			*clock += 7200
			for _, verb := range []string{"resume", "approve"} {
				if !silent {
					apply(&catalogv1.Change{Kind: &catalogv1.Change_SteerRollout{SteerRollout: &catalogv1.SteerRollout{Id: r.Id, Verb: verb}}})
				}
			}
			r = m.Snapshot().Rollout(r.Id)
			o := observeWell(r)
			if silent {
				o.Check, o.Groups = nil, nil
			}
			apply(&catalogv1.Change{Kind: &catalogv1.Change_ObserveRollout{ObserveRollout: o}})
		}
	}
	for _, r := range m.Snapshot().Rollouts() {
		if !catalog.Ended(r) {
			t.Fatalf("does not end (silent: %v): %v", silent, r)
		}
	}
}

// observeWell is what a root sees where everything goes as it should, and two hours have passed.
func observeWell(r *catalogv1.Rollout) *catalogv1.ObserveRollout {
	o := &catalogv1.ObserveRollout{Id: r.Id, Seen: r.Version, WindowOpen: true, Elapsed: durationpb.New(2 * time.Hour), Check: waitingCheck(r)}
	for _, g := range r.Groups {
		state := "delivered"
		if g.Phase == "staging" || g.Phase == "pending" {
			state = "staged"
		}
		o.Groups = append(o.Groups, &catalogv1.ObservedGroup{Group: g.Group, State: state})
	}
	return o
}

func waitingCheck(r *catalogv1.Rollout) *catalogv1.ObservedCheck {
	if int(r.Wave) >= len(r.Waves) {
		return nil
	}
	for _, g := range r.Waves[r.Wave].Gates {
		if g.Result == catalog.GateWaiting {
			return &catalogv1.ObservedCheck{Wave: r.Wave, After: g.After, Index: g.Index, Passed: true}
		}
	}
	return nil
}
