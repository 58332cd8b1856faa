package registry_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/registry/harbortest"
	"github.com/fanout-io/fanout/pkg/registry/registrytest"
)

// dataFile is where the embedded registry keeps the bytes of a digest.
func dataFile(dir, digest string) string {
	word := digest[len("sha256:"):]
	return filepath.Join(dir, "data", "docker", "registry", "v2", "blobs", "sha256", word[:2], word, "data")
}

// TestEmbedded_DropDamaged: a flipped byte stays for good, whatever is uploaded, until the file is dropped; what is sound is not dropped.
func TestEmbedded_DropDamaged(t *testing.T) {
	dir := t.TempDir()
	e := embedded(t, registry.EmbeddedConfig{Dir: dir})
	c := client(t, registry.Config{URL: e.URL()})
	content := registrytest.Bytes(7, 1000)
	digest := registry.DigestOf(content)
	put := func() {
		t.Helper()
		_, err := c.PushBlob(t.Context(), repo, digest, registrytest.Whole(content))
		must(t, err)
	}
	sound := func() bool {
		t.Helper()
		r, err := c.OpenBlob(t.Context(), repo, digest, 0, -1)
		must(t, err)
		defer r.Close()
		b, err := io.ReadAll(r)
		must(t, err)
		return registry.DigestOf(b) == digest
	}
	put()
	if dropped, err := e.DropDamaged(t.Context(), digest); err != nil || dropped {
		t.Fatalf("sound content: dropped %v, %v", dropped, err)
	}
	bad := append([]byte(nil), content...)
	bad[500] ^= 1
	must(t, os.WriteFile(dataFile(dir, digest), bad, 0o600))
	must(t, c.DeleteBlob(t.Context(), repo, digest))
	_, err := c.StatBlob(t.Context(), repo, digest)
	wantIs(t, err, registry.ErrNotFound)
	put()
	if sound() {
		t.Fatal("the registry replaced damaged content on upload: dropping it is not needed any more")
	}
	if dropped, err := e.DropDamaged(t.Context(), digest); err != nil || !dropped {
		t.Fatalf("damaged content: dropped %v, %v", dropped, err)
	}
	_, err = c.StatBlob(t.Context(), repo, digest)
	wantIs(t, err, registry.ErrNotFound)
	if dropped, err := e.DropDamaged(t.Context(), digest); err != nil || dropped {
		t.Fatalf("no content: dropped %v, %v", dropped, err)
	}
	put()
	if !sound() {
		t.Fatal("damaged content came back")
	}
	if _, err := e.DropDamaged(t.Context(), "sha256:../../x"); !errors.Is(err, registry.ErrInvalid) {
		t.Fatalf("a digest that is none: %v", err)
	}
}

func TestHarbor_DeleteBlobIsNeverSent(t *testing.T) {
	_, c := harbor(t, harbortest.Config{Knobs: harbortest.Knobs{DeleteRight: true}})
	img := registrytest.NewImage(1, registrytest.Bytes(1, 100))
	registrytest.Push(t, c, repo, "v1", img)
	digest := registry.DigestOf(registrytest.Bytes(1, 100))
	wantIs(t, c.DeleteBlob(t.Context(), repo, digest), registry.ErrUnsupported)
	_, err := c.StatBlob(t.Context(), repo, digest)
	must(t, err)
}
