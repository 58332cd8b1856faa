package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/store"
)

// Each registry has a marker: a tag that shows a counter, which this site raises after it changed something there. A registry whose counter is lower than it was was restored
// from a backup, one without was wiped. What such a registry shows, or does not show, is nobody's push and nobody's deletion: nothing is published or deleted on its word, what
// the catalog knows is delivered again, and what the catalog does not know is left alone.
//
// Invariant: the counter that is about to be put is written down first, so a registry never shows one that this site does not know of, unless this site's memory is the older one.

const (
	// markerRepository holds the markers, one tag for each site.
	markerRepository = "fanout/marker"
	// markerDelay is how long after a change the counter is raised, and markerEvery the least time between two: what a backup holds of that time looks like a push when it is restored.
	markerDelay = 2 * time.Second
	markerEvery = 10 * time.Second

	markerKey    = "marker"
	distrustKey  = "distrust"
	counterLabel = "io.fanout.counter"
)

// counts are what this site knows of its marker.
type counts struct {
	// Confirmed was seen in the registry; 0: there was none. Intended may have been put since.
	Confirmed, Intended uint64
}

// distrust says since when a registry's word does not count for what this site has not put there since.
type distrust struct {
	At time.Time
	// Swept: all tags of the registry have been looked at since, so one that is met for the first time is news.
	Swept bool
}

// marker guards both.
type marker struct {
	moved nudge // something changed in the registry

	io sync.Mutex // one looks at the registry's marker, or puts it, at a time

	mu       sync.Mutex
	distrust distrust
}

// ownRepository says whether a repository is fanout's own: nothing in it is published or swept.
func ownRepository(repo string) bool { return repo == markerRepository || repo == scratchRepository }

func markerTag(site string) string {
	sum := sha256.Sum256([]byte(site))
	return "site-" + hex.EncodeToString(sum[:])[:16]
}

// loadMarker reads the memory of an earlier process.
func (a *Agent) loadMarker() error {
	a.marker.moved = newNudge()
	return a.readValue(distrustKey, &a.marker.distrust)
}

// readValue reads a JSON value of the store; one that is not there leaves v as it is.
func (a *Agent) readValue(key string, v any) error {
	b, err := a.store.Value(key)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("value %q of the store: %w", key, err)
	}
	return nil
}

func (a *Agent) writeValue(key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return a.store.PutValue(key, b)
}

// counterOf reads a marker; 0: it is none.
func counterOf(content []byte) uint64 {
	var m struct {
		Annotations map[string]string `json:"annotations"`
	}
	if json.Unmarshal(content, &m) != nil {
		return 0
	}
	n, err := strconv.ParseUint(m.Annotations[counterLabel], 10, 63)
	if err != nil {
		return 0
	}
	return n
}

// checkMarker compares the registry's marker with what this site knows. It reports true when the registry turned out to be wiped or restored: then everything is judged anew.
func (a *Agent) checkMarker(ctx context.Context) (lost bool, err error) {
	a.marker.io.Lock()
	defer a.marker.io.Unlock()
	return a.compareMarker(ctx)
}

// compareMarker is checkMarker under marker.io.
func (a *Agent) compareMarker(ctx context.Context) (lost bool, err error) {
	var known counts
	if err := a.readValue(markerKey, &known); err != nil {
		return false, err
	}
	shown, err := a.shownMarker(ctx, known)
	switch {
	case err == nil:
	case errors.Is(err, registry.ErrNotFound):
	case errors.Is(err, registry.ErrUnauthorized), errors.Is(err, registry.ErrDenied):
		if known.Confirmed == 0 {
			return false, nil // no marker can be kept here, see raiseMarker
		}
		return false, err
	default:
		return false, err
	}
	switch {
	case shown == known.Confirmed:
		return false, nil
	case shown == known.Intended, shown > known.Intended:
		// The put before a crash did happen; or this site's memory is the older of the two, and it goes on from there.
		return false, a.writeValue(markerKey, counts{Confirmed: shown, Intended: shown})
	}
	what := fmt.Sprintf("the registry shows marker %d, and showed %d: it was restored from a backup", shown, known.Confirmed)
	if shown == 0 {
		what = fmt.Sprintf("the registry has lost its marker, which was %d: it was wiped", known.Confirmed)
	}
	if err := a.setDistrust(distrust{At: time.Now()}); err != nil {
		return false, err
	}
	if err := a.store.ForgetBlobs(); err != nil {
		return false, err
	}
	a.ahead.forgetAll()
	a.events.warning("RegistryLost", "", what+"; what the catalog knows is delivered again")
	a.logger.Warn("the registry is not the one that it was", "reason", what)
	a.marker.moved.set()
	a.stale.set()
	return true, a.writeValue(markerKey, counts{Confirmed: shown, Intended: known.Intended})
}

// shownMarker asks the registry for its counter. It is mostly the one that is known: then it is told by its digest, without being read.
func (a *Agent) shownMarker(ctx context.Context, known counts) (uint64, error) {
	tag := markerTag(a.cfg.Site)
	if known.Confirmed > 0 {
		d, err := a.registry.Resolve(ctx, markerRepository, tag)
		if err != nil {
			return 0, err
		}
		if d.GetDigest() == markerManifest(known.Confirmed).Digest {
			return known.Confirmed, nil
		}
	}
	m, err := a.registry.Manifest(ctx, markerRepository, tag)
	if err != nil {
		return 0, err
	}
	return counterOf(m.Content), nil
}

// markerManifest is the marker of a counter: an index of nothing, since that needs no blob.
func markerManifest(counter uint64) registry.Manifest {
	content := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[],"annotations":{%q:"%d"}}`, registry.MediaTypeOCIIndex, counterLabel, counter)
	return registry.Manifest{MediaType: registry.MediaTypeOCIIndex, Digest: registry.DigestOf(content), Content: content}
}

func (a *Agent) setDistrust(d distrust) error {
	a.marker.mu.Lock()
	defer a.marker.mu.Unlock()
	if err := a.writeValue(distrustKey, d); err != nil {
		return err
	}
	a.marker.distrust = d
	return nil
}

func (a *Agent) distrustNow() distrust {
	a.marker.mu.Lock()
	defer a.marker.mu.Unlock()
	return a.marker.distrust
}

// distrusted says whether the registry's word on a ref does not count.
func (a *Agent) distrusted(ref catalog.Ref, st store.RefState, known bool) bool {
	d := a.distrustNow()
	switch {
	case d.At.IsZero(), a.pushes.get(ref.String()).After(d.At):
		return false
	case known:
		return !st.At.After(d.At)
	}
	return !d.Swept
}

// sweptSince notes that all tags were looked at after the registry was lost.
func (a *Agent) sweptSince(began time.Time) error {
	d := a.distrustNow()
	if d.At.IsZero() || d.Swept || d.At.After(began) {
		return nil // or it was lost again meanwhile: the next sweep counts
	}
	d.Swept = true
	return a.setDistrust(d)
}

// unswept says that the registry was lost and its tags have not been looked at since.
func (a *Agent) unswept() bool {
	d := a.distrustNow()
	return !d.At.IsZero() && !d.Swept
}

// keepMarker raises the counter after this site changed something in the registry. A registry that has no marker gets one at once: should it be wiped a moment later, that is noticed.
func (a *Agent) keepMarker(ctx context.Context) {
	var known counts
	if err := a.readValue(markerKey, &known); err != nil {
		a.logger.Warn("the marker's memory can't be read", "error", err)
	}
	warned, delay := false, markerDelay
	if known.Confirmed == 0 {
		delay = 0
		a.marker.moved.set()
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.marker.moved:
		}
		if !sleep(ctx, delay) {
			return
		}
		delay = markerDelay
		if err := a.raiseMarker(ctx); err != nil && ctx.Err() == nil {
			level := a.logger.Debug
			if !warned {
				warned, level = true, a.logger.Warn
			}
			level("no marker is kept in the registry, so that it can't be noticed when it is wiped or restored", "error", err, "retry_in", markerEvery)
			a.marker.moved.set()
		}
		if !sleep(ctx, markerEvery) {
			return
		}
	}
}

func (a *Agent) raiseMarker(ctx context.Context) error {
	a.marker.io.Lock()
	defer a.marker.io.Unlock()
	// A registry that was just restored must not be given a counter that hides it.
	if _, err := a.compareMarker(ctx); err != nil {
		return err
	}
	var known counts
	if err := a.readValue(markerKey, &known); err != nil {
		return err
	}
	next := counts{Confirmed: known.Confirmed, Intended: max(known.Confirmed, known.Intended) + 1}
	if err := a.writeValue(markerKey, next); err != nil {
		return err
	}
	if err := a.registry.EnsureRepository(ctx, markerRepository); err != nil {
		return err
	}
	if err := a.registry.PutManifest(ctx, markerRepository, markerTag(a.cfg.Site), markerManifest(next.Intended)); err != nil {
		return err
	}
	return a.writeValue(markerKey, counts{Confirmed: next.Intended, Intended: next.Intended})
}
