package integration

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// parentOf says to which group a group is attached, and why it is not well.
func (s *site) parentOf(group string) (parent, reason string) {
	var tree struct {
		Groups []struct{ Group, Parent, Reason string }
	}
	s.document(&tree, "tree")
	for _, g := range tree.Groups {
		if g.Group == group {
			return g.Parent, g.Reason
		}
	}
	return "", ""
}

// attachedTo waits until a group's own agent says that it is attached to a parent.
func attachedTo(t testing.TB, s *site, parent string) {
	t.Helper()
	within(t, 2*patience, s.group+" attaches to "+parent, func() error {
		if p, why := s.parentOf(s.group); p != parent {
			return fmt.Errorf("it is attached to %q: %s", p, why)
		}
		return nil
	})
}

// TestFallbackParents: a whole province is gone. Its city follows headquarters itself, receives what is pushed, and goes back when the province has returned: without being sent its records anew,
// and without a byte of content twice, whichever way it came.
func TestFallbackParents(t *testing.T) {
	t.Parallel()
	sites := start(t,
		spec{name: "hq-a", group: "hq", counted: true},
		spec{name: "gd-a", group: "hq/gd", counted: true}, spec{name: "gd-b", group: "hq/gd", counted: true},
	)
	hq, province := sites["hq-a"], []*site{sites["gd-a"], sites["gd-b"]}
	city := lay(t, province[0], spec{name: "sz-a", group: "hq/gd/sz", extra: "subscribe: {repositories: [\"app/**\"]}\n"})
	city.parents = []string{province[0].advertised(), province[1].advertised()}
	city.fallback = []string{hq.advertised()}
	city.start()
	t.Cleanup(city.stop)
	city.waitReady()

	shared := layer(t, 2*mib)
	digests := map[string]string{}
	publish := func(ref string) {
		t.Helper()
		digests[ref] = push(t, hq, ref, with(t, image(t, mib, 1), shared))
		shows(t, city, ref, digests[ref])
	}
	publish("app/web:1")
	hq.quiet("app/web:1", digests["app/web:1"])
	fromProvince := func() int64 { return province[0].link.down.Load() + province[1].link.down.Load() }
	fromHQ := func() int64 { return hq.link.down.Load() }

	for _, s := range province {
		s.kill()
	}
	before := fromHQ()
	attachedTo(t, city, "hq")
	publish("app/web:2")
	publish("app/web:3")
	// The layer that they share with the first is there already.
	between(t, "from headquarters to the city", fromHQ()-before, 2*mib, framed(2*mib)+chatter)

	for _, s := range province {
		s.start()
	}
	attachedTo(t, city, "hq/gd")
	for ref, digest := range digests {
		for _, s := range province {
			shows(t, s, ref, digest)
		}
		hq.quiet(ref, digest)
	}
	before = fromProvince()
	publish("app/web:4")
	hq.quiet("app/web:4", digests["app/web:4"])
	// To the fellow and to the city.
	between(t, "from the province", fromProvince()-before, 2*mib, framed(2*mib)+2*chatter)
	// The province was sent what it missed, and the city nothing again.
	for _, s := range append(province, hq) {
		if n := s.metric("fanout_tree_resyncs_sent_total"); n != 0 {
			t.Errorf("%s sent %v resyncs", s.name, n)
		}
	}
}

// resubscribed restarts a site with another subscription.
func (s *site) resubscribed(patterns ...string) {
	s.t.Helper()
	s.stop()
	s.extra = fmt.Sprintf("subscribe: {repositories: [\"%s\"]}\n", strings.Join(patterns, `", "`))
	s.start()
	s.waitReady()
}

// TestScopesOnALiveTree: a city, then its province, subscribe to more and to less. What is new is back-filled, what is there is not sent again, what left the scope stays as it was and is no longer moved.
func TestScopesOnALiveTree(t *testing.T) {
	t.Parallel()
	sites := start(t,
		spec{name: "hq-a", group: "hq", counted: true},
		spec{name: "gd-a", group: "hq/gd", counted: true, extra: "subscribe: {repositories: [\"app/**\"]}\n"},
		spec{name: "sz-a", group: "hq/gd/sz", extra: "subscribe: {repositories: [\"app/web\"]}\n"},
	)
	hq, province, city := sites["hq-a"], sites["gd-a"], sites["sz-a"]
	digests := map[string]string{}
	for _, ref := range []string{"app/web:1", "app/api:1", "db/x:1"} {
		digests[ref] = push(t, hq, ref, image(t, mib, 1))
	}
	has := func(s *site, refs ...string) {
		t.Helper()
		for _, ref := range refs {
			shows(t, s, ref, digests[ref])
		}
	}
	lacks := func(s *site, refs ...string) {
		t.Helper()
		for _, ref := range refs {
			if err := gone(t, s, ref); err != nil {
				t.Error(err)
			}
		}
	}
	settled := func() {
		t.Helper()
		for _, s := range sites {
			treeSays(t, hq, s.name, "synced")
		}
	}
	has(city, "app/web:1")
	has(province, "app/web:1", "app/api:1")
	settled()
	lacks(city, "app/api:1", "db/x:1")
	lacks(province, "db/x:1")

	// The city asks for more than its province has: so the province asks for more itself, and shows it too.
	down, further := hq.link.down.Load(), province.link.down.Load()
	city.resubscribed("app/web", "db/**")
	has(city, "db/x:1", "app/web:1")
	has(province, "db/x:1")
	lacks(city, "app/api:1")
	settled()
	between(t, "from headquarters after the city widened", hq.link.down.Load()-down, mib, framed(mib)+chatter)
	between(t, "from the province after the city widened", province.link.down.Load()-further, mib, framed(mib)+chatter)

	// Less again: the tag stays, and does not move any more.
	city.resubscribed("app/web")
	old := digests["db/x:1"]
	eventually(t, "headquarters knows", func() error {
		for _, w := range hq.where("db/x:1") {
			if w.Site == "sz-a" && w.State != "unsubscribed" {
				return fmt.Errorf("%+v", w)
			}
		}
		return nil
	})
	digests["db/x:1"] = push(t, hq, "db/x:1", image(t, mib, 1))
	digests["app/web:1"] = push(t, hq, "app/web:1", image(t, mib, 1))
	has(city, "app/web:1")
	has(province, "app/web:1")
	if err := head(t, city, "db/x:1", old); err != nil {
		t.Errorf("out of scope: %v", err)
	}

	// The province asks for all, and the city for nothing but what it had.
	province.resubscribed("**")
	has(province, "db/x:1", "app/api:1", "app/web:1")
	settled()
	if err := head(t, city, "db/x:1", old); err != nil {
		t.Errorf("out of scope: %v", err)
	}
	// And for less than its city does: what the city asks for still passes through it.
	province.resubscribed("none/**")
	digests["app/web:1"], digests["app/api:1"] = push(t, hq, "app/web:1", image(t, mib, 1)), push(t, hq, "app/api:1", image(t, mib, 1))
	has(city, "app/web:1")
	settled()
	if resp, err := http.Get("http://" + city.http + "/readyz"); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("the city: %v, %v", resp, err)
	}
}
