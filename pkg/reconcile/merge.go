// Package reconcile decides what a site has to do: desired state and observed state in, verdicts and ordered steps out. [Merge] is the three-way merge
// that judges one ref at one site; [NewPlan] orders what must be put so that a ref shows a record, whole or not at all.
//
// It is pure: no I/O, clock, goroutine or randomness. It executes nothing and remembers nothing; pkg/agent gathers the inputs, carries the verdicts
// out and keeps the base. All functions are safe for concurrent use.
//
// Invariant: nothing is published below headquarters, nothing is removed without a tombstone, no record older than what the site has is delivered,
// and a registry that was not looked at, or whose word does not count, changes nothing elsewhere.
package reconcile

import (
	"slices"
	"time"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// Place says where in the tree a site is.
type Place int

// The places.
const (
	// Headquarters, where pushes become records.
	Headquarters Place = iota
	// Below it, where records are followed.
	Below
)

// Side is one side of the merge: what a tag shows, or showed.
type Side struct {
	// Known is false when it could not be found out, or was lost.
	Known bool
	// Digest that the tag shows; empty: there is no such tag.
	Digest string
}

// Input is all that the judgement of one ref at one site depends on.
type Input struct {
	// Place of the site.
	Place Place
	// Ours is what the registry shows now.
	Ours Side
	// Base is what this site last delivered, published or found equal; absent, and known, after it obeyed a tombstone. Not known: the memory was lost, or
	// never was.
	Base Side
	// BaseRevision is the revision of the record that Base came from, 0 if it came from none. It counts within one epoch only: for a base from an epoch that the
	// catalog does not descend from it is 0.
	BaseRevision uint64
	// Intent is the digest that was noted down before the tag was put, if it is not known whether that put happened; else empty. It counts as
	// the base when the registry shows it.
	Intent string
	// IntentRevision is the revision of the record that the intent was for.
	IntentRevision uint64
	// Theirs is the catalog's record; it may be a tombstone; nil: the ref is not in the catalog.
	Theirs *catalogv1.Record
	// Own: Theirs was published by this site or by one whose registry shares its storage, so this registry showed it then. It counts as the base when that is older: the answer to the publish may
	// never have come.
	Own bool
	// PublishMatch: the repository is one that may be published unasked.
	PublishMatch bool
	// Existing: the tag was there before fanout came, and such are to be ignored.
	Existing bool
	// Unkept: below headquarters, the group shows newer tags of the repository only, and not this one.
	Unkept bool
	// Distrusted: the registry was wiped or restored from a backup. Nothing is published or unpublished on its word.
	Distrusted bool
	// Deletes is publish.deletes: "ignore" (also when empty) or "propagate".
	Deletes string
	// Drift is what is done below headquarters about local changes.
	Drift Drift
	// PushedAt is when the registry was first seen to show Ours; zero: not known.
	PushedAt time.Time
	// TheirsSeen is when this site learned of Theirs, by the clock that PushedAt is of; zero: not known. What was pushed here after that came later, whatever the clocks elsewhere.
	TheirsSeen time.Time
	// ClockBound is by how much two sites' clocks may differ.
	ClockBound time.Duration
}

// Drift holds the settings drift.changed and drift.deleted: "repair" (also when empty), "report" or "accept".
type Drift struct {
	Changed, Deleted string
}

// Action is what a verdict asks for.
type Action int

// The actions.
const (
	// None: nothing is to be done, and nothing to be remembered.
	None Action = iota
	// Adopt: the registry shows what it should; the base becomes that, with the record's revision.
	Adopt
	// Deliver: the tag is made to show the record's target.
	Deliver
	// Publish: what the registry shows is proposed as a new record.
	Publish
	// Unpublish: the deletion is proposed as a tombstone.
	Unpublish
	// Remove: the tag is removed from the registry, as a tombstone says.
	Remove
	// Trim: the tag, which this site delivered, is removed from the registry, and forgotten.
	Trim
	// Conflict: the record is delivered; what the registry shows is kept under a hold and listed.
	Conflict
	// Report: the registry shows something else than the catalog, which is left so and shown.
	Report
	// Accept: the same, and the settings say that it is well so.
	Accept
	// Foreign: the ref is none of the catalog's; it is not touched.
	Foreign
)

var actionNames = [...]string{"none", "adopt", "deliver", "publish", "unpublish", "remove", "trim", "conflict", "report", "accept", "foreign"}

// String returns the action in a word.
func (a Action) String() string {
	if a < 0 || int(a) >= len(actionNames) {
		return "unknown"
	}
	return actionNames[a]
}

// Verdict is what is to be done about a ref at a site.
type Verdict struct {
	// Action to take.
	Action Action
	// Reason in words, fit to be shown.
	Reason string
	// Referrers: the tag is right, but the record is newer than the base and has referrers that the registry may lack. Make a plan and carry it out
	// before the base is set.
	Referrers bool
}

func say(a Action, reason string) Verdict { return Verdict{Action: a, Reason: reason} }

// Merge is the three-way merge for one ref at one site. O is what the registry shows (ours), B the base, T what the record says (theirs; a tombstone says
// absent); − is absent, ? not known. A registry that shows the intent has B = O. Where the record is this site's own and newer than B, and O ≠ T, B = T. The rows are tried from the top:
//
//	any place
//	  O ?                                                none       the registry was not looked at
//	  record older than the base's                       none       the catalog here is behind
//	  no record, but the base came from one, HQ          none       the catalog here is behind
//	  record is live and unkept
//	    B = O there, from a record                       trim
//	    else                                             none       it is not there, or is not what this site put
//	  O = T, B = T, revision of B = record's             none
//	  O = T, else                                        adopt      (referrers: where the record has some)
//	  no record, O −                                     none
//	no record, O there
//	  HQ, publishable, not existing, not distrusted      publish
//	  else                                               foreign
//	record is live, O ≠ T
//	  B = O there, HQ, existing, from no record, not in the
//	    record's history, not distrusted                 conflict
//	  B = O                                              deliver
//	  distrusted                                         deliver
//	  B ?, below                                         deliver
//	  B ?, O −                                           deliver
//	  B ?, O in the record's history                     deliver    stale
//	  B ?, HQ, not publishable or existing               conflict
//	  B ?, HQ, O pushed surely before T                  deliver
//	  B ?, HQ, O pushed at about the time of T, which is
//	    not this site's own                              conflict
//	  B ?, HQ, else                                      publish
//	  B = T, HQ, O −, deletes propagate, publishable     unpublish
//	  B = T, HQ, O −, else                               report     stays absent here
//	  B = T, HQ, O there, publishable                    publish
//	  B = T, HQ, O there, else                           report
//	  B = T, below                                       by drift.deleted (O −) or drift.changed: repair: deliver; report: report; accept: accept
//	  all differ, below                                  deliver
//	  all differ, HQ, O −                                deliver    a push outweighs a deletion
//	  all differ, HQ, not publishable, O in the history  deliver    stale
//	  all differ, HQ, not publishable                    conflict
//	  all differ, HQ, O pushed surely after T            publish
//	  all differ, HQ, O pushed surely before T           deliver
//	  all differ, HQ, O in the record's history          deliver    stale
//	  all differ, HQ, else                               conflict
//	record is a tombstone, O there; "shown" means that O is its target or in its history
//	  B = O, from a record                               remove
//	  distrusted, O shown                                remove
//	  B − by this tombstone, below, O shown              by drift.changed: repair: remove; report: report; accept: accept
//	  B − by this tombstone, HQ                          as a push, see below
//	  HQ, O shown, pushed surely after the tombstone     as a push
//	  O shown                                            remove
//	  HQ, else                                           as a push
//	  below, else                                        foreign    it was never the catalog's
//	  as a push: publishable, not existing, not distrusted: publish; else foreign
//
// "Surely" means by more than the clock bound, where both times are known; or after this site had learned of T.
//
// Merge compares what the tag shows. Referrers that were added in this registry since, under an unchanged target, are the publisher's to find: it
// compares the closure with the record's.
func Merge(in Input) Verdict {
	if !in.Ours.Known {
		return say(None, "the registry was not looked at")
	}
	if in.Intent != "" && in.Ours.Digest == in.Intent {
		in.Base = in.Ours
		in.BaseRevision = max(in.BaseRevision, in.IntentRevision)
	}
	t := in.Theirs
	if t == nil {
		return mergeUnlisted(in)
	}
	if t.GetRevision() < in.BaseRevision {
		return say(None, "the catalog here is behind what this site has")
	}
	if in.Unkept && !t.GetDeleted() {
		if in.Ours.Digest != "" && in.Base.Known && in.Base.Digest == in.Ours.Digest && in.BaseRevision > 0 {
			return say(Trim, "newer tags are kept")
		}
		return say(None, "newer tags are kept")
	}
	if in.Ours.Digest == shows(t) {
		return mergeEqual(in)
	}
	if in.Own && in.Base.Known && t.GetRevision() > in.BaseRevision {
		in.Base, in.BaseRevision = Side{Known: true, Digest: shows(t)}, t.GetRevision()
	}
	if t.GetDeleted() {
		return mergeTombstone(in)
	}
	if in.Base.Known && in.Base.Digest == in.Ours.Digest {
		if in.Place == Headquarters && in.Existing && in.BaseRevision == 0 && in.Ours.Digest != "" && !in.Distrusted && !slices.Contains(t.GetHistory(), in.Ours.Digest) {
			return say(Conflict, "set here before fanout came")
		}
		return say(Deliver, "the catalog has moved on")
	}
	if in.Distrusted {
		return say(Deliver, "the registry was wiped or restored")
	}
	if in.Place == Below {
		return mergeBelow(in)
	}
	switch {
	case !in.Base.Known:
		return mergeBaseLost(in)
	case in.Base.Digest == t.GetTarget().GetDigest():
		return mergeChangedHere(in)
	}
	return mergeAllDiffer(in)
}

// shows returns what a record says that the tag shows; a tombstone says absent.
func shows(rec *catalogv1.Record) string {
	if rec.GetDeleted() {
		return ""
	}
	return rec.GetTarget().GetDigest()
}

func mergeUnlisted(in Input) Verdict {
	switch {
	case in.Place == Headquarters && in.BaseRevision > 0:
		return say(None, "the catalog here is behind what this site has")
	case in.Ours.Digest == "":
		return say(None, "neither here nor in the catalog")
	case in.Place == Below:
		return say(Foreign, "not in the catalog")
	}
	return pushed(in, "pushed here")
}

func mergeEqual(in Input) Verdict {
	t := in.Theirs
	if in.Base == in.Ours && in.BaseRevision == t.GetRevision() {
		return say(None, "as the catalog says")
	}
	v := say(Adopt, "as the catalog says")
	v.Referrers = !t.GetDeleted() && len(t.GetReferrers()) > 0
	return v
}

// pushed is the verdict on a tag that someone set at headquarters and that the catalog does not contradict.
func pushed(in Input, reason string) Verdict {
	switch {
	case in.Distrusted:
		return say(Foreign, "the registry was wiped or restored: not published on its word")
	case !in.PublishMatch:
		return say(Foreign, "the repository is not published")
	case in.Existing:
		return say(Foreign, "it was there before fanout came")
	}
	return say(Publish, reason)
}

func mergeTombstone(in Input) Verdict {
	t, ours := in.Theirs, in.Ours.Digest
	shown := ours == t.GetTarget().GetDigest() || slices.Contains(t.GetHistory(), ours)
	// A site that saw the tag gone under this very tombstone knows that what is there now came later. One that saw it gone before does not.
	obeyed := in.Base.Known && in.Base.Digest == "" && in.BaseRevision == t.GetRevision()
	switch {
	case in.Base.Known && in.Base.Digest == ours && in.BaseRevision > 0:
		return say(Remove, "deleted at headquarters")
	case in.Distrusted && shown:
		return say(Remove, "deleted at headquarters, before the registry was restored")
	case in.Place == Below && !shown:
		return say(Foreign, "deleted at headquarters; what is here never was in the catalog")
	case in.Place == Below && obeyed:
		return drift(in.Drift.Changed, Remove, "set here after its deletion at headquarters")
	case in.Place == Below:
		return say(Remove, "deleted at headquarters")
	case obeyed:
		return pushed(in, "pushed here after its deletion")
	case shown && !in.surelyAfter(t.GetPublishedAt().AsTime()):
		return say(Remove, "deleted at headquarters")
	}
	return pushed(in, "pushed here, deleted elsewhere")
}

func mergeBelow(in Input) Verdict {
	switch {
	case !in.Base.Known:
		return say(Deliver, "what was here before is not known")
	case in.Base.Digest != shows(in.Theirs):
		return say(Deliver, "changed here and at headquarters")
	case in.Ours.Digest == "":
		return drift(in.Drift.Deleted, Deliver, "deleted here")
	}
	return drift(in.Drift.Changed, Deliver, "changed here")
}

func drift(setting string, repair Action, what string) Verdict {
	switch setting {
	case "", "repair":
		return say(repair, what+": repaired")
	case "accept":
		return say(Accept, what+": accepted")
	}
	return say(Report, what)
}

func mergeBaseLost(in Input) Verdict {
	t, ours := in.Theirs, in.Ours.Digest
	switch {
	case ours == "":
		return say(Deliver, "missing here")
	case slices.Contains(t.GetHistory(), ours):
		return say(Deliver, "what is here was replaced earlier")
	case !in.PublishMatch:
		return say(Conflict, "set here, in a repository that is not published")
	case in.Existing:
		return say(Conflict, "set here before fanout came")
	case in.surelyBefore(t.GetPushedAt().AsTime()):
		return say(Deliver, "what is here was pushed earlier")
	case in.surelyAfter(t.GetPushedAt().AsTime()), in.Own, !known(in.PushedAt), !known(t.GetPushedAt().AsTime()):
		return say(Publish, "pushed here")
	}
	// A tag that is new at both has no base either: to publish this one could put the earlier push over the later.
	return say(Conflict, "pushed here and elsewhere at about the same time")
}

func mergeChangedHere(in Input) Verdict {
	switch {
	case in.Ours.Digest == "" && in.Deletes == "propagate" && in.PublishMatch:
		return say(Unpublish, "deleted here")
	case in.Ours.Digest == "":
		return say(Report, "deleted here; deletions do not travel: unpublish it, or push it again")
	case in.PublishMatch:
		return say(Publish, "pushed here")
	}
	return say(Report, "changed here, in a repository that is not published")
}

func mergeAllDiffer(in Input) Verdict {
	t, ours := in.Theirs, in.Ours.Digest
	switch {
	case ours == "":
		return say(Deliver, "deleted here, pushed elsewhere")
	case !in.PublishMatch && slices.Contains(t.GetHistory(), ours):
		return say(Deliver, "what is here was replaced already")
	case !in.PublishMatch:
		return say(Conflict, "changed here, in a repository that is not published, and published elsewhere")
	case in.surelyAfter(t.GetPushedAt().AsTime()):
		return say(Publish, "pushed here later than elsewhere")
	case in.surelyBefore(t.GetPushedAt().AsTime()):
		return say(Deliver, "pushed elsewhere later than here")
	case slices.Contains(t.GetHistory(), ours):
		return say(Deliver, "what is here was replaced already")
	}
	return say(Conflict, "pushed here and elsewhere at about the same time")
}

// surelyAfter says that ours was pushed later than at, a time of theirs, whatever the clocks.
func (in Input) surelyAfter(at time.Time) bool {
	if known(in.PushedAt) && known(in.TheirsSeen) && in.PushedAt.After(in.TheirsSeen) {
		return true
	}
	return known(in.PushedAt) && known(at) && in.PushedAt.Sub(at) > in.ClockBound
}

func (in Input) surelyBefore(at time.Time) bool {
	return known(in.PushedAt) && known(at) && at.Sub(in.PushedAt) > in.ClockBound
}

// known: a timestamp that was never set is the zero time here, or 1970 from an absent message.
func known(t time.Time) bool { return !t.IsZero() && !t.Equal(time.Unix(0, 0)) }
