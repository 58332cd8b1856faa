package agent

import (
	"compress/gzip"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/config"
	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/tracing"
)

// tracedAgent is an agent that does no more than trace, and what came of it: spans are there when told was called.
func tracedAgent(t *testing.T) (a *Agent, told func() []*otlp.Span) {
	t.Helper()
	var mu sync.Mutex
	var spans []*otlp.Span
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body io.Reader = r.Body
		if r.Header.Get("Content-Encoding") == "gzip" {
			body, _ = gzip.NewReader(r.Body)
		}
		raw, _ := io.ReadAll(body)
		req := &collector.ExportTraceServiceRequest{}
		if err := proto.Unmarshal(raw, req); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		for _, rs := range req.GetResourceSpans() {
			for _, ss := range rs.GetScopeSpans() {
				spans = append(spans, ss.GetSpans()...)
			}
		}
	}))
	t.Cleanup(srv.Close)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", srv.URL)
	tracer, err := tracing.New(t.Context(), tracing.Config{Lookup: os.LookupEnv, Site: "gd-a"})
	if err != nil {
		t.Fatal(err)
	}
	return &Agent{cfg: &config.Config{Site: "gd-a", Group: "hq/gd"}, tracer: tracer, queue: newQueue()}, func() []*otlp.Span {
		tracer.Close()
		mu.Lock()
		defer mu.Unlock()
		return spans
	}
}

func attribute(s *otlp.Span, key tracing.Key) string {
	for _, kv := range s.GetAttributes() {
		if kv.GetKey() == string(key) {
			return kv.GetValue().GetStringValue()
		}
	}
	return ""
}

// TestTraceEnd: what failed ends with an error in the words that why has, what was overtaken or stopped ends without.
func TestTraceEnd(t *testing.T) {
	a, told := tracedAgent(t)
	ref := catalog.Ref{Repository: "app/web", Tag: "1"}
	stopped, stop := context.WithCancel(t.Context())
	stop()
	unkept, drop := context.WithCancelCause(t.Context())
	drop(errUnkept)
	denied := &registry.Error{Op: "putting", Status: http.StatusForbidden, Code: "DENIED", Message: "no right to push"}
	for _, c := range []struct {
		name string
		ctx  context.Context
		err  error
	}{
		{"done", t.Context(), nil}, {"overtaken", t.Context(), fmt.Errorf("%w: the tag moved", errChanged)}, {"unkept", unkept, context.Canceled},
		{"stopped", stopped, context.Canceled}, {"denied", t.Context(), denied},
	} {
		_, span := a.tracer.Start(c.ctx, c.name)
		a.traceEnd(c.ctx, span, ref, c.err)
	}
	want := map[string][3]string{ // outcome, kind of error, status
		"done": {}, "overtaken": {outcomeSuperseded}, "unkept": {outcomeSuperseded}, "stopped": {outcomeStopped},
		"denied": {"", a.troubleOf(ref, denied).GetCause(), "STATUS_CODE_ERROR"},
	}
	spans := told()
	if len(spans) != len(want) || want["denied"][1] == "" {
		t.Fatalf("%d spans, %q", len(spans), want["denied"])
	}
	for _, s := range spans {
		status := ""
		if s.GetStatus().GetCode() != otlp.Status_STATUS_CODE_UNSET {
			status = s.GetStatus().GetCode().String()
		}
		if got := [3]string{attribute(s, tracing.Outcome), attribute(s, tracing.ErrorType), status}; got != want[s.GetName()] {
			t.Errorf("%s: %q, want %q", s.GetName(), got, want[s.GetName()])
		}
	}
}

// TestRolloutSpans: each wave and each rollout that ends in a term of office is told of once, with its own times; what ended before is not.
func TestRolloutSpans(t *testing.T) {
	a, told := tracedAgent(t)
	_, promote := a.tracer.Start(t.Context(), spanPromote)
	const zero = 1_700_000_000
	at := func(s int64) *timestamppb.Timestamp { return timestamppb.New(time.Unix(zero+s, 0)) }
	parent, err := hex.DecodeString(strings.Split(promote.Traceparent(), "-")[2])
	if err != nil {
		t.Fatal(err)
	}
	r := &catalogv1.Rollout{
		Id: "r1", Phase: catalog.RolloutRunning, Started: at(0), Traceparent: promote.Traceparent(),
		Items: []*catalogv1.RolloutItem{{Repository: "app/web", Tag: "1"}},
		Plan:  &catalogv1.Plan{Waves: []*catalogv1.Wave{{Groups: []string{"hq/a"}}, {Groups: []string{"hq/b"}}, {}}},
		Waves: []*catalogv1.RolloutWave{
			{Name: "before", Phase: catalog.WaveSucceeded, Opened: at(1), Closed: at(2)}, {Name: "canary", Phase: catalog.WaveRunning, Opened: at(3)}, {Name: "rest", Phase: catalog.WavePending},
		},
	}
	untraced := proto.CloneOf(r)
	untraced.Id, untraced.Traceparent = "r0", ""
	list := []*catalogv1.Rollout{untraced, r}
	s := &rolloutSpans{tracer: a.tracer}
	s.look(list)
	s.look(list)
	for _, x := range list {
		x.Phase, x.Ended = catalog.RolloutFailed, at(9)
		x.Waves[1].Phase, x.Waves[1].Closed = catalog.WaveFailed, at(9)
		x.Waves[2].Phase, x.Waves[2].Closed = catalog.WaveSkipped, at(9) // it never opened
	}
	s.look(list)
	s.look(list)
	var got []string
	for _, x := range told() {
		if !slices.Equal(x.GetParentSpanId(), parent) {
			t.Errorf("%s is not below the promotion", x.GetName())
		}
		got = append(got, fmt.Sprintf("%s %s %s %d-%d", x.GetName(), attribute(x, tracing.Wave), attribute(x, tracing.Outcome), x.GetStartTimeUnixNano()/1e9-zero, x.GetEndTimeUnixNano()/1e9-zero))
	}
	slices.Sort(got)
	if want := []string{"rollout  failed 0-9", "wave canary failed 3-9"}; !slices.Equal(got, want) {
		t.Errorf("told of %q, want %q", got, want)
	}
}
