package integration

import (
	"fmt"
	"syscall"
	"testing"
	"time"
)

// TestRootThatHangs: headquarters' root is stopped, not killed: it breaks no connection, and goes on accepting new ones. The others elect another, and the province, which notices by keepalive alone, goes on there.
func TestRootThatHangs(t *testing.T) {
	t.Parallel()
	sites := start(t,
		spec{name: "hq-a", group: "hq"}, spec{name: "hq-b", group: "hq"}, spec{name: "hq-c", group: "hq"},
		spec{name: "gd-a", group: "hq/gd"},
	)
	gd := sites["gd-a"]
	eventually(t, "hq-a leads", func() error {
		if out, code := sites["hq-b"].ctl("member", "lead", "hq-a"); code != 0 {
			return fmt.Errorf("member lead: exit %d: %s", code, out)
		}
		return nil
	})
	gd.stop()
	gd.start() // and begins with the first of its parents' addresses, which is the root's
	gd.waitReady()
	attachedTo(t, gd, "hq")
	first := push(t, sites["hq-a"], "app/web:1", image(t, 1<<14, 1))
	shows(t, gd, "app/web:1", first)

	root := sites["hq-a"]
	root.signal(syscall.SIGSTOP)
	t.Cleanup(func() { root.signal(syscall.SIGCONT) })
	began := time.Now()
	second := push(t, sites["hq-b"], "app/web:2", image(t, 1<<14, 1))
	shows(t, gd, "app/web:2", second)
	t.Logf("the province went on after %s", time.Since(began).Round(100*time.Millisecond))
	if p, why := gd.parentOf("hq/gd"); p != "hq" {
		t.Errorf("it is attached to %q: %s", p, why)
	}
}
