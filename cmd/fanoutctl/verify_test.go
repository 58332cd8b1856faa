package main

import (
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

func doneAt(site, state string) *adminv1.VerifyResponse {
	return &adminv1.VerifyResponse{Site: site, Group: "hq", What: &adminv1.VerifyResponse_Done{Done: &adminv1.VerifyDone{State: state, Revision: 7, Refs: 3}}}
}

func differsAt(site string) *adminv1.VerifyResponse {
	return &adminv1.VerifyResponse{Site: site, Group: "hq", What: &adminv1.VerifyResponse_Difference{Difference: &adminv1.Difference{
		Ref: "team/app:1", Kind: "missing-blob", Digest: digestA, Reason: "404 BLOB_UNKNOWN",
	}}}
}

// TestVerifyExit: different outweighs unreachable, and a site whose last word did not come was not looked at.
func TestVerifyExit(t *testing.T) {
	for _, c := range []struct {
		name string
		send []*adminv1.VerifyResponse
		code int
		says string
	}{
		{"equal", []*adminv1.VerifyResponse{doneAt("hq-a", "equal"), doneAt("hq-w", "witness")}, 0, ""},
		{"different", []*adminv1.VerifyResponse{differsAt("hq-b"), doneAt("hq-a", "equal"), doneAt("hq-b", "different"), doneAt("gd", "unreachable")}, 4, "1 of 3 sites not as the catalog says"},
		{"unreachable", []*adminv1.VerifyResponse{doneAt("hq-a", "equal"), doneAt("gd", "unreachable")}, 3, "1 of 2 sites could not be looked at"},
		{"no last word", []*adminv1.VerifyResponse{doneAt("hq-a", "equal"), differsAt("hq-b")}, 3, "1 of 2 sites could not be looked at, or not wholly"},
		{"unknown", []*adminv1.VerifyResponse{doneAt("hq-a", "equal"), doneAt("hq-b", "unknown"), doneAt("gd", "unreachable")}, 3, "2 of 3 sites could not be looked at, or not wholly"},
		{"accepted", []*adminv1.VerifyResponse{doneAt("hq-a", "equal"), doneAt("hq-b", "accepted")}, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := onSocket(t, &fake{verify: func(req *adminv1.VerifyRequest, s grpc.ServerStreamingServer[adminv1.VerifyResponse]) error {
				if !req.GetDeep() || !req.GetRepair() || req.GetSite() != "hq-a" {
					t.Errorf("asked for %v", req)
				}
				for _, m := range c.send {
					if err := s.Send(m); err != nil {
						return err
					}
				}
				return nil
			}})
			r := runCtl(t, "--server", server, "verify", "hq-a", "--deep", "--repair", "-o", "json")
			var doc struct {
				SchemaVersion int
				Sites         []struct {
					Site, State string
					Differences []struct{ Ref, Kind string }
				}
			}
			if err := json.Unmarshal([]byte(r.out), &doc); err != nil || doc.SchemaVersion != 1 {
				t.Fatalf("%v: %s", err, r.out)
			}
			if r.code != c.code || !strings.Contains(r.err, c.says) {
				t.Errorf("exit %d, %q; want %d, %q", r.code, r.err, c.code, c.says)
			}
		})
	}
	failing := onSocket(t, &fake{verify: func(*adminv1.VerifyRequest, grpc.ServerStreamingServer[adminv1.VerifyResponse]) error {
		return status.Error(codes.NotFound, "no site")
	}})
	if r := runCtl(t, "--server", failing, "verify", "x"); r.code != 1 {
		t.Errorf("%+v", r)
	}
}

// TestDiff: nothing is listed while the digests are equal; sites with other scopes are compared within both; a group stands for its root.
func TestDiff(t *testing.T) {
	scope := &catalogv1.Scope{AnyOf: []*catalogv1.Subscription{{Repositories: []string{"team/**"}}}}
	views := map[string]string{"hq-a": "v1", "gd-a": "v1"}
	listed, unseen := 0, ""
	server := onSocket(t, &fake{
		tree: func(_ *adminv1.TreeRequest, s grpc.ServerStreamingServer[adminv1.TreeResponse]) error {
			return s.Send(&adminv1.TreeResponse{Groups: []*adminv1.TreeGroup{
				{Group: "hq", Root: "hq-w", Members: []*adminv1.TreeMember{{Site: "hq-w", RegistryType: "none"}, {Site: "hq-a", RegistryType: "harbor"}}},
				{Group: "hq/gd", Root: "gd-a", Members: []*adminv1.TreeMember{{Site: "gd-a", RegistryType: "oci"}}},
			}})
		},
		view: func(req *adminv1.ViewRequest) (*adminv1.ViewResponse, error) {
			if req.GetSite() == unseen {
				return nil, status.Error(codes.Unavailable, "no way there")
			}
			r := &adminv1.ViewResponse{Site: req.GetSite()}
			if req.GetSite() == "gd-a" {
				r.Scope = scope
			}
			return r, nil
		},
		verify: func(req *adminv1.VerifyRequest, s grpc.ServerStreamingServer[adminv1.VerifyResponse]) error {
			if views[req.GetSite()] == "unread" {
				_ = s.Send(&adminv1.VerifyResponse{Site: req.GetSite(), What: &adminv1.VerifyResponse_Difference{Difference: &adminv1.Difference{Kind: "unreadable", Reason: "the registry: no answer"}}})
				return s.Send(&adminv1.VerifyResponse{Site: req.GetSite(), What: &adminv1.VerifyResponse_Done{Done: &adminv1.VerifyDone{State: "unknown", View: "v", Shown: "v1", Reason: "the registry: no answer"}}})
			}
			if views[req.GetSite()] == "away" {
				return s.Send(&adminv1.VerifyResponse{Site: req.GetSite(), What: &adminv1.VerifyResponse_Done{Done: &adminv1.VerifyDone{State: "unreachable", Reason: "no way there"}}})
			}
			if !req.GetTagsOnly() || req.GetRepair() || len(req.GetWithin()) != 1 || !proto.Equal(req.GetWithin()[0], scope) {
				t.Errorf("asked for %v", req)
			}
			site := req.GetSite()
			if req.GetList() {
				listed++
				for _, ref := range []string{"team/app:same", "team/app:1"} {
					shown := digestA
					if ref == "team/app:1" && site == "gd-a" {
						shown = ""
					}
					_ = s.Send(&adminv1.VerifyResponse{Site: site, What: &adminv1.VerifyResponse_Ref{Ref: &adminv1.VerifiedRef{Ref: ref, Want: digestA, Shown: shown}}})
				}
			}
			return s.Send(&adminv1.VerifyResponse{Site: site, What: &adminv1.VerifyResponse_Done{Done: &adminv1.VerifyDone{State: "equal", View: "v", Shown: views[site]}}})
		},
	})
	if r := runCtl(t, "--server", server, "diff", "hq", "hq/gd"); r.code != 0 || listed != 0 || !strings.Contains(r.out, "hq-a (revision 0) and gd-a (revision 0) are equal in 0 refs: ") {
		t.Errorf("%+v, %d lists", r, listed)
	}
	views["gd-a"] = "v2"
	r := runCtl(t, "--server", server, "diff", "hq-a", "gd-a", "-o", "json")
	var doc struct {
		Equal bool
		Refs  []struct {
			Ref  string
			A, B struct{ Digest, Shown string }
		}
	}
	if err := json.Unmarshal([]byte(r.out), &doc); err != nil || r.code != 4 || doc.Equal || listed != 2 {
		t.Fatalf("%v: %+v, %d lists", err, r, listed)
	}
	if len(doc.Refs) != 1 || doc.Refs[0].Ref != "team/app:1" || doc.Refs[0].A.Shown != digestA || doc.Refs[0].B.Shown != "" {
		t.Errorf("%s", r.out)
	}
	views["gd-a"] = "away"
	if r := runCtl(t, "--server", server, "diff", "hq-a", "gd-a"); r.code != 3 || !strings.Contains(r.err, "gd-a could not be looked at: no way there") || !strings.Contains(r.err, "fanoutctl tree") {
		t.Errorf("%+v", r)
	}
	views["gd-a"] = "unread" // what it says that it shows is what the catalog says: nothing was looked at
	if r := runCtl(t, "--server", server, "diff", "hq-a", "gd-a"); r.code != 3 || !strings.Contains(r.err, "gd-a could not be looked at: the registry: no answer") {
		t.Errorf("%+v", r)
	}
	views["gd-a"] = "away"
	unseen = "gd-a"
	if r := runCtl(t, "--server", server, "diff", "hq-a", "gd-a"); r.code != 3 || !strings.Contains(r.err, "gd-a could not be looked at: no way there") {
		t.Errorf("%+v", r)
	}
	unseen = ""
	if r := runCtl(t, "--server", server, "diff", "hq-a", "nowhere"); r.code != 1 || !strings.Contains(r.err, `no site and no group "nowhere"`) {
		t.Errorf("%+v", r)
	}
}
