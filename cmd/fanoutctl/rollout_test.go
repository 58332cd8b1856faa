package main

import (
	"encoding/json"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/screen"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

var timestamp = time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)

// known answers for rollouts that are given.
func known(list ...*catalogv1.Rollout) func(*adminv1.RolloutsRequest, rolloutsStream) error {
	return func(r *adminv1.RolloutsRequest, s rolloutsStream) error {
		if r.GetId() == "" {
			return s.Send(&adminv1.RolloutsResponse{Rollouts: list, AsOf: timestamppb.New(timestamp)})
		}
		for _, x := range list {
			if x.GetId() == r.GetId() {
				return s.Send(&adminv1.RolloutsResponse{Rollouts: []*catalogv1.Rollout{x}, AsOf: timestamppb.New(timestamp)})
			}
		}
		return status.Error(codes.NotFound, "no rollout "+r.GetId()+" is known")
	}
}

func TestRollout_Shape(t *testing.T) {
	server := onSocket(t, &fake{rollouts: known(release("running", "running"))})
	for args, want := range map[string][]string{
		"rollout list":        {"schemaVersion asOf rollouts", "rollouts:id refs phase wave started"},
		"rollout show 7f3a9c": {"schemaVersion id refs phase wave started waves sites steps", "refs:ref digest", "waves:name phase groups", "waves/groups:group phase reason"},
	} {
		r := runCtl(t, append([]string{"--server", server, "-o", "json"}, strings.Fields(args)...)...)
		var doc map[string]any
		if err := json.Unmarshal([]byte(r.out), &doc); err != nil || r.code != 0 {
			t.Fatalf("%s: %v: %+v", args, err, r)
		}
		for _, w := range want {
			path, names, nested := strings.Cut(w, ":")
			if !nested {
				path, names = "", w
			}
			if lacking := subset(keys(t, doc, strings.FieldsFunc(path, func(r rune) bool { return r == '/' })...), names); lacking != nil {
				t.Errorf("%s: lacking %v: %s", args, lacking, r.out)
			}
		}
		if strings.Contains(r.out, "null") || !strings.Contains(r.out, `"schemaVersion": 1`) || !strings.Contains(r.out, `"wave": "all"`) {
			t.Errorf("%s", r.out)
		}
	}
	if r := runCtl(t, "--server", server, "rollout", "show", "nope"); r.code != exitFailed || !strings.Contains(r.err, "fanoutctl rollout list") {
		t.Errorf("%+v", r)
	}
	empty := onSocket(t, &fake{rollouts: known()})
	if r := runCtl(t, "--server", empty, "rollout", "list", "-o", "json"); r.code != 0 || !strings.Contains(r.out, `"rollouts": []`) {
		t.Errorf("%+v", r)
	}
}

func TestRollout_Steer(t *testing.T) {
	var asked []*adminv1.SteerRolloutRequest
	server := onSocket(t, &fake{rollouts: known(release("running", "running")), steer: func(r *adminv1.SteerRolloutRequest) (*adminv1.SteerRolloutResponse, error) {
		asked = append(asked, proto.CloneOf(r))
		if r.GetReason() == "no" {
			return nil, status.Error(codes.FailedPrecondition, "rollout 7f3a9c waits for no approval")
		}
		if r.GetReason() == "again" {
			return &adminv1.SteerRolloutResponse{Rollout: release("paused", "running"), Unchanged: "rollout 7f3a9c is paused: lunch"}, nil
		}
		return &adminv1.SteerRolloutResponse{Rollout: release("paused", "running")}, nil
	}})
	if r := runCtl(t, "--server", server, "rollout", "pause", "7f3a9c", "--reason", "again"); r.code != 0 || r.err != "Nothing was changed: rollout 7f3a9c is paused: lunch.\n" {
		t.Errorf("%+v", r)
	}
	for args, want := range map[string]*adminv1.SteerRolloutRequest{
		"pause X --reason why":     {Id: "X", Verb: "pause", Reason: "why"},
		"resume X":                 {Id: "X", Verb: "resume"},
		"approve X --yes":          {Id: "X", Verb: "approve"},
		"reject X --reason bad":    {Id: "X", Verb: "reject", Reason: "bad"},
		"skip X hq/a":              {Id: "X", Verb: "skip", Group: "hq/a"},
		"retry X hq/a":             {Id: "X", Verb: "retry", Group: "hq/a"},
		"abort X --yes":            {Id: "X", Verb: "abort"},
		"rollback X --yes":         {Id: "X", Verb: "rollback"},
		"rollback X --yes -o json": {Id: "X", Verb: "rollback"},
	} {
		asked = nil
		r := runCtl(t, append([]string{"--server", server, "rollout"}, strings.Fields(args)...)...)
		if r.code != 0 || len(asked) != 1 || !proto.Equal(asked[0], want) || !strings.Contains(r.out, "paused") {
			t.Errorf("%s: %v: %+v", args, asked, r)
		}
	}
	if r := runCtl(t, "--server", server, "rollout", "approve", "7f3a9c", "--reason", "no"); r.code != exitFailed || !strings.Contains(r.err, "waits for no approval") {
		t.Errorf("%+v", r)
	}
	// What can't be taken back easily is asked for, with what it is about.
	for verb, question := range map[string]string{"abort": "Abort rollout 7f3a9c?", "rollback": "Roll back rollout 7f3a9c?"} {
		asked = nil
		r := runTyping(t, "n\n", "--server", server, "rollout", verb, "7f3a9c")
		if r.code != exitFailed || len(asked) != 0 || !strings.Contains(r.err, question) || !strings.Contains(r.err, "prod/web:stable") || !strings.Contains(r.err, "nothing was changed") {
			t.Errorf("%s: %v: %+v", verb, asked, r)
		}
		if r := runTyping(t, "y\n", "--server", server, "rollout", verb, "7f3a9c"); r.code != 0 || len(asked) != 1 {
			t.Errorf("%s: %v: %+v", verb, asked, r)
		}
	}
}

func TestRollout_WatchGoesOnWhenAgentRestarts(t *testing.T) {
	var calls atomic.Int32
	server := onSocket(t, &fake{rollouts: func(_ *adminv1.RolloutsRequest, s rolloutsStream) error {
		phase := "running"
		if calls.Add(1) > 1 {
			phase = "succeeded"
		}
		if err := s.Send(&adminv1.RolloutsResponse{Rollouts: []*catalogv1.Rollout{release(phase, "succeeded", "succeeded")}}); err != nil {
			return err
		}
		return status.Error(codes.Unavailable, "stopping")
	}})
	r := runCtl(t, "--server", server, "rollout", "watch", "7f3a9c")
	if r.code != exitOK || calls.Load() != 2 || !strings.Contains(r.err, "trying again") || !strings.Contains(r.out, "rollout 7f3a9c: succeeded") {
		t.Errorf("%d calls: %+v", calls.Load(), r)
	}
}

func TestRollout_WatchDrawsOnATerminal(t *testing.T) {
	server := onSocket(t, &fake{rollouts: func(_ *adminv1.RolloutsRequest, s rolloutsStream) error {
		for _, x := range []*catalogv1.Rollout{release("running", "running"), release("running", "running"), release("succeeded", "succeeded", "succeeded")} {
			if err := s.Send(&adminv1.RolloutsResponse{Rollouts: []*catalogv1.Rollout{x}}); err != nil {
				return err
			}
		}
		return nil
	}})
	out, errs := newLocked(), newLocked()
	a := newApp(strings.NewReader(""), out, errs, func(string) string { return "" })
	a.out = screen.Fixed(80, 40, false)
	if code := a.run(t.Context(), []string{"--server", server, "rollout", "watch", "7f3a9c"}); code != exitOK {
		t.Fatalf("%d: %s", code, errs)
	}
	// It is drawn twice, the second time over the first; what is the same is not drawn.
	if text := out.String(); strings.Count(text, "rollout 7f3a9c") != 2 || strings.Count(text, "\x1b[8A") != 1 {
		t.Errorf("%q", text)
	}
}

func TestRollout_Completion(t *testing.T) {
	ended := release("succeeded", "succeeded")
	ended.Id, ended.Settled = "00ff12", true
	server := onSocket(t, &fake{rollouts: known(release("running", "running"), ended), policies: func() (*adminv1.PoliciesResponse, error) {
		return &adminv1.PoliciesResponse{Policies: []*catalogv1.Policy{{Name: "releases"}, {Name: "hotfix"}}}, nil
	}})
	for args, want := range map[string]string{
		"rollout show ":         "7f3a9c\trunning: prod/web:stable 00ff12\tsucceeded: prod/web:stable",
		"rollout pause ":        "7f3a9c\trunning: prod/web:stable",
		"rollout resume ":       "",
		"rollout rollback 7":    "7f3a9c\trunning: prod/web:stable",
		"rollout skip 7f3a9c h": "hq hq/a",
		"rollout pause 7f3a9c ": "",
		"policy delete hotfix ": "releases",
	} {
		r := runCtl(t, append([]string{"__complete", "--server", server}, strings.Split(args, " ")...)...)
		words, _, _ := strings.Cut(r.out, ":4")
		if got := strings.Join(strings.Split(strings.TrimSpace(words), "\n"), " "); r.code != 0 || got != want {
			t.Errorf("%s: %q; want %q", args, got, want)
		}
	}
}

func TestPolicy(t *testing.T) {
	list := []*catalogv1.Policy{{Name: "a", Repositories: []string{"a/**"}, Delivery: "cascade"}, {Name: "b", Repositories: []string{"b/**"}, Delivery: "staged", MaxFreeze: durationpb.New(time.Hour)}}
	var asked *adminv1.SetPoliciesRequest
	server := onSocket(t, &fake{
		policies: func() (*adminv1.PoliciesResponse, error) { return &adminv1.PoliciesResponse{Policies: list}, nil },
		setPolicies: func(r *adminv1.SetPoliciesRequest) (*adminv1.SetPoliciesResponse, error) {
			asked = proto.CloneOf(r)
			if slices.Contains(r.GetRemove(), "c") {
				return nil, status.Error(codes.NotFound, `there is no policy "c"; 'fanoutctl policy list' lists those that are`)
			}
			return &adminv1.SetPoliciesResponse{Policies: r.GetPolicies()}, nil
		},
	})
	r := runCtl(t, "--server", server, "policy", "list", "-o", "json")
	var doc map[string]any
	if err := json.Unmarshal([]byte(r.out), &doc); err != nil {
		t.Fatalf("%v: %+v", err, r)
	}
	if lacking := subset(keys(t, doc, "policies"), "name repositories delivery maxFreezeSeconds"); lacking != nil {
		t.Errorf("lacking %v: %s", lacking, r.out)
	}
	file := "apiVersion: fanout/v1\nkind: Policy\nmetadata: {name: releases}\nspec: {repositories: ['prod/**'], delivery: staged, maxFreeze: 72h}\n"
	for _, prune := range []bool{false, true} {
		args := []string{"--server", server, "policy", "apply", "-f", "-"}
		if prune {
			args = append(args, "--prune")
		}
		r := runTyping(t, file, args...)
		if r.code != 0 || len(asked.GetPolicies()) != 1 || asked.GetUpsert() == prune || asked.GetPolicies()[0].GetMaxFreeze().AsDuration() != 72*time.Hour || !strings.Contains(r.out, "releases") {
			t.Errorf("%v: %+v", asked, r)
		}
	}
	asked = nil
	if r := runTyping(t, strings.Replace(file, "staged", "later", 1), "--server", server, "policy", "apply", "-f", "-"); r.code != exitFailed || asked != nil || !strings.Contains(r.err, "delivery") {
		t.Errorf("%v: %+v", asked, r)
	}
	r = runCtl(t, "--server", server, "policy", "delete", "a")
	if r.code != 0 || !asked.GetUpsert() || len(asked.GetPolicies()) != 0 || !slices.Equal(asked.GetRemove(), []string{"a"}) {
		t.Errorf("%v: %+v", asked, r) // the agent takes it away, and no list that was read here is put in force
	}
	if r := runCtl(t, "--server", server, "policy", "delete", "b", "c"); r.code != exitFailed || !strings.Contains(r.err, `no policy "c"`) {
		t.Errorf("%v: %+v", asked, r)
	}
}

func TestFreeze(t *testing.T) {
	var asked *adminv1.SetFreezeRequest
	server := onSocket(t, &fake{freeze: func(r *adminv1.SetFreezeRequest) (*adminv1.SetFreezeResponse, error) {
		asked = proto.CloneOf(r)
		if r.GetThaw() {
			return &adminv1.SetFreezeResponse{}, nil
		}
		return &adminv1.SetFreezeResponse{Freeze: &catalogv1.Freeze{Group: r.GetGroup(), Reason: r.GetReason(), Until: r.GetUntil(), By: "li"}}, nil
	}})
	before := time.Now()
	r := runCtl(t, "--server", server, "freeze", "hq/a", "--reason", "stocktaking", "--until", "36h", "-o", "json")
	at := asked.GetUntil().AsTime()
	if r.code != 0 || asked.GetGroup() != "hq/a" || asked.GetReason() != "stocktaking" || asked.GetThaw() || at.Before(before.Add(36*time.Hour-time.Second)) || at.After(time.Now().Add(36*time.Hour)) {
		t.Errorf("%v: %+v", asked, r)
	}
	if !strings.Contains(r.out, `"frozen": true`) || !strings.Contains(r.out, `"until": "`) {
		t.Errorf("%s", r.out)
	}
	r = runCtl(t, "--server", server, "freeze", "hq/a", "--reason", "stocktaking", "--until", "2099-10-01T06:00:00+08:00")
	if r.code != 0 || !asked.GetUntil().AsTime().Equal(time.Date(2099, 9, 30, 22, 0, 0, 0, time.UTC)) || !strings.Contains(r.out, "frozen until 2099-09-30 22:00:00Z") {
		t.Errorf("%v: %+v", asked, r)
	}
	if r := runCtl(t, "--server", server, "thaw", "hq/a"); r.code != 0 || !asked.GetThaw() || asked.GetGroup() != "hq/a" || !strings.Contains(r.out, "not frozen") {
		t.Errorf("%v: %+v", asked, r)
	}
}
