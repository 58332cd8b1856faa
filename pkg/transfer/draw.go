package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fanout-io/fanout/pkg/store"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"
)

// errDataLoss: the source itself says that what it sent is corrupt.
var errDataLoss = fmt.Errorf("%w, says the source", ErrCorrupt)

// segmentSize is the range that one stream asks for at a time. It depends on the blob's size alone, so that all sites
// cut a blob in the same places and followers' streams run beside their source's.
func segmentSize(size int64) int64 {
	if size <= 64<<20 {
		return 4 << 20
	}
	return 8 << 20
}

// segments hands out what is missing, front first.
type segments struct {
	mu   sync.Mutex
	todo []store.Range
}

func newSegments(missing []store.Range, size int64) *segments {
	s := new(segments)
	for _, r := range missing {
		for r.Len > 0 {
			n := min(r.Len, size-r.Off%size)
			s.todo = append(s.todo, store.Range{Off: r.Off, Len: n})
			r.Off += n
			r.Len -= n
		}
	}
	return s
}

// next gives the first range that is missing, or its first bytes up to most, which is a multiple of a piece.
func (s *segments) next(most int64) (store.Range, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.todo) == 0 {
		return store.Range{}, false
	}
	r := s.todo[0]
	if r.Len > most {
		s.todo[0] = store.Range{Off: r.Off + most, Len: r.Len - most}
		r.Len = most
		return r, true
	}
	s.todo = s.todo[1:]
	return r, true
}

// drawing is a flight's turn at one source.
type drawing struct {
	fl       *flight
	in       *store.Ingest
	src      Source
	req      Request
	client   transferv1.TransferServiceClient
	segs     *segments
	accepted func()
	peer     *peer
}

// draw takes all that is missing from one source. Nil: nothing is missing any more.
//
// It begins with one stream, at the front; the others follow when the source has shown that it can give the blob.
func (fl *flight) draw(src Source, req Request) error {
	client, err := fl.f.cfg.Dial(fl.ctx, src.Addr)
	if err != nil {
		return fmt.Errorf("dialling: %w", err)
	}
	fl.note(src, nil)
	fl.onFellow.Store(!src.Upstream)
	defer fl.onFellow.Store(false)
	peer := fl.f.peers.get(src.Addr)
	defer fl.f.peers.put(src.Addr)
	d := &drawing{
		fl: fl, in: fl.in, src: src, req: req, client: client, peer: peer,
		segs: newSegments(fl.in.Missing(), segmentSize(fl.size)),
	}
	streams := 1
	if fl.size >= SmallBlob {
		streams = min(fl.f.cfg.Streams, len(d.segs.todo))
	}
	g, ctx := errgroup.WithContext(fl.ctx)
	d.accepted = sync.OnceFunc(func() {
		fl.upstream.Store(src.Upstream)
		fl.start()
		for range streams - 1 {
			g.Go(func() error { return d.stream(ctx) })
		}
	})
	g.Go(func() error { return d.stream(ctx) })
	err = g.Wait()
	fl.upstream.Store(false)
	return err
}

// stream fetches one segment after another.
func (d *drawing) stream(ctx context.Context) error {
	for {
		seg, ok := d.segs.next(askable(d.fl.f.cfg.Download))
		if !ok {
			return nil
		}
		if err := d.fetch(ctx, seg); err != nil {
			return err
		}
	}
}

// fetch brings one range. On an error what came in whole pieces is kept.
func (d *drawing) fetch(ctx context.Context, seg store.Range) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a := assembler{in: d.in, pos: seg.Off, end: seg.Off + seg.Len, size: d.fl.size}
	if l := d.fl.f.cfg.Download; limited(l) {
		if err := d.fl.f.credit.spend(ctx, l, seg.Len); err != nil {
			return err
		}
		a.paid = seg.Len
		defer func() { d.fl.f.credit.left.Add(a.paid) }()
	}
	w := newWatch(d.peer, d.fl.f.cfg.Stall, cancel)
	defer w.disarm()
	w.arm()
	stream, err := d.client.Fetch(ctx, &transferv1.FetchRequest{
		Caller: d.fl.f.cfg.Self,
		Purpose: &transferv1.Purpose{
			Repository: d.req.Repository, Tag: d.req.Tag, Revision: d.req.Revision, Root: d.req.Root,
		},
		Digest: d.fl.digest, Size: d.fl.size, Offset: seg.Off, Length: seg.Len, ReadThrough: d.src.ReadThrough,
		Suspect: d.fl.f.bad.suspect(d.src, d.fl.digest),
	})
	if err != nil {
		return wireError(ctx, err)
	}
	defer func() { d.lost(a.close()) }()
	m := &piece{FetchResponse: new(transferv1.FetchResponse)}
	defer m.free()
	for {
		w.arm()
		err := stream.RecvMsg(m)
		w.disarm()
		switch {
		case errors.Is(err, io.EOF) && a.pos == a.end:
			return nil
		case errors.Is(err, io.EOF):
			return fmt.Errorf("%w: at byte %d of %d", ErrTruncated, a.pos, a.end)
		case err != nil:
			return wireError(ctx, err)
		}
		if err := d.take(ctx, &a, m); err != nil {
			return err
		}
	}
}

// take checks one message and writes it.
func (d *drawing) take(ctx context.Context, a *assembler, m *piece) error {
	n := m.size()
	d.received(n)
	if err := a.check(m, n); err != nil {
		d.lost(int64(n))
		return err
	}
	d.accepted()
	paid := min(int64(n), a.paid)
	a.paid -= paid
	if err := spend(ctx, d.fl.f.cfg.Download, n-int(paid)); err != nil { // the limit came after the range was asked for
		d.lost(int64(n))
		return err
	}
	wrote := a.written
	err := m.each(a.add)
	m.free()
	if wrote = a.written - wrote; wrote > 0 {
		d.fl.have.Add(wrote)
		d.fl.mu.Lock()
		d.fl.gave[d.src] += wrote
		d.fl.mu.Unlock()
	}
	if err != nil {
		return &localError{fmt.Errorf("writing %s at byte %d: %w", d.fl.digest, a.pos, err)}
	}
	return nil
}

func (d *drawing) received(n int) {
	d.peer.last.Store(time.Now().UnixNano())
	f, kind := d.fl.f, kindFellow
	if d.src.Upstream {
		kind = kindUpstream
	}
	f.metrics.received.WithLabelValues(kind).Add(float64(n))
	if d.fl.seen {
		f.metrics.resent.WithLabelValues(resentEvicted).Add(float64(n))
	}
	f.meter.add(n)
	d.fl.meter.add(n)
	if f.cfg.OnBytes != nil {
		f.cfg.OnBytes(d.src, n)
	}
}

// lost counts bytes that came and have to come again.
func (d *drawing) lost(n int64) {
	if n > 0 {
		d.fl.f.metrics.resent.WithLabelValues(resentBreak).Add(float64(n))
	}
}

// wireError tells a stall from other ends, and gives statuses their sentinels.
func wireError(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, ErrStalled) {
		return cause
	}
	if status.Code(err) == codes.DataLoss {
		return fmt.Errorf("%w: %w", errDataLoss, err)
	}
	return fromStatus(err)
}

// errorKind is the label of an error.
func errorKind(err error) string {
	for _, k := range []struct {
		err  error
		name string
	}{
		{ErrNotFound, "not_found"}, {ErrDenied, "denied"}, {ErrCorrupt, "corrupt"}, {ErrProtocol, "protocol"},
		{ErrTruncated, "truncated"}, {ErrStalled, "stalled"}, {ErrInvalid, "invalid"}, {ErrUnavailable, "unavailable"},
	} {
		if errors.Is(err, k.err) {
			return k.name
		}
	}
	return "other"
}

// assembler makes pieces of the spool's size out of messages of any size.
type assembler struct {
	in       *store.Ingest
	pos, end int64 // the next byte, and where the range ends
	size     int64 // of the blob
	paid     int64 // bytes not yet come for which the limit was asked already
	buf      *[]byte
	n        int // bytes in buf: those before pos that are not written yet
	written  int64
}

// check refuses a message that is not what must come next, before any of it is written.
func (a *assembler) check(m *piece, n int) error {
	switch {
	case m.GetOffset() != a.pos:
		return fmt.Errorf("%w: offset %d, expected %d", ErrProtocol, m.GetOffset(), a.pos)
	case n == 0:
		return fmt.Errorf("%w: empty message at byte %d", ErrProtocol, a.pos)
	case n > MaxData:
		return fmt.Errorf("%w: message of %d bytes at byte %d, at most %d", ErrProtocol, n, a.pos, MaxData)
	case int64(n) > a.end-a.pos:
		return fmt.Errorf("%w: %d bytes at byte %d, asked for up to byte %d", ErrProtocol, n, a.pos, a.end)
	}
	if sum := m.sum(); sum != m.GetCrc32C() {
		return fmt.Errorf("%w: %d bytes at byte %d have CRC %08x, not %08x", ErrCorrupt, n, a.pos, sum, m.GetCrc32C())
	}
	return nil
}

// add takes the next bytes and writes each piece that is full. The range begins and ends at pieces' borders (or the blob's
// end), because what is missing does.
func (a *assembler) add(p []byte) error {
	for len(p) > 0 {
		if a.buf == nil {
			a.buf = buffers.Get(store.PieceSize)
		}
		begin := a.pos - int64(a.n)
		want := int(min(store.PieceSize-begin%store.PieceSize, a.end-begin))
		n := copy((*a.buf)[a.n:want], p)
		p = p[n:]
		a.n += n
		a.pos += int64(n)
		if a.n < want {
			return nil
		}
		if _, err := a.in.WriteAt((*a.buf)[:want], begin); err != nil {
			return err
		}
		a.written += int64(want)
		a.n = 0
	}
	return nil
}

// close gives the buffer back and says how many bytes in it were never written.
func (a *assembler) close() int64 {
	if a.buf != nil {
		buffers.Put(a.buf)
		a.buf = nil
	}
	return int64(a.n)
}
