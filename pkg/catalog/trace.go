package catalog

import (
	"slices"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// A release's traceparent is in no snapshot of headquarters. A replica that does not know of the field keeps what it reads of it aside, where a copy of the release, as every look of a
// rollout makes it, has it not: to that replica the record would have changed, and it alone would give it a revision. What is left out here is in the rollout, which is never compared.
// The trace of a tombstone is left out for the same reason, and is nowhere else: whoever hears of the deletion later, from a member that has read a snapshot since, removes the tag in a trace of its own.

// edits says whether records may be edited here; rollouts are kept there alone.
func (s *state) edits() bool { return s.founded || s.restoring != "" }

// untraced returns a record as a snapshot has it.
func (s *state) untraced(rec *catalogv1.Record) *catalogv1.Record {
	if !s.edits() || rec.RemovalTraceparent == "" && !slices.ContainsFunc(rec.Releases, func(r *catalogv1.Release) bool { return r.Traceparent != "" }) {
		return rec
	}
	out := withTraces(rec, func(*catalogv1.Release) string { return "" })
	out.RemovalTraceparent = ""
	return out
}

// retraced returns a record of a snapshot with the traces that were left out, as far as they are remembered. Rollouts come before records.
func (s *state) retraced(rec *catalogv1.Record) *catalogv1.Record {
	if !s.edits() || len(rec.Releases) == 0 {
		return rec
	}
	return withTraces(rec, func(r *catalogv1.Release) string {
		if r.Rollout == "" {
			return rec.Traceparent // of the push; empty where a rollout has changed the record since
		}
		return s.rollout(r.Rollout).GetTraceparent()
	})
}

func withTraces(rec *catalogv1.Record, of func(*catalogv1.Release) string) *catalogv1.Record {
	out := copyRecord(rec)
	if len(rec.Releases) == 0 {
		return out
	}
	out.Releases = make([]*catalogv1.Release, len(rec.Releases))
	for i, r := range rec.Releases {
		out.Releases[i] = copyRelease(r)
		out.Releases[i].Traceparent = of(r)
	}
	return out
}
