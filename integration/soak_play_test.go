package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
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

	mu      sync.Mutex
	story   []string
	ops     map[string][]operation // by ref, in order
	losses  []loss
	made    map[int]ggcr.Image
	blobs   map[string]map[string]int64 // digest of an image → its blobs and their sizes
	account map[string]*account         // by link
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
		wg.Go(func() {
			defer close(done)
			for _, b := range before {
				<-b
			}
			if a.kind.fault() {
				r.fault(a)
			} else {
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
		r.atRegistries(ctx, &o, func(ctx context.Context, s *site) error {
			return remote.Write(reference(r.t, s, a.ref), img, remote.WithContext(ctx), remote.WithRetryBackoff(remote.Backoff{Duration: 20 * time.Millisecond, Steps: 1}))
		})
		if o.acked && a.confirm {
			r.command(&o, "publish", a.ref)
		}
	case a.kind == removeTag:
		r.atRegistries(ctx, &o, func(ctx context.Context, s *site) error {
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
	r.mu.Lock()
	r.ops[a.ref] = append(r.ops[a.ref], o)
	r.mu.Unlock()
	r.say("%s", o)
}

// errSkip ends an operation that makes no sense where it is tried.
var errSkip = errors.New("skipped")

// atRegistries tries an operation at its site's registry, then at others, until one acknowledges it.
func (r *run) atRegistries(ctx context.Context, o *operation, do func(context.Context, *site) error) {
	first := slices.Index(soakHQ, o.site)
	for i := 0; ctx.Err() == nil; i++ {
		name := soakHQ[(first+i)%len(soakHQ)]
		if !r.doors[name].TryRLock() {
			continue
		}
		tctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		begin := time.Now()
		err := do(tctx, r.sites[name])
		end := time.Now()
		cancel()
		r.doors[name].RUnlock()
		if errors.Is(err, errSkip) {
			return
		}
		o.attempts = append(o.attempts, attempt{span{begin, end}, name, err == nil})
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

// fault breaks something, waits, and heals it.
func (r *run) fault(a action) {
	r.say("begin: %s", a)
	wait := func() { time.Sleep(a.last) }
	s := r.sites[a.what]
	switch a.kind {
	case killAgent:
		r.missing(s)
		r.end(s)
		wait()
		s.start()
	case killRegistry:
		r.missing(s)
		s.own.kill()
		wait()
		s.own.start()
	case stopAgent:
		r.missing(s)
		r.freeze(s, wait)
	case cutLink, holeLink, delayLink, slowLink:
		r.hamper(a, wait)
	case fillDisk:
		r.missing(s)
		r.disks[a.what].fill(r.t, 0)
		wait()
		r.disks[a.what].empty(r.t)
	case loseMemory:
		r.loseMemory(a, wait)
	case wipeRegistry:
		r.wipeRegistry(a, wait)
	}
	r.say("over: %s", a)
}

func (r *run) hamper(a action, wait func()) {
	l := r.wires.link(a.what, a.what[:strings.LastIndex(a.what, "/")])
	switch a.kind {
	case cutLink:
		l.sever()
		wait()
		l.join()
	case holeLink:
		l.swallow()
		wait()
		l.restore()
	case delayLink:
		l.delay.Store(int64(300 * time.Millisecond))
		wait()
		l.delay.Store(0)
	default:
		l.rate(linkRate / 2)
		wait()
		l.rate(linkRate)
	}
}

// keepOnly removes all of an agent's data but its registry.
func (r *run) keepOnly(s *site, keep string) {
	dir := s.dir
	if s.data != "" {
		dir = s.data
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		r.t.Error(err)
	}
	for _, e := range entries {
		if e.Name() != keep {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				r.t.Error(err)
			}
		}
	}
}

// loseMemory takes the data of one member of headquarters, or of all agents of a group below.
func (r *run) loseMemory(a action, wait func()) {
	if groupOf(a.what) == "hq" {
		open, ok := r.safe(a)
		defer open()
		if !ok {
			return
		}
	}
	var lost []*site
	if members, ok := soakGroups[a.what]; ok {
		lost = r.at(members...)
	} else {
		lost = r.at(a.what)
	}
	for _, s := range lost {
		r.lone(s)
		r.end(s)
	}
	for _, s := range lost {
		r.keepOnly(s, "registry")
	}
	wait()
	r.mu.Lock()
	r.accountOf(lost[0].group).resyncs++
	r.mu.Unlock()
	for _, s := range lost {
		s.start()
	}
	if groupOf(a.what) == "hq" {
		r.votes(r.sites[a.what])
	}
}

// votes waits until a member that lost its disk has a vote again: before that no other may be in trouble.
func (r *run) votes(s *site) {
	eventually(r.t, s.name+" votes again", func() error {
		for _, at := range r.at(soakHQ...) {
			if at == s {
				continue
			}
			list, err := at.memberList()
			if err != nil {
				return err
			}
			if m := list[s.name]; !m.Voter || m.State == "unreachable" {
				return fmt.Errorf("%v", list)
			}
			return nil
		}
		return nil
	})
}

func (r *run) wipeRegistry(a action, wait func()) {
	s := r.sites[a.what]
	if s.group == "hq" {
		open, ok := r.safe(a)
		defer open()
		if !ok {
			return
		}
	}
	r.missing(s)
	r.emptied(s)
	begin := time.Now()
	if s.own != nil {
		s.own.kill()
		_ = os.RemoveAll(s.own.Dir)
		wait()
		s.own.start()
	} else {
		dir := s.dir
		if s.data != "" {
			dir = s.data
		}
		r.end(s)
		_ = os.RemoveAll(filepath.Join(dir, "registry"))
		wait()
		s.start()
	}
	r.watcher.forget(s.name)
	r.mu.Lock()
	r.losses = append(r.losses, loss{s.name, span{begin, time.Now()}})
	r.mu.Unlock()
}

// safeTime is how long a registry of headquarters waits for its moment to be wiped.
const safeTime = 15 * time.Second

// safe closes a registry of headquarters to clients and waits until nothing depends on it, or on its agent's memory, alone. Open lets clients in again.
func (r *run) safe(a action) (open func(), ok bool) {
	door := r.doors[a.what]
	door.Lock()
	deadline := time.Now().Add(safeTime)
	for {
		err := r.depends()
		if err == nil {
			return door.Unlock, true
		}
		if time.Now().After(deadline) {
			r.say("not done: %s: %v", a, err)
			return door.Unlock, false
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// depends says what is not yet the same at all registries of headquarters and in the catalog.
func (r *run) depends() error {
	r.mu.Lock()
	refs := make([]string, 0, len(r.ops))
	for ref := range r.ops {
		refs = append(refs, ref)
	}
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, ref := range refs {
		now, _ := r.history.now(ref)
		for _, s := range r.at(soakHQ...) {
			d, err := r.watcher.head(ctx, s, ref)
			if err != nil {
				return err
			}
			if again, _ := r.history.now(ref); d != now.digest || again != now {
				return fmt.Errorf("%s shows %q under %s, the catalog says %q", s.name, d, ref, now.digest)
			}
		}
	}
	return nil
}
