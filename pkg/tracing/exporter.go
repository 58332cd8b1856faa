package tracing

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"strings"
	"sync"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// counter counts spans that end and are to be sent, those too for which the queue has no room.
type counter struct{ *counts }

func (c counter) OnStart(context.Context, sdktrace.ReadWriteSpan) {}
func (c counter) OnEnd(s sdktrace.ReadOnlySpan) {
	if s.SpanContext().IsSampled() {
		c.ended.Add(1)
	}
}
func (c counter) Shutdown(context.Context) error   { return nil }
func (c counter) ForceFlush(context.Context) error { return nil }

// exporter says once that spans are lost, and once that they are taken again.
type exporter struct {
	sdktrace.SpanExporter
	counts  *counts
	logger  *slog.Logger
	secrets []string

	mu   sync.Mutex
	lost int
}

// ExportSpans implements sdktrace.SpanExporter. It gives no error: it was said.
func (e *exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil {
		if e.lost == 0 {
			e.logger.Warn("spans are lost: the collector does not take them", "error", hide(plain(err), e.secrets))
		}
		e.lost += len(spans)
		return nil
	}
	if e.lost > 0 {
		e.logger.Info("the collector takes spans again", "count", e.lost)
	}
	e.lost = 0
	e.counts.sent.Add(uint64(len(spans)))
	return nil
}

// plain is an error without the address that was asked, which may have a secret in it.
func plain(err error) string {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Op + ": " + ue.Err.Error()
	}
	return err.Error()
}

// secrets are what must not be repeated of the variables that say how a collector is asked: values of headers, and in an address the user, the password and the query.
func secrets(lookup func(string) (string, bool)) []string {
	var out []string
	add := func(s string) {
		if s = strings.TrimSpace(s); len(s) >= 4 { // less would hide parts of words
			out = append(out, s)
		}
	}
	for _, key := range []string{"OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"} {
		all, _ := lookup(key)
		for header := range strings.SplitSeq(all, ",") {
			_, v, _ := strings.Cut(header, "=")
			add(v)
			if decoded, err := url.PathUnescape(v); err == nil {
				add(decoded)
				_, token, _ := strings.Cut(strings.TrimSpace(decoded), " ") // Bearer TOKEN
				add(token)
			}
		}
	}
	for _, key := range []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"} {
		text, _ := lookup(key)
		_, query, _ := strings.Cut(text, "?")
		add(query)
		if u, err := url.Parse(text); err == nil {
			password, _ := u.User.Password()
			add(password)
			add(u.User.String())
		}
	}
	return out
}

func hide(text string, secrets []string) string {
	for _, s := range secrets {
		text = strings.ReplaceAll(text, s, "…")
	}
	return text
}

// LogTo has what OpenTelemetry's library itself has to say go to a logger. It counts for the whole process, and is to be called before New.
func LogTo(logger *slog.Logger) {
	otel.SetLogger(logr.New(sink{logger}))
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { sink{logger}.Error(err, "tracing") }))
}

// sink passes lines of the library on. Their values are left out: among them are headers.
type sink struct{ logger *slog.Logger }

func (s sink) Init(logr.RuntimeInfo) {}
func (s sink) Enabled(int) bool      { return true }
func (s sink) Info(_ int, text string, _ ...any) {
	s.logger.Debug("otel", "part", "otel", "text", text)
}
func (s sink) Error(err error, text string, _ ...any) {
	s.logger.Warn("otel", "part", "otel", "text", text, "error", plain(err))
}
func (s sink) WithValues(...any) logr.LogSink { return s }
func (s sink) WithName(string) logr.LogSink   { return s }
