package catalog

import (
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// atRoot checks what all changes of rollouts have in common.
func (m *Machine) atRoot() *Refusal {
	switch {
	case m.position.Epoch == "":
		return refuse(ErrNoEpoch, "nothing was founded here")
	case !m.founded:
		return refuse(ErrNotHeadquarters, "rollouts are headquarters' own")
	}
	return nil
}

func underRollout(ref Ref, r *catalogv1.Rollout) *Refusal {
	return refuse(ErrUnderRollout, "%s is under rollout %s, which is %s: wait for its end, or abort it", ref, r.Id, r.Phase)
}

// startRollout starts a promotion. From here on its content is wanted everywhere, and no tag has moved.
func (m *Machine) startRollout(s *catalogv1.StartRollout, actor string) ([]Ref, *Refusal) {
	if err := m.atRoot(); err != nil {
		return nil, err
	}
	given := s.GetRollout()
	if err := validateStart(given, actor); err != nil {
		return nil, err
	}
	if m.rollout(given.Id) != nil {
		return nil, refuse(ErrUnchanged, "rollout %s was started already", given.Id)
	}
	e := m.edit("rollout/" + given.Id)
	if err := e.supersede(given, s.Supersede, actor); err != nil {
		return nil, err
	}
	r := newRollout(given, actor)
	r.Started = e.now()
	e.rollouts[r.Id] = r
	for i, it := range r.Items {
		if err := e.stage(r, i, it); err != nil {
			return nil, err
		}
	}
	e.step(r, actor, "started")
	e.advance(r, observed{})
	return e.commit(Ref{}), nil
}

// supersede ends the rollouts under which the refs of a new one are, where that is allowed.
func (e *edit) supersede(given *catalogv1.Rollout, allowed bool, actor string) *Refusal {
	others := map[string]bool{}
	for _, it := range given.Items {
		held, _ := e.m.get(itemRef(it))
		r := e.m.active(held)
		if r == nil {
			continue
		}
		if !allowed {
			return underRollout(itemRef(it), r)
		}
		others[r.Id] = true
	}
	going := 0
	e.m.rollouts.Scan(func(r *catalogv1.Rollout) bool {
		if !Ended(r) {
			going++
		}
		return true
	})
	if going-len(others) >= maxActive {
		return refuse(ErrInvalid, "%d rollouts go on already: end some", going)
	}
	for _, id := range slices.Sorted(maps.Keys(others)) {
		r := e.rollout(id)
		r.SupersededBy = given.Id
		r.Version++
		e.step(r, actor, "superseded by "+given.Id)
		e.end(r, RolloutAborted, "superseded by "+given.Id)
	}
	return nil
}

// newRollout returns a rollout of which nothing has happened yet.
func newRollout(given *catalogv1.Rollout, actor string) *catalogv1.Rollout {
	r := &catalogv1.Rollout{Id: given.Id, Plan: proto.CloneOf(given.Plan), Phase: RolloutPending, Actor: actor, Version: 1, Traceparent: given.Traceparent}
	for _, it := range given.Items {
		it = proto.CloneOf(it)
		it.Referrers = unite(nil, it.Referrers)
		r.Items = append(r.Items, it)
	}
	for i, w := range r.Plan.Waves {
		slices.Sort(w.Groups)
		r.Waves = append(r.Waves, &catalogv1.RolloutWave{Name: w.Name, Phase: WavePending, Soaked: durationpb.New(0)})
		for _, g := range w.Groups {
			r.Groups = append(r.Groups, &catalogv1.RolloutGroup{Group: g, Wave: uint32(i), Phase: GroupPending, Before: make([]string, len(r.Items))})
		}
	}
	return r
}

// stage gives the record of an item a release that names no group yet.
func (e *edit) stage(r *catalogv1.Rollout, i int, it *catalogv1.RolloutItem) *Refusal {
	ref := itemRef(it)
	rec := e.record(ref)
	if rec == nil {
		rec = &catalogv1.Record{Repository: ref.Repository, Tag: ref.Tag, Target: it.Target, Deleted: true}
		e.records[ref] = rec
	}
	e.settleAll(rec)
	for _, g := range r.Groups {
		g.Before[i] = shown(rec, g.Group)
	}
	referrers := it.Referrers
	for _, c := range Content(rec) {
		if sameTarget(c.Descriptor, it.Target) {
			referrers = unite(c.Referrers, referrers)
		}
	}
	rec.Releases = append(rec.Releases, &catalogv1.Release{Target: it.Target, Referrers: referrers, Rollout: r.Id, Traceparent: r.Traceparent})
	return e.bounded(ref, rec, r)
}

// shown is the digest that a group is to show; "": nothing.
func shown(rec *catalogv1.Record, group string) string {
	if rel := releaseOf(rec, group); rel != nil {
		return rel.Target.GetDigest()
	}
	if rec.GetDeleted() {
		return ""
	}
	return rec.GetTarget().GetDigest()
}

// bounded refuses a record that a rollout, which may come to name all groups of its plan, would make too large. A place is left for a push, and some for what goes to all groups,
// for that makes room.
func (e *edit) bounded(ref Ref, rec *catalogv1.Record, r *catalogv1.Rollout) *Refusal {
	kept, paths := 0, 0
	for _, rel := range rec.Releases {
		if rel.Rollout != "" {
			kept++
		}
		for _, g := range rel.Groups {
			paths += len(g)
		}
	}
	for _, g := range r.Groups {
		paths += len(g.Group)
	}
	most := maxReleases - 4
	if r.Plan.AllGroups {
		most = maxReleases - 1
	}
	if kept > most || paths > maxReleasePaths-maxWord {
		return refuse(ErrInvalid, "%s shows %d different things at different groups, which is all that can be kept: promote one of them to all groups first", ref, kept-1)
	}
	return tooManyReferrers(ref, rec)
}

func tooManyReferrers(ref Ref, rec *catalogv1.Record) *Refusal {
	if n := countReferrers(rec); n > maxReferrers {
		return refuse(ErrInvalid, "%s: %d referrers, at most %d can be kept: delete some at headquarters and publish under a new tag", ref, n, maxReferrers)
	}
	return nil
}
