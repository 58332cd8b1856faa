package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/store"
)

// proposeTimeout bounds one proposal: while the group has no root, the work queue tries again.
const proposeTimeout = 15 * time.Second

// publish proposes what this registry showed under a ref when somebody looked. It is a compare-and-set on the record that was seen: where another member was first, errChanged asks for a new look.
func (a *Agent) publish(ctx context.Context, ref catalog.Ref, digest string, rec *catalogv1.Record, actor string, looked time.Time) (*catalogv1.Record, error) {
	var referrers []*catalogv1.Descriptor
	got, err := a.tracePublish(ctx, spanPublish, ref, "", actor, func(ctx context.Context) (*catalogv1.Record, error) {
		target, closure, err := a.readClosure(ctx, ref.Repository, digest)
		if err != nil {
			return nil, err
		}
		if referrers, _, err = a.findReferrers(ctx, ref.Repository, closure.Manifests); err != nil {
			return nil, err
		}
		pushed := a.pushes.of(ref.String(), digest)
		if pushed.IsZero() {
			pushed = time.Now()
		}
		return a.propose(ctx, ref, rec, target, referrers, a.cfg.Site, pushed, actor)
	})
	if err != nil {
		return nil, err
	}
	a.events.normal("Published", ref.String(), fmt.Sprintf("%s as revision %d", digest, got.GetRevision()))
	if got = a.shown(got); len(got.GetReferrers()) > len(referrers) {
		// Another member knows of referrers that this registry lacks: the delivery of the record brings them.
		a.queue.add(key{repository: ref.Repository, tag: ref.Tag})
		return got, nil
	}
	return got, a.delivered(ref, got, looked)
}

// propose hands a publish to the root and gives the record as it then stands. Origin is this site where its registry shows the target under the tag, else empty.
func (a *Agent) propose(ctx context.Context, ref catalog.Ref, rec *catalogv1.Record, target *catalogv1.Descriptor,
	referrers []*catalogv1.Descriptor, origin string, pushed time.Time, actor string,
) (*catalogv1.Record, error) {
	return a.proposePublish(ctx, &catalogv1.Publish{
		Expect: rec.GetRevision(), Repository: ref.Repository, Tag: ref.Tag, Target: target, Referrers: referrers,
		Origin: origin, PushedAt: timestamppb.New(pushed),
	}, actor)
}

// proposePublish proposes a publish below the span of ctx, which becomes the record's.
func (a *Agent) proposePublish(ctx context.Context, p *catalogv1.Publish, actor string) (*catalogv1.Record, error) {
	p.Traceparent = a.tracer.Traceparent(ctx)
	pctx, span := a.tracer.Start(ctx, spanPropose)
	pctx, cancel := context.WithTimeout(pctx, proposeTimeout)
	defer cancel()
	results, err := a.node.Propose(pctx, actor, &catalogv1.Change{Kind: &catalogv1.Change_Publish{Publish: p}})
	if err != nil {
		err = fmt.Errorf("publishing: %w", err)
		a.traceEnd(ctx, span, catalog.Ref{Repository: p.GetRepository(), Tag: p.GetTag()}, err)
		return nil, err
	}
	switch r := results[0]; {
	case errors.Is(r.Err, catalog.ErrConflict), errors.Is(r.Err, catalog.ErrStale):
		return nil, errChanged
	case errors.Is(r.Err, catalog.ErrUnchanged):
		return r.Record, nil
	case r.Err != nil:
		err := fmt.Errorf("publishing: %w", r.Err)
		a.traceEnd(ctx, span, catalog.Ref{Repository: p.GetRepository(), Tag: p.GetTag()}, err)
		return nil, err
	default:
		span.End()
		return r.Record, nil
	}
}

// unpublish proposes a tombstone for a ref, and gives the record as it then stands. Origin is this site where its registry no longer shows the tag and nobody asked for the deletion: then it may be
// refused as catalog.ErrHeld. Else it is empty.
func (a *Agent) unpublish(ctx context.Context, ref catalog.Ref, rec *catalogv1.Record, origin, actor string) (*catalogv1.Record, error) {
	return a.tracePublish(ctx, spanUnpublish, ref, rec.GetTraceparent(), actor, func(ctx context.Context) (*catalogv1.Record, error) {
		return a.proposeUnpublish(ctx, ref, &catalogv1.Unpublish{
			Expect: rec.GetRevision(), Repository: ref.Repository, Tag: ref.Tag, Origin: origin, Observed: origin != "", Traceparent: a.tracer.Traceparent(ctx),
		}, actor)
	})
}

func (a *Agent) proposeUnpublish(ctx context.Context, ref catalog.Ref, u *catalogv1.Unpublish, actor string) (*catalogv1.Record, error) {
	pctx, span := a.tracer.Start(ctx, spanPropose)
	pctx, cancel := context.WithTimeout(pctx, proposeTimeout)
	defer cancel()
	results, err := a.node.Propose(pctx, actor, &catalogv1.Change{Kind: &catalogv1.Change_Unpublish{Unpublish: u}})
	if err != nil {
		err = fmt.Errorf("unpublishing: %w", err)
		a.traceEnd(ctx, span, ref, err)
		return nil, err
	}
	switch r := results[0]; {
	case errors.Is(r.Err, catalog.ErrConflict), errors.Is(r.Err, catalog.ErrStale):
		return nil, errChanged
	case errors.Is(r.Err, catalog.ErrUnchanged):
		return r.Record, nil
	case r.Err != nil:
		return nil, fmt.Errorf("unpublishing: %w", r.Err)
	default:
		span.End()
		a.events.normal("Unpublished", ref.String(), fmt.Sprintf("revision %d, by %s", r.Record.GetRevision(), actor))
		return r.Record, nil
	}
}

// publishReferrers adds to a record the referrers of its target that this registry has and the record lacks. Else it gives those that the record has and the registry does not list.
// Where nothing is to be shown, there are none: the content may never have been here.
func (a *Agent) publishReferrers(ctx context.Context, ref catalog.Ref, rec *catalogv1.Record) (changed bool, unlisted []*catalogv1.Descriptor, err error) {
	if rec.GetDeleted() {
		return false, nil, nil
	}
	_, closure, err := a.readClosure(ctx, ref.Repository, rec.GetTarget().GetDigest())
	if err != nil {
		return false, nil, err
	}
	found, listed, err := a.findReferrers(ctx, ref.Repository, closure.Manifests)
	if err != nil {
		return false, nil, err
	}
	known := map[string]bool{}
	for _, d := range rec.GetReferrers() {
		known[d.GetDigest()] = true
		if !listed[d.GetDigest()] {
			unlisted = append(unlisted, d)
		}
	}
	fresh := slices.DeleteFunc(found, func(d *catalogv1.Descriptor) bool { return known[d.GetDigest()] })
	if len(fresh) == 0 {
		return false, unlisted, nil
	}
	actor := a.publisher(ref)
	got, err := a.tracePublish(ctx, spanReferrers, ref, rec.GetTraceparent(), actor, func(ctx context.Context) (*catalogv1.Record, error) {
		return a.propose(ctx, ref, rec, rec.GetTarget(), fresh, a.cfg.Site, rec.GetPushedAt().AsTime(), actor)
	})
	if err != nil {
		return false, nil, err
	}
	a.events.normal("ReferrersPublished", ref.String(), fmt.Sprintf("%s, revision %d", count(len(fresh), "new referrer"), got.GetRevision()))
	a.queue.add(key{repository: ref.Repository, tag: ref.Tag})
	return true, nil, nil
}

// enterAgainEvery bounds how often referrers are entered again, for a registry that takes them and lists them not.
const enterAgainEvery = 5 * time.Second

// settled looks after the referrers of a ref that shows its record. At headquarters those that were added here are published. Everywhere, those that the registry
// no longer lists are entered again: a client may have written the fallback tag over. Below headquarters that is drift, which may be reported or accepted instead.
func (a *Agent) settled(ctx context.Context, ref catalog.Ref, rec *catalogv1.Record) (changed bool, err error) {
	var unlisted []*catalogv1.Descriptor
	if a.cfg.Headquarters() {
		changed, unlisted, err = a.publishReferrers(ctx, ref, rec)
	} else if len(rec.GetReferrers()) > 0 {
		unlisted, err = a.unlistedReferrers(ctx, ref.Repository, rec)
	}
	if changed || err != nil || len(unlisted) == 0 {
		return changed, err
	}
	if err := a.turn(ctx, ref, rec); err != nil {
		return false, err
	}
	if wait := enterAgainEvery - time.Since(a.entered.get(ref.String())); wait > 0 {
		a.queue.later(key{repository: ref.Repository, tag: ref.Tag}, wait)
		return false, nil
	}
	a.entered.note(ref.String(), "", "", time.Now())
	lost, err := a.forgetLost(ctx, ref, unlisted)
	if err != nil || lost == 0 {
		return false, err
	}
	a.events.normal("ReferrersEntered", ref.String(), count(lost, "referrer")+" that the registry no longer listed")
	return true, a.deliver(ctx, ref, rec, rec.GetTarget().GetDigest())
}

// unlistedReferrers gives the referrers of a record that this registry does not list.
func (a *Agent) unlistedReferrers(ctx context.Context, repo string, rec *catalogv1.Record) ([]*catalogv1.Descriptor, error) {
	_, closure, err := a.readClosure(ctx, repo, rec.GetTarget().GetDigest())
	if err != nil {
		return nil, err
	}
	_, listed, err := a.findReferrers(ctx, repo, closure.Manifests)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(rec.GetReferrers()), func(d *catalogv1.Descriptor) bool { return listed[d.GetDigest()] }), nil
}

// forgetLost forgets that referrers were entered in this registry, so that a delivery enters them again, and counts them. One whose manifest was entered here and is gone was
// deleted, not written over: it is left so where the settings leave a deleted tag so.
func (a *Agent) forgetLost(ctx context.Context, ref catalog.Ref, unlisted []*catalogv1.Descriptor) (lost int, err error) {
	set := a.node.Catalog().Settings().GetDrift()
	changed, deleted := set.GetChanged(), set.GetDeleted()
	if a.cfg.Headquarters() {
		changed, deleted = "repair", "report"
	}
	entered := ref.Repository + "@referrers"
	for _, d := range unlisted {
		has, err := a.store.HasBlob(entered, d.GetDigest())
		if err != nil {
			return lost, err
		}
		how, what := changed, "is no longer listed in the registry"
		if has {
			_, err := a.registry.Manifest(ctx, ref.Repository, d.GetDigest())
			switch {
			case errors.Is(err, registry.ErrNotFound):
				how, what = deleted, "was deleted in the registry"
			case err != nil:
				return lost, err
			}
		}
		switch how {
		case "", "repair":
		case "report":
			a.events.warning("Drift", ref.String(), "referrer "+d.GetDigest()+" "+what)
			continue
		default:
			continue
		}
		lost++
		if err := errors.Join(a.store.RemoveBlob(entered, d.GetDigest()), a.store.RemoveBlob(ref.Repository, d.GetDigest())); err != nil {
			return lost, err
		}
	}
	return lost, nil
}

// readClosure reads what lies under a digest in the own registry, checks that it is whole, and remembers it.
func (a *Agent) readClosure(ctx context.Context, repo, digest string) (*catalogv1.Descriptor, registry.Closure, error) {
	get := func(ctx context.Context, digest string) (registry.Manifest, error) {
		if m, err := a.store.Manifest(digest); err == nil {
			if has, err := a.store.HasBlob(repo, digest); err == nil && has {
				return registry.Manifest(m), nil
			}
		}
		return a.registry.Manifest(ctx, repo, digest)
	}
	root, err := get(ctx, digest)
	if err != nil {
		return nil, registry.Closure{}, err
	}
	target := &catalogv1.Descriptor{MediaType: root.MediaType, Digest: root.Digest, Size: int64(len(root.Content))}
	closure, err := registry.Collect(ctx, get, target)
	if err != nil {
		return nil, closure, err
	}
	return target, closure, a.remember(ctx, repo, closure)
}

// remember checks that the registry has the blobs of a closure, and notes manifests and places.
func (a *Agent) remember(ctx context.Context, repo string, c registry.Closure) error {
	var places []string
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelSteps)
	for _, b := range c.Blobs {
		if has, err := a.store.HasBlob(repo, b.GetDigest()); err == nil && has {
			continue
		}
		places = append(places, b.GetDigest())
		g.Go(func() error {
			size, err := a.registry.StatBlob(gctx, repo, b.GetDigest())
			if err == nil && size != b.GetSize() {
				err = fmt.Errorf("blob %s in %s: the registry says %d bytes, the manifest %d", b.GetDigest(), repo, size, b.GetSize())
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	ms := make([]store.Manifest, 0, len(c.Manifests))
	for _, m := range c.Manifests {
		ms = append(ms, store.Manifest(m))
		places = append(places, m.Digest)
	}
	if err := a.store.PutManifests(ms...); err != nil {
		return err
	}
	return a.store.AddBlobs(repo, places...)
}

// findReferrers gives the referrers of manifests, and theirs: those that the own registry lists, and those that were noted.
func (a *Agent) findReferrers(ctx context.Context, repo string, manifests []registry.Manifest) (found []*catalogv1.Descriptor, listed map[string]bool, err error) {
	seen := map[string]bool{}
	listed = map[string]bool{}
	var todo []string
	for _, m := range manifests {
		todo = append(todo, m.Digest)
	}
	for len(todo) > 0 && len(found) < registry.MaxEntries {
		list, err := a.registry.Referrers(ctx, repo, todo[0])
		if err != nil {
			return nil, nil, err
		}
		for _, d := range list {
			listed[d.GetDigest()] = true
		}
		// One that was pushed may have been dropped from the fallback tag again: clients and this agent write it at the same time.
		list = append(list, a.noted.get(repo, todo[0])...)
		todo = todo[1:]
		for _, d := range list {
			if seen[d.GetDigest()] {
				continue
			}
			seen[d.GetDigest()] = true
			_, closure, err := a.readClosure(ctx, repo, d.GetDigest())
			if errors.Is(err, registry.ErrNotFound) {
				continue // listed, but gone: a fallback index is not kept by the registry
			}
			if err != nil {
				return nil, nil, err
			}
			found = append(found, d)
			for _, m := range closure.Manifests {
				todo = append(todo, m.Digest)
			}
		}
	}
	slices.SortFunc(found, func(x, y *catalogv1.Descriptor) int {
		if x.GetDigest() < y.GetDigest() {
			return -1
		}
		return 1
	})
	return found, listed, nil
}

// noteReferrer looks at a manifest that was pushed by digest: where it refers to something under a record, that record is looked at again.
func (a *Agent) noteReferrer(ctx context.Context, repo, digest string) error {
	m, err := a.registry.Manifest(ctx, repo, digest)
	if errors.Is(err, registry.ErrNotFound) || errors.Is(err, registry.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return err
	}
	p, err := registry.ParseManifest(m)
	if err != nil || p.Subject == nil {
		return nil // no manifest that refers to anything; not ours to judge
	}
	a.noted.add(repo, p.Subject.GetDigest(), &catalogv1.Descriptor{
		MediaType: m.MediaType, Digest: digest, Size: int64(len(m.Content)), ArtifactType: p.ArtifactType,
	})
	a.subjectChanged(ctx, repo, p.Subject.GetDigest())
	return nil
}

// noted remembers referrers that were pushed here, by subject.
type noted struct {
	mu    sync.Mutex
	by    map[string][]*catalogv1.Descriptor
	count int
}

// maxNoted bounds it; what is listed is found without it, so old ones may go.
const maxNoted = 10_000

func (n *noted) add(repo, subject string, d *catalogv1.Descriptor) {
	n.mu.Lock()
	defer n.mu.Unlock()
	k := repo + "@" + subject
	if slices.ContainsFunc(n.by[k], func(x *catalogv1.Descriptor) bool { return x.GetDigest() == d.GetDigest() }) {
		return
	}
	if n.by == nil || n.count >= maxNoted {
		n.by, n.count = map[string][]*catalogv1.Descriptor{}, 0
	}
	n.by[k] = append(n.by[k], d)
	n.count++
}

func (n *noted) get(repo, subject string) []*catalogv1.Descriptor {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.by[repo+"@"+subject])
}

// subjectChanged puts the refs whose records have a manifest under them into the queue.
func (a *Agent) subjectChanged(ctx context.Context, repo, subject string) {
	for rec := range a.node.Catalog().Repository(repo) {
		if !catalog.Tombstone(rec) && a.under(ctx, rec, subject) {
			a.queue.add(key{repository: repo, tag: rec.GetTag()})
		}
	}
}
