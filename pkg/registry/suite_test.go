package registry_test

import (
	"context"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"go.uber.org/goleak"

	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/registry/harbortest"
	"github.com/fanout-io/fanout/pkg/registry/registrytest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// The distribution registry never ends the broadcaster of its own notifications.
		goleak.IgnoreAnyFunction("github.com/docker/go-events.(*Broadcaster).run"),
	)
}

func client(t testing.TB, cfg registry.Config) *registry.Client {
	t.Helper()
	c, err := registry.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdle)
	return c
}

func secret(s string) func() (string, error) { return func() (string, error) { return s, nil } }

// harbor serves a fake and gives a client of it.
func harbor(t testing.TB, cfg harbortest.Config, change ...func(*registry.Config)) (*harbortest.Harbor, *registry.Client) {
	t.Helper()
	h := harbortest.New(cfg)
	srv := httptest.NewServer(h)
	t.Cleanup(func() {
		h.Close()
		srv.Close()
		if v := h.Violations(); len(v) > 0 {
			t.Errorf("violations: %v", v)
		}
	})
	conf := registry.Config{Type: registry.TypeHarbor, URL: srv.URL, Username: h.Username(), Password: secret(h.Password())}
	if cfg.Knobs.Plain {
		conf.Type = registry.TypeOCI
	}
	for _, f := range change {
		f(&conf)
	}
	return h, client(t, conf)
}

func embedded(t testing.TB, cfg registry.EmbeddedConfig) *registry.Embedded {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	cfg.Listen = "127.0.0.1:0"
	e, err := registry.NewEmbedded(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Error("embedded registry does not stop")
		}
	})
	return e
}

func TestSuite_Embedded(t *testing.T) {
	e := embedded(t, registry.EmbeddedConfig{})
	registrytest.Suite(t, func(t *testing.T) *registry.Client {
		return client(t, registry.Config{URL: e.URL(), ChunkBytes: 5 << 20})
	}, registrytest.Traits{})
}

func TestSuite_GGCR(t *testing.T) {
	srv := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	registrytest.Suite(t, func(t *testing.T) *registry.Client {
		return client(t, registry.Config{URL: srv.URL, ChunkBytes: 5 << 20})
	}, registrytest.Traits{SharedBlobs: true, Unchecked: true})
}

func TestSuite_GGCRReferrers(t *testing.T) {
	srv := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)), ggcr.WithReferrersSupport(true)))
	t.Cleanup(srv.Close)
	registrytest.Suite(t, func(t *testing.T) *registry.Client { return client(t, registry.Config{URL: srv.URL}) },
		registrytest.Traits{SharedBlobs: true, Unchecked: true, NoArtifactType: true})
}

func TestSuite_Harbor(t *testing.T) {
	for name, knobs := range map[string]harbortest.Knobs{
		"Default":     {},
		"Basic":       {BasicChallenge: true},
		"NoCatalog":   {NoCatalog: true},
		"NoReferrers": {NoReferrers: true},
		"OldHeaders":  {NoDigestHeader: true, RelativeLocations: true, IgnoreRange: true, PageSize: 2},
		"NoOpenRange": {NoOpenRange: true, Sessions3: true},
		"Plain":       {Plain: true, NoReferrers: true, PageSize: 3},
		"PlainOpen":   {Plain: true, Open: true},
	} {
		t.Run(name, func(t *testing.T) {
			registrytest.Suite(t, func(t *testing.T) *registry.Client {
				_, c := harbor(t, harbortest.Config{Knobs: knobs}, func(cfg *registry.Config) { cfg.ChunkBytes = 3 << 20 })
				return c
			}, registrytest.Traits{})
		})
	}
}

func TestSuite_PlainNoTagDelete(t *testing.T) {
	registrytest.Suite(t, func(t *testing.T) *registry.Client {
		_, c := harbor(t, harbortest.Config{Knobs: harbortest.Knobs{Plain: true, NoTagDelete: true}})
		return c
	}, registrytest.Traits{NoTagDelete: true})
}

// TestSuite_Real runs against a registry whose address is in the environment.
func TestSuite_Real(t *testing.T) {
	address := os.Getenv("FANOUT_TEST_REGISTRY")
	if address == "" {
		t.Skip("skipped: FANOUT_TEST_REGISTRY (and _TYPE, _USERNAME, _PASSWORD) name no registry")
	}
	registrytest.Suite(t, func(t *testing.T) *registry.Client {
		return client(t, registry.Config{
			URL: address, Type: os.Getenv("FANOUT_TEST_REGISTRY_TYPE"), Username: os.Getenv("FANOUT_TEST_REGISTRY_USERNAME"),
			Password: secret(os.Getenv("FANOUT_TEST_REGISTRY_PASSWORD")),
		})
	}, registrytest.Traits{})
}

// TestHasReferrersAPI: a registry without one says so to one question; one that says something else is taken to have it.
func TestHasReferrersAPI(t *testing.T) {
	digest := registry.DigestOf([]byte("any"))
	want := func(name string, c *registry.Client, want bool) {
		t.Helper()
		if got, err := c.HasReferrersAPI(t.Context(), "app/web", digest); err != nil || got != want {
			t.Errorf("%s: got %v, %v, want %v", name, got, err, want)
		}
	}
	for _, api := range []bool{true, false} { // without, it answers with a code of its own
		srv := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)), ggcr.WithReferrersSupport(api)))
		t.Cleanup(srv.Close)
		want("ggcr", client(t, registry.Config{URL: srv.URL}), true)
	}
	want("embedded", client(t, registry.Config{URL: embedded(t, registry.EmbeddedConfig{}).URL()}), false)
	_, c := harbor(t, harbortest.Config{Knobs: harbortest.Knobs{Plain: true, NoReferrers: true}})
	want("plain", c, false)
}
