package agent

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/timestamppb"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/config"
)

// TestNotifier: events come in their order, signed, and again after an answer that is no.
func TestNotifier(t *testing.T) {
	type got struct {
		id, signature, contentType string
		body                       []byte
	}
	all := make(chan got, 10)
	var mu sync.Mutex
	refuse := 1
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var e cloudEvent
		if err := json.Unmarshal(body, &e); err != nil || e.SpecVersion != "1.0" || e.Type != "io.fanout.rollout.started" {
			t.Errorf("%s: %v", body, err)
		}
		mu.Lock()
		defer mu.Unlock()
		if refuse > 0 {
			refuse--
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		all <- got{e.ID, r.Header.Get(signatureHeader), r.Header.Get("Content-Type"), body}
	}))
	defer server.Close()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	list, err := newNotifiers([]config.Notify{{URL: server.URL, SecretFile: secret}}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	n := list[0]
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); n.run(ctx) }()
	for _, id := range []string{"r/1", "r/2"} {
		n.add(cloudEvent{SpecVersion: "1.0", ID: id, Type: "io.fanout.rollout.started"})
	}
	for _, id := range []string{"r/1", "r/2"} {
		g := <-all
		if g.id != id || g.signature != signature("key", g.body) || !strings.HasPrefix(g.contentType, "application/cloudevents+json") {
			t.Errorf("%+v, want %s", g, id)
		}
	}
	cancel()
	<-done
	// As a receiver has to do it: an independent reckoning of the signature, by openssl dgst -sha256 -hmac key.
	if got := signature("key", []byte("The quick brown fox jumps over the lazy dog")); got != "sha256=f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8" {
		t.Error(got)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestNotifier_Away: what waits is bounded in number and time, and the oldest go.
func TestNotifier_Away(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		away, sent := true, []string{}
		var mu sync.Mutex
		n := &notifier{
			url: "http://away", secret: func() (string, error) { return "key", nil }, logger: slog.New(slog.DiscardHandler), wake: make(chan struct{}, 1),
			count: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "n"}, []string{"outcome"}),
			client: &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
				mu.Lock()
				defer mu.Unlock()
				if away {
					return nil, io.ErrUnexpectedEOF
				}
				var e cloudEvent
				_ = json.NewDecoder(r.Body).Decode(&e)
				sent = append(sent, e.ID)
				return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
			})},
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); n.run(ctx) }()
		n.add(cloudEvent{ID: "old"})
		time.Sleep(40 * time.Minute)
		n.add(cloudEvent{ID: "new"})
		time.Sleep(25 * time.Minute)
		mu.Lock()
		away = false
		mu.Unlock()
		time.Sleep(2 * time.Minute)
		mu.Lock()
		if len(sent) != 1 || sent[0] != "new" {
			t.Errorf("sent after more than an hour: %v", sent)
		}
		mu.Unlock()
		cancel()
		<-done
		for range maxNotices + 5 {
			n.add(cloudEvent{ID: "x"})
		}
		if len(n.queue) != maxNotices {
			t.Errorf("%d wait", len(n.queue))
		}
	})
}

// TestRolloutNews: each step is told once in a term of office, and under the same ID by the next root, which begins an hour back.
func TestRolloutNews(t *testing.T) {
	m := catalog.New()
	clock := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	apply := func(c *catalogv1.Change) {
		if r := m.Apply(&catalogv1.Command{Time: timestamppb.New(clock), Actor: "anna", Changes: []*catalogv1.Change{c}})[0]; r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	steer := func(verb string) {
		apply(&catalogv1.Change{Kind: &catalogv1.Change_SteerRollout{SteerRollout: &catalogv1.SteerRollout{Id: "r1", Verb: verb}}})
	}
	apply(&catalogv1.Change{Kind: &catalogv1.Change_Found{Found: &catalogv1.Found{Epoch: "e1"}}})
	apply(&catalogv1.Change{Kind: &catalogv1.Change_StartRollout{StartRollout: &catalogv1.StartRollout{Rollout: &catalogv1.Rollout{
		Id: "r1", Items: []*catalogv1.RolloutItem{{Repository: "prod/web", Tag: "stable", Target: &catalogv1.Descriptor{Digest: digestNew, MediaType: "m", Size: 1}}},
		Plan: &catalogv1.Plan{Waves: []*catalogv1.Wave{{
			Name: "w", Groups: []string{"hq"}, MaxConcurrent: 1, OnFailure: "pause", OnOffline: "wait", Before: []*catalogv1.Gate{approval()},
		}}},
	}}}})
	clock = clock.Add(2 * time.Hour)
	steer("pause")
	steer("resume") // at the same time

	told := func(n *rolloutNews, into *[]rolloutStep) []string {
		*into = nil
		n.look(m.Snapshot())
		var out []string
		for _, s := range *into {
			out = append(out, s.kind)
		}
		return out
	}
	var first, second []rolloutStep
	a := newRolloutNews(func(s rolloutStep) { first = append(first, s) })
	if got := told(a, &first); strings.Join(got, " ") != "paused resumed" || first[0].fresh || first[0].id == first[1].id {
		t.Fatalf("a new root tells of the last hour: %v %+v", got, first)
	}
	early := first
	if got := told(a, &first); len(got) > 0 {
		t.Fatalf("told twice: %v", got)
	}
	clock = clock.Add(time.Minute)
	steer("approve")
	steer("abort")
	if got := told(a, &first); strings.Join(got, " ") != "approved wave aborted" || !first[0].fresh {
		t.Fatalf("%v", got)
	}
	b := newRolloutNews(func(s rolloutStep) { second = append(second, s) })
	told(b, &second)
	for i, s := range append(early, first...) {
		if second[i].id != s.id {
			t.Errorf("%s is %s at the next root", s.id, second[i].id)
		}
	}
	for kind, want := range map[string]string{"rolled-back": "RolloutRolledBack", "wave": "RolloutWave"} {
		if got := stepReason(kind); got != want {
			t.Errorf("%s: %s", kind, got)
		}
	}
}

// TestAsk: a check follows redirects within its scheme only, and keeps a short line of what it is told.
func TestAsk(t *testing.T) {
	long := strings.Repeat("ä", 500)
	mux := http.NewServeMux()
	mux.HandleFunc("/yes", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "\x00all \x1b[31m well\nmore") })
	mux.HandleFunc("/no", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500); _, _ = io.WriteString(w, long) })
	mux.HandleFunc("/there", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/yes", http.StatusFound) })
	mux.HandleFunc("/elsewhere", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://127.0.0.1:1/yes", http.StatusFound)
	})
	mux.HandleFunc("/round", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/round", http.StatusFound) })
	mux.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	for _, c := range []struct {
		path   string
		passed bool
		detail string
	}{
		{"/yes", true, "status 200: all [31m well"},
		{"/no", false, "status 500: " + strings.Repeat("ä", maxCheckWord-1) + "…"},
		{"/there", true, "status 200: all [31m well"},
		{"/elsewhere", false, "redirected from http to https"},
		{"/round", false, "more than 5 redirects"},
		{"/endless", true, "status 200"},
	} {
		passed, detail := ask(t.Context(), newCheckClient(), server.URL+c.path, checkAttempt)
		if passed != c.passed || !strings.Contains(detail, c.detail) || len(detail) > 500 {
			t.Errorf("%s: %v %q", c.path, passed, detail)
		}
	}
	server.Close()
	if passed, detail := ask(t.Context(), newCheckClient(), server.URL+"/yes", checkAttempt); passed || !strings.Contains(detail, "refused") {
		t.Errorf("nobody listens: %v %q", passed, detail)
	}
}
