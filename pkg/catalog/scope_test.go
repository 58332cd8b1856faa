package catalog_test

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"pgregory.net/rapid"

	"github.com/google/go-cmp/cmp"

	"github.com/fanout-io/fanout/pkg/catalog"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

func TestMatchScope(t *testing.T) {
	sub := func(repos, exclude string) *catalogv1.Subscription {
		return &catalogv1.Subscription{Repositories: strings.Fields(repos), Exclude: strings.Fields(exclude)}
	}
	for _, tt := range []struct {
		scope *catalogv1.Scope
		repo  string
		want  bool
	}{
		{nil, "app", false},
		{&catalogv1.Scope{}, "app", false},
		{&catalogv1.Scope{AnyOf: []*catalogv1.Subscription{sub("", "")}}, "app", false},
		{&catalogv1.Scope{AnyOf: []*catalogv1.Subscription{sub("**", "")}}, "a/b/c", true},
		{&catalogv1.Scope{AnyOf: []*catalogv1.Subscription{sub("*", "")}}, "a/b", false},
		{&catalogv1.Scope{AnyOf: []*catalogv1.Subscription{sub("prod/**", "prod/secret/**")}}, "prod/x/y", true},
		{&catalogv1.Scope{AnyOf: []*catalogv1.Subscription{sub("prod/**", "prod/secret/**")}}, "prod/secret/y", false},
		{&catalogv1.Scope{AnyOf: []*catalogv1.Subscription{sub("prod/**", "prod/secret/**"), sub("prod/secret/y", "")}}, "prod/secret/y", true},
		{&catalogv1.Scope{AnyOf: []*catalogv1.Subscription{sub("{app,db}/*", "")}}, "db/x", true},
		{&catalogv1.Scope{AnyOf: []*catalogv1.Subscription{sub("a[", "")}}, "a[", false},
	} {
		if got := catalog.MatchScope(tt.scope, tt.repo); got != tt.want {
			t.Errorf("%v %s: %v", tt.scope, tt.repo, got)
		}
	}
}

func TestUnion_Absorbs(t *testing.T) {
	sub := func(keep uint32, repos ...string) *catalogv1.Subscription {
		return &catalogv1.Subscription{Repositories: repos, Keep: keep}
	}
	for _, tt := range []struct{ in, want []*catalogv1.Subscription }{
		{[]*catalogv1.Subscription{sub(0, "b", "a", "b")}, []*catalogv1.Subscription{sub(0, "a", "b")}},
		{[]*catalogv1.Subscription{sub(0, "b"), sub(0, "**", "c"), sub(3, "**")}, []*catalogv1.Subscription{sub(0, "**")}},
		{[]*catalogv1.Subscription{sub(0, "b"), sub(3, "**"), sub(2, "c")}, []*catalogv1.Subscription{sub(3, "**"), sub(0, "b")}},
		{[]*catalogv1.Subscription{{Repositories: []string{"**"}, Exclude: []string{"x"}}, sub(0, "a")},
			[]*catalogv1.Subscription{{Repositories: []string{"**"}, Exclude: []string{"x"}}, sub(0, "a")}},
		{[]*catalogv1.Subscription{{Repositories: []string{"a"}, Exclude: []string{"**"}}, sub(0)}, nil},
	} {
		got := catalog.Union(&catalogv1.Scope{AnyOf: tt.in})
		if diff := cmp.Diff(&catalogv1.Scope{AnyOf: tt.want}, got, protocmp.Transform()); diff != "" {
			t.Errorf("%v: -want +got:\n%s", tt.in, diff)
		}
	}
}

func drawScope(t *rapid.T) *catalogv1.Scope {
	patterns := []string{"**", "app/**", "app/a", "db/*", "*", "{app,db}/a"}
	scope := &catalogv1.Scope{}
	for range rapid.IntRange(0, 3).Draw(t, "subscriptions") {
		scope.AnyOf = append(scope.AnyOf, &catalogv1.Subscription{
			Repositories: rapid.SliceOfN(rapid.SampledFrom(patterns), 0, 3).Draw(t, "repositories"),
			Exclude:      rapid.SliceOfN(rapid.SampledFrom(patterns), 0, 2).Draw(t, "exclude"),
			Keep:         rapid.Uint32Range(0, 2).Draw(t, "keep"),
		})
	}
	return scope
}

// TestUnion_SelectsWhatItsPartsSelect: the canonical form selects the same, does not depend on order, and is stable.
func TestUnion_SelectsWhatItsPartsSelect(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawScope(t), drawScope(t)
		u := catalog.Union(a, b)
		for _, repo := range []string{"app/a", "app/b/c", "db/a", "db/x/y", "top"} {
			if got, want := catalog.MatchScope(u, repo), catalog.MatchScope(a, repo) || catalog.MatchScope(b, repo); got != want {
				t.Fatalf("%s: %v in %v", repo, got, u)
			}
		}
		if !proto.Equal(u, catalog.Union(b, a)) || !proto.Equal(u, catalog.Union(u)) {
			t.Fatal("not canonical")
		}
		if catalog.ScopeHash("x", nil, u) != catalog.ScopeHash("x", nil, &catalogv1.Scope{AnyOf: append(b.AnyOf, a.AnyOf...)}) {
			t.Fatal("equal scopes, different hashes")
		}
		if catalog.ScopeHash("x", nil, u) == catalog.ScopeHash("y", nil, u) {
			t.Fatal("the parent's scope does not count")
		}
		if v := catalog.Union(a); !proto.Equal(u, v) && catalog.ScopeHash("", nil, u) == catalog.ScopeHash("", nil, v) {
			t.Fatal("different scopes, equal hashes")
		}
		// A parent whose own demand is in force as a whole: what it includes is in force as at headquarters.
		if own := catalog.ScopeHash("", nil, u); catalog.ScopeHash(own, u, a) != catalog.ScopeHash("", nil, a) {
			t.Fatal("what a parent demands for its child is not the child's")
		}
	})
}

func TestScopeHash_IsStable(t *testing.T) {
	const want = "d7a742943127"
	if got := catalog.ScopeHash("", nil, scopeOf("**")); len(got) != 64 || got[:12] != want {
		t.Errorf("got %s, want %s…: groups of two versions would resync for ever", got, want)
	}
}

func TestValidatePattern(t *testing.T) {
	for pattern, want := range map[string]bool{
		"**": true, "prod/**": true, "{a,b}/*": true, "[a-c]*": true, `\{`: true,
		"": false, "a[": false, "{a": false, "{a,{b,c}}": false,
		strings.Repeat("{a,b}", 8): true, strings.Repeat("{a,b}", 9): false, strings.Repeat("a", 513): false,
	} {
		err := catalog.ValidatePattern(pattern)
		if (err == nil) != want {
			t.Errorf("%q: %v", pattern, err)
		}
		if err != nil && !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%q: %v", pattern, err)
		}
	}
	many := &catalogv1.Scope{AnyOf: make([]*catalogv1.Subscription, 5000)}
	if err := catalog.ValidateScope(many); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("%v", err)
	}
	if err := catalog.ValidateScope(nil); err != nil {
		t.Error(err)
	}
}

func TestView_Digest(t *testing.T) {
	s := &stage{machines: map[string]*catalog.Machine{}, cursor: map[string]uint64{}, words: map[string]string{}}
	for _, line := range []string{
		"hq found e1", "hq publish app:v1 A", "hq publish app:v2 B", "hq publish db:v1 C",
		"ot found e2", "ot publish db:v1 X", "ot publish app:v2 B", "ot publish app:v3 A", "ot publish app:v1 A", "ot unpublish app:v3",
	} {
		s.run(t, line)
	}
	view := func(name string, patterns ...string) catalog.View {
		return s.machine(name).Snapshot().View(scopeOf(patterns...))
	}
	if view("hq", "app").Digest() != view("ot", "app").Digest() {
		t.Error("equal content, different digests")
	}
	if view("hq", "**").Digest() == view("ot", "**").Digest() {
		t.Error("different content, equal digests")
	}
	differs := map[string]bool{}
	other := map[string]string{}
	for repo, d := range view("ot", "**").Digests() {
		other[repo] = d
	}
	for repo, d := range view("hq", "**").Digests() {
		differs[repo] = other[repo] != d
	}
	if diff := cmp.Diff(map[string]bool{"app": false, "db": true}, differs); diff != "" {
		t.Error(diff)
	}
	before := view("hq", "app").Digest()
	s.run(t, "hq publish app:v1 A signed=S")
	if view("hq", "app").Digest() == before {
		t.Error("a referrer more, and the same digest")
	}
}
