package integration

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// admin is an agent's service for people, as on its socket.
func (s *site) admin() adminv1.AdminServiceClient {
	s.t.Helper()
	conn, err := grpc.NewClient("unix:"+filepath.Join(filepath.Dir(s.dir), "s"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	return adminv1.NewAdminServiceClient(conn)
}

func isCode(t *testing.T, what string, err error, want codes.Code) {
	t.Helper()
	if status.Code(err) != want {
		t.Errorf("%s: %v, want %s", what, err, want)
	}
}

// rollout reads one rollout; nil: it could not be read now.
func rollout(ctx context.Context, c adminv1.AdminServiceClient, id string) (*catalogv1.Rollout, []*adminv1.RolloutSite) {
	stream, err := c.Rollouts(ctx, &adminv1.RolloutsRequest{Id: id})
	if err != nil {
		return nil, nil
	}
	m, err := stream.Recv()
	if err != nil || len(m.GetRollouts()) != 1 {
		return nil, nil
	}
	return m.GetRollouts()[0], m.GetSites()
}

// TestPromotionIsAskedForAtAnyMember: policies, plans and dry runs at headquarters, by a member that is not the root too; freezes at each group's own agents.
func TestPromotionIsAskedForAtAnyMember(t *testing.T) {
	t.Parallel()
	sites := start(t, spec{name: "hq-a", group: "hq"}, spec{name: "hq-b", group: "hq"}, spec{name: "hq-c", group: "hq"}, spec{name: "gd-a", group: "hq/gd", extra: "labels: {tier: province}\n"})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	digest := push(t, sites["hq-a"], "app/web:1.0", image(t, 1<<20, 2))
	eventually(t, "the province is said to have it", func() error {
		for _, w := range sites["hq-a"].where("app/web:1.0") {
			if w.Site == "gd-a" && w.State == "delivered" {
				return nil
			}
		}
		return errors.New("not yet")
	})
	for _, name := range []string{"hq-a", "hq-b", "hq-c"} { // one of them is the root
		c := sites[name].admin()
		set, err := c.SetPolicies(ctx, &adminv1.SetPoliciesRequest{Upsert: true, Policies: []*catalogv1.Policy{{Name: name, Repositories: []string{"prod/" + name}, Delivery: "staged"}}})
		if err != nil || set.GetPolicies()[len(set.GetPolicies())-1].GetName() != name {
			t.Fatalf("at %s: %v, %v", name, set, err)
		}
		dry, err := c.StartRollout(ctx, &adminv1.StartRolloutRequest{Refs: []string{"app/web:1.0"}, As: "stable", DryRun: true, PlanName: "p.yaml", Plan: []byte(`apiVersion: fanout/v1
kind: Plan
metadata: {name: p}
spec:
  waves:
  - {name: first, selector: {matchLabels: {tier: province}}, soak: 1m}
`)})
		if err != nil {
			t.Fatalf("at %s: %v", name, err)
		}
		r := dry.GetRollout()
		if r.GetId() != "" || len(r.GetGroups()) != 1 || r.GetGroups()[0].GetGroup() != "hq/gd" || r.GetItems()[0].GetTarget().GetDigest() != digest || len(dry.GetWarnings()) != 1 {
			t.Errorf("at %s: %v", name, dry)
		}
		if p := dry.GetPreflight(); len(p) != 1 || p[0].GetSite() != "gd-a" || p[0].GetWave() != "first" || p[0].GetBytesMissing() != 0 {
			t.Errorf("at %s: %v", name, p)
		} else if c := p[0].GetChecks(); len(c) != 3 || c[0].GetName() != "registry" || c[0].GetState() != "ok" {
			t.Errorf("at %s the province says of itself: %v", name, c)
		}
	}
	c := sites["hq-b"].admin()
	policies, err := c.Policies(ctx, &adminv1.PoliciesRequest{})
	if err != nil || len(policies.GetPolicies()) != 3 {
		t.Errorf("%v, %v", policies, err)
	}
	var changing errgroup.Group
	for _, name := range []string{"hq-a", "hq-b", "hq-c"} { // all at once, and none is lost
		changing.Go(func() error {
			_, err := sites[name].admin().SetPolicies(ctx, &adminv1.SetPoliciesRequest{
				Upsert: true, Remove: []string{name}, Policies: []*catalogv1.Policy{{Name: name + "-2", Repositories: []string{"prod/" + name}, Delivery: "staged"}},
			})
			return err
		})
	}
	if err := changing.Wait(); err != nil {
		t.Fatal(err)
	}
	policies, err = c.Policies(ctx, &adminv1.PoliciesRequest{})
	for _, p := range policies.GetPolicies() {
		if !strings.HasSuffix(p.GetName(), "-2") {
			t.Errorf("%s is still there", p.GetName())
		}
	}
	if err != nil || len(policies.GetPolicies()) != 3 {
		t.Errorf("%v, %v", policies, err)
	}
	_, err = c.SetPolicies(ctx, &adminv1.SetPoliciesRequest{Remove: []string{"hq-a-2", "none"}})
	isCode(t, "a policy that is not there", err, codes.NotFound)
	_, err = c.StartRollout(ctx, &adminv1.StartRolloutRequest{Refs: []string{"app/web:9"}})
	isCode(t, "a ref that is not there", err, codes.NotFound)
	_, err = c.StartRollout(ctx, &adminv1.StartRolloutRequest{Refs: []string{"app/web:1.0"}, As: "stable", Plan: []byte("kind: Plam")})
	isCode(t, "a plan that is none", err, codes.InvalidArgument)
	_, err = c.StartRollout(ctx, &adminv1.StartRolloutRequest{Refs: []string{"app/web:1.0@sha256:" + strings.Repeat("0", 64)}, As: "stable"})
	isCode(t, "a digest that it never was", err, codes.FailedPrecondition)
	_, err = c.SteerRollout(ctx, &adminv1.SteerRolloutRequest{Id: "nothing", Verb: "pause"})
	isCode(t, "a rollout that is not there", err, codes.NotFound)
	_, err = sites["gd-a"].admin().StartRollout(ctx, &adminv1.StartRolloutRequest{Refs: []string{"app/web:1.0"}})
	isCode(t, "at a province", err, codes.FailedPrecondition)

	plan := []byte("apiVersion: fanout/v1\nkind: Plan\nmetadata: {name: p}\nspec:\n  waves:\n  - {name: all, groups: ['**'], gates: {before: [{approval: {}}]}}\n")
	started, err := c.StartRollout(ctx, &adminv1.StartRolloutRequest{Refs: []string{"app/web:1.0"}, As: "stable", Plan: plan})
	if err != nil {
		t.Fatal(err)
	}
	id := started.GetRollout().GetId()
	_, err = c.StartRollout(ctx, &adminv1.StartRolloutRequest{Refs: []string{"app/web:1.0"}, As: "stable", DryRun: true})
	isCode(t, "a second promotion of the same ref", err, codes.FailedPrecondition)
	_, err = c.SteerRollout(ctx, &adminv1.SteerRolloutRequest{Id: id, Verb: "resume", Reason: "it is not paused"})
	isCode(t, "a word that is obeyed already", err, codes.OK)
	_, err = c.SteerRollout(ctx, &adminv1.SteerRolloutRequest{Id: id, Verb: "sing"})
	isCode(t, "an unknown word", err, codes.InvalidArgument)
	_, err = c.SteerRollout(ctx, &adminv1.SteerRolloutRequest{Id: id, Verb: "retry", Group: "hq/gd"})
	isCode(t, "a word that is not for that now", err, codes.FailedPrecondition)
	steered, err := c.SteerRollout(ctx, &adminv1.SteerRolloutRequest{Id: id, Verb: "abort", Reason: "second thoughts"})
	if err != nil || steered.GetRollout().GetPhase() != "aborted" {
		t.Errorf("%v, %v", steered, err)
	}

	until := timestamppb.New(time.Now().Add(time.Hour))
	_, err = c.SetFreeze(ctx, &adminv1.SetFreezeRequest{Group: "hq/gd", Reason: "x", Until: until})
	isCode(t, "a freeze of a group below", err, codes.FailedPrecondition)
	gd := sites["gd-a"].admin()
	f, err := gd.SetFreeze(ctx, &adminv1.SetFreezeRequest{Group: "hq/gd", Reason: "festival", Until: until})
	if err != nil || f.GetFreeze().GetGroup() != "hq/gd" || f.GetFreeze().GetBy() != "local" {
		t.Errorf("%v, %v", f, err)
	}
	_, err = c.SetFreeze(ctx, &adminv1.SetFreezeRequest{Group: "hq/gd", Thaw: true})
	isCode(t, "headquarters thaws a province", err, codes.FailedPrecondition)
	_, err = gd.SetFreeze(ctx, &adminv1.SetFreezeRequest{Thaw: true})
	isCode(t, "a thaw", err, codes.OK)
	_, err = sites["hq-c"].admin().SetFreeze(ctx, &adminv1.SetFreezeRequest{Reason: "everywhere", Until: until})
	isCode(t, "a freeze at headquarters, at any member", err, codes.OK)
}
