package main

import (
	"strings"
	"testing"

	"google.golang.org/grpc"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// TestDoctorExit: a failure counts, a warning does not; both are shown with what to do.
func TestDoctorExit(t *testing.T) {
	for state, code := range map[string]int{"ok": 0, "warn": 0, "fail": 1} {
		server := onSocket(t, &fake{doctor: func(req *adminv1.DoctorRequest, s grpc.ServerStreamingServer[adminv1.DoctorResponse]) error {
			if !req.GetHere() {
				t.Error("here was not asked for")
			}
			c := &adminv1.Check{Name: "quorum", State: state, Detail: "two members"}
			if state != "ok" {
				c.Mend = "add a third member"
			}
			return s.Send(&adminv1.DoctorResponse{Site: "hq-a", Group: "hq", Checks: []*adminv1.Check{c}})
		}})
		r := runCtl(t, "--server", server, "doctor", "--here")
		if r.code != code || !strings.Contains(r.out, "two members") || strings.Contains(r.out, "hq-a, quorum: add a third member") != (state != "ok") {
			t.Errorf("%s: %+v", state, r)
		}
	}
}
