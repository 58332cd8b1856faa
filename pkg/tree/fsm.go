package tree

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/fanout-io/fanout/pkg/catalog"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// fsm feeds the catalog's machine from the raft log.
//
// Invariant: a committed entry is applied or the fsm is broken for good. When it is broken it applies nothing more and gives no snapshot, so that
// what was not applied is never taken for applied; the node's Run ends with the error.
type fsm struct {
	changed notifier
	// full is ready when so much log was applied that a snapshot is due.
	full   chan struct{}
	broken chan struct{} // closed when err is set

	mu       sync.Mutex
	machine  *catalog.Machine
	err      error
	bytes    int64  // applied since the last snapshot
	lastSize int64  // of the last snapshot
	index    uint64 // in the raft log, of the last command that was applied, or of the snapshot that was restored
	restored bool   // no command was applied since a snapshot was restored
	limit    int64

	configured atomic.Uint64 // raft index of the last change of the group's servers up to which all was applied
}

func newFSM(limit int64) *fsm {
	return &fsm{machine: catalog.New(), limit: limit, full: make(chan struct{}, 1), broken: make(chan struct{})}
}

// snapshot returns the state as it is now. Snapshots are made when asked for, so that replaying a long log copies nothing.
func (f *fsm) snapshot() *catalog.Snapshot {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.machine.Snapshot()
}

// reached is the index of the raft log to which the state belongs.
func (f *fsm) reached() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.index
}

// fromSnapshot says whether the state is that of a snapshot. The last entry in it may have been no command, and then no other member's state is said to have reached it.
func (f *fsm) fromSnapshot() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.restored
}

func (f *fsm) failure() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// Apply implements raft.FSM. The response is []catalog.Result, or an error.
func (f *fsm) Apply(log *raft.Log) any {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	cmd, err := catalog.DecodeCommand(log.Data)
	if err != nil {
		f.err = fmt.Errorf("%w: raft index %d: %w", ErrBroken, log.Index, err)
		close(f.broken)
		return f.err
	}
	results := f.machine.Apply(cmd)
	f.index, f.restored = log.Index, false
	f.bytes += int64(len(log.Data))
	if f.bytes > max(f.limit, f.lastSize) {
		select {
		case f.full <- struct{}{}:
		default:
		}
	}
	f.changed.notify()
	return results
}

// StoreConfiguration implements raft.ConfigurationStore: it is called in the order of the log, so all before index was applied.
func (f *fsm) StoreConfiguration(index uint64, _ raft.Configuration) {
	f.configured.Store(index)
	f.changed.notify()
}

// Snapshot implements raft.FSM.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return nil, f.err
	}
	f.bytes = 0
	return &fsmSnapshot{fsm: f, snap: f.machine.Snapshot()}, nil
}

// Restore implements raft.FSM: it builds a new machine and swaps it.
func (f *fsm) Restore(r io.ReadCloser) error {
	m, err := catalog.Restore(r)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.machine, f.bytes, f.index, f.restored = m, 0, indexOf(r), true
	f.changed.notify()
	return nil
}

type fsmSnapshot struct {
	fsm  *fsm
	snap *catalog.Snapshot
}

// Persist implements raft.FSMSnapshot. It runs beside Apply; the snapshot is immutable.
func (s *fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	n, err := s.snap.WriteTo(sink)
	if err != nil {
		_ = sink.Cancel() // the error that led here is the one to tell
		return err
	}
	if err := sink.Close(); err != nil {
		return fmt.Errorf("closing the snapshot: %w", err)
	}
	s.fsm.mu.Lock()
	s.fsm.lastSize = n
	s.fsm.mu.Unlock()
	return nil
}

// Release implements raft.FSMSnapshot.
func (s *fsmSnapshot) Release() {}

func encodeCommand(cmd *catalogv1.Command) ([]byte, error) {
	data, err := proto.Marshal(cmd)
	if err != nil {
		return nil, fmt.Errorf("encoding a command: %w", err)
	}
	return data, nil
}
