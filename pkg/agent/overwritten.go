package agent

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/store"
)

// learned remembers when this site learned of records. Bounded: it only sharpens judgement. Safe for concurrent use.
type learned struct {
	mu sync.Mutex
	of map[catalog.Ref]learnedAt
}

type learnedAt struct {
	revision uint64
	time     time.Time
}

func (l *learned) note(rec *catalogv1.Record) {
	ref := catalog.RefOf(rec)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of == nil || len(l.of) >= maxPushes {
		l.of = map[catalog.Ref]learnedAt{}
	}
	if l.of[ref].revision < rec.GetRevision() {
		l.of[ref] = learnedAt{rec.GetRevision(), time.Now()}
	}
}

// at says since when a record is known here; zero where that is not remembered.
func (l *learned) at(ref catalog.Ref, rec *catalogv1.Record) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if last := l.of[ref]; rec != nil && last.revision == rec.GetRevision() {
		return last.time
	}
	return time.Time{}
}

// last gives the newest push of a ref that was told of.
func (p *pushes) last(ref string) pushed {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at[ref]
}

// overwritten publishes a push at headquarters that this site put its own tag over, or took the tag away from under. A registry has no compare-and-set: a client's push that comes between
// the look and the put is gone, though the client was told that it is there. Its notification tells of it. Invariant: every push at headquarters that was acknowledged and told of is in
// the catalog's history, or superseded by a later push at the same registry, or listed as a conflict.
//
// It was such a push when it came after the look that led to the put, and what is shown is what this site put for another's sake. So it came after this site had learned of the record,
// and is the later of the two.
func (a *Agent) overwritten(ctx context.Context, ref catalog.Ref, rec *catalogv1.Record, st store.RefState, ours string) (done bool, err error) {
	p := a.pushes.last(ref.String())
	switch {
	case !a.cfg.Headquarters(), rec == nil, p.digest == "", p.digest == ours, ours != showsDigest(rec), st.Base != ours, st.BaseRevision == 0,
		!p.at.After(st.At), rec.GetOrigin() == a.cfg.Site, a.sharesWith(rec.GetOrigin()), slices.Contains(rec.GetHistory(), p.digest),
		p.digest == rec.GetTarget().GetDigest(), !publishable(a.node.Catalog().Settings().GetPublish(), ref):
		return false, nil
	}
	target, closure, err := a.readClosure(ctx, ref.Repository, p.digest)
	if errors.Is(err, registry.ErrNotFound) {
		a.events.warning("PushOverwritten", ref.String(), p.digest+" was pushed here while another was delivered, and is gone; push it again")
		a.pushes.forget(ref.String(), p.digest)
		return false, nil
	}
	if err != nil {
		return false, err
	}
	referrers, _, err := a.findReferrers(ctx, ref.Repository, closure.Manifests)
	if err != nil {
		return false, err
	}
	// No origin: the registry does not show it any more, and is put right like the others.
	actor := a.pusher(ref, p.digest)
	got, err := a.tracePublish(ctx, spanPublish, ref, "", actor, func(ctx context.Context) (*catalogv1.Record, error) {
		return a.propose(ctx, ref, rec, target, referrers, "", p.at, actor)
	})
	if err != nil {
		return false, a.refused(ref, rec, ours, err)
	}
	a.logger.Info("a push that came while another was delivered is published", "ref", ref.String(), "digest", p.digest, "revision", got.GetRevision())
	a.events.normal("Published", ref.String(), p.digest+", pushed here while another was delivered")
	a.queue.add(key{repository: ref.Repository, tag: ref.Tag})
	return true, nil
}

// forget drops what was told of a push.
func (p *pushes) forget(ref, digest string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at[ref].digest == digest {
		delete(p.at, ref)
	}
}
