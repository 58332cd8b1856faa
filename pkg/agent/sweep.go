package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/store"
)

// sweepForever compares all of the registry with the catalog, at the start, then at an interval, and when the registry was away. Webhooks make things fast; the sweep makes them certain.
func (a *Agent) sweepForever(ctx context.Context) {
	if !a.waitForCatalog(ctx) {
		return // referrers are looked for under its records
	}
	for failures := 0; ; {
		err := a.sweep(ctx)
		if ctx.Err() != nil {
			return
		}
		wait := a.cfg.Sweep.Interval
		wait = wait - wait/10 + rand.N(wait/5+1)
		if err != nil {
			wait = max(min(wait, delay(failures, backoffMax, 0)), registry.RetryAfter(err))
		}
		a.mu.Lock()
		a.sweepError, a.nextSweep = err, time.Now().Add(wait)
		if err == nil && !a.sweptOnce {
			a.sweptOnce = true
			close(a.swept)
		}
		a.mu.Unlock()
		if err != nil {
			failures++
			a.progress.touch()
			a.logger.Warn("sweep failed", "error", err, "retry_in", wait)
		} else {
			failures = 0
		}
		if !a.stale.wait(ctx, sweepAgain, wait) {
			return
		}
	}
}

// baselineKey marks in the store that what was there before fanout came has been noted.
const baselineKey = "baseline"

// sweep puts every ref that the registry or the catalog knows into the queue. What can't be listed holds up nothing else: the rest is looked at, and the first error is returned. The first one at headquarters notes what is there already, so that it is not taken for a push, unless
// publish.existing says that it is to be published.
func (a *Agent) sweep(ctx context.Context) error {
	_, err := a.store.Value(baselineKey)
	first := errors.Is(err, store.ErrNotFound)
	if err != nil && !first {
		return err
	}
	began := time.Now()
	var failed error
	unlisted := 0
	if _, err := a.checkMarker(ctx); err != nil {
		failed, unlisted = fmt.Errorf("looking for the marker: %w", err), 1
	}
	// What a registry that was wiped or restored has and the catalog does not know is nobody's push either.
	baseline := a.cfg.Headquarters() && (first && a.cfg.Publish.Existing == "ignore" || a.unswept())
	for repo, err := range a.registry.Repositories(ctx) {
		if !first && !a.cfg.Headquarters() {
			break // below headquarters the catalog says what to look at; only the first sweep looks at all, for blobs to mount
		}
		if err != nil {
			failed, unlisted = cmp.Or(failed, fmt.Errorf("listing repositories: %w", err)), unlisted+1
			break
		}
		if ownRepository(repo) {
			continue
		}
		if err := a.sweepRepository(ctx, repo, first, baseline); err != nil {
			failed, unlisted = cmp.Or(failed, err), unlisted+1
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	for rec := range a.node.Catalog().Records() {
		a.queue.add(key{repository: rec.GetRepository(), tag: rec.GetTag()})
	}
	if err := a.releaseHolds(ctx); err != nil {
		a.logger.Warn("holds are released at the next sweep", "error", err)
	}
	switch {
	case unlisted > 1:
		return fmt.Errorf("%w; %d more failed", failed, unlisted-1)
	case failed != nil:
		return failed
	}
	if err := a.sweptSince(began); err != nil {
		return err
	}
	if first {
		return a.store.PutValue(baselineKey, []byte(time.Now().UTC().Format(time.RFC3339)))
	}
	return nil
}

// sweepRepository looks at all tags of a repository.
func (a *Agent) sweepRepository(ctx context.Context, repo string, first, baseline bool) error {
	for tag, err := range a.registry.Tags(ctx, repo) {
		if errors.Is(err, registry.ErrNotFound) {
			return nil // the repository went meanwhile, or has no tag left
		}
		if err != nil {
			return fmt.Errorf("listing tags of %s: %w", repo, err)
		}
		ref := catalog.Ref{Repository: repo, Tag: tag}
		if first {
			a.index(ctx, ref)
		}
		if err := a.sweepTag(ctx, ref, baseline); err != nil {
			return err
		}
	}
	return nil
}

// index notes where in the registry the content under a ref is, so that it can be mounted instead of sent. What can't be read is left out.
func (a *Agent) index(ctx context.Context, ref catalog.Ref) {
	digest, err := a.observe(ctx, ref)
	if err != nil || digest == "" {
		return
	}
	if _, _, err := a.readClosure(ctx, ref.Repository, digest); err != nil {
		a.logger.Info("content was not indexed", "ref", ref.String(), "error", err)
		return
	}
	a.logger.Debug("content was indexed", "ref", ref.String(), "digest", digest)
}

func (a *Agent) sweepTag(ctx context.Context, ref catalog.Ref, baseline bool) error {
	if registry.IsHoldTag(ref.Tag) {
		return nil
	}
	if subject, ok := registry.IsFallbackTag(ref.Tag); ok {
		if a.cfg.Headquarters() {
			a.subjectChanged(ctx, ref.Repository, subject)
		}
		return nil
	}
	if baseline && !a.pushes.get(ref.String()).After(a.distrustNow().At) {
		if _, known := a.node.Catalog().Get(ref); !known {
			digest, err := a.observe(ctx, ref)
			if err != nil || digest == "" {
				return err
			}
			return a.store.PutRefState(ref.String(), store.RefState{Base: digest, At: time.Now()})
		}
	}
	if a.cfg.Headquarters() {
		a.queue.add(key{repository: ref.Repository, tag: ref.Tag})
	}
	return nil
}
