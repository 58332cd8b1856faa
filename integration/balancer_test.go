package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// balancer is HAProxy in front of two masters, with the file of deploy/haproxy as it is.
type balancer struct {
	t    testing.TB
	addr string

	mu  sync.Mutex
	log bytes.Buffer
}

// startBalancer skips the test where there is no HAProxy.
func startBalancer(t testing.TB, m *masters) *balancer {
	t.Helper()
	path, err := exec.LookPath("haproxy")
	if err != nil {
		t.Skip("no haproxy in PATH: apt-get install haproxy")
	}
	free := &addresses{t: t}
	b := &balancer{t: t, addr: free.next()}
	free.release()
	cmd := exec.Command(path, "-db", "-f", filepath.Join("..", "deploy", "haproxy", "haproxy.cfg"))
	cmd.Env = append(os.Environ(), "FANOUT_LB_BIND="+b.addr)
	for letter, s := range map[string]*site{"A": m.a, "B": m.b} {
		host, port, err := net.SplitHostPort(s.http)
		if err != nil {
			t.Fatal(err)
		}
		cmd.Env = append(cmd.Env, "FANOUT_"+letter+"_REGISTRY="+s.reg, "FANOUT_"+letter+"_AGENT_HOST="+host, "FANOUT_"+letter+"_AGENT_PORT="+port)
	}
	out := &lockedWriter{mu: &b.mu, w: &b.log}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("log of haproxy:\n%s", b.lines(0))
		}
	})
	eventually(t, "the load balancer answers", func() error {
		resp, err := http.Get("http://" + b.addr + "/v2/")
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	return b
}

// lines is what was logged from an offset on.
func (b *balancer) lines(from int) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.log.Bytes()[from:])
}

// says waits until something is logged that was not before an offset.
func (b *balancer) says(from int, words string) {
	b.t.Helper()
	eventually(b.t, "haproxy says "+words, func() error {
		if !strings.Contains(b.lines(from), words) {
			return errors.New("not yet")
		}
		return nil
	})
}

// lbClient is a client with a source address of its own.
type lbClient struct {
	b    *balancer
	addr string
	http http.RoundTripper
}

func (b *balancer) client(i int) *lbClient {
	addr := fmt.Sprintf("127.0.9.%d", i)
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}
	tr := &http.Transport{DialContext: dialer.DialContext}
	b.t.Cleanup(tr.CloseIdleConnections)
	return &lbClient{b, addr, tr}
}

// met is which master, as backend/server, took the client's requests that were logged from an offset on. A request is logged when it has ended. The client's first attempt
// to speak TLS meets none.
func (c *lbClient) met(from int) []string {
	servers := map[string]bool{}
	for line := range strings.Lines(c.b.lines(from)) {
		if words := strings.Fields(line); len(words) > 2 && strings.HasPrefix(words[0], c.addr+":") && !strings.HasSuffix(words[1], "<NOSRV>") {
			servers[words[1]] = true
		}
	}
	return slices.Sorted(maps.Keys(servers))
}

// push pushes a new image through the balancer.
func (c *lbClient) push(ref string) (digest string, err error) {
	r, err := name.ParseReference(c.b.addr+"/"+ref, name.Insecure)
	if err != nil {
		return "", err
	}
	img := image(c.b.t, 64<<10, 2)
	d, err := img.Digest()
	if err != nil {
		return "", err
	}
	return d.String(), remote.Write(r, img, remote.WithTransport(c.http))
}

// pushAll has every client push a new tag and its moving one, all at once, and tells the masters' test what to expect.
func pushAll(m *masters, clients []*lbClient, what string) {
	m.t.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i, c := range clients {
		wg.Go(func() {
			for _, tag := range []string{what, "latest"} {
				ref := fmt.Sprintf("app/client-%d:%s", i, tag)
				digest, err := c.push(ref)
				if err != nil {
					m.t.Errorf("%s pushes %s: %v", c.addr, ref, err)
				}
				mu.Lock()
				m.expected[ref] = digest
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if m.t.Failed() {
		m.t.FailNow()
	}
}

// TestTwoMastersBehindALoadBalancer: with deploy/haproxy/haproxy.cfg each client meets one master, all registries become equal, and while one agent is down its clients push at
// the other master.
func TestTwoMastersBehindALoadBalancer(t *testing.T) {
	if _, err := exec.LookPath("haproxy"); err != nil {
		t.Skip("no haproxy in PATH: apt-get install haproxy")
	}
	m, _ := startMasters(t, true)
	lb := startBalancer(t, m)
	testUploadThroughBalancer(t, m, lb)
	var clients []*lbClient
	for i := range 6 {
		clients = append(clients, lb.client(i+1))
	}
	pushAll(m, clients, "first")
	pushAll(m, clients, "second")
	m.equal(m.a, m.b, m.gd)
	home := map[*lbClient]string{}
	var ofA, ofB *lbClient
	for i, c := range clients {
		met := c.met(0)
		if len(met) != 1 {
			t.Fatalf("%s met %v", c.addr, met)
		}
		switch home[c] = met[0]; met[0] {
		case "masters/a":
			ofA = c
			m.publishedBy(m.a, fmt.Sprintf("app/client-%d:first", i))
		case "masters/b":
			ofB = c
			m.publishedBy(m.b, fmt.Sprintf("app/client-%d:first", i))
		}
	}
	if ofA == nil || ofB == nil {
		t.Fatalf("all clients meet one master: %v", home)
	}

	// The agent of A is killed: its registry still takes what is pushed before the balancer notices, and then new pushes go to B.
	from := len(lb.lines(0))
	begin := time.Now()
	m.a.kill()
	early, err := ofA.push("app/early:1")
	if err != nil {
		t.Fatal(err)
	}
	lb.says(from, "Server masters/a is DOWN")
	t.Logf("noticed %s after the agent's end", time.Since(begin).Round(time.Millisecond))
	from = len(lb.lines(0))
	pushAll(m, clients, "down")
	m.equal(m.b, m.gd)
	for _, c := range clients {
		if met := c.met(from); !slices.Equal(met, []string{"masters/b"}) {
			t.Errorf("%s met %v while the agent of A was down", c.addr, met)
		}
	}

	m.a.start()
	lb.says(from, "Server masters/a is UP")
	from = len(lb.lines(0))
	m.expected["app/early:1"] = early
	pushAll(m, clients, "back")
	m.equal(m.a, m.b, m.gd)
	for _, c := range clients {
		if met := c.met(from); !slices.Equal(met, []string{home[c]}) {
			t.Errorf("%s met %v, and met %s before", c.addr, met, home[c])
		}
	}
	m.peace()
	testNoAgentReady(m, lb, ofA)
}

// publishedBy waits until a master's agent says that it published a ref: its registry took the push.
func (m *masters) publishedBy(at *site, ref string) {
	m.t.Helper()
	eventually(m.t, at.name+" published "+ref, func() error {
		for line := range strings.Lines(at.does("events")) {
			if says(line, " Published ", at.name, ref) == nil {
				return nil
			}
		}
		return errors.New("not yet")
	})
}

// testUploadThroughBalancer: an upload leads back to the balancer whatever the client says of itself, and its bytes are in the registry while the request still lasts.
func testUploadThroughBalancer(t *testing.T, m *masters, lb *balancer) {
	t.Helper()
	c := lb.client(99)
	do := func(method, address string, body io.Reader) *http.Response {
		t.Helper()
		req, err := http.NewRequest(method, address, body)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "registry.example.com"
		req.Header.Set("X-Forwarded-Host", "elsewhere.example.com")
		req.Header.Set("X-Forwarded-Proto", "gopher")
		req.Header.Set("Forwarded", "host=elsewhere.example.com;proto=gopher")
		resp, err := c.http.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp
	}
	resp := do(http.MethodPost, "http://"+lb.addr+"/v2/app/upload/blobs/uploads/", nil)
	location, err := url.Parse(resp.Header.Get("Location"))
	if err != nil || resp.StatusCode != http.StatusAccepted || location.Scheme != "http" || location.Host != "registry.example.com" {
		t.Fatalf("an upload was answered %d, location %v, %v", resp.StatusCode, location, err)
	}
	location.Host = lb.addr

	const size = 4 * mib
	r, w := io.Pipe()
	answered := make(chan *http.Response, 1)
	go func() { answered <- do(http.MethodPatch, location.String(), r) }()
	if _, err := w.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what was sent is in a registry before the request ends", func() error {
		var held int64
		for _, s := range []*site{m.a, m.b} {
			files, err := filepath.Glob(filepath.Join(s.own.Dir, "data/docker/registry/v2/repositories/app/upload/_uploads/*/data"))
			if err != nil {
				return err
			}
			for _, f := range files {
				if fi, err := os.Stat(f); err == nil {
					held += fi.Size()
				}
			}
		}
		if held < size/2 { // what passes through buffers is far less
			return fmt.Errorf("%d bytes are", held)
		}
		return nil
	})
	select {
	case resp := <-answered:
		t.Fatalf("the request has ended with %d", resp.StatusCode)
	default:
	}
	_ = w.Close()
	if resp := <-answered; resp.StatusCode != http.StatusAccepted {
		t.Errorf("the upload's part was answered %d", resp.StatusCode)
	}
}

// testNoAgentReady: with no agent ready nothing can be published, and the registries still serve, a client its own master.
func testNoAgentReady(m *masters, lb *balancer, ofA *lbClient) {
	m.t.Helper()
	from := len(lb.lines(0))
	m.a.kill()
	m.b.kill()
	lb.says(from, "Server masters/a is DOWN")
	lb.says(from, "Server masters/b is DOWN")
	from = len(lb.lines(0))
	digest, err := ofA.push("app/late:1")
	if err != nil {
		m.t.Fatal(err)
	}
	if met := ofA.met(from); !slices.Equal(met, []string{"serving/a"}) {
		m.t.Errorf("%s met %v while no agent was ready", ofA.addr, met)
	}
	m.expected["app/late:1"] = digest
	m.a.start()
	m.b.start()
	m.equal(m.a, m.b, m.gd)
	m.peace()
}
