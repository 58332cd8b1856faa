package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/fanout-io/fanout/pkg/registry"
)

// registryEnv makes this test binary serve a registry instead of running tests; it holds a registryConfig.
const registryEnv = "FANOUT_TEST_REGISTRY"

// registryConfig is what a registry process is told.
type registryConfig struct{ Listen, Dir, Hook string }

// serveRegistry is the whole of a registry process.
func serveRegistry(config string) error {
	var c registryConfig
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return err
	}
	r, err := registry.NewEmbedded(registry.EmbeddedConfig{Dir: c.Dir, Listen: c.Listen, HookURL: c.Hook})
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return r.Run(ctx)
}

// ownRegistry is a registry in a process of its own, on an address and a folder that stay the same when it is killed and started again.
type ownRegistry struct {
	t testing.TB
	registryConfig

	mu  sync.Mutex
	cmd *exec.Cmd
	log bytes.Buffer
}

// startRegistry starts a registry that tells the agent at hook (HOST:PORT of its http) of pushes.
func startRegistry(t testing.TB, listen, hook string) *ownRegistry {
	t.Helper()
	r := &ownRegistry{t: t, registryConfig: registryConfig{Listen: listen, Dir: filepath.Join(t.TempDir(), "registry"), Hook: "http://" + hook + "/hooks/distribution"}}
	r.start()
	t.Cleanup(r.kill)
	return r
}

// extra is the configuration of the agent beside it.
func (r *ownRegistry) extra() string {
	return fmt.Sprintf("registry: {type: oci, url: \"http://%s\"}\n", r.Listen)
}

func (r *ownRegistry) start() {
	r.t.Helper()
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	config, err := json.Marshal(r.registryConfig)
	if err != nil {
		r.t.Fatal(err)
	}
	r.cmd = exec.Command(self)
	r.cmd.Env = append(os.Environ(), registryEnv+"="+string(config))
	r.cmd.Stderr = &lockedWriter{mu: &r.mu, w: &r.log}
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	eventually(r.t, "the registry at "+r.Listen+" answers", func() error {
		if r.cmd.ProcessState != nil {
			return fmt.Errorf("it ended: %s", r.log.Bytes())
		}
		resp, err := http.Get("http://" + r.Listen + "/v2/")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	})
}

func (r *ownRegistry) kill() {
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
}
