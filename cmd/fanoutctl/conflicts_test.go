package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

func TestUnpublishAndUndo(t *testing.T) {
	until := timestamppb.New(time.Unix(1_800_000_000, 0))
	server := onSocket(t, &fake{
		unpublish: func(r *adminv1.UnpublishRequest) (*adminv1.UnpublishResponse, error) {
			return &adminv1.UnpublishResponse{Ref: r.GetRef(), Digest: digestA, Revision: 7, UndoUntil: until}, nil
		},
		undo: func(r *adminv1.UndoRequest) (*adminv1.UndoResponse, error) {
			if r.GetRef() != "team/app:1" {
				return nil, status.Error(codes.FailedPrecondition, r.GetRef()+" is not deleted")
			}
			return &adminv1.UndoResponse{Ref: r.GetRef(), Digest: digestA, Revision: 8}, nil
		},
	})
	for command, want := range map[string]string{
		"unpublish team/app:1": `{"schemaVersion":1,"ref":"team/app:1","digest":"` + digestA + `","revision":7,"undoUntil":"2027-01-15T08:00:00Z","already":false}`,
		"undo team/app:1":      `{"schemaVersion":1,"ref":"team/app:1","digest":"` + digestA + `","revision":8}`,
	} {
		r := runCtl(t, append([]string{"--server", server, "-o", "json"}, strings.Fields(command)...)...)
		var got, expected map[string]any
		if json.Unmarshal([]byte(r.out), &got) != nil || json.Unmarshal([]byte(want), &expected) != nil || len(got) != len(expected) {
			t.Fatalf("%s: %+v", command, r)
		}
		for k, v := range expected {
			if got[k] != v {
				t.Errorf("%s: %s is %v, want %v", command, k, got[k], v)
			}
		}
	}
	if r := runCtl(t, "--server", server, "unpublish", "team/app:1"); !strings.Contains(r.out, "2027-01-15 08:00:00Z it comes back with: fanoutctl undo team/app:1") {
		t.Errorf("%+v", r)
	}
	if r := runCtl(t, "--server", server, "undo", "team/app:2"); r.code != 1 || !strings.Contains(r.err, "is not deleted") {
		t.Errorf("%+v", r)
	}
	// A deletion needs a tag: none is meant by default.
	if r := runCtl(t, "--server", server, "unpublish", "team/app"); r.code != 2 || !strings.Contains(r.err, "REPOSITORY:TAG") {
		t.Errorf("%+v", r)
	}
}

func TestConflicts(t *testing.T) {
	const digestB = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	list := &adminv1.ConflictsResponse{}
	server := onSocket(t, &fake{
		conflicts: func() (*adminv1.ConflictsResponse, error) { return list, nil },
		settle: func(r *adminv1.SettleConflictRequest) (*adminv1.SettleConflictResponse, error) {
			return &adminv1.SettleConflictResponse{Ref: r.GetRef(), Digest: r.GetKeep(), Revision: 9, Settled: 1}, nil
		},
	})
	if r := runCtl(t, "--server", server, "conflicts"); r.code != 0 || r.out != "No conflicts.\n" {
		t.Errorf("%+v", r)
	}
	if r := runCtl(t, "--server", server, "conflicts", "-o", "json"); r.code != 0 || !strings.Contains(r.out, `"conflicts": []`) {
		t.Errorf("%+v", r)
	}
	list.Conflicts = []*adminv1.ConflictInfo{{
		Ref: "team/app:1", Reason: "pushed here and elsewhere at about the same time", NotedAt: timestamppb.New(time.Unix(1_800_000_000, 0)),
		Winner: &adminv1.ConflictSide{Digest: digestA, Site: "hq-a", PublishedBy: "webhook"}, Now: &adminv1.ConflictSide{Digest: digestA}, Loser: &adminv1.ConflictSide{Digest: digestB, Site: "hq-b"},
	}}
	r := runCtl(t, "--server", server, "conflicts")
	for _, want := range []string{"team/app:1", "won, and shown now", digestA, "a push at hq-a", "lost", digestB, "a push at hq-b", "conflicts settle REF --keep DIGEST"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("%q is not in:\n%s", want, r.out)
		}
	}
	r = runCtl(t, "--server", server, "conflicts", "-o", "json")
	var doc map[string]any
	if err := json.Unmarshal([]byte(r.out), &doc); err != nil {
		t.Fatalf("%v: %+v", err, r)
	}
	if lacking := subset(keys(t, doc, "conflicts"), "ref winner loser now notedAt reason"); lacking != nil || strings.Contains(r.out, "null") {
		t.Errorf("lacking %v: %s", lacking, r.out)
	}
	if r := runCtl(t, "--server", server, "conflicts", "settle", "team/app:1", "--keep", digestB); r.code != 0 || !strings.Contains(r.out, "shows "+digestB+", as revision 9; 1 conflict settled") {
		t.Errorf("%+v", r)
	}
	if r := runCtl(t, "--server", server, "conflicts", "settle", "team/app:1", "--keep", "sha256:abc"); r.code != 2 || !strings.Contains(r.err, `--keep "sha256:abc" is not a digest`) {
		t.Errorf("exit %d: %s", r.code, r.err)
	}
	if r := runCtl(t, "--server", server, "unpublish", "Bad Ref"); r.code != 2 || !strings.Contains(r.err, "has no tag") || strings.Contains(r.err, ":latest") {
		t.Errorf("exit %d: %s", r.code, r.err)
	}
	if r := runCtl(t, "--server", server, "conflicts", "settle", "team/app:1"); r.code != 2 || !strings.Contains(r.err, "keep") {
		t.Errorf("%+v", r)
	}
}

func TestDeletions(t *testing.T) {
	list := &adminv1.DeletionsResponse{}
	var asked []string
	server := onSocket(t, &fake{
		deletions: func() (*adminv1.DeletionsResponse, error) { return list, nil },
		allow: func(r *adminv1.AllowDeletionsRequest) (*adminv1.AllowDeletionsResponse, error) {
			asked = append(r.GetRefs(), map[bool]string{true: "all"}[r.GetAll()])
			return &adminv1.AllowDeletionsResponse{Settled: 36, Changed: 1}, nil
		},
		restore: func(r *adminv1.RestoreDeletionsRequest) (*adminv1.RestoreDeletionsResponse, error) {
			asked = append(r.GetRefs(), map[bool]string{true: "all"}[r.GetAll()])
			return &adminv1.RestoreDeletionsResponse{Settled: 1}, nil
		},
	})
	if r := runCtl(t, "--server", server, "deletions", "list"); r.code != 0 || r.out != "No deletions wait.\n" {
		t.Errorf("%+v", r)
	}
	list.Deletions = []*adminv1.DeletionInfo{
		{Ref: "team/app:1", Digest: digestA, Site: "hq-a", State: "held", NotedAt: timestamppb.New(time.Unix(1_800_000_000, 0))},
		{Ref: "team/app:2", Digest: digestA, Site: "hq-a", State: "restoring"},
	}
	r := runCtl(t, "--server", server, "deletions")
	for _, want := range []string{"team/app:1", "held", "hq-a", digestA, "restoring", "1 deletion held", "deletions allow", "deletions restore"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("%q is not in:\n%s", want, r.out)
		}
	}
	r = runCtl(t, "--server", server, "deletions", "list", "-o", "json")
	var doc map[string]any
	if err := json.Unmarshal([]byte(r.out), &doc); err != nil {
		t.Fatalf("%v: %+v", err, r)
	}
	if lacking := subset(keys(t, doc, "deletions"), "ref digest site state notedAt"); lacking != nil {
		t.Errorf("lacking %v: %s", lacking, r.out)
	}
	for command, want := range map[string]struct{ asked, out string }{
		"allow --all":          {"all", "36 tags deleted everywhere; 1 tag changed meanwhile"},
		"restore team/app:1":   {"team/app:1,", "1 tag to be put back"},
		"allow team/a:1 app:2": {"team/a:1,app:2,", "36 tags"},
	} {
		asked = nil
		r := runCtl(t, append([]string{"--server", server, "deletions"}, strings.Fields(command)...)...)
		if got := strings.Join(asked, ","); r.code != 0 || got != want.asked || !strings.Contains(r.out, want.out) {
			t.Errorf("%s: asked for %q: %+v", command, got, r)
		}
	}
	for _, command := range []string{"allow", "restore team/app:1 --all", "allow team/app"} { // nothing is meant by default
		if r := runCtl(t, append([]string{"--server", server, "deletions"}, strings.Fields(command)...)...); r.code != 2 {
			t.Errorf("%s: %+v", command, r)
		}
	}
}
