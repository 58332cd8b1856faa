package registry_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/registry/registrytest"
)

// answers is a registry that gives the same answer to everything: its second one to what comes after the first request.
type answers struct {
	first, then answer
	asked       int
}

type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a *answers) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		_, _ = io.Copy(io.Discard, req.Body)
		_ = req.Body.Close()
	}
	now := a.then
	if a.asked++; a.asked == 1 {
		now = a.first
	}
	resp := &http.Response{
		StatusCode: now.status, Status: http.StatusText(now.status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: now.header.Clone(), Body: io.NopCloser(bytes.NewReader(now.body)), ContentLength: int64(len(now.body)), Request: req,
	}
	if req.Method == http.MethodHead {
		resp.Body = http.NoBody
	}
	return resp, nil
}

// headers reads lines of "Key: value".
func headers(text string) http.Header {
	h := http.Header{}
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(strings.TrimRight(line, "\r\n"), ":"); ok && k != "" {
			h.Add(k, strings.TrimSpace(v))
		}
	}
	return h
}

// wellSaid fails unless an error is fit for a terminal and a table.
func wellSaid(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if s := err.Error(); strings.ContainsFunc(s, unicode.IsControl) || len(s) > 8<<10 {
		t.Fatalf("an error of %d bytes: %q", len(s), s)
	}
	if d := registry.RetryAfter(err); d < 0 || d > 24*time.Hour {
		t.Fatalf("retry after %s", d)
	}
}

// FuzzAnswers gives whatever a registry may answer, in status, header and body, to every question that the client has. It must end, with an error in words or with what is
// well formed.
func FuzzAnswers(f *testing.F) {
	img := registrytest.NewImage(1, []byte("x"))
	index := registrytest.NewIndex(img.Manifest)
	for op := range uint8(questions) {
		for _, harbor := range []bool{false, true} {
			f.Add(op, harbor, uint16(200), "Content-Type: application/json\nLink: </v2/_catalog?n=1&last=a>; rel=\"next\"", []byte(`{"repositories":["app/web"],"tags":["1"]}`), uint16(200), "", []byte(`[{"name":"app/web"}]`))
			f.Add(op, harbor, uint16(401), `WWW-Authenticate: Bearer realm="https://registry.example/token",service="r",scope="a:b:c"`, []byte(""), uint16(200), "", []byte(`{"token":"t","expires_in":60}`))
			f.Add(op, harbor, uint16(401), `WWW-Authenticate: Basic realm="x"`, []byte(`{"errors":[{"code":"UNAUTHORIZED","message":"no","detail":null}]}`), uint16(202), "Location: /v2/a/blobs/uploads/1?_state=x\nRange: 0-3", []byte(""))
			f.Add(op, harbor, uint16(429), "Retry-After: 3", []byte(`{"errors":[{"code":"TOOMANYREQUESTS"}]}`), uint16(429), "Retry-After: Wed, 21 Oct 2026 07:28:00 GMT", []byte("<html>"))
			f.Add(op, harbor, uint16(200), "Content-Type: "+img.Manifest.MediaType+"\nDocker-Content-Digest: "+img.Manifest.Digest, img.Manifest.Content, uint16(404), "", []byte(""))
			f.Add(op, harbor, uint16(200), "Content-Type: "+index.MediaType, index.Content, uint16(500), "", []byte("boom"))
			f.Add(op, harbor, uint16(202), "Location: https://elsewhere/x\nOCI-Chunk-Min-Length: 99999999999", []byte(""), uint16(307), "Location: /x", []byte(""))
		}
	}
	f.Fuzz(func(t *testing.T, op uint8, harbor bool, status1 uint16, header1 string, body1 []byte, status2 uint16, header2 string, body2 []byte) {
		if len(body1)+len(body2) > 1<<20 {
			return
		}
		code := func(s uint16) int { return 200 + int(s)%400 }
		a := &answers{first: answer{code(status1 - 200), headers(header1), body1}, then: answer{code(status2 - 200), headers(header2), body2}}
		synctest.Test(t, func(t *testing.T) {
			kind := registry.TypeOCI
			if harbor {
				kind = registry.TypeHarbor
			}
			c, err := registry.New(registry.Config{
				Type: kind, URL: "https://registry.example", Username: "u", Password: func() (string, error) { return "p", nil }, Transport: a,
			})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour) // of the bubble's clock: nothing may take that long
			defer cancel()
			ask(ctx, t, c, op)
			if ctx.Err() != nil {
				t.Fatalf("asked %d times in an hour and no end", a.asked)
			}
		})
	})
}

const questions = 10

// ask puts one of the client's questions.
func ask(ctx context.Context, t *testing.T, c *registry.Client, op uint8) {
	const repo = "app/web"
	blob := []byte("blob")
	digest := registry.DigestOf(blob)
	var err error
	switch op % questions {
	case 0:
		for name, e := range c.Repositories(ctx) {
			if err = e; err == nil && !registry.ValidRepository(name) {
				t.Fatalf("repository %q", name)
			}
		}
	case 1:
		for tag, e := range c.Tags(ctx, repo) {
			if err = e; err == nil && !registry.ValidTag(tag) {
				t.Fatalf("tag %q", tag)
			}
		}
	case 2:
		var d *registry.Descriptor
		if d, err = c.Resolve(ctx, repo, "1"); err == nil && (!registry.ValidDigest(d.GetDigest()) || d.GetSize() < 0) {
			t.Fatalf("descriptor %v", d)
		}
	case 3:
		var m registry.Manifest
		if m, err = c.Manifest(ctx, repo, digest); err == nil && (m.Digest != digest || registry.DigestOf(m.Content) != digest) {
			t.Fatalf("manifest %v", m)
		}
	case 4:
		var list []*registry.Descriptor
		list, err = c.Referrers(ctx, repo, digest)
		for _, d := range list {
			if !registry.ValidDigest(d.GetDigest()) || d.GetSize() < 0 {
				t.Fatalf("referrer %v", d)
			}
		}
	case 5:
		_, err = c.PushBlob(ctx, repo, digest, there(blob), "app/other")
	case 6:
		err = c.EnsureRepository(ctx, repo)
	case 7:
		img := registrytest.NewArtifact("k", "n", &registry.Manifest{MediaType: registry.MediaTypeOCIManifest, Digest: digest, Content: blob})
		err = c.PutManifest(ctx, repo, img.Manifest.Digest, img.Manifest)
	case 8:
		err = c.DeleteTag(ctx, repo, "1")
		wellSaid(t, err)
		var n int64
		if n, err = c.StatBlob(ctx, repo, digest); err == nil && n < 0 {
			t.Fatalf("a blob of %d bytes", n)
		}
		wellSaid(t, err)
		err = c.Ping(ctx)
	case 9:
		var r io.ReadCloser
		if r, err = c.OpenBlob(ctx, repo, digest, 1, 2); err == nil {
			var n int64
			n, err = io.Copy(io.Discard, r)
			if n > 2 {
				t.Fatalf("%d bytes, of 2 that were asked for", n)
			}
			_ = r.Close()
		}
	}
	wellSaid(t, err)
}

// there is a blob that is all there.
type there []byte

func (b there) Size() int64                                      { return int64(len(b)) }
func (b there) Wait(_ context.Context, off int64) (int64, error) { return int64(len(b)) - off, nil }
func (b there) ReadAt(p []byte, off int64) (int, error)          { return bytes.NewReader(b).ReadAt(p, off) }
