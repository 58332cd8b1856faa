package agent

import (
	"testing"
	"time"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
)

// One that does not deliver waits as long as the one that does comes further; then it takes over and keeps at it, until there is another record or another one who delivers.
func TestStandby_TakesOver(t *testing.T) {
	var s standby
	ref := catalog.Ref{Repository: "app/web", Tag: "1"}
	now := time.Now()
	waits := func(revision uint64, who string, want bool) {
		t.Helper()
		if got := s.waits(ref, revision, who, now); got != want {
			t.Errorf("waits for %s and revision %d: %v, want %v", who, revision, got, want)
		}
	}
	moved := func(progress string, want bool) {
		t.Helper()
		if got := s.moved(ref, progress, now); got != want {
			t.Errorf("moved to %q: %v, want %v", progress, got, want)
		}
	}
	waits(1, "gd-a", true)
	now = now.Add(takeOverAfter)
	waits(1, "gd-a", false)
	moved("delivering 100", true)
	waits(1, "gd-a", true)
	now = now.Add(takeOverAfter)
	waits(1, "gd-a", false)
	moved("delivering 50", true)
	now = now.Add(takeOverAfter)
	waits(1, "gd-a", false)
	moved("delivering 50", false)
	waits(1, "gd-a", false)
	moved("delivering 10", false)
	waits(2, "gd-a", true)
	now = now.Add(takeOverAfter)
	moved("", false)
	waits(2, "gd-a", false)
	waits(2, "gd-b", true)
	s.forget(ref)
	if len(s.refs) > 0 {
		t.Errorf("it remembers %v", s.refs)
	}
}

// What another put is answered only when it has stayed for a time.
func TestStandby_LetsOthersChangesSettle(t *testing.T) {
	var s standby
	ref := catalog.Ref{Repository: "app/web", Tag: "1"}
	now := time.Now()
	settled := func(shows string, want bool) {
		t.Helper()
		if got := s.settled(ref, shows, now); got != want {
			t.Errorf("%q settled: %v, want %v", shows, got, want)
		}
	}
	settled("x", false)
	now = now.Add(settleTime - 1)
	settled("x", false)
	now = now.Add(1)
	settled("x", true)
	settled("y", false)
	now = now.Add(settleTime)
	settled("y", true)
	s.ownChange(ref)
	settled("y", false)
	settled("", false)
	now = now.Add(settleTime)
	settled("", true)
}

func TestProgressIn(t *testing.T) {
	w := &adminv1.WhereResponse{Revision: 7, Sites: []*adminv1.SiteRef{
		{Site: "gd-a", State: "delivering", BytesLeft: 10}, {Site: "gd-b", State: "failed", BytesLeft: 10},
	}}
	first := progressIn(w, "gd-a")
	w.Sites[0].BytesLeft = 5
	if second := progressIn(w, "gd-a"); first == "" || second == first {
		t.Errorf("progress from %q to %q is not seen", first, second)
	}
	for _, site := range []string{"gd-b", "gd-z"} {
		if got := progressIn(w, site); got != "" {
			t.Errorf("%s made progress: %q", site, got)
		}
	}
}
