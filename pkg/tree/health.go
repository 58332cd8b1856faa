package tree

import (
	"sync"
	"time"

	"github.com/tidwall/btree"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// Bounds of health.
const (
	maxPending       = 1000      // pending refs of one site
	maxSourcePending = 200_000   // pending refs that one child may report
	maxSourceSites   = 20_000    // sites that one child may report
	maxSourceGroups  = 20_000    // groups, likewise
	maxGone          = 20_000    // removals that are remembered for those who follow
	maxUpdateItems   = 2000      // entries in one message
	maxUpdateBytes   = 512 << 10 // likewise
	maxReason        = 2 << 10
	maxWord          = 512

	unreachable = "unreachable"
	unknown     = "unknown"
)

// source is somebody who tells of health: this site, a member, or a child group.
type source struct {
	group string // it may speak of this group and those below
	site  string // if set: of this site of the group alone
	// The rest is guarded by the table's lock.
	live    bool
	contact time.Time
	pending int
	sites   int
	groups  int
}

type entryKind uint8

const (
	groupEntry entryKind = iota
	siteEntry
	pendingEntry
)

// entry is one fact. Its message is replaced, never changed, so it may be handed out.
type entry struct {
	seq  uint64
	kind entryKind
	name string // of the group or site
	ref  string // pending only: "repository:tag"
	msg  proto.Message
	via  *source
	gone bool
}

// table holds health by key, each entry with the sequence number of its last change, so that "what changed since" is a range read and costs those who
// follow nothing when nothing changed.
//
// Invariant: a site's entry has a higher sequence number than each pending ref of it, and goes before them. Whoever reads up to any sequence number
// therefore never takes a ref for delivered that was pending when the site said how far it is.
type table struct {
	changed notifier
	// member says whether a site belongs to this very group; then no child can speak of it.
	member func(site string) bool
	// items bounds a message.
	items int
	// remembers says whether the catalog has a group, or a site of one, whoever tells of it now; nil: it has none.
	remembers func(group, site string) bool

	mu      sync.Mutex
	seq     uint64
	floor   uint64 // removals up to here are forgotten
	gone    int
	groups  map[string]*entry
	sites   map[string]*entry
	pending map[string]map[string]*entry
	order   *btree.BTreeG[*entry]
}

func newTable(member func(site string) bool) *table {
	return &table{
		member: member, items: maxUpdateItems,
		groups: map[string]*entry{}, sites: map[string]*entry{}, pending: map[string]map[string]*entry{},
		order: btree.NewBTreeGOptions(func(a, b *entry) bool { return a.seq < b.seq }, btree.Options{NoLocks: true}),
	}
}

// cursor says how far somebody has read a table. The zero value has read nothing.
type cursor struct {
	seq  uint64
	from uint64 // the table's sequence number when reading began
	done bool   // begun
}

// bump gives an entry the next sequence number.
func (t *table) bump(e *entry) {
	if e.seq != 0 {
		t.order.Delete(e)
	}
	t.seq++
	e.seq = t.seq
	t.order.Set(e)
}

// set stores a message under a key, and says whether anything changed.
func (t *table) set(e *entry, msg proto.Message, via *source) bool {
	t.own(e, via)
	if !e.gone && e.seq != 0 && proto.Equal(e.msg, msg) {
		return false
	}
	if e.gone {
		e.gone = false
		t.gone--
	}
	e.msg = msg
	t.bump(e)
	return true
}

// own makes via the source of e, and keeps count.
func (t *table) own(e *entry, via *source) {
	if e.via == via {
		return
	}
	if e.via != nil {
		*e.via.count(e.kind)--
	}
	e.via = via
	if via != nil {
		*via.count(e.kind)++
	}
}

func (s *source) count(k entryKind) *int {
	switch k {
	case groupEntry:
		return &s.groups
	case siteEntry:
		return &s.sites
	}
	return &s.pending
}

// remove makes an entry a removal.
func (t *table) remove(e *entry) {
	if e.gone {
		return
	}
	t.own(e, nil)
	e.gone, e.msg = true, nil
	t.gone++
	t.bump(e)
	switch e.kind {
	case siteEntry:
		t.removeAll(t.pending[e.name])
	case groupEntry, pendingEntry:
	}
}

func (t *table) removeAll(entries map[string]*entry) {
	for _, e := range entries {
		t.remove(e)
	}
}

// prune forgets the oldest removals when there are too many.
func (t *table) prune() {
	if t.gone <= maxGone {
		return
	}
	var old []*entry
	t.order.Scan(func(e *entry) bool {
		if e.gone {
			old = append(old, e)
		}
		return len(old) < t.gone-maxGone/2
	})
	for _, e := range old {
		t.order.Delete(e)
		t.floor = max(t.floor, e.seq)
		t.gone--
		switch e.kind {
		case groupEntry:
			delete(t.groups, e.name)
		case siteEntry:
			delete(t.sites, e.name)
		case pendingEntry:
			delete(t.pending[e.name], e.ref)
			if len(t.pending[e.name]) == 0 {
				delete(t.pending, e.name)
			}
		}
	}
}

func (t *table) groupAt(path string) *entry {
	e := t.groups[path]
	if e == nil {
		e = &entry{kind: groupEntry, name: path}
		t.groups[path] = e
	}
	return e
}

func (t *table) siteAt(site string) *entry {
	e := t.sites[site]
	if e == nil {
		e = &entry{kind: siteEntry, name: site}
		t.sites[site] = e
	}
	return e
}

func (t *table) pendingAt(site, ref string) *entry {
	refs := t.pending[site]
	if refs == nil {
		refs = map[string]*entry{}
		t.pending[site] = refs
	}
	e := refs[ref]
	if e == nil {
		e = &entry{kind: pendingEntry, name: site, ref: ref}
		refs[ref] = e
	}
	return e
}

// diff returns the next part of what changed since a cursor, and moves it; more: there is more at once. A cursor that has read nothing, or is too old, gets
// everything, of which the first part says so.
func (t *table) diff(c *cursor) (u *treev1.HealthUpdate, more bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	u = &treev1.HealthUpdate{}
	if !c.done || t.floor > max(c.seq, c.from) {
		*c = cursor{from: t.seq, done: true}
		u.Full = true
	}
	items, size := 0, 0
	t.order.Ascend(&entry{seq: c.seq + 1}, func(e *entry) bool {
		if items == t.items || size > maxUpdateBytes {
			more = true
			return false
		}
		c.seq = e.seq
		if e.gone && e.seq <= c.from {
			return true // whoever reads everything never heard of it
		}
		items++
		if e.msg != nil {
			size += proto.Size(e.msg)
		}
		e.appendTo(u)
		return true
	})
	if items == 0 && !u.Full {
		return nil, false
	}
	return u, more
}

func (e *entry) appendTo(u *treev1.HealthUpdate) {
	switch e.kind {
	case groupEntry:
		if !e.gone {
			u.Groups = append(u.Groups, e.msg.(*treev1.GroupHealth))
		}
	case siteEntry:
		if e.gone {
			u.RemovedSites = append(u.RemovedSites, e.name)
		} else {
			u.Sites = append(u.Sites, e.msg.(*treev1.SiteHealth))
		}
	case pendingEntry:
		if e.gone {
			repo, tag := splitRef(e.ref)
			u.Settled = append(u.Settled, &treev1.SettledRef{Site: e.name, Repository: repo, Tag: tag})
		} else {
			u.Pending = append(u.Pending, e.msg.(*treev1.PendingRef))
		}
	}
}

// contact notes that a source was heard.
func (t *table) heard(s *source) {
	t.mu.Lock()
	s.contact = time.Now()
	t.mu.Unlock()
}

// join makes a source live.
func (t *table) join(group, site string) *source {
	return &source{group: group, site: site, live: true, contact: time.Now()}
}

// leave marks everything that came from a source as unreachable. What it said last stays known.
func (t *table) leave(s *source, reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.live = false
	at := timestamppb.New(s.contact)
	for _, e := range t.sites {
		if e.via == s && !e.gone {
			h := proto.CloneOf(e.msg.(*treev1.SiteHealth))
			if h.State != unreachable { // else its own root has said when it was last heard of
				if h.LastContact == nil { // else it is from before, when another told of it
					h.LastContact = at
				}
				h.State, h.Reason, h.Rate = unreachable, reason, 0
				t.set(e, h, s)
			}
		}
	}
	for _, e := range t.groups {
		if e.via == s && !e.gone {
			h := proto.CloneOf(e.msg.(*treev1.GroupHealth))
			if !h.Lost || h.State == unknown {
				if h.LastContact == nil {
					h.LastContact = at
				}
				h.State, h.Reason, h.Lost = unreachable, reason, true
				t.set(e, h, s)
			}
		}
	}
	t.changed.notify()
}

// setGroup stores what this root says of its own group.
func (t *table) setGroup(h *treev1.GroupHealth, via *source) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.set(t.groupAt(h.Group), h, via) {
		t.changed.notify()
	}
}

// keepSites removes the sites of a group that are not among its members.
func (t *table) keepSites(group string, member func(site string) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	changed := false
	for _, e := range t.sites {
		if !e.gone && e.msg.(*treev1.SiteHealth).Group == group && !member(e.name) {
			t.remove(e)
			changed = true
		}
	}
	if changed {
		t.prune()
		t.changed.notify()
	}
}

// site returns what is known of a site, and whether whoever told it is still connected.
func (t *table) site(name string) (*treev1.SiteHealth, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.sites[name]
	if e == nil || e.gone {
		return nil, false
	}
	return e.msg.(*treev1.SiteHealth), e.via != nil && e.via.live
}
