package transfer

import (
	"context"
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// meter is a moving average of bytes a second, over about five seconds. It needs no ticker: it decays when looked at.
type meter struct {
	mu   sync.Mutex
	rate float64
	last time.Time
}

const meterSpan = 5 * time.Second

func (m *meter) decay(now time.Time) {
	if d := now.Sub(m.last); d > 0 {
		m.rate *= math.Exp(-d.Seconds() / meterSpan.Seconds())
		m.last = now
	}
}

func (m *meter) add(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.decay(time.Now())
	m.rate += float64(n) / meterSpan.Seconds()
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
