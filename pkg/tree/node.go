// Package tree holds a group of sites together and ties it to the group above. A Node is one member: it keeps the group's catalog in a raft log, holds
// office while it is the group's root, follows the root while it is not, and knows who is who.
//
// It moves no content and touches no registry: it says what should be where, and how everybody is. pkg/agent acts on that.
//
// # Life
//
// New checks; Run opens the disk, joins the group and blocks until its context ends, the listener fails, or a committed command can't be applied. All methods are
// safe for concurrent use, before, during and after Run; before and after, the catalog is empty or old and nothing can be proposed. No goroutine outlives
// Run but those of grpc's own handlers.
//
// # Who knows what
//
//   - Durable, in raft: the catalog (records and position), the group's members, settings, and the groups below with their demands.
//   - Soft, at the root only, for one term of office: who is connected, health, the roster. The next root learns it from the streams that reach it.
//   - Nothing is remembered about a child's progress: a child says where it is, each time that it attaches.
//
// # Invariants
//
//   - A group is founded once: see belong. A server that lost its disk is another server, and never speaks as the one it was: see raftListener.
//   - What a proposer is told to be committed is on disk at a majority. What it is told to have failed with ErrNotRoot was never in the log; anything else is
//     ErrUnknownOutcome.
//   - Only the root assigns revisions, sends to children and imports from the parent; all of it ends with its term: see office. A root that was deposed and does
//     not know it yet can commit nothing, and shows only what is committed.
//   - A child at any position on the epoch's line can attach at any moment and converges; whatever was sent twice is taken in once.
package tree

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/fanout-io/fanout/pkg/catalog"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// Node is one member of a group.
type Node struct {
	cfg     Config
	id      raft.ServerID
	log     *slog.Logger
	metrics *metrics
	fsm     *fsm
	own     *table  // this site's health alone
	self    *source // of own

	rosterChanged notifier
	healthChanged notifier

	raft atomic.Pointer[raft.Raft] // while Run runs
	// caughtUp: see CaughtUp.
	caughtUp atomic.Bool
	// logRead: see LogRead. kept is the index of the last entry that the log had when Run began.
	logRead atomic.Bool
	kept    uint64
	disk    atomic.Pointer[raftDisk] // since Run opened it
	office  atomic.Pointer[office]   // while this is the root
	told    atomic.Pointer[treev1.Roster]
	learned atomic.Pointer[learned]
	// vouched are sites of which a member said that they are members, too: those that this one's file does not list, until its catalog does.
	vouched atomic.Pointer[map[string]bool]
	// expelled: a member said that this site was removed from the group.
	expelled atomic.Bool
	// estranged says why this root may be that of another group than its file means; nil or "" when it is not.
	estranged atomic.Pointer[string]
	// campaign makes raft hold an election at once.
	campaign func(context.Context)
	stopped  chan struct{}
	// faulty, for tests, stands before the raft log.
	faulty func(logAndStable) logAndStable

	mu      sync.Mutex
	ran     bool
	ended   bool // no more tracked goroutines
	waiting string
	streams sync.WaitGroup
}

// New returns a node that is not running yet.
func New(cfg Config) (*Node, error) {
	cfg.Members = maps.Clone(cfg.Members)
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("configuring site %s: %w", cfg.Site, err)
	}
	var n *Node
	m, err := newMetrics(cfg.Registerer, func() float64 { return float64(n.Catalog().Position().GetRevision()) }, func() float64 { return n.connected() })
	if err != nil {
		return nil, fmt.Errorf("registering metrics: %w", err)
	}
	n = &Node{
		cfg: cfg, id: serverID(cfg.Site, cfg.Incarnation), log: cfg.Logger, metrics: m, fsm: newFSM(cfg.SnapshotBytes), own: newTable(func(string) bool { return true }),
		stopped: make(chan struct{}), waiting: "starting",
	}
	n.self = n.own.join(cfg.Group, cfg.Site)
	return n, nil
}

// connected counts the members that follow this root, itself included; 0: it is none.
func (n *Node) connected() float64 {
	o := n.office.Load()
	if o == nil {
		return 0
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return float64(len(o.followers) + 1)
}

// Run takes part in the group until ctx ends, and returns nil then. A root hands leadership over first.
func (n *Node) Run(ctx context.Context) (err error) {
	n.mu.Lock()
	again := n.ran
	n.ran = true
	n.mu.Unlock()
	if again {
		return errors.New("a node runs once")
	}
	defer close(n.stopped)
	stores, err := n.openStores()
	if err != nil {
		return err
	}
	defer func() {
		if e := stores.bolt.Close(); e != nil {
			err = errors.Join(err, fmt.Errorf("closing the raft log: %w", e))
		}
	}()
	if err := n.mendHalfFounding(stores); err != nil {
		return err
	}
	listener, err := n.listenRaft(ctx)
	if err != nil {
		return err
	}
	listener.wg.Go(listener.serve)
	defer listener.stop()
	r, err := n.startRaft(stores, listener)
	if err != nil {
		return err
	}
	n.kept = r.LastIndex()
	n.raft.Store(r)
	err = n.live(ctx, r, stores.disk)
	n.raft.Store(nil)
	// Raft's own goroutines end, and its files are at rest, when this returns.
	if e := r.Shutdown().Error(); e != nil {
		err = errors.Join(err, fmt.Errorf("stopping raft: %w", e))
	}
	n.mu.Lock()
	n.ended = true
	n.mu.Unlock()
	n.streams.Wait()
	return err
}

// live runs all that a member does while raft runs.
func (n *Node) live(ctx context.Context, r *raft.Raft, disk *raftDisk) error {
	// Its own context: leadership is handed over while everything still works.
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer disk.stop() // nothing waits for room any more
	observer, observed := n.observe(r)
	defer r.DeregisterObserver(observer)
	wg.Go(func() { n.passLeaderOn(inner, observed) })
	wg.Go(func() { n.passOwnHealthOn(inner) })
	wg.Go(func() { n.snapshots(inner, r) })
	wg.Go(func() { n.govern(inner, r) })
	wg.Go(func() { n.follow(inner, r) })
	wg.Go(func() { n.belong(inner, r) })
	select {
	case <-ctx.Done():
		if !errors.Is(context.Cause(ctx), errKilled) {
			n.handLeadershipOver(r)
		}
		return nil
	case <-n.fsm.broken:
		return n.fsm.failure()
	}
}

// handLeadershipOver spares the group an election when a root stops in good order.
func (n *Node) handLeadershipOver(r *raft.Raft) {
	if r.State() != raft.Leader || len(n.Servers()) < 2 {
		return
	}
	// Raft answers within its election timeout.
	if err := r.LeadershipTransfer().Error(); err != nil {
		n.log.Info("leadership was not handed over", "error", err)
		return
	}
	n.log.Info("leadership was handed over")
}

// observe makes raft tell of new leaders. A full channel drops: one that waits says enough.
func (n *Node) observe(r *raft.Raft) (*raft.Observer, <-chan raft.Observation) {
	ch := make(chan raft.Observation, 1)
	o := raft.NewObserver(ch, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	r.RegisterObserver(o)
	return o, ch
}

func (n *Node) passLeaderOn(ctx context.Context, observed <-chan raft.Observation) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-observed:
			n.rosterChanged.notify()
		}
	}
}

// passOwnHealthOn tells the watchers of this node of changes at this site; at a root the group's table does.
func (n *Node) passOwnHealthOn(ctx context.Context) {
	changed, stop := n.own.changed.watch()
	defer stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			if n.office.Load() == nil {
				n.healthChanged.notify()
			}
		}
	}
}

// Catalog returns the group's catalog as far as this member has it.
func (n *Node) Catalog() *catalog.Snapshot { return n.fsm.snapshot() }

// Watch returns a channel that is ready after the catalog changed, and a function that ends the watch.
func (n *Node) Watch() (<-chan struct{}, func()) { return n.fsm.changed.watch() }

// IsRoot says whether this member holds office.
func (n *Node) IsRoot() bool { return n.office.Load() != nil }
