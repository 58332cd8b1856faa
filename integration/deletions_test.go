package integration

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// deletions is what `fanoutctl deletions list` says.
type deletions struct {
	Deletions []struct{ Ref, Site, State, Digest string }
}

func (s *site) heldDeletions() int {
	var d deletions
	s.document(&d, "deletions", "list")
	held := 0
	for _, x := range d.Deletions {
		if x.State == "held" && x.Site == "hq-a" && x.Digest != "" {
			held++
		}
	}
	return held
}

// TestMassDeletionWaitsForAWord: a registry of headquarters from which most tags vanish, while its agent looks on and while it is down, loses none of them for anybody else, until somebody says so.
func TestMassDeletionWaitsForAWord(t *testing.T) {
	t.Parallel()
	const policy, often = "publish: {deletes: propagate}\n", "sweep: {interval: 2s}\n"
	sites := start(t, spec{name: "hq-a", group: "hq", extra: policy + often, registry: true}, spec{name: "hq-b", group: "hq", extra: policy + often},
		spec{name: "hq-c", group: "hq", extra: policy + often}, spec{name: "gd-a", group: "hq/gd", extra: often})
	hq := sites["hq-a"]
	const all, lost = 60, 40
	img := image(t, 1<<12, 1)
	ref := func(i int) string { return fmt.Sprintf("app/r%d:v%d", i%3, i) }
	var digest string
	for i := range all {
		digest = push(t, hq, ref(i), img)
	}
	showsAll := func(s *site, from int) {
		t.Helper()
		for i := from; i < all; i++ {
			shows(t, s, ref(i), digest)
		}
	}
	showsAll(sites["gd-a"], 0)
	showsAll(sites["hq-b"], 0)
	remove := func(from, to int) {
		t.Helper()
		for i := from; i < to; i++ {
			if err := remote.Delete(reference(t, hq, ref(i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	held := func(want int) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d deletions are held", want), func() error {
			if n := hq.heldDeletions(); n != want {
				return fmt.Errorf("%d are held", n)
			}
			return nil
		})
	}
	remove(0, lost)
	held(lost)
	// Each agent has looked through its registry since, whichever way.
	for _, s := range []*site{hq, sites["hq-b"], sites["gd-a"]} {
		s.kill()
		s.start()
		s.waitReady()
	}
	eventually(t, "the tree says so", func() error {
		out, _ := sites["hq-b"].ctl("tree")
		if !strings.Contains(string(out), fmt.Sprintf("deletions here that wait for a word: %d", lost)) {
			return errors.New(string(out))
		}
		return nil
	})
	showsAll(sites["gd-a"], 0)
	showsAll(sites["hq-b"], 0)
	for i := range lost {
		if err := gone(t, hq, ref(i)); err != nil {
			t.Error(err)
		}
	}
	var where struct {
		Sites []struct{ Site, State, Reason string }
	}
	sites["hq-c"].document(&where, "where", ref(0))
	for _, s := range where.Sites {
		if (s.State == "held") != (s.Site == "hq-a") || s.Site == "hq-a" && !strings.Contains(s.Reason, "deletions list") {
			t.Errorf("where says %+v", s)
		}
	}

	// One that is pushed again is no longer held.
	push(t, hq, ref(0), img)
	held(lost - 1)
	// Ten that are allowed go everywhere, those alone.
	var settled struct{ Settled, Changed int }
	allowed := []string{"deletions", "allow"}
	for i := 1; i <= 10; i++ {
		allowed = append(allowed, ref(i))
	}
	sites["hq-c"].document(&settled, allowed...)
	if settled.Settled != 10 || settled.Changed != 0 {
		t.Errorf("allow said %+v", settled)
	}
	for i := 1; i <= 10; i++ {
		for _, s := range []string{"hq-b", "gd-a"} {
			eventually(t, ref(i)+" goes at "+s, func() error { return gone(t, sites[s], ref(i)) })
		}
	}
	held(lost - 11)
	showsAll(sites["gd-a"], 11)
	// The others come back where they were.
	sites["hq-b"].document(&settled, "deletions", "restore", "--all")
	if settled.Settled != lost-11 {
		t.Errorf("restore said %+v", settled)
	}
	showsAll(hq, 11)
	held(0)
	showsAll(sites["gd-a"], 11)
	eventually(t, "nothing waits", func() error {
		var d deletions
		if hq.document(&d, "deletions"); len(d.Deletions) > 0 {
			return fmt.Errorf("%+v", d)
		}
		return nil
	})

	// While the agent is down many vanish as well; all that is left is allowed.
	hq.kill()
	remove(11, 50)
	hq.start()
	hq.waitReady()
	held(39)
	showsAll(sites["gd-a"], 11)
	hq.document(&settled, "deletions", "allow", "--all")
	for i := 11; i < 50; i++ {
		eventually(t, ref(i)+" goes", func() error { return gone(t, sites["gd-a"], ref(i)) })
	}
	showsAll(sites["gd-a"], 50)
	showsAll(hq, 50)
}

// TestDeletionsOfARemovedSite: deletions that are held at a site do not stay listed when the site was taken out of its group, and what it had lost stays published.
func TestDeletionsOfARemovedSite(t *testing.T) {
	t.Parallel()
	const policy = "publish: {deletes: propagate}\n"
	sites := start(t, spec{name: "hq-a", group: "hq", extra: policy, registry: true}, spec{name: "hq-b", group: "hq", extra: policy},
		spec{name: "hq-w", group: "hq", extra: policy + "registry: {type: none}\n"})
	hq := sites["hq-a"]
	const all = 12
	img := image(t, 1<<10, 1)
	ref := func(i int) string { return fmt.Sprintf("app/web:v%d", i) }
	var digest string
	for i := range all {
		digest = push(t, hq, ref(i), img)
	}
	for i := range all {
		shows(t, sites["hq-b"], ref(i), digest)
	}
	for i := range all {
		if err := remote.Delete(reference(t, hq, ref(i))); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all deletions are held", func() error {
		if n := sites["hq-b"].heldDeletions(); n != all {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	hq.kill()
	sites["hq-b"].does("member", "remove", "hq-a")
	var d deletions
	if sites["hq-w"].document(&d, "deletions", "list"); len(d.Deletions) > 0 {
		t.Errorf("still listed: %+v", d)
	}
	shows(t, sites["hq-b"], ref(0), digest)
}
