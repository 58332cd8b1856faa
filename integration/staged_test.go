package integration

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/registry/harbortest"
	"github.com/fanout-io/fanout/pkg/view"
)

// collects has an embedded registry collect all the time what nothing needs.
const collects = ", gc: {interval: 300ms, grace: 500ms}"

// unseen polls sites until the returned function is called, and fails the test when one shows another digest under a ref than it is to show; empty: none at all.
func unseen(t testing.TB, ref, digest string, sites ...*site) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, s := range sites {
		r := reference(t, s, ref)
		wg.Go(func() {
			for ctx.Err() == nil {
				got, answered := "", false
				d, err := remote.Head(r, remote.WithContext(ctx))
				if err == nil {
					got = d.Digest.String()
				}
				var te *transport.Error
				answered = err == nil || errors.As(err, &te) && te.StatusCode == http.StatusNotFound
				if answered && got != digest {
					t.Errorf("%s shows %q under %s, and is to show %q", s.name, got, ref, digest)
					return
				}
				select {
				case <-ctx.Done():
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
	}
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

// pulled is an image as a site shows it.
func pulled(t testing.TB, s *site, ref string) ggcr.Image {
	t.Helper()
	img, err := remote.Image(reference(t, s, ref))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// held waits until where says of sites that the content of a ref is there and waits for a promotion.
func (s *site) held(ref string, sites ...string) {
	s.t.Helper()
	eventually(s.t, "the content of "+ref+" is held", func() error {
		states := map[string]whereSite{}
		for _, w := range s.where(ref) {
			states[w.Site] = w
		}
		for _, name := range sites {
			if w := states[name]; w.State != "held" || w.BytesLeft != 0 {
				return fmt.Errorf("%+v", w)
			}
		}
		return nil
	})
}

// collected waits until a registry has begun and ended a collection.
func (s *site) collected() {
	s.t.Helper()
	for range 2 {
		last, _ := s.findMetric("fanout_registry_collection_last_timestamp_seconds")
		eventually(s.t, "a collection at "+s.name, func() error {
			if now, _ := s.findMetric("fanout_registry_collection_last_timestamp_seconds"); now <= last {
				return fmt.Errorf("the last was at %v", last)
			}
			return nil
		})
	}
}

// TestStaged_OnlyTagsMove: staged content comes to every site and shows nowhere; nothing but holds keeps it from registries that collect all the time; a promotion and a rollback move manifests
// and control only over each link, however large the image.
func TestStaged_OnlyTagsMove(t *testing.T) {
	t.Parallel()
	var province, city trunk
	sites := start(t, spec{name: "hq-a", group: "hq", laid: wired(t, &province)}, spec{name: "gd-a", group: "hq/gd", laid: wired(t, &city), keys: collects}, spec{name: "sz-a", group: "hq/gd/sz", keys: collects})
	hq, gd, sz := sites["hq-a"], sites["gd-a"], sites["sz-a"]
	const size, layers = 8 * mib, 4
	const ref, fresh = "prod/web:stable", "prod/web:2.0"
	// most is what may cross a link, in each direction, for a tag that moves, however large its image is. Measured: 2 to 10 KB.
	const most = chatter
	p := promotionAt(t, hq)
	was := push(t, hq, ref, image(t, 1<<16, 1))
	hq.quiet(ref, was)
	p.staged()
	stillOld := unseen(t, ref, was, gd, sz)
	noTag := unseen(t, fresh, "", gd, sz)
	is := push(t, hq, ref, image(t, size, layers))
	push(t, hq, fresh, pulled(t, hq, ref))
	hq.held(ref, "gd-a", "sz-a")
	hq.held(fresh, "gd-a", "sz-a")
	for _, s := range []*site{gd, sz} {
		s.collected()
		if n := stored(t, filepath.Join(s.dir, "registry")); n < size*layers {
			t.Errorf("%s has %d bytes after a collection: too few to hold the image", s.name, n)
		}
		if h := holds(t, s, "prod/web"); len(h) == 0 {
			t.Errorf("%s has no hold", s.name)
		}
	}
	crossed := func(what string, do func()) {
		t.Helper()
		links := map[string]*trunk{"hq/gd from hq": &province, "hq/gd/sz from hq/gd": &city}
		before := map[string][2]int64{}
		for name, l := range links {
			before[name] = [2]int64{l.down.Load(), l.up.Load()}
		}
		begin := time.Now()
		do()
		for name, l := range links {
			down, up := l.down.Load()-before[name][0], l.up.Load()-before[name][1]
			t.Logf("%s: %s: %d bytes down, %d up in %s", what, name, down, up, time.Since(begin).Round(time.Millisecond))
			if down > most || up > most || down == 0 || up == 0 {
				t.Errorf("%s: %d bytes down and %d up crossed %s, want some and at most %d", what, down, up, name, most)
			}
		}
	}
	crossed("promotion", func() {
		stillOld()
		p.begin(planOf("{name: city, groups: [hq/gd/sz]}", `{name: rest, groups: ["**"], soak: 1s}`), "", ref)
		p.in("succeeded", 2)
		shows(t, gd, ref, is)
		shows(t, sz, ref, is)
	})
	noTag()
	if err := gone(t, sz, fresh); err != nil {
		t.Errorf("the tag that was not promoted: %v", err)
	}
	gd.collected()
	sz.collected()
	crossed("rollback", func() {
		p.steer("rollback")
		p.in("rolled-back", 2)
		shows(t, gd, ref, was)
		shows(t, sz, ref, was)
	})
	back := p.id
	for _, s := range []*site{gd, sz} {
		s.collected() // what may be promoted again is kept
	}
	crossed("promotion after a rollback", func() {
		p.begin(planOf(`{name: all, groups: ["**"]}`), "", ref+"@"+is)
		p.in("succeeded", 1)
		shows(t, sz, ref, is)
	})

	// Each byte came once, and none was there before: promotions and rollbacks spare a site nothing.
	for _, s := range []*site{gd, sz} {
		if v, ok := s.findMetric(`fanout_delivery_saved_bytes_total{how="present"}`); ok && v > most {
			t.Errorf("%s says that %v bytes were present", s.name, v)
		}
	}

	// What is published later changes no receipt.
	first := p.receipt(p.id, "delivered", is, "hq-a", "gd-a", "sz-a")
	next := push(t, hq, ref, image(t, 1<<16, 3))
	eventually(t, "the next one waits", func() error {
		for _, w := range hq.where(ref) {
			if w.Site == "sz-a" && (w.State != "held" || w.Digest != is) || w.Site == "hq-a" && w.Digest != next {
				return fmt.Errorf("%+v", w)
			}
		}
		return nil
	})
	if again := p.receipt(p.id, "delivered", is, "hq-a", "gd-a", "sz-a"); !reflect.DeepEqual(again, first) {
		t.Errorf("the receipt was %v, and is %v", first, again)
	}
	p.receipt(back, catalog.GroupRolledBack, was, "gd-a", "sz-a")
}

// receipt reads what a rollout remembers of one ref at sites: when each came to show it.
func (p *promotion) receipt(id, state, digest string, sites ...string) map[string]time.Time {
	p.t.Helper()
	doc, err := asks[view.Rollout](p.hq[0], "rollout", "show", id)
	if err != nil {
		p.t.Fatal(err)
	}
	at := map[string]time.Time{}
	for _, x := range doc.Sites {
		if !slices.Contains(sites, x.Site) {
			continue
		}
		if x.State != state || x.Digest != digest || x.Want != digest || x.Time == nil || x.Time.Before(*doc.Started) || x.Time.After(time.Now()) {
			p.t.Errorf("rollout %s says of %s: %+v; it has to say %s %s", id, x.Site, x, state, digest)
			continue
		}
		at[x.Site] = *x.Time
	}
	if len(at) != len(sites) {
		p.t.Errorf("receipts of %v, want %v", at, sites)
	}
	return at
}

// TestRollback_SeveralTogether: two refs go back together. A registry that refuses one of them shows both as they were: the one that had moved is put back. When it takes tags again both go back.
func TestRollback_SeveralTogether(t *testing.T) {
	t.Parallel()
	fake := serveFake(t, "oci", harbortest.Config{Knobs: harbortest.Knobs{Plain: true}})
	sites := start(t, spec{name: "hq-a", group: "hq"}, spec{name: "gd-a", group: "hq/gd", extra: fake.extra}, spec{name: "hn-a", group: "hq/hn"})
	hq, hn := sites["hq-a"], sites["hn-a"]
	refs := []string{"prod/api:stable", "prod/web:stable"} // in the order in which they are put
	p := promotionAt(t, hq)
	was, is := map[string]string{}, map[string]string{}
	for _, ref := range refs {
		was[ref] = push(t, hq, ref, image(t, 1<<16, 1))
		fake.nowShows(ref, was[ref])
		shows(t, hn, ref, was[ref])
	}
	p.staged()
	var pinned []string
	for _, ref := range refs {
		is[ref] = push(t, hq, ref, image(t, 1<<16, 2))
		pinned = append(pinned, ref+"@"+is[ref])
	}
	p.begin(planOf("{name: all, groups: [hq/gd, hq/hn], maxConcurrent: 100%}"), "", pinned...)
	p.in("succeeded", 1)
	for _, ref := range refs {
		fake.nowShows(ref, is[ref])
		shows(t, hn, ref, is[ref])
	}

	mend := fake.AddFault(harbortest.Fault{Match: tagPuts("prod/web", "stable"), Status: 503, Code: "UNAVAILABLE", Message: "try later", RetryAfter: "6"})
	p.steer("rollback")
	refState(t, hq, refs[1], "gd-a", "failed", "503", "UNAVAILABLE", "try later")
	refState(t, hq, refs[0], "gd-a", "failed", "moves together with "+refs[1])
	for _, ref := range refs {
		fake.nowShows(ref, is[ref])
		shows(t, hn, ref, was[ref])
	}
	mend()
	for _, ref := range refs {
		fake.nowShows(ref, was[ref])
	}
	p.in("rolled-back", 1)
	p.group("hq/gd", "rolled-back")
}
