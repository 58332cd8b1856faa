package integration

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/crane"
)

type demoSite struct{ Name, Group, Registry, Fabric, HTTP string }

// runDemo starts the demo and returns when it has shown that all is synced.
func runDemo(t *testing.T, dir string) (sites []demoSite, stop func()) {
	t.Helper()
	cmd := exec.Command(filepath.Join(binaries, "fanoutctl"), "demo", "--dir", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	ready := make(chan bool, 1)
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			said.WriteString(lines.Text() + "\n")
			if strings.Contains(lines.Text(), "Ctrl-C stops the demo") {
				ready <- true
				_, _ = io.Copy(io.Discard, out)
				return
			}
		}
		ready <- false
	}()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case ok := <-ready:
		if !ok {
			t.Fatalf("the demo ended early:\n%s", said.String())
		}
	case <-timeout.C:
		_ = cmd.Process.Kill()
		t.Fatalf("the demo is not ready within %s", patience)
	}
	for _, s := range []string{"9 synced", "crane copy", "docker push", cmd.Path + " --server 127.0."} {
		if !strings.Contains(said.String(), s) {
			t.Errorf("the demo does not say %q:\n%s", s, said.String())
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, "fabric.json"))
	if err != nil {
		t.Fatal(err)
	}
	var f struct{ Sites []demoSite }
	if err := json.Unmarshal(data, &f); err != nil || len(f.Sites) != 9 {
		t.Fatalf("fabric.json: %v: %s", err, data)
	}
	return f.Sites, func() {
		t.Helper()
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		for _, s := range f.Sites {
			s.silent(t)
		}
	}
}

// silent proves that a site answers nowhere any more.
func (s demoSite) silent(t *testing.T) {
	t.Helper()
	for _, addr := range []string{s.Registry, s.Fabric, s.HTTP} {
		if c, err := net.Dial("tcp", addr); err == nil {
			_ = c.Close()
			t.Errorf("%s still answers at %s after Ctrl-C", s.Name, addr)
		}
	}
}

// pushPlainly pushes as a person does who types what the demo prints: the client is not told that the registry has no TLS.
func pushPlainly(t *testing.T, s *site, ref string) string {
	t.Helper()
	img := image(t, 1<<16, 1)
	if err := crane.Push(img, s.reg+"/"+ref); err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// TestDemoLeavesNothingBehind: without --dir the demo's state is its own, and goes with Ctrl-C; so do its processes.
func TestDemoLeavesNothingBehind(t *testing.T) {
	temp := t.TempDir()
	cmd := exec.Command(filepath.Join(binaries, "fanoutctl"), "demo")
	cmd.Env = append(os.Environ(), "TMPDIR="+temp)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(2*patience, func() { _ = cmd.Process.Kill() })
	defer kill.Stop()
	ready := false
	for lines := bufio.NewScanner(out); !ready && lines.Scan(); {
		ready = strings.Contains(lines.Text(), "Ctrl-C stops the demo")
	}
	files, err := filepath.Glob(filepath.Join(temp, "*", "fabric.json"))
	if err != nil || !ready || len(files) != 1 {
		t.Fatalf("ready: %v; %v, %v", ready, files, err)
	}
	var f struct{ Sites []demoSite }
	if data, err := os.ReadFile(files[0]); err != nil || json.Unmarshal(data, &f) != nil || len(f.Sites) != 9 {
		t.Fatalf("fabric.json: %v: %s", err, data)
	}
	_ = cmd.Process.Signal(os.Interrupt)
	_, _ = io.Copy(io.Discard, out)
	if err := cmd.Wait(); err != nil {
		t.Errorf("Ctrl-C: %v", err)
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	for _, s := range f.Sites {
		s.silent(t)
	}
}

func TestDemoKeepsItsState(t *testing.T) {
	dir := t.TempDir()
	sites, stop := runDemo(t, dir)
	hq := &site{t: t, name: sites[0].Name, reg: sites[0].Registry, fabric: sites[0].Fabric}
	last := &site{t: t, name: sites[8].Name, reg: sites[8].Registry, fabric: sites[8].Fabric}
	digest, other := pushPlainly(t, hq, "my/app:1.0"), pushPlainly(t, hq, "demo/hello:1.0")
	shows(t, last, "my/app:1.0", digest)
	shows(t, last, "demo/hello:1.0", other)
	stop()
	again, stop := runDemo(t, dir)
	defer stop()
	if again[0].Registry != sites[0].Registry {
		t.Errorf("the addresses moved: %v, then %v", sites[0], again[0])
	}
	shows(t, last, "my/app:1.0", digest)
	shows(t, last, "demo/hello:1.0", other) // and was not pushed over when the demo started again
	if d, err := crane.Digest(hq.reg + "/demo/hello:1.0"); err != nil || d != other {
		t.Errorf("headquarters shows %s, %v, under the sample's name; want %s", d, err, other)
	}
	if w := hq.where("my/app:1.0"); len(w) != 9 {
		t.Errorf("where lists %d sites", len(w))
	}
}
