package tree_test

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/fanout-io/fanout/pkg/tree"
)

// TestComparePaths: the order is that of the paths' parts, whatever these have in them.
func TestComparePaths(t *testing.T) {
	path := rapid.StringMatching(`[a-b.\-/0]{0,6}`)
	rapid.Check(t, func(t *rapid.T) {
		a, b := path.Draw(t, "a"), path.Draw(t, "b")
		if got, want := tree.ComparePaths(a, b), slices.Compare(strings.Split(a, "/"), strings.Split(b, "/")); got != want {
			t.Fatalf("%q, %q: %d, want %d", a, b, got, want)
		}
	})
}
