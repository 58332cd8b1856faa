package integration

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// anew does what docs/operations.md says for a group that lost its majority for good: its agents are stopped, their memory of the group is moved away, and they are started.
func anew(t *testing.T, group ...*site) {
	t.Helper()
	for _, s := range group {
		s.stop()
	}
	for _, s := range group {
		for _, part := range []string{"raft", "store"} {
			dir := filepath.Join(cmp.Or(s.data, s.dir), part)
			if err := os.Rename(dir, dir+".lost"); err != nil {
				t.Fatal(err)
			}
		}
		s.start()
	}
	for _, s := range group {
		s.waitReady()
	}
}

// loseTheDisk has a member of a group of two come back with an empty disk after the other gave up being the root: neither can ever decide again, and doctor says so.
func loseTheDisk(t *testing.T, lost, survivor *site) {
	t.Helper()
	loseData(lost)
	eventually(t, survivor.name+" is no root any more", func() error {
		out, _ := survivor.ctl("doctor", "--here", "-o", "json")
		return says(string(out), "the group has no root")
	})
	lost.start()
	eventually(t, "doctor says what was lost", func() error {
		out, _ := survivor.ctl("doctor", "--here", "-o", "json")
		return says(string(out), "the disk of "+lost.name+" was lost", "can never decide", "A group that lost its majority for good")
	})
}

// TestMajorityLostForGood: of two members without a witness one loses its disk. The group is founded anew as the documentation says, below headquarters from its parent, at headquarters from the
// survivor's catalog; nothing that is there crosses a link again.
func TestMajorityLostForGood(t *testing.T) {
	t.Parallel()
	t.Run("Province", func(t *testing.T) {
		t.Parallel()
		sites := start(t, spec{name: "hq-a", group: "hq", counted: true}, spec{name: "gd-a", group: "hq/gd", registry: true}, spec{name: "gd-b", group: "hq/gd", registry: true})
		hq, a, b := sites["hq-a"], sites["gd-a"], sites["gd-b"]
		digest := push(t, hq, "app/web:1", image(t, mib, 2))
		hq.quiet("app/web:1", digest)
		loseTheDisk(t, b, a)
		before := hq.link.down.Load()
		anew(t, a, b)
		next := push(t, hq, "app/web:2", image(t, 1<<14, 1))
		for _, s := range []*site{a, b} {
			shows(t, s, "app/web:2", next)
			shows(t, s, "app/web:1", digest)
		}
		between(t, "from headquarters", hq.link.down.Load()-before, 0, 4*chatter)
	})
	t.Run("Headquarters", func(t *testing.T) {
		t.Parallel()
		sites := start(t, spec{name: "hq-a", group: "hq", registry: true, counted: true}, spec{name: "hq-b", group: "hq", registry: true, counted: true}, spec{name: "gd-a", group: "hq/gd", registry: true})
		a, b, gd := sites["hq-a"], sites["hq-b"], sites["gd-a"]
		digest := push(t, a, "app/web:1", image(t, mib, 2))
		a.quiet("app/web:1", digest)
		loseTheDisk(t, b, a)
		saved := filepath.Join(t.TempDir(), "catalog")
		a.does("catalog", "save", saved)
		before := a.link.down.Load() + b.link.down.Load()
		anew(t, a, b)
		a.does("catalog", "restore", saved)
		next := push(t, b, "app/web:2", image(t, 1<<14, 1))
		eventually(t, "what is pushed then is published", func() error {
			if _, code := a.ctl("publish", "app/web:2"); code != 0 {
				return fmt.Errorf("exit %d", code)
			}
			return nil
		})
		for _, s := range []*site{a, b, gd} {
			shows(t, s, "app/web:2", next)
			shows(t, s, "app/web:1", digest)
		}
		between(t, "from both masters", a.link.down.Load()+b.link.down.Load()-before, 0, 4*chatter)
	})
}
