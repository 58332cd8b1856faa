// Package registrytest is the contract of registry.Client as a test suite, to be run over every kind of registry, and what such tests need: blobs that
// arrive as the test lets them, and small images. It is for tests alone.
package registrytest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fanout-io/fanout/pkg/registry"
)

// Traits are what a registry, not the client, does otherwise.
type Traits struct {
	// NoTagDelete: a tag alone cannot be removed.
	NoTagDelete bool
	// SharedBlobs: a blob is in every repository at once, so that nothing is mounted.
	SharedBlobs bool
	// Unchecked: manifests that name missing content are accepted.
	Unchecked bool
	// NoCatalog: repositories are not listed.
	NoCatalog bool
	// NoArtifactType: the referrers API leaves out the manifest's artifact type.
	NoArtifactType bool
	// NoEmptyBlob: a blob without bytes is refused.
	NoEmptyBlob bool
}

// Suite runs the contract over what open gives. Registries may be shared between tests and hold other things: each test uses repositories of its own.
func Suite(t *testing.T, open func(t *testing.T) *registry.Client, traits Traits) {
	s := suite{open: open, traits: traits}
	for name, test := range map[string]func(*testing.T, *registry.Client, string){
		"Ping": s.ping, "BlobRoundTrip": s.blobRoundTrip, "BlobArriving": s.blobArriving, "BlobRanges": s.blobRanges, "BlobWrongDigest": s.blobWrongDigest,
		"BlobCanceled": s.blobCanceled, "BlobMount": s.blobMount, "ManifestVerbatim": s.manifestVerbatim, "ManifestMissing": s.manifestMissing, "TagMoves": s.tagMoves, "IndexAndKinds": s.indexAndKinds,
		"Referrers": s.referrers, "ReferrersTogether": s.referrersTogether, "Lists": s.lists, "DeleteTag": s.deleteTag, "Absent": s.absent,
	} {
		t.Run(name, func(t *testing.T) {
			c := open(t)
			test(t, c, fmt.Sprintf("suite-%d/%s", rand.Uint32(), "a/b"))
		})
	}
}

type suite struct {
	open   func(t *testing.T) *registry.Client
	traits Traits
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantIs(t testing.TB, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("error %v, want one that is %q", err, target)
	}
}

func read(t testing.TB, c *registry.Client, repo, digest string, off, length int64) []byte {
	t.Helper()
	r, err := c.OpenBlob(t.Context(), repo, digest, off, length)
	must(t, err)
	defer r.Close()
	b, err := io.ReadAll(r)
	must(t, err)
	return b
}

func (s suite) ping(t *testing.T, c *registry.Client, _ string) { must(t, c.Ping(t.Context())) }

func (s suite) blobRoundTrip(t *testing.T, c *registry.Client, repo string) {
	for i, size := range []int{0, 1, 2, 1000, 300_000} {
		if size == 0 && s.traits.NoEmptyBlob {
			continue
		}
		b := Bytes(rand.Uint64(), size)
		d := registry.DigestOf(b)
		mounted, err := c.PushBlob(t.Context(), repo, d, Whole(b))
		must(t, err)
		if mounted {
			t.Fatal("mounted from nowhere")
		}
		n, err := c.StatBlob(t.Context(), repo, d)
		must(t, err)
		if n != int64(size) {
			t.Fatalf("blob %d has size %d, want %d", i, n, size)
		}
		if got := read(t, c, repo, d, 0, -1); !bytes.Equal(got, b) {
			t.Fatalf("blob %d came back otherwise", i)
		}
		// Once more does no harm.
		_, err = c.PushBlob(t.Context(), repo, d, Whole(b))
		must(t, err)
	}
}

func (s suite) blobArriving(t *testing.T, c *registry.Client, repo string) {
	b := Bytes(rand.Uint64(), 9<<20+17)
	d := registry.DigestOf(b)
	src := Arriving(b, 1)
	done := make(chan error, 1)
	go func() {
		_, err := c.PushBlob(t.Context(), repo, d, src)
		done <- err
	}()
	for range 9 {
		src.Arrive(1<<20 + 1)
		if _, err := c.StatBlob(t.Context(), repo, d); !errors.Is(err, registry.ErrNotFound) {
			t.Fatalf("blob is there, or: %v, before it has arrived", err)
		}
	}
	src.Arrive(1 << 20)
	must(t, <-done)
	if got := read(t, c, repo, d, 0, -1); !bytes.Equal(got, b) {
		t.Fatal("blob came back otherwise")
	}
}

func (s suite) blobRanges(t *testing.T, c *registry.Client, repo string) {
	b := Bytes(rand.Uint64(), 10_000)
	d := registry.DigestOf(b)
	_, err := c.PushBlob(t.Context(), repo, d, Whole(b))
	must(t, err)
	for _, r := range []struct{ off, length int64 }{{0, 1}, {0, 10_000}, {1, 1}, {9_999, 1}, {5_000, 5_000}, {5_000, -1}, {9_999, -1}, {0, -1}, {77, 0}} {
		want := b[r.off:]
		if r.length >= 0 {
			want = want[:r.length]
		}
		if got := read(t, c, repo, d, r.off, r.length); !bytes.Equal(got, want) {
			t.Errorf("range %d+%d gave %d other bytes", r.off, r.length, len(got))
		}
	}
	r, err := c.OpenBlob(t.Context(), repo, d, 20_000, 5)
	if err == nil {
		_, err = io.ReadAll(r)
		r.Close()
	}
	if err == nil {
		t.Error("a range behind the end gave no error")
	}
}

func (s suite) blobWrongDigest(t *testing.T, c *registry.Client, repo string) {
	b := Bytes(rand.Uint64(), 500)
	d := registry.DigestOf(append([]byte("x"), b...))
	_, err := c.PushBlob(t.Context(), repo, d, Whole(b))
	wantIs(t, err, registry.ErrDigest)
	_, err = c.StatBlob(t.Context(), repo, d)
	wantIs(t, err, registry.ErrNotFound)
}

func (s suite) blobCanceled(t *testing.T, c *registry.Client, repo string) {
	b := Bytes(rand.Uint64(), 9<<20)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	src := Arriving(b, 5<<20)
	done := make(chan error, 1)
	go func() {
		_, err := c.PushBlob(ctx, repo, registry.DigestOf(b), src)
		done <- err
	}()
	cancel(why)
	err := <-done
	if !errors.Is(err, why) {
		t.Fatalf("error %v, want the cause", err)
	}
	src = Arriving(b, 5<<20)
	src.Fail(why)
	_, err = c.PushBlob(t.Context(), repo, registry.DigestOf(b), src)
	wantIs(t, err, why)
	if errors.Is(err, registry.ErrUnavailable) {
		t.Fatalf("error %v blames the registry for the source", err)
	}
}

func (s suite) blobMount(t *testing.T, c *registry.Client, repo string) {
	b := Bytes(rand.Uint64(), 5000)
	d := registry.DigestOf(b)
	from := repo + "/from"
	_, err := c.PushBlob(t.Context(), from, d, Whole(b))
	must(t, err)
	_, err = c.PushBlob(t.Context(), repo, d, Whole(b), repo+"/nowhere", from)
	must(t, err)
	if got := read(t, c, repo, d, 0, -1); !bytes.Equal(got, b) {
		t.Fatal("blob came back otherwise")
	}
	if s.traits.SharedBlobs {
		return
	}
	// A source that never gives a byte shows that none is needed.
	never := Arriving(b, 0)
	never.Fail(errors.New("not to be read"))
	mounted, err := c.PushBlob(t.Context(), repo+"/third", d, never, from)
	must(t, err)
	if !mounted {
		t.Fatal("not mounted")
	}
}

func (s suite) manifestVerbatim(t *testing.T, c *registry.Client, repo string) {
	img := NewImage(rand.Uint64(), Bytes(rand.Uint64(), 100))
	Push(t, c, repo, "v1", img)
	Push(t, c, repo, "v1", img)
	for _, ref := range []string{"v1", img.Manifest.Digest} {
		m, err := c.Manifest(t.Context(), repo, ref)
		must(t, err)
		if diff := cmp.Diff(img.Manifest, m); diff != "" {
			t.Fatalf("manifest by %s (-want +got):\n%s", ref, diff)
		}
		d, err := c.Resolve(t.Context(), repo, ref)
		must(t, err)
		if d.Digest != m.Digest || d.Size != int64(len(m.Content)) || d.MediaType != m.MediaType {
			t.Fatalf("%s resolves to %v", ref, d)
		}
	}
	altered := img.Manifest
	altered.Content = append(slices.Clone(altered.Content), '\n')
	wantIs(t, c.PutManifest(t.Context(), repo, "v1", altered), registry.ErrDigest)
}

func (s suite) manifestMissing(t *testing.T, c *registry.Client, repo string) {
	if s.traits.Unchecked {
		t.Skip("this registry does not check")
	}
	Push(t, c, repo, "old", NewImage(1))
	img := NewImage(rand.Uint64(), Bytes(rand.Uint64(), 100), Bytes(rand.Uint64(), 100))
	_, err := c.PushBlob(t.Context(), repo, registry.DigestOf(img.Blobs[1]), Whole(img.Blobs[1]))
	must(t, err)
	err = c.PutManifest(t.Context(), repo, "v1", img.Manifest)
	wantIs(t, err, registry.ErrBlobUnknown)
	var e *registry.Error
	if !errors.As(err, &e) {
		t.Fatalf("error %v has no details", err)
	}
	want := []string{registry.DigestOf(img.Blobs[0]), registry.DigestOf(img.Blobs[2])}
	slices.Sort(want)
	slices.Sort(e.Missing)
	if diff := cmp.Diff(want, e.Missing); diff != "" {
		t.Fatalf("missing (-want +got):\n%s", diff)
	}
	_, err = c.Resolve(t.Context(), repo, "v1")
	wantIs(t, err, registry.ErrNotFound)
}

func (s suite) tagMoves(t *testing.T, c *registry.Client, repo string) {
	for i := range uint64(3) {
		img := NewImage(i)
		Push(t, c, repo, "latest", img)
		d, err := c.Resolve(t.Context(), repo, "latest")
		must(t, err)
		if d.Digest != img.Manifest.Digest {
			t.Fatalf("tag shows %s, want %s", d.Digest, img.Manifest.Digest)
		}
	}
	// By digest, no tag comes into being or moves.
	img := NewImage(99)
	Push(t, c, repo, "", img)
	d, err := c.Resolve(t.Context(), repo, "latest")
	must(t, err)
	if d.Digest != NewImage(2).Manifest.Digest {
		t.Fatal("a put by digest moved a tag")
	}
}

func (s suite) indexAndKinds(t *testing.T, c *registry.Client, repo string) {
	a, b, art := NewImage(1, Bytes(1, 10)), NewDockerImage(2, Bytes(2, 10)), NewArtifact("application/vnd.example", "x", nil)
	index := NewIndex(a.Manifest, b.Manifest, art.Manifest)
	for _, img := range []Image{a, b, art} {
		Push(t, c, repo, "", img)
	}
	must(t, c.PutManifest(t.Context(), repo, "multi", index))
	root, err := c.Resolve(t.Context(), repo, "multi")
	must(t, err)
	closure, err := registry.Collect(t.Context(), func(ctx context.Context, digest string) (registry.Manifest, error) {
		return c.Manifest(ctx, repo, digest)
	}, root)
	must(t, err)
	want := []registry.Manifest{a.Manifest, b.Manifest, art.Manifest, index}
	if diff := cmp.Diff(want, closure.Manifests); diff != "" {
		t.Fatalf("closure (-want +got):\n%s", diff)
	}
	if len(closure.Blobs) != 5 {
		t.Fatalf("%d blobs, want 5", len(closure.Blobs))
	}
}

func (s suite) referrers(t *testing.T, c *registry.Client, repo string) {
	img := NewImage(rand.Uint64())
	Push(t, c, repo, "v1", img)
	list, err := c.Referrers(t.Context(), repo, img.Manifest.Digest)
	must(t, err)
	if len(list) != 0 {
		t.Fatalf("%d referrers of an unsigned image", len(list))
	}
	want := map[string]string{}
	for i := range 3 {
		kind := fmt.Sprintf("application/vnd.example.%d", i)
		ref := NewArtifact(kind, "n", &img.Manifest)
		want[ref.Manifest.Digest] = kind
		Push(t, c, repo, "", ref)
		Push(t, c, repo, "", ref)
	}
	list, err = c.Referrers(t.Context(), repo, img.Manifest.Digest)
	must(t, err)
	got := map[string]string{}
	for _, d := range list {
		got[d.Digest] = d.ArtifactType
		if s.traits.NoArtifactType {
			got[d.Digest] = want[d.Digest]
		}
		if d.MediaType != registry.MediaTypeOCIManifest || d.Size == 0 {
			t.Errorf("referrer %v", d)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" || len(list) != 3 {
		t.Fatalf("referrers (-want +got):\n%s", diff)
	}
}

func (s suite) referrersTogether(t *testing.T, c *registry.Client, repo string) {
	img := NewImage(rand.Uint64())
	Push(t, c, repo, "v1", img)
	const n = 8
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			ref := NewArtifact("application/vnd.example", fmt.Sprint(i), &img.Manifest)
			for _, b := range ref.Blobs {
				if _, err := c.PushBlob(t.Context(), repo, registry.DigestOf(b), Whole(b)); err != nil {
					t.Error(err)
				}
			}
			if err := c.PutManifest(t.Context(), repo, ref.Manifest.Digest, ref.Manifest); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	list, err := c.Referrers(t.Context(), repo, img.Manifest.Digest)
	must(t, err)
	if len(list) != n {
		t.Fatalf("%d referrers, want %d", len(list), n)
	}
}

func (s suite) lists(t *testing.T, c *registry.Client, repo string) {
	var want []string
	img := NewImage(1)
	for i := range 7 {
		tag := fmt.Sprintf("v%d", i)
		want = append(want, tag)
		Push(t, c, repo, tag, img)
	}
	var got []string
	for tag, err := range c.Tags(t.Context(), repo) {
		must(t, err)
		got = append(got, tag)
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("tags (-want +got):\n%s", diff)
	}
	if s.traits.NoCatalog {
		return
	}
	found := 0
	for name, err := range c.Repositories(t.Context()) {
		must(t, err)
		if name == repo {
			found++
		}
	}
	if found != 1 {
		t.Fatalf("repository listed %d times", found)
	}
}

func (s suite) deleteTag(t *testing.T, c *registry.Client, repo string) {
	img := NewImage(1)
	Push(t, c, repo, "a", img)
	Push(t, c, repo, "b", img)
	err := c.DeleteTag(t.Context(), repo, "a")
	if s.traits.NoTagDelete {
		wantIs(t, err, registry.ErrUnsupported)
		return
	}
	must(t, err)
	_, err = c.Resolve(t.Context(), repo, "a")
	wantIs(t, err, registry.ErrNotFound)
	_, err = c.Manifest(t.Context(), repo, "b")
	must(t, err)
	wantIs(t, c.DeleteTag(t.Context(), repo, "a"), registry.ErrNotFound)
}

func (s suite) absent(t *testing.T, c *registry.Client, repo string) {
	digest := registry.DigestOf([]byte(repo))
	_, err := c.Resolve(t.Context(), repo, "v1")
	wantIs(t, err, registry.ErrNotFound)
	_, err = c.Manifest(t.Context(), repo, digest)
	wantIs(t, err, registry.ErrNotFound)
	_, err = c.StatBlob(t.Context(), repo, digest)
	wantIs(t, err, registry.ErrNotFound)
	_, err = c.OpenBlob(t.Context(), repo, digest, 5, 5)
	wantIs(t, err, registry.ErrNotFound)
	for _, err := range c.Tags(t.Context(), repo) {
		wantIs(t, err, registry.ErrNotFound)
	}
	must(t, c.EnsureRepository(t.Context(), repo))
	must(t, c.EnsureRepository(t.Context(), repo))
}
