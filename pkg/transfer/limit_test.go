package transfer_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fanout-io/fanout/pkg/store"
	"github.com/fanout-io/fanout/pkg/transfer"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"
)

func TestFetch_SmallDoNotWaitBehindLarge(t *testing.T) {
	f := newFabric(t)
	hq := newSite(f, "hq", "hq-a", nil)
	small := newBlob(99, 1000)
	hq.put(t, small)
	hq.local.gate = newGate()
	hq.local.gate.open(piece)
	s := newSite(f, "hq/gd", "gd-a", upstream("hq-a"))
	for i := range transfer.DefaultBlobs {
		b := newBlob(uint64(20+i), 5<<20)
		hq.local.put(b)
		fl, err := s.fetcher.Fetch(t.Context(), b.request())
		if err != nil {
			t.Fatal(err)
		}
		defer fl.Release()
	}
	s.mustFetch(t, small)
	if n := len(s.fetcher.Active()); n != transfer.DefaultBlobs {
		t.Errorf("%d flights are active", n)
	}
}

func TestFetch_DownloadLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFabric(t)
		b := newBlob(30, 8<<20)
		f.serve("hq-a", goodFake(b))
		lim := rate.NewLimiter(1<<20, 64<<10) // a burst smaller than a message
		s := newSite(f, "hq/gd", "gd-a", upstream("hq-a"), func(fc *transfer.FetcherConfig, _ *transfer.ServerConfig) {
			fc.Download = lim
		})
		begin := time.Now()
		if err := s.fetch(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begin).Seconds(); d < 7.5 || d > 8.5 {
			t.Errorf("8 MiB at 1 MiB/s took %.1f s", d)
		}
	})
}

// Under a limit no more is asked for than it allows, since what was asked for is on its way; and a refusal costs nothing.
func TestFetch_DownloadLimitAsksForLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFabric(t)
		b := newBlob(30, 8<<20)
		f.serve("refuses", &fake{fetch: func(*transferv1.FetchRequest, func(int64, []byte) error, context.Context) error {
			return status.Error(codes.NotFound, "not here")
		}})
		var mu sync.Mutex
		var longest, asked int64
		f.serve("hq-a", &fake{fetch: func(req *transferv1.FetchRequest, send func(int64, []byte) error, _ context.Context) error {
			off, end := rangeOf(req)
			mu.Lock()
			longest, asked = max(longest, int64(end-off)), asked+int64(end-off)
			mu.Unlock()
			return sendRange(b.data, off, end, piece, send)
		}})
		lim := rate.NewLimiter(1<<20, 64<<10)
		s := newSite(f, "hq/gd", "gd-a", upstream("refuses", "hq-a"), func(fc *transfer.FetcherConfig, _ *transfer.ServerConfig) {
			fc.Download = lim
		})
		begin := time.Now()
		if err := s.fetch(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begin).Seconds(); d < 7.5 || d > 8.1 {
			t.Errorf("8 MiB at 1 MiB/s took %.2f s", d)
		}
		mu.Lock()
		defer mu.Unlock()
		if longest != store.PieceSize || asked != int64(len(b.data)) {
			t.Errorf("asked for %d bytes, up to %d at once", asked, longest)
		}
	})
}

// Under a limit so low that a piece takes longer than a fellow's patience, the fellow follows all the same.
func TestFetch_FellowFollowsUnderLowLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFabric(t)
		b := newBlob(32, 4*piece)
		f.serve("hq-a", goodFake(b))
		lim := rate.NewLimiter(piece/20, 64<<10)
		lim.AllowN(time.Now(), 64<<10)
		carrier := newSite(f, "hq/gd", "gd-a", upstream("hq-a"), func(fc *transfer.FetcherConfig, _ *transfer.ServerConfig) {
			fc.Download = lim
		})
		asked := 0
		fellow := newSite(f, "hq/gd", "gd-b", nil, func(fc *transfer.FetcherConfig, _ *transfer.ServerConfig) {
			fc.Sources = func(context.Context, transfer.Request) ([]transfer.Source, error) {
				asked++
				return fellows("gd-a"), nil
			}
		})
		begin := time.Now()
		if err := fellow.fetch(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begin).Seconds(); d > 85 {
			t.Errorf("four pieces at 20 s each took %.0f s", d)
		}
		if n := carrier.received("hq-a"); asked != 1 || n != 4*piece {
			t.Errorf("asked in %d rounds, %d bytes crossed the link", asked, n)
		}
	})
}

// A flight that only a child wants outlives the pause between two of the child's ranges, and not much more.
func TestFetch_ReadThroughLingers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFabric(t)
		b := newBlob(34, 2*piece)
		hq := newSite(f, "hq", "hq-a", nil)
		hq.local.put(b)
		hq.local.gate = newGate()
		hq.local.gate.open(piece)
		gd := newSite(f, "hq/gd", "gd-a", upstream("hq-a"))
		req := &transferv1.FetchRequest{Caller: city, Purpose: purpose, Digest: b.digest, Size: 2 * piece, Length: piece, ReadThrough: true}
		if _, err := ask(t, client(t, f, "gd-a"), req); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // the store saves progress with a little delay
		if n := len(gd.fetcher.Active()); n != 1 {
			t.Errorf("%d flights right after a range", n)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(gd.fetcher.Active()); n != 0 {
			t.Errorf("%d flights that nobody wants", n)
		}
	})
}
