package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

const (
	logCacheEntries = 64
	snapshotsKept   = 2
	// inFlight is how many requests for a member's log are under way: with two (raft pipelines them then) the goroutine of a root that was replaced may wait for ever to hand on an answer
	// that nobody takes, and raft can't be stopped. Entries that wait go together in the next request.
	inFlight         = 1
	trailingLogs     = 512
	snapshotEntries  = 1 << 16 // a bound for the replay of many small entries
	raftPool         = 3
	keyCurrentTerm   = "CurrentTerm" // as hashicorp/raft names it in its stable store
	snapshotInterval = 10 * time.Minute
)

// serverID is the raft server ID of a site's data directory. An agent that lost its disk is another server.
func serverID(site, incarnation string) raft.ServerID {
	return raft.ServerID(site + "/" + incarnation)
}

// splitID is the reverse of serverID.
func splitID(id raft.ServerID) (site, incarnation string) {
	site, incarnation, _ = strings.Cut(string(id), "/")
	return site, incarnation
}

// raftStores are what raft keeps on disk.
type raftStores struct {
	bolt  *raftboltdb.BoltStore
	disk  *raftDisk // bolt, as raft sees it
	snaps *raft.FileSnapshotStore
}

func (n *Node) openStores() (*raftStores, error) {
	dir := filepath.Join(n.cfg.DataDir, "raft")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making %s: %w", dir, err)
	}
	path := filepath.Join(dir, "raft.db")
	bolt, err := raftboltdb.New(raftboltdb.Options{
		Path:        path,
		BoltOptions: &bbolt.Options{Timeout: 2 * time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType},
	})
	if err != nil {
		return nil, fmt.Errorf("opening the raft log %s (does another agent use it?): %w", path, err)
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, newRaftLogger(n.log))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the raft snapshots in %s: %w", dir, err), bolt.Close())
	}
	var written logAndStable = bolt
	if n.faulty != nil {
		written = n.faulty(bolt)
	}
	disk := newRaftDisk(written, n.log, n.yields, n.diskChanged)
	n.disk.Store(disk)
	return &raftStores{bolt: bolt, disk: disk, snaps: snaps}, nil
}

// mendHalfFounding lets a founder go on that died between raft's two writes of a bootstrap. Its term is then set, and its log empty, and raft would
// refuse to bootstrap for ever. Only the founder is treated so: with an empty log it was never a candidate, and nobody's configuration
// names it as a voter, so there is no vote of its own to forget.
func (n *Node) mendHalfFounding(s *raftStores) error {
	if n.founder() != n.cfg.Site {
		return nil
	}
	last, err := s.bolt.LastIndex()
	if err != nil {
		return fmt.Errorf("reading the raft log: %w", err)
	}
	snaps, err := s.snaps.List()
	if err != nil {
		return fmt.Errorf("listing raft snapshots: %w", err)
	}
	if last > 0 || len(snaps) > 0 {
		return nil
	}
	term, err := s.bolt.GetUint64([]byte(keyCurrentTerm))
	if err != nil || term == 0 {
		return nil // not found: as it should be
	}
	if err := s.bolt.SetUint64([]byte(keyCurrentTerm), 0); err != nil {
		return fmt.Errorf("resetting the raft term: %w", err)
	}
	return nil
}

// yields says whether a fellow can take over from this member when its raft log can't be written.
func (n *Node) yields() bool {
	r := n.raft.Load()
	if r == nil || r.State() != raft.Leader {
		return false
	}
	voters := 0
	for _, s := range n.Servers() {
		if s.Voter {
			voters++
		}
	}
	return voters > 1
}

func (n *Node) diskChanged() {
	n.rosterChanged.notify()
	n.healthChanged.notify()
}

// DiskTrouble is why the raft log can't be written; nil while it can. It is tried again every second; meanwhile this member takes no part in the group.
func (n *Node) DiskTrouble() error {
	if d := n.disk.Load(); d != nil {
		return d.err()
	}
	return nil
}

// startRaft starts raft on the stores. The returned function stops it.
func (n *Node) startRaft(s *raftStores, layer raft.StreamLayer) (*raft.Raft, error) {
	logger := newRaftLogger(n.log)
	conf := raft.DefaultConfig()
	conf.LocalID = n.id
	conf.HeartbeatTimeout = n.cfg.Timeouts.Heartbeat
	conf.ElectionTimeout = max(n.cfg.Timeouts.Election, n.cfg.Timeouts.Heartbeat)
	conf.LeaderLeaseTimeout = n.cfg.Timeouts.Lease
	conf.CommitTimeout = min(conf.CommitTimeout, n.cfg.Timeouts.Heartbeat/2)
	conf.Logger = logger
	conf.ShutdownOnRemove = false // a member that was removed by mistake joins again
	conf.SnapshotThreshold = snapshotEntries
	conf.SnapshotInterval = snapshotInterval
	conf.TrailingLogs = trailingLogs
	conf.NoLegacyTelemetry = true
	cache, err := raft.NewLogCache(logCacheEntries, s.disk)
	if err != nil {
		return nil, fmt.Errorf("making the log cache: %w", err)
	}
	trans := newTransport(raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: layer, MaxPool: raftPool, Timeout: n.cfg.Timeouts.Call, Logger: logger, MsgpackUseNewTimeFormat: true, MaxRPCsInFlight: inFlight,
	}))
	n.campaign = trans.campaign
	r, err := raft.NewRaft(conf, n.fsm, cache, s.disk, indexedSnapshots{s.snaps}, trans)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting raft: %w", err), trans.Close())
	}
	return r, nil
}

// snapshots takes a snapshot whenever enough log was applied: raft itself counts entries only, and ours differ in size by four orders of magnitude.
func (n *Node) snapshots(ctx context.Context, r *raft.Raft) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.fsm.full:
		}
		if err := r.Snapshot().Error(); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) && !errors.Is(err, raft.ErrRaftShutdown) {
			n.log.Warn("taking a raft snapshot", "error", err)
			if !pause(ctx, n.cfg.Timeouts.Backoff) {
				return
			}
		}
	}
}

// transport makes raft's connections name the server that they mean: see hello.go.
type transport struct {
	*raft.NetworkTransport
	rpcs   chan raft.RPC
	closed chan struct{}
	once   sync.Once
	wg     sync.WaitGroup
}

func newTransport(net *raft.NetworkTransport) *transport {
	t := &transport{NetworkTransport: net, rpcs: make(chan raft.RPC), closed: make(chan struct{})}
	t.wg.Go(func() {
		for {
			select {
			case <-t.closed:
				return
			case rpc := <-net.Consumer():
				t.pass(rpc)
			}
		}
	})
	return t
}

func (t *transport) pass(rpc raft.RPC) {
	select {
	case <-t.closed:
	case t.rpcs <- rpc:
	}
}

// Consumer implements raft.Transport: what came over the network, and what campaign says.
func (t *transport) Consumer() <-chan raft.RPC { return t.rpcs }

// campaign makes raft hold an election at once instead of first waiting to hear from a leader. It does no harm, as raft's own leaders ask for it too.
func (t *transport) campaign(ctx context.Context) {
	command := &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}}
	select {
	case <-ctx.Done():
	case t.rpcs <- raft.RPC{Command: command, RespChan: make(chan raft.RPCResponse, 1)}:
	}
}

// Close implements raft.WithClose.
func (t *transport) Close() error {
	t.once.Do(func() { close(t.closed) })
	t.wg.Wait()
	return t.NetworkTransport.Close()
}

func meant(id raft.ServerID, target raft.ServerAddress) raft.ServerAddress {
	return target + "|" + raft.ServerAddress(id)
}

func (t *transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	return t.NetworkTransport.AppendEntriesPipeline(id, meant(id, target))
}

func (t *transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	return t.NetworkTransport.AppendEntries(id, meant(id, target), args, resp)
}

func (t *transport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return t.NetworkTransport.RequestVote(id, meant(id, target), args, resp)
}

func (t *transport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return t.NetworkTransport.RequestPreVote(id, meant(id, target), args, resp)
}

func (t *transport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	return t.NetworkTransport.InstallSnapshot(id, meant(id, target), args, resp, data)
}

func (t *transport) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	return t.NetworkTransport.TimeoutNow(id, meant(id, target), args, resp)
}

// leader returns the site and raft address of the member that this one takes for the root; "" when there is none.
func leader(r *raft.Raft) (site, addr string) {
	a, id := r.LeaderWithID()
	if a == "" || id == "" {
		return "", ""
	}
	site, _ = splitID(id)
	return site, string(a)
}

// definitelyNot says whether a failed raft.Apply left nothing in the log.
func definitelyNot(err error) bool {
	return errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrEnqueueTimeout) || errors.Is(err, raft.ErrLeadershipTransferInProgress)
}

var _ raft.WithPreVote = (*transport)(nil)
var _ raft.WithClose = (*transport)(nil)
