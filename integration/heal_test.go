package integration

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// holds lists the hold tags of a repository in a site's registry.
func holds(t testing.TB, s *site, repo string) []string {
	t.Helper()
	tags, err := remote.List(repository(t, s, repo))
	if err != nil {
		return nil // a repository without tags is not found
	}
	return slices.DeleteFunc(tags, func(tag string) bool { return !strings.HasPrefix(tag, "fanout-hold.") })
}

// document runs fanoutctl with -o json and reads what it says; it must end well.
func (s *site) document(into any, args ...string) {
	s.t.Helper()
	out, code := s.ctl(append(args, "-o", "json")...)
	if code != 0 {
		s.t.Fatalf("fanoutctl %v: exit %d", args, code)
	}
	if err := json.Unmarshal(out, into); err != nil {
		s.t.Fatalf("fanoutctl %v: %v: %s", args, err, out)
	}
}

// TestUnpublishAndUndo: a deletion travels, what was deleted is held at each site, and its undoing moves no content.
func TestUnpublishAndUndo(t *testing.T) {
	t.Parallel()
	const often = "sweep: {interval: 2s}\n"
	sites := start(t,
		spec{name: "hq-a", group: "hq", counted: true, extra: often}, spec{name: "hq-b", group: "hq", counted: true, extra: often},
		spec{name: "hq-c", group: "hq", counted: true, extra: often},
		spec{name: "gd-a", group: "hq/gd", extra: often}, spec{name: "sz-a", group: "hq/gd/sz", extra: often},
	)
	const size = 2 * mib
	digest := push(t, sites["hq-a"], "app/web:1", image(t, size, 2))
	other := push(t, sites["hq-b"], "app/web:2", image(t, 1<<16, 1))
	sites["hq-a"].quiet("app/web:1", digest)
	sites["hq-a"].quiet("app/web:2", other)

	type unpublished struct {
		Digest, UndoUntil, DeletedBy string
		Revision                     uint64
		Already                      bool
		Sites                        []struct{ Site, State string }
	}
	var deleted, again unpublished
	sites["hq-c"].document(&deleted, "unpublish", "app/web:1", "--wait", "--timeout", "1m")
	if deleted.Digest != digest || deleted.UndoUntil == "" || deleted.Revision == 0 || deleted.Already || len(deleted.Sites) != len(sites) {
		t.Errorf("unpublish said %+v", deleted)
	}
	sites["hq-b"].document(&again, "unpublish", "app/web:1")
	if !again.Already || again.Revision != deleted.Revision || again.UndoUntil != deleted.UndoUntil || again.DeletedBy == "" {
		t.Errorf("the second time it said %+v, at first %+v", again, deleted)
	}
	for _, s := range sites {
		if err := gone(t, s, "app/web:1"); err != nil { // the command has waited for that
			t.Error(err)
		}
		if got := holds(t, s, "app/web"); len(got) != 1 || !strings.HasSuffix(got[0], digest[len("sha256:"):][:12]) {
			t.Errorf("%s holds %v", s.name, got)
		}
		shows(t, s, "app/web:2", other)
	}
	// Holds are never taken for pushes, nor shown.
	if out, _ := sites["hq-a"].ctl("images", "--all", "-o", "json"); strings.Contains(string(out), "fanout-hold") {
		t.Errorf("a hold is in the catalog: %s", out)
	}

	before := int64(0)
	for _, s := range []string{"hq-a", "hq-b", "hq-c"} {
		before += sites[s].link.down.Load()
	}
	var back struct {
		Digest   string
		Revision uint64
	}
	sites["hq-b"].document(&back, "undo", "app/web:1")
	if back.Digest != digest || back.Revision <= deleted.Revision {
		t.Errorf("undo said %+v after %+v", back, deleted)
	}
	for _, s := range sites {
		shows(t, s, "app/web:1", digest)
	}
	after := int64(0)
	for _, s := range []string{"hq-a", "hq-b", "hq-c"} {
		after += sites[s].link.down.Load()
	}
	t.Logf("%d bytes crossed all links from headquarters' members during the undo", after-before)
	if after-before > size {
		t.Errorf("%d bytes crossed for an undo", after-before)
	}
	for _, s := range sites {
		eventually(t, s.name+" lets go of its hold", func() error {
			if got := holds(t, s, "app/web"); len(got) > 0 {
				return fmt.Errorf("it holds %v", got)
			}
			return nil
		})
		shows(t, s, "app/web:1", digest)
	}
	for _, ref := range []string{"app/web:1", "app/web:none"} {
		if _, out, code := sites["hq-a"].says("undo", ref); code != 1 || !strings.Contains(string(out), "there is nothing to undo: "+ref) {
			t.Errorf("undoing what is not deleted: exit %d, %s", code, out)
		}
	}
	if _, code := sites["gd-a"].ctl("unpublish", "app/web:1"); code != 1 {
		t.Errorf("unpublishing at a province: exit %d", code)
	}
}

// TestWaitsEnd: a publish that waits for a site that is away ends when the ref is deleted meanwhile; a deletion that waits ends with exit code 3 where a site leaves its tag as somebody changed
// it, and with 5 when the time runs out.
func TestWaitsEnd(t *testing.T) {
	t.Parallel()
	sites := start(t,
		spec{name: "hq-a", group: "hq"}, spec{name: "gd-a", group: "hq/gd"}, spec{name: "rp-a", group: "hq/rp", extra: "drift: {changed: report}\n"},
	)
	hq := sites["hq-a"]
	hq.quiet("app/web:1", push(t, hq, "app/web:1", image(t, 1<<14, 1)))
	changed := push(t, sites["rp-a"], "app/web:1", image(t, 1<<14, 1))
	refState(t, hq, "app/web:1", "rp-a", "drifted")
	sites["gd-a"].kill()
	push(t, hq, "app/web:2", image(t, 1<<14, 1))

	type said struct {
		errs []byte
		code int
	}
	waited := make(chan said, 1)
	go func() {
		_, errs, code := hq.says("publish", "app/web:2", "--wait")
		waited <- said{errs, code}
	}()
	refState(t, hq, "app/web:2", "rp-a", "delivered")
	hq.does("unpublish", "app/web:2")
	select {
	case s := <-waited:
		if s.code != 1 || !strings.Contains(string(s.errs), "was deleted as revision") {
			t.Errorf("publish --wait of what was deleted meanwhile: exit %d, %s", s.code, s.errs)
		}
	case <-time.After(patience):
		t.Error("publish --wait waits on for what was deleted")
	}

	if _, errs, code := hq.says("unpublish", "app/web:1", "--wait", "--timeout", "2s"); code != 5 || !strings.Contains(string(errs), "the others are on their way") {
		t.Errorf("unpublish --wait with a site away: exit %d, %s", code, errs)
	}
	sites["gd-a"].start()
	if _, errs, code := hq.says("unpublish", "app/web:1", "--wait"); code != 3 || !strings.Contains(string(errs), "gone from 2 of 3 sites; 1 left as somebody changed it there") {
		t.Errorf("unpublish --wait with a site that keeps its own: exit %d, %s", code, errs)
	}
	if err := gone(t, sites["gd-a"], "app/web:1"); err != nil {
		t.Error(err)
	}
	shows(t, sites["rp-a"], "app/web:1", changed)
}

type conflictDoc struct {
	Conflicts []struct {
		Ref, Reason string
		Winner, Now struct {
			Digest, Site string
			PushedAt     time.Time
		}
		Loser struct{ Digest, Site string }
	}
}

// TestConflict: two Harbors and a witness; a tag that was pushed differently at both while one's agent was away is shown as the catalog has it, the other push is kept and listed, and
// settling it either way ends the matter everywhere. What won is listed also when it was superseded since, and can be kept where a registry of headquarters has it still.
func TestConflict(t *testing.T) {
	t.Parallel()
	const often = "sweep: {interval: 2s}\n"
	sites := start(t,
		spec{name: "hq-a", group: "hq", registry: true, extra: often}, spec{name: "hq-b", group: "hq", registry: true, extra: often},
		spec{name: "hq-w", group: "hq", extra: "registry: {type: none}\n"},
		spec{name: "gd-a", group: "hq/gd"},
	)
	for i, keep := range []string{"loser", "winner", "superseded winner", "lost winner"} {
		ref := fmt.Sprintf("app/web:%d", i)
		old := push(t, sites["hq-a"], ref, image(t, 1<<16, 1))
		sites["hq-a"].quiet(ref, old)

		sites["hq-b"].kill()
		winner := push(t, sites["hq-a"], ref, image(t, 1<<16, 1))
		loser := push(t, sites["hq-b"], ref, image(t, 1<<16, 1))
		shows(t, sites["gd-a"], ref, winner) // published by a majority of hq-a and the witness
		sites["hq-b"].start()
		shows(t, sites["hq-b"], ref, winner)

		var doc conflictDoc
		eventually(t, "the conflict is listed", func() error {
			sites["hq-w"].document(&doc, "conflicts")
			if len(doc.Conflicts) != 1 {
				return fmt.Errorf("%+v", doc)
			}
			return nil
		})
		c := doc.Conflicts[0]
		if c.Ref != ref || c.Winner.Digest != winner || c.Winner.Site != "hq-a" || c.Loser.Digest != loser || c.Loser.Site != "hq-b" {
			t.Errorf("listed: %+v, pushed: %s at hq-a, %s at hq-b", c, winner, loser)
		}
		eventually(t, "tree says so", func() error {
			if out, _ := sites["hq-a"].ctl("tree", "-o", "json"); !strings.Contains(string(out), `"conflict"`) {
				return fmt.Errorf("%s", out)
			}
			return nil
		})
		if got := holds(t, sites["hq-b"], "app/web"); len(got) != 1 {
			t.Errorf("hq-b holds %v", got)
		}

		if _, code := sites["hq-a"].ctl("conflicts", "settle", ref, "--keep", old); code != 1 {
			t.Errorf("keeping what is in no conflict: exit %d", code)
		}
		kept := winner
		switch keep {
		case "loser":
			kept = loser
		case "superseded winner", "lost winner":
			later := push(t, sites["hq-a"], ref, image(t, 1<<16, 1))
			shows(t, sites["hq-b"], ref, later)
			before := c.Winner
			sites["hq-w"].document(&doc, "conflicts")
			if c = doc.Conflicts[0]; c.Winner != before || c.Winner.PushedAt.IsZero() || c.Now.Digest != later || c.Now.Site != "hq-a" {
				t.Errorf("listed after %s had come: %+v, before: %+v", later, c, before)
			}
		}
		if keep == "lost winner" {
			for _, s := range []string{"hq-a", "hq-b"} {
				if err := remote.Delete(reference(t, sites[s], "app/web@"+winner)); err != nil {
					t.Fatal(err)
				}
			}
			_, out, code := sites["hq-w"].says("conflicts", "settle", ref, "--keep", winner)
			if code != 1 || !strings.Contains(string(out), "push it again, or keep "+c.Now.Digest+" (shown now) or "+loser+" (lost, held at hq-b)") {
				t.Errorf("keeping what nobody has: exit %d, %s", code, out)
			}
			kept = loser
		}
		var said struct {
			Digest  string
			Settled int
		}
		sites["hq-a"].document(&said, "conflicts", "settle", ref, "--keep", kept)
		if said.Digest != kept || said.Settled != 1 {
			t.Errorf("settle said %+v", said)
		}
		for _, s := range []string{"hq-a", "hq-b", "gd-a"} {
			shows(t, sites[s], ref, kept)
		}
		sites["hq-b"].document(&doc, "conflicts")
		if len(doc.Conflicts) != 0 {
			t.Errorf("still listed: %+v", doc)
		}
		eventually(t, "hq-b lets go of its hold", func() error {
			if got := holds(t, sites["hq-b"], "app/web"); len(got) > 0 {
				return fmt.Errorf("it holds %v", got)
			}
			return nil
		})
	}
}
