package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// pair is a fabric of two sites, each beside a real Harbor: hq-a beside a, gd-a beside b.
type pair struct {
	a, b    *realHarbor
	hq, gd  *site
	up      *uplink // between gd-a and its Harbor
	project string  // there is such a project at a only
}

// unique makes a name that no run before had.
func unique(what string) string {
	return fmt.Sprintf("fanout-%s-%s", what, strconv.FormatInt(time.Now().UnixMilli(), 36))
}

// harborPair starts the fabric. The agents use robot accounts with no more rights than they need.
func harborPair(t testing.TB, headquarters string) *pair {
	t.Helper()
	a, b := realHarbors(t)
	p := &pair{a: a, b: b, project: unique("app")}
	a.robot(unique("hq"))
	b.robot(unique("gd"))
	a.drop(p.project)
	b.drop(p.project)
	a.project(p.project, -1)
	p.up = newUplink(t, b.addr)
	sites := start(t,
		spec{name: "hq-a", group: "hq", counted: true, extra: a.agent(a.addr, headquarters)},
		spec{name: "gd-a", group: "hq/gd", extra: b.agent(p.up.addr, "sweep: {interval: 1h}\n")},
	)
	p.hq, p.gd = sites["hq-a"], sites["gd-a"]
	return p
}

// repo names a repository in the test's project.
func (p *pair) repo(name string) string { return p.project + "/" + name }

// TestHarbor lets two agents bring images from one real Harbor to another, told of pushes by Harbor's webhook: the sweep runs once an hour here.
// It wants two Harbors 2.x that run on this host and can reach its loopback addresses, in FANOUT_TEST_HARBOR_A_URL (http://HOST[:PORT]),
// FANOUT_TEST_HARBOR_A_USERNAME and FANOUT_TEST_HARBOR_A_PASSWORD (an administrator, who makes the projects, rules and robot accounts of the test),
// and the same with B for the second. All that the tests make has names of its own and is removed at the end; for a moment Harbor B is read-only.
//
//	go test ./integration -run TestHarbor -v
func TestHarbor(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("Bearer hush\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := harborPair(t, fmt.Sprintf("sweep: {interval: 1h}\nwebhook: {secretFile: %q}\n", secret))
	p.a.webhook(p.project, "http://"+p.hq.http+"/hooks/harbor", "Bearer hush", "Default", "PUSH_ARTIFACT", "DELETE_ARTIFACT")
	for _, c := range []struct {
		name string
		run  func(*testing.T, *pair)
	}{
		{"image into a project that is missing", harborMissingProject},
		{"index", harborIndex},
		{"tag of the cosign scheme", harborCosign},
		{"referrers", harborReferrers},
		{"tag pushed five times", harborMoved},
		{"own reads are no pulls", harborPulls},
		{"immutable tag", harborImmutable},
		{"quota", harborQuota},
		{"read-only", harborReadOnly},
		{"staged", harborStaged},
		{"agent killed in mid-blob", harborKilled},
		{"upload cut in mid-blob", harborCut},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := *p
			a, b := *p.a, *p.b
			a.t, b.t, p.a, p.b = t, t, &a, &b
			begin := time.Now()
			c.run(t, &p)
			t.Logf("took %s", time.Since(begin).Round(time.Millisecond))
		})
	}
	if !t.Failed() {
		treeSays(t, p.hq, "gd-a", "synced")
	}
}

func harborMissingProject(t *testing.T, p *pair) {
	ref := p.repo("team/web:1.0")
	digest := p.a.push(ref, image(t, 1<<20, 3))
	begin := time.Now()
	p.b.shows(ref, digest)
	t.Logf("shown %s after the end of the push", time.Since(begin).Round(time.Millisecond))
	p.b.holds(ref, digest)
	p.hq.quiet(ref, digest)
	var made struct{ Metadata struct{ Public string } }
	p.b.api("GET", "/projects/"+p.project, nil, &made)
	if made.Metadata.Public != "false" {
		t.Errorf("the project was made public: %+v", made)
	}
}

func harborIndex(t *testing.T, p *pair) {
	var idx ggcr.ImageIndex = empty.Index
	for _, arch := range []string{"amd64", "arm64", "s390x", "ppc64le"} {
		img := image(t, 1<<16, 2)
		cfg, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		cfg = cfg.DeepCopy()
		cfg.OS, cfg.Architecture = "linux", arch
		if img, err = mutate.ConfigFile(img, cfg); err != nil {
			t.Fatal(err)
		}
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{
			Add: img, Descriptor: ggcr.Descriptor{Platform: &ggcr.Platform{OS: "linux", Architecture: arch}},
		})
	}
	ref := p.repo("multi:1")
	p.b.holds(ref, p.a.push(ref, mutate.IndexMediaType(idx, types.OCIImageIndex)))
}

// manifestOver pushes blobs and gives a manifest over them, the first of which is the config. It has odd white space, which must stay.
func manifestOver(t *testing.T, h *realHarbor, repo, more, mediaType string, blobs ...string) raw {
	t.Helper()
	var descs []string
	for i, b := range blobs {
		mt := types.MediaType(mediaType)
		if i == 0 {
			mt = "application/vnd.oci.empty.v1+json"
		}
		if err := remote.WriteLayer(h.reference(repo+":x").Context(), static.NewLayer([]byte(b), mt), h.auth()); err != nil {
			t.Fatal(err)
		}
		descs = append(descs, fmt.Sprintf(`{"mediaType": %q, "digest": %q, "size": %d}`, mt, digestOf([]byte(b)), len(b)))
	}
	return raw{types.OCIManifestSchema1, fmt.Sprintf("{ \"schemaVersion\":2,\n\t\"mediaType\" : %q, %s \"config\": %s,\n\"layers\":[%s]\n}\n\n",
		types.OCIManifestSchema1, more, descs[0], strings.Join(descs[1:], " ,"))}
}

func harborCosign(t *testing.T, p *pair) {
	ref := p.repo("signed:1")
	digest := p.a.push(ref, image(t, 1<<12, 1))
	p.b.shows(ref, digest)
	// As cosign does it: a tag made of the digest of what is signed.
	tag := p.repo("signed:") + strings.Replace(digest, ":", "-", 1) + ".sig"
	sig := manifestOver(t, p.a, p.repo("signed"), "", "application/vnd.dev.cosign.simplesigning.v1+json", "{}", `{"critical": 1}`)
	p.b.shows(tag, p.a.push(tag, sig))
	for _, h := range []*realHarbor{p.a, p.b} {
		if got := h.accessories(p.project, "signed", digest); !slices.Equal(got, []string{sig.digest()}) {
			t.Errorf("%s shows accessories %v, want %s", h.addr, got, sig.digest())
		}
	}
}

// accessories lists what Harbor shows as attached to a manifest.
func (h *realHarbor) accessories(project, repo, digest string) (digests []string) {
	h.t.Helper()
	var list []struct{ Digest string }
	h.api("GET", "/projects/"+project+"/repositories/"+escape(repo)+"/artifacts/"+digest+"/accessories", nil, &list)
	for _, a := range list {
		digests = append(digests, a.Digest)
	}
	slices.Sort(digests)
	return digests
}

func harborReferrers(t *testing.T, p *pair) {
	ref := p.repo("attested:1")
	img := image(t, 1<<12, 1)
	content, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	digest := digestOf(content)
	var want []string
	attach := func(words string) {
		more := fmt.Sprintf(`"artifactType": "application/vnd.example.sbom", "subject": {"mediaType": %q, "digest": %q, "size": %d},`,
			types.DockerManifestSchema2, digest, len(content))
		m := manifestOver(t, p.a, p.repo("attested"), more, "application/vnd.example.sbom.v1", "{}", words)
		if err := remote.Put(p.a.reference(ref).Context().Digest(m.digest()), m, p.a.auth()); err != nil {
			t.Fatal(err)
		}
		want = append(want, m.digest())
		slices.Sort(want)
	}
	shown := func(h *realHarbor) error {
		idx, err := remote.Referrers(h.reference(ref).Context().Digest(digest), h.auth())
		if err != nil {
			return err
		}
		list, err := idx.IndexManifest()
		if err != nil {
			return err
		}
		var got []string
		for _, d := range list.Manifests {
			got = append(got, d.Digest.String())
		}
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			return fmt.Errorf("referrers (-want +got):\n%s", diff)
		}
		return nil
	}
	attach("before the image itself")
	p.a.push(ref, img)
	p.b.shows(ref, digest)
	eventually(t, "B lists the referrer", func() error { return shown(p.b) })
	attach("when the image is delivered")
	eventually(t, "B lists both referrers", func() error { return shown(p.b) })
	if got := p.b.accessories(p.project, "attested", digest); !slices.Equal(got, want) {
		t.Errorf("B shows accessories %v, want %v", got, want)
	}
}

func harborMoved(t *testing.T, p *pair) {
	ref := p.repo("moved:latest")
	var last string
	for range 5 {
		last = p.a.push(ref, image(t, 1<<14, 1))
	}
	p.hq.quiet(ref, last)
	p.b.holds(ref, last)
}

// harborPulls: one pull by a client is the only one that Harbor counts and tells of, though the agents read the image at both ends.
func harborPulls(t *testing.T, p *pair) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var pulled []string
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var hook struct {
			Data struct {
				Repository struct {
					Name string `json:"repo_full_name"`
				}
			} `json:"event_data"`
		}
		body, _ := io.ReadAll(r.Body)
		if json.Unmarshal(body, &hook) == nil && hook.Data.Repository.Name == p.repo("pulled") {
			mu.Lock()
			defer mu.Unlock()
			pulled = append(pulled, string(body))
		}
	})}
	go func() { _ = srv.Serve(l) }()
	defer srv.Close()
	p.a.webhook(p.project, "http://"+l.Addr().String(), "", "Default", "PULL_ARTIFACT")

	ref := p.repo("pulled:1")
	digest := p.a.push(ref, image(t, 1<<14, 2))
	p.b.shows(ref, digest)
	p.hq.quiet(ref, digest)
	if _, err := remote.Get(p.a.reference(ref), p.a.auth()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the client's pull is told of and counted", func() error {
		mu.Lock()
		defer mu.Unlock()
		if n := p.a.pulls(p.project, "pulled"); n == 0 || len(pulled) == 0 {
			return fmt.Errorf("%d counted, %d told of", n, len(pulled))
		}
		return nil
	})
	mu.Lock()
	defer mu.Unlock()
	if n := p.a.pulls(p.project, "pulled"); n != 1 || len(pulled) != 1 {
		t.Errorf("A counted %d pulls and told of %d, want the client's alone: %s", n, len(pulled), pulled)
	}
	if n := p.b.pulls(p.project, "pulled"); n != 0 {
		t.Errorf("B counted %d pulls", n)
	}
}

func harborImmutable(t *testing.T, p *pair) {
	ref, other := p.repo("fixed:1"), p.repo("fixed:2")
	p.b.shows(ref, p.a.push(ref, image(t, 1<<14, 1)))
	remove := p.b.immutable(p.project, "1")
	img := image(t, 1<<14, 1)
	digest := p.a.push(ref, img)
	fails(t, p.hq, "gd-a", ref, "412", "PRECONDITION", "configured as immutable")
	treeSays(t, p.hq, "gd-a", "degraded", "fixed:1: ", "412", "PRECONDITION", "next attempt")
	p.a.push(other, img)
	p.b.holds(other, digest)
	remove()
	p.b.holds(ref, digest)
}

func harborQuota(t *testing.T, p *pair) {
	small := unique("small")
	p.a.drop(small)
	p.b.drop(small)
	p.a.project(small, -1)
	p.b.project(small, 1<<20)
	p.a.webhook(small, "http://"+p.hq.http+"/hooks/harbor", "Bearer hush", "CloudEvents", "PUSH_ARTIFACT")
	const size = 4 * mib
	before := p.hq.link.down.Load()
	digest := p.a.push(small+"/app:1", image(t, size/2, 2))
	fails(t, p.hq, "gd-a", small+"/app:1", "403", "DENIED", "exceed the configured upper limit of 1.0 MiB")
	treeSays(t, p.hq, "gd-a", "degraded", small+"/app:1: ", "403", "DENIED", "next attempt")
	other := p.a.push(p.repo("roomy:1"), image(t, 1<<14, 1))
	p.b.shows(p.repo("roomy:1"), other)
	p.b.quota(small, -1)
	p.b.holds(small+"/app:1", digest)
	// However often it was tried: what has arrived is in the spool.
	between(t, "over the link, the quota in the way", p.hq.link.down.Load()-before, size, framed(size+1<<14))
}

func harborReadOnly(t *testing.T, p *pair) {
	p.b.readOnly(true)
	writable := sync.OnceFunc(func() { p.b.readOnly(false) })
	defer writable()
	eventually(t, "B is read-only", func() error {
		err := remote.Put(p.b.reference(p.repo("probe:1")), empty.Image, p.b.auth())
		if err == nil || !strings.Contains(err.Error(), "read only") {
			return fmt.Errorf("a push gives: %v", err)
		}
		return nil
	})
	ref := p.repo("late:1")
	digest := p.a.push(ref, image(t, 1<<14, 1))
	fails(t, p.hq, "gd-a", ref, "403", "DENIED", "read only mode")
	writable()
	p.b.holds(ref, digest)
}

// harborKilled: what has arrived is not sent over the link again.
// harborStaged: under a policy that stages, B has the content under a hold and no tag until the promotion; back is what was there before, and a tag that was new goes away.
func harborStaged(t *testing.T, p *pair) {
	const most = chatter
	ref, fresh := p.repo("staged/web:stable"), p.repo("staged/web:2.0")
	was := p.a.push(ref, image(t, 1<<16, 1))
	p.b.holds(ref, was)
	prom := promotionAt(t, p.hq)
	prom.ask("policies", func(ctx context.Context, c adminv1.AdminServiceClient) error {
		_, err := c.SetPolicies(ctx, &adminv1.SetPoliciesRequest{Policies: []*catalogv1.Policy{{Name: "releases", Repositories: []string{p.project + "/staged/**"}, Delivery: "staged"}}})
		return err
	})
	img := image(t, 2*mib, 2)
	is := p.a.push(ref, img)
	if digest := p.a.push(fresh, img); digest != is {
		t.Fatalf("one image has the digests %s and %s", is, digest)
	}
	p.hq.held(ref, "gd-a")
	p.hq.held(fresh, "gd-a")
	tags := func(want ...string) {
		t.Helper()
		eventually(t, "B's tags", func() error {
			all, err := remote.List(p.b.reference(ref).Context(), p.b.auth())
			shown := slices.DeleteFunc(slices.Clone(all), func(tag string) bool { return strings.HasPrefix(tag, "fanout-hold.") })
			if err == nil && (!slices.Equal(shown, want) || len(shown) == len(all)) {
				err = fmt.Errorf("it shows tags %v, want %v and a hold", all, want)
			}
			return err
		})
	}
	tags("stable")
	p.b.shows(ref, was)
	crossed := func(what string, do func()) {
		t.Helper()
		before := p.hq.link.down.Load()
		do()
		n := p.hq.link.down.Load() - before
		t.Logf("%s: %d bytes down the link", what, n)
		if n == 0 || n > most {
			t.Errorf("%s: %d bytes down the link, want some and at most %d", what, n, most)
		}
	}
	crossed("promotion", func() {
		prom.begin(planOf(`{name: all, groups: ["**"]}`), "", ref, fresh)
		prom.in("succeeded", 1)
		p.b.holds(ref, is)
		p.b.shows(fresh, is)
	})
	crossed("rollback", func() {
		prom.steer("rollback")
		prom.in("rolled-back", 1)
		p.b.shows(ref, was)
		tags("stable")
	})
}

func harborKilled(t *testing.T, p *pair) {
	const size = 16 * mib
	link := p.hq.link
	link.throttle(8 * mib)
	defer link.free()
	before := link.down.Load()
	ref := p.repo("big:1")
	digest := p.a.push(ref, image(t, size, 1))
	link.crossing(t, before, 6*mib)
	p.gd.kill()
	if n := link.down.Load() - before; n > 12*mib {
		t.Errorf("%d bytes had crossed already: killed too late to show anything", n)
	}
	link.free()
	p.gd.start()
	p.b.holds(ref, digest)
	between(t, "over the link, killed", link.down.Load()-before, size, framed(size)+streams*piece+buffered)
}

// harborCut: a session that was cut is dead in Harbor. The agent sends the blob to its registry again, and takes nothing over the link for it.
func harborCut(t *testing.T, p *pair) {
	const size = 24 * mib
	p.gd.waitReady()
	before, upBefore := p.hq.link.down.Load(), p.up.up.Load()
	p.up.limit.Store(upBefore + 14*mib)
	ref := p.repo("cut:1")
	digest := p.a.push(ref, image(t, size, 1))
	p.b.holds(ref, digest)
	if p.up.limit.Load() != 0 {
		t.Error("nothing was cut")
	}
	between(t, "over the link, the upload cut", p.hq.link.down.Load()-before, size, framed(size))
	t.Logf("sent to the registry: %d bytes for %d", p.up.up.Load()-upBefore, size)
}

// TestHarborBySweep: without any webhook the sweep finds what was pushed, tagged and deleted. Of tags that are made or deleted by its API Harbor tells
// nobody.
func TestHarborBySweep(t *testing.T) {
	p := harborPair(t, "sweep: {interval: 2s}\npublish: {deletes: propagate}\n")
	ref := p.repo("swept/web:1")
	digest := p.a.push(ref, image(t, 1<<16, 2))
	p.b.holds(ref, digest)
	next := p.a.push(ref, image(t, 1<<16, 2))
	p.b.holds(ref, next)

	artifact := "/projects/" + p.project + "/repositories/" + escape("swept/web") + "/artifacts/" + next
	p.a.api("POST", artifact+"/tags", map[string]string{"name": "stable"}, nil, http.StatusCreated)
	p.b.shows(p.repo("swept/web:stable"), next)
	p.a.api("DELETE", artifact+"/tags/stable", nil, nil, http.StatusOK)
	eventually(t, "the tag goes at B", func() error {
		tags, err := remote.List(p.b.reference(ref).Context(), p.b.auth())
		tags = slices.DeleteFunc(tags, func(tag string) bool { return strings.HasPrefix(tag, "fanout-hold.") }) // for who undoes it
		if err == nil && !slices.Equal(tags, []string{"1"}) {
			err = fmt.Errorf("it shows tags %v", tags)
		}
		return err
	})
	p.b.shows(ref, next)
}
