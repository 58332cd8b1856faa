package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/registry"
)

// Kinds of difference.
const (
	kindMissingTag      = "missing-tag"
	kindOtherDigest     = "other-digest"
	kindMissingManifest = "missing-manifest"
	kindMissingBlob     = "missing-blob"
	kindWrongBytes      = "wrong-bytes"
	kindMissingReferrer = "missing-referrer"
	kindCatalogBehind   = "catalog-behind"
	kindUnreadable      = "unreadable"
	kindCatalogUnknown  = "catalog-unknown"
)

const (
	// hashBuffer is how much of a blob is in memory while it is hashed, for each that is.
	hashBuffer = 256 << 10
	// maxSound bounds how many digests a checker remembers as sound. Beyond it one that lies in several repositories is read again.
	maxSound = 1 << 20
)

// defect is something that the registry does not show as the catalog says.
type defect struct {
	ref                         catalog.Ref
	kind, digest, shown, reason string
	manifest                    bool // digest is that of a manifest
	accepted                    bool // the settings leave it so
}

func (d defect) message() *adminv1.Difference {
	m := &adminv1.Difference{Kind: d.kind, Digest: d.digest, Shown: d.shown, Reason: d.reason, Accepted: d.accepted}
	if d.ref != (catalog.Ref{}) {
		m.Ref = d.ref.String()
	}
	return m
}

// trouble is what is wrong with one manifest or blob; nil: nothing.
type trouble struct{ kind, reason string }

// checker looks at what this site's registry really has, and believes neither the store nor the cache of manifests. It is for one pass: what it was told is not asked again.
// One goroutine uses it at a time.
type checker struct {
	a    *Agent
	deep bool
	pace *rate.Limiter // of bytes that are read

	repo      string // of what follows
	manifests map[string]*trouble
	blobs     map[string]*trouble
	listing   map[string]map[string]bool // by subject
	tags      map[string]bool            // nil: not listed yet

	mu    sync.Mutex
	sound map[[sha256.Size]byte]bool // digests whose bytes were read and are right
	wrong map[string]*trouble

	looked looked
}

// looked counts what was looked at, and the bytes that were read.
type looked struct{ refs, manifests, blobs, bytes atomic.Int64 }

// again takes over what was looked at the first time: what is looked at once more is counted once, but for the bytes, which were read.
func (l *looked) again(first *looked) {
	l.refs.Store(first.refs.Load())
	l.manifests.Store(first.manifests.Load())
	l.blobs.Store(first.blobs.Load())
	l.bytes.Add(first.bytes.Load())
}

func (a *Agent) newChecker(deep bool, pace *rate.Limiter) *checker {
	return &checker{a: a, deep: deep, pace: pace, sound: map[[sha256.Size]byte]bool{}, wrong: map[string]*trouble{}}
}

// enter forgets what was told of another repository: refs come in the order of repositories.
func (c *checker) enter(repo string) {
	if repo != c.repo || c.manifests == nil {
		c.repo = repo
		c.manifests, c.blobs, c.listing, c.tags = map[string]*trouble{}, map[string]*trouble{}, map[string]map[string]bool{}, nil
	}
}

// found is what a look at one ref found.
type found struct {
	shown     string
	referrers []string // those of the record that the registry lists
	diffs     []defect
	held      bool // it shows something else, as it is to now
}

// check looks at one live record: the tag, and unless tagsOnly is set all under it. An error means that ctx ended.
func (c *checker) check(ctx context.Context, rec *catalogv1.Record, tagsOnly bool) (found, error) {
	ref, want := catalog.RefOf(rec), rec.GetTarget().GetDigest()
	c.enter(ref.Repository)
	c.looked.refs.Add(1)
	f := found{}
	named := map[string]bool{} // several manifests may have a blob in common
	add := func(manifest bool, digest string, t *trouble) {
		if named[t.kind+digest] {
			return
		}
		named[t.kind+digest] = true
		f.diffs = append(f.diffs, defect{ref: ref, kind: t.kind, digest: digest, reason: t.reason, manifest: manifest})
	}
	d, err := c.a.registry.Resolve(ctx, ref.Repository, ref.Tag)
	switch {
	case ctx.Err() != nil:
		return f, ctx.Err()
	case errors.Is(err, registry.ErrNotFound):
		if c.lists(ctx, ref) {
			add(true, want, &trouble{kindMissingManifest, "the tag is there, its manifest is not: " + err.Error()})
		} else {
			add(true, want, &trouble{kindMissingTag, err.Error()})
		}
		return f, ctx.Err()
	case err != nil:
		add(true, want, &trouble{kindUnreadable, plainWords(err)})
		return f, nil
	}
	if f.shown = d.GetDigest(); f.shown != want {
		f.diffs = append(f.diffs, defect{ref: ref, kind: kindOtherDigest, digest: want, shown: f.shown, reason: "the tag shows another digest", manifest: true})
		return f, nil
	}
	if !tagsOnly {
		if err := c.closure(ctx, rec, rec.GetTarget(), add); err != nil {
			return f, err
		}
	}
	for _, r := range rec.GetReferrers() {
		if !tagsOnly {
			if err := c.closure(ctx, rec, r, add); err != nil {
				return f, err
			}
		}
		why, err := c.unlisted(ctx, rec, r)
		if err != nil {
			return f, err
		}
		if why == nil {
			f.referrers = append(f.referrers, r.GetDigest())
			continue
		}
		add(true, r.GetDigest(), why)
	}
	return f, nil
}

// ahead looks at all content of a record that its tag does not show here.
func (c *checker) ahead(ctx context.Context, raw, rec *catalogv1.Record) (diffs []defect, err error) {
	named := map[string]bool{}
	add := func(manifest bool, digest string, t *trouble) {
		if !named[t.kind+digest] {
			named[t.kind+digest] = true
			diffs = append(diffs, defect{ref: catalog.RefOf(raw), kind: t.kind, digest: digest, reason: t.reason + "; it is to be here ahead of a release", manifest: manifest})
		}
	}
	for _, t := range catalog.Content(raw) {
		if t.Descriptor.GetDigest() == showsDigest(rec) {
			continue
		}
		for _, root := range append([]*catalogv1.Descriptor{t.Descriptor}, t.Referrers...) {
			if err := c.closure(ctx, raw, root, add); err != nil {
				return diffs, err
			}
		}
	}
	return diffs, nil
}

// reallyHas asks the registry for all under a digest, whatever the store remembers of it: before something is published on a person's word and not because it was pushed just now.
func (a *Agent) reallyHas(ctx context.Context, ref catalog.Ref, target *catalogv1.Descriptor) error {
	c := a.newChecker(false, rate.NewLimiter(verifyRate, minBurst))
	c.enter(ref.Repository)
	var lacks *trouble
	err := c.closure(ctx, &catalogv1.Record{Repository: ref.Repository, Tag: ref.Tag, Target: target}, target, func(_ bool, _ string, t *trouble) {
		if lacks == nil {
			lacks = t
		}
	})
	if err == nil && lacks != nil {
		err = errors.New(lacks.reason)
	}
	return err
}

// lists says whether the registry lists a tag that it can't resolve. Where it can't tell, no.
func (c *checker) lists(ctx context.Context, ref catalog.Ref) bool {
	if c.tags == nil {
		tags := map[string]bool{}
		for tag, err := range c.a.registry.Tags(ctx, ref.Repository) {
			if err != nil {
				break
			}
			tags[tag] = true
		}
		c.tags = tags
	}
	return c.tags[ref.Tag]
}

// closure looks at all under one root of a record.
func (c *checker) closure(ctx context.Context, rec *catalogv1.Record, root *catalogv1.Descriptor, add func(bool, string, *trouble)) error {
	var blobs []*catalogv1.Descriptor
	listed := map[string]bool{}
	named := false // what stops the walk
	get := func(ctx context.Context, digest string) (registry.Manifest, error) {
		t, err := c.manifest(ctx, digest)
		if err != nil {
			return registry.Manifest{}, err
		}
		if t != nil {
			add(true, digest, t)
		}
		m, err := c.content(ctx, rec, root, digest)
		if named = err != nil; named && t == nil {
			add(true, digest, &trouble{kindUnreadable, plainWords(err)})
		}
		return m, err
	}
	err := registry.Walk(ctx, get, root, func(_ *registry.Descriptor, _ registry.Manifest, p registry.Parsed) error {
		for _, b := range p.Blobs {
			if !listed[b.GetDigest()] {
				listed[b.GetDigest()] = true
				blobs = append(blobs, b)
			}
		}
		return nil
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil && !named {
		add(true, root.GetDigest(), &trouble{kindUnreadable, plainWords(err)})
	}
	troubles := make([]*trouble, len(blobs))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelSteps)
	for i, b := range blobs {
		g.Go(func() (err error) {
			troubles[i], err = c.blob(gctx, b)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, t := range troubles {
		if t != nil {
			add(false, blobs[i].GetDigest(), t)
		}
	}
	return nil
}

// content gives the bytes of a manifest from wherever they are to be had: what lies under it is to be looked at though it is missing here.
func (c *checker) content(ctx context.Context, rec *catalogv1.Record, root *catalogv1.Descriptor, digest string) (registry.Manifest, error) {
	m, err := c.a.manifestAtHand(ctx, rec.GetRepository(), digest)
	if err != nil {
		m, err = c.a.manifestFromPeers(ctx, &transferv1.Purpose{
			Repository: rec.GetRepository(), Tag: rec.GetTag(), Revision: rec.GetRevision(), Root: root.GetDigest(),
		}, digest)
	}
	return registry.Manifest(m), err
}

// manifest looks at one manifest in the repository.
func (c *checker) manifest(ctx context.Context, digest string) (*trouble, error) {
	if t, known := c.manifests[digest]; known {
		return t, nil
	}
	c.looked.manifests.Add(1)
	var err error
	if c.deep {
		var m registry.Manifest
		if m, err = c.a.registry.Manifest(ctx, c.repo, digest); err == nil {
			c.looked.bytes.Add(int64(len(m.Content)))
			err = c.pace.WaitN(ctx, min(len(m.Content), c.pace.Burst()))
		}
	} else {
		_, err = c.a.registry.Resolve(ctx, c.repo, digest)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	t := troubleOf(err, kindMissingManifest)
	c.manifests[digest] = t
	return t, nil
}

// troubleOf puts an error into a kind; nil: none.
func troubleOf(err error, missing string) *trouble {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, registry.ErrNotFound):
		return &trouble{missing, err.Error()}
	case errors.Is(err, registry.ErrDigest):
		return &trouble{kindWrongBytes, err.Error()}
	}
	return &trouble{kindUnreadable, plainWords(err)}
}

// blob looks at one blob in the repository. It may be called by several goroutines.
func (c *checker) blob(ctx context.Context, b *catalogv1.Descriptor) (*trouble, error) {
	digest := b.GetDigest()
	c.mu.Lock()
	t, known := c.blobs[digest]
	c.mu.Unlock()
	if known {
		return t, nil
	}
	c.looked.blobs.Add(1)
	size, err := c.a.registry.StatBlob(ctx, c.repo, digest)
	t = troubleOf(err, kindMissingBlob)
	if t == nil && size != b.GetSize() {
		t = &trouble{kindWrongBytes, fmt.Sprintf("it has %d bytes in the registry, not %d", size, b.GetSize())}
	}
	if t == nil && c.deep {
		t = c.hash(ctx, digest)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.blobs[digest] = t
	return t, nil
}

// hash reads a blob, once for all repositories: a registry keeps its bytes once.
func (c *checker) hash(ctx context.Context, digest string) *trouble {
	var sum [sha256.Size]byte
	if _, err := hex.Decode(sum[:], []byte(digest[len("sha256:"):])); err != nil {
		return &trouble{kindUnreadable, err.Error()}
	}
	c.mu.Lock()
	sound, wrong := c.sound[sum], c.wrong[digest]
	c.mu.Unlock()
	if sound || wrong != nil {
		return wrong
	}
	got, err := c.read(ctx, digest)
	t := troubleOf(err, kindMissingBlob)
	if err == nil && got != sum {
		t = &trouble{kindWrongBytes, fmt.Sprintf("its bytes in the registry have the digest sha256:%x", got)}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if t != nil {
		c.wrong[digest] = t
	} else if len(c.sound) < maxSound {
		c.sound[sum] = true
	}
	return t
}

func (c *checker) read(ctx context.Context, digest string) (sum [sha256.Size]byte, err error) {
	r, err := c.a.registry.OpenBlob(ctx, c.repo, digest, 0, -1)
	if err != nil {
		return sum, err
	}
	defer r.Close()
	h, buf := sha256.New(), make([]byte, hashBuffer)
	for {
		n, err := r.Read(buf)
		h.Write(buf[:n])
		c.looked.bytes.Add(int64(n))
		if n > 0 {
			if werr := c.pace.WaitN(ctx, n); werr != nil {
				return sum, werr
			}
		}
		if errors.Is(err, io.EOF) {
			return [sha256.Size]byte(h.Sum(nil)), nil
		}
		if err != nil {
			return sum, fmt.Errorf("reading %s: %w", digest, err)
		}
	}
}

// unlisted says why a referrer of a record is not listed by the registry; nil: it is listed.
func (c *checker) unlisted(ctx context.Context, rec *catalogv1.Record, referrer *catalogv1.Descriptor) (*trouble, error) {
	m, err := c.content(ctx, rec, referrer, referrer.GetDigest())
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return &trouble{kindMissingReferrer, err.Error()}, nil
	}
	p, err := registry.ParseManifest(m)
	if err != nil || p.Subject == nil {
		return nil, nil // it refers to nothing: nobody lists it
	}
	subject := p.Subject.GetDigest()
	listed, known := c.listing[subject]
	if !known {
		all, err := c.a.registry.Referrers(ctx, c.repo, subject)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			return &trouble{kindMissingReferrer, err.Error()}, nil
		}
		listed = map[string]bool{}
		for _, d := range all {
			listed[d.GetDigest()] = true
		}
		c.listing[subject] = listed
	}
	if listed[referrer.GetDigest()] {
		return nil, nil
	}
	return &trouble{kindMissingReferrer, "the registry does not list it under " + subject}, nil
}
