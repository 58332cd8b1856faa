package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/store"
)

// referrersEvery is in how many sweeps a registry with a referrers API is asked once for the referrers of every ref: a part of them in each, since nothing else tells that these
// changed. So a referrer of which no notification came is found after that many intervals at the latest, and at once after a start or an outage.
const referrersEvery = 12

// sweepForever compares all of the registry with the catalog, at the start, then at an interval, and when the registry was away. Webhooks make things fast; the sweep makes them certain.
func (a *Agent) sweepForever(ctx context.Context) {
	if !a.waitForCatalog(ctx) {
		return // referrers are looked for under its records
	}
	urgent := true
	for failures := 0; ; {
		began := time.Now()
		err := a.sweeper.sweep(ctx, urgent)
		if ctx.Err() != nil {
			return
		}
		a.counts.sweep.Observe(time.Since(began).Seconds())
		a.counts.questions.Add(float64(a.sweeper.questions))
		wait := a.cfg.Sweep.Interval
		wait = wait - wait/10 + rand.N(wait/5+1)
		wait = max(wait-time.Since(began), wait/2) // a sweep takes a part of the interval
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
		nudged, alive := a.stale.wait(ctx, sweepAgain, wait)
		if !alive {
			return
		}
		urgent = nudged || err != nil && urgent
	}
}

// baselineKey marks in the store that what was there before fanout came has been noted.
const baselineKey = "baseline"

// sweeper looks through the registry again and again, at the cost of few questions where nothing changed: a list of tags for each repository, and one question for each tag, spread
// over time. Referrers are asked for where something says that they changed: see causeOf. One sweep runs at a time.
type sweeper struct {
	a *Agent
	// looked is what was known of the referrers of a ref when they were asked for last.
	looked map[catalog.Ref]string
	// turn counts sweeps.
	turn uint32
	// questions that the last sweep had.
	questions int
	// spread is the time over which a sweep's questions are spread.
	spread time.Duration

	// Of the sweep under way:

	pace *pace
	// first: this site's memory knows of no sweep. baseline: what the catalog does not know is no push.
	first, baseline bool
	// urgent: notifications may have been missed.
	urgent bool
	// probed: it was asked whether the registry has a referrers API; api: it may have.
	probed, api bool
	// seen becomes looked.
	seen map[catalog.Ref]string
	// missing are refs that the registry should show and does not list. They are looked at in the end, together, so that many are seen to be many.
	missing []key
	// mute: the registry does not answer, so it is not asked for lists.
	mute bool
}

func newSweeper(a *Agent) *sweeper {
	return &sweeper{a: a, spread: a.cfg.Sweep.Interval / 2, looked: map[catalog.Ref]string{}}
}

// sweep puts every ref that the registry or the catalog knows into the queue. What can't be listed holds up nothing else: the rest is looked at, and the first error is returned. The first one at headquarters notes what is there already, so that it is not taken for a push, unless
// publish.existing says that it is to be published.
func (s *sweeper) sweep(ctx context.Context, urgent bool) error {
	a := s.a
	_, err := a.store.Value(baselineKey)
	s.first = errors.Is(err, store.ErrNotFound)
	if err != nil && !s.first {
		return err
	}
	began := time.Now()
	var failed error
	unlisted := 0
	fail := func(err error) {
		if err != nil {
			failed, unlisted = cmp.Or(failed, err), unlisted+1
		}
	}
	if _, err := a.checkMarker(ctx); err != nil {
		fail(fmt.Errorf("looking for the marker: %w", err))
	}
	s.begin(urgent)
	swept := map[string]bool{}
	if s.first || a.cfg.Headquarters() { // below headquarters the catalog says what to look at; only the first sweep looks at all, for blobs to mount
		for repo, err := range a.registry.Repositories(ctx) {
			if err != nil {
				fail(fmt.Errorf("listing repositories: %w", err))
				break
			}
			if !swept[repo] && !ownRepository(repo) {
				swept[repo] = true
				fail(s.repository(ctx, repo))
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	for rec := range a.node.Catalog().Records() {
		if repo := rec.GetRepository(); !swept[repo] {
			swept[repo] = true
			fail(s.repository(ctx, repo))
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	for _, k := range s.missing {
		a.queue.addFor(k, sweptWhole)
	}
	s.looked, s.questions = s.seen, s.pace.asked
	if err := a.dropOrphaned(ctx); err != nil && ctx.Err() == nil {
		a.logger.Warn("the list of deletions", "error", err)
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
	if s.first {
		return a.store.PutValue(baselineKey, []byte(time.Now().UTC().Format(time.RFC3339)))
	}
	return nil
}

func (s *sweeper) begin(urgent bool) {
	a := s.a
	// What a registry that was wiped or restored has and the catalog does not know is nobody's push either.
	s.baseline = a.cfg.Headquarters() && (s.first && a.cfg.Publish.Existing == "ignore" || a.unswept())
	s.urgent, s.probed, s.api, s.mute, s.missing = urgent, false, false, false, nil
	s.seen = make(map[catalog.Ref]string, len(s.looked))
	s.turn++
	s.pace = newPace(max(s.questions, a.node.Catalog().Len()), s.spread, a.stale)
	s.pace.rushed = urgent
}

// repository looks at all tags of a repository, and at all of its records.
func (s *sweeper) repository(ctx context.Context, repo string) error {
	tags, err := s.list(ctx, repo)
	var indexes map[string]string
	if err == nil {
		indexes, err = s.listed(ctx, repo, tags)
	}
	if err != nil {
		// What the registry lists is not known: each ref is asked for.
		tags, indexes = nil, nil
		s.mute = s.mute || errors.Is(err, registry.ErrUnavailable) && !s.a.cfg.Headquarters()
		if !s.a.cfg.Headquarters() {
			s.a.logger.Debug("tags were not listed", "repository", repo, "error", err)
			err = nil // it will be said of each ref, where it is so
		}
	}
	for rec := range s.a.node.Catalog().Repository(repo) {
		if rerr := s.record(ctx, rec, tags, indexes); rerr != nil {
			return cmp.Or(err, rerr)
		}
	}
	return err
}

// errMute stands in for a question that is not asked.
var errMute = errors.New("the registry did not answer before")

// list gives all tags of a repository.
func (s *sweeper) list(ctx context.Context, repo string) (map[string]bool, error) {
	if s.mute {
		return nil, errMute
	}
	if err := s.pace.wait(ctx, 1); err != nil {
		return nil, err
	}
	tags := map[string]bool{}
	for tag, err := range s.a.registry.Tags(ctx, repo) {
		if errors.Is(err, registry.ErrNotFound) {
			return tags, nil // the repository went meanwhile, or has no tag left
		}
		if err != nil {
			return nil, fmt.Errorf("listing tags of %s: %w", repo, err)
		}
		tags[tag] = true
	}
	return tags, nil
}

// listed looks at the tags of a repository that are no ref of the catalog. It gives the digest that each fallback tag shows, by subject.
func (s *sweeper) listed(ctx context.Context, repo string, tags map[string]bool) (map[string]string, error) {
	indexes := map[string]string{}
	for tag := range tags {
		ref := catalog.Ref{Repository: repo, Tag: tag}
		if s.first {
			s.a.index(ctx, ref)
		}
		if registry.IsHoldTag(tag) {
			continue
		}
		if subject, ok := registry.IsFallbackTag(tag); ok {
			if err := s.pace.wait(ctx, 1); err != nil {
				return nil, err
			}
			digest, err := s.a.observe(ctx, ref)
			if err != nil {
				return nil, fmt.Errorf("looking at %s: %w", ref, err)
			}
			indexes[subject] = digest
			continue
		}
		if _, known := s.a.node.Catalog().Get(ref); known || !s.a.cfg.Headquarters() {
			continue
		}
		if err := s.pace.wait(ctx, 1); err != nil {
			return nil, err
		}
		if err := s.unknown(ctx, ref); err != nil {
			return nil, err
		}
	}
	return indexes, nil
}

// unknown looks at a tag at headquarters that the catalog does not know.
func (s *sweeper) unknown(ctx context.Context, ref catalog.Ref) error {
	if s.baseline && !s.a.pushes.get(ref.String()).After(s.a.distrustNow().At) {
		digest, err := s.a.observe(ctx, ref)
		if err != nil || digest == "" {
			return err
		}
		return s.a.store.PutRefState(ref.String(), store.RefState{Base: digest, At: time.Now()})
	}
	s.a.queue.addFor(key{repository: ref.Repository, tag: ref.Tag}, sweptWhole)
	return nil
}

// record puts a ref of the catalog into the queue, unless what is listed says that there is nothing to be done.
func (s *sweeper) record(ctx context.Context, rec *catalogv1.Record, tags map[string]bool, indexes map[string]string) error {
	ref := catalog.RefOf(rec)
	k := key{repository: ref.Repository, tag: ref.Tag}
	if lost, err := s.a.lostHold(rec, tags); err != nil || lost {
		s.a.queue.add(k)
		return err
	}
	rec = s.a.shown(rec)
	if tags != nil && !tags[ref.Tag] {
		if !rec.GetDeleted() && !s.a.keeping.has(s.a.node.Catalog(), ref) {
			if _, known, err := s.a.store.RefState(ref.String()); err != nil || !known {
				return err // it is not to be here
			}
			s.a.queue.addFor(k, swept)
			return nil
		}
		if !rec.GetDeleted() {
			s.missing = append(s.missing, k)
		} else if obeyed, err := s.a.obeyed(ref, rec); err != nil || !obeyed {
			s.a.queue.addFor(k, swept)
			return err
		}
		return nil
	}
	why := s.causeOf(ctx, rec, tags, indexes)
	questions := 1
	if why == sweptWhole {
		questions = 3
	}
	if err := s.pace.wait(ctx, questions); err != nil {
		return err
	}
	s.a.queue.addFor(k, why)
	return nil
}

// obeyed says whether this site noted that it shows a tombstone.
func (a *Agent) obeyed(ref catalog.Ref, rec *catalogv1.Record) (bool, error) {
	st, ok, err := a.store.RefState(ref.String())
	if err != nil || !ok {
		return false, err
	}
	return st.Base == "" && st.Intent == "" && counted(a.node.Catalog(), st).BaseRevision == rec.GetRevision(), nil
}

// causeOf says whether a ref's referrers must be asked for. Without a referrers API they are what the fallback tags list, and these show an unchanged digest as long as
// nothing changed. With one, nothing tells: a part of the refs is asked for in each sweep, and all in an urgent one.
func (s *sweeper) causeOf(ctx context.Context, rec *catalogv1.Record, tags map[string]bool, indexes map[string]string) cause {
	if rec.GetDeleted() {
		return swept
	}
	if tags == nil {
		return sweptWhole
	}
	ref := catalog.RefOf(rec)
	shown := s.a.indexesUnder(ctx, rec, indexes)
	now := fmt.Sprint(rec.GetRevision(), " ", shown)
	same := s.looked[ref] == now
	s.seen[ref] = now
	s.probe(ctx, rec)
	switch {
	case s.api && (s.urgent || !same || turnOf(ref) == s.turn%referrersEvery):
		return sweptWhole
	case !same && (shown != "" || len(rec.GetReferrers()) > 0):
		return sweptWhole
	}
	return swept
}

// turnOf is in which of referrersEvery sweeps a ref's referrers are asked for.
func turnOf(ref catalog.Ref) uint32 {
	h := fnv.New32a()
	_, _ = io.WriteString(h, ref.String())
	return h.Sum32() % referrersEvery
}

// indexesUnder names the fallback tags of what is under a record, with the digests that they show.
func (a *Agent) indexesUnder(ctx context.Context, rec *catalogv1.Record, indexes map[string]string) string {
	if len(indexes) == 0 {
		return ""
	}
	var found []string
	note := func(subject string) {
		if shown := indexes[subject]; shown != "" {
			found = append(found, subject+"="+shown)
		}
	}
	get := func(ctx context.Context, d string) (registry.Manifest, error) {
		m, err := a.manifestAtHand(ctx, rec.GetRepository(), d)
		return registry.Manifest(m), err
	}
	for _, root := range roots(rec) {
		set, err := a.closureOf(ctx, root, get)
		if err != nil {
			note(root.GetDigest()) // what is under it is not known here
			continue
		}
		for digest := range set {
			note(digest)
		}
	}
	slices.Sort(found)
	return strings.Join(slices.Compact(found), " ")
}

// probe finds out, once a sweep, whether the registry may have a referrers API.
func (s *sweeper) probe(ctx context.Context, rec *catalogv1.Record) {
	if s.probed {
		return
	}
	has, err := s.a.registry.HasReferrersAPI(ctx, rec.GetRepository(), rec.GetTarget().GetDigest())
	if err != nil {
		s.a.logger.Debug("it is not known whether the registry has a referrers API", "error", err)
	}
	s.probed, s.api = true, has || err != nil
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
