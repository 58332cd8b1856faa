package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// unsteady builds an agent whose clock can be set wrong: every command that it proposes as a root carries the time plus what the file clock beside its configuration says. There is nothing of that in
// the product: one line of one file is replaced as it is compiled.
func unsteady(t *testing.T) (binary string) {
	t.Helper()
	const now = "Time: timestamppb.Now()"
	dir := t.TempDir()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(root, "pkg/tree/propose.go")
	src, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(src), now); n != 1 {
		t.Fatalf("%s takes the time %d times: this test wants to be written anew", file, n)
	}
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	replace := map[string]string{
		file: write("propose.go", strings.Replace(string(src), now, "Time: timestamppb.New(wrongTime())", 1)),
		filepath.Join(root, "pkg/tree/wrongtime.go"): write("wrongtime.go", `package tree

import (
	"os"
	"path/filepath"
	"strings"
	"time"
)

func wrongTime() time.Time {
	text, _ := os.ReadFile(filepath.Join(filepath.Dir(os.Args[2]), "clock"))
	off, _ := time.ParseDuration(strings.TrimSpace(string(text)))
	return time.Now().Add(off)
}
`),
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	binary = filepath.Join(dir, "fanoutd")
	cmd := exec.Command("go", "build", "-overlay", write("overlay.json", string(overlay)), "-o", binary, "github.com/fanout-io/fanout/cmd/fanoutd")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return binary
}

// wrong sets an agent's clock wrong.
func (s *site) wrong(off time.Duration) {
	s.t.Helper()
	name := filepath.Join(s.dir, "clock")
	if err := os.WriteFile(name+".new", []byte(off.String()), 0o600); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		s.t.Fatal(err)
	}
}

// TestPromote_ClockOfARoot: the clock of headquarters' root jumps a day ahead in the middle of a wave, and the root that comes after it is right again. No deadline ends early for the jump, and none,
// and no soak, waits for the day to pass.
func TestPromote_ClockOfARoot(t *testing.T) {
	t.Parallel()
	binary := unsteady(t)
	laid := func(s *site) { s.binary = binary }
	sites := start(t, spec{name: "hq-a", group: "hq", laid: laid}, spec{name: "hq-b", group: "hq", laid: laid}, spec{name: "hq-c", group: "hq", laid: laid}, spec{name: "gd-a", group: "hq/gd"})
	p := promotionAt(t, sites["hq-a"], sites["hq-b"], sites["hq-c"])
	gd := sites["gd-a"]
	digest := push(t, sites["hq-a"], "app/web:1", image(t, 1<<16, 2))
	sites["hq-a"].quiet("app/web:1", digest)

	// released has the province hear nothing of its release: it is down.
	released := func(as, plan string) {
		t.Helper()
		p.begin(planOf(plan), as, "app/web:1")
		p.in("awaiting-approval", 0)
		p.group("hq/gd", "staged")
		gd.kill()
		p.steer("approve")
		p.group("hq/gd", "running")
	}
	const gate = "gates: {before: [{approval: {}}]}"
	released("ahead", "{name: all, groups: [hq/gd], onOffline: wait, onFailure: rollback, deadline: 1h, soak: 4s, "+gate+"}")
	root := rootOf(t, sites, sites["hq-a"])
	const day = 24 * time.Hour
	root.wrong(day)
	p.steer("pause")
	p.steer("resume")
	r := p.in("running", 0)
	if at := r.GetSteps()[len(r.GetSteps())-1].GetAt().AsTime(); time.Until(at) < day/2 {
		t.Fatalf("the clock did not jump: the last step is of %v", at)
	}
	p.ask("the root looks with its clock a day ahead", func(ctx context.Context, c adminv1.AdminServiceClient) error {
		if now, _ := rollout(ctx, c, p.id); now.GetObserved() != now.GetVersion() || now.GetVersion() < r.GetVersion() {
			return fmt.Errorf("version %d was observed of %d", now.GetObserved(), now.GetVersion())
		}
		return nil
	})
	p.group("hq/gd", "running")

	root.kill()
	root.wrong(0)
	root.start()
	gd.start()
	p.in("soaking", 0)
	begin := time.Now()
	p.in("succeeded", 1)
	if took := time.Since(begin); took < 2*time.Second {
		t.Errorf("a soak of 4s was over in %v", took)
	}
	shows(t, gd, "app/web:ahead", digest)

	// The catalog's clock stands for a day now. A deadline ends all the same.
	begin = time.Now()
	released("late", "{name: all, groups: [hq/gd], onOffline: wait, onFailure: abort, deadline: 6s, "+gate+"}")
	p.in("failed", 0)
	if took := time.Since(begin); took < 6*time.Second {
		t.Errorf("a deadline of 6s was over in %v", took)
	}
	p.group("hq/gd", "failed", "not delivered within 6s")
	gd.start()
	shows(t, gd, "app/web:late", digest)
}
