package integration

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// dataFile is where a site's registry keeps the bytes of a digest.
func (s *site) dataFile(digest string) string {
	word := strings.TrimPrefix(digest, "sha256:")
	dir := cmp.Or(s.registryDir, filepath.Join(s.dir, "registry"))
	return filepath.Join(dir, "data", "docker", "registry", "v2", "blobs", "sha256", word[:2], word, "data")
}

// lose removes the bytes of a digest behind the registry's back.
func (s *site) lose(digest string) {
	s.t.Helper()
	if err := os.Remove(s.dataFile(digest)); err != nil {
		s.t.Fatal(err)
	}
}

// flip changes one bit in the middle of the bytes of a digest.
func (s *site) flip(digest string) {
	s.t.Helper()
	b, err := os.ReadFile(s.dataFile(digest))
	if err != nil {
		s.t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(s.dataFile(digest), b, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// intact says whether the bytes of a digest are there and right.
func (s *site) intact(digest string) error {
	b, err := os.ReadFile(s.dataFile(digest))
	if err != nil {
		return err
	}
	if got := digestOf(b); got != digest {
		return fmt.Errorf("the bytes of %s have the digest %s", digest, got)
	}
	return nil
}

// TestLostManifestIsNoDeletion: headquarters lets deletions travel, and one of its registries loses the manifest of a tag. That is damage: nothing is deleted anywhere.
func TestLostManifestIsNoDeletion(t *testing.T) {
	t.Parallel()
	const policy = "publish: {deletes: propagate}\nsweep: {interval: 1s}\n"
	sites := start(t, spec{name: "hq-a", group: "hq", extra: policy}, spec{name: "hq-b", group: "hq", extra: policy},
		spec{name: "hq-w", group: "hq", extra: "registry: {type: none}\n" + policy}, spec{name: "gd-a", group: "hq/gd"})
	hq := sites["hq-a"]
	digest := push(t, hq, "app/web:1", image(t, 1<<10, 1))
	hq.quiet("app/web:1", digest)
	hq.lose(digest)
	eventually(t, "the manifest is brought back", func() error { return hq.intact(digest) })
	for _, s := range []string{"hq-a", "hq-b", "gd-a"} {
		shows(t, sites[s], "app/web:1", digest)
	}
	out, _ := hq.ctl("images", "app/web", "-o", "json", "--all")
	var doc struct{ Images []struct{ Deleted bool } }
	if err := json.Unmarshal(out, &doc); err != nil || len(doc.Images) != 1 || doc.Images[0].Deleted {
		t.Errorf("%v: %s", err, out)
	}
	// A deletion is still one.
	if err := remote.Delete(reference(t, hq, "app/web:1")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a deletion travels", func() error { return gone(t, sites["gd-a"], "app/web:1") })
}

// TestScrub: content that rots or goes missing behind the registries' backs is mended with nobody asking, in a city, in a province and at headquarters, and an event tells of it.
func TestScrub(t *testing.T) {
	t.Parallel()
	const often = "scrub: {interval: 2s}\n"
	sites := start(t, spec{name: "hq-a", group: "hq", extra: often}, spec{name: "hq-b", group: "hq", extra: often},
		spec{name: "hq-w", group: "hq", extra: "registry: {type: none}\n"},
		spec{name: "gd-a", group: "hq/gd", extra: often}, spec{name: "sz-a", group: "hq/gd/sz", extra: often})
	hq := sites["hq-a"]
	img := image(t, 50<<10, 2)
	digest := push(t, hq, "app/web:1", img)
	if err := remote.Write(reference(t, hq, "app/other:1"), img); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"app/web:1", "app/other:1"} {
		hq.quiet(ref, digest)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"sz-a", "gd-a", "hq-b"} {
		s := sites[at]
		for i, harm := range []func(string){s.lose, s.flip} {
			for _, what := range []string{m.Layers[i].Digest.String(), m.Config.Digest.String(), digest} {
				harm(what)
				eventually(t, at+" mends "+what, func() error { return s.intact(what) })
			}
		}
		eventually(t, at+" tells of it", func() error {
			out, _ := s.ctl("events", "-o", "json")
			return says(string(out), "Scrubbed", "missing-blob of "+m.Layers[0].Digest.String(), "wrong-bytes of "+m.Layers[1].Digest.String(), "app/web:1", "app/other:1")
		})
	}
	for _, at := range []string{"sz-a", "gd-a", "hq-a", "hq-b"} {
		shows(t, sites[at], "app/web:1", digest)
		shows(t, sites[at], "app/other:1", digest)
	}
}
