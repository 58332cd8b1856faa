package agent

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/pkg/tree"
)

// TestCompany: who was lost for a while is told once, and so is that he is back; a blink, the handover of a root, and what is not known yet are not, nor what lies below a group that attaches here.
// A link that breaks again and again is counted.
func TestCompany(t *testing.T) {
	e := newEvents("hq-a")
	c := &company{events: e, group: "hq", members: presence{}, groups: presence{}}
	begin := time.Date(2026, 11, 25, 8, 0, 0, 0, time.UTC)
	type group struct {
		name, parent, state string
		lost                bool
	}
	look := func(seconds int, member string, groups ...group) {
		v := tree.HealthView{Sites: []*treev1.SiteHealth{
			{Site: "hq-a", Group: "hq", State: "synced"}, {Site: "gd-a", Group: "hq/gd", State: "unreachable"},
		}}
		if member != "" {
			v.Sites = append(v.Sites, &treev1.SiteHealth{Site: "hq-b", Group: "hq", State: member})
		}
		for _, g := range groups {
			v.Groups = append(v.Groups, &treev1.GroupHealth{Group: g.name, Parent: g.parent, State: g.state, Lost: g.lost})
		}
		c.look(v, begin.Add(time.Duration(seconds)*time.Second))
	}
	told := 0
	expect := func(want ...string) {
		t.Helper()
		var got []string
		list, _, _ := e.since(0)
		for _, ev := range list[told:] {
			got = append(got, ev.GetType()+" "+ev.GetReason()+" "+ev.GetMessage())
		}
		told = len(list)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	well, gone := group{"hq/gd", "hq", "synced", false}, group{"hq/gd", "hq", "unreachable", true}
	city, cityGone := group{"hq/gd/fs", "hq/gd", "synced", false}, group{"hq/gd/fs", "hq/gd", "unreachable", true}

	look(0, "synced", well, city)
	look(2, "unreachable", gone, cityGone) // a blink of the member, and a handover
	look(4, "synced", gone, cityGone)
	look(6, "unreachable", gone, cityGone)
	look(8, "unreachable", well, city)
	expect()
	look(10, "unreachable", gone, cityGone)
	expect()
	look(12, "unreachable", gone, cityGone)
	expect("Warning MemberLost hq-b, of hq, is not heard of any more")
	look(20, "unknown", gone, cityGone)
	expect("Warning GroupLost hq/gd is not attached to hq any more")
	look(300, "unreachable", gone, cityGone)
	expect()
	look(302, "synced", group{"hq/gd", "hq", "behind", false}, cityGone)
	expect("Normal MemberBack hq-b, of hq, is heard of again", "Normal GroupBack hq/gd is attached to hq again")

	// Of what was not heard since the root was elected it is known from the catalog alone.
	never, neverCity := group{"hq/hn", "", "unknown", true}, group{"hq/hn/cs", "", "unknown", true}
	look(400, "synced", well, city, never, neverCity)
	look(419, "synced", well, city, never, neverCity)
	never.state, neverCity.state = "unreachable", "unreachable"
	look(420, "synced", well, city, never, neverCity)
	look(430, "synced", well, city, never, neverCity)
	expect("Warning GroupLost hq/hn is not attached to hq any more")
	look(432, "synced", well, city, never)
	look(434, "", well, city) // forgotten, and the member was removed
	look(436, "synced", well, city, group{"hq/hn", "hq", "synced", false})
	expect()

	for i := range 20 {
		look(1000+20*i, "unreachable")
		look(1010+20*i, "unreachable")
		look(1012+20*i, "synced")
	}
	list, _, _ := e.since(0)
	if n := len(list); n > 6 {
		t.Errorf("a link that flaps left %d events: %v", n, list)
	}
	for _, ev := range list {
		if (ev.GetReason() == "MemberLost" || ev.GetReason() == "MemberBack") && ev.GetCount() != 21 {
			t.Errorf("%v", ev)
		}
	}
}

// TestElected: each root tells that it was elected, once for its term.
func TestElected(t *testing.T) {
	hq := runTree(t, nil, "hq")["hq"]
	waitFor(t, "the election is told of", func() error {
		list, _, _ := hq.events.since(0)
		for _, ev := range list {
			if ev.GetReason() == "Elected" && ev.GetType() == "Normal" {
				if want := "s0 is the root of hq, in term "; len(ev.GetMessage()) <= len(want) || ev.GetMessage()[:len(want)] != want || ev.GetCount() != 1 {
					t.Errorf("%v", ev)
				}
				return nil
			}
		}
		return errNoCatalog
	})
}
