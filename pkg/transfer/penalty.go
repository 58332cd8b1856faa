package transfer

import (
	"slices"
	"sync"
	"time"
)

// How long a source that sent corrupt content is not asked for that digest: it doubles with each time. One that says so
// itself is mending it already.
const (
	penaltyOwnWord = 2 * time.Second
	penaltyFirst   = 10 * time.Second
	penaltyMax     = 10 * time.Minute
	penaltyForget  = time.Hour // after this long without another, it is forgotten
	penaltySize    = 1024
)

// penalties remembers which source sent corrupt content for which digest.
type penalties struct {
	mu sync.Mutex
	m  map[penaltyKey]*penalty
}

type penaltyKey struct{ site, addr, digest string }

type penalty struct {
	strikes int
	last    time.Time
	until   time.Time
}

// mark punishes a source, the first time for as long as base.
func (b *penalties) mark(s Source, digest string, base time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if b.m == nil {
		b.m = make(map[penaltyKey]*penalty)
	}
	k := penaltyKey{s.Site, s.Addr, digest}
	p := b.m[k]
	if p == nil {
		b.makeRoom(now)
		p = new(penalty)
		b.m[k] = p
	}
	d := min(base<<min(p.strikes, 10), penaltyMax)
	p.strikes++
	p.last, p.until = now, now.Add(d)
}

// makeRoom drops what is forgotten and, if that is not enough, the oldest.
func (b *penalties) makeRoom(now time.Time) {
	if len(b.m) < penaltySize {
		return
	}
	var oldest penaltyKey
	var at time.Time
	for k, p := range b.m {
		if now.Sub(p.last) > penaltyForget {
			delete(b.m, k)
		} else if at.IsZero() || p.last.Before(at) {
			oldest, at = k, p.last
		}
	}
	if len(b.m) >= penaltySize {
		delete(b.m, oldest)
	}
}

// last reorders sources so that those with a penalty, over or not, come after those without: a source must not be first
// again just when its time is over, at every site of a chain in step.
func (b *penalties) last(sources []Source, digest string) []Source {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.m) == 0 {
		return sources
	}
	strikes := func(s Source) int {
		if p := b.m[penaltyKey{s.Site, s.Addr, digest}]; p != nil && time.Since(p.last) < penaltyForget {
			return p.strikes
		}
		return 0
	}
	sources = slices.Clone(sources)
	slices.SortStableFunc(sources, func(x, y Source) int { return strikes(x) - strikes(y) })
	return sources
}

// suspect says whether a source has sent corrupt content for a digest and has not been right since.
func (b *penalties) suspect(s Source, digest string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.m[penaltyKey{s.Site, s.Addr, digest}] != nil
}

// until says when a source may be asked for a digest again; zero if it may now.
func (b *penalties) until(s Source, digest string) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := penaltyKey{s.Site, s.Addr, digest}
	p := b.m[k]
	if p == nil || !p.until.After(time.Now()) {
		return time.Time{}
	}
	return p.until
}

// clear forgets a source's penalties for a digest: it sent the whole of it, and it was right.
func (b *penalties) clear(s Source, digest string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.m, penaltyKey{s.Site, s.Addr, digest})
}
