package demo

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"

	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/opencontainers/go-digest"

	"github.com/fanout-io/fanout/pkg/registry"
)

// SampleRef is the image that the demo builds and publishes.
const SampleRef = "demo/hello:1.0"

const (
	sampleRepository = "demo/hello"
	sampleTag        = "1.0"
	sampleLayers     = 3
	layerBytes       = 4 << 20
)

// content is a blob in memory, as the registry client wants to read it.
type content []byte

func (c content) Size() int64 { return int64(len(c)) }

func (c content) Wait(_ context.Context, off int64) (int64, error) { return int64(len(c)) - off, nil }

func (c content) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(c).ReadAt(p, off) }

// pushSample builds an image and pushes it. It is the same to the byte each time.
func pushSample(ctx context.Context, client *registry.Client) error {
	config := v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "amd64"}}
	config.RootFS.Type = "layers"
	manifest := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
	for i := range sampleLayers {
		layer, diffID, err := sampleLayer(i)
		if err != nil {
			return err
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
		d := v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Digest: digest.FromBytes(layer), Size: int64(len(layer))}
		manifest.Layers = append(manifest.Layers, d)
		if _, err := client.PushBlob(ctx, sampleRepository, d.Digest.String(), content(layer)); err != nil {
			return fmt.Errorf("pushing a layer: %w", err)
		}
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return err
	}
	manifest.Config = v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if _, err := client.PushBlob(ctx, sampleRepository, manifest.Config.Digest.String(), content(raw)); err != nil {
		return fmt.Errorf("pushing the config: %w", err)
	}
	if raw, err = json.Marshal(manifest); err != nil {
		return err
	}
	m := registry.Manifest{MediaType: manifest.MediaType, Digest: digest.FromBytes(raw).String(), Content: raw}
	return client.PutManifest(ctx, sampleRepository, sampleTag, m)
}

// sampleLayer is a tar with one file that does not compress.
func sampleLayer(n int) (layer []byte, diffID digest.Digest, err error) {
	var tarball, zipped bytes.Buffer
	tw := tar.NewWriter(&tarball)
	if err := tw.WriteHeader(&tar.Header{Name: fmt.Sprintf("hello/part-%d", n), Mode: 0o644, Size: layerBytes}); err != nil {
		return nil, "", err
	}
	if _, err := io.CopyN(tw, rand.NewChaCha8([32]byte{byte(n + 1)}), layerBytes); err != nil {
		return nil, "", err
	}
	if err := tw.Close(); err != nil {
		return nil, "", err
	}
	zw, err := gzip.NewWriterLevel(&zipped, gzip.NoCompression)
	if err != nil {
		return nil, "", err
	}
	if _, err := zw.Write(tarball.Bytes()); err != nil {
		return nil, "", err
	}
	return zipped.Bytes(), digest.FromBytes(tarball.Bytes()), zw.Close()
}
