package transfer

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fanout-io/fanout/pkg/store"
)

var (
	// ErrNotFound: neither this site nor (in a Fetch) any source has, or may get, the content.
	ErrNotFound = errors.New("content not found")
	// ErrDenied: the asker may not read the content under the purpose that it named.
	ErrDenied = errors.New("not in the asker's scope")
	// ErrUnavailable: nothing wrong with the request; try again, here or elsewhere.
	ErrUnavailable = errors.New("unavailable")
	// ErrCorrupt: bytes differ from their CRC-32C, or the whole from its digest.
	ErrCorrupt = errors.New("corrupt content")
	// ErrBadSource: the only sources are those that sent corrupt content for this digest lately.
	ErrBadSource = errors.New("every source sent corrupt content lately")
	// ErrProtocol: a peer broke the rules of the stream: a wrong offset, an empty or oversized message, more than was asked for.
	ErrProtocol = errors.New("protocol violated by peer")
	// ErrTruncated: a source ended its stream as if all were sent, before the last byte.
	ErrTruncated = errors.New("stream ended early")
	// ErrStalled: a source sent nothing for the stall time-out.
	ErrStalled = errors.New("source stalled")
	// ErrSize: two parties name different sizes for one digest.
	ErrSize = errors.New("sizes differ")
	// ErrInvalid: a request is malformed.
	ErrInvalid = errors.New("invalid request")
	// ErrClosed: the fetcher has ended.
	ErrClosed = errors.New("fetcher closed")
	// ErrReleased: the flight was cancelled because nobody wanted it any more. Its pieces are kept.
	ErrReleased = errors.New("flight released")
)

// toStatus turns an error into what goes over the wire. It is the only place that does; fromStatus is its inverse.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	code := codes.Unavailable
	switch {
	case errors.Is(err, ErrInvalid), errors.Is(err, ErrSize):
		code = codes.InvalidArgument
	case errors.Is(err, ErrNotFound), errors.Is(err, store.ErrNotFound):
		code = codes.NotFound
	case errors.Is(err, ErrDenied):
		code = codes.PermissionDenied
	case errors.Is(err, ErrCorrupt), errors.Is(err, store.ErrDigestMismatch):
		code = codes.DataLoss
	default:
		var own interface{ GRPCStatus() *status.Status }
		if errors.As(err, &own) {
			return own.GRPCStatus().Err()
		}
	}
	return status.Error(code, err.Error())
}

// FromStatus gives an error of a call of the transfer service its sentinel.
func FromStatus(err error) error { return fromStatus(err) }

// fromStatus gives an error from the wire its sentinel, keeping the status in the chain.
func fromStatus(err error) error {
	if err == nil {
		return nil
	}
	var sentinel error
	switch status.Code(err) {
	case codes.NotFound:
		sentinel = ErrNotFound
	case codes.PermissionDenied, codes.Unauthenticated:
		sentinel = ErrDenied
	case codes.DataLoss:
		sentinel = ErrCorrupt
	case codes.InvalidArgument, codes.OutOfRange:
		sentinel = ErrInvalid
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted:
		sentinel = ErrUnavailable
	default:
		return err
	}
	return fmt.Errorf("%w: %w", sentinel, err)
}
