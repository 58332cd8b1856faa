package transfer_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fanout-io/fanout/pkg/store"
	"github.com/fanout-io/fanout/pkg/transfer"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"
)

func TestFetch_FromSpoolAndFromRegistry(t *testing.T) {
	for _, size := range sizes() {
		for _, from := range []string{"spool", "registry"} {
			t.Run(fmt.Sprintf("%s/%d", from, size), func(t *testing.T) {
				f := newFabric(t)
				hq := newSite(f, "hq", "hq-a", nil)
				gd := newSite(f, "hq/gd", "gd-a", upstream("hq-a"))
				b := newBlob(1, size)
				if from == "spool" {
					hq.put(t, b)
				} else {
					hq.local.put(b)
				}
				gd.mustFetch(t, b)
				if n := gd.received("hq-a"); n != int64(size) {
					t.Errorf("received %d bytes, want %d", n, size)
				}
				gd.mustFetch(t, b) // it is committed: nothing more comes
				if n := gd.received("hq-a"); n != int64(size) {
					t.Errorf("received %d bytes after a second fetch, want %d", n, size)
				}
			})
		}
	}
}

// The city has the first byte before the province has half of the blob, and read-through alone brings it all.
func TestFetch_CutThroughChain(t *testing.T) {
	f := newFabric(t)
	hq := newSite(f, "hq", "hq-a", nil)
	gd := newSite(f, "hq/gd", "gd-a", upstream("hq-a"))
	sz := newSite(f, "hq/gd/sz", "sz-a", upstream("gd-a"))
	b := newBlob(2, 16<<20+77)
	hq.local.put(b)
	hq.local.gate = newGate()
	hq.local.gate.open(piece) // and not a byte more

	fl, err := sz.fetcher.Fetch(t.Context(), b.request())
	if err != nil {
		t.Fatal(err)
	}
	defer fl.Release()
	r := fl.Reader()
	defer r.Close()
	if n, err := r.Wait(t.Context(), 0); err != nil || n != piece {
		t.Fatalf("Wait = %d, %v", n, err)
	}
	up, ok := gd.fetcher.Lookup(b.digest)
	if !ok {
		t.Fatal("the province has no flight")
	}
	if have, _ := up.Progress(); have > piece || !up.Upstream() { // counted a moment after it can be read
		t.Errorf("province has %d bytes, upstream %v; want at most one piece, true", have, up.Upstream())
	}
	up.Release()
	for limit := int64(2 * piece); limit < int64(len(b.data)); limit += 3 * piece {
		hq.local.gate.open(limit)
	}
	hq.local.gate.open(int64(len(b.data)))
	if err := fl.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if up, down := gd.received("hq-a"), sz.received("gd-a"); up != int64(len(b.data)) || down != int64(len(b.data)) {
		t.Errorf("links carried %d and %d bytes, want %d each", up, down, len(b.data))
	}
}

func TestFetch_CutAtEveryBoundary(t *testing.T) {
	b := newBlob(3, 9<<20+100)
	seg := transfer.SegmentSize(int64(len(b.data)))
	size := int64(len(b.data))
	cuts := []int64{0, 1, piece - 1, piece, piece + 1, seg - 1, seg, seg + 1, 2*seg - 1, 2 * seg, size - 1, size}
	for _, ok := range []bool{false, true} { // the stream ends with an error, or as if all were well
		for _, msg := range []int64{1000 * 33, piece, 1 << 20} {
			for _, cut := range cuts {
				t.Run(fmt.Sprintf("ok=%v/msg=%d/cut=%d", ok, msg, cut), func(t *testing.T) {
					f := newFabric(t)
					f.serve("bad", &fake{fetch: func(req *transferv1.FetchRequest, send func(int64, []byte) error, _ context.Context) error {
						off, end := rangeOf(req)
						if err := sendRange(b.data, off, min(end, cut), msg, send); err != nil {
							return err
						}
						if end <= cut || ok {
							return nil
						}
						return status.Error(codes.Unavailable, "cut")
					}})
					f.serve("good", goodFake(b))
					s := newSite(f, "hq/gd", "gd-a", upstream("bad", "good"))
					s.mustFetch(t, b)
					// Only parts of pieces that were in flight come again, one a stream.
					again := s.received("bad") + s.received("good") - size
					if again < 0 || again > transfer.DefaultStreams*piece {
						t.Errorf("%d bytes were sent again", again)
					}
				})
			}
		}
	}
}

func TestFetch_Stall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBlob(6, 10<<20)
		f := newFabric(t)
		f.serve("slow", &fake{fetch: func(req *transferv1.FetchRequest, send func(int64, []byte) error, ctx context.Context) error {
			off, end := rangeOf(req)
			if err := sendRange(b.data, off, min(off+3*piece+5, end), piece, send); err != nil {
				return err
			}
			<-ctx.Done()
			return ctx.Err()
		}})
		f.serve("good", goodFake(b))
		s := newSite(f, "hq/gd", "gd-a", upstream("slow", "good"))
		begin := time.Now()
		if err := s.fetch(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begin); d < transfer.DefaultStall || d > 2*transfer.DefaultStall {
			t.Errorf("took %s", d)
		}
		if again := s.received("slow") + s.received("good") - int64(len(b.data)); again > transfer.DefaultStreams*piece {
			t.Errorf("%d bytes were sent again", again)
		}
	})
}

// A stream may be silent for long while its source is heard on others: a thin link is no stall.
func TestFetch_ThinLinkIsNoStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBlob(6, 10<<20)
		f := newFabric(t)
		link := make(chan struct{}, 1) // first come, first served
		thin := &fake{fetch: func(req *transferv1.FetchRequest, send func(int64, []byte) error, ctx context.Context) error {
			off, end := rangeOf(req)
			return sendRange(b.data, off, end, piece, func(off int64, p []byte) error {
				select {
				case link <- struct{}{}:
				case <-ctx.Done():
					return ctx.Err()
				}
				defer func() { <-link }()
				select {
				case <-time.After(20 * time.Second):
				case <-ctx.Done():
					return ctx.Err()
				}
				return send(off, p)
			})
		}}
		f.serve("thin", thin)
		s := newSite(f, "hq/gd", "gd-a", upstream("thin"))
		if err := s.fetch(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		if n := s.received("thin"); n != int64(len(b.data)) {
			t.Errorf("%d bytes came", n)
		}
	})
}

func TestFetch_SourceVanishes(t *testing.T) {
	f := newFabric(t)
	b := newBlob(7, 24<<20)
	a := newSite(f, "hq", "hq-a", nil)
	a.local.put(b)
	a.local.gate = newGate()
	a.local.gate.open(10 << 20)
	other := newSite(f, "hq", "hq-b", nil)
	other.put(t, b)
	s := newSite(f, "hq/gd", "gd-a", upstream("hq-a", "hq-b"))
	fl, err := s.fetcher.Fetch(t.Context(), b.request())
	if err != nil {
		t.Fatal(err)
	}
	defer fl.Release()
	eventually(t, "what the gate lets through has come", func() bool { have, _ := fl.Progress(); return have == 10<<20 })
	f.mu.Lock()
	l := f.lis["hq-a"]
	f.mu.Unlock()
	l.Close()
	a.local.mu.Lock()
	a.local.err = errors.New("gone")
	a.local.mu.Unlock()
	f.mu.Lock()
	conn := f.conns["hq-a"]
	delete(f.conns, "hq-a")
	f.mu.Unlock()
	conn.Close() // every stream breaks at once
	if err := fl.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := s.received("hq-a") + s.received("hq-b") - int64(len(b.data))
	if again < 0 || again > transfer.DefaultStreams*piece {
		t.Errorf("%d bytes were sent again, want at most the pieces in flight", again)
	}
}

func TestFetch_OneFlight(t *testing.T) {
	f := newFabric(t)
	b := newBlob(8, 6<<20)
	src := goodFake(b)
	f.serve("hq-a", src)
	s := newSite(f, "hq/gd", "gd-a", upstream("hq-a"))
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if err := s.fetch(t.Context(), b); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := s.received("hq-a"); n != int64(len(b.data)) {
		t.Errorf("%d bytes came, want %d", n, len(b.data))
	}
	if n := src.calls.Load(); n != 2 {
		t.Errorf("%d ranges were asked for, want 2", n)
	}
}

// The one who began the flight may lack the right that a joiner has.
func TestFetch_JoinersPurposeIsTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFabric(t)
		b := newBlob(8, 100)
		good := goodFake(b)
		hold := make(chan struct{})
		f.serve("hq-a", &fake{fetch: func(req *transferv1.FetchRequest, send func(int64, []byte) error, ctx context.Context) error {
			if req.GetPurpose().GetRepository() != "right" {
				<-hold
				return status.Error(codes.PermissionDenied, "no")
			}
			return good.fetch(req, send, ctx)
		}})
		s := newSite(f, "hq/gd", "gd-a", upstream("hq-a"))
		errs := make(chan error, 2)
		for _, repo := range []string{"wrong", "right"} {
			req := b.request()
			req.Repository = repo
			go func() {
				fl, err := s.fetcher.Fetch(t.Context(), req)
				if err == nil {
					err = fl.Wait(t.Context())
					fl.Release()
				}
				errs <- err
			}()
			synctest.Wait()
		}
		close(hold)
		for range 2 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	})
}

// Two members that each think that the other can get it find out in bounded time, and then get it from outside.
func TestFetch_TwoMembersAskEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFabric(t)
		b := newBlob(9, 9<<20)
		a := newSite(f, "hq/gd", "gd-a", fellows("gd-b"))
		c := newSite(f, "hq/gd", "gd-b", fellows("gd-a"))
		errs := make(chan error, 2)
		for _, s := range []*site{a, c} {
			go func() { errs <- s.fetch(t.Context(), b) }()
		}
		begin := time.Now()
		for range 2 {
			if err := <-errs; err == nil {
				t.Fatal("fetched from nowhere")
			}
		}
		if d := time.Since(begin); d > 5*time.Minute {
			t.Errorf("took %s to find out", d)
		}
		f.serve("hq-a", goodFake(b))
		both := append(fellows("gd-b"), upstream("hq-a")...)
		a.sources.Store(&both)
		bothC := append(fellows("gd-a"), upstream("hq-a")...)
		c.sources.Store(&bothC)
		for _, s := range []*site{a, c} {
			go func() { errs <- s.fetch(t.Context(), b) }()
		}
		begin = time.Now()
		for range 2 {
			if err := <-errs; err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(begin); d > 2*time.Minute {
			t.Errorf("took %s", d)
		}
	})
}

// A fellow follows the carrier's flight while that leads outside, and the link is crossed once.
func TestFetch_FellowFollowsCarrier(t *testing.T) {
	f := newFabric(t)
	b := newBlob(10, 12<<20)
	hq := newSite(f, "hq", "hq-a", nil)
	hq.local.put(b)
	hq.local.gate = newGate()
	hq.local.gate.open(5 << 20)
	carrier := newSite(f, "hq/gd", "gd-a", upstream("hq-a"))
	fellow := newSite(f, "hq/gd", "gd-b", fellows("gd-a"))
	fl, err := fellow.fetcher.Fetch(t.Context(), b.request())
	if err != nil {
		t.Fatal(err)
	}
	defer fl.Release()
	eventually(t, "the fellow has what the carrier has", func() bool { have, _ := fl.Progress(); return have == 5<<20 })
	if fl.Upstream() {
		t.Error("the fellow's flight says upstream")
	}
	hq.local.gate.open(12 << 20)
	if err := fl.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := carrier.received("hq-a"); n != 12<<20 {
		t.Errorf("the link carried %d bytes", n)
	}
}

func TestFetch_ReleaseCancelsAndKeepsPieces(t *testing.T) {
	f := newFabric(t)
	b := newBlob(11, 10<<20)
	hq := newSite(f, "hq", "hq-a", nil)
	hq.local.put(b)
	hq.local.gate = newGate()
	hq.local.gate.open(3 << 20)
	s := newSite(f, "hq/gd", "gd-a", upstream("hq-a"))
	first, err := s.fetcher.Fetch(t.Context(), b.request())
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.fetcher.Fetch(t.Context(), b.request())
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "3 MiB have come", func() bool { have, _ := first.Progress(); return have == 3<<20 })
	first.Release()
	first.Release() // idempotent
	select {
	case <-second.Done():
		t.Fatal("the flight ended while somebody wants it")
	default:
	}
	second.Release()
	if err := second.Wait(t.Context()); !errors.Is(err, transfer.ErrReleased) {
		t.Fatalf("Wait = %v", err)
	}
	if st, err := s.spool.Stat(b.digest); err != nil || st.Received != 3<<20 {
		t.Fatalf("kept %d bytes, %v", st.Received, err)
	}
	hq.local.gate.open(10 << 20)
	s.mustFetch(t, b)
	if n := s.received("hq-a"); n > int64(len(b.data))+transfer.DefaultStreams*piece {
		t.Errorf("%d bytes came in all", n)
	}
}

func TestFetcher_RunEnds(t *testing.T) {
	f := newFabric(t)
	b := newBlob(12, 10<<20)
	hq := newSite(f, "hq", "hq-a", nil)
	hq.local.put(b)
	hq.local.gate = newGate()
	hq.local.gate.open(2 << 20)
	s := newSite(f, "hq/gd", "gd-a", upstream("hq-a"))
	fl, err := s.fetcher.Fetch(t.Context(), b.request())
	if err != nil {
		t.Fatal(err)
	}
	rc, err := fl.Stream(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	eventually(t, "2 MiB have come", func() bool { have, _ := fl.Progress(); return have == 2<<20 })
	s.stop()
	if err := fl.Wait(t.Context()); !errors.Is(err, transfer.ErrClosed) {
		t.Errorf("Wait = %v", err)
	}
	buf := make([]byte, 3<<20)
	if err := readAll(rc, buf); !errors.Is(err, transfer.ErrClosed) {
		t.Errorf("stream ended with %v", err)
	}
	if _, err := s.fetcher.Fetch(t.Context(), b.request()); !errors.Is(err, transfer.ErrClosed) {
		t.Errorf("Fetch = %v", err)
	}
	fl.Release()
}

func TestFetch_Errors(t *testing.T) {
	b := newBlob(13, 1<<20)
	tests := map[string]struct {
		code codes.Code
		want error
	}{
		"not found":   {codes.NotFound, transfer.ErrNotFound},
		"denied":      {codes.PermissionDenied, transfer.ErrDenied},
		"unavailable": {codes.Unavailable, transfer.ErrUnavailable},
		"internal":    {codes.Internal, transfer.ErrUnavailable},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFabric(t)
				src := &fake{fetch: func(*transferv1.FetchRequest, func(int64, []byte) error, context.Context) error {
					return status.Error(tt.code, "because")
				}}
				f.serve("hq-a", src)
				s := newSite(f, "hq/gd", "gd-a", upstream("hq-a"))
				err := s.fetch(t.Context(), b)
				if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), "hq-a") || !strings.Contains(err.Error(), "because") {
					t.Errorf("err = %v", err)
				}
				if _, err := s.spool.Stat(b.digest); !errors.Is(err, store.ErrNotFound) {
					t.Errorf("room is still reserved: %v", err)
				}
			})
		})
	}
	t.Run("no source", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newSite(newFabric(t), "hq/gd", "gd-a", nil)
			if err := s.fetch(t.Context(), b); !errors.Is(err, transfer.ErrNotFound) {
				t.Errorf("err = %v", err)
			}
		})
	})
	t.Run("nobody listens", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newSite(newFabric(t), "hq/gd", "gd-a", upstream("nowhere"))
			if err := s.fetch(t.Context(), b); !errors.Is(err, transfer.ErrUnavailable) {
				t.Errorf("err = %v", err)
			}
		})
	})
	t.Run("too large", func(t *testing.T) {
		s := newSite(newFabric(t), "hq/gd", "gd-a", upstream("nowhere"))
		req := b.request()
		req.Size = 2 << 30
		if _, err := s.fetcher.Fetch(t.Context(), req); !errors.Is(err, store.ErrTooLarge) {
			t.Errorf("err = %v", err)
		}
	})
	t.Run("no space", func(t *testing.T) {
		s := newSite(newFabric(t), "hq/gd", "gd-a", upstream("nowhere"))
		other := newBlob(14, 1)
		in, err := s.spool.Ingest(other.digest, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		if _, err := s.fetcher.Fetch(t.Context(), b.request()); !errors.Is(err, store.ErrNoSpace) {
			t.Errorf("err = %v", err)
		}
	})
	t.Run("malformed", func(t *testing.T) {
		s := newSite(newFabric(t), "hq/gd", "gd-a", nil)
		for _, d := range []string{"", "sha256:", "sha256:../../etc/passwd", "sha512:" + b.digest[7:], strings.ToUpper(b.digest)} {
			req := b.request()
			req.Digest = d
			if _, err := s.fetcher.Fetch(t.Context(), req); !errors.Is(err, transfer.ErrInvalid) {
				t.Errorf("%q: %v", d, err)
			}
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		f := newFabric(t)
		f.serve("hq-a", &fake{fetch: func(_ *transferv1.FetchRequest, _ func(int64, []byte) error, ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}})
		s := newSite(f, "hq/gd", "gd-a", upstream("hq-a"))
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := s.fetcher.Fetch(ctx, b.request()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("err = %v", err)
		}
		eventually(t, "the flight has gone", func() bool { return len(s.fetcher.Active()) == 0 })
	})
}

func TestFetch_EvictedBetween(t *testing.T) {
	f := newFabric(t)
	b := newBlob(17, 1<<20)
	src := goodFake(b)
	f.serve("hq-a", src)
	s := newSite(f, "hq/gd", "gd-a", upstream("hq-a"))
	s.mustFetch(t, b)
	if err := s.spool.Remove(b.digest, nil); err != nil {
		t.Fatal(err)
	}
	s.mustFetch(t, b)
	if n := s.received("hq-a"); n != 2<<20 {
		t.Errorf("%d bytes came", n)
	}
}

// Content that the spool finds to be no good when it opens it is fetched as if it were not there.
func TestFetch_DamagedInSpool(t *testing.T) {
	f := newFabric(t)
	b := newBlob(18, 1<<20)
	f.serve("hq-a", goodFake(b))
	dir := t.TempDir()
	st, err := store.Open(store.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	s := newSite(f, "hq/gd", "gd-a", upstream("hq-a"), func(fc *transfer.FetcherConfig, sc *transfer.ServerConfig) {
		fc.Spool, sc.Spool = st.Spool(), st.Spool()
	})
	s.spool = st.Spool()
	s.put(t, b)
	files, err := filepath.Glob(filepath.Join(dir, "spool", "blobs", "*"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	if err := os.Remove(files[0]); err != nil {
		t.Fatal(err)
	}
	s.mustFetch(t, b)
	if n := s.received("hq-a"); n != 1<<20 {
		t.Errorf("%d bytes came", n)
	}
}

func TestFetch_SizesDiffer(t *testing.T) {
	f := newFabric(t)
	b := newBlob(31, 1<<20)
	hq := newSite(f, "hq", "hq-a", nil)
	hq.put(t, b)
	s := newSite(f, "hq/gd", "gd-a", upstream("hq-a"))
	req := b.request()
	req.Size++
	if _, err := s.fetcher.Fetch(t.Context(), req); err == nil || !strings.Contains(err.Error(), "sizes differ") {
		t.Errorf("err = %v", err)
	}
	s.mustFetch(t, b)
	if _, err := s.fetcher.Fetch(t.Context(), req); !errors.Is(err, transfer.ErrSize) {
		t.Errorf("err = %v", err)
	}
}
