package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/fanout-io/fanout/pkg/store"
)

// Flight is one holder's handle on the fetch of one blob.
type Flight struct {
	fl   *flight
	req  Request // zero for a Lookup
	once sync.Once
}

// Digest of the blob.
func (h *Flight) Digest() string { return h.fl.digest }

// Reader opens a reader of the blob, which is whole or still arriving; the caller closes it. It keeps waiting when the
// flight fails, because another may bring the rest: use Stream, or Done, where that is not wanted. After the content turned
// out corrupt, old readers fail, and a new one follows the next attempt. It is nil only for a flight that came from Lookup
// and has not begun.
func (h *Flight) Reader() *store.Reader {
	r, err := h.fl.reader()
	if err != nil {
		return nil
	}
	return r
}

func (fl *flight) reader() (*store.Reader, error) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if fl.latest != nil {
		return fl.latest.NewReader(), nil // also after its end; it fails then with the reason
	}
	if fl.pin == nil {
		if err := fl.failure(); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w: fetch of %s has not begun", ErrUnavailable, fl.digest)
	}
	r, err := fl.f.cfg.Spool.Open(fl.digest)
	if err != nil {
		return fl.pin, nil // the content was removed in spite of the pin, and the pin says why; it may be closed twice
	}
	return r, nil
}

// Stream reads the blob from off to its end, following while it grows, and fails when the flight does.
func (h *Flight) Stream(ctx context.Context, off int64) (io.ReadCloser, error) {
	r, err := h.fl.reader()
	if err != nil {
		return nil, err
	}
	ctx, cancel := h.fl.alive(ctx)
	return &followed{ReadCloser: r.Stream(ctx, off), r: r, cancel: cancel}, nil
}

type followed struct {
	io.ReadCloser
	r      *store.Reader
	cancel func()
}

func (f *followed) Close() error {
	f.cancel()
	return errors.Join(f.ReadCloser.Close(), f.r.Close())
}

// Done is closed when the blob is committed or the flight has failed.
func (h *Flight) Done() <-chan struct{} { return h.fl.done }

// Wait blocks until the blob is committed (nil) or the flight has failed.
func (h *Flight) Wait(ctx context.Context) error {
	select {
	case <-h.fl.done:
		return h.fl.failure()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Progress is how much of the blob is here.
func (h *Flight) Progress() (have, size int64) { return h.fl.have.Load(), h.fl.size }

// Gave is how many bytes of the blob each site sent, as far as the flight has come. What was in the spool before is nobody's.
func (h *Flight) Gave() map[string]int64 {
	h.fl.mu.Lock()
	defer h.fl.mu.Unlock()
	out := make(map[string]int64, len(h.fl.gave))
	for s, n := range h.fl.gave {
		out[s.Site] += n
	}
	return out
}

// Upstream says that the flight is drawing from outside the group.
func (h *Flight) Upstream() bool { return h.fl.upstream.Load() }

// waitsOutside says that a fellow may wait for this flight: it waits for no fellow itself, but for its turn, for a limit or
// for someone outside; and for nobody when all is here. A flight says that it asks a fellow before it asks, so of the members
// of a circle the last one finds another that says so, and is refused.
func (h *Flight) waitsOutside() bool { return !h.fl.onFellow.Load() || h.fl.have.Load() == h.fl.size }

// Release gives the handle back. The last one to do so cancels a flight under way, whose pieces are kept, and lets go of
// whole content, which may then be evicted.
func (h *Flight) Release() {
	h.once.Do(func() { h.fl.release(h.req) })
}

// flight is what the handles share.
type flight struct {
	f      *Fetcher
	digest string
	size   int64
	since  time.Time
	ctx    context.Context
	cancel context.CancelCauseFunc
	// failed ends, with the flight's error as its cause, when the flight fails; never when it succeeds.
	failed   context.Context
	fail     context.CancelCauseFunc
	started  chan struct{} // closed when content has begun to arrive
	start    func()
	done     chan struct{}
	have     atomic.Int64
	upstream atomic.Bool // content comes from outside the group
	onFellow atomic.Bool // a fellow is asked
	queued   atomic.Bool
	seen     bool // committed once before by this process
	meter    meter

	// Under Fetcher.mu.
	refs   int
	ending bool      // it will fail; who comes now starts another after it
	reqs   []Request // of the holders, distinct; never empty
	counts map[Request]int

	mu      sync.Mutex
	in      *store.Ingest // nil when it has ended
	latest  *store.Ingest // ended or not
	pin     *store.Reader // keeps the content from eviction while somebody holds the flight
	gave    map[Source]int64
	source  Source
	lastErr error
}

func newFlight(f *Fetcher, req Request) *flight {
	fl := &flight{
		f: f, digest: req.Digest, size: req.Size, since: time.Now(),
		started: make(chan struct{}), done: make(chan struct{}),
		reqs: []Request{req}, counts: make(map[Request]int),
		gave: make(map[Source]int64), seen: f.had[req.Digest],
	}
	fl.ctx, fl.cancel = context.WithCancelCause(f.ctx)
	fl.failed, fl.fail = context.WithCancelCause(context.Background())
	fl.start = sync.OnceFunc(func() { close(fl.started) })
	return fl
}

// handle adds a holder. Under Fetcher.mu.
func (fl *flight) handle(req Request) *Flight {
	fl.refs++
	if req != (Request{}) {
		fl.counts[req]++
		if !slices.Contains(fl.reqs, req) {
			fl.reqs = append(fl.reqs, req)
		}
	}
	return &Flight{fl: fl, req: req}
}

func (fl *flight) release(req Request) {
	f := fl.f
	f.mu.Lock()
	defer f.mu.Unlock()
	fl.refs--
	if fl.counts[req]--; fl.counts[req] <= 0 {
		delete(fl.counts, req)
		if len(fl.reqs) > 1 {
			fl.reqs = slices.DeleteFunc(fl.reqs, func(r Request) bool { return r == req })
		}
	}
	if fl.refs > 0 {
		return
	}
	fl.cancel(ErrReleased)
	select {
	case <-fl.done:
		fl.unpin()
	default: // the flight does it when it ends
	}
}

func (fl *flight) unpin() {
	fl.mu.Lock()
	pin := fl.pin
	fl.pin = nil
	fl.mu.Unlock()
	if pin != nil {
		pin.Close()
	}
}

// failure is why the flight has failed; nil while it has not.
func (fl *flight) failure() error {
	if fl.failed.Err() == nil {
		return nil
	}
	return context.Cause(fl.failed)
}

// alive derives a context that ends, too, when the flight fails.
func (fl *flight) alive(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(fl.failed, func() { cancel(fl.failure()) })
	return ctx, func() { stop(); cancel(nil) }
}

func (fl *flight) progress() Progress {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	return Progress{
		Digest: fl.digest, Size: fl.size, Have: fl.have.Load(), Source: fl.source, Since: fl.since,
		Rate: fl.meter.value(), Queued: fl.queued.Load(), Err: fl.lastErr,
	}
}

// run is the flight's goroutine.
func (fl *flight) run() {
	err := fl.fly()
	fl.mu.Lock()
	in := fl.in
	fl.in = nil
	fl.mu.Unlock()
	if err != nil {
		fl.unpin() // else an ingest that received nothing would not be dropped
	}
	if in != nil {
		// Before the flight leaves the map, so that the next one finds the blob without a writer.
		if cerr := in.Close(); cerr != nil {
			fl.f.log.Warn("saving a fetch's progress", "digest", fl.digest, "error", cerr)
		}
	}
	result := "done"
	switch {
	case err == nil:
		fl.have.Store(fl.size)
		fl.f.metrics.duration.Observe(time.Since(fl.since).Seconds())
		fl.f.remember(fl.digest)
	case errors.Is(err, ErrReleased), errors.Is(err, ErrClosed):
		result = "cancelled"
	default:
		result = "failed"
		fl.f.log.Info("fetch failed", "digest", fl.digest, "error", err)
	}
	fl.f.metrics.flights.WithLabelValues(result).Inc()
	fl.f.metrics.active.Dec()

	f := fl.f
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.flights, fl.digest)
	if err != nil {
		fl.fail(err)
	}
	if fl.refs == 0 {
		fl.unpin()
	}
	fl.cancel(nil)
	close(fl.done)
}

// fly brings the blob.
func (fl *flight) fly() error {
	if whole, err := fl.openWhole(); whole || err != nil {
		return err
	}
	slots := fl.f.small
	if fl.size >= SmallBlob {
		slots = fl.f.large
	}
	if err := fl.queue(slots); err != nil {
		return err
	}
	defer slots.Release(1)
	if whole, err := fl.open(); whole || err != nil {
		return err
	}
	return fl.rounds()
}

func (fl *flight) queue(slots *semaphore.Weighted) error {
	fl.queued.Store(true)
	defer fl.queued.Store(false)
	if err := slots.Acquire(fl.ctx, 1); err != nil {
		return context.Cause(fl.ctx)
	}
	return nil
}

// openWhole takes what is committed in the spool already.
func (fl *flight) openWhole() (bool, error) {
	spool := fl.f.cfg.Spool
	st, err := spool.Stat(fl.digest)
	if errors.Is(err, store.ErrNotFound) || err == nil && !st.Committed {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	r, err := spool.Open(fl.digest)
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrDamaged) { // evicted meanwhile, or spoiled by a power cut and dropped
		return false, nil
	}
	if err != nil {
		return false, err
	}
	// Now it cannot be evicted; what was opened may yet be a successor that is still arriving.
	if st, err := spool.Stat(fl.digest); err != nil || !st.Committed {
		r.Close()
		return false, nil
	}
	if r.Size() != fl.size {
		defer r.Close()
		return false, fmt.Errorf("%w: %s has %d bytes, asked for with %d", ErrSize, fl.digest, r.Size(), fl.size)
	}
	fl.setContent(nil, r)
	fl.have.Store(fl.size)
	fl.start()
	return true, nil
}

func (fl *flight) setContent(in *store.Ingest, pin *store.Reader) {
	fl.mu.Lock()
	old := fl.pin
	fl.in, fl.latest, fl.pin = in, in, pin
	clear(fl.gave)
	fl.mu.Unlock()
	if old != nil {
		old.Close()
	}
}

// open becomes the blob's writer, or finds it whole.
func (fl *flight) open() (whole bool, err error) {
	for try := 0; ; try++ {
		in, err := fl.f.cfg.Spool.Ingest(fl.digest, fl.size)
		switch {
		case err == nil:
			fl.setContent(in, in.NewReader())
			have := fl.size
			for _, r := range in.Missing() {
				have -= r.Len
			}
			fl.have.Store(have)
			return false, nil
		case errors.Is(err, store.ErrExists):
			if whole, err := fl.openWhole(); whole || err != nil {
				return whole, err
			}
		case errors.Is(err, store.ErrSizeMismatch):
			return false, fmt.Errorf("%w: %w", ErrSize, err)
		case !errors.Is(err, store.ErrBusy):
			return false, err
		}
		// Somebody else writes it, or it was evicted between two looks.
		if try == busyTries {
			return false, fmt.Errorf("opening %s in the spool: %w", fl.digest, err)
		}
		if err := fl.pause(busyPause); err != nil {
			return false, err
		}
	}
}

const (
	busyTries = 10
	busyPause = 100 * time.Millisecond

	// idleRounds is how many rounds over all sources, for each distinct request, may bring nothing before a flight fails.
	idleRounds = 3
	pauseFirst = 200 * time.Millisecond
	pauseMax   = 2 * time.Second
	// pauseBusy is the pause after a round that did bring something.
	pauseBusy = 50 * time.Millisecond
)

func (fl *flight) pause(d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-fl.ctx.Done():
		return context.Cause(fl.ctx)
	}
}

// rounds goes over the sources until the blob is committed. It ends with an error that is final for this flight.
func (fl *flight) rounds() error {
	idle := 0
	for n := 0; ; n++ {
		before := fl.have.Load()
		err := fl.round(fl.request(n))
		if err == nil {
			return nil
		}
		var se *SourcesError
		switch {
		case fl.ctx.Err() != nil:
			return context.Cause(fl.ctx)
		case !errors.As(err, &se):
			return err
		}
		fl.note(Source{}, err)
		wait := pauseBusy
		if fl.have.Load() <= before {
			wait = min(pauseFirst<<min(idle, 8), pauseMax)
			idle++
		} else {
			idle = 0
		}
		if fl.giveUp(idle, se) {
			return err
		}
		if err := fl.pause(wait); err != nil {
			return err
		}
	}
}

// request is the one under which the next round asks: the holders' take turns, because one's may be refused where
// another's is not.
func (fl *flight) request(round int) Request {
	fl.f.mu.Lock()
	defer fl.f.mu.Unlock()
	return fl.reqs[round%len(fl.reqs)]
}

// giveUp decides whether the flight fails, and lets nobody join it then.
func (fl *flight) giveUp(idle int, err *SourcesError) bool {
	fl.f.mu.Lock()
	defer fl.f.mu.Unlock()
	if idle >= idleRounds*len(fl.reqs) || idle > 0 && err.Is(ErrBadSource) {
		fl.ending = true
	}
	return fl.ending
}

func (fl *flight) note(s Source, err error) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	fl.source, fl.lastErr = s, err
}

// round tries each source once. Nil: the blob is committed. A *SourcesError: another round may help. Else: none will.
func (fl *flight) round(req Request) error {
	if fl.complete() {
		again, err := fl.commit()
		if err == nil || !again {
			return err
		}
	}
	all := &SourcesError{Digest: fl.digest}
	for _, choose := range []func(context.Context, Request) ([]Source, error){fl.f.cfg.Sources, fl.f.cfg.Resort} {
		if choose == nil {
			continue
		}
		sources, err := choose(fl.ctx, req)
		if err != nil {
			all.add(Source{}, fmt.Errorf("choosing sources: %w", err))
			continue
		}
		for _, src := range fl.f.bad.last(sources, fl.digest) {
			err := fl.ask(src, req)
			var trouble *sourceError
			if !errors.As(err, &trouble) {
				return err
			}
			all.add(src, trouble.err)
		}
	}
	return all
}

// sourceError is the trouble of one source: another may do better.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// ask takes what is missing from one source and commits the blob. A *sourceError: another source may help; else the error is final.
func (fl *flight) ask(src Source, req Request) error {
	if t := fl.f.bad.until(src, fl.digest); !t.IsZero() {
		return &sourceError{fmt.Errorf("%w: not asked again before %s", ErrBadSource, t.UTC().Format(time.RFC3339))}
	}
	err := fl.draw(src, req)
	if fl.ctx.Err() != nil {
		return context.Cause(fl.ctx)
	}
	var local *localError
	if errors.As(err, &local) {
		return local.err
	}
	if err != nil {
		fl.f.metrics.errors.WithLabelValues(errorKind(err)).Inc()
		fl.f.log.Debug("source failed", "digest", fl.digest, "source", src.Site, "error", err)
		if errors.Is(err, errDataLoss) {
			if derr := fl.sourceIsBad(src, err); derr != nil {
				return derr
			}
			err = fmt.Errorf("%w: %w", ErrBadSource, err)
		}
		return &sourceError{err}
	}
	again, err := fl.commit()
	if err != nil && again {
		return &sourceError{fmt.Errorf("%w: %w", ErrBadSource, err)}
	}
	return err
}

func (fl *flight) complete() bool { return len(fl.in.Missing()) == 0 }

// commit verifies the whole. After a mismatch it has marked who contributed and begun a new ingest (again).
func (fl *flight) commit() (again bool, err error) {
	err = fl.in.Commit()
	switch {
	case err == nil:
		fl.mu.Lock()
		fl.in = nil
		for s := range fl.gave {
			fl.f.bad.clear(s, fl.digest)
		}
		fl.mu.Unlock()
		fl.start()
		return false, nil
	case !errors.Is(err, store.ErrDigestMismatch):
		return false, fmt.Errorf("committing %s: %w", fl.digest, err)
	}
	var names []string
	var bytes int64
	fl.mu.Lock()
	for s, n := range fl.gave {
		fl.f.bad.mark(s, fl.digest, penaltyFirst)
		names = append(names, s.Site)
		bytes += n
	}
	fl.mu.Unlock()
	slices.Sort(names)
	fl.f.metrics.resent.WithLabelValues(resentMismatch).Add(float64(bytes))
	fl.f.log.Warn("content does not match its digest; dropped", "digest", fl.digest, "sources", names)
	if rerr := fl.reopen(); rerr != nil {
		return false, rerr
	}
	return true, fmt.Errorf("%w, with content from %s", err, strings.Join(names, ", "))
}

// sourceIsBad acts on a source's own word that what it sent is corrupt.
func (fl *flight) sourceIsBad(src Source, cause error) error {
	fl.f.bad.mark(src, fl.digest, penaltyOwnWord)
	fl.mu.Lock()
	mine := fl.gave[src]
	var bytes int64
	for _, n := range fl.gave {
		bytes += n
	}
	fl.mu.Unlock()
	if mine == 0 {
		return nil // nothing here is from it
	}
	fl.f.metrics.resent.WithLabelValues(resentMismatch).Add(float64(bytes))
	if err := fl.in.Abort(fmt.Errorf("%w: %w", ErrCorrupt, cause)); err != nil {
		fl.f.log.Warn("dropping corrupt content", "digest", fl.digest, "error", err)
	}
	return fl.reopen()
}

// reopen begins anew after the content was dropped. An error is final: there is no ingest then.
func (fl *flight) reopen() error {
	fl.mu.Lock()
	fl.in = nil
	fl.mu.Unlock()
	whole, err := fl.open()
	if whole {
		return fmt.Errorf("fetching %s: somebody else has committed it meanwhile: %w", fl.digest, store.ErrExists)
	}
	return err
}
