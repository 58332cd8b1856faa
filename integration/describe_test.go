package integration

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/fanout-io/fanout/pkg/view"
)

// TestDescribe: through real processes, headquarters and a province tell all of a group, a site and a ref, with the events of all agents that it concerns; the province also while headquarters is gone.
func TestDescribe(t *testing.T) {
	t.Parallel()
	hq, gd, _, _ := whyFabric(t)
	gd.why("team/app:1", "sz-a", causedBy("quota"))

	// seen is what is there of the city, asked of any agent above it.
	seen := func(at *site) {
		t.Helper()
		eventually(t, at.name+" tells of the city", func() error {
			d, err := asks[view.Describe](at, "describe", "sz-a")
			switch {
			case err != nil:
				return err
			case d.Kind != "site" || d.Group == nil || len(d.Group.Members) != 1 || d.Group.Members[0].Site != "sz-a" || d.Group.Members[0].Version == "":
				return fmt.Errorf("the site: %+v", d)
			case d.Pending == nil || len(*d.Pending) != 1 || (*d.Pending)[0].Ref != "team/app:1" || (*d.Pending)[0].Cause != "quota" || !strings.Contains((*d.Pending)[0].Mend, "raise the quota"):
				return fmt.Errorf("what is pending: %+v", d.Pending)
			case !slices.ContainsFunc(d.Events, func(e view.Event) bool { return e.Site == "sz-a" && e.Reason == "Failed" }):
				return fmt.Errorf("its events: %+v", d.Events)
			case len(d.Servers) != 1 || !d.Servers[0].Voter || d.Incarnation == "" || d.Servers[0].ID != "sz-a/"+d.Incarnation:
				return fmt.Errorf("its vote: %+v, incarnation %q; %q", d.Servers, d.Incarnation, d.Notes)
			}
			return nil
		})
		eventually(t, at.name+" tells of the ref", func() error {
			d, err := asks[view.Describe](at, "describe", "ref/team/app:1")
			switch {
			case err != nil:
				return err
			case d.Kind != "ref" || d.Name != "team/app:1" || d.Record == nil || d.Record.Origin != "hq-a" || d.Record.Digest == "" || d.Sites == nil:
				return fmt.Errorf("the ref: %+v", d)
			case d.ImageBytes <= d.Record.Size:
				return fmt.Errorf("the image has %d bytes, and its manifest %d", d.ImageBytes, d.Record.Size)
			}
			for _, who := range []string{at.name, "sz-a"} {
				if !slices.ContainsFunc(d.Events, func(e view.Event) bool { return e.Site == who && e.Ref == "team/app:1" }) {
					return fmt.Errorf("no event of %s: %+v", who, d.Events)
				}
			}
			if slices.ContainsFunc(d.Events, func(e view.Event) bool { return e.Ref != "team/app:1" }) {
				return fmt.Errorf("events of others: %+v", d.Events)
			}
			return nil
		})
		eventually(t, at.name+" tells of the city's group", func() error {
			d, err := asks[view.Describe](at, "describe", "hq/gd/sz")
			switch {
			case err != nil:
				return err
			case d.Kind != "group" || d.Group == nil || d.Group.Parent != "hq/gd" || d.Parents == nil || !slices.Equal(*d.Parents, []string{gd.advertised()}) || d.Subscription == nil || !d.Subscription.Everything:
				return fmt.Errorf("the group: %+v", d)
			case len(d.Servers) != 1 || d.Servers[0].Site != "sz-a" || d.Servers[0].Role != "root":
				return fmt.Errorf("its votes: %+v, %q", d.Servers, d.Notes)
			case slices.ContainsFunc(d.Events, func(e view.Event) bool { return e.Reason == "Detached" && strings.Contains(e.Message, "attach again") }):
				return fmt.Errorf("what is no loss is told of: %+v", d.Events)
			case !slices.ContainsFunc(d.Events, func(e view.Event) bool {
				return e.Reason == "Attached" && strings.Contains(e.Message, "to hq/gd, by gd-a")
			}):
				return fmt.Errorf("its events: %+v", d.Events)
			}
			return nil
		})
	}
	seen(hq)
	seen(gd)
	if _, errs, code := hq.says("describe", "team/ap:1"); code != 1 || !strings.Contains(string(errs), "the nearest: team/app:1") {
		t.Errorf("of nothing that there is: exit %d: %s", code, errs)
	}

	// Who follows a site at headquarters hears of it when its link is gone and back, although the question goes through that link.
	news := hq.news(t, "--for", "site/gd-a")
	cut := func([]byte) bool { return false }
	hq.link.harm.Store(&cut)
	eventually(t, "that it can't be asked", func() error { return news.has("NotAsked", "gd") })
	eventually(t, "the province is alone", func() error {
		out, _ := gd.ctl("events", "-o", "json")
		return says(string(out), `"Detached"`)
	})
	hq.link.harm.Store(nil)
	eventually(t, "what happened meanwhile", func() error { return news.has("Detached", "attached to no parent") })
	eventually(t, "that it is back", func() error { return news.has("Attached", "to hq, by hq-a") })

	hq.kill()
	seen(gd)
	eventually(t, "the province says that it is alone", func() error {
		d, err := asks[view.Describe](gd, "describe", "hq/gd")
		if err != nil || d.Group == nil || d.Group.DetachedSince == nil || len(d.Notes) == 0 {
			return fmt.Errorf("%v: %+v", err, d)
		}
		return nil
	})
}

// newsreel is what `events --follow` has shown.
type newsreel struct {
	mu   sync.Mutex
	seen []view.Event
}

func (s *site) news(t *testing.T, args ...string) *newsreel {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, filepath.Join(binaries, "fanoutctl"), append([]string{"--server", s.fabric, "events", "--follow", "-o", "json"}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f := &newsreel{}
	var wg sync.WaitGroup
	wg.Go(func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var e view.Event
			if json.Unmarshal(lines.Bytes(), &e) == nil {
				f.mu.Lock()
				f.seen = append(f.seen, e)
				f.mu.Unlock()
			}
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait(); _ = cmd.Wait() })
	return f
}

func (f *newsreel) has(reason, words string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.ContainsFunc(f.seen, func(e view.Event) bool { return e.Reason == reason && strings.Contains(e.Message, words) }) {
		return nil
	}
	return fmt.Errorf("%+v", f.seen)
}
