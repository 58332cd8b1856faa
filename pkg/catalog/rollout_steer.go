package catalog

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// Verbs of SteerRollout.
const (
	SteerPause    = "pause"
	SteerResume   = "resume"
	SteerApprove  = "approve"
	SteerReject   = "reject"
	SteerSkip     = "skip"
	SteerRetry    = "retry"
	SteerAbort    = "abort"
	SteerRollback = "rollback"
)

// steerRollout does as a person says. A word that was obeyed already is refused as ErrUnchanged.
func (m *Machine) steerRollout(s *catalogv1.SteerRollout, actor string) ([]Ref, *Refusal) {
	if err := m.atRoot(); err != nil {
		return nil, err
	}
	if err := validateWords(actor, s.GetReason(), s.GetGroup()); err != nil {
		return nil, err
	}
	if m.rollout(s.GetId()) == nil {
		return nil, refuse(ErrInvalid, "no rollout %s is known", quote(s.GetId()))
	}
	e := m.edit("rollout/" + s.Id)
	r := e.rollout(s.Id)
	if Ended(r) && s.Verb != SteerRollback && s.Verb != SteerAbort {
		return nil, refuse(ErrInvalid, "rollout %s has ended: it is %s", r.Id, r.Phase)
	}
	r.Version++
	a := &walk{edit: e, r: r}
	var err *Refusal
	switch s.Verb {
	case SteerPause:
		err = a.steerPause(s, actor)
	case SteerResume:
		err = a.steerResume()
	case SteerApprove, SteerReject:
		err = a.judge(s, actor)
	case SteerSkip, SteerRetry:
		err = a.steerGroup(s)
	case SteerAbort:
		err = a.steerAbort(s, actor)
	case SteerRollback:
		err = a.steerRollback(s, actor)
	default:
		err = refuse(ErrInvalid, "rollout %s: %s: say pause, resume, approve, reject, skip, retry, abort or rollback", r.Id, quote(s.Verb))
	}
	if err != nil {
		return nil, err
	}
	text := s.Verb
	for _, w := range []string{s.Group, s.Reason} {
		if w != "" {
			text += ": " + w
		}
	}
	e.step(r, actor, text)
	e.advance(r, observed{})
	return e.commit(Ref{}), nil
}

func (a *walk) steerPause(s *catalogv1.SteerRollout, actor string) *Refusal {
	if a.r.Phase == RolloutPaused {
		return refuse(ErrUnchanged, "rollout %s is paused: %s", a.r.Id, a.r.Reason)
	}
	a.pause(said("paused", actor, s.Reason))
	return nil
}

func said(what, actor, reason string) string {
	return clip(strings.TrimSuffix(fmt.Sprintf("%s by %s: %s", what, actor, reason), ": "), maxWord)
}

// steerResume goes on where it was. Failures for which the rollout was paused are accepted; a gate that failed is tried again; those that wait get their time anew.
func (a *walk) steerResume() *Refusal {
	r := a.r
	if r.Phase != RolloutPaused {
		return refuse(ErrUnchanged, "rollout %s is not paused: it is %s", r.Id, r.Phase)
	}
	back := r.ResumePhase == RolloutRollingBack
	r.Phase, r.ResumePhase, r.Reason = r.ResumePhase, "", ""
	if back || int(r.Wave) >= len(r.Waves) {
		return nil
	}
	w := r.Waves[r.Wave]
	w.Reason = ""
	for _, g := range w.Gates {
		if g.Result == GateFailed {
			g.Result, g.Waited, g.At = GateWaiting, durationpb.New(0), a.now()
		}
	}
	for g := range a.groupsOf(r.Wave) {
		if g.Phase == GroupStaging {
			g.Since, g.Waited = a.now(), nil
		}
	}
	return nil
}

// judge approves or rejects what waits for it.
func (a *walk) judge(s *catalogv1.SteerRollout, actor string) *Refusal {
	r := a.r
	if r.Phase == RolloutPaused {
		return refuse(ErrInvalid, "rollout %s is paused: resume it first", r.Id)
	}
	if r.Phase != RolloutAwaitingApproval {
		return refuse(ErrInvalid, "rollout %s waits for no approval: it is %s", r.Id, r.Phase)
	}
	w, plan := r.Waves[r.Wave], r.Plan.Waves[r.Wave]
	for _, g := range w.Gates {
		gates := plan.Before
		if g.After {
			gates = plan.After
		}
		if g.Result != GateWaiting || gates[g.Index].GetApproval() == nil {
			continue
		}
		g.By, g.Detail, g.At, g.Result = actor, s.Reason, a.now(), GatePassed
		if s.Verb == SteerReject {
			g.Result = GateFailed
		}
		return nil
	}
	return refuse(ErrInvalid, "rollout %s waits for no approval", r.Id)
}

// steerGroup leaves a group out, or tries it again.
func (a *walk) steerGroup(s *catalogv1.SteerRollout) *Refusal {
	i := slices.IndexFunc(a.r.Groups, func(g *catalogv1.RolloutGroup) bool { return g.Group == s.Group })
	if i < 0 {
		return refuse(ErrInvalid, "rollout %s: group %s is not in its plan", a.r.Id, quote(s.Group))
	}
	g := a.r.Groups[i]
	if s.Verb == SteerSkip {
		switch g.Phase {
		case GroupSkipped:
			return refuse(ErrUnchanged, "%s is skipped", g.Group)
		case GroupSucceeded, GroupRolledBack:
			return refuse(ErrInvalid, "%s is not waited for: it is %s", g.Group, g.Phase)
		}
		a.set(g, GroupSkipped, s.Reason)
		return nil
	}
	switch {
	case g.Phase != GroupFailed && g.Phase != GroupSkipped:
		return refuse(ErrInvalid, "%s has not failed: it is %s", g.Group, g.Phase)
	case a.r.Phase == RolloutRollingBack || a.r.ResumePhase == RolloutRollingBack:
		return refuse(ErrInvalid, "rollout %s is being rolled back", a.r.Id)
	case g.Wave > a.r.Wave, g.Wave == a.r.Wave && a.r.Waves[g.Wave].Opened == nil: // skipped before its turn
		a.set(g, GroupPending, "")
		return nil
	case !a.isOpen(g):
		return refuse(ErrInvalid, "%s: wave %s is over: promote again for groups that were left out", g.Group, quote(a.r.Waves[g.Wave].Name))
	}
	a.set(g, GroupStaging, "")
	g.Moved, g.Counted = a.r.Version, false
	for _, it := range a.r.Items {
		if a.record(itemRef(it)) != nil {
			a.anew[itemRef(it)] = true // a new revision ends the pause that a site makes after it failed
		}
	}
	if w := a.r.Waves[g.Wave]; w.Phase != WaveRunning {
		a.enter(w, WaveRunning) // the wave is not whole any more: it soaks again afterwards
	}
	return nil
}

// steerAbort ends a rollout. What it released stays.
func (a *walk) steerAbort(s *catalogv1.SteerRollout, actor string) *Refusal {
	switch {
	case a.r.Phase == RolloutAborted:
		return refuse(ErrUnchanged, "rollout %s is aborted", a.r.Id)
	case Ended(a.r):
		return refuse(ErrInvalid, "rollout %s has ended: it is %s", a.r.Id, a.r.Phase)
	}
	a.end(a.r, RolloutAborted, said("aborted", actor, s.Reason))
	return nil
}

// steerRollback takes back what a rollout released.
func (a *walk) steerRollback(s *catalogv1.SteerRollout, actor string) *Refusal {
	r := a.r
	switch {
	case r.Phase == RolloutRollingBack || r.Phase == RolloutRolledBack:
		return refuse(ErrUnchanged, "rollout %s is %s", r.Id, r.Phase)
	case r.Settled:
		return refuse(ErrInvalid, "rollout %s can't be rolled back: %s", r.Id, a.whySettled())
	}
	for _, it := range r.Items {
		held, _ := a.m.get(itemRef(it))
		if other := a.m.active(held); other != nil && other.Id != r.Id {
			return underRollout(itemRef(it), other)
		}
	}
	a.startBack(r, said("rolled back", actor, s.Reason))
	return nil
}

func (a *walk) whySettled() string {
	r := a.r
	const instead = "; promote what was shown before instead"
	switch {
	case r.SupersededBy != "":
		return "rollout " + r.SupersededBy + " took its place: roll that one back, or promote what was shown before"
	case !slices.ContainsFunc(r.Groups, func(g *catalogv1.RolloutGroup) bool { return g.Attempts > 0 }):
		return "it released nothing"
	case !a.m.clock.Before(r.Ended.AsTime().Add(SettleAfter)):
		return fmt.Sprintf("it ended more than %v ago%s", SettleAfter, instead)
	}
	return "what it moved has changed since, or it is one of more than " + fmt.Sprint(maxEnded) + " that ended" + instead
}

// startBack turns a rollout round.
func (e *edit) startBack(r *catalogv1.Rollout, reason string) {
	r.Phase, r.Reason, r.ResumePhase, r.Ended = RolloutRollingBack, clip(reason, maxWord), "", nil
	e.close(r, reason)
}

// back takes the release from the groups, newest wave first, as many at once as the wave allows.
func (a *walk) back() bool {
	for wave := len(a.r.Waves) - 1; wave >= 0; wave-- {
		plan := a.r.Plan.Waves[wave]
		moved := a.overdueBack(uint32(wave), plan)
		under := 0
		for g := range a.groupsOf(uint32(wave)) {
			if g.Phase == GroupRollingBack {
				under++
			}
		}
		for g := range a.groupsOf(uint32(wave)) {
			if !a.released[g.Group] || under >= int(plan.MaxConcurrent) {
				continue
			}
			delete(a.released, g.Group)
			g.Moved = a.r.Version
			a.set(g, GroupRollingBack, "")
			under++
			moved = true
		}
		if moved || under > 0 {
			return moved
		}
	}
	a.end(a.r, RolloutRolledBack, a.r.Reason)
	a.step(a.r, fanout, RolloutRolledBack)
	return true
}

// overdueBack gives up waiting for groups of a wave that do not come back in time. What they are to show stays so.
func (a *walk) overdueBack(wave uint32, plan *catalogv1.Wave) bool {
	limit := plan.Deadline.AsDuration()
	moved := false
	for g := range a.groupsOf(wave) {
		if g.Phase == GroupRollingBack && limit > 0 && g.Waited.AsDuration() >= limit {
			a.failGroup(g, fmt.Sprintf("not rolled back within %v", limit))
			moved = true
		}
	}
	return moved
}
