package main

import (
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

type whereStream = grpc.ServerStreamingServer[adminv1.WhereResponse]

// gone is a picture of a deleted ref, with a site for each state.
func gone(revision uint64, states ...string) *adminv1.WhereResponse {
	w := &adminv1.WhereResponse{Ref: "app:1", Revision: revision}
	for i, st := range states {
		w.Sites = append(w.Sites, site(string(rune('a'+i)), st))
	}
	return w
}

// TestUnpublish_Wait: the command stays while something is on its way, and ends with every end state: gone everywhere, or left or held somewhere.
func TestUnpublish_Wait(t *testing.T) {
	hang := func(s whereStream) error { <-s.Context().Done(); return s.Context().Err() }
	pictures := func(end func(whereStream) error, all ...*adminv1.WhereResponse) func(*adminv1.WhereRequest, whereStream) error {
		return func(r *adminv1.WhereRequest, s whereStream) error {
			if !r.GetWatch() || r.GetRef() != "app:1" {
				t.Errorf("asked for %v", r)
			}
			for _, w := range all {
				if err := s.Send(w); err != nil {
					return err
				}
			}
			return end(s)
		}
	}
	again := gone(8, "delivered")
	again.Digest = digestA
	calls := 0
	for _, c := range []struct {
		name  string
		where func(*adminv1.WhereRequest, whereStream) error
		args  string
		code  int
		text  string
	}{
		{"gone everywhere", pictures(hang, gone(6, "waiting"), gone(7, "delivered", "waiting"), gone(7, "delivered", "delivered", "unsubscribed")), "", exitOK, ""},
		{"an older picture is no end", pictures(hang, gone(6, "delivered", "delivered"), gone(7, "delivered", "waiting")), "--timeout 1s", exitTimeout, "gone from 1 of 2 sites; the others are on their way"},
		{"left and held", pictures(hang, gone(7, "delivered", "drifted", "held", "accepted")), "", exitPartial, "gone from 1 of 4 sites; 2 left as somebody changed it there, 1 held for a wave"},
		{"the others failed", pictures(hang, gone(7, "delivered", "failed")), "--timeout 1s", exitPartial, "1 failed; what failed is tried again"},
		{"no picture in time", pictures(hang), "--timeout 1s", exitTimeout, "timed out before any site was heard of"},
		{"published again", pictures(hang, again), "", exitFailed, "published again meanwhile, as revision 8"},
		{"the agent is lost", func(r *adminv1.WhereRequest, s whereStream) error {
			if calls++; calls == 1 {
				_ = s.Send(gone(7, "waiting"))
				return status.Error(codes.Unavailable, "stopping")
			}
			return pictures(hang, gone(7, "delivered"))(r, s)
		}, "", exitOK, "trying again"},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := onSocket(t, &fake{where: c.where, unpublish: func(r *adminv1.UnpublishRequest) (*adminv1.UnpublishResponse, error) {
				return &adminv1.UnpublishResponse{Ref: r.GetRef(), Digest: digestA, Revision: 7}, nil
			}})
			r := runCtl(t, append([]string{"--server", server, "unpublish", "app:1", "--wait", "-o", "json"}, strings.Fields(c.args)...)...)
			if r.code != c.code || !strings.Contains(r.err, c.text) || !strings.Contains(r.out, `"revision": 7`) {
				t.Errorf("%+v; want %d, %q", r, c.code, c.text)
			}
			if got := strings.Contains(r.out, `"sites"`) && strings.Contains(r.out, `"asOf"`); got != (c.name != "no picture in time" && c.name != "published again") {
				t.Errorf("a receipt: %v: %s", got, r.out)
			}
		})
	}
}
