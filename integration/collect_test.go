package integration

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/time/rate"
)

// stored gives the bytes of blobs in the folder of an embedded registry.
func stored(t testing.TB, dir string) (n int64) {
	t.Helper()
	_ = filepath.WalkDir(filepath.Join(dir, "data/docker/registry/v2/blobs"), func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			if fi, err := d.Info(); err == nil {
				n += fi.Size()
			}
		}
		return nil // what is collected meanwhile is not counted
	})
	return n
}

// TestEmbeddedRegistryCollects: what was unpublished stays as long as it can be undone, and goes from the disk when its hold is released; what was collected is delivered and
// published again like any other content.
func TestEmbeddedRegistryCollects(t *testing.T) {
	t.Parallel()
	const layers = 2 * mib
	sites := start(t, spec{name: "hq-a", group: "hq", extra: "sweep: {interval: 1s}\n", keys: ", gc: {interval: 500ms, grace: 1s}"})
	hq := sites["hq-a"]
	dir := filepath.Join(hq.dir, "registry")
	img := image(t, layers, 2)
	digest := push(t, hq, "app/web:1", img)
	other := push(t, hq, "app/web:2", image(t, layers, 1))
	hq.quiet("app/web:1", digest)
	hq.quiet("app/web:2", other)
	collections := func() float64 { return hq.metric("fanout_registry_collection_last_timestamp_seconds") }
	pass := func() {
		t.Helper()
		for range 2 {
			last := collections()
			eventually(t, "a collection", func() error {
				if collections() <= last {
					return fmt.Errorf("the last was at %v", last)
				}
				return nil
			})
		}
	}

	var doc struct{ Digest string }
	hq.document(&doc, "unpublish", "app/web:1")
	eventually(t, "the tag goes", func() error { return gone(t, hq, "app/web:1") })
	pass()
	if n := stored(t, dir); n < 3*layers {
		t.Errorf("%d bytes are left of what can be undone", n)
	}
	hq.document(&doc, "undo", "app/web:1")
	shows(t, hq, "app/web:1", digest)

	hq.document(&doc, "unpublish", "app/web:1")
	eventually(t, "the tag goes", func() error { return gone(t, hq, "app/web:1") })
	var held []string
	eventually(t, "the hold", func() error {
		if held = holds(t, hq, "app/web"); len(held) != 1 {
			return fmt.Errorf("%v", held)
		}
		return nil
	})
	// As when its time is over.
	if err := remote.Delete(reference(t, hq, "app/web:"+held[0])); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the disk shrinks", func() error {
		if n := stored(t, dir); n > layers+mib/2 {
			return fmt.Errorf("it has %d bytes", n)
		}
		return nil
	})
	eventually(t, "it is told", func() error {
		n := hq.metric("fanout_registry_collected_bytes_total")
		if out, _ := hq.ctl("events"); n < 2*layers || !strings.Contains(string(out), "Collected") {
			return fmt.Errorf("the metric says %v bytes; events: %s", n, out)
		}
		return nil
	})
	shows(t, hq, "app/web:2", other)

	// The agent knows that it is gone: a push of the same image is published as whole as the first.
	push(t, hq, "app/web:3", img)
	hq.quiet("app/web:3", digest)
	shows(t, hq, "app/web:3", digest)
}

// TestCollectionSparesADelivery: what a delivery has brought stays, though no tag leads to it for longer than the grace, and crosses the link once.
func TestCollectionSparesADelivery(t *testing.T) {
	t.Parallel()
	sites := start(t,
		spec{name: "hq-a", group: "hq", counted: true}, spec{name: "gd-a", group: "hq/gd", keys: ", gc: {interval: 200ms, grace: 500ms}"},
	)
	hq, gd := sites["hq-a"], sites["gd-a"]
	const size, layers = mib / 2, 8
	hq.link.pace.Store(rate.NewLimiter(mib, mib/2))
	before := hq.link.down.Load()
	digest := push(t, hq, "app/web:1", image(t, size, layers))
	shows(t, gd, "app/web:1", digest)
	if crossed := hq.link.down.Load() - before; crossed > framed(size*layers) {
		t.Errorf("%d bytes crossed for %d", crossed, size*layers)
	}
	if n := gd.metric("fanout_registry_collected_blobs_total"); n > 0 {
		t.Errorf("%v blobs were collected", n)
	}
	if gd.metric("fanout_registry_collection_last_timestamp_seconds") == 0 {
		t.Error("nothing was collected at all")
	}
}
