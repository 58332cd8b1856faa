package integration

import (
	"encoding/json"
	"fmt"
	"testing"
)

// carrierOf asks headquarters who fetches across a group's link.
func (s *site) carrierOf(group string) string {
	s.t.Helper()
	out, code := s.ctl("tree", group, "-o", "json")
	if code != 0 {
		return ""
	}
	var doc struct {
		Groups []struct{ Group, Carrier string }
	}
	if err := json.Unmarshal(out, &doc); err != nil {
		s.t.Fatalf("tree -o json: %v: %s", err, out)
	}
	for _, g := range doc.Groups {
		if g.Group == group {
			return g.Carrier
		}
	}
	return ""
}

// carries waits until a site of a group fetches for it, and returns which; any but one, where that is named.
func carries(t testing.TB, hq *site, group, but string) (name string) {
	t.Helper()
	eventually(t, group+" has a carrier that is not "+but, func() error {
		if name = hq.carrierOf(group); name == "" || name == but {
			return fmt.Errorf("it is %q", name)
		}
		return nil
	})
	return name
}

// TestCarrierLost: in a province of three the root's registry ends, then the carrier's agent and then the carrier's registry in mid blob. Another member fetches each time, the province
// goes on, and over the link to headquarters comes only once more what was in flight.
func TestCarrierLost(t *testing.T) {
	t.Parallel()
	const group, size = "hq/gd", 16 * mib
	sites := start(t,
		spec{name: "hq-a", group: "hq", counted: true},
		spec{name: "gd-a", group: group, registry: true}, spec{name: "gd-b", group: group, registry: true}, spec{name: "gd-c", group: group, registry: true},
	)
	hq, province := sites["hq-a"], sites["gd-a"].members
	others := func(but *site) (list []*site) {
		for _, s := range province {
			if s != but {
				list = append(list, s)
			}
		}
		return list
	}
	arrives := func(ref, digest string, at []*site) {
		t.Helper()
		for _, s := range at {
			eventually(t, s.name+" shows "+ref, func() error { return head(t, s, ref, digest) })
			whole(t, s, ref, digest)
		}
	}

	t.Run("the root's registry", func(t *testing.T) {
		root := rootOf(t, sites, province[0])
		if now := carries(t, hq, group, ""); now != root.name {
			t.Errorf("%s is the root, and %s the carrier", root.name, now)
		}
		root.own.kill()
		now := carries(t, hq, group, root.name)
		t.Logf("%s became carrier in place of the root %s", now, root.name)
		before := hq.link.down.Load()
		digest := push(t, hq, "app/web:1", image(t, 2*mib, 1))
		arrives("app/web:1", digest, others(root))
		between(t, "while the root's registry was away", hq.link.down.Load()-before, 2*mib, framed(2*mib))
		root.own.start()
		arrives("app/web:1", digest, province)
		between(t, "with the root's registry back", hq.link.down.Load()-before, 2*mib, framed(2*mib))
	})

	for _, tt := range []struct {
		name        string
		kill, start func(s *site)
	}{
		{"the carrier's agent", (*site).kill, (*site).start},
		{"the carrier's registry", func(s *site) { s.own.kill() }, func(s *site) { s.own.start() }},
	} {
		t.Run(tt.name+" in mid blob", func(t *testing.T) {
			carrier := sites[carries(t, hq, group, "")]
			ref := "app/big:" + carrier.name
			before := hq.link.down.Load()
			hq.link.throttle(8 * mib)
			digest := push(t, hq, ref, image(t, size, 1))
			hq.link.crossing(t, before, 6*mib)
			tt.kill(carrier)
			if n := hq.link.down.Load() - before; n > 12*mib {
				t.Errorf("%d bytes had crossed already: killed too late to show anything", n)
			}
			now := carries(t, hq, group, carrier.name)
			hq.link.free()
			arrives(ref, digest, others(carrier))
			t.Logf("%s was the carrier, %s finished", carrier.name, now)
			between(t, "without the one that was the carrier", hq.link.down.Load()-before, size, framed(size)+streams*piece+buffered)
			tt.start(carrier)
			arrives(ref, digest, province)
			between(t, "with it", hq.link.down.Load()-before, size, framed(size)+streams*piece+buffered)
		})
	}
}

// TestWitnessRootOfAProvince: a witness leads a province only as long as no registry there works, and then hands leadership on.
func TestWitnessRootOfAProvince(t *testing.T) {
	t.Parallel()
	sites := start(t,
		spec{name: "hq-a", group: "hq"},
		spec{name: "gd-a", group: "hq/gd", registry: true}, spec{name: "gd-b", group: "hq/gd", registry: true}, spec{name: "gd-w", group: "hq/gd", extra: witnessRegistry},
	)
	hq, a, b, w := sites["hq-a"], sites["gd-a"], sites["gd-b"], sites["gd-w"]
	if _, code := w.ctl("member", "lead", "gd-w"); code != 1 {
		t.Errorf("a witness was asked to lead while registries work: exit %d", code)
	}
	a.own.kill()
	b.own.kill()
	for _, s := range []string{"gd-a", "gd-b"} {
		treeSays(t, hq, s, "degraded", "registry: ")
	}
	eventually(t, "the witness leads", func() error {
		if now := w.leads(); now != "gd-w" {
			out, _ := w.ctl("member", "lead", "gd-w")
			return fmt.Errorf("%s leads: %s", now, out)
		}
		return nil
	})
	digest := push(t, hq, "app/web:1", image(t, mib, 1))
	eventually(t, "the province has no carrier, and its witness the record", func() error {
		if now := hq.carrierOf("hq/gd"); now != "" {
			return fmt.Errorf("%s is", now)
		}
		out, _ := w.ctl("images", "app/web", "-o", "json")
		return says(string(out), digest)
	})
	b.own.start()
	eventually(t, "the witness hands leadership on", func() error {
		if now := w.leads(); now != "gd-b" {
			return fmt.Errorf("%s leads", now)
		}
		return nil
	})
	if now := carries(t, hq, "hq/gd", ""); now != "gd-b" {
		t.Errorf("%s is the carrier", now)
	}
	shows(t, b, "app/web:1", digest)
	a.own.start()
	shows(t, a, "app/web:1", digest)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := says(w.log.String(), "a witness hands leadership on"); err != nil {
		t.Error(err)
	}
}
