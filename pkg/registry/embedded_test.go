package registry_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/registry/harbortest"
	"github.com/fanout-io/fanout/pkg/registry/registrytest"
)

// hookServer gives the events that come to it; the first answers are failures.
func hookServer(t *testing.T, parse func([]byte) ([]registry.Event, error), auth string, failures int) (string, <-chan registry.Event) {
	t.Helper()
	events := make(chan registry.Event, 100)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header.Get("Authorization"); got != auth {
			t.Errorf("Authorization %q, want %q", got, auth)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if failures > 0 {
			failures--
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		got, err := parse(body)
		if err != nil {
			t.Error(err)
		}
		for _, e := range got {
			events <- e
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL, events
}

func next(t *testing.T, events <-chan registry.Event) registry.Event {
	t.Helper()
	select {
	case e := <-events:
		return e
	case <-time.After(10 * time.Second):
		t.Fatal("no event")
		panic("unreachable")
	}
}

var ignoreTime = cmpopts.IgnoreFields(registry.Event{}, "Time")

func TestEmbedded_Notifies(t *testing.T) {
	url, events := hookServer(t, registry.ParseDistribution, "hook-secret", 1)
	e := embedded(t, registry.EmbeddedConfig{HookURL: url, HookSecret: "hook-secret"})
	c := client(t, registry.Config{URL: e.URL(), UserAgent: "fanout (gd-a)"})
	img := registrytest.NewImage(1, []byte("layer"))
	registrytest.Push(t, c, repo, "v1", img)
	digest := img.Manifest.Digest
	check := func(want registry.Event) {
		t.Helper()
		got := next(t, events)
		if diff := cmp.Diff(want, got, ignoreTime); diff != "" {
			t.Fatalf("event (-want +got):\n%s", diff)
		}
		if time.Since(got.Time).Abs() > time.Minute {
			t.Errorf("time %s", got.Time)
		}
	}
	want := registry.Event{Action: registry.ActionPush, Repository: repo, Tag: "v1", Digest: digest, UserAgent: "fanout (gd-a)"}
	check(want)
	must(t, c.PutManifest(t.Context(), repo, digest, img.Manifest))
	want.Tag = ""
	check(want)
	must(t, c.DeleteTag(t.Context(), repo, "v1"))
	check(registry.Event{Action: registry.ActionDelete, Repository: repo, Tag: "v1", UserAgent: "fanout (gd-a)"})
}

func TestEmbedded_NotifiesAFunction(t *testing.T) {
	events := make(chan registry.Event, 4)
	e := embedded(t, registry.EmbeddedConfig{Notify: func(_ context.Context, body []byte) error {
		got, err := registry.ParseDistribution(body)
		for _, ev := range got {
			events <- ev
		}
		return err
	}})
	img := registrytest.NewImage(1, []byte("layer"))
	registrytest.Push(t, client(t, registry.Config{URL: e.URL()}), repo, "v1", img)
	if got := next(t, events); got.Repository != repo || got.Tag != "v1" || got.Action != registry.ActionPush {
		t.Errorf("got %+v", got)
	}
}

func TestEmbedded_KeepsWhatItHas(t *testing.T) {
	dir := t.TempDir()
	img := registrytest.NewImage(1, registrytest.Bytes(1, 5000))
	run := func(f func(*registry.Client)) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		e, err := registry.NewEmbedded(registry.EmbeddedConfig{Dir: dir, Listener: ln})
		must(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- e.Run(ctx) }()
		c := client(t, registry.Config{URL: e.URL()})
		f(c)
		c.CloseIdle()
		cancel()
		must(t, <-done)
		if conn, err := net.Dial("tcp", e.Addr().String()); err == nil {
			conn.Close()
			t.Fatal("it still listens")
		}
	}
	secretFile := filepath.Join(dir, "http-secret")
	var secrets []string
	run(func(c *registry.Client) {
		registrytest.Push(t, c, repo, "v1", img)
		b, err := os.ReadFile(secretFile)
		must(t, err)
		secrets = append(secrets, string(b))
	})
	run(func(c *registry.Client) {
		m, err := c.Manifest(t.Context(), repo, "v1")
		must(t, err)
		if m.Digest != img.Manifest.Digest {
			t.Fatal("other content")
		}
		b, err := os.ReadFile(secretFile)
		must(t, err)
		secrets = append(secrets, string(b))
	})
	if secrets[0] != secrets[1] || len(secrets[0]) < 32 {
		t.Fatal("the secret did not stay")
	}
	info, err := os.Stat(secretFile)
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Fatalf("the secret has mode %s", info.Mode())
	}
}

// A fabric of many sites in one process has as many registries; they hold apart.
func TestEmbedded_Several(t *testing.T) {
	a, b := embedded(t, registry.EmbeddedConfig{}), embedded(t, registry.EmbeddedConfig{})
	ca, cb := client(t, registry.Config{URL: a.URL()}), client(t, registry.Config{URL: b.URL()})
	registrytest.Push(t, ca, repo, "v1", registrytest.NewImage(1))
	_, err := cb.Resolve(t.Context(), repo, "v1")
	wantIs(t, err, registry.ErrNotFound)
}

func TestEmbedded_Refuses(t *testing.T) {
	_, err := registry.NewEmbedded(registry.EmbeddedConfig{Listen: "127.0.0.1:0"})
	wantIs(t, err, registry.ErrInvalid)
	_, err = registry.NewEmbedded(registry.EmbeddedConfig{Dir: t.TempDir(), Listen: "256.0.0.1:x"})
	if err == nil {
		t.Fatal("an impossible address was taken")
	}
	e, err := registry.NewEmbedded(registry.EmbeddedConfig{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	must(t, err)
	must(t, e.Close())
	if err := e.Run(t.Context()); err == nil {
		t.Fatal("it runs without a listener")
	}
}

func TestFakeHarbor_Webhooks(t *testing.T) {
	for _, cloud := range []bool{false, true} {
		url, events := hookServer(t, registry.ParseHarbor, "Secret x", 0)
		h, c := harbor(t, harbortest.Config{HookURL: url, HookAuth: "Secret x", CloudEvents: cloud, Knobs: harbortest.Knobs{DeleteRight: true}})
		img := registrytest.NewImage(1)
		digest := img.Manifest.Digest
		registrytest.Push(t, c, repo, "", img)
		must(t, c.PutManifest(t.Context(), repo, "v1", img.Manifest))
		must(t, c.PutManifest(t.Context(), repo, "v2", img.Manifest))
		_, err := c.Manifest(t.Context(), repo, "v1")
		must(t, err)
		// Of this there is no word.
		must(t, c.DeleteTag(t.Context(), repo, "v2"))
		must(t, c.PutManifest(t.Context(), repo, "v3", img.Manifest))
		req, err := http.NewRequest(http.MethodDelete, "http://x/v2/"+repo+"/manifests/"+digest, http.NoBody)
		must(t, err)
		req.SetBasicAuth(h.Username(), h.Password())
		h.ServeHTTP(httptest.NewRecorder(), req)
		for _, want := range []registry.Event{
			{Action: registry.ActionPush, Repository: repo, Digest: digest},
			{Action: registry.ActionPush, Repository: repo, Tag: "v1", Digest: digest},
			{Action: registry.ActionPush, Repository: repo, Tag: "v2", Digest: digest},
			{Action: registry.ActionPush, Repository: repo, Tag: "v3", Digest: digest},
			{Action: registry.ActionDelete, Repository: repo, Tag: "v3", Digest: digest},
		} {
			want.Actor = "admin"
			if diff := cmp.Diff(want, next(t, events), ignoreTime); diff != "" {
				t.Fatalf("event (-want +got):\n%s", diff)
			}
		}
	}
}
