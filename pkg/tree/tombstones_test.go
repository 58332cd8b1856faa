package tree_test

import (
	"testing"
	"time"

	"github.com/fanout-io/fanout/pkg/catalog"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// Tombstones go when all have passed them, at each group by itself; and not while a group below is away.
func TestTombstones_GoWhenAllHavePassed(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", []string{"hq-a"})
	gd := f.group("hq/gd", []string{"gd-a"}, "hq-a")
	for _, s := range []*site{hq[0], gd[0]} {
		s.cfg.Timeouts.Tombstone = 200 * time.Millisecond
	}
	f.start("hq-a", "gd-a")
	report := func(s *site) {
		s.node.Report(&treev1.SiteHealth{State: "synced", RegistryOk: true, RegistryType: "oci", Revision: s.position().GetRevision()}, nil)
	}
	root(t, hq).publish("app", "stays", "1")
	hq[0].publish("app", "goes", "2")
	gone := hq[0].unpublish("app", "goes")
	for _, s := range []*site{hq[0], gd[0]} {
		until(t, s.cfg.Site+" drops the tombstone", func() bool {
			report(s)
			_, held := s.node.Catalog().Get(catalog.Ref{Repository: "app", Tag: "goes"})
			return !held && s.node.Catalog().Pruned() >= gone && s.shows("app", "stays", "1")
		})
	}

	gd[0].kill()
	hq[0].publish("app", "late", "3")
	late := hq[0].unpublish("app", "late")
	report(hq[0])
	begun := time.Now()
	until(t, "ten times its age has passed", func() bool { report(hq[0]); return time.Since(begun) > 2*time.Second })
	if n := hq[0].node.Catalog().Pruned(); n >= late {
		t.Errorf("pruned through %d while a group below had not seen the deletion at %d", n, late)
	}
	// Not for ever: a group that stays away for a year is sent everything anew instead.
	year := 365 * 24 * time.Hour
	if n := hq[0].node.PrunableAt(begun.Add(year - time.Hour)); n >= late {
		t.Errorf("before a year has passed, tombstones up to %d would go, for which a group has still to ask", n)
	}
	if n := hq[0].node.PrunableAt(begun.Add(year + time.Hour)); n < late {
		t.Errorf("after a year tombstones up to %d would go, and not the one at %d", n, late)
	}
	gd[0].start()
	until(t, "it goes when that group is back", func() bool {
		report(gd[0])
		report(hq[0])
		return hq[0].node.Catalog().Pruned() >= late
	})
	if n := hq[0].counter("fanout_tree_resyncs_sent_total"); n != 0 {
		t.Errorf("%v resyncs", n)
	}
}
