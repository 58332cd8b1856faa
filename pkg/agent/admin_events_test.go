package agent

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// TestSource_Fresh: what is new is judged by each site's own clock, and that somebody could not be asked hides no event of who says so.
func TestSource_Fresh(t *testing.T) {
	begin := time.Date(2026, 11, 25, 8, 0, 0, 0, time.UTC)
	at := func(site, reason string, seconds int) *adminv1.EventsResponse {
		return &adminv1.EventsResponse{Site: site, Reason: reason, Time: timestamppb.New(begin.Add(time.Duration(seconds) * time.Second))}
	}
	var x source
	for i, c := range []struct {
		ev   *adminv1.EventsResponse
		want bool
	}{
		{at("gd-a", "Delivered", 0), true},
		{at("gd-a", "Delivered", 0), false}, // gathered, then followed
		{at("sz-a", "Delivered", -3600), true},
		{at("sz-a", "Failed", -3599), true}, // its clock is an hour behind
		{at("gd-a", notAsked, 8), true},     // a city hung
		{at("gd-a", "Failed", 3), true},     // meanwhile
		{at("gd-a", notAsked, 8), true},
		{at("gd-a", "Failed", 2), false},
	} {
		if got := x.fresh(c.ev); got != c.want {
			t.Errorf("%d, %v: %t", i, c.ev, got)
		}
	}
}

// TestAboveAdmin_Events: a group above may ask what is told of something, not for all that an agent remembers.
func TestAboveAdmin_Events(t *testing.T) {
	for _, req := range []*adminv1.EventsRequest{{}, {Follow: true}, {Here: true}} {
		if err := (aboveAdmin{}).Events(req, nil); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", req, err)
		}
	}
}
