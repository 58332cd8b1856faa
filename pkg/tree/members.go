package tree

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/fanout-io/fanout/pkg/catalog"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// AddMember lets a site join the group: from then on its agent is believed, and taken in when it asks. It may be asked for again. Only the root does it:
// ErrNotRoot; ErrRefused and ErrInvalid of the catalog say in words why it can't be.
func (n *Node) AddMember(ctx context.Context, actor, site, addr string) (*catalogv1.Member, error) {
	o := n.office.Load()
	if o == nil {
		return nil, ErrNotRoot
	}
	if host, port, err := net.SplitHostPort(addr); err != nil || host == "" || port == "" {
		return nil, fmt.Errorf("%w: raft address %q: write HOST:PORT", catalog.ErrInvalid, addr)
	}
	done, err := o.reorder(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	conf, err := o.servers()
	if err != nil {
		return nil, err
	}
	snap := n.Catalog()
	present, err := o.mayBeAdded(snap, conf, site, addr)
	if present != nil || err != nil {
		return present, err
	}
	m := &catalogv1.Member{Site: site, RaftAddress: addr}
	if err := o.setMember(ctx, actor, m); err != nil {
		return nil, fmt.Errorf("adding %s: %w", site, err)
	}
	n.log.Info("a site may join the group", "member", site, "address", addr, "actor", actor)
	return m, nil
}

// mayBeAdded returns the member if the site is one already, at that address.
func (o *office) mayBeAdded(snap *catalog.Snapshot, conf []raft.Server, site, addr string) (*catalogv1.Member, error) {
	known := map[string]*catalogv1.Member{}
	for _, m := range snap.Members() {
		known[m.Site] = m
	}
	for _, s := range conf { // raft knows best where a server is
		name, incarnation := splitID(s.ID)
		if snap.Member(name).GetRemoved() {
			continue // it is on its way out
		}
		m := &catalogv1.Member{Site: name, Incarnation: incarnation, RaftAddress: string(s.Address)}
		if k := known[name]; k != nil {
			m.FabricAddress, m.RegistryType, m.Shared = k.FabricAddress, k.RegistryType, k.Shared
		}
		known[name] = m
	}
	if m := known[site]; m != nil {
		if m.RaftAddress == addr {
			return m, nil
		}
		return nil, refused("site %s is a member of %s at %s; an agent that moved says so itself when it starts with its new raft.advertise, and one that never came is removed first",
			site, o.n.cfg.Group, m.RaftAddress)
	}
	for name, m := range known {
		if m.RaftAddress == addr {
			return nil, refused("raft address %s is that of site %s", addr, name)
		}
	}
	for g := range snap.Groups() {
		for _, s := range g.Sites {
			if s.Site == site {
				return nil, refused("there is a site %s in group %s, and a name is given once", site, g.Path)
			}
		}
	}
	if len(known) >= MaxMembers {
		return nil, refused("group %s has %d members, and more can't be: remove one first", o.n.cfg.Group, len(known))
	}
	return nil, nil
}

// RemoveMember takes a site out of the group for good: it is remembered as removed until AddMember names it again. Only the root does it: ErrNotRoot. The root
// does not remove itself: it hands leadership on and returns ErrNotRoot, so that the next root is asked. ErrNotMember: no such site; ErrRefused says in words
// what would become of the group. It may be asked for again.
func (n *Node) RemoveMember(ctx context.Context, actor, site string) error {
	o := n.office.Load()
	if o == nil {
		return ErrNotRoot
	}
	done, err := o.reorder(ctx)
	if err != nil {
		return err
	}
	defer done()
	conf, err := o.servers()
	if err != nil {
		return err
	}
	entry := n.Catalog().Member(site)
	i := slices.IndexFunc(conf, func(s raft.Server) bool { return siteIs(s, site) })
	if i < 0 && entry == nil {
		return fmt.Errorf("%w: site %s is not a member of group %s; 'fanoutctl member list' lists them", ErrNotMember, site, n.cfg.Group)
	}
	if i >= 0 {
		if err := o.mayBeRemoved(ctx, conf, site); err != nil {
			return err
		}
		if site == n.cfg.Site {
			if err := o.handOn(ctx, conf); err != nil {
				return err
			}
			return fmt.Errorf("%w: leadership was handed on, and the next root removes %s", ErrNotRoot, site)
		}
	}
	if !entry.GetRemoved() {
		gone := &catalogv1.Member{Site: site, RaftAddress: entry.GetRaftAddress(), FabricAddress: entry.GetFabricAddress(), RegistryType: entry.GetRegistryType(), Removed: true}
		if i >= 0 {
			_, gone.Incarnation = splitID(conf[i].ID)
			gone.RaftAddress = string(conf[i].Address)
		}
		// This comes first: whatever happens now, no root lets it in again, and each removes what is left of it.
		if err := o.setMember(ctx, actor, gone); err != nil {
			return fmt.Errorf("removing %s: %w", site, err)
		}
		n.log.Info("a site is removed from the group", "member", site, "actor", actor)
	}
	return o.expel(site)
}

// mayBeRemoved says why a server must not be removed: those that stay must be able to decide.
func (o *office) mayBeRemoved(ctx context.Context, conf []raft.Server, site string) error {
	var stay []raft.Server
	voted := false
	for _, s := range conf {
		switch {
		case siteIs(s, site):
			voted = voted || s.Suffrage == raft.Voter
		case s.Suffrage == raft.Voter:
			stay = append(stay, s)
		}
	}
	if len(stay) == 0 {
		return refused("%s is the last member of %s with a vote: a group of none holds no catalog; add another first, or stop the agent if the group is to end", site, o.n.cfg.Group)
	}
	if !voted {
		return nil
	}
	silent := o.n.silent(ctx, stay)
	if need, answer := len(stay)/2+1, len(stay)-len(silent); answer < need {
		return refused("without %s, of the members with a vote that are left (%d) %d must be up, and %s can't be reached: nothing could be decided any more; bring that one back or remove it first",
			site, len(stay), need, strings.Join(silent, ", "))
	}
	return nil
}

// expel takes a site's servers out of raft's configuration, and ends its stream.
func (o *office) expel(site string) error {
	for {
		future := o.raft.GetConfiguration()
		if err := future.Error(); err != nil {
			return o.lost(err)
		}
		conf := future.Configuration().Servers
		i := slices.IndexFunc(conf, func(s raft.Server) bool { return siteIs(s, site) })
		if i < 0 {
			break
		}
		if err := o.raft.RemoveServer(conf[i].ID, future.Index(), o.n.cfg.Timeouts.Call).Error(); err != nil {
			return fmt.Errorf("removing server %s: %w", conf[i].ID, o.lost(err))
		}
		o.n.log.Info("removed a server from the group", "member", site, "server", string(conf[i].ID))
	}
	o.mu.Lock()
	f := o.followers[site]
	delete(o.joins, site)
	o.mu.Unlock()
	if f != nil {
		f.held.cancel(fmt.Errorf("%w from the group", ErrRemoved))
	}
	o.wake.notify()
	return nil
}

// finishRemovals removes what a root that lost its office left behind.
func (o *office) finishRemovals() error {
	done, err := o.reorder(o.ctx)
	if err != nil {
		return err
	}
	defer done()
	conf, err := o.servers()
	if err != nil {
		return err
	}
	snap := o.n.Catalog()
	for _, s := range conf {
		site, _ := splitID(s.ID)
		if !snap.Member(site).GetRemoved() {
			continue
		}
		if site == o.n.cfg.Site {
			// Those that know already that it was removed answer it no more, so that it can't choose.
			return o.raft.LeadershipTransfer().Error()
		}
		if err := o.mayBeRemoved(o.ctx, conf, site); err != nil {
			return err
		}
		if err := o.expel(site); err != nil {
			return err
		}
	}
	return nil
}

// Lead hands leadership to a member, or to any other that is fit when site is empty, and returns who is root once that is known here. Only the root does it:
// ErrNotRoot. ErrNotMember: no such site; ErrRefused: it can't lead now, or must not.
func (n *Node) Lead(ctx context.Context, site string) (string, error) {
	o := n.office.Load()
	if o == nil {
		return "", ErrNotRoot
	}
	if site == n.cfg.Site {
		return site, nil
	}
	conf, err := o.servers()
	if err != nil {
		return "", err
	}
	if site == "" {
		return o.leadAny(ctx, conf, false)
	}
	i := slices.IndexFunc(conf, func(s raft.Server) bool { return siteIs(s, site) })
	switch {
	case i < 0 && slices.ContainsFunc(n.Catalog().Members(), func(m *catalogv1.Member) bool { return m.Site == site }):
		return "", refused("site %s was added to group %s, and its agent has not come yet", site, n.cfg.Group)
	case i < 0:
		return "", fmt.Errorf("%w: site %s is not a member of group %s; 'fanoutctl member list' lists them", ErrNotMember, site, n.cfg.Group)
	case conf[i].Suffrage != raft.Voter:
		return "", refused("site %s has no vote yet: it gets one when it has caught up", site)
	case o.isWitness(site) && o.anyRegistry():
		return "", refused("site %s is a witness: it would hand leadership on at once, as a member with a registry that works is up", site)
	case len(n.silent(ctx, conf[i:i+1])) > 0:
		return "", refused("site %s can't be reached at %s", site, conf[i].Address)
	}
	return o.leadBy(ctx, conf[i])
}

// handOn gives leadership to whom it can.
func (o *office) handOn(ctx context.Context, conf []raft.Server) error {
	_, err := o.leadAny(ctx, conf, true)
	return err
}

// leadAny hands leadership to the fittest other member: one with a registry that works, else one with a registry; to a witness only if that must be.
func (o *office) leadAny(ctx context.Context, conf []raft.Server, witnesses bool) (string, error) {
	var fit [3][]raft.Server
	for _, s := range conf {
		site, _ := splitID(s.ID)
		if site == o.n.cfg.Site || s.Suffrage != raft.Voter {
			continue
		}
		h, live := o.table.site(site)
		switch {
		case o.isWitness(site):
			fit[2] = append(fit[2], s)
		case live && h.GetRegistryOk():
			fit[0] = append(fit[0], s)
		default:
			fit[1] = append(fit[1], s)
		}
	}
	if !witnesses && o.anyRegistry() {
		fit[2] = nil
	}
	err := refused("group %s has no other member that could lead: one with a vote, and a registry unless none works, that can be reached", o.n.cfg.Group)
	for _, s := range slices.Concat(fit[0], fit[1], fit[2]) {
		if len(o.n.silent(ctx, []raft.Server{s})) > 0 {
			continue
		}
		site, e := o.leadBy(ctx, s)
		if e == nil || ctx.Err() != nil || o.ctx.Err() != nil {
			return site, e
		}
		err = e
	}
	return "", err
}

// leadBy hands leadership to a server, and waits until that is known to have come about, or another leads.
func (o *office) leadBy(ctx context.Context, s raft.Server) (string, error) {
	changed, stop := o.n.rosterChanged.watch()
	defer stop()
	site, _ := splitID(s.ID)
	o.n.log.Info("handing leadership on", "member", site)
	if err := o.raft.LeadershipTransferToServer(s.ID, s.Address).Error(); err != nil {
		return "", fmt.Errorf("handing leadership to %s: %w", site, o.lost(err))
	}
	for {
		now, _ := leader(o.raft)
		if now != "" && (now != o.n.cfg.Site || o.ctx.Err() != nil) {
			if now != site {
				return "", refused("%s was asked to lead, and %s does", site, now)
			}
			return site, nil
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("%w: %s was asked to lead: %w", ErrUnknownOutcome, site, context.Cause(ctx))
		case <-o.n.stopped:
			return "", ErrStopped
		case <-changed:
		}
	}
}

// isWitness says whether a member has no registry.
func (o *office) isWitness(site string) bool {
	if site == o.n.cfg.Site {
		return o.n.cfg.RegistryType == witness
	}
	if h, _ := o.table.site(site); h.GetRegistryType() != "" {
		return h.GetRegistryType() == witness
	}
	return o.n.Catalog().Member(site).GetRegistryType() == witness
}

// anyRegistry says whether a member's registry works, this one's included.
func (o *office) anyRegistry() bool {
	return slices.ContainsFunc(o.connected(), func(m *catalogv1.Member) bool {
		h, live := o.table.site(m.Site)
		return live && m.RegistryType != witness && h.GetRegistryOk()
	})
}

// silent returns the sites of those servers that do not answer as themselves: down, or come back with another disk. Bounded.
func (n *Node) silent(ctx context.Context, servers []raft.Server) (out []string) {
	ctx, cancel := context.WithTimeout(ctx, min(n.cfg.Timeouts.Call, 2*n.cfg.Timeouts.silence()))
	defer cancel()
	for id, answer := range n.incarnations(ctx, servers) {
		if site, incarnation := splitID(id); answer != incarnation {
			out = append(out, site)
		}
	}
	slices.Sort(out)
	return out
}

// incarnations asks servers, this one excepted, at their addresses who they are now. Empty: no answer came.
func (n *Node) incarnations(ctx context.Context, servers []raft.Server) map[raft.ServerID]string {
	var mu sync.Mutex
	var wg sync.WaitGroup
	out := map[raft.ServerID]string{}
	for _, s := range servers {
		if s.ID == n.id {
			continue
		}
		wg.Go(func() {
			site, _ := splitID(s.ID)
			id, err := n.identifyAt(ctx, string(s.Address), site)
			mu.Lock()
			defer mu.Unlock()
			if out[s.ID] = ""; err == nil {
				out[s.ID] = id.GetIncarnation()
			}
		})
	}
	wg.Wait()
	return out
}

// reorder is held by whoever changes who is a member, so that what one looked at is not changed by another before he acts.
func (o *office) reorder(ctx context.Context) (done func(), err error) {
	select {
	case o.ordering <- struct{}{}:
		return func() { <-o.ordering }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-o.ctx.Done():
		return nil, ErrNotRoot
	}
}

func (o *office) setMember(ctx context.Context, actor string, m *catalogv1.Member) error {
	results, err := o.propose(ctx, actor, []*catalogv1.Change{{Kind: &catalogv1.Change_SetMember{SetMember: &catalogv1.SetMember{Member: m}}}})
	if err != nil {
		return err
	}
	return results[0].Err
}

// servers is raft's configuration.
func (o *office) servers() ([]raft.Server, error) {
	future := o.raft.GetConfiguration()
	if err := future.Error(); err != nil {
		return nil, o.lost(err)
	}
	return future.Configuration().Servers, nil
}

// lost puts an error of raft into words of this package.
func (o *office) lost(err error) error {
	switch {
	case errors.Is(err, raft.ErrRaftShutdown):
		return ErrStopped
	case definitelyNot(err):
		return fmt.Errorf("%w: %w", ErrNotRoot, err)
	case errors.Is(err, raft.ErrLeadershipLost):
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
	}
	return err
}

func siteIs(s raft.Server, site string) bool {
	name, _ := splitID(s.ID)
	return name == site
}

// Pending returns the members that were added and that raft does not know yet: their agents have not come.
func (n *Node) Pending() []*catalogv1.Member {
	servers := n.Servers()
	return slices.DeleteFunc(slices.Clone(n.Catalog().Members()), func(m *catalogv1.Member) bool {
		return slices.ContainsFunc(servers, func(s Server) bool { return s.Site == m.Site })
	})
}

// Removed says whether this site was removed from its group: its own catalog says so, or a member of the group did.
func (n *Node) Removed() bool {
	return n.expelled.Load() || n.Catalog().Member(n.cfg.Site).GetRemoved()
}

// lookForOthers asks, at a root, those whom its file lists and its group does not know. One of them that follows another root belongs to another group of the same
// name, and this agent's disk holds an old one: as the only member it had it elected itself, and would never ask to be taken in.
func (n *Node) lookForOthers(ctx context.Context) {
	why := ""
	if n.IsRoot() {
		ours := map[string]bool{n.cfg.RaftAdvertise: true}
		for _, s := range n.Servers() {
			ours[s.Site], ours[s.Addr] = true, true
		}
		ctx, cancel := context.WithTimeout(ctx, n.cfg.Timeouts.Call)
		defer cancel()
		for site, addr := range n.cfg.Members {
			if ours[site] || n.Catalog().Member(site).GetRemoved() {
				continue
			}
			id, err := n.identifyAt(ctx, addr, site)
			if root := id.GetRootRaftAddress(); err == nil && root != "" && !ours[root] {
				why = fmt.Sprintf("raft.members lists %s, which is of another group %s, led from %s, and dataDir holds a group of its own: to join that one, stop this agent, move 'raft' and 'store' out of its dataDir, and start it again",
					site, n.cfg.Group, root)
			}
		}
	}
	if old := n.estranged.Swap(&why); why != "" && (old == nil || *old != why) {
		n.log.Warn("this is not the group that the file means", "reason", why)
	}
}

// Estranged says in words that this root's disk holds another group than its file means; "" when that is not so.
func (n *Node) Estranged() string {
	if why := n.estranged.Load(); why != nil {
		return *why
	}
	return ""
}

// ownServers are the servers in the raft configuration that this member's log holds.
func (n *Node) ownServers() []string {
	var out []string
	for _, s := range n.Servers() {
		out = append(out, s.ID)
	}
	return out
}

// kin says whether a raft log is one of this group, by the servers that it names: their incarnations are random, so another group's log names others. Taken in
// with such a log, a server might hold entries that this group never committed: raft compares index and term alone.
func (o *office) kin(join *treev1.JoinRequest) bool {
	if join.GetLastIndex() == 0 {
		return true
	}
	known := map[string]bool{}
	conf, err := o.servers()
	if err != nil {
		return false
	}
	for _, s := range conf {
		known[string(s.ID)] = true
	}
	snap := o.n.Catalog()
	for _, m := range snap.Members() {
		if m.Incarnation != "" {
			known[string(serverID(m.Site, m.Incarnation))] = true
		}
	}
	return slices.ContainsFunc(join.GetServers(), func(id string) bool { return known[id] })
}
