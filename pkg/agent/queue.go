package agent

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	backoffBase = 500 * time.Millisecond
	// backoffMax bounds the wait of a ref that the registry refuses, or for which it fails.
	backoffMax = 5 * time.Minute
	// fetchBackoffMax bounds the wait of one that fails for lack of somebody to fetch from or a root to publish through. What is wrong may be mended several
	// hops away, and nobody says so here; to ask again costs little.
	fetchBackoffMax = 15 * time.Second
	// perRepository is how many keys of one repository are worked on at once, so that one that hangs leaves workers for the others.
	perRepository = workers / 4
	// sweepWorkers is how many keys of the sweep are worked on at once, so that it neither loads the registry nor keeps what was prompted from a worker.
	sweepWorkers = workers / 4
)

// key names a piece of work: a ref, or (with digest set and no tag) a manifest in a repository that may be a new referrer.
type key struct {
	repository, tag, digest string
}

// cause says why a key is worked on. The lower outweighs the higher.
type cause int

const (
	// prompted by a notification, the catalog or a person.
	prompted cause = iota
	// sweptWhole: the sweep came by, and the ref's referrers are to be asked for.
	sweptWhole
	// swept: the sweep came by, and what the registry lists says that the ref's referrers are as they were when they were last asked for.
	swept
)

// queue holds each key at most once, hands a key to one worker at a time, and brings failed keys back after a growing time. A key added while it is worked on is handed out again afterwards.
// What the sweep adds is handed out when nothing that was prompted is ready, and has a part of the workers only.
type queue struct {
	mu      sync.Mutex
	ready   [2][]key // prompted; swept. A key that was swept first and prompted then is in both, and counts in the first.
	queued  map[key]cause
	active  map[key]cause
	again   map[key]cause
	busy    map[string]int      // active keys of a repository
	sweeps  int                 // active keys that were swept
	held    map[string][2][]key // ready keys of a repository that is as busy as it may be: each done lets one go
	timers  map[key]*waiting
	failed  map[key]int
	wake    chan struct{}
	ended   chan struct{} // closed when work on some key ends; nil while nobody waits for that
	stopped bool
}

// waiting is the wait of a key that failed. A firm one was asked for and hurry does not end it.
type waiting struct {
	*time.Timer
	firm bool
	why  cause
}

func newQueue() *queue {
	return &queue{
		queued: map[key]cause{}, active: map[key]cause{}, again: map[key]cause{},
		timers: map[key]*waiting{}, failed: map[key]int{}, busy: map[string]int{}, held: map[string][2][]key{}, wake: make(chan struct{}, 1),
	}
}

// add asks for work on k soon, ending any wait after a failure.
func (q *queue) add(k key) { q.addFor(k, prompted) }

// renew is add for work that is not what failed before, or that a person wants tried again: should it fail, it waits for a short time at first.
func (q *queue) renew(k key) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.failed, k)
	q.addLocked(k, prompted)
}

// addFor asks for work on k for a cause. A sweep leaves a key that waits after a failure to its wait.
func (q *queue) addFor(k key, why cause) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if w := q.timers[k]; why != prompted && w != nil {
		w.why = min(w.why, why)
		return
	}
	q.addLocked(k, why)
}

func (q *queue) addLocked(k key, why cause) {
	if q.stopped {
		return
	}
	if t := q.timers[k]; t != nil {
		t.Stop()
		delete(q.timers, k)
	}
	if _, active := q.active[k]; active {
		if was, again := q.again[k]; !again || why < was {
			q.again[k] = why
		}
		return
	}
	was, queued := q.queued[k]
	if queued && was <= why {
		return
	}
	q.queued[k] = why
	if !queued || line(was) != line(why) {
		q.ready[line(why)] = append(q.ready[line(why)], k)
		q.signal()
	}
}

// line in which a key waits to be handed out.
func line(why cause) int { return min(int(why), 1) }

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// next waits for a key and marks it as worked on; done must follow.
func (q *queue) next(ctx context.Context) (key, bool) {
	for {
		q.mu.Lock()
		k, ok := q.takeLocked()
		if ok && len(q.ready[0])+len(q.ready[1]) > 0 {
			q.signal()
		}
		q.mu.Unlock()
		if ok {
			return k, true
		}
		select {
		case <-ctx.Done():
			return key{}, false
		case <-q.wake:
		}
	}
}

func (q *queue) takeLocked() (key, bool) {
	for l := range q.ready {
		for len(q.ready[l]) > 0 && (l == 0 || q.sweeps < sweepWorkers) {
			k := q.ready[l][0]
			q.ready[l] = q.ready[l][1:]
			why, queued := q.queued[k]
			if !queued || line(why) != l {
				continue // it went by the other line
			}
			if q.busy[k.repository] >= perRepository {
				held := q.held[k.repository]
				held[l] = append(held[l], k)
				q.held[k.repository] = held
				continue
			}
			delete(q.queued, k)
			q.active[k] = why
			q.busy[k.repository]++
			q.sweeps += l
			return k, true
		}
	}
	return key{}, false
}

// take waits until nobody works on k and marks it as worked on, for somebody who is not a worker; done must follow. What waits to be done about k stays to be done.
func (q *queue) take(ctx context.Context, k key) error {
	for {
		q.mu.Lock()
		_, active := q.active[k]
		if !active {
			if why, queued := q.queued[k]; queued {
				delete(q.queued, k)
				q.again[k] = why
			}
			q.active[k] = prompted
			q.busy[k.repository]++
			q.mu.Unlock()
			return nil
		}
		if q.ended == nil {
			q.ended = make(chan struct{})
		}
		ended := q.ended
		q.mu.Unlock()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ended:
		}
	}
}

// cause for which k is worked on.
func (q *queue) cause(k key) cause {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.active[k]
}

// failures of k in a row.
func (q *queue) failures(k key) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.failed[k]
}

// delay is how long to wait after the given number of failures: doubled each time up to a bound, with jitter, and always more than what the other side asked for: it asks with each of an
// attempt's requests, of which the last one may have been answered a little later than the one that failed the attempt.
func delay(failures int, atMost, atLeast time.Duration) time.Duration {
	d := atMost
	if failures < 10 {
		d = min(backoffBase<<failures, atMost)
	}
	d = d/2 + rand.N(d/2+1)
	if atLeast > 0 {
		atLeast += atLeast/20 + rand.N(atLeast/20+1)
	}
	return max(d, atLeast)
}

// done ends work on k. With a wait above zero the work failed and is tried again after it, or sooner when hurry is called.
func (q *queue) done(k key, wait time.Duration) { q.end(k, wait, false) }

// postpone ends work on k that failed and must not be tried again before a time.
func (q *queue) postpone(k key, wait time.Duration) { q.end(k, wait, true) }

func (q *queue) end(k key, wait time.Duration, firm bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	why := q.active[k]
	delete(q.active, k)
	if q.ended != nil {
		close(q.ended)
		q.ended = nil
	}
	q.sweeps -= line(why)
	q.release(k.repository)
	again, added := q.again[k]
	delete(q.again, k)
	if wait > 0 {
		q.failed[k]++
	} else {
		delete(q.failed, k)
	}
	switch {
	case q.stopped:
	case added:
		if wait > 0 {
			again = min(again, why) // what was asked for first is still to be done
		}
		q.addLocked(k, again)
	case wait > 0:
		q.waitLocked(k, wait, firm, why)
	}
	if line(why) == 1 && len(q.ready[1]) > 0 {
		q.signal()
	}
}

func (q *queue) waitLocked(k key, wait time.Duration, firm bool, why cause) {
	w := &waiting{firm: firm, why: why}
	w.Timer = time.AfterFunc(wait, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.timers[k] == w {
			q.addLocked(k, w.why)
		}
	})
	q.timers[k] = w
}

// hurry says that what made work fail may be over: failed keys come back now, and those that fail again wait a short time at first.
func (q *queue) hurry() {
	q.mu.Lock()
	defer q.mu.Unlock()
	clear(q.failed)
	for k, w := range q.timers {
		if !w.firm {
			q.addLocked(k, w.why)
		}
	}
}

// release gives a repository's place back, to a key that was held if there is one. q.mu is held.
func (q *queue) release(repository string) {
	if q.busy[repository]--; q.busy[repository] <= 0 {
		delete(q.busy, repository)
	}
	held := q.held[repository]
	for l := range held {
		for len(held[l]) > 0 {
			k := held[l][0]
			held[l] = held[l][1:]
			if why, queued := q.queued[k]; !queued || line(why) != l {
				continue // it went by the other line
			}
			q.held[repository] = held
			q.ready[l] = append(q.ready[l], k)
			q.signal()
			return
		}
	}
	delete(q.held, repository)
}

// later asks for work on k after a time, unless it comes up sooner.
func (q *queue) later(k key, wait time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	_, queued := q.queued[k]
	_, again := q.again[k]
	if !q.stopped && q.timers[k] == nil && !queued && !again {
		q.waitLocked(k, wait, true, prompted)
	}
}

// stop ends all waits; keys that are added later are dropped.
func (q *queue) stop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stopped = true
	for k, t := range q.timers {
		t.Stop()
		delete(q.timers, k)
	}
}
