package plan_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/fanout-io/fanout/docs/schemas"
	"github.com/fanout-io/fanout/pkg/plan"
)

var rewrite = flag.Bool("rewrite", false, "write what the files in testdata give now")

// TestParse runs the corpus of plans: what is said about each, and that the schema says the same. It can't see what is wrong in files called -beyond.
func TestParse(t *testing.T) {
	corpus(t, "plan.txtar", schemas.Plan, func(name string, data []byte) (string, error) {
		p, err := plan.Parse(name, data, time.LoadLocation)
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("plan %s, %d waves", p.Name, len(p.Waves)), nil
	})
}

// TestParsePolicies is TestParse for policies.
func TestParsePolicies(t *testing.T) {
	corpus(t, "policy.txtar", schemas.Policy, func(name string, data []byte) (string, error) {
		policies, warnings, err := plan.ParsePolicies(name, data)
		if err != nil {
			return "", err
		}
		var out []string
		for _, p := range policies {
			j, err := protojson.Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer // protojson varies the spaces
			if err := json.Compact(&b, j); err != nil {
				t.Fatal(err)
			}
			out = append(out, b.String())
		}
		for _, w := range warnings {
			out = append(out, "warning: "+w.String())
		}
		return strings.Join(out, "\n"), nil
	})
}

// long are wrong in that they are too long, and would be too long for the archives.
func long(schema string) []string {
	many := func(n int, format string) string {
		var items []string
		for i := range n {
			items = append(items, fmt.Sprintf(format, i))
		}
		return strings.Join(items, ", ")
	}
	word := strings.Repeat("a", 513)
	if schema == schemas.Policy {
		return []string{"apiVersion: fanout/v1\nkind: Policy\nmetadata: {name: p}\nspec: {delivery: staged, repositories: [" + many(1025, "a%d") + "]}\n"}
	}
	var out []string
	for _, wave := range []string{
		"groups: [" + many(1025, "a%d") + "]", "selector: {matchLabels: {" + many(65, "a%d: b") + "}}", "selector: {matchLabels: {a: " + word + "}}",
		"groups: [a], window: {allow: [" + many(33, "%d 1 * * * / 1h") + "]}", "groups: [a], window: {allow: ['" + strings.Repeat("1,", 256) + "1 * * * * / 1h']}",
		"groups: [a], gates: {after: [check: {url: http://" + word + "}]}",
	} {
		out = append(out, "apiVersion: fanout/v1\nkind: Plan\nmetadata: {name: p}\nspec: {waves: [{name: a, "+wave+"}]}\n")
	}
	return out
}

// corpus compares what parse says about each file of an archive, and what the schema says, with the file's neighbour in the archive.
func corpus(t *testing.T, file, schema string, parse func(name string, data []byte) (string, error)) {
	t.Helper()
	file = filepath.Join("testdata", file)
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	compiled := compile(t, schema)
	expected := map[string]string{}
	for _, f := range archive.Files {
		expected[f.Name] = string(f.Data)
	}
	out := &txtar.Archive{Comment: archive.Comment}
	for _, f := range archive.Files {
		name, isInput := strings.CutSuffix(f.Name, ".yaml")
		if !isInput {
			continue
		}
		said, err := parse(f.Name, f.Data)
		if err != nil {
			said = err.Error()
		}
		said += "\n"
		out.Files = append(out.Files, f, txtar.File{Name: name + ".out", Data: []byte(said)})
		if !*rewrite {
			if diff := gocmp.Diff(expected[name+".out"], said); diff != "" {
				t.Errorf("%s: -want +got (go test -rewrite writes it anew):\n%s", name, diff)
			}
		}
		docs, refusal := decode(f.Data)
		refusal = cmp.Or(refusal, validate(compiled, docs))
		switch beyond := strings.HasSuffix(name, "-beyond"); {
		case beyond && (err == nil || refusal != nil):
			t.Errorf("%s: wrong in a way that the schema can't see, but the parser says %v, the schema %v", name, err, refusal)
		case !beyond && (err == nil) != (refusal == nil):
			t.Errorf("%s: the parser says %v, the schema %v", name, err, refusal)
		}
	}
	for _, data := range long(schema) {
		docs, err := decode([]byte(data))
		if err != nil {
			t.Fatal(err)
		}
		_, err = parse("long", []byte(data))
		if refusal := validate(compiled, docs); err == nil || refusal == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.150s…: the parser says %v, the schema %v", data, err, refusal)
		}
	}
	if *rewrite {
		if err := os.WriteFile(file, txtar.Format(out), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func compile(t testing.TB, schema string) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(schema))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// decode reads the documents of a file as a JSON Schema sees them. A file that is no YAML, can't be JSON, or is empty is refused here.
func decode(data []byte) ([]any, error) {
	var docs []any
	for dec := yaml.NewDecoder(bytes.NewReader(data)); ; {
		var doc any
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if doc == nil {
			continue
		}
		j, err := json.Marshal(doc)
		if err != nil {
			return nil, err
		}
		instance, err := jsonschema.UnmarshalJSON(bytes.NewReader(j))
		if err != nil {
			return nil, err
		}
		docs = append(docs, instance)
	}
	if len(docs) == 0 {
		return nil, errors.New("no document")
	}
	return docs, nil
}

// validate says what a schema has against documents.
func validate(schema *jsonschema.Schema, docs []any) error {
	var errs []error
	for _, doc := range docs {
		errs = append(errs, schema.Validate(doc))
	}
	return errors.Join(errs...)
}

// TestSchemas_EachRuleCounts takes each rule of the schemas away in turn: then a wrong file of the corpus must pass, or the corpus lacks one.
func TestSchemas_EachRuleCounts(t *testing.T) {
	// What is no object has neither groups nor selector, nor lacks them. The type is there for editors.
	const implied = "/$defs/wave/type"
	for file, schema := range map[string]string{"plan.txtar": schemas.Plan, "policy.txtar": schemas.Policy} {
		archive, err := txtar.ParseFile(filepath.Join("testdata", file))
		if err != nil {
			t.Fatal(err)
		}
		whole := compile(t, schema)
		files := long(schema)
		for _, f := range archive.Files {
			if strings.HasSuffix(f.Name, ".yaml") {
				files = append(files, string(f.Data))
			}
		}
		var refused [][]any
		for _, f := range files {
			if docs, err := decode([]byte(f)); err == nil && validate(whole, docs) != nil {
				refused = append(refused, docs)
			}
		}
		var doc map[string]any
		if err := json.Unmarshal([]byte(schema), &doc); err != nil {
			t.Fatal(err)
		}
		rules := 0
		withoutEachRule("", doc, func(rule string) {
			rules++
			without, err := json.Marshal(doc)
			if err != nil {
				t.Fatal(err)
			}
			s := compile(t, string(without))
			if !slices.ContainsFunc(refused, func(docs []any) bool { return validate(s, docs) == nil }) && rule != implied {
				t.Errorf("%s: nothing depends on %s", file, rule)
			}
		})
		if rules < 10 {
			t.Errorf("%s: %d rules only", file, rules)
		}
	}
}

// withoutEachRule calls f once for each rule in a schema, while it is without it.
func withoutEachRule(path string, node any, f func(rule string)) {
	switch node := node.(type) {
	case []any:
		for i, below := range node {
			withoutEachRule(fmt.Sprintf("%s/%d", path, i), below, f)
		}
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(node)) {
			value, at := node[key], path+"/"+key
			switch key {
			case "$schema", "$id", "title", "description", "$defs", "properties", "items", "anyOf":
			case "required":
				for i, name := range value.([]any) {
					node[key] = slices.Delete(slices.Clone(value.([]any)), i, i+1)
					f(fmt.Sprintf("%s/%s", at, name))
				}
				node[key] = value
			default:
				if _, isName := value.(map[string]any); isName && key != "not" && key != "additionalProperties" {
					break // of a property, not a rule
				}
				delete(node, key)
				f(at)
				node[key] = value
			}
			if key != "not" { // to refuse nothing is to refuse everything
				withoutEachRule(at, value, f)
			}
		}
	}
}

func TestParse_TooLarge(t *testing.T) {
	data := []byte(strings.Repeat("#", plan.MaxBytes+1))
	if _, err := plan.Parse("p", data, time.LoadLocation); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("got %v", err)
	}
}

// TestParse_ManyProblems: a file that is wrong all over is not answered with a book.
func TestParse_ManyProblems(t *testing.T) {
	data := "apiVersion: fanout/v1\nkind: Plan\nmetadata: {name: p}\nspec:\n  waves: [{name: a, groups: [" + strings.Repeat("5, ", 1000) + "6]}]\n"
	_, err := plan.Parse("p", []byte(data), time.LoadLocation)
	if err == nil {
		t.Fatal("accepted")
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != 101 || lines[100] != "p: and more that is not shown here" {
		t.Errorf("%d lines, the last: %s", len(lines), lines[len(lines)-1])
	}
}

func TestParsePolicies_TooMany(t *testing.T) {
	file := func(policies, patterns int) []byte {
		var b strings.Builder
		for i := range policies {
			fmt.Fprintf(&b, "---\napiVersion: fanout/v1\nkind: Policy\nmetadata: {name: p%d}\nspec: {delivery: staged, repositories: [", i)
			for j := range patterns {
				fmt.Fprintf(&b, "p%d/%d, ", i, j)
			}
			b.WriteString("]}\n")
		}
		return []byte(b.String())
	}
	for _, tt := range []struct {
		policies, patterns int
		want               string
	}{
		{256, 16, ""},
		{257, 1, "p:1282: has 257 policies; at most 256 are allowed"},
		{256, 17, "p:1202: spec.repositories: with these the policies have 4097 patterns; at most 4096 are allowed, so write wider ones"},
	} {
		policies, _, err := plan.ParsePolicies("p", file(tt.policies, tt.patterns))
		if tt.want == "" && (err != nil || len(policies) != tt.policies) || tt.want != "" && (err == nil || err.Error() != tt.want) {
			t.Errorf("%d policies of %d patterns: %d and %v, want %s", tt.policies, tt.patterns, len(policies), err, tt.want)
		}
	}
}

// TestParse_Aliases: what aliases of aliases would stand for, were they written out, is not read.
func TestParse_Aliases(t *testing.T) {
	const head = "apiVersion: fanout/v1\nkind: Plan\nmetadata: {name: p}\nspec:\n"
	var lists strings.Builder
	lists.WriteString(head + "  a0: &a0 [x, x]\n")
	for i := range 60 {
		fmt.Fprintf(&lists, "  a%d: &a%d [*a%d, *a%d]\n", i+1, i+1, i, i)
	}
	lists.WriteString("  waves:\n  - {name: a, groups: *a60, gates: {before: *a60}}\n")

	// Each wave has 32 gates with many keys that are not known.
	var keys strings.Builder
	keys.WriteString(head + "  x: &x {")
	for i := range 250 {
		fmt.Fprintf(&keys, "k%d: 1, ", i)
	}
	keys.WriteString("}\n  y: &y [" + strings.Repeat("*x, ", 16) + "]\n  z: &z {name: a, gates: {before: *y, after: *y}}\n  waves: [" + strings.Repeat("*z, ", 64) + "]\n")

	for name, tt := range map[string]struct{ in, want string }{
		"lists":         {lists.String(), "p:64: spec.waves[0].groups[0]: a list is not a text"},
		"keys":          {keys.String(), "p: and more that is not shown here"},
		"too many keys": {head + "  x: {" + strings.Repeat("x: 1, ", 257) + "}\n  waves: [{name: a, groups: [a], gates: {before: [{" + strings.Repeat("x: 1, ", 257) + "}]}}]\n", "has 257 keys; at most 256"},
	} {
		_, err := plan.Parse("p", []byte(tt.in), time.LoadLocation)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q in it", name, err, tt.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	addCorpus(f)
	now := time.Date(2026, 11, 24, 22, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := plan.Parse("f", data, time.LoadLocation)
		if (p == nil) == (err == nil) {
			t.Fatal("either a plan or an error")
		}
		if err == nil && len(p.Waves) == 0 {
			t.Fatal("a plan without waves")
		}
		for i := 0; err == nil && i < len(p.Waves); i++ {
			w := p.Waves[i]
			if w.Name == "" || w.OnFailure == "" || w.OnOffline == "" || (w.MatchLabels == nil) == (w.Groups == nil) {
				t.Fatalf("not whole: %+v", w)
			}
			if plan.Next(w.Window, time.UTC, now).IsZero() {
				t.Fatalf("window %v never opens", w.Window)
			}
		}
		if policies, _, err := plan.ParsePolicies("f", data); (len(policies) == 0) == (err == nil) {
			t.Fatal("either policies or an error")
		}
	})
}

// addCorpus gives a fuzz target what the archives have.
func addCorpus(f *testing.F) {
	for _, file := range []string{"plan.txtar", "policy.txtar"} {
		archive, err := txtar.ParseFile(filepath.Join("testdata", file))
		if err != nil {
			f.Fatal(err)
		}
		for _, a := range archive.Files {
			if strings.HasSuffix(a.Name, ".yaml") {
				f.Add(a.Data)
			}
		}
	}
}
