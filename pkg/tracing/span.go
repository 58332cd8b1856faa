package tracing

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// Key of an attribute.
type Key string

// Keys of attributes. Those without "fanout." are of OpenTelemetry's conventions.
const (
	Digest    Key = "oci.manifest.digest"
	ErrorType Key = "error.type"
	Ref       Key = "fanout.ref"
	Blob      Key = "fanout.blob.digest"
	Revision  Key = "fanout.revision"
	Size      Key = "fanout.size"
	Present   Key = "fanout.present"
	How       Key = "fanout.how"
	Sources   Key = "fanout.sources"
	Attempt   Key = "fanout.attempt"
	Actor     Key = "fanout.actor"
	Outcome   Key = "fanout.outcome"
	Rollout   Key = "fanout.rollout"
	Refs      Key = "fanout.refs"
	Wave      Key = "fanout.wave"
	Groups    Key = "fanout.groups"
	Bytes     Key = "fanout.source.bytes"
)

// Span is something that is being done. nil: nobody listens.
type Span struct{ s trace.Span }

// Text sets an attribute.
func (s *Span) Text(k Key, v string) {
	if s != nil {
		s.s.SetAttributes(attribute.String(string(k), v))
	}
}

// Texts sets an attribute to a list.
func (s *Span) Texts(k Key, v []string) {
	if s != nil {
		s.s.SetAttributes(attribute.StringSlice(string(k), v))
	}
}

// Number sets an attribute.
func (s *Span) Number(k Key, v int64) {
	if s != nil {
		s.s.SetAttributes(attribute.Int64(string(k), v))
	}
}

// Numbers sets an attribute to a list.
func (s *Span) Numbers(k Key, v []int64) {
	if s != nil {
		s.s.SetAttributes(attribute.Int64Slice(string(k), v))
	}
}

// Recorded says whether what is set is kept: somebody listens, and the span is in the sample.
func (s *Span) Recorded() bool { return s != nil && s.s.IsRecording() }

// Fail marks the span as failed: kind is a word of a fixed list, words are for people and have no secret in them.
func (s *Span) Fail(kind, words string) {
	if s != nil {
		s.s.SetAttributes(attribute.String(string(ErrorType), kind))
		s.s.SetStatus(codes.Error, words)
	}
}

// End ends the span, and has it sent. A span that never ends is never sent, and costs nothing further: so what came to nothing is left out.
func (s *Span) End() {
	if s != nil {
		s.s.End()
	}
}

// EndAt is End for what ended then.
func (s *Span) EndAt(t time.Time) {
	if s != nil {
		s.s.End(trace.WithTimestamp(t))
	}
}

// Traceparent gives the span's context as W3C Trace Context writes it; empty: nobody listens. It says too whether the span is in the sample, so that all tiers judge alike.
func (s *Span) Traceparent() string {
	if s == nil {
		return ""
	}
	return write(s.s.SpanContext())
}

func write(sc trace.SpanContext) string {
	c := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(trace.ContextWithSpanContext(context.Background(), sc), c)
	return c["traceparent"]
}
