package integration

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/view"
)

// traced is one that a collector was told of.
type traced struct {
	*otlp.Span
	trace, site string
	attrs       map[string]string
}

// spans is a collector of traces.
type spans struct {
	collector.UnimplementedTraceServiceServer
	addr string

	mu  sync.Mutex
	all []traced
	raw bytes.Buffer // all that came
}

// spanCollector listens for spans until the test ends.
func spanCollector(t *testing.T) *spans {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &spans{addr: l.Addr().String()}
	srv := grpc.NewServer(grpc.Creds(insecure.NewCredentials()))
	collector.RegisterTraceServiceServer(srv, c)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	return c
}

// otelEnv has an agent tell a collector at an address of its spans, at once.
func otelEnv(addr string) []string {
	return []string{
		"OTEL_EXPORTER_OTLP_ENDPOINT=http://" + addr, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc", "OTEL_BSP_SCHEDULE_DELAY=100",
		"OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20planted-header",
	}
}

// Export implements collector.TraceServiceServer.
func (c *spans) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	raw, err := proto.Marshal(req)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raw.Write(raw)
	for _, rs := range req.GetResourceSpans() {
		site := attributes(rs.GetResource().GetAttributes())["fanout.site"]
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				c.all = append(c.all, traced{s, hex.EncodeToString(s.GetTraceId()), site, attributes(s.GetAttributes())})
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func attributes(list []*common.KeyValue) map[string]string {
	out := map[string]string{}
	for _, kv := range list {
		switch v := kv.GetValue().GetValue().(type) {
		case *common.AnyValue_StringValue:
			out[kv.GetKey()] = v.StringValue
		case *common.AnyValue_IntValue:
			out[kv.GetKey()] = fmt.Sprint(v.IntValue)
		case *common.AnyValue_ArrayValue:
			var words []string
			for _, e := range v.ArrayValue.GetValues() {
				words = append(words, e.GetStringValue()+strings.TrimPrefix(fmt.Sprint(e.GetIntValue()), "0"))
			}
			out[kv.GetKey()] = strings.Join(words, ",")
		}
	}
	return out
}

// of gives the spans that concern a ref, and those below them.
func (c *spans) of(ref string) []traced {
	c.mu.Lock()
	defer c.mu.Unlock()
	traces := map[string]bool{}
	for _, s := range c.all {
		traces[s.trace] = traces[s.trace] || s.attrs["fanout.ref"] == ref
	}
	var out []traced
	for _, s := range c.all {
		if traces[s.trace] {
			out = append(out, s)
		}
	}
	return out
}

// draw is the tree of spans, each below its parent: "site: name", sorted. What belongs to a span that did not come stands below "?".
func draw(all []traced) string {
	below := map[string][]traced{}
	known := map[string]bool{}
	for _, s := range all {
		known[string(s.GetSpanId())] = true
	}
	for _, s := range all {
		parent := string(s.GetParentSpanId())
		if parent != "" && !known[parent] {
			parent = "?"
		}
		below[parent] = append(below[parent], s)
	}
	var b strings.Builder
	var walk func(id, indent string)
	walk = func(id, indent string) {
		list := below[id]
		slices.SortFunc(list, func(x, y traced) int { return strings.Compare(x.site+x.GetName(), y.site+y.GetName()) })
		for _, s := range list {
			fmt.Fprintf(&b, "%s%s: %s", indent, s.site, s.GetName())
			for _, key := range []string{"fanout.how", "fanout.sources", "fanout.outcome", "error.type"} {
				if v := s.attrs[key]; v != "" {
					b.WriteString(" " + v)
				}
			}
			b.WriteString("\n")
			walk(string(s.GetSpanId()), indent+"  ")
		}
	}
	walk("", "")
	if len(below["?"]) > 0 {
		b.WriteString("?\n")
		walk("?", "  ")
	}
	return b.String()
}

// draws waits until the spans that concern a ref make a tree, and gives them.
func (c *spans) draws(t *testing.T, ref, want string) []traced {
	t.Helper()
	var all []traced
	eventually(t, "the trace of "+ref, func() error {
		all = c.of(ref)
		if got := draw(all); got != want {
			return fmt.Errorf("it is\n%s\nand not\n%s", got, want)
		}
		return nil
	})
	return all
}

// TestTrace: a push is one trace through three tiers, with what each site did for it below the publish. Nothing secret is in it.
func TestTrace(t *testing.T) {
	t.Parallel()
	seen := spanCollector(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("planted-secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	listens := func(s *site) { s.env = otelEnv(seen.addr) }
	sites := start(t,
		spec{name: "hq-a", group: "hq", laid: listens, extra: "webhook: {secretFile: " + secret + "}\n"},
		spec{name: "gd-a", group: "hq/gd", laid: listens}, spec{name: "sz-a", group: "hq/gd/sz", registry: true, laid: func(s *site) {
			listens(s)
			s.extra = fmt.Sprintf("registry: {type: oci, url: \"http://%s\", username: planted-user, passwordFile: %s}\n", s.reg, secret)
		}})
	hq, gd, sz := sites["hq-a"], sites["gd-a"], sites["sz-a"]
	digest := push(t, hq, "app/web:1", image(t, 1<<16, 1))
	shows(t, sz, "app/web:1", digest)
	all := seen.draws(t, "app/web:1", `hq-a: publish
  gd-a: deliver
    gd-a: gather manifests
    gd-a: put blob fetched hq-a
    gd-a: put blob fetched hq-a
    gd-a: put tag
  hq-a: propose
  sz-a: deliver
    sz-a: gather manifests
    sz-a: put blob fetched gd-a
    sz-a: put blob fetched gd-a
    sz-a: put tag
`)
	given := map[string]bool{}
	for _, s := range all {
		if s.GetName() == "put blob" && s.attrs["fanout.size"] != s.attrs["fanout.source.bytes"] {
			t.Errorf("%s: of %s bytes %s came from %s", s.site, s.attrs["fanout.size"], s.attrs["fanout.source.bytes"], s.attrs["fanout.sources"])
		}
		if s.GetName() == "deliver" && (s.attrs["oci.manifest.digest"] != digest || s.attrs["fanout.revision"] == "" || s.attrs["fanout.ref"] != "app/web:1") {
			t.Errorf("%s: %v", s.site, s.attrs)
		}
		given[s.trace] = true
	}
	if len(given) != 1 {
		t.Errorf("one push made %d traces", len(given))
	}

	// What a site lost is repaired in a trace of its own, which points to the publish.
	push(t, gd, "app/web:1", image(t, 1<<12, 1))
	shows(t, gd, "app/web:1", digest)
	eventually(t, "a repair", func() error {
		for _, s := range seen.of("app/web:1") {
			if s.GetName() != "repair" {
				continue
			}
			if len(s.GetLinks()) != 1 || !given[hex.EncodeToString(s.GetLinks()[0].GetTraceId())] || given[s.trace] {
				return fmt.Errorf("it is of trace %s, with links %v", s.trace, s.GetLinks())
			}
			return nil
		}
		return errors.New("none was told of")
	})

	seen.mu.Lock()
	defer seen.mu.Unlock()
	for _, planted := range []string{"planted-header", "planted-secret", "planted-user"} {
		if bytes.Contains(seen.raw.Bytes(), []byte(planted)) {
			t.Errorf("%s is in a trace", planted)
		}
	}
}

// The span of a pipeline that traces itself.
const pipelineTrace, pipelineSpan = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

// pipeline runs fanoutctl as that pipeline does.
func pipeline(s *site, args ...string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(binaries, "fanoutctl"), append([]string{"--server", s.fabric}, args...)...)
	cmd.Env = append(os.Environ(), "TRACEPARENT=00-"+pipelineTrace+"-"+pipelineSpan+"-01")
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("fanoutctl %v: %v: %s", args, err, out)
	}
}

// TestTrace_Joined: a publish that a pipeline asks for is a part of the pipeline's trace, whichever member it asked; where the registry's word was faster the trace points to the publish.
func TestTrace_Joined(t *testing.T) {
	t.Parallel()
	seen := spanCollector(t)
	listens := func(s *site) { s.env = otelEnv(seen.addr) }
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	sites := start(t,
		spec{name: "hq-a", group: "hq", laid: listens, registry: true, extra: "webhook: {secretFile: " + secret + "}\n"}, // which its registry does not know: nobody hears of pushes
		spec{name: "hq-b", group: "hq", laid: listens}, spec{name: "gd-a", group: "hq/gd", laid: listens})
	digest := push(t, sites["hq-a"], "app/api:1", image(t, 1<<12, 1))
	pipeline(sites["hq-b"], "publish", "app/api:1") // it has to ask the other
	shows(t, sites["gd-a"], "app/api:1", digest)
	all := seen.draws(t, "app/api:1", `?
  hq-a: publish
    gd-a: deliver
      gd-a: gather manifests
      gd-a: put blob fetched hq-a
      gd-a: put blob fetched hq-a
      gd-a: put tag
    hq-a: propose
    hq-b: deliver
      hq-b: gather manifests
      hq-b: put blob fetched hq-a
      hq-b: put blob fetched hq-a
      hq-b: put tag
`)
	for _, s := range all {
		if s.trace != pipelineTrace || s.GetName() == "publish" && hex.EncodeToString(s.GetParentSpanId()) != pipelineSpan {
			t.Errorf("%s: %s of trace %s, below %x", s.site, s.GetName(), s.trace, s.GetParentSpanId())
		}
	}

	digest = push(t, sites["hq-b"], "app/web:1", image(t, 1<<12, 1))
	shows(t, sites["gd-a"], "app/web:1", digest)
	pipeline(sites["hq-b"], "publish", "app/web:1")
	eventually(t, "a span in the pipeline's trace that points to the publish", func() error {
		all := seen.of("app/web:1")
		i := slices.IndexFunc(all, func(s traced) bool { return s.trace == pipelineTrace && s.attrs["fanout.ref"] == "app/web:1" })
		j := slices.IndexFunc(all, func(s traced) bool { return s.GetName() == "publish" && s.trace != pipelineTrace })
		if i < 0 || j < 0 {
			return errors.New(draw(all))
		}
		s := all[i]
		if hex.EncodeToString(s.GetParentSpanId()) != pipelineSpan || s.attrs["fanout.outcome"] != "already" || len(s.GetLinks()) != 1 || !bytes.Equal(s.GetLinks()[0].GetSpanId(), all[j].GetSpanId()) {
			return fmt.Errorf("it is %v", s)
		}
		return nil
	})
}

// TestTrace_Collectorless: that the collector is away, or takes spans and never answers, is nothing that a delivery notices.
func TestTrace_Collectorless(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	hangs := func(s *site) {
		s.env = append(otelEnv(l.Addr().String()), "OTEL_EXPORTER_OTLP_TIMEOUT=500", "OTEL_BSP_EXPORT_TIMEOUT=500")
	}
	sites := start(t, spec{name: "hq-a", group: "hq", laid: hangs}, spec{name: "gd-a", group: "hq/gd", laid: hangs})
	for i := range 5 {
		ref := fmt.Sprintf("app/web:%d", i)
		shows(t, sites["gd-a"], ref, push(t, sites["hq-a"], ref, image(t, 1<<12, 1)))
	}
	eventually(t, "lost spans counted, and told of", func() error {
		ended, sent := sites["gd-a"].metric("fanout_trace_spans_total"), sites["gd-a"].metric("fanout_trace_spans_sent_total")
		if ended < 25 || sent != 0 || !sites["gd-a"].logged("spans are lost: the collector does not take them") {
			return fmt.Errorf("%v ended, %v were sent", ended, sent)
		}
		return nil
	})
}

// TestTrace_Promotion: content that waits for its promotion is brought in the trace of the push; what a promotion moves is in the trace of the pipeline that asked for it.
func TestTrace_Promotion(t *testing.T) {
	t.Parallel()
	seen := spanCollector(t)
	listens := func(s *site) { s.env = otelEnv(seen.addr) }
	sites := start(t, spec{name: "hq-a", group: "hq", laid: listens}, spec{name: "gd-a", group: "hq/gd", laid: listens}, spec{name: "sz-a", group: "hq/gd/sz", laid: listens})
	hq := sites["hq-a"]
	if _, err := hq.admin().SetPolicies(t.Context(), &adminv1.SetPoliciesRequest{Policies: []*catalogv1.Policy{{Name: "releases", Repositories: []string{"prod/**"}, Delivery: "staged"}}}); err != nil {
		t.Fatal(err)
	}
	digest := push(t, hq, "prod/web:1", image(t, 1<<12, 1))
	pushed := `hq-a: publish
  gd-a: hold
    gd-a: put blob fetched hq-a
    gd-a: put blob fetched hq-a
  hq-a: hold
  hq-a: propose
  sz-a: hold
    sz-a: put blob fetched gd-a
    sz-a: put blob fetched gd-a
`
	seen.draws(t, "prod/web:1", pushed)
	hq.held("prod/web:1", "gd-a", "sz-a") // headquarters knows of all groups
	pipeline(hq, "promote", "prod/web:1", "--yes", "--wait")
	shows(t, sites["sz-a"], "prod/web:1", digest)
	seen.draws(t, "prod/web:1", pushed+`?
  hq-a: promote
    gd-a: deliver
      gd-a: gather manifests
      gd-a: put tag
    hq-a: rollout succeeded
    hq-a: wave succeeded
    sz-a: deliver
      sz-a: gather manifests
      sz-a: put tag
`)
	// Back from a second one: below the promotion, too.
	next := push(t, hq, "prod/web:1", image(t, 1<<12, 1))
	hq.held("prod/web:1", "gd-a", "sz-a")
	pipeline(hq, "promote", "prod/web:1", "--yes", "--wait")
	shows(t, sites["sz-a"], "prod/web:1", next)
	list, err := asks[view.Rollouts](hq, "rollout", "list")
	if err != nil || len(list.Rollouts) != 2 {
		t.Fatalf("%v: %+v", err, list)
	}
	second := slices.MaxFunc(list.Rollouts, func(x, y view.RolloutSummary) int { return x.Started.Compare(*y.Started) })
	began := uint64(time.Now().UnixNano())
	if out, code := hq.ctl("rollout", "rollback", second.ID, "--yes"); code != 0 {
		t.Fatalf("exit %d: %s", code, out)
	}
	shows(t, sites["sz-a"], "prod/web:1", digest)
	seen.below(t, "prod/web:1", "promote", "deliver", func(s traced) bool { return s.attrs["oci.manifest.digest"] == next }, "gd-a", "sz-a")
	seen.below(t, "prod/web:1", "promote", "deliver", func(s traced) bool {
		return s.attrs["oci.manifest.digest"] == digest && s.GetStartTimeUnixNano() > began
	}, "gd-a", "sz-a")

	// A deletion: below what the pipeline asked for.
	gone := push(t, hq, "app/web:1", image(t, 1<<12, 1))
	shows(t, sites["sz-a"], "app/web:1", gone)
	pipeline(hq, "unpublish", "app/web:1")
	seen.below(t, "app/web:1", "unpublish", "remove tag", func(s traced) bool { return s.attrs["oci.manifest.digest"] == gone && s.trace == pipelineTrace }, "hq-a", "gd-a", "sz-a")
}

// below waits until, for a ref, spans of a name that are as they should be stand below one of another name, one of each of these sites.
func (c *spans) below(t *testing.T, ref, parent, name string, ok func(traced) bool, sites ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%q below %q at %q", name, parent, sites), func() error {
		all := c.of(ref)
		var got []string
		for _, s := range all {
			if s.GetName() == name && ok(s) && slices.ContainsFunc(all, func(p traced) bool {
				return p.GetName() == parent && p.trace == s.trace && bytes.Equal(p.GetSpanId(), s.GetParentSpanId())
			}) {
				got = append(got, s.site)
			}
		}
		slices.Sort(got)
		if want := slices.Sorted(slices.Values(sites)); !slices.Equal(got, want) {
			return fmt.Errorf("they are at %q:\n%s", got, draw(all))
		}
		return nil
	})
}
