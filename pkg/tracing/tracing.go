package tracing

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// FlushTime bounds how long Close waits for a collector.
const FlushTime = 5 * time.Second

// scope names what makes the spans.
const scope = "github.com/fanout-io/fanout"

// Config says who traces.
type Config struct {
	// Lookup reads an environment variable. The exporter reads those that concern it from the process's environment by itself.
	Lookup func(string) (string, bool)
	// Site and Group of the agent.
	Site, Group string
	// Version of the software.
	Version string
	// Logger is told when a collector stops taking spans and when it takes them again; nil discards.
	Logger *slog.Logger
}

// Tracer starts spans. nil: nobody listens.
type Tracer struct {
	tracer   trace.Tracer
	provider *sdktrace.TracerProvider
	logger   *slog.Logger
	counts
}

// counts of spans, since the start.
type counts struct{ ended, sent atomic.Uint64 }

// Wanted says whether the environment asks for traces: it names a collector's address or an exporter other than "none", and does not disable OpenTelemetry.
func Wanted(lookup func(string) (string, bool)) bool {
	get := func(key string) string {
		v, _ := lookup(key)
		return strings.TrimSpace(v)
	}
	if strings.EqualFold(get("OTEL_SDK_DISABLED"), "true") {
		return false
	}
	switch exporter := get("OTEL_TRACES_EXPORTER"); exporter {
	case "none":
		return false
	case "":
		return get("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != ""
	}
	return true
}

// New makes a tracer, or nil where the environment does not ask for traces. It speaks with no collector yet; that it is not there is no error. An error says what of the environment can't be
// used. Close must follow.
func New(ctx context.Context, cfg Config) (*Tracer, error) {
	if !Wanted(cfg.Lookup) {
		return nil, nil
	}
	to, err := autoexport.NewSpanExporter(ctx)
	if err != nil {
		return nil, fmt.Errorf("setting up traces: %w", err)
	}
	return newTracer(ctx, cfg, to), nil
}

func newTracer(ctx context.Context, cfg Config, to sdktrace.SpanExporter) *Tracer {
	t := &Tracer{logger: cfg.Logger}
	if t.logger == nil {
		t.logger = slog.New(slog.DiscardHandler)
	}
	e := &exporter{SpanExporter: to, counts: &t.counts, logger: t.logger, secrets: secrets(cfg.Lookup)}
	t.provider = sdktrace.NewTracerProvider(
		sdktrace.WithResource(describe(ctx, cfg, t.logger)),
		sdktrace.WithSpanProcessor(counter{&t.counts}),
		sdktrace.WithSpanProcessor(sdktrace.NewBatchSpanProcessor(e)),
	)
	t.tracer = t.provider.Tracer(scope, trace.WithInstrumentationVersion(cfg.Version))
	return t
}

// describe is what all spans of an agent have in common. What OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say counts more.
func describe(ctx context.Context, cfg Config, logger *slog.Logger) *resource.Resource {
	own := resource.NewSchemaless(
		attribute.String("service.name", "fanoutd"),
		attribute.String("service.version", cfg.Version),
		attribute.String("service.instance.id", cfg.Site),
		attribute.String("fanout.site", cfg.Site),
		attribute.String("fanout.group", cfg.Group),
	)
	env, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err == nil {
		if env, err = resource.Merge(own, env); err == nil {
			return env
		}
	}
	// The spans are worth more than what all of them have in common.
	logger.Warn("spans go without the attributes that OTEL_RESOURCE_ATTRIBUTES names", "error", err)
	return own
}

// Close hands over what ended, for FlushTime at most, and ends the tracer. Spans that end later are lost.
func (t *Tracer) Close() {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), FlushTime)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		t.logger.Debug("the last spans were not handed over", "error", plain(err))
	}
}

// Counts gives how many spans ended that are to be sent, and how many a collector has taken. What is not sent is under way for some seconds, or lost.
func (t *Tracer) Counts() (ended, sent uint64) {
	if t == nil {
		return 0, 0
	}
	return t.ended.Load(), t.sent.Load()
}

// From says where a span begins.
type From struct {
	// Parent is the traceparent of the span that it belongs to. Empty or malformed: the context's, and without that a new trace.
	Parent string
	// Link is the traceparent of a span that it has to do with; empty or malformed: none.
	Link string
	// At is when it began; zero: now.
	At time.Time
	// Anew begins a trace, whatever the context says.
	Anew bool
}

// Start begins a span below that of ctx.
func (t *Tracer) Start(ctx context.Context, name string) (context.Context, *Span) {
	if t == nil {
		return ctx, nil
	}
	ctx, s := t.tracer.Start(ctx, name)
	return ctx, &Span{s}
}

// StartFrom begins a span where from says.
func (t *Tracer) StartFrom(ctx context.Context, name string, from From) (context.Context, *Span) {
	if t == nil {
		return ctx, nil
	}
	var opts []trace.SpanStartOption
	if link := parse(from.Link); link.IsValid() {
		opts = append(opts, trace.WithLinks(trace.Link{SpanContext: link}))
	}
	if !from.At.IsZero() {
		opts = append(opts, trace.WithTimestamp(from.At))
	}
	if parent := parse(from.Parent); parent.IsValid() {
		ctx = trace.ContextWithRemoteSpanContext(ctx, parent)
	} else if from.Anew {
		opts = append(opts, trace.WithNewRoot())
	}
	ctx, s := t.tracer.Start(ctx, name, opts...)
	return ctx, &Span{s}
}

// Join has spans that are started from the context it gives belong to the span of a traceparent that came from elsewhere. One that is malformed changes nothing.
func (t *Tracer) Join(ctx context.Context, traceparent string) context.Context {
	if t == nil {
		return ctx
	}
	if sc := parse(traceparent); sc.IsValid() {
		return trace.ContextWithRemoteSpanContext(ctx, sc)
	}
	return ctx
}

// Traceparent gives the span to which what is started from ctx belongs; empty: none, or nobody listens.
func (t *Tracer) Traceparent(ctx context.Context) string {
	if t == nil {
		return ""
	}
	return write(trace.SpanContextFromContext(ctx))
}

// Same says whether two traceparents are of one trace.
func Same(x, y string) bool {
	sx, sy := parse(x), parse(y)
	return sx.IsValid() && sx.TraceID() == sy.TraceID()
}

// Valid says whether a traceparent is one by W3C Trace Context.
func Valid(traceparent string) bool { return parse(traceparent).IsValid() }

func parse(traceparent string) trace.SpanContext {
	if traceparent == "" {
		return trace.SpanContext{}
	}
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": traceparent})
	return trace.SpanContextFromContext(ctx)
}
