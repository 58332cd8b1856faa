package view

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// States of a verified site. The set may grow.
const (
	VerifyEqual       = "equal"
	VerifyDifferent   = "different"
	VerifyUnreachable = "unreachable"
	VerifyWitness     = "witness"
	// VerifyUnknown: nothing was seen to differ, and something could not be looked at; or the site's last word did not come.
	VerifyUnknown = "unknown"
	// VerifyAccepted: all that differs was changed there and stays so by the settings.
	VerifyAccepted = "accepted"
)

// Verify is the document of `verify`.
type Verify struct {
	SchemaVersion int            `json:"schemaVersion"`
	Sites         []VerifiedSite `json:"sites"`
}

// VerifiedSite is one site in it.
type VerifiedSite struct {
	Site        string       `json:"site"`
	Group       string       `json:"group"`
	State       string       `json:"state"`
	Reason      string       `json:"reason"`
	Epoch       string       `json:"epoch"`
	Revision    uint64       `json:"revision"`
	View        string       `json:"view"`
	Shown       string       `json:"shown"`
	Refs        uint64       `json:"refs"`
	Manifests   uint64       `json:"manifests"`
	Blobs       uint64       `json:"blobs"`
	Bytes       int64        `json:"bytes"`
	Repaired    uint64       `json:"repaired"`
	Differences []Difference `json:"differences"`

	refs []*adminv1.VerifiedRef
}

// Difference is something that a site does not show as the catalog says. Without a ref it is about the whole site.
type Difference struct {
	Ref    string `json:"ref"`
	Kind   string `json:"kind"`
	Digest string `json:"digest"`
	Shown  string `json:"shown"`
	Reason string `json:"reason"`
	// Accepted: it was changed there and stays so by the settings.
	Accepted bool `json:"accepted"`
}

// Add takes a message in. Those of several sites may be mixed.
func (v *Verify) Add(m *adminv1.VerifyResponse) {
	i := slices.IndexFunc(v.Sites, func(s VerifiedSite) bool { return s.Site == m.GetSite() })
	if i < 0 {
		i = len(v.Sites)
		v.Sites = append(v.Sites, VerifiedSite{Site: m.GetSite(), Group: m.GetGroup(), State: VerifyUnknown, Differences: []Difference{}})
	}
	s := &v.Sites[i]
	switch {
	case m.GetRef() != nil:
		s.refs = append(s.refs, m.GetRef())
	case m.GetDifference() != nil:
		d := m.GetDifference()
		s.Differences = append(s.Differences, Difference{Ref: d.GetRef(), Kind: d.GetKind(), Digest: d.GetDigest(), Shown: d.GetShown(), Reason: d.GetReason(), Accepted: d.GetAccepted()})
	case m.GetDone() != nil:
		d := m.GetDone()
		s.State, s.Reason, s.Epoch, s.Revision, s.View, s.Shown = d.GetState(), d.GetReason(), d.GetEpoch(), d.GetRevision(), d.GetView(), d.GetShown()
		s.Refs, s.Manifests, s.Blobs, s.Bytes, s.Repaired = d.GetRefs(), d.GetManifests(), d.GetBlobs(), d.GetBytes(), d.GetRepaired()
	}
}

// Sort puts the sites in order: parents before children.
func (v *Verify) Sort() {
	slices.SortStableFunc(v.Sites, func(a, b VerifiedSite) int {
		return cmp.Or(slices.Compare(strings.Split(a.Group, "/"), strings.Split(b.Group, "/")), strings.Compare(a.Site, b.Site))
	})
}

// Count of sites in a state.
func (v *Verify) Count(state string) (n int) {
	for i := range v.Sites {
		if v.Sites[i].State == state {
			n++
		}
	}
	return n
}

func verifyColor(state string) string {
	switch state {
	case VerifyEqual, VerifyAccepted:
		return green
	case VerifyDifferent:
		return red
	case VerifyUnreachable, VerifyUnknown:
		return yellow
	}
	return dim
}

// Text is a line for each site, and below them the differences.
func (v *Verify) Text(s Style) string {
	var rows, diffs [][]cell
	for i := range v.Sites {
		x := &v.Sites[i]
		rows = append(rows, []cell{
			plain(x.Site), plain(x.Group), {text: x.State, color: verifyColor(x.State)}, number(count(x.Revision)), number(count(x.Refs)),
			number(count(x.Manifests)), number(count(x.Blobs)), number(bytesText(x.Bytes)), number(nonzero(uint64(len(x.Differences)))),
			number(nonzero(x.Repaired)), plain(x.Reason),
		})
		for _, d := range x.Differences {
			diffs = append(diffs, []cell{plain(x.Site), plain(cmp.Or(d.Ref, "(the site)")), plain(d.Kind), plain(d.Digest), plain(d.Reason)})
		}
	}
	text := table(s, []string{"SITE", "GROUP", "STATE", "REVISION", "REFS", "MANIFESTS", "BLOBS", "READ", "DIFFERENCES", "REPAIRED", "REASON"}, rows)
	if len(diffs) > 0 {
		text += "\n" + table(s, []string{"SITE", "REF", "KIND", "DIGEST", "REASON"}, diffs)
	}
	return text
}

// Diff is the document of `diff`.
type Diff struct {
	SchemaVersion int  `json:"schemaVersion"`
	Equal         bool `json:"equal"`
	// Compared says what was looked at. The set may grow.
	Compared []string  `json:"compared"`
	A        DiffSide  `json:"a"`
	B        DiffSide  `json:"b"`
	Refs     []DiffRef `json:"refs"`
}

// DiffSide is one of the two sites. View and shown are digests over what both subscribe to.
type DiffSide struct {
	Site     string `json:"site"`
	Group    string `json:"group"`
	Epoch    string `json:"epoch"`
	Revision uint64 `json:"revision"`
	View     string `json:"view"`
	Shown    string `json:"shown"`
	Refs     uint64 `json:"refs"` // that were looked at
	// Witness: it has no registry, so its catalog alone is compared, and nothing is shown.
	Witness bool `json:"witness"`
}

// DiffRef is a ref that differs.
type DiffRef struct {
	Ref string     `json:"ref"`
	A   DiffAtSite `json:"a"`
	B   DiffAtSite `json:"b"`
}

// DiffAtSite is that ref at one site: what its catalog says and what its registry shows; empty: nothing.
type DiffAtSite struct {
	Digest    string `json:"digest"`
	Revision  uint64 `json:"revision"`
	Shown     string `json:"shown"`
	Referrers uint32 `json:"referrers"`
}

// DiffOf compares two verified sites, with the refs in them where they were asked for.
func DiffOf(a, b VerifiedSite) Diff {
	side := func(x VerifiedSite) DiffSide {
		return DiffSide{Site: x.Site, Group: x.Group, Epoch: x.Epoch, Revision: x.Revision, View: x.View, Shown: x.Shown, Refs: x.Refs, Witness: x.State == VerifyWitness}
	}
	d := Diff{SchemaVersion: SchemaVersion, A: side(a), B: side(b), Equal: a.View == b.View && a.Shown == b.Shown, Compared: []string{"catalog", "tags", "referrers"}, Refs: []DiffRef{}}
	catalogs := len(d.witnesses()) > 0
	if catalogs {
		d.Equal, d.Compared = a.View == b.View, []string{"catalog"}
	}
	refs := map[string]*DiffRef{}
	for _, x := range []struct {
		refs []*adminv1.VerifiedRef
		at   func(*DiffRef) *DiffAtSite
	}{{a.refs, func(r *DiffRef) *DiffAtSite { return &r.A }}, {b.refs, func(r *DiffRef) *DiffAtSite { return &r.B }}} {
		for _, r := range x.refs {
			e := refs[r.GetRef()]
			if e == nil {
				e = &DiffRef{Ref: r.GetRef()}
				refs[r.GetRef()] = e
			}
			*x.at(e) = DiffAtSite{Digest: r.GetWant(), Revision: r.GetRevision(), Shown: r.GetShown(), Referrers: r.GetReferrers()}
		}
	}
	for _, e := range refs {
		// Revisions say when, not what: a group that caught up by another way may hold an older one of the same.
		if e.A.Digest != e.B.Digest || !catalogs && (e.A.Shown != e.B.Shown || e.A.Referrers != e.B.Referrers) {
			d.Refs = append(d.Refs, *e)
		}
	}
	slices.SortFunc(d.Refs, func(x, y DiffRef) int { return strings.Compare(x.Ref, y.Ref) })
	return d
}

// witnesses are those of the two that have no registry.
func (d Diff) witnesses() (names []string) {
	for _, x := range []DiffSide{d.A, d.B} {
		if x.Witness && !slices.Contains(names, Clean(x.Site)) {
			names = append(names, Clean(x.Site))
		}
	}
	return names
}

// catalogsText says how two sites compare of which one, or both, are witnesses.
func (d Diff) catalogsText(a, b string, witnesses []string) string {
	outcome := "say the same"
	if !d.Equal {
		outcome = "differ"
	}
	text := fmt.Sprintf("The catalogs of %s and %s %s\n", a, b, outcome)
	for _, name := range witnesses {
		text += name + " is a witness: it has no registry to compare\n"
	}
	return text
}

// Text is a line if they are equal, else two lines for each ref that differs.
func (d Diff) Text(s Style) string {
	what := func(x DiffSide) string { return fmt.Sprintf("%s (revision %d)", Clean(x.Site), x.Revision) }
	witnesses := d.witnesses()
	if len(witnesses) > 0 && (d.Equal || len(d.Refs) == 0) {
		return d.catalogsText(what(d.A), what(d.B), witnesses)
	}
	if d.Equal {
		return fmt.Sprintf("%s and %s are equal in %s: their catalogs say the same, and their registries show that digest under every tag, with the same referrers\n",
			what(d.A), what(d.B), plural(int(d.A.Refs), "ref")) +
			"What lies under the tags was not looked at; that is for: fanoutctl verify SITE\n"
	}
	say := func(what string, equal bool) string {
		if equal {
			return what + " the same"
		}
		return what + " different things"
	}
	text := fmt.Sprintf("%s and %s differ: %s, %s\n", what(d.A), what(d.B),
		say("their catalogs say", d.A.View == d.B.View), say("their registries' tags and referrers show", d.A.Shown == d.B.Shown))
	if len(d.Refs) == 0 {
		return text
	}
	if len(witnesses) > 0 {
		text = d.catalogsText(what(d.A), what(d.B), witnesses)
	}
	return text + "\n" + d.table(s)
}

func (d Diff) table(s Style) string {
	var rows [][]cell
	for _, r := range d.Refs {
		for _, x := range []struct {
			side DiffSide
			at   DiffAtSite
		}{{d.A, r.A}, {d.B, r.B}} {
			none := "(none)"
			if x.side.Witness {
				none = "(no registry)"
			}
			rows = append(rows, []cell{
				plain(r.Ref), plain(x.side.Site), number(nonzero(x.at.Revision)), plain(cmp.Or(x.at.Digest, "(none)")),
				plain(cmp.Or(x.at.Shown, none)), number(nonzero(uint64(x.at.Referrers))),
			})
		}
	}
	return table(s, []string{"REF", "SITE", "REVISION", "CATALOG", "SHOWN", "REFERRERS"}, rows)
}
