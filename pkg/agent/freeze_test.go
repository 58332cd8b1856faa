package agent

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// TestFreeze: a freeze keeps the tags of a group and of those below it, while content comes; when it ends they move.
func TestFreeze(t *testing.T) {
	tree := runTree(t, nil, "hq", "hq/gd", "hq/gd/sz")
	hq, gd, city := tree["hq"], tree["hq/gd"], tree["hq/gd/sz"]
	one := hq.push("app/web:1")
	city.shows("app/web:1", one)
	city.state("app/web:1", "")
	until := time.Now().Add(time.Hour)
	gd.must(&catalogv1.Change{Kind: &catalogv1.Change_SetFreeze{SetFreeze: &catalogv1.SetFreeze{Freeze: &catalogv1.Freeze{
		Group: "hq/gd", Reason: "the fair", By: "user/li", Until: timestamppb.New(until),
	}}}})
	waitFor(t, "the city hears of it", func() error {
		if f := city.node.Catalog().Freezes(time.Now()); len(f) != 1 || f[0].GetGroup() != "hq/gd" {
			return fmt.Errorf("it knows of %v", f)
		}
		return nil
	})
	waitFor(t, "headquarters hears of it", func() error {
		for _, g := range hq.node.Health().Groups {
			if g.GetGroup() == "hq/gd" && g.GetFreeze().GetReason() == "the fair" {
				return nil
			}
		}
		return fmt.Errorf("not yet")
	})
	for _, g := range hq.tree("hq/gd").GetGroups() {
		if frozen := g.GetGroup() == "hq/gd"; (g.GetFreeze() != nil) != frozen || strings.Contains(g.GetReason(), "frozen by hq/gd until ") != frozen {
			t.Errorf("the tree says of %s: %s, %v", g.GetGroup(), g.GetReason(), g.GetFreeze())
		}
	}
	told := func(reason, words string) {
		t.Helper()
		waitFor(t, "headquarters tells of "+reason, func() error {
			all, _, _ := hq.events.since(0)
			for _, ev := range all {
				if ev.GetReason() == reason && strings.Contains(ev.GetMessage(), words) {
					return nil
				}
			}
			return fmt.Errorf("not yet")
		})
	}
	told("GroupFrozen", "hq/gd is frozen until "+until.UTC().Format(time.RFC3339)+" by user/li: the fair")
	two := hq.push("app/web:1")
	for _, l := range []*live{gd, city} {
		l.state("app/web:1", "held", "frozen by hq/gd until ", "the fair")
		l.holdsContent("app/web:1", two)
		if d := l.look("app/web:1"); d != one {
			t.Errorf("%s shows %s, want %s", l.cfg.Group, d, one)
		}
	}
	waitFor(t, "headquarters says why", func() error {
		raw, _ := hq.record(at("app/web:1"))
		for _, s := range hq.where(at("app/web:1"), raw).GetSites() {
			if frozen := s.GetGroup() != "hq"; (s.GetState() == "held" && strings.Contains(s.GetReason(), "the fair")) != frozen {
				return fmt.Errorf("of %s: %s: %s", s.GetGroup(), s.GetState(), s.GetReason())
			}
		}
		return nil
	})
	for _, frozen := range []bool{true, false} { // the second time nothing is frozen, which is said
		r, err := (&admin{a: gd.Agent, local: true}).SetFreeze(t.Context(), &adminv1.SetFreezeRequest{Thaw: true})
		if err != nil || r.GetThawed() != frozen || r.GetFreeze() != nil {
			t.Errorf("thawed, %t: %v %v", frozen, r, err)
		}
	}
	told("GroupThawed", "hq/gd")
	for _, l := range []*live{gd, city} {
		l.shows("app/web:1", two)
		l.state("app/web:1", "")
	}
}

// TestFreezesBelow: each freeze is told once, and its end, also where another root tells them.
func TestFreezesBelow(t *testing.T) {
	now := time.Date(2026, 11, 25, 8, 0, 0, 0, time.UTC)
	freeze := func(since, until time.Duration) *catalogv1.Freeze {
		return &catalogv1.Freeze{Reason: "fair", By: "li", Since: timestamppb.New(now.Add(since)), Until: timestamppb.New(now.Add(until))}
	}
	list := []*treev1.GroupHealth{
		{Group: "hq", Freeze: freeze(0, time.Hour)}, {Group: "hq/gd", Freeze: freeze(-time.Hour, time.Hour)}, {Group: "hq/hn", Freeze: freeze(-time.Second, 10*time.Minute)}, {Group: "hq/gx"},
	}
	e := newEvents("hq-a")
	w := freezesBelow{}
	look := func(after time.Duration) (out []string) {
		_, from, _ := e.since(0)
		w.look(now.Add(after), "hq", func() []*treev1.GroupHealth { return list }, e)
		more, _, _ := e.since(from)
		for _, ev := range more {
			out = append(out, ev.GetReason()+" "+strings.Fields(ev.GetMessage())[0])
		}
		return out
	}
	for _, c := range []struct {
		after  time.Duration
		change func()
		want   string
	}{
		{0, nil, "GroupFrozen hq/hn"}, // the other is old: the root before has told of it
		{time.Minute, nil, ""},
		{2 * time.Minute, func() { list[3].Freeze = freeze(-time.Hour, time.Hour) }, "GroupFrozen hq/gx"}, // told late, as its province was away
		{2*time.Minute + time.Millisecond, func() { list[3].Freeze = nil }, ""},                           // looked at a moment ago
		{3 * time.Minute, nil, "GroupThawed hq/gx"},
		{10 * time.Minute, nil, "GroupThawed hq/hn"},                                                         // its time is over
		{11 * time.Minute, func() { list[1].Freeze = freeze(-time.Hour, 2*time.Hour) }, "GroupFrozen hq/gd"}, // for longer
	} {
		if c.change != nil {
			c.change()
		}
		if got := strings.Join(look(c.after), ", "); got != c.want {
			t.Errorf("after %v: %q, want %q", c.after, got, c.want)
		}
	}
}
