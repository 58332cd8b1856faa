package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/config"
	"github.com/fanout-io/fanout/pkg/registry"
)

// gate stands before a registry, counts what is written and refuses what it is told to.
type gate struct {
	url string

	config string // of the registry, where it is not one of type oci at url

	mu      sync.Mutex
	refuse  func(*http.Request) bool
	again   string   // Retry-After of what is refused; empty: none
	cannot  bool     // what is refused is what this registry can't do at all
	written []string // "METHOD path" of what was taken
}

func newGate(t *testing.T, direct string) *gate {
	target, err := url.Parse(direct)
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target); r.Out.Host = r.In.Host }}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		refuse, again, cannot := g.refuse, g.again, g.cannot
		g.mu.Unlock()
		refused := refuse != nil && refuse(r) // it may block: a registry that hangs
		g.mu.Lock()
		if r.Method != http.MethodGet && r.Method != http.MethodHead && !refused {
			g.written = append(g.written, r.Method+" "+r.URL.Path)
		}
		g.mu.Unlock()
		if refused {
			if again != "" {
				w.Header().Set("Retry-After", again)
			}
			if cannot {
				http.Error(w, `{"errors":[{"code":"UNSUPPORTED","message":"the operation is unsupported"}]}`, http.StatusMethodNotAllowed)
				return
			}
			http.Error(w, `{"errors":[{"code":"DENIED","message":"quota"}]}`, http.StatusForbidden)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	g.url = s.URL
	return g
}

func (g *gate) refuses(f func(*http.Request) bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refuse = f
}

// wrote gives what was written since the last call, the marker left out.
func (g *gate) wrote() (out []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, w := range g.written {
		if !strings.Contains(w, markerRepository) {
			out = append(out, w)
		}
	}
	g.written = nil
	return out
}

// live is an agent that runs.
type live struct {
	*Agent
	t   testing.TB
	reg string // its registry, HOST:PORT, past the gate
}

// given are the addresses that freeAddr has given: one that is closed is soon free again.
var given sync.Map

func freeAddr(t testing.TB) string {
	t.Helper()
	for {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().String()
		_ = l.Close()
		if _, had := given.LoadOrStore(addr, true); !had {
			return addr
		}
	}
}

// runTree starts one site in each group, parents first, and gives them by group. A site whose group has a gate has a registry behind it; the others' are embedded; below
// headquarters they collect garbage soon, but not so soon that a slow push suffers.
func runTree(t testing.TB, gates map[string]*gate, groups ...string) map[string]*live {
	out := map[string]*live{}
	fabric := map[string]string{}
	for i, group := range groups {
		site, dir := fmt.Sprintf("s%d", i), t.TempDir()
		fabric[group] = freeAddr(t)
		raft, reg := freeAddr(t), freeAddr(t)
		b := &strings.Builder{}
		fmt.Fprintf(b, "site: %s\ngroup: %s\ndataDir: %s\nraft: {listen: %q, members: {%s: %q}}\n", site, group, filepath.Join(dir, "data"), raft, site, raft)
		fmt.Fprintf(b, "fabric:\n  listen: %q\n  socket: %s\n", fabric[group], filepath.Join(dir, "s"))
		if j := strings.LastIndexByte(group, '/'); j > 0 {
			fmt.Fprintf(b, "  parents: [%q]\n", fabric[group[:j]])
		}
		fmt.Fprintf(b, "http: {listen: %q}\n", freeAddr(t))
		if g := gates[group]; g != nil {
			fmt.Fprintf(b, "registry: %s\n", cmp.Or(g.config, fmt.Sprintf("{type: oci, url: %q}", g.url)))
			reg = strings.TrimPrefix(g.url, "http://")
		} else {
			fmt.Fprintf(b, "registry: {type: embedded, listen: %q%s}\n", reg, map[bool]string{true: ", gc: {interval: 200ms, grace: 3s}"}[group != "hq"])
		}
		cfg, err := config.Parse("test.yaml", []byte(b.String()), func(string) (string, bool) { return "", false })
		if err != nil {
			t.Fatal(err)
		}
		a, err := New(cfg, Options{Version: "test", Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("%s: %v", site, err)
			}
		})
		out[group] = &live{Agent: a, t: t, reg: reg}
	}
	for _, group := range groups {
		waitFor(t, group+" has a catalog", func() error {
			if out[group].node.Catalog().Position().GetEpoch() == "" {
				return fmt.Errorf("none")
			}
			return nil
		})
	}
	return out
}

func waitFor(t testing.TB, what string, check func() error) {
	t.Helper()
	for end := time.Now().Add(40 * time.Second); ; {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", what, err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// push puts a new image under a ref in this site's registry, and gives its digest.
func (l *live) push(ref string) string {
	l.t.Helper()
	img, err := random.Image(4096, 3)
	if err != nil {
		l.t.Fatal(err)
	}
	r, err := name.ParseReference(l.reg+"/"+ref, name.Insecure)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := remote.Write(r, img); err != nil {
		l.t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		l.t.Fatal(err)
	}
	if l.embedded == nil {
		l.queue.add(key{repository: at(ref).Repository, tag: at(ref).Tag})
	}
	return d.String()
}

func at(ref string) catalog.Ref {
	repo, tag, err := registry.ParseRef(ref)
	if err != nil {
		panic(err)
	}
	return catalog.Ref{Repository: repo, Tag: tag}
}

// look is what the registry shows; empty: nothing.
func (l *live) look(ref string) string {
	l.t.Helper()
	d, err := l.observe(context.Background(), at(ref))
	if err != nil {
		l.t.Fatal(err)
	}
	return d
}

func (l *live) shows(ref, digest string) {
	l.t.Helper()
	waitFor(l.t, l.cfg.Group+" shows "+ref, func() error {
		if d := l.look(ref); d != digest {
			p, _ := l.progress.snapshot()
			return fmt.Errorf("it shows %q, want %q; pending: %v", d, digest, p[ref])
		}
		return nil
	})
}

// state waits for what this site says of a ref; "" as the state: nothing is pending.
func (l *live) state(ref, state string, words ...string) {
	l.t.Helper()
	waitFor(l.t, l.cfg.Group+" says of "+ref+": "+state, func() error {
		all, _ := l.progress.snapshot()
		p := all[ref]
		if p.GetState() != state {
			return fmt.Errorf("it says %v", p)
		}
		for _, w := range words {
			if !strings.Contains(p.GetReason(), w) {
				return fmt.Errorf("it says %q, without %q", p.GetReason(), w)
			}
		}
		return nil
	})
}

// whole says whether the registry has all under a digest, asking it alone.
func (l *live) whole(repo, digest string) error {
	ctx := context.Background()
	m, err := l.registry.Manifest(ctx, repo, digest)
	if err != nil {
		return err
	}
	c, err := registry.Collect(ctx, func(ctx context.Context, d string) (registry.Manifest, error) {
		return l.registry.Manifest(ctx, repo, d)
	},
		&catalogv1.Descriptor{MediaType: m.MediaType, Digest: digest, Size: int64(len(m.Content))})
	if err != nil {
		return err
	}
	for _, b := range c.Blobs {
		if _, err := l.registry.StatBlob(ctx, repo, b.GetDigest()); err != nil {
			return err
		}
	}
	return nil
}

func (l *live) do(c *catalogv1.Change) error {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	results, err := l.node.Propose(ctx, "user/test", c)
	if err != nil {
		l.t.Fatal(err)
	}
	return results[0].Err
}

func (l *live) must(c *catalogv1.Change) {
	l.t.Helper()
	if err := l.do(c); err != nil {
		l.t.Fatal(err)
	}
}

func (l *live) stage(patterns ...string) {
	l.must(&catalogv1.Change{Kind: &catalogv1.Change_SetPolicies{SetPolicies: &catalogv1.SetPolicies{Policies: []*catalogv1.Policy{
		{Name: "releases", Repositories: patterns, Delivery: catalog.DeliveryStaged},
	}}}})
}

// promote starts a rollout of what headquarters shows, one wave for each group.
func (l *live) promote(id string, refs []string, as func(string) string, groups ...string) {
	l.t.Helper()
	r := &catalogv1.Rollout{Id: id, Plan: &catalogv1.Plan{Name: "p", Timezone: "UTC"}}
	for _, ref := range refs {
		_, rec := l.record(at(ref))
		to := at(as(ref))
		r.Items = append(r.Items, &catalogv1.RolloutItem{
			Repository: to.Repository, Tag: to.Tag, SourceRepository: rec.Repository, SourceTag: rec.Tag, Target: rec.Target, Referrers: rec.Referrers,
		})
	}
	slices.SortFunc(r.Items, func(x, y *catalogv1.RolloutItem) int { return strings.Compare(x.Repository+x.Tag, y.Repository+y.Tag) })
	for _, g := range groups {
		r.Plan.Waves = append(r.Plan.Waves, &catalogv1.Wave{
			Name: strings.ReplaceAll(g, "/", "-"), Groups: []string{g}, MaxConcurrent: 1, OnFailure: catalog.OnFailurePause, OnOffline: catalog.OnOfflineWait,
		})
	}
	l.must(&catalogv1.Change{Kind: &catalogv1.Change_StartRollout{StartRollout: &catalogv1.StartRollout{Rollout: r}}})
}

func same(ref string) string { return ref }

// saw is an observation of one group, as the controller makes them.
func (l *live) saw(id, group, state string) {
	l.t.Helper()
	err := l.do(&catalogv1.Change{Kind: &catalogv1.Change_ObserveRollout{ObserveRollout: &catalogv1.ObserveRollout{
		Id: id, Seen: l.node.Catalog().Rollout(id).GetVersion(), Groups: []*catalogv1.ObservedGroup{{Group: group, State: state}},
	}}})
	if err != nil {
		l.t.Fatalf("%s: %s %s: %v; %v", id, group, state, err, l.node.Catalog().Rollout(id))
	}
}

func (l *live) steer(id, verb string) {
	l.must(&catalogv1.Change{Kind: &catalogv1.Change_SteerRollout{SteerRollout: &catalogv1.SteerRollout{Id: id, Verb: verb}}})
}

func (l *live) holdsContent(ref, digest string) {
	l.t.Helper()
	repo := at(ref).Repository
	waitFor(l.t, l.cfg.Group+" holds "+ref, func() error {
		if held := l.look(repo + ":" + holdTag(digest)); held != digest {
			return fmt.Errorf("the hold shows %q", held)
		}
		return l.whole(repo, digest)
	})
}

// TestStaged_ContentAheadOfTags: what is pushed where delivery is staged is held everywhere, and shown at headquarters alone. Tags move group by group and back, and no blob with them.
func TestStaged_ContentAheadOfTags(t *testing.T) {
	sz := newGate(t, embeddedRegistry(t))
	tree := runTree(t, map[string]*gate{"hq/gd/sz": sz}, "hq", "hq/gd", "hq/gd/sz")
	hq, gd, city := tree["hq"], tree["hq/gd"], tree["hq/gd/sz"]
	hq.stage("prod/**")
	one := hq.push("prod/web:1")
	for _, l := range []*live{gd, city} {
		l.state("prod/web:1", "held", "waits for a promotion")
		l.holdsContent("prod/web:1", one)
		if d := l.look("prod/web:1"); d != "" {
			t.Fatalf("%s shows %s", l.cfg.Group, d)
		}
	}
	hq.shows("prod/web:1", one)
	waitFor(t, "headquarters tells how it is", func() error {
		raw, _ := hq.record(at("prod/web:1"))
		sites := hq.where(at("prod/web:1"), raw).GetSites()
		for _, s := range sites {
			if want := map[bool]string{true: "", false: one}[s.GetGroup() == "hq"]; s.GetHeld() != want {
				return fmt.Errorf("%s holds %q", s.GetGroup(), s.GetHeld())
			}
			if want := map[bool]string{true: "delivered", false: "held"}[s.GetGroup() == "hq"]; s.GetState() != want {
				return fmt.Errorf("%s is told as %s %s, want %s", s.GetSite(), s.GetState(), s.GetReason(), want)
			}
		}
		if len(sites) != 3 {
			return fmt.Errorf("of %d sites", len(sites))
		}
		return nil
	})
	// The registry's collector takes what nothing leads to, and none of this.
	other := gd.push("else/where:1")
	hex := strings.TrimPrefix(other, "sha256:")
	blob := filepath.Join(gd.cfg.Registry.Data, "data/docker/registry/v2/blobs/sha256", hex[:2], hex, "data")
	if _, err := os.Stat(blob); err != nil {
		t.Fatal(err)
	}
	if err := gd.registry.DeleteTag(context.Background(), "else/where", "1"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a collection", func() error {
		if _, err := os.Stat(blob); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is there: %v", other, err)
		}
		return nil
	})
	if err := gd.whole("prod/web", one); err != nil {
		t.Fatal(err)
	}
	sz.wrote()
	hq.promote("r1", []string{"prod/web:1"}, same, "hq/gd", "hq/gd/sz")
	hq.saw("r1", "hq/gd", catalog.ObservedStaged)
	gd.shows("prod/web:1", one)
	gd.state("prod/web:1", "")
	city.state("prod/web:1", "held", "waits for a wave of rollout r1")
	if d := city.look("prod/web:1"); d != "" {
		t.Fatalf("the city shows %s before its wave", d)
	}
	hq.saw("r1", "hq/gd", catalog.ObservedDelivered)
	hq.saw("r1", "hq/gd/sz", catalog.ObservedStaged)
	city.shows("prod/web:1", one)
	city.state("prod/web:1", "")
	hq.saw("r1", "hq/gd/sz", catalog.ObservedDelivered)
	if p := hq.node.Catalog().Rollout("r1").GetPhase(); p != catalog.RolloutSucceeded {
		t.Fatalf("the rollout is %s", p)
	}
	// Back again: the tag was new, so it goes.
	hq.steer("r1", "rollback")
	city.shows("prod/web:1", "")
	hq.saw("r1", "hq/gd/sz", catalog.ObservedDelivered)
	gd.shows("prod/web:1", "")
	city.holdsContent("prod/web:1", one)
	for _, wrote := range sz.wrote() {
		if strings.Contains(wrote, "/blobs/") {
			t.Errorf("a promotion or its rollback wrote a blob: %s", wrote)
		}
	}
	// A sweep finds the holds needed.
	if err := city.releaseHolds(context.Background()); err != nil {
		t.Fatal(err)
	}
	city.holdsContent("prod/web:1", one)
}

// TestStaged_ToAnotherRepository: content that a site has in the repository that it is promoted from is mounted there.
func TestStaged_ToAnotherRepository(t *testing.T) {
	gdReg := newGate(t, embeddedRegistry(t))
	tree := runTree(t, map[string]*gate{"hq/gd": gdReg}, "hq", "hq/gd")
	hq, gd := tree["hq"], tree["hq/gd"]
	digest := hq.push("test/web:1")
	gd.shows("test/web:1", digest)
	gd.state("test/web:1", "")
	gdReg.wrote()
	hq.promote("r1", []string{"test/web:1"}, func(string) string { return "prod/web:stable" }, "hq/gd")
	gd.state("prod/web:stable", "held", "waits for a wave of rollout r1")
	hq.saw("r1", "hq/gd", catalog.ObservedStaged)
	gd.shows("prod/web:stable", digest)
	for _, w := range gdReg.wrote() {
		if strings.HasPrefix(w, "PATCH ") || strings.HasPrefix(w, "PUT ") && strings.Contains(w, "/blobs/") {
			t.Errorf("bytes were put though they were there: %s", w)
		}
	}
	if hq.look("prod/web:stable") != "" {
		t.Error("headquarters shows what was released to a province")
	}
	hq.state("prod/web:stable", "held", "waits for a wave of rollout r1")
	for _, l := range []*live{hq, gd} {
		all, _, _ := l.events.since(0)
		for _, ev := range all {
			if ev.GetType() == "Warning" && strings.HasPrefix(ev.GetRef(), "prod/") {
				t.Errorf("%s warns of what is as it should be: %s %s", l.cfg.Group, ev.GetReason(), ev.GetMessage())
			}
		}
	}
}

// TestRollback_AtTheSiteThatPushed: a registry of headquarters shows again what was pushed there before, and does not take the promotion for a push.
func TestRollback_AtTheSiteThatPushed(t *testing.T) {
	hq := runTree(t, nil, "hq")["hq"]
	one, two := hq.push("app/web:1"), hq.push("app/web:2")
	waitFor(t, "both are published", func() error {
		for _, ref := range []string{"app/web:1", "app/web:2"} {
			if _, rec := hq.record(at(ref)); rec == nil {
				return fmt.Errorf("%s is not", ref)
			}
		}
		return nil
	})
	hq.promote("r1", []string{"app/web:2"}, func(string) string { return "app/web:1" }, "hq")
	hq.saw("r1", "hq", catalog.ObservedStaged)
	hq.shows("app/web:1", two)
	hq.state("app/web:1", "")
	hq.saw("r1", "hq", catalog.ObservedDelivered)
	hq.steer("r1", "rollback")
	hq.shows("app/web:1", one)
	hq.saw("r1", "hq", catalog.ObservedDelivered)
	if p := hq.node.Catalog().Rollout("r1").GetPhase(); p != catalog.RolloutRolledBack {
		t.Errorf("the rollout is %s", p)
	}
}

// TestRollouts_RetryActsAtOnce: a group whose registry has refused for so long that the site waits is tried again when a person says so, and not when the site would have.
func TestRollouts_RetryActsAtOnce(t *testing.T) {
	gdReg := newGate(t, embeddedRegistry(t))
	tree := runTree(t, map[string]*gate{"hq/gd": gdReg}, "hq", "hq/gd")
	hq, gd := tree["hq"], tree["hq/gd"]
	hq.stage("prod/**")
	digest := hq.push("prod/web:1")
	gd.state("prod/web:1", "held", "waits for a promotion")
	gdReg.refuses(func(r *http.Request) bool {
		return r.Method == http.MethodPut && r.URL.Path == "/v2/prod/web/manifests/1"
	})
	hq.promote("r1", []string{"prod/web:1"}, same, "hq/gd")
	waitFor(t, "the group has failed", func() error {
		if g := hq.node.Catalog().Rollout("r1").GetGroups()[0]; g.GetPhase() != catalog.GroupFailed {
			return fmt.Errorf("it is %s: %s", g.GetPhase(), g.GetReason())
		}
		return nil
	})
	gdReg.mu.Lock()
	gdReg.again = "3600"
	gdReg.mu.Unlock()
	waitFor(t, "the site waits for an hour", func() error {
		all, _ := gd.progress.snapshot()
		if p := all["prod/web:1"]; p.GetNextAttempt() == nil || time.Until(p.GetNextAttempt().AsTime()) < 30*time.Minute {
			return fmt.Errorf("it is told as %v", p)
		}
		return nil
	})
	gdReg.refuses(nil)
	hq.must(&catalogv1.Change{Kind: &catalogv1.Change_SteerRollout{SteerRollout: &catalogv1.SteerRollout{Id: "r1", Verb: catalog.SteerRetry, Group: "hq/gd"}}})
	gd.shows("prod/web:1", digest) // within this test's patience, which is not an hour
}

// TestPushUnderRollout: a push at headquarters of a ref that a rollout moves is neither lost nor turned back: it is published when the rollout has ended.
func TestPushUnderRollout(t *testing.T) {
	gdReg := newGate(t, embeddedRegistry(t))
	tree := runTree(t, map[string]*gate{"hq/gd": gdReg}, "hq", "hq/gd")
	hq, gd := tree["hq"], tree["hq/gd"]
	hq.stage("prod/**")
	gdReg.refuses(func(r *http.Request) bool { // so that the rollout goes on until the push was looked at
		return r.Method == http.MethodPut && r.URL.Path == "/v2/prod/web/manifests/1"
	})
	hq.push("prod/web:1")
	gd.state("prod/web:1", "held")
	hq.promote("r1", []string{"prod/web:1"}, same, "hq/gd")
	two := hq.push("prod/web:1")
	hq.state("prod/web:1", "held", "under rollout r1")
	waitFor(t, "the push is told apart from a wave", func() error {
		all, _ := hq.progress.snapshot()
		if p := all["prod/web:1"]; !p.GetPushed() {
			return fmt.Errorf("it is told as %v", p)
		}
		return nil
	})
	gdReg.refuses(nil)
	hq.steer("r1", "abort")
	waitFor(t, "the push is published", func() error {
		if _, rec := hq.record(at("prod/web:1")); rec.GetTarget().GetDigest() != two {
			return fmt.Errorf("the record shows %s, want %s", rec.GetTarget().GetDigest(), two)
		}
		return nil
	})
	hq.shows("prod/web:1", two)
	gd.holdsContent("prod/web:1", two)
}
