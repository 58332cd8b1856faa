package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/registry"
)

const (
	// scrubRate is how many bytes a second the scrub reads of the registry at most.
	scrubRate = 32 << 20
	// scrubKey is where the store keeps how far the scrub is.
	scrubKey = "scrub"
	// scrubTries is how often it is tried to mend a digest before the rest goes on.
	scrubTries = 3
	// scrubNames is how many refs an event names.
	scrubNames = 3
)

// scrubForever looks at everything in the catalog that this site's registry should have, all of it once in scrub.interval: whether it is there, and whether its bytes are right.
// What is lost or damaged is delivered again.
func (a *Agent) scrubForever(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-a.swept: // before that much may not have been delivered yet
	}
	w := &scrubbing{a: a, pace: rate.NewLimiter(scrubRate, minBurst), metrics: a.counts.scrub}
	s := &scrubber{
		interval: a.cfg.Scrub.Interval, list: a.scrubList, look: w.look, log: a.logger,
		load: func() (st scrubState, err error) { return st, a.readValue(scrubKey, &st) },
		save: func(st scrubState) error { return a.writeValue(scrubKey, st) },
	}
	s.run(ctx)
}

type scrubMetrics struct{ looked, bytes, damaged prometheus.Counter }

func newScrubMetrics() scrubMetrics {
	return scrubMetrics{
		looked:  prometheus.NewCounter(prometheus.CounterOpts{Name: "fanout_scrub_looked_total", Help: "Manifests and blobs that the scrub has looked at."}),
		bytes:   prometheus.NewCounter(prometheus.CounterOpts{Name: "fanout_scrub_read_bytes_total", Help: "Bytes that the scrub has read and hashed."}),
		damaged: prometheus.NewCounter(prometheus.CounterOpts{Name: "fanout_scrub_damaged_total", Help: "Manifests and blobs that the scrub found lost or damaged."}),
	}
}

// scrubList lists the digests that lie under the live records and what is held, between two.
func (a *Agent) scrubList(ctx context.Context, after, before string) []scrubItem {
	w := &window{after: after, before: before, items: map[string]*scrubItem{}}
	snap := a.node.Catalog()
	walk := func(rec *catalogv1.Record) {
		repo := rec.GetRepository()
		get := func(ctx context.Context, digest string) (registry.Manifest, error) {
			w.add(digest, true, 0, repo) // also where it can't be read: then it is to be found missing
			m, err := a.manifestAtHand(ctx, repo, digest)
			return registry.Manifest(m), err
		}
		for _, root := range roots(rec) {
			// What can't be walked now, for want of a manifest, is walked when that is mended.
			_ = registry.Walk(ctx, get, root, func(_ *registry.Descriptor, _ registry.Manifest, p registry.Parsed) error {
				for _, b := range p.Blobs {
					w.add(b.GetDigest(), false, b.GetSize(), repo)
				}
				return nil
			})
		}
	}
	for rec := range snap.Records() {
		if !catalog.Tombstone(rec) && a.keeping.has(snap, catalog.RefOf(rec)) {
			walk(rec)
		}
		if ctx.Err() != nil {
			return nil
		}
	}
	held, err := a.helds(snap)
	if err != nil {
		a.logger.Warn("what is held is not scrubbed", "error", err)
	}
	for _, h := range held {
		walk(h.rec)
	}
	return w.first()
}

// scrubbing looks at single digests.
type scrubbing struct {
	a       *Agent
	pace    *rate.Limiter
	metrics scrubMetrics

	failures int // to mend, in a row
}

// look looks at one digest in each of its repositories; false: the registry does not answer.
func (w *scrubbing) look(ctx context.Context, item scrubItem) bool {
	c, digest := w.a.newChecker(true, w.pace), "sha256:"+item.digest
	held, err := w.heldWith(ctx, item)
	if err != nil {
		w.a.logger.Warn("what is held is not known", "error", err)
	}
	troubles := map[string]*trouble{}
	for _, repo := range item.repos {
		c.enter(repo)
		var t *trouble
		var err error
		if item.manifest {
			if t, err = c.manifest(ctx, digest); err == nil && t == nil && targets(held, repo, digest) {
				t, err = c.holdTag(ctx, digest)
			}
		} else {
			t, err = c.blob(ctx, &catalogv1.Descriptor{Digest: digest, Size: item.size})
		}
		if err != nil {
			return true // ctx ended
		}
		if t != nil {
			troubles[repo] = t
		}
	}
	w.metrics.looked.Inc()
	w.metrics.bytes.Add(float64(c.looked.bytes.Load()))
	if len(troubles) == 0 {
		return true
	}
	if w.a.registry.Ping(ctx) != nil {
		return false
	}
	if err := w.mend(ctx, item, digest, troubles, held); err != nil && ctx.Err() == nil {
		w.a.logger.Warn("what the scrub found is not mended", "digest", digest, "error", err)
		if w.failures++; w.failures < scrubTries {
			return false
		}
		// It must not hold up the rest. The next pass finds it again.
		w.a.events.warning("Scrubbed", "", fmt.Sprintf("%s is lost or damaged, and can't be mended: %v", digest, err))
	}
	w.failures = 0
	return true
}

// heldWith gives what is held here and has a digest under it.
func (w *scrubbing) heldWith(ctx context.Context, item scrubItem) (out []held, err error) {
	all, err := w.a.helds(w.a.node.Catalog())
	for _, h := range all {
		if slices.Contains(item.repos, h.rec.GetRepository()) && w.a.under(ctx, h.rec, "sha256:"+item.digest) {
			out = append(out, h)
		}
	}
	return out, err
}

// targets says whether a manifest is one that is held itself.
func targets(list []held, repo, digest string) bool {
	return slices.ContainsFunc(list, func(h held) bool { return h.rec.GetRepository() == repo && h.rec.GetTarget().GetDigest() == digest })
}

// mend has what was found lost or damaged delivered again, and tells of it.
func (w *scrubbing) mend(ctx context.Context, item scrubItem, digest string, troubles map[string]*trouble, held []held) error {
	var diffs []defect
	for _, h := range held {
		if t := troubles[h.rec.GetRepository()]; t != nil {
			diffs = append(diffs, defect{ref: catalog.RefOf(h.rec), kind: t.kind, digest: digest, reason: t.reason + "; " + h.why, manifest: item.manifest})
		}
	}
	for _, rec := range w.a.refsWith(ctx, digest) {
		t := troubles[rec.GetRepository()]
		if t == nil {
			continue
		}
		if meant, err := w.meant(ctx, rec); err != nil {
			return err
		} else if !meant {
			continue
		}
		diffs = append(diffs, defect{ref: catalog.RefOf(rec), kind: t.kind, digest: digest, reason: t.reason, manifest: item.manifest})
	}
	if len(diffs) == 0 {
		return nil // it is under no ref any more that is shown here
	}
	words, err := w.a.amend(ctx, diffs)
	if err != nil {
		return err
	}
	w.metrics.damaged.Inc()
	var names []string
	for _, d := range diffs[:min(len(diffs), scrubNames)] {
		names = append(names, d.ref.String())
	}
	text := fmt.Sprintf("%s of %s: %s", diffs[0].kind, digest, diffs[0].reason)
	if why := words[digest]; why != "" {
		text += "; " + why
	}
	text += "; delivered again: " + strings.Join(names, ", ")
	if n := len(diffs) - len(names); n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	w.a.events.warning("Scrubbed", diffs[0].ref.String(), text)
	w.a.logger.Warn("the registry lost or damaged content", "digest", digest, "reason", diffs[0].kind+": "+diffs[0].reason, "count", len(diffs))
	return nil
}

// meant says whether this site's registry should have all under a record: the record was delivered, and its tag is there. Else it is still to be delivered, or was deleted or
// changed here, which is not the scrub's to judge.
func (w *scrubbing) meant(ctx context.Context, rec *catalogv1.Record) (bool, error) {
	ref := catalog.RefOf(rec)
	pending, _ := w.a.progress.snapshot()
	if p := pending[ref.String()]; p != nil && p.GetState() != "drifted" && p.GetState() != "accepted" && p.GetState() != "held" {
		return false, nil
	}
	if len(rec.GetReleases()) > 0 {
		return w.a.ahead.has(rec), nil // all of it is held, whatever the tag shows
	}
	ours, err := w.a.observe(ctx, ref)
	switch {
	case err != nil:
		return true, nil // what the tag shows can't be read: that is what is to be mended
	case ours == "":
		return w.a.listed(ctx, ref)
	}
	return ours == rec.GetTarget().GetDigest(), nil
}
