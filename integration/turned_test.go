package integration

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// puts stands between an agent and its registry, and keeps the first put of a tag waiting that comes after it was armed.
type puts struct {
	addr    string
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
