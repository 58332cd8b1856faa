package main

import (
	"context"
	"encoding/json"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

type (
	publishRequest = adminv1.PublishRequest
	publishStream  = grpc.ServerStreamingServer[adminv1.PublishResponse]
)

// send gives the steps of a publish.
func send(s publishStream, steps ...*adminv1.PublishResponse) error {
	for _, step := range steps {
		if err := s.Send(step); err != nil {
			return err
		}
	}
	return nil
}

func step(r *publishRequest, copies uint32, done bool) *adminv1.PublishResponse {
	return &adminv1.PublishResponse{Ref: r.GetRef(), Digest: digestA, Revision: 7, Copies: copies, CopiesWanted: 2, Sites: 3, Done: done}
}

func TestPublish_LineForEach(t *testing.T) {
	server := onSocket(t, &fake{publish: func(r *publishRequest, s publishStream) error {
		return send(s, &adminv1.PublishResponse{Ref: r.GetRef()}, step(r, 1, false), step(r, 2, true))
	}})
	r := runCtl(t, "--server", server, "publish", "b:1", "a:1", "a:1", "c", "-o", "json")
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	var refs []string
	for line := range strings.SplitSeq(strings.TrimSpace(r.out), "\n") {
		var doc map[string]any
		if err := json.Unmarshal([]byte(line), &doc); err != nil {
			t.Fatal(err)
		}
		if doc["schemaVersion"] != 1.0 || doc["digest"] != digestA || doc["revision"] != 7.0 || doc["copies"] != 2.0 || doc["sites"] != nil {
			t.Errorf("%v", doc)
		}
		refs = append(refs, doc["ref"].(string))
	}
	if got := strings.Join(refs, " "); got != "b:1 a:1 c:latest" {
		t.Errorf("refs %s: not in the order in which they were given, each once", got)
	}
	if !strings.Contains(r.err, "a:1: revision 7, 1 of 2 copies\na:1: ") && !strings.Contains(r.err, "a:1: revision 7, 2 of 2 copies") {
		t.Errorf("progress: %s", r.err)
	}
}

func TestPublish_ExitCodes(t *testing.T) {
	hang := func(s publishStream) error { <-s.Context().Done(); return s.Context().Err() }
	three := func(states ...string) func(*adminv1.WhereRequest, grpc.ServerStreamingServer[adminv1.WhereResponse]) error {
		return func(r *adminv1.WhereRequest, s grpc.ServerStreamingServer[adminv1.WhereResponse]) error {
			w := &adminv1.WhereResponse{Ref: r.GetRef()}
			for i, st := range states {
				w.Sites = append(w.Sites, site(string(rune('a'+i)), st))
			}
			return s.Send(w)
		}
	}
	done := func(states ...string) func(*publishRequest, publishStream) error {
		return func(r *publishRequest, s publishStream) error {
			last := step(r, 2, true)
			for i, st := range states {
				last.Where = append(last.Where, site(string(rune('a'+i)), st))
				if st == "delivered" {
					last.Delivered++
				}
			}
			return send(s, last)
		}
	}
	recorded := func(r *publishRequest, s publishStream) error {
		if err := send(s, step(r, 2, false)); err != nil {
			return err
		}
		return hang(s)
	}
	tests := []struct {
		name  string
		f     *fake
		args  string
		code  int
		lines int // of results
		text  string
	}{
		{"all there", &fake{publish: done("delivered", "delivered", "unsubscribed")}, "--wait", exitOK, 1, ""},
		{"ended with one failed", &fake{publish: done("delivered", "failed", "delivered")}, "--wait", exitPartial, 1, "delivered to 2 of 3 sites; 1 failed"},
		{"ended with one held and one left", &fake{publish: done("delivered", "held", "drifted")}, "--wait", exitPartial, 1, "delivered to 1 of 3 sites; 1 left as somebody changed it there, 1 held for a wave"},
		{"time ran out, the others failed or are held", &fake{publish: recorded, where: three("delivered", "failed", "held")}, "--wait --timeout 1s", exitPartial, 1, "1 failed, 1 held for a wave, by a freeze or for a person's decision; what failed is tried again"},
		{"time ran out, some on their way", &fake{publish: recorded, where: three("delivered", "failed", "delivering")}, "--wait --timeout 1s", exitTimeout, 1, "delivered to 1 of 3 sites; the others are on their way"},
		{"time ran out, the others failed", &fake{publish: recorded, where: three("delivered", "failed", "failed")}, "--wait --timeout 1s", exitPartial, 1, "2 failed; what failed is tried again"},
		{"time ran out just as the last came in", &fake{publish: recorded, where: three("delivered", "delivered")}, "--wait --timeout 1s", exitOK, 1, ""},
		{"time ran out and nobody says where", &fake{publish: recorded}, "--wait --timeout 1s", exitTimeout, 1, "0 of 3 sites"},
		{"time ran out before the record", &fake{publish: func(_ *publishRequest, s publishStream) error { return hang(s) }}, "--timeout 200ms", exitTimeout, 0, "before it was published"},
		{"time ran out before the copies", &fake{publish: recorded}, "--timeout 200ms", exitTimeout, 1, "2 of 2 copies"},
		{"not at headquarters", &fake{publish: func(*publishRequest, publishStream) error {
			return status.Error(codes.FailedPrecondition, "gd-a is not of headquarters")
		}}, "", exitFailed, 0, "app:1: gd-a is not of headquarters"},
		{"agent ends early", &fake{publish: func(r *publishRequest, s publishStream) error { return send(s, step(r, 1, false)) }}, "", exitFailed, 1, "published as revision 7, but: the agent ended"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			server := onSocket(t, tc.f)
			r := runCtl(t, append([]string{"--server", server, "publish", "app:1", "-o", "json"}, strings.Fields(tc.args)...)...)
			if r.code != tc.code || strings.Count(r.out, "\n") != tc.lines || !strings.Contains(r.err, tc.text) {
				t.Errorf("%+v; want %d, %d lines, %q", r, tc.code, tc.lines, tc.text)
			}
			if strings.Contains(r.out, `"asOf":"`) != strings.Contains(r.out, `"sites":`) {
				t.Errorf("a receipt says when: %s", r.out)
			}
		})
	}
}

func TestPublish_OneOfSeveralFails(t *testing.T) {
	server := onSocket(t, &fake{publish: func(r *publishRequest, s publishStream) error {
		if r.GetRef() == "bad:1" {
			return status.Error(codes.NotFound, "no registry of headquarters has bad:1")
		}
		return send(s, step(r, 2, true))
	}})
	r := runCtl(t, "--server", server, "publish", "bad:1", "good:1", "-o", "json")
	if r.code != exitFailed || !strings.Contains(r.err, "Error: bad:1: no registry") || strings.Count(r.out, "\n") != 1 || !strings.Contains(r.out, "good:1") {
		t.Errorf("%+v", r)
	}
}

func TestPublish_WaitSurvivesALostConnection(t *testing.T) {
	var calls atomic.Int32
	server := onSocket(t, &fake{publish: func(r *publishRequest, s publishStream) error {
		if calls.Add(1) == 1 {
			if err := send(s, step(r, 2, false)); err != nil {
				return err
			}
			return status.Error(codes.Unavailable, "stopping")
		}
		last := step(r, 2, true)
		last.Delivered = 3
		return send(s, last)
	}, where: func(_ *adminv1.WhereRequest, s grpc.ServerStreamingServer[adminv1.WhereResponse]) error {
		return s.Send(&adminv1.WhereResponse{Sites: []*adminv1.SiteRef{site("a", "delivered")}})
	}})
	r := runCtl(t, "--server", server, "publish", "app:1", "--wait", "-o", "json")
	if r.code != exitOK || calls.Load() != 2 || !strings.Contains(r.err, "trying again") || !strings.Contains(r.out, `"sites":[{"site":"a"`) {
		t.Errorf("%d calls: %+v", calls.Load(), r)
	}
}

func TestPublish_NoSecondTryWithoutARecord(t *testing.T) {
	var calls atomic.Int32
	server := onSocket(t, &fake{publish: func(*publishRequest, publishStream) error {
		calls.Add(1)
		return status.Error(codes.Unavailable, "the group has no root")
	}})
	r := runCtl(t, "--server", server, "publish", "app:1", "--wait")
	if r.code != exitFailed || calls.Load() != 1 || !strings.Contains(r.err, "the group has no root") {
		t.Errorf("%d calls: %+v", calls.Load(), r)
	}
}

func TestPublish_Interrupted(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	server := onSocket(t, &fake{publish: func(r *publishRequest, s publishStream) error {
		if err := send(s, step(r, 2, false)); err != nil {
			return err
		}
		<-s.Context().Done()
		return s.Context().Err()
	}})
	out, errs := newLocked(), newLocked()
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, []string{"--server", server, "publish", "app:1", "--wait"}, strings.NewReader(""), out, errs, func(string) string { return "" })
	}()
	errs.await(t, "revision 7")
	interrupt()
	if c := <-code; c != exitInterrupted {
		t.Errorf("exit code %d: %s", c, errs)
	}
	errs.await(t, "What was published goes on to every site.")
}
