package integration

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// mark is what a link that alters content looks for. It is shorter than any frame, and is found whole only in the blob's bytes: so frames stay as they are.
const mark = "<<the-marked-layer>>"

// marked returns an image with one layer that is full of marks.
func marked(t testing.TB, size int) ggcr.Image {
	t.Helper()
	b := &bytes.Buffer{}
	for i := 0; b.Len() < size; i++ {
		fmt.Fprintf(b, "%s %d %d\n", mark, i, time.Now().UnixNano())
	}
	return with(t, empty.Image, static.NewLayer(b.Bytes(), types.OCILayer))
}

// alter makes a link change one byte in each of the next n reads that hold a mark; below zero: in all. It returns how often it did.
func (p *proxy) alter(n int64) *atomic.Int64 {
	var done atomic.Int64
	harm := func(b []byte) bool {
		if i := bytes.Index(b, []byte(mark)); i >= 0 && (n < 0 || done.Load() < n) {
			done.Add(1)
			b[i+len(mark)/2] ^= 1
		}
		return true
	}
	p.harm.Store(&harm)
	return &done
}

// cutAtMarks makes a link break each connection that carries a mark, in the middle of it.
func (p *proxy) cutAtMarks() *atomic.Int64 {
	var done atomic.Int64
	harm := func(b []byte) bool {
		if !bytes.Contains(b, []byte(mark)) {
			return true
		}
		done.Add(1)
		return false
	}
	p.harm.Store(&harm)
	return &done
}

func (p *proxy) heal() { p.harm.Store(nil) }

// watchful looks at everything under a tag at sites, again and again, until stop is called: whatever can be read must be what its digest says.
func watchful(t testing.TB, repo string, img ggcr.Image, sites ...*site) (stop func()) {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, s := range sites {
		wg.Go(func() {
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				if _, _, err := s.read(repo, "blobs", digest.String()); err != nil && strings.Contains(err.Error(), "has content") {
					t.Error(err)
				}
				if body, _, err := s.read(repo, "manifests", "1"); err == nil {
					if _, err := s.all(repo, "1"); err != nil {
						t.Errorf("the tag is shown, but: %v: %s", err, body)
					}
				}
				<-tick.C
			}
		})
	}
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

// entire waits until a site shows a digest under a tag, and all under it, byte for byte as its digests say.
func entire(t testing.TB, s *site, repo, tag, digest string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s shows %s:%s", s.name, repo, tag), func() error {
		body, _, err := s.read(repo, "manifests", tag)
		if err != nil {
			return err
		}
		if got := digestOf(body); got != digest {
			return fmt.Errorf("it shows %s", got)
		}
		_, err = s.all(repo, tag)
		return err
	})
}

func TestAlteredOnTheLink(t *testing.T) {
	const size = 3 * mib
	lay := func(t *testing.T) (hq, gd, sz *site, sites map[string]*site) {
		sites = start(t,
			spec{name: "hq-a", group: "hq", counted: true}, spec{name: "hq-b", group: "hq", counted: true},
			spec{name: "gd-a", group: "hq/gd", counted: true}, spec{name: "sz-a", group: "hq/gd/sz"},
		)
		return sites["hq-a"], sites["gd-a"], sites["sz-a"], sites
	}
	t.Run("once", func(t *testing.T) {
		t.Parallel()
		hq, gd, sz, sites := lay(t)
		img := marked(t, size)
		first, second := hq.link.alter(1), sites["hq-b"].link.alter(1)
		below := gd.link.alter(1)
		stop := watchful(t, "app/web", img, gd, sz)
		digest := push(t, hq, "app/web:1", img)
		entire(t, gd, "app/web", "1", digest)
		entire(t, sz, "app/web", "1", digest)
		hq.quiet("app/web:1", digest)
		stop()
		if first.Load()+second.Load() == 0 || below.Load() == 0 {
			t.Errorf("altered %d and %d times to the province, %d to the city: nothing is shown", first.Load(), second.Load(), below.Load())
		}
	})
	t.Run("always from one of two", func(t *testing.T) {
		t.Parallel()
		hq, gd, sz, sites := lay(t)
		img := marked(t, size)
		gd.stop()
		digest := push(t, hq, "app/web:1", img)
		entire(t, sites["hq-b"], "app/web", "1", digest)
		altered := hq.link.alter(-1) // where it was pushed: asked first
		stop := watchful(t, "app/web", img, gd, sz)
		gd.start()
		entire(t, gd, "app/web", "1", digest)
		entire(t, sz, "app/web", "1", digest)
		stop()
		if altered.Load() == 0 {
			t.Error("nothing was altered: nothing is shown")
		}
	})
	t.Run("always from all", func(t *testing.T) {
		t.Parallel()
		hq, gd, sz, sites := lay(t)
		img := marked(t, size)
		hq.link.alter(-1)
		sites["hq-b"].link.alter(-1)
		stop := watchful(t, "app/web", img, gd, sz)
		digest := push(t, hq, "app/web:1", img)
		fails(t, hq, "gd-a", "app/web:1", "corrupt", "CRC")
		treeSays(t, hq, "gd-a", "degraded", "app/web:1: ", "corrupt", "CRC", "next attempt")
		fails(t, hq, "sz-a", "app/web:1", "gd-a")
		other := push(t, hq, "app/other:1", image(t, 64<<10, 2))
		shows(t, gd, "app/other:1", other)
		shows(t, sz, "app/other:1", other)
		hq.link.heal()
		sites["hq-b"].link.heal()
		entire(t, gd, "app/web", "1", digest)
		entire(t, sz, "app/web", "1", digest)
		stop()
		treeSays(t, hq, "gd-a", "synced")
	})
	t.Run("cut short always", func(t *testing.T) {
		t.Parallel()
		hq, gd, sz, sites := lay(t)
		img := marked(t, size)
		cut := hq.link.cutAtMarks()
		sites["hq-b"].link.cutAtMarks()
		stop := watchful(t, "app/web", img, gd, sz)
		digest := push(t, hq, "app/web:1", img)
		fails(t, hq, "gd-a", "app/web:1", "hq-a at "+hq.link.addr)
		treeSays(t, hq, "gd-a", "degraded", "app/web:1: ", "next attempt")
		if cut.Load() == 0 {
			t.Error("nothing was cut: nothing is shown")
		}
		other := push(t, hq, "app/other:1", image(t, 64<<10, 2))
		shows(t, gd, "app/other:1", other)
		hq.link.heal()
		sites["hq-b"].link.heal()
		entire(t, gd, "app/web", "1", digest)
		entire(t, sz, "app/web", "1", digest)
		stop()
	})
}
