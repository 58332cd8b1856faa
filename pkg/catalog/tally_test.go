package catalog_test

import (
	"testing"

	"github.com/fanout-io/fanout/pkg/catalog"
)

// TestTally: what differs in any part has another digest, and moving a word from one part to the next is a difference.
func TestTally(t *testing.T) {
	type ref struct {
		repo, tag, target string
		referrers         []string
	}
	seen := map[string]int{}
	for i, list := range [][]ref{
		{},
		{{"a", "1", digest("x"), nil}},
		{{"b", "1", digest("x"), nil}},
		{{"a", "2", digest("x"), nil}},
		{{"a", "1", digest("y"), nil}},
		{{"a", "1", digest("x"), []string{digest("y")}}},
		{{"a", "1", digest("x"), []string{digest("y"), digest("z")}}},
		{{"a", "1", digest("x"), nil}, {"a", "2", digest("x"), nil}},
		{{"a", "1", digest("x"), nil}, {"b", "2", digest("x"), nil}},
	} {
		var tally catalog.Tally
		for _, r := range list {
			tally.Add(r.repo, r.tag, r.target, r.referrers...)
		}
		d := tally.Digest()
		if before, known := seen[d]; known {
			t.Errorf("lists %d and %d have the same digest", before, i)
		}
		seen[d] = i
	}
}
