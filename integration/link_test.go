package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/time/rate"
)

const (
	mib = 1 << 20
	// piece and streams are what one large blob has in flight: each stream loses at most the piece that it is in the middle of.
	piece   = 256 << 10
	streams = 4
	// buffered is what the link may have taken that the receiver had not yet made part of a piece when it died: a buffer of the proxy (32 KiB)
	// and of the receiver's connection (128 KiB), and what waits in the receiver's socket, which reads as fast as the link is here.
	buffered = 512 << 10
	// chatter bounds what a link carries beside blobs in such a test: heartbeats, records, manifests. Measured: 4 to 15 KiB.
	chatter = 64 << 10
)

// throttle limits a link to a rate in bytes a second, all its connections together.
func (p *proxy) throttle(bytes int) { p.pace.Store(rate.NewLimiter(rate.Limit(bytes), 64<<10)) }

// free takes the limit away.
func (p *proxy) free() { p.pace.Store(nil) }

// crossing waits until a link has carried so many bytes since a count.
func (p *proxy) crossing(t testing.TB, since, bytes int64) {
	t.Helper()
	within(t, patience, fmt.Sprintf("%d bytes cross the link", bytes), func() error {
		if n := p.down.Load() - since; n < bytes {
			return fmt.Errorf("%d have", n)
		}
		return nil
	})
}

func layer(t testing.TB, size int64) ggcr.Layer {
	t.Helper()
	l, err := random.Layer(size, types.OCILayer, random.WithSource(newSource()))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// with puts layers on an image.
func with(t testing.TB, img ggcr.Image, layers ...ggcr.Layer) ggcr.Image {
	t.Helper()
	img, err := mutate.AppendLayers(img, layers...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// quiet waits until all sites say that a ref is delivered: then nothing more crosses for its sake.
func (s *site) quiet(ref, digest string) {
	s.t.Helper()
	eventually(s.t, "all sites have "+ref, func() error {
		sites := s.where(ref)
		if len(sites) == 0 {
			return fmt.Errorf("no site is known")
		}
		for _, w := range sites {
			if w.State != "delivered" || w.Digest != digest {
				return fmt.Errorf("%+v", w)
			}
		}
		return nil
	})
}

// framed is the most that a link may carry for so many bytes of blobs.
func framed(blobs int64) int64 { return blobs + blobs/256 + chatter }

func annotated(t testing.TB, img ggcr.Image) ggcr.Image {
	t.Helper()
	img, ok := mutate.Annotations(img, map[string]string{"org.opencontainers.image.title": "another"}).(ggcr.Image)
	if !ok {
		t.Fatal("an annotated image is no image")
	}
	return img
}

func between(t testing.TB, what string, got, low, high int64) {
	t.Helper()
	t.Logf("%s: %d bytes, %+d to the least", what, got, got-low)
	if got < low || got > high {
		t.Errorf("%s: %d bytes crossed, want %d to %d", what, got, low, high)
	}
}

func TestBlobsCrossEachLinkOnce(t *testing.T) {
	t.Parallel()
	sites := start(t,
		spec{name: "hq-a", group: "hq", counted: true},
		spec{name: "gd-a", group: "hq/gd", counted: true}, spec{name: "gd-b", group: "hq/gd", counted: true},
		spec{name: "sz-a", group: "hq/gd/sz"},
	)
	hq := sites["hq-a"]
	// A blob leaves the province's members twice: once for the fellow that is not the carrier, once for the city.
	province := func() int64 { return sites["gd-a"].link.down.Load() + sites["gd-b"].link.down.Load() }
	shared, own := layer(t, 4*mib), layer(t, 2*mib)
	base := image(t, mib, 1)
	steps := []struct {
		what, ref string
		img       ggcr.Image
		blobs     int64
	}{
		{"a new image", "app/web:1", with(t, base, shared), 5 * mib},
		{"another that shares layers", "app/web:2", with(t, base, shared, own), 2 * mib},
		{"the same under another repository", "app/api:1", with(t, base, shared, own), 0},
		{"a new manifest over the same layers, elsewhere", "app/other:1", annotated(t, with(t, base, shared, own)), 0},
	}
	for _, step := range steps {
		before, within := hq.link.down.Load(), province()
		digest := push(t, hq, step.ref, step.img)
		hq.quiet(step.ref, digest)
		between(t, step.what, hq.link.down.Load()-before, step.blobs, framed(step.blobs))
		between(t, step.what+", from the province's members", province()-within, 2*step.blobs, framed(2*step.blobs))
		for _, s := range sites {
			shows(t, s, step.ref, digest)
		}
	}
}

// spooled counts the blobs in a site's spool.
func spooled(t testing.TB, s *site) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.dir, "store", "spool", "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestTwoLinksCarryEachBlobOnce(t *testing.T) {
	t.Parallel()
	sites := start(t,
		spec{name: "hq-a", group: "hq", counted: true}, spec{name: "gd-a", group: "hq/gd", counted: true}, spec{name: "sz-a", group: "hq/gd/sz"},
	)
	hq, province := sites["hq-a"], sites["gd-a"]
	first, second := hq.link.down.Load(), province.link.down.Load()
	shared := layer(t, 6*mib)
	// Pushed at once, so that the fetches of the shared layer meet.
	one, two := with(t, image(t, mib, 1), shared), with(t, image(t, mib, 1), shared)
	digests := map[string]string{}
	digests["app/one:1"] = push(t, hq, "app/one:1", one)
	digests["app/two:1"] = push(t, hq, "app/two:1", two)
	for ref, digest := range digests {
		hq.quiet(ref, digest)
		for _, s := range sites {
			shows(t, s, ref, digest)
		}
	}
	// What nobody takes from a city is not kept twice there.
	if n := spooled(t, sites["sz-a"]); n != 0 {
		t.Errorf("%d blobs are left in the city's spool", n)
	}
	if n := spooled(t, province); n == 0 {
		t.Error("the province has nothing in its spool")
	}
	between(t, "from headquarters to the province", hq.link.down.Load()-first, 8*mib, framed(8*mib))
	between(t, "from the province to the city", province.link.down.Load()-second, 8*mib, framed(8*mib))
}

func TestCityReceivesBeforeProvinceHasHalf(t *testing.T) {
	sites := start(t,
		spec{name: "hq-a", group: "hq", counted: true}, spec{name: "gd-a", group: "hq/gd", counted: true}, spec{name: "sz-a", group: "hq/gd/sz"},
	)
	hq, province := sites["hq-a"], sites["gd-a"]
	const size = 16 * mib
	hq.link.throttle(5 * mib)
	first, second := hq.link.down.Load(), province.link.down.Load()
	digest := push(t, hq, "app/big:1", image(t, size, 1))
	province.link.crossing(t, second, 2*mib)
	if n := hq.link.down.Load() - first; n >= size/2 {
		t.Errorf("the province had taken %d of %d when the city had 2 MiB", n, size)
	} else {
		t.Logf("the province had taken %d of %d when the city had 2 MiB", n, size)
	}
	shows(t, province, "app/big:1", digest)
	at := time.Now()
	shows(t, sites["sz-a"], "app/big:1", digest)
	t.Logf("the city was done %s after the province", time.Since(at))
	between(t, "to the province", hq.link.down.Load()-first, size, framed(size))
	between(t, "to the city", province.link.down.Load()-second, size, framed(size))
}

func TestKilledInMidBlobOnlyPiecesInFlightComeAgain(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, killed, extra string }{
		{"child", "gd-a", ""},
		{"parent", "hq-a", ""},
		// What the link may carry is limited by the child then, not by the link.
		{"child with a limit", "gd-a", "limits: {download: 64Mbps}\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sites := start(t, spec{name: "hq-a", group: "hq", counted: true}, spec{name: "gd-a", group: "hq/gd", extra: tt.extra})
			hq := sites["hq-a"]
			const size = 16 * mib
			if tt.extra == "" {
				hq.link.throttle(8 * mib)
			}
			before := hq.link.down.Load()
			digest := push(t, hq, "app/big:1", image(t, size, 1))
			hq.link.crossing(t, before, 6*mib)
			sites[tt.killed].kill()
			if n := hq.link.down.Load() - before; n > 12*mib {
				t.Errorf("%d bytes had crossed already: killed too late to show anything", n)
			}
			hq.link.free()
			sites[tt.killed].start()
			shows(t, sites["gd-a"], "app/big:1", digest)
			between(t, "killed "+tt.name, hq.link.down.Load()-before, size, framed(size)+streams*piece+buffered)
		})
	}
}

// rootOf asks a site who its group's root is.
func rootOf(t testing.TB, sites map[string]*site, ask *site) *site {
	t.Helper()
	var root *site
	eventually(t, "the group has a root", func() error {
		out, _ := ask.ctl("member", "list", "-o", "json")
		var list struct {
			Members []struct{ Site, Role string }
		}
		if err := json.Unmarshal(out, &list); err != nil {
			return err
		}
		for _, m := range list.Members {
			if m.Role == "root" {
				root = sites[m.Site]
				return nil
			}
		}
		return fmt.Errorf("%s", out)
	})
	return root
}

func TestRootOfHeadquartersKilledDuringCascade(t *testing.T) {
	t.Parallel()
	sites := start(t,
		spec{name: "hq-a", group: "hq", counted: true}, spec{name: "hq-b", group: "hq", counted: true}, spec{name: "hq-c", group: "hq", counted: true},
		spec{name: "gd-a", group: "hq/gd"}, spec{name: "sz-a", group: "hq/gd/sz"},
	)
	root := rootOf(t, sites, sites["hq-a"])
	var other *site
	for _, s := range root.members {
		s.link.throttle(12 * mib)
		if s != root {
			other = s
		}
	}
	digests := map[string]string{}
	for i := range 4 {
		ref := fmt.Sprintf("app/web:%d", i)
		at := other
		if i == 1 {
			at = root // its blobs may be nowhere else when it dies
		}
		digests[ref] = push(t, at, ref, image(t, 2*mib, 2))
	}
	sum := func() (n int64) {
		for _, s := range root.members {
			n += s.link.down.Load()
		}
		return n
	}
	eventually(t, "the cascade is under way", func() error {
		if n := sum(); n < 8*mib {
			return fmt.Errorf("%d bytes have crossed", n)
		}
		return nil
	})
	root.kill()
	for ref, digest := range digests {
		if ref == "app/web:1" {
			continue
		}
		for _, s := range sites {
			if s != root {
				shows(t, s, ref, digest)
			}
		}
	}
	// One more while the old root is away, so that it has something to catch up.
	digests["app/web:late"] = push(t, other, "app/web:late", image(t, mib, 1))
	root.start()
	for ref, digest := range digests {
		for _, s := range sites {
			shows(t, s, ref, digest)
		}
	}
}
