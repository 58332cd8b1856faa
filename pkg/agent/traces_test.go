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
