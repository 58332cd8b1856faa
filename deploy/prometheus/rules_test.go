// Package prometheus_test evaluates the alerts as Prometheus does. It is a module of its own, so that nothing else of this repository is built with Prometheus' server.
package prometheus_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/template"
	"github.com/prometheus/prometheus/util/annotations"
)

// cases: for each alert, series in Prometheus' test notation, one value a minute, and when it has to fire and when not, in minutes.
var cases = map[string]struct {
	series      string
	fires, ends time.Duration // ends: 0 where it is not shown
	labels      string        // of the alert, without its name and severity
}{
	"FanoutAgentDown":            {`up{job="fanout",instance="a"} 1 1 0x8 1x20`, 8, 12, `{instance="a", job="fanout"}`},
	"FanoutNoRoot":               {`fanout_raft_has_root{instance="a"} 1 0x5 1x20`, 4, 8, `{instance="a"}`},
	"FanoutGroupNotAttached":     {"fanout_tree_root{instance=\"a\"} 1x60\n  fanout_tree_root{instance=\"hq\"} 1x60\n  fanout_tree_attached{instance=\"a\"} 0x20 1x40\n  fanout_tree_attached{instance=\"hq\"} 0x60\n  fanout_conflicts{instance=\"hq\"} 0x60", 17, 23, `{instance="a"}`},
	"FanoutSiteUnreachable":      {`fanout_site_state{group="hq/gd",site="gd-a",state="unreachable",instance="a"} 1x20 _x40`, 17, 40, `{group="hq/gd", site="gd-a"}`},
	"FanoutSiteBehind":           {`fanout_site_lag_seconds{group="hq/gd",site="gd-a",instance="a"} 0+60x60 0x30`, 50, 62, `{group="hq/gd", site="gd-a"}`},
	"FanoutSiteDegraded":         {`fanout_site_state{group="hq",site="a",state="degraded",instance="a"} 1x20 _x40`, 17, 40, `{group="hq", site="a", state="degraded"}`},
	"FanoutDeliveriesFail":       {`fanout_pending_refs{state="failed",instance="a"} 2x40 0x20`, 33, 44, `{instance="a"}`},
	"FanoutRegistryDown":         {`fanout_registry_up{instance="a"} 0x8 1x20`, 7, 12, `{instance="a"}`},
	"FanoutCertificateExpires":   {`fanout_certificate_expiry_timestamp_seconds{certificate="fabric",instance="a"} 86400x90 8640000x30`, 70, 100, `{certificate="fabric", instance="a"}`},
	"FanoutCertificateEnds":      {"fanout_certificate_expiry_timestamp_seconds{certificate=\"fabric\",instance=\"a\"} 864000x5 3600x60 8640000x30\n  fanout_certificate_expiry_timestamp_seconds{certificate=\"authority\",instance=\"a\"} 3600x100", 25, 75, `{certificate="fabric", instance="a"}`},
	"FanoutAuthorityExpires":     {"fanout_certificate_expiry_timestamp_seconds{certificate=\"authority\",instance=\"a\"} 86400000x5 4320000x90 86400000x30\n  fanout_certificate_expiry_timestamp_seconds{certificate=\"fabric\",instance=\"a\"} 864000x130", 70, 100, `{certificate="authority", instance="a"}`},
	"FanoutDiskAlmostFull":       {`fanout_disk_free_bytes{disk="data",instance="a"} 1000000x20 9000000000x20`, 17, 24, `{disk="data", instance="a"}`},
	"FanoutConflicts":            {`fanout_conflicts{instance="a"} 1x20 0x20`, 17, 24, `{}`},
	"FanoutDeletionsHeld":        {`fanout_deletions_held{instance="a"} 120x20 0x20`, 17, 24, `{}`},
	"FanoutDrift":                {`fanout_pending_refs{state="drifted",instance="a"} 1x80 0x20`, 65, 85, `{instance="a"}`},
	"FanoutContentDamaged":       {`fanout_scrub_damaged_total{instance="a"} 0x5 2x100`, 8, 90, `{instance="a"}`},
	"FanoutRolloutWaits":         {`fanout_rollouts{phase="paused",instance="a"} 1x80 0x20`, 65, 85, `{phase="paused"}`},
	"FanoutRolloutFailed":        {"fanout_rollouts{phase=\"failed\",instance=\"a\"} 1x80 2x20 _x200\n  fanout_rollouts{phase=\"failed\",instance=\"b\"} _x101 2x200", 90, 160, `{phase="failed"}`},
	"FanoutRolloutStalls":        {`fanout_rollouts{phase="running",instance="a"} 0x5 1x1500 0x20`, 1450, 1510, `{phase="running"}`},
	"FanoutReattaches":           {`fanout_tree_attachments_total{instance="a"} 0+1x40 40x200`, 30, 150, `{instance="a"}`},
	"FanoutCollectionFails":      {`fanout_registry_collection_failures_total{instance="a"} 0x5 1x100 2x4500`, 120, 4500, `{instance="a"}`},
	"FanoutVersionsDiffer":       {"fanout_build_info{version=\"1\",instance=\"a\"} 1x10200 _x50\n  fanout_build_info{version=\"1\",instance=\"b\"} 1x10 _x10300\n  fanout_build_info{version=\"2\",instance=\"b\"} _x10 1x10300", 10110, 10215, `{}`},
	"FanoutNotificationsDropped": {`fanout_notifications_total{outcome="dropped",instance="a"} 0x5 3x100`, 8, 90, `{instance="a", outcome="dropped"}`},
}

func load(t *testing.T) []rulefmt.Rule {
	t.Helper()
	groups, errs := rulefmt.ParseFile("fanout.rules.yml", false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	for _, err := range errs {
		t.Fatal(err)
	}
	return groups.Groups[0].Rules
}

func TestAlerts(t *testing.T) {
	list := load(t)
	for _, r := range list {
		t.Run(r.Alert, func(t *testing.T) {
			c, ok := cases[r.Alert]
			if !ok {
				t.Fatal("no case shows that it can fire")
			}
			at := evaluate(t, r, c.series, max(c.fires, c.ends)+5)
			if at[0] != "" {
				t.Errorf("it fires at once: %s", at[0])
			}
			if got := at[c.fires]; got != c.labels {
				t.Errorf("after %d minutes: %q, want %q", c.fires, got, c.labels)
			}
			if c.ends > 0 && at[c.ends] != "" {
				t.Errorf("after %d minutes it fires still: %s", c.ends, at[c.ends])
			}
		})
	}
	if len(list) != len(cases) {
		t.Errorf("%d alerts and %d cases", len(list), len(cases))
	}
}

// evaluate gives, for each minute, the labels of the alert that fires; empty: none does. An alert fires when its expression has had an element with the same labels for as long as it says.
func evaluate(t *testing.T, r rulefmt.Rule, series string, minutes time.Duration) []string {
	t.Helper()
	data := load1m(t, series)
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute, LookbackDelta: 5 * time.Minute})
	defer engine.Close()
	var out []string
	since := map[string]time.Time{}
	for m := range minutes + 1 {
		at := time.Unix(0, 0).Add(m * time.Minute)
		q, err := engine.NewInstantQuery(t.Context(), data, nil, r.Expr, at)
		if err != nil {
			t.Fatal(err)
		}
		vector, err := q.Exec(t.Context()).Vector()
		if err != nil {
			t.Fatal(err)
		}
		now := map[string]time.Time{}
		var firing []string
		for _, s := range vector {
			l := labels.NewBuilder(s.Metric).Del(labels.MetricName).Labels()
			began, ok := since[l.String()]
			if !ok {
				began = at
			}
			now[l.String()] = began
			if at.Sub(began) >= time.Duration(r.For) {
				firing = append(firing, l.String())
				says(t, r, l, s.F)
			}
		}
		q.Close()
		since = now
		out = append(out, strings.Join(firing, " "))
	}
	return out
}

// says expands the alert's words.
func says(t *testing.T, r rulefmt.Rule, l labels.Labels, value float64) {
	t.Helper()
	for _, text := range []string{r.Annotations["summary"], r.Annotations["description"]} {
		data := template.AlertTemplateData(l.Map(), nil, "", promql.Sample{F: value})
		got, err := template.NewTemplateExpander(t.Context(), "{{$labels := .Labels}}{{$value := .Value}}"+text, r.Alert, data, 0, nil, &url.URL{}, nil).Expand()
		if err != nil || got == "" || strings.Contains(got, "no value") || strings.Contains(got, "  ") {
			t.Errorf("it says %q, %v", got, err)
		}
	}
}

// load1m makes storage of series with a value each minute.
func load1m(t *testing.T, text string) storage.Queryable {
	t.Helper()
	var all []promql.Series
	for line := range strings.Lines(text) {
		metric, values, err := parser.NewParser(parser.Options{}).ParseSeriesDesc(strings.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		s := promql.Series{Metric: metric}
		for i, v := range values {
			if !v.Omitted {
				s.Floats = append(s.Floats, promql.FPoint{T: int64(i) * time.Minute.Milliseconds(), F: v.Value})
			}
		}
		all = append(all, s)
	}
	return &storage.MockQueryable{MockQuerier: &storage.MockQuerier{
		SelectMockFunction: func(_ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
			set := &set{}
			for _, s := range all {
				if !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(s.Metric.Get(m.Name)) }) {
					set.series = append(set.series, s)
				}
			}
			return set
		},
	}}
}

type set struct {
	series []promql.Series
	next   int
}

func (s *set) Next() bool                        { s.next++; return s.next <= len(s.series) }
func (s *set) At() storage.Series                { return promql.NewStorageSeries(s.series[s.next-1]) }
func (s *set) Err() error                        { return nil }
func (s *set) Warnings() annotations.Annotations { return nil }

var heading = regexp.MustCompile(`(?m)^#+ (.*)$`)

// TestRunbooks: each alert leads to a page and a heading that exist.
func TestRunbooks(t *testing.T) {
	for _, r := range load(t) {
		page, anchor, _ := strings.Cut(r.Annotations["runbook"], "#")
		text, err := os.ReadFile(filepath.Join("..", "..", page))
		if err != nil {
			t.Errorf("%s: %v", r.Alert, err)
			continue
		}
		found := anchor == ""
		for _, h := range heading.FindAllStringSubmatch(string(text), -1) {
			found = found || slug(h[1]) == anchor
		}
		if !found {
			t.Errorf("%s: %s has no heading for #%s", r.Alert, page, anchor)
		}
	}
}

// slug is how a heading is named in a link.
func slug(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
			return r
		}
		return -1
	}, strings.ToLower(heading))
}

// TestDashboard: what the dashboard asks for are expressions, once Grafana has put its variables in.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "grafana", "fanout.json"))
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	variables := strings.NewReplacer("$__rate_interval", "5m", "$__range", "6h", "$group", ".*")
	asked := 0
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			asked++
			if _, err := parser.NewParser(parser.Options{}).ParseExpr(variables.Replace(target.Expr)); err != nil {
				t.Errorf("%s: %v", p.Title, err)
			}
		}
	}
	if asked < 20 {
		t.Errorf("it asks for %d things only", asked)
	}
}

// TestCertificates: what is warned of goes by the time that is left and by the whole life of a certificate, so that one of an hour, which is renewed in good time, is no alarm for ever.
func TestCertificates(t *testing.T) {
	const day = 24 * 60
	rules := map[string]rulefmt.Rule{}
	for _, r := range load(t) {
		rules[r.Alert] = r
	}
	// ends gives the time of the end, in minutes, of a certificate that is renewed every so many minutes; 0: never.
	ends := func(life, left, renewed int) string {
		var b strings.Builder
		for m := range 121 {
			end := left
			if renewed > 0 {
				end += m / renewed * renewed
			}
			fmt.Fprintf(&b, " %d", end*60)
		}
		labels := `{certificate="fabric",instance="a"}`
		series := "fanout_certificate_expiry_timestamp_seconds" + labels + b.String()
		if life > 0 {
			series += fmt.Sprintf("\n  fanout_certificate_lifetime_seconds%s %dx120", labels, life*60)
		}
		return series
	}
	for _, c := range []struct {
		name                string
		life, left, renewed int
		warns, alarms       bool
	}{
		{"of 90 days, 8 left", 90 * day, 8 * day, 0, false, false},
		{"of 90 days, 6 left", 90 * day, 6 * day, 0, true, false},
		{"of 90 days, half a day left", 90 * day, day / 2, 0, true, true},
		{"of 5 days, 2 left", 5 * day, 2 * day, 0, false, false},
		{"of 5 days, 1 left", 5 * day, day + 180, 0, true, false},
		{"of an hour, renewed at its half", 60, 60, 30, false, false},
		{"of an hour, never renewed", 60, 60, 0, true, true},
		// An agent of an older version does not tell the lifetime.
		{"of a life that is not told", 0, 6 * day, 0, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			for alert, want := range map[string]bool{"FanoutCertificateExpires": c.warns, "FanoutCertificateEnds": c.alarms} {
				at := evaluate(t, rules[alert], ends(c.life, c.left, c.renewed), 120)
				if got := slices.ContainsFunc(at, func(labels string) bool { return labels != "" }); got != want {
					t.Errorf("%s fires: %t, want %t", alert, got, want)
				}
			}
		})
	}
}
