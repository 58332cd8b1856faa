package registry

import (
	"context"
	"fmt"
)

// Bounds of a closure.
const (
	// MaxDepth is how deep indexes may nest.
	MaxDepth = 16
	// MaxClosureManifests is how many manifests a closure may have.
	MaxClosureManifests = 10_000
	// MaxClosureBytes is how large the manifests of a closure may be together.
	MaxClosureBytes = 256 << 20
)

// GetFunc gives a manifest by digest.
type GetFunc func(ctx context.Context, digest string) (Manifest, error)

// VisitFunc sees a manifest after all its children. desc is what named it.
type VisitFunc func(desc *Descriptor, m Manifest, p Parsed) error

// Walk visits root and every manifest under it, children before parents, each once. It verifies the digests of what get returns, and the sizes
// where they are named. Subjects and referrers are not followed.
func Walk(ctx context.Context, get GetFunc, root *Descriptor, visit VisitFunc) error {
	w := walker{get: get, visit: visit, seen: map[string]bool{}}
	return w.walk(ctx, root, 0)
}

type walker struct {
	get   GetFunc
	visit VisitFunc
	// seen manifests; marked before their children are walked, so that a circle ends.
	seen  map[string]bool
	bytes int64
}

func (w *walker) walk(ctx context.Context, desc *Descriptor, depth int) error {
	if w.seen[desc.GetDigest()] {
		return nil
	}
	if depth > MaxDepth {
		return fmt.Errorf("manifest %s: indexes nest deeper than %d: %w", desc.GetDigest(), MaxDepth, ErrInvalid)
	}
	if len(w.seen) >= MaxClosureManifests {
		return fmt.Errorf("manifest %s: more than %d manifests: %w", desc.GetDigest(), MaxClosureManifests, ErrInvalid)
	}
	w.seen[desc.GetDigest()] = true
	if err := ctx.Err(); err != nil {
		return err
	}
	m, err := w.get(ctx, desc.GetDigest())
	if err != nil {
		return err
	}
	if got := DigestOf(m.Content); got != desc.GetDigest() {
		return fmt.Errorf("manifest %s: got content with digest %s: %w", desc.GetDigest(), got, ErrDigest)
	}
	if desc.GetSize() > 0 && desc.GetSize() != int64(len(m.Content)) {
		return fmt.Errorf("manifest %s: has %d bytes and is named with %d: %w", desc.GetDigest(), len(m.Content), desc.GetSize(), ErrInvalid)
	}
	m.Digest = desc.GetDigest()
	if w.bytes += int64(len(m.Content)); w.bytes > MaxClosureBytes {
		return fmt.Errorf("manifest %s: manifests exceed %d bytes together: %w", desc.GetDigest(), MaxClosureBytes, ErrInvalid)
	}
	p, err := ParseManifest(m)
	if err != nil {
		return err
	}
	for _, child := range p.Children {
		if err := w.walk(ctx, child, depth+1); err != nil {
			return err
		}
	}
	return w.visit(desc, m, p)
}

// Closure is everything under a manifest but its referrers.
type Closure struct {
	// Manifests, children before parents.
	Manifests []Manifest
	// Blobs, each digest once.
	Blobs []*Descriptor
}

// Collect walks from root and gathers the closure.
func Collect(ctx context.Context, get GetFunc, root *Descriptor) (Closure, error) {
	var c Closure
	sizes := map[string]int64{}
	err := Walk(ctx, get, root, func(_ *Descriptor, m Manifest, p Parsed) error {
		c.Manifests = append(c.Manifests, m)
		for _, b := range p.Blobs {
			size, seen := sizes[b.Digest]
			if seen && size != b.Size {
				return fmt.Errorf("blob %s has two sizes, %d and %d: %w", b.Digest, size, b.Size, ErrInvalid)
			}
			if !seen {
				sizes[b.Digest] = b.Size
				c.Blobs = append(c.Blobs, b)
			}
		}
		return nil
	})
	if err != nil {
		return Closure{}, err
	}
	return c, nil
}
