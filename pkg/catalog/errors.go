package catalog

import (
	"errors"
	"fmt"
)

// Reasons for which the machine refuses a change. A refused change alters nothing but the clock.
var (
	// ErrStale: the revision in the change is not the last one plus one: the proposer was not the only one; it looks again and proposes anew. For an
	// import: the parent is in a later epoch but behind what is held.
	ErrStale = errors.New("stale revision")
	// ErrConflict: the record is not at the revision that the proposer saw.
	ErrConflict = errors.New("record changed meanwhile")
	// ErrUnchanged: the change would change nothing; no revision is used.
	ErrUnchanged = errors.New("nothing would change")
	// ErrNoEpoch: nothing was founded or imported here yet.
	ErrNoEpoch = errors.New("no catalog yet")
	// ErrFounded: this group is headquarters already; it is not founded twice and imports nothing.
	ErrFounded = errors.New("catalog was founded here")
	// ErrForeign: the import's catalog does not continue the one that is held.
	ErrForeign = errors.New("foreign epoch")
	// ErrResync: only a resync can follow: one is unfinished, or the scope changed.
	ErrResync = errors.New("resync needed")
	// ErrNotHeadquarters: the change belongs to headquarters, and this group follows a parent.
	ErrNotHeadquarters = errors.New("not headquarters")
	// ErrHeld: the deletion does not travel: it is too new, or one of too many, and waits for an operator's word.
	ErrHeld = errors.New("held")

	// ErrUnderRollout: a rollout moves the ref, and until its end nothing else does.
	ErrUnderRollout = errors.New("under rollout")
	// ErrInvalid: the change is malformed.
	ErrInvalid = errors.New("invalid change")
	// ErrUnknown: the command holds a kind of change that this version does not know. It must not be skipped: the agent stops.
	ErrUnknown = errors.New("unknown kind of change")
	// ErrCorrupt: a snapshot is cut, altered, or from a version that is not understood.
	ErrCorrupt = errors.New("corrupt snapshot")
)

// Refusal is why a change was refused. Equal commands on equal machines give equal refusals.
type Refusal struct {
	// Kind is one of the sentinel errors of this package.
	Kind error
	// Message says what, where and how to mend it.
	Message string
}

// Error implements error.
func (r *Refusal) Error() string { return r.Kind.Error() + ": " + r.Message }

// Unwrap makes errors.Is see the kind.
func (r *Refusal) Unwrap() error { return r.Kind }

func refuse(kind error, format string, args ...any) *Refusal {
	return &Refusal{Kind: kind, Message: fmt.Sprintf(format, args...)}
}
