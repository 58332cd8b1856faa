package registry

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Media types of manifests.
const (
	MediaTypeOCIManifest    = "application/vnd.oci.image.manifest.v1+json"
	MediaTypeOCIIndex       = "application/vnd.oci.image.index.v1+json"
	MediaTypeOCIArtifact    = "application/vnd.oci.artifact.manifest.v1+json"
	MediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

var acceptManifests = strings.Join([]string{
	MediaTypeOCIIndex, MediaTypeOCIManifest, MediaTypeDockerList, MediaTypeDockerManifest, MediaTypeOCIArtifact,
	// Asked for so that a schema 1 manifest is refused in words, not as "not found".
	"application/vnd.docker.distribution.manifest.v1+prettyjws", "application/vnd.docker.distribution.manifest.v1+json",
}, ", ")

// MaxEntries is the most that one manifest may name.
const MaxEntries = 10_000

// Parsed is what a manifest names.
type Parsed struct {
	// Children of an index.
	Children []*Descriptor
	// Blobs that must be there: config and layers, each digest once.
	Blobs []*Descriptor
	// Foreign layers, which are fetched from elsewhere and need not be in a registry.
	Foreign []*Descriptor
	// Subject that the manifest refers to; nil: none.
	Subject *Descriptor
	// ArtifactType as a referrers list shows it: that of the manifest, else the config's media type.
	ArtifactType string
	// Annotations of the manifest.
	Annotations map[string]string
}

type wireDescriptor struct {
	MediaType    string   `json:"mediaType"`
	Digest       string   `json:"digest"`
	Size         int64    `json:"size"`
	ArtifactType string   `json:"artifactType,omitempty"`
	URLs         []string `json:"urls,omitempty"`
}

type wireManifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        *wireDescriptor   `json:"config"`
	Layers        []wireDescriptor  `json:"layers"`
	Blobs         []wireDescriptor  `json:"blobs"`
	Manifests     []wireDescriptor  `json:"manifests"`
	Subject       *wireDescriptor   `json:"subject"`
	Annotations   map[string]string `json:"annotations"`
	FSLayers      json.RawMessage   `json:"fsLayers"`
}

// ParseManifest says what a manifest names. It refuses what could be read as two different things.
func ParseManifest(m Manifest) (Parsed, error) {
	if len(m.Content) > MaxManifestBytes {
		return Parsed{}, fmt.Errorf("manifest of %d bytes exceeds %d: %w", len(m.Content), MaxManifestBytes, ErrInvalid)
	}
	if strings.Contains(m.MediaType, "distribution.manifest.v1+") {
		return Parsed{}, schema1Error()
	}
	var w wireManifest
	if err := json.Unmarshal(m.Content, &w); err != nil {
		return Parsed{}, fmt.Errorf("manifest %s is not valid JSON (%v): %w", m.Digest, err, ErrInvalid)
	}
	if w.SchemaVersion == 1 || len(w.FSLayers) > 0 {
		return Parsed{}, schema1Error()
	}
	if w.MediaType != "" && m.MediaType != "" && w.MediaType != m.MediaType {
		return Parsed{}, fmt.Errorf("manifest %s came as %q and calls itself %q: %w", m.Digest, clean(m.MediaType), clean(w.MediaType), ErrInvalid)
	}
	p, err := w.parse(mediaTypeOf(m.MediaType, w.MediaType))
	if err != nil {
		return Parsed{}, fmt.Errorf("manifest %s: %w", m.Digest, err)
	}
	return p, nil
}

func schema1Error() error {
	return fmt.Errorf("docker schema 1 manifests are not carried; push the image again with a current client: %w", ErrUnsupported)
}

func mediaTypeOf(outer, inner string) string {
	if outer != "" {
		return outer
	}
	return inner
}

func (w *wireManifest) parse(mediaType string) (Parsed, error) {
	p := Parsed{ArtifactType: w.ArtifactType, Annotations: w.Annotations}
	if n := len(w.Layers) + len(w.Blobs) + len(w.Manifests); n > MaxEntries {
		return p, fmt.Errorf("%d entries exceed %d: %w", n, MaxEntries, ErrInvalid)
	}
	ambiguous := false
	var err error
	switch mediaType {
	case MediaTypeOCIIndex, MediaTypeDockerList:
		ambiguous = len(w.Layers)+len(w.Blobs) > 0 || w.Config != nil
		p.Children, _, err = descriptors("manifest", w.Manifests)
	case MediaTypeOCIManifest, MediaTypeDockerManifest:
		ambiguous = len(w.Manifests)+len(w.Blobs) > 0
		if w.Config == nil {
			return p, fmt.Errorf("no config: %w", ErrInvalid)
		}
		if p.ArtifactType == "" {
			p.ArtifactType = w.Config.MediaType
		}
		p.Blobs, p.Foreign, err = descriptors("layer", append([]wireDescriptor{*w.Config}, w.Layers...))
	case MediaTypeOCIArtifact:
		ambiguous = len(w.Manifests)+len(w.Layers) > 0 || w.Config != nil
		p.Blobs, p.Foreign, err = descriptors("blob", w.Blobs)
	case "":
		return p, fmt.Errorf("no media type: %w", ErrInvalid)
	default:
		return p, fmt.Errorf("media type %q is not carried: %w", clean(mediaType), ErrUnsupported)
	}
	if err != nil {
		return p, err
	}
	if ambiguous {
		return p, fmt.Errorf("both an index and an image: %w", ErrInvalid)
	}
	if w.Subject != nil {
		if p.Subject, err = w.Subject.descriptor("subject"); err != nil {
			return p, err
		}
	}
	return p, nil
}

// descriptors gives each digest once, and apart those which need not be in a registry.
func descriptors(what string, in []wireDescriptor) (needed, foreign []*Descriptor, err error) {
	sizes := make(map[string]int64, len(in))
	for i := range in {
		d, err := in[i].descriptor(what)
		if err != nil {
			return nil, nil, err
		}
		if size, seen := sizes[d.Digest]; seen {
			if size != d.Size {
				return nil, nil, fmt.Errorf("%s %s has two sizes, %d and %d: %w", what, d.Digest, size, d.Size, ErrInvalid)
			}
			continue
		}
		sizes[d.Digest] = d.Size
		if in[i].foreign() {
			foreign = append(foreign, d)
			continue
		}
		needed = append(needed, d)
	}
	return needed, foreign, nil
}

func (w *wireDescriptor) descriptor(what string) (*Descriptor, error) {
	if !ValidDigest(w.Digest) {
		return nil, fmt.Errorf("%s has digest %q; only sha256 is carried: %w", what, clean(w.Digest), ErrInvalid)
	}
	if w.Size < 0 {
		return nil, fmt.Errorf("%s %s has size %d: %w", what, w.Digest, w.Size, ErrInvalid)
	}
	return &Descriptor{MediaType: w.MediaType, Digest: w.Digest, Size: w.Size, ArtifactType: w.ArtifactType}, nil
}

func (w *wireDescriptor) foreign() bool {
	return len(w.URLs) > 0 && (strings.Contains(w.MediaType, ".nondistributable.") || strings.Contains(w.MediaType, ".foreign."))
}

// clean makes words from outside fit for an error: bounded, without control characters.
func clean(s string) string {
	const most = 512
	cut := len(s) > most
	if cut {
		s = s[:most]
	}
	s = strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0xfffd || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, s))
	if cut {
		s += " …"
	}
	return s
}

// Platforms lists those that an index names, as OS/ARCHITECTURE[/VARIANT], each once; none of a manifest that is no index, or of what is named without one, such as attestations.
func Platforms(index []byte) (out []string) {
	var doc struct {
		Manifests []struct {
			Platform struct{ OS, Architecture, Variant string }
		}
	}
	if json.Unmarshal(index, &doc) != nil {
		return nil
	}
	for _, m := range doc.Manifests {
		p := m.Platform
		if p.OS == "" || p.OS == "unknown" {
			continue
		}
		name := strings.TrimSuffix(clean(p.OS)+"/"+clean(p.Architecture)+"/"+clean(p.Variant), "/")
		if len(out) < MaxEntries && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}
