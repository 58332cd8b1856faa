package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/tree"
)

const (
	// rootPatience is how long a call waits for a root where the last one has just handed on its office, or lost it.
	rootPatience = 20 * time.Second
	pending      = "pending"
)

// removedReason says in words that this site was removed from its group.
func (a *Agent) removedReason() string {
	return fmt.Sprintf("this site was removed from group %s, and only its registry still serves; 'fanoutctl member add %s %s' at a member lets it in again",
		a.cfg.Group, a.cfg.Site, a.cfg.Raft.Advertise)
}

// atRoot makes a call at the group's root, wherever that is by then: here, or at another member. It is made again when what was taken for the root is no more.
func atRoot[T any](ctx context.Context, s *admin, actor string, here func(context.Context) (*T, error), there func(context.Context, adminv1.AdminServiceClient) (*T, error)) (*T, error) {
	ctx, cancel := context.WithTimeout(ctx, rootPatience)
	defer cancel()
	for {
		root, err := s.root(ctx)
		var resp *T
		switch {
		case err != nil:
		case root != nil && passedOn(ctx):
			err = status.Error(codes.Unavailable, "the root of the group has just changed")
		case root != nil:
			resp, err = there(onBehalf(ctx, actor), root)
		default:
			resp, err = here(ctx)
			err = memberStatus(err)
		}
		// The one that was asked by a member answers at once: that one asks the next root.
		if status.Code(err) != codes.Unavailable || passedOn(ctx) || !sleep(ctx, watchEvery) {
			return resp, err
		}
	}
}

// memberStatus is how an error about membership travels.
func memberStatus(err error) error {
	if _, ok := status.FromError(err); ok {
		return err // nil, or said already
	}
	code := codes.Internal
	switch {
	case errors.Is(err, tree.ErrNotRoot), errors.Is(err, tree.ErrNoRoot), errors.Is(err, tree.ErrStopped):
		code = codes.Unavailable // nothing was done
	case errors.Is(err, tree.ErrRefused), errors.Is(err, tree.ErrNotMember):
		code = codes.FailedPrecondition
	case errors.Is(err, catalog.ErrInvalid), errors.Is(err, tree.ErrRubbish):
		code = codes.InvalidArgument
	case errors.Is(err, tree.ErrUnknownOutcome):
		code = codes.Aborted
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	}
	text := err.Error()
	for _, kind := range []error{tree.ErrRefused, tree.ErrNotMember} {
		text = strings.TrimPrefix(text, kind.Error()+": ")
	}
	return status.Error(code, text)
}

// AddMember implements adminv1.AdminServiceServer.
func (s *admin) AddMember(ctx context.Context, req *adminv1.AddMemberRequest) (*adminv1.AddMemberResponse, error) {
	actor, err := s.actor(ctx)
	if err != nil {
		return nil, err
	}
	return atRoot(ctx, s, actor, func(ctx context.Context) (*adminv1.AddMemberResponse, error) {
		m, err := s.a.node.AddMember(ctx, actor, req.GetSite(), req.GetRaftAddress())
		if err != nil {
			return nil, err
		}
		if m.GetIncarnation() == "" {
			s.a.events.normal("MemberAdded", "", fmt.Sprintf("%s at %s may join %s, by %s", m.GetSite(), m.GetRaftAddress(), s.a.cfg.Group, actor))
		}
		for _, info := range s.a.members() {
			if info.GetSite() == m.GetSite() {
				return &adminv1.AddMemberResponse{Member: info}, nil
			}
		}
		return &adminv1.AddMemberResponse{Member: pendingInfo(m)}, nil
	}, func(ctx context.Context, c adminv1.AdminServiceClient) (*adminv1.AddMemberResponse, error) {
		return c.AddMember(ctx, req)
	})
}

// RemoveMember implements adminv1.AdminServiceServer.
func (s *admin) RemoveMember(ctx context.Context, req *adminv1.RemoveMemberRequest) (*adminv1.RemoveMemberResponse, error) {
	actor, err := s.actor(ctx)
	if err != nil {
		return nil, err
	}
	return atRoot(ctx, s, actor, func(ctx context.Context) (*adminv1.RemoveMemberResponse, error) {
		if err := s.a.node.RemoveMember(ctx, actor, req.GetSite()); err != nil {
			return nil, err
		}
		if err := s.a.dropOrphaned(ctx); err != nil {
			s.a.logger.Info("the next sweep does that", "error", err)
		}
		s.a.events.normal("MemberRemoved", "", fmt.Sprintf("%s was removed from %s, by %s", req.GetSite(), s.a.cfg.Group, actor))
		return &adminv1.RemoveMemberResponse{}, nil
	}, func(ctx context.Context, c adminv1.AdminServiceClient) (*adminv1.RemoveMemberResponse, error) {
		return c.RemoveMember(ctx, req)
	})
}

// Lead implements adminv1.AdminServiceServer.
func (s *admin) Lead(ctx context.Context, req *adminv1.LeadRequest) (*adminv1.LeadResponse, error) {
	actor, err := s.actor(ctx)
	if err != nil {
		return nil, err
	}
	return atRoot(ctx, s, actor, func(ctx context.Context) (*adminv1.LeadResponse, error) {
		site, err := s.a.node.Lead(ctx, req.GetSite())
		if err != nil {
			return nil, err
		}
		if site != s.a.cfg.Site {
			s.a.events.normal("LeadershipMoved", "", fmt.Sprintf("%s leads %s in place of %s, by %s", site, s.a.cfg.Group, s.a.cfg.Site, actor))
		}
		return &adminv1.LeadResponse{Site: site}, nil
	}, func(ctx context.Context, c adminv1.AdminServiceClient) (*adminv1.LeadResponse, error) {
		return c.Lead(ctx, req)
	})
}

// Members implements adminv1.AdminServiceServer.
func (s *admin) Members(ctx context.Context, req *adminv1.MembersRequest) (*adminv1.MembersResponse, error) {
	actor, err := s.actor(ctx)
	if err != nil {
		return nil, err
	}
	root, err := s.root(ctx)
	if err != nil {
		return nil, err
	}
	if root != nil {
		return root.Members(ctx, req)
	}
	if g := req.GetGroup(); g != "" && g != s.a.cfg.Group {
		t, ok := s.a.node.Toward(g)
		if !ok {
			return nil, status.Errorf(codes.Unavailable, "there is no way to group %s from here now", g)
		}
		return adminv1.NewAdminServiceClient(t.Conn).Members(onBehalf(ctx, actor), req)
	}
	return &adminv1.MembersResponse{Group: s.a.cfg.Group, Members: s.a.members()}, nil
}

// members are raft's servers and those that were added and have not come yet, by name.
func (a *Agent) members() []*adminv1.MemberInfo {
	states := map[string]string{}
	for _, h := range a.node.Health().Sites {
		states[h.GetSite()] = h.GetState()
	}
	known := map[string]*catalogv1.Member{}
	for _, m := range a.node.Catalog().Members() {
		known[m.GetSite()] = m
	}
	var out []*adminv1.MemberInfo
	for _, server := range a.node.Servers() {
		info := &adminv1.MemberInfo{Site: server.Site, Id: server.ID, Voter: server.Voter, RaftAddress: server.Addr, Role: "follower", State: "unreachable"}
		if server.Leader {
			info.Role = "root"
		}
		if m := known[server.Site]; m != nil {
			info.FabricAddress, info.RegistryType = m.GetFabricAddress(), m.GetRegistryType()
		}
		if state := states[server.Site]; state != "" {
			info.State = state
		}
		out = append(out, info)
	}
	for _, m := range a.node.Pending() {
		out = append(out, pendingInfo(m))
	}
	slices.SortFunc(out, func(x, y *adminv1.MemberInfo) int { return strings.Compare(x.GetSite(), y.GetSite()) })
	return out
}

// pendingInfo describes a member whose agent has not come yet.
func pendingInfo(m *catalogv1.Member) *adminv1.MemberInfo {
	return &adminv1.MemberInfo{Site: m.GetSite(), RaftAddress: m.GetRaftAddress(), State: pending}
}
