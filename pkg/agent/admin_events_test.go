package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"

	"github.com/fanout-io/fanout/pkg/config"
	"github.com/fanout-io/fanout/pkg/tree"
)

// TestAsking_Fresh: what is new is judged by each site's own clock, and that somebody could not be asked hides no event of who says so.
func TestAsking_Fresh(t *testing.T) {
	begin := time.Date(2026, 11, 25, 8, 0, 0, 0, time.UTC)
	at := func(site, reason string, seconds int) *adminv1.EventsResponse {
		return &adminv1.EventsResponse{Site: site, Reason: reason, Time: timestamppb.New(begin.Add(time.Duration(seconds) * time.Second))}
	}
	x := &asking{told: map[string]time.Time{}}
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
		{at("gd-a", notAsked, 16), false},   // gathered, then followed
		{at("sz-a", notAsked, 16), true},    // another one says it
		{at("gd-a", "Failed", 2), false},
		{at("gd-a", notAsked, 16), false},
		{at("gd-a", notAsked, 33), true},
	} {
		if got := x.fresh(c.ev); got != c.want {
			t.Errorf("%d, %v: %t", i, c.ev, got)
		}
	}
}

// TestEvents_Numbers: numbers go on when events are counted again and forgotten, and another start has another run.
func TestEvents_Numbers(t *testing.T) {
	e, other := newEvents("gd-a"), newEvents("gd-a")
	e.normal("Delivered", "app:1", "again")
	for i := range maxEvents + 10 {
		e.normal("Delivered", "app:1", fmt.Sprint(i))
		if i%2 == 0 {
			e.normal("Delivered", "app:1", fmt.Sprint(i))
		}
	}
	other.normal("Delivered", "app:1", "")
	list, _, _ := e.since(0)
	again, _, _ := other.since(0)
	for i, ev := range list {
		if ev.GetRun() == "" || ev.GetRun() == again[0].GetRun() || i > 0 && ev.GetNumber() <= list[i-1].GetNumber() {
			t.Fatalf("%d: %v after %v", i, ev, list[max(0, i-1)])
		}
	}
	if last := list[len(list)-1].GetNumber(); last != 1+(maxEvents+10)*3/2 {
		t.Errorf("the last has the number %d", last)
	}
}

// TestInOrder: events are sorted by the times of their sites; a site whose clock was set back is told of in the order in which things happened there.
func TestInOrder(t *testing.T) {
	begin := time.Date(2026, 11, 25, 8, 0, 0, 0, time.UTC)
	at := func(site, message string, seconds int) *adminv1.EventsResponse {
		return &adminv1.EventsResponse{Site: site, Message: message, Time: timestamppb.New(begin.Add(time.Duration(seconds) * time.Second))}
	}
	missing := at("sz-a", "4", 25)
	missing.Reason = notAsked
	list := inOrder([]*adminv1.EventsResponse{
		missing, at("gd-a", "1", 10), at("gd-a", "2", -3600), at("gd-a", "5", 30), at("sz-a", "0", 5), at("sz-a", "3", 20),
	})
	for i, ev := range list {
		if ev.GetMessage() != fmt.Sprint(i) {
			t.Errorf("%d: %v", i, ev)
		}
	}
}

// TestSubject_Concerns: an agent of an older version gives all that it remembers, whatever it was asked about.
func TestSubject_Concerns(t *testing.T) {
	places := map[string]string{"gd-a": "hq/gd", "sz-a": "hq/gd/sz"}
	for _, c := range []struct {
		x    subject
		ev   *adminv1.EventsResponse
		want bool
	}{
		{subject{kindRef, "app:1"}, &adminv1.EventsResponse{Site: "sz-a", Ref: "app:1"}, true},
		{subject{kindRef, "app:1"}, &adminv1.EventsResponse{Site: "sz-a", Ref: "app:2"}, false},
		{subject{kindSite, "sz-a"}, &adminv1.EventsResponse{Site: "sz-a"}, true},
		{subject{kindSite, "sz-a"}, &adminv1.EventsResponse{Site: "gd-a"}, false},
		{subject{kindSite, "sz-a"}, &adminv1.EventsResponse{Site: "gd-a", Reason: notAsked}, true},
		{subject{kindGroup, "hq/gd/sz"}, &adminv1.EventsResponse{Site: "sz-a"}, true},
		{subject{kindGroup, "hq/gd/sz"}, &adminv1.EventsResponse{Site: "gd-a"}, false},
		{subject{kindGroup, "hq/gd/sz"}, &adminv1.EventsResponse{Site: "gd-a", Reason: notAsked}, true},
		{subject{kindGroup, "hq/gd/sz"}, &adminv1.EventsResponse{Site: "sz-new"}, true},
	} {
		if got := c.x.concerns(c.ev, places); got != c.want {
			t.Errorf("%v, %v: %t", c.x, c.ev, got)
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

// TestEvents_Follow: that a member is down is told once, in plain words, although it is asked for what it remembers and then again; and a ref may be followed before it is pushed, which is said.
func TestEvents_Follow(t *testing.T) {
	hq := runTree(t, nil, "hq")["hq"]
	s := &admin{a: hq.Agent, local: true}
	asked := make(chan struct{}, 100)
	down := &source{group: "hq", site: "hq-z", ask: func(context.Context, bool, func(*adminv1.EventsResponse) error) error {
		asked <- struct{}{}
		return status.Error(codes.Unavailable, `connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:1: connect: connection refused"`)
	}}
	q := newAsking(s, subject{kindGroup, "hq"})
	if got := q.gather(t.Context(), []*source{down}); len(got) != 1 || got[0].GetMessage() != "the events of hq-z are not among these: 127.0.0.1:1: connection refused" {
		t.Errorf("%v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for range 3 { // once above
			<-asked
		}
		cancel()
	}()
	if err := q.followSource(ctx, down, func(ev *adminv1.EventsResponse) error {
		t.Errorf("told again: %v", ev)
		return nil
	}); ctx.Err() == nil {
		t.Error(err)
	}

	for _, req := range []*adminv1.EventsRequest{{Of: "team/app:1"}, {Of: "team/app", Follow: true}, {Of: "nowhere", Follow: true}, {Of: "Team:1", Follow: true}} {
		if err := s.Events(req, &sent[adminv1.EventsResponse]{ctx: t.Context()}); status.Code(err) != codes.NotFound {
			t.Errorf("%v: %v", req, err)
		}
	}
	follow, stop := context.WithCancel(t.Context())
	defer stop()
	came := make(chan *adminv1.EventsResponse, 100)
	done := make(chan error, 1)
	go func() {
		done <- s.Events(&adminv1.EventsRequest{Of: "team/app:1", Follow: true}, &piped{sent[adminv1.EventsResponse]{ctx: follow}, came})
	}()
	if ev := <-came; ev.GetReason() != notKnown || ev.GetRef() != "team/app:1" {
		t.Errorf("%v", ev)
	}
	hq.push("team/app:1")
	waitFor(t, "the push is told of", func() error {
		select {
		case ev := <-came:
			if ev.GetReason() == "Published" {
				return nil
			}
			return errors.New(ev.GetReason())
		default:
			return errors.New("nothing came")
		}
	})
	stop()
	<-done
}

// TestAsking_AnotherWay: while a province is away, and when it is back, a city is reached another way and tells again all that it remembers. Each of its events is shown once, in its order; who gives
// it is followed no longer than there is no other way; that it can't be asked is told once.
func TestAsking_AnotherWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		city := newEvents("fs-a")
		follows := map[string]int{}
		var mu sync.Mutex
		away := map[string]bool{}
		set := func(group string, lost bool) {
			mu.Lock()
			defer mu.Unlock()
			away[group] = lost
		}
		at := func(group string) *source {
			return &source{group: group, ask: func(ctx context.Context, follow bool, send func(*adminv1.EventsResponse) error) error {
				mu.Lock()
				lost := away[group]
				follows[group]++
				mu.Unlock()
				defer func() {
					mu.Lock()
					follows[group]--
					mu.Unlock()
				}()
				if lost {
					return status.Error(codes.Unavailable, "gone")
				}
				return (&Agent{events: city}).ownEvents(ctx, follow, "", send)
			}}
		}
		var ways atomic.Pointer[[]*source]
		reached := func(by ...*source) { ways.Store(&by) }
		province, direct := at("hq/gd"), at("hq/gd/fs")
		q := &asking{
			s: &admin{a: &Agent{cfg: &config.Config{Site: "hq-a", Group: "hq"}}}, x: subject{kindSite, "fs-a"}, told: map[string]time.Time{},
			find: func() []*source { return *ways.Load() }, leads: func() bool { return true },
		}
		var came []string
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		reached(province)
		tell := func(n int) {
			for range n {
				city.normal("Delivered", "app:1", fmt.Sprint(city.first+uint64(len(city.list))))
			}
		}
		tell(3)
		go func() {
			done <- q.all(ctx, true, func(ev *adminv1.EventsResponse) error { // under the lock of the call, or alone
				came = append(came, ev.GetReason()+" "+ev.GetMessage())
				return nil
			})
		}()
		pass := func() {
			time.Sleep(3 * askAgain)
			synctest.Wait()
		}
		pass()
		set("hq/gd", true)
		reached(direct)
		tell(2)
		pass()
		if follows["hq/gd"] != 0 || follows["hq/gd/fs"] != 1 {
			t.Errorf("with the city attached itself these are followed: %v", follows)
		}
		set("hq/gd", false)
		reached(direct, province)
		pass()
		tell(2)
		pass()
		set("hq/gd/fs", true)
		reached(province)
		tell(2)
		pass()
		if follows["hq/gd"] != 1 || follows["hq/gd/fs"] != 0 {
			t.Errorf("with the city behind its province these are followed: %v", follows)
		}
		cancel()
		<-done
		var want []string
		for i := range 9 {
			want = append(want, fmt.Sprint("Delivered ", i))
		}
		if diff := cmp.Diff(want, came); diff != "" {
			t.Error(diff)
		}
	})
}

// TestAsking_Way: a group that is away goes by the way on which it was reached last, and by the new one when there is one.
func TestAsking_Way(t *testing.T) {
	q := &asking{ways: map[string]string{}}
	for i, c := range []struct{ group, attached, want string }{
		{"hq/gd/fs", "", "hq/gd/fs"},
		{"hq/gd/fs", "hq/gd", "hq/gd"},
		{"hq/gd/fs", "", "hq/gd"},
		{"hq/gd", "", "hq/gd"},
		{"hq/gd/fs", "hq/gd/fs", "hq/gd/fs"},
		{"hq/gd/fs", "", "hq/gd/fs"},
		{"hq/gd/fs", "hq/gd", "hq/gd"},
	} {
		if got := q.way(c.group, func(string) (tree.Tunnel, bool) { return tree.Tunnel{Group: c.attached}, c.attached != "" }); got != c.want {
			t.Errorf("%d: %s, not %s", i, got, c.want)
		}
	}
}

// piped gives what is sent to somebody who waits for it.
type piped struct {
	sent[adminv1.EventsResponse]
	to chan<- *adminv1.EventsResponse
}

func (p *piped) Send(ev *adminv1.EventsResponse) error {
	p.to <- ev
	return nil
}
