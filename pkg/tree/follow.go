package tree

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// follow holds a stream to the group's root while that is another member.
func (n *Node) follow(ctx context.Context, r *raft.Raft) {
	changed, stop := n.rosterChanged.watch()
	defer stop()
	pauses := backoff{limit: 2 * n.cfg.Timeouts.Stream}
	for ctx.Err() == nil {
		site, raftAddr := leader(r)
		if site == "" || site == n.cfg.Site {
			select {
			case <-ctx.Done():
			case <-changed:
			case <-time.After(n.cfg.Timeouts.Stream):
			}
			continue
		}
		began := time.Now()
		err := n.followOnce(ctx, r, site, raftAddr)
		if ctx.Err() != nil {
			return
		}
		n.log.Debug("no longer following the root", "member", site, "error", err)
		if errors.Is(err, ErrRemoved) {
			n.expelled.Store(true) // raft may let go of a server that was away only a while after it came back
		}
		if time.Since(began) > n.cfg.Timeouts.silence() {
			pauses.reset()
		}
		pause(ctx, pauses.step())
	}
}

func (n *Node) followOnce(ctx context.Context, r *raft.Raft, site, raftAddr string) error {
	addr := n.rootAddr()
	if addr == "" {
		id, err := n.identifyAt(ctx, raftAddr, site)
		if err != nil {
			return fmt.Errorf("asking the root for its fabric address: %w", err)
		}
		addr = id.GetFabricAddress()
		n.learned.Store(&learned{site, raftAddr, addr})
		n.rosterChanged.notify()
	}
	h := hold(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer h.cancel(nil)
	conn, err := n.cfg.Dial(h.ctx, addr)
	if err != nil {
		return fmt.Errorf("dialling %s: %w", addr, err)
	}
	stream, err := treev1.NewTreeServiceClient(conn).Follow(h.ctx)
	if err != nil {
		return err
	}
	wg.Go(func() { h.watch(n.cfg.Timeouts.silence()) })
	wg.Go(func() { n.watchLeader(h, r, site) })
	wg.Go(func() {
		member := n.member()
		n.followOwn(h.ctx, n.cfg.Timeouts.Settle, func(u *treev1.HealthUpdate) error {
			err := stream.Send(&treev1.FollowRequest{Member: member, Health: u})
			member = nil
			return err
		})
	})
	for first := true; ; first = false {
		resp, err := stream.Recv()
		if err != nil {
			if cause := context.Cause(h.ctx); cause != nil {
				return cause
			}
			return err
		}
		if first {
			if err := n.cfg.AuthorizePeer(stream.Context(), n.cfg.Group, site); err != nil {
				return refused("root %s at %s: %v", site, addr, err)
			}
		}
		h.touch()
		n.expelled.Store(false)
		if roster := resp.GetRoster(); roster != nil && !proto.Equal(n.told.Load(), roster) {
			if err := checkRoster(roster); err != nil {
				return err
			}
			n.told.Store(roster)
			n.metrics.head.Set(float64(roster.GetHead()))
			n.rosterChanged.notify()
		}
	}
}

func checkRoster(r *treev1.Roster) error {
	if len(r.GetMembers()) > 64 || len(r.GetParents()) > 64 || !word(r.GetCarrier(), r.GetParent()) {
		return rubbish("a roster of %d members and %d parents", len(r.GetMembers()), len(r.GetParents()))
	}
	return nil
}

// watchLeader ends a stream when its other end is no longer the root.
func (n *Node) watchLeader(h *held, r *raft.Raft, site string) {
	changed, stop := n.rosterChanged.watch()
	defer stop()
	for {
		if now, _ := leader(r); now != site {
			h.cancel(fmt.Errorf("%w: the root changed", errReplaced))
			return
		}
		select {
		case <-h.ctx.Done():
			return
		case <-changed:
		}
	}
}

// follower is a member that follows this root.
type follower struct {
	member *catalogv1.Member // replaced, never changed; guarded by the office's lock
	src    *source
	held   *held
}

// Follow implements the tree service.
func (s *service) Follow(stream grpc.BidiStreamingServer[treev1.FollowRequest, treev1.FollowResponse]) error {
	o := s.n.office.Load()
	if o == nil {
		return toStatus(ErrNotRoot)
	}
	return s.n.serveStream(o, stream.Context(), s.n.cfg.Timeouts.silence(), func(h *held) error { return o.serveFollower(h, stream) })
}

func (o *office) serveFollower(h *held, stream grpc.BidiStreamingServer[treev1.FollowRequest, treev1.FollowResponse]) error {
	req, err := stream.Recv()
	if err != nil {
		return err
	}
	m := req.GetMember()
	if err := o.checkMember(h.ctx, m); err != nil {
		return err
	}
	f := &follower{member: m, src: o.table.join(o.n.cfg.Group, m.GetSite()), held: h}
	o.mu.Lock()
	old := o.followers[m.Site]
	o.followers[m.Site] = f
	o.mu.Unlock()
	if old != nil {
		old.held.cancel(errReplaced)
	}
	defer o.lostFollower(f, m.Site)
	o.wake.notify()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer h.cancel(nil)
	wg.Go(func() { h.cancel(o.sendRosters(h.ctx, stream)) })
	for {
		h.touch()
		o.table.heard(f.src)
		if next := req.GetMember(); next != nil {
			if next.GetSite() != m.Site {
				return rubbish("the stream of %s speaks of %s", m.Site, next.GetSite())
			}
			o.mu.Lock()
			f.member = next
			o.mu.Unlock()
		}
		if u := req.GetHealth(); u != nil {
			if _, err := o.table.merge(f.src, u); err != nil {
				return err
			}
		}
		if req, err = stream.Recv(); err != nil {
			return err
		}
	}
}

func (o *office) checkMember(ctx context.Context, m *catalogv1.Member) error {
	if m.GetSite() == "" || !word(m.GetSite(), m.GetIncarnation(), m.GetRaftAddress(), m.GetFabricAddress(), m.GetRegistryType(), m.GetShared()) {
		return rubbish("a member without a name")
	}
	return o.n.authorizeFellow(ctx, o.n.cfg.Group, m.GetSite())
}

func (o *office) lostFollower(f *follower, site string) {
	o.mu.Lock()
	if o.followers[site] == f {
		delete(o.followers, site)
	}
	o.mu.Unlock()
	o.table.leave(f.src, "no contact with "+o.n.cfg.Site+", the root of its group")
	o.wake.notify()
}

// sendRosters tells a follower who is who, again when that changes, and often enough to be heard.
func (o *office) sendRosters(ctx context.Context, stream grpc.BidiStreamingServer[treev1.FollowRequest, treev1.FollowResponse]) error {
	changed, stop := o.n.rosterChanged.watch()
	defer stop()
	tick := time.NewTicker(o.n.cfg.Timeouts.Stream)
	defer tick.Stop()
	for {
		if err := stream.Send(&treev1.FollowResponse{Roster: o.roster.Load()}); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		case <-changed:
			if !pause(ctx, o.n.cfg.Timeouts.Settle/4) {
				return errors.New("stream ended")
			}
		}
	}
}
