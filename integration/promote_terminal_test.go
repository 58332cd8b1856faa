package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/creack/pty"

	"github.com/fanout-io/fanout/pkg/view"
)

// typist is fanoutctl on a terminal of its own, and what a person types and sees there.
type typist struct {
	t    *testing.T
	cmd  *exec.Cmd
	tty  *os.File
	mu   sync.Mutex
	seen bytes.Buffer
	read chan struct{}
}

func (s *site) keyboard(args ...string) *typist {
	s.t.Helper()
	k := &typist{t: s.t.(*testing.T), cmd: exec.Command(filepath.Join(binaries, "fanoutctl"), append([]string{"--server", s.fabric}, args...)...), read: make(chan struct{})}
	k.cmd.Env = append(os.Environ(), "TERM=xterm-256color")
	tty, err := pty.StartWithSize(k.cmd, &pty.Winsize{Rows: 50, Cols: 160})
	if err != nil {
		s.t.Fatal(err)
	}
	k.tty = tty
	s.t.Cleanup(func() { _ = k.cmd.Process.Kill(); _ = tty.Close() })
	go func() {
		defer close(k.read)
		buf := make([]byte, 4096)
		for {
			n, err := tty.Read(buf)
			k.mu.Lock()
			k.seen.Write(buf[:n])
			k.mu.Unlock()
			if err != nil {
				return // EIO, when the last one that had the terminal is gone
			}
		}
	}()
	return k
}

func (k *typist) screen() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.seen.String()
}

// asked waits for a question, types the answer and gives all that was seen, with the exit code.
func (k *typist) asked(question, answer string) (string, int) {
	k.t.Helper()
	eventually(k.t, "it asks", func() error { return says(k.screen(), question) })
	if _, err := io.WriteString(k.tty, answer); err != nil {
		k.t.Fatal(err)
	}
	eventually(k.t, "it ends", func() error {
		select {
		case <-k.read:
			return nil
		default:
			return fmt.Errorf("the screen: %s", k.screen())
		}
	})
	_ = k.cmd.Wait() // the exit code says it
	return k.screen(), k.cmd.ProcessState.ExitCode()
}

// TestPromote_AtATerminal: a release manager at a keyboard. The preflight is shown and a question asked; only yes starts anything. Then skip, retry, approve, reject, abort and rollback by hand.
func TestPromote_AtATerminal(t *testing.T) {
	t.Parallel()
	sites := start(t,
		spec{name: "hq-a", group: "hq"}, spec{name: "gd-a", group: "hq/gd"}, spec{name: "sz-a", group: "hq/gd/sz"}, spec{name: "hn-a", group: "hq/hn"},
	)
	hq := sites["hq-a"]
	plan := filepath.Join(t.TempDir(), "plan.yaml")
	if err := os.WriteFile(plan, []byte(`apiVersion: fanout/v1
kind: Plan
metadata: {name: two}
spec:
  waves:
  - {name: canary, groups: [hq/gd/sz], gates: {after: [{approval: {}}]}}
  - {name: rest, groups: ["**"]}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	releases := []string{}
	for _, tag := range []string{"1", "2"} {
		releases = append(releases, push(t, hq, "app/web:"+tag, image(t, 1<<14, 1)))
		hq.quiet("app/web:"+tag, releases[len(releases)-1])
	}
	promote := func(tag string) *typist {
		return hq.keyboard("promote", "app/web:"+tag, "--as", "stable", "--plan", plan)
	}

	for _, no := range []struct {
		what, typed string
		code        int
	}{{"no", "n\n", 1}, {"nothing", "\n", 1}, {"the end of input", "\x04", 1}, {"an interrupt", "\x03", 130}} {
		seen, code := promote("1").asked("Start it? [y/N]", no.typed)
		if code != no.code || code == 1 && !strings.Contains(seen, "nothing was started") {
			t.Errorf("%s: exit %d: %s", no.what, code, seen)
		}
		for _, shown := range []string{"canary", "hq/gd/sz", "rest", "hq/hn"} {
			if !strings.Contains(seen, shown) {
				t.Errorf("the preflight does not show %s: %s", shown, seen)
			}
		}
	}
	if list, err := asks[view.Rollouts](hq, "rollout", "list"); err != nil || len(list.Rollouts) != 0 {
		t.Fatalf("a rollout without a yes: %v: %+v", err, list)
	}
	if _, errs, code := hq.says("promote", "app/web:1", "--as", "stable", "--plan", plan); code != 2 || !strings.Contains(string(errs), "--yes") {
		t.Errorf("without a terminal: exit %d: %s", code, errs)
	}

	begin := func(tag string) string {
		t.Helper()
		if seen, code := promote(tag).asked("Start it? [y/N]", "y\n"); code != 0 {
			t.Fatalf("exit %d: %s", code, seen)
		}
		list, err := asks[view.Rollouts](hq, "rollout", "list")
		if err != nil || len(list.Rollouts) == 0 {
			t.Fatalf("%v: %+v", err, list)
		}
		return list.Rollouts[0].ID // the newest
	}
	does := func(args ...string) {
		t.Helper()
		if _, errs, code := hq.says(append([]string{"rollout"}, args...)...); code != 0 {
			t.Fatalf("rollout %v: exit %d: %s", args, code, errs)
		}
	}
	is := func(id, phase string, words ...string) {
		t.Helper()
		eventually(t, fmt.Sprint("the rollout is ", phase, words), func() error {
			out, _ := hq.ctl("rollout", "show", id, "-o", "json")
			var doc view.Rollout
			if err := json.Unmarshal(out, &doc); err != nil || doc.Phase != phase {
				return fmt.Errorf("%v: %s", err, out)
			}
			return says(string(out), words...)
		})
	}

	first := begin("1")
	is(first, "awaiting-approval")
	shows(t, sites["sz-a"], "app/web:stable", releases[0])
	does("skip", first, "hq/hn")
	is(first, "awaiting-approval", "skipped")
	does("retry", first, "hq/hn") // its wave is still to come: it is taken in again
	does("skip", first, "hq/hn")
	if err := gone(t, sites["gd-a"], "app/web:stable"); err != nil {
		t.Error(err)
	}
	does("approve", first, "--reason", "looks well")
	is(first, "succeeded", "looks well", "skipped")
	shows(t, sites["gd-a"], "app/web:stable", releases[0])
	if err := gone(t, sites["hn-a"], "app/web:stable"); err != nil {
		t.Errorf("a group that was left out: %v", err)
	}

	second := begin("2")
	is(second, "awaiting-approval")
	shows(t, sites["sz-a"], "app/web:stable", releases[1])
	does("reject", second, "--reason", "too slow")
	is(second, "paused", "too slow")
	if seen, code := hq.keyboard("rollout", "abort", second).asked("What is released stays. [y/N]", "y\n"); code != 0 {
		t.Errorf("exit %d: %s", code, seen)
	}
	is(second, "aborted")
	shows(t, sites["sz-a"], "app/web:stable", releases[1])
	shows(t, sites["gd-a"], "app/web:stable", releases[0])
	if seen, code := hq.keyboard("rollout", "rollback", second).asked("shows again what it did before. [y/N]", "y\n"); code != 0 {
		t.Errorf("exit %d: %s", code, seen)
	}
	is(second, "rolled-back")
	shows(t, sites["sz-a"], "app/web:stable", releases[0])
}
