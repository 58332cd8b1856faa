package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"
)

// everyManifest is what a client accepts that changes nothing.
var everyManifest = strings.Join([]string{
	string(types.OCIManifestSchema1), string(types.OCIImageIndex), string(types.DockerManifestSchema2), string(types.DockerManifestList),
}, ", ")

// read asks a registry over plain HTTP, so that no library comes between the test and the bytes.
func (s *site) read(repo, kind, reference string) (body []byte, mediaType string, err error) {
	req, err := http.NewRequest(http.MethodGet, "http://"+s.reg+"/v2/"+repo+"/"+kind+"/"+reference, nil)
	if err != nil {
		return nil, "", err
	}
	req.Header.Set("Accept", everyManifest)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil {
		return nil, "", err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, "", fmt.Errorf("%s %s of %s at %s: %s", kind, reference, repo, s.name, resp.Status)
	}
	if got := digestOf(body); strings.HasPrefix(reference, "sha256:") && got != reference {
		return nil, "", fmt.Errorf("%s %s of %s at %s has content %s", kind, reference, repo, s.name, got)
	}
	return body, resp.Header.Get("Content-Type"), nil
}

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// all reads everything under a tag or digest: name → what the registry gives for it. Manifests carry their media type in front.
func (s *site) all(repo, reference string) (map[string]string, error) {
	found := map[string]string{}
	todo := []string{reference}
	for len(todo) > 0 {
		body, mediaType, err := s.read(repo, "manifests", todo[0])
		if err != nil {
			return nil, err
		}
		found["manifest "+todo[0]] = mediaType + "\n" + string(body)
		todo = todo[1:]
		var m struct {
			Config            *ggcr.Descriptor
			Layers, Manifests []ggcr.Descriptor
		}
		if err := json.Unmarshal(body, &m); err != nil {
			return nil, err
		}
		for _, d := range m.Manifests {
			todo = append(todo, d.Digest.String())
		}
		if m.Config != nil {
			m.Layers = append(m.Layers, *m.Config)
		}
		for _, d := range m.Layers {
			if body, _, err = s.read(repo, "blobs", d.Digest.String()); err != nil {
				return nil, err
			}
			found["blob "+d.Digest.String()] = string(body)
		}
	}
	return found, nil
}

// arrives waits until every site gives the very same for a ref as the site where it was pushed.
func arrives(t testing.TB, sites map[string]*site, from, repo, reference string) {
	t.Helper()
	want, err := sites[from].all(repo, reference)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sites {
		var got map[string]string
		eventually(t, fmt.Sprintf("%s shows %s %s", s.name, repo, reference), func() (err error) {
			got, err = s.all(repo, reference)
			if err == nil && got["manifest "+reference] != want["manifest "+reference] {
				return fmt.Errorf("it shows another manifest: %s", got["manifest "+reference])
			}
			return err
		})
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s differs in %s %s (-pushed +shown):\n%.2000s", s.name, repo, reference, diff)
		}
	}
}

// listed waits until every site lists exactly the given referrers for a subject and has all that is under them.
func listed(t testing.TB, sites map[string]*site, repo, subject string, referrers ...string) {
	t.Helper()
	slices.Sort(referrers)
	for _, s := range sites {
		eventually(t, fmt.Sprintf("%s lists the referrers of %s", s.name, subject), func() error {
			body, _, err := s.read(repo, "manifests", strings.Replace(subject, ":", "-", 1))
			if err != nil {
				return err
			}
			var index ggcr.IndexManifest
			if err := json.Unmarshal(body, &index); err != nil {
				return err
			}
			var got []string
			for _, d := range index.Manifests {
				if d.ArtifactType == "" || d.Size == 0 {
					t.Errorf("%s lists %s without a type or a size: %s", s.name, d.Digest, body)
				}
				got = append(got, d.Digest.String())
			}
			slices.Sort(got)
			if !slices.Equal(got, referrers) {
				return fmt.Errorf("it lists %v, not %v", got, referrers)
			}
			return nil
		})
		for _, digest := range referrers {
			if _, err := s.all(repo, digest); err != nil {
				t.Errorf("referrer: %v", err)
			}
		}
	}
}

// raw is a manifest as bytes.
type raw struct {
	mediaType types.MediaType
	content   string
}

func (r raw) RawManifest() ([]byte, error)        { return []byte(r.content), nil }
func (r raw) MediaType() (types.MediaType, error) { return r.mediaType, nil }
func (r raw) digest() string                      { return digestOf([]byte(r.content)) }

func repository(t testing.TB, s *site, repo string) name.Repository {
	t.Helper()
	r, err := name.NewRepository(s.reg+"/"+repo, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// artifact puts blobs and, under a tag or (with an empty one) its digest, an OCI manifest over them. The first blob is the config.
func artifact(t testing.TB, s *site, repo, tag, more string, mediaType types.MediaType, blobs ...string) string {
	t.Helper()
	var descs []string
	for i, b := range blobs {
		mt := mediaType
		if i == 0 {
			mt = "application/vnd.oci.empty.v1+json"
		}
		if err := remote.WriteLayer(repository(t, s, repo), static.NewLayer([]byte(b), mt)); err != nil {
			t.Fatal(err)
		}
		descs = append(descs, fmt.Sprintf(`{"mediaType": %q, "digest": %q, "size": %d}`, mt, digestOf([]byte(b)), len(b)))
	}
	// The odd white space and the field that nobody knows must stay as they are.
	m := raw{types.OCIManifestSchema1, fmt.Sprintf("{ \"schemaVersion\":2,\n\t\"mediaType\" : %q, %s \"x-unknown\":[1,  2], \"config\": %s,\n\"layers\":[%s]\n}\n\n",
		types.OCIManifestSchema1, more, descs[0], strings.Join(descs[1:], " ,"))}
	ref := repo + "@" + m.digest()
	if tag != "" {
		ref = repo + ":" + tag
	}
	if err := remote.Put(reference(t, s, ref), m); err != nil {
		t.Fatal(err)
	}
	return m.digest()
}

// sign pushes a referrer of a manifest, as a client does: by its digest, then the fallback tag.
func sign(t testing.TB, s *site, repo, subject, words string) string {
	t.Helper()
	body, mediaType, err := s.read(repo, "manifests", subject)
	if err != nil {
		t.Fatal(err)
	}
	more := fmt.Sprintf(`"artifactType": "application/vnd.example.signature", "subject": {"mediaType": %q, "digest": %q, "size": %d},`, mediaType, subject, len(body))
	return artifact(t, s, repo, "", more, "application/vnd.example.signature.v1", "{}", words)
}

// typed gives an image all of whose parts have the media types of one family.
func typed(t testing.TB, manifest, config, layer types.MediaType) ggcr.Image {
	t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, manifest), config)
	for i := range 2 {
		var err error
		img, err = mutate.Append(img, mutate.Addendum{Layer: static.NewLayer(fmt.Appendf(nil, "%s layer %d", layer, i), layer)})
		if err != nil {
			t.Fatal(err)
		}
	}
	return img
}

func pushTyped(t testing.TB, s *site, repo, tag string, img ggcr.Image, want ...types.MediaType) {
	t.Helper()
	push(t, s, repo+":"+tag, img)
	got, err := s.all(repo, tag)
	if err != nil {
		t.Fatal(err)
	}
	for _, mt := range want {
		if !strings.Contains(got["manifest "+tag], string(mt)) {
			t.Fatalf("the test pushed no %s: %s", mt, got["manifest "+tag])
		}
	}
}

// TestContent lets every kind of content pass through one fabric.
func TestContent(t *testing.T) {
	t.Parallel()
	sites := start(t,
		spec{name: "hq-a", group: "hq"}, spec{name: "hq-b", group: "hq"}, spec{name: "hq-c", group: "hq"},
		spec{name: "gd-a", group: "hq/gd", counted: true}, spec{name: "sz-a", group: "hq/gd/sz"},
	)
	t.Run("kinds", func(t *testing.T) { testKinds(t, sites) })
	t.Run("layers", func(t *testing.T) { testLayers(t, sites) })
	t.Run("signatures", func(t *testing.T) { testSignatures(t, sites) })
}

func testKinds(t *testing.T, sites map[string]*site) {
	hqA, hqB, hqC := sites["hq-a"], sites["hq-b"], sites["hq-c"]

	t.Run("artifact", func(t *testing.T) {
		artifact(t, hqB, "app/artifact", "1", `"artifactType": "application/vnd.example.policy",`, "text/plain", "{}", "allow all")
		arrives(t, sites, "hq-b", "app/artifact", "1")
	})
	t.Run("artifact without layers", func(t *testing.T) {
		artifact(t, hqC, "app/artifact", "none", `"artifactType": "application/vnd.example.mark", "annotations": {"a": "b"},`, "", "{}")
		arrives(t, sites, "hq-c", "app/artifact", "none")
	})
	t.Run("layer of no bytes", func(t *testing.T) {
		artifact(t, hqA, "app/artifact", "hollow", `"artifactType": "application/vnd.example.mark",`, "text/plain", "{}", "")
		arrives(t, sites, "hq-a", "app/artifact", "hollow")
	})
	t.Run("media types", func(t *testing.T) {
		pushTyped(t, hqA, "app/types", "docker", typed(t, types.DockerManifestSchema2, types.DockerConfigJSON, types.DockerLayer),
			types.DockerManifestSchema2, types.DockerConfigJSON, types.DockerLayer)
		pushTyped(t, hqB, "app/types", "oci", typed(t, types.OCIManifestSchema1, types.OCIConfigJSON, types.OCILayer),
			types.OCIManifestSchema1, types.OCIConfigJSON, types.OCILayer)
		pushTyped(t, hqC, "app/types", "zstd", typed(t, types.OCIManifestSchema1, types.OCIConfigJSON, types.OCILayerZStd), types.OCILayerZStd)
		list := mutate.IndexMediaType(mutate.AppendManifests(empty.Index, mutate.IndexAddendum{
			Add: typed(t, types.DockerManifestSchema2, types.DockerConfigJSON, types.DockerLayer),
		}), types.DockerManifestList)
		if err := remote.WriteIndex(reference(t, hqC, "app/types:list"), list); err != nil {
			t.Fatal(err)
		}
		arrives(t, sites, "hq-a", "app/types", "docker")
		arrives(t, sites, "hq-b", "app/types", "oci")
		arrives(t, sites, "hq-c", "app/types", "zstd")
		arrives(t, sites, "hq-c", "app/types", "list")
	})
}

func testLayers(t *testing.T, sites map[string]*site) {
	hqA, hqB, hqC := sites["hq-a"], sites["hq-b"], sites["hq-c"]

	t.Run("shared layers", func(t *testing.T) {
		base := image(t, 1<<16, 3)
		layers, err := image(t, 1<<12, 1).Layers()
		if err != nil {
			t.Fatal(err)
		}
		more, err := mutate.AppendLayers(base, layers...)
		if err != nil {
			t.Fatal(err)
		}
		push(t, hqA, "app/base:1", base)
		push(t, hqB, "app/base:more", more)
		push(t, hqC, "other/derived:1", more)
		arrives(t, sites, "hq-a", "app/base", "1")
		arrives(t, sites, "hq-b", "app/base", "more")
		arrives(t, sites, "hq-c", "other/derived", "1")
	})
	t.Run("layers that the city has in a repository of its own", func(t *testing.T) {
		const size = 4 << 20
		base := image(t, size, 1)
		city := sites["sz-a"]
		push(t, city, "local/base:1", base)
		eventually(t, "the city knows of its own image", func() error {
			city.mu.Lock()
			defer city.mu.Unlock()
			for line := range bytes.Lines(city.log.Bytes()) {
				if bytes.Contains(line, []byte("content was indexed")) && bytes.Contains(line, []byte("local/base:1")) {
					return nil
				}
			}
			return errors.New("no such line in its log")
		})
		layers, err := image(t, 1<<12, 1).Layers()
		if err != nil {
			t.Fatal(err)
		}
		more, err := mutate.AppendLayers(base, layers...)
		if err != nil {
			t.Fatal(err)
		}
		before := sites["gd-a"].link.down.Load()
		push(t, hqB, "app/onbase:1", more)
		arrives(t, sites, "hq-b", "app/onbase", "1")
		if crossed := sites["gd-a"].link.down.Load() - before; crossed > size/4 {
			t.Errorf("%d bytes crossed the link for an image whose large layer was there", crossed)
		}
	})
	t.Run("a hundred tags of one image", func(t *testing.T) {
		img := image(t, 1<<16, 2)
		digest := push(t, hqB, "app/tags:0", img)
		var g errgroup.Group
		g.SetLimit(8)
		for i := range 99 {
			g.Go(func() error {
				return remote.Put(reference(t, hqB, fmt.Sprintf("app/tags:%d", i+1)), img)
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		for _, s := range sites {
			for i := range 100 {
				tag := fmt.Sprint(i)
				eventually(t, s.name+" shows tag "+tag, func() error {
					body, _, err := s.read("app/tags", "manifests", tag)
					if err == nil && digestOf(body) != digest {
						err = fmt.Errorf("it shows %s", digestOf(body))
					}
					return err
				})
			}
		}
	})
}

func testSignatures(t *testing.T, sites map[string]*site) {
	hqA, hqB, hqC := sites["hq-a"], sites["hq-b"], sites["hq-c"]

	t.Run("tag of the cosign scheme", func(t *testing.T) {
		digest := push(t, hqA, "app/cosign:1", image(t, 1<<12, 1))
		tag := strings.Replace(digest, ":", "-", 1) + ".sig"
		artifact(t, hqA, "app/cosign", tag, "", "application/vnd.dev.cosign.simplesigning.v1+json", "{}", `{"critical": 1}`)
		arrives(t, sites, "hq-a", "app/cosign", "1")
		arrives(t, sites, "hq-a", "app/cosign", tag)
	})
	t.Run("at once, and again after delivery", func(t *testing.T) {
		digest := push(t, hqB, "app/signed:1", image(t, 1<<12, 1))
		first := sign(t, hqB, "app/signed", digest, "first")
		arrives(t, sites, "hq-b", "app/signed", "1")
		listed(t, sites, "app/signed", digest, first)
		second := sign(t, hqC, "app/signed", digest, "second")
		listed(t, sites, "app/signed", digest, first, second)
		arrives(t, sites, "hq-c", "app/signed", second)
	})
	t.Run("at two registries at once", func(t *testing.T) {
		digest := push(t, hqA, "app/twice:1", image(t, 1<<12, 1))
		arrives(t, sites, "hq-a", "app/twice", "1")
		one, two := sign(t, hqA, "app/twice", digest, "one"), sign(t, hqB, "app/twice", digest, "two")
		listed(t, sites, "app/twice", digest, one, two)
	})
	t.Run("written over by another client", func(t *testing.T) {
		digest := push(t, hqA, "app/over:1", image(t, 1<<12, 1))
		one := sign(t, hqA, "app/over", digest, "one")
		listed(t, sites, "app/over", digest, one)
		// A client that read the list before the first signature was in it now writes it with its own alone.
		two := sign(t, hqC, "app/over", digest, "two")
		body, _, err := hqC.read("app/over", "manifests", two)
		if err != nil {
			t.Fatal(err)
		}
		list := raw{types.OCIImageIndex, fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d,"artifactType":"application/vnd.example.signature"}]}`,
			types.OCIImageIndex, types.OCIManifestSchema1, two, len(body))}
		if err := remote.Put(reference(t, hqC, "app/over:"+strings.Replace(digest, ":", "-", 1)), list); err != nil {
			t.Fatal(err)
		}
		listed(t, sites, "app/over", digest, one, two)
	})
	t.Run("a platform, and the signature itself", func(t *testing.T) {
		img := image(t, 1<<12, 1)
		idx := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{
			Add: img, Descriptor: ggcr.Descriptor{Platform: &ggcr.Platform{OS: "linux", Architecture: "arm64"}},
		})
		if err := remote.WriteIndex(reference(t, hqC, "app/deep:1"), idx); err != nil {
			t.Fatal(err)
		}
		child, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		arrives(t, sites, "hq-c", "app/deep", "1")
		sbom := sign(t, hqA, "app/deep", child.String(), "sbom")
		listed(t, sites, "app/deep", child.String(), sbom)
		signed := sign(t, hqB, "app/deep", sbom, "signature of the sbom")
		listed(t, sites, "app/deep", sbom, signed)
		listed(t, sites, "app/deep", child.String(), sbom)
	})
}
