package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/fanout-io/fanout/pkg/registry/harbortest"
)

// fakeRegistry is a harbortest registry on loopback and the configuration of an agent beside it.
type fakeRegistry struct {
	*harbortest.Harbor
	t            testing.TB
	addr         string
	passwordFile string
	extra        string
}

func serveFake(t testing.TB, kind string, cfg harbortest.Config) *fakeRegistry {
	t.Helper()
	f := &fakeRegistry{Harbor: harbortest.New(cfg), t: t, passwordFile: filepath.Join(t.TempDir(), "password")}
	f.savePassword()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: f.Harbor}
	done := make(chan struct{})
	go func() { _ = srv.Serve(l); close(done) }()
	t.Cleanup(func() {
		f.Close() // ends hanging requests
		_ = srv.Close()
		<-done
	})
	f.addr = l.Addr().String()
	f.extra = fmt.Sprintf("registry: {type: %s, url: \"http://%s\", username: %s, passwordFile: %q}\n", kind, f.addr, f.Username(), f.passwordFile)
	return f
}

func (f *fakeRegistry) savePassword() {
	if err := os.WriteFile(f.passwordFile, []byte(f.Password()+"\n"), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// holds waits until the fake shows an image under a ref, and proves that its manifest and blobs are there, byte for byte.
func (f *fakeRegistry) holds(t testing.TB, ref string, img ggcr.Image) {
	t.Helper()
	repo, tag, _ := strings.Cut(ref, ":")
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, ref+" arrives", func() error {
		if got := f.Tag(repo, tag); got != digest.String() {
			return fmt.Errorf("it shows %q", got)
		}
		return nil
	})
	raw, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := f.Content(repo, digest.String()); !bytes.Equal(got, raw) {
		t.Errorf("%s: the manifest is %q, not %q", ref, got, raw)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range append(m.Layers, m.Config) {
		if got, _ := f.Content(repo, d.Digest.String()); int64(len(got)) != d.Size {
			t.Errorf("%s: blob %s has %d bytes, not %d", ref, d.Digest, len(got), d.Size)
		}
	}
}

// fails waits until where says that a ref failed at a site, with all the words and the time of the next attempt.
func fails(t testing.TB, hq *site, at, ref string, words ...string) {
	t.Helper()
	eventually(t, ref+" is said to fail at "+at, func() error {
		out, code := hq.ctl("where", ref, "-o", "json")
		if code != 0 {
			return fmt.Errorf("where: exit code %d", code)
		}
		var w struct {
			Sites []struct {
				Site, State, Reason string
				NextAttempt         time.Time
				Attempts            int
			}
		}
		if err := json.Unmarshal(out, &w); err != nil {
			return err
		}
		for _, s := range w.Sites {
			if s.Site != at {
				continue
			}
			waits := s.State == "failed" && !s.NextAttempt.IsZero()
			again := s.State == "delivering" && s.NextAttempt.IsZero() // half a minute, where the registry hangs, after a wait of a part of a second
			if !waits && !again || s.Attempts == 0 {
				return fmt.Errorf("%+v", s)
			}
			return says(s.Reason, words...)
		}
		return fmt.Errorf("no such site: %s", out)
	})
}

func says(text string, words ...string) error {
	for _, w := range words {
		if !strings.Contains(text, w) {
			return fmt.Errorf("%q does not say %q", text, w)
		}
	}
	return nil
}

// treeSays waits until the tree shows a site in a state, for a reason with all the words.
func treeSays(t testing.TB, hq *site, at, state string, words ...string) {
	t.Helper()
	eventually(t, "tree says "+state+" of "+at, func() error {
		out, code := hq.ctl("tree", "-o", "json")
		if code != 0 {
			return fmt.Errorf("tree: exit code %d", code)
		}
		var tree struct {
			Groups []struct {
				Members []struct{ Site, State, Reason string }
			}
		}
		if err := json.Unmarshal(out, &tree); err != nil {
			return err
		}
		for _, g := range tree.Groups {
			for _, m := range g.Members {
				if m.Site != at {
					continue
				}
				if m.State != state {
					return fmt.Errorf("%+v", m)
				}
				return says(m.Reason, words...)
			}
		}
		return fmt.Errorf("no such site: %s", out)
	})
}

// writes matches the requests of an upload that carry bytes.
func writes(path string) func(*http.Request) bool {
	return func(r *http.Request) bool {
		return (r.Method == http.MethodPatch || r.Method == http.MethodPut) && strings.Contains(r.URL.Path, path+"blobs/uploads/")
	}
}

func TestFaultsOfARegistry(t *testing.T) {
	t.Parallel()
	fake := serveFake(t, "oci", harbortest.Config{Knobs: harbortest.Knobs{Plain: true}})
	sites := start(t, spec{name: "hq-a", group: "hq"}, spec{name: "gd-a", group: "hq/gd", extra: fake.extra})
	hq := sites["hq-a"]
	on := harbortest.On
	for _, c := range []struct {
		name  string
		match func(path string) func(*http.Request) bool
		fault harbortest.Fault
		words []string
	}{
		{"unauthorized", func(p string) func(*http.Request) bool { return on("POST", p) },
			harbortest.Fault{Status: 401, Code: "UNAUTHORIZED", Message: "no push for this robot"}, []string{"401", "UNAUTHORIZED", "no push for this robot"}},
		{"denied", func(p string) func(*http.Request) bool { return on("", p) },
			harbortest.Fault{Status: 403, Code: "DENIED", Message: "the policy forbids it"}, []string{"403", "DENIED", "the policy forbids it"}},
		{"missing", func(p string) func(*http.Request) bool { return on("", p) },
			harbortest.Fault{Status: 404, Code: "NAME_UNKNOWN", Message: "no such place"}, []string{"404", "NAME_UNKNOWN", "no such place"}},
		{"large", writes,
			harbortest.Fault{Status: 413, ContentType: "text/html", Body: "<html><title>413 Request Entity Too Large</title></html>"}, []string{"413", "Request Entity Too Large"}},
		{"busy", func(p string) func(*http.Request) bool { return on("POST", p) },
			harbortest.Fault{Status: 429, Code: "TOOMANYREQUESTS", Message: "slow down", RetryAfter: "3"}, []string{"429", "TOOMANYREQUESTS", "slow down", "retry after 3s"}},
		{"broken", func(p string) func(*http.Request) bool { return on("PUT", p+"manifests/") },
			harbortest.Fault{Status: 500, Code: "UNKNOWN", Message: "the database is down"}, []string{"500", "UNKNOWN", "the database is down"}},
		{"down", func(p string) func(*http.Request) bool { return on("", p) },
			harbortest.Fault{Status: 500, Code: "UNKNOWN", Message: "nothing works"}, []string{"500", "UNKNOWN", "nothing works"}},
		{"hanging", func(p string) func(*http.Request) bool { return on("", p) },
			harbortest.Fault{Hang: true}, []string{"the registry hangs"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			fault := c.fault
			fault.Match = c.match("/v2/" + c.name + "/app/")
			remove := sync.OnceFunc(fake.AddFault(fault))
			defer remove()
			img := image(t, 64<<10, 2)
			push(t, hq, c.name+"/app:1", img)
			if fault.Hang {
				for i := range 40 { // more than there are workers
					push(t, hq, fmt.Sprintf("%s/app:more-%d", c.name, i), img)
				}
			}
			other := image(t, 16<<10, 1)
			begin := time.Now()
			push(t, hq, c.name+"/other:1", other)
			fake.holds(t, c.name+"/other:1", other)
			if took := time.Since(begin); took > 20*time.Second {
				t.Errorf("another repository's image was held up for %s", took)
			}
			fails(t, hq, "gd-a", c.name+"/app:1", c.words...)
			treeSays(t, hq, "gd-a", "degraded", "/app:1: ", "next attempt")
			remove()
			fake.holds(t, c.name+"/app:1", img)
		})
	}
	t.Cleanup(func() {
		if !t.Failed() {
			treeSays(t, hq, "gd-a", "synced")
		}
	})
}

func TestHarborInAProvince(t *testing.T) {
	t.Parallel()
	fake := serveFake(t, "harbor", harbortest.Config{})
	sites := start(t, spec{name: "hq-a", group: "hq"}, spec{name: "gd-a", group: "hq/gd", extra: fake.extra})
	hq := sites["hq-a"]

	img := image(t, 256<<10, 3)
	push(t, hq, "fresh/team/app:1", img)
	fake.holds(t, "fresh/team/app:1", img)
	if !fake.HasProject("fresh") {
		t.Error("there is no project fresh")
	}

	fake.SetProject("fresh", harbortest.Project{Immutable: []string{"fresh/team/app:*"}})
	next := image(t, 64<<10, 1)
	push(t, hq, "fresh/team/app:1", next)
	fails(t, hq, "gd-a", "fresh/team/app:1", "412", "PRECONDITION", "configured as immutable")
	treeSays(t, hq, "gd-a", "degraded", "fresh/team/app:1: ", "412", "PRECONDITION", "next attempt")
	push(t, hq, "fresh/team/app:2", next)
	fake.holds(t, "fresh/team/app:2", next)
	fake.SetProject("fresh", harbortest.Project{})
	fake.holds(t, "fresh/team/app:1", next)

	fake.SetProject("small", harbortest.Project{Quota: 64 << 10})
	large := image(t, 256<<10, 2)
	push(t, hq, "small/app:1", large)
	fails(t, hq, "gd-a", "small/app:1", "403", "DENIED", "exceed the configured upper limit")
	treeSays(t, hq, "gd-a", "degraded", "small/app:1: ", "403", "DENIED", "next attempt")
	fake.SetProject("small", harbortest.Project{})
	fake.holds(t, "small/app:1", large)

	// The robot's secret is renewed in Harbor first and in the agent's file after that.
	fake.SetPassword("renewed")
	treeSays(t, hq, "gd-a", "degraded", "registry: ", "401", "asked again every second")
	push(t, hq, "fresh/team/app:3", img)
	fails(t, hq, "gd-a", "fresh/team/app:3", "401")
	fake.savePassword()
	fake.holds(t, "fresh/team/app:3", img)
	treeSays(t, hq, "gd-a", "synced")
	if v := fake.Violations(); len(v) > 0 {
		t.Errorf("not for Harbor: %q", v)
	}
	if n := fake.Pulls(); n > 0 {
		t.Errorf("own reads were counted as %d pulls", n)
	}
}

func TestHarborAtHeadquartersPublishesByWebhook(t *testing.T) {
	t.Parallel()
	for _, cloud := range []bool{false, true} {
		t.Run(fmt.Sprintf("cloudevents=%v", cloud), func(t *testing.T) {
			t.Parallel()
			// The agent's address is not known before the fabric is laid out: hooks go through a relay.
			target := &url.URL{Scheme: "http"}
			relay := &http.Server{Handler: &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }}}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			go func() { _ = relay.Serve(l) }()
			t.Cleanup(func() { _ = relay.Close() })
			secret := filepath.Join(t.TempDir(), "secret")
			if err := os.WriteFile(secret, []byte("hush\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			fake := serveFake(t, "harbor", harbortest.Config{HookURL: "http://" + l.Addr().String() + "/hooks/harbor", HookAuth: "hush", CloudEvents: cloud})
			fake.SetProject("team", harbortest.Project{})
			sites := start(t,
				spec{name: "hq-a", group: "hq", extra: fake.extra + fmt.Sprintf("webhook: {secretFile: %q}\n", secret)},
				spec{name: "gd-a", group: "hq/gd"},
			)
			target.Host = sites["hq-a"].http
			img := image(t, 256<<10, 2)
			at := &site{name: "harbor", reg: fake.addr}
			auth := remote.WithAuth(&authn.Basic{Username: fake.Username(), Password: fake.Password()})
			if err := remote.Write(reference(t, at, "team/app:1"), img, auth); err != nil {
				t.Fatal(err)
			}
			digest, err := img.Digest()
			if err != nil {
				t.Fatal(err)
			}
			shows(t, sites["gd-a"], "team/app:1", digest.String())
			if n := fake.Pulls(); n > 0 {
				t.Errorf("own reads were counted as %d pulls", n)
			}
		})
	}
}

func TestSpoolSmallerThanABlob(t *testing.T) {
	t.Parallel()
	sites := start(t, spec{name: "hq-a", group: "hq"}, spec{name: "gd-a", group: "hq/gd", extra: "limits: {spool: 1MiB}\n"})
	hq, gd := sites["hq-a"], sites["gd-a"]
	digest := push(t, hq, "app/big:1", image(t, 3<<20, 1))
	fails(t, hq, "gd-a", "app/big:1", "spool")
	treeSays(t, hq, "gd-a", "degraded", "app/big:1: ", "spool", "next attempt")
	shows(t, gd, "app/small:1", push(t, hq, "app/small:1", image(t, 64<<10, 2)))
	gd.stop()
	gd.extra = "limits: {spool: 1GiB}\n"
	gd.start()
	shows(t, gd, "app/big:1", digest)
	treeSays(t, hq, "gd-a", "synced")
}
