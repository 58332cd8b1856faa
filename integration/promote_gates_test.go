package integration

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"
)

// TestPromote_Checks: a gate that answers no, one that hangs, one that can't be reached, and one that says yes at last. What was answered, how often and how fast, is told; nothing moves
// behind a gate that failed, and onFailure is done.
func TestPromote_Checks(t *testing.T) {
	t.Parallel()
	sites := start(t, spec{name: "hq-a", group: "hq"})
	hq := sites["hq-a"]
	var well atomic.Bool
	var asked atomic.Int64
	const slow = 200 * time.Millisecond
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		yes := well.Load()
		switch r.URL.Path {
		case "/hang":
			<-r.Context().Done()
			return
		case "/later":
			yes = asked.Add(1) > 2
			select { // as an address that takes its time
			case <-time.After(slow):
			case <-r.Context().Done():
			}
		}
		if !yes {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, "error rate 7 %")
			return
		}
		fmt.Fprintln(w, "error rate 0 %")
	}))
	t.Cleanup(server.Close)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "http://" + closed.Addr().String() + "/ok"
	closed.Close()

	img := image(t, 1<<14, 1)
	digest := push(t, hq, "app/web:1", img)
	hq.quiet("app/web:1", digest)
	gates := []struct {
		tag, url, onFailure, phase string
		attempts                   int
		took                       time.Duration
		words                      []string
	}{
		{"no", server.URL + "/no", "pause", "paused", 2, 0, []string{"status 503: error rate 7 %"}},
		{"hang", server.URL + "/hang", "abort", "failed", 1, 2 * time.Second, []string{"no answer within"}},
		{"gone", nobody, "rollback", "rolled-back", 2, 0, []string{"connection refused"}},
		{"later", server.URL + "/later", "pause", "succeeded", 3, slow, []string{"status 200: error rate 0 %"}},
	}
	by := map[string]*promotion{}
	for _, g := range gates {
		p := promotionAt(t, hq)
		by[g.tag] = p
		timeout := "3s"
		if g.phase == "succeeded" {
			timeout = "60s"
		}
		p.begin(planOf(fmt.Sprintf("{name: all, groups: [hq], onFailure: %s, gates: {before: [{check: {url: %q, interval: 1s, timeout: %s}}]}}", g.onFailure, g.url, timeout)), g.tag, "app/web:1")
	}
	for _, g := range gates {
		p := by[g.tag]
		wave := uint32(0)
		if g.phase == "succeeded" {
			wave = 1
		}
		p.in(g.phase, wave)
		doc := p.document()
		gate := doc.Waves[0].Gates[0]
		if gate.Attempts < g.attempts || gate.TookSeconds < g.took.Seconds() || gate.TookSeconds == 0 || gate.URL != g.url || gate.When != "before" {
			t.Errorf("%s: %+v", g.tag, gate)
		}
		if err := says(gate.Detail, g.words...); err != nil {
			t.Errorf("%s: %v", g.tag, err)
		}
		if g.phase == "succeeded" {
			if gate.Result != "passed" {
				t.Errorf("%s: %+v", g.tag, gate)
			}
			continue
		}
		if gate.Result != "failed" || gate.WaitedSeconds < 3 || gate.WaitedSeconds > 30 {
			t.Errorf("%s: %+v", g.tag, gate)
		}
		if err := says(doc.Waves[0].Reason, append(g.words, "no answer of 2xx within 3s", g.url)...); err != nil {
			t.Errorf("%s: %v", g.tag, err)
		}
		if err := gone(t, hq, "app/web:"+g.tag); err != nil {
			t.Errorf("%s: behind a gate that failed: %v", g.tag, err)
		}
	}
	shows(t, hq, "app/web:later", digest)

	well.Store(true)
	by["no"].steer("resume") // it is asked anew
	by["no"].in("succeeded", 1)
	if gate := by["no"].document().Waves[0].Gates[0]; gate.Result != "passed" || gate.Detail != "status 200: error rate 0 %" {
		t.Errorf("after it was resumed: %+v", gate)
	}
	shows(t, hq, "app/web:no", digest)
}
