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
)

// key names a piece of work: a ref, or (with digest set and no tag) a manifest in a repository that may be a new referrer.
type key struct {
	repository, tag, digest string
}

// queue holds each key at most once, hands a key to one worker at a time, and brings failed keys back after a growing time. A key added while it is worked on is handed out again afterwards.
type queue struct {
	mu      sync.Mutex
	ready   []key
	queued  map[key]bool
	active  map[key]bool
	again   map[key]bool
	busy    map[string]int   // active keys of a repository
	held    map[string][]key // ready keys of a repository that is as busy as it may be: each done lets one go
	timers  map[key]*waiting
	failed  map[key]int
	wake    chan struct{}
	stopped bool
}

// waiting is the wait of a key that failed. A firm one was asked for and hurry does not end it.
type waiting struct {
	*time.Timer
	firm bool
}

func newQueue() *queue {
	return &queue{
		queued: map[key]bool{}, active: map[key]bool{}, again: map[key]bool{},
		timers: map[key]*waiting{}, failed: map[key]int{}, busy: map[string]int{}, held: map[string][]key{}, wake: make(chan struct{}, 1),
	}
}

// add asks for work on k soon, ending any wait after a failure.
func (q *queue) add(k key) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.addLocked(k)
}

func (q *queue) addLocked(k key) {
	if q.stopped {
		return
	}
	if t := q.timers[k]; t != nil {
		t.Stop()
		delete(q.timers, k)
	}
	switch {
	case q.active[k]:
		q.again[k] = true
	case !q.queued[k]:
		q.queued[k] = true
		q.ready = append(q.ready, k)
		q.signal()
	}
}

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
		for len(q.ready) > 0 {
			k := q.ready[0]
			q.ready = q.ready[1:]
			if q.busy[k.repository] >= perRepository {
				q.held[k.repository] = append(q.held[k.repository], k)
				continue
			}
			delete(q.queued, k)
			q.active[k] = true
			q.busy[k.repository]++
			if len(q.ready) > 0 {
				q.signal()
			}
			q.mu.Unlock()
			return k, true
		}
		q.mu.Unlock()
		select {
		case <-ctx.Done():
			return key{}, false
		case <-q.wake:
		}
	}
}

// failures of k in a row.
func (q *queue) failures(k key) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.failed[k]
}

// delay is how long to wait after the given number of failures: doubled each time up to a bound, with jitter, and never less than what the other side asked for.
func delay(failures int, atMost, atLeast time.Duration) time.Duration {
	d := atMost
	if failures < 10 {
		d = min(backoffBase<<failures, atMost)
	}
	d = d/2 + rand.N(d/2+1)
	return max(d, atLeast)
}

// done ends work on k. With a wait above zero the work failed and is tried again after it, or sooner when hurry is called.
func (q *queue) done(k key, wait time.Duration) { q.end(k, wait, false) }

// postpone ends work on k that failed and must not be tried again before a time.
func (q *queue) postpone(k key, wait time.Duration) { q.end(k, wait, true) }

func (q *queue) end(k key, wait time.Duration, firm bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.active, k)
	q.release(k.repository)
	again := q.again[k]
	delete(q.again, k)
	if wait > 0 {
		q.failed[k]++
	} else {
		delete(q.failed, k)
	}
	switch {
	case q.stopped:
	case again:
		q.addLocked(k)
	case wait > 0:
		q.timers[k] = &waiting{time.AfterFunc(wait, func() { q.add(k) }), firm}
	}
}

// hurry says that what made work fail may be over: failed keys come back now, and those that fail again wait a short time at first.
func (q *queue) hurry() {
	q.mu.Lock()
	defer q.mu.Unlock()
	clear(q.failed)
	for k, w := range q.timers {
		if !w.firm {
			q.addLocked(k)
		}
	}
}

// release gives a repository's place back, to a key that was held if there is one. q.mu is held.
func (q *queue) release(repository string) {
	if q.busy[repository]--; q.busy[repository] <= 0 {
		delete(q.busy, repository)
	}
	held := q.held[repository]
	if len(held) == 0 {
		return
	}
	if q.held[repository] = held[1:]; len(held) == 1 {
		delete(q.held, repository)
	}
	q.ready = append(q.ready, held[0])
	q.signal()
}

// later asks for work on k after a time, unless it comes up sooner.
func (q *queue) later(k key, wait time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.stopped && q.timers[k] == nil && !q.queued[k] && !q.again[k] {
		q.timers[k] = &waiting{time.AfterFunc(wait, func() { q.add(k) }), true}
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
