package catalog

import (
	"slices"

	"google.golang.org/protobuf/proto"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// restoreCatalog takes over a part of a saved catalog. Until the last part the machine has no epoch: nothing can be published, and children are told that
// nothing whole is here. A run that was broken off is begun anew.
func (m *Machine) restoreCatalog(r *catalogv1.RestoreCatalog) ([]Ref, *Refusal) {
	if err := m.validateRestore(r); err != nil {
		return nil, err
	}
	var refs []Ref
	if r.Begin {
		// What an earlier run left counts for nothing.
		m.records.Scan(func(rec *catalogv1.Record) bool {
			refs = append(refs, RefOf(rec))
			return true
		})
		m.records.Clear()
		m.revisions.Clear()
		m.sums.Clear()
		m.deletions.Clear()
		m.rollouts.Clear()
		m.live = 0
		m.position, m.ancestors, m.founded, m.restoring = &catalogv1.Position{}, nil, false, r.Id
		m.accepted, m.demand, m.freezesAbove = "", nil, nil
	}
	for _, rec := range r.Records {
		if held, ok := m.get(RefOf(rec)); ok && held.Revision >= rec.Revision {
			continue // the same part, once more
		}
		m.put(proto.CloneOf(rec))
		refs = append(refs, RefOf(rec))
	}
	for _, g := range r.Groups {
		if err := m.setGroup(g); err != nil {
			panic(err) // all that can be wrong was checked before
		}
	}
	for _, x := range r.Rollouts {
		m.rollouts.Set(proto.CloneOf(x))
	}
	if !r.End {
		return refs, nil
	}
	saved := r.Ancestors[len(r.Ancestors)-1].Position
	m.ancestors = make([]*catalogv1.Ancestor, len(r.Ancestors))
	for i, a := range r.Ancestors {
		m.ancestors[i] = proto.CloneOf(a)
	}
	m.founded, m.restoring, m.pruned = true, "", min(r.Pruned, saved.Revision)
	m.moveTo(&catalogv1.Position{Epoch: r.Epoch, Revision: saved.Revision, Sum: saved.Sum})
	if len(r.Policies) > 0 { // else those that a person has set already stand
		m.policies = copyPolicies(r.Policies)
	}
	if r.Freeze != nil {
		m.freeze = proto.CloneOf(r.Freeze)
	}
	m.haltRollouts()
	return refs, nil
}

// haltRollouts pauses the rollouts that were under way when the catalog was saved: how far the groups have come since is not known, and a person is to look first. One whose records
// were not saved with it can't go on.
func (m *Machine) haltRollouts() {
	e := m.edit(fanout)
	const reason = "headquarters' catalog was restored: look at what the groups show now, then resume, abort or roll back"
	for _, r := range m.rollouts.Items() {
		if Ended(r) {
			continue
		}
		a := &walk{edit: e, r: e.rollout(r.Id)}
		a.r.Version++
		switch {
		case slices.ContainsFunc(r.Items, func(it *catalogv1.RolloutItem) bool { return e.release(r, it) == nil }):
			e.end(a.r, RolloutAborted, "headquarters' catalog was restored without the records of this rollout")
			a.r.Settled = true
		case r.Phase != RolloutPaused:
			a.pause(reason)
		default:
			a.r.Reason = reason
		}
		e.step(a.r, fanout, a.r.Phase+": "+a.r.Reason)
	}
	for _, r := range e.rollouts {
		m.rollouts.Set(r)
	}
}

func (m *Machine) validateRestore(r *catalogv1.RestoreCatalog) *Refusal {
	if err := validateID("restore", r.GetId()); err != nil {
		return err
	}
	switch {
	case m.position.Epoch != "" && !m.founded:
		return refuse(ErrNotHeadquarters, "this group follows epoch %s: a catalog is restored at headquarters", m.position.Epoch)
	case m.founded && m.position.Revision > 0:
		return refuse(ErrFounded, "this catalog is at revision %d: a saved one is restored into an empty headquarters only", m.position.Revision)
	case !r.Begin && m.restoring != r.Id:
		return refuse(ErrStale, "restore %s is not under way: begin anew", r.Id)
	case m.groups.Len()+len(r.Groups) > maxGroups:
		return refuse(ErrInvalid, "more than %d groups", maxGroups)
	}
	refs := map[uint64]Ref{}
	for _, rec := range r.Records {
		if err := validateRecord(rec); err != nil {
			return err
		}
		ref := RefOf(rec)
		other, twice := refs[rec.Revision]
		if held, ok := m.atRevision(rec.Revision); ok && !r.Begin && !twice {
			other, twice = RefOf(held), true
		}
		if twice && other != ref {
			return refuse(ErrInvalid, "revision %d is that of %s and of %s: this is no catalog of headquarters", rec.Revision, other, ref)
		}
		refs[rec.Revision] = ref
	}
	for _, g := range r.Groups {
		if err := validateGroup(g); err != nil {
			return err
		}
	}
	if n := m.rollouts.Len() + len(r.Rollouts); n > 2*(maxActive+maxEnded) { // the same part may come once more
		return refuse(ErrInvalid, "%d rollouts, at most %d are kept", n, maxActive+maxEnded)
	}
	for _, x := range r.Rollouts {
		if err := validateRollout(x); err != nil {
			return err
		}
	}
	if !r.End {
		return nil
	}
	if err := validatePolicies(r.Policies); err != nil {
		return err
	}
	if r.Freeze != nil {
		if err := validateFreeze(r.Freeze); err != nil {
			return err
		}
	}
	if err := validateEpoch(r.Epoch); err != nil {
		return err
	}
	if len(r.Ancestors) == 0 {
		return refuse(ErrInvalid, "the end of a restore without the position that was saved")
	}
	if err := validateAncestors(r.Ancestors); err != nil {
		return err
	}
	last := r.Ancestors[len(r.Ancestors)-1].Position.Revision
	high := uint64(0)
	if rec, ok := m.revisions.Max(); ok && !r.Begin {
		high = rec.Revision
	}
	for _, rec := range r.Records {
		high = max(high, rec.Revision)
	}
	if high > last {
		return refuse(ErrInvalid, "a record at revision %d, beyond the saved position's %d", high, last)
	}
	return nil
}

func (s *state) atRevision(revision uint64) (rec *catalogv1.Record, ok bool) {
	s.revisions.Ascend(&catalogv1.Record{Revision: revision}, func(r *catalogv1.Record) bool {
		rec, ok = r, r.Revision == revision
		return false
	})
	return rec, ok
}
