package agent

import (
	"cmp"
	"slices"
	"strings"
)

// maxNearest is how many names are offered in place of one that is not known.
const maxNearest = 3

// nearest gives the names that are most like one, best first; none that is too far.
func nearest(name string, known []string) []string {
	type near struct {
		name string
		far  int
	}
	var found []near
	for _, k := range known {
		far := distance(name, k)
		if bound := max(2, len(name)/3); far > bound && (len(name) < 2 || !strings.Contains(k, name) && !strings.Contains(name, k)) {
			continue
		}
		found = append(found, near{k, far})
	}
	slices.SortFunc(found, func(x, y near) int { return cmp.Or(cmp.Compare(x.far, y.far), cmp.Compare(x.name, y.name)) })
	var out []string
	for _, f := range found[:min(len(found), maxNearest)] {
		out = append(out, f.name)
	}
	return out
}

// distance is how many bytes must be put in, taken out or changed to make one of the other.
func distance(x, y string) int {
	row := make([]int, len(y)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(x) {
		left := row[0]
		row[0] = i + 1
		for j := range len(y) {
			cost := 1
			if x[i] == y[j] {
				cost = 0
			}
			left, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, left+cost)
		}
	}
	return row[len(y)]
}
