package archtest_test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/fanout-io/fanout"

// rank orders packages: each imports only lower ones. (Transfer uses the store, which is a rank below it.) Generated code, commands and tests of the whole stand apart.
var rank = map[string]int{
	"pkg/catalog": 1, "pkg/store": 1, "pkg/identity": 1, "pkg/config": 1, "pkg/tracing": 1,
	"pkg/tree": 2, "pkg/transfer": 2, "pkg/registry": 2, "pkg/reconcile": 2, "pkg/plan": 2,
	"pkg/view":  3,
	"pkg/web":   4,
	"pkg/agent": 5,
	"cmd":       6,
}

// onlyIn says which packages alone may import what. Tests may import anything.
var onlyIn = []struct {
	imports string   // path, or path and what is below
	in      []string // packages of this module, and what is below
	why     string
}{
	{"github.com/hashicorp/raft", []string{"pkg/tree"}, "consensus is the tree's affair"},
	{"github.com/hashicorp/raft-boltdb", []string{"pkg/tree"}, "the raft log is the tree's"},
	{"go.etcd.io/bbolt", []string{"pkg/store", "pkg/tree"}, "only the store and the raft log have databases"},
	{"github.com/google/go-containerregistry", []string{"pkg/registry"}, "registries are spoken to through pkg/registry"},
	{"github.com/distribution/distribution", []string{"pkg/registry"}, "registries are spoken to through pkg/registry"},
	{"go.opentelemetry.io", []string{"pkg/tracing"}, "traces are told of through pkg/tracing"},
	{"flag", []string{"cmd"}, "only commands read flags"},
	{"github.com/spf13", []string{"cmd"}, "only commands read flags"},
}

// pure packages get everything as arguments.
var pure = []string{"pkg/catalog", "pkg/reconcile", "pkg/plan", "internal/wording"}

// impure are imports that a pure package does without.
var impure = []string{
	"os", "net", "math/rand", "crypto/rand", "log", "sync", "context", "runtime", "testing", "syscall", "unsafe", "io/fs", "io/ioutil",
}

// harmless are below those, and pure.
var harmless = []string{"net/url"}

// impureUses is what it does not use of packages that it may import.
var impureUses = map[string][]string{
	"time": {"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker", "Local", "LoadLocation"},
	"google.golang.org/protobuf/types/known/timestamppb": {"Now"},
}

// environment is what only commands ask of package os.
var environment = []string{"Getenv", "LookupEnv", "Environ", "ExpandEnv", "Args"}

// badNames say nothing about what a package provides.
var badNames = []string{"util", "utils", "common", "types", "models", "helpers", "misc", "base", "shared"}

type pkg struct {
	ImportPath, Name, Dir string
	Standard              bool
	GoFiles               []string
	Imports, Deps         []string
	TestGoFiles           []string
	XTestGoFiles          []string
}

// rel is the path within the module; false: another module's.
func (p pkg) rel() (string, bool) { return strings.CutPrefix(p.ImportPath, module+"/") }

// load asks the go command for this module's packages.
func load(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=ImportPath,Name,Dir,Standard,GoFiles,Imports,Deps,TestGoFiles,XTestGoFiles", "./...")
	cmd.Dir = filepath.Join("..", "..")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) < 3 {
		t.Fatalf("go list knows %d packages only", len(pkgs))
	}
	return pkgs
}

// below says whether a path is root or lies below it.
func below(p, root string) bool { return p == root || strings.HasPrefix(p, root+"/") }

func belowAny(p string, roots []string) bool {
	return slices.ContainsFunc(roots, func(r string) bool { return below(p, r) })
}

// rankOf returns the longest ranked path that p lies at or below.
func rankOf(p string) (name string, n int) {
	for r, k := range rank {
		if below(p, r) && len(r) > len(name) {
			name, n = r, k
		}
	}
	return name, n
}

// brokenImport says why from may not import to, both within the module; empty: it may.
func brokenImport(from, to string) string {
	a, ra := rankOf(from)
	b, rb := rankOf(to)
	switch {
	case below(from, "proto"):
		if !below(to, "proto") {
			return "generated code imports generated code only"
		}
	case below(to, "integration"):
		return "nothing imports the integration tests"
	case below(to, "cmd") && !below(from, "cmd"):
		return "nothing imports a command"
	case a == b || rb == 0 || ra == 0:
		return ""
	case ra == rb:
		return "packages of one rank do not import each other"
	case ra < rb:
		return "imports run one way: cmd, agent, web, view, {tree, transfer, registry, reconcile, plan}, {catalog, store, identity, config, tracing}, proto"
	}
	return ""
}

func TestImports(t *testing.T) {
	for _, p := range load(t) {
		from, ok := p.rel()
		if !ok {
			continue
		}
		if strings.HasPrefix(from, "pkg/") {
			if name, _ := rankOf(from); name == "" {
				t.Errorf("%s has no rank: say in internal/archtest where it stands", from)
			}
		}
		for _, imported := range p.Imports {
			if to, ours := strings.CutPrefix(imported, module+"/"); ours {
				if why := brokenImport(from, to); why != "" {
					t.Errorf("%s imports %s: %s", from, to, why)
				}
				continue
			}
			for _, rule := range onlyIn {
				if below(imported, rule.imports) && !belowAny(from, rule.in) && !below(from, "integration") {
					t.Errorf("%s imports %s: only %s may: %s", from, imported, strings.Join(rule.in, ", "), rule.why)
				}
			}
		}
	}
}

// TestImports_RulesBite shows that the rules refuse what they are for.
func TestImports_RulesBite(t *testing.T) {
	for _, tt := range []struct {
		from, to string
		ok       bool
	}{
		{"cmd/fanoutd", "pkg/agent", true}, {"pkg/agent", "pkg/tree", true}, {"pkg/tree", "pkg/catalog", true}, {"pkg/transfer", "pkg/store", true},
		{"pkg/store/storetest", "pkg/store", true}, {"pkg/catalog", "proto/fanout/catalog/v1", true}, {"integration", "pkg/agent", true},
		{"pkg/agent", "pkg/web", true}, {"pkg/web", "pkg/view", true}, {"pkg/view", "pkg/plan", true}, {"pkg/web", "pkg/agent", false}, {"pkg/view", "pkg/web", false},
		{"pkg/catalog", "pkg/tree", false}, {"pkg/tree", "pkg/registry", false}, {"pkg/store", "pkg/catalog", false}, {"pkg/agent", "cmd/fanoutd", false},
		{"proto/fanout/tree/v1", "pkg/catalog", false}, {"pkg/store/storetest", "pkg/transfer", false}, {"pkg/agent", "integration", false},
	} {
		if why := brokenImport(tt.from, tt.to); (why == "") != tt.ok {
			t.Errorf("%s imports %s: %q", tt.from, tt.to, why)
		}
	}
}

// TestPure: pure packages use no clock, chance, goroutine or I/O, directly or through another package of this module.
func TestPure(t *testing.T) {
	found := 0
	for _, p := range load(t) {
		rel, ok := p.rel()
		if !ok || !slices.Contains(pure, rel) {
			continue
		}
		found++
		for _, dep := range p.Deps {
			if to, ours := strings.CutPrefix(dep, module+"/"); ours && !slices.Contains(pure, to) && to != "proto/fanout/catalog/v1" {
				t.Errorf("%s depends on %s, which is not pure", rel, to)
			}
			if below(dep, "google.golang.org/grpc") {
				t.Errorf("%s links %s: stored messages have no services", rel, dep)
			}
		}
		for _, file := range p.GoFiles {
			for _, complaint := range impurities(t, filepath.Join(p.Dir, file), nil) {
				t.Errorf("%s/%s: %s", rel, file, complaint)
			}
		}
	}
	if found != len(pure) {
		t.Errorf("%d of the pure packages %v exist", found, pure)
	}
}

// impurities parses a file, or src if given, and lists what a pure package does not do.
func impurities(t *testing.T, file string, src any) []string {
	t.Helper()
	f, fset := parse(t, file, src)
	var out []string
	complain := func(at token.Pos, what string) {
		out = append(out, "line "+strconv.Itoa(fset.Position(at).Line)+": "+what)
	}
	for _, spec := range f.Imports {
		if p := importPath(spec); belowAny(p, impure) && !slices.Contains(harmless, p) {
			complain(spec.Pos(), "imports "+p)
		} else if spec.Name != nil && spec.Name.Name == "." {
			complain(spec.Pos(), "imports "+p+" without a name, which hides what it uses")
		}
	}
	for p, names := range impureUses {
		for _, sel := range uses(f, p, names) {
			complain(sel.Pos(), "uses "+path.Base(p)+"."+sel.Sel.Name)
		}
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			complain(n.Pos(), "starts a goroutine")
		case *ast.ChanType, *ast.SelectStmt, *ast.SendStmt:
			complain(n.Pos(), "uses a channel")
		}
		return true
	})
	return out
}

func TestPure_RuleBites(t *testing.T) {
	src := `package p
import ("math/rand/v2"; clock "time"; . "strings"; "os"; "net/url")
var now = clock.Now
func f(time interface{ Now() }) { go f(nil); time.Now(); _ = make(chan int); _ = rand.Int(); _ = os.Args; _ = Fields("") }
`
	got := impurities(t, "p.go", src)
	for _, want := range []string{"imports math/rand/v2", "uses time.Now", "imports strings without", "imports os", "starts a goroutine", "uses a channel"} {
		if !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, want) }) {
			t.Errorf("%q is not noticed: %q", want, got)
		}
	}
	if len(got) != 6 {
		t.Errorf("got %q", got)
	}
}

func parse(t *testing.T, file string, src any) (*ast.File, *token.FileSet) {
	t.Helper()
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, file, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return f, fset
}

func importPath(spec *ast.ImportSpec) string {
	p, err := strconv.Unquote(spec.Path.Value)
	if err != nil {
		return spec.Path.Value
	}
	return p
}

// uses finds selectors of the given names on the package imported as path, under whatever name.
func uses(f *ast.File, imported string, names []string) []*ast.SelectorExpr {
	local := ""
	for _, spec := range f.Imports {
		if importPath(spec) == imported {
			local = path.Base(imported)
			if spec.Name != nil {
				local = spec.Name.Name
			}
		}
	}
	if local == "" {
		return nil
	}
	var out []*ast.SelectorExpr
	ast.Inspect(f, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok || !slices.Contains(names, sel.Sel.Name) {
			return true
		}
		if x, ok := sel.X.(*ast.Ident); ok && x.Name == local {
			out = append(out, sel)
		}
		return true
	})
	return out
}

// TestEnvironment: packages read no environment, and nothing in them runs before their owner says so.
func TestEnvironment(t *testing.T) {
	for _, p := range load(t) {
		rel, ok := p.rel()
		if !ok || !strings.HasPrefix(rel, "pkg/") {
			continue
		}
		for _, file := range p.GoFiles {
			f, fset := parse(t, filepath.Join(p.Dir, file), nil)
			for _, sel := range uses(f, "os", environment) {
				t.Errorf("%s/%s:%d: os.%s: only commands read flags and environment", rel, file, fset.Position(sel.Pos()).Line, sel.Sel.Name)
			}
			for _, decl := range f.Decls {
				if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
					t.Errorf("%s/%s:%d: an init function: let the owner call it", rel, file, fset.Position(fn.Pos()).Line)
				}
			}
		}
	}
}

// TestTimeZones: a plan's time zone is known on every machine, one without a database of them too.
func TestTimeZones(t *testing.T) {
	for _, p := range load(t) {
		if rel, ok := p.rel(); ok && slices.Contains([]string{"cmd/fanoutd", "cmd/fanoutctl"}, rel) && !slices.Contains(p.Deps, "time/tzdata") {
			t.Errorf("%s does not link time/tzdata", rel)
		}
	}
}

// TestPackages: every package says what it is, and its name says what it provides.
func TestPackages(t *testing.T) {
	for _, p := range load(t) {
		rel, ok := p.rel()
		if !ok || len(p.GoFiles)+len(p.TestGoFiles)+len(p.XTestGoFiles) == 0 {
			continue
		}
		if slices.Contains(badNames, p.Name) || slices.Contains(badNames, path.Base(rel)) {
			t.Errorf("%s: a package is named by what it provides", rel)
		}
		if below(rel, "proto") {
			continue // described in the .proto files
		}
		files := slices.Concat(p.GoFiles, p.TestGoFiles, p.XTestGoFiles)
		if !slices.ContainsFunc(files, func(file string) bool {
			f, _ := parse(t, filepath.Join(p.Dir, file), nil)
			return f.Doc != nil && len(strings.Fields(f.Doc.Text())) > 3
		}) {
			t.Errorf("%s has no package comment", rel)
		}
	}
}
