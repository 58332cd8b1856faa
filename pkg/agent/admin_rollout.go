package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/plan"
	"github.com/fanout-io/fanout/pkg/tree"
)

// rolloutID is how many letters the ID of a rollout has.
const rolloutID = 10

// proposed is what becomes of a person's change for the one who asked. What was so already is no error.
func proposed(err error) error {
	var refusal *catalog.Refusal
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &refusal):
		return status.Error(codes.Unavailable, err.Error())
	case errors.Is(err, catalog.ErrInvalid):
		return status.Error(codes.InvalidArgument, refusal.Message)
	}
	return status.Error(codes.FailedPrecondition, refusal.Message)
}

// StartRollout implements adminv1.AdminServiceServer.
func (s *admin) StartRollout(ctx context.Context, req *adminv1.StartRolloutRequest) (*adminv1.StartRolloutResponse, error) {
	actor, root, err := s.steer(ctx, "promote")
	if err != nil {
		return nil, err
	}
	if root != nil {
		return root.StartRollout(onBehalf(ctx, actor), req)
	}
	health := s.a.node.Health()
	p, warnings, err := s.a.resolvePlan(req, health)
	if err != nil {
		return nil, err
	}
	items, err := s.items(ctx, req)
	if err != nil {
		return nil, err
	}
	resp := &adminv1.StartRolloutResponse{}
	for _, w := range warnings {
		resp.Warnings = append(resp.Warnings, w.String())
	}
	start := &catalogv1.StartRollout{Rollout: &catalogv1.Rollout{Items: items, Plan: p}, Supersede: req.GetSupersede()}
	if req.GetSupersede() {
		resp.Warnings = append(resp.Warnings, s.a.supersedes(items)...)
	}
	if req.GetDryRun() {
		if err := s.mayStart(start); err != nil {
			return nil, err
		}
		resp.Rollout = begun(s.a.node.Catalog(), start.Rollout, actor)
		resp.Preflight = s.a.preflight(ctx, resp.Rollout, actor)
		return resp, nil
	}
	ctx, span := s.a.tracer.Start(s.a.tracer.Join(ctx, askedTrace(ctx)), spanPromote)
	start.Rollout.Traceparent = span.Traceparent()
	start.Rollout.Id = strings.ToLower(rand.Text()[:rolloutID])
	if err := s.a.change(ctx, actor, &catalogv1.Change{Kind: &catalogv1.Change_StartRollout{StartRollout: start}}); err != nil {
		return nil, proposed(err)
	}
	resp.Rollout = s.a.node.Catalog().Rollout(start.Rollout.Id)
	tracePromotion(span, resp.Rollout)
	return resp, nil
}

// supersedes names the rollouts that a promotion of these items ends.
func (a *Agent) supersedes(items []*catalogv1.RolloutItem) (out []string) {
	snap := a.node.Catalog()
	for _, it := range items {
		r := snap.ActiveRollout(catalog.Ref{Repository: it.GetRepository(), Tag: it.GetTag()})
		if r == nil {
			continue
		}
		where := ""
		if i := int(r.GetWave()); i < len(r.GetWaves()) {
			where = fmt.Sprintf(", wave %d of %d %s", i+1, len(r.GetWaves()), r.GetWaves()[i].GetName())
		}
		text := fmt.Sprintf("rollout %s (%s%s), which %s started at %s, ends by this; what it released stays until the waves here come to it", r.GetId(), r.GetPhase(), where, r.GetActor(), clock(r.GetStarted()))
		if !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	return out
}

// resolvePlan reads the plan file, if there is one, and looks its groups up among those that headquarters knows.
func (a *Agent) resolvePlan(req *adminv1.StartRolloutRequest, health tree.HealthView) (*catalogv1.Plan, []plan.Warning, error) {
	p := plan.Default()
	if len(req.GetPlan()) > 0 {
		name := req.GetPlanName()
		if name == "" {
			name = "plan"
		}
		var err error
		if p, err = plan.Parse(name, req.GetPlan(), time.LoadLocation); err != nil {
			return nil, nil, status.Error(codes.InvalidArgument, err.Error())
		}
	}
	var groups []plan.Group
	snap := a.node.Catalog()
	for _, g := range health.Groups {
		labels := g.GetLabels()
		if g.GetGroup() == a.cfg.Group {
			labels = snap.Settings().GetLabels()
		}
		groups = append(groups, plan.Group{Path: g.GetGroup(), Labels: labels})
	}
	resolved, warnings, err := plan.Resolve(p, groups)
	if err != nil {
		return nil, nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return resolved, warnings, nil
}

// items finds what each ref that a person named is to move to.
func (s *admin) items(ctx context.Context, req *adminv1.StartRolloutRequest) ([]*catalogv1.RolloutItem, error) {
	if len(req.GetRefs()) == 0 {
		return nil, status.Error(codes.InvalidArgument, "no ref is named; write REPOSITORY:TAG")
	}
	settings := s.a.node.Catalog().Settings()
	if settings == nil {
		return nil, status.Errorf(codes.Unavailable, "%v; the group may be without a root: try again", errNoCatalog)
	}
	var out []*catalogv1.RolloutItem
	for _, text := range req.GetRefs() {
		name, digest, _ := strings.Cut(text, "@")
		ref, err := parseRef(name)
		if err != nil {
			return nil, err
		}
		it, err := s.source(ctx, ref, digest)
		if err != nil {
			return nil, err
		}
		it.Repository, it.Tag = ref.Repository, ref.Tag
		if req.GetAs() != "" {
			it.Tag = req.GetAs()
		}
		if req.GetTo() != "" {
			it.Repository = req.GetTo()
		}
		moves, err := parseRef(it.Repository + ":" + it.Tag)
		if err != nil {
			return nil, err
		}
		if !publishable(settings.GetPublish(), moves) {
			return nil, status.Errorf(codes.FailedPrecondition, "%s is not among publish.repositories, or is excluded", moves)
		}
		out = append(out, it)
	}
	return out, nil
}

// source finds the content that a ref is promoted with: what headquarters shows of it, or a digest that its record knows.
func (s *admin) source(ctx context.Context, ref catalog.Ref, digest string) (*catalogv1.RolloutItem, error) {
	rec, err := s.record(ref)
	if err != nil {
		return nil, err
	}
	it := &catalogv1.RolloutItem{SourceRepository: ref.Repository, SourceTag: ref.Tag}
	shown := catalog.Project(rec, s.a.cfg.Group)
	if digest == "" {
		if shown.GetDeleted() {
			return nil, status.Errorf(codes.FailedPrecondition, "headquarters shows nothing under %s; push it first, or name a digest as %s@sha256:…", ref, ref)
		}
		it.Target, it.Referrers = shown.GetTarget(), shown.GetReferrers()
		return it, nil
	}
	if !catalog.ValidDigest(digest) {
		return nil, status.Errorf(codes.InvalidArgument, "%q is no digest; write sha256: and 64 hex digits", digest)
	}
	for _, t := range catalog.Content(rec) {
		if t.Descriptor.GetDigest() == digest {
			it.Target, it.Referrers = t.Descriptor, t.Referrers
			return it, nil
		}
	}
	if shown.GetTarget().GetDigest() != digest && !slices.Contains(shown.GetHistory(), digest) {
		return nil, status.Errorf(codes.FailedPrecondition, "%s never was %s, as far as is remembered; push it under that tag first", ref, digest)
	}
	// No group shows it any more, so that nothing keeps its content.
	if s.a.registry == nil {
		return nil, status.Errorf(codes.FailedPrecondition, "%s is a witness, and has no registry in which %s could be looked up; ask at another agent of headquarters, or push it again", s.a.cfg.Site, digest)
	}
	target, closure, err := s.a.readClosure(ctx, ref.Repository, digest)
	if err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "the registry of headquarters' root %s no longer has %s whole: %v; push it again", s.a.cfg.Site, digest, err)
	}
	it.Target = target
	if it.Referrers, _, err = s.a.findReferrers(ctx, ref.Repository, closure.Manifests); err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return it, nil
}

// mayStart says why a rollout would be refused, as far as that can be told without starting it.
func (s *admin) mayStart(start *catalogv1.StartRollout) error {
	snap := s.a.node.Catalog()
	seen := map[catalog.Ref]bool{}
	for _, it := range start.GetRollout().GetItems() {
		ref := catalog.Ref{Repository: it.GetRepository(), Tag: it.GetTag()}
		if seen[ref] {
			return status.Errorf(codes.InvalidArgument, "%s is named twice", ref)
		}
		seen[ref] = true
		if r := snap.ActiveRollout(ref); r != nil && !start.GetSupersede() {
			return status.Errorf(codes.FailedPrecondition, "%s is under rollout %s, which is %s: wait for its end, or abort it", ref, r.GetId(), r.GetPhase())
		}
	}
	return nil
}

// begun is a rollout as it would begin.
func begun(snap *catalog.Snapshot, given *catalogv1.Rollout, actor string) *catalogv1.Rollout {
	r := &catalogv1.Rollout{Items: given.GetItems(), Plan: given.GetPlan(), Phase: catalog.RolloutPending, Actor: actor}
	for i, w := range r.GetPlan().GetWaves() {
		r.Waves = append(r.Waves, &catalogv1.RolloutWave{Name: w.GetName(), Phase: catalog.WavePending})
		for _, path := range w.GetGroups() {
			g := &catalogv1.RolloutGroup{Group: path, Wave: uint32(i), Phase: catalog.GroupPending}
			for _, it := range r.GetItems() {
				rec, _ := snap.Get(catalog.Ref{Repository: it.GetRepository(), Tag: it.GetTag()})
				g.Before = append(g.Before, catalog.ShownBy(rec, path))
			}
			r.Groups = append(r.Groups, g)
		}
	}
	return r
}

// Rollouts implements adminv1.AdminServiceServer.
func (s *admin) Rollouts(req *adminv1.RolloutsRequest, stream grpc.ServerStreamingServer[adminv1.RolloutsResponse]) error {
	ctx := stream.Context()
	if _, err := s.actor(ctx); err != nil {
		return err
	}
	if err := s.headquarters("ask for rollouts"); err != nil {
		return err
	}
	root, err := s.rootNow(ctx)
	if err != nil {
		return err
	}
	if root != nil {
		from, err := root.Rollouts(ctx, req)
		return relay(from, err, stream.Send)
	}
	return s.repeat(ctx, req.GetWatch(), func() error {
		resp := &adminv1.RolloutsResponse{AsOf: now()}
		if req.GetId() == "" {
			resp.Rollouts = s.a.node.Catalog().Rollouts()
			slices.Reverse(resp.Rollouts)
			return stream.Send(resp)
		}
		r := s.a.node.Catalog().Rollout(req.GetId())
		if r == nil {
			return noRollout(req.GetId())
		}
		resp.Rollouts = []*catalogv1.Rollout{r}
		resp.Sites = s.a.receipt(r)
		return stream.Send(resp)
	})
}

func noRollout(id string) error {
	return status.Errorf(codes.NotFound, "no rollout %q is kept; 'fanoutctl rollout list' lists those that are", id)
}

// receipt says how the refs of a rollout are at every site of its groups.
func (a *Agent) receipt(r *catalogv1.Rollout) []*adminv1.RolloutSite {
	groups := map[string]bool{}
	for _, g := range r.GetGroups() {
		groups[g.GetGroup()] = true
	}
	var out []*adminv1.RolloutSite
	at := map[string]*adminv1.RolloutSite{}
	for i, it := range r.GetItems() {
		ref := catalog.Ref{Repository: it.GetRepository(), Tag: it.GetTag()}
		rec, _ := a.node.Catalog().Get(ref)
		for _, w := range a.where(ref, rec).GetSites() {
			if !groups[w.GetGroup()] {
				continue
			}
			site := at[w.GetSite()]
			if site == nil {
				site = &adminv1.RolloutSite{Site: w.GetSite(), Group: w.GetGroup(), Refs: make([]*adminv1.SiteRef, len(r.GetItems()))}
				for j := range site.GetRefs() {
					site.Refs[j] = &adminv1.SiteRef{Site: w.GetSite(), Group: w.GetGroup(), State: "unknown"}
				}
				at[w.GetSite()] = site
				out = append(out, site)
			}
			site.Refs[i] = w
		}
	}
	return out
}

// SteerRollout implements adminv1.AdminServiceServer. A word that was obeyed already is no error.
func (s *admin) SteerRollout(ctx context.Context, req *adminv1.SteerRolloutRequest) (*adminv1.SteerRolloutResponse, error) {
	actor, root, err := s.steer(ctx, "steer rollouts")
	if err != nil {
		return nil, err
	}
	if root != nil {
		return root.SteerRollout(onBehalf(ctx, actor), req)
	}
	if s.a.node.Catalog().Rollout(req.GetId()) == nil {
		return nil, noRollout(req.GetId())
	}
	unchanged, err := s.a.changes(ctx, actor, &catalogv1.Change{Kind: &catalogv1.Change_SteerRollout{SteerRollout: &catalogv1.SteerRollout{
		Id: req.GetId(), Verb: req.GetVerb(), Group: req.GetGroup(), Reason: req.GetReason(),
	}}})
	if errors.Is(err, catalog.ErrInvalid) && slices.Contains(steerVerbs, req.GetVerb()) {
		return nil, status.Error(codes.FailedPrecondition, status.Convert(proposed(err)).Message())
	}
	if err != nil {
		return nil, proposed(err)
	}
	s.a.logger.Info("a rollout was steered", "rollout", req.GetId(), "verb", req.GetVerb(), "rollout_group", req.GetGroup(), "actor", actor)
	return &adminv1.SteerRolloutResponse{Rollout: s.a.node.Catalog().Rollout(req.GetId()), Unchanged: unchanged}, nil
}

var steerVerbs = []string{
	catalog.SteerPause, catalog.SteerResume, catalog.SteerApprove, catalog.SteerReject, catalog.SteerSkip, catalog.SteerRetry, catalog.SteerAbort, catalog.SteerRollback,
}

// Policies implements adminv1.AdminServiceServer.
func (s *admin) Policies(ctx context.Context, req *adminv1.PoliciesRequest) (*adminv1.PoliciesResponse, error) {
	if _, err := s.actor(ctx); err != nil {
		return nil, err
	}
	if err := s.headquarters("ask for policies"); err != nil {
		return nil, err
	}
	if root, err := s.rootNow(ctx); err != nil || root != nil {
		if err != nil {
			return nil, err
		}
		return root.Policies(ctx, req)
	}
	return &adminv1.PoliciesResponse{Policies: s.a.node.Catalog().Policies()}, nil
}

// SetPolicies implements adminv1.AdminServiceServer.
func (s *admin) SetPolicies(ctx context.Context, req *adminv1.SetPoliciesRequest) (*adminv1.SetPoliciesResponse, error) {
	actor, root, err := s.steer(ctx, "set policies")
	if err != nil {
		return nil, err
	}
	if root != nil {
		return root.SetPolicies(onBehalf(ctx, actor), req)
	}
	for {
		set, err := newPolicies(req, s.a.node.Catalog().Policies())
		if err != nil {
			return nil, err
		}
		err = s.a.change(ctx, actor, &catalogv1.Change{Kind: &catalogv1.Change_SetPolicies{SetPolicies: set}})
		if errors.Is(err, catalog.ErrConflict) && sleep(ctx, policiesAgain) {
			continue // somebody else changed them meanwhile: both changes are wanted
		}
		if err != nil {
			return nil, proposed(err)
		}
		s.a.events.normal("PoliciesSet", "", count(len(set.GetPolicies()), "policy", "policies")+", by "+actor)
		return &adminv1.SetPoliciesResponse{Policies: s.a.node.Catalog().Policies()}, nil
	}
}

// policiesAgain is how long a change of policies waits that met another.
const policiesAgain = 20 * time.Millisecond

// newPolicies makes the policies that are to be in force from those that are.
func newPolicies(req *adminv1.SetPoliciesRequest, held []*catalogv1.Policy) (*catalogv1.SetPolicies, error) {
	if !req.GetUpsert() && len(req.GetRemove()) == 0 {
		return &catalogv1.SetPolicies{Policies: req.GetPolicies()}, nil
	}
	for _, name := range req.GetRemove() {
		if !slices.ContainsFunc(held, func(p *catalogv1.Policy) bool { return p.GetName() == name }) {
			return nil, status.Errorf(codes.NotFound, "there is no policy %q; 'fanoutctl policy list' lists those that are", name)
		}
	}
	left := slices.DeleteFunc(slices.Clone(held), func(p *catalogv1.Policy) bool { return slices.Contains(req.GetRemove(), p.GetName()) })
	return &catalogv1.SetPolicies{Policies: upsert(left, req.GetPolicies()), Compare: true, Expect: held}, nil
}

// upsert replaces policies by name, in their places, and adds the others at the end.
func upsert(held, given []*catalogv1.Policy) []*catalogv1.Policy {
	out := slices.Clone(held)
	for _, p := range given {
		i := slices.IndexFunc(out[:len(held)], func(o *catalogv1.Policy) bool { return o.GetName() == p.GetName() })
		if i < 0 {
			out = append(out, p)
			continue
		}
		out[i] = p
	}
	return out
}

// SetFreeze implements adminv1.AdminServiceServer. Each group speaks for itself: a group above that could set its freeze could end it, too. It keeps what is below it from changing
// tags by its own.
func (s *admin) SetFreeze(ctx context.Context, req *adminv1.SetFreezeRequest) (*adminv1.SetFreezeResponse, error) {
	actor, err := s.actor(ctx)
	if err != nil {
		return nil, err
	}
	group := s.a.cfg.Group
	if req.GetGroup() != "" && req.GetGroup() != group {
		what := "freeze"
		if req.GetThaw() {
			what = "thaw"
		}
		return nil, status.Errorf(codes.FailedPrecondition, "this is an agent of group %s; a group is frozen, and thawed, at one of its own agents: ask there to %s %s", group, what, req.GetGroup())
	}
	set := &catalogv1.SetFreeze{}
	if !req.GetThaw() {
		set.Freeze = &catalogv1.Freeze{Group: group, Reason: req.GetReason(), By: actor, Until: req.GetUntil()}
	}
	before := s.a.node.Catalog().Freeze()
	unchanged, err := s.a.changes(ctx, actor, &catalogv1.Change{Kind: &catalogv1.Change_SetFreeze{SetFreeze: set}})
	if err != nil {
		return nil, proposed(err)
	}
	if req.GetThaw() {
		over := before != nil && !before.GetUntil().AsTime().After(time.Now())
		s.a.logger.Info("the group was thawed", "actor", actor)
		return &adminv1.SetFreezeResponse{Thawed: unchanged == "" && !over}, nil
	}
	s.a.logger.Info("the group was frozen", "actor", actor, "until", req.GetUntil().AsTime(), "reason", req.GetReason())
	if f := s.a.node.Catalog().Freeze(); f.GetUntil().AsTime().Equal(set.Freeze.GetUntil().AsTime()) {
		set.Freeze = f // as the machine keeps it; at a member that is not the root it may come later
	}
	return &adminv1.SetFreezeResponse{Freeze: set.Freeze, Shorter: s.a.shorterFreezes(set.Freeze)}, nil
}

// shorterFreezes says which refs a freeze keeps for a shorter time than it says, as their policies bound it.
func (a *Agent) shorterFreezes(f *catalogv1.Freeze) (out []*adminv1.SetFreezeResponse_Shorter) {
	whole := f.GetUntil().AsTime().Sub(f.GetSince().AsTime())
	by := map[time.Duration]*adminv1.SetFreezeResponse_Shorter{}
	for rec := range a.node.Catalog().Records() {
		most := rec.GetMaxFreeze().AsDuration()
		if most <= 0 || most >= whole || rec.GetDeleted() && len(rec.GetReleases()) == 0 {
			continue
		}
		s := by[most]
		if s == nil {
			s = &adminv1.SetFreezeResponse_Shorter{Until: timestamppb.New(f.GetSince().AsTime().Add(most)), Example: catalog.RefOf(rec).String()}
			by[most] = s
		}
		s.Refs++
	}
	for _, most := range slices.Sorted(maps.Keys(by)) {
		out = append(out, by[most])
	}
	return out
}
