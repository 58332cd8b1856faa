package view

import (
	"cmp"
	"slices"
	"strings"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// States of a check. The set may grow.
const (
	CheckOK   = "ok"
	CheckWarn = "warn"
	CheckFail = "fail"
)

// Doctor is the document of `doctor`.
type Doctor struct {
	SchemaVersion int           `json:"schemaVersion"`
	Sites         []CheckedSite `json:"sites"`
}

// CheckedSite is one site in it.
type CheckedSite struct {
	Site   string  `json:"site"`
	Group  string  `json:"group"`
	Checks []Check `json:"checks"`
}

// Check is one thing that was looked at.
type Check struct {
	Name   string `json:"name"`
	State  string `json:"state"`
	Detail string `json:"detail"`
	Mend   string `json:"mend"`
}

// Add takes a site in.
func (d *Doctor) Add(r *adminv1.DoctorResponse) {
	s := CheckedSite{Site: r.GetSite(), Group: r.GetGroup(), Checks: checksOf(r.GetChecks())}
	d.Sites = append(d.Sites, s)
	slices.SortStableFunc(d.Sites, func(a, b CheckedSite) int {
		return cmp.Or(strings.Compare(a.Group, b.Group), strings.Compare(a.Site, b.Site))
	})
}

func checksOf(list []*adminv1.Check) []Check {
	out := []Check{}
	for _, c := range list {
		out = append(out, Check{Name: c.GetName(), State: c.GetState(), Detail: c.GetDetail(), Mend: c.GetMend()})
	}
	return out
}

// Count of checks in a state.
func (d *Doctor) Count(state string) (n int) {
	for _, s := range d.Sites {
		for _, c := range s.Checks {
			if c.State == state {
				n++
			}
		}
	}
	return n
}

func checkColor(state string) string {
	switch state {
	case CheckOK:
		return green
	case CheckWarn:
		return yellow
	case CheckFail:
		return red
	}
	return dim
}

// Text is a line for each check, and below them what to do.
func (d *Doctor) Text(s Style) string {
	var rows [][]cell
	var mends []string
	of := map[string][]string{} // a mend that several checks have is said once
	for _, x := range d.Sites {
		for _, c := range x.Checks {
			rows = append(rows, []cell{plain(x.Site), plain(c.Name), {text: c.State, color: checkColor(c.State)}, plain(c.Detail)})
			if c.Mend != "" {
				if of[c.Mend] == nil {
					mends = append(mends, c.Mend)
				}
				of[c.Mend] = append(of[c.Mend], Clean(x.Site)+", "+Clean(c.Name))
			}
		}
	}
	text := table(s, []string{"SITE", "CHECK", "STATE", "DETAIL"}, rows)
	for i, m := range mends {
		mends[i] = strings.Join(of[m], "; ") + ": " + Clean(m)
	}
	if len(mends) > 0 {
		text += "\n" + s.paint(bold, "What to do") + "\n" + strings.Join(mends, "\n") + "\n"
	}
	return text
}
