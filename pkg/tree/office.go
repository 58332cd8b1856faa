package tree

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/fanout-io/fanout/pkg/catalog"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

const (
	// actor of what a root proposes on its own.
	actor         = "fanout"
	handOverPause = 10 * time.Second
)

// office is one term as root. Everything that only a root does runs under its context, which ends with ErrNotRoot as its cause when leadership is lost.
// All it knows is soft: the next root learns it anew from its members, its children and its parent.
type office struct {
	n         *Node
	raft      *raft.Raft
	ctx       context.Context
	cancel    context.CancelCauseFunc
	done      chan struct{}
	began     time.Time
	proposals chan *proposal
	vouches   chan chan error
	table     *table
	group     *source // what this root says of its own group
	attach    *attachClient
	roster    atomic.Pointer[treev1.Roster]
	// wake makes the steward look again.
	wake notifier
	// joined makes membership look again.
	joined notifier
	// ordering is held while it is changed who is a member.
	ordering chan struct{}
	// refused changes, by changeKey; the steward's alone.
	refused map[string]bool
	// looked for tombstones to drop, and through is up to which there are some; the steward's alone.
	looked  time.Time
	through uint64

	mu        sync.Mutex
	followers map[string]*follower
	children  map[string]*child
	joins     map[string]*catalogv1.Member
}

// govern holds office whenever raft says that this member leads.
func (n *Node) govern(ctx context.Context, r *raft.Raft) {
	var o *office
	end := func() {
		if o != nil {
			o.cancel(ErrNotRoot)
			<-o.done
			o = nil
		}
	}
	defer end()
	for {
		select {
		case <-ctx.Done():
			return
		case leads := <-r.LeaderCh():
			// A loss and a new election may come as one "leads": it is a new term then, too.
			end()
			if leads {
				o = n.newOffice(ctx, r)
				go o.run()
			}
		}
	}
}

func (n *Node) newOffice(ctx context.Context, r *raft.Raft) *office {
	o := &office{
		n: n, raft: r, done: make(chan struct{}), began: time.Now(), proposals: make(chan *proposal), vouches: make(chan chan error), table: newTable(n.memberSite),
		followers: map[string]*follower{}, children: map[string]*child{}, joins: map[string]*catalogv1.Member{}, refused: map[string]bool{},
		ordering: make(chan struct{}, 1),
	}
	o.ctx, o.cancel = context.WithCancelCause(ctx)
	o.table.remembers = func(group, site string) bool {
		g, known := n.Catalog().Group(group)
		return known && (site == "" || slices.ContainsFunc(g.Sites, func(s *catalogv1.GroupSite) bool { return s.Site == site }))
	}
	o.group = o.table.join(n.cfg.Group, "")
	o.attach = newAttachClient(o)
	o.roster.Store(&treev1.Roster{})
	return o
}

func (o *office) run() {
	defer close(o.done)
	if !o.barrier() {
		return
	}
	n := o.n
	n.log.Info("this site is now the root", "term", o.raft.CurrentTerm())
	n.metrics.root.Set(1)
	n.office.Store(o)
	n.expelled.Store(false)
	n.rosterChanged.notify()
	var wg sync.WaitGroup
	wg.Go(o.proposer)
	wg.Go(o.voucher)
	wg.Go(o.feedSelf)
	wg.Go(o.steward)
	wg.Go(o.membership)
	wg.Go(o.passHealthOn)
	if !n.cfg.headquarters() {
		wg.Go(o.attach.run)
	}
	<-o.ctx.Done()
	n.office.Store(nil)
	n.told.Store(o.roster.Load()) // until the next root says more
	wg.Wait()
	n.metrics.root.Set(0)
	n.rosterChanged.notify()
	n.healthChanged.notify()
	n.log.Info("this site is no longer the root")
}

// barrier waits until all that earlier terms committed is applied here.
func (o *office) barrier() bool {
	for o.ctx.Err() == nil {
		err := o.raft.Barrier(o.n.cfg.Timeouts.Call).Error()
		if err == nil {
			return o.n.fsm.failure() == nil && o.ctx.Err() == nil
		}
		if !pause(o.ctx, retryPause) {
			return false
		}
	}
	return false
}

// RootContext returns a context that ends with ErrNotRoot as its cause when this member is no longer the root; false when it isn't now.
func (n *Node) RootContext(ctx context.Context) (context.Context, bool) {
	o := n.office.Load()
	if o == nil {
		return nil, false
	}
	rooted, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(o.ctx, func() { cancel(ErrNotRoot) })
	context.AfterFunc(rooted, func() { stop() })
	return rooted, true
}

// feedSelf makes what this site reports part of the group's health.
func (o *office) feedSelf() {
	s := o.table.join(o.n.cfg.Group, o.n.cfg.Site)
	o.n.followOwn(o.ctx, 0, func(u *treev1.HealthUpdate) error {
		o.table.heard(s)
		_, err := o.table.merge(s, u)
		return err
	})
}

// followOwn calls send with what changed in this site's health, at once and then as it changes, with at least a pause in between, until ctx ends or send fails.
func (n *Node) followOwn(ctx context.Context, settle time.Duration, send func(*treev1.HealthUpdate) error) {
	changed, stop := n.own.changed.watch()
	defer stop()
	var c cursor
	tick := time.NewTicker(n.cfg.Timeouts.Stream)
	defer tick.Stop()
	for {
		for more := true; more; {
			var u *treev1.HealthUpdate
			if u, more = n.own.diff(&c); u == nil {
				u = &treev1.HealthUpdate{} // a sign of life
			}
			if err := send(u); err != nil {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-changed:
			if settle > 0 && !pause(ctx, settle) {
				return
			}
		}
	}
}

// passHealthOn tells the watchers of this node of changes in the group's table.
func (o *office) passHealthOn() {
	changed, stop := o.table.changed.watch()
	defer stop()
	for {
		select {
		case <-o.ctx.Done():
			return
		case <-changed:
			o.n.healthChanged.notify()
			o.wake.notify()
		}
	}
}

// steward keeps what the group must know of itself in agreement with what is: in the catalog its epoch, members, settings and the groups below; besides, the
// roster and the group's health. It compares and mends, again after each change, and each time from the start: nothing depends on an event.
func (o *office) steward() {
	n := o.n
	wake, stopWake := o.wake.watch()
	defer stopWake()
	changed, stopChanged := n.fsm.changed.watch()
	defer stopChanged()
	tick := time.NewTicker(n.cfg.Timeouts.Stream)
	defer tick.Stop()
	for {
		snap := n.Catalog()
		o.table.heard(o.group)
		o.publishRoster(o.appoint())
		o.table.setGroup(o.groupHealth(snap), o.group)
		o.table.heard(o.group) // this root is the one who tells of its group: it was heard of now
		o.table.keepSites(n.cfg.Group, n.memberSite)
		if time.Since(o.began) > n.cfg.Timeouts.Grace {
			o.table.missing(snap, n, o.began)
		}
		if len(o.upkeep(snap)) > 0 {
			if err := o.settle(); err != nil && o.ctx.Err() == nil {
				n.log.Warn("keeping the group's catalog up", "error", err)
			}
		}
		select {
		case <-o.ctx.Done():
			return
		case <-tick.C:
		case <-wake:
		case <-changed:
		}
		if !pause(o.ctx, n.cfg.Timeouts.Settle/4) {
			return
		}
	}
}

// settle proposes what upkeep finds. One that the catalog refuses is not proposed again in this term.
func (o *office) settle() error {
	ctx, cancel := context.WithTimeout(o.ctx, o.n.cfg.Timeouts.Call)
	defer cancel()
	// A member that is being removed must not be entered again on account of what was seen before.
	done, err := o.reorder(ctx)
	if err != nil {
		return err
	}
	defer done()
	changes := o.upkeep(o.n.Catalog())
	if len(changes) == 0 {
		return nil
	}
	results, err := o.propose(ctx, actor, changes)
	for i, r := range results {
		if r.Err != nil {
			o.refused[changeKey(changes[i])] = true
			err = errors.Join(err, fmt.Errorf("change %d of %d: %w", i+1, len(changes), r.Err))
		}
	}
	return err
}

// changeKey tells changes apart.
func changeKey(c *catalogv1.Change) string {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(c)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// upkeep returns the changes that make the catalog agree with what this root knows.
func (o *office) upkeep(snap *catalog.Snapshot) []*catalogv1.Change {
	return slices.DeleteFunc(o.differences(snap), func(c *catalogv1.Change) bool { return len(o.refused) > 0 && o.refused[changeKey(c)] })
}

func (o *office) differences(snap *catalog.Snapshot) []*catalogv1.Change {
	n := o.n
	var changes []*catalogv1.Change
	if n.cfg.headquarters() && snap.Position().GetEpoch() == "" && !snap.Restoring() {
		changes = append(changes, &catalogv1.Change{Kind: &catalogv1.Change_Found{Found: &catalogv1.Found{Epoch: randomID()}}})
	}
	held := map[string]*catalogv1.Member{}
	for _, m := range snap.Members() {
		held[m.Site] = m
	}
	for _, m := range o.connected() {
		if !proto.Equal(held[m.Site], m) && !snap.Member(m.Site).GetRemoved() {
			changes = append(changes, &catalogv1.Change{Kind: &catalogv1.Change_SetMember{SetMember: &catalogv1.SetMember{Member: m}}})
		}
	}
	if s := n.cfg.Settings; s != nil && !proto.Equal(snap.Settings(), s) {
		changes = append(changes, &catalogv1.Change{Kind: &catalogv1.Change_SetSettings{SetSettings: &catalogv1.SetSettings{Settings: s}}})
	}
	if through := o.prunableNow(snap); through > 0 {
		changes = append(changes, &catalogv1.Change{Kind: &catalogv1.Change_Prune{Prune: &catalogv1.Prune{Through: through}}})
	}
	for _, g := range o.table.groupsBelow(n.cfg.Group) {
		known, _ := snap.Group(g.Path)
		if proto.Equal(known, g) {
			continue
		}
		if len(changes) == maxBatch {
			break // the rest in the next round
		}
		changes = append(changes, setGroup(g))
	}
	return changes
}

func setGroup(g *catalogv1.Group) *catalogv1.Change {
	return &catalogv1.Change{Kind: &catalogv1.Change_SetGroup{SetGroup: &catalogv1.SetGroup{Group: g}}}
}

// groupsBelow returns the groups below that report, as they are to be remembered.
func (t *table) groupsBelow(group string) []*catalogv1.Group {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*catalogv1.Group
	for path, e := range t.groups {
		// Without sites it is not what the group's own root said.
		if h, _ := e.msg.(*treev1.GroupHealth); !e.gone && below(path, group) && e.via != nil && e.via.live && len(h.GetSites()) > 0 {
			sites := slices.SortedFunc(slices.Values(h.Sites), func(a, b *catalogv1.GroupSite) int { return strings.Compare(a.GetSite(), b.GetSite()) })
			out = append(out, &catalogv1.Group{Path: path, Labels: h.Labels, Demand: catalog.Union(h.Demand), Sites: sites, Keep: h.Keep})
		}
	}
	slices.SortFunc(out, func(a, b *catalogv1.Group) int { return strings.Compare(a.Path, b.Path) })
	return out
}

// missing calls unreachable what should have reported since this root took office, and did not.
func (t *table) missing(snap *catalog.Snapshot, n *Node, since time.Time) {
	reason := fmt.Sprintf("not heard of since %s became root of %s at %s UTC", n.cfg.Site, n.cfg.Group, since.UTC().Format(time.TimeOnly))
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.seq
	sites := func(group string, list []*catalogv1.GroupSite) {
		for _, s := range list {
			if s.Site == n.cfg.Site {
				continue
			}
			if e := t.siteAt(s.Site); e.seq == 0 || e.gone {
				t.set(e, &treev1.SiteHealth{Site: s.Site, Group: group, State: unreachable, Reason: reason, RegistryType: s.RegistryType}, nil)
			}
		}
	}
	sites(n.cfg.Group, n.groupSites(snap))
	for g := range snap.Groups() {
		if e := t.groupAt(g.Path); e.seq == 0 || e.gone {
			sites(g.Path, g.Sites)
			t.set(e, &treev1.GroupHealth{Group: g.Path, State: unreachable, Reason: reason, Lost: true, Labels: g.Labels, Demand: g.Demand, Sites: g.Sites, Keep: g.Keep}, nil)
		}
	}
	t.dropForgotten(snap, n.cfg.Group)
	if t.seq != before {
		t.changed.notify()
	}
}

// dropForgotten drops what nobody told of and what the catalog, from which it came, does not remember any more.
func (t *table) dropForgotten(snap *catalog.Snapshot, own string) {
	forgotten := func(group string) bool {
		_, known := snap.Group(group)
		return !known && group != own
	}
	left := func(group, site string) bool { // while the group is away, or others tell of it
		g, known := snap.Group(group)
		return known && !slices.ContainsFunc(g.Sites, func(s *catalogv1.GroupSite) bool { return s.Site == site })
	}
	for name, e := range t.sites {
		if e.gone || e.via != nil && e.msg.(*treev1.SiteHealth).GetState() != unknown {
			continue
		}
		if group := e.msg.(*treev1.SiteHealth).GetGroup(); forgotten(group) || left(group, name) {
			t.remove(e)
		}
	}
	for path, e := range t.groups {
		if !e.gone && (e.via == nil || e.msg.(*treev1.GroupHealth).GetLost()) && forgotten(path) {
			t.remove(e)
		}
	}
}

// severity orders states: a group is as its worst site is.
var severity = map[string]int{"synced": 1, "syncing": 2, "behind": 3, unknown: 4, "degraded": 5, "conflict": 6, unreachable: 7}

// groupHealth is what this root says of its group.
func (o *office) groupHealth(snap *catalog.Snapshot) *treev1.GroupHealth {
	n := o.n
	h := &treev1.GroupHealth{
		Group: n.cfg.Group, Parent: o.attach.parent(), Root: n.cfg.Site, Term: o.raft.CurrentTerm(), Position: snap.Position(),
		Labels: snap.Settings().GetLabels(), State: "synced", Carrier: o.roster.Load().GetCarrier(), Demand: n.demand(), Sites: n.groupSites(snap), Keep: snap.Keep(),
		DetachedSince: o.attach.detachedSince(), Parents: n.cfg.Parents, FallbackParents: n.cfg.FallbackParents,
	}
	if f := snap.Freeze(); f != nil && f.Until.AsTime().After(time.Now()) {
		h.Freeze = f
	}
	for _, s := range h.Sites {
		site, _ := o.table.site(s.Site)
		state, reason := site.GetState(), site.GetReason()
		if site == nil {
			state, reason = unknown, fmt.Sprintf("not heard of yet since %s became root", n.cfg.Site)
		}
		if severity[state] > severity[h.State] {
			h.State, h.Reason = state, s.Site+": "+reason
		}
	}
	if state, reason := o.attach.trouble(); severity[state] > severity[h.State] {
		h.State, h.Reason = state, reason
	}
	if h.Reason == "" {
		h.Reason = o.weakness()
	}
	h.Reason = shorten(h.Reason)
	return h
}

// weakness says what a group of two can't survive: it works, but either member is needed for a majority.
func (o *office) weakness() string {
	conf, err := o.servers()
	if err != nil {
		return ""
	}
	voters, witnesses := 0, 0
	for _, s := range conf {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		if site, _ := splitID(s.ID); o.isWitness(site) {
			witnesses++
		}
	}
	what := "no new record gets here"
	if o.n.cfg.headquarters() {
		what = "nothing is published"
	}
	switch {
	case voters != 2:
		return ""
	case witnesses == 0:
		return "two members and no witness: while either is down, " + what + "; a third member, such as a witness, ends that"
	}
	return "two members with a vote: while either is down, " + what + "; a third member ends that"
}

// head is the newest revision of headquarters that is known here.
func (o *office) head() uint64 {
	return max(o.attach.head.Load(), o.n.Catalog().Position().GetRevision())
}

// demand is what this group and the groups below it subscribe to, the groups that are away included.
func (n *Node) demand() *catalogv1.Scope {
	snap := n.Catalog()
	settings := n.cfg.Settings
	if settings == nil {
		settings = snap.Settings()
	}
	own := subscriptionOf(settings)
	if own.GetKeep() > 0 {
		// What its own registries keep is the group's own business: the groups below may want more, and the catalog here has all.
		own = &catalogv1.Subscription{Repositories: own.Repositories, Exclude: own.Exclude}
	}
	scopes := []*catalogv1.Scope{{AnyOf: []*catalogv1.Subscription{own}}}
	for g := range snap.Groups() {
		scopes = append(scopes, g.Demand)
	}
	return catalog.Union(scopes...)
}

// randomID returns a new random ID.
func randomID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
