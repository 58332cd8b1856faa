package agent

import (
	"context"
	"slices"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/tracing"
)

// contentTrace is the span to which content of a record is owed: that of the newest release of it, or of the publish of the base.
func contentTrace(raw *catalogv1.Record, digest string) string {
	for _, r := range slices.Backward(raw.GetReleases()) {
		if r.GetTarget().GetDigest() == digest {
			return r.GetTraceparent()
		}
	}
	return raw.GetTraceparent()
}

// tracePromotion ends the span of a promotion that was started.
func tracePromotion(span *tracing.Span, r *catalogv1.Rollout) {
	if !span.Recorded() {
		return
	}
	traceRollout(span, r)
	span.Text(tracing.Actor, r.GetActor())
	span.End()
}

func traceRollout(span *tracing.Span, r *catalogv1.Rollout) {
	span.Text(tracing.Rollout, r.GetId())
	var refs []string
	for _, it := range r.GetItems() {
		refs = append(refs, it.GetRepository()+":"+it.GetTag())
	}
	span.Texts(tracing.Refs, refs)
}

// rolloutSpans tells of waves and rollouts that end in one term of office. What ended while there was no root is not told of: a span that was told of twice would be worse.
type rolloutSpans struct {
	tracer *tracing.Tracer
	told   map[string]*rolloutTold // by rollout; nil: nothing was looked at yet
}

// rolloutTold is what of a rollout was told of, or ended before this term.
type rolloutTold struct {
	waves map[int]bool
	ended bool
}

// look tells of what ended since the last look; of the first look nothing is told.
func (s *rolloutSpans) look(list []*catalogv1.Rollout) {
	if s.tracer == nil {
		return
	}
	first := s.told == nil
	told := map[string]*rolloutTold{}
	for _, r := range list {
		t := s.told[r.GetId()]
		if t == nil {
			t = &rolloutTold{waves: map[int]bool{}}
		}
		told[r.GetId()] = t
		for i, w := range r.GetWaves() {
			if w.GetClosed() != nil && !t.waves[i] {
				t.waves[i] = true
				if !first && w.GetOpened() != nil {
					s.wave(r, i)
				}
			}
		}
		if catalog.Ended(r) && !t.ended {
			t.ended = true
			if !first {
				s.rollout(r)
			}
		}
	}
	s.told = told
}

func (s *rolloutSpans) start(r *catalogv1.Rollout, name string, from tracing.From) *tracing.Span {
	if !tracing.Valid(r.GetTraceparent()) {
		return nil // it was started where nobody listened
	}
	from.Parent = r.GetTraceparent()
	_, span := s.tracer.StartFrom(context.Background(), name, from)
	return span
}

func (s *rolloutSpans) wave(r *catalogv1.Rollout, i int) {
	w := r.GetWaves()[i]
	span := s.start(r, spanWave, tracing.From{At: w.GetOpened().AsTime()})
	span.Text(tracing.Rollout, r.GetId())
	span.Text(tracing.Wave, w.GetName())
	span.Texts(tracing.Groups, r.GetPlan().GetWaves()[i].GetGroups())
	outcome(span, w.GetPhase(), w.GetPhase() == catalog.WaveFailed)
	span.EndAt(w.GetClosed().AsTime())
}

func (s *rolloutSpans) rollout(r *catalogv1.Rollout) {
	span := s.start(r, spanRollout, tracing.From{At: r.GetStarted().AsTime()})
	traceRollout(span, r)
	outcome(span, r.GetPhase(), r.GetPhase() != catalog.RolloutSucceeded)
	span.EndAt(r.GetEnded().AsTime())
}

// outcome says a phase. Its reason is left to 'rollout show': it may repeat the address of a check, with what is secret in it.
func outcome(span *tracing.Span, phase string, failed bool) {
	span.Text(tracing.Outcome, phase)
	if failed {
		span.Fail(phase, "")
	}
}
