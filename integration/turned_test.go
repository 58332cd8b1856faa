package integration

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// puts stands between an agent and its registry. It keeps the first put of a tag waiting that comes after it was armed, and may refuse all puts of tags.
type puts struct {
	addr    string
	refuse  atomic.Bool
	refused atomic.Int64
	mu      sync.Mutex
	tag     string        // armed for it
	waiting chan struct{} // closed when the put is there
	goOn    chan struct{} // the put waits until this is closed
	done    chan struct{} // closed when it is through
}

func gatePuts(t testing.TB, to string) *puts {
	g := &puts{waiting: make(chan struct{}), goOn: make(chan struct{}), done: make(chan struct{})}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: to})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		mine := r.Method == http.MethodPut && g.tag != "" && strings.HasSuffix(r.URL.Path, "/manifests/"+g.tag)
		if mine {
			g.tag = ""
		}
		g.mu.Unlock()
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/") && !strings.Contains(r.URL.Path, "sha256:") && g.refuse.Load() {
			g.refused.Add(1)
			http.Error(w, "not now", http.StatusServiceUnavailable)
			return
		}
		if mine {
			close(g.waiting)
			<-g.goOn
			defer close(g.done)
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	g.addr = server.Listener.Addr().(*net.TCPAddr).String()
	return g
}

func (g *puts) arm(tag string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tag = tag
}

// TestPublishDuringADelivery: a master's agent is about to put the tag of what was pushed at the other master. At that moment somebody pushes here, and says `publish`. The put goes over the push, and
// must not be taken for a push that came later: what was pushed here is what all show in the end.
func TestPublishDuringADelivery(t *testing.T) {
	t.Parallel()
	const tag = "1"
	ref := "app/web:" + tag
	var gate *puts
	sites := start(t, spec{name: "hq-a", group: "hq"}, spec{name: "hq-b", group: "hq", registry: true, laid: func(s *site) {
		gate = gatePuts(t, s.reg)
		s.extra = "registry: {type: oci, url: \"http://" + gate.addr + "\"}\n"
	}})
	a, b := sites["hq-a"], sites["hq-b"]
	shows(t, b, ref, push(t, a, ref, image(t, 32<<10, 1)))

	gate.arm(tag)
	goOn := sync.OnceFunc(func() { close(gate.goOn) })
	t.Cleanup(goOn)
	push(t, a, ref, image(t, 32<<10, 1))
	select {
	case <-gate.waiting:
	case <-time.After(patience):
		t.Fatal("hq-b does not put the tag")
	}
	last := push(t, b, ref, image(t, 32<<10, 1))
	answered := make(chan string, 1)
	go func() {
		defer close(answered)
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
			// Before the agent has heard of the push it may answer with what it knows.
			if out, _ := b.ctl("publish", ref, "-o", "json"); strings.Contains(string(out), last) {
				answered <- string(out)
				return
			}
		}
	}()
	var out string
	select {
	case out = <-answered: // it need not wait for the put; it may
	case <-time.After(3 * time.Second):
	}
	goOn()
	<-gate.done
	if out == "" {
		if out = <-answered; out == "" {
			t.Error("publish at hq-b never answered with what was pushed there")
		}
	}
	shows(t, b, ref, last)
	a.quiet(ref, last)
	shows(t, a, ref, last)
}

// TestSettledConflictStaysOff: a master still shows what lost, as its registry takes no tag, when the conflict is settled for what the others show. Each time that its agent tries again it sees the two
// pushes anew, and must not list them again. What lost is not pushed again by that, and goes when the registry takes tags.
func TestSettledConflictStaysOff(t *testing.T) {
	t.Parallel()
	const ref = "app/web:1"
	var gate *puts
	sites := start(t, spec{name: "hq-a", group: "hq"}, spec{name: "hq-w", group: "hq", extra: witnessRegistry}, spec{name: "hq-b", group: "hq", registry: true, laid: func(s *site) {
		gate = gatePuts(t, s.reg)
		s.extra = "registry: {type: oci, url: \"http://" + gate.addr + "\"}\n"
	}})
	a, b := sites["hq-a"], sites["hq-b"]
	shows(t, b, ref, push(t, a, ref, image(t, 16<<10, 1)))
	b.kill()
	won := push(t, a, ref, image(t, 16<<10, 1))
	eventually(t, "it is published", func() error { return says(a.does("images", "app/web", "-o", "json"), won) })
	lost := push(t, b, ref, image(t, 16<<10, 1))
	gate.refuse.Store(true)
	b.start()
	listed := func() (digests []string) {
		var doc conflictDoc
		a.document(&doc, "conflicts")
		for _, c := range doc.Conflicts {
			digests = append(digests, c.Loser.Digest)
		}
		return digests
	}
	eventually(t, "the conflict is listed", func() error {
		if got := listed(); !slices.Equal(got, []string{lost}) {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	a.does("conflicts", "settle", ref, "--keep", won)
	before := gate.refused.Load()
	eventually(t, "hq-b has tried again", func() error {
		if n := gate.refused.Load(); n < before+3 {
			return fmt.Errorf("%d times, %d before", n, before)
		}
		return nil
	})
	if got := listed(); len(got) > 0 {
		t.Errorf("listed again: %v", got)
	}
	gate.refuse.Store(false)
	shows(t, b, ref, won)
	a.quiet(ref, won)
	if got := listed(); len(got) > 0 {
		t.Errorf("listed in the end: %v", got)
	}
}
