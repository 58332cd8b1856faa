package registry_test

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/registry/harbortest"
	"github.com/fanout-io/fanout/pkg/registry/registrytest"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantIs(t testing.TB, err error, targets ...error) {
	t.Helper()
	for _, target := range targets {
		if !errors.Is(err, target) {
			t.Fatalf("error %v, want one that is %q", err, target)
		}
	}
}

func wantNot(t testing.TB, err error, targets ...error) {
	t.Helper()
	for _, target := range targets {
		if errors.Is(err, target) {
			t.Fatalf("error %v is %q", err, target)
		}
	}
}

func wantWords(t testing.TB, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Fatalf("error %v does not say %q", err, w)
		}
	}
}

func pushBlob(t testing.TB, c *registry.Client, repo string, b []byte) string {
	t.Helper()
	d := registry.DigestOf(b)
	_, err := c.PushBlob(t.Context(), repo, d, registrytest.Whole(b))
	must(t, err)
	return d
}

// count gives how many requests have method and a part of the path.
func count(requests []harbortest.Request, method, part string) int {
	n := 0
	for _, r := range requests {
		if r.Method == method && strings.Contains(r.Path, part) {
			n++
		}
	}
	return n
}

func TestHarbor_MakesMissingProject(t *testing.T) {
	h, c := harbor(t, harbortest.Config{})
	img := registrytest.NewImage(1, []byte("layer"))
	registrytest.Push(t, c, "app/web", "v1", img)
	if h.Tag("app/web", "v1") != img.Manifest.Digest {
		t.Fatal("the tag is not there")
	}
	if n := count(h.Requests(), http.MethodPost, "/projects"); n != 1 {
		t.Fatalf("the project was made %d times", n)
	}
	// A project that goes away behind the client's back is made again.
	h.RemoveProject("app")
	registrytest.Push(t, c, "app/web", "v1", img)
	if h.Tag("app/web", "v1") != img.Manifest.Digest {
		t.Fatal("the tag is not there after the project went away")
	}
	wantWords(t, c.EnsureRepository(t.Context(), "flat"), "PROJECT/NAME")
}

func TestHarbor_MayNotMakeProject(t *testing.T) {
	_, c := harbor(t, harbortest.Config{Knobs: harbortest.Knobs{NoProjectRight: true}})
	_, err := c.PushBlob(t.Context(), "app/web", registry.DigestOf(nil), registrytest.Whole(nil))
	wantIs(t, err, registry.ErrDenied)
	wantWords(t, err, "project app", "403", "Only system level robot")
}

func TestHarbor_Quota(t *testing.T) {
	h, c := harbor(t, harbortest.Config{})
	_, err := c.Quota(t.Context(), "app/web")
	wantIs(t, err, registry.ErrNotFound)
	must(t, c.EnsureRepository(t.Context(), "app/web"))
	q, err := c.Quota(t.Context(), "app/web")
	must(t, err)
	if q != (registry.Quota{Project: "app", Limit: -1}) {
		t.Errorf("without a limit: %+v", q)
	}
	h.SetProject("app", harbortest.Project{Quota: 1000})
	pushBlob(t, c, "app/web", make([]byte, 300))
	q, err = c.Quota(t.Context(), "app/other")
	must(t, err)
	if q != (registry.Quota{Project: "app", Used: 300, Limit: 1000}) {
		t.Errorf("%+v", q)
	}
	_, c = harbor(t, harbortest.Config{Knobs: harbortest.Knobs{NoQuotaRight: true}})
	must(t, c.EnsureRepository(t.Context(), "app/web"))
	_, err = c.Quota(t.Context(), "app/web")
	wantIs(t, err, registry.ErrDenied)
	_, c = harbor(t, harbortest.Config{Knobs: harbortest.Knobs{Plain: true}})
	_, err = c.Quota(t.Context(), "app/web")
	wantIs(t, err, registry.ErrUnsupported)
}

func TestHarbor_ImmutableTag(t *testing.T) {
	h, c := harbor(t, harbortest.Config{})
	one, two := registrytest.NewImage(1), registrytest.NewImage(2)
	registrytest.Push(t, c, "app/im", "v1", one)
	h.SetProject("app", harbortest.Project{Immutable: []string{"app/im:v*"}})
	h.Requests()
	must(t, c.PutManifest(t.Context(), "app/im", "v1", one.Manifest))
	if n := count(h.Requests(), http.MethodPut, "/manifests/"); n != 0 {
		t.Fatal("an identical manifest was put under an immutable tag")
	}
	registrytest.Push(t, c, "app/im", "", two)
	err := c.PutManifest(t.Context(), "app/im", "v1", two.Manifest)
	wantIs(t, err, registry.ErrImmutable)
	wantWords(t, err, "412", "PRECONDITION", "'im:v1' configured as immutable")
	wantIs(t, c.DeleteTag(t.Context(), "app/im", "v1"), registry.ErrImmutable)
}

func TestHarbor_AnswerLostUnderImmutableTag(t *testing.T) {
	h, c := harbor(t, harbortest.Config{})
	h.SetProject("app", harbortest.Project{Immutable: []string{"app/im:v*"}})
	img := registrytest.NewImage(1)
	registrytest.Push(t, c, "app/im", "", img)
	h.AddFault(harbortest.Fault{Match: harbortest.On(http.MethodPut, "/manifests/v1"), Times: 1, CutAnswer: true})
	must(t, c.PutManifest(t.Context(), "app/im", "v1", img.Manifest))
}

func TestHarbor_Refusals(t *testing.T) {
	blob := registrytest.Bytes(1, 100)
	digest := registry.DigestOf(blob)
	for name, tc := range map[string]struct {
		project harbortest.Project
		knobs   harbortest.Knobs
		want    []error
		words   []string
	}{
		"Quota":    {harbortest.Project{Quota: 50}, harbortest.Knobs{DeleteRight: true}, []error{registry.ErrQuota, registry.ErrDenied}, []string{"403", "DENIED", "configured upper limit of 50 B"}},
		"Proxy":    {harbortest.Project{Proxy: true}, harbortest.Knobs{}, []error{registry.ErrProxyCache, registry.ErrDenied}, []string{"proxy project: app"}},
		"ReadOnly": {harbortest.Project{}, harbortest.Knobs{ReadOnly: true}, []error{registry.ErrReadOnly, registry.ErrDenied}, []string{"read only mode"}},
	} {
		t.Run(name, func(t *testing.T) {
			h, c := harbor(t, harbortest.Config{Knobs: tc.knobs})
			h.SetProject("app", tc.project)
			_, err := c.PushBlob(t.Context(), "app/web", digest, registrytest.Whole(blob))
			wantIs(t, err, tc.want...)
			wantWords(t, err, tc.words...)
			wantNot(t, err, registry.ErrUnavailable, registry.ErrUnauthorized)
			// A session that could not be used is given up, unless that is refused too.
			if n := h.Sessions(); n != 0 && name != "ReadOnly" {
				t.Errorf("%d sessions are left", n)
			}
		})
	}
	t.Run("QuotaOnMount", func(t *testing.T) {
		h, c := harbor(t, harbortest.Config{})
		pushBlob(t, c, "from/x", blob)
		h.SetProject("app", harbortest.Project{Quota: 50})
		_, err := c.PushBlob(t.Context(), "app/web", digest, registrytest.Whole(blob), "from/x")
		wantIs(t, err, registry.ErrQuota)
	})
}

func TestHarbor_ReadsAreNoPulls(t *testing.T) {
	h, c := harbor(t, harbortest.Config{}, func(cfg *registry.Config) { cfg.UserAgent = "curious" })
	img := registrytest.NewImage(1)
	registrytest.Push(t, c, "app/web", "v1", img)
	_, err := c.Manifest(t.Context(), "app/web", "v1")
	must(t, err)
	must(t, c.Ping(t.Context()))
	if n := h.Pulls(); n != 0 {
		t.Fatalf("%d pulls were counted", n)
	}
	for _, r := range h.Requests() {
		if r.UserAgent != registry.HarborUserAgent {
			t.Errorf("%s went as %q", r, r.UserAgent)
		}
	}
}

func TestUserAgentIsExact(t *testing.T) {
	h, c := harbor(t, harbortest.Config{Knobs: harbortest.Knobs{Plain: true}}, func(cfg *registry.Config) { cfg.UserAgent = "fanout/1 (gd-a)" })
	must(t, c.Ping(t.Context()))
	registrytest.Push(t, c, "app/web", "v1", registrytest.NewImage(1))
	for _, r := range h.Requests() {
		if r.UserAgent != "fanout/1 (gd-a)" {
			t.Errorf("%s went as %q", r, r.UserAgent)
		}
	}
}

func TestPing_WrongPassword(t *testing.T) {
	for name, knobs := range map[string]harbortest.Knobs{"Harbor": {}, "Plain": {Plain: true}, "Basic": {Plain: true, BasicChallenge: true}} {
		t.Run(name, func(t *testing.T) {
			_, c := harbor(t, harbortest.Config{Knobs: knobs}, func(cfg *registry.Config) { cfg.Password = secret("wrong") })
			wantIs(t, c.Ping(t.Context()), registry.ErrUnauthorized)
			for _, err := range c.Repositories(t.Context()) {
				wantIs(t, err, registry.ErrUnauthorized)
			}
		})
	}
}

func TestWrongPasswordIsNotAMissingProject(t *testing.T) {
	h, c := harbor(t, harbortest.Config{}, func(cfg *registry.Config) { cfg.Password = secret("wrong") })
	_, err := c.PushBlob(t.Context(), "app/web", registry.DigestOf(nil), registrytest.Whole(nil))
	if err == nil || h.HasProject("app") {
		t.Fatalf("error %v", err)
	}
	h.SetProject("app", harbortest.Project{})
	_, err = c.Resolve(t.Context(), "app/web", "v1")
	wantIs(t, err, registry.ErrUnauthorized)
	wantNot(t, err, registry.ErrNotFound)
}

func TestPasswordIsReadAgain(t *testing.T) {
	for name, knobs := range map[string]harbortest.Knobs{"Token": {}, "Basic": {BasicChallenge: true}} {
		t.Run(name, func(t *testing.T) {
			var password atomic.Value
			password.Store("secret")
			h, c := harbor(t, harbortest.Config{Knobs: knobs}, func(cfg *registry.Config) {
				cfg.Password = func() (string, error) { return password.Load().(string), nil }
			})
			registrytest.Push(t, c, "app/web", "v1", registrytest.NewImage(1))
			h.SetPassword("renewed")
			_, err := c.Resolve(t.Context(), "app/web", "v1")
			wantIs(t, err, registry.ErrUnauthorized)
			password.Store("renewed")
			_, err = c.Resolve(t.Context(), "app/web", "v1")
			must(t, err)
			must(t, c.Ping(t.Context()))
		})
	}
}

func TestTokenExpires_BodyIsSentAgain(t *testing.T) {
	h, c := harbor(t, harbortest.Config{}, func(cfg *registry.Config) { cfg.ChunkBytes = 1 << 10 })
	b := registrytest.Bytes(7, 10<<10)
	pushBlob(t, c, "app/web", []byte("first"))
	patches := 0
	h.AddFault(harbortest.Fault{Match: func(r *http.Request) bool {
		if r.Method == http.MethodPatch {
			if patches++; patches%2 == 1 {
				h.ExpireTokens()
			}
		}
		return false
	}})
	d := pushBlob(t, c, "app/web", b)
	if got, ok := h.Content("app/web", d); !ok || string(got) != string(b) {
		t.Fatal("the blob is not there as it was sent")
	}
}

// Harbor refuses a robot account without the right to delete that an upload is given up, and names no scope in the refusal. The token that is asked
// for after that must be good for the next push.
func TestHarbor_RefusedTokenIsRenewedWithItsScopes(t *testing.T) {
	h, c := harbor(t, harbortest.Config{})
	registrytest.Push(t, c, repo, "v1", registrytest.NewImage(1))
	h.AddFault(harbortest.Fault{Match: harbortest.On(http.MethodPut, "/blobs/uploads/"), Times: 1, Status: http.StatusInternalServerError})
	blob := registrytest.Bytes(1, 100)
	_, err := c.PushBlob(t.Context(), repo, registry.DigestOf(blob), registrytest.Whole(blob))
	wantIs(t, err, registry.ErrUnavailable)
	if n := h.Sessions(); n != 1 {
		t.Fatalf("%d sessions are left: it was given up, or there was none", n)
	}
	h.ExpireTokens()
	pushBlob(t, c, repo, blob)
	tokens := 0
	for _, r := range h.Requests() {
		if r.Path == "/service/token" {
			if tokens++; !strings.Contains(r.Query, "scope=") {
				t.Errorf("a token was asked for no scope: %s", r.Query)
			}
		}
	}
	if tokens < 3 {
		t.Errorf("%d tokens were asked for", tokens)
	}
}

func TestHarbor_DeleteTagWithSlashes(t *testing.T) {
	h, c := harbor(t, harbortest.Config{})
	img := registrytest.NewImage(1)
	registrytest.Push(t, c, "app/deep/er/web", "v1", img)
	registrytest.Push(t, c, "app/deep/er/web", "v2", img)
	must(t, c.DeleteTag(t.Context(), "app/deep/er/web", "v1"))
	if h.Tag("app/deep/er/web", "v1") != "" || h.Tag("app/deep/er/web", "v2") == "" {
		t.Fatal("not the tag alone has gone")
	}
	if !slices.ContainsFunc(h.Requests(), func(r harbortest.Request) bool { return strings.Contains(r.Path, "/repositories/deep%252Fer%252Fweb/") }) {
		t.Fatal("the name was not escaped twice")
	}
}

func TestFallbackTag_LeavesOutWhatTheRegistryLacks(t *testing.T) {
	h, c := harbor(t, harbortest.Config{Knobs: harbortest.Knobs{NoReferrers: true}})
	img := registrytest.NewImage(1)
	registrytest.Push(t, c, "app/web", "v1", img)
	a, b := registrytest.NewArtifact("kind/a", "a", &img.Manifest), registrytest.NewArtifact("kind/b", "b", &img.Manifest)
	registrytest.Push(t, c, "app/web", "", a)
	tag := registry.FallbackTag(img.Manifest.Digest)
	index, err := c.Manifest(t.Context(), "app/web", tag)
	must(t, err)
	if !strings.Contains(string(index.Content), `"note":"a"`) {
		t.Fatalf("the entry lacks annotations: %s", index.Content)
	}
	h.RemoveManifest("app/web", a.Manifest.Digest)
	registrytest.Push(t, c, "app/web", "", b)
	list, err := c.Referrers(t.Context(), "app/web", img.Manifest.Digest)
	must(t, err)
	if len(list) != 1 || list[0].Digest != b.Manifest.Digest {
		t.Fatalf("referrers %v", list)
	}
}

// Another client overwrites the fallback tag between our put and our look.
func TestFallbackTag_LostUpdate(t *testing.T) {
	h, c := harbor(t, harbortest.Config{Knobs: harbortest.Knobs{NoReferrers: true}})
	img := registrytest.NewImage(1)
	registrytest.Push(t, c, "app/web", "v1", img)
	tag := registry.FallbackTag(img.Manifest.Digest)
	other := registrytest.NewArtifact("kind/o", "other", &img.Manifest)
	registrytest.Push(t, c, "app/web", "", other)
	theirs := h.Tag("app/web", tag)
	struck := false
	h.AddFault(harbortest.Fault{Match: func(r *http.Request) bool {
		// The second read of the tag comes after the put: just before it, the other client's put wins.
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, tag) && !struck && h.Tag("app/web", tag) != theirs {
			struck = true
			h.SetTag("app/web", tag, theirs)
		}
		return false
	}})
	mine := registrytest.NewArtifact("kind/m", "mine", &img.Manifest)
	registrytest.Push(t, c, "app/web", "", mine)
	list, err := c.Referrers(t.Context(), "app/web", img.Manifest.Digest)
	must(t, err)
	if !struck || len(list) != 2 {
		t.Fatalf("struck %v, referrers %v", struck, list)
	}
}

// Something else under a fallback tag holds up nothing, and is not overwritten.
func TestFallbackTag_ShowsSomethingElse(t *testing.T) {
	h, c := harbor(t, harbortest.Config{Knobs: harbortest.Knobs{NoReferrers: true}})
	img, ref := registrytest.NewImage(1), registrytest.NewImage(2)
	registrytest.Push(t, c, repo, "v1", img)
	tag := registry.FallbackTag(img.Manifest.Digest)
	registrytest.Push(t, c, repo, tag, ref)
	list, err := c.Referrers(t.Context(), repo, img.Manifest.Digest)
	if err != nil || len(list) != 0 {
		t.Fatalf("referrers %v, %v", list, err)
	}
	wantIs(t, c.PutManifest(t.Context(), repo, registrytest.NewArtifact("k", "n", &img.Manifest).Manifest.Digest,
		registrytest.NewArtifact("k", "n", &img.Manifest).Manifest), registry.ErrBlobUnknown)
	sig := registrytest.NewArtifact("k", "n", &img.Manifest)
	pushBlob(t, c, repo, sig.Blobs[0])
	wantIs(t, c.PutManifest(t.Context(), repo, sig.Manifest.Digest, sig.Manifest), registry.ErrInvalid)
	if h.Tag(repo, tag) != ref.Manifest.Digest {
		t.Fatal("it was overwritten")
	}
}
