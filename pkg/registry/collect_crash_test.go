package registry_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/registry/registrytest"
)

// Broken off at any step, the storage is whole, and the next collection comes to the same end.
func TestCollect_CrashAtEachStep(t *testing.T) {
	fill := func(t *testing.T, dir string) {
		e := embedded(t, registry.EmbeddedConfig{Dir: dir, Grace: grace})
		c := client(t, registry.Config{URL: e.URL()})
		of := registrytest.NewImage(1, layer(1), layer(9)).Manifest
		registrytest.Push(t, c, repo, "v1", registrytest.NewImage(1, layer(1), layer(9)))
		registrytest.Push(t, c, repo, "v1", registrytest.NewImage(2, layer(2), layer(9)))
		registrytest.Push(t, c, repo, "", registrytest.NewArtifact("application/sig", "s", &of))
		registrytest.Push(t, c, repo, registry.FallbackTag(of.Digest), registrytest.Image{Manifest: registrytest.NewIndex()})
		registrytest.Push(t, c, "other/app", "v1", registrytest.NewImage(3, layer(1), layer(3)))
		registrytest.Push(t, c, "other/old", "", registrytest.NewImage(4, layer(3), layer(4)))
		age(t, dir, 2*grace)
	}
	base := t.TempDir()
	fill(t, base)
	open := func(t *testing.T, dir string) (*registry.Embedded, *registry.Client) {
		e := embedded(t, registry.EmbeddedConfig{Dir: dir, Grace: grace})
		return e, client(t, registry.Config{URL: e.URL()})
	}
	clone := func(t *testing.T) string {
		dir := t.TempDir()
		must(t, os.CopyFS(dir, os.DirFS(base)))
		age(t, dir, 2*grace)
		return dir
	}
	dir := clone(t)
	var ops []string
	e, _ := open(t, dir)
	e.BeforeStep(func(op string) error { ops = append(ops, op); return nil })
	collect(t, e)
	want := stored(t, dir)
	if len(ops) < 30 || len(want["blobs"]) == len(stored(t, base)["blobs"]) {
		t.Fatalf("a dull collection: %v", ops)
	}
	for n := range ops {
		if testing.Short() && n%3 != 0 {
			continue
		}
		t.Run(fmt.Sprintf("%d %s", n, ops[n]), func(t *testing.T) {
			dir := clone(t)
			e, _ := open(t, dir)
			steps := 0
			e.BeforeStep(func(string) error {
				if steps++; steps > n {
					return errors.New("crash")
				}
				return nil
			})
			if _, err := e.Collect(t.Context()); err == nil {
				t.Fatal("the collection did not stop")
			}
			if steps != n+1 {
				t.Fatalf("it went on for %d steps", steps-n-1)
			}
			e, c := open(t, dir)
			whole(t, c, repo, "v1")
			whole(t, c, "other/app", "v1")
			for kind, list := range stored(t, dir) {
				if strings.Contains(kind, "/tags/") || kind == "blobs" {
					continue
				}
				for _, d := range list {
					if !slices.Contains(stored(t, dir)["blobs"], d) {
						t.Errorf("%s has a link to %s, which is gone", kind, d)
					}
				}
			}
			collect(t, e)
			if diff := cmp.Diff(want, stored(t, dir)); diff != "" {
				t.Errorf("in the end (-want +got):\n%s", diff)
			}
		})
	}
}

// Used between the look at its time and the moment when it is taken, a thing is put back, and so is what lies under it.
func TestCollect_UsedAtTheLastMoment(t *testing.T) {
	for _, what := range []string{"manifest", "blob"} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			e := embedded(t, registry.EmbeddedConfig{Dir: dir, Grace: grace})
			c := client(t, registry.Config{URL: e.URL()})
			img := registrytest.NewImage(1, layer(1))
			registrytest.Push(t, c, repo, "", img)
			age(t, dir, 2*grace)
			asked := false
			e.BeforeStep(func(op string) error {
				if op != "take" || asked {
					return nil
				}
				asked = true
				if what == "manifest" {
					_, err := c.Resolve(t.Context(), repo, img.Manifest.Digest)
					return err
				}
				for _, b := range img.Blobs {
					if _, err := c.StatBlob(t.Context(), repo, registry.DigestOf(b)); err != nil {
						return err
					}
				}
				return nil
			})
			got := collect(t, e)
			e.BeforeStep(nil)
			if !asked || got.Links > 0 || got.Blobs > 1 || what == "manifest" && got.Manifests > 0 {
				t.Errorf("took %+v", got)
			}
			must(t, c.PutManifest(t.Context(), repo, "v1", img.Manifest))
			whole(t, c, repo, "v1")
		})
	}
}

// What was used at the last moment and was out of its place when the collection broke off is put back, by the next one and by the next start.
func TestCollect_CrashBeforeItIsPutBack(t *testing.T) {
	for _, next := range []string{"collection", "start"} {
		t.Run(next, func(t *testing.T) {
			dir := t.TempDir()
			e := embedded(t, registry.EmbeddedConfig{Dir: dir, Grace: grace})
			c := client(t, registry.Config{URL: e.URL()})
			img := registrytest.NewImage(1, layer(1))
			registrytest.Push(t, c, repo, "", img)
			age(t, dir, 2*grace)
			e.BeforeStep(func(op string) error {
				if op == "judge" {
					return errors.New("crash")
				}
				_, err := c.Resolve(t.Context(), repo, img.Manifest.Digest)
				return err
			})
			if _, err := e.Collect(t.Context()); err == nil {
				t.Fatal("no crash")
			}
			_, err := c.Resolve(t.Context(), repo, img.Manifest.Digest)
			wantIs(t, err, registry.ErrNotFound)
			e.BeforeStep(nil)
			if next == "collection" {
				if got := collect(t, e); got.Manifests+got.Links+got.Blobs > 0 {
					t.Errorf("took %+v", got)
				}
			} else {
				embedded(t, registry.EmbeddedConfig{Dir: dir, Grace: grace})
			}
			_, err = c.Resolve(t.Context(), repo, img.Manifest.Digest)
			must(t, err)
			must(t, c.PutManifest(t.Context(), repo, "v1", img.Manifest))
			whole(t, c, repo, "v1")
		})
	}
}
