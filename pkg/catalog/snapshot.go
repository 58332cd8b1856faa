package catalog

import (
	"bytes"
	"iter"
	"slices"
	"time"

	"github.com/tidwall/btree"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// Snapshot is the state at one moment. It never changes and is safe for concurrent use. What it returns is shared: read only.
type Snapshot struct {
	state
	sums *btree.BTreeG[sumAt]
}

// Position in headquarters' catalog. Its epoch is empty when nothing was founded or received yet.
func (s *Snapshot) Position() *catalogv1.Position { return s.position }

// Ancestors of the position's epoch, oldest first.
func (s *Snapshot) Ancestors() []*catalogv1.Ancestor { return s.ancestors }

// Clock is the machine's clock: the latest time of any command; zero before the first.
func (s *Snapshot) Clock() time.Time { return s.clock }

// Founded says whether the catalog was founded here: the group is headquarters.
func (s *Snapshot) Founded() bool { return s.founded }

// Resyncing returns the ID of the resync under way, or "".
func (s *Snapshot) Resyncing() string { return s.resync }

// Restoring says that a saved catalog is being taken over, and not whole yet.
func (s *Snapshot) Restoring() bool { return s.restoring != "" }

// Accepted is the epoch that an operator accepted and that has not come whole yet; "" when there is none.
func (s *Snapshot) Accepted() string { return s.accepted }

// EpochOf is the epoch in which the revision of a record counts that came from this catalog, now or earlier; "" when that is not known: while an accepted epoch
// replaces what is held, and for records that are no longer held because one did.
func (s *Snapshot) EpochOf(rec *catalogv1.Record) string {
	if s.founded {
		return s.position.Epoch // headquarters' epoch never changes, and what it answers may be newer than what is seen here
	}
	held, ok := s.get(RefOf(rec))
	switch {
	case !ok, s.outdated(RefOf(rec)), held.Revision < rec.GetRevision(), held.Revision == rec.GetRevision() && !bytes.Equal(held.Sum, rec.GetSum()):
		return ""
	}
	return s.position.Epoch
}

// Demand for which the position's scope was given; nil at headquarters, and where it is not known.
func (s *Snapshot) Demand() *catalogv1.Scope { return s.demand }

// Pruned is the revision up to which tombstones were dropped.
func (s *Snapshot) Pruned() uint64 { return s.pruned }

// Len is the number of records, tombstones included.
func (s *Snapshot) Len() int { return s.records.Len() }

// Live is the number of records that are no tombstones.
func (s *Snapshot) Live() int { return s.live }

// Get returns the record of a ref; it may be a tombstone.
func (s *Snapshot) Get(ref Ref) (*catalogv1.Record, bool) { return s.get(ref) }

// Records yields all records by ref, tombstones included.
func (s *Snapshot) Records() iter.Seq[*catalogv1.Record] {
	return func(yield func(*catalogv1.Record) bool) { s.records.Scan(yield) }
}

// Repository yields the records of one repository by tag, tombstones included.
func (s *Snapshot) Repository(repo string) iter.Seq[*catalogv1.Record] {
	return func(yield func(*catalogv1.Record) bool) {
		s.records.Ascend(&catalogv1.Record{Repository: repo}, func(rec *catalogv1.Record) bool {
			return rec.Repository == repo && yield(rec)
		})
	}
}

// Since yields the records with a revision higher than the one given, in revision order, each ref once, tombstones included.
func (s *Snapshot) Since(revision uint64) iter.Seq[*catalogv1.Record] {
	return func(yield func(*catalogv1.Record) bool) {
		if revision+1 == 0 {
			return
		}
		s.revisions.Ascend(&catalogv1.Record{Revision: revision + 1}, yield)
	}
}

// Members of the group, by site, those left out that were removed.
func (s *Snapshot) Members() []*catalogv1.Member {
	if !slices.ContainsFunc(s.members, (*catalogv1.Member).GetRemoved) {
		return s.members
	}
	return slices.DeleteFunc(slices.Clone(s.members), (*catalogv1.Member).GetRemoved)
}

// Member returns what is remembered of a site, be it a member or one that was removed; nil when that is nothing.
func (s *Snapshot) Member(site string) *catalogv1.Member {
	if i, found := slices.BinarySearchFunc(s.members, site, compareMember); found {
		return s.members[i]
	}
	return nil
}

// Settings of the group; nil until they are set.
func (s *Snapshot) Settings() *catalogv1.GroupSettings { return s.settings }

// Groups yields the groups below, by path.
func (s *Snapshot) Groups() iter.Seq[*catalogv1.Group] {
	return func(yield func(*catalogv1.Group) bool) { s.groups.Scan(yield) }
}

// Group returns a group below by its path.
func (s *Snapshot) Group(path string) (*catalogv1.Group, bool) {
	return s.groups.Get(&catalogv1.Group{Path: path})
}

// SumAt returns the sum after a revision, if it is still known: that of the position, of recent revisions, and of every revision at which a record stands.
func (s *Snapshot) SumAt(revision uint64) ([]byte, bool) {
	if revision > s.position.Revision || s.position.Epoch == "" {
		return nil, false
	}
	if revision == s.position.Revision {
		return s.position.Sum, true
	}
	if at, ok := s.sums.Get(sumAt{revision: revision}); ok {
		return at.sum, true
	}
	var sum []byte
	s.revisions.Ascend(&catalogv1.Record{Revision: revision}, func(rec *catalogv1.Record) bool {
		if rec.Revision == revision {
			sum = rec.Sum
		}
		return false
	})
	return sum, sum != nil
}

// onLine judges a child's position, scopes aside.
func (s *Snapshot) onLine(child *catalogv1.Position) Relation {
	switch {
	case s.position.Epoch == "" || s.resync != "":
		return RelationAhead // nothing whole is here yet that could be sent, or be foreign
	case child.GetEpoch() == "":
		return RelationFollows
	case !Continues(s.ancestors, s.position, child):
		return RelationForeign
	case child.Revision > s.position.Revision:
		return RelationAhead
	}
	// The sum tells two catalogs of one epoch apart: one that was restored from a backup and written since.
	if sum, known := s.SumAt(child.Revision); known && !bytes.Equal(sum, child.Sum) && len(child.Sum) > 0 {
		return RelationForeign
	}
	return RelationFollows
}
