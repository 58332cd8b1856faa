package tree

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/fanout-io/fanout/pkg/catalog"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

func splitRef(ref string) (repository, tag string) {
	i := strings.LastIndexByte(ref, ':')
	if i < 0 {
		return ref, ""
	}
	return ref[:i], ref[i+1:]
}

// mayGroup says whether a source's word on a group counts: it lies in the source's subtree, and no live source that is closer to it speaks of it. (A city that
// is attached here over the head of its province speaks for itself.)
func (t *table) mayGroup(s *source, group string) bool {
	if s.site != "" || !within(group, s.group) {
		return false
	}
	e := t.groups[group]
	return e == nil || !closer(e.via, s)
}

// maySite likewise. A name that a live source uses for a site elsewhere can't be taken over: names are unique in the fabric.
func (t *table) maySite(s *source, site, group string) bool {
	if s.site != "" && (site != s.site || group != s.group) || !within(group, s.group) {
		return false
	}
	return t.maySpeak(s, site)
}

func (t *table) maySpeak(s *source, site string) bool {
	if s.site != "" {
		return site == s.site
	}
	if t.member(site) {
		return false
	}
	e := t.sites[site]
	if e == nil || e.gone || e.via == s || e.via == nil || !e.via.live {
		return true
	}
	return within(e.msg.(*treev1.SiteHealth).Group, s.group) && !closer(e.via, s)
}

// closer says whether a is alive and closer to the leaves than b.
func closer(a, b *source) bool {
	return a != nil && a != b && a.live && (len(a.group) > len(b.group) || a.site != "" && b.site == "")
}

// merge takes in an update from a source. Entries that it may not speak of are left out and counted; an update that breaks a bound is an error, and the source
// is to be dropped.
func (t *table) merge(s *source, u *treev1.HealthUpdate) (ignored int, err error) {
	if err := checkUpdate(u); err != nil {
		return 0, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.seq
	if u.GetFull() {
		t.dropUnnamed(s, u)
	}
	for _, site := range u.GetRemovedSites() {
		if e := t.sites[site]; e != nil && !e.gone && t.maySpeak(s, site) && within(e.msg.(*treev1.SiteHealth).Group, s.group) {
			t.remove(e)
		}
	}
	touched := map[string]bool{}
	for _, x := range u.GetSettled() {
		if e := t.pending[x.GetSite()][x.GetRepository()+":"+x.GetTag()]; e != nil && t.maySpeak(s, x.GetSite()) {
			t.remove(e)
			touched[x.GetSite()] = true
		}
	}
	for _, p := range u.GetPending() {
		if !t.maySpeak(s, p.GetSite()) {
			ignored++
			continue
		}
		if t.set(t.pendingAt(p.GetSite(), p.GetRepository()+":"+p.GetTag()), p, s) {
			touched[p.GetSite()] = true
		}
	}
	for _, h := range u.GetSites() {
		if !t.maySite(s, h.GetSite(), h.GetGroup()) {
			ignored++
			continue
		}
		if !unheardSite(h) { // what was remembered of it is over: its source has named all that is pending
			for _, e := range t.pending[h.GetSite()] {
				if !e.gone && e.via != s {
					t.remove(e)
					touched[h.GetSite()] = true
				}
			}
		}
		if t.set(t.siteAt(h.GetSite()), t.recallSite(h), s) {
			delete(touched, h.GetSite())
		}
	}
	for site := range touched { // the invariant: after its pending refs
		if e := t.sites[site]; e != nil && !e.gone {
			t.bump(e)
		}
	}
	for _, g := range u.GetGroups() {
		if !t.mayGroup(s, g.GetGroup()) {
			ignored++
			continue
		}
		t.set(t.groupAt(g.GetGroup()), t.recallGroup(g), s)
	}
	t.prune()
	if t.seq != before {
		t.changed.notify()
	}
	if s.pending > maxSourcePending || s.sites > maxSourceSites || s.groups > maxSourceGroups {
		return ignored, rubbish("%s reports %d groups, %d sites and %d pending refs, at most %d, %d and %d are kept", s.group, s.groups, s.sites, s.pending,
			maxSourceGroups, maxSourceSites, maxSourcePending)
	}
	return ignored, nil
}

// dropUnnamed removes what a source's subtree was known to have and a full update does not name. Sites go before their pending refs.
func (t *table) dropUnnamed(s *source, u *treev1.HealthUpdate) {
	groups, sites, pending := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, g := range u.GetGroups() {
		groups[g.GetGroup()] = true
	}
	for _, h := range u.GetSites() {
		sites[h.GetSite()] = true
	}
	for _, p := range u.GetPending() {
		pending[p.GetSite()+" "+p.GetRepository()+":"+p.GetTag()] = true
	}
	kept := map[string]bool{} // sites of which something is remembered that the source does not know
	for _, h := range u.GetSites() {
		kept[h.GetSite()] = unheardSite(h) && t.sites[h.GetSite()].known()
	}
	doubt := fmt.Sprintf("%s attached anew, and has not heard of it yet", s.group)
	for name, e := range t.sites {
		if e.gone || sites[name] {
			continue
		}
		h := e.msg.(*treev1.SiteHealth)
		switch {
		case !t.maySite(s, name, h.Group):
		case t.remembers != nil && t.remembers(h.Group, name):
			kept[name] = true
			t.set(e, e.lastSite(unknown, doubt), s)
		default:
			t.remove(e)
		}
	}
	for site, refs := range t.pending {
		for ref, e := range refs {
			if !e.gone && !pending[site+" "+ref] && !kept[site] && t.mayDrop(s, e) {
				t.remove(e)
			}
		}
	}
	for path, e := range t.groups {
		switch {
		case e.gone || groups[path] || !t.mayGroup(s, path):
		case t.remembers != nil && t.remembers(path, ""):
			t.set(e, e.lastGroup(unknown, doubt), s)
		default:
			t.remove(e)
		}
	}
}

// A root that has just come to office does not know what its predecessor knew. What it says of whom it has not heard is only that: what was heard before stays, under the state that it gives.

func unheardSite(h *treev1.SiteHealth) bool {
	return h.GetVersion() == "" && h.GetRevision() == 0 && h.GetLastContact() == nil && (h.GetState() == unknown || h.GetState() == unreachable)
}

func (t *table) recallSite(h *treev1.SiteHealth) *treev1.SiteHealth {
	if e := t.sites[h.GetSite()]; e.known() && unheardSite(h) && e.msg.(*treev1.SiteHealth).GetGroup() == h.GetGroup() {
		return e.lastSite(h.GetState(), h.GetReason())
	}
	return h
}

func (t *table) recallGroup(g *treev1.GroupHealth) *treev1.GroupHealth {
	unheard := g.GetRoot() == "" && g.GetPosition() == nil && (g.GetState() == unknown || g.GetState() == unreachable)
	if e := t.groups[g.GetGroup()]; e.known() && unheard {
		return e.lastGroup(g.GetState(), g.GetReason())
	}
	return g
}

// known says whether something was told; an entry may have been made for what is about to be.
func (e *entry) known() bool { return e != nil && !e.gone && e.msg != nil }

// lastSite is what was heard of a site last, with another state.
func (e *entry) lastSite(state, reason string) *treev1.SiteHealth {
	h := proto.CloneOf(e.msg.(*treev1.SiteHealth))
	if h.LastContact == nil && !unheardSite(h) && e.via != nil {
		h.LastContact = timestamppb.New(e.via.contact)
	}
	h.State, h.Reason, h.Rate = state, reason, 0
	return h
}

// lastGroup is the same of a group.
func (e *entry) lastGroup(state, reason string) *treev1.GroupHealth {
	h := proto.CloneOf(e.msg.(*treev1.GroupHealth))
	if h.LastContact == nil && h.Root != "" && e.via != nil {
		h.LastContact = timestamppb.New(e.via.contact)
	}
	h.State, h.Reason, h.Lost = state, reason, true
	return h
}

// mayDrop says whether a pending ref is one that a source's full update would have named. Its site may not be known: the ref came first, and the stream broke.
func (t *table) mayDrop(s *source, e *entry) bool {
	if site := t.sites[e.name]; site != nil && !site.gone {
		return t.maySite(s, e.name, site.msg.(*treev1.SiteHealth).Group)
	}
	return t.maySpeak(s, e.name) && (e.via == nil || within(e.via.group, s.group) && !closer(e.via, s))
}

// checkUpdate checks the form of an update from outside, and shortens its texts.
func checkUpdate(u *treev1.HealthUpdate) error {
	for _, g := range u.GetGroups() {
		if g == nil || !word(g.GetGroup(), g.GetParent(), g.GetRoot(), g.GetState(), g.GetCarrier()) || !within(g.GetGroup(), strings.SplitN(g.GetGroup(), "/", 2)[0]) {
			return rubbish("health of group %.80q", g.GetGroup())
		}
		if err := catalog.ValidateScope(g.GetDemand()); err != nil {
			return rubbish("demand of group %s: %v", g.GetGroup(), err)
		}
		if len(g.GetReason()) > maxReason { // what is shared already is short, and must not be written to
			g.Reason = shorten(g.GetReason())
		}
	}
	for _, h := range u.GetSites() {
		if h == nil || h.GetSite() == "" || !word(h.GetSite(), h.GetGroup(), h.GetState(), h.GetRegistryType(), h.GetFabricAddress(), h.GetVersion(), h.GetIncarnation(), h.GetRegistry()) {
			return rubbish("health of site %.80q", h.GetSite())
		}
		if len(h.GetReason()) > maxReason { // what is shared already is short, and must not be written to
			h.Reason = shorten(h.GetReason())
		}
	}
	for _, p := range u.GetPending() {
		if p == nil || p.GetSite() == "" || !word(p.GetSite(), p.GetRepository(), p.GetTag(), p.GetState(), p.GetDigest()) {
			return rubbish("pending ref of site %.80q", p.GetSite())
		}
		if len(p.GetReason()) > maxReason { // what is shared already is short, and must not be written to
			p.Reason = shorten(p.GetReason())
		}
		if t := p.GetTrouble(); !word(t.GetCause(), t.GetCode(), p.GetBlob().GetDigest(), p.GetBlob().GetSource()) {
			return rubbish("trouble of %s:%s at site %.80q", p.GetRepository(), p.GetTag(), p.GetSite())
		}
		shortenTrouble(p.GetTrouble())
	}
	return nil
}

// shortenTrouble bounds the texts of a trouble. What is short already is not written to: it may be shared.
func shortenTrouble(t *treev1.Trouble) {
	if t == nil {
		return
	}
	for _, s := range []*string{&t.Summary, &t.Mend, &t.Message} {
		if len(*s) > maxReason {
			*s = shorten(*s)
		}
	}
}

func word(words ...string) bool {
	for _, w := range words {
		if len(w) > maxWord || strings.ContainsFunc(w, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return false
		}
	}
	return true
}

// plain makes a word that the other side takes, whatever s is.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > maxWord {
		s = strings.ToValidUTF8(s[:maxWord], "")
	}
	return s
}

func shorten(s string) string {
	if len(s) <= maxReason {
		return s
	}
	return strings.ToValidUTF8(s[:maxReason-8], "") + "…"
}

// report takes in what this site says of itself: all that is pending, of which those of the lowest revisions are kept.
func (t *table) report(s *source, h *treev1.SiteHealth, pending map[string]*treev1.PendingRef) {
	h = proto.CloneOf(h)
	h.Reason = shorten(strings.ToValidUTF8(h.Reason, "?"))
	h.State, h.Registry = plain(h.State), plain(h.Registry)
	h.PendingTotal, h.PendingAccepted, h.PendingHeld, h.PendingFrom = uint64(len(pending)), 0, 0, 0
	for _, p := range pending {
		switch p.GetState() {
		case "accepted":
			h.PendingAccepted++
		case "held":
			h.PendingHeld++
		}
	}
	limit := ^uint64(0)
	if len(pending) > maxPending {
		limit = lowestRevisions(pending, maxPending)
		h.PendingFrom = limit
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.seq
	for ref, e := range t.pending[s.site] {
		if p := pending[ref]; !e.gone && (p == nil || p.GetRevision() >= limit) {
			t.remove(e)
		}
	}
	for ref, p := range pending {
		if p.GetRevision() >= limit {
			continue
		}
		p = proto.CloneOf(p)
		p.Site = s.site
		p.Repository, p.Tag = splitRef(ref)
		p.Reason = shorten(strings.ToValidUTF8(p.Reason, "?"))
		p.State, p.Digest = plain(p.State), plain(p.Digest)
		if t := p.Trouble; t != nil {
			t.Cause, t.Code = plain(t.Cause), plain(t.Code)
			t.Summary, t.Mend, t.Message = strings.ToValidUTF8(t.Summary, "?"), strings.ToValidUTF8(t.Mend, "?"), strings.ToValidUTF8(t.Message, "?")
			shortenTrouble(t)
		}
		t.set(t.pendingAt(s.site, ref), p, s)
	}
	e := t.siteAt(s.site)
	t.set(e, h, s)
	if t.seq != before {
		t.bump(e)
		t.changed.notify()
	}
	t.prune()
}

// lowestRevisions returns a revision below which at most limit pending refs lie, and as many as can be.
func lowestRevisions(pending map[string]*treev1.PendingRef, limit int) uint64 {
	revisions := make([]uint64, 0, len(pending))
	for _, p := range pending {
		revisions = append(revisions, p.GetRevision())
	}
	slices.Sort(revisions)
	return revisions[limit]
}
