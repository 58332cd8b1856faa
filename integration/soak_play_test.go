package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// run is a fault run.
type run struct {
	t       *testing.T
	began   time.Time
	disks   map[string]*smallDisk
	sites   map[string]*site
	wires   *wires
	watcher *watcher
	history *history
	doors   map[string]*sync.RWMutex // of headquarters' registries: closed while one is wiped

	mu       sync.Mutex
	story    []string
	ops      map[string][]operation // by ref, in order
	losses   []loss
	troubles []trouble
	made     map[int]ggcr.Image
	blobs    map[string]map[string]int64 // digest of an image → its blobs and their sizes
	account  map[string]*account         // by link
}

func newRun(t *testing.T, disks map[string]*smallDisk) *run {
	r := &run{
		t: t, began: time.Now(), disks: disks, wires: newWires(), history: newHistory(), doors: map[string]*sync.RWMutex{},
		ops: map[string][]operation{}, made: map[int]ggcr.Image{}, blobs: map[string]map[string]int64{}, account: map[string]*account{},
	}
	r.sites = start(t, r.specs()...)
	r.watcher = newWatcher(r.sites)
	for _, name := range soakHQ {
		r.doors[name] = &sync.RWMutex{}
	}
	r.began = time.Now()
	return r
}

func (r *run) at(names ...string) (list []*site) {
	for _, n := range names {
		list = append(list, r.sites[n])
	}
	return list
}

// play carries a schedule out, and returns when all faults are healed and all operations over. Operations on one ref wait for each other, and so do faults that share a slot.
func (r *run) play(list []action) {
	accounting, stop := context.WithCancel(context.Background())
	var accountant sync.WaitGroup
	accountant.Go(func() { r.markForever(accounting) })
	defer accountant.Wait()
	defer stop()
	var wg sync.WaitGroup
	lines := map[string]chan struct{}{} // closed when the last one in a line is over
	for _, a := range list {
		time.Sleep(time.Until(r.began.Add(a.at))) // the schedule
		done := make(chan struct{})
		var before []chan struct{}
		for _, key := range append(slices.Clone(a.slots), a.ref) {
			if last := lines[key]; key != "" && last != nil {
				before = append(before, last)
			}
			lines[key] = done
		}
		others := func() {
			for _, b := range before {
				<-b
			}
		}
		wg.Go(func() {
			defer close(done)
			switch {
			case a.kind.fault():
				others()
				r.fault(a)
			case a.rival:
				r.operate(a)
				others() // who waits for this one waits for those, too
			default:
				others()
				r.operate(a)
			}
		})
	}
	wg.Wait()
}

// Sizes of layers. Some are shared by many images.
const (
	sharedLayers = 6
	largeEvery   = 9
)

// image makes the image of a number, always the same; its layers and its number are in it.
func (r *run) image(n int) ggcr.Image {
	r.mu.Lock()
	defer r.mu.Unlock()
	if img := r.made[n]; img != nil {
		return img
	}
	rnd := rand.New(rand.NewPCG(*soakSeed, uint64(n)))
	cfg, err := empty.Image.ConfigFile()
	if err != nil {
		r.t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.Config.Labels = map[string]string{"seq": fmt.Sprint(*soakSeed, n)}
	img, err := mutate.ConfigFile(mutate.MediaType(empty.Image, types.OCIManifestSchema1), cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	shared := rnd.IntN(sharedLayers)
	sizes := []int64{16<<10 + rnd.Int64N(512<<10)}
	if n%largeEvery == 0 {
		sizes = append(sizes, 6*mib)
	}
	layers := []ggcr.Layer{r.layer(1000+uint64(shared), 256<<10)}
	for i, size := range sizes {
		layers = append(layers, r.layer(uint64(n)<<8|uint64(i), size))
	}
	img, err = mutate.AppendLayers(img, layers...)
	if err != nil {
		r.t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		r.t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		r.t.Fatal(err)
	}
	blobs := map[string]int64{m.Config.Digest.String(): m.Config.Size}
	for _, l := range m.Layers {
		blobs[l.Digest.String()] = l.Size
	}
	r.made[n], r.blobs[digest.String()] = img, blobs
	return img
}

func (r *run) layer(seed uint64, size int64) ggcr.Layer {
	l, err := random.Layer(size, types.OCILayer, random.WithSource(source{rand.New(rand.NewPCG(*soakSeed, seed<<32))}))
	if err != nil {
		r.t.Fatal(err)
	}
	return l
}

// operateTime is how long a client tries.
const operateTime = 20 * time.Second

// operate does one change as a client would: at its registry, or behind it at another that answers.
func (r *run) operate(a action) {
	r.watcher.touch(a.ref)
	began := time.Now()
	o := operation{action: a, clean: r.settled(a.ref)}
	ctx, cancel := context.WithTimeout(context.Background(), operateTime)
	defer cancel()
	switch {
	case a.kind.pushes():
		img := r.image(a.image)
		d, err := img.Digest()
		if err != nil {
			r.t.Error(err)
			return
		}
		o.digest = d.String()
		r.atRegistries(ctx, &o, func(ctx context.Context, s *site, put *span) error {
			return remote.Write(reference(r.t, s, a.ref), img, remote.WithContext(ctx), remote.WithTransport(putTimes{put}), remote.WithRetryBackoff(remote.Backoff{Duration: 20 * time.Millisecond, Steps: 1}))
		})
		if o.acked && a.confirm {
			r.command(&o, "publish", a.ref)
		}
	case a.kind == removeTag:
		r.atRegistries(ctx, &o, func(ctx context.Context, s *site, _ *span) error {
			err := remote.Delete(reference(r.t, s, a.ref), remote.WithContext(ctx), remote.WithRetryBackoff(remote.Backoff{Duration: 20 * time.Millisecond, Steps: 1}))
			var te *transport.Error
			if errors.As(err, &te) && te.StatusCode == http.StatusNotFound {
				return fmt.Errorf("%w: nothing to delete", errSkip)
			}
			return err
		})
	default:
		name := map[kind]string{unpublish: "unpublish", undo: "undo"}[a.kind]
		begin := time.Now()
		r.command(&o, name, a.ref)
		o.attempts = append(o.attempts, attempt{span{begin, time.Now()}, "", o.acked})
	}
	r.watcher.touch(a.ref)
	o.life = span{began, time.Now()}
	r.mu.Lock()
	r.ops[a.ref] = append(r.ops[a.ref], o)
	r.mu.Unlock()
	r.say("%s", o)
}

// putTimes notes when the manifest was put, which is when the tag moves: the blobs before it may take long.
type putTimes struct{ put *span }

func (p putTimes) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method == http.MethodPut && strings.Contains(req.URL.Path, "/manifests/") {
		p.put.from = time.Now()
		defer func() { p.put.to = time.Now() }()
	}
	return remote.DefaultTransport.RoundTrip(req)
}

// errSkip ends an operation that makes no sense where it is tried.
var errSkip = errors.New("skipped")

// atRegistries tries an operation at its site's registry, then at others, until one acknowledges it. The operation may say more closely when it moved the tag.
func (r *run) atRegistries(ctx context.Context, o *operation, do func(context.Context, *site, *span) error) {
	first := slices.Index(soakHQ, o.site)
	for i := 0; ctx.Err() == nil; i++ {
		name := soakHQ[(first+i)%len(soakHQ)]
		if !r.doors[name].TryRLock() {
			continue
		}
		tctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		when := span{from: time.Now()}
		err := do(tctx, r.sites[name], &when)
		if when.to.IsZero() {
			when.to = time.Now()
		}
		cancel()
		r.doors[name].RUnlock()
		if errors.Is(err, errSkip) {
			return
		}
		o.attempts = append(o.attempts, attempt{when, name, err == nil})
		if err == nil {
			o.acked = true
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond): // the client's pause
		}
	}
}

// command runs fanoutctl at the members of headquarters, one after another, until one says yes or knows better.
func (r *run) command(o *operation, args ...string) {
	for i := range soakHQ {
		s := r.sites[soakHQ[(slices.Index(soakHQ, o.site)+i)%len(soakHQ)]]
		ctx, cancel := context.WithTimeout(context.Background(), 12*time.Second)
		cmd := exec.CommandContext(ctx, filepath.Join(binaries, "fanoutctl"), append([]string{"--server", s.fabric, "--timeout", "10s", "-o", "json"}, args...)...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		cancel()
		var said struct {
			Ref, Digest string
			Revision    uint64
			Copies      int
		}
		switch {
		case err != nil:
			r.say("fanoutctl %v at %s: %v: %s", args, s.name, err, strings.TrimSpace(stderr.String()))
		case json.Unmarshal(out, &said) != nil || said.Revision == 0:
			r.t.Errorf("fanoutctl %v at %s says %s", args, s.name, out)
			return
		case o.kind.pushes() && said.Digest != o.digest:
			// Another registry's push won, or the catalog already has a later one.
			r.say("fanoutctl %v at %s: published is %s, revision %d", args, s.name, said.Digest, said.Revision)
			return
		default:
			o.acked, o.revision = true, said.Revision
			digest := o.digest
			if o.kind == undo {
				digest, o.digest = said.Digest, said.Digest
			}
			if o.kind.pushes() && said.Copies < 2 {
				r.t.Errorf("publish of %s ended with %d copies", o.ref, said.Copies)
			}
			r.history.add(change{revision: said.Revision, ref: o.ref, digest: digest})
			return
		}
	}
}

// settled says whether all registries of headquarters, and the catalog, show what the last operation on a ref should end in.
func (r *run) settled(ref string) bool {
	r.mu.Lock()
	want := ""
	if ops := r.ops[ref]; len(ops) > 0 {
		want = ops[len(ops)-1].digest
		if last := ops[len(ops)-1]; !last.acked {
			r.mu.Unlock()
			return false
		}
	}
	r.mu.Unlock()
	if now, _ := r.history.now(ref); now.digest != want {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	for _, s := range r.at(soakHQ...) {
		if d, err := r.watcher.head(ctx, s, ref); err != nil || d != want {
			return false
		}
	}
	return true
}
