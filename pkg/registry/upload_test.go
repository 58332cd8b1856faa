package registry_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/registry/harbortest"
	"github.com/fanout-io/fanout/pkg/registry/registrytest"
)

const repo = "app/web"

func small(n int64) func(*registry.Config) { return func(cfg *registry.Config) { cfg.ChunkBytes = n } }

// uploads gives the upload requests, as METHOD and length.
func uploads(requests []harbortest.Request) string {
	var out []string
	for _, r := range requests {
		if strings.Contains(r.Path, "/blobs/uploads/") {
			out = append(out, fmt.Sprintf("%s %d", r.Method, r.Length))
		}
	}
	return strings.Join(out, ", ")
}

func TestPushBlob_Requests(t *testing.T) {
	for name, tc := range map[string]struct {
		size    int
		arrived int64
		chunk   int64
		want    string
	}{
		"Small":     {1000, 1000, 1 << 20, "POST 0, PUT 1000"},
		"Empty":     {0, 0, 1 << 20, "POST 0, PUT 0"},
		"OneChunk":  {1000, 1000, 1000, "POST 0, PUT 1000"},
		"Chunks":    {2500, 2500, 1000, "POST 0, PATCH 1000, PATCH 1000, PUT 500"},
		"EvenChunk": {2000, 2000, 1000, "POST 0, PATCH 1000, PUT 1000"},
	} {
		t.Run(name, func(t *testing.T) {
			h, c := harbor(t, harbortest.Config{}, small(tc.chunk))
			h.SetProject("app", harbortest.Project{})
			b := registrytest.Bytes(3, tc.size)
			_, err := c.PushBlob(t.Context(), repo, registry.DigestOf(b), registrytest.Arriving(b, tc.arrived))
			must(t, err)
			if got := uploads(h.Requests()); got != tc.want {
				t.Errorf("requests %s, want %s", got, tc.want)
			}
		})
	}
}

// While bytes are awaited nothing is open, and less than the least chunk is not sent.
func TestPushBlob_WaitsWithNothingOpen(t *testing.T) {
	h, c := harbor(t, harbortest.Config{})
	h.SetProject("app", harbortest.Project{})
	const size = 3*registry.MinChunkBytes + 5
	b := registrytest.Bytes(3, size)
	src := registrytest.Arriving(b, 0)
	done := make(chan error, 1)
	go func() {
		_, err := c.PushBlob(t.Context(), repo, registry.DigestOf(b), src)
		done <- err
	}()
	waits := func(want int64, requests string) {
		t.Helper()
		for off := range src.Waiting() {
			if off == want {
				break
			}
		}
		if got := uploads(h.Requests()); got != requests {
			t.Fatalf("requests %q while waiting for byte %d, want %q", got, want, requests)
		}
	}
	waits(0, "")
	src.Arrive(100)
	waits(100, "POST 0")
	src.Arrive(registry.MinChunkBytes - 101)
	waits(registry.MinChunkBytes-1, "")
	src.Arrive(1)
	waits(registry.MinChunkBytes, "PATCH 4194304")
	src.Arrive(size)
	must(t, <-done)
	if got := uploads(h.Requests()); got != fmt.Sprintf("PUT %d", 2*registry.MinChunkBytes+5) {
		t.Fatalf("requests %s", got)
	}
}

func TestPushBlob_BrokenConnections(t *testing.T) {
	b := registrytest.Bytes(5, 10_000)
	digest := registry.DigestOf(b)
	for name, f := range map[string]harbortest.Fault{
		"Post":        {Match: harbortest.On(http.MethodPost, "/uploads/"), CutAnswer: true},
		"InsidePatch": {Match: harbortest.On(http.MethodPatch, ""), CutAfter: 500},
		"PatchAnswer": {Match: harbortest.On(http.MethodPatch, ""), CutAnswer: true},
		"InsidePut":   {Match: harbortest.On(http.MethodPut, ""), CutAfter: 500},
		"PutAnswer":   {Match: harbortest.On(http.MethodPut, ""), CutAnswer: true},
		"Dead":        {Match: harbortest.On(http.MethodPatch, ""), Status: 404, Code: "BLOB_UPLOAD_INVALID", Message: "blob upload invalid"},
		"Gone":        {Match: harbortest.On(http.MethodPut, ""), Status: 404, Code: "BLOB_UPLOAD_UNKNOWN", Message: "blob upload unknown to registry"},
		"Range":       {Match: harbortest.On(http.MethodPatch, ""), Status: 416, Code: "RANGE_INVALID", Message: "invalid content range"},
	} {
		for _, v3 := range []bool{false, true} {
			for times := 1; times <= 2; times++ {
				t.Run(fmt.Sprintf("%s/v3=%v/%d", name, v3, times), func(t *testing.T) {
					h, c := harbor(t, harbortest.Config{Knobs: harbortest.Knobs{Sessions3: v3}}, small(3000))
					h.SetProject("app", harbortest.Project{})
					f.Times = times
					h.AddFault(f)
					_, err := c.PushBlob(t.Context(), repo, digest, registrytest.Whole(b))
					must(t, err)
					if got, _ := h.Content(repo, digest); string(got) != string(b) {
						t.Fatal("the blob is not there as it was sent")
					}
					posts := strings.Count(uploads(h.Requests()), "POST")
					if name == "PutAnswer" && posts != 1 {
						t.Errorf("%d sessions, though the blob was accepted in the first", posts)
					}
					if v3 && (name == "InsidePatch" || name == "PatchAnswer") && posts != 1 {
						t.Errorf("%d sessions, though the first could be continued", posts)
					}
				})
			}
		}
	}
}

func TestPushBlob_TriesAreBounded(t *testing.T) {
	for _, v3 := range []bool{false, true} {
		h, c := harbor(t, harbortest.Config{Knobs: harbortest.Knobs{Sessions3: v3, DeleteRight: true}}, small(1000))
		h.SetProject("app", harbortest.Project{})
		h.AddFault(harbortest.Fault{Match: harbortest.On(http.MethodPatch, ""), Status: 416, Code: "RANGE_INVALID"})
		b := registrytest.Bytes(5, 10_000)
		_, err := c.PushBlob(t.Context(), repo, registry.DigestOf(b), registrytest.Whole(b))
		wantWords(t, err, "416", "RANGE_INVALID")
		if n := h.Sessions(); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
		if n := len(h.Requests()); n > 60 {
			t.Errorf("%d requests", n)
		}
	}
}

func TestPushBlob_StatusesComeBackAtOnce(t *testing.T) {
	for name, tc := range map[string]struct {
		fault harbortest.Fault
		want  error
		after time.Duration
	}{
		"TooMany":     {harbortest.Fault{Status: 429, Code: "TOOMANYREQUESTS", Message: "slow down", RetryAfter: "7"}, registry.ErrTooMany, 7 * time.Second},
		"Unavailable": {harbortest.Fault{Status: 503, RetryAfter: "2"}, registry.ErrUnavailable, 2 * time.Second},
		"Internal":    {harbortest.Fault{Status: 500, Code: "UNKNOWN", Message: "boom"}, registry.ErrUnavailable, 0},
		"TooLarge":    {harbortest.Fault{Status: 413, ContentType: "text/html", Body: "<html>nginx</html>"}, registry.ErrTooLarge, 0},
	} {
		for _, method := range []string{http.MethodPost, http.MethodPatch, http.MethodPut} {
			t.Run(name+method, func(t *testing.T) {
				h, c := harbor(t, harbortest.Config{Knobs: harbortest.Knobs{DeleteRight: true}}, small(1000))
				h.SetProject("app", harbortest.Project{})
				f := tc.fault
				f.Match = harbortest.On(method, "/uploads/")
				h.AddFault(f)
				b := registrytest.Bytes(5, 1500)
				_, err := c.PushBlob(t.Context(), repo, registry.DigestOf(b), registrytest.Whole(b))
				wantIs(t, err, tc.want)
				wantWords(t, err, fmt.Sprint(tc.fault.Status), tc.fault.Message)
				if got := registry.RetryAfter(err); got != tc.after {
					t.Errorf("retry after %s, want %s", got, tc.after)
				}
				requests := h.Requests()
				if n := strings.Count(uploads(requests), method); n != 1 {
					t.Errorf("sent %d times", n)
				}
				if n := h.Sessions(); n != 0 {
					t.Errorf("%d sessions are left", n)
				}
			})
		}
	}
}

// What a registry says with success must fit.
func TestPushBlob_NoFalseSuccess(t *testing.T) {
	b := registrytest.Bytes(5, 1500)
	for name, f := range map[string]harbortest.Fault{
		"Accepted": {Match: harbortest.On(http.MethodPut, ""), Status: 202, Body: "x", ContentType: "text/plain"},
		"Page":     {Match: harbortest.On(http.MethodPut, ""), Status: 200, Body: "<html>login</html>", ContentType: "text/html"},
		"Redirect": {Match: harbortest.On(http.MethodPut, ""), Status: 307, Location: "http://elsewhere.example/", Body: "x"},
		"Posted":   {Match: harbortest.On(http.MethodPost, "/uploads/"), Status: 201, Body: "x"},
		"NoPlace":  {Match: harbortest.On(http.MethodPost, "/uploads/"), Status: 202, Body: "x"},
	} {
		t.Run(name, func(t *testing.T) {
			h, c := harbor(t, harbortest.Config{}, small(1000))
			h.SetProject("app", harbortest.Project{})
			h.AddFault(f)
			_, err := c.PushBlob(t.Context(), repo, registry.DigestOf(b), registrytest.Whole(b))
			if err == nil {
				t.Fatal("success was reported")
			}
			if _, ok := h.Content(repo, registry.DigestOf(b)); ok {
				t.Fatal("the test is wrong: the blob is there")
			}
		})
	}
}

func TestPushBlob_LocationOnAnotherHost(t *testing.T) {
	_, c := harbor(t, harbortest.Config{Knobs: harbortest.Knobs{LocationHost: "http://evil.example"}})
	b := []byte("x")
	_, err := c.PushBlob(t.Context(), repo, registry.DigestOf(b), registrytest.Whole(b))
	wantIs(t, err, registry.ErrInvalid)
	wantWords(t, err, "another host", "evil.example")
	// A proxy that makes the registry get scheme and port wrong does no harm.
	h, c := harbor(t, harbortest.Config{Knobs: harbortest.Knobs{LocationHost: "https://127.0.0.1:1"}})
	pushBlob(t, c, repo, b)
	if _, ok := h.Content(repo, registry.DigestOf(b)); !ok {
		t.Fatal("the blob is not there")
	}
}

func TestPushBlob_MountIsOneRequest(t *testing.T) {
	h, c := harbor(t, harbortest.Config{})
	b := registrytest.Bytes(5, 1500)
	d := pushBlob(t, c, "base/os", b)
	h.SetProject("app", harbortest.Project{})
	h.Requests()
	mounted, err := c.PushBlob(t.Context(), repo, d, registrytest.Whole(b), "base/os")
	must(t, err)
	if got := uploads(h.Requests()); !mounted || got != "POST 0" {
		t.Fatalf("mounted %v with %s", mounted, got)
	}
	// A session that comes instead of a mount is used.
	h.Turn(func(k *harbortest.Knobs) { k.NoMounts = true })
	mounted, err = c.PushBlob(t.Context(), "app/two", d, registrytest.Whole(b), "base/os")
	must(t, err)
	if got := uploads(h.Requests()); mounted || got != "POST 0, PUT 1500" {
		t.Fatalf("mounted %v with %s", mounted, got)
	}
	// A refused mount is no refused push.
	h.AddFault(harbortest.Fault{Match: func(r *http.Request) bool { return r.URL.Query().Has("mount") }, Status: 401, Code: "UNAUTHORIZED", Challenge: `Basic realm="x"`})
	_, err = c.PushBlob(t.Context(), "app/three", d, registrytest.Whole(b), "base/os")
	must(t, err)
}

func TestPushBlob_SourceFails(t *testing.T) {
	h, c := harbor(t, harbortest.Config{Knobs: harbortest.Knobs{DeleteRight: true}}, small(1000))
	h.SetProject("app", harbortest.Project{})
	b := registrytest.Bytes(5, 5000)
	src := &failing{Source: registrytest.Whole(b), at: 2500}
	_, err := c.PushBlob(t.Context(), repo, registry.DigestOf(b), src)
	wantIs(t, err, errDisk)
	wantNot(t, err, registry.ErrUnavailable)
	if n := h.Sessions(); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
}

var errDisk = errors.New("bad disk")

type failing struct {
	*registrytest.Source
	at int64
}

func (f *failing) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.at {
		return 0, errDisk
	}
	return f.Source.ReadAt(p, off)
}

func TestPushBlob_CanceledWhileTheRegistryHangs(t *testing.T) {
	h, c := harbor(t, harbortest.Config{Knobs: harbortest.Knobs{DeleteRight: true}}, small(1000))
	h.SetProject("app", harbortest.Project{})
	ctx, cancel := context.WithCancel(t.Context())
	h.AddFault(harbortest.Fault{Match: func(r *http.Request) bool {
		if r.Method == http.MethodPatch {
			cancel()
			return true
		}
		return false
	}, Hang: true})
	b := registrytest.Bytes(5, 5000)
	_, err := c.PushBlob(ctx, repo, registry.DigestOf(b), registrytest.Whole(b))
	wantIs(t, err, context.Canceled)
	if n := h.Sessions(); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
}
