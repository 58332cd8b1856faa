package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/reconcile"
	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/store"
)

// errChanged says that what was looked at changed meanwhile: look again, at once.
var errChanged = errors.New("changed meanwhile")

// errPast says that this member still learns what was decided before it came, and does not know what it showed itself: what its catalog says may have been replaced since.
var errPast = errors.New("the group's past is still being read")

// pastAgain is the longest wait after errPast.
const pastAgain = time.Second

// errNoCatalog says that this member of headquarters has not read its catalog yet, as after a start: what may be published is not known.
var errNoCatalog = errors.New("the catalog was not read yet")

// catalogRead is false at headquarters before the catalog was read.
func (a *Agent) catalogRead() bool {
	return !a.cfg.Headquarters() || a.node.Catalog().Settings() != nil
}

// waitForCatalog waits until it was read; false when ctx ended first.
func (a *Agent) waitForCatalog(ctx context.Context) bool {
	changed, stop := a.node.Watch()
	defer stop()
	for !a.catalogRead() {
		select {
		case <-ctx.Done():
			return false
		case <-changed:
		}
	}
	return true
}

// pushes remembers when refs were last said to be pushed. A push that is known to have come after the agent is not one that "was there before".
type pushes struct {
	mu sync.Mutex
	at map[string]pushed
}

// pushed is the last push of a ref that was told of.
type pushed struct {
	at     time.Time
	digest string // empty: not told
	actor  string // who pushed it, in the registry's words; empty: not told
}

// maxPushes bounds it; it only sharpens judgement, so old ones may go.
const maxPushes = 10_000

func (p *pushes) note(ref, digest, actor string, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at == nil || len(p.at) >= maxPushes {
		p.at = map[string]pushed{}
	}
	if at.After(p.at[ref].at) {
		p.at[ref] = pushed{at, digest, actor}
	}
}

// get says when a ref was last said to be pushed; zero: never.
func (p *pushes) get(ref string) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at[ref].at
}

// hookPatience is how long a notification of what a registry shows already may be on its way.
const hookPatience = 2 * time.Second

// since notes that a ref shows a digest, and says since when that is known.
func (p *pushes) since(ref, digest string) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if last, ok := p.at[ref]; ok && last.digest == digest {
		return last.at
	}
	if p.at == nil || len(p.at) >= maxPushes {
		p.at = map[string]pushed{}
	}
	now := time.Now()
	p.at[ref] = pushed{at: now, digest: digest}
	return now
}

// of is get for what the registry shows now: zero when the last push that was told of was of something else. Then there was a later one, of which nothing was told, and the
// time of the earlier must not be taken for its.
func (p *pushes) of(ref, digest string) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := p.at[ref]
	if last.digest != "" && digest != "" && last.digest != digest {
		return time.Time{}
	}
	return last.at
}

// by says who pushed what a ref shows, in the registry's words; empty: it did not say.
func (p *pushes) by(ref, digest string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if last := p.at[ref]; digest != "" && last.digest == digest {
		return last.actor
	}
	return ""
}

// work takes keys from the queue until ctx ends.
func (a *Agent) work(ctx context.Context) {
	for {
		k, ok := a.queue.next(ctx)
		if !ok {
			return
		}
		err := a.handle(ctx, k)
		if ctx.Err() != nil {
			a.queue.done(k, 0)
			return
		}
		var wait time.Duration
		switch {
		case errors.Is(err, errChanged):
			wait = time.Millisecond
		case errors.As(err, new(standbyError)):
			a.logger.Debug("another works on a ref", "ref", k.repository+":"+k.tag, "reason", err)
			wait = delay(a.queue.failures(k), standbyPoll, 0)
		case errors.Is(err, errNoCatalog), errors.Is(err, errPast):
			a.logger.Debug("ref cannot be judged yet", "ref", k.repository+":"+k.tag, "error", err)
			wait = delay(a.queue.failures(k), fetchBackoffMax, 0)
			if errors.Is(err, errPast) {
				wait = min(wait, pastAgain) // nothing outside is asked
			}
		case err != nil:
			failures := a.queue.failures(k)
			asked := registry.RetryAfter(err)
			wait = delay(failures, longest(err), asked)
			a.noteFailure(k, err, failures+1, wait)
			if asked > 0 {
				a.queue.postpone(k, wait)
				continue
			}
		}
		a.queue.done(k, wait)
	}
}

// longest is the bound of the wait after an error.
func longest(err error) time.Duration {
	var re *registry.Error
	if errors.As(err, &re) {
		return backoffMax
	}
	return fetchBackoffMax
}

func (a *Agent) noteFailure(k key, err error, failures int, wait time.Duration) {
	ref := catalog.Ref{Repository: k.repository, Tag: k.tag}
	err = a.withRoom(err)
	trouble := a.troubleOf(ref, err)
	a.logger.Warn("work on a ref failed", "ref", ref.String(), "digest", k.digest, "error", err, "cause", trouble.GetCause(), "attempts", failures, "retry_in", wait)
	a.counts.failed(trouble.GetCause())
	a.events.warning("Failed", ref.String(), plainWords(err))
	if errors.Is(err, registry.ErrUnavailable) {
		a.doubt.set()
	}
	a.progress.update(ref, func(p *treev1.PendingRef) {
		p.State, p.Reason, p.Attempts, p.Trouble, p.Refused = "failed", plainWords(err), uint32(failures), trouble, errors.As(err, new(*registry.Error))
		p.NextAttempt = timestamppb.New(time.Now().Add(wait))
	}, false)
}

// withRoom tells a full disk of the embedded registry from its other troubles, by the room that is left: of a full disk it says no more than 500.
func (a *Agent) withRoom(err error) error {
	var re *registry.Error
	if a.embedded == nil || !errors.As(err, &re) || re.Status < 500 {
		return err
	}
	left, ok := room(a.cfg.Registry.Data)
	if !ok {
		return err
	}
	if left >= leastRoom {
		return fmt.Errorf("%w; the disk of the embedded registry has %s left", err, inBytes(left))
	}
	return &roomError{err, left}
}

func (a *Agent) handle(ctx context.Context, k key) error {
	if !a.catalogRead() {
		return errNoCatalog // else a push would be taken for one that is none of ours, until the next sweep
	}
	if k.digest != "" {
		return a.noteReferrer(ctx, k.repository, k.digest)
	}
	ref := catalog.Ref{Repository: k.repository, Tag: k.tag}
	note, why := a.amends.get(ref.String()), a.queue.cause(k)
	if note > 0 {
		why = prompted // else the note would be taken for seen to
	}
	if err := a.reconcileRef(ctx, ref, why); err != nil {
		return err
	}
	if note > 0 {
		if err := a.mendHolds(ctx, ref); err != nil {
			return err
		}
		if raw, _ := a.record(ref); catalog.Tombstone(raw) {
			a.settle(ref, raw.GetRevision()) // an earlier try may have failed
		}
	}
	return a.amendDone(ref, note)
}

// reconcileRef works off what is to be done about one ref: its tag, and the content that is to be here ahead of tags.
func (a *Agent) reconcileRef(ctx context.Context, ref catalog.Ref, why cause) error {
	err := a.reconcileTag(ctx, ref, why)
	if err != nil && !errors.As(err, new(*registry.Error)) {
		return err
	}
	raw, _ := a.record(ref)
	if why != prompted && !a.ahead.has(raw) && a.keeping.has(a.node.Catalog(), ref) {
		a.queue.add(key{repository: ref.Repository, tag: ref.Tag})
		return err
	}
	return cmp.Or(err, a.bringAhead(ctx, ref)) // what keeps the tag from being put must not keep content away
}

// reconcileTag compares one ref in the catalog, in the registry and in this site's memory, and works off the difference. For a sweep it only looks whether there is one: work is not the
// sweep's to do, whose share of the workers is small.
func (a *Agent) reconcileTag(ctx context.Context, ref catalog.Ref, why cause) error {
	raw, rec := a.record(ref)
	looked := time.Now()
	st, known, err := a.store.RefState(ref.String())
	if err != nil {
		return err
	}
	if !known && !a.node.CaughtUp() {
		return errPast
	}
	ours, err := a.observe(ctx, ref)
	if err != nil {
		return err
	}
	if ours != "" && a.node.Catalog().Deletion(ref, a.cfg.Site) != nil {
		if err := a.deletionOver(ctx, ref); err != nil {
			return err
		}
	}
	if done, err := a.overwritten(ctx, ref, rec, st, ours); done || err != nil {
		return err
	}
	in := a.mergeInput(ref, rec, st, ours)
	in.Distrusted = a.distrusted(ref, st, known)
	in.Unkept = rec != nil && !rec.GetDeleted() && !a.keeping.has(a.node.Catalog(), ref)
	v := reconcile.Merge(in)
	if why != prompted {
		switch v.Action {
		case reconcile.None, reconcile.Report, reconcile.Accept, reconcile.Foreign:
		default:
			a.queue.add(key{repository: ref.Repository, tag: ref.Tag})
			return nil
		}
	}
	if v, err = a.amended(ctx, ref, in, v); err != nil {
		return err
	}
	if v.Action == reconcile.Unpublish || v.Action == reconcile.Publish && (rec != nil || in.PushedAt.IsZero()) {
		// What looks like a deletion or an older push may be a registry that was wiped or restored a moment ago.
		// Somebody else may have noticed that since the judgement, and is not told again.
		if lost, err := a.checkMarker(ctx); err != nil {
			return err
		} else if lost || a.distrusted(ref, st, known) != in.Distrusted {
			return errChanged
		}
	}
	if v.Action != reconcile.None {
		a.logger.Debug("ref was judged", "ref", ref.String(), "revision", rec.GetRevision(), "action", v.Action.String(), "reason", v.Reason)
	}
	if v.Action == reconcile.Conflict && in.PushedAt.IsZero() {
		// When it was pushed may be about to be told, and then decides.
		if wait := hookPatience - time.Since(a.disputed.since(ref.String(), ours)); wait > 0 {
			a.queue.later(key{repository: ref.Repository, tag: ref.Tag}, wait)
			return nil
		}
	}
	if changesTag(v, in) {
		if f, until := a.frozen(raw); f != nil {
			return a.keepFrozen(ctx, ref, raw, rec, ours, f, until)
		}
	}
	if v, err = a.together(ctx, ref, rec, st, ours, v); err != nil {
		return err
	}
	switch v.Action {
	case reconcile.Publish:
		if _, err = a.publish(ctx, ref, ours, rec, a.pusher(ref, ours), looked); err != nil {
			return a.refused(ref, rec, ours, err)
		}
		return nil
	case reconcile.Deliver, reconcile.Conflict:
		if v.Action == reconcile.Conflict {
			if err := a.noteConflict(ctx, ref, rec, ours, v.Reason); err != nil {
				return err
			}
		}
		rollout, back := moveOf(raw, a.cfg.Group, ours)
		if with := a.movesWith(raw, rollout, back); len(with) > 0 && ours != showsDigest(rec) && changesTag(v, in) {
			if err := a.moveTogether(ctx, ref, raw, ours, rollout, with); err != nil {
				return err
			}
		} else if err := a.deliver(ctx, ref, rec, ours); err != nil {
			return err
		}
		if a.cfg.Headquarters() {
			// A referrer that was pushed here meanwhile was not known to be under this record then: look once more.
			a.queue.add(key{repository: ref.Repository, tag: ref.Tag})
		}
		return nil
	case reconcile.Adopt:
		if a.cfg.Headquarters() {
			// Somebody may have signed here what is shown everywhere already.
			changed, unlisted, err := a.publishReferrers(ctx, ref, rec)
			if changed || err != nil {
				return err
			}
			// What a client wrote over meanwhile must be entered again: its notification may be the one that led here.
			if _, err := a.forgetLost(ctx, ref, unlisted); err != nil {
				return err
			}
			if v.Referrers {
				a.queue.add(key{repository: ref.Repository, tag: ref.Tag})
			}
		}
		if v.Referrers {
			return a.deliver(ctx, ref, rec, ours)
		}
		return a.delivered(ref, rec, looked)
	case reconcile.Remove:
		if rollout, back := moveOf(raw, a.cfg.Group, ours); rollout != "" {
			if with := a.movesWith(raw, rollout, back); len(with) > 0 {
				return a.moveTogether(ctx, ref, raw, ours, rollout, with)
			}
		}
		if err := a.removeTag(ctx, ref, rec, ours); err != nil {
			return err
		}
		a.events.normal("Removed", ref.String(), "as headquarters said")
		return a.delivered(ref, rec, looked)
	case reconcile.Trim:
		return a.trim(ctx, ref, rec)
	case reconcile.Unpublish:
		if err := a.deletedHere(ctx, ref, rec, looked); err != nil {
			return a.refused(ref, rec, ours, err)
		}
		return nil
	case reconcile.Report:
		if ours == "" && a.node.Catalog().Deletion(ref, a.cfg.Site) != nil {
			return a.deletionKept(ctx, ref, rec)
		}
		a.events.warning("Drift", ref.String(), v.Reason)
		a.differs(ref, rec, ours, "drifted", v.Reason, a.drifted(ref, ours))
		return nil
	case reconcile.Accept:
		a.differs(ref, rec, ours, "accepted", v.Reason, acceptedTrouble())
		return nil
	case reconcile.Foreign:
		// Not ours, but what lies under it need not be sent again.
		if has, err := a.store.HasBlob(ref.Repository, ours); err != nil {
			return err
		} else if !has {
			a.index(ctx, ref)
		}
		if rec.GetDeleted() && ours != "" {
			// It stays, and so the deletion is not all that there is to say of this site.
			a.differs(ref, rec, ours, "accepted", "pushed here, and never at headquarters: the deletion leaves it as it is",
				waitsBecause(causeAccepted, "it was pushed there, and never at headquarters; the deletion leaves it as it is", "delete the tag in the site's registry, if it is not wanted there"))
			return nil
		}
	case reconcile.None:
		if in.Unkept {
			return a.trimmed(ref, rec, known && ours == "")
		}
		if in.Distrusted && known && rec.GetRevision() == st.BaseRevision {
			// Seen as it should be since the registry was lost: what changes here from now on is somebody's word again.
			st.At = looked
			if err := a.store.PutRefState(ref.String(), st); err != nil {
				return err
			}
		}
		if why != swept && rec != nil && !rec.GetDeleted() && ours == rec.GetTarget().GetDigest() {
			if changed, err := a.settled(ctx, ref, rec); changed || err != nil {
				return err
			}
		}
	}
	if rec != nil {
		a.settle(ref, rec.GetRevision())
	}
	return nil
}

// removeTag takes a tag away, unless it changed since it was looked at.
func (a *Agent) removeTag(ctx context.Context, ref catalog.Ref, rec *catalogv1.Record, ours string) error {
	return a.traceRemoval(ctx, ref, rec, ours, func(ctx context.Context) error { return a.takeAway(ctx, ref, rec, ours) })
}

func (a *Agent) takeAway(ctx context.Context, ref catalog.Ref, rec *catalogv1.Record, ours string) error {
	// What may be undone must not be collected: the hold comes before the tag goes.
	if time.Now().Before(undoUntil(rec)) {
		if err := a.hold(ctx, ref.Repository, ours); err != nil {
			return err
		}
	}
	switch now, err := a.observe(ctx, ref); {
	case err != nil:
		return err
	case now != ours:
		return fmt.Errorf("%w: the tag now shows %q", errChanged, now)
	}
	if err := a.registry.DeleteTag(ctx, ref.Repository, ref.Tag); err != nil && !errors.Is(err, registry.ErrNotFound) {
		return err
	}
	return nil
}

// differs notes that a ref is left as it is though the catalog says otherwise.
func (a *Agent) differs(ref catalog.Ref, rec *catalogv1.Record, ours, state, reason string, why *treev1.Trouble) {
	a.progress.update(ref, func(p *treev1.PendingRef) {
		p.Revision, p.State, p.Digest, p.Reason, p.Trouble = rec.GetRevision(), state, ours, reason, why
		p.BytesLeft, p.Attempts, p.NextAttempt, p.Refused = 0, 0, nil, false
	}, true)
}

// observe asks the registry what a ref shows; empty: nothing.
func (a *Agent) observe(ctx context.Context, ref catalog.Ref) (string, error) {
	d, err := a.registry.Resolve(ctx, ref.Repository, ref.Tag)
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return "", nil
	case err != nil:
		return "", err
	}
	return d.GetDigest(), nil
}

func (a *Agent) mergeInput(ref catalog.Ref, rec *catalogv1.Record, st store.RefState, ours string) reconcile.Input {
	snap := a.node.Catalog()
	set := snap.Settings()
	pushed := a.pushes.of(ref.String(), ours)
	now := unpruned(snap, rec, counted(snap, st))
	in := reconcile.Input{
		Place: reconcile.Below, Ours: reconcile.Side{Known: true, Digest: ours},
		Base: reconcile.Side{Known: st.Base != "" || st.BaseRevision > 0, Digest: st.Base}, BaseRevision: now.BaseRevision,
		Intent: st.Intent, IntentRevision: now.IntentRevision, Theirs: rec,
		Drift:    reconcile.Drift{Changed: set.GetDrift().GetChanged(), Deleted: set.GetDrift().GetDeleted()},
		PushedAt: pushed, TheirsSeen: a.learned.at(ref, rec), ClockBound: clockBound, Own: rec.GetOrigin() == a.cfg.Site || a.sharesWith(rec.GetOrigin()),
	}
	if a.cfg.Headquarters() {
		in.Place = reconcile.Headquarters
		in.PublishMatch = publishable(set.GetPublish(), ref)
		in.Deletes = set.GetPublish().GetDeletes()
		// Found by the first sweep, and not moved since.
		in.Existing = st.BaseRevision == 0 && st.Base == ours && ours != "" && a.pushes.get(ref.String()).IsZero()
	}
	return in
}

// publishable says whether a ref may be published unasked.
func publishable(p *catalogv1.PublishSettings, ref catalog.Ref) bool {
	if registry.IsHoldTag(ref.Tag) || ownRepository(ref.Repository) {
		return false
	}
	if _, fallback := registry.IsFallbackTag(ref.Tag); fallback {
		return false
	}
	return catalog.MatchPatterns(p.GetRepositories(), p.GetExclude(), ref.Repository)
}

// delivered notes that the registry shows a record, as it was when somebody looked. A registry that was found wiped or restored since then is not taken for one that shows it.
func (a *Agent) delivered(ref catalog.Ref, rec *catalogv1.Record, looked time.Time) error {
	snap := a.node.Catalog()
	st := store.RefState{BaseRevision: revisionIn(snap, rec), Epoch: snap.Position().GetEpoch(), At: looked}
	if !rec.GetDeleted() {
		st.Base = rec.GetTarget().GetDigest()
		old, _, err := a.store.RefState(ref.String())
		if err != nil {
			return err
		}
		st.Receipt = laterReceipt(old.Receipt, a.receipts.take(ref, st.Base), st.Base)
	}
	if err := a.store.PutRefState(ref.String(), st); err != nil {
		return err
	}
	a.marker.moved.set()
	a.standby.forget(ref)
	a.settle(ref, rec.GetRevision())
	return nil
}

func (a *Agent) publisher(ref catalog.Ref) string {
	if a.pushes.get(ref.String()).IsZero() {
		return "sweep"
	}
	return byWebhook
}

// byWebhook is who publishes what a registry told of.
const byWebhook = "webhook"

// pusher is publisher for a push of a digest, with the name of who pushed it where the registry told that.
func (a *Agent) pusher(ref catalog.Ref, digest string) string {
	if by := a.pushes.by(ref.String(), digest); by != "" {
		return byWebhook + " (" + by + ")"
	}
	return a.publisher(ref)
}

// pushedBy gives the name that pusher put into a record; empty: none.
func pushedBy(publisher string) string {
	if by, ok := strings.CutPrefix(publisher, byWebhook+" ("); ok && strings.HasSuffix(by, ")") {
		return strings.TrimSuffix(by, ")")
	}
	return ""
}
