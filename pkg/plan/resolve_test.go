package plan_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	"github.com/fanout-io/fanout/pkg/plan"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// fabric is headquarters, two provinces and five cities.
func fabric() []plan.Group {
	group := func(path string, labels ...string) plan.Group {
		g := plan.Group{Path: path, Labels: map[string]string{}}
		for _, l := range labels {
			k, v, _ := strings.Cut(l, "=")
			g.Labels[k] = v
		}
		return g
	}
	return []plan.Group{
		group("hq/hunan/changsha", "tier=city"), group("hq", "tier=hq"), group("hq/guangdong", "tier=province"), group("hq/hunan", "tier=province", "ring=early"),
		group("hq/guangdong/shenzhen", "tier=city", "ring=early"), group("hq/guangdong/foshan", "tier=city"), group("hq/guangdong/zhuhai"), group("hq/hunan/yueyang", "tier=city"),
		group("hq", "tier=hq"), // told twice
	}
}

func parse(t testing.TB, spec string) *plan.Plan {
	t.Helper()
	p, err := plan.Parse("p.yaml", []byte("apiVersion: fanout/v1\nkind: Plan\nmetadata: {name: p}\nspec:\n"+spec), time.LoadLocation)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func texts(warnings []plan.Warning) []string {
	var out []string
	for _, w := range warnings {
		out = append(out, w.String())
	}
	return out
}

func TestResolve_Waves(t *testing.T) {
	p := parse(t, `  timezone: Asia/Shanghai
  defaults: {maxConcurrent: 25%, maxFailures: 0, onFailure: pause, onOffline: skip, deadline: 6h}
  waves:
  - name: canary
    groups: [hq/guangdong/shenzhen]
    soak: 30m
  - name: provinces
    selector: {matchLabels: {tier: province}}
    maxConcurrent: 4
    maxFailures: 5%
    gates:
      before: [{approval: {}}]
      after: [{check: {url: http://metrics.internal/ok, interval: 30s, timeout: 10m}}, {check: {url: https://a}}]
  - name: rest
    groups: ["**"]
    window: {allow: ["0 1 * * * / 4h"]}
    maxConcurrent: 50%
    maxFailures: 41%
    onFailure: rollback
`)
	got, warnings, err := plan.Resolve(p, fabric())
	if err != nil {
		t.Fatal(err)
	}
	if len(warnings) > 0 {
		t.Errorf("warned of %q", texts(warnings))
	}
	check := func(url string) *catalogv1.Gate {
		return &catalogv1.Gate{Kind: &catalogv1.Gate_Check{Check: &catalogv1.Check{Url: url, Interval: durationpb.New(30 * time.Second), Timeout: durationpb.New(10 * time.Minute)}}}
	}
	none, deadline := durationpb.New(0), durationpb.New(6*time.Hour)
	want := &catalogv1.Plan{Name: "p", Timezone: "Asia/Shanghai", AllGroups: true, Waves: []*catalogv1.Wave{
		{Name: "canary", Groups: []string{"hq/guangdong/shenzhen"}, MaxConcurrent: 1, Soak: durationpb.New(30 * time.Minute), OnFailure: "pause", OnOffline: "skip", Deadline: deadline},
		{Name: "provinces", Groups: []string{"hq/guangdong", "hq/hunan"}, MaxConcurrent: 4, MaxFailures: 1, Soak: none, OnFailure: "pause", OnOffline: "skip", Deadline: deadline,
			Before: []*catalogv1.Gate{{Kind: &catalogv1.Gate_Approval{Approval: &catalogv1.Approval{}}}},
			After:  []*catalogv1.Gate{check("http://metrics.internal/ok"), check("https://a")}},
		// Of five: 50 % down to 2, 41 % up to 3.
		{Name: "rest", Groups: []string{"hq", "hq/guangdong/foshan", "hq/guangdong/zhuhai", "hq/hunan/changsha", "hq/hunan/yueyang"}, MaxConcurrent: 2, MaxFailures: 3, Soak: none,
			Window: &catalogv1.Window{Allow: []string{"0 1 * * * / 4h"}}, OnFailure: "rollback", OnOffline: "skip", Deadline: deadline},
	}}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestResolve_Default(t *testing.T) {
	got, warnings, err := plan.Resolve(plan.Default(), fabric())
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	want := &catalogv1.Plan{Timezone: "UTC", AllGroups: true, Waves: []*catalogv1.Wave{{
		Name: "all", MaxConcurrent: 2, Soak: durationpb.New(0), OnFailure: "pause", OnOffline: "skip", Deadline: durationpb.New(plan.DefaultDeadline),
		Groups: []string{"hq", "hq/guangdong", "hq/guangdong/foshan", "hq/guangdong/shenzhen", "hq/guangdong/zhuhai", "hq/hunan", "hq/hunan/changsha", "hq/hunan/yueyang"},
	}}}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if _, _, err := plan.Resolve(plan.Default(), nil); err == nil || err.Error() != "plan: wave all would have no group: ** matches no group; mend its groups or selector, or remove the wave" {
		t.Errorf("no groups: %v", err)
	}
}

func TestResolve_Warnings(t *testing.T) {
	for _, tt := range []struct {
		name, waves string
		want        []string
	}{
		{"left out", "  - {name: a, groups: ['hq/**']}\n", nil}, // hq/** is hq too
		{"left out, named", "  - {name: a, groups: ['hq/*/*']}\n", []string{"p.yaml: spec.waves: in no wave, so without the release: hq, hq/guangdong, hq/hunan"}},
		{"an earlier wave has some", "  - {name: a, groups: [hq/guangdong/shenzhen], soak: 1m}\n  - {name: b, groups: ['hq/guangdong/*'], soak: 1m}\n  - {name: c, groups: ['**']}\n",
			[]string{"p.yaml:7: spec.waves[1].groups[0]: wave b: hq/guangdong/* matches groups that stay in the earlier wave a: hq/guangdong/shenzhen"}},
		{"an earlier wave has some, by label", "  - {name: a, groups: [hq/hunan], soak: 1m}\n  - {name: b, selector: {matchLabels: {ring: early}}, soak: 1m}\n  - {name: c, groups: ['**']}\n",
			[]string{"p.yaml:7: spec.waves[1].selector: wave b: selector ring=early matches groups that stay in the earlier wave a: hq/hunan"}},
		{"one of several patterns matches nothing", "  - name: a\n    groups:\n    - hq/hainan/*\n    - '**'\n", []string{"p.yaml:8: spec.waves[0].groups[0]: wave a: hq/hainan/* matches no group"}},
		{"every group may fail", "  - {name: a, groups: [hq], maxFailures: 5%, soak: 1m}\n  - {name: b, groups: ['**']}\n",
			[]string{"p.yaml:6: spec.waves[0].maxFailures: wave a: 5% of 1 allows every group to fail, so onFailure: pause is never done"}},
		{"waits for ever", "  - {name: a, groups: ['**'], onOffline: wait, deadline: 0}\n", []string{"p.yaml:6: spec.waves[0].deadline: wave a: without one the wave waits for offline groups for ever"}},
		{"nothing between two waves", "  - {name: a, groups: [hq]}\n  - {name: b, groups: ['**']}\n",
			[]string{"p.yaml:6: spec.waves[0].soak: wave a: without a soak or a gate the wave b begins as soon as this one is done"}},
		{"a gate between two waves", "  - {name: a, groups: [hq]}\n  - {name: b, groups: ['**'], gates: {before: [{approval: {}}]}}\n", nil},
		{"a window between two waves", "  - {name: a, groups: [hq]}\n  - {name: b, groups: ['**'], window: {allow: ['0 1 * * * / 1h']}}\n", nil},
		{"overlap within a wave", "  - {name: a, groups: ['hq/*', hq/hunan, 'hq/h*', '**']}\n", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, warnings, err := plan.Resolve(parse(t, "  waves:\n"+tt.waves), fabric())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, texts(warnings)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if left := strings.Contains(strings.Join(texts(warnings), "\n"), "in no wave"); got.AllGroups == left {
				t.Errorf("all groups: %v, left out: %v", got.AllGroups, left)
			}
		})
	}
}

func TestResolve_Errors(t *testing.T) {
	for _, tt := range []struct{ name, waves, want string }{
		{"no such group", "  - {name: a, groups: [hq/guangdong/shenzen, hq]}\n", "p.yaml:6: spec.waves[0].groups[0]: there is no group hq/guangdong/shenzen; look for a slip of the pen, or at fanoutctl tree"},
		{"a pattern selects nothing", "  - {name: a, groups: ['hq/hainan/*', 'hq/?']}\n",
			"p.yaml:6: spec.waves[0]: wave a would have no group: hq/hainan/* matches no group; hq/? matches no group; mend its groups or selector, or remove the wave"},
		{"a selector selects nothing", "  - {name: a, selector: {matchLabels: {tier: city, ring: late}}}\n",
			"p.yaml:6: spec.waves[0]: wave a would have no group: selector ring=late,tier=city matches no group; mend its groups or selector, or remove the wave"},
		{"a label that no group has, empty", "  - {name: a, selector: {matchLabels: {x: ''}}}\n", "p.yaml:6: spec.waves[0]: wave a would have no group: selector x= matches no group; mend its groups or selector, or remove the wave"},
		{"earlier waves have all", "  - {name: a, groups: [hq/hunan]}\n  - {name: b, groups: ['hq/g*']}\n  - {name: c, selector: {matchLabels: {tier: province}}}\n",
			"p.yaml:8: spec.waves[2]: wave c would have no group: selector tier=province matches groups that stay in the earlier wave a: hq/hunan; " +
				"selector tier=province matches groups that stay in the earlier wave b: hq/guangdong; mend its groups or selector, or remove the wave"},
		{"nothing is left", "  - {name: a, groups: ['hq/**']}\n  - {name: b, groups: ['**']}\n",
			"p.yaml:7: spec.waves[1]: wave b would have no group: ** matches groups that stay in the earlier wave a: " +
				"hq, hq/guangdong, hq/guangdong/foshan, hq/guangdong/shenzhen, hq/guangdong/zhuhai, hq/hunan, hq/hunan/changsha, hq/hunan/yueyang; mend its groups or selector, or remove the wave"},
		{"named later than a pattern has it", "  - {name: a, groups: ['hq/*']}\n  - {name: b, groups: [hq/hunan, '**']}\n",
			"p.yaml:7: spec.waves[1].groups[0]: hq/hunan would go with the earlier wave a, which matches it; narrow that wave, or remove the path here"},
		{"several at once", "  - {name: a, groups: [hq/x]}\n  - {name: b, groups: ['hq/y*']}\n",
			"p.yaml:6: spec.waves[0].groups[0]: there is no group hq/x; look for a slip of the pen, or at fanoutctl tree\n" +
				"p.yaml:7: spec.waves[1]: wave b would have no group: hq/y* matches no group; mend its groups or selector, or remove the wave"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, _, err := plan.Resolve(parse(t, "  waves:\n"+tt.waves), fabric())
			if got != nil || err == nil || err.Error() != tt.want {
				t.Errorf("got %v, %v\nwant %s", got, err, tt.want)
			}
		})
	}
}

func TestQuantity(t *testing.T) {
	for _, tt := range []struct {
		q        plan.Quantity
		n        int
		down, up uint32
	}{
		{plan.Quantity{N: 25, Percent: true}, 0, 1, 0},
		{plan.Quantity{N: 25, Percent: true}, 1, 1, 1},
		{plan.Quantity{N: 25, Percent: true}, 7, 1, 2},
		{plan.Quantity{N: 25, Percent: true}, 8, 2, 2},
		{plan.Quantity{N: 25, Percent: true}, 9, 2, 3},
		{plan.Quantity{N: 100, Percent: true}, 9, 9, 9},
		{plan.Quantity{N: 0, Percent: true}, 9, 1, 0},
		{plan.Quantity{N: 5, Percent: true}, 1000, 50, 50},
		{plan.Quantity{N: 29, Percent: true}, 100, 29, 29}, // 0.29 × 100 is less than 29 in floating point
		{plan.Quantity{N: 4}, 2, 4, 4},
	} {
		if down, up := tt.q.Down(tt.n), tt.q.Up(tt.n); down != tt.down || up != tt.up {
			t.Errorf("%s of %d: %d and %d, want %d and %d", tt.q, tt.n, down, up, tt.down, tt.up)
		}
	}
}

// TestResolve_EachGroupOnce: whatever the waves select, no group is in two, none is made up, and each is in the first that matches it.
func TestResolve_EachGroupOnce(t *testing.T) {
	patterns := []string{"**", "hq", "hq/*", "hq/**", "hq/guangdong/*", "hq/*/s*", "hq/{hunan,guangdong}", "hq/hunan/**", "none/*"}
	groups := fabric()
	rapid.Check(t, func(t *rapid.T) {
		p := &plan.Plan{}
		for range rapid.IntRange(1, 4).Draw(t, "waves") {
			w := plan.Wave{Name: "w", MaxConcurrent: plan.DefaultMaxConcurrent}
			if rapid.Bool().Draw(t, "by label") {
				w.MatchLabels = map[string]string{rapid.SampledFrom([]string{"tier", "ring"}).Draw(t, "label"): rapid.SampledFrom([]string{"city", "province", "early"}).Draw(t, "value")}
			} else {
				w.Groups = rapid.SliceOfNDistinct(rapid.SampledFrom(patterns), 1, 3, rapid.ID).Draw(t, "groups")
			}
			p.Waves = append(p.Waves, w)
		}
		shuffled := rapid.Permutation(groups).Draw(t, "order")
		got, warnings, err := plan.Resolve(p, shuffled)
		again, _, errAgain := plan.Resolve(p, groups)
		if diff := cmp.Diff(got, again, protocmp.Transform()); diff != "" || (err == nil) != (errAgain == nil) {
			t.Fatalf("the order of groups matters: %v, %v\n%s", err, errAgain, diff)
		}
		if err != nil {
			return
		}
		of := map[string]int{}
		for i, w := range got.Waves {
			if len(w.Groups) == 0 || !slices.IsSorted(w.Groups) || w.MaxConcurrent < 1 {
				t.Fatalf("wave %d: %v", i, w)
			}
			for _, g := range w.Groups {
				if first, twice := of[g]; twice {
					t.Fatalf("%s is in waves %d and %d", g, first, i)
				}
				of[g] = i
			}
			// Alone, the wave would have these and what earlier waves have.
			alone, _, err := plan.Resolve(&plan.Plan{Waves: p.Waves[i : i+1]}, groups)
			if err != nil {
				t.Fatal(err)
			}
			for _, g := range alone.Waves[0].Groups {
				if at, taken := of[g]; !taken || at > i {
					t.Fatalf("%s belongs in wave %d", g, i)
				}
			}
		}
		if got.AllGroups != (len(of) == 8) || got.AllGroups == strings.Contains(strings.Join(texts(warnings), "\n"), "in no wave") {
			t.Fatalf("%d groups, all: %v, warnings %q", len(of), got.AllGroups, texts(warnings))
		}
	})
}

func FuzzResolve(f *testing.F) {
	addCorpus(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := plan.Parse("f", data, time.LoadLocation)
		if err != nil {
			return
		}
		resolved, _, err := plan.Resolve(p, fabric())
		if (resolved == nil) == (err == nil) {
			t.Fatal("either a resolved plan or an error")
		}
		of := map[string]bool{}
		for _, w := range resolved.GetWaves() {
			if len(w.Groups) == 0 || w.MaxConcurrent == 0 {
				t.Fatalf("wave %v gets nowhere", w)
			}
			for _, g := range w.Groups {
				if of[g] {
					t.Fatalf("%s is in two waves", g)
				}
				of[g] = true
			}
		}
	})
}
