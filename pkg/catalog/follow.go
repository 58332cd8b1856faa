package catalog

import (
	"bytes"

	"google.golang.org/protobuf/proto"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// resyncScope is what the position's scope begins with while a resync is unfinished.
const resyncScope = "resync:"

// imports takes over what a parent sent. Everything is checked before anything is changed.
func (m *Machine) imports(im *catalogv1.Import) ([]Ref, *Refusal) {
	if m.founded || m.restoring != "" {
		return nil, refuse(ErrFounded, "headquarters imports nothing")
	}
	if err := validateImport(im); err != nil {
		return nil, err
	}
	if m.mayReplace(im) {
		return m.importResync(im), nil
	}
	if !Continues(im.Ancestors, im.Position, m.position) {
		return nil, refuse(ErrForeign, "epoch %s, offered up to revision %d, does not continue epoch %s at revision %d, which is held",
			im.Position.Epoch, im.Position.Revision, m.position.Epoch, m.position.Revision)
	}
	if im.Resync != "" {
		return m.importResync(im), nil
	}
	if err := m.validateOrdinary(im); err != nil {
		return nil, err
	}
	refs := m.take(im.Records, nil)
	m.adoptLine(im)
	// The same batch may come twice, from an old root and a new one: the position is where the further of them left it.
	if im.Position.Epoch != m.position.Epoch || im.Position.Revision >= m.position.Revision {
		m.moveTo(proto.CloneOf(im.Position))
		m.demand = demandOf(im)
	}
	return refs, nil
}

// mayReplace says whether an import is of a resync that brings the accepted epoch in place of what is held.
func (m *Machine) mayReplace(im *catalogv1.Import) bool {
	return im.Resync != "" && m.accepted != "" && im.Position.Epoch == m.accepted
}

func demandOf(im *catalogv1.Import) *catalogv1.Scope {
	if im.Demand == nil {
		return nil
	}
	return Union(im.Demand)
}

// acceptEpoch lets the next resync bring an epoch that what is held does not lead to. Accepting the epoch that is held takes an earlier word back.
func (m *Machine) acceptEpoch(epoch string) *Refusal {
	if m.founded || m.restoring != "" {
		return refuse(ErrFounded, "headquarters follows no epoch but its own")
	}
	if err := validateEpoch(epoch); err != nil {
		return err
	}
	if epoch == m.position.Epoch && !m.replacing {
		epoch = ""
	}
	m.accepted = epoch
	return nil
}

// validateOrdinary checks what an import that continues from the position must hold.
func (m *Machine) validateOrdinary(im *catalogv1.Import) *Refusal {
	held, p := m.position, im.Position
	switch {
	case m.resync != "":
		return refuse(ErrResync, "resync %s is unfinished: attach again with the position held", m.resync)
	case held.Epoch == "":
		return nil
	case held.Epoch != p.Epoch && p.Revision < held.Revision:
		return refuse(ErrStale, "the parent is at revision %[2]d of epoch %[1]s, held is %[3]d: it must catch up first", p.Epoch, p.Revision, held.Revision)
	case held.Scope != p.Scope:
		return refuse(ErrResync, "the scope changed: attach again with the position held")
	case held.Epoch == p.Epoch && held.Revision == p.Revision && !bytes.Equal(held.Sum, p.Sum):
		return refuse(ErrForeign, "epoch %s has two histories up to revision %d", p.Epoch, p.Revision)
	}
	return nil
}

// importResync takes over one part of a resync.
func (m *Machine) importResync(im *catalogv1.Import) []Ref {
	if m.resync != im.Resync {
		// A new run replaces an unfinished one: what that had named says nothing about what this parent has. Records that it brought stay
		// until this one's end, for they are no older than what it may name.
		m.resync, m.resyncSeen = im.Resync, newSeen()
	}
	if m.mayReplace(im) && im.Position.Epoch != m.position.Epoch {
		// From here on what is held counts for nothing but to be shown until it is replaced.
		m.replacing = true
		m.position = &catalogv1.Position{}
		m.sums.Clear()
	}
	m.adoptLine(im)
	refs := m.take(im.Records, func(ref Ref) { m.resyncSeen.Set(ref) })
	if !im.End {
		// The epoch is taken at once, since its records are. The revision stays: what was received up to there is still so.
		m.position = &catalogv1.Position{Epoch: im.Position.Epoch, Revision: m.position.Revision, Sum: m.position.Sum, Scope: resyncScope + im.Resync}
		return refs
	}
	var gone []*catalogv1.Record
	m.records.Scan(func(rec *catalogv1.Record) bool {
		if _, seen := m.resyncSeen.Get(RefOf(rec)); !seen {
			gone = append(gone, rec)
		}
		return true
	})
	for _, rec := range gone {
		m.drop(rec)
		refs = append(refs, RefOf(rec))
	}
	m.resync, m.resyncSeen = "", newSeen()
	if m.replacing {
		m.accepted, m.replacing, m.pruned = "", false, 0
	}
	m.pruned = max(m.pruned, min(im.Pruned, im.Position.Revision))
	m.moveTo(proto.CloneOf(im.Position))
	m.demand = demandOf(im)
	return refs
}

// adoptLine takes over the ancestors, which come with the first import of an epoch.
func (m *Machine) adoptLine(im *catalogv1.Import) {
	if len(im.Ancestors) == 0 && im.Position.Epoch == m.position.Epoch {
		return
	}
	line := make([]*catalogv1.Ancestor, len(im.Ancestors))
	for i, a := range im.Ancestors {
		line[i] = proto.CloneOf(a)
	}
	m.ancestors = line
}

// take applies each record that is newer than the one held, and calls named for every one. Records of an epoch that is being replaced are older than any.
func (m *Machine) take(records []*catalogv1.Record, named func(Ref)) []Ref {
	var refs []Ref
	for _, rec := range records {
		ref := RefOf(rec)
		if held, ok := m.get(ref); ok && held.Revision >= rec.Revision && !m.outdated(ref) {
			if named != nil {
				named(ref)
			}
			continue
		}
		if named != nil {
			named(ref)
		}
		m.put(proto.CloneOf(rec))
		refs = append(refs, ref)
	}
	return refs
}

// Continues says whether a child's position lies on the line that leads to current: its ancestors and the epoch itself. Line are the ancestors of
// current's epoch, oldest first. A position that is empty lies on every line. A position further on in current's own epoch lies on it too: a parent
// may be behind its child for a while. Sums are not compared beyond the ancestors; see Snapshot.Relation.
func Continues(line []*catalogv1.Ancestor, current *catalogv1.Position, child *catalogv1.Position) bool {
	if child.GetEpoch() == "" || child.GetEpoch() == current.GetEpoch() {
		return true
	}
	for _, a := range line {
		left := a.GetPosition()
		if left.GetEpoch() != child.GetEpoch() {
			continue
		}
		if child.GetRevision() == left.GetRevision() {
			return len(child.GetSum()) == 0 || len(left.GetSum()) == 0 || bytes.Equal(child.GetSum(), left.GetSum())
		}
		return child.GetRevision() < left.GetRevision()
	}
	return false
}

// Relation is how a child's position stands to this catalog.
type Relation int

// The relations.
const (
	// RelationForeign: the position is not on this catalog's line. Nothing is sent.
	RelationForeign Relation = iota
	// RelationAhead: the position is further on than what is held here, or what is held is not whole because of a resync; the child waits.
	RelationAhead
	// RelationResync: the position is on the line but another scope was in force: everything in scope is sent anew.
	RelationResync
	// RelationFollows: what came after the position is sent.
	RelationFollows
)

// String returns the relation in a word.
func (r Relation) String() string {
	switch r {
	case RelationAhead:
		return "ahead"
	case RelationResync:
		return "resync"
	case RelationFollows:
		return "follows"
	}
	return "foreign"
}

// outdated: the record of a ref is of the epoch that is being replaced. What the resync named is of the new one.
func (s *state) outdated(ref Ref) bool {
	if !s.replacing {
		return false
	}
	_, seen := s.resyncSeen.Get(ref)
	return !seen
}

// prune drops tombstones up to a revision.
func (m *Machine) prune(through uint64) ([]Ref, *Refusal) {
	switch {
	case m.position.Epoch == "" || m.resync != "":
		return nil, refuse(ErrNoEpoch, "nothing whole is held that could be pruned")
	case through > m.position.Revision:
		return nil, refuse(ErrInvalid, "pruning through revision %d, the last one is %d", through, m.position.Revision)
	case through <= m.pruned:
		return nil, refuse(ErrUnchanged, "pruned through revision %d already", m.pruned)
	}
	var old []*catalogv1.Record
	m.revisions.Scan(func(rec *catalogv1.Record) bool {
		if rec.Revision <= through && Tombstone(rec) {
			old = append(old, rec)
		}
		return rec.Revision <= through
	})
	refs := make([]Ref, 0, len(old))
	for _, rec := range old {
		m.drop(rec)
		refs = append(refs, RefOf(rec))
	}
	m.pruned = through
	return refs, nil
}
