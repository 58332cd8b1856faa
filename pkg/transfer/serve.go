package transfer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"github.com/fanout-io/fanout/pkg/store"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"
)

// origin is where a blob's bytes are taken from.
type origin struct {
	name string // metrics' label
	// read waits for at least one byte at off, and gives at most len(p).
	read  func(ctx context.Context, p []byte, off int64) (int, error)
	close func()
}

// serve sends a range.
func (s *Server) serve(ctx context.Context, req *transferv1.FetchRequest, end int64, out *sender) error {
	o, err := s.origin(ctx, req, end)
	if err != nil {
		return err
	}
	defer o.close()
	for pos := req.GetOffset(); pos < end; {
		want := min(store.PieceSize-pos%store.PieceSize, end-pos)
		buf := buffers.Get(int(want))
		n, err := o.read(ctx, *buf, pos)
		if err != nil {
			buffers.Put(buf)
			return fmt.Errorf("reading %s at byte %d: %w", req.GetDigest(), pos, err)
		}
		*buf = (*buf)[:n]
		if err := out.send(ctx, buf, pos, o.name); err != nil {
			return err
		}
		pos += int64(n)
	}
	return nil
}

// origin finds the blob: whole in the spool, else arriving, else in the own registry, else by asking others for it. A
// flight comes before the registry because there would be none if the registry had the blob: asking it again for each
// range of each child would be in vain.
func (s *Server) origin(ctx context.Context, req *transferv1.FetchRequest, end int64) (*origin, error) {
	if req.GetSuspect() {
		s.prove(ctx, req.GetDigest())
	}
	o, err := s.fromSpool(req)
	if o != nil || err != nil {
		return o, err
	}
	fl, busy := s.flight(req.GetDigest())
	if busy {
		if s.mayFollow(req.GetCaller(), fl) {
			return s.fromFlight(fl, req)
		}
		fl.Release()
	}
	refusal := fmt.Errorf("%w: %s", ErrNotFound, req.GetDigest())
	if busy {
		refusal = fmt.Errorf("%w: %s is arriving here, and not for %s to wait for", ErrUnavailable, req.GetDigest(), req.GetCaller().GetGroup())
	}
	o, err = s.fromLocal(ctx, req, end)
	if err == nil {
		return o, nil
	}
	if !errors.Is(err, ErrNotFound) {
		refusal = fmt.Errorf("%w: own registry: %w", ErrUnavailable, err)
		s.log.Warn("reading from the own registry", "digest", req.GetDigest(), "error", err)
	}
	if s.isAbove(req.GetCaller()) && s.cfg.Near != nil {
		if o, err := s.fromNear(ctx, req, end); err == nil || !errors.Is(err, ErrNotFound) {
			return o, err
		}
	}
	if !req.GetReadThrough() || s.cfg.ReadThrough == nil {
		return nil, refusal
	}
	o, err = s.readThrough(ctx, req)
	if errors.Is(err, ErrNotFound) && !errors.Is(refusal, ErrNotFound) {
		return nil, refusal
	}
	return o, err
}

// How often content may be suspected, and of how many digests that is remembered.
const (
	proveEvery = time.Minute
	maxProved  = 1024
)

// prove reads content of the spool back that a receiver found to be wrong. Content that went bad on this disk is dropped, and got anew from elsewhere.
func (s *Server) prove(ctx context.Context, digest string) {
	now := time.Now()
	s.mu.Lock()
	soon := now.Sub(s.proved[digest]) < proveEvery
	if !soon {
		if len(s.proved) >= maxProved {
			clear(s.proved)
		}
		s.proved[digest] = now
	}
	s.mu.Unlock()
	if soon {
		return
	}
	switch err := s.cfg.Spool.Verify(ctx, digest); {
	case err == nil, errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrIncomplete):
	default:
		s.log.Warn("suspected content was looked at again", "digest", digest, "error", err)
	}
}

// fromSpool gives nil when the blob is not whole in the spool.
func (s *Server) fromSpool(req *transferv1.FetchRequest) (*origin, error) {
	st, err := s.cfg.Spool.Stat(req.GetDigest())
	if err != nil || !st.Committed {
		return nil, nil //nolint:nilerr // whatever it is, there are other places to look
	}
	if st.Size != req.GetSize() {
		return nil, fmt.Errorf("%w: %s has %d bytes, asked for with %d", ErrSize, req.GetDigest(), st.Size, req.GetSize())
	}
	r, err := s.cfg.Spool.Open(req.GetDigest())
	if err != nil {
		return nil, nil //nolint:nilerr // evicted meanwhile
	}
	return &origin{
		name: "spool",
		read: func(ctx context.Context, p []byte, off int64) (int, error) {
			return readPresent(r, p, off)
		},
		close: func() { r.Close() },
	}, nil
}

// readPresent reads at least one byte of what is there.
func readPresent(r *store.Reader, p []byte, off int64) (int, error) {
	n, err := r.ReadAt(p, off)
	if n > 0 {
		return n, nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return 0, err
}

// fromFlight follows a flight, which it owns.
func (s *Server) fromFlight(fl *Flight, req *transferv1.FetchRequest) (*origin, error) {
	if fl.fl.size != req.GetSize() {
		fl.Release()
		return nil, fmt.Errorf("%w: %s has %d bytes, asked for with %d", ErrSize, req.GetDigest(), fl.fl.size, req.GetSize())
	}
	fellow := s.cfg.Fellow(req.GetCaller())
	f := &follower{fl: fl, fellow: fellow}
	return &origin{name: "flight", read: f.read, close: f.close}, nil
}

// linger is how long a flight is kept going after its last follower left.
const linger = 10 * time.Second

// follower reads behind a flight.
type follower struct {
	fl     *Flight
	r      *store.Reader
	fellow bool
}

func (f *follower) close() {
	if f.r != nil {
		f.r.Close()
	}
	select {
	case <-f.fl.Done():
		f.fl.Release()
	default:
		// An asker takes a blob range by range, and between two of them nobody else may want it here.
		time.AfterFunc(linger, f.fl.Release)
	}
}

func (f *follower) read(ctx context.Context, p []byte, off int64) (int, error) {
	ctx, cancel := f.fl.fl.alive(ctx)
	defer cancel()
	for {
		n, err := f.wait(ctx, off)
		switch {
		case err == nil:
			return readPresent(f.r, p[:min(n, int64(len(p)))], off)
		case errors.Is(err, store.ErrDigestMismatch), errors.Is(err, ErrCorrupt):
			// What was sent so far is corrupt, or may be.
			return 0, fmt.Errorf("%w: %w", ErrCorrupt, err)
		case errors.Is(err, errPatience) && f.fl.waitsOutside():
			continue
		case errors.Is(err, errPatience):
			return 0, fmt.Errorf("%w: this site waits for a fellow itself", ErrUnavailable)
		}
		return 0, err
	}
}

var errPatience = errors.New("patience is over")

// wait blocks until there is something at off. A fellow's wait is interrupted at times, to see that no circle has closed.
func (f *follower) wait(ctx context.Context, off int64) (int64, error) {
	if f.fellow {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, fellowPatience, errPatience)
		defer cancel()
	}
	if f.r == nil {
		select {
		case <-f.fl.fl.started:
		case <-f.fl.fl.done:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
		r, err := f.fl.fl.reader()
		if err != nil {
			return 0, err
		}
		f.r = r
	}
	n, err := f.r.Wait(ctx, off)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err == nil && n == 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// fromLocal opens the blob in the own registry. The first byte is read here, because registries may fail as late as that.
func (s *Server) fromLocal(ctx context.Context, req *transferv1.FetchRequest, end int64) (*origin, error) {
	if s.cfg.Local == nil {
		return nil, ErrNotFound
	}
	rc, err := s.cfg.Local.OpenBlob(ctx, req.GetPurpose().GetRepository(), req.GetDigest(), req.GetOffset(), end-req.GetOffset())
	if err != nil {
		return nil, err
	}
	br := bufio.NewReaderSize(rc, 4<<10)
	if _, err := br.Peek(1); err != nil {
		rc.Close()
		return nil, fmt.Errorf("first byte: %w", noEOF(err))
	}
	return &origin{
		name: "registry",
		read: func(_ context.Context, p []byte, _ int64) (int, error) {
			n, err := io.ReadFull(br, p)
			if err != nil {
				return 0, fmt.Errorf("own registry: %w", noEOF(err))
			}
			return n, nil
		},
		close: func() { rc.Close() },
	}, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readThrough has this site get the blob, and follows.
func (s *Server) readThrough(ctx context.Context, req *transferv1.FetchRequest) (*origin, error) {
	fellow := s.cfg.Fellow(req.GetCaller())
	if !fellow && !s.isBelow(req.GetCaller()) {
		return nil, fmt.Errorf("%w: %s, nor is it got for %s", ErrNotFound, req.GetDigest(), req.GetCaller().GetGroup())
	}
	if fellow {
		var stop func()
		ctx, stop = s.patiently(ctx, req.GetDigest())
		defer stop()
	}
	fl, err := s.cfg.ReadThrough(ctx, req)
	if err != nil {
		if errors.Is(context.Cause(ctx), errPatience) {
			err = fmt.Errorf("%w: nothing came for %s", ErrUnavailable, fellowPatience)
		}
		return nil, err
	}
	if fellow && !fl.waitsOutside() {
		fl.Release()
		return nil, fmt.Errorf("%w: %s comes from a fellow here too", ErrUnavailable, req.GetDigest())
	}
	return s.fromFlight(fl, req)
}

// patiently derives a context that ends with errPatience when, at one of the looks that are fellowPatience apart, there is no
// flight of the digest that leads outside. So a fellow waits for as long as a queue or a limit takes, and in no circle.
func (s *Server) patiently(ctx context.Context, digest string) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		t := time.NewTicker(fellowPatience)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
			fl, ok := s.flight(digest)
			outside := ok && fl.waitsOutside()
			if ok {
				fl.Release()
			}
			if !outside {
				cancel(errPatience)
				return
			}
		}
	}()
	return ctx, func() { cancel(nil) }
}

// sender sends pieces, within the limit, and knows when a peer takes none.
type sender struct {
	stream   grpc.ServerStream
	limit    *rate.Limiter
	patience time.Duration
	timer    *time.Timer
	stuck    chan struct{} // closed when a message was not taken in time
	metrics  *serveMetrics
}

// send owns buf.
func (p *sender) send(ctx context.Context, buf *[]byte, off int64, from string) error {
	data := mem.NewBuffer(buf, &buffers)
	defer data.Free()
	n := data.Len()
	if err := spend(ctx, p.limit, n); err != nil {
		return err
	}
	m := &outgoing{off: off, crc: crc32.Checksum(data.ReadOnlyData(), castagnoli), data: data}
	p.timer.Reset(p.patience)
	err := p.stream.SendMsg(m)
	p.timer.Stop()
	if err != nil {
		return err
	}
	p.metrics.sent.WithLabelValues(from).Add(float64(n))
	return nil
}
