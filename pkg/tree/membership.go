package tree

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// catchUp is how many entries of the log a server may lack and still be given a vote.
const catchUp = 256

const electing = "an election is under way"

// founder is the member that founds the group: the first by name.
func (n *Node) founder() string { return slices.Min(slices.Collect(maps.Keys(n.cfg.Members))) }

// belong makes this agent part of its group, and keeps it so: it founds the group, or waits to be taken in by its founder, or joins.
//
// Invariant: a group is founded only while no member's log holds anything. Whatever was acknowledged is in the logs of a majority; as long as one of these
// is asked and answers, nothing is founded over it, and a member that does not answer stops the founding.
func (n *Node) belong(ctx context.Context, r *raft.Raft) {
	pauses := backoff{limit: 3 * n.cfg.Timeouts.Heartbeat}
	patience := 4 * (n.cfg.Timeouts.Heartbeat + n.cfg.Timeouts.Election)
	led := time.Now() // when there was a root last, or might have been
	for {
		if site, _ := leader(r); site != "" && !n.outside(r) && !n.Removed() {
			n.setWaiting("")
			n.lookForOthers(ctx)
			pauses.reset()
			led = time.Now()
			if !pause(ctx, 4*n.cfg.Timeouts.Heartbeat) {
				return
			}
			continue
		}
		if n.alone(r) {
			n.campaign(ctx)
		}
		if r.LastIndex() > 0 && time.Since(led) < patience && !n.Removed() {
			n.setWaiting(electing)
		} else if err := n.foundOrJoin(ctx, r); err != nil && ctx.Err() == nil {
			n.expelled.Store(errors.Is(err, ErrRemoved))
			why := err.Error()
			if n.Removed() {
				why = fmt.Sprintf("this site was removed from group %s; 'fanoutctl member add %s %s' at a member lets it in again", n.cfg.Group, n.cfg.Site, n.cfg.RaftAdvertise)
			}
			n.setWaiting(why)
		}
		if !pause(ctx, n.cfg.Timeouts.Heartbeat/4+pauses.step()) {
			return
		}
	}
}

// Waiting says in words why the group has no root as far as this member knows; "" when it has.
func (n *Node) Waiting() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.waiting
}

func (n *Node) setWaiting(why string) {
	n.mu.Lock()
	changed := n.waiting != why
	n.waiting = why
	n.mu.Unlock()
	switch {
	case !changed || why == "" || why == electing:
	case n.Removed():
		n.log.Warn("this site was removed from its group", "reason", why)
	default:
		n.log.Warn("the group has no root yet", "reason", why)
	}
}

// outside says whether raft's configuration has no place for this server. It then may still hear from a leader for a while; it has no part in the group all the same.
func (n *Node) outside(r *raft.Raft) bool {
	return r.LastIndex() > 0 && !slices.ContainsFunc(n.Servers(), func(s Server) bool { return s.ID == string(n.id) })
}

// alone says whether this is the one member with a vote: there is nobody to wait for.
func (n *Node) alone(r *raft.Raft) bool {
	voters, own := 0, false
	for _, s := range n.Servers() {
		if s.Voter {
			voters++
			own = own || s.ID == string(n.id)
		}
	}
	return own && voters == 1 && r.State() == raft.Follower
}

func (n *Node) foundOrJoin(ctx context.Context, r *raft.Raft) error {
	answers, err := n.askMembers(ctx)
	n.believe(answers)
	if r.LastIndex() == 0 {
		occupied := false
		for _, id := range answers {
			occupied = occupied || !id.GetEmpty()
		}
		if !occupied {
			if err != nil {
				return fmt.Errorf("a group is founded when all its founding members answer: %w", err)
			}
			return n.found(ctx, r, answers)
		}
	}
	// The group has state. Whoever names a root is told that we want to be a member; the root decides what there is to do.
	var errs []error
	for _, site := range slices.Sorted(maps.Keys(answers)) {
		root := answers[site].GetRootRaftAddress()
		if root == "" {
			continue
		}
		hello := n.hello()
		hello.Purpose = &treev1.RaftHello_Join{Join: &treev1.JoinRequest{Member: n.member(), LastIndex: r.LastIndex(), Servers: n.ownServers()}}
		_, err := n.ask(ctx, root, "", hello)
		if err == nil {
			return errors.New("asked the root to be taken in")
		}
		errs = append(errs, fmt.Errorf("asking the root at %s to be taken in: %w", root, err))
	}
	if len(errs) == 0 {
		if !errors.Is(err, ErrRemoved) {
			errs = append(errs, errors.New("no member that answers knows a root: a majority must be up"))
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// believe notes whom members of the group call members. Who is empty has nothing to say.
func (n *Node) believe(answers map[string]*treev1.IdentifyResponse) {
	sites := map[string]bool{}
	for _, id := range answers {
		if id.GetEmpty() || len(id.GetMembers()) > 2*MaxMembers {
			continue
		}
		for _, site := range id.GetMembers() {
			sites[site] = true
		}
	}
	n.vouched.Store(&sites)
}

// addresses are where members listen, but for this one: the founding members, and those that its raft log knows, so that it finds them when its file lists others.
func (n *Node) addresses() map[string]string {
	out := maps.Clone(n.cfg.Members)
	for _, m := range n.Catalog().Members() {
		if m.RaftAddress != "" {
			out[m.Site] = m.RaftAddress
		}
	}
	for _, s := range n.Servers() {
		out[s.Site] = s.Addr
	}
	delete(out, n.cfg.Site)
	return out
}

// askMembers asks all other members who they are. The error names those that did not answer.
func (n *Node) askMembers(ctx context.Context) (map[string]*treev1.IdentifyResponse, error) {
	type answer struct {
		site string
		id   *treev1.IdentifyResponse
		err  error
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Timeouts.Call)
	defer cancel()
	ch := make(chan answer)
	members := n.addresses()
	for site, addr := range members {
		go func() { // ends with ctx at the latest, and is waited for below
			id, err := n.identifyAt(ctx, addr, site)
			ch <- answer{site, id, err}
		}()
	}
	answers := map[string]*treev1.IdentifyResponse{}
	var errs []error
	for range members {
		a := <-ch
		if a.err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", a.site, a.err))
			continue
		}
		answers[a.site] = a.id
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return answers, errors.Join(errs...)
}

// found bootstraps raft when all agree and this is the founder.
func (n *Node) found(ctx context.Context, r *raft.Raft, answers map[string]*treev1.IdentifyResponse) error {
	conf := raft.Configuration{}
	for _, site := range slices.Sorted(maps.Keys(n.cfg.Members)) {
		incarnation := n.cfg.Incarnation
		if site != n.cfg.Site {
			id := answers[site]
			if !maps.Equal(id.GetFounding(), n.cfg.Members) {
				return fmt.Errorf("raft.members differs: %s lists %s, %s lists %s: write the same list at all members", site, listed(id.GetFounding()), n.cfg.Site, listed(n.cfg.Members))
			}
			incarnation = id.GetIncarnation()
			if incarnation == "" || strings.ContainsAny(incarnation, "/ |") {
				return fmt.Errorf("%s has incarnation %q", site, incarnation)
			}
		}
		conf.Servers = append(conf.Servers, raft.Server{ID: serverID(site, incarnation), Address: raft.ServerAddress(n.cfg.Members[site])})
	}
	if n.founder() != n.cfg.Site {
		return fmt.Errorf("waiting for %s to found the group", n.founder())
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := r.BootstrapCluster(conf).Error(); err != nil {
		return fmt.Errorf("founding the group: %w", err)
	}
	n.log.Info("founded the group", "members", listed(n.cfg.Members))
	if n.alone(r) {
		n.campaign(ctx)
	}
	return nil
}

func listed(members map[string]string) string {
	var out []string
	for _, site := range slices.Sorted(maps.Keys(members)) {
		out = append(out, site+"="+members[site])
	}
	return strings.Join(out, " ")
}

// acceptJoin notes that a member wants to join. It asks again until it has a root, so nothing is kept for long.
func (n *Node) acceptJoin(join *treev1.JoinRequest) error {
	m := join.GetMember()
	o := n.office.Load()
	if o == nil {
		return ErrNotRoot
	}
	if m.GetIncarnation() == "" || m.GetRaftAddress() == "" || strings.ContainsAny(m.GetSite()+m.GetIncarnation(), "/ |") || !word(m.GetSite(), m.GetIncarnation(), m.GetRaftAddress()) {
		return rubbish("a member without an incarnation or a raft address")
	}
	if !o.kin(join) {
		return refused("the raft log of %s is another group's: stop its agent, move 'raft' and 'store' out of its dataDir, and start it again", m.GetSite())
	}
	o.mu.Lock()
	o.joins[m.GetSite()] = m // a known site: there are no more of them than members
	o.mu.Unlock()
	o.joined.notify()
	return nil
}

// membership changes raft's configuration, one change at a time: it takes in who asked, gives a vote to who has caught up, and, at a witness, hands leadership on.
func (o *office) membership() {
	joined, stop := o.joined.watch()
	defer stop()
	tick := time.NewTicker(2 * o.n.cfg.Timeouts.Stream)
	defer tick.Stop()
	var handedOver time.Time
	for {
		o.mu.Lock()
		joins := o.joins
		o.joins = map[string]*catalogv1.Member{}
		o.mu.Unlock()
		for _, site := range slices.Sorted(maps.Keys(joins)) {
			if err := o.takeInOrdered(joins[site]); err != nil && o.ctx.Err() == nil {
				o.n.log.Warn("taking in a member", "member", site, "error", err)
			}
		}
		if err := o.promote(); err != nil && o.ctx.Err() == nil {
			o.n.log.Warn("giving a vote to a member", "error", err)
		}
		if err := o.finishRemovals(); err != nil && o.ctx.Err() == nil {
			o.n.log.Warn("finishing the removal of a member", "error", err)
		}
		if o.n.cfg.RegistryType == witness && time.Since(handedOver) > min(handOverPause, 10*o.n.cfg.Timeouts.Stream) {
			if o.handOver() {
				handedOver = time.Now()
			}
		}
		select {
		case <-o.ctx.Done():
			return
		case <-joined:
		case <-tick.C:
		}
	}
}

// takeInOrdered takes in a member that was not removed since it asked.
func (o *office) takeInOrdered(m *catalogv1.Member) error {
	done, err := o.reorder(o.ctx)
	if err != nil {
		return err
	}
	defer done()
	if !o.n.memberSite(m.Site) {
		return nil
	}
	return o.takeIn(m)
}

// takeIn makes a server part of raft's configuration, in place of the one that its site was before.
func (o *office) takeIn(m *catalogv1.Member) error {
	future := o.raft.GetConfiguration()
	if err := future.Error(); err != nil {
		return err
	}
	id, addr := serverID(m.Site, m.Incarnation), raft.ServerAddress(m.RaftAddress)
	for _, s := range future.Configuration().Servers {
		site, incarnation := splitID(s.ID)
		switch {
		case s.ID == id && s.Address == addr:
			return nil // it is a member, and will hear from us
		case s.ID == id && s.Suffrage == raft.Voter:
			return o.raft.AddVoter(id, addr, future.Index(), o.n.cfg.Timeouts.Call).Error() // it moved
		case s.ID == id:
			return o.raft.AddNonvoter(id, addr, future.Index(), o.n.cfg.Timeouts.Call).Error()
		case site == m.Site:
			// Only a server that is gone for good may be replaced: two agents that call themselves by one name must not take turns.
			was, err := o.n.identifyAt(o.ctx, string(s.Address), site)
			if err == nil && was.GetIncarnation() == incarnation {
				return fmt.Errorf("site %s is up at %s with another data directory (incarnation %s): two agents have this name", site, s.Address, incarnation)
			}
			o.n.log.Info("replacing a member that lost its data", "member", site, "incarnation", m.Incarnation)
			if err := o.raft.RemoveServer(s.ID, future.Index(), o.n.cfg.Timeouts.Call).Error(); err != nil {
				return fmt.Errorf("removing server %s: %w", s.ID, err)
			}
			return o.takeIn(m)
		case s.Address == addr:
			return fmt.Errorf("raft address %s is that of site %s", addr, site)
		}
	}
	if err := o.raft.AddNonvoter(id, addr, future.Index(), o.n.cfg.Timeouts.Call).Error(); err != nil {
		return fmt.Errorf("adding server %s: %w", id, err)
	}
	o.n.log.Info("took a server into the group, without a vote until it has caught up", "member", m.Site, "server", string(id))
	return nil
}

// promote gives a vote to a server that has caught up. A vote given too early would only slow the group down; it could lose nothing.
func (o *office) promote() error {
	future := o.raft.GetConfiguration()
	if err := future.Error(); err != nil {
		return err
	}
	for _, s := range future.Configuration().Servers {
		if s.Suffrage == raft.Voter {
			continue
		}
		site, incarnation := splitID(s.ID)
		id, err := o.n.identifyAt(o.ctx, string(s.Address), site)
		if err != nil || id.GetIncarnation() != incarnation || id.GetEmpty() || id.GetLastIndex()+catchUp < o.raft.LastIndex() {
			continue // not now
		}
		if err := o.raft.AddVoter(s.ID, s.Address, future.Index(), o.n.cfg.Timeouts.Call).Error(); err != nil {
			return fmt.Errorf("server %s: %w", s.ID, err)
		}
		return nil // one change at a time
	}
	return nil
}

// handOver hands leadership to a member with a registry that works, if one is connected.
func (o *office) handOver() bool {
	future := o.raft.GetConfiguration()
	if future.Error() != nil {
		return false
	}
	for _, s := range future.Configuration().Servers {
		site, _ := splitID(s.ID)
		h, live := o.table.site(site)
		if site == o.n.cfg.Site || s.Suffrage != raft.Voter || !live || h.GetRegistryType() == witness || !h.GetRegistryOk() {
			continue
		}
		o.n.log.Info("a witness hands leadership on", "member", site)
		if err := o.raft.LeadershipTransferToServer(s.ID, s.Address).Error(); err != nil {
			o.n.log.Warn("handing leadership on", "member", site, "error", err)
			continue
		}
		return true
	}
	return false
}

// CaughtUp says whether this member has applied all that was decided before the group gave it its vote. One that came with an empty disk learns the group's past from the beginning:
// until then its catalog is an old one. A member that restarts has caught up when it has read its log that far. It never becomes false again while Run runs.
func (n *Node) CaughtUp() bool {
	if n.caughtUp.Load() {
		return true
	}
	r := n.raft.Load()
	if r == nil {
		return false
	}
	future := r.GetConfiguration()
	if future.Error() != nil {
		return false
	}
	votes := slices.ContainsFunc(future.Configuration().Servers, func(s raft.Server) bool { return s.ID == n.id && s.Suffrage == raft.Voter })
	snapshot, _ := strconv.ParseUint(r.Stats()["last_snapshot_index"], 10, 64)
	if !votes || max(n.fsm.configured.Load(), snapshot) < future.Index() {
		return false
	}
	n.caughtUp.Store(true)
	return true
}

// LogRead says whether this member has applied what its log held when Run began. Until then its catalog is an older one than it had before, as raft reads its log only when it has heard from
// a root what of it is decided. It never becomes false again while Run runs.
func (n *Node) LogRead() bool {
	if n.logRead.Load() {
		return true
	}
	r, disk := n.raft.Load(), n.disk.Load()
	if r == nil || disk == nil {
		return false
	}
	reached := n.fsm.reached()
	for i := min(n.kept, r.LastIndex()); i > reached; i-- { // the log may have become shorter: its end was decided otherwise
		var entry raft.Log
		if err := disk.GetLog(i, &entry); errors.Is(err, raft.ErrLogNotFound) {
			break // a snapshot has taken its place
		} else if err != nil || entry.Type == raft.LogCommand {
			return false
		}
	}
	n.logRead.Store(true)
	return true
}

// Server is one member of the raft group.
type Server struct {
	ID, Site, Addr string
	Voter, Leader  bool
}

// Servers returns the raft group as this member knows it.
func (n *Node) Servers() []Server {
	r := n.raft.Load()
	if r == nil {
		return nil
	}
	future := r.GetConfiguration()
	if future.Error() != nil {
		return nil
	}
	_, lead := r.LeaderWithID()
	var out []Server
	for _, s := range future.Configuration().Servers {
		site, _ := splitID(s.ID)
		out = append(out, Server{ID: string(s.ID), Site: site, Addr: string(s.Address), Voter: s.Suffrage == raft.Voter, Leader: s.ID == lead})
	}
	slices.SortFunc(out, func(a, b Server) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// Replaced asks the members with a vote who they are, and returns the sites that answer as another server than the one that votes: their disks were lost. Bounded by ctx and Timeouts.Call.
func (n *Node) Replaced(ctx context.Context) (out []string) {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Timeouts.Call)
	defer cancel()
	var voters []raft.Server
	for _, s := range n.Servers() {
		if s.Voter {
			voters = append(voters, raft.Server{ID: raft.ServerID(s.ID), Address: raft.ServerAddress(s.Addr)})
		}
	}
	for id, answer := range n.incarnations(ctx, voters) {
		if site, incarnation := splitID(id); answer != "" && answer != incarnation {
			out = append(out, site)
		}
	}
	slices.Sort(out)
	return out
}

// Term returns the current term of the raft group.
func (n *Node) Term() uint64 {
	if r := n.raft.Load(); r != nil {
		return r.CurrentTerm()
	}
	return 0
}
