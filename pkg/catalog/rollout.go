package catalog

import (
	"cmp"
	"slices"
	"strings"
	"time"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// Phases of a rollout.
const (
	RolloutPending          = "pending"
	RolloutStaging          = "staging"
	RolloutRunning          = "running"
	RolloutSoaking          = "soaking"
	RolloutAwaitingApproval = "awaiting-approval"
	RolloutAwaitingWindow   = "awaiting-window"
	RolloutPaused           = "paused"
	RolloutSucceeded        = "succeeded"
	RolloutFailed           = "failed"
	RolloutAborted          = "aborted"
	RolloutRollingBack      = "rolling-back"
	RolloutRolledBack       = "rolled-back"
)

// Phases of a wave.
const (
	WavePending          = "pending"
	WaveAwaitingWindow   = "awaiting-window"
	WaveAwaitingApproval = "awaiting-approval"
	WaveChecking         = "checking"
	WaveRunning          = "running"
	WaveSoaking          = "soaking"
	WaveSucceeded        = "succeeded"
	WaveFailed           = "failed"
	WaveSkipped          = "skipped"
)

// Phases of a group in a rollout.
const (
	GroupPending     = "pending"
	GroupStaging     = "staging"
	GroupStaged      = "staged"
	GroupRunning     = "running"
	GroupSucceeded   = "succeeded"
	GroupFailed      = "failed"
	GroupSkipped     = "skipped"
	GroupOffline     = "offline"
	GroupRollingBack = "rolling-back"
	GroupRolledBack  = "rolled-back"
)

// States in which a group is observed.
const (
	ObservedStaged    = "staged"
	ObservedDelivered = "delivered"
	ObservedPending   = "pending"
	ObservedFailed    = "failed"
	ObservedOffline   = "offline"
	ObservedFrozen    = "frozen"
)

// Results of a gate.
const (
	GateWaiting = "waiting"
	GatePassed  = "passed"
	GateFailed  = "failed"
)

// Words of a plan: on_failure and on_offline.
const (
	OnFailurePause    = "pause"
	OnFailureAbort    = "abort"
	OnFailureRollback = "rollback"
	OnOfflineWait     = "wait"
	OnOfflineSkip     = "skip"
	OnOfflineFail     = "fail"
)

// SettleAfter is how long after its end a rollout can still be rolled back, unless its refs change before.
const SettleAfter = 7 * 24 * time.Hour

const (
	// maxActive bounds the rollouts under way, and maxEnded those that are remembered.
	maxActive = 256
	maxEnded  = 100
	maxSteps  = 200
	// maxReceipts bounds the sites of a group that a rollout remembers.
	maxReceipts = 256
)

func lessRollout(a, b *catalogv1.Rollout) bool { return a.Id < b.Id }

// Ended says whether a rollout goes on no more. It may be rolled back yet.
func Ended(r *catalogv1.Rollout) bool {
	switch r.GetPhase() {
	case RolloutSucceeded, RolloutFailed, RolloutAborted, RolloutRolledBack:
		return true
	}
	return false
}

// SettleDue says whether a rollout is to be settled at a time: an observation of any rollout does it.
func SettleDue(r *catalogv1.Rollout, now time.Time) bool {
	return Ended(r) && !r.GetSettled() && !now.Before(r.GetEnded().AsTime().Add(SettleAfter))
}

func (s *state) rollout(id string) *catalogv1.Rollout {
	r, _ := s.rollouts.Get(&catalogv1.Rollout{Id: id})
	return r
}

// Rollout returns a rollout; nil: none of that ID is remembered.
func (s *Snapshot) Rollout(id string) *catalogv1.Rollout { return s.rollout(id) }

// Rollouts returns those that are remembered, those that go on and the last that ended, by their start.
func (s *Snapshot) Rollouts() []*catalogv1.Rollout {
	out := s.rollouts.Items()
	slices.SortStableFunc(out, func(a, b *catalogv1.Rollout) int {
		return cmp.Or(a.Started.AsTime().Compare(b.Started.AsTime()), strings.Compare(a.Id, b.Id))
	})
	return out
}

// ActiveRollout returns the rollout under which a ref is, one that is being rolled back included; nil: none.
func (s *Snapshot) ActiveRollout(ref Ref) *catalogv1.Rollout {
	rec, _ := s.get(ref)
	return s.active(rec)
}

// active: a rollout that goes on has a release in the record of each of its refs, whether or not it names a group yet.
func (s *state) active(rec *catalogv1.Record) *catalogv1.Rollout {
	for _, rel := range rec.GetReleases() {
		if r := s.rollout(rel.Rollout); r != nil && !Ended(r) {
			return r
		}
	}
	return nil
}
