package integration

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// promotion follows a rollout from outside: the registries by polling, the rest by asking whichever member of headquarters answers.
type promotion struct {
	t     *testing.T
	hq    []*site
	id    string
	mu    sync.Mutex
	first map[string]time.Time // by site: when it first showed the release
}

// watch polls the registries of sites until the test ends.
func (p *promotion) watch(ref, digest string, sites map[string]*site) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for name, s := range sites {
		r := reference(p.t, s, ref)
		wg.Go(func() {
			for ctx.Err() == nil {
				if d, err := remote.Head(r, remote.WithContext(ctx)); err == nil && d.Digest.String() == digest {
					p.mu.Lock()
					if p.first[name].IsZero() {
						p.first[name] = time.Now()
					}
					p.mu.Unlock()
				}
				select {
				case <-ctx.Done():
				case <-time.After(50 * time.Millisecond):
				}
			}
		})
	}
	p.t.Cleanup(func() { cancel(); wg.Wait() })
}

func (p *promotion) released() map[string]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[string]bool{}
	for name := range p.first {
		out[name] = true
	}
	return out
}

// ask puts a question to one member after the other until one answers.
func (p *promotion) ask(what string, question func(context.Context, adminv1.AdminServiceClient) error) {
	p.t.Helper()
	within(p.t, 90*time.Second, what, func() error {
		var all error
		for _, s := range p.hq {
			ctx, cancel := context.WithTimeout(p.t.Context(), 10*time.Second)
			err := question(ctx, s.admin())
			cancel()
			if err == nil {
				return nil
			}
			all = errors.Join(all, err)
		}
		return all
	})
}

// in waits until the rollout is in a phase, with so many waves over.
func (p *promotion) in(phase string, wave uint32) (got *catalogv1.Rollout) {
	p.t.Helper()
	p.ask(fmt.Sprintf("wave %d: %s", wave, phase), func(ctx context.Context, c adminv1.AdminServiceClient) error {
		r, _ := rollout(ctx, c, p.id)
		if r.GetPhase() != phase || r.GetWave() != wave {
			return fmt.Errorf("it is %s in wave %d: %s %v", r.GetPhase(), r.GetWave(), r.GetReason(), r.GetGroups())
		}
		got = r
		return nil
	})
	return got
}

// killRoot kills headquarters' root and starts it again.
func (p *promotion) killRoot() {
	p.t.Helper()
	var root string
	p.ask("a root", func(ctx context.Context, c adminv1.AdminServiceClient) error {
		stream, err := c.Tree(ctx, &adminv1.TreeRequest{Group: "hq"})
		if err != nil {
			return err
		}
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		for _, g := range m.GetGroups() {
			if g.GetGroup() == "hq" && g.GetRoot() != "" {
				root = g.GetRoot()
				return nil
			}
		}
		return errors.New("none is told")
	})
	for _, s := range p.hq {
		if s.name == root {
			s.kill()
			s.start()
		}
	}
}

// TestPromote_ThreeWaves: content everywhere first; then the tag moves wave by wave, with a soak and an approval in between, and headquarters' root is killed in each phase.
func TestPromote_ThreeWaves(t *testing.T) {
	t.Parallel()
	told := receiver(t)
	sites := start(t,
		spec{name: "hq-a", group: "hq", extra: told.extra}, spec{name: "hq-b", group: "hq", extra: told.extra}, spec{name: "hq-c", group: "hq", extra: told.extra},
		spec{name: "gd-a", group: "hq/gd"}, spec{name: "hn-a", group: "hq/hn"},
		spec{name: "sz-a", group: "hq/gd/sz"}, spec{name: "cs-a", group: "hq/hn/cs"},
	)
	p := &promotion{t: t, hq: []*site{sites["hq-a"], sites["hq-b"], sites["hq-c"]}, first: map[string]time.Time{}}
	old := push(t, sites["hq-a"], "prod/web:stable", image(t, 1<<18, 2))
	for _, s := range sites {
		shows(t, s, "prod/web:stable", old)
	}
	p.ask("policies", func(ctx context.Context, c adminv1.AdminServiceClient) error {
		_, err := c.SetPolicies(ctx, &adminv1.SetPoliciesRequest{Policies: []*catalogv1.Policy{{Name: "releases", Repositories: []string{"prod/**"}, Delivery: "staged"}}})
		return err
	})
	release := push(t, sites["hq-a"], "prod/web:stable", image(t, 1<<18, 2))
	for _, s := range p.hq {
		shows(t, s, "prod/web:stable", release)
	}
	below := map[string]*site{}
	for _, name := range []string{"gd-a", "hn-a", "sz-a", "cs-a"} {
		below[name] = sites[name]
	}
	p.watch("prod/web:stable", release, below)

	plan := []byte(`apiVersion: fanout/v1
kind: Plan
metadata: {name: three}
spec:
  defaults: {maxConcurrent: 100%, onOffline: wait}
  waves:
  - {name: canary, groups: [hq/gd/sz], soak: 8s}
  - {name: provinces, groups: [hq/gd, hq/hn], gates: {after: [{approval: {}}]}}
  - {name: rest, groups: ["**"]}
`)
	p.ask("the start", func(ctx context.Context, c adminv1.AdminServiceClient) error {
		got, err := c.StartRollout(ctx, &adminv1.StartRolloutRequest{Refs: []string{"prod/web:stable"}, Plan: plan, PlanName: "three.yaml"})
		p.id = got.GetRollout().GetId()
		return err
	})
	p.killRoot() // while it stages, or the first wave runs
	p.in("soaking", 0)
	p.killRoot()
	p.only("sz-a")
	p.in("awaiting-approval", 1)
	p.only("sz-a", "gd-a", "hn-a")
	p.killRoot()
	p.in("awaiting-approval", 1)
	p.ask("the approval", func(ctx context.Context, c adminv1.AdminServiceClient) error {
		_, err := c.SteerRollout(ctx, &adminv1.SteerRolloutRequest{Id: p.id, Verb: "approve", Reason: "looks well"})
		if err != nil && strings.Contains(err.Error(), "waits for no approval") {
			return nil // an earlier question did it
		}
		return err
	})
	p.killRoot()
	r := p.in("succeeded", 3)
	for _, s := range sites {
		shows(t, s, "prod/web:stable", release)
	}
	for _, g := range r.GetGroups() {
		opened := r.GetWaves()[g.GetWave()].GetOpened().AsTime()
		for name, s := range below {
			p.mu.Lock()
			at := p.first[name]
			p.mu.Unlock()
			if s.group == g.GetGroup() && at.Before(opened) {
				t.Errorf("%s showed the release %v before its wave opened", name, opened.Sub(at))
			}
		}
	}
	within(t, time.Minute, "every step is told", func() error {
		told.mu.Lock()
		defer told.mu.Unlock()
		for _, s := range r.GetSteps() {
			if told.steps[s.GetAt().AsTime().UTC().Format(time.RFC3339Nano)+" "+s.GetText()] == "" {
				return fmt.Errorf("not %q", s.GetText())
			}
		}
		return nil
	})
	var receipt []*adminv1.RolloutSite
	p.ask("the receipt", func(ctx context.Context, c adminv1.AdminServiceClient) error {
		if _, receipt = rollout(ctx, c, p.id); len(receipt) != len(sites) {
			return fmt.Errorf("%d sites", len(receipt))
		}
		for _, s := range receipt {
			if ref := s.GetRefs()[0]; ref.GetState() != "delivered" || ref.GetDigest() != release {
				return fmt.Errorf("%s: %v", s.GetSite(), ref)
			}
		}
		return nil
	})
	approved := false
	for _, s := range r.GetSteps() {
		approved = approved || s.GetActor() == "local" && strings.HasPrefix(s.GetText(), "approve")
	}
	if !approved {
		t.Errorf("nobody is said to have approved: %v", r.GetSteps())
	}
}

// hooks is an address that is told of rollouts. It refuses every third event at first.
type hooks struct {
	extra string // what agents are configured with

	mu    sync.Mutex
	n     int
	steps map[string]string // IDs by time and text
}

func receiver(t *testing.T) *hooks {
	const secret = "not told to anybody"
	h := &hooks{steps: map[string]string{}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		mac := hmac.New(sha256.New, []byte(secret))
		mac.Write(body)
		if got := r.Header.Get("Fanout-Signature"); err != nil || got != "sha256="+hex.EncodeToString(mac.Sum(nil)) {
			t.Errorf("signature %q of %s: %v", got, body, err)
		}
		var e struct {
			ID, Subject, Type, Time string
			Data                    struct{ Rollout, Text, Phase string }
		}
		if err := json.Unmarshal(body, &e); err != nil || e.Subject == "" || e.Subject != e.Data.Rollout || !strings.HasPrefix(e.Type, "io.fanout.rollout.") {
			t.Errorf("%s: %v", body, err)
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.n++; h.n%3 == 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		step := e.Time + " " + e.Data.Text
		if was := h.steps[step]; was != "" && was != e.ID {
			t.Errorf("%s is told as %s and as %s", step, was, e.ID)
		}
		h.steps[step] = e.ID
	}))
	t.Cleanup(server.Close)
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.extra = fmt.Sprintf("notify: [{url: %q, secretFile: %q}]\n", server.URL, file)
	return h
}

// only fails the test when other sites than these have shown the release.
func (p *promotion) only(names ...string) {
	p.t.Helper()
	released := p.released()
	for _, n := range names {
		delete(released, n)
	}
	if len(released) > 0 {
		p.t.Fatalf("the release is shown at %v too", released)
	}
}
