package registry_test

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/registry/registrytest"
)

const grace = time.Hour

// age makes all that is in a registry's folder older, as if nobody had used it for that time.
func age(t testing.TB, dir string, by time.Duration) {
	t.Helper()
	then := time.Now().Add(-by)
	must(t, filepath.WalkDir(filepath.Join(dir, "data"), func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chtimes(path, then, then)
	}))
}

// stored lists, as the disk has them, the digests of blobs, and of manifests and layers by repository.
func stored(t testing.TB, dir string) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	root := filepath.Join(dir, "data", "docker", "registry", "v2")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, filepath.Dir(path))
		if os.IsNotExist(err) || err == nil && d.IsDir() {
			return nil
		}
		for _, kind := range []string{"/_layers/", "/_manifests/revisions/", "/_manifests/tags/"} {
			if repo, what, ok := strings.Cut(rel, kind); ok {
				what = strings.Replace(what, "sha256/", "sha256:", 1)
				out[strings.TrimPrefix(repo, "repositories/")+kind] = append(out[strings.TrimPrefix(repo, "repositories/")+kind], what)
			}
		}
		if d.Name() == "data" && strings.HasPrefix(rel, "blobs/") {
			out["blobs"] = append(out["blobs"], "sha256:"+filepath.Base(rel))
		}
		return err
	})
	must(t, err)
	return out
}

func collect(t testing.TB, e *registry.Embedded) registry.Collection {
	t.Helper()
	got, err := e.Collect(t.Context())
	must(t, err)
	return got
}

// whole fails unless all that a tag shows is there. It may be called by any goroutine.
func whole(t testing.TB, c *registry.Client, repo, tag string) {
	t.Helper()
	ctx := context.Background()
	d, err := c.Resolve(ctx, repo, tag)
	if err != nil {
		t.Errorf("%s:%s: %v", repo, tag, err)
		return
	}
	closure, err := registry.Collect(ctx, func(ctx context.Context, digest string) (registry.Manifest, error) {
		return c.Manifest(ctx, repo, digest)
	}, d)
	if err != nil {
		t.Errorf("%s:%s: %v", repo, tag, err)
		return
	}
	for _, b := range closure.Blobs {
		if _, err := c.StatBlob(ctx, repo, b.GetDigest()); err != nil {
			t.Errorf("%s:%s: %v", repo, tag, err)
		}
	}
}

func layer(seed uint64) []byte { return registrytest.Bytes(seed, 3000) }

// shown is the manifest that a tag shows.
func shown(t testing.TB, c *registry.Client, tag string) registrytest.Image {
	t.Helper()
	m, err := c.Manifest(t.Context(), repo, tag)
	must(t, err)
	return registrytest.Image{Manifest: m}
}

func digests(lists ...[][]byte) (out []string) {
	for _, list := range lists {
		for _, b := range list {
			out = append(out, registry.DigestOf(b))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// What goes, and what stays.
func TestCollect_GoesAndStays(t *testing.T) {
	const hold = registry.HoldPrefix + "0123456789ab"
	img := func(seed uint64) registrytest.Image { return registrytest.NewImage(seed, layer(seed), layer(1000)) }
	for name, tt := range map[string]struct {
		// do fills a registry and ages it, and gives the images that must stay and those that must go; a blob of both stays.
		do func(t *testing.T, c *registry.Client, old func()) (stay, gone []registrytest.Image)
	}{
		"tag": {func(t *testing.T, c *registry.Client, old func()) (stay, gone []registrytest.Image) {
			registrytest.Push(t, c, repo, "v1", img(1))
			old()
			return []registrytest.Image{img(1)}, nil
		}},
		"tag deleted long ago": {func(t *testing.T, c *registry.Client, old func()) (stay, gone []registrytest.Image) {
			registrytest.Push(t, c, repo, "v1", img(1))
			registrytest.Push(t, c, repo, "v2", img(2))
			must(t, c.DeleteTag(t.Context(), repo, "v1"))
			old()
			return []registrytest.Image{img(2)}, []registrytest.Image{img(1)}
		}},
		"tag deleted just now": {func(t *testing.T, c *registry.Client, old func()) (stay, gone []registrytest.Image) {
			registrytest.Push(t, c, repo, "v1", img(1))
			old()
			must(t, c.DeleteTag(t.Context(), repo, "v1"))
			return []registrytest.Image{img(1)}, nil
		}},
		"tag moved long ago": {func(t *testing.T, c *registry.Client, old func()) (stay, gone []registrytest.Image) {
			registrytest.Push(t, c, repo, "v1", img(1))
			registrytest.Push(t, c, repo, "v1", img(2))
			old()
			return []registrytest.Image{img(2)}, []registrytest.Image{img(1)}
		}},
		"tag moved just now": {func(t *testing.T, c *registry.Client, old func()) (stay, gone []registrytest.Image) {
			registrytest.Push(t, c, repo, "v1", img(1))
			old()
			registrytest.Push(t, c, repo, "v1", img(2))
			return []registrytest.Image{img(1), img(2)}, nil
		}},
		"hold": {func(t *testing.T, c *registry.Client, old func()) (stay, gone []registrytest.Image) {
			registrytest.Push(t, c, repo, "v1", img(1))
			must(t, c.PutManifest(t.Context(), repo, hold, img(1).Manifest))
			must(t, c.DeleteTag(t.Context(), repo, "v1"))
			old()
			return []registrytest.Image{img(1)}, nil
		}},
		"index": {func(t *testing.T, c *registry.Client, old func()) (stay, gone []registrytest.Image) {
			registrytest.Push(t, c, repo, "", img(1))
			registrytest.Push(t, c, repo, "", img(2))
			registrytest.Push(t, c, repo, "", img(3))
			index := registrytest.Image{Manifest: registrytest.NewIndex(img(1).Manifest, img(2).Manifest)}
			registrytest.Push(t, c, repo, "v1", index)
			old()
			return []registrytest.Image{img(1), img(2), index}, []registrytest.Image{img(3)}
		}},
		"push by digest, just now": {func(t *testing.T, c *registry.Client, old func()) (stay, gone []registrytest.Image) {
			old()
			registrytest.Push(t, c, repo, "", img(1))
			return []registrytest.Image{img(1)}, nil
		}},
		"manifest asked for just now": {func(t *testing.T, c *registry.Client, old func()) (stay, gone []registrytest.Image) {
			registrytest.Push(t, c, repo, "", img(1))
			registrytest.Push(t, c, repo, "", img(2))
			old()
			_, err := c.Resolve(t.Context(), repo, img(1).Manifest.Digest)
			must(t, err)
			return []registrytest.Image{img(1)}, []registrytest.Image{img(2)}
		}},
		"blobs of a push under way": {func(t *testing.T, c *registry.Client, old func()) (stay, gone []registrytest.Image) {
			for _, seed := range []uint64{1, 2} {
				_, err := c.PushBlob(t.Context(), repo, registry.DigestOf(layer(seed)), registrytest.Whole(layer(seed)))
				must(t, err)
			}
			old()
			// The client finds the first, and will not send it again.
			_, err := c.StatBlob(t.Context(), repo, registry.DigestOf(layer(1)))
			must(t, err)
			return []registrytest.Image{{Blobs: [][]byte{layer(1)}}}, []registrytest.Image{{Blobs: [][]byte{layer(2)}}}
		}},
		"blob sent again": {func(t *testing.T, c *registry.Client, old func()) (stay, gone []registrytest.Image) {
			registrytest.Push(t, c, "other/app", "v1", img(1))
			must(t, c.DeleteTag(t.Context(), "other/app", "v1"))
			old()
			_, err := c.PushBlob(t.Context(), repo, registry.DigestOf(layer(1)), registrytest.Whole(layer(1)))
			must(t, err)
			return []registrytest.Image{{Blobs: [][]byte{layer(1)}}}, []registrytest.Image{img(1)}
		}},
		"blob mounted": {func(t *testing.T, c *registry.Client, old func()) (stay, gone []registrytest.Image) {
			registrytest.Push(t, c, "other/app", "v1", img(1))
			must(t, c.DeleteTag(t.Context(), "other/app", "v1"))
			old()
			mounted, err := c.PushBlob(t.Context(), repo, registry.DigestOf(layer(1)), registrytest.Whole(layer(1)), "other/app")
			must(t, err)
			if !mounted {
				t.Fatal("not mounted")
			}
			return []registrytest.Image{{Blobs: [][]byte{layer(1)}}}, []registrytest.Image{img(1)}
		}},
		"referrers of what stays": {func(t *testing.T, c *registry.Client, old func()) (stay, gone []registrytest.Image) {
			of := img(1).Manifest
			sig := registrytest.NewArtifact("application/sig", "s", &of)
			onSig := registrytest.NewArtifact("application/sig", "ss", &sig.Manifest)
			registrytest.Push(t, c, repo, "v1", img(1))
			registrytest.Push(t, c, repo, "", sig)
			registrytest.Push(t, c, repo, "", onSig)
			lists := []registrytest.Image{shown(t, c, registry.FallbackTag(of.Digest)), shown(t, c, registry.FallbackTag(sig.Manifest.Digest))}
			old()
			return append(lists, img(1), sig, onSig), nil
		}},
		"fallback tag with its subject": {func(t *testing.T, c *registry.Client, old func()) (stay, gone []registrytest.Image) {
			listed := registrytest.NewArtifact("application/sbom", "without a subject", nil)
			index := registrytest.Image{Manifest: registrytest.NewIndex(listed.Manifest)}
			registrytest.Push(t, c, repo, "v1", img(1))
			registrytest.Push(t, c, repo, "", listed)
			registrytest.Push(t, c, repo, registry.FallbackTag(img(1).Manifest.Digest), index)
			old()
			return []registrytest.Image{img(1), listed, index}, nil
		}},
		"fallback tag and referrers without their subject": {func(t *testing.T, c *registry.Client, old func()) (stay, gone []registrytest.Image) {
			of := img(1).Manifest
			sig := registrytest.NewArtifact("application/sig", "s", &of)
			index := registrytest.Image{Manifest: registrytest.NewIndex(sig.Manifest)}
			registrytest.Push(t, c, repo, "v1", img(1))
			registrytest.Push(t, c, repo, "", sig)
			registrytest.Push(t, c, repo, registry.FallbackTag(of.Digest), index)
			must(t, c.DeleteTag(t.Context(), repo, "v1"))
			old()
			return nil, []registrytest.Image{img(1), sig, index}
		}},
		"fallback tag that came before its subject": {func(t *testing.T, c *registry.Client, old func()) (stay, gone []registrytest.Image) {
			of := img(1).Manifest
			sig := registrytest.NewArtifact("application/sig", "s", &of)
			old()
			registrytest.Push(t, c, repo, "", sig)
			return []registrytest.Image{sig, shown(t, c, registry.FallbackTag(of.Digest))}, nil
		}},
		"one repository's": {func(t *testing.T, c *registry.Client, old func()) (stay, gone []registrytest.Image) {
			registrytest.Push(t, c, repo, "v1", img(1))
			registrytest.Push(t, c, "other/app", "v1", img(1))
			must(t, c.DeleteTag(t.Context(), "other/app", "v1"))
			old()
			return []registrytest.Image{img(1)}, nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			e := embedded(t, registry.EmbeddedConfig{Dir: dir, Grace: grace})
			c := client(t, registry.Config{URL: e.URL()})
			stay, gone := tt.do(t, c, func() { age(t, dir, 2*grace) })
			before := len(stored(t, dir)["blobs"])
			got := collect(t, e)
			var want [][]byte
			for _, i := range stay {
				want = append(want, i.Blobs...)
				if i.Manifest.Content != nil {
					want = append(want, i.Manifest.Content)
				}
			}
			now := stored(t, dir)
			if diff := cmp.Diff(digests(want), slices.Sorted(slices.Values(now["blobs"]))); diff != "" {
				t.Errorf("blobs (-want +got):\n%s", diff)
			}
			if got.Blobs != before-len(now["blobs"]) {
				t.Errorf("says that %d blobs went, of %d are %d left", got.Blobs, before, len(now["blobs"]))
			}
			for _, i := range stay {
				if i.Manifest.Content == nil {
					continue
				}
				_, err := c.Manifest(t.Context(), repo, i.Manifest.Digest)
				must(t, err)
				for _, b := range i.Blobs {
					_, err := c.StatBlob(t.Context(), repo, registry.DigestOf(b))
					must(t, err)
				}
			}
			for _, i := range gone {
				if i.Manifest.Content != nil {
					_, err := c.Manifest(t.Context(), repo, i.Manifest.Digest)
					wantIs(t, err, registry.ErrNotFound)
				}
			}
			if again := collect(t, e); again.Blobs+again.Manifests+again.Links > 0 {
				t.Errorf("a second collection took %+v", again)
			}
		})
	}
}

// A repository from which all went is not listed any more; one beneath it stays.
func TestCollect_EmptyRepository(t *testing.T) {
	dir := t.TempDir()
	e := embedded(t, registry.EmbeddedConfig{Dir: dir, Grace: grace})
	c := client(t, registry.Config{URL: e.URL()})
	registrytest.Push(t, c, "a", "v1", registrytest.NewImage(1, layer(1)))
	registrytest.Push(t, c, "a/b/c", "v1", registrytest.NewImage(2, layer(2)))
	registrytest.Push(t, c, "x/y", "v1", registrytest.NewImage(3, layer(3)))
	must(t, c.DeleteTag(t.Context(), "a", "v1"))
	must(t, c.DeleteTag(t.Context(), "x/y", "v1"))
	for range 2 {
		age(t, dir, 2*grace)
		collect(t, e)
	}
	var repos []string
	for r, err := range c.Repositories(t.Context()) {
		must(t, err)
		repos = append(repos, r)
	}
	if diff := cmp.Diff([]string{"a/b/c"}, repos); diff != "" {
		t.Errorf("repositories (-want +got):\n%s", diff)
	}
	if _, err := os.Stat(filepath.Join(dir, "data/docker/registry/v2/repositories/x")); !os.IsNotExist(err) {
		t.Errorf("x is still there: %v", err)
	}
	whole(t, c, "a/b/c", "v1")
}

// A tag that moved often leaves nothing behind but what it shows.
func TestCollect_HistoryOfATag(t *testing.T) {
	dir := t.TempDir()
	e := embedded(t, registry.EmbeddedConfig{Dir: dir, Grace: grace})
	c := client(t, registry.Config{URL: e.URL()})
	for seed := range uint64(5) {
		registrytest.Push(t, c, repo, "v1", registrytest.NewImage(seed, layer(seed)))
	}
	age(t, dir, 2*grace)
	if got := collect(t, e); got.Manifests != 4 || got.Links != 8 || got.Blobs != 12 {
		t.Errorf("took %+v", got)
	}
	digest := registrytest.NewImage(4, layer(4)).Manifest.Digest
	want := []string{"v1/current", "v1/index/" + digest}
	if diff := cmp.Diff(want, stored(t, dir)[repo+"/_manifests/tags/"]); diff != "" {
		t.Errorf("tags (-want +got):\n%s", diff)
	}
	whole(t, c, repo, "v1")
}

// What is needed besides, such as blobs of a delivery that takes days, stays; who remembers what the registry has is told before that goes.
func TestCollect_KeepAndForget(t *testing.T) {
	dir := t.TempDir()
	kept, other := registrytest.NewImage(1, layer(1)), registrytest.NewImage(2, layer(2))
	needed := map[string]bool{registry.DigestOf(layer(3)): true, kept.Manifest.Digest: true}
	forgotten := map[string]bool{}
	e := embedded(t, registry.EmbeddedConfig{
		Dir: dir, Grace: grace,
		Keep: func(r string) (map[string]bool, error) {
			if r == repo {
				return needed, nil
			}
			return nil, nil
		},
		Forget: func(r string, digests ...string) error {
			have := stored(t, dir)["blobs"]
			for _, d := range digests {
				forgotten[r+"@"+d] = true
				if !slices.Contains(have, d) {
					t.Errorf("%s went before it was forgotten", d)
				}
			}
			return nil
		},
	})
	c := client(t, registry.Config{URL: e.URL()})
	registrytest.Push(t, c, repo, "", kept)
	registrytest.Push(t, c, repo, "", other)
	for _, seed := range []uint64{3, 4} {
		_, err := c.PushBlob(t.Context(), repo, registry.DigestOf(layer(seed)), registrytest.Whole(layer(seed)))
		must(t, err)
	}
	age(t, dir, 2*grace)
	collect(t, e)
	if diff := cmp.Diff(digests(kept.Blobs, [][]byte{kept.Manifest.Content, layer(3)}), slices.Sorted(slices.Values(stored(t, dir)["blobs"]))); diff != "" {
		t.Errorf("blobs (-want +got):\n%s", diff)
	}
	want := map[string]bool{}
	for _, d := range digests(other.Blobs, [][]byte{other.Manifest.Content, layer(4)}) {
		want[repo+"@"+d] = true
	}
	if diff := cmp.Diff(want, forgotten); diff != "" {
		t.Errorf("forgotten (-want +got):\n%s", diff)
	}
}

// While it is not known what must stay, nothing goes; it is asked again before the interval is over.
func TestCollect_NothingGoesUnasked(t *testing.T) {
	dir := t.TempDir()
	asked, collected := 0, make(chan registry.Collection, 10)
	e := embedded(t, registry.EmbeddedConfig{
		Dir: dir, Grace: grace, Collect: 500 * time.Millisecond,
		Keep: func(string) (map[string]bool, error) {
			if asked++; asked < 3 {
				return nil, errors.New("not read yet")
			}
			return nil, nil
		},
		Collected: func(c registry.Collection, err error) {
			if err != nil || asked < 3 {
				t.Errorf("collected after %d questions: %v", asked, err)
			}
			collected <- c
		},
	})
	registrytest.Push(t, client(t, registry.Config{URL: e.URL()}), repo, "", registrytest.NewImage(1, layer(1)))
	age(t, dir, 2*grace)
	select {
	case c := <-collected:
		if c.Blobs != 3 {
			t.Errorf("took %+v", c)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("nothing was collected")
	}
}

// Where the agent's memory can't be corrected, nothing goes.
func TestCollect_NothingGoesUnforgotten(t *testing.T) {
	dir := t.TempDir()
	e := embedded(t, registry.EmbeddedConfig{Dir: dir, Grace: grace, Forget: func(string, ...string) error { return errors.New("disk full") }})
	registrytest.Push(t, client(t, registry.Config{URL: e.URL()}), repo, "", registrytest.NewImage(1, layer(1)))
	age(t, dir, 2*grace)
	before := stored(t, dir)
	if _, err := e.Collect(t.Context()); err == nil {
		t.Error("no error")
	}
	if diff := cmp.Diff(before, stored(t, dir)); diff != "" {
		t.Errorf("storage changed (-before +after):\n%s", diff)
	}
}

// A manifest under a tag that can't be read may name anything: the layers of its repository stay, those of others do not.
func TestCollect_UnreadableManifest(t *testing.T) {
	dir := t.TempDir()
	e := embedded(t, registry.EmbeddedConfig{Dir: dir, Grace: grace})
	c := client(t, registry.Config{URL: e.URL()})
	img := registrytest.NewImage(1, layer(1))
	registrytest.Push(t, c, repo, "v1", img)
	registrytest.Push(t, c, "other/app", "", registrytest.NewImage(2, layer(2)))
	hex := strings.TrimPrefix(img.Manifest.Digest, "sha256:")
	data := filepath.Join(dir, "data/docker/registry/v2/blobs/sha256", hex[:2], hex, "data")
	must(t, os.WriteFile(data, []byte("{damaged"), 0o600))
	age(t, dir, 2*grace)
	got, err := e.Collect(t.Context())
	if err == nil || !strings.Contains(err.Error(), "repository "+repo) {
		t.Errorf("error %v", err)
	}
	if got.Manifests != 1 || got.Links != 2 || got.Blobs != 3 {
		t.Errorf("took %+v", got)
	}
	must(t, os.WriteFile(data, img.Manifest.Content, 0o600))
	whole(t, c, repo, "v1")
}

// Two registries over one folder: what is used at one is not collected by the other, and one at a time collects.
func TestCollect_TwoRegistriesOverOneFolder(t *testing.T) {
	dir := t.TempDir()
	a := embedded(t, registry.EmbeddedConfig{Dir: dir, Grace: grace})
	b := embedded(t, registry.EmbeddedConfig{Dir: dir, Grace: grace})
	ca, cb := client(t, registry.Config{URL: a.URL()}), client(t, registry.Config{URL: b.URL()})
	for _, seed := range []uint64{1, 2} {
		_, err := ca.PushBlob(t.Context(), repo, registry.DigestOf(layer(seed)), registrytest.Whole(layer(seed)))
		must(t, err)
	}
	age(t, dir, 2*grace)
	_, err := cb.StatBlob(t.Context(), repo, registry.DigestOf(layer(1)))
	must(t, err)
	inside := false
	a.BeforeStep(func(string) error {
		if !inside {
			inside = true
			if _, err := b.Collect(t.Context()); err == nil {
				t.Error("both collect")
			}
		}
		return nil
	})
	collect(t, a)
	if !inside {
		t.Error("nothing was collected")
	}
	if diff := cmp.Diff(map[string][]string{"blobs": {registry.DigestOf(layer(1))}, repo + "/_layers/": {registry.DigestOf(layer(1))}}, stored(t, dir)); diff != "" {
		t.Errorf("storage (-want +got):\n%s", diff)
	}
	collect(t, b)
}

// Collections follow each other at the interval, also over restarts.
func TestCollect_AtAnInterval(t *testing.T) {
	dir := t.TempDir()
	collected := make(chan registry.Collection, 100)
	e := embedded(t, registry.EmbeddedConfig{Dir: dir, Grace: grace, Collect: 20 * time.Millisecond, Collected: func(c registry.Collection, err error) {
		if err != nil {
			t.Error(err)
		}
		select {
		case collected <- c:
		default:
		}
	}})
	registrytest.Push(t, client(t, registry.Config{URL: e.URL()}), repo, "", registrytest.NewImage(1, layer(1)))
	age(t, dir, 2*grace)
	deadline := time.After(20 * time.Second)
	for {
		select {
		case c := <-collected:
			if c.Blobs == 0 {
				continue
			}
			if c.Blobs != 3 || c.Manifests != 1 || c.Bytes < 3000 {
				t.Errorf("took %+v", c)
			}
			return
		case <-deadline:
			t.Fatal("nothing was collected")
		}
	}
}

// Paths from outside never lead out of the storage.
func TestCollect_HostilePaths(t *testing.T) {
	dir := t.TempDir()
	e := embedded(t, registry.EmbeddedConfig{Dir: dir, Grace: grace})
	secret := filepath.Join(dir, "http-secret")
	then := time.Now().Add(-2 * grace).Truncate(time.Second)
	must(t, os.Chtimes(secret, then, then))
	for _, path := range []string{
		"/v2/../../../../../../http-secret/blobs/uploads/", "/v2/a/blobs/uploads/../../../../../../../../../http-secret",
		"/v2/..%2f..%2f..%2f..%2f..%2fhttp-secret/blobs/uploads/", "/v2/a/manifests/..%2f..%2f..%2f..%2f..%2f..%2f..%2fhttp-secret", "/v2/blobs/uploads/", "/v2/manifests/x",
	} {
		for _, method := range []string{http.MethodPut, http.MethodPost, http.MethodDelete, http.MethodGet} {
			req, err := http.NewRequestWithContext(t.Context(), method, e.URL(), http.NoBody)
			must(t, err)
			req.URL.Opaque = path
			resp, err := http.DefaultClient.Do(req)
			must(t, err)
			resp.Body.Close()
			if resp.StatusCode >= 500 {
				t.Errorf("%s %s: %s", method, path, resp.Status)
			}
		}
	}
	http.DefaultClient.CloseIdleConnections()
	fi, err := os.Stat(secret)
	must(t, err)
	if !fi.ModTime().Equal(then) {
		t.Error("a file outside of the storage was touched")
	}
	if got := slices.Collect(maps.Keys(stored(t, dir))); len(got) > 0 {
		t.Errorf("storage has %v", got)
	}
}
