package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/store"
)

// A record with releases says for each group what it is to show. What another group shows, or this one is to show later or again, is brought here ahead: all content, put by digest and kept
// under holds, so that a tag moves by the put of one manifest. Whatever judges, delivers or tells works with the record as the group in question is to show it.

// shown is a record as this site's group is to show it.
func (a *Agent) shown(rec *catalogv1.Record) *catalogv1.Record {
	return catalog.Project(rec, a.cfg.Group)
}

// record finds a ref in the catalog, as it is there and as this site's group is to show it; nil: it is not there.
func (a *Agent) record(ref catalog.Ref) (raw, rec *catalogv1.Record) {
	raw, ok := a.node.Catalog().Get(ref)
	if !ok {
		return nil, nil
	}
	return raw, a.shown(raw)
}

// showsDigest is what a tag shows that shows a record; empty: nothing.
func showsDigest(rec *catalogv1.Record) string {
	if rec.GetDeleted() {
		return ""
	}
	return rec.GetTarget().GetDigest()
}

// releaseFor is the release of a record that counts for a group; nil: none does.
func releaseFor(raw *catalogv1.Record, group string) *catalogv1.Release {
	for _, r := range slices.Backward(raw.GetReleases()) {
		if slices.Contains(r.GetGroups(), group) {
			return r
		}
	}
	return nil
}

// ahead remembers up to which revision of a record with releases all content is here. Bounded by the refs that have releases; after a start each is looked at once. Safe for concurrent use.
type ahead struct {
	mu   sync.Mutex
	refs map[catalog.Ref]uint64
}

func (h *ahead) note(ref catalog.Ref, revision uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refs == nil {
		h.refs = map[catalog.Ref]uint64{}
	}
	h.refs[ref] = revision
}

func (h *ahead) forget(ref catalog.Ref) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.refs, ref)
}

// forgetAll: the registry may have lost anything.
func (h *ahead) forgetAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.refs)
}

// has says whether all content of a record is here; of one without releases that is the delivery's to know.
func (h *ahead) has(raw *catalogv1.Record) bool {
	if len(raw.GetReleases()) == 0 {
		return true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	at, ok := h.refs[catalog.RefOf(raw)]
	return ok && at == raw.GetRevision()
}

// bringAhead has this registry hold all content of a record with releases. What is there already costs no more than a look into the store.
func (a *Agent) bringAhead(ctx context.Context, ref catalog.Ref) error {
	raw, _ := a.record(ref)
	if len(raw.GetReleases()) == 0 {
		a.ahead.forget(ref)
		return nil
	}
	if !a.keeping.has(a.node.Catalog(), ref) || a.ahead.has(raw) && a.amends.get(ref.String()) == 0 {
		return nil
	}
	for _, t := range catalog.Content(raw) {
		if err := a.bring(ctx, ref, raw, t); err != nil {
			return err
		}
	}
	a.ahead.note(ref, raw.GetRevision())
	a.events.normal("Held", ref.String(), fmt.Sprintf("all content of revision %d is here", raw.GetRevision()))
	a.queue.add(key{repository: ref.Repository, tag: ref.Tag}) // judged once more, it is settled
	for _, r := range raw.GetReleases() {
		for _, back := range []bool{false, true} {
			for _, m := range a.movesWith(raw, r.GetRollout(), back) {
				a.queue.add(key{repository: m.GetRepository(), tag: m.GetTag()}) // it may have waited for this content
			}
		}
	}
	return nil
}

// aheadOfTag begins the reason of a ref whose content comes while its tag stays as it is.
const aheadOfTag = "content, ahead of its tag"

// aheadReason says what the tag waits for.
func (a *Agent) aheadReason(raw *catalogv1.Record) string {
	if f, until := a.frozen(raw); f != nil {
		return aheadOfTag + ", which is " + frozenWords(f, until)
	}
	if n := len(raw.GetReleases()); n > 0 && raw.GetReleases()[n-1].GetTarget().GetDigest() != showsDigest(a.shown(raw)) {
		if id := raw.GetReleases()[n-1].GetRollout(); id != "" {
			return aheadOfTag + ", which waits for its wave of rollout " + id
		}
		return aheadOfTag + ", which waits for a promotion"
	}
	return aheadOfTag
}

// bring has this registry hold one target, whatever the tag shows.
func (a *Agent) bring(ctx context.Context, ref catalog.Ref, raw *catalogv1.Record, t catalog.Target) error {
	rec := &catalogv1.Record{Repository: ref.Repository, Tag: ref.Tag, Target: t.Descriptor, Referrers: t.Referrers, Revision: raw.GetRevision(), Traceparent: contentTrace(raw, t.Descriptor.GetDigest())}
	if err := a.turnToHold(ctx, ref, rec); err != nil {
		return err
	}
	ctx, done := a.keeping.delivering(ctx, ref)
	defer done()
	if !a.keeping.has(a.node.Catalog(), ref) {
		return errChanged
	}
	shows, err := a.observe(ctx, ref)
	if err != nil {
		return err
	}
	a.progress.update(ref, func(p *treev1.PendingRef) {
		p.Revision, p.State, p.Reason, p.Trouble, p.NextAttempt, p.Digest = raw.GetRevision(), "delivering", a.aheadReason(raw), nil, nil, shows
	}, true)
	d := newDelivery(a, ref, rec, "")
	d.hold = true
	err = d.carryOut(ctx)
	if errors.Is(context.Cause(ctx), errUnkept) {
		return errChanged
	}
	return err
}

// turnToHold lets one member of a shared storage bring content ahead. The others find it there.
func (a *Agent) turnToHold(ctx context.Context, ref catalog.Ref, rec *catalogv1.Record) error {
	if a.cfg.Registry.Shared == "" {
		return nil
	}
	if _, _, err := a.readClosure(ctx, ref.Repository, rec.GetTarget().GetDigest()); err == nil {
		return nil
	}
	return a.turn(ctx, ref, rec)
}

// putHold keeps what was brought ahead from the registry's garbage collection.
func (d *delivery) putHold(ctx context.Context) error {
	repo, digest := d.ref.Repository, d.rec.GetTarget().GetDigest()
	has, err := d.a.store.HasBlob(repo, digest)
	if err != nil {
		return err
	}
	if d.anew {
		// Asked first: a rule that makes tags immutable refuses even what the tag shows.
		now, err := d.a.observe(ctx, catalog.Ref{Repository: repo, Tag: holdTag(digest)})
		if err != nil || now == digest {
			return err
		}
	} else if held, err := d.a.holds(repo, digest); err != nil || held && has {
		return err
	}
	d.did.Store(true)
	if err := d.a.putHold(ctx, repo, digest, d.manifests[digest]); err != nil {
		return err
	}
	return d.a.store.AddBlobs(repo, digest)
}

// holds says whether this site remembers a hold.
func (a *Agent) holds(repo, digest string) (bool, error) {
	_, err := a.store.Value(holdKeys + repo + "@" + digest)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// lostHold forgets what this site thinks to hold of a record when the registry's list of tags lacks the hold, and says whether it does.
func (a *Agent) lostHold(raw *catalogv1.Record, tags map[string]bool) (bool, error) {
	if len(raw.GetReleases()) == 0 || tags == nil {
		return false, nil
	}
	lost := false
	for _, t := range catalog.Content(raw) {
		digest := t.Descriptor.GetDigest()
		held, err := a.holds(raw.GetRepository(), digest)
		if err != nil {
			return false, err
		}
		if !held || tags[holdTag(digest)] {
			continue
		}
		lost = true
		if err := a.store.PutValue(holdKeys+raw.GetRepository()+"@"+digest, nil); err != nil {
			return false, err
		}
	}
	if lost {
		a.ahead.forget(catalog.RefOf(raw))
	}
	return lost, nil
}

// settle notes that this site has done what a record asks of it now. Where the newest release goes by its group, the ref is held; while content is still to come, it is not settled.
func (a *Agent) settle(ref catalog.Ref, revision uint64) {
	raw, rec := a.record(ref)
	kept := len(raw.GetReleases()) > 0 && a.keeping.has(a.node.Catalog(), ref)
	switch {
	case kept && !a.ahead.has(raw):
	case kept && raw.GetRevision() == revision && passedBy(raw, rec) != "":
		a.differs(ref, raw, showsDigest(rec), "held", passedBy(raw, rec), heldBy(raw))
	default:
		a.progress.settle(ref, revision)
	}
}

// passedBy says in words why a group shows something else than the newest release of a record; empty: it does not.
func passedBy(raw, rec *catalogv1.Record) string {
	if len(raw.GetReleases()) == 0 {
		return ""
	}
	switch newest := raw.GetReleases()[len(raw.GetReleases())-1]; {
	case newest.GetTarget().GetDigest() == showsDigest(rec):
		return ""
	case newest.GetRollout() == "":
		return "waits for a promotion; its content is here"
	default:
		return "waits for a wave of rollout " + newest.GetRollout() + "; its content is here"
	}
}

// refusals are refs that were pushed, or deleted, here while a rollout moves them: they are looked at again when it has ended. Safe for concurrent use.
type refusals struct {
	mu   sync.Mutex
	refs map[catalog.Ref]bool
}

func (r *refusals) note(ref catalog.Ref) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refs == nil {
		r.refs = map[catalog.Ref]bool{}
	}
	r.refs[ref] = true
}

// over gives those of which no rollout is under way any more, each once.
func (r *refusals) over(snap *catalog.Snapshot) (out []catalog.Ref) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for ref := range r.refs {
		if snap.ActiveRollout(ref) == nil {
			out = append(out, ref)
			delete(r.refs, ref)
		}
	}
	return out
}

// refused leaves a registry of headquarters as somebody changed it while a rollout moves the ref: the change is neither turned back nor taken over before the rollout has ended.
func (a *Agent) refused(ref catalog.Ref, rec *catalogv1.Record, ours string, err error) error {
	if !errors.Is(err, catalog.ErrUnderRollout) {
		return err
	}
	what := "pushed here"
	if ours == "" {
		what = "deleted here"
	}
	why := fmt.Sprintf("%s, and not published before the rollout has ended: %v", what, err)
	a.differs(ref, rec, ours, "held", why, underRollout(what))
	a.progress.update(ref, func(p *treev1.PendingRef) { p.Pushed = true }, false)
	a.events.warning("UnderRollout", ref.String(), why)
	a.refusals.note(ref)
	if a.node.Catalog().ActiveRollout(ref) == nil { // it ended meanwhile, or is not known here yet
		a.queue.later(key{repository: ref.Repository, tag: ref.Tag}, time.Second)
	}
	return nil
}
