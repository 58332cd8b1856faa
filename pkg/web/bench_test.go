package web_test

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/fanout-io/fanout/internal/browser"
	"github.com/fanout-io/fanout/pkg/web"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// groups of the made-up fabric that figures are taken with.
const groups = 400

// BenchmarkFirstPicture is the time from the address to the picture of the tree, in Chromium, with nothing in its cache.
func BenchmarkFirstPicture(b *testing.B) {
	srv := serve(b, web.Config{Fabric: wideFabric(groups)})
	chromium := browser.Start(b)
	var drawn float64
	for range b.N {
		p := chromium.Open(b, srv.URL+"/", browser.View{Width: 1280, Height: 900})
		p.Wait(b, patience, "the picture", `document.querySelectorAll('.card').length === 32`)
		drawn += browser.Value[float64](b, p, `performance.now()`)
		if w := p.Wrong(); len(w) > 0 {
			b.Fatalf("%q", w)
		}
		p.Close()
	}
	b.ReportMetric(drawn/float64(b.N), "ms-to-picture")
	b.ReportMetric(0, "ns/op")
}

// readers are watchers that read and count.
type readers struct {
	stop  context.CancelFunc
	wg    sync.WaitGroup
	bytes atomic.Int64 // as they came
	plain atomic.Int64 // unpacked
}

func (c *readers) watch(b *testing.B, srv *httptest.Server, n int, packed bool) {
	ctx, cancel := context.WithCancel(context.Background())
	c.stop = cancel
	for range n {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL+"/api/v1/watch?feed=tree", nil)
		if err != nil {
			b.Fatal(err)
		}
		if packed {
			req.Header.Set("Accept-Encoding", "gzip")
		}
		resp, err := (&http.Transport{DisableCompression: true, DisableKeepAlives: true}).RoundTrip(req)
		if err != nil {
			b.Fatal(err)
		}
		c.wg.Go(func() {
			defer resp.Body.Close()
			var r io.Reader = tally{resp.Body, &c.bytes}
			if packed {
				z, err := gzip.NewReader(r)
				if err != nil {
					return
				}
				r = z
			}
			_, _ = io.Copy(io.Discard, tally{r, &c.plain})
		})
	}
}

type tally struct {
	r io.Reader
	n *atomic.Int64
}

func (t tally) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	t.n.Add(int64(n))
	return n, err
}

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkWatchers is what twenty watchers cost for ten seconds: with nothing but heartbeats, and with a cascade in which forty sites report a rate and bytes left four times a second. The time of
// the processor is that of the whole process, so what reads and unpacks is in it.
func BenchmarkWatchers(b *testing.B) {
	for _, busy := range []int{0, 40} {
		for _, n := range []int{0, 20} {
			for _, packed := range []bool{false, true} {
				if n == 0 && packed {
					continue
				}
				b.Run(fmt.Sprintf("syncing=%d/watchers=%d/packed=%v", busy, n, packed), func(b *testing.B) {
					for range b.N {
						watchers(b, busy, n, packed)
					}
				})
			}
		}
	}
}

func watchers(b *testing.B, busy, n int, packed bool) {
	const runs, beat = 10 * time.Second, 250 * time.Millisecond
	f := wideFabric(groups)
	srv := serve(b, web.Config{Fabric: f})
	c := &readers{}
	c.watch(b, srv, n, packed)
	eventually(b, "all have the whole picture", func() error {
		if c.plain.Load() < int64(n)*100_000 {
			return fmt.Errorf("%d bytes", c.plain.Load())
		}
		return nil
	})
	whole := c.bytes.Load()
	runtime.GC()
	before, began, updates := cpu(), time.Now(), 0
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for time.Since(began) < runs {
		<-tick.C
		updates++
		f.change(func() { beatOf(f.tree, busy, updates) })
	}
	spent := cpu() - before
	sent := c.bytes.Load() - whole
	c.stop()
	c.wg.Wait()
	b.ReportMetric(100*spent.Seconds()/time.Since(began).Seconds(), "%cpu")
	if n > 0 {
		b.ReportMetric(float64(whole)/float64(n), "B-first")
		b.ReportMetric(float64(sent)/float64(n*updates), "B/update")
	}
	b.ReportMetric(0, "ns/op")
}

// beatOf is what a quarter of a second changes: everybody was heard again, and some sites have fetched more.
func beatOf(t *adminv1.TreeResponse, busy, n int) {
	now := timestamppb.Now()
	for i, g := range t.GetGroups() {
		g.LastContact = now
		for _, m := range g.GetMembers() {
			m.LastContact = now
		}
		if i > 0 && i <= busy*9 && i%9 == 0 {
			m := g.GetMembers()[0]
			m.State, m.Rate, m.BytesLeft, g.State = "syncing", int64(11<<20+n*7919), int64(734<<20-n*(11<<18)), "syncing"
		}
	}
}
