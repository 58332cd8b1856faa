package view

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// Picture is a Tree as it is shown to people. As a document it is the whole tree.
type Picture struct {
	Tree
	// Depth is how many tiers are shown; 0: all. Below that, and of what is folded, a line sums up what there is.
	Depth int `json:"-"`
	// Fold folds subtrees in which all is well, and Unhealthy also leaves out the sites that are well. What is on its way is well.
	Fold, Unhealthy bool `json:"-"`
	// Wide shows registries, disks, certificates and versions too.
	Wide bool `json:"-"`
}

const (
	// certificateSoon is how long before its end a certificate is warned of.
	certificateSoon = 14 * 24 * time.Hour
	// littleRoom is the room on a disk of which one is warned, in bytes.
	littleRoom = 256 << 20
)

// Text of a tree: groups under the group that they are attached to, their sites under them.
func (t Tree) Text(s Style) string { return Picture{Tree: t}.Text(s) }

// Text of a picture.
func (p Picture) Text(s Style) string {
	return p.table(s) + "\n" + p.Summary() + "\n" + p.Limits.text(s, p.AsOf)
}

func (p Picture) table(s Style) string {
	head := []string{"GROUP / SITE", "STATE", "REVISION", "LAG", "REFS LEFT", "BYTES LEFT", "RATE", "ETA"}
	if p.Wide {
		head = append(head, "REGISTRY", "DISK", "CERTIFICATE", "VERSION")
	}
	head = append(head, "CONTACT", "REASON")
	return table(s, head, p.rows())
}

func (p Picture) rows() (rows [][]cell) {
	all := p.arrange()
	var folded foldedGroups
	flush := func() {
		if folded.groups > 0 {
			rows = append(rows, folded.row())
		}
		folded = foldedGroups{}
	}
	for i := 0; i < len(all); {
		at, end := all[i], subtree(all, i)
		hide := p.Depth > 0 && at.depth >= p.Depth || (p.Fold || p.Unhealthy) && at.depth > 0 && p.allWell(all[i:end])
		if folded.groups > 0 && (!hide || folded.depth != at.depth) {
			flush()
		}
		if hide {
			folded.depth = at.depth
			for _, x := range all[i:end] {
				folded.add(x.group)
			}
			i = end
			continue
		}
		rows = append(rows, p.groupRow(at))
		well := foldedGroups{depth: at.depth + 1} // sites of a group that is shown
		for _, m := range at.group.Members {
			if p.Unhealthy && p.well(m) {
				well.site(m)
			} else {
				rows = append(rows, p.memberRow(at, m))
			}
		}
		if well.sites > 0 {
			rows = append(rows, well.row())
		}
		i++
	}
	flush()
	return rows
}

// subtree is where the groups under the i-th end.
func subtree(all []placed, i int) int {
	end := i + 1
	for end < len(all) && all[end].depth > all[i].depth {
		end++
	}
	return end
}

// calm is for how long a site may be behind before one looks at it: with each push all are, for a moment.
const calm = time.Minute

// well says that a person need not look at a site: it has all, or what it lacks is on its way, and nothing is about to go wrong.
func (p Picture) well(m Member) bool {
	return goesWell(m.State, m.LagSeconds) && len(m.warnings(p.AsOf)) == 0
}

func goesWell(state string, lagSeconds float64) bool {
	switch state {
	case "synced", "witness", "syncing":
		return true
	}
	return state == "behind" && lagSeconds < calm.Seconds()
}

func (p Picture) allWell(all []placed) bool {
	return !slices.ContainsFunc(all, func(x placed) bool {
		return !goesWell(x.group.State, x.group.LagSeconds) || slices.ContainsFunc(x.group.Members, func(m Member) bool { return !p.well(m) })
	})
}

// foldedGroups sums up groups, or sites of one, that are not shown.
type foldedGroups struct {
	depth, groups, sites int
	left                 int64 // bytes
	order                []string
	counts               map[string]int
}

func (f *foldedGroups) add(g Group) {
	f.groups++
	for _, m := range g.Members {
		f.site(m)
	}
}

func (f *foldedGroups) site(m Member) {
	f.sites++
	f.left += m.BytesLeft
	if f.counts == nil {
		f.counts = map[string]int{}
	}
	if f.counts[m.State] == 0 {
		f.order = append(f.order, m.State)
	}
	f.counts[m.State]++
}

func (f *foldedGroups) row() []cell {
	return []cell{{text: strings.Repeat("  ", f.depth) + f.text(), color: dim}}
}

func (f *foldedGroups) text() string {
	text := "… "
	if f.groups > 0 {
		text += plural(f.groups, "group") + ", "
	}
	text += plural(f.sites, "site")
	var parts []string
	for _, st := range f.order {
		if parts = append(parts, fmt.Sprintf("%d %s", f.counts[st], st)); len(f.order) == 1 {
			parts = []string{st}
		}
	}
	if f.left > 0 {
		parts = append(parts, Bytes(f.left)+" left")
	}
	if len(parts) == 0 {
		return text
	}
	return text + ": " + strings.Join(parts, ", ")
}

func (p Picture) groupRow(at placed) []cell {
	g := at.group
	name := g.Group
	if up := parentPath(g.Group); g.Parent != "" && g.Parent != up {
		name += " (attached to " + g.Parent + ")"
	}
	st := state(g.State)
	if g.Worst != "" && g.Worst != g.State && g.WorstAt != g.Group {
		st = cell{text: g.State + ", below: " + g.Worst, color: stateColor(g.Worst)}
	}
	revision, lag := count(g.Revision), lagText(g.Lag, g.LagSeconds)
	if unheard(g.State, g.Revision) {
		revision, lag = "", ""
	}
	row := []cell{
		{text: strings.Repeat("  ", at.depth) + name, color: bold}, st, number(revision), number(lag),
		plain(""), number(bytesText(g.BytesLeft)), plain(""), number(etaText(g.EtaSeconds)),
	}
	if p.Wide {
		row = append(row, plain(""), plain(""), plain(""), plain(""))
	}
	reason := g.Reason
	if g.State == "unreachable" && g.Answers { // a group is as its worst site is
		reason = strings.TrimSuffix("root "+g.Root+" answers; "+reason, "; ")
	}
	return append(row, plain(ago(p.AsOf, g.LastContact)), plain(reason))
}

// unheard says of a group or site that nothing was heard of it: its revision is not 0, but not known.
func unheard(state string, revision uint64) bool {
	return revision == 0 && (state == "unknown" || state == "unreachable" || state == "")
}

func (p Picture) memberRow(at placed, m Member) []cell {
	g, name := at.group, m.Site
	if m.Site == g.Root {
		name += " (root)"
	}
	if m.Site == g.Carrier && g.Carrier != g.Root {
		name += " (carrier)"
	}
	if m.RegistryType == "none" && m.State != "witness" {
		name += " (witness)"
	}
	lag := ""
	if m.Lag > 0 || m.LagSeconds >= 1 {
		lag = lagText(m.Lag, m.LagSeconds)
	}
	revision := count(m.Revision)
	if unheard(m.State, m.Revision) {
		revision = ""
	}
	row := []cell{
		plain(strings.Repeat("  ", at.depth+1) + name), state(m.State), number(revision), number(lag), number(nonzero(m.Pending)),
		number(bytesText(m.BytesLeft)), number(rate(m.Rate)), number(etaText(m.EtaSeconds)),
	}
	if p.Wide {
		row = append(row, plain(m.Registry), plain(disksText(m)), plain(untilText(p.AsOf, m.CertificateExpires)), plain(m.Version))
	}
	return append(row, plain(ago(p.AsOf, m.LastContact)), plain(strings.Join(append(m.warnings(p.AsOf), nonEmpty(m.Reason)...), "; ")))
}

// warnings are what an operator should see though the site's state does not say it.
func (m Member) warnings(now *time.Time) (out []string) {
	if m.CertificateExpires != nil && now != nil {
		switch left := m.CertificateExpires.Sub(*now); {
		case left <= 0:
			out = append(out, "its certificate has ended")
		case left < certificateSoon:
			out = append(out, "its certificate ends in "+span(left))
		}
	}
	for _, d := range []struct {
		of   *Disk
		what string
	}{{m.Disk, "its disk"}, {m.RegistryDisk, "its registry's disk"}} {
		if d.of != nil && d.of.Free < littleRoom {
			out = append(out, d.what+" has "+Bytes(d.of.Free)+" left")
		}
	}
	return out
}

func disksText(m Member) string {
	var out []string
	for _, d := range []*Disk{m.Disk, m.RegistryDisk} {
		if d != nil {
			text := humanize.IBytes(uint64(max(d.Free, 0))) + " of " + humanize.IBytes(uint64(max(d.Total, 0)))
			if len(out) == 0 || out[0] != text {
				out = append(out, text)
			}
		}
	}
	return strings.Join(out, ", registry ")
}

// untilText is how long it is until then.
func untilText(now, then *time.Time) string {
	switch {
	case then == nil:
		return ""
	case now == nil:
		return stamp(then)
	case !then.After(*now):
		return "ended"
	}
	return "ends in " + span(then.Sub(*now))
}

func lagText(lag uint64, seconds float64) string {
	text := count(lag)
	if seconds >= 1 || lag > 0 && seconds > 0 {
		text += " (" + span(time.Duration(min(seconds, math.MaxInt64/2e9)*float64(time.Second))) + ")"
	}
	return text
}

func etaText(seconds float64) string {
	if seconds <= 0 {
		return ""
	}
	return span(time.Duration(min(seconds, math.MaxInt64/2e9) * float64(time.Second)))
}

func nonEmpty(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

// Summary counts the sites by state.
func (t Tree) Summary() string {
	var order []string
	counts := map[string]int{}
	sites := 0
	for _, g := range t.Groups {
		for _, m := range g.Members {
			sites++
			if counts[m.State] == 0 {
				order = append(order, m.State)
			}
			counts[m.State]++
		}
	}
	parts := make([]string, 0, len(order))
	for _, st := range order {
		parts = append(parts, fmt.Sprintf("%d %s", counts[st], Clean(st)))
	}
	text := plural(len(t.Groups), "group") + ", " + plural(sites, "site")
	if len(parts) > 0 {
		text += ": " + strings.Join(parts, ", ")
	}
	return text + asOf(t.AsOf)
}

type placed struct {
	group Group
	depth int
}

// arrange puts each group under its parent, whatever order they come in. A group whose parent is not in the picture stands at the left; so
// do groups that name each other as parents, which a picture taken during a change may show.
func (t Tree) arrange() []placed {
	known := map[string]bool{}
	for _, g := range t.Groups {
		known[g.Group] = true
	}
	children := map[string][]Group{}
	var tops []Group
	for _, g := range t.Groups {
		up := g.Parent
		if up == "" && !g.Answers {
			up = parentPath(g.Group) // it is not known to be attached to none
		}
		if up == "" || !known[up] || up == g.Group {
			tops = append(tops, g)
			continue
		}
		children[up] = append(children[up], g)
	}
	var out []placed
	seen := map[string]bool{}
	var walk func(g Group, depth int)
	walk = func(g Group, depth int) {
		if seen[g.Group] {
			return
		}
		seen[g.Group] = true
		out = append(out, placed{g, depth})
		for _, child := range children[g.Group] {
			walk(child, depth+1)
		}
	}
	for _, g := range tops {
		walk(g, 0)
	}
	for _, g := range t.Groups {
		walk(g, 0)
	}
	return out
}

func parentPath(group string) string {
	i := strings.LastIndexByte(group, '/')
	return group[:max(i, 0)]
}
