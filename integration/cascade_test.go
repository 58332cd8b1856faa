package integration

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func reference(t testing.TB, s *site, ref string) name.Reference {
	t.Helper()
	r, err := name.ParseReference(s.reg+"/"+ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func image(t testing.TB, size, layers int64) ggcr.Image {
	t.Helper()
	img, err := random.Image(size, layers, random.WithSource(newSource()))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

type source struct{ *rand.Rand }

func (s source) Seed(int64)   {}
func (s source) Int63() int64 { return s.Int64() }

func newSource() source { return source{rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))} }

func push(t testing.TB, s *site, ref string, img ggcr.Image) string {
	t.Helper()
	if err := remote.Write(reference(t, s, ref), img); err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// shows waits until a site's registry shows a digest under a ref, and proves that all under it is there and whole.
func shows(t testing.TB, s *site, ref, digest string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s shows %s", s.name, ref), func() error {
		d, err := remote.Head(reference(t, s, ref))
		if err != nil {
			return err
		}
		if d.Digest.String() != digest {
			return fmt.Errorf("it shows %s", d.Digest)
		}
		return nil
	})
	d, err := remote.Get(reference(t, s, ref))
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case d.MediaType.IsIndex():
		idx, err := d.ImageIndex()
		if err == nil {
			err = validate.Index(idx)
		}
		if err != nil {
			t.Errorf("%s: index %s: %v", s.name, ref, err)
		}
	case d.MediaType.IsImage():
		img, err := d.Image()
		if err == nil {
			err = validate.Image(img)
		}
		if err != nil {
			t.Errorf("%s: image %s: %v", s.name, ref, err)
		}
	}
}

func TestOneSiteToOneSite(t *testing.T) {
	t.Parallel()
	sites := start(t, spec{name: "hq-a", group: "hq"}, spec{name: "gd-a", group: "hq/gd"})
	digest := push(t, sites["hq-a"], "app/web:1.0", image(t, 1<<20, 3))
	shows(t, sites["gd-a"], "app/web:1.0", digest)
	eventually(t, "where says delivered", func() error {
		for _, w := range sites["hq-a"].where("app/web:1.0") {
			if w.State != "delivered" || w.Digest != digest {
				return fmt.Errorf("%+v", w)
			}
		}
		return nil
	})
}

func TestThreeTiersFromAnyHeadquartersRegistry(t *testing.T) {
	t.Parallel()
	sites := start(t,
		spec{name: "hq-a", group: "hq"}, spec{name: "hq-b", group: "hq"}, spec{name: "hq-c", group: "hq"},
		spec{name: "gd-a", group: "hq/gd"}, spec{name: "sz-a", group: "hq/gd/sz"},
	)
	for i, from := range []string{"hq-a", "hq-b", "hq-c"} {
		ref := fmt.Sprintf("app/web:%d", i)
		digest := push(t, sites[from], ref, image(t, 1<<20, 2))
		for _, s := range sites {
			shows(t, s, ref, digest)
		}
	}
	var idx ggcr.ImageIndex = empty.Index
	for _, arch := range []string{"amd64", "arm64", "s390x", "ppc64le"} {
		img := image(t, 1<<16, 2)
		cfg, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		cfg = cfg.DeepCopy()
		cfg.OS, cfg.Architecture = "linux", arch
		if img, err = mutate.ConfigFile(img, cfg); err != nil {
			t.Fatal(err)
		}
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{
			Add: img, Descriptor: ggcr.Descriptor{Platform: &ggcr.Platform{OS: "linux", Architecture: arch}},
		})
	}
	idx = mutate.IndexMediaType(idx, types.OCIImageIndex)
	if err := remote.WriteIndex(reference(t, sites["hq-b"], "app/multi:1"), idx); err != nil {
		t.Fatal(err)
	}
	d, err := idx.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sites {
		shows(t, s, "app/multi:1", d.String())
	}
}

func TestFollowersTakeNothingFromTheParent(t *testing.T) {
	t.Parallel()
	sites := start(t,
		spec{name: "hq-a", group: "hq", counted: true},
		spec{name: "gd-a", group: "hq/gd"}, spec{name: "gd-b", group: "hq/gd"}, spec{name: "gd-c", group: "hq/gd"},
	)
	const size = 8 << 20
	before := sites["hq-a"].link.down.Load()
	digest := push(t, sites["hq-a"], "app/big:1", image(t, size, 2))
	for _, s := range []string{"gd-a", "gd-b", "gd-c"} {
		shows(t, sites[s], "app/big:1", digest)
	}
	crossed := sites["hq-a"].link.down.Load() - before
	if crossed < 2*size || crossed > 2*size+size/4 {
		t.Errorf("%d bytes crossed the link for two layers of %d", crossed, size)
	}
}

func TestKilledAgentCatchesUp(t *testing.T) {
	t.Parallel()
	sites := start(t,
		spec{name: "hq-a", group: "hq"}, spec{name: "hq-b", group: "hq"}, spec{name: "hq-c", group: "hq"},
		spec{name: "gd-a", group: "hq/gd"}, spec{name: "sz-a", group: "hq/gd/sz"},
	)
	sites["gd-a"].kill()
	digests := map[string]string{}
	for i := range 10 {
		ref := fmt.Sprintf("app/web:%d", i)
		digests[ref] = push(t, sites["hq-a"], ref, image(t, 1<<18, 2))
	}
	sites["hq-c"].kill()
	sites["gd-a"].start()
	for ref, digest := range digests {
		shows(t, sites["sz-a"], ref, digest)
		shows(t, sites["hq-b"], ref, digest)
	}
	sites["hq-c"].start()
	for ref, digest := range digests {
		shows(t, sites["hq-c"], ref, digest)
	}
}

// TestTagPushedAgainEndsAsTheLast: no site ever shows an older digest after a newer one, seen by pollers that ask all the time.
func TestTagPushedAgainEndsAsTheLast(t *testing.T) {
	t.Parallel()
	sites := start(t, spec{name: "hq-a", group: "hq"}, spec{name: "hq-b", group: "hq"}, spec{name: "hq-c", group: "hq"}, spec{name: "gd-a", group: "hq/gd"})
	const ref = "app/web:latest"
	var images []ggcr.Image
	order := map[string]int{}
	for i := range 5 {
		img := image(t, 1<<16, 1)
		d, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		order[d.String()] = i
		images = append(images, img)
	}
	done := make(chan struct{})
	var pollers sync.WaitGroup
	for _, s := range sites {
		pollers.Go(func() {
			newest := -1
			for {
				select {
				case <-done:
					return
				default:
				}
				d, err := remote.Head(reference(t, s, ref))
				if err != nil {
					continue
				}
				if at := order[d.Digest.String()]; at < newest {
					t.Errorf("%s shows push %d after push %d", s.name, at, newest)
					return
				} else {
					newest = at
				}
			}
		})
	}
	var last string
	for _, img := range images {
		last = push(t, sites["hq-a"], ref, img)
	}
	for _, s := range sites {
		shows(t, s, ref, last)
	}
	close(done)
	pollers.Wait()
}
