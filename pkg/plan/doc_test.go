package plan_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fanout-io/fanout/docs/schemas"
	"github.com/fanout-io/fanout/pkg/plan"
)

func page(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", "promote.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestPage_Files: what the user's page offers to be copied is accepted, and warned of nothing.
func TestPage_Files(t *testing.T) {
	plans, policies := 0, 0
	for _, m := range regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$").FindAllStringSubmatch(page(t), -1) {
		if strings.Contains(m[1], "kind: Policy") {
			_, warnings, err := plan.ParsePolicies("promote.md", []byte(m[1]))
			if err != nil || len(warnings) > 0 {
				t.Errorf("%s\n%v, warnings %q", m[1], err, texts(warnings))
			}
			policies++
			continue
		}
		p, err := plan.Parse("promote.md", []byte(m[1]), time.LoadLocation)
		if err != nil {
			t.Errorf("%s\n%v", m[1], err)
			continue
		}
		plans++
		groups := slices.DeleteFunc(fabric(), func(g plan.Group) bool { return g.Path == "hq/guangdong/zhuhai" }) // which has no label
		resolved, warnings, err := plan.Resolve(p, groups)
		if err != nil || len(warnings) > 0 || !resolved.GetAllGroups() {
			t.Errorf("%s\n%v, warnings %q", m[1], err, texts(warnings))
		}
	}
	if plans != 3 || policies != 1 {
		t.Errorf("%d plans and %d files of policies", plans, policies)
	}
}

// TestPage_Keys: the page says of every key what it means.
func TestPage_Keys(t *testing.T) {
	text := page(t)
	for _, schema := range []string{schemas.Plan, schemas.Policy} {
		var doc map[string]any
		if err := json.Unmarshal([]byte(schema), &doc); err != nil {
			t.Fatal(err)
		}
		keys := map[string]bool{}
		schemaKeys(doc, keys)
		if len(keys) < 8 {
			t.Errorf("%d keys only", len(keys))
		}
		for _, key := range slices.Sorted(maps.Keys(keys)) {
			if !strings.Contains(text, "`"+key+"`") && !strings.Contains(text, "."+key+"`") && !slices.Contains([]string{"apiVersion", "kind", "metadata", "spec"}, key) {
				t.Errorf("%s is not explained", key)
			}
		}
	}
}

// TestPage_Defaults: the defaults that the page and the schema name are those that count.
func TestPage_Defaults(t *testing.T) {
	w := plan.Default().Waves[0]
	for key, value := range map[string]string{
		"maxConcurrent": w.MaxConcurrent.String(), "maxFailures": w.MaxFailures.String(), "soak": "0", "onFailure": w.OnFailure, "onOffline": w.OnOffline, "timezone": plan.DefaultTimezone,
		"deadline": strings.TrimSuffix(plan.DefaultDeadline.String(), "0m0s"), "interval": plan.DefaultCheckInterval.String(), "timeout": strings.TrimSuffix(plan.DefaultCheckTimeout.String(), "0s"),
	} {
		if !regexp.MustCompile("(?m)^\\| `" + key + "` \\|.*\\| `" + regexp.QuoteMeta(value) + "` \\|$").MatchString(page(t)) {
			t.Errorf("the page does not say that the default of %s is %s", key, value)
		}
		var doc map[string]any
		if err := json.Unmarshal([]byte(schemas.Plan), &doc); err != nil {
			t.Fatal(err)
		}
		said := false
		descriptions(doc, key, func(text string) { said = said || strings.Contains(text, "Default: "+value+".") })
		if !said {
			t.Errorf("the schema does not say that the default of %s is %s", key, value)
		}
	}
	if w.Soak != 0 || w.Window != nil {
		t.Errorf("default wave: %+v", w)
	}
}

// schemaKeys gathers the names of all properties.
func schemaKeys(node any, keys map[string]bool) {
	switch node := node.(type) {
	case []any:
		for _, below := range node {
			schemaKeys(below, keys)
		}
	case map[string]any:
		for name, below := range node {
			if properties, ok := below.(map[string]any); ok && name == "properties" {
				for key := range properties {
					keys[key] = true
				}
			}
			schemaKeys(below, keys)
		}
	}
}

// descriptions calls f with what is said about each property of that name.
func descriptions(node any, key string, f func(string)) {
	m, _ := node.(map[string]any)
	for name, below := range m {
		if property, ok := below.(map[string]any); ok && name == key {
			if text, ok := property["description"].(string); ok {
				f(text)
			}
		}
		descriptions(below, key, f)
	}
}
