package catalog

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// edit is a change under way that may touch several records and rollouts. It works on copies, so that a change that is refused half-way alters nothing.
type edit struct {
	m *Machine
	// by is what the records that change say of who published them.
	by       string
	records  map[Ref]*catalogv1.Record
	rollouts map[string]*catalogv1.Rollout
	// anew are records that get a revision though nothing in them changes.
	anew map[Ref]bool
	// lost are digests that lost against the record that is committed first, by a person's word: that makes it another revision.
	lost []string
}

func (m *Machine) edit(by string) *edit {
	return &edit{m: m, by: by, records: map[Ref]*catalogv1.Record{}, rollouts: map[string]*catalogv1.Rollout{}, anew: map[Ref]bool{}}
}

// record returns a copy of a record, of which fields and releases, but not what these point to, may be changed; nil: there is none.
func (e *edit) record(ref Ref) *catalogv1.Record {
	if rec, ok := e.records[ref]; ok {
		return rec
	}
	held, ok := e.m.get(ref)
	if !ok {
		return nil
	}
	rec := copyRecord(held)
	rec.Releases = make([]*catalogv1.Release, len(held.Releases))
	for i, r := range held.Releases {
		rec.Releases[i] = copyRelease(r)
	}
	e.records[ref] = rec
	return rec
}

// rollout returns a rollout that may be changed; nil: there is none.
func (e *edit) rollout(id string) *catalogv1.Rollout {
	if r, ok := e.rollouts[id]; ok {
		return r
	}
	held := e.m.rollout(id)
	if held == nil {
		return nil
	}
	r := proto.CloneOf(held)
	e.rollouts[id] = r
	return r
}

// look returns a rollout as this edit leaves it, to be read only; nil: there is none.
func (e *edit) look(id string) *catalogv1.Rollout {
	if r, ok := e.rollouts[id]; ok {
		return r
	}
	return e.m.rollout(id)
}

// commit puts in force what changed. Each record gets a revision of its own: first's is the next one, the others' follow by ref.
func (e *edit) commit(first Ref) []Ref {
	e.forget()
	refs := slices.SortedFunc(maps.Keys(e.records), func(a, b Ref) int {
		if a == first || b == first {
			return cmp.Compare(b2i(b == first), b2i(a == first))
		}
		return a.Compare(b)
	})
	var moved []Ref
	for _, ref := range refs {
		rec := e.records[ref]
		held, _ := e.m.get(ref)
		var lost []string
		if ref == first {
			lost = e.lost
		}
		if proto.Equal(held, rec) && len(lost) == 0 && !e.anew[ref] {
			continue
		}
		if ref != first {
			// A rollout's doing: no registry showed it of its own accord, and none may take it for its own push.
			rec.Traceparent, rec.Origin = "", ""
		}
		if !Tombstone(rec) {
			rec.RemovalTraceparent = ""
		}
		rec.Revision = e.m.position.Revision + 1
		rec.PublishedAt, rec.PublishedBy = e.m.now(), e.by
		rec.History = nextHistory(held, rec, lost)
		rec.MaxFreeze = e.m.maxFreeze(ref.Repository)
		if len(rec.Releases) == 0 {
			rec.Releases = nil
		}
		e.m.commit(rec)
		moved = append(moved, ref)
	}
	for _, r := range e.rollouts {
		if r == nil {
			continue
		}
		for _, s := range slices.Backward(r.Steps) {
			if s.Phase != "" || s.At.AsTime().Before(e.m.clock) {
				break
			}
			s.Phase = r.Phase // what it was when the change was whole
		}
		e.m.rollouts.Set(r)
	}
	return moved
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// forget settles and drops the rollouts that ended first, where too many are remembered.
func (e *edit) forget() {
	var ended []*catalogv1.Rollout
	note := func(r *catalogv1.Rollout) {
		if Ended(r) {
			ended = append(ended, r)
		}
	}
	e.m.rollouts.Scan(func(r *catalogv1.Rollout) bool {
		if _, touched := e.rollouts[r.Id]; !touched {
			note(r)
		}
		return true
	})
	for _, r := range e.rollouts {
		note(r)
	}
	if len(ended) <= maxEnded {
		return
	}
	slices.SortFunc(ended, func(a, b *catalogv1.Rollout) int {
		return cmp.Or(a.Ended.AsTime().Compare(b.Ended.AsTime()), strings.Compare(a.Id, b.Id))
	})
	for _, r := range ended[:len(ended)-maxEnded] {
		e.settle(r.Id)
		e.rollouts[r.Id] = nil
		e.m.rollouts.Delete(r)
	}
}

// settle takes over for good what an ended rollout released: it can't be rolled back any more, and what lies under its releases is given up. No group that its plan
// knew comes to show anything else.
func (e *edit) settle(id string) {
	r := e.look(id)
	if r == nil || r.Settled || !Ended(r) {
		return
	}
	r = e.rollout(id)
	r.Settled = true
	r.Version++
	for _, it := range r.Items {
		if rec := e.record(itemRef(it)); rec != nil {
			e.fold(rec, r)
		}
	}
}

// settleAll settles every ended rollout that has a release in a record.
func (e *edit) settleAll(rec *catalogv1.Record) {
	for _, rel := range slices.Clone(rec.GetReleases()) {
		e.settle(rel.Rollout)
	}
}

// fold makes the release of a settled rollout the base where every group that its plan knew shows it, and else frees it from what lies under it.
func (e *edit) fold(rec *catalogv1.Record, r *catalogv1.Rollout) {
	i := slices.IndexFunc(rec.Releases, func(rel *catalogv1.Release) bool { return rel.Rollout == r.Id })
	if i < 0 {
		return
	}
	rel := rec.Releases[i]
	for j := range i { // so that those up to i have no group in common
		for _, over := range rec.Releases[j+1 : i+1] {
			rec.Releases[j].Groups = without(rec.Releases[j].Groups, over.Groups)
		}
	}
	if r.Phase == RolloutSucceeded && r.GetPlan().GetAllGroups() && len(rel.Groups) == len(r.Groups) {
		rebase(rec, rel)
		rel.Groups = nil
	}
	for _, under := range rec.Releases[:i] {
		if sameTarget(under.Target, rel.Target) && len(rel.Groups) > 0 {
			rel.Groups = merge(rel.Groups, under.Groups)
			rel.Referrers = unite(rel.Referrers, under.Referrers)
			under.Groups = nil
		}
	}
	e.tidy(rec)
}

// tidy removes the releases of ended rollouts, and of pushes, that make no difference: those that name no group, and those of the base's target over nothing else.
func (e *edit) tidy(rec *catalogv1.Record) {
	base := rec.Target
	if rec.Deleted {
		base = nil
	}
	for i := 0; i < len(rec.Releases); {
		rel := rec.Releases[i]
		over := slices.ContainsFunc(rec.Releases[:i], func(under *catalogv1.Release) bool { return overlap(under.Groups, rel.Groups) })
		r := e.look(rel.Rollout)
		switch {
		case r != nil && !(Ended(r) && (r.Settled || len(rel.Groups) == 0)):
			i++ // it may be rolled back
			continue
		case len(rel.Groups) == 0:
		case sameTarget(rel.Target, base) && !over:
			rec.Referrers = unite(rec.Referrers, rel.Referrers)
		default:
			i++
			continue
		}
		rec.Releases = slices.Delete(rec.Releases, i, i+1)
	}
}

// rebase makes a release's target the base.
func rebase(rec *catalogv1.Record, rel *catalogv1.Release) {
	switch {
	case rel.Target == nil:
		rec.Deleted = true
	case !rec.Deleted && sameTarget(rec.Target, rel.Target):
		rec.Referrers = unite(rec.Referrers, rel.Referrers)
	default:
		rec.Target, rec.Referrers, rec.Deleted = rel.Target, rel.Referrers, false
	}
}

func sameTarget(a, b *catalogv1.Descriptor) bool { return a.GetDigest() == b.GetDigest() }

// without returns what of a sorted list is not in another.
func without(list, out []string) []string {
	if !overlap(list, out) {
		return list
	}
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool {
		_, found := slices.BinarySearch(out, s)
		return found
	})
}

// merge returns the union of two sorted lists, sorted.
func merge(a, b []string) []string { return sortedOnce(slices.Concat(a, b)) }

// overlap says whether two sorted lists have anything in common.
func overlap(a, b []string) bool {
	for i, j := 0, 0; i < len(a) && j < len(b); {
		switch c := strings.Compare(a[i], b[j]); {
		case c == 0:
			return true
		case c < 0:
			i++
		default:
			j++
		}
	}
	return false
}
