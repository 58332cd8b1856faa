package agent

import (
	"bufio"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/fanout-io/fanout/pkg/config"
)

// metricName finds a metric's name in a description or an expression.
var metricName = regexp.MustCompile(`\bfanout_[a-z_]+\b`)

// described lists the metrics of an agent with everything that one can have, those without a value yet among them.
func described(t *testing.T) []string {
	t.Helper()
	dir := t.TempDir()
	text := "site: hq-a\ngroup: hq\ndataDir: " + dir + "\nraft: {listen: '127.0.0.1:17401', members: {hq-a: '127.0.0.1:17401'}}\nfabric: {listen: '127.0.0.1:17400'}\nhttp: {listen: '127.0.0.1:17402'}\n" +
		"registry: {type: embedded, listen: '127.0.0.1:0'}\n"
	cfg, err := config.Parse("test.yaml", []byte(text), func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(cfg, Options{Version: "test"})
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
	return names
}

// TestMetrics: each metric is explained in the page for them, and the page, the alerts and the dashboard speak of no other.
func TestMetrics(t *testing.T) {
	names := described(t)
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
	}
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
