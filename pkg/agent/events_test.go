package agent

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestEventReasons_InChinese: the page has a Chinese word for each reason that an event of an agent can have, and for nothing else.
func TestEventReasons_InChinese(t *testing.T) {
	reasons := map[string]bool{notAsked: true, notKnown: true, stepReason("group"): true}
	for _, kind := range stepKinds {
		reasons[stepReason(kind)] = true
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	set := token.NewFileSet()
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(set, file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			said, of := call.Fun.(*ast.SelectorExpr)
			if !of || said.Sel.Name != "normal" && said.Sel.Name != "warning" {
				return true
			}
			word, ok := call.Args[0].(*ast.BasicLit)
			if !ok {
				t.Errorf("%s: the reason is no word", set.Position(call.Pos()))
				return true
			}
			reason, err := strconv.Unquote(word.Value)
			if err != nil {
				t.Fatal(err)
			}
			reasons[reason] = true
			return true
		})
	}
	if len(reasons) < 50 {
		t.Fatalf("only %d reasons are found", len(reasons))
	}
	b, err := os.ReadFile(filepath.Join("..", "web", "assets", "reasons.js"))
	if err != nil {
		t.Fatal(err)
	}
	page := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^  "([A-Za-z]+)": "([^"]+)",$`).FindAllStringSubmatch(string(b), -1) {
		if page[m[1]] {
			t.Errorf("reasons.js has %s twice", m[1])
		}
		page[m[1]] = true
		if !reasons[m[1]] {
			t.Errorf("reasons.js has %s, which is none", m[1])
		}
	}
	for reason := range reasons {
		if !page[reason] {
			t.Errorf("reasons.js does not have %s", reason)
		}
	}
}
