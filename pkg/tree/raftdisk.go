package tree

import (
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// diskPause is the time between two attempts to write what could not be written.
const diskPause = time.Second

// logAndStable is what raft writes to: raftboltdb.BoltStore.
type logAndStable interface {
	raft.LogStore
	raft.StableStore
}

// raftDisk stands between raft and its files, for the time in which they can't be written: above all, when the disk is full. Left alone, raft panics when its term can't
// be written, a follower that has cut off the end of its log and can't append to it is lost until it is started again, and a root without fellows gives its
// office up and takes it again several times a second. So what raft must have is tried until it is done: meanwhile this member is silent, as if it
// were down, and the group does without it. A root that has fellows gives its office up instead: one of them has room.
type raftDisk struct {
	logAndStable
	log *slog.Logger
	// yields says whether a failed append is raft's to handle.
	yields func() bool
	// changed is called when trouble begins or ends.
	changed func()
	stopped chan struct{}
	stopOne sync.Once

	mu      sync.Mutex
	trouble error
}

func newRaftDisk(store logAndStable, log *slog.Logger, yields func() bool, changed func()) *raftDisk {
	return &raftDisk{logAndStable: store, log: log, yields: yields, changed: changed, stopped: make(chan struct{})}
}

// stop ends all attempts: what fails from now on has failed. It comes before raft's own end.
func (d *raftDisk) stop() { d.stopOne.Do(func() { close(d.stopped) }) }

// err is why the files can't be written now; nil when they can, as far as it is known.
func (d *raftDisk) err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.trouble
}

func (d *raftDisk) note(err error) {
	d.mu.Lock()
	was := d.trouble
	d.trouble = err
	d.mu.Unlock()
	switch {
	case (was == nil) == (err == nil):
		return
	case err != nil:
		d.log.Warn("the raft log can't be written: this member takes no part in the group until it can", "error", err)
	default:
		d.log.Info("the raft log can be written again")
	}
	d.changed()
}

// insist writes until it is done, or stop is called.
func (d *raftDisk) insist(write func() error) error {
	for {
		err := write()
		d.note(err)
		if err == nil {
			return nil
		}
		select {
		case <-d.stopped:
			return err
		case <-time.After(diskPause):
		}
	}
}

// StoreLogs implements raft.LogStore.
func (d *raftDisk) StoreLogs(logs []*raft.Log) error {
	if d.yields() {
		err := d.logAndStable.StoreLogs(logs)
		d.note(err)
		return err
	}
	return d.insist(func() error { return d.logAndStable.StoreLogs(logs) })
}

// StoreLog implements raft.LogStore.
func (d *raftDisk) StoreLog(log *raft.Log) error { return d.StoreLogs([]*raft.Log{log}) }

// Set implements raft.StableStore.
func (d *raftDisk) Set(key, value []byte) error {
	return d.insist(func() error { return d.logAndStable.Set(key, value) })
}

// SetUint64 implements raft.StableStore. A value that is there already is not written: so raft starts on a full disk.
func (d *raftDisk) SetUint64(key []byte, value uint64) error {
	if held, err := d.GetUint64(key); err == nil && held == value {
		return nil
	}
	err := d.insist(func() error { return d.logAndStable.SetUint64(key, value) })
	if err != nil {
		// Raft would panic. It is being stopped: its goroutine ends here, in good order.
		runtime.Goexit()
	}
	return nil
}
