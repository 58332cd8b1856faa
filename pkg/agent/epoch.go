package agent

import (
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/store"
)

// counted returns a ref's state with the revisions that count in the catalog as it is now. Those of an epoch that it does not descend from are 0, and those beyond
// where it left an earlier epoch: headquarters was built anew, or restored from a backup that did not hold them, and has given, or will give, such
// numbers to other changes. What the digests say stays true. While nothing is held, nothing can be judged, and the state stays as it is.
func counted(snap *catalog.Snapshot, st store.RefState) store.RefState {
	now := snap.Position().GetEpoch()
	if st.Epoch == "" || now == "" || st.Epoch == now {
		return st
	}
	left := uint64(0)
	for _, a := range snap.Ancestors() {
		if p := a.GetPosition(); p.GetEpoch() == st.Epoch {
			left = p.GetRevision()
		}
	}
	if st.BaseRevision > left {
		st.BaseRevision = 0
	}
	if st.IntentRevision > left {
		st.IntentRevision = 0
	}
	st.Epoch = now
	return st
}

// unpruned returns a ref's state without the revision of a tombstone that was dropped since: the ref is as one that never was, and what is pushed under it is news. Without
// this the catalog would seem to be behind what this site has.
func unpruned(snap *catalog.Snapshot, rec *catalogv1.Record, st store.RefState) store.RefState {
	if rec == nil && st.BaseRevision <= snap.Pruned() {
		st.BaseRevision = 0
	}
	return st
}

// revisionIn is a record's revision, or 0 where it can't be told in which epoch it counts.
func revisionIn(snap *catalog.Snapshot, rec *catalogv1.Record) uint64 {
	if snap.EpochOf(rec) == "" {
		return 0
	}
	return rec.GetRevision()
}
