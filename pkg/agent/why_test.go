package agent

import (
	"context"
	"errors"
	goflag "flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/registry/harbortest"
)

var rewrite = goflag.Bool("rewrite", false, "write what the files in testdata give now")

// harborTree is headquarters and a province whose registry is a Harbor that does as it is told.
type harborTree struct {
	t      *testing.T
	hq, gd *live
	harbor *harbortest.Harbor
}

func newHarborTree(t *testing.T) *harborTree {
	h := harbortest.New(harbortest.Config{Knobs: harbortest.Knobs{DeleteRight: true}})
	srv := httptest.NewServer(h)
	t.Cleanup(func() { h.Close(); srv.Close() })
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte(h.Password()), 0o600); err != nil {
		t.Fatal(err)
	}
	g := &gate{url: srv.URL, config: fmt.Sprintf("{type: harbor, url: %q, username: %q, passwordFile: %q}", srv.URL, h.Username(), password)}
	sites := runTree(t, map[string]*gate{"hq/gd": g}, "hq", "hq/gd")
	return &harborTree{t, sites["hq"], sites["hq/gd"], h}
}

// why asks at headquarters.
func (l *live) why(ref, site string) *adminv1.WhyResponse {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	w, err := (&admin{a: l.Agent, local: true}).Why(ctx, &adminv1.WhyRequest{Ref: ref, Site: site})
	if err != nil {
		l.t.Fatal(err)
	}
	return w
}

var changing = []struct {
	what *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`sha256:[0-9a-f]{12,}`), "sha256:…"},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "ADDRESS"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\dZ`), "TIME"},
	{regexp.MustCompile(`tried (once|\d+ times)`), "tried N times"},
	{regexp.MustCompile(`, (again in [0-9hms.]+|and again now)`), ", again soon"},
	{regexp.MustCompile(`/v2/(\S+)/blobs/uploads/[^\s":]+`), "/v2/$1/blobs/uploads/…"},
	{regexp.MustCompile(`/tmp/[^\s,]+`), "PATH"},
	{regexp.MustCompile(`\b\d+(\.\d+)? (B|KiB|MiB|GiB)\b`), "N $2"},
	{regexp.MustCompile(`adding N \S+ `), "adding N B "},
	{regexp.MustCompile(`\b\d{4,} bytes`), "N bytes"},
	{regexp.MustCompile(`127\.0\.0\.1:\d+->`), ""},
}

func steady(s string) string {
	for _, c := range changing {
		s = c.what.ReplaceAllString(s, c.with)
	}
	return s
}

// inWords is an answer as a reviewer reads it, without what differs from run to run.
func inWords(w *adminv1.WhyResponse) string {
	var b strings.Builder
	fmt.Fprintf(&b, "answer: %s\ncause: %s\nmend: %s\n", w.GetAnswer(), w.GetCause(), w.GetMend())
	for _, h := range w.GetHops() {
		level := "level"
		if h.GetRevision() < h.GetWant() {
			level = "behind"
		}
		fmt.Fprintf(&b, "hop: %s %s %s, %s, live %v\n", h.GetGroup(), h.GetSite(), h.GetState(), level, h.GetLive())
		if t := h.GetTrouble(); t != nil {
			fmt.Fprintf(&b, "  trouble: %s: %s\n", t.GetCause(), t.GetSummary())
			if t.GetStatus() != 0 || t.GetCode() != "" || t.GetMessage() != "" {
				fmt.Fprintf(&b, "  registry: %d %s %s\n", t.GetStatus(), t.GetCode(), t.GetMessage())
			}
		}
		if r := h.GetReason(); r != "" && h.GetTrouble().GetSummary() != r {
			fmt.Fprintf(&b, "  reason: %s\n", r)
		}
	}
	for _, n := range w.GetNotes() {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	return steady(b.String())
}

// golden compares with a file that a person reviewed.
func golden(t *testing.T, name, got string) {
	t.Helper()
	if strings.Contains(strings.ToLower(got), "unknown error") {
		t.Errorf("%s: it says of an error that it is unknown:\n%s", name, got)
	}
	for _, word := range []string{"rpc error", "desc = ", "context deadline", "context canceled", "transport:", "tls:", "x509", "EOF", "dial tcp", "i/o timeout"} {
		if strings.Contains(got, word) {
			t.Errorf("%s: %q is a library's word, and not an operator's:\n%s", name, word, got)
		}
	}
	file := filepath.Join("testdata", "why", name+".txt")
	if *rewrite {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s: -want +got (go test -rewrite writes it anew):\n%s", name, d)
	}
}

// refusal is a registry's answer to a delivery.
type refusal struct {
	name string
	ref  string
	turn func(*harborTree) (undo func())
	// before is pushed first and delivered: what comes then moves the tag.
	before bool
}

func fault(f harbortest.Fault) func(*harborTree) func() {
	return func(h *harborTree) func() { return h.harbor.AddFault(f) }
}

func project(name string, p harbortest.Project) func(*harborTree) func() {
	return func(h *harborTree) func() {
		h.harbor.SetProject(name, p)
		return func() { h.harbor.SetProject(name, harbortest.Project{}) }
	}
}

func knob(on func(*harbortest.Knobs, bool)) func(*harborTree) func() {
	return func(h *harborTree) func() {
		h.harbor.Turn(func(k *harbortest.Knobs) { on(k, true) })
		return func() { h.harbor.Turn(func(k *harbortest.Knobs) { on(k, false) }) }
	}
}

// refusals are those of the table of failures in docs/operations.md that a registry can give, each as a Harbor gives it.
var refusalsOfHarbor = []refusal{
	{name: "quota", ref: "quota/app:1", turn: project("quota", harbortest.Project{Quota: 2048})},
	{name: "missing-project", ref: "nobody/app:1", turn: knob(func(k *harbortest.Knobs, on bool) { k.NoProjectRight = on })},
	{name: "immutable-tag", ref: "fixed/app:1", before: true, turn: project("fixed", harbortest.Project{Immutable: []string{"fixed/app:*"}})},
	{name: "proxy-cache", ref: "cache/app:1", turn: project("cache", harbortest.Project{Proxy: true})},
	{name: "read-only", ref: "team/readonly:1", before: true, turn: knob(func(k *harbortest.Knobs, on bool) { k.ReadOnly = on })},
	{name: "rights", ref: "team/rights:1", turn: fault(harbortest.Fault{Match: harbortest.On("POST", "/v2/team/rights/blobs/uploads/"), Status: 403, Code: "DENIED", Message: "requested access to the resource is denied"})},
	{name: "rate-limited", ref: "team/limited:1", turn: fault(harbortest.Fault{Match: harbortest.On("PUT", "/v2/team/limited/manifests/"), Status: 429, Code: "TOOMANYREQUESTS", Message: "slow down", RetryAfter: "30"})},
	{name: "too-large", ref: "team/large:1", turn: fault(harbortest.Fault{Match: harbortest.On("", "/v2/team/large/blobs/uploads/"), Status: 413, ContentType: "text/html", Body: "<html>413 Request Entity Too Large</html>"})},
	{name: "server-error", ref: "team/broken:1", turn: fault(harbortest.Fault{Match: harbortest.On("PUT", "/v2/team/broken/manifests/"), Status: 500, Code: "UNKNOWN", Message: "unknown error"})},
	{name: "bad-gateway", ref: "team/gateway:1", turn: fault(harbortest.Fault{Match: harbortest.On("POST", "/v2/team/gateway/blobs/"), Status: 502, ContentType: "text/html", Body: "<html>502 Bad Gateway</html>"})},
	{name: "cut", ref: "team/cut:1", turn: fault(harbortest.Fault{Match: harbortest.On("PUT", "/v2/team/cut/manifests/"), CutAnswer: true})},
	{name: "manifest-invalid", ref: "team/invalid:1", turn: fault(harbortest.Fault{Match: harbortest.On("PUT", "/v2/team/invalid/manifests/"), Status: 400, Code: "MANIFEST_INVALID", Message: "manifest invalid: media type not allowed"})},
	{name: "digest-invalid", ref: "team/altered:1", turn: fault(harbortest.Fault{Match: harbortest.On("PUT", "/v2/team/altered/blobs/uploads/"), Status: 400, Code: "DIGEST_INVALID", Message: "provided digest did not match uploaded content"})},
	{name: "blob-unknown", ref: "team/lost:1", turn: fault(harbortest.Fault{Match: harbortest.On("PUT", "/v2/team/lost/manifests/"), Status: 400, Code: "MANIFEST_BLOB_UNKNOWN", Message: "blob unknown to registry"})},
	{name: "not-found", ref: "team/gone:1", turn: fault(harbortest.Fault{Match: harbortest.On("PUT", "/v2/team/gone/manifests/"), Status: 404, Code: "NAME_UNKNOWN", Message: "repository name not known to registry"})},
	{name: "credentials", ref: "team/password:1", before: true, turn: func(h *harborTree) func() {
		old := h.harbor.Password()
		h.harbor.SetPassword("another")
		return func() { h.harbor.SetPassword(old) }
	}},
}

// TestWhy_Refusals: for each answer that a registry can give, what why says: the cause, the registry's own words, and the mend. When the cause is gone, the ref is delivered.
func TestWhy_Refusals(t *testing.T) {
	h := newHarborTree(t)
	h.harbor.SetProject("fixed", harbortest.Project{})
	for _, r := range refusalsOfHarbor {
		t.Run(r.name, func(t *testing.T) {
			if r.before {
				first := h.hq.push(r.ref)
				h.gd.shows(r.ref, first)
				h.gd.state(r.ref, "")
			}
			undo := r.turn(h)
			digest := h.hq.push(r.ref)
			h.gd.state(r.ref, "failed")
			h.hq.state(r.ref, "")
			golden(t, r.name, inWords(h.hq.why(r.ref, "s1")))
			undo()
			h.gd.queue.hurry()
			if r.name != "rate-limited" { // the registry has asked for more patience than this test has
				h.gd.shows(r.ref, digest)
			}
		})
	}
}

// TestWhy_RegistryHangs: while the first attempt waits for a registry that hangs, why says so, and what to do.
func TestWhy_RegistryHangs(t *testing.T) {
	oci := runTree(t, nil, "hq")["hq"] // a registry for the province, behind a gate
	g := newGate(t, "http://"+oci.reg)
	tree := runTree(t, map[string]*gate{"hq/gd": g}, "hq", "hq/gd")
	hq, gd := tree["hq"], tree["hq/gd"]
	hung := make(chan struct{})
	let := sync.OnceFunc(func() { close(hung) })
	t.Cleanup(let)
	g.refuses(func(*http.Request) bool { <-hung; return false })
	digest := hq.push("app/web:1")
	hq.state("app/web:1", "")
	gd.state("app/web:1", "waiting")
	waitFor(t, "it is said", func() error {
		gd.registryIs(fmt.Errorf("ping registry: %w", context.DeadlineExceeded)) // as the check of the registry finds some seconds later
		if w := hq.why("app/web:1", "s1"); w.GetCause() != "registry-silent" {
			return fmt.Errorf("%v", w)
		}
		return nil
	})
	golden(t, "registry-silent-at-first", inWords(hq.why("app/web:1", "s1")))
	let()
	gd.shows("app/web:1", digest)
}

// TestWhy_Waits: what keeps a ref from a site that is no failure.
func TestWhy_Waits(t *testing.T) {
	sites := runTree(t, nil, "hq", "hq/gd", "hq/gd/sz")
	hq, gd, sz := sites["hq"], sites["hq/gd"], sites["hq/gd/sz"]
	digest := hq.push("app/web:1")
	for _, l := range []*live{gd, sz} {
		l.shows("app/web:1", digest)
		l.state("app/web:1", "")
	}
	waitFor(t, "headquarters has heard of the city", func() error {
		if !slices.ContainsFunc(hq.node.Health().Sites, func(h *treev1.SiteHealth) bool { return h.GetSite() == "s2" }) {
			return errors.New("not yet")
		}
		return nil
	})
	waitFor(t, "headquarters knows", func() error {
		if w := hq.why("app/web:1", "s2"); w.GetState() != "delivered" || w.GetHops()[2].GetReceipt().GetBytes() == 0 {
			return fmt.Errorf("%v", w)
		}
		return nil
	})
	golden(t, "delivered", inWords(hq.why("app/web:1", "s2")))
	golden(t, "pushed-there", inWords(hq.why("app/web:1", "s0")))
	golden(t, "below-headquarters", inWords(gd.why("app/web:1", "s2")))
	for name, site := range map[string]string{"group-without-root": gd.cfg.Site, "group-without-root-above": "s2"} {
		alone, err := gd.whyAlone(t.Context(), catalog.Ref{Repository: "app/web", Tag: "1"}, site, "group hq/gd has no root now: s9: connection refused")
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name, inWords(alone))
	}
	if _, err := (&admin{a: hq.Agent, local: true}).Why(t.Context(), &adminv1.WhyRequest{Ref: "app/wbe:1", Site: "s2"}); err == nil || !strings.Contains(err.Error(), "the nearest: app/web:1") {
		t.Errorf("of a ref that is not there: %v", err)
	}
	if _, err := (&admin{a: hq.Agent, local: true}).Why(t.Context(), &adminv1.WhyRequest{Ref: "app/web:1", Site: "s9"}); err == nil || !strings.Contains(err.Error(), "the nearest: s0, s1, s2") {
		t.Errorf("of a site that is not there: %v", err)
	}

	hq.stage("prod/**")
	hq.push("prod/web:1")
	for _, l := range []*live{gd, sz} {
		l.state("prod/web:1", "held")
	}
	golden(t, "promotion", inWords(hq.why("prod/web:1", "s2")))
	waitFor(t, "what is held is no work left", func() error {
		for _, g := range hq.tree("").GetGroups() {
			for _, m := range g.GetMembers() {
				if m.GetPending() != 0 || m.GetState() != "synced" {
					return fmt.Errorf("%s is %s and has %d refs to do", m.GetSite(), m.GetState(), m.GetPending())
				}
			}
		}
		return nil
	})
	hq.promote("r1", []string{"prod/web:1"}, same, "hq/gd", "hq/gd/sz")
	hq.saw("r1", "hq/gd", "staged")
	sz.state("prod/web:1", "held", "r1")
	gd.state("prod/web:1", "")
	golden(t, "wave", inWords(hq.why("prod/web:1", "s2")))
	golden(t, "wave-asked-below", inWords(gd.why("prod/web:1", "s2")))

	gd.must(&catalogv1.Change{Kind: &catalogv1.Change_SetFreeze{SetFreeze: &catalogv1.SetFreeze{Freeze: &catalogv1.Freeze{
		Group: "hq/gd", Reason: "the fair", By: "user/li", Until: timestamppb.New(time.Now().Add(time.Hour)),
	}}}})
	waitFor(t, "the city hears of the freeze", func() error {
		if f := sz.node.Catalog().Freezes(time.Now()); len(f) != 1 {
			return fmt.Errorf("it knows of %v", f)
		}
		return nil
	})
	hq.push("app/web:1")
	for _, l := range []*live{gd, sz} {
		l.state("app/web:1", "held", "frozen by hq/gd")
	}
	waitFor(t, "headquarters sees it", func() error {
		if w := hq.why("app/web:1", "s2"); w.GetCause() != causeFrozen {
			return fmt.Errorf("%v", w)
		}
		return nil
	})
	golden(t, "frozen", inWords(hq.why("app/web:1", "s2")))

	hq.must(&catalogv1.Change{Kind: &catalogv1.Change_NoteConflict{NoteConflict: &catalogv1.NoteConflict{Conflict: &catalogv1.Conflict{
		Repository: "app/web", Tag: "1", Target: &catalogv1.Descriptor{MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: digest, Size: 1}, Site: "s9", Winner: "sha256:" + strings.Repeat("0", 64), Reason: "test",
	}}}})
	golden(t, "conflict", inWords(hq.why("app/web:1", "s0")))
}
