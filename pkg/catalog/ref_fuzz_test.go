package catalog_test

import (
	"errors"
	"testing"

	"github.com/fanout-io/fanout/pkg/catalog"
)

func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"app:1", "a/b_c.d__e-f:V1.0_x", "app", ":1", "app:", "a:b:c", "a//b:1", "App:1", "a\x00:1", "é:1", "fanout:fanout-hold.123456789012"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := catalog.ParseRef(s)
		if err != nil {
			if !errors.Is(err, catalog.ErrInvalid) {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		if ref.String() != s || ref.Validate() != nil {
			t.Fatalf("%q gave %v", s, ref)
		}
	})
}

func FuzzMatchPatterns(f *testing.F) {
	f.Add("**", "app/*", "app/web")
	f.Add("a/**/b", "", "a/b")
	f.Add("*[", "**/**/**/**/x", "a/a/a/a/a/a/a/a/a")
	f.Fuzz(func(t *testing.T, include, exclude, repository string) {
		if catalog.MatchPatterns([]string{include}, []string{include}, repository) {
			t.Fatalf("%q is matched by %q, which excludes it", repository, include)
		}
		if catalog.MatchPatterns([]string{include}, []string{exclude}, repository) && !catalog.MatchPatterns([]string{include}, nil, repository) {
			t.Fatalf("excluding %q brought %q in", exclude, repository)
		}
	})
}
