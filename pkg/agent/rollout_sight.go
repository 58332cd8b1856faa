package agent

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
)

// failedAttempts is how often a ref must have failed in a row at a site before its group counts as failed in a rollout: a registry that restarts is none that fails.
const failedAttempts = 5

// fabricView is what headquarters' root knows of health at one moment.
type fabricView struct {
	groups  []*treev1.GroupHealth
	sites   []*treev1.SiteHealth
	pending func(site string, ref catalog.Ref) *treev1.PendingRef
}

// sight judges how groups are with the items of a rollout, by the catalog and by what was heard of the sites after it was read.
type sight struct {
	own     string // headquarters' group
	now     time.Time
	snap    *catalog.Snapshot
	pending func(site string, ref catalog.Ref) *treev1.PendingRef
	groups  map[string]*treev1.GroupHealth
	sites   map[string][]*treev1.SiteHealth
	kept    map[uint32]*catalog.Newest
	// patience is what had failed already at a site when its group was last moved.
	patience *patience
}

func newSight(own string, now time.Time, snap *catalog.Snapshot, v fabricView, p *patience) *sight {
	s := &sight{
		own: own, now: now, snap: snap, pending: v.pending, patience: p,
		groups: map[string]*treev1.GroupHealth{}, sites: map[string][]*treev1.SiteHealth{}, kept: map[uint32]*catalog.Newest{},
	}
	for _, g := range v.groups {
		s.groups[g.GetGroup()] = g
	}
	for _, h := range v.sites {
		if h.GetRegistryType() != "none" {
			s.sites[h.GetGroup()] = append(s.sites[h.GetGroup()], h)
		}
	}
	return s
}

// patience remembers, for one term of office, how many attempts of a ref had failed at a site when its group was last moved: those are no failures of what is tried now.
type patience struct {
	had map[patient]uint32
}

type patient struct {
	rollout, site string
	ref           catalog.Ref
	moved         uint64
}

// fresh counts the failed attempts since the group was last moved, as far as this term of office saw it. It is asked at each look.
func (p *patience) fresh(k patient, attempts uint32) uint32 {
	had, known := p.had[k]
	switch {
	case !known && k.moved > 0:
		had = attempts
	case attempts < had:
		had = 0 // it went well in between
	}
	p.had[k] = had
	return attempts - had
}

// forget drops what was remembered of rollouts that are looked at no more.
func (p *patience) forget(stays func(rollout string) bool) {
	for k := range p.had {
		if !stays(k.rollout) {
			delete(p.had, k)
		}
	}
}

// Ranks of what one ref is at one site, from good to bad: the worst is that of the group.
var observedRank = map[string]int{
	catalog.ObservedDelivered: 0, catalog.ObservedStaged: 1, catalog.ObservedPending: 2, catalog.ObservedOffline: 3, catalog.ObservedFailed: 4,
}

// group says how a group of a rollout is. A group that is not released yet and can't be reached, or is frozen, is said to be so even where all content is there: it would not come to
// show the release. One that shows already what it is to show is done, whatever became of it since.
func (s *sight) group(r *catalogv1.Rollout, g *catalogv1.RolloutGroup) *catalogv1.ObservedGroup {
	out := &catalogv1.ObservedGroup{Group: g.GetGroup(), State: catalog.ObservedDelivered}
	health := s.groups[g.GetGroup()]
	if health == nil {
		out.State, out.Reason = catalog.ObservedOffline, "the group is not known any more"
		return out
	}
	if catalog.Ended(r) {
		if _, stands := catalog.Stands(r, g, func(ref catalog.Ref) *catalogv1.Record { rec, _ := s.snap.Get(ref); return rec }); !stands {
			out.State, out.Reason = catalog.ObservedPending, "what it shows is not the rollout's any more"
			return out
		}
	}
	ahead := slices.Contains([]string{catalog.GroupPending, catalog.GroupStaging, catalog.GroupStaged}, g.GetPhase())
	away := ""
	for _, h := range s.sites[g.GetGroup()] {
		if h.GetState() == "unreachable" {
			away = cmp.Or(away, unreachableReason(h))
		}
		shows, wants := true, false
		for _, it := range r.GetItems() {
			ref := catalog.Ref{Repository: it.GetRepository(), Tag: it.GetTag()}
			state, reason := s.site(r, g, health, h, ref)
			shows, wants = shows && state == catalog.ObservedDelivered, wants || s.wanted(health, ref)
			if observedRank[state] > observedRank[out.GetState()] {
				out.State, out.Reason = state, reason
				if len(s.sites[g.GetGroup()]) > 1 && reason != "" {
					out.Reason = h.GetSite() + ": " + reason
				}
			}
		}
		if shows && wants && !ahead && g.GetAttempts() > 0 {
			out.Sites = append(out.Sites, h.GetSite())
		}
	}
	slices.Sort(out.Sites)
	if out.GetState() == catalog.ObservedDelivered && !ahead {
		return out
	}
	if why := s.frozen(r, g.GetGroup()); why != "" {
		out.State, out.Reason = catalog.ObservedFrozen, why
	} else if ahead && away != "" && out.GetState() != catalog.ObservedFailed {
		out.State, out.Reason = catalog.ObservedOffline, away
	}
	return out
}

func unreachableReason(h *treev1.SiteHealth) string {
	if h.GetReason() == "" {
		return h.GetSite() + " is unreachable"
	}
	return h.GetSite() + " is unreachable: " + h.GetReason()
}

// site says how one ref is at one site.
func (s *sight) site(r *catalogv1.Rollout, g *catalogv1.RolloutGroup, group *treev1.GroupHealth, h *treev1.SiteHealth, ref catalog.Ref) (state, reason string) {
	rec, _ := s.snap.Get(ref)
	if !s.wanted(group, ref) {
		return catalog.ObservedDelivered, "" // nothing of it is to be there
	}
	unreachable := h.GetState() == "unreachable"
	switch {
	case h.GetState() == "" || h.GetState() == "unknown":
		return catalog.ObservedPending, "not heard of since the root of headquarters took office"
	case h.GetRevision() < rec.GetRevision() && unreachable:
		return catalog.ObservedOffline, unreachableReason(h)
	case h.GetRevision() < rec.GetRevision():
		return catalog.ObservedPending, "has not received the record yet"
	}
	p := s.pending(h.GetSite(), ref)
	failures := s.patience.fresh(patient{r.GetId(), h.GetSite(), ref, g.GetMoved()}, p.GetAttempts())
	switch {
	case p == nil && h.GetPendingFrom() != 0 && rec.GetRevision() >= h.GetPendingFrom():
		return catalog.ObservedPending, "more is to be done there than the site lists"
	case p == nil && h.GetPendingTotal() >= maxAccepted && s.frozen(r, g.GetGroup()) != "":
		return catalog.ObservedPending, "more is held there than the site lists"
	case p == nil, p.GetState() == "accepted":
		return catalog.ObservedDelivered, ""
	case p.GetState() == "held" && p.GetDigest() == catalog.ShownBy(rec, g.GetGroup()):
		return catalog.ObservedDelivered, "" // what is held is for another wave
	case unreachable:
		return catalog.ObservedOffline, unreachableReason(h)
	case p.GetState() == "held" && p.GetPushed() && g.GetAttempts() > 0:
		// The registry had the release, and somebody put something else over it: nobody turns that back while the rollout goes on.
		return catalog.ObservedFailed, fmt.Sprintf("%s was changed there meanwhile, and shows %s: push the release there again, or go on without it", ref, shown(p.GetDigest()))
	case p.GetState() == "held":
		return catalog.ObservedStaged, p.GetReason()
	case p.GetState() == "drifted":
		return catalog.ObservedFailed, fmt.Sprintf("%s was changed there, and is left so: %s", ref, p.GetReason())
	case p.GetState() == "failed" && failures >= failedAttempts:
		return catalog.ObservedFailed, fmt.Sprintf("%s: %s", ref, p.GetReason())
	}
	return catalog.ObservedPending, fmt.Sprintf("%s: %s", ref, cmp.Or(p.GetReason(), p.GetState()))
}

// shown is a digest for people to tell apart.
func shown(digest string) string {
	if digest == "" {
		return "nothing"
	}
	return digest[:min(len(digest), len("sha256:")+12)]
}

// wanted says whether a group's registries are to show a ref at all.
func (s *sight) wanted(group *treev1.GroupHealth, ref catalog.Ref) bool {
	if group.GetGroup() == s.own {
		return true
	}
	if !catalog.MatchScope(group.GetDemand(), ref.Repository) {
		return false
	}
	keep := group.GetKeep()
	if keep == 0 {
		return true
	}
	if s.kept[keep] == nil {
		s.kept[keep] = s.snap.Newest(keep)
	}
	return s.kept[keep].Has(ref)
}

// frozen says in words what keeps a group from showing the rollout, of the freezes of the group and of those above it; empty: nothing does.
func (s *sight) frozen(r *catalogv1.Rollout, group string) string {
	var freezes []*catalogv1.Freeze
	for path := group; path != ""; path = parentPath(path) {
		f := s.groups[path].GetFreeze()
		if path == s.own {
			f = s.snap.Freeze()
		}
		if f != nil {
			freezes = append(freezes, f)
		}
	}
	for _, it := range r.GetItems() {
		rec, _ := s.snap.Get(catalog.Ref{Repository: it.GetRepository(), Tag: it.GetTag()})
		if f, until := frozenBy(freezes, rec, s.now); f != nil {
			return freezeWords(f, until)
		}
	}
	return ""
}

// parentPath is the path of the group above; empty at the top.
func parentPath(path string) string {
	return path[:max(0, strings.LastIndexByte(path, '/'))]
}
