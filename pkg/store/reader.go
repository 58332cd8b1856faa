package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
)

// Reader reads a blob that is whole or still arriving. While one is open the blob is not evicted. It fails for good when
// the content is dropped (ErrAborted, ErrDigestMismatch, the cause given to Remove) or the store is closed (ErrClosed);
// that a writer merely went away it can't see, since another may go on.
type Reader struct {
	e      *entry
	closed atomic.Bool
	dead   error // set from the start when there is nothing to read
}

func deadReader(e *entry, err error) *Reader {
	r := &Reader{e: e, dead: err}
	r.closed.Store(true)
	return r
}

// waiter is a call of Wait. It is in entry.waiters, or has been woken, never both; wake is called under entry.mu.
type waiter struct {
	ch  chan struct{}
	off int64
	r   *Reader
}

func (w *waiter) wake() { w.ch <- struct{}{} } // has room for the one

// Digest of the whole blob.
func (r *Reader) Digest() string { return r.e.key.String() }

// Size of the whole blob.
func (r *Reader) Size() int64 { return r.e.size }

// check says why nothing can be read. Under entry.mu.
func (r *Reader) check() error {
	switch {
	case r.dead != nil:
		return r.dead
	case r.e.err != nil:
		return r.e.err
	case r.closed.Load():
		return ErrClosed
	}
	return nil
}

// Wait blocks until at least one byte at off is present; n is the number of contiguous bytes available there, 0 at the
// end of the blob.
func (r *Reader) Wait(ctx context.Context, off int64) (n int64, err error) {
	e := r.e
	if off < 0 || off > e.size {
		return 0, fmt.Errorf("%w: offset %d of %s, which has %d bytes", ErrInvalid, off, e.key, e.size)
	}
	for {
		e.mu.Lock()
		if err := r.check(); err != nil {
			e.mu.Unlock()
			return 0, fmt.Errorf("reading %s: %w", e.key, err)
		}
		if n := e.available(off); n > 0 || off == e.size {
			e.mu.Unlock()
			return n, nil
		}
		w := &waiter{ch: make(chan struct{}, 1), off: off, r: r} // not pooled: a channel belongs to the synctest bubble that made it
		e.waiters = append(e.waiters, w)
		e.mu.Unlock()
		select {
		case <-w.ch:
		case <-ctx.Done():
			e.forget(w)
			err = context.Cause(ctx)
		}
		if err != nil {
			return 0, err
		}
	}
}

// forget takes a waiter that gave up out of the list, or takes the wake-up that came first.
func (e *entry) forget(w *waiter) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i, x := range e.waiters {
		if x == w {
			last := len(e.waiters) - 1
			e.waiters[i], e.waiters[last] = e.waiters[last], nil
			e.waiters = e.waiters[:last]
			return
		}
	}
	<-w.ch
}

// ReadAt reads what is present. It returns fewer bytes than asked for with ErrAbsent, where the next one has not arrived, or
// io.EOF, at the end of the blob.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) {
	e := r.e
	if off < 0 || off > e.size {
		return 0, fmt.Errorf("%w: offset %d of %s, which has %d bytes", ErrInvalid, off, e.key, e.size)
	}
	e.mu.Lock()
	err, avail, data := r.check(), e.available(off), e.data
	e.mu.Unlock()
	if err != nil {
		return 0, fmt.Errorf("reading %s: %w", e.key, err)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if off == e.size {
		return 0, io.EOF
	}
	if avail == 0 {
		return 0, ErrAbsent
	}
	if data == nil {
		return 0, fmt.Errorf("reading %s: %w", e.key, ErrClosed)
	}
	want := p[:min(int64(len(p)), avail)]
	n, err := data.readAt(want, off)
	switch {
	case n == len(p):
		return n, nil
	case n == len(want) && off+int64(n) == e.size:
		return n, io.EOF
	case n == len(want):
		return n, ErrAbsent
	case errors.Is(err, io.EOF):
		err = fmt.Errorf("%w: its file ends at %d", ErrDamaged, off+int64(n))
	}
	return n, fmt.Errorf("reading %s at %d: %w", e.key, off, diskErr(err))
}

// Stream reads from off to the end of the blob, following while it grows; ctx bounds its waiting. Closing it ends a Read
// that waits; it does not close the Reader, which may have many streams.
func (r *Reader) Stream(ctx context.Context, off int64) io.ReadCloser {
	ctx, cancel := context.WithCancelCause(ctx)
	return &stream{r: r, ctx: ctx, cancel: cancel, off: off}
}

type stream struct {
	r      *Reader
	ctx    context.Context
	cancel context.CancelCauseFunc
	off    int64
}

// Read is for one goroutine at a time; Close may be called by another.
func (s *stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	n, err := s.r.Wait(s.ctx, s.off)
	if err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, io.EOF
	}
	k, err := s.r.ReadAt(p[:min(int64(len(p)), n)], s.off)
	s.off += int64(k)
	if k > 0 && (err == io.EOF || errors.Is(err, ErrAbsent)) {
		err = nil
	}
	return k, err
}

// Close ends the stream.
func (s *stream) Close() error {
	s.cancel(fmt.Errorf("stream of %s: %w", s.r.e.key, ErrClosed))
	return nil
}

// Close lets go of the blob; calls that wait return ErrClosed. Closing twice does nothing.
func (r *Reader) Close() error {
	if r.closed.Swap(true) {
		return nil
	}
	e := r.e
	e.mu.Lock()
	keep := e.waiters[:0]
	for _, w := range e.waiters {
		if w.r == r {
			w.wake()
		} else {
			keep = append(keep, w)
		}
	}
	clear(e.waiters[len(keep):])
	e.waiters = keep
	e.mu.Unlock()
	e.sp.release(e)
	return nil
}
