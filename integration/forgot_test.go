package integration

import (
	"net/http"
	"strings"
	"testing"

	"github.com/fanout-io/fanout/pkg/registry/harbortest"
)

// TestRegistryThatForgotABlob: a registry lost a layer behind the agent's back, which the next image has too. The agent believes that it is there, until the put of the manifest is answered MANIFEST_BLOB_UNKNOWN. Then it
// sends what the answer names, and no more; of one that names nothing, all that it did not see there itself.
func TestRegistryThatForgotABlob(t *testing.T) {
	t.Parallel()
	const layerSize = 256 << 10
	fake := serveFake(t, "oci", harbortest.Config{Knobs: harbortest.Knobs{Plain: true}})
	sites := start(t, spec{name: "hq-a", group: "hq", counted: true}, spec{name: "gd-a", group: "hq/gd", extra: fake.extra})
	hq := sites["hq-a"]
	base := image(t, layerSize, 2)
	layers, err := base.Layers()
	if err != nil {
		t.Fatal(err)
	}
	lost, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	push(t, hq, "app/web:1", base)
	fake.holds(t, "app/web:1", base)

	// count gives how many manifests were put, and how many blobs were sent, since it was called last.
	count := func() (puts, sent int) {
		for _, r := range fake.Requests() {
			switch {
			case r.Method == http.MethodPut && strings.HasPrefix(r.Path, "/v2/app/web/manifests/"):
				puts++
			case r.Method == http.MethodPut && strings.HasPrefix(r.Path, "/v2/app/web/blobs/uploads/"):
				sent++
			}
		}
		return puts, sent
	}
	next := with(t, image(t, 1<<10, 1), layers[0])
	fake.RemoveBlob("app/web", lost.String())
	before := hq.link.down.Load()
	count()
	push(t, hq, "app/web:2", next)
	fake.holds(t, "app/web:2", next)
	puts, sent := count()
	if sent != 3 { // its own layer and config, and what was forgotten
		t.Errorf("%d blobs were sent, want 3", sent)
	}
	if puts != 2 { // refused, and once more
		t.Errorf("a manifest was put %d times, want 2", puts)
	}
	if crossed := hq.link.down.Load() - before; crossed > layerSize+layerSize/2 {
		t.Errorf("%d bytes crossed the link for a layer of %d", crossed, layerSize)
	}

	// An answer that names nothing, as some registries give: all is asked for again, and what is there is not sent.
	remove := fake.AddFault(harbortest.Fault{Match: harbortest.On("PUT", "/v2/app/web/manifests/"), Times: 1, Status: http.StatusBadRequest, Code: "MANIFEST_BLOB_UNKNOWN", Message: "blob unknown to registry"})
	defer remove()
	count()
	third := with(t, image(t, 1<<10, 1), layers[0])
	push(t, hq, "app/web:3", third)
	fake.holds(t, "app/web:3", third)
	if puts, sent := count(); puts != 2 || sent != 2 {
		t.Errorf("a manifest was put %d times and %d blobs were sent, want 2 and 2", puts, sent)
	}
}
