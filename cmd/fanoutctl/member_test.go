package main

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

func TestMember_Commands(t *testing.T) {
	asked := ""
	server := onSocket(t, &fake{
		add: func(r *adminv1.AddMemberRequest) (*adminv1.AddMemberResponse, error) {
			asked = "add " + r.GetSite() + " " + r.GetRaftAddress()
			m := &adminv1.MemberInfo{Site: r.GetSite(), RaftAddress: r.GetRaftAddress(), State: "pending"}
			if r.GetSite() == "gd-a" {
				m.Id, m.State = "gd-a/1", "synced"
			}
			return &adminv1.AddMemberResponse{Member: m}, nil
		},
		remove: func(r *adminv1.RemoveMemberRequest) (*adminv1.RemoveMemberResponse, error) {
			asked = "remove " + r.GetSite()
			if r.GetSite() == "gd-a" {
				return nil, status.Error(codes.FailedPrecondition, "gd-a is the last member")
			}
			return &adminv1.RemoveMemberResponse{}, nil
		},
		lead: func(r *adminv1.LeadRequest) (*adminv1.LeadResponse, error) {
			asked = "lead " + r.GetSite()
			return &adminv1.LeadResponse{Site: "gd-b"}, nil
		},
		members: func(context.Context) (*adminv1.MembersResponse, error) {
			return &adminv1.MembersResponse{Group: "hq/gd", Members: []*adminv1.MemberInfo{{Site: "gd-d", RaftAddress: "127.0.0.1:7401", State: "pending"}}}, nil
		},
	})
	for _, tc := range []struct {
		args, asked, table string
		code               int
		doc                string // keys that JSON has
	}{
		{"add gd-d 127.0.0.1:7401", "add gd-d 127.0.0.1:7401", "gd-d at 127.0.0.1:7401 may join", 0, "schemaVersion member"},
		{"add gd-a 127.0.0.1:7401", "add gd-a 127.0.0.1:7401", "a member already", 0, "schemaVersion member"},
		{"remove gd-d", "remove gd-d", "gd-d was removed", 0, "schemaVersion site"},
		{"rm gd-d", "remove gd-d", "gd-d was removed", 0, "schemaVersion site"},
		{"remove gd-a", "remove gd-a", "", 1, ""},
		{"lead gd-b", "lead gd-b", "gd-b is the root", 0, "schemaVersion site"},
		{"lead", "lead ", "gd-b is the root", 0, "schemaVersion site"},
		{"list", "", "pending", 0, "schemaVersion group members"},
	} {
		asked = ""
		r := runCtl(t, append([]string{"--server", server, "member"}, strings.Fields(tc.args)...)...)
		if r.code != tc.code || asked != tc.asked || !strings.Contains(r.out, tc.table) {
			t.Errorf("member %s: asked %q, %+v", tc.args, asked, r)
		}
		if tc.code != 0 {
			if !strings.Contains(r.err, "the last member") || r.out != "" {
				t.Errorf("member %s: %+v", tc.args, r)
			}
			continue
		}
		for _, output := range []string{"json", "yaml"} {
			r := runCtl(t, append([]string{"--server", server, "-o", output, "member"}, strings.Fields(tc.args)...)...)
			if r.code != 0 || strings.Contains(r.out, "null") {
				t.Errorf("member %s -o %s: %+v", tc.args, output, r)
			}
			var doc map[string]any
			if output == "json" {
				if err := json.Unmarshal([]byte(r.out), &doc); err != nil || subset(keys(t, doc), tc.doc) != nil {
					t.Errorf("member %s: %v: %s", tc.args, err, r.out)
				}
			}
		}
	}
	if r := runCtl(t, "--server", server, "__complete", "member", "remove", "gd"); !strings.Contains(r.out, "gd-d") {
		t.Errorf("completion: %+v", r)
	}
}
