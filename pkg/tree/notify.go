package tree

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// notifier tells any number of watchers that something changed. A watcher has one slot: it learns that there was a change, not how many, and looks
// for itself. Nobody is waited for and nothing queues.
type notifier struct {
	mu       sync.Mutex
	watchers map[chan struct{}]struct{}
}

// watch returns a channel that is ready after each change, and a function that ends the watch.
func (n *notifier) watch() (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.watchers == nil {
		n.watchers = map[chan struct{}]struct{}{}
	}
	n.watchers[ch] = struct{}{}
	return ch, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.watchers, ch)
	}
}

func (n *notifier) notify() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for ch := range n.watchers {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// pause waits, and says whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// backoff grows from a fiftieth of its limit to the limit; jittered, so that a thousand children don't come back at once.
type backoff struct {
	limit, next time.Duration
}

func (b *backoff) reset() { b.next = 0 }

func (b *backoff) step() time.Duration {
	b.next = min(max(2*b.next, b.limit/50), b.limit)
	return b.next/2 + rand.N(b.next/2+1)
}
