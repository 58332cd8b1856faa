package tree_test

import (
	"strings"
	"testing"

	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// Each member knows who shares its storage, in one order: the carrier first, then by name, and only those whose registries work.
func TestRoster_Sharing(t *testing.T) {
	f := newFabric(t)
	names := []string{"hq-a", "hq-b", "hq-c", "hq-d"}
	hq := f.group("hq", names)
	for _, s := range []*site{hq[0], hq[1], hq[3]} {
		s.cfg.Shared = "nas"
	}
	f.start(names...)
	broken := map[string]bool{}
	sharing := func(s *site) string {
		var out []string
		for _, p := range s.node.Roster().Sharing {
			if p.Addr != f.sites[p.Site].cfg.FabricAdvertise {
				t.Errorf("%s is at %s", p.Site, p.Addr)
			}
			out = append(out, p.Site)
		}
		return strings.Join(out, " ")
	}
	agree := func() {
		t.Helper()
		for _, s := range hq {
			s.node.Report(&treev1.SiteHealth{State: "synced", RegistryOk: !broken[s.cfg.Site]}, nil)
		}
		until(t, "all know who shares", func() bool {
			var want []string
			carrier := hq[0].node.Roster().Carrier
			for _, s := range []*site{hq[0], hq[1], hq[3]} {
				switch name := s.cfg.Site; {
				case broken[name]:
				case name == carrier:
					want = append([]string{name}, want...)
				default:
					want = append(want, name)
				}
			}
			for _, s := range []*site{hq[0], hq[1], hq[3]} {
				if carrier == "" || sharing(s) != strings.Join(want, " ") {
					return false
				}
			}
			return sharing(hq[2]) == ""
		})
	}
	agree()
	first := hq[0].node.Roster().Sharing[0].Site
	broken[first] = true
	agree()
	if now := hq[0].node.Roster().Sharing; len(now) != 2 || now[0].Site == first {
		t.Errorf("%s is broken, and %v share", first, now)
	}
	for _, m := range hq[2].node.Catalog().Members() {
		if want := f.sites[m.Site].cfg.Shared; m.Shared != want {
			t.Errorf("the catalog says that %s shares %q, want %q", m.Site, m.Shared, want)
		}
	}
}
