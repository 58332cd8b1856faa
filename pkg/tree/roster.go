package tree

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// Peer is an agent that content may be fetched from.
type Peer struct {
	Site string
	// Addr is its fabric address.
	Addr string
}

// Roster is who is who in a group, as this member knows it.
type Roster struct {
	// Root is the site of the root, RootAddr its fabric address; empty when there is none.
	Root, RootAddr string
	// Carrier is the site that fetches across the link to the parent; empty when none can.
	Carrier string
	// Members are the other members that are connected to the root and have a registry, those whose registry works first.
	Members []Peer
	// Sharing are the members whose registries work and share their storage with this one's, itself if it is one of them: the carrier first, then by name. Empty where this
	// site shares its storage with nobody.
	Sharing []Peer
	// Parents are the parent group's members with a registry, those whose registry works first.
	Parents []Peer
	// Parent is the group that this one is attached to; empty when it is attached to none.
	Parent string
	// Head is the newest revision of headquarters' catalog that is known of.
	Head uint64
	// CutOff is the group that is attached to no parent, this one or one above it, so that nothing new comes from headquarters; nil: none, as far as is known.
	CutOff *treev1.CutOff
	// IsRoot, IsCarrier: this site is.
	IsRoot, IsCarrier bool
}

// Roster returns who is who in the group. While there is no root it says what the last one said.
func (n *Node) Roster() Roster {
	told := n.told.Load()
	o := n.office.Load()
	if o != nil {
		told = o.roster.Load()
	}
	r := Roster{
		Carrier: told.GetCarrier(), Parents: peers(told.GetParents(), ""), Members: peers(told.GetMembers(), n.cfg.Site), Parent: told.GetParent(),
		Head: max(told.GetHead(), n.Catalog().Position().GetRevision()), IsRoot: o != nil,
		CutOff: told.GetCutOff(),
	}
	r.Root, _ = n.rootSite()
	r.RootAddr = n.rootAddr()
	r.IsCarrier = r.Carrier == n.cfg.Site
	r.Sharing = sharing(told, n.cfg.Shared)
	return r
}

func sharing(told *treev1.Roster, shared string) (set []Peer) {
	if shared == "" {
		return nil
	}
	for _, m := range told.GetMembers() {
		if m.GetShared() != shared || !m.GetWell() {
			continue
		}
		p := Peer{Site: m.GetSite(), Addr: m.GetFabricAddress()}
		if p.Site == told.GetCarrier() {
			set = slices.Insert(set, 0, p)
		} else {
			set = append(set, p)
		}
	}
	return set
}

// WatchRoster returns a channel that is ready after the roster changed, and a function that ends the watch.
func (n *Node) WatchRoster() (<-chan struct{}, func()) { return n.rosterChanged.watch() }

func peers(list []*treev1.ParentMember, but string) []Peer {
	var out []Peer
	for _, m := range list {
		if m.GetSite() != but {
			out = append(out, Peer{Site: m.GetSite(), Addr: m.GetFabricAddress()})
		}
	}
	return out
}

// rootSite returns the site and raft address of the root as raft knows it.
func (n *Node) rootSite() (site, raftAddr string) {
	r := n.raft.Load()
	if r == nil {
		return "", ""
	}
	return leader(r)
}

// rootAddr returns the root's fabric address; "" when it is not known.
func (n *Node) rootAddr() string {
	site, raftAddr := n.rootSite()
	switch site {
	case "":
		return ""
	case n.cfg.Site:
		return n.cfg.FabricAdvertise
	}
	for _, m := range n.Catalog().Members() {
		if m.Site == site && m.FabricAddress != "" {
			return m.FabricAddress
		}
	}
	if known := n.learned.Load(); known != nil && known.site == site && known.raftAddr == raftAddr {
		return known.fabricAddr
	}
	return ""
}

// learned is the fabric address of a root that is not among the catalog's members yet.
type learned struct {
	site, raftAddr, fabricAddr string
}

// appoint makes the roster of the group. Invariant: the carrier is the root if its registry works, else the first member by name whose does.
func (o *office) appoint() *treev1.Roster {
	n := o.n
	r := &treev1.Roster{Parent: o.attach.parent(), Parents: o.attach.parents(), Head: o.head(), CutOff: o.attach.severed()}
	var well, ill []*treev1.ParentMember
	for _, m := range o.connected() {
		if m.RegistryType == witness || m.RegistryType == "" {
			continue
		}
		p := &treev1.ParentMember{Site: m.Site, FabricAddress: m.FabricAddress, Shared: m.Shared}
		if h, live := o.table.site(m.Site); live && h.GetRegistryOk() {
			p.Well = true
			well = append(well, p)
			if r.Carrier == "" || m.Site == n.cfg.Site {
				r.Carrier = m.Site
			}
		} else {
			ill = append(ill, p)
		}
	}
	r.Members = append(well, ill...)
	return r
}

// connected returns this member and those that follow it, by site.
func (o *office) connected() []*catalogv1.Member {
	out := []*catalogv1.Member{o.n.member()}
	o.mu.Lock()
	for _, f := range o.followers {
		if f.member != nil {
			out = append(out, f.member)
		}
	}
	o.mu.Unlock()
	slices.SortFunc(out, func(a, b *catalogv1.Member) int { return strings.Compare(a.Site, b.Site) })
	return out
}

// member is this agent as a member of its group.
func (n *Node) member() *catalogv1.Member {
	return &catalogv1.Member{
		Site: n.cfg.Site, Incarnation: n.cfg.Incarnation, RaftAddress: n.cfg.RaftAdvertise, FabricAddress: n.cfg.FabricAdvertise, RegistryType: n.cfg.RegistryType,
		Shared: n.cfg.Shared,
	}
}

// publishRoster makes a new roster known if it differs from the last.
func (o *office) publishRoster(r *treev1.Roster) {
	if proto.Equal(o.roster.Load(), r) {
		return
	}
	o.roster.Store(r)
	o.n.metrics.head.Set(float64(r.Head))
	o.n.rosterChanged.notify()
}

// parentMembers are the members that children may fetch from, as told to them.
func (o *office) parentMembers() *treev1.Parents {
	return &treev1.Parents{Members: o.roster.Load().GetMembers()}
}
