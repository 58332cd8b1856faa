package archtest_test

import (
	"bufio"
	"go/ast"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// logsPage lists the keys of log lines, one row of a table each.
const logsPage = "docs/logs.md"

// ownKeys are on every line of an agent, put there once; a second one in a line would hide the first.
var ownKeys = []string{"site", "group"}

// passesOn are files that hand other people's lines on, with their keys.
var passesOn = []string{"pkg/tree/raftlog.go"}

// TestLogs: messages are constants, so that one can search and count them; keys are those of the page, and the page lists no others.
func TestLogs(t *testing.T) {
	known := logKeys(t)
	used := map[string]bool{}
	for _, p := range load(t) {
		rel, ok := p.rel()
		if !ok || !strings.HasPrefix(rel, "pkg/") && rel != "cmd/fanoutd" {
			continue
		}
		for _, file := range p.GoFiles {
			name := rel + "/" + file
			if slices.Contains(passesOn, name) {
				continue
			}
			f, fset := parse(t, filepath.Join(p.Dir, file), nil)
			for _, c := range logCalls(f) {
				line := name + ":" + strconv.Itoa(fset.Position(c.at).Line)
				for _, what := range c.complaints(known, name == "pkg/agent/agent.go" || name == "cmd/fanoutd/main.go") {
					t.Errorf("%s: %s", line, what)
				}
				for _, k := range c.keys {
					used[k] = true
				}
			}
		}
	}
	if len(used) < 20 {
		t.Errorf("only %d keys were found: the search is broken", len(used))
	}
	for k := range known {
		if !used[k] && k != "part" { // raft's, put on in a file that passes lines on
			t.Errorf("%s lists %q, which no line has", logsPage, k)
		}
	}
}

func TestLogs_RuleBites(t *testing.T) {
	f, _ := parse(t, "p.go", `package p
func (a *a) f() {
	a.log.Warn("well", "digest", d, "error", err)
	a.x.logger.Info("of " + name)
	log.Debug("m", "color", 1)
	logger.Error("m", "site", s)
	log.With("group", g)
	log.Info("m", key, 1)
	log.Info("m", "digest")
	log.Info("m", "digest", 1, "digest", 2)
	a.catalog.Error("of something else " + name)
}
`)
	var got []string
	for _, c := range logCalls(f) {
		got = append(got, c.complaints(map[string]bool{"digest": true, "error": true, "site": true, "group": true}, false)...)
	}
	want := []string{
		"the message is no constant", `"color" is not listed in docs/logs.md`, `"site" is on each line already`, `"group" is on each line already`,
		"a key is no constant", "a key without a value", `"digest" is there twice`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// logKeys reads the first column of the page's tables.
func logKeys(t *testing.T) map[string]bool {
	t.Helper()
	f, err := os.Open(filepath.Join("..", "..", logsPage))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	known := map[string]bool{}
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), "| `"); ok {
			key, _, _ := strings.Cut(rest, "`")
			known[key] = true
		}
	}
	return known
}

// logCall is a call of a logger.
type logCall struct {
	at      token.Pos
	message ast.Expr // nil for With
	args    []ast.Expr
	keys    []string
}

// logCalls finds calls on what is named log or logger.
func logCalls(f *ast.File) []logCall {
	var out []logCall
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		method, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		var on string
		switch x := method.X.(type) {
		case *ast.Ident:
			on = x.Name
		case *ast.SelectorExpr:
			on = x.Sel.Name
		}
		if on != "log" && on != "logger" {
			return true
		}
		c := logCall{at: call.Pos()}
		switch method.Sel.Name {
		case "Debug", "Info", "Warn", "Error":
			if len(call.Args) == 0 {
				return true
			}
			c.message, c.args = call.Args[0], call.Args[1:]
		case "With":
			c.args = call.Args
		default:
			return true
		}
		for i := 0; i < len(c.args); i += 2 {
			if k, ok := constant(c.args[i]); ok {
				c.keys = append(c.keys, k)
			}
		}
		out = append(out, c)
		return true
	})
	return out
}

func constant(e ast.Expr) (string, bool) {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	s, err := strconv.Unquote(lit.Value)
	return s, err == nil
}

// complaints about a call; own says that it may put the keys on that each line has.
func (c logCall) complaints(known map[string]bool, own bool) []string {
	var out []string
	if c.message != nil {
		if _, ok := constant(c.message); !ok {
			out = append(out, "the message is no constant")
		}
	}
	if len(c.keys) != (len(c.args)+1)/2 {
		out = append(out, "a key is no constant")
	}
	if len(c.args)%2 == 1 {
		out = append(out, "a key without a value")
	}
	for i, k := range c.keys {
		switch {
		case slices.Contains(c.keys[:i], k):
			out = append(out, strconv.Quote(k)+" is there twice")
		case slices.Contains(ownKeys, k) && !own:
			out = append(out, strconv.Quote(k)+" is on each line already")
		case !known[k]:
			out = append(out, strconv.Quote(k)+" is not listed in "+logsPage)
		}
	}
	return out
}
