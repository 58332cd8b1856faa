package catalog

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// observeRollout takes in what headquarters' root saw of a rollout. It is accepted while the rollout goes on, also where it changes nothing but what time has passed; of one
// that has ended when a group has come to show what it is to show, or when any rollout is to be settled.
func (m *Machine) observeRollout(o *catalogv1.ObserveRollout) ([]Ref, *Refusal) {
	if err := m.atRoot(); err != nil {
		return nil, err
	}
	if err := validateObservation(o); err != nil {
		return nil, err
	}
	if m.rollout(o.Id) == nil {
		return nil, refuse(ErrInvalid, "no rollout %s is known", quote(o.Id))
	}
	e := m.edit("rollout/" + o.Id)
	settled := e.settleDue()
	r := e.rollout(o.Id)
	ended := Ended(r)
	before := groupPhasesOf(r)
	saw := observed{groups: map[string]*catalogv1.ObservedGroup{}, seen: min(o.Seen, r.Version), window: o.WindowOpen, wave: r.Wave}
	for _, g := range o.Groups {
		saw.groups[g.Group] = g
	}
	fresh := r.Version != r.Observed // something else changed since the root last looked: time that passed before it counts for nothing
	r.Version++
	r.Observed = r.Version
	if fresh {
		o = proto.CloneOf(o)
		o.Elapsed = nil
	}
	if !ended {
		e.wait(r, o.Elapsed.AsDuration())
		if r.Phase != RolloutPaused {
			e.spend(r, o)
		}
	}
	if !r.Settled || r.Phase == RolloutRolledBack { // of what was taken over, and perhaps changed since, nothing can be said any more
		e.advance(r, saw)
	}
	if ended && !settled && slices.Equal(before, groupPhasesOf(r)) {
		return nil, refuse(ErrUnchanged, "rollout %s ended as %s", r.Id, r.Phase)
	}
	return e.commit(Ref{}), nil
}

// settleDue settles what ended long ago.
func (e *edit) settleDue() (settled bool) {
	var due []string
	e.m.rollouts.Scan(func(r *catalogv1.Rollout) bool {
		if SettleDue(r, e.m.clock) {
			due = append(due, r.Id)
		}
		return true
	})
	for _, id := range due {
		e.settle(id)
	}
	return len(due) > 0
}

func groupPhasesOf(r *catalogv1.Rollout) []string {
	out := make([]string, len(r.Groups))
	for i, g := range r.Groups {
		out[i] = g.Phase
	}
	return out
}

func validateObservation(o *catalogv1.ObserveRollout) *Refusal {
	if len(o.GetGroups()) > maxPlanGroups {
		return refuse(ErrInvalid, "%d groups observed, at most %d are in a plan", len(o.Groups), maxPlanGroups)
	}
	states := []string{ObservedStaged, ObservedDelivered, ObservedPending, ObservedFailed, ObservedOffline, ObservedFrozen}
	for _, g := range o.GetGroups() {
		if !slices.Contains(states, g.GetState()) {
			return refuse(ErrInvalid, "group %s is observed as %s", quote(g.GetGroup()), quote(g.GetState()))
		}
		if err := validateWords(g.Reason); err != nil {
			return err
		}
		if len(g.GetSites()) > maxReceipts {
			return refuse(ErrInvalid, "group %s is observed at %d sites, at most %d are", quote(g.GetGroup()), len(g.GetSites()), maxReceipts)
		}
		if err := validateWords(g.GetSites()...); err != nil {
			return err
		}
	}
	if err := validateDuration("elapsed", o.GetElapsed(), 0, maxWait); err != nil {
		return err
	}
	if err := validateDuration("a check", o.GetCheck().GetTook(), 0, maxWait); err != nil {
		return err
	}
	return validateWords(o.GetCheck().GetDetail())
}

// DeadlineCounts says whether the time that passes counts for a group's deadline: from its release until it shows what it is to show, on the way back as well, and from the opening of its wave
// until its content is there. While the rollout is paused, nothing more is expected but that what was released is shown.
func DeadlineCounts(r *catalogv1.Rollout, g *catalogv1.RolloutGroup) bool {
	back := r.GetPhase() == RolloutRollingBack || r.GetResumePhase() == RolloutRollingBack
	open := !Ended(r) && !back && g.GetWave() == r.GetWave() && r.GetWaves()[g.GetWave()].GetPhase() == WaveRunning
	switch g.GetPhase() {
	case GroupRollingBack:
		return r.GetPhase() == RolloutRollingBack
	case GroupRunning:
		return open
	case GroupStaging:
		return open && r.GetPhase() != RolloutPaused
	}
	return false
}

// wait counts time that passed for the deadlines of groups. It is what roots measured, as for a soak, and not what their clocks say: a root whose clock is an hour ahead would else fail
// every group that is under way, and one whose clock is behind wait for as long as that.
func (e *edit) wait(r *catalogv1.Rollout, elapsed time.Duration) {
	for _, g := range r.Groups {
		if elapsed > 0 && DeadlineCounts(r, g) {
			g.Waited = addElapsed(g.Waited, elapsed)
		}
	}
}

// spend counts time that passed, and an attempt of a check, for the wave that is open.
func (e *edit) spend(r *catalogv1.Rollout, o *catalogv1.ObserveRollout) {
	if int(r.Wave) >= len(r.Waves) || r.Phase == RolloutRollingBack {
		return
	}
	elapsed := o.Elapsed.AsDuration()
	w, plan := r.Waves[r.Wave], r.Plan.Waves[r.Wave]
	switch w.Phase {
	case WaveSoaking:
		w.Soaked = addElapsed(w.Soaked, elapsed)
	case WaveChecking:
		for _, g := range w.Gates {
			gates := plan.Before
			if g.After {
				gates = plan.After
			}
			if check := gates[g.Index].GetCheck(); check != nil && g.Result == GateWaiting {
				e.tryCheck(r, g, check, o, elapsed)
			}
		}
	}
}

// tryCheck notes an attempt, if it is one of this gate, and gives up when the gate has waited for long enough.
func (e *edit) tryCheck(r *catalogv1.Rollout, g *catalogv1.RolloutGate, check *catalogv1.Check, o *catalogv1.ObserveRollout, elapsed time.Duration) {
	g.Waited = addElapsed(g.Waited, elapsed)
	if c := o.Check; c != nil && c.Wave == r.Wave && c.After == g.After && c.Index == g.Index {
		g.Attempts++
		g.Detail, g.At, g.Took = c.Detail, e.now(), durationpb.New(c.Took.AsDuration())
		if c.Passed {
			g.Result = GatePassed
			e.step(r, fanout, fmt.Sprintf("check %s passed: %s", check.Url, c.Detail))
			return
		}
	}
	if g.Waited.AsDuration() >= check.Timeout.AsDuration() {
		g.Result, g.At = GateFailed, e.now()
	}
}

// look takes in what was seen of the groups.
func (a *walk) look() bool {
	moved := false
	for _, g := range a.r.Groups {
		if o := a.sight(g); o != nil {
			moved = a.lookAt(g, o) || moved
		}
	}
	return moved
}

// Stands says whether a group is still to show what a rollout put there, or (back) what it showed before where the rollout took that away again, or never put it. Where something else was published
// since, what the group shows says nothing about the rollout.
func Stands(r *catalogv1.Rollout, g *catalogv1.RolloutGroup, record func(Ref) *catalogv1.Record) (back, stands bool) {
	if len(g.GetBefore()) != len(r.GetItems()) {
		return false, false
	}
	for i, it := range r.GetItems() {
		rec := record(itemRef(it))
		if i == 0 {
			back = !slices.ContainsFunc(rec.GetReleases(), func(rel *catalogv1.Release) bool {
				return rel.GetRollout() == r.GetId() && slices.Contains(rel.GetGroups(), g.GetGroup())
			})
		}
		want := it.GetTarget().GetDigest()
		if back {
			want = g.Before[i]
		}
		if rec == nil || ShownBy(rec, g.GetGroup()) != want {
			return back, false
		}
	}
	return back, true
}

// receive notes which sites came to show what the rollout put there, or took back.
func (a *walk) receive(g *catalogv1.RolloutGroup, o *catalogv1.ObservedGroup) {
	if len(o.GetSites()) == 0 {
		return
	}
	back, stands := Stands(a.r, g, a.record)
	if !stands {
		return
	}
	for _, site := range o.Sites {
		i, found := slices.BinarySearchFunc(g.Receipts, site, func(x *catalogv1.RolloutReceipt, site string) int { return strings.Compare(x.Site, site) })
		is := &catalogv1.RolloutReceipt{Site: site, At: a.now(), Back: back}
		switch {
		case found && g.Receipts[i].Back == back:
		case found:
			g.Receipts[i] = is
		case len(g.Receipts) < maxReceipts:
			g.Receipts = slices.Insert(g.Receipts, i, is)
		}
	}
}

// lookAt takes in what was seen of one group. Looking twice changes nothing more.
func (a *walk) lookAt(g *catalogv1.RolloutGroup, o *catalogv1.ObservedGroup) bool {
	if g.Attempts > 0 {
		a.receive(g, o)
	}
	switch g.Phase {
	case GroupPending, GroupStaging, GroupStaged:
		return a.lookAhead(g, o)
	case GroupRunning:
		return a.lookReleased(g, o)
	case GroupRollingBack:
		switch o.State {
		case ObservedDelivered:
			return a.set(g, GroupRolledBack, "")
		case ObservedFailed:
			return a.set(g, GroupFailed, o.Reason)
		case ObservedOffline, ObservedFrozen:
			return a.set(g, GroupOffline, awayReason(o))
		}
		g.Reason = clip(o.Reason, maxReason)
	case GroupOffline, GroupFailed:
		// It is back, or has managed after all.
		if o.State != ObservedDelivered || g.Attempts == 0 {
			return false
		}
		back, stands := Stands(a.r, g, a.record)
		switch {
		case !stands:
			return false
		case back:
			a.step(a.r, fanout, "back: "+g.Group+": shows again what it did")
			return a.set(g, GroupRolledBack, "")
		}
		a.step(a.r, fanout, "back: "+g.Group+": shows the release")
		return a.set(g, GroupSucceeded, "")
	case GroupSucceeded:
		if o.State == ObservedFailed && a.isOpen(g) {
			a.failGroup(g, o.Reason)
			return true
		}
	}
	return false
}

// isOpen says whether a group's wave is the open one of a rollout that goes forward.
func (a *walk) isOpen(g *catalogv1.RolloutGroup) bool {
	return g.Wave == a.r.Wave && !Ended(a.r) && a.r.Phase != RolloutRollingBack && a.r.ResumePhase != RolloutRollingBack && a.r.Waves[g.Wave].Opened != nil
}

// lookAhead is for a group that is not released.
func (a *walk) lookAhead(g *catalogv1.RolloutGroup, o *catalogv1.ObservedGroup) bool {
	waits, reason := GroupPending, o.Reason
	open := a.isOpen(g)
	if open {
		waits = GroupStaging
	}
	switch o.State {
	case ObservedStaged, ObservedDelivered:
		return a.set(g, GroupStaged, "")
	case ObservedFailed:
		if open && a.r.Phase != RolloutPaused {
			a.failGroup(g, o.Reason)
			return true
		}
	case ObservedOffline, ObservedFrozen:
		reason = awayReason(o)
		if open && a.r.Phase != RolloutPaused && a.r.Plan.Waves[g.Wave].OnOffline == OnOfflineFail {
			a.failGroup(g, reason)
			return true
		}
	}
	return a.set(g, waits, reason)
}

// lookReleased is for a group that is to show the release.
func (a *walk) lookReleased(g *catalogv1.RolloutGroup, o *catalogv1.ObservedGroup) bool {
	switch o.State {
	case ObservedDelivered:
		return a.set(g, GroupSucceeded, "")
	case ObservedFailed:
		a.failGroup(g, o.Reason)
		return true
	case ObservedOffline, ObservedFrozen:
		switch a.r.Plan.Waves[g.Wave].OnOffline {
		case OnOfflineSkip:
			a.step(a.r, fanout, fmt.Sprintf("%s: waited for no more: %s", g.Group, awayReason(o)))
			return a.set(g, GroupOffline, awayReason(o))
		case OnOfflineFail:
			a.failGroup(g, awayReason(o))
			return true
		}
		return a.set(g, GroupRunning, awayReason(o))
	}
	return a.set(g, GroupRunning, o.Reason)
}

// awayReason says why nothing comes of a group.
func awayReason(o *catalogv1.ObservedGroup) string {
	if o.Reason == "" {
		return o.State
	}
	return o.State + ": " + o.Reason
}
