package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

type rolloutsStream = grpc.ServerStreamingServer[adminv1.RolloutsResponse]

// release is a rollout of one wave with two groups.
func release(phase string, groups ...string) *catalogv1.Rollout {
	r := &catalogv1.Rollout{
		Id: "7f3a9c", Phase: phase, Actor: "ann", Started: timestamppb.New(timestamp),
		Items: []*catalogv1.RolloutItem{{Repository: "prod/web", Tag: "stable", SourceRepository: "prod/web", SourceTag: "2.0", Target: &catalogv1.Descriptor{Digest: digestA}}},
		Plan:  &catalogv1.Plan{Waves: []*catalogv1.Wave{{Name: "all", Groups: []string{"hq", "hq/a"}, MaxConcurrent: 1, OnFailure: "pause", OnOffline: "skip"}}},
		Waves: []*catalogv1.RolloutWave{{Name: "all", Phase: "running"}},
	}
	for i, g := range []string{"hq", "hq/a"} {
		phase := "pending"
		if i < len(groups) {
			phase = groups[i]
		}
		r.Groups = append(r.Groups, &catalogv1.RolloutGroup{Group: g, Phase: phase})
	}
	return r
}

// promoting is a fake that starts rollouts, and notes what it was asked for.
func promoting(asked *[]*adminv1.StartRolloutRequest) *fake {
	return &fake{start: func(r *adminv1.StartRolloutRequest) (*adminv1.StartRolloutResponse, error) {
		*asked = append(*asked, proto.CloneOf(r))
		x := release("pending")
		if r.GetDryRun() {
			x.Id = ""
		}
		return &adminv1.StartRolloutResponse{Rollout: x, Warnings: []string{"hq/b is in no wave"}, Preflight: []*adminv1.PreflightSite{
			{Site: "a", Group: "hq/a", Wave: "all", State: "synced", BytesMissing: 5 << 20, Seconds: -1},
		}}, nil
	}}
}

func TestPromote_DryRun(t *testing.T) {
	var asked []*adminv1.StartRolloutRequest
	server := onSocket(t, promoting(&asked))
	plan := filepath.Join(t.TempDir(), "prod.yaml")
	text := "apiVersion: fanout/v1\nkind: Plan\nmetadata: {name: p}\nspec: {waves: [{name: all, groups: ['**']}]}\n"
	if err := os.WriteFile(plan, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r := runCtl(t, "--server", server, "promote", "prod/web:2.0", "prod/web:2.0", "prod/api@"+digestA, "--as", "stable", "--plan", plan, "--dry-run", "--supersede")
	if r.code != 0 || len(asked) != 1 {
		t.Fatalf("%d calls: %+v", len(asked), r)
	}
	want := &adminv1.StartRolloutRequest{Refs: []string{"prod/web:2.0", "prod/api:latest@" + digestA}, As: "stable", Plan: []byte(text), PlanName: plan, Supersede: true, DryRun: true}
	if !proto.Equal(asked[0], want) {
		t.Errorf("asked for %v", asked[0])
	}
	for _, text := range []string{"prod/web:stable", "from prod/web:2.0", "hq, hq/a", "5.0 MiB", "unknown", "Warning: hq/b is in no wave"} {
		if !strings.Contains(r.out, text) {
			t.Errorf("no %q in:\n%s", text, r.out)
		}
	}
	r = runCtl(t, "--server", server, "promote", "prod/web:2.0", "--dry-run", "-o", "json")
	var doc map[string]any
	if err := json.Unmarshal([]byte(r.out), &doc); err != nil {
		t.Fatalf("%v: %+v", err, r)
	}
	if lacking := append(subset(keys(t, doc), "schemaVersion dryRun id refs phase wave started waves warnings preflight"), subset(keys(t, doc, "preflight"), "site group wave state reason bytesMissing seconds shows")...); lacking != nil {
		t.Errorf("lacking %v: %s", lacking, r.out)
	}
	if doc["dryRun"] != true || doc["preflight"].([]any)[0].(map[string]any)["seconds"] != nil {
		t.Errorf("%s", r.out)
	}
}

func TestPromote_Asks(t *testing.T) {
	for _, tc := range []struct {
		typed  string
		args   string
		starts bool
	}{
		{"y\n", "", true}, {"YES\n", "", true}, {"yes", "", true}, {"\n", "", false}, {"no\n", "", false}, {"", "", false}, {"y\n", "-o json", true}, {"n\n", "-o json", false},
	} {
		var asked []*adminv1.StartRolloutRequest
		server := onSocket(t, promoting(&asked))
		r := runTyping(t, tc.typed, append([]string{"--server", server, "promote", "prod/web:2.0"}, strings.Fields(tc.args)...)...)
		if !strings.Contains(r.err, "Start it? [y/N]") {
			t.Errorf("%q: not asked: %+v", tc.typed, r)
		}
		if tc.args != "" && !strings.Contains(r.err, "hq, hq/a") || tc.args != "" && !tc.starts && r.out != "" {
			t.Errorf("%q: stdout is for the document: %+v", tc.typed, r)
		}
		if !tc.starts {
			if r.code != exitFailed || len(asked) != 1 || !strings.Contains(r.err, "nothing was started") {
				t.Errorf("%q: %d calls: %+v", tc.typed, len(asked), r)
			}
			continue
		}
		// What was shown is what starts, whatever is pushed in between.
		if r.code != 0 || len(asked) != 2 || asked[1].GetDryRun() || !slices.Equal(asked[1].GetRefs(), []string{"prod/web:2.0@" + digestA}) || !strings.Contains(r.out, "7f3a9c") {
			t.Errorf("%q: %v: %+v", tc.typed, asked, r)
		}
	}
}

func TestPromote_Usage(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte("apiVersion: fanout/v1\nkind: Plan\nmetadata: {name: p}\nspec: {waves: [{name: all, gruops: [hq]}]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var asked []*adminv1.StartRolloutRequest
	server := onSocket(t, promoting(&asked))
	for _, tc := range []struct {
		args, text string
		code       int
	}{
		{"promote prod/web:2.0", "--yes", exitUsage},
		{"promote --yes", "at least one REF", exitUsage},
		{"promote host.example.com:443/web:2.0 --yes", "host", exitUsage},
		{"promote web:2.0@sha256:12 --yes", "not a digest", exitUsage},
		{"promote web:2.0 --as stable --to prod/web --yes", "as to", exitUsage},
		{"promote web:2.0 --as sta/ble --yes", "not a tag", exitUsage},
		{"promote web:2.0 --to prod/web:1 --yes", "not a repository", exitUsage},
		{"promote web:2.0 --plan " + bad + " --yes", "bad.yaml:4: unknown key spec.waves[0].gruops", exitFailed},
		{"promote web:2.0 --plan " + dir + "/none.yaml --yes", "no such file", exitFailed},
		{"rollout abort 7f3a9c", "--yes", exitUsage},
		{"rollout rollback 7f3a9c", "--yes", exitUsage},
		{"rollout skip 7f3a9c", "GROUP", exitUsage},
		{"rollout approve 7f3a9c hq", "hq", exitUsage},
		{"freeze hq --until 3h", "reason", exitUsage},
		{"freeze hq --reason r", "until", exitUsage},
		{"freeze hq --reason r --until tomorrow", "neither a time nor a duration", exitUsage},
		{"freeze hq --reason r --until -3h", "over already", exitUsage},
		{"freeze hq --reason r --until 2020-01-01T00:00:00Z", "over already", exitUsage},
		{"policy apply", "file", exitUsage},
	} {
		r := runCtl(t, append([]string{"--server", server}, strings.Fields(tc.args)...)...)
		if r.code != tc.code || !strings.Contains(r.err, tc.text) || r.out != "" {
			t.Errorf("%s: %+v", tc.args, r)
		}
	}
	if len(asked) != 0 {
		t.Errorf("the agent was asked: %v", asked)
	}
	for args, text := range map[string]string{"promote --schema": "maxConcurrent", "policy schema": "maxFreeze"} {
		if r := runCtl(t, strings.Fields(args)...); r.code != 0 || !json.Valid([]byte(r.out)) || !strings.Contains(r.out, text) {
			t.Errorf("%s: %+v", args, r)
		}
	}
}

func TestPromote_Wait(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		last       *catalogv1.Rollout
		code       int
	}{
		{"succeeded", "", release("succeeded", "succeeded", "succeeded"), exitOK},
		{"partial", "but not at: hq/a", release("succeeded", "succeeded", "offline"), exitPartial},
		{"failed", "7f3a9c is failed", release("failed", "failed"), exitFailed},
		{"aborted", "7f3a9c is aborted", release("aborted"), exitFailed},
		{"rolled back", "7f3a9c is rolled-back", release("rolled-back", "rolled-back"), exitFailed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var asked []*adminv1.StartRolloutRequest
			f := promoting(&asked)
			f.rollouts = func(r *adminv1.RolloutsRequest, s rolloutsStream) error {
				if r.GetId() != "7f3a9c" || !r.GetWatch() {
					return status.Error(codes.NotFound, "no rollout "+r.GetId())
				}
				for _, x := range []*catalogv1.Rollout{release("running", "running"), release("running", "running"), tc.last} {
					if err := s.Send(&adminv1.RolloutsResponse{Rollouts: []*catalogv1.Rollout{x}, AsOf: timestamppb.New(timestamp), Sites: []*adminv1.RolloutSite{
						{Site: "a", Group: "hq/a", Refs: []*adminv1.SiteRef{{State: "delivered", Digest: digestA, Want: digestA}}},
					}}); err != nil {
						return err
					}
				}
				<-s.Context().Done()
				return s.Context().Err()
			}
			server := onSocket(t, f)
			r := runCtl(t, "--server", server, "promote", "prod/web:2.0", "--yes", "--wait", "-o", "json")
			var doc map[string]any
			if err := json.Unmarshal([]byte(r.out), &doc); err != nil {
				t.Fatalf("not one document: %v: %+v", err, r)
			}
			if r.code != tc.code || !strings.Contains(r.err, tc.text) || doc["phase"] != tc.last.Phase || !strings.Contains(r.err, "hq: running") {
				t.Errorf("%+v", r)
			}
			if lacking := subset(keys(t, doc, "sites"), "site group ref state digest want time reason"); lacking != nil {
				t.Errorf("lacking %v", lacking)
			}
			// Elsewhere than on a terminal a watch is a line for each change.
			r = runCtl(t, "--server", server, "rollout", "watch", "7f3a9c")
			if r.code != tc.code || strings.Count(r.out, "hq: running") != 1 || strings.Count(r.out, "rollout 7f3a9c: "+tc.last.Phase) != 1 {
				t.Errorf("%+v", r)
			}
			// With JSON a document for each.
			r = runCtl(t, "--server", server, "rollout", "watch", "7f3a9c", "-o", "json")
			if r.code != tc.code || strings.Count(r.out, "\n") != 2 {
				t.Errorf("%+v", r)
			}
		})
	}
}

func TestPromote_WaitTimesOutOrIsInterrupted(t *testing.T) {
	var asked []*adminv1.StartRolloutRequest
	f := promoting(&asked)
	f.rollouts = func(_ *adminv1.RolloutsRequest, s rolloutsStream) error {
		if err := s.Send(&adminv1.RolloutsResponse{Rollouts: []*catalogv1.Rollout{release("running", "running")}}); err != nil {
			return err
		}
		<-s.Context().Done()
		return s.Context().Err()
	}
	server := onSocket(t, f)
	r := runCtl(t, "--server", server, "rollout", "watch", "7f3a9c", "--timeout", "300ms")
	if r.code != exitTimeout || !strings.Contains(r.err, "is running, and goes on") || !strings.Contains(r.err, "fanoutctl rollout watch 7f3a9c") {
		t.Errorf("%+v", r)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	out, errs := newLocked(), newLocked()
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, []string{"--server", server, "promote", "web:2.0", "--yes", "--wait"}, strings.NewReader(""), out, errs, func(string) string { return "" })
	}()
	out.await(t, "hq: running")
	interrupt()
	if c := <-code; c != exitInterrupted || !strings.Contains(errs.String(), "7f3a9c goes on") {
		t.Errorf("exit code %d: %s", c, errs)
	}
}
