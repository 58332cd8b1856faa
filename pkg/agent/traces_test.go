package agent

import (
	"bufio"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
)

// constants gives the values of the string constants of a file that pick chooses by name and type.
func constants(t *testing.T, file string, pick func(name, typ string) bool) []string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 {
			return true
		}
		typ, _ := spec.Type.(*ast.Ident)
		lit, ok := spec.Values[0].(*ast.BasicLit)
		if name := ""; ok && lit.Kind == token.STRING {
			if typ != nil {
				name = typ.Name
			}
			if pick(spec.Names[0].Name, name) {
				v, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Fatal(err)
				}
				out = append(out, v)
			}
		}
		return true
	})
	return out
}

// rowsBelow gives the words in code in the first column of the table below a heading of docs/tracing.md.
func rowsBelow(t *testing.T, heading string) []string {
	t.Helper()
	f, err := os.Open(filepath.Join("..", "..", "docs", "tracing.md"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []string
	in := false
	for s := bufio.NewScanner(f); s.Scan(); {
		if strings.HasPrefix(s.Text(), "## ") {
			in = s.Text() == "## "+heading
		}
		if cell, ok := strings.CutPrefix(s.Text(), "| `"); in && ok {
			cell, _, _ = strings.Cut(cell, " |")
			for _, word := range strings.Split(cell, ", ") {
				out = append(out, strings.Trim(word, "`"))
			}
		}
	}
	return out
}

// TestTracingPage: the page of traces lists each span and each attribute, and no others.
func TestTracingPage(t *testing.T) {
	spans := constants(t, "traces.go", func(name, _ string) bool { return strings.HasPrefix(name, "span") })
	attributes := constants(t, filepath.Join("..", "tracing", "span.go"), func(_, typ string) bool { return typ == "Key" })
	ofResource := []string{"service.name", "service.version", "service.instance.id", "fanout.site", "fanout.group"} // TestStart of pkg/tracing
	for heading, want := range map[string][]string{"Spans": spans, "Attributes": append(attributes, ofResource...)} {
		listed := rowsBelow(t, heading)
		if len(want) < 10 {
			t.Fatalf("%s: only %q were found", heading, want)
		}
		for _, w := range want {
			if !slices.Contains(listed, w) {
				t.Errorf("docs/tracing.md does not list %q under %s", w, heading)
			}
		}
		for _, l := range listed {
			if !slices.Contains(want, l) {
				t.Errorf("docs/tracing.md lists %q under %s, which nothing has", l, heading)
			}
		}
	}
}

// TestOwedTo: a tag that moves on to a release, or back from it, does so for the sake of the promotion; one that goes with a tombstone for that of the deletion; else it is owed to the publish.
func TestOwedTo(t *testing.T) {
	d := func(name string) *catalogv1.Descriptor { return &catalogv1.Descriptor{Digest: name} }
	released := func(groups ...string) *catalogv1.Record {
		return &catalogv1.Record{Target: d("old"), Traceparent: "push", Releases: []*catalogv1.Release{
			{Target: d("older"), Rollout: "r1", Traceparent: "first"}, {Target: d("new"), Rollout: "r2", Groups: groups, Traceparent: "second"},
		}}
	}
	for _, c := range []struct {
		name string
		raw  *catalogv1.Record
		ours string
		want string
	}{
		{"a push", &catalogv1.Record{Target: d("new"), Traceparent: "push"}, "old", "push"},
		{"a release", released("hq/gd"), "old", "second"},
		{"back from it", released(), "new", "second"},
		{"back from one before", released(), "older", "first"},
		{"not back from anything", released(), "", "push"},
		{"a deletion", &catalogv1.Record{Target: d("old"), Deleted: true, RemovalTraceparent: "deletion"}, "old", "deletion"},
		{"a deletion of which nothing is known", &catalogv1.Record{Target: d("old"), Deleted: true}, "old", ""},
		{"nothing", nil, "old", ""},
	} {
		if got := owedTo(c.raw, catalog.Project(c.raw, "hq/gd"), "hq/gd", c.ours); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
