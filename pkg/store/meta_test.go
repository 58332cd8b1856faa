package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fanout-io/fanout/internal/faultfs"
	"github.com/fanout-io/fanout/pkg/store"
	"github.com/fanout-io/fanout/pkg/store/storetest"
	"github.com/google/go-cmp/cmp"
)

func TestRefState(t *testing.T) {
	dir := t.TempDir()
	s := open(t, store.Config{Dir: dir})
	if _, ok, err := s.RefState("a:b"); ok || err != nil {
		t.Fatal(ok, err)
	}
	want := store.RefState{Base: "sha256:1", BaseRevision: 1 << 63, Intent: "sha256:2", IntentRevision: 9, Epoch: "e1", At: time.Unix(1, 5).UTC()}
	var wg sync.WaitGroup
	for i := range 600 { // many small writers share syncs
		wg.Go(func() {
			if err := s.PutRefState(fmt.Sprintf("r/%04d:t", i), want); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	killed := clone(t, dir)
	_ = s.Close()
	s = open(t, store.Config{Dir: killed})
	n := 0
	err := s.RefStates(func(ref string, st store.RefState) bool {
		if ref != fmt.Sprintf("r/%04d:t", n) || !cmp.Equal(st, want) {
			t.Fatalf("%d: %s %+v", n, ref, st)
		}
		n++
		if err := s.DeleteRefState(ref); err != nil { // the callback may use the store
			t.Fatal(err)
		}
		return n < 590
	})
	if err != nil || n != 590 {
		t.Fatal(n, err)
	}
	if _, ok, err := s.RefState("r/0589:t"); ok || err != nil {
		t.Fatal(ok, err)
	}
	if st, ok, err := s.RefState("r/0590:t"); !ok || err != nil || !cmp.Equal(st, want) {
		t.Fatal(st, ok, err)
	}
	for _, ref := range []string{"", strings.Repeat("x", 1025)} {
		if err := s.PutRefState(ref, want); !errors.Is(err, store.ErrInvalid) {
			t.Fatalf("PutRefState: %v", err)
		}
	}
}

func TestValue(t *testing.T) {
	s := open(t, store.Config{Dir: t.TempDir()})
	if _, err := s.Value("k"); !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	for _, v := range [][]byte{[]byte("one"), {}, bytes.Repeat([]byte{7}, store.MaxValueBytes)} {
		if err := s.PutValue("k", v); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Value("k"); err != nil || !bytes.Equal(got, v) {
			t.Fatal(len(got), err)
		}
	}
	if err := s.PutValue("k", make([]byte, store.MaxValueBytes+1)); !errors.Is(err, store.ErrTooLarge) {
		t.Fatal(err)
	}
	if err := s.PutValue("k", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Value("k"); !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
}

func TestBlobs(t *testing.T) {
	dir := t.TempDir()
	s := open(t, store.Config{Dir: dir})
	_, a := storetest.Content(1, 1)
	_, b := storetest.Content(2, 1)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.AddBlobs("z", a, b))
	must(s.AddBlobs("library/x", a, a))
	must(s.AddBlobs("none"))
	check := func(digest string, want ...string) {
		t.Helper()
		got, err := s.BlobRepositories(digest)
		if err != nil || !cmp.Equal(got, want) {
			t.Fatal(got, err, want)
		}
		for _, r := range append(want, "nowhere") {
			if has, err := s.HasBlob(r, digest); err != nil || has != (r != "nowhere") {
				t.Fatal(r, has, err)
			}
		}
	}
	check(a, "library/x", "z")
	check(b, "z")
	must(s.RemoveBlob("z", a))
	must(s.RemoveBlob("z", a))
	check(a, "library/x")
	killed := clone(t, dir)
	_ = s.Close()
	s = open(t, store.Config{Dir: killed}) // a kill loses nothing
	check(a, "library/x")
	must(s.ForgetBlobs())
	check(a)
	for _, err := range []error{s.AddBlobs("", a), s.AddBlobs("r", "sha256:x"), s.RemoveBlob("r", "x")} {
		if !errors.Is(err, store.ErrInvalid) {
			t.Fatal(err)
		}
	}
}

func manifest(i, size int) store.Manifest {
	data, d := storetest.Content(uint64(i), int64(size))
	return store.Manifest{MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: d, Content: data}
}

func TestManifests(t *testing.T) {
	dir := t.TempDir()
	s := open(t, store.Config{Dir: dir})
	a, b := manifest(1, 1000), manifest(2, store.MaxManifestBytes)
	if err := s.PutManifests(a, b, a); err != nil {
		t.Fatal(err)
	}
	for _, m := range []store.Manifest{a, b} {
		if got, err := s.Manifest(m.Digest); err != nil || got.MediaType != m.MediaType || !bytes.Equal(got.Content, m.Content) {
			t.Fatal(err)
		}
	}
	a.MediaType = strings.Repeat("m", 255)
	if err := s.PutManifests(a); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Manifest(a.Digest); err != nil || got.MediaType != a.MediaType {
		t.Fatal(got.MediaType, err)
	}
	none := manifest(3, 10)
	if _, err := s.Manifest(none.Digest); !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	wrong := none
	wrong.Content = []byte("other")
	for _, c := range []struct {
		m    store.Manifest
		want error
	}{
		{wrong, store.ErrDigestMismatch}, {manifest(4, store.MaxManifestBytes+1), store.ErrTooLarge},
		{store.Manifest{Digest: "x"}, store.ErrInvalid}, {store.Manifest{Digest: none.Digest, Content: none.Content, MediaType: strings.Repeat("m", 256)}, store.ErrInvalid},
	} {
		if err := s.PutManifests(none, c.m); !errors.Is(err, c.want) {
			t.Fatalf("PutManifests: %v, want %v", err, c.want)
		}
	}
	if has, err := s.HasManifest(none.Digest); has || err != nil {
		t.Fatal("a refused call left something", err)
	}
}

func TestManifests_Bounded(t *testing.T) {
	dir := t.TempDir()
	s := open(t, store.Config{Dir: dir, ManifestBytes: 10 * 1200})
	for i := range 10 {
		if err := s.PutManifests(manifest(i, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Manifest(manifest(0, 1000).Digest); err != nil { // used again
		t.Fatal(err)
	}
	_ = s.Close() // the use is remembered
	s = open(t, store.Config{Dir: dir, ManifestBytes: 10 * 1200})
	if err := s.PutManifests(manifest(10, 1000), manifest(11, 1000)); err != nil {
		t.Fatal(err)
	}
	for i := range 12 {
		has, err := s.HasManifest(manifest(i, 1000).Digest)
		if want := i != 1 && i != 2; err != nil || has != want {
			t.Fatalf("manifest %d: %v, %v; want %v", i, has, err, want)
		}
	}
	var many []store.Manifest
	for i := range 12 {
		many = append(many, manifest(100+i, 1000))
	}
	if err := s.PutManifests(many...); !errors.Is(err, store.ErrTooLarge) {
		t.Fatal(err)
	}
}

// TestCacheDamaged: whatever happens to cache.db, the store opens and works, and at worst has forgotten what it cached.
func TestCacheDamaged(t *testing.T) {
	for _, c := range []struct {
		name string
		harm func(t *testing.T, dir string)
	}{
		{"rubbish", func(t *testing.T, dir string) { fillFile(t, filepath.Join(dir, "cache.db"), 0, 0x5a) }},
		{"zeros", func(t *testing.T, dir string) { fillFile(t, filepath.Join(dir, "cache.db"), 0, 0) }},
		{"rubbish behind the meta pages", func(t *testing.T, dir string) { fillFile(t, filepath.Join(dir, "cache.db"), 8192, 0x5a) }},
		{"zeros behind the meta pages", func(t *testing.T, dir string) { fillFile(t, filepath.Join(dir, "cache.db"), 8192, 0) }},
		{"empty", func(t *testing.T, dir string) { truncate(t, filepath.Join(dir, "cache.db"), 0) }},
		{"cut", func(t *testing.T, dir string) { truncate(t, filepath.Join(dir, "cache.db"), 9000) }},
		{"another boot", func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "cache.open"), []byte("another boot"), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, store.Config{Dir: dir})
			ms := []store.Manifest{manifest(1, 50_000), manifest(2, 200)}
			if err := errors.Join(s.PutManifests(ms...), s.AddBlobs("r", ms[0].Digest), s.PutValue("k", []byte("v"))); err != nil {
				t.Fatal(err)
			}
			_ = s.Close()
			c.harm(t, dir)
			s = open(t, store.Config{Dir: dir})
			if _, err := s.Manifest(ms[0].Digest); err != nil && !errors.Is(err, store.ErrNotFound) {
				t.Fatal(err)
			}
			if _, err := s.BlobRepositories(ms[0].Digest); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(s.PutManifests(ms...), s.AddBlobs("r", ms[1].Digest)); err != nil {
				t.Fatal(err)
			}
			if got, err := s.Manifest(ms[0].Digest); err != nil || !cmp.Equal(got, ms[0]) {
				t.Fatal(err)
			}
			if v, err := s.Value("k"); err != nil || string(v) != "v" {
				t.Fatal(err)
			}
		})
	}
}

// TestCacheDamaged_WhileOpen: who meets the damage and who comes meanwhile go on with an empty cache, also when that can't be
// made at once, and nobody hangs.
func TestCacheDamaged_WhileOpen(t *testing.T) {
	for name, from := range map[string]int64{"all": 0, "behind the meta pages": 8192} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var f faultfs.Faults
			s := open(t, store.Config{Dir: dir, Fault: f.Check})
			m := manifest(1, 50_000)
			if err := s.PutManifests(m); err != nil {
				t.Fatal(err)
			}
			fillFile(t, filepath.Join(dir, "cache.db"), from, 0x5a)
			f.FailNth("cache.remove", 1, nil)
			if err := s.AddBlobs("r", m.Digest); !errors.Is(err, faultfs.ErrInjected) {
				t.Fatalf("AddBlobs: %v", err)
			}
			if err := s.PutManifests(m); err != nil {
				t.Fatal(err)
			}
			fillFile(t, filepath.Join(dir, "cache.db"), from, 0x5a)
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					if err := s.PutManifests(m, manifest(10+i, 100)); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			for i := range 8 {
				if has, err := s.HasManifest(manifest(10+i, 100).Digest); !has || err != nil {
					t.Fatal(i, has, err)
				}
			}
			f.FailAll("cache.remove", faultfs.ErrInjected)
			fillFile(t, filepath.Join(dir, "cache.db"), from, 0x5a)
			if err := s.AddBlobs("r", m.Digest); !errors.Is(err, faultfs.ErrInjected) {
				t.Fatalf("AddBlobs: %v", err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, store.Config{Dir: clone(t, dir)}) // as another process would: the lock on the old file ends with this one
			if err := s.AddBlobs("r", m.Digest); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func fillFile(t testing.TB, path string, from int64, with byte) {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	corrupt(t, path, from, bytes.Repeat([]byte{with}, int(fi.Size()-from)))
}

// TestMetaDamaged: what can't be had again is never thrown away silently.
func TestMetaDamaged(t *testing.T) {
	for _, with := range []byte{0, 0x5a} {
		dir := t.TempDir()
		_ = open(t, store.Config{Dir: dir}).Close()
		fillFile(t, filepath.Join(dir, "meta.db"), 0, with)
		_, err := store.Open(store.Config{Dir: dir})
		if !errors.Is(err, store.ErrDamaged) || !strings.Contains(err.Error(), "meta.db") {
			t.Fatalf("Open: %v", err)
		}
	}
}

func TestValues(t *testing.T) {
	s := open(t, store.Config{Dir: t.TempDir()})
	for k, v := range map[string]string{"hold/a@1": "x", "hold/b@2": "y", "holder": "z", "hol": "w"} {
		if err := s.PutValue(k, []byte(v)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Values("hold/")
	if err != nil || len(got) != 2 || string(got["a@1"]) != "x" || string(got["b@2"]) != "y" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := s.Values("none/"); err != nil || len(got) != 0 {
		t.Errorf("%q, %v", got, err)
	}
}
