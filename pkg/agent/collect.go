package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/registry"
)

// underway is what deliveries bring into the registry: nothing there leads to it before the tag moves, and that may be days later.
type underway struct {
	mu  sync.Mutex
	set map[*delivery]bool
}

// add notes a delivery whose manifests are gathered, until done is called.
func (u *underway) add(d *delivery) (done func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.set == nil {
		u.set = map[*delivery]bool{}
	}
	u.set[d] = true
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.set, d)
	}
}

func (u *underway) in(repo string, keep map[string]bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for d := range u.set {
		if d.ref.Repository != repo {
			continue
		}
		for digest := range d.blobs {
			keep[digest] = true
		}
		for digest := range d.manifests {
			keep[digest] = true
		}
	}
}

var errNotLookedAt = errors.New("the registry was not looked through yet")

// keepInRegistry gives what the embedded registry must not collect from a repository, whatever its tags show: all under the catalog's records, so that a delivery that takes longer than
// the grace, over breaks and restarts, finds what it has put there.
func (a *Agent) keepInRegistry(repo string) (map[string]bool, error) {
	a.mu.Lock()
	swept := a.sweptOnce
	a.mu.Unlock()
	snap := a.node.Catalog()
	if !swept || !a.catalogRead() || snap.Resyncing() != "" {
		return nil, errNotLookedAt
	}
	keep := map[string]bool{}
	get := func(_ context.Context, digest string) (registry.Manifest, error) {
		m, err := a.store.Manifest(digest)
		return registry.Manifest(m), err
	}
	for rec := range snap.Repository(repo) {
		if catalog.Tombstone(rec) {
			continue
		}
		for _, root := range roots(rec) {
			keep[root.GetDigest()] = true
			// A manifest that is not in the cache has not been gathered: nothing under it was put yet, or all of it is under the tag.
			_ = registry.Walk(context.Background(), get, root, func(_ *registry.Descriptor, m registry.Manifest, p registry.Parsed) error {
				keep[m.Digest] = true
				for _, b := range p.Blobs {
					keep[b.GetDigest()] = true
				}
				return nil
			})
		}
	}
	a.underway.in(repo, keep)
	return keep, nil
}

// forgetCollected forgets that a repository of the registry has what it is about to lose.
func (a *Agent) forgetCollected(repo string, digests ...string) error {
	return errors.Join(a.store.RemoveBlob(repo, digests...), a.store.RemoveBlob(repo+"@referrers", digests...), a.store.RemoveBlob(repo+begunPlace, digests...))
}

// collected counts and tells what collections of the embedded registry's garbage took.
func (a *Agent) collected() func(registry.Collection, error) {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		a.metrics.MustRegister(c)
		return c
	}
	size := counter("fanout_registry_collected_bytes_total", "Bytes of blobs that the embedded registry collected.")
	blobs := counter("fanout_registry_collected_blobs_total", "Blobs that the embedded registry collected, manifests among them.")
	manifests := counter("fanout_registry_collected_manifests_total", "Manifests that repositories of the embedded registry lost in a collection.")
	failures := counter("fanout_registry_collection_failures_total", "Collections of the embedded registry that did not come everywhere.")
	last := prometheus.NewGauge(prometheus.GaugeOpts{Name: "fanout_registry_collection_last_timestamp_seconds", Help: "When the embedded registry last collected garbage; 0: not since the start."})
	a.metrics.MustRegister(last)
	return func(c registry.Collection, err error) {
		size.Add(float64(c.Bytes))
		blobs.Add(float64(c.Blobs))
		manifests.Add(float64(c.Manifests))
		last.Set(float64(time.Now().Unix()))
		if c.Blobs+c.Manifests+c.Links > 0 {
			a.events.normal("Collected", "", fmt.Sprintf("%s with %s, and %s of repositories", count(c.Blobs, "blob"), inBytes(c.Bytes), count(c.Manifests, "manifest")))
		}
		if err != nil {
			failures.Inc()
			a.events.warning("CollectFailed", "", err.Error())
		}
	}
}
