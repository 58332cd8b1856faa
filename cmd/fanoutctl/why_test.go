package main

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

func TestWhy(t *testing.T) {
	server := onSocket(t, &fake{why: func(r *adminv1.WhyRequest) (*adminv1.WhyResponse, error) {
		if r.GetSite() != "sz-a" {
			return nil, status.Error(codes.NotFound, "no site \""+r.GetSite()+"\" is known here; 'fanoutctl tree' lists them; the nearest: sz-a")
		}
		return &adminv1.WhyResponse{Ref: r.GetRef(), Site: r.GetSite(), Answer: "team/app:latest is at sz-a.", Hops: []*adminv1.WhyHop{{Group: "hq", Site: "sz-a", State: "delivered"}}}, nil
	}})
	if r := runCtl(t, "--server", server, "why", "team/app", "sz-a"); r.code != 0 || !strings.HasPrefix(r.out, "team/app:latest is at sz-a.\n") {
		t.Errorf("%+v", r)
	}
	if r := runCtl(t, "--server", server, "why", "team/app", "sz"); r.code != exitFailed || !strings.Contains(r.err, "the nearest: sz-a") || strings.Contains(r.err, "fanoutctl images") {
		t.Errorf("%+v", r)
	}
	if r := runCtl(t, "--server", server, "why", "team/app"); r.code != exitUsage {
		t.Errorf("%+v", r)
	}
}

// TestTop: elsewhere than on a terminal it is one snapshot, unless it is to be watched.
func TestTop(t *testing.T) {
	asked := 0
	server := onSocket(t, &fake{top: func() (*adminv1.TopResponse, error) {
		asked++
		return &adminv1.TopResponse{}, nil
	}})
	if r := runCtl(t, "--server", server, "top"); r.code != 0 || r.out != "Nothing is on its way.\n" || asked != 1 {
		t.Errorf("asked %d times: %+v", asked, r)
	}
	asked = 0
	if r := runCtl(t, "--server", server, "top", "--watch", "--timeout", (topEvery + 500*time.Millisecond).String(), "-o", "json"); r.code != 0 || strings.Count(r.out, "\n") != 2 || asked != 2 {
		t.Errorf("asked %d times: %+v", asked, r)
	}
}
