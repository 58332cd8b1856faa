package tree

import (
	"time"

	"github.com/fanout-io/fanout/pkg/catalog"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

const (
	// TombstoneAge is how long a tombstone is kept at the least: so long a deletion can be undone.
	TombstoneAge = 7 * 24 * time.Hour
	// tombstoneYear is how long it is kept at the most, for groups and members that stay away.
	tombstoneYear = 365 * 24 * time.Hour
)

// prunableNow looks for tombstones to drop, but not often: it reads the catalog.
func (o *office) prunableNow(snap *catalog.Snapshot) uint64 {
	if now := time.Now(); now.Sub(o.looked) >= min(time.Minute, o.n.cfg.Timeouts.Tombstone) {
		o.looked, o.through = now, o.prunable(snap, now)
	}
	if o.through <= snap.Pruned() {
		return 0
	}
	return o.through
}

// prunable is the revision up to which tombstones are needed by nobody any more: they are old enough, every group below has passed them, and every member's registry has
// obeyed them; or they are a year old. 0: there is none to drop.
func (o *office) prunable(snap *catalog.Snapshot, now time.Time) uint64 {
	if snap.Position().GetEpoch() == "" || snap.Resyncing() != "" {
		return 0
	}
	passed := o.passed(snap)
	through, found := uint64(0), false
	for rec := range snap.Since(snap.Pruned()) {
		if catalog.Tombstone(rec) {
			age := now.Sub(rec.GetPublishedAt().AsTime())
			if age < o.n.cfg.Timeouts.Tombstone || rec.Revision > passed && age < tombstoneYear {
				break
			}
			found = true
		}
		if rec.Revision > snap.Position().GetRevision() {
			break
		}
		through = rec.Revision
	}
	if !found {
		return 0
	}
	return through
}

// passed is the revision up to which every group below, and every member's registry, is known to have followed. Whoever is not heard of now has passed nothing.
func (o *office) passed(snap *catalog.Snapshot) uint64 {
	least := snap.Position().GetRevision()
	for g := range snap.Groups() {
		if !below(g.Path, o.n.cfg.Group) {
			continue
		}
		h, live := o.table.group(g.Path)
		if !live || h.GetPosition().GetEpoch() != snap.Position().GetEpoch() {
			return 0
		}
		least = min(least, h.GetPosition().GetRevision())
	}
	for _, s := range o.n.groupSites(snap) {
		h, live := o.table.site(s.Site)
		switch {
		case s.RegistryType == witness:
		case !live:
			return 0
		case h.GetPendingFrom() > 0:
			least = min(least, h.GetRevision(), h.GetPendingFrom()-1)
		default:
			least = min(least, h.GetRevision())
		}
	}
	return least
}

// group returns what is known of a group, and whether it is heard of now.
func (t *table) group(path string) (*treev1.GroupHealth, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.groups[path]
	if e == nil || e.gone || e.msg == nil {
		return nil, false
	}
	return e.msg.(*treev1.GroupHealth), e.via != nil && e.via.live
}
