package registry_test

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/registry/harbortest"
	"github.com/fanout-io/fanout/pkg/registry/registrytest"
)

func impatient(cfg *registry.Config) {
	cfg.HeaderTimeout, cfg.StallTimeout, cfg.CommitTimeout = 100*time.Millisecond, 100*time.Millisecond, 100*time.Millisecond
}

func TestHangs(t *testing.T) {
	h, c := harbor(t, harbortest.Config{}, impatient)
	img := registrytest.NewImage(1, []byte("layer"))
	registrytest.Push(t, c, repo, "v1", img)
	remove := h.AddFault(harbortest.Fault{Hang: true})
	for name, f := range map[string]func() error{
		"Ping":     func() error { return c.Ping(t.Context()) },
		"Resolve":  func() error { _, err := c.Resolve(t.Context(), repo, "v1"); return err },
		"StatBlob": func() error { _, err := c.StatBlob(t.Context(), repo, registry.DigestOf([]byte("layer"))); return err },
		"PushBlob": func() error {
			_, err := c.PushBlob(t.Context(), repo, registry.DigestOf([]byte("z")), registrytest.Whole([]byte("z")))
			return err
		},
		"Put":       func() error { return c.PutManifest(t.Context(), repo, "v2", img.Manifest) },
		"Referrers": func() error { _, err := c.Referrers(t.Context(), repo, img.Manifest.Digest); return err },
		"Ensure":    func() error { return c.EnsureRepository(t.Context(), "other/x") },
	} {
		err := f()
		wantIs(t, err, registry.ErrUnavailable)
		wantWords(t, err, "hangs")
		if t.Failed() {
			t.Fatal(name)
		}
	}
	remove()
	must(t, c.Ping(t.Context()))
}

// A body that stands still is given up; one that is read slowly is not.
func TestStalls(t *testing.T) {
	release := make(chan struct{})
	content := registrytest.Bytes(1, 1<<20)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		if r.URL.Path == "/v2/" {
			w.Header().Set("Content-Length", "0")
			return
		}
		if strings.Contains(r.URL.Path, "/stalling/") {
			_, _ = w.Write(content[:1000])
			w.(http.Flusher).Flush()
			<-release
			return
		}
		_, _ = w.Write(content)
	}))
	defer srv.Close()
	defer close(release)
	cfg := registry.Config{URL: srv.URL}
	impatient(&cfg)
	c := client(t, cfg)
	r, err := c.OpenBlob(t.Context(), "app/stalling/x", registry.DigestOf(content), 0, -1)
	must(t, err)
	_, err = io.ReadAll(r)
	r.Close()
	wantIs(t, err, registry.ErrUnavailable)
	wantWords(t, err, "hangs")

	r, err = c.OpenBlob(t.Context(), "app/well/x", registry.DigestOf(content), 0, -1)
	must(t, err)
	defer r.Close()
	buf := make([]byte, 256<<10)
	for range 3 {
		n, err := io.ReadFull(r, buf)
		must(t, err)
		if n != len(buf) {
			t.Fatal("short")
		}
		// The reader is slower than the stall time.
		<-time.After(150 * time.Millisecond)
	}
	if _, err = io.ReadAll(r); err != nil {
		t.Fatal(err)
	}
}

func TestUnreachable(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	srv.Close()
	c := client(t, registry.Config{URL: srv.URL})
	_, err := c.Resolve(t.Context(), repo, "v1")
	wantIs(t, err, registry.ErrUnavailable)
	wantWords(t, err, "connection refused")
}

func TestShortBreakIsTriedAgain(t *testing.T) {
	h, c := harbor(t, harbortest.Config{})
	registrytest.Push(t, c, repo, "v1", registrytest.NewImage(1))
	h.AddFault(harbortest.Fault{Match: harbortest.On(http.MethodHead, "/manifests/"), CutAnswer: true, Times: 2})
	_, err := c.Resolve(t.Context(), repo, "v1")
	must(t, err)
}

func TestRubbish(t *testing.T) {
	img := registrytest.NewImage(1)
	big := `{"manifests":[],"x":"` + strings.Repeat("x", 9<<20) + `"}`
	for name, tc := range map[string]struct {
		fault harbortest.Fault
		want  error
		words []string
	}{
		"LoginPage":     {harbortest.Fault{Status: 200, ContentType: "text/html; charset=utf-8", Body: "<html>login</html>"}, registry.ErrInvalid, []string{"web page", "url"}},
		"OtherContent":  {harbortest.Fault{Status: 200, ContentType: registry.MediaTypeOCIManifest, Body: "{}"}, registry.ErrDigest, []string{"has digest"}},
		"NotJSON":       {harbortest.Fault{Status: 200, ContentType: "application/json", Body: "{"}, nil, []string{""}},
		"TooLarge":      {harbortest.Fault{Status: 200, ContentType: "application/json", Body: big}, registry.ErrInvalid, []string{"exceeds"}},
		"RedirectLoop":  {harbortest.Fault{Status: 307, Location: "?again", Body: "x"}, registry.ErrInvalid, []string{"redirects"}},
		"RedirectJunk":  {harbortest.Fault{Status: 307, Location: "::", Body: "x"}, registry.ErrInvalid, []string{"redirect"}},
		"RedirectLocal": {harbortest.Fault{Status: 302, Location: "http://169.254.169.254/latest", Body: "x"}, registry.ErrInvalid, []string{"not followed"}},
		"RedirectFile":  {harbortest.Fault{Status: 302, Location: "file:///etc/passwd", Body: "x"}, registry.ErrInvalid, []string{"redirect"}},
		"PlainText":     {harbortest.Fault{Status: 502, ContentType: "text/plain", Body: "bad\x00\x1b[31mgateway"}, registry.ErrUnavailable, []string{"502", "bad", "gateway"}},
		"Page":          {harbortest.Fault{Status: 503, ContentType: "text/html", Body: "<html>"}, registry.ErrUnavailable, []string{"503", "web page"}},
		"Teapot":        {harbortest.Fault{Status: 418, Code: "TEA", Message: strings.Repeat("pot", 1000)}, nil, []string{"418", "TEA: pot", "…"}},
	} {
		t.Run(name, func(t *testing.T) {
			h, c := harbor(t, harbortest.Config{})
			registrytest.Push(t, c, repo, "v1", img)
			tc.fault.Match = harbortest.On(http.MethodGet, "/v2/app")
			h.AddFault(tc.fault)
			check := func(err error, digest bool) {
				t.Helper()
				if err == nil {
					t.Fatal("no error")
				}
				if tc.want != nil && (digest || tc.want != registry.ErrDigest) {
					wantIs(t, err, tc.want)
					wantWords(t, err, tc.words...)
				}
				if strings.ContainsAny(err.Error(), "\x00\x1b") || len(err.Error()) > 2000 {
					t.Fatalf("error is not fit to be shown: %q", err)
				}
			}
			_, err := c.Manifest(t.Context(), repo, img.Manifest.Digest)
			check(err, true)
			if tc.want != registry.ErrDigest {
				_, err = c.Manifest(t.Context(), repo, "v1")
				check(err, false)
				_, err = c.Referrers(t.Context(), repo, img.Manifest.Digest)
				check(err, false)
				for _, err := range c.Tags(t.Context(), repo) {
					check(err, false)
				}
			}
		})
	}
}

func TestPagesInACircle(t *testing.T) {
	n := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/list") {
			n++
			w.Header().Set("Link", fmt.Sprintf(`</v2/x/tags/list?last=%c>; rel="next"`, "ab"[n%2]))
			_, _ = io.WriteString(w, `{"tags":["good","-bad","Also Bad"]}`)
		}
	}))
	defer srv.Close()
	c := client(t, registry.Config{URL: srv.URL})
	var last error
	for tag, err := range c.Tags(t.Context(), "x") {
		if last = err; err == nil && tag != "good" {
			t.Errorf("tag %q", tag)
		}
	}
	wantIs(t, last, registry.ErrInvalid)
	wantWords(t, last, "circle")
}

// Object storage gets no credentials.
func TestRedirectedBlob(t *testing.T) {
	content := registrytest.Bytes(1, 5000)
	storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("credentials went to the object storage")
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	defer storage.Close()
	for _, basic := range []bool{false, true} {
		_, c := harbor(t, harbortest.Config{Knobs: harbortest.Knobs{RedirectBlobs: storage.URL + "/bucket/", BasicChallenge: basic}})
		d := pushBlob(t, c, repo, content)
		r, err := c.OpenBlob(t.Context(), repo, d, 10, 100)
		must(t, err)
		got, err := io.ReadAll(r)
		r.Close()
		must(t, err)
		if !bytes.Equal(got, content[10:110]) {
			t.Fatal("other bytes")
		}
	}
}

// A challenge of the object storage is not taken up.
func TestRedirectedBlob_Challenge(t *testing.T) {
	requests := 0
	storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests++
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="x"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer storage.Close()
	_, c := harbor(t, harbortest.Config{Knobs: harbortest.Knobs{RedirectBlobs: storage.URL + "/bucket/"}})
	_, err := c.OpenBlob(t.Context(), repo, pushBlob(t, c, repo, []byte("x")), 0, -1)
	wantIs(t, err, registry.ErrUnauthorized)
	if requests != 1 {
		t.Fatalf("%d requests to the object storage", requests)
	}
}

// A token service on an inner address, named by the registry, gets no credentials.
func TestTokenServiceElsewhere(t *testing.T) {
	asked := false
	inner := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	defer inner.Close()
	h, c := harbor(t, harbortest.Config{})
	h.AddFault(harbortest.Fault{Match: func(r *http.Request) bool { return r.URL.Path == "/v2/" }, Status: 401,
		Challenge: `Bearer realm="` + inner.URL + `/token",service="x"`})
	_, err := c.Resolve(t.Context(), repo, "v1")
	if err == nil || asked {
		t.Fatalf("asked %v, error %v", asked, err)
	}
	wantWords(t, err, "realm")
}

func TestRedirectedRegistry(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://"+r.Host+r.URL.Path, http.StatusPermanentRedirect)
	}))
	defer srv.Close()
	c := client(t, registry.Config{URL: srv.URL})
	_, err := c.Resolve(t.Context(), repo, "v1")
	wantIs(t, err, registry.ErrInvalid)
	wantWords(t, err, "redirects", "https://", "set the registry's url")
}

func TestTLS(t *testing.T) {
	h := harbortest.New(harbortest.Config{})
	defer h.Close()
	srv := httptest.NewTLSServer(h)
	srv.Config.ErrorLog = nil
	defer srv.Close()
	cfg := registry.Config{URL: srv.URL, Type: registry.TypeHarbor, Username: h.Username(), Password: secret(h.Password())}
	err := client(t, cfg).Ping(t.Context())
	wantIs(t, err, registry.ErrUnavailable)
	wantWords(t, err, "certificate")
	cfg.InsecureSkipVerify = true
	must(t, client(t, cfg).Ping(t.Context()))
	cfg.InsecureSkipVerify = false
	cfg.CAFile = filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(cfg.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600))
	must(t, client(t, cfg).Ping(t.Context()))
}

func TestNew_RefusesWords(t *testing.T) {
	for name, cfg := range map[string]registry.Config{
		"scheme": {URL: "harbor.example.com"}, "ftp": {URL: "ftp://x"}, "path": {URL: "https://x/harbor"}, "user": {URL: "https://a:b@x"},
		"type": {URL: "https://x", Type: "zot"}, "chunk": {URL: "https://x", ChunkBytes: -1}, "empty": {}, "host": {URL: "https://"},
	} {
		if _, err := registry.New(cfg); err == nil {
			t.Errorf("%s was taken", name)
		} else {
			wantIs(t, err, registry.ErrInvalid)
		}
	}
	_, err := registry.New(registry.Config{URL: "https://x", CAFile: "/nowhere"})
	wantIs(t, err, os.ErrNotExist)
}

func TestPasswordFileGone(t *testing.T) {
	_, c := harbor(t, harbortest.Config{}, func(cfg *registry.Config) {
		cfg.Password = func() (string, error) { return "", os.ErrNotExist }
	})
	err := c.Ping(t.Context())
	wantIs(t, err, registry.ErrUnauthorized, os.ErrNotExist)
	wantNot(t, err, registry.ErrUnavailable)
}
