package view

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// Describe is the document of `describe`: all that is known of a group, a site or a ref. Keys that do not belong to the kind are absent.
type Describe struct {
	SchemaVersion int        `json:"schemaVersion"`
	Kind          string     `json:"kind"`
	Name          string     `json:"name"`
	AsOf          *time.Time `json:"asOf,omitempty"`
	// Group that is told of; of a site its group, with the site as its only member.
	Group           *Group         `json:"group,omitempty"`
	Subscription    *Subscriptions `json:"subscription,omitempty"`
	Parents         *[]string      `json:"parents,omitempty"`
	FallbackParents *[]string      `json:"fallbackParents,omitempty"`
	Children        *[]Group       `json:"children,omitempty"`
	Pending         *[]PendingRef  `json:"pending,omitempty"`
	PendingTotal    uint64         `json:"pendingTotal,omitempty"`
	Record          *RecordDetails `json:"record,omitempty"`
	Policy          *Policy        `json:"policy,omitempty"`
	// Headquarters: it was answered there, where policies are known.
	Headquarters bool             `json:"headquarters"`
	Sites        *[]Site          `json:"sites,omitempty"`
	Conflicts    []Conflict       `json:"conflicts"`
	Rollouts     []RolloutSummary `json:"rollouts"`
	Events       []Event          `json:"events"`
	Notes        []string         `json:"notes"`
	// Servers of the group's raft; of a site, its own.
	Servers     []MemberInfo `json:"servers,omitempty"`
	Transfers   []Transfer   `json:"transfers,omitempty"`
	Incarnation string       `json:"incarnation,omitempty"`
	// ImageBytes is the size of all that lies under the ref, each blob once.
	ImageBytes int64    `json:"imageBytes,omitempty"`
	Platforms  []string `json:"platforms,omitempty"`
}

// Subscriptions are what a group and the groups below it ask their parent for: any of AnyOf, or everything.
type Subscriptions struct {
	Everything bool           `json:"everything"`
	AnyOf      []Subscription `json:"anyOf"`
	// Keep is how many of the newest tags of a repository the group shows; 0: all.
	Keep uint32 `json:"keep"`
}

// Subscription selects repositories by patterns.
type Subscription struct {
	Repositories []string `json:"repositories"`
	Exclude      []string `json:"exclude"`
	Keep         uint32   `json:"keep"`
}

// RecordDetails is one record of the catalog.
type RecordDetails struct {
	Image
	PushedAt *time.Time `json:"pushedAt,omitempty"`
	// History are digests that the tag showed before, the newest first.
	History []string `json:"history"`
	// ReferrerDigests are those of signatures, SBOMs and the like.
	ReferrerDigests []string `json:"referrerDigests"`
	// Releases are digests that some groups show in place of it, as rollouts said.
	Releases []RecordRelease `json:"releases"`
}

// RecordRelease is what some groups show by a rollout's word.
type RecordRelease struct {
	Digest  string   `json:"digest"`
	Groups  []string `json:"groups"`
	Rollout string   `json:"rollout"`
}

// DescribeOf makes the document of an answer.
func DescribeOf(r *adminv1.DescribeResponse) Describe {
	d := Describe{
		SchemaVersion: SchemaVersion, Kind: r.GetKind(), Name: r.GetName(), AsOf: moment(r.GetAsOf()),
		Conflicts: ConflictsOf(&adminv1.ConflictsResponse{Conflicts: r.GetConflicts()}).Conflicts, Rollouts: []RolloutSummary{}, Events: []Event{}, Notes: append([]string{}, r.GetNotes()...),
	}
	groups := func(list []*adminv1.TreeGroup) *[]Group {
		all := TreeOf(&adminv1.TreeResponse{Groups: list}).Groups
		return &all
	}
	if g := r.GetGroup(); g != nil {
		d.Group = &(*groups([]*adminv1.TreeGroup{g}))[0]
	}
	switch r.GetKind() {
	case "group":
		d.Subscription = subscriptionsOf(r.GetDemand(), r.GetKeep())
		parents, fallbacks := append([]string{}, r.GetParents()...), append([]string{}, r.GetFallbackParents()...)
		d.Parents, d.FallbackParents, d.Children = &parents, &fallbacks, groups(r.GetChildren())
	case "site":
		pending := PendingOf(r.GetPending()).Refs
		d.Pending, d.PendingTotal = &pending, r.GetPending().GetRefsTotal()
	case "ref":
		sites := SitesOf(r.GetSites())
		d.Sites = &sites
		if rec := r.GetRecord(); rec != nil {
			d.Record = recordOf(rec)
		}
		if p := r.GetPolicy(); p != nil {
			d.Policy = &PoliciesOf([]*catalogv1.Policy{p}).Policies[0]
		}
	}
	for _, x := range r.GetRollouts() {
		d.Rollouts = append(d.Rollouts, summaryOf(x))
	}
	for _, e := range r.GetEvents() {
		d.Events = append(d.Events, EventOf(e))
	}
	if len(r.GetServers()) > 0 {
		d.Servers = MembersOf(&adminv1.MembersResponse{Members: r.GetServers()}).Members
	}
	d.Transfers = TopOf(&adminv1.TopResponse{Transfers: r.GetTransfers()}).Transfers
	d.Headquarters = r.GetHeadquarters()
	d.Incarnation, d.ImageBytes, d.Platforms = r.GetIncarnation(), r.GetImageBytes(), r.GetPlatforms()
	return d
}

func subscriptionsOf(demand *catalogv1.Scope, keep uint32) *Subscriptions {
	s := &Subscriptions{Everything: demand == nil, AnyOf: []Subscription{}, Keep: keep}
	for _, x := range demand.GetAnyOf() {
		s.AnyOf = append(s.AnyOf, Subscription{Repositories: append([]string{}, x.GetRepositories()...), Exclude: append([]string{}, x.GetExclude()...), Keep: x.GetKeep()})
		s.Everything = s.Everything || slices.Contains(x.GetRepositories(), "**") && len(x.GetExclude()) == 0 && x.GetKeep() == 0
	}
	return s
}

func recordOf(rec *catalogv1.Record) *RecordDetails {
	d := &RecordDetails{
		Image: Image{
			Ref: rec.GetRepository() + ":" + rec.GetTag(), Digest: rec.GetTarget().GetDigest(), MediaType: rec.GetTarget().GetMediaType(), Size: rec.GetTarget().GetSize(),
			Revision: rec.GetRevision(), PublishedAt: moment(rec.GetPublishedAt()), PublishedBy: rec.GetPublishedBy(), Origin: rec.GetOrigin(),
			Referrers: uint32(len(rec.GetReferrers())), Deleted: rec.GetDeleted() && len(rec.GetReleases()) == 0, // else it is new, and shown where a rollout has it shown
		},
		PushedAt: moment(rec.GetPushedAt()), History: append([]string{}, rec.GetHistory()...), ReferrerDigests: []string{}, Releases: []RecordRelease{},
	}
	if rec.GetDeleted() && !d.Deleted {
		d.Digest = ""
	}
	for _, x := range rec.GetReferrers() {
		d.ReferrerDigests = append(d.ReferrerDigests, x.GetDigest())
	}
	for _, x := range rec.GetReleases() {
		d.Releases = append(d.Releases, RecordRelease{Digest: x.GetTarget().GetDigest(), Groups: append([]string{}, x.GetGroups()...), Rollout: x.GetRollout()})
	}
	return d
}

// described writes lines of a name and a value, and parts under a heading.
type described struct {
	strings.Builder
	s Style
}

// line leaves out what is not known.
func (b *described) line(name, value string) {
	if value != "" {
		fmt.Fprintf(b, "%s  %s\n", pad(name+":", 18), Clean(value))
	}
}

// list puts each value on a line of its own, the name before the first.
func (b *described) list(name string, values []string) {
	for _, v := range values {
		fmt.Fprintf(b, "%s  %s\n", pad(name, 18), Clean(v))
		name = ""
	}
}

func (b *described) part(title, text string) {
	if text != "" {
		fmt.Fprintf(b, "\n%s\n%s", b.s.paint(bold, title), text)
	}
}

var kindTitles = map[string]string{"group": "Group", "site": "Site", "ref": "Ref"}

// Text is a line for each fact, then tables, then the latest events.
func (d Describe) Text(s Style) string {
	b := &described{s: s}
	fmt.Fprintf(b, "%s %s%s\n\n", s.paint(bold, cmp.Or(kindTitles[d.Kind], Clean(d.Kind))), s.paint(bold, Clean(d.Name)), asOf(d.AsOf))
	switch {
	case d.Record != nil:
		d.writeRef(b)
	case d.Kind == "site" && d.Group != nil:
		d.writeSite(b)
	case d.Group != nil:
		d.writeGroup(b)
	}
	if len(d.Conflicts) > 0 {
		b.part("Conflicts", Conflicts{Conflicts: d.Conflicts}.Text(s))
	}
	if len(d.Rollouts) > 0 {
		b.part("Rollouts", Rollouts{AsOf: d.AsOf, Rollouts: d.Rollouts}.Text(s))
	}
	var events strings.Builder
	for _, e := range d.Events {
		events.WriteString(e.Text(s))
	}
	b.part("Events", fallback(events.String(), "None lately.\n"))
	for _, n := range d.Notes {
		b.WriteString("\n" + Clean(n) + "\n")
	}
	return b.String()
}

// writeState puts what a group and a site have in common.
func (b *described) writeState(state, reason string, revision, lag uint64, seconds float64) {
	fmt.Fprintf(b, "%s  %s\n", pad("State:", 18), b.s.paint(stateColor(state), Clean(fallback(state, "unknown"))))
	b.line("Reason", reason)
	if !unheard(state, revision) {
		b.line("Revision", count(revision))
	}
	if lag > 0 || seconds >= 1 {
		b.line("Lag", lagText(lag, seconds))
	}
}

func (d Describe) writeGroup(b *described) {
	g := d.Group
	b.writeState(g.State, g.Reason, g.Revision, g.Lag, g.LagSeconds)
	if g.Worst != "" && g.Worst != g.State && g.WorstAt != g.Group {
		b.line("Worst below", g.Worst+" at "+g.WorstAt)
	}
	b.line("Root", fallback(g.Root, "none is known"))
	b.line("Term", nonzero(g.Term))
	b.line("Carrier", g.Carrier)
	switch {
	case g.Parent != "":
		attached := "Attached to"
		if away := g.State == "unreachable" || g.State == "unknown"; away && !g.Answers {
			attached = "Was attached to"
		}
		b.line(attached, g.Parent)
	case g.DetachedSince != nil:
		b.line("Attached to", "no parent since "+stamp(g.DetachedSince))
	}
	if d.Parents != nil {
		b.list("Parents:", *d.Parents)
		b.list("Fallback parents:", *d.FallbackParents)
	}
	b.line("Last contact", ago(d.AsOf, g.LastContact))
	if sub := d.Subscription; sub != nil {
		b.list("Subscription:", sub.lines())
		b.line("Keeps", keepText(sub.Keep))
	}
	var labels []string
	for _, k := range slices.Sorted(maps.Keys(g.Labels)) {
		labels = append(labels, k+"="+g.Labels[k])
	}
	b.line("Labels", strings.Join(labels, ", "))
	if f := g.Freeze; f != nil {
		b.line("Frozen", fmt.Sprintf("until %s by %s: %s", stamp(f.Until), f.By, f.Reason))
	}
	if len(d.Servers) > 0 {
		votes, rows := 0, make([][]cell, 0, len(d.Servers))
		for _, m := range d.Servers {
			if m.Voter {
				votes++
			}
			rows = append(rows, []cell{plain(m.Site), plain(fallback(m.Role, "unknown")), plain(voteText(m.Voter)), plain(m.RaftAddress), plain(m.FabricAddress), plain(m.ID)})
		}
		b.part("Votes, "+fmt.Sprintf("%d of %s must agree", votes/2+1, plural(votes, "vote")), table(b.s, []string{"SITE", "ROLE", "VOTE", "RAFT", "FABRIC", "ID"}, rows))
	}
	b.part("Members", Picture{Tree: Tree{AsOf: d.AsOf, Groups: []Group{*g}}, Wide: true}.table(b.s))
	d.writeTransfers(b)
	if d.Children != nil && len(*d.Children) > 0 {
		b.part("Groups attached to it", Picture{Tree: Tree{AsOf: d.AsOf, Groups: *d.Children}}.table(b.s))
	}
}

func voteText(voter bool) string {
	if voter {
		return "yes"
	}
	return "no"
}

func (d Describe) writeTransfers(b *described) {
	if len(d.Transfers) > 0 {
		b.part("Transfers", Top{AsOf: d.AsOf, Transfers: d.Transfers}.Text(b.s))
	}
}

func (s Subscriptions) lines() (out []string) {
	if s.Everything {
		return []string{"everything"}
	}
	if len(s.AnyOf) == 0 {
		return []string{"nothing"}
	}
	for _, x := range s.AnyOf {
		text := strings.Join(x.Repositories, ", ")
		if len(x.Exclude) > 0 {
			text += " without " + strings.Join(x.Exclude, ", ")
		}
		if x.Keep > 0 {
			text += ", " + keepText(x.Keep)
		}
		out = append(out, text)
	}
	return out
}

func keepText(n uint32) string {
	if n == 0 {
		return ""
	}
	return "the newest " + plural(int(n), "tag") + " of each repository"
}

func (d Describe) writeSite(b *described) {
	g := d.Group
	b.line("Group", g.Group)
	var m Member
	if len(g.Members) > 0 {
		m = g.Members[0]
	}
	role := "member"
	switch {
	case g.Root == d.Name && g.Carrier == d.Name:
		role = "root, and fetches for the group"
	case g.Root == d.Name:
		role = "root"
	case g.Carrier == d.Name:
		role = "fetches for the group"
	case m.RegistryType == "none":
		role = "witness"
	}
	b.line("Role", role)
	b.writeState(m.State, strings.Join(append(m.warnings(d.AsOf), nonEmpty(m.Reason)...), "; "), m.Revision, m.Lag, m.LagSeconds)
	registry := m.Registry
	if m.RegistryType != "" {
		registry = strings.TrimSpace(registry + " (" + m.RegistryType + ")")
	}
	b.line("Registry", registry)
	for _, x := range d.Servers {
		b.line("Vote", voteText(x.Voter))
		b.line("Raft", x.RaftAddress)
	}
	b.line("Incarnation", d.Incarnation)
	b.line("Version", m.Version)
	b.line("Last contact", ago(d.AsOf, m.LastContact))
	b.line("Certificate", untilText(d.AsOf, m.CertificateExpires))
	b.line("Disk", disksText(m))
	if m.BytesLeft > 0 {
		b.line("Bytes left", strings.TrimSpace(strings.Join(append(append([]string{Bytes(m.BytesLeft)}, nonEmpty(rate(m.Rate))...), nonEmpty(etaText(m.EtaSeconds))...), ", ")))
	}
	d.writeTransfers(b)
	if d.Pending == nil {
		return
	}
	if len(*d.Pending) == 0 {
		b.part("Pending", m.nothingPending()+"\n")
		return
	}
	rows := make([][]cell, 0, len(*d.Pending))
	for _, p := range *d.Pending {
		reason := p.why(d.AsOf)
		if p.Mend != "" {
			reason = strings.TrimPrefix(reason+"; to do: "+p.Mend, "; ")
		}
		rows = append(rows, []cell{plain(p.Ref), state(p.State), plain(shortDigest(p.Want)), number(bytesText(p.BytesLeft)), plain(ago(d.AsOf, p.Since)), plain(reason)})
	}
	b.part(fmt.Sprintf("Pending, %d of %s", len(rows), plural(int(d.PendingTotal), "ref")), table(b.s, []string{"REF", "STATE", "WANT", "BYTES LEFT", "SINCE", "REASON"}, rows))
	if m.Lag > 0 {
		b.WriteString("\n" + m.unreceived() + "\n")
	}
	b.WriteString("\nThe whole way of one: fanoutctl why REF " + Clean(d.Name) + "\n")
}

// nothingPending says what it means that a site lists nothing as pending.
func (m Member) nothingPending() string {
	silent := m.State == "unreachable" || m.State == "unknown" || m.State == ""
	switch {
	case unheard(m.State, m.Revision):
		return "Not known: it was not heard of yet."
	case m.Lag > 0:
		return "Nothing up to its revision above. " + m.unreceived()
	case silent:
		return "Not known: it is not heard of now. When it was last, nothing was up to its revision above."
	}
	return "Nothing: it shows all that it should."
}

// unreceived says what is not in the list of a site that is behind: it has not heard of it.
func (m Member) unreceived() string {
	return plural(int(min(m.Lag, math.MaxInt32)), "newer revision") + " of the catalog it has not received yet; what they change is not in this list."
}

// text says what is shown where, and by whose word.
func (x RecordRelease) text() string {
	at := "nowhere yet"
	if len(x.Groups) > 0 {
		at = "at " + strings.Join(x.Groups, ", ")
	}
	by := "; elsewhere it waits for a promotion"
	if x.Rollout != "" {
		by = ", by rollout " + x.Rollout
	}
	return fallback(x.Digest, "no tag") + " " + at + by
}

func (d Describe) writeRef(b *described) {
	r := d.Record
	digest := r.Digest
	switch {
	case r.Deleted:
		digest = "deleted; it showed " + fallback(digest, "nothing")
	case digest == "":
		digest = "none, but what is released below"
	}
	b.line("Digest", digest)
	b.line("Media type", r.MediaType)
	b.line("Manifest", bytesText(r.Size))
	if d.ImageBytes > 0 {
		b.line("Image", Bytes(d.ImageBytes)+", each blob once")
	}
	b.line("Platforms", strings.Join(d.Platforms, ", "))
	b.line("Revision", count(r.Revision))
	b.line("Published", strings.TrimSpace(stamp(r.PublishedAt)+" by "+fallback(r.PublishedBy, "an unknown")+" at "+fallback(r.Origin, "an unknown site")))
	b.line("Pushed", stamp(r.PushedAt))
	policy := "none: as cascade, to every site when it is pushed"
	if !d.Headquarters {
		policy = "known at headquarters only"
	}
	if p := d.Policy; p != nil {
		policy = p.Name + ": " + p.Delivery
	}
	b.line("Policy", policy)
	b.list("Referrers:", r.ReferrerDigests)
	b.list("Showed before:", r.History)
	for _, x := range r.Releases {
		b.line("Released", x.text())
	}
	if d.Sites != nil {
		b.part("Sites, "+SitesSummary(*d.Sites), SitesText(b.s, *d.Sites, d.AsOf))
	}
}
