package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/reconcile"
	"github.com/fanout-io/fanout/pkg/registry"
)

// Refs that one rollout released to this group, or takes back from it, move together: when the content of all is here their tags are put, or taken away where they were new, one right after the other, and when one
// can't be those before it are put back. A registry has no more than that to offer. One that can't take a tag away at all keeps that tag, and the others move without it: else they never would.

// moves sees to it that one set of refs moves at a time.
type moves struct {
	mu     sync.Mutex
	failed map[string]catalog.Ref // by rollout: what could not be moved last, and is tried first
}

// moveOf names the rollout that moves a record's tag from what it shows: the one whose release counts for a group, or, on the way back, the newest of those that name the group no more, or not
// yet, and to whose target the tag was moved. Empty: no rollout moves it.
func moveOf(raw *catalogv1.Record, group, ours string) (rollout string, back bool) {
	if r := releaseFor(raw, group); r.GetTarget() != nil && r.GetRollout() != "" && r.GetTarget().GetDigest() != ours {
		return r.GetRollout(), false
	}
	for _, r := range slices.Backward(raw.GetReleases()) {
		if r.GetRollout() != "" && ours != "" && r.GetTarget().GetDigest() == ours && !slices.Contains(r.GetGroups(), group) {
			return r.GetRollout(), true
		}
	}
	return "", false
}

// movesWith gives the records that the same rollout moves at this group, this one excepted: those that it released to the group, or those that it took back.
func (a *Agent) movesWith(raw *catalogv1.Record, rollout string, back bool) []*catalogv1.Record {
	if rollout == "" {
		return nil
	}
	var out []*catalogv1.Record
	snap := a.node.Catalog()
	for rec := range snap.Records() {
		ref := catalog.RefOf(rec)
		if len(rec.GetReleases()) == 0 || ref == catalog.RefOf(raw) || !a.keeping.has(snap, ref) {
			continue
		}
		released := releaseFor(rec, a.cfg.Group)
		if !back && released.GetRollout() == rollout && released.GetTarget() != nil || back && takenBack(rec, rollout, a.cfg.Group) {
			out = append(out, rec)
		}
	}
	return out
}

// takenBack says whether a record has a release of a rollout that does not name a group.
func takenBack(rec *catalogv1.Record, rollout, group string) bool {
	return slices.ContainsFunc(rec.GetReleases(), func(r *catalogv1.Release) bool {
		return r.GetRollout() == rollout && r.GetTarget() != nil && !slices.Contains(r.GetGroups(), group)
	})
}

// move is one tag that is put, or taken away.
type move struct {
	ref    catalog.Ref
	rec    *catalogv1.Record
	ours   string // what it showed before
	looked time.Time
	d      *delivery // nil: the tag goes
}

func (a *Agent) carryOut(ctx context.Context, m *move) error {
	if m.d == nil {
		return a.removeTag(ctx, m.ref, m.rec, m.ours)
	}
	return m.d.carryOut(ctx)
}

// moveTogether moves the tag of a record with those of the others of a rollout.
func (a *Agent) moveTogether(ctx context.Context, ref catalog.Ref, raw *catalogv1.Record, ours, rollout string, with []*catalogv1.Record) error {
	if err := a.bringAhead(ctx, ref); err != nil {
		return err
	}
	for _, o := range with {
		if !a.ahead.has(o) {
			a.waitsFor(ref, raw, "its content is here; its tag moves together with "+catalog.RefOf(o).String()+", whose content is not here yet")
			return nil
		}
	}
	for _, o := range with {
		if f, until := a.frozen(o); f != nil {
			return a.keepFrozen(ctx, ref, raw, a.shown(raw), ours, f, until)
		}
	}
	a.moves.mu.Lock()
	defer a.moves.mu.Unlock()
	set, err := a.gatherMoves(ctx, append([]*catalogv1.Record{raw}, with...))
	if err != nil {
		return err
	}
	first := a.moves.failed[rollout]
	slices.SortStableFunc(set, func(x, y *move) int {
		switch {
		case x.ref == first && y.ref != first:
			return -1
		case y.ref == first && x.ref != first:
			return 1
		}
		return x.ref.Compare(y.ref)
	})
	var moved []*move
	var keeps error // the registry's word on this tag, where it can't take it away
	for _, m := range set {
		err := a.carryOut(ctx, m)
		switch {
		case err == nil:
			moved = append(moved, m)
			continue
		case m.d == nil && errors.Is(err, registry.ErrUnsupported):
			if m.ref == ref {
				keeps = err
			}
			continue
		}
		if a.moves.failed == nil || len(a.moves.failed) > maxMovesFailed {
			a.moves.failed = map[string]catalog.Ref{}
		}
		a.moves.failed[rollout] = m.ref
		a.putBackAll(ctx, moved)
		if m.ref != ref {
			a.queue.add(key{repository: m.ref.Repository, tag: m.ref.Tag})
			return fmt.Errorf("its tag moves together with %s: %w", m.ref, err)
		}
		return err
	}
	delete(a.moves.failed, rollout)
	for _, m := range moved {
		if m.d == nil {
			a.events.normal("Removed", m.ref.String(), "taken back by rollout "+rollout)
		} else {
			a.counts.delivered(m.looked)
			a.events.normal("Delivered", m.ref.String(), fmt.Sprintf("%s, revision %d, by rollout %s", m.rec.GetTarget().GetDigest(), m.rec.GetRevision(), rollout))
		}
		if err := a.delivered(m.ref, m.rec, m.looked); err != nil {
			return err
		}
	}
	return keeps
}

// maxMovesFailed bounds what is remembered of rollouts.
const maxMovesFailed = 256

func (a *Agent) waitsFor(ref catalog.Ref, rec *catalogv1.Record, why string) {
	a.progress.update(ref, func(p *treev1.PendingRef) {
		p.Revision, p.State, p.Reason, p.BytesLeft, p.NextAttempt = rec.GetRevision(), "waiting", why, 0, nil
		p.Trouble = togetherTrouble()
	}, true)
}

// gatherMoves looks which of the records' tags are to be put, or taken away. Those that a person changed are judged on their own.
func (a *Agent) gatherMoves(ctx context.Context, records []*catalogv1.Record) ([]*move, error) {
	var out []*move
	for _, raw := range records {
		m := &move{ref: catalog.RefOf(raw), rec: a.shown(raw), looked: time.Now()}
		if now, _ := a.record(m.ref); now.GetRevision() != raw.GetRevision() {
			return nil, errChanged
		}
		st, _, err := a.store.RefState(m.ref.String())
		if err != nil {
			return nil, err
		}
		if m.ours, err = a.observe(ctx, m.ref); err != nil {
			return nil, err
		}
		switch v := reconcile.Merge(a.mergeInput(m.ref, m.rec, st, m.ours)); {
		case v.Action == reconcile.Deliver && m.ours != showsDigest(m.rec):
			m.d = newDelivery(a, m.ref, m.rec, m.ours)
		case v.Action != reconcile.Remove:
			continue
		}
		out = append(out, m)
	}
	return out, nil
}

// putBackAll has tags that were moved show again what they did. What can't be put back is delivered all the same when the others are.
func (a *Agent) putBackAll(ctx context.Context, set []*move) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), proposeTimeout) // also when the agent stops
	defer cancel()
	for _, m := range slices.Backward(set) {
		if err := a.putBackOne(ctx, m); err != nil {
			a.logger.Warn("a tag that moved alone is not put back", "ref", m.ref.String(), "digest", m.ours, "error", err)
			a.events.warning("NotPutBack", m.ref.String(), err.Error())
			continue
		}
		a.waitsFor(m.ref, m.rec, "put back: another ref that moves together with it failed")
	}
}

func (a *Agent) putBackOne(ctx context.Context, m *move) error {
	if m.ours == "" {
		err := a.registry.DeleteTag(ctx, m.ref.Repository, m.ref.Tag)
		if errors.Is(err, registry.ErrNotFound) {
			return nil
		}
		return err
	}
	old, err := a.registry.Manifest(ctx, m.ref.Repository, m.ours)
	if err != nil {
		return err
	}
	st, _, err := a.store.RefState(m.ref.String())
	if err != nil {
		return err
	}
	st.Intent, st.IntentRevision = m.ours, st.BaseRevision
	if err := a.store.PutRefState(m.ref.String(), st); err != nil {
		return err
	}
	return a.registry.PutManifest(ctx, m.ref.Repository, m.ref.Tag, old)
}
