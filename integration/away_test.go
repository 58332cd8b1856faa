package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// TestMemberAway: a province that has lost a member answers, and headquarters' tree says both; the member that comes back lags by what it missed, at no moment by what it had.
func TestMemberAway(t *testing.T) {
	t.Parallel()
	const witness = "registry: {type: none}\n"
	sites := start(t, spec{name: "hq-a", group: "hq"}, spec{name: "gd-a", group: "hq/gd"}, spec{name: "gd-b", group: "hq/gd"}, spec{name: "gd-c", group: "hq/gd", extra: witness})
	hq, away, other := sites["hq-a"], sites["gd-a"], sites["gd-b"]
	for i := range 3 {
		ref := fmt.Sprintf("app/web:%d", i)
		digest := push(t, hq, ref, image(t, 1<<10, 1))
		shows(t, away, ref, digest)
		shows(t, other, ref, digest)
	}
	if other.leads() == away.name { // a new root knows nothing of it for ten seconds
		away, other = other, away
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	frames, err := hq.admin().Tree(ctx, &adminv1.TreeRequest{Watch: true})
	if err != nil {
		t.Fatal(err)
	}
	// until looks at each picture that comes, up to the first one that is as it should be.
	until := func(what string, good func(*adminv1.TreeGroup, *adminv1.TreeMember) bool, look func(*adminv1.TreeMember)) *adminv1.TreeGroup {
		t.Helper()
		for {
			r, err := frames.Recv()
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			for _, g := range r.GetGroups() {
				for _, m := range g.GetMembers() {
					if m.GetSite() != away.name {
						continue
					}
					if look != nil {
						look(m)
					}
					if good(g, m) {
						return g
					}
				}
			}
		}
	}
	until("all is well", func(_ *adminv1.TreeGroup, m *adminv1.TreeMember) bool {
		return m.GetState() == "synced" && m.GetRevision() == 3
	}, nil)
	away.kill()
	g := until("the member is away", func(g *adminv1.TreeGroup, m *adminv1.TreeMember) bool {
		return m.GetState() == "unreachable" && g.GetRoot() != away.name && g.GetState() == "unreachable" && g.GetAnswers()
	}, nil)
	if age := time.Since(g.GetLastContact().AsTime()); g.GetLastContact() == nil || age > 10*time.Second {
		t.Errorf("the group answers, and the last contact with it was %s ago: %v", age, g)
	}
	if text := hq.does("tree"); !strings.Contains(text, "root "+g.GetRoot()+" answers; ") {
		t.Errorf("the text of the tree:\n%s", text)
	}
	shows(t, other, "app/web:3", push(t, hq, "app/web:3", image(t, 1<<10, 1)))
	until("it lags", func(_ *adminv1.TreeGroup, m *adminv1.TreeMember) bool { return m.GetLag() == 1 }, nil)
	away.start()
	var seen []string
	until("it is back", func(_ *adminv1.TreeGroup, m *adminv1.TreeMember) bool {
		return m.GetState() == "synced" && m.GetRevision() == 4
	}, func(m *adminv1.TreeMember) {
		seen = append(seen, fmt.Sprintf("%s %d %d", m.GetState(), m.GetRevision(), m.GetLag()))
		if m.GetLag() > 1 {
			t.Errorf("it has three of four revisions, and is said to lag by %d: %v", m.GetLag(), m)
		}
		if m.GetState() == "unknown" && !m.GetLastContact().IsValid() {
			t.Errorf("it reports, and is said never to have been heard of: %v", m)
		}
	})
	t.Logf("state, revision, lag: %q", seen)
}

// TestRootAway: the root of a province dies, and a city with it. What headquarters heard of both stands: at no moment is it said that an image is not where it was delivered, and the new root, who
// has not heard of them, says that.
func TestRootAway(t *testing.T) {
	t.Parallel()
	sites := start(t, spec{name: "hq-a", group: "hq"}, spec{name: "gd-a", group: "hq/gd"}, spec{name: "gd-b", group: "hq/gd"}, spec{name: "gd-c", group: "hq/gd", extra: witnessRegistry},
		spec{name: "sz-a", group: "hq/gd/sz"})
	hq, gone, other, city := sites["hq-a"], sites["gd-a"], sites["gd-b"], sites["sz-a"]
	const ref = "app/web:1"
	digest := push(t, hq, ref, image(t, 1<<10, 1))
	for _, s := range sites {
		if s.name != "gd-c" {
			shows(t, s, ref, digest)
		}
	}
	if gone.leads() != gone.name {
		gone, other = other, gone
	}
	eventually(t, "headquarters has heard of all", func() error {
		for _, at := range hq.where(ref) {
			if at.State != "delivered" {
				return fmt.Errorf("%s: %s", at.Site, at.State)
			}
		}
		return nil
	})
	city.kill()
	gone.kill()
	ask := func(s *site, name string) view.Why {
		w, err := asks[view.Why](s, "why", ref, name)
		if err != nil {
			return view.Why{Answer: err.Error()}
		}
		if strings.Contains(w.Answer, "is not at") {
			t.Errorf("%s says: %s", s.name, w.Answer)
		}
		return w
	}
	eventually(t, "there is another root, and both are remembered", func() error {
		for _, name := range []string{gone.name, city.name} {
			if w := ask(hq, name); w.State != "delivered" || w.Hops[1].Root != other.name || w.Cause != "unreachable" {
				return fmt.Errorf("%s: %s", name, w.Answer)
			}
		}
		for _, at := range hq.where(ref) {
			if at.State != "delivered" {
				return fmt.Errorf("where: %s: %s", at.Site, at.State)
			}
		}
		return nil
	})
	if w := ask(other, city.name); w.State != "unknown" || !strings.HasPrefix(w.Answer, "whether "+ref+" is at "+city.name+" is not known: ") {
		t.Errorf("the new root says: %+v", w)
	}
}
