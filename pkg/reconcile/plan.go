package reconcile

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/fanout-io/fanout/pkg/catalog"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// maxManifests bounds the closure of one record.
const maxManifests = 1 << 16

var (
	// ErrNotLive: a plan was asked for a record that shows nothing.
	ErrNotLive = errors.New("record shows nothing")
	// ErrMalformed: the manifests of a closure contradict each other.
	ErrMalformed = errors.New("malformed closure")
)

// MissingError says that a plan needs manifests that were not given. Gather them and ask again.
type MissingError struct {
	// Digests that are missing, sorted.
	Digests []string
}

// Error implements error.
func (e *MissingError) Error() string {
	if len(e.Digests) == 1 {
		return "a manifest is missing: " + e.Digests[0]
	}
	return fmt.Sprintf("%d manifests are missing: %s", len(e.Digests), strings.Join(e.Digests[:min(len(e.Digests), 3)], ", "))
}

// Manifest is what a plan must know of a manifest.
type Manifest struct {
	// Digest of its bytes.
	Digest string
	// Blobs are its config and layers.
	Blobs []*catalogv1.Descriptor
	// Children are the manifests that an index names.
	Children []string
	// Subject that it refers to; empty: none.
	Subject string
}

// Have asks what the registry has. A nil function has nothing.
type Have struct {
	// Manifest says whether the ref's repository has a manifest.
	Manifest func(digest string) bool
	// Referrer says whether the ref's repository lists a manifest as a referrer of its subject. Where it is nil, having the manifest is enough. A registry
	// without the referrers API may have the one and not the other, after a break between the two.
	Referrer func(digest string) bool
	// Blob says whether the ref's repository has a blob.
	Blob func(digest string) bool
	// BlobElsewhere returns other repositories of the registry that have a blob.
	BlobElsewhere func(digest string) []string
}

// Kind of a step.
type Kind int

// The kinds.
const (
	// MountBlob takes over a blob from one of the repositories in From. Where the registry refuses, the blob is fetched.
	MountBlob Kind = iota
	// FetchBlob fetches a blob and puts it.
	FetchBlob
	// PutManifest puts a manifest by its digest.
	PutManifest
	// PutReferrer puts a manifest by its digest and, where the registry has no referrers API, enters it into the fallback index of its subject.
	PutReferrer
	// PutTag puts the target under the tag.
	PutTag
)

var kindNames = [...]string{"mount-blob", "fetch-blob", "put-manifest", "put-referrer", "put-tag"}

// String returns the kind in a word.
func (k Kind) String() string {
	if k < 0 || int(k) >= len(kindNames) {
		return "unknown"
	}
	return kindNames[k]
}

// Step is one thing to do.
type Step struct {
	// Kind of step.
	Kind Kind
	// Digest of the blob or manifest.
	Digest string
	// Size of a blob in bytes.
	Size int64
	// From are the repositories to mount from.
	From []string
}

// Plan is what must be done at a site so that a ref shows a record. Steps of one stage may be taken in any order and at once; a stage begins when
// the one before is done. Repeating a plan that was broken off does no harm.
//
// Stages: all blobs, mounts first, then small before large; manifests and referrers by depth, what others need first; the tag, last and alone.
// Referrers come before the tag, so that whoever admits only signed images never finds one unsigned; registries take a referrer before its
// subject. The target itself travels with the tag, unless a referrer's index names it.
type Plan struct {
	// Stages in order.
	Stages [][]Step
	// BytesToFetch is the sum of the sizes of the blobs to fetch.
	BytesToFetch int64
}

// NewPlan makes the plan for a live record. Manifests are those at hand, by digest. One that is not among them is taken to be whole if the registry
// has it; else the error is a *MissingError that names all such.
func NewPlan(ref catalog.Ref, rec *catalogv1.Record, manifests map[string]Manifest, have Have) (Plan, error) {
	target := rec.GetTarget().GetDigest()
	if rec.GetDeleted() || target == "" {
		return Plan{}, fmt.Errorf("planning %s at revision %d: %w", ref, rec.GetRevision(), ErrNotLive)
	}
	p := planner{manifests: manifests, have: have, target: target, sizes: map[string]int64{}, referrers: map[string]bool{}}
	roots := []string{target}
	for _, d := range rec.GetReferrers() {
		p.referrers[d.GetDigest()] = true
		roots = append(roots, d.GetDigest())
	}
	if err := p.walk(roots); err != nil {
		return Plan{}, fmt.Errorf("planning %s at revision %d: %w", ref, rec.GetRevision(), err)
	}
	plan, err := p.stages()
	if err != nil {
		return Plan{}, fmt.Errorf("planning %s at revision %d: %w", ref, rec.GetRevision(), err)
	}
	return plan, nil
}

type planner struct {
	manifests map[string]Manifest
	have      Have
	target    string
	referrers map[string]bool
	closure   []string         // manifests at hand, in the order found
	named     bool             // the target is another manifest's child
	sizes     map[string]int64 // of all blobs
	blobs     []Step           // those to mount or fetch
}

// walk finds the closure without recursion, so that a deep one costs no stack.
func (p *planner) walk(roots []string) error {
	seen := map[string]bool{}
	missing := map[string]bool{}
	todo := slices.Clone(roots)
	for len(todo) > 0 {
		digest := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[digest] {
			continue
		}
		if seen[digest] = true; len(seen) > maxManifests {
			return fmt.Errorf("%w: more than %d manifests", ErrMalformed, maxManifests)
		}
		m, ok := p.manifests[digest]
		if !ok {
			// The tag put carries the target's bytes, so these are needed even where the registry has them.
			if digest == p.target || !p.hasManifest(digest) {
				missing[digest] = true
			}
			continue
		}
		p.closure = append(p.closure, digest)
		if err := p.addBlobs(m); err != nil {
			return err
		}
		for _, child := range m.Children {
			p.named = p.named || child == p.target
			todo = append(todo, child)
		}
	}
	if len(missing) > 0 {
		return &MissingError{Digests: slices.Sorted(maps.Keys(missing))}
	}
	return nil
}

// addBlobs notes what a manifest's blobs need. It does so for a manifest that the registry has, too: a registry may have lost a blob under it.
func (p *planner) addBlobs(m Manifest) error {
	for _, d := range m.Blobs {
		digest := d.GetDigest()
		if digest == "" || d.GetSize() < 0 {
			return fmt.Errorf("%w: manifest %s names a blob %q of size %d", ErrMalformed, m.Digest, digest, d.GetSize())
		}
		if size, again := p.sizes[digest]; again {
			if size != d.GetSize() {
				return fmt.Errorf("%w: blob %s has size %d and size %d", ErrMalformed, digest, size, d.GetSize())
			}
			continue
		}
		p.sizes[digest] = d.GetSize()
		if p.have.Blob != nil && p.have.Blob(digest) {
			continue
		}
		step := Step{Kind: FetchBlob, Digest: digest, Size: d.GetSize()}
		if p.have.BlobElsewhere != nil {
			if from := p.have.BlobElsewhere(digest); len(from) > 0 {
				step.Kind, step.From = MountBlob, from
			}
		}
		p.blobs = append(p.blobs, step)
	}
	return nil
}

func (p *planner) hasManifest(digest string) bool {
	return p.have.Manifest != nil && p.have.Manifest(digest)
}

// done says whether a manifest needs no step.
func (p *planner) done(digest string) bool {
	if p.referrers[digest] && p.have.Referrer != nil {
		return p.have.Referrer(digest) && p.hasManifest(digest)
	}
	return p.hasManifest(digest)
}

func (p *planner) stages() (Plan, error) {
	var plan Plan
	for _, step := range p.blobs {
		if step.Kind == FetchBlob {
			if plan.BytesToFetch += step.Size; plan.BytesToFetch < 0 {
				return Plan{}, fmt.Errorf("%w: the sizes of its blobs overflow", ErrMalformed)
			}
		}
	}
	slices.SortFunc(p.blobs, func(a, b Step) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Size, b.Size), strings.Compare(a.Digest, b.Digest))
	})
	if len(p.blobs) > 0 {
		plan.Stages = append(plan.Stages, p.blobs)
	}
	levels, err := p.levels()
	if err != nil {
		return Plan{}, err
	}
	for _, level := range levels {
		var stage []Step
		for _, digest := range level {
			if digest == p.target && !p.named || p.done(digest) {
				continue
			}
			step := Step{Kind: PutManifest, Digest: digest}
			if p.referrers[digest] {
				step.Kind = PutReferrer
			}
			stage = append(stage, step)
		}
		if len(stage) > 0 {
			plan.Stages = append(plan.Stages, stage)
		}
	}
	plan.Stages = append(plan.Stages, []Step{{Kind: PutTag, Digest: p.target}})
	return plan, nil
}

// needs returns what must be put before a manifest: its children, and its subject if that is put as well. The target as a subject does not
// count, since it comes last.
func (p *planner) needs(digest string) []string {
	m := p.manifests[digest]
	if m.Subject == "" || m.Subject == p.target {
		return m.Children
	}
	return append(slices.Clip(m.Children), m.Subject)
}

// levels sorts the closure by the longest way to a manifest that needs none: those of one level do not need each other. Digests cannot form a circle; what was
// given without being checked against its digest can, and is refused.
func (p *planner) levels() ([][]string, error) {
	waiting := map[string]int{} // how many of its needs are not placed yet
	neededBy := map[string][]string{}
	for _, digest := range p.closure {
		waiting[digest] = 0
	}
	for _, digest := range p.closure {
		for _, need := range p.needs(digest) {
			if _, inside := waiting[need]; inside {
				waiting[digest]++
				neededBy[need] = append(neededBy[need], digest)
			}
		}
	}
	var levels [][]string
	var level []string
	for digest, n := range waiting {
		if n == 0 {
			level = append(level, digest)
		}
	}
	placed := 0
	for len(level) > 0 {
		slices.Sort(level)
		levels = append(levels, level)
		placed += len(level)
		var next []string
		for _, digest := range level {
			for _, by := range neededBy[digest] {
				if waiting[by]--; waiting[by] == 0 {
					next = append(next, by)
				}
			}
		}
		level = next
	}
	if placed != len(p.closure) {
		return nil, fmt.Errorf("%w: its manifests contain each other", ErrMalformed)
	}
	return levels, nil
}
