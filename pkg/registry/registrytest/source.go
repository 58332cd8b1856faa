package registrytest

import (
	"bytes"
	"context"
	"io"
	"sync"
)

// Source is a blob that arrives as the test lets it.
type Source struct {
	content []byte

	mu      sync.Mutex
	arrived int64
	err     error
	change  chan struct{}
	waiting chan int64
}

// Waiting gives the offsets at which a reader had to wait, as it begins to.
func (s *Source) Waiting() <-chan int64 { return s.waiting }

// Whole gives a blob that is all there.
func Whole(content []byte) *Source { return Arriving(content, int64(len(content))) }

// Arriving gives a blob of which the first arrived bytes are there.
func Arriving(content []byte, arrived int64) *Source {
	return &Source{content: content, arrived: arrived, change: make(chan struct{}), waiting: make(chan int64, 1000)}
}

// Arrive lets n more bytes arrive.
func (s *Source) Arrive(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.arrived = min(s.arrived+n, int64(len(s.content)))
	close(s.change)
	s.change = make(chan struct{})
}

// Fail ends the arrival with an error.
func (s *Source) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	close(s.change)
	s.change = make(chan struct{})
}

// Size of the whole blob.
func (s *Source) Size() int64 { return int64(len(s.content)) }

// Wait blocks until there is a byte at off.
func (s *Source) Wait(ctx context.Context, off int64) (int64, error) {
	for {
		s.mu.Lock()
		arrived, err, change := s.arrived, s.err, s.change
		s.mu.Unlock()
		if arrived > off {
			return arrived - off, nil
		}
		if err != nil {
			return 0, err
		}
		select {
		case s.waiting <- off:
		default:
		}
		select {
		case <-change:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// ReadAt reads what has arrived.
func (s *Source) ReadAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	arrived := s.arrived
	s.mu.Unlock()
	if off+int64(len(p)) > arrived {
		return 0, io.ErrUnexpectedEOF
	}
	return bytes.NewReader(s.content).ReadAt(p, off)
}
