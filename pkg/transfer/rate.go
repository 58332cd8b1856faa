package transfer

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/fanout-io/fanout/pkg/store"
)

// meter is a moving average of bytes a second, over about five seconds. It needs no ticker: it decays when looked at.
type meter struct {
	mu   sync.Mutex
	rate float64
	last time.Time
	// A burst is bytes that came without a pause between them; what came first in it took no time that could be measured.
	began, came time.Time
	bytes       int64
	measured    float64
}

const (
	meterSpan = 5 * time.Second
	// burstPause ends a burst, burstLeast is how long one must have gone on to say anything, and burstMost how long it is added up.
	burstPause = time.Second
	burstLeast = 200 * time.Millisecond
	burstMost  = 10 * time.Second
)

func (m *meter) decay(now time.Time) {
	if d := now.Sub(m.last); d > 0 {
		m.rate *= math.Exp(-d.Seconds() / meterSpan.Seconds())
		m.last = now
	}
}

func (m *meter) add(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	m.decay(now)
	m.rate += float64(n) / meterSpan.Seconds()
	if now.Sub(m.came) > burstPause || now.Sub(m.began) > burstMost {
		m.began, m.came, m.bytes = now, now, 0
		return
	}
	m.came = now
	m.bytes += int64(n)
	if d := now.Sub(m.began); d >= burstLeast {
		m.measured = float64(m.bytes) / d.Seconds()
	}
}

// link is the rate at which bytes came while they did, of the last time that this could be measured; 0: never.
func (m *meter) link() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return int64(m.measured)
}

func (m *meter) value() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.decay(time.Now())
	return int64(m.rate)
}

// spend waits until n bytes are within l, in portions of at most its burst, so that no message is too large for a limit.
// A nil limiter is no limit. A limit of nothing (burst 0) is a pause: it holds until it is raised or ctx ends.
func spend(ctx context.Context, l *rate.Limiter, n int) error {
	for l != nil && n > 0 {
		if l.Limit() == rate.Inf {
			return nil
		}
		burst := l.Burst()
		if burst <= 0 {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(pausePoll):
			}
			continue
		}
		part := min(n, burst)
		if err := l.WaitN(ctx, part); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if part > l.Burst() {
				continue // the limit was lowered meanwhile
			}
			return err
		}
		n -= part
	}
	return nil
}

// pausePoll is how often a paused direction looks whether it may go on; x/time/rate cannot wake a waiter.
const pausePoll = 250 * time.Millisecond

func limited(l *rate.Limiter) bool { return l != nil && l.Limit() != rate.Inf }

// askable is the most that one stream asks for at a time: under a limit what that allows in a tenth of a second, in whole
// pieces. A limit is kept by not asking: what was asked for crosses the link at once, as far as the windows are open, and
// what a receiver holds back is lost when it dies.
func askable(l *rate.Limiter) int64 {
	if !limited(l) {
		return math.MaxInt64
	}
	pieces := min(max(int64(l.Limit())/10/store.PieceSize, 1), MaxBlob/store.PieceSize)
	return pieces * store.PieceSize
}

// credit is what was spent of a limit for bytes that did not come; it is used up before the limit is asked again.
type credit struct{ left atomic.Int64 }

func (c *credit) spend(ctx context.Context, l *rate.Limiter, n int64) error {
	for {
		left := c.left.Load()
		use := min(left, n)
		if !c.left.CompareAndSwap(left, left-use) {
			continue
		}
		err := spend(ctx, l, int(n-use))
		if err != nil {
			c.left.Add(use)
		}
		return err
	}
}
