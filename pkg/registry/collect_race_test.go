package registry_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/fanout-io/fanout/pkg/registry"
)

// pusher is a client that pushes, moves and deletes tags of its own, made of layers that all pushers share.
type pusher struct {
	id      int
	url     string
	rand    *rand.Rand
	refused *atomic.Int64
}

func (p *pusher) image() (v1.Image, error) {
	img := v1.Image(empty.Image)
	for range 1 + p.rand.IntN(3) {
		l := static.NewLayer(layer(p.rand.Uint64N(24)), types.OCILayer)
		var err error
		if img, err = mutate.AppendLayers(img, l); err != nil {
			return nil, err
		}
	}
	return mutate.MediaType(img, types.OCIManifestSchema1), nil
}

// push does what a person does with a push that failed: the same again.
func (p *pusher) push(ctx context.Context, ref name.Tag, index bool) error {
	img, err := p.image()
	if err != nil {
		return err
	}
	opts := []remote.Option{remote.WithContext(ctx), remote.WithRetryBackoff(remote.Backoff{Duration: time.Millisecond, Steps: 3})}
	for try := 0; ; try++ {
		if index {
			second, err := p.image()
			if err != nil {
				return err
			}
			err = remote.WriteIndex(ref, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img}, mutate.IndexAddendum{Add: second}), opts...)
			if err == nil || try == 100 {
				return err
			}
		} else if err := remote.Write(ref, img, opts...); err == nil || try == 100 {
			return err
		}
		p.refused.Add(1)
	}
}

func (p *pusher) run(t *testing.T, c *registry.Client, until time.Time) map[string]bool {
	tags := map[string]bool{}
	for n := 0; time.Now().Before(until); n++ {
		repo, tag := fmt.Sprintf("race/r%d", p.rand.IntN(3)), fmt.Sprintf("p%d-%d", p.id, p.rand.IntN(4))
		ref, err := name.NewTag(p.url + "/" + repo + ":" + tag)
		if err != nil {
			t.Error(err)
			return tags
		}
		if tags[repo+":"+tag] && p.rand.IntN(4) == 0 {
			if err := c.DeleteTag(t.Context(), repo, tag); err != nil {
				t.Error(err)
			}
			delete(tags, repo+":"+tag)
			continue
		}
		if err := p.push(t.Context(), ref, p.rand.IntN(3) == 0); err != nil {
			t.Errorf("pushing %s: %v", ref, err)
			return tags
		}
		tags[repo+":"+tag] = true
		whole(t, c, repo, tag)
	}
	return tags
}

// Clients push, move and delete tags while garbage is collected without a pause and without a grace: a push may have to be done again, but what a tag shows is always whole.
func TestCollect_WhileClientsPush(t *testing.T) {
	const pushers = 4
	dir := t.TempDir()
	e := embedded(t, registry.EmbeddedConfig{Dir: dir})
	c := client(t, registry.Config{URL: e.URL()})
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	lasts := 4 * time.Second
	if testing.Short() {
		lasts = time.Second
	}
	until := time.Now().Add(lasts)
	var refused atomic.Int64
	var wg sync.WaitGroup
	tags := make([]map[string]bool, pushers)
	for i := range pushers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			p := &pusher{id: i, url: e.Addr().String(), rand: rand.New(rand.NewPCG(seed, uint64(i))), refused: &refused}
			tags[i] = p.run(t, c, until)
		}()
	}
	pushed := make(chan struct{})
	go func() { wg.Wait(); close(pushed) }()
	var sum registry.Collection
	runs := 0
	for done := false; !done; runs++ {
		select {
		case <-pushed:
			done = true // and once more
		default:
		}
		got, err := e.Collect(t.Context())
		if err != nil {
			t.Error(err)
		}
		sum.Blobs, sum.Links, sum.Manifests = sum.Blobs+got.Blobs, sum.Links+got.Links, sum.Manifests+got.Manifests
	}
	age(t, dir, grace)
	got := collect(t, e)
	sum.Blobs, sum.Manifests = sum.Blobs+got.Blobs, sum.Manifests+got.Manifests
	n := 0
	for _, mine := range tags {
		for id := range mine {
			repo, tag, _ := strings.Cut(id, ":")
			whole(t, c, repo, tag)
			n++
		}
	}
	t.Logf("%d collections took %d blobs, %d links and %d manifests; %d tags at the end; %d pushes were done again", runs, sum.Blobs, sum.Links, sum.Manifests, n, refused.Load())
	if sum.Blobs == 0 || sum.Manifests == 0 || n == 0 {
		t.Error("nothing happened")
	}
}
