package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
)

// ForgetGroup implements adminv1.AdminServiceServer. Every group above remembers it, and what a group between tells of is remembered again above it: so that one forgets first.
func (s *admin) ForgetGroup(ctx context.Context, req *adminv1.ForgetGroupRequest) (*adminv1.ForgetGroupResponse, error) {
	actor, err := s.actor(ctx)
	if err != nil {
		return nil, err
	}
	if !passedOn(ctx) {
		if err := s.headquarters("forget groups"); err != nil {
			return nil, err
		}
	}
	return atRoot(ctx, s, actor, func(ctx context.Context) (*adminv1.ForgetGroupResponse, error) {
		return s.forgetGroup(ctx, req, actor)
	}, func(ctx context.Context, c adminv1.AdminServiceClient) (*adminv1.ForgetGroupResponse, error) {
		return c.ForgetGroup(ctx, req)
	})
}

func (s *admin) forgetGroup(ctx context.Context, req *adminv1.ForgetGroupRequest, actor string) (*adminv1.ForgetGroupResponse, error) {
	group := strings.TrimSuffix(req.GetGroup(), "/")
	resp := &adminv1.ForgetGroupResponse{}
	for _, g := range s.a.node.Subtree(group) {
		resp.Groups = append(resp.Groups, g.GetPath())
		for _, m := range g.GetSites() {
			resp.Sites = append(resp.Sites, m.GetSite())
		}
	}
	slices.Sort(resp.GetSites())
	if group == s.a.cfg.Group {
		return nil, status.Errorf(codes.FailedPrecondition, "%s is the group of the agent that is asked, and is not below itself", group)
	}
	if len(resp.GetGroups()) == 0 {
		return nil, status.Errorf(codes.NotFound, "no group %q is known here; 'fanoutctl tree' lists them", group)
	}
	if err := s.a.node.Gone(group); err != nil {
		return nil, err
	}
	waiting := s.a.rolloutsWaitingFor(resp.GetGroups())
	for _, w := range waiting {
		if !slices.Contains(resp.GetRollouts(), w.GetId()) {
			resp.Rollouts = append(resp.Rollouts, w.GetId())
		}
	}
	if req.GetDryRun() {
		return resp, nil
	}
	if t, ok := s.a.node.Toward(group); ok {
		_, err := adminv1.NewAdminServiceClient(t.Conn).ForgetGroup(onBehalf(ctx, actor), &adminv1.ForgetGroupRequest{Group: group})
		if code := status.Code(err); code != codes.OK && code != codes.NotFound {
			return nil, status.Errorf(code, "%s, between here and %s: %s", t.Group, group, callWords(err))
		}
	}
	for _, w := range waiting {
		if err := s.a.change(ctx, actor, &catalogv1.Change{Kind: &catalogv1.Change_SteerRollout{SteerRollout: w}}); err != nil {
			return nil, proposed(err)
		}
	}
	if err := s.a.node.ForgetGroup(ctx, actor, group); err != nil {
		return nil, err
	}
	s.a.logger.Info("groups were forgotten", "child", resp.GetGroups(), "members", resp.GetSites(), "actor", actor)
	s.a.events.normal("GroupForgotten", "", fmt.Sprintf("%s, with %s, by %s", strings.Join(resp.GetGroups(), ", "), count(len(resp.GetSites()), "site"), actor))
	return resp, nil
}

// rolloutsWaitingFor gives the words that leave groups out of the rollouts that still wait for them, or would.
func (a *Agent) rolloutsWaitingFor(groups []string) (out []*catalogv1.SteerRollout) {
	for _, r := range a.node.Catalog().Rollouts() {
		if catalog.Ended(r) {
			continue
		}
		for _, g := range r.GetGroups() {
			switch g.GetPhase() {
			case catalog.GroupSkipped, catalog.GroupSucceeded, catalog.GroupRolledBack:
				continue
			}
			if slices.Contains(groups, g.GetGroup()) {
				out = append(out, &catalogv1.SteerRollout{Id: r.GetId(), Verb: catalog.SteerSkip, Group: g.GetGroup(), Reason: "the group was forgotten"})
			}
		}
	}
	return out
}

// dropOrphaned takes deletions off the list whose site was removed: its registry shows nobody's tags any more, and nobody would ever settle them there. Root only; elsewhere it does nothing.
func (a *Agent) dropOrphaned(ctx context.Context) error {
	snap := a.node.Catalog()
	if !a.cfg.Headquarters() || !a.node.Roster().IsRoot {
		return nil
	}
	for d := range snap.AllDeletions() {
		if !snap.Member(d.GetSite()).GetRemoved() {
			continue
		}
		err := a.change(ctx, "fanout", &catalogv1.Change{Kind: &catalogv1.Change_SettleDeletion{SettleDeletion: &catalogv1.SettleDeletion{
			Repository: d.GetRepository(), Tag: d.GetTag(), Site: d.GetSite(),
		}}})
		if err != nil {
			return fmt.Errorf("taking the deletions of a removed site off the list: %w", err)
		}
	}
	return nil
}
