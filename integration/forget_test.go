package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// groupsAt lists the groups that an agent knows.
func groupsAt(t testing.TB, s *site) (groups []string) {
	t.Helper()
	out, code := s.ctl("tree", "-o", "json")
	var tree struct{ Groups []struct{ Group string } }
	if err := json.Unmarshal(out, &tree); err != nil || code != 0 {
		t.Fatalf("tree: exit %d, %v: %s", code, err, out)
	}
	for _, g := range tree.Groups {
		groups = append(groups, g.Group)
	}
	return groups
}

// TestGroupForget: a city that went away for good is forgotten at headquarters and at its province, and the rollout that waits for it goes on without it; while it is attached that is
// refused; when it comes back all the same it is attached as a new one.
func TestGroupForget(t *testing.T) {
	t.Parallel()
	sites := start(t, spec{name: "hq-a", group: "hq"}, spec{name: "gd-a", group: "hq/gd"}, spec{name: "sz-a", group: "hq/gd/sz"})
	hq, gd, sz := sites["hq-a"], sites["gd-a"], sites["sz-a"]
	hq.quiet("app/web:1", push(t, hq, "app/web:1", image(t, 1<<10, 1)))
	for _, group := range []string{"hq/gd/sz", "hq/gd"} {
		if _, errs, code := hq.says("group", "forget", group, "--yes"); code != 1 || !strings.Contains(string(errs), "stop its agents first") {
			t.Errorf("forgetting %s, which is attached: exit %d, %s", group, code, errs)
		}
	}
	if _, errs, code := gd.says("group", "forget", "hq/gd/sz", "--yes"); code != 1 || !strings.Contains(string(errs), "at an agent of hq") {
		t.Errorf("asked of a province: exit %d, %s", code, errs)
	}

	plan := filepath.Join(t.TempDir(), "plan.yaml")
	const text = "apiVersion: fanout/v1\nkind: Plan\nmetadata: {name: sz}\nspec:\n  waves:\n  - {name: sz, groups: [hq/gd/sz], onOffline: wait}\n"
	if err := os.WriteFile(plan, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	sz.kill()
	treeSays(t, hq, "sz-a", "unreachable")
	hq.does("promote", "app/web:1", "--as", "stable", "--plan", plan, "--yes")
	var said struct{ Groups, Sites, Rollouts []string }
	hq.document(&said, "group", "forget", "hq/gd/sz", "--yes")
	if !slices.Equal(said.Groups, []string{"hq/gd/sz"}) || !slices.Equal(said.Sites, []string{"sz-a"}) || len(said.Rollouts) != 1 {
		t.Errorf("forget said %+v", said)
	}
	for _, s := range []*site{hq, gd} {
		eventually(t, s.name+" knows it no more", func() error {
			if got := groupsAt(t, s); slices.Contains(got, "hq/gd/sz") {
				return fmt.Errorf("%v", got)
			}
			return nil
		})
	}
	eventually(t, "the rollout ends without it", func() error {
		if out, _ := hq.ctl("rollout", "list", "-o", "json"); !strings.Contains(string(out), `"succeeded"`) {
			return errors.New(string(out))
		}
		return nil
	})
	// It is not heard of again from the province, nor from what a new root remembers.
	for _, s := range []*site{gd, hq} {
		s.kill()
		s.start()
		s.waitReady()
	}
	treeSays(t, hq, "gd-a", "synced")
	if got := groupsAt(t, hq); !slices.Equal(got, []string{"hq", "hq/gd"}) {
		t.Errorf("after restarts headquarters knows %v", got)
	}
	if _, errs, code := hq.says("group", "forget", "hq/gd/sz", "--yes"); code != 1 || !strings.Contains(string(errs), `no group "hq/gd/sz" is known here`) {
		t.Errorf("forgetting what is not known: exit %d, %s", code, errs)
	}
	sz.start()
	treeSays(t, hq, "sz-a", "synced")
}
