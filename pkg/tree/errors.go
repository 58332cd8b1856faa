package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fanout-io/fanout/pkg/catalog"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

var (
	// ErrNotRoot: this member is not the root, or is it no more. What it was asked for did not begin. It is the cause of a root's context that ended.
	ErrNotRoot = errors.New("not the root")
	// ErrNoRoot: the group has no root that can be reached now.
	ErrNoRoot = errors.New("the group has no root")
	// ErrUnknownOutcome: whether the change was committed is not known: look at the catalog before asking again.
	ErrUnknownOutcome = errors.New("outcome unknown")
	// ErrStopped: the node is not running.
	ErrStopped = errors.New("node is not running")
	// ErrBroken: a committed command can't be applied by this version. It is never skipped: the agent stops.
	ErrBroken = errors.New("committed command cannot be applied")
	// ErrRefused: the other side does not accept who we are or what we ask.
	ErrRefused = errors.New("refused")
	// ErrNotMember: the site that was named does not belong to the group.
	ErrNotMember = errors.New("not a member")
	// ErrRemoved: the site was removed from the group.
	ErrRemoved = errors.New("removed")
	// ErrRubbish: the other side sent what it must not.
	ErrRubbish = errors.New("unacceptable message")

	// errKilled as the cause of Run's context makes a node end without a word, as a crash would: for tests.
	errKilled = errors.New("killed")
)

// refusals are the words by which refusals of the catalog travel.
var refusals = map[string]error{
	"stale":            catalog.ErrStale,
	"conflict":         catalog.ErrConflict,
	"unchanged":        catalog.ErrUnchanged,
	"no-epoch":         catalog.ErrNoEpoch,
	"founded":          catalog.ErrFounded,
	"foreign":          catalog.ErrForeign,
	"resync":           catalog.ErrResync,
	"not-headquarters": catalog.ErrNotHeadquarters,
	"held":             catalog.ErrHeld,

	"under-rollout": catalog.ErrUnderRollout,
	"invalid":       catalog.ErrInvalid,
}

// toResult is how a result travels.
func toResult(r catalog.Result) *treev1.ChangeResult {
	out := &treev1.ChangeResult{Revision: r.Revision, Record: r.Record}
	if r.Err == nil {
		return out
	}
	out.Revision, out.Refusal, out.Message = 0, "refused", r.Err.Error()
	for word, kind := range refusals {
		if errors.Is(r.Err, kind) {
			out.Refusal = word
		}
	}
	var refusal *catalog.Refusal
	if errors.As(r.Err, &refusal) {
		out.Message = refusal.Message
	}
	return out
}

// fromResult is the reverse of toResult.
func fromResult(r *treev1.ChangeResult) catalog.Result {
	out := catalog.Result{Revision: r.GetRevision(), Record: r.GetRecord()}
	if r.GetRefusal() == "" {
		return out
	}
	kind, known := refusals[r.GetRefusal()]
	if !known {
		kind = ErrRefused
	}
	out.Err = &catalog.Refusal{Kind: kind, Message: r.GetMessage()}
	return out
}

// toStatus is how an error travels. FAILED_PRECONDITION alone says that nothing was done because this member is not the root.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	code := codes.Unavailable
	switch {
	case errors.Is(err, ErrUnknownOutcome):
	case errors.Is(err, ErrNotRoot), errors.Is(err, ErrNoRoot), errors.Is(err, ErrStopped):
		code = codes.FailedPrecondition
	case errors.Is(err, ErrRefused), errors.Is(err, ErrRemoved):
		code = codes.PermissionDenied
	case errors.Is(err, ErrRubbish), errors.Is(err, catalog.ErrInvalid):
		code = codes.InvalidArgument
	case errors.Is(err, errAgain):
		code = codes.Aborted
	case errors.Is(err, errReplaced):
		code = codes.AlreadyExists
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	}
	return status.Error(code, err.Error())
}

// fromStatus is the reverse of toStatus for a call that may have changed something.
func fromStatus(err error) error {
	st := status.Convert(err)
	switch st.Code() {
	case codes.OK:
		return nil
	case codes.FailedPrecondition:
		return fmt.Errorf("%w: %s", ErrNotRoot, st.Message())
	case codes.PermissionDenied, codes.Unauthenticated:
		return fmt.Errorf("%w: %s", ErrRefused, st.Message())
	case codes.InvalidArgument, codes.ResourceExhausted:
		return fmt.Errorf("%w: %s", ErrRubbish, st.Message())
	}
	return fmt.Errorf("%w: %s", ErrUnknownOutcome, st.Message())
}

// fromStream is the reverse of toStatus for a stream that ended.
func fromStream(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("the parent ended the stream")
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	switch st.Code() {
	case codes.OK:
		return err
	case codes.Aborted:
		return fmt.Errorf("%w: %s", errAgain, strings.TrimPrefix(st.Message(), errAgain.Error()+": "))
	case codes.FailedPrecondition:
		if st.Message() == ErrNotRoot.Error() {
			return ErrNotRoot
		}
	case codes.AlreadyExists:
		return fmt.Errorf("%w: %s", errReplaced, strings.TrimPrefix(st.Message(), errReplaced.Error()+": "))
	case codes.PermissionDenied, codes.Unauthenticated:
		return fmt.Errorf("%w: %s", ErrRefused, st.Message())
	case codes.InvalidArgument, codes.ResourceExhausted, codes.Internal:
		// Internal: it can't be decoded.
		return fmt.Errorf("%w: %s", ErrRubbish, st.Message())
	}
	return errors.New(st.Message())
}

// rubbish says what is wrong with a message from outside.
func rubbish(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrRubbish, fmt.Sprintf(format, args...))
}

// refused says why another's claim is not accepted.
func refused(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrRefused, fmt.Sprintf(format, args...))
}
