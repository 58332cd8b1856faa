package agent

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	memory "github.com/google/go-containerregistry/pkg/registry"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/config"
	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/store"
)

// counting is a registry behind a proxy that counts what is asked of it, those requests left out that have to do with the marker or ask whether it is there.
type counting struct {
	url, direct string

	mu    sync.Mutex
	kinds map[string]int // "METHOD kind"
	read  int            // manifests that were transferred
	asked map[string]int // questions for referrers, by digest
}

// embeddedRegistry serves one as fanoutd would. It has no referrers API.
func embeddedRegistry(t testing.TB) string {
	e, err := registry.NewEmbedded(registry.EmbeddedConfig{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return e.URL()
}

// apiRegistry has one.
func apiRegistry(t testing.TB) string {
	s := httptest.NewServer(memory.New(memory.WithReferrersSupport(true), memory.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	return s.URL
}

func newCounting(t testing.TB, direct string) *counting {
	c := &counting{direct: direct}
	c.reset()
	target, err := url.Parse(direct)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(target); r.Out.Host = r.In.Host },
		ModifyResponse: func(r *http.Response) error { c.count(r); return nil },
	}
	s := httptest.NewServer(proxy)
	t.Cleanup(s.Close)
	c.url = s.URL
	return c
}

func (c *counting) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kinds, c.asked, c.read = map[string]int{}, map[string]int{}, 0
}

func (c *counting) count(r *http.Response) {
	path := r.Request.URL.Path
	if path == "/v2/" || strings.Contains(path, markerRepository) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	kind := "other"
	for _, k := range []string{"manifests", "blobs", "tags", "referrers", "_catalog"} {
		if strings.Contains(path, "/"+k) {
			kind = k
		}
	}
	c.kinds[r.Request.Method+" "+kind]++
	if kind == "manifests" && r.Request.Method == http.MethodGet && r.StatusCode == http.StatusOK {
		c.read++
	}
	if kind == "referrers" {
		c.asked[path[strings.LastIndexByte(path, '/')+1:]]++
	}
}

func (c *counting) of(kind string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kinds[kind]
}

func indexOf(fields string) string {
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,%s}`, registry.MediaTypeOCIIndex, fields)
}

// put puts an index of nothing, which needs no blobs, and gives its digest.
func (c *counting) put(t testing.TB, repo, reference, fields string) string {
	t.Helper()
	content := indexOf(fields)
	digest := registry.DigestOf([]byte(content))
	if reference == "" {
		reference = digest
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, c.direct+"/v2/"+repo+"/manifests/"+reference, strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", registry.MediaTypeOCIIndex)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		body, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s: %s", resp.Status, body)
	}
	return digest
}

// fill puts refs, so many of them in each repository, and gives their digests.
func (c *counting) fill(t testing.TB, refs, tagsPer int) map[catalog.Ref]string {
	out := map[catalog.Ref]string{}
	for i := range refs {
		ref := catalog.Ref{Repository: fmt.Sprintf("app/r%d", i/tagsPer), Tag: fmt.Sprintf("v%d", i%tagsPer)}
		out[ref] = c.put(t, ref.Repository, ref.Tag, fmt.Sprintf(`"manifests":[],"annotations":{"n":"%d"}`, i))
	}
	return out
}

// headquartersOf runs an agent beside a registry, which publishes all that is there.
func headquartersOf(t testing.TB, c *counting) *Agent {
	t.Helper()
	raft := freeAddr(t)
	text := fmt.Sprintf("site: hq-a\ngroup: hq\ndataDir: %s\nraft: {listen: %q, members: {hq-a: %q}}\nfabric: {listen: %q}\nhttp: {listen: %q}\nregistry: {type: oci, url: %q}\n"+
		"publish: {existing: publish}\nsweep: {interval: 24h}\n", t.TempDir(), raft, raft, freeAddr(t), freeAddr(t), c.url)
	cfg, err := config.Parse("test", []byte(text), func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(cfg, Options{Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	a.sweeper.spread = time.Microsecond // what is counted here has its own test of pace
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return a
}

func (q *queue) idle() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.queued)+len(q.active)+len(q.timers) == 0
}

// until waits for a condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within ten minutes", what)
		}
	}
}

func states(t testing.TB, a *Agent) map[string]store.RefState {
	t.Helper()
	out := map[string]store.RefState{}
	if err := a.store.RefStates(func(ref string, st store.RefState) bool { out[ref] = st; return true }); err != nil {
		t.Fatal(err)
	}
	return out
}

// settle waits until all refs are published and the first sweep is done with.
func settle(t testing.TB, a *Agent, refs int) {
	t.Helper()
	<-a.swept
	until(t, "all is published", func() bool { return a.node.Catalog().Len() == refs && len(states(t, a)) == refs && a.queue.idle() })
	// What its own records prompted is worked off as well.
	seen := a.node.Catalog().Position().GetRevision()
	until(t, "all is seen", func() bool { _, revision := a.progress.snapshot(); return revision == seen && a.queue.idle() })
}

func (c *counting) sweep(t testing.TB, a *Agent, urgent bool) {
	t.Helper()
	c.reset()
	if err := a.sweeper.sweep(t.Context(), urgent); err != nil {
		t.Fatal(err)
	}
	until(t, "the sweep's work is done", a.queue.idle)
}

// unchanged sweeps and fails where that costs more than a list for each repository, a question for each tag, and what else is said.
func (c *counting) unchanged(t testing.TB, a *Agent, refs, repos, indexes int) {
	t.Helper()
	before := states(t, a)
	c.sweep(t, a, false)
	want := map[string]int{"HEAD manifests": refs + indexes, "GET tags": repos, "GET _catalog": 1}
	for kind, n := range c.kinds {
		if n != want[kind] {
			t.Errorf("a sweep of %d unchanged refs: %d times %s, want %d", refs, n, kind, want[kind])
		}
	}
	for ref, st := range states(t, a) {
		if !reflect.DeepEqual(st, before[ref]) {
			t.Errorf("%s: its state was written again", ref)
		}
	}
}

func (c *counting) sign(t testing.TB, repo, subject string, n int) (entry string) {
	fields := fmt.Sprintf(`"manifests":[],"subject":{"mediaType":%q,"digest":%q,"size":1},"annotations":{"sig":"%d"}`, registry.MediaTypeOCIIndex, subject, n)
	digest := c.put(t, repo, "", fields)
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, registry.MediaTypeOCIIndex, digest, len(indexOf(fields)))
}

// TestSweepOfWhatIsUnchangedReadsNoManifest: where nothing changed, a sweep lists each repository once and asks for each tag once, and this site's memory is not written.
// What changed without a word is found all the same, and costs once.
func TestSweepOfWhatIsUnchangedReadsNoManifest(t *testing.T) {
	const refs, tagsPer = 60, 20
	c := newCounting(t, embeddedRegistry(t))
	images := c.fill(t, refs, tagsPer)
	a := headquartersOf(t, c)
	settle(t, a, refs)
	c.unchanged(t, a, refs, refs/tagsPer, 0)

	ref := catalog.Ref{Repository: "app/r1", Tag: "v7"}
	referrers := func() int { rec, _ := a.node.Catalog().Get(ref); return len(rec.GetReferrers()) }
	entry := c.sign(t, ref.Repository, images[ref], 1)
	c.put(t, ref.Repository, registry.FallbackTag(images[ref]), `"manifests":[`+entry+`]`)
	c.sweep(t, a, false)
	if n := referrers(); n != 1 {
		t.Errorf("%d referrers were published after a sweep over a new fallback tag", n)
	}
	if c.read == 0 {
		t.Error("nothing was read, and something changed")
	}
	c.sweep(t, a, false) // the record is another, so it is looked at once more
	c.unchanged(t, a, refs, refs/tagsPer, 1)

	c.put(t, ref.Repository, registry.FallbackTag(images[ref]), `"manifests":[`+entry+`,`+c.sign(t, ref.Repository, images[ref], 2)+`]`)
	c.sweep(t, a, false)
	if n := referrers(); n != 2 {
		t.Errorf("%d referrers were published after a sweep over a fallback tag that changed", n)
	}

	moved := catalog.Ref{Repository: "app/r2", Tag: "v3"}
	digest := c.put(t, moved.Repository, moved.Tag, `"manifests":[],"annotations":{"n":"moved"}`)
	c.sweep(t, a, false)
	if rec, _ := a.node.Catalog().Get(moved); rec.GetTarget().GetDigest() != digest {
		t.Errorf("%s shows %s after a sweep over its new target %s", moved, rec.GetTarget().GetDigest(), digest)
	}
}

// TestSweepAsksEachSubjectOnceInManySweeps: nothing but the question tells that a registry's referrers API has something new, so each sweep asks for a part of the refs, and an urgent one for all.
func TestSweepAsksEachSubjectOnceInManySweeps(t *testing.T) {
	const refs, tagsPer = 60, 20
	c := newCounting(t, apiRegistry(t))
	images := c.fill(t, refs, tagsPer)
	a := headquartersOf(t, c)
	settle(t, a, refs)
	c.sweep(t, a, false)
	asked := map[string]int{}
	for n := range referrersEvery {
		c.sweep(t, a, false)
		if c.read > 0 {
			t.Errorf("sweep %d read %d manifests", n, c.read)
		}
		if got := c.of("GET referrers"); got > refs/3 {
			t.Errorf("sweep %d asked %d times for referrers of %d subjects", n, got, refs)
		}
		for digest := range c.asked {
			asked[digest]++
		}
	}
	probes := 0
	for _, digest := range images {
		if asked[digest] == 0 {
			t.Errorf("%s was never asked for", digest)
		}
		probes += asked[digest] - 1
	}
	if probes > referrersEvery {
		t.Errorf("%d questions besides one for each subject and a probe for each sweep", probes)
	}
	c.sweep(t, a, true)
	for _, digest := range images {
		if c.asked[digest] == 0 {
			t.Errorf("%s was not asked for in an urgent sweep", digest)
		}
	}
}

// TestSweepOfManyUnchangedRefsTransfersNoManifest: what a sweep costs grows by one question with each ref, and by no byte of a manifest: it asks with HEAD. BenchmarkSweep10000 shows the same of 10,000.
func TestSweepOfManyUnchangedRefsTransfersNoManifest(t *testing.T) {
	const refs, tagsPer = 2000, 100
	c := newCounting(t, apiRegistry(t))
	c.fill(t, refs, tagsPer)
	a := headquartersOf(t, c)
	settle(t, a, refs)
	c.sweep(t, a, false) // remembers what the referrers are
	for range 2 {
		c.sweep(t, a, false)
		if c.read != 0 {
			t.Errorf("%d manifests were transferred for %d unchanged refs", c.read, refs)
		}
		if n := c.of("HEAD manifests"); n != refs {
			t.Errorf("%d questions for manifests, want one for each of %d refs", n, refs)
		}
		if n := c.of("GET tags"); n != refs/tagsPer {
			t.Errorf("%d lists of tags, want one for each of %d repositories", n, refs/tagsPer)
		}
	}
}

// BenchmarkSweep10000 counts what a sweep of so many unchanged refs asks an embedded registry.
func BenchmarkSweep10000(b *testing.B) {
	const refs, tagsPer = 10_000, 100
	c := newCounting(b, embeddedRegistry(b))
	c.fill(b, refs, tagsPer)
	a := headquartersOf(b, c)
	settle(b, a, refs)
	for b.Loop() {
		c.unchanged(b, a, refs, refs/tagsPer, 0)
	}
	total := 0
	for _, n := range c.kinds {
		total += n
	}
	b.ReportMetric(float64(total)/refs, "questions/ref")
	b.ReportMetric(float64(c.read), "manifests/op")
}
