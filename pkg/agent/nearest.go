package agent

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/tree"
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

// unknownSite says that no site of a name is known. Where it is the name of something else it says what that is, and what to write: with is the command before the name of a site.
func (a *Agent) unknownSite(view tree.HealthView, name, with string) error {
	members := siteNames(view, name)
	if slices.Contains(groupNames(view), name) {
		text := fmt.Sprintf("%s is a group, and a site is wanted", name)
		if len(members) > 0 {
			text += fmt.Sprintf(": fanoutctl %s %s", with, members[0])
		}
		if others := members[min(1, len(members)):]; len(others) > 0 {
			text += ", or " + strings.Join(others[:min(len(others), maxNearest)], ", ")
		}
		return status.Error(codes.NotFound, text)
	}
	if ref, ok := a.refNamed(name); ok {
		return status.Errorf(codes.NotFound, "%s is a ref, and a site is wanted; where it is: fanoutctl where %s", name, ref)
	}
	return status.Error(codes.NotFound, unknownName("site", name, siteNames(view, ""), "'fanoutctl tree' lists them")+a.notAll())
}

// unknownGroup says that no group of a name is known, and what the name is of otherwise.
func (a *Agent) unknownGroup(view tree.HealthView, name string) error {
	if h := findSite(view, name); h != nil {
		return status.Errorf(codes.NotFound, "%s is a site of %s: fanoutctl describe %s, or fanoutctl tree %s", name, h.GetGroup(), name, h.GetGroup())
	}
	if ref, ok := a.refNamed(name); ok {
		return status.Errorf(codes.NotFound, "%s is a ref: fanoutctl where %s", name, ref)
	}
	return status.Error(codes.NotFound, unknownName("group", name, groupNames(view), "'fanoutctl tree' lists them")+a.notAll())
}

// unknownRef says that no ref of a name is known, and what the name is of otherwise. Of a repository that is known the nearest tags are told.
func (a *Agent) unknownRef(view tree.HealthView, ref catalog.Ref) error {
	if ref.Tag == "latest" { // it may stand for none
		switch h := findSite(view, ref.Repository); {
		case h != nil:
			return status.Errorf(codes.NotFound, "%s is a site of %s, and a ref is wanted; what it lacks: fanoutctl describe %s", ref.Repository, h.GetGroup(), ref.Repository)
		case slices.Contains(groupNames(view), ref.Repository):
			return status.Errorf(codes.NotFound, "%s is a group, and a ref is wanted; what is at its sites: fanoutctl tree %s", ref.Repository, ref.Repository)
		}
	}
	return status.Errorf(codes.NotFound, "%s is not in the catalog; 'fanoutctl images' lists what is%s%s%s", ref, hostHint(ref), a.nearby(ref), a.notAll())
}

// swapped says that a ref and a site were given in the wrong order; nil: they were not.
func (a *Agent) swapped(view tree.HealthView, ref catalog.Ref, site string) error {
	other, ok := a.refNamed(site)
	if h := findSite(view, ref.Repository); h == nil || !ok {
		return nil
	}
	return status.Errorf(codes.NotFound, "the site comes last: fanoutctl why %s %s", other, ref.Repository)
}

// nearby names refs whose names are like one that is not there: of its repository, where there are any.
func (a *Agent) nearby(ref catalog.Ref) string {
	names := a.refNames()
	own := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !strings.HasPrefix(n, ref.Repository+":") })
	near := nearest(ref.String(), names)
	if len(own) > 0 {
		slices.SortStableFunc(own, func(x, y string) int { return cmp.Compare(distance(ref.String(), x), distance(ref.String(), y)) })
		near = own[:min(len(own), maxNearest)]
	}
	if len(near) == 0 {
		return ""
	}
	return "; the nearest: " + strings.Join(near, ", ")
}
