package tracing_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/goleak"

	"github.com/fanout-io/fanout/pkg/tracing"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// env is an environment of its own.
type env map[string]string

func (e env) lookup(key string) (string, bool) { v, ok := e[key]; return v, ok }

func TestWanted(t *testing.T) {
	const endpoint = "http://127.0.0.1:1"
	for _, c := range []struct {
		env  env
		want bool
	}{
		{nil, false},
		{env{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}, true},
		{env{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint}, true},
		{env{"OTEL_TRACES_EXPORTER": "otlp"}, true},
		{env{"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}, false},
		{env{"OTEL_SDK_DISABLED": "TRUE", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}, false},
		{env{"OTEL_SDK_DISABLED": "no", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}, true},
		{env{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": endpoint, "OTEL_SERVICE_NAME": "x"}, false},
		{env{"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, false},
	} {
		if got := tracing.Wanted(c.env.lookup); got != c.want {
			t.Errorf("%v: %v", c.env, got)
		}
	}
}

// delivery is about what one delivery of an image of ten blobs does.
func delivery(t *tracing.Tracer, parent string) {
	ctx, span := t.StartFrom(context.Background(), "deliver", tracing.From{Parent: parent})
	span.Text(tracing.Ref, "team/app:1")
	for range 10 {
		_, blob := t.Start(ctx, "put blob")
		blob.Text(tracing.Blob, "sha256:0123")
		blob.Number(tracing.Size, 1<<20)
		if blob.Recorded() {
			blob.Texts(tracing.Sources, []string{"hq-a"})
		}
		blob.End()
	}
	span.Fail("unreachable", "nobody answers")
	span.End()
}

const someParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// TestOff: where nobody asks for traces there is no tracer, and nothing is allocated.
func TestOff(t *testing.T) {
	off, err := tracing.New(t.Context(), tracing.Config{Lookup: env{}.lookup})
	if off != nil || err != nil {
		t.Fatalf("got %v, %v", off, err)
	}
	if n := testing.AllocsPerRun(100, func() { delivery(off, someParent) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	ctx, span := off.Start(t.Context(), "publish")
	if ctx != t.Context() || span.Traceparent() != "" || span.Recorded() {
		t.Errorf("a span of no tracer: %q", span.Traceparent())
	}
	if ended, sent := off.Counts(); ended+sent != 0 {
		t.Error(ended, sent)
	}
	if ctx := off.Join(t.Context(), someParent); ctx != t.Context() || off.Traceparent(ctx) != "" {
		t.Error("a trace that was joined is told on though nobody listens")
	}
	off.Close()
}

func BenchmarkDelivery(b *testing.B) {
	b.Run("off", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			delivery(nil, someParent)
		}
	})
	b.Run("on", func(b *testing.B) {
		on := tracing.NewWith(b.Context(), tracing.Config{Lookup: env{}.lookup}, tracetest.NewNoopExporter())
		defer on.Close()
		b.ReportAllocs()
		for b.Loop() {
			delivery(on, someParent)
		}
	})
}

// collect traces into memory; stop gives what ended.
func collect(t *testing.T) (tracer *tracing.Tracer, stop func() tracetest.SpanStubs) {
	t.Helper()
	kept := &keeper{}
	tracer = tracing.NewWith(t.Context(), tracing.Config{Lookup: os.LookupEnv, Site: "gd-a", Group: "hq/gd", Version: "1.2"}, kept)
	return tracer, func() tracetest.SpanStubs { tracer.Close(); return kept.spans }
}

// keeper keeps spans beyond its shutdown.
type keeper struct{ spans tracetest.SpanStubs }

func (k *keeper) ExportSpans(_ context.Context, spans []sdktrace.ReadOnlySpan) error {
	k.spans = append(k.spans, tracetest.SpanStubsFromReadOnlySpans(spans)...)
	return nil
}
func (k *keeper) Shutdown(context.Context) error { return nil }

func TestStart(t *testing.T) {
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=lab,fanout.group=other")
	t.Setenv("OTEL_SERVICE_NAME", "mine")
	tracer, stop := collect(t)

	ctx, publish := tracer.StartFrom(t.Context(), "publish", tracing.From{})
	if got := tracer.Traceparent(ctx); got != publish.Traceparent() || tracer.Traceparent(t.Context()) != "" {
		t.Errorf("the span of the context is %q", got)
	}
	if got := tracer.Traceparent(tracer.Join(tracer.Join(t.Context(), someParent), "00-nonsense")); got != someParent {
		t.Errorf("what is joined is %q", got)
	}
	if sibling := strings.Replace(someParent, "b7ad", "b7ae", 1); !tracing.Same(someParent, sibling) || tracing.Same(someParent, publish.Traceparent()) || tracing.Same("", "") {
		t.Error("traces are not told apart")
	}
	_, child := tracer.Start(ctx, "propose")
	child.End()
	_, far := tracer.StartFrom(t.Context(), "deliver", tracing.From{Parent: publish.Traceparent()})
	far.End()
	_, later := tracer.StartFrom(ctx, "repair", tracing.From{Anew: true, Link: publish.Traceparent()})
	later.End()
	_, bad := tracer.StartFrom(t.Context(), "odd", tracing.From{Parent: "00-nonsense", Link: "more"})
	bad.Fail("cause", "words")
	bad.End()
	publish.End()
	_, unsampled := tracer.StartFrom(t.Context(), "left out", tracing.From{Parent: strings.TrimSuffix(someParent, "01") + "00"})
	if !strings.HasSuffix(unsampled.Traceparent(), "-00") || unsampled.Recorded() {
		t.Errorf("a parent that is not in the sample: %q", unsampled.Traceparent())
	}
	unsampled.End()
	if !tracing.Valid(publish.Traceparent()) || tracing.Valid("") || tracing.Valid("00-nonsense") {
		t.Errorf("%q", publish.Traceparent())
	}

	by := map[string]tracetest.SpanStub{}
	for _, s := range stop() {
		by[s.Name] = s
	}
	if len(by) != 5 {
		t.Fatalf("%d spans", len(by))
	}
	root := by["publish"].SpanContext
	if by["publish"].Parent.IsValid() {
		t.Errorf("publish: %+v", by["publish"])
	}
	for _, name := range []string{"propose", "deliver"} {
		if s := by[name]; s.Parent.SpanID() != root.SpanID() || s.SpanContext.TraceID() != root.TraceID() || s.Parent.IsRemote() != (name == "deliver") {
			t.Errorf("%s is not below publish: %+v", name, s.Parent)
		}
	}
	if s := by["repair"]; s.SpanContext.TraceID() == root.TraceID() || len(s.Links) != 1 || s.Links[0].SpanContext.SpanID() != root.SpanID() {
		t.Errorf("repair: %+v", s)
	}
	if s := by["odd"]; s.Parent.IsValid() || len(s.Links) != 0 || s.Status.Description != "words" {
		t.Errorf("odd: %+v", s)
	}
	got := map[string]string{}
	for _, a := range by["odd"].Resource.Attributes() {
		got[string(a.Key)] = a.Value.String()
	}
	for key, want := range map[string]string{
		"service.name": "mine", "service.version": "1.2", "service.instance.id": "gd-a", "fanout.site": "gd-a", "fanout.group": "other", "deployment.environment.name": "lab",
	} {
		if got[key] != want {
			t.Errorf("%s is %q, want %q", key, got[key], want)
		}
	}
	if ended, sent := tracer.Counts(); ended != 5 || sent != 5 {
		t.Errorf("%d ended, %d sent", ended, sent)
	}
}

// lines is a log that can be looked into while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) { l.mu.Lock(); defer l.mu.Unlock(); return l.b.Write(p) }
func (l *lines) String() string              { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not in time: " + what)
		}
	}
}

// TestCollectorHangs: nobody waits for a collector that does not answer; that spans are lost is said once, and that they are taken again. The log says nothing of what opens the collector.
func TestCollectorHangs(t *testing.T) {
	var hangs atomic.Bool
	hangs.Store(true)
	var taken atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // a server notices that a client has gone only when it has read all
		if hangs.Load() {
			<-r.Context().Done()
			return
		}
		taken.Add(1)
	}))
	defer srv.Close()
	const header, password = "planted-header-value", "planted-password"
	for key, value := range map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": strings.Replace(srv.URL, "http://", "http://user:"+password+"@", 1), "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20" + header + ",bad header=" + header,
		"OTEL_EXPORTER_OTLP_TIMEOUT": "100", "OTEL_BSP_SCHEDULE_DELAY": "20", "OTEL_BSP_EXPORT_TIMEOUT": "200", "OTEL_BSP_MAX_QUEUE_SIZE": "16", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4",
	} {
		t.Setenv(key, value)
	}
	log := &lines{}
	logger := slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	tracing.LogTo(logger)
	tracer, err := tracing.New(t.Context(), tracing.Config{Lookup: os.LookupEnv, Site: "gd-a", Logger: logger})
	if err != nil || tracer == nil {
		t.Fatal(tracer, err)
	}
	began := time.Now()
	for range 200 {
		delivery(tracer, someParent)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("200 deliveries took %s", took)
	}
	await(t, "a word of what is lost", func() bool { return strings.Contains(log.String(), "spans are lost") })
	delivery(tracer, someParent)
	if ended, sent := tracer.Counts(); ended != 201*11 || sent != 0 {
		t.Errorf("%d ended, %d sent", ended, sent)
	}
	hangs.Store(false)
	await(t, "a span that is taken", func() bool { delivery(tracer, someParent); return taken.Load() > 0 })
	await(t, "a word of that", func() bool { return strings.Contains(log.String(), "takes spans again") })
	hangs.Store(true)
	delivery(tracer, someParent)
	began = time.Now()
	tracer.Close()
	if took := time.Since(began); took > tracing.FlushTime+2*time.Second {
		t.Errorf("closing took %s", took)
	}
	if _, sent := tracer.Counts(); sent == 0 {
		t.Error("nothing counts as sent")
	}
	before, _, _ := strings.Cut(log.String(), "takes spans again")
	if n := strings.Count(before, "spans are lost"); n != 1 {
		t.Errorf("said %d times:\n%s", n, before)
	}
	for _, secret := range []string{header, password} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("%s is in the log:\n%s", secret, log)
		}
	}
}

// TestSecretsHidden: a collector, or what stands before it, may repeat what it was asked with.
func TestSecretsHidden(t *testing.T) {
	secrets := []string{"planted-header-value", "planted-password", "planted-query"}
	e := env{
		"OTEL_EXPORTER_OTLP_ENDPOINT":       "http://user:planted-password@127.0.0.1:1/x?token=planted-query",
		"OTEL_EXPORTER_OTLP_TRACES_HEADERS": "a=b, authorization=Bearer%20planted-header-value",
	}
	log := &lines{}
	tracer := tracing.NewWith(t.Context(), tracing.Config{Lookup: e.lookup, Logger: slog.New(slog.NewTextHandler(log, nil))},
		failing{fmt.Errorf("401 to %s with %s", e["OTEL_EXPORTER_OTLP_ENDPOINT"], "Bearer planted-header-value")})
	delivery(tracer, "")
	tracer.Close()
	if !strings.Contains(log.String(), "401 to") {
		t.Errorf("the error is not said: %s", log)
	}
	for _, secret := range secrets {
		if strings.Contains(log.String(), secret) {
			t.Errorf("%s is in the log: %s", secret, log)
		}
	}
}

type failing struct{ err error }

func (f failing) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error { return f.err }
func (f failing) Shutdown(context.Context) error                             { return nil }

func TestNew_Refuses(t *testing.T) {
	t.Setenv("OTEL_TRACES_EXPORTER", "pigeon")
	if tracer, err := tracing.New(t.Context(), tracing.Config{Lookup: os.LookupEnv}); tracer != nil || err == nil {
		t.Errorf("got %v, %v", tracer, err)
	}
}

// TestResource_Malformed: attributes that can't be read are left out, and that is said.
func TestResource_Malformed(t *testing.T) {
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment")
	var log lines
	tr := tracing.NewWith(t.Context(), tracing.Config{Lookup: env{}.lookup, Site: "gd-a", Group: "hq/gd", Logger: slog.New(slog.NewJSONHandler(&log, nil))}, tracetest.NewInMemoryExporter())
	defer tr.Close()
	if !strings.Contains(log.String(), "OTEL_RESOURCE_ATTRIBUTES") {
		t.Errorf("the log: %q", log.String())
	}
}
