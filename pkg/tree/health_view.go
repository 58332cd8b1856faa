package tree

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/fanout-io/fanout/pkg/catalog"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// HealthView is what a member knows of health at one moment: at a root of its group and all below, elsewhere of little more than itself. Read only.
type HealthView struct {
	AsOf time.Time
	// Groups, parents before children.
	Groups []*treev1.GroupHealth
	// Sites by group, then name.
	Sites   []*treev1.SiteHealth
	pending map[string]map[string]*treev1.PendingRef
}

// Pending returns a ref as pending at a site; nil when it is not. Only refs that the view was made for are known.
func (v HealthView) Pending(site string, ref catalog.Ref) *treev1.PendingRef {
	return v.pending[site][ref.String()]
}

// Report says how this site itself is; pending is keyed "repository:tag" and must be all that is pending. It may be called often: only what changed
// travels.
func (n *Node) Report(site *treev1.SiteHealth, pending map[string]*treev1.PendingRef) {
	h := proto.CloneOf(site)
	if h == nil {
		h = &treev1.SiteHealth{State: unknown}
	}
	h.Site, h.Group, h.FabricAddress, h.Version, h.Incarnation = n.cfg.Site, n.cfg.Group, n.cfg.FabricAdvertise, n.cfg.Version, n.cfg.Incarnation
	h.RegistryType, h.LastContact = n.cfg.RegistryType, nil
	n.own.report(n.self, h, pending)
	n.own.heard(n.self)
}

// Health returns what is known of groups and sites, and of these refs where they are pending, as of one moment.
func (n *Node) Health(refs ...catalog.Ref) HealthView {
	o := n.office.Load()
	t := n.own
	if o != nil {
		t = o.table
	}
	v := t.view(refs)
	snap := n.Catalog()
	groups, sites := map[string]bool{}, map[string]bool{}
	for _, g := range v.Groups {
		groups[g.Group] = true
	}
	for _, s := range v.Sites {
		sites[s.Site] = true
	}
	reason := "only the root of " + n.cfg.Group + " hears of others"
	if o != nil {
		reason = fmt.Sprintf("not heard of yet since %s became root of %s %s ago; whoever is up reports within seconds", n.cfg.Site, n.cfg.Group, time.Since(o.began).Round(time.Second))
	}
	add := func(group string, labels map[string]string, demand *catalogv1.Scope, members []*catalogv1.GroupSite, keep uint32) {
		if !groups[group] {
			v.Groups = append(v.Groups, &treev1.GroupHealth{Group: group, State: unknown, Reason: reason, Lost: group != n.cfg.Group, Labels: labels, Demand: demand, Sites: members, Keep: keep})
		}
		for _, m := range members {
			if !sites[m.Site] {
				v.Sites = append(v.Sites, &treev1.SiteHealth{Site: m.Site, Group: group, State: unknown, Reason: reason, RegistryType: m.RegistryType})
			}
		}
	}
	add(n.cfg.Group, snap.Settings().GetLabels(), nil, n.groupSites(snap), snap.Keep())
	for g := range snap.Groups() {
		add(g.Path, g.Labels, g.Demand, g.Sites, g.Keep)
	}
	v.sort()
	return v
}

func (v HealthView) sort() {
	slices.SortFunc(v.Groups, func(a, b *treev1.GroupHealth) int { return comparePaths(a.Group, b.Group) })
	slices.SortFunc(v.Sites, func(a, b *treev1.SiteHealth) int {
		return cmp.Or(comparePaths(a.Group, b.Group), strings.Compare(a.Site, b.Site))
	})
}

// comparePaths orders groups so that parents come before their children, and subtrees stay together.
func comparePaths(a, b string) int {
	for i := range min(len(a), len(b)) {
		if a[i] == b[i] {
			continue
		}
		switch { // a slash comes before all else, so that what is below a path follows it at once
		case a[i] == '/':
			return -1
		case b[i] == '/':
			return 1
		}
		return cmp.Compare(a[i], b[i])
	}
	return cmp.Compare(len(a), len(b))
}

// PendingAt returns what is known to be pending at a site, by ref. Read only.
func (n *Node) PendingAt(site string) []*treev1.PendingRef {
	t := n.own
	if o := n.office.Load(); o != nil {
		t = o.table
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*treev1.PendingRef
	for _, e := range t.pending[site] {
		if !e.gone {
			out = append(out, e.msg.(*treev1.PendingRef))
		}
	}
	slices.SortFunc(out, func(a, b *treev1.PendingRef) int {
		return cmp.Or(strings.Compare(a.Repository, b.Repository), strings.Compare(a.Tag, b.Tag))
	})
	return out
}

// WatchHealth returns a channel that is ready after health changed, and a function that ends the watch.
func (n *Node) WatchHealth() (<-chan struct{}, func()) { return n.healthChanged.watch() }

func (t *table) view(refs []catalog.Ref) HealthView {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := HealthView{AsOf: time.Now(), pending: map[string]map[string]*treev1.PendingRef{}}
	for _, e := range t.groups {
		if e.gone {
			continue
		}
		h := e.msg.(*treev1.GroupHealth)
		if at := e.contact(h.Lost || h.LastContact != nil); at != nil {
			h = proto.CloneOf(h)
			h.LastContact = at
		}
		v.Groups = append(v.Groups, h)
	}
	for _, e := range t.sites {
		if e.gone {
			continue
		}
		h := e.msg.(*treev1.SiteHealth)
		if at := e.contact(h.State == unreachable || h.State == unknown && !h.Starting); at != nil {
			h = proto.CloneOf(h)
			h.LastContact = at
		}
		v.Sites = append(v.Sites, h)
	}
	for _, ref := range refs {
		key := ref.String()
		for site, pending := range t.pending {
			if e := pending[key]; e != nil && !e.gone {
				if v.pending[site] == nil {
					v.pending[site] = map[string]*treev1.PendingRef{}
				}
				v.pending[site][key] = e.msg.(*treev1.PendingRef)
			}
		}
	}
	return v
}

// contact is when whoever told of an entry was last heard, while it is connected. For those that are not, the entry says it.
func (e *entry) contact(lost bool) *timestamppb.Timestamp {
	if e.via == nil || !e.via.live || lost {
		return nil
	}
	return timestamppb.New(e.via.contact)
}

// groupSites are the sites of this group: its members in the catalog and those that its file lists. One that was removed is none, nor is one yet that was added and
// has not come: nobody waits for it.
func (n *Node) groupSites(snap *catalog.Snapshot) []*catalogv1.GroupSite {
	types := map[string]string{}
	for site := range n.cfg.Members {
		types[site] = ""
	}
	for _, m := range snap.Members() {
		if m.Incarnation != "" {
			types[m.Site] = m.RegistryType
		}
	}
	for site := range types {
		if snap.Member(site).GetRemoved() {
			delete(types, site)
		}
	}
	types[n.cfg.Site] = n.cfg.RegistryType
	out := make([]*catalogv1.GroupSite, 0, len(types))
	for site, t := range types {
		out = append(out, &catalogv1.GroupSite{Site: site, RegistryType: t})
	}
	slices.SortFunc(out, func(a, b *catalogv1.GroupSite) int { return strings.Compare(a.Site, b.Site) })
	return out
}
