package integration

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"github.com/fanout-io/fanout/pkg/catalog"
)

// readLogs ends the agents of headquarters and replays their raft logs: what was looked at while the run went on may have missed a revision that was replaced within moments, the log has
// them all. It judges, too, that all members applied the same.
func (r *run) readLogs() {
	r.t.Helper()
	whole := 0
	for _, s := range r.at(soakHQ...) {
		s.stop()
		changes, first, err := replay(filepath.Join(cmp.Or(s.data, s.dir), "raft", "raft.db"))
		switch {
		case err != nil:
			r.t.Errorf("the raft log of %s: %v", s.name, err)
		case first > 1:
			r.say("the raft log of %s begins at %d", s.name, first) // it came as a snapshot
		default:
			whole++
			for _, c := range changes {
				r.history.add(c)
			}
		}
	}
	if whole == 0 {
		r.t.Error("no member of headquarters has its whole raft log")
	}
	if holes := r.history.holes(); len(holes) > 0 {
		r.t.Errorf("revisions %v are neither in the raft logs nor were they seen", holes)
	}
}

// replay gives all changes of records that a raft log leads to, where it is whole, and its first index.
func replay(path string) (changes []change, first uint64, err error) {
	log, err := raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: &bbolt.Options{ReadOnly: true, Timeout: 5 * time.Second}})
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	if first, err = log.FirstIndex(); err != nil || first > 1 {
		return nil, first, err
	}
	last, err := log.LastIndex()
	if err != nil {
		return nil, first, err
	}
	machine := catalog.New()
	for i := first; i <= last; i++ {
		var entry raft.Log
		if err := log.GetLog(i, &entry); err != nil {
			return nil, first, fmt.Errorf("entry %d: %w", i, err)
		}
		if entry.Type != raft.LogCommand {
			continue
		}
		cmd, err := catalog.DecodeCommand(entry.Data)
		if err != nil {
			return nil, first, fmt.Errorf("entry %d: %w", i, err)
		}
		for _, result := range machine.Apply(cmd) {
			if rec := result.Record; result.Err == nil && len(result.Refs) > 0 && rec != nil {
				c := change{revision: rec.GetRevision(), ref: catalog.RefOf(rec).String(), digest: rec.GetTarget().GetDigest(), origin: rec.GetOrigin()}
				if rec.GetDeleted() {
					c.digest = ""
				}
				changes = append(changes, c)
			}
		}
	}
	return changes, first, nil
}
