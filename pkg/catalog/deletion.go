package catalog

import (
	"iter"
	"time"

	"google.golang.org/protobuf/proto"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// A tag that vanishes from a registry of headquarters may be one that somebody deleted, or one of many that an accident took. So its deletion is noted first, and travels only
// when it has been so for a while and has not turned out to be one of too many. Then all that are listed are held, until an operator lets each travel, as a deletion of his own,
// or has it put back.

const (
	// DeletionGrace is how long a noted deletion waits for others to be seen beside it.
	DeletionGrace = 5 * time.Second
	// deletionWindow is how long one that travelled is counted with those that come.
	deletionWindow = time.Hour
	// deletionsFree is how many may always travel within the window.
	deletionsFree = 10
	// deletionsShare: of so many live refs one may travel within the window.
	deletionsShare = 20
	// maxDeletions bounds the list.
	maxDeletions = 1 << 20
)

func lessDeletion(a, b *catalogv1.Deletion) bool {
	if c := (Ref{a.Repository, a.Tag}).Compare(Ref{b.Repository, b.Tag}); c != 0 {
		return c < 0
	}
	return a.Site < b.Site
}

func deletionAt(ref Ref, site string) *catalogv1.Deletion {
	return &catalogv1.Deletion{Repository: ref.Repository, Tag: ref.Tag, Site: site}
}

// noteDeletion lists a deletion. It changes no record.
func (m *Machine) noteDeletion(n *catalogv1.NoteDeletion) *Refusal {
	if !m.founded {
		return refuse(ErrNotHeadquarters, "deletions are listed at headquarters only")
	}
	ref := Ref{n.GetRepository(), n.GetTag()}
	d := deletionAt(ref, n.GetSite())
	d.NotedAt = m.now()
	if err := validateDeletion(d); err != nil {
		return err
	}
	held, ok := m.get(ref)
	switch {
	case !ok || Tombstone(held):
		return refuse(ErrUnchanged, "%s is not published", ref)
	case held.Revision != n.Expect:
		return refuse(ErrConflict, "%s: the record is at revision %d, not %d", ref, held.Revision, n.Expect)
	case m.deletions.Len() >= maxDeletions:
		return refuse(ErrInvalid, "%d deletions are listed already: allow or restore some", m.deletions.Len())
	}
	if _, listed := m.deletions.Get(d); listed {
		return refuse(ErrUnchanged, "the deletion of %s at %s is listed", ref, n.Site)
	}
	m.deletions.Set(d)
	if vanished, travelled := m.vanished(), m.travelled(); vanished+travelled > max(deletionsFree, (m.live+travelled)/deletionsShare) {
		m.holdDeletions()
	}
	return nil
}

// vanished counts the refs of which a deletion is listed.
func (s *state) vanished() (n int) {
	var last Ref
	s.deletions.Scan(func(d *catalogv1.Deletion) bool {
		if ref := (Ref{d.Repository, d.Tag}); ref != last {
			n, last = n+1, ref
		}
		return true
	})
	return n
}

// travelled counts the tombstones that follow from what a registry no longer showed, and that are not older than the window. One that a person asked for has no origin.
func (s *state) travelled() (n int) {
	since := s.clock.Add(-deletionWindow)
	s.revisions.Reverse(func(rec *catalogv1.Record) bool {
		if rec.PublishedAt.AsTime().Before(since) {
			return false
		}
		if Tombstone(rec) && rec.Origin != "" {
			n++
		}
		return true
	})
	return n
}

// holdDeletions holds all that are listed and not to be put back.
func (m *Machine) holdDeletions() {
	var free []*catalogv1.Deletion
	m.deletions.Scan(func(d *catalogv1.Deletion) bool {
		if !d.Held {
			free = append(free, d)
		}
		return true
	})
	for _, d := range free {
		d = proto.CloneOf(d)
		d.Held = true
		m.deletions.Set(d)
	}
}

// mayTravel says whether the deletion of a ref that a site observed may become a tombstone.
func (m *Machine) mayTravel(ref Ref, site string) *Refusal {
	d, listed := m.deletions.Get(deletionAt(ref, site))
	switch {
	case !listed:
		return refuse(ErrHeld, "the deletion of %s at %s was not noted", ref, quote(site))
	case d.Restore:
		return refuse(ErrHeld, "%s is to be put back at %s", ref, site)
	case d.Held:
		return refuse(ErrHeld, "the deletion of %s at %s is one of too many: 'fanoutctl deletions' lists them", ref, site)
	case m.clock.Before(d.NotedAt.AsTime().Add(DeletionGrace)):
		return refuse(ErrHeld, "the deletion of %s at %s was noted less than %s ago", ref, site, DeletionGrace)
	}
	return nil
}

func (m *Machine) settleDeletion(s *catalogv1.SettleDeletion) *Refusal {
	if !m.founded {
		return refuse(ErrNotHeadquarters, "deletions are settled at headquarters only")
	}
	ref := Ref{s.GetRepository(), s.GetTag()}
	if !s.GetRestore() {
		if m.forgetDeletions(ref, s.GetSite()) == 0 {
			return refuse(ErrUnchanged, "no such deletion of %s is listed", quote(ref.String()))
		}
		return nil
	}
	var marked []*catalogv1.Deletion
	for d := range m.deletionsOf(ref) {
		if !d.Restore && (s.GetSite() == "" || s.GetSite() == d.Site) {
			d = proto.CloneOf(d)
			d.Restore = true
			marked = append(marked, d)
		}
	}
	if len(marked) == 0 {
		return refuse(ErrUnchanged, "no such deletion of %s is listed that is not to be put back already", quote(ref.String()))
	}
	for _, d := range marked {
		m.deletions.Set(d)
	}
	return nil
}

// forgetDeletions takes those of a ref off the list, all or those at a site, and counts them.
func (m *Machine) forgetDeletions(ref Ref, site string) int {
	var gone []*catalogv1.Deletion
	for d := range m.deletionsOf(ref) {
		if site == "" || site == d.Site {
			gone = append(gone, d)
		}
	}
	for _, d := range gone {
		m.deletions.Delete(d)
	}
	return len(gone)
}

func validateDeletion(d *catalogv1.Deletion) *Refusal {
	ref := Ref{d.GetRepository(), d.GetTag()}
	if err := ref.validate(); err != nil {
		return err
	}
	if err := validateSite(d.GetSite()); err != nil {
		return err
	}
	return validateTime("deletion of "+ref.String(), d.NotedAt)
}

// AllDeletions yields the deletions that have not travelled, by ref and site.
func (s *Snapshot) AllDeletions() iter.Seq[*catalogv1.Deletion] {
	return func(yield func(*catalogv1.Deletion) bool) { s.deletions.Scan(yield) }
}

// Deletion returns that of a ref at a site; nil when none is listed.
func (s *Snapshot) Deletion(ref Ref, site string) *catalogv1.Deletion {
	d, _ := s.deletions.Get(deletionAt(ref, site))
	return d
}

func (s *state) deletionsOf(ref Ref) iter.Seq[*catalogv1.Deletion] {
	return func(yield func(*catalogv1.Deletion) bool) {
		s.deletions.Ascend(deletionAt(ref, ""), func(d *catalogv1.Deletion) bool {
			return d.Repository == ref.Repository && d.Tag == ref.Tag && yield(d)
		})
	}
}
