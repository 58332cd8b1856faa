package view_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"

	"github.com/fanout-io/fanout/pkg/view"
)

// TestEventCursor: what is new is judged for each site by its own numbers, whatever its clock does; by its clock where it gives none.
func TestEventCursor(t *testing.T) {
	ev := func(site, run string, number uint64, seconds int) *adminv1.EventsResponse {
		return &adminv1.EventsResponse{Site: site, Run: run, Number: number, Time: timestamppb.New(before(time.Hour).AsTime().Add(time.Duration(seconds) * time.Second))}
	}
	missing := &adminv1.EventsResponse{Site: "gd-a", Reason: view.NotAsked, Time: before(0)}
	var c view.EventCursor
	for i, tt := range []struct {
		ev   *adminv1.EventsResponse
		want bool
	}{
		{ev("gd-a", "r1", 1, 0), true},
		{ev("gd-a", "r1", 1, 0), false},
		{ev("gd-a", "r1", 2, -3600), true}, // its clock was set back
		{ev("gd-a", "r1", 1, 0), false},
		{ev("sz-a", "r9", 1, 0), true}, // of another site
		{missing, true},
		{missing, true},
		{ev("gd-a", "r1", 3, -3599), true},
		{ev("gd-a", "r2", 1, -7200), true}, // it started anew
		{ev("gd-a", "r2", 1, 7200), false},
		// Versions without numbers.
		{ev("fs-a", "", 0, 5), true},
		{ev("fs-a", "", 0, 5), false},
		{ev("fs-a", "", 0, 4), false},
		{ev("fs-a", "", 0, 6), true},
		{ev("fs-a", "r1", 1, 0), true}, // upgraded
		{ev("fs-a", "", 0, 0), true},   // and back
	} {
		stays := c.Clone()
		if got := c.Before(tt.ev); got != tt.want {
			t.Errorf("%d, %v: %t", i, tt.ev, got)
		}
		c.Note(tt.ev)
		if got := stays.Before(tt.ev); got != tt.want {
			t.Errorf("%d: a clone went on with its original", i)
		}
	}
}
