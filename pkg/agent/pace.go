package agent

import (
	"context"
	"time"

	"golang.org/x/time/rate"
)

const (
	// sweepRate is how many questions a second a sweep may ask however few it has: to spread those over minutes would only make it slow.
	sweepRate = 20
	// sweepBurst is how many it may ask at once.
	sweepBurst = 50
)

// pace spreads the questions of a sweep over a time, so that they are no load. It never makes a sweep take much longer than that, and ends when the sweep is wanted sooner.
// For one goroutine.
type pace struct {
	limit *rate.Limiter
	until time.Time
	hurry nudge
	// rushed: there is no waiting any more.
	rushed bool
	// asked counts the questions.
	asked int
}

// newPace is for about as many questions within a time. A nudge of hurry ends the waiting, and is handed on.
func newPace(questions int, within time.Duration, hurry nudge) *pace {
	perSecond := max(sweepRate, float64(questions)/within.Seconds())
	return &pace{limit: rate.NewLimiter(rate.Limit(perSecond), sweepBurst), until: time.Now().Add(within), hurry: hurry}
}

// wait until n more questions may be asked; the error is that of ctx.
func (p *pace) wait(ctx context.Context, n int) error {
	p.asked += n
	now := time.Now()
	if p.rushed = p.rushed || now.After(p.until); p.rushed {
		return ctx.Err()
	}
	d := p.limit.ReserveN(now, n).DelayFrom(now)
	if d == 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-p.hurry:
		p.rushed = true
		p.hurry.set() // whoever wants it sooner wants a sweep that begins now, too
	case <-t.C:
	}
	return nil
}
