package integration

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// seedEnv repeats the random choices of a test that printed its seed.
const seedEnv = "FANOUT_TEST_SEED"

// largeAtOnce is how many large blobs an agent receives at once.
const largeAtOnce = 4

func seeded(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv(seedEnv); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("%s: %v", seedEnv, err)
		}
	}
	t.Logf("to repeat the choices: %s=%d", seedEnv, seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// tryPush pushes an image until one of these registries has acknowledged it.
func tryPush(t testing.TB, ref string, img ggcr.Image, at ...*site) error {
	var err error
	deadline := time.Now().Add(patience)
	for i := 0; time.Now().Before(deadline); i++ {
		err = remote.Write(reference(t, at[i%len(at)], ref), img, remote.WithRetryBackoff(remote.Backoff{Duration: 50 * time.Millisecond, Steps: 2}))
		if err == nil {
			return nil
		}
	}
	return fmt.Errorf("%s: no registry took it: %w", ref, err)
}

// pushes are what registries have acknowledged.
type pushes struct {
	t  testing.TB
	wg sync.WaitGroup

	mu    sync.Mutex
	acked map[string]string // ref → digest
	bytes int64             // of blobs
}

// push pushes an image in the background.
func (p *pushes) push(ref string, img ggcr.Image, at ...*site) {
	p.wg.Go(func() { p.now(ref, img, at...) })
}

func (p *pushes) now(ref string, img ggcr.Image, at ...*site) {
	digest, err := img.Digest()
	if err == nil {
		err = tryPush(p.t, ref, img, at...)
	}
	m, merr := img.Manifest()
	if err != nil || merr != nil {
		p.t.Error(err, merr)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.acked[ref] = digest.String()
	for _, d := range append(slices.Clone(m.Layers), m.Config) {
		p.bytes += d.Size
	}
}

// neverOlder watches what sites show under a ref, all the time until stop is called, and fails when one shows an older of these digests after a newer one.
func neverOlder(t testing.TB, sites map[string]*site, ref string, order map[string]int) (stop func()) {
	done := make(chan struct{})
	var pollers sync.WaitGroup
	for _, s := range sites {
		r := reference(t, s, ref)
		pollers.Go(func() {
			newest := -1
			for {
				select {
				case <-done:
					return
				default:
				}
				d, err := remote.Head(r, remote.WithRetryBackoff(remote.Backoff{Duration: 20 * time.Millisecond, Steps: 1}))
				if err != nil {
					continue // killed, or not there yet
				}
				at, known := order[d.Digest.String()]
				if !known || at < newest {
					t.Errorf("%s shows %s, push %d, after push %d", s.name, d.Digest, at, newest)
					return
				}
				newest = at
			}
		})
	}
	return func() { close(done); pollers.Wait() }
}

// whole reads all that lies under an image at a site, each blob once. (What shows does costs five times as much.)
func whole(t testing.TB, s *site, ref, digest string) {
	t.Helper()
	img, err := remote.Image(reference(t, s, ref))
	if err != nil {
		t.Fatal(err)
	}
	if d, err := img.Digest(); err != nil || d.String() != digest {
		t.Errorf("%s: %s is %s: %v", s.name, ref, d, err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := img.RawConfigFile(); err != nil { // it verifies the digest
		t.Errorf("%s: config of %s: %v", s.name, ref, err)
	}
	for _, l := range layers {
		content, err := l.Compressed()
		if err == nil {
			_, err = io.Copy(io.Discard, content) // likewise, at the end
			err = errors.Join(err, content.Close())
		}
		if err != nil {
			t.Errorf("%s: layer of %s: %v", s.name, ref, err)
		}
	}
}

// victim is something that is killed and started again.
type victim struct {
	what        string
	agent       *site // nil for a registry
	kill, start func()
}

func agentVictim(s *site, why string) victim { return victim{why + " " + s.name, s, s.kill, s.start} }

// TestKillsDuringCascade kills agents, roots and registries at random moments while images that are pushed at three registries go down the tree, and starts them again.
func TestKillsDuringCascade(t *testing.T) {
	const rounds, perRound, layerSize = 3, 2, 12 * mib
	rnd := seeded(t)
	// A registry that is killed may not have told of a push; when the agent does not notice that either, the sweep does.
	const sweep = "sweep: {interval: 10s}\n"
	sites := start(t,
		spec{name: "hq-a", group: "hq", counted: true, registry: true, extra: sweep}, spec{name: "hq-b", group: "hq", counted: true, registry: true, extra: sweep},
		spec{name: "hq-c", group: "hq", counted: true},
		spec{name: "gd-a", group: "hq/gd", counted: true, registry: true}, spec{name: "gd-b", group: "hq/gd", counted: true}, spec{name: "gd-c", group: "hq/gd", counted: true},
		spec{name: "hn-a", group: "hq/hn"}, spec{name: "sz-a", group: "hq/gd/sz"},
	)
	hq, gd := sites["hq-a"].members, sites["gd-a"].members
	for _, s := range slices.Concat(hq, gd) {
		s.link.throttle(12 * mib)
	}
	names := []string{"gd-a", "gd-b", "gd-c", "hn-a", "hq-a", "hq-b", "hq-c", "sz-a"}
	groups := [][]*site{hq, gd, {sites["hn-a"]}, {sites["sz-a"]}}

	const moving = "app/moving:latest"
	order := map[string]int{}
	var versions []ggcr.Image
	for i := range 2 * rounds {
		img := image(t, 64<<10, 1)
		d, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		order[d.String()] = i
		versions = append(versions, img)
	}
	stopWatching := sync.OnceFunc(neverOlder(t, sites, moving, order))
	defer stopWatching()

	p := &pushes{t: t, acked: map[string]string{}}
	carriers := 0 // killed
	for round := range rounds {
		for i := range perRound {
			at := slices.Clone(hq)
			rnd.Shuffle(len(at), func(i, j int) { at[i], at[j] = at[j], at[i] })
			p.push(fmt.Sprintf("app/web-%d:%d", i, round), with(t, image(t, 1<<10, 1), layer(t, layerSize)), at...)
		}
		next := versions[2*round : 2*round+2]
		p.wg.Go(func() {
			for _, img := range next {
				p.now(moving, img, sites["hq-b"])
			}
		})
		for _, kind := range rnd.Perm(3) {
			time.Sleep(time.Duration(rnd.IntN(700)) * time.Millisecond) // the random moment
			var v victim
			switch kind {
			case 0:
				v = agentVictim(sites[names[rnd.IntN(len(names))]], "agent")
			case 1:
				group := groups[rnd.IntN(len(groups))]
				v = agentVictim(rootOf(t, sites, group[0]), "root")
			case 2:
				s := sites[[]string{"hq-a", "hq-b", "gd-a"}[rnd.IntN(3)]]
				v = victim{"registry of " + s.name, nil, s.own.kill, s.own.start}
			}
			if slices.Contains(gd, v.agent) && rootOf(t, sites, v.agent) == v.agent {
				carriers++
			}
			away := time.Duration(rnd.IntN(1500)) * time.Millisecond
			t.Logf("round %d: kill -9 of %s for %s", round, v.what, away)
			v.kill()
			time.Sleep(away)
			v.start()
		}
		p.wg.Wait()
	}
	if t.Failed() {
		return
	}
	begin := time.Now()
	for ref, digest := range p.acked {
		for _, s := range sites {
			eventually(t, s.name+" shows "+ref, func() error { return head(t, s, ref, digest) })
		}
	}
	t.Logf("all was everywhere %s after the last push was acknowledged", time.Since(begin).Round(time.Millisecond))
	for ref, digest := range p.acked {
		for _, s := range sites {
			whole(t, s, ref, digest)
		}
	}
	stopWatching()

	// Each blob goes to two fellows and to two provinces from headquarters, and to two fellows and one city from the province.
	for _, g := range []struct {
		name      string
		links     []*site
		receivers int64
		lost      int // members below whose pieces were theirs alone
	}{{"headquarters", hq, 4, carriers}, {"the province", gd, 3, 0}} {
		var down, breaks int64
		for _, s := range g.links {
			down += s.link.down.Load()
			breaks += s.link.breaks.Load()
		}
		must := g.receivers * p.bytes
		most := framed(must) + breaks*(largeAtOnce*streams*piece+buffered) + int64(g.lost)*perRound*layerSize
		t.Logf("links of %s: %.1f MiB crossed, %.1f MiB had to at most, %d breaks in mid transfer, %d members lost with what they alone had; bound %.1f MiB",
			g.name, float64(down)/mib, float64(must)/mib, breaks, g.lost, float64(most)/mib)
		if down > most {
			t.Errorf("%d bytes crossed the links of %s, at most %d are explained", down, g.name, most)
		}
	}
}
