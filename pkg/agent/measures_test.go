package agent

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"

	"github.com/fanout-io/fanout/pkg/config"
	"github.com/fanout-io/fanout/pkg/store"
)

// metricName finds a metric's name in a description or an expression.
var metricName = regexp.MustCompile(`\bfanout_[a-z_]+\b`)

// quietSite is the configuration of an agent that need not run.
func quietSite(t *testing.T) *config.Config {
	t.Helper()
	text := "site: hq-a\ngroup: hq\ndataDir: " + t.TempDir() + "\nraft: {listen: '127.0.0.1:17401', members: {hq-a: '127.0.0.1:17401'}}\nfabric: {listen: '127.0.0.1:17400'}\nhttp: {listen: '127.0.0.1:17402'}\n" +
		"registry: {type: embedded, listen: '127.0.0.1:0'}\n"
	cfg, err := config.Parse("test.yaml", []byte(text), func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// described lists the metrics of an agent with everything that one can have, those without a value yet among them.
func described(t *testing.T) (*Agent, []string) {
	t.Helper()
	a, err := New(quietSite(t), Options{Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close() })
	ch := make(chan *prometheus.Desc)
	go func() { a.metrics.Describe(ch); close(ch) }()
	var names []string
	for d := range ch {
		if name := metricName.FindString(d.String()); name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) < 40 {
		t.Fatalf("only %q", names)
	}
	problems, err := testutil.GatherAndLint(a.metrics)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	return a, names
}

// TestMetrics: each metric is explained in the page for them, and the page, the alerts and the dashboard speak of no other.
func TestMetrics(t *testing.T) {
	a, names := described(t)
	page := tableOf(t, "metrics.md")
	for _, name := range names {
		if !slices.Contains(page, name) {
			t.Errorf("docs/metrics.md does not explain %s", name)
		}
	}
	for _, name := range page {
		if !slices.Contains(names, name) {
			t.Errorf("docs/metrics.md explains %s, which no agent has", name)
		}
	}
	for _, file := range []string{"deploy/prometheus/fanout.rules.yml", "deploy/grafana/fanout.json"} {
		text, err := os.ReadFile(filepath.Join("..", "..", file))
		if err != nil {
			t.Fatal(err)
		}
		used := metricName.FindAllString(string(text), -1)
		if len(used) < 5 {
			t.Errorf("%s uses only %q", file, used)
		}
		for _, name := range used {
			name := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_sum"), "_count")
			if !slices.Contains(names, name) {
				t.Errorf("%s uses %s, which no agent has", file, name)
			}
		}
		if !strings.HasSuffix(file, ".yml") {
			continue
		}
		growing := increases.FindAllStringSubmatch(string(text), -1)
		if len(growing) < 3 {
			t.Errorf("%s asks for the increase of %q only", file, growing)
		}
		for _, m := range growing {
			if !toldOf(t, a, m[1], m[2]) {
				t.Errorf("%s: the first increase of %s%s is none, since it is not there from the start", file, m[1], m[2])
			}
		}
	}
}

// increases finds what an alert asks the increase of, and the labels that it has to have.
var increases = regexp.MustCompile(`increase\((fanout_\w+)(\{[^}]*\})?\[`)

// toldOf says whether an agent that just began tells of a series. Selector is as in PromQL, with equal signs alone.
func toldOf(t *testing.T, a *Agent, name, selector string) bool {
	t.Helper()
	families, err := a.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			has := f.GetName() == name
			for _, l := range strings.FieldsFunc(strings.Trim(selector, "{}"), func(r rune) bool { return r == ',' }) {
				key, value, _ := strings.Cut(strings.TrimSpace(l), "=")
				has = has && slices.ContainsFunc(m.GetLabel(), func(x *dto.LabelPair) bool { return x.GetName() == key && strconv.Quote(x.GetValue()) == value })
			}
			if has {
				return true
			}
		}
	}
	return false
}

// tableOf reads the names in the first column of a page's tables.
func tableOf(t *testing.T, page string) []string {
	t.Helper()
	f, err := os.Open(filepath.Join("..", "..", "docs", page))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var names []string
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), "| `fanout_"); ok {
			name, _, _ := strings.Cut(rest, "`")
			names = append(names, "fanout_"+name)
		}
	}
	return names
}

// TestMetrics_LastSuccessOutlivesARestart: an agent that starts again knows when a ref last came here.
func TestMetrics_LastSuccessOutlivesARestart(t *testing.T) {
	cfg := quietSite(t)
	last := func(a *Agent) float64 {
		t.Helper()
		families, err := a.metrics.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "fanout_delivery_last_success_timestamp_seconds" {
				return f.GetMetric()[0].GetGauge().GetValue()
			}
		}
		t.Fatal("there is no such metric")
		return 0
	}
	at := time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)
	a, err := New(cfg, Options{Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	if got := last(a); got != 0 {
		t.Errorf("at first: %f", got)
	}
	for i, when := range []time.Time{at.Add(-time.Hour), at, at.Add(-time.Minute)} {
		if err := a.store.PutRefState(fmt.Sprintf("app/web:%d", i), store.RefState{Base: "sha256:aa", Receipt: &store.Receipt{Digest: "sha256:aa", At: when}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if a, err = New(cfg, Options{Version: "test"}); err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if got := last(a); got != float64(at.Unix()) {
		t.Errorf("after a restart: %f, want %d", got, at.Unix())
	}
}
