package registry_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/registry/registrytest"
)

func TestParseRef(t *testing.T) {
	for in, want := range map[string][2]string{
		"app":             {"app", "latest"},
		"app/web:v1":      {"app/web", "v1"},
		"a/b/c-d__e.f:_X": {"a/b/c-d__e.f", "_X"},
		"my.app:1":        {"my.app", "1"},
		"my.proj/app:1":   {"my.proj/app", "1"},
		"my.proj/app":     {"my.proj/app", "latest"},
	} {
		repo, tag, err := registry.ParseRef(in)
		if err != nil || repo != want[0] || tag != want[1] {
			t.Errorf("%q gave %q %q %v", in, repo, tag, err)
		}
	}
	digest := registry.DigestOf(nil)
	for _, in := range []string{
		"", ":", "app:", ":v1", "App", "app/", "/app", "app//web", "app@" + digest, "app:v1@" + digest, "localhost/app", "localhost:5000/app", "10.0.0.1/app",
		"harbor.example.com:443/app/web:v1", "my.proj:5000/app", "[::1]:5000/app", "app:v 1", "app:.x", "app:" + strings.Repeat("x", 129), strings.Repeat("a", 256), "app\n", "app:v1\n", "app:v1:v2", "a_.b",
	} {
		if repo, tag, err := registry.ParseRef(in); err == nil {
			t.Errorf("%q gave %q %q", in, repo, tag)
		} else if !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("%q gave %v", in, err)
		} else if strings.HasSuffix(err.Error(), registry.ErrInvalid.Error()) {
			t.Errorf("%q: %v: the sentinel is for programs", in, err)
		}
	}
}

func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"app", "app/web:v1", "localhost:5000/a:b", "a@sha256:00", "::", "ä:ö"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		repo, tag, err := registry.ParseRef(s)
		if err != nil {
			return
		}
		if !registry.ValidRepository(repo) || !registry.ValidTag(tag) {
			t.Fatalf("%q gave %q %q", s, repo, tag)
		}
		again, tagAgain, err := registry.ParseRef(repo + ":" + tag)
		if err != nil || again != repo || tagAgain != tag {
			t.Fatalf("%q is not stable: %q %q %v", s, again, tagAgain, err)
		}
	})
}

func TestSpecialTags(t *testing.T) {
	hex := strings.Repeat("ab", 32)
	if d, ok := registry.IsFallbackTag("sha256-" + hex); !ok || d != "sha256:"+hex || registry.FallbackTag(d) != "sha256-"+hex {
		t.Error("fallback tag")
	}
	for _, kind := range []string{"sig", "att", "sbom"} {
		if d, ok := registry.IsCosignTag("sha256-" + hex + "." + kind); !ok || d != "sha256:"+hex {
			t.Error("cosign tag", kind)
		}
		if _, ok := registry.IsFallbackTag("sha256-" + hex + "." + kind); ok {
			t.Error("a cosign tag is no fallback tag")
		}
	}
	for _, tag := range []string{"v1", "sha256-" + hex[1:], "sha256-" + hex + ".x", "sha256-" + hex + "\n", "xsha256-" + hex} {
		_, a := registry.IsFallbackTag(tag)
		_, b := registry.IsCosignTag(tag)
		if a || b {
			t.Errorf("%q", tag)
		}
	}
	if !registry.IsHoldTag("fanout-hold.0123456789ab") || registry.IsHoldTag("fanout-hold.0123456789abc") || registry.IsHoldTag("fanout-hold.xyz") {
		t.Error("hold tag")
	}
}

func manifest(mediaType, content string) registry.Manifest {
	return registry.Manifest{MediaType: mediaType, Digest: registry.DigestOf([]byte(content)), Content: []byte(content)}
}

func TestParseManifest_Kinds(t *testing.T) {
	d := func(n int) string { return registry.DigestOf([]byte{byte(n)}) }
	m := manifest(registry.MediaTypeOCIManifest, fmt.Sprintf(`{"schemaVersion":2,"config":{"mediaType":"c","digest":%q,"size":2},"layers":[
		{"mediaType":"l","digest":%q,"size":1},{"mediaType":"l","digest":%q,"size":1},{"mediaType":"c","digest":%q,"size":2},
		{"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","digest":%q,"size":9,"urls":["https://x"]}],
		"subject":{"mediaType":"s","digest":%q,"size":3},"annotations":{"a":"b"}}`, d(1), d(2), d(2), d(1), d(3), d(4)))
	p, err := registry.ParseManifest(m)
	must(t, err)
	if len(p.Blobs) != 2 || len(p.Foreign) != 1 || p.Subject.Digest != d(4) || p.ArtifactType != "c" || p.Annotations["a"] != "b" || len(p.Children) != 0 {
		t.Errorf("image %+v", p)
	}
	p, err = registry.ParseManifest(registrytest.NewArtifact("kind/x", "", nil).Manifest)
	must(t, err)
	if len(p.Blobs) != 1 || p.ArtifactType != "kind/x" {
		t.Errorf("artifact %+v", p)
	}
	p, err = registry.ParseManifest(manifest(registry.MediaTypeOCIArtifact, fmt.Sprintf(`{"mediaType":%q,"artifactType":"k","blobs":[{"digest":%q,"size":1}]}`, registry.MediaTypeOCIArtifact, d(1))))
	must(t, err)
	if len(p.Blobs) != 1 {
		t.Errorf("artifact manifest %+v", p)
	}
	p, err = registry.ParseManifest(registrytest.NewIndex(m))
	must(t, err)
	if len(p.Children) != 1 || len(p.Blobs) != 0 {
		t.Errorf("index %+v", p)
	}
	p, err = registry.ParseManifest(manifest("", fmt.Sprintf(`{"mediaType":%q,"manifests":[]}`, registry.MediaTypeOCIIndex)))
	must(t, err)
	if len(p.Children) != 0 {
		t.Errorf("empty index %+v", p)
	}
}

func TestParseManifest_Refused(t *testing.T) {
	digest := registry.DigestOf(nil)
	layer := fmt.Sprintf(`{"digest":%q,"size":1}`, digest)
	for name, tc := range map[string]struct {
		m    registry.Manifest
		want error
		word string
	}{
		"Schema1":     {manifest("application/vnd.docker.distribution.manifest.v1+prettyjws", `{"schemaVersion":1}`), registry.ErrUnsupported, "schema 1"},
		"Schema1Bare": {manifest("application/json", `{"schemaVersion":1,"fsLayers":[]}`), registry.ErrUnsupported, "schema 1"},
		"NotJSON":     {manifest(registry.MediaTypeOCIIndex, `<html>`), registry.ErrInvalid, "JSON"},
		"OtherType":   {manifest(registry.MediaTypeOCIIndex, fmt.Sprintf(`{"mediaType":%q}`, registry.MediaTypeOCIManifest)), registry.ErrInvalid, "calls itself"},
		"Unknown":     {manifest("application/x", `{}`), registry.ErrUnsupported, "application/x"},
		"None":        {manifest("", `{}`), registry.ErrInvalid, "media type"},
		"NoConfig":    {manifest(registry.MediaTypeOCIManifest, `{"layers":[]}`), registry.ErrInvalid, "config"},
		"Both":        {manifest(registry.MediaTypeOCIManifest, `{"config":`+layer+`,"layers":[],"manifests":[`+layer+`]}`), registry.ErrInvalid, "both"},
		"BothIndex":   {manifest(registry.MediaTypeOCIIndex, `{"manifests":[],"layers":[`+layer+`]}`), registry.ErrInvalid, "both"},
		"Sha512":      {manifest(registry.MediaTypeOCIManifest, `{"config":{"digest":"sha512:00","size":1}}`), registry.ErrInvalid, "sha256"},
		"Negative":    {manifest(registry.MediaTypeOCIManifest, fmt.Sprintf(`{"config":{"digest":%q,"size":-1}}`, digest)), registry.ErrInvalid, "size -1"},
		"TwoSizes":    {manifest(registry.MediaTypeOCIManifest, fmt.Sprintf(`{"config":%s,"layers":[{"digest":%q,"size":2}]}`, layer, digest)), registry.ErrInvalid, "two sizes"},
		"BadSubject":  {manifest(registry.MediaTypeOCIIndex, `{"subject":{"digest":"x"}}`), registry.ErrInvalid, "subject"},
		"TooMany":     {manifest(registry.MediaTypeOCIIndex, `{"manifests":[`+strings.Repeat("{},", registry.MaxEntries)+`{}]}`), registry.ErrInvalid, "exceed"},
		"TooLarge":    {manifest(registry.MediaTypeOCIIndex, strings.Repeat(" ", registry.MaxManifestBytes+1)), registry.ErrInvalid, "exceeds"},
		"TooDeep":     {manifest(registry.MediaTypeOCIIndex, `{"x":`+strings.Repeat("[", 100_000)), registry.ErrInvalid, "JSON"},
	} {
		_, err := registry.ParseManifest(tc.m)
		if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.word) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	img := registrytest.NewImage(1, []byte("x"))
	f.Add(registry.MediaTypeOCIManifest, img.Manifest.Content)
	f.Add(registry.MediaTypeOCIIndex, registrytest.NewIndex(img.Manifest).Content)
	f.Add(registry.MediaTypeOCIManifest, registrytest.NewArtifact("k", "n", &img.Manifest).Manifest.Content)
	f.Add("", []byte(`{"schemaVersion":1}`))
	f.Fuzz(func(t *testing.T, mediaType string, content []byte) {
		p, err := registry.ParseManifest(registry.Manifest{MediaType: mediaType, Digest: registry.DigestOf(content), Content: content})
		if err != nil {
			return
		}
		for _, list := range [][]*registry.Descriptor{p.Blobs, p.Foreign, p.Children} {
			for _, d := range list {
				if !registry.ValidDigest(d.Digest) || d.Size < 0 {
					t.Fatalf("descriptor %v", d)
				}
			}
		}
		if len(p.Children) > 0 && len(p.Blobs) > 0 {
			t.Fatal("both an index and an image")
		}
	})
}

// library gives manifests by digest.
type library map[string]registry.Manifest

func (l library) get(_ context.Context, digest string) (registry.Manifest, error) {
	m, ok := l[digest]
	if !ok {
		return m, registry.ErrNotFound
	}
	return m, nil
}

func descriptor(m registry.Manifest) *registry.Descriptor {
	return &registry.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: int64(len(m.Content))}
}

func TestWalk(t *testing.T) {
	a, b := registrytest.NewImage(1, []byte("shared"), []byte("a")), registrytest.NewImage(2, []byte("shared"), []byte("b"))
	inner := registrytest.NewIndex(a.Manifest, b.Manifest)
	outer := registrytest.NewIndex(inner, a.Manifest)
	l := library{}
	for _, m := range []registry.Manifest{a.Manifest, b.Manifest, inner, outer} {
		l[m.Digest] = m
	}
	c, err := registry.Collect(t.Context(), l.get, descriptor(outer))
	must(t, err)
	if diff := cmp.Diff([]registry.Manifest{a.Manifest, b.Manifest, inner, outer}, c.Manifests); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	if len(c.Blobs) != 5 {
		t.Errorf("%d blobs, want 5", len(c.Blobs))
	}
	altered := l[inner.Digest]
	altered.Content = append([]byte(" "), altered.Content...)
	l[inner.Digest] = altered
	_, err = registry.Collect(t.Context(), l.get, descriptor(outer))
	wantIs(t, err, registry.ErrDigest)
	delete(l, inner.Digest)
	_, err = registry.Collect(t.Context(), l.get, descriptor(outer))
	wantIs(t, err, registry.ErrNotFound)
	root := descriptor(a.Manifest)
	root.Size++
	_, err = registry.Collect(t.Context(), l.get, root)
	wantIs(t, err, registry.ErrInvalid)
}

func TestWalk_TooDeep(t *testing.T) {
	l := library{}
	m := registrytest.NewImage(1).Manifest
	l[m.Digest] = m
	for range registry.MaxDepth + 1 {
		m = registrytest.NewIndex(m)
		l[m.Digest] = m
	}
	_, err := registry.Collect(t.Context(), l.get, descriptor(m))
	wantIs(t, err, registry.ErrInvalid)
	wantWords(t, err, "deeper")
}

func TestParseHarbor(t *testing.T) {
	digest := "sha256:" + strings.Repeat("5a", 32)
	want := registry.Event{Repository: "app/web", Digest: digest, Actor: "admin", Time: time.Date(2026, 11, 23, 20, 24, 53, 0, time.UTC)}
	for name, f := range map[string]func(*registry.Event){
		"default-push.json":            func(e *registry.Event) { e.Action, e.Tag = registry.ActionPush, "v1" },
		"default-push-by-digest.json":  func(e *registry.Event) { e.Action = registry.ActionPush },
		"default-delete.json":          func(e *registry.Event) { e.Action, e.Tag = registry.ActionDelete, "v2" },
		"cloudevents-push.json":        func(e *registry.Event) { e.Action, e.Tag = registry.ActionPush, "v1" },
		"cloudevents-delete.json":      func(e *registry.Event) { e.Action, e.Tag = registry.ActionDelete, "v2" },
		"default-pull.json":            nil,
		"cloudevents-pull.json":        nil,
		"default-replication.json":     nil,
		"cloudevents-replication.json": nil,
	} {
		body, err := os.ReadFile(filepath.Join("testdata", "harbor", name))
		must(t, err)
		got, err := registry.ParseHarbor(body)
		must(t, err)
		var events []registry.Event
		if f != nil {
			e := want
			f(&e)
			events = []registry.Event{e}
		}
		if diff := cmp.Diff(events, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	for _, bad := range []string{
		``, `{}`, `[]`, `{"type":1}`, `{"type":"PUSH_ARTIFACT","event_data":{"resources":[{"tag":"v1"}],"repository":{"repo_full_name":"../x"}}}`,
		`{"type":"PUSH_ARTIFACT","event_data":{"resources":[{"tag":"v 1"}],"repository":{"repo_full_name":"a/b"}}}`,
		`{"type":"PUSH_ARTIFACT","event_data":{"resources":[{}],"repository":{"repo_full_name":"a/b"}}}`,
		`{"type":"PUSH_ARTIFACT","event_data":{"resources":[{"digest":"sha256:x"}],"repository":{"repo_full_name":"a/b"}}}`,
		strings.Repeat(" ", registry.MaxHookBytes+1),
	} {
		if got, err := registry.ParseHarbor([]byte(bad)); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("%.80q gave %v, %v", bad, got, err)
		}
	}
}

func TestParseDistribution(t *testing.T) {
	body, err := os.ReadFile(filepath.Join("testdata", "distribution.json"))
	must(t, err)
	got, err := registry.ParseDistribution(body)
	must(t, err)
	digest := "sha256:" + strings.Repeat("5a", 32)
	when := time.Date(2026, 11, 23, 20, 24, 53, 5e8, time.UTC)
	want := []registry.Event{
		{Action: registry.ActionPush, Repository: "app/web", Tag: "v1", Digest: digest, Actor: "alice", UserAgent: "crane/1", Time: when},
		{Action: registry.ActionPush, Repository: "app/web", Digest: digest, UserAgent: "crane/1", Time: when},
		{Action: registry.ActionDelete, Repository: "app/web", Tag: "v2", Time: when},
		{Action: registry.ActionDelete, Repository: "app/web", Digest: digest, Time: when},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	long := `{"type":"PUSH_ARTIFACT","operator":"` + strings.Repeat("ü\\u0007", 300) + `","event_data":{"resources":[{"tag":"v1"}],"repository":{"repo_full_name":"a/b"}}}`
	if got, err := registry.ParseHarbor([]byte(long)); err != nil || len(got) != 1 || len(got[0].Actor) > 128 || !utf8.ValidString(got[0].Actor) || strings.ContainsRune(got[0].Actor, 7) {
		t.Errorf("an operator that is none: %v, %v", got, err)
	}
	for _, bad := range []string{``, `[]`, `{"events":[{"action":"delete","target":{"repository":"A"}}]}`, `{"events":[` + strings.Repeat(`{},`, 10_000) + `{}]}`} {
		if _, err := registry.ParseDistribution([]byte(bad)); !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("%.80q gave %v", bad, err)
		}
	}
}

func fuzzHook(f *testing.F, parse func([]byte) ([]registry.Event, error), pattern string) {
	files, err := filepath.Glob(filepath.Join("testdata", pattern))
	if err != nil || len(files) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, file := range files {
		body, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		events, err := parse(body)
		if err != nil {
			if !errors.Is(err, registry.ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		for _, e := range events {
			if !registry.ValidRepository(e.Repository) || e.Tag == "" && e.Digest == "" || e.Tag != "" && !registry.ValidTag(e.Tag) ||
				e.Digest != "" && !registry.ValidDigest(e.Digest) || e.Action != registry.ActionPush && e.Action != registry.ActionDelete {
				t.Fatalf("event %+v", e)
			}
		}
	})
}

func FuzzParseHarbor(f *testing.F) { fuzzHook(f, registry.ParseHarbor, "harbor/*.json") }
func FuzzParseDistribution(f *testing.F) {
	fuzzHook(f, registry.ParseDistribution, "distribution.json")
}

// What the fake sends is of the shape of the samples.
func TestSamplesAreJSON(t *testing.T) {
	files, err := filepath.Glob("testdata/harbor/*.json")
	must(t, err)
	for _, f := range files {
		body, err := os.ReadFile(f)
		must(t, err)
		if !json.Valid(body) {
			t.Errorf("%s is not JSON", f)
		}
	}
}

func TestPlatforms(t *testing.T) {
	index := `{"manifests":[{"platform":{"os":"linux","architecture":"amd64"}},{"platform":{"os":"linux","architecture":"arm","variant":"v7"}},{"platform":{"os":"linux","architecture":"amd64"}},
		{"platform":{"os":"unknown","architecture":"unknown"}},{"digest":"sha256:aa"}]}`
	if got := registry.Platforms([]byte(index)); !slices.Equal(got, []string{"linux/amd64", "linux/arm/v7"}) {
		t.Errorf("%q", got)
	}
	for _, none := range []string{"", "{", `{"config":{}}`, `{"manifests":{}}`} {
		if got := registry.Platforms([]byte(none)); got != nil {
			t.Errorf("%q: %q", none, got)
		}
	}
}
