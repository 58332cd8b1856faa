package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/reconcile"
	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/store"
	"github.com/fanout-io/fanout/pkg/tracing"
	"github.com/fanout-io/fanout/pkg/transfer"
)

const (
	// manifestTimeout bounds one question for a manifest.
	manifestTimeout = 30 * time.Second
	// lookupsPerDelivery is how often a delivery looks again when the registry says that it lacks what it was thought to have.
	lookupsPerDelivery = 3
	// begunPlace, after a repository, is where the store remembers the targets of which a delivery was begun there.
	begunPlace = "@begun"
)

// delivery is one try to make this site's registry show a record.
type delivery struct {
	a    *Agent
	ref  catalog.Ref
	rec  *catalogv1.Record
	ours string // what the tag showed before
	hold bool   // the target is put under a hold, and the tag left as it is
	anew bool   // whether the hold is there is asked of the registry

	root      map[string]string // digest → root under which it was found
	manifests map[string]registry.Manifest
	parsed    map[string]reconcile.Manifest
	blobs     map[string]int64
	left      atomic.Int64
	did       atomic.Bool // something was put into the registry, or tried to be
	asked     bool        // other agents were asked for manifests
	present   int64       // bytes of blobs that the repository had when the first plan was made; -1: none was made yet
}

// deliver makes the registry show a record: all under it first, the tag last. It may be repeated after a break at any point.
func (a *Agent) deliver(ctx context.Context, ref catalog.Ref, rec *catalogv1.Record, ours string) error {
	ctx, done := a.keeping.delivering(ctx, ref)
	defer done()
	if !a.keeping.has(a.node.Catalog(), ref) {
		return errChanged
	}
	a.progress.update(ref, func(p *treev1.PendingRef) {
		p.Revision, p.State, p.Digest, p.NextAttempt = rec.GetRevision(), "delivering", ours, nil
	}, true)
	err := a.deliverAll(ctx, ref, rec, ours)
	if errors.Is(context.Cause(ctx), errUnkept) {
		return errChanged
	}
	return err
}

func (a *Agent) deliverAll(ctx context.Context, ref catalog.Ref, rec *catalogv1.Record, ours string) error {
	began := time.Now()
	if err := newDelivery(a, ref, rec, ours).carryOut(ctx); err != nil {
		return err
	}
	a.counts.delivered(began)
	a.events.normal("Delivered", ref.String(), fmt.Sprintf("%s, revision %d", rec.GetTarget().GetDigest(), rec.GetRevision()))
	return a.delivered(ref, rec, began)
}

func newDelivery(a *Agent, ref catalog.Ref, rec *catalogv1.Record, ours string) *delivery {
	return &delivery{
		a: a, ref: ref, rec: rec, ours: ours,
		root: map[string]string{}, manifests: map[string]registry.Manifest{}, parsed: map[string]reconcile.Manifest{}, blobs: map[string]int64{}, present: -1,
	}
}

// carryOut puts what the registry lacks, and the tag or the hold last.
func (d *delivery) carryOut(ctx context.Context) error {
	ctx, span := d.a.traceDelivery(ctx, d)
	err := d.tryOut(ctx)
	d.traced(ctx, span, err)
	return err
}

func (d *delivery) tryOut(ctx context.Context) (err error) {
	d.a.receipts.note(d.ref, d.rec.GetTarget().GetDigest(), nil)
	if err := d.gather(ctx); err != nil {
		return err
	}
	defer d.a.underway.add(d)()
	for range lookupsPerDelivery {
		err = d.run(ctx)
		if !d.forgetMissing(err) {
			break
		}
	}
	return err
}

// gather brings all manifests under the record together, from the cache, the registry or other agents.
func (d *delivery) gather(ctx context.Context) (err error) {
	ctx, span := d.a.tracer.Start(ctx, spanGather)
	defer func() {
		if err != nil || d.asked || !d.hold {
			d.a.traceEnd(ctx, span, d.ref, err)
		}
	}()
	for _, root := range roots(d.rec) {
		get := func(ctx context.Context, digest string) (registry.Manifest, error) {
			m, err := d.a.store.Manifest(digest)
			if errors.Is(err, store.ErrNotFound) {
				if has, herr := d.a.store.HasBlob(d.ref.Repository, digest); herr == nil && has {
					m, err = d.a.manifestAtHand(ctx, d.ref.Repository, digest)
				}
			}
			if err != nil {
				d.asked = true
				m, err = d.a.manifestFromPeers(ctx, d.purpose(root.GetDigest()), digest)
			}
			return registry.Manifest(m), err
		}
		err := registry.Walk(ctx, get, root, func(desc *registry.Descriptor, m registry.Manifest, p registry.Parsed) error {
			rm := reconcile.Manifest{Digest: m.Digest, Blobs: p.Blobs, Subject: p.Subject.GetDigest()}
			for _, c := range p.Children {
				rm.Children = append(rm.Children, c.GetDigest())
			}
			for _, b := range p.Blobs {
				d.blobs[b.GetDigest()] = b.GetSize()
				d.root[b.GetDigest()] = root.GetDigest()
			}
			d.manifests[m.Digest], d.parsed[m.Digest] = m, rm
			return nil
		})
		if err != nil {
			return fmt.Errorf("gathering manifests: %w", err)
		}
	}
	return nil
}

func (d *delivery) purpose(root string) *transferv1.Purpose {
	return &transferv1.Purpose{Repository: d.ref.Repository, Tag: d.ref.Tag, Revision: d.rec.GetRevision(), Root: root}
}

// lookUp asks the registry for blobs of which nothing is known, so that nothing crosses a link that is there already.
func (d *delivery) lookUp(ctx context.Context) error {
	var mu sync.Mutex
	var found []string
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelSteps)
	for digest := range d.blobs {
		if has, err := d.a.store.HasBlob(d.ref.Repository, digest); err != nil || has {
			if err != nil {
				return err
			}
			continue
		}
		g.Go(func() error {
			_, err := d.a.registry.StatBlob(gctx, d.ref.Repository, digest)
			switch {
			case errors.Is(err, registry.ErrNotFound), errors.Is(err, registry.ErrUnauthorized), errors.Is(err, registry.ErrDenied):
				return nil // not there, or no right to look: the put will tell
			case err != nil:
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			found = append(found, digest)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return d.a.store.AddBlobs(d.ref.Repository, found...)
}

func (d *delivery) run(ctx context.Context) error {
	repo := d.ref.Repository
	if err := d.a.registry.EnsureRepository(ctx, repo); err != nil {
		return err
	}
	if err := d.lookUp(ctx); err != nil {
		return err
	}
	has := func(digest string) bool {
		ok, err := d.a.store.HasBlob(repo, digest)
		return err == nil && ok
	}
	plan, err := reconcile.NewPlan(d.ref, d.rec, d.parsed, reconcile.Have{
		Manifest: has, Blob: has,
		Referrer: func(digest string) bool {
			ok, err := d.a.store.HasBlob(repo+"@referrers", digest)
			return err == nil && ok
		},
		BlobElsewhere: func(digest string) []string {
			repos, _ := d.a.store.BlobRepositories(digest)
			return repos
		},
	})
	if err != nil {
		return err
	}
	if d.present < 0 {
		d.present = d.presentIn(plan)
		if err := d.countPresent(); err != nil {
			return err
		}
	}
	d.setLeft(plan.BytesToFetch)
	for _, stage := range plan.Stages {
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(parallelSteps)
		for _, step := range stage {
			g.Go(func() error {
				err := d.step(gctx, step)
				if err == nil {
					d.accepted()
				}
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
	}
	return nil
}

// presentIn is how many bytes of blobs a plan leaves as they are.
func (d *delivery) presentIn(plan reconcile.Plan) (n int64) {
	for _, size := range d.blobs {
		n += size
	}
	for _, stage := range plan.Stages {
		for _, s := range stage {
			if s.Kind == reconcile.MountBlob || s.Kind == reconcile.FetchBlob {
				n -= d.blobs[s.Digest]
			}
		}
	}
	return n
}

// countPresent counts as saved what the repository has of content that comes there for the first time. That it was begun is remembered, also over a restart: what an attempt finds later, or another
// revision of the ref, was fetched for this very content.
func (d *delivery) countPresent() error {
	repo, digest := d.ref.Repository, d.rec.GetTarget().GetDigest()
	for _, place := range []string{repo, repo + begunPlace} {
		if has, err := d.a.store.HasBlob(place, digest); err != nil || has {
			return err
		}
	}
	if err := d.a.store.AddBlobs(repo+begunPlace, digest); err != nil {
		return err
	}
	d.a.counts.saved.WithLabelValues(savedPresent).Add(float64(d.present))
	return nil
}

func (d *delivery) setLeft(n int64) {
	d.left.Store(n)
	d.a.progress.update(d.ref, func(p *treev1.PendingRef) { p.BytesLeft = n }, false)
}

// accepted notes that the registry takes things again.
func (d *delivery) accepted() {
	if d.a.progress.get(d.ref).GetRefused() {
		d.a.progress.update(d.ref, func(p *treev1.PendingRef) { p.Refused = false }, false)
	}
}

func (d *delivery) step(ctx context.Context, s reconcile.Step) error {
	repo := d.ref.Repository
	if s.Kind != reconcile.PutTag {
		d.did.Store(true)
	}
	switch s.Kind {
	case reconcile.MountBlob, reconcile.FetchBlob:
		return d.traceBlob(ctx, s)
	case reconcile.PutManifest, reconcile.PutReferrer:
		if err := d.a.registry.PutManifest(ctx, repo, s.Digest, d.manifests[s.Digest]); err != nil {
			return err
		}
		if err := d.a.store.AddBlobs(repo, s.Digest); err != nil || s.Kind == reconcile.PutManifest {
			return err
		}
		return d.a.store.AddBlobs(repo+"@referrers", s.Digest)
	case reconcile.PutTag:
		if d.hold {
			return d.putHold(ctx)
		}
		ctx, span := d.a.tracer.Start(ctx, spanTag)
		err := d.putTag(ctx)
		d.a.traceEnd(ctx, span, d.ref, err)
		return err
	}
	return fmt.Errorf("plan has a step of kind %s, which is not known here", s.Kind)
}

// putTag moves the tag, unless it changed since it was looked at. The intent is written first, so that after a crash the own put is not taken for a push.
func (d *delivery) putTag(ctx context.Context) error {
	digest := d.rec.GetTarget().GetDigest()
	now, err := d.a.observe(ctx, d.ref)
	if err != nil {
		return err
	}
	if now != d.ours {
		return fmt.Errorf("%w: the tag now shows %q", errChanged, now)
	}
	if now == digest {
		return nil
	}
	st, known, err := d.a.store.RefState(d.ref.String())
	if err != nil {
		return err
	}
	if f, _ := d.a.frozen(d.rec); f != nil && !(known && st.Base == digest) {
		return fmt.Errorf("%w: a freeze began", errChanged)
	}
	snap := d.a.node.Catalog()
	st = counted(snap, st)
	st.Intent, st.IntentRevision, st.Epoch, st.At = digest, revisionIn(snap, d.rec), snap.Position().GetEpoch(), time.Now()
	if err := d.a.store.PutRefState(d.ref.String(), st); err != nil {
		return err
	}
	if err := d.a.registry.PutManifest(ctx, d.ref.Repository, d.ref.Tag, d.manifests[digest]); err != nil {
		return err
	}
	return d.a.store.AddBlobs(d.ref.Repository, digest)
}

// pushBlob puts a blob into the registry: mounted from another repository, or fetched, and put while it is still arriving.
func (d *delivery) pushBlob(ctx context.Context, s reconcile.Step, span *tracing.Span) error {
	src := &fetching{a: d.a, d: d, req: transfer.Request{
		Repository: d.ref.Repository, Tag: d.ref.Tag, Revision: d.rec.GetRevision(), Root: d.root[s.Digest], Digest: s.Digest, Size: d.blobs[s.Digest],
	}}
	defer src.close()
	mounted := false
	defer func() { src.trace(span, mounted) }()
	if len(s.From) == 0 {
		// Begin at once: bytes arrive while the upload is opened.
		if err := src.open(ctx); err != nil {
			return err
		}
	}
	var err error
	mounted, err = d.a.registry.PushBlob(ctx, d.ref.Repository, s.Digest, src, s.From...)
	if errors.Is(err, registry.ErrDigest) {
		// What the spool holds may have gone bad since it was verified: then it is dropped, and the next try fetches it anew.
		if verr := d.a.store.Spool().Verify(ctx, s.Digest); verr != nil {
			d.a.logger.Warn("content that the registry refused was looked at again", "digest", s.Digest, "error", verr)
		}
	}
	if err != nil {
		return err
	}
	if mounted {
		d.a.counts.saved.WithLabelValues(savedMounted).Add(float64(d.blobs[s.Digest]))
		d.a.logger.Debug("blob was mounted", "ref", d.ref.String(), "digest", s.Digest)
	}
	if err := d.a.store.AddBlobs(d.ref.Repository, s.Digest); err != nil {
		return err
	}
	if d.a.leaf() && src.whole(ctx) {
		src.close()
		d.a.store.Spool().Evict(s.Digest)
	}
	return nil
}

// leaf says that nobody takes content from this site: it need not be kept twice, in the registry and in the spool. Who asks all the same is served from the registry.
func (a *Agent) leaf() bool {
	for range a.node.Catalog().Groups() {
		return false
	}
	return len(a.node.Roster().Members) == 0
}

// forgetMissing corrects what is thought to be in the registry after it said otherwise; true when another try may go better.
func (d *delivery) forgetMissing(err error) bool {
	var re *registry.Error
	if !errors.Is(err, registry.ErrBlobUnknown) || !errors.As(err, &re) {
		return false
	}
	missing := re.Missing
	if len(missing) == 0 {
		for digest := range d.blobs {
			missing = append(missing, digest)
		}
		for digest := range d.manifests {
			missing = append(missing, digest)
		}
	}
	for _, digest := range missing {
		if err := d.a.store.RemoveBlob(d.ref.Repository, digest); err != nil {
			return false
		}
	}
	return true
}

// fetching is a blob for the registry that is fetched when its first byte is wanted.
type fetching struct {
	a   *Agent
	d   *delivery
	req transfer.Request

	mu     sync.Mutex
	flight *transfer.Flight
	reader *store.Reader
	told   int64 // bytes by which the delivery's rest was lowered
	closed bool
}

func (f *fetching) open(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.reader != nil {
		return nil
	}
	fl, err := f.a.fetcher.Fetch(ctx, f.req)
	if err != nil {
		return err
	}
	f.flight, f.reader = fl, fl.Reader()
	return nil
}

// whole waits until what was fetched is committed; false when nothing was fetched.
func (f *fetching) whole(ctx context.Context) bool {
	f.mu.Lock()
	fl := f.flight
	f.mu.Unlock()
	return fl != nil && fl.Wait(ctx) == nil
}

func (f *fetching) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.reader != nil {
		if !f.closed {
			f.a.receipts.note(f.d.ref, f.d.rec.GetTarget().GetDigest(), f.flight.Gave())
		}
		f.closed = true
		_ = f.reader.Close()
		f.flight.Release()
	}
}

// Size implements registry.BlobSource.
func (f *fetching) Size() int64 { return f.req.Size }

// Wait implements registry.BlobSource. It ends with the flight's error when that fails.
func (f *fetching) Wait(ctx context.Context, off int64) (int64, error) {
	if err := f.open(ctx); err != nil {
		return 0, err
	}
	wctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		if err := f.flight.Wait(wctx); err != nil {
			cancel(err)
		}
	}()
	n, err := f.reader.Wait(wctx, off)
	if cause := context.Cause(wctx); err != nil && cause != nil {
		err = cause
	}
	if err == nil {
		f.tell(off + n)
	}
	return n, err
}

// tell lowers the delivery's rest by what has arrived.
func (f *fetching) tell(have int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if have > f.told {
		f.d.setLeft(max(0, f.d.left.Load()-(have-f.told)))
		f.told = have
	}
}

// ReadAt implements registry.BlobSource.
func (f *fetching) ReadAt(p []byte, off int64) (int, error) { return f.reader.ReadAt(p, off) }
