package agent

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"

	"google.golang.org/grpc/metadata"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/reconcile"
	"github.com/fanout-io/fanout/pkg/tracing"
)

// Names of spans. Each is explained in docs/tracing.md.
const (
	spanPublish   = "publish"
	spanReferrers = "publish referrers"
	spanUndo      = "undo"
	spanUnpublish = "unpublish"
	spanSettle    = "settle conflict"
	spanPropose   = "propose"
	spanDeliver   = "deliver"
	spanHold      = "hold"
	spanRepair    = "repair"
	spanGather    = "gather manifests"
	spanBlob      = "put blob"
	spanTag       = "put tag"
	spanRemove    = "remove tag"
	spanPromote   = "promote"
	spanWave      = "wave"
	spanRollout   = "rollout"
)

// Outcomes of what neither failed nor was done as it was to be.
const (
	outcomeSuperseded = "superseded" // something changed meanwhile; what is to be done then is another span
	outcomeStopped    = "stopped"    // the agent stops, or another part of it failed
	outcomeAlready    = "already"    // it was published before
)

// Ways in which a blob came into a repository.
const (
	howMounted = "mounted" // from another repository of the same registry
	howFetched = "fetched" // from other sites, or from the spool
	howPresent = "present" // the registry had it
)

// traceKey is where a caller says which span a call belongs to, as W3C Trace Context has it.
const traceKey = "traceparent"

// askedTrace is the span that a call belongs to, in the caller's words; empty: it does not say.
func askedTrace(ctx context.Context) string {
	if v := metadata.ValueFromIncomingContext(ctx, traceKey); len(v) == 1 && tracing.Valid(v[0]) {
		return v[0]
	}
	return ""
}

// traceAsked tells whoever asked for a publish in a trace of his own where to look, when what he asked for was published in another: the registry's word was faster.
func (a *Agent) traceAsked(ctx context.Context, ref catalog.Ref, rec *catalogv1.Record) {
	asked := a.tracer.Traceparent(ctx)
	if asked == "" || tracing.Same(asked, rec.GetTraceparent()) {
		return
	}
	_, span := a.tracer.StartFrom(ctx, spanPublish, tracing.From{Link: rec.GetTraceparent()})
	traceRecord(span, ref, rec)
	span.Text(tracing.Outcome, outcomeAlready)
	span.End()
}

func traceRecord(span *tracing.Span, ref catalog.Ref, rec *catalogv1.Record) {
	if !span.Recorded() {
		return
	}
	span.Text(tracing.Ref, ref.String())
	span.Text(tracing.Digest, rec.GetTarget().GetDigest())
	span.Number(tracing.Revision, int64(rec.GetRevision()))
}

// tracePublish has do propose a record below a span, which is the record's. Where no record comes of it, as another member was first, the span is left out.
func (a *Agent) tracePublish(ctx context.Context, name string, ref catalog.Ref, link, actor string, do func(context.Context) (*catalogv1.Record, error)) (*catalogv1.Record, error) {
	ctx, span := a.tracer.StartFrom(ctx, name, tracing.From{Link: link})
	rec, err := do(ctx)
	if span == nil {
		return rec, err
	}
	span.Text(tracing.Actor, actor)
	made := rec
	if err != nil {
		made, _ = a.node.Catalog().Get(ref) // it may be there, and only the answer was lost
	}
	switch {
	case span.Traceparent() == recordTrace(made):
		traceRecord(span, ref, made)
		a.traceEnd(ctx, span, ref, nil)
	case err != nil && !errors.Is(err, errChanged) && !errors.Is(err, catalog.ErrHeld): // what is held is asked for again
		span.Text(tracing.Ref, ref.String())
		a.traceEnd(ctx, span, ref, err)
	}
	return rec, err
}

// recordTrace is the span of the change that made a record what it is; of a tombstone that of its deletion.
func recordTrace(rec *catalogv1.Record) string {
	if catalog.Tombstone(rec) {
		return rec.GetRemovalTraceparent()
	}
	return rec.GetTraceparent()
}

// owedTo is the span to which it is owed that a tag moves on from what it showed: on the way back from a release that of the promotion, for whose sake all that moves is one trace; else that of the
// record, as this group is to show it.
func owedTo(raw, rec *catalogv1.Record, group, ours string) string {
	if rollout, back := moveOf(raw, group, ours); back {
		for _, r := range raw.GetReleases() {
			if r.GetRollout() == rollout {
				return r.GetTraceparent()
			}
		}
	}
	if catalog.Tombstone(raw) {
		return raw.GetRemovalTraceparent()
	}
	return rec.GetTraceparent()
}

// traceRemoval has do take a tag away, below a span.
func (a *Agent) traceRemoval(ctx context.Context, ref catalog.Ref, rec *catalogv1.Record, ours string, do func(context.Context) error) error {
	if a.tracer == nil {
		return do(ctx)
	}
	raw, _ := a.record(ref)
	ctx, span := a.tracer.StartFrom(ctx, spanRemove, tracing.From{Parent: owedTo(raw, rec, a.cfg.Group, ours)})
	traceRecord(span, ref, rec)
	span.Text(tracing.Digest, ours)
	err := do(ctx)
	a.traceEnd(ctx, span, ref, err)
	return err
}

// traceEnd ends a span as something that came out so.
func (a *Agent) traceEnd(ctx context.Context, span *tracing.Span, ref catalog.Ref, err error) {
	switch {
	case !span.Recorded(), err == nil:
	case errors.Is(err, errChanged), errors.Is(context.Cause(ctx), errUnkept):
		span.Text(tracing.Outcome, outcomeSuperseded)
	case ctx.Err() != nil:
		span.Text(tracing.Outcome, outcomeStopped)
	default:
		span.Fail(a.troubleOf(ref, err).GetCause(), plainWords(err))
	}
	span.End()
}

// traceDelivery begins the span of a delivery: below the publish that it is owed to, or, where the registry had it all and lost it, in a trace of its own that only points to the publish.
func (a *Agent) traceDelivery(ctx context.Context, d *delivery) (context.Context, *tracing.Span) {
	if a.tracer == nil {
		return ctx, nil
	}
	from, name := tracing.From{Parent: d.rec.GetTraceparent()}, spanDeliver
	if d.hold {
		name = spanHold
	} else {
		raw, _ := a.record(d.ref)
		from.Parent = owedTo(raw, d.rec, a.cfg.Group, d.ours)
	}
	if a.had(d) {
		from, name = tracing.From{Link: d.rec.GetTraceparent(), Anew: true}, spanRepair
	}
	ctx, span := a.tracer.StartFrom(ctx, name, from)
	traceRecord(span, d.ref, d.rec)
	span.Number(tracing.Attempt, int64(a.queue.failures(key{repository: d.ref.Repository, tag: d.ref.Tag}))+1)
	return ctx, span
}

// had says whether this registry showed, or held, what is delivered before.
func (a *Agent) had(d *delivery) bool {
	digest := d.rec.GetTarget().GetDigest()
	if d.hold {
		held, err := a.holds(d.ref.Repository, digest)
		return err == nil && held
	}
	st, known, err := a.store.RefState(d.ref.String())
	return err == nil && known && st.Base == digest && counted(a.node.Catalog(), st).BaseRevision == d.rec.GetRevision()
}

// traced ends the span of a delivery. Content that is held is looked at with each change of its record; where nothing was to be done there is nothing to tell.
func (d *delivery) traced(ctx context.Context, span *tracing.Span, err error) {
	if d.hold && err == nil && !d.asked && !d.did.Load() {
		return
	}
	span.Number(tracing.Present, max(0, d.present))
	d.a.traceEnd(ctx, span, d.ref, err)
}

// traceBlob is pushBlob below a span.
func (d *delivery) traceBlob(ctx context.Context, s reconcile.Step) error {
	ctx, span := d.a.tracer.Start(ctx, spanBlob)
	err := d.pushBlob(ctx, s, span)
	d.a.traceEnd(ctx, span, d.ref, err)
	return err
}

// trace says of a blob how it came, and what which site gave of it.
func (f *fetching) trace(span *tracing.Span, mounted bool) {
	if !span.Recorded() {
		return
	}
	span.Text(tracing.Blob, f.req.Digest)
	span.Number(tracing.Size, f.req.Size)
	f.mu.Lock()
	flight := f.flight
	f.mu.Unlock()
	switch {
	case mounted:
		span.Text(tracing.How, howMounted)
		return
	case flight == nil:
		span.Text(tracing.How, howPresent)
		return
	}
	span.Text(tracing.How, howFetched)
	gave := flight.Gave()
	sites := slices.SortedFunc(maps.Keys(gave), func(x, y string) int { return cmp.Or(cmp.Compare(gave[y], gave[x]), cmp.Compare(x, y)) })
	counts := make([]int64, len(sites))
	for i, s := range sites {
		counts[i] = gave[s]
	}
	span.Texts(tracing.Sources, sites)
	span.Numbers(tracing.Bytes, counts)
}
