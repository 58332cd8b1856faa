package registrytest

import (
	"encoding/json"
	"math/rand/v2"
	"testing"

	"github.com/fanout-io/fanout/pkg/registry"
)

// Bytes gives size bytes that depend on seed alone.
func Bytes(seed uint64, size int) []byte {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	content := make([]byte, size)
	_, _ = rand.NewChaCha8(key).Read(content)
	return content
}

// Image is a manifest and the blobs that it names.
type Image struct {
	Manifest registry.Manifest
	Blobs    [][]byte
}

type descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int               `json:"size"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

func describe(mediaType string, content []byte) descriptor {
	return descriptor{MediaType: mediaType, Digest: registry.DigestOf(content), Size: len(content)}
}

func manifestOf(mediaType string, v any) registry.Manifest {
	// Indented, so that one who formats it anew is found out.
	content, err := json.MarshalIndent(v, " ", "   ")
	if err != nil {
		panic(err)
	}
	return registry.Manifest{MediaType: mediaType, Digest: registry.DigestOf(content), Content: content}
}

// NewImage makes an OCI image of layers.
func NewImage(seed uint64, layers ...[]byte) Image {
	config := []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"seed":` + json.Number(uintString(seed)).String() + `}`)
	m := map[string]any{
		"schemaVersion": 2, "mediaType": registry.MediaTypeOCIManifest, "config": describe("application/vnd.oci.image.config.v1+json", config),
	}
	ds := []descriptor{}
	for _, l := range layers {
		ds = append(ds, describe("application/vnd.oci.image.layer.v1.tar+zstd", l))
	}
	m["layers"] = ds
	return Image{Manifest: manifestOf(registry.MediaTypeOCIManifest, m), Blobs: append([][]byte{config}, layers...)}
}

// NewDockerImage makes a schema 2 image of one layer.
func NewDockerImage(seed uint64, layer []byte) Image {
	config := []byte(`{"docker":` + uintString(seed) + `}`)
	return Image{Manifest: manifestOf(registry.MediaTypeDockerManifest, map[string]any{
		"schemaVersion": 2, "mediaType": registry.MediaTypeDockerManifest,
		"config": describe("application/vnd.docker.container.image.v1+json", config),
		"layers": []descriptor{describe("application/vnd.docker.image.rootfs.diff.tar.gzip", layer)},
	}), Blobs: [][]byte{config, layer}}
}

// NewArtifact makes an artifact without layers; of a subject, if that is not nil.
func NewArtifact(kind, note string, subject *registry.Manifest) Image {
	empty := []byte("{}")
	m := map[string]any{
		"schemaVersion": 2, "mediaType": registry.MediaTypeOCIManifest, "artifactType": kind,
		"config": describe("application/vnd.oci.empty.v1+json", empty), "layers": []descriptor{describe("application/vnd.oci.empty.v1+json", empty)},
		"annotations": map[string]string{"note": note},
	}
	if subject != nil {
		m["subject"] = describe(subject.MediaType, subject.Content)
	}
	return Image{Manifest: manifestOf(registry.MediaTypeOCIManifest, m), Blobs: [][]byte{empty}}
}

// NewIndex makes an index of manifests.
func NewIndex(children ...registry.Manifest) registry.Manifest {
	ds := []descriptor{}
	for _, c := range children {
		ds = append(ds, describe(c.MediaType, c.Content))
	}
	return manifestOf(registry.MediaTypeOCIIndex, map[string]any{"schemaVersion": 2, "mediaType": registry.MediaTypeOCIIndex, "manifests": ds})
}

// Push brings an image into a repository, by tag or, with an empty one, by digest.
func Push(t testing.TB, c *registry.Client, repo, tag string, img Image) {
	t.Helper()
	for _, b := range img.Blobs {
		if _, err := c.PushBlob(t.Context(), repo, registry.DigestOf(b), Whole(b)); err != nil {
			t.Fatal(err)
		}
	}
	if tag == "" {
		tag = img.Manifest.Digest
	}
	if err := c.PutManifest(t.Context(), repo, tag, img.Manifest); err != nil {
		t.Fatal(err)
	}
}

func uintString(n uint64) string {
	b, _ := json.Marshal(n)
	return string(b)
}
