package catalog

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// fanout is the actor of what the machine does by itself.
const fanout = "fanout"

// observed is what a root saw, and nothing where a person steers.
type observed struct {
	groups map[string]*catalogv1.ObservedGroup
	// seen is the version of the rollout before the root looked.
	seen uint64
	// window is open, for the wave of this index.
	window bool
	wave   uint32
}

// walk takes one rollout as far as it goes.
type walk struct {
	*edit
	r *catalogv1.Rollout
	observed
	// released are the groups that the rollout's releases name, as they are to be.
	released map[string]bool
}

// advance takes transitions until nothing changes any more, and puts what was released and taken back into the records.
func (e *edit) advance(r *catalogv1.Rollout, o observed) {
	a := &walk{edit: e, r: r, observed: o, released: map[string]bool{}}
	for _, g := range e.release(r, r.Items[0]).GetGroups() {
		a.released[g] = true
	}
	for a.next() {
	}
	groups := slices.Sorted(maps.Keys(a.released))
	for _, it := range r.Items {
		if rel := e.release(r, it); rel != nil && !slices.Equal(rel.Groups, groups) {
			rel.Groups = groups
		}
	}
	switch {
	case r.Phase == RolloutRolledBack:
		e.remove(r)
	case Ended(r):
		r.Settled = r.Settled || len(groups) == 0 // nothing can be taken back
		for _, it := range r.Items {
			if rec := e.record(itemRef(it)); rec != nil {
				e.tidy(rec)
			}
		}
	case r.Phase != RolloutPaused && r.Phase != RolloutRollingBack:
		r.Phase = a.mirror()
	}
}

// release returns a rollout's release in the record of an item; nil: there is none any more.
func (e *edit) release(r *catalogv1.Rollout, it *catalogv1.RolloutItem) *catalogv1.Release {
	rec := e.record(itemRef(it))
	if rec == nil {
		return nil
	}
	if i := slices.IndexFunc(rec.Releases, func(rel *catalogv1.Release) bool { return rel.Rollout == r.Id }); i >= 0 {
		return rec.Releases[i]
	}
	return nil
}

// remove takes a rollout's releases away: its groups show what they showed before.
func (e *edit) remove(r *catalogv1.Rollout) {
	r.Settled = true
	for _, it := range r.Items {
		if rec := e.record(itemRef(it)); rec != nil {
			rec.Releases = slices.DeleteFunc(rec.Releases, func(rel *catalogv1.Release) bool { return rel.Rollout == r.Id })
		}
	}
}

// next takes one transition, and says whether there may be another. Each either leads on in a fixed order of phases, or stops the walk.
func (a *walk) next() bool {
	looked := a.look()
	switch {
	case a.r.Phase == RolloutRollingBack:
		return a.back() || looked
	case a.r.Phase == RolloutPaused:
		return a.overdue() || looked
	case Ended(a.r):
		return looked
	case int(a.r.Wave) >= len(a.r.Waves):
		a.end(a.r, RolloutSucceeded, "")
		a.step(a.r, fanout, "succeeded")
		return true
	}
	w, plan := a.r.Waves[a.r.Wave], a.r.Plan.Waves[a.r.Wave]
	var moved bool
	switch {
	case w.Opened == nil:
		moved = a.open(w, plan)
	case w.Phase == WaveRunning:
		moved = a.run(w, plan)
	default:
		moved = a.soak(w, plan)
	}
	return moved || looked
}

// open passes the gates before a wave and waits for its window.
func (a *walk) open(w *catalogv1.RolloutWave, plan *catalogv1.Wave) bool {
	if passed, moved := a.gates(w, plan.Before, false); !passed {
		return moved
	}
	if plan.Window != nil && !a.inWindow() {
		return a.enter(w, WaveAwaitingWindow)
	}
	w.Opened = a.now()
	a.enter(w, WaveRunning)
	for g := range a.groupsOf(a.r.Wave) {
		if g.Phase == GroupPending {
			a.set(g, GroupStaging, g.Reason)
		}
		g.Waited = nil
	}
	return true
}

func (a *walk) inWindow() bool { return a.window && a.wave == a.r.Wave }

// run releases the groups of the open wave, as many at once as its plan allows, and waits for them.
func (a *walk) run(w *catalogv1.RolloutWave, plan *catalogv1.Wave) bool {
	if a.overdue() {
		return true
	}
	if reason, over := a.failures(plan); over {
		return a.fail(w, plan, reason)
	}
	moved, waiting := false, 0
	under := a.underWay()
	for g := range a.groupsOf(a.r.Wave) {
		switch g.Phase {
		case GroupPending, GroupStaging, GroupStaged:
		case GroupRunning:
			waiting++
			continue
		default:
			continue
		}
		may := plan.Window == nil || a.inWindow()
		away := a.away(g)
		switch {
		case may && away && plan.OnOffline == OnOfflineSkip:
			// It is released all the same, so that it shows the release when it is back; nobody waits for it.
			a.put(g)
			a.set(g, GroupOffline, g.Reason)
			a.step(a.r, fanout, fmt.Sprintf("%s: not waited for: %s", g.Group, g.Reason))
			moved = true
		case may && g.Phase == GroupStaged && under < int(plan.MaxConcurrent):
			under++
			waiting++
			a.put(g)
			a.set(g, GroupRunning, "")
			moved = true
		default:
			waiting++
		}
	}
	if moved || waiting > 0 {
		return moved
	}
	if plan.Soak.AsDuration() > 0 {
		return a.enter(w, WaveSoaking)
	}
	return a.leave(w, plan)
}

// soak waits until the wave was looked at for long enough.
func (a *walk) soak(w *catalogv1.RolloutWave, plan *catalogv1.Wave) bool {
	if reason, over := a.failures(plan); over {
		return a.fail(w, plan, reason)
	}
	if w.Phase == WaveSoaking && w.Soaked.AsDuration() < plan.Soak.AsDuration() {
		return false
	}
	return a.leave(w, plan)
}

// leave passes the gates after a wave and goes on to the next.
func (a *walk) leave(w *catalogv1.RolloutWave, plan *catalogv1.Wave) bool {
	if passed, moved := a.gates(w, plan.After, true); !passed {
		return moved
	}
	w.Closed = a.now()
	a.enter(w, WaveSucceeded)
	a.r.Wave++
	return true
}

// gates passes gates in their order, and stops at the first that is not passed yet.
func (a *walk) gates(w *catalogv1.RolloutWave, list []*catalogv1.Gate, after bool) (passed, moved bool) {
	for i, gate := range list {
		g := gateOf(w, after, i)
		if g == nil {
			g = &catalogv1.RolloutGate{After: after, Index: uint32(i), Result: GateWaiting, At: a.now(), Waited: durationpb.New(0)}
			w.Gates = append(w.Gates, g)
			moved = true
		}
		switch g.Result {
		case GatePassed:
			continue
		case GateFailed:
			return false, a.fail(w, a.r.Plan.Waves[a.r.Wave], gateReason(gate, g))
		}
		phase := WaveAwaitingApproval
		if gate.GetCheck() != nil {
			phase = WaveChecking
		}
		return false, a.enter(w, phase) || moved
	}
	return true, moved
}

func gateOf(w *catalogv1.RolloutWave, after bool, index int) *catalogv1.RolloutGate {
	for _, g := range w.Gates {
		if g.After == after && int(g.Index) == index {
			return g
		}
	}
	return nil
}

func gateReason(gate *catalogv1.Gate, g *catalogv1.RolloutGate) string {
	if c := gate.GetCheck(); c != nil {
		return fmt.Sprintf("check %s: no answer of 2xx within %v: %s", c.Url, c.Timeout.AsDuration(), g.Detail)
	}
	return strings.TrimSuffix(fmt.Sprintf("rejected by %s: %s", g.By, g.Detail), ": ")
}

// overdue fails the groups of the open wave whose deadline is over, by the time that roots counted. While the rollout is paused, what was not released is not expected to be.
func (a *walk) overdue() bool {
	if int(a.r.Wave) >= len(a.r.Waves) || a.r.Waves[a.r.Wave].Opened == nil || a.r.ResumePhase == RolloutRollingBack {
		return false
	}
	limit := a.r.Plan.Waves[a.r.Wave].Deadline.AsDuration()
	moved := false
	for g := range a.groupsOf(a.r.Wave) {
		staging := g.Phase == GroupStaging && a.r.Phase != RolloutPaused
		if limit <= 0 || g.Phase != GroupRunning && !staging || g.Waited.AsDuration() < limit {
			continue
		}
		reason := fmt.Sprintf("not delivered within %v", limit)
		switch {
		case staging && a.away(g):
			reason = fmt.Sprintf("could not be given the release within %v", limit)
		case staging:
			reason = fmt.Sprintf("content not there within %v", limit)
		}
		if g.Reason != "" {
			reason += ": " + g.Reason
		}
		a.failGroup(g, reason)
		moved = true
	}
	return moved
}

func (a *walk) failGroup(g *catalogv1.RolloutGroup, reason string) {
	a.set(g, GroupFailed, reason)
	g.Counted = false
	a.step(a.r, fanout, strings.TrimSuffix(fmt.Sprintf("%s: failed: %s", g.Group, g.Reason), ": "))
}

// failures says whether more groups of the open wave failed than may.
func (a *walk) failures(plan *catalogv1.Wave) (reason string, over bool) {
	var failed []string
	for g := range a.groupsOf(a.r.Wave) {
		if g.Phase == GroupFailed && !g.Counted {
			failed = append(failed, g.Group)
		}
	}
	if len(failed) <= int(plan.MaxFailures) {
		return "", false
	}
	list := strings.Join(failed[:min(3, len(failed))], ", ")
	if len(failed) > 3 {
		list += ", …"
	}
	return fmt.Sprintf("failed are %d of at most %d groups: %s", len(failed), plan.MaxFailures, list), true
}

// fail does what the plan says of a failure.
func (a *walk) fail(w *catalogv1.RolloutWave, plan *catalogv1.Wave, reason string) bool {
	w.Reason = clip(reason, maxWord)
	said := clip(fmt.Sprintf("wave %s: %s", w.Name, reason), maxWord)
	switch plan.OnFailure {
	case OnFailureAbort:
		a.end(a.r, RolloutFailed, said)
		a.step(a.r, fanout, "failed: "+said)
	case OnFailureRollback:
		a.startBack(a.r, said)
		a.step(a.r, fanout, "rolling back: "+said)
	default:
		for g := range a.groupsOf(a.r.Wave) {
			g.Counted = g.Phase == GroupFailed // resuming accepts those
		}
		a.pause(said)
		a.step(a.r, fanout, "paused: "+said)
	}
	return true
}

func (a *walk) pause(reason string) {
	a.r.ResumePhase = a.r.Phase
	if a.r.Phase != RolloutRollingBack {
		a.r.ResumePhase = a.mirror()
	}
	a.r.Phase, a.r.Reason = RolloutPaused, reason
}

// mirror is the phase of a rollout that goes forward: that of its wave, as far as a rollout has it.
func (a *walk) mirror() string {
	if int(a.r.Wave) >= len(a.r.Waves) {
		return RolloutRunning
	}
	switch w := a.r.Waves[a.r.Wave]; w.Phase {
	case WavePending:
		return RolloutPending
	case WaveAwaitingApproval:
		return RolloutAwaitingApproval
	case WaveAwaitingWindow:
		return RolloutAwaitingWindow
	case WaveSoaking:
		return RolloutSoaking
	case WaveRunning:
		waits := false
		for g := range a.groupsOf(a.r.Wave) {
			waits = waits || g.Phase == GroupStaging || g.Phase == GroupPending
		}
		if waits && a.underWay() == 0 {
			return RolloutStaging
		}
	}
	return RolloutRunning
}

// underWay counts the groups of the open wave that were released and have not delivered.
func (a *walk) underWay() int {
	n := 0
	for g := range a.groupsOf(a.r.Wave) {
		if g.Phase == GroupRunning {
			n++
		}
	}
	return n
}

// put adds a group to the release.
func (a *walk) put(g *catalogv1.RolloutGroup) {
	a.released[g.Group] = true
	g.Attempts++
	g.Released, g.Moved = a.now(), a.r.Version
}

// away says whether a group was just seen to be offline or frozen.
func (a *walk) away(g *catalogv1.RolloutGroup) bool {
	o := a.sight(g)
	return o.GetState() == ObservedOffline || o.GetState() == ObservedFrozen
}

// sight is what was seen of a group since it last moved; nil: nothing.
func (a *walk) sight(g *catalogv1.RolloutGroup) *catalogv1.ObservedGroup {
	if g.Moved > a.seen {
		return nil
	}
	return a.groups[g.Group]
}

func (a *walk) enter(w *catalogv1.RolloutWave, phase string) bool {
	if w.Phase == phase {
		return false
	}
	w.Phase = phase
	if phase == WaveSoaking {
		w.Soaked = durationpb.New(0)
	}
	a.step(a.r, fanout, fmt.Sprintf("wave %s: %s", w.Name, phase))
	return true
}

// set says where a group stands.
func (e *edit) set(g *catalogv1.RolloutGroup, phase, reason string) bool {
	g.Reason = clip(reason, maxReason)
	if g.Phase == phase {
		return false
	}
	// Content that was all there and then is not any more, as a root that has just taken office must take it to be where a site has not been heard yet, does not make a group's waiting for
	// content begin anew.
	if ahead := []string{GroupStaging, GroupStaged}; !slices.Contains(ahead, g.Phase) || !slices.Contains(ahead, phase) {
		g.Waited = nil
	}
	g.Phase, g.Since = phase, e.now()
	return true
}

// groupsOf yields the groups of a wave.
func (a *walk) groupsOf(wave uint32) func(func(*catalogv1.RolloutGroup) bool) {
	return groupsOf(a.r, wave)
}

func groupsOf(r *catalogv1.Rollout, wave uint32) func(func(*catalogv1.RolloutGroup) bool) {
	return func(yield func(*catalogv1.RolloutGroup) bool) {
		for _, g := range r.Groups {
			if g.Wave == wave && !yield(g) {
				return
			}
		}
	}
}

// end ends a rollout. What it released stays.
func (e *edit) end(r *catalogv1.Rollout, phase, reason string) {
	r.Phase, r.Reason, r.ResumePhase, r.Ended = phase, clip(reason, maxWord), "", e.now()
	if phase == RolloutFailed || phase == RolloutAborted {
		e.close(r, reason)
	}
}

// close ends the open wave and those that come after it.
func (e *edit) close(r *catalogv1.Rollout, reason string) {
	for _, w := range r.Waves {
		switch w.Phase {
		case WaveSucceeded, WaveFailed, WaveSkipped:
		case WavePending:
			w.Phase = WaveSkipped
		default:
			w.Phase, w.Closed = WaveFailed, e.now()
			if w.Reason == "" {
				w.Reason = clip(reason, maxWord)
			}
		}
	}
}

// step notes a line of a rollout's history; of too many the oldest goes.
func (e *edit) step(r *catalogv1.Rollout, actor, text string) {
	s := &catalogv1.RolloutStep{At: e.now(), Actor: actor, Text: clip(text, maxWord)}
	if int(r.Wave) < len(r.Waves) {
		s.Wave = r.Waves[r.Wave].Name
	}
	r.Steps = append(r.Steps, s)
	if n := len(r.Steps); n > maxSteps {
		r.Steps = slices.Delete(r.Steps, 0, n-maxSteps)
	}
}

// now is the machine's clock; unlike the machine's own it is never absent.
func (e *edit) now() *timestamppb.Timestamp { return timestamppb.New(e.m.clock) }

// clip bounds free text in bytes.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	cut := n - len("…")
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}

func addElapsed(d *durationpb.Duration, elapsed time.Duration) *durationpb.Duration {
	return durationpb.New(min(d.AsDuration()+elapsed, maxElapsed))
}
