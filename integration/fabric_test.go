// Package integration runs real fanoutd processes with embedded registries on loopback addresses, pushes and pulls images with go-containerregistry, and breaks things.
package integration

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/time/rate"
)

var binaries string

func TestMain(m *testing.M) {
	if config := os.Getenv(registryEnv); config != "" {
		if err := serveRegistry(config); err != nil {
			fmt.Fprintln(os.Stderr, "registry:", err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	dir, err := os.MkdirTemp("", "fanout-integration-")
	if err == nil {
		binaries = dir
		cmd := exec.Command("go", "build", "-o", dir, "github.com/fanout-io/fanout/cmd/...")
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		err = cmd.Run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "building the binaries:", err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// patience bounds every wait. Nothing is expected to take that long.
const patience = 60 * time.Second

// site is one fanoutd process.
type site struct {
	t       testing.TB
	name    string
	group   string
	dir     string
	data    string // dataDir; default dir
	reg     string
	fabric  string
	raft    string
	http    string
	parents []string
	// fallback parents.
	fallback []string
	members  []*site
	extra    string       // more configuration
	keys     string       // more keys of the embedded registry, each behind a comma
	link     *proxy       // in front of fabric, when the traffic to it is to be counted
	gate     string       // address in front of fabric, where something else than link is there
	binary   string       // fanoutd, where it is not the ordinary one
	env      []string     // more of the environment
	raftGate string       // address in front of raft, where something is there
	own      *ownRegistry // nil where the registry is embedded
	// registryDir is the folder of the registry, where it is not the embedded one's.
	registryDir string

	mu     sync.Mutex
	cmd    *exec.Cmd
	log    *bytes.Buffer
	killed bool // some line of the log may be cut
}

// lastPort was handed out last. Ports lie below those that the kernel gives to whoever asks for any, and none is handed out twice before all were: so one that was let go of for a process
// that is about to start, or to start again, is nobody else's, whatever runs beside it.
var lastPort atomic.Uint32

const (
	firstPort = 12000
	ports     = 20000
)

// addresses hands out loopback addresses, and keeps them until all are chosen.
type addresses struct {
	t    testing.TB
	open []net.Listener
}

func (a *addresses) next() string {
	lastPort.CompareAndSwap(0, uint32(os.Getpid()*97%ports)) // another run of these tests begins elsewhere
	var err error
	for range 100 {
		var l net.Listener
		l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", firstPort+lastPort.Add(1)%ports))
		if err == nil {
			a.open = append(a.open, l)
			return l.Addr().String()
		}
	}
	a.t.Fatal(err)
	return ""
}

func (a *addresses) release() {
	for _, l := range a.open {
		_ = l.Close()
	}
}

// spec is one line of a fabric: a site, its group, more configuration.
type spec struct {
	name, group, extra string
	counted            bool        // children and fellows reach it through a counting proxy
	registry           bool        // its registry is a process of its own
	data               string      // dataDir, where it is to be elsewhere
	keys               string      // more keys of the embedded registry, each behind a comma
	laid               func(*site) // called before it is started
}

// start lays a fabric out, starts all its processes and stops them with the test.
func start(t testing.TB, specs ...spec) map[string]*site {
	t.Helper()
	free := &addresses{t: t}
	sites := map[string]*site{}
	groups := map[string][]*site{}
	var order []*site
	for _, sp := range specs {
		s := &site{t: t, name: sp.name, group: sp.group, extra: sp.extra, keys: sp.keys, dir: filepath.Join(t.TempDir(), sp.name), data: sp.data,
			reg: free.next(), fabric: free.next(), raft: free.next(), http: free.next(), log: &bytes.Buffer{}}
		if sp.counted {
			s.link = newProxy(t, s.fabric)
		}
		if sp.laid != nil {
			sp.laid(s)
		}
		sites[sp.name] = s
		groups[sp.group] = append(groups[sp.group], s)
		order = append(order, s)
	}
	for _, s := range order {
		s.members = groups[s.group]
		if i := strings.LastIndex(s.group, "/"); i >= 0 {
			for _, p := range groups[s.group[:i]] {
				s.parents = append(s.parents, p.advertised())
			}
		}
	}
	free.release()
	for i, sp := range specs {
		if s := order[i]; sp.registry {
			s.own = startRegistry(t, s.reg, s.http)
			if !strings.Contains(s.extra, "registry:") { // else its agent speaks to it through something
				s.extra += s.own.extra()
			}
		}
	}
	for _, s := range order {
		s.start()
		t.Cleanup(s.stop)
	}
	for _, s := range order {
		s.waitReady()
	}
	return sites
}

// lay lays one more site out below a running one, without starting it.
func lay(t testing.TB, parent *site, sp spec) *site {
	t.Helper()
	free := &addresses{t: t}
	s := &site{t: t, name: sp.name, group: sp.group, extra: sp.extra, dir: filepath.Join(t.TempDir(), sp.name),
		reg: free.next(), fabric: free.next(), raft: free.next(), http: free.next(), log: &bytes.Buffer{}, parents: []string{parent.advertised()}}
	s.members = []*site{s}
	free.release()
	return s
}

func (s *site) advertised() string {
	if s.link != nil {
		return s.link.addr
	}
	return cmp.Or(s.gate, s.fabric)
}

// advertisedRaft is where its fellows reach it.
func (s *site) advertisedRaft() string { return cmp.Or(s.raftGate, s.raft) }

// pid of the agent's process; 0 before it was started.
func (s *site) pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil || s.cmd.Process == nil {
		return 0
	}
	return s.cmd.Process.Pid
}

func (s *site) config() string {
	b := &strings.Builder{}
	fmt.Fprintf(b, "site: %s\ngroup: %s\ndataDir: %s\nraft:\n  listen: %s\n  advertise: %s\n  members:\n", s.name, s.group, cmp.Or(s.data, s.dir), s.raft, s.advertisedRaft())
	for _, m := range s.members {
		fmt.Fprintf(b, "    %s: %s\n", m.name, m.advertisedRaft())
	}
	fmt.Fprintf(b, "fabric:\n  listen: %s\n  advertise: %s\n  socket: %s\n", s.fabric, s.advertised(), filepath.Join(filepath.Dir(s.dir), "s"))
	if len(s.parents) > 0 {
		fmt.Fprintf(b, "  parents: [%s]\n", strings.Join(s.parents, ", "))
	}
	if len(s.fallback) > 0 {
		fmt.Fprintf(b, "  fallbackParents: [%s]\n", strings.Join(s.fallback, ", "))
	}
	if !strings.Contains(s.extra, "http:\n") {
		fmt.Fprintf(b, "http: {listen: \"%s\"}\n", s.http)
	}
	if !strings.Contains(s.extra, "registry:") {
		fmt.Fprintf(b, "registry: {type: embedded, listen: \"%s\"%s}\n", s.reg, s.keys)
	}
	b.WriteString(s.extra)
	return b.String()
}

func (s *site) start() {
	s.t.Helper()
	if err := os.MkdirAll(s.dir, 0o750); err != nil {
		s.t.Fatal(err)
	}
	file := filepath.Join(s.dir, "fanoutd.yaml")
	if err := os.WriteFile(file, []byte(s.config()), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cmd = exec.Command(cmp.Or(s.binary, filepath.Join(binaries, "fanoutd")), "--config", file, "--log-level", "debug")
	s.cmd.Env = append(os.Environ(), s.env...)
	s.cmd.Stderr = &lockedWriter{mu: &s.mu, w: s.log}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// kill ends the process at once, as a power cut would.
func (s *site) kill() {
	s.killed = true
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// stop ends the process in order and shows its log when the test failed.
func (s *site) stop() {
	if s.cmd.ProcessState == nil {
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		done := make(chan struct{})
		go func() { _ = s.cmd.Wait(); close(done) }()
		t := time.NewTimer(15 * time.Second)
		defer t.Stop()
		select {
		case <-done:
		case <-t.C:
			s.t.Errorf("%s does not stop on SIGTERM", s.name)
			s.killed = true
			_ = s.cmd.Process.Signal(syscall.SIGQUIT) // its log says then what it waits for
			t.Reset(5 * time.Second)
			select {
			case <-done:
			case <-t.C:
				_ = s.cmd.Process.Kill()
				<-done
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	log := s.log.Bytes()
	if !s.killed {
		checkLog(s.t, s.name, log)
	}
	if s.t.Failed() {
		if i := bytes.Index(log, []byte("\nSIGQUIT: ")); i >= 0 {
			s.t.Logf("what %s waits for:\n%s", s.name, log[i:])
			log = log[:i]
		}
		s.t.Logf("log of %s:\n%s", s.name, log[max(0, len(log)-8000):])
	}
}

func (s *site) waitReady() {
	s.t.Helper()
	eventually(s.t, s.name+" ready", func() error {
		resp, err := http.Get("http://" + s.http + "/readyz?verbose")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s", body)
		}
		return nil
	})
}

// eventually waits for a condition, with a deadline.
func eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	within(t, patience, what, check)
}

// within waits for a condition for a time.
func within(t testing.TB, patience time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, patience, err)
		}
		<-tick.C
	}
}

// ctl runs fanoutctl against a site.
func (s *site) ctl(args ...string) ([]byte, int) {
	s.t.Helper()
	out, _, code := s.says(args...)
	return out, code
}

// says is ctl with what fanoutctl wrote to stderr.
func (s *site) says(args ...string) (stdout, stderr []byte, code int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(binaries, "fanoutctl"), append([]string{"--server", s.fabric}, args...)...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil && cmd.ProcessState == nil {
		s.t.Fatalf("fanoutctl %v: %v", args, err)
	}
	if cmd.ProcessState.ExitCode() != 0 {
		s.t.Logf("fanoutctl %v: exit %d: %s", args, cmd.ProcessState.ExitCode(), errs.Bytes())
	}
	return out, errs.Bytes(), cmd.ProcessState.ExitCode()
}

// metric reads one from a site.
func (s *site) metric(name string) float64 {
	s.t.Helper()
	v, ok := s.findMetric(name)
	if !ok {
		s.t.Fatalf("%s has no metric %s", s.name, name)
	}
	return v
}

// findMetric reads one that may not be there yet.
func (s *site) findMetric(name string) (float64, bool) {
	s.t.Helper()
	resp, err := http.Get("http://" + s.http + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(body)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			f, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				s.t.Fatal(err)
			}
			return f, true
		}
	}
	return 0, false
}

type whereSite struct {
	Site, Group, State, Digest, Want, Reason string
	BytesLeft                                int64
}

func (s *site) where(ref string) []whereSite {
	s.t.Helper()
	out, code := s.ctl("where", ref, "-o", "json")
	if code != 0 {
		return nil
	}
	var w struct{ Sites []whereSite }
	if err := json.Unmarshal(out, &w); err != nil {
		s.t.Fatalf("where -o json: %v: %s", err, out)
	}
	return w.Sites
}

// proxy is a link: it passes TCP on and counts what flows towards the one who dialled, and how often a connection ended that was carrying blobs.
type proxy struct {
	addr, to string
	down     atomic.Int64 // bytes towards the dialler
	breaks   atomic.Int64
	pace     atomic.Pointer[rate.Limiter]
	// harm, where it is set, may change what flows towards the one who dialled; false: the connection is cut.
	harm atomic.Pointer[func(b []byte) bool]
}

func newProxy(t testing.TB, to string) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{addr: l.Addr().String(), to: to}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.pass(c)
		}
	}()
	return p
}

func (p *proxy) pass(c net.Conn) {
	defer c.Close()
	up, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	defer up.Close()
	go func() {
		_, _ = io.Copy(up, c)
		_ = up.(*net.TCPConn).CloseWrite()
	}()
	flow := &counter{r: up, n: &p.down, pace: &p.pace, harm: &p.harm}
	_, _ = io.Copy(c, flow)
	if flow.busy() {
		p.breaks.Add(1)
	}
}

type counter struct {
	r      io.Reader
	n      *atomic.Int64
	pace   *atomic.Pointer[rate.Limiter]
	harm   *atomic.Pointer[func([]byte) bool]
	window time.Time // when the count began
	recent int       // bytes since then
	before int       // bytes in the window before
}

// busyWindow and busyBytes tell a connection that carries blobs from one that carries heartbeats.
const (
	busyWindow = time.Second
	busyBytes  = 64 << 10
)

// busy says whether blobs came in the last seconds.
func (c *counter) busy() bool {
	age := time.Since(c.window)
	return age < busyWindow && c.recent+c.before > busyBytes || age < 2*busyWindow && c.recent > busyBytes
}

func (c *counter) note(n int) {
	switch age := time.Since(c.window); {
	case age > 2*busyWindow:
		c.window, c.before, c.recent = time.Now(), 0, 0
	case age > busyWindow:
		c.window, c.before, c.recent = time.Now(), c.recent, 0
	}
	c.recent += n
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	if l := c.pace.Load(); l != nil && n > 0 {
		if err := l.WaitN(context.Background(), n); err != nil {
			return 0, err
		}
	}
	if harm := c.harm.Load(); harm != nil && n > 0 && !(*harm)(b[:n]) {
		return n / 2, io.ErrUnexpectedEOF
	}
	c.n.Add(int64(n))
	c.note(n)
	return n, err
}
