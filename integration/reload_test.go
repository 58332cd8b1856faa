package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestSIGHUPReloadsRates(t *testing.T) {
	t.Parallel()
	s := start(t, spec{name: "hq-a", group: "hq"})["hq-a"]
	reload := func(config, want string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(s.dir, "fanoutd.yaml"), []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the log says "+want, func() error {
			s.mu.Lock()
			defer s.mu.Unlock()
			if !strings.Contains(s.log.String(), want) {
				return fmt.Errorf("not yet")
			}
			return nil
		})
	}
	reload(s.config()+"limits: {download: 8Mbps}\n", `"download":8000000`)
	reload(s.config()+"sweep: {interval: 1s}\n", "restart the agent to put that in force")
	reload("site: [\n", "not reloaded")
	s.waitReady()
}
