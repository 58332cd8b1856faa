package agent

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

const (
	// scrubSlices is into how many parts of equal time a pass is cut. What is to be looked at is listed anew for each, so that content that came meanwhile is not missed.
	scrubSlices = 64
	// scrubWindow is how many digests are listed at a time at most.
	scrubWindow = 4096
	// scrubSave is how often the position is written down at most.
	scrubSave = 10 * time.Second
	// scrubCatchUp is how many times as fast as usual a pass goes that is late, as after the agent was stopped for long.
	scrubCatchUp = 10
	// scrubAgain is how long it waits while the registry does not answer.
	scrubAgain = 10 * time.Second
)

// scrubState is how far a pass is. It survives a restart.
type scrubState struct {
	// Ends is when the pass should be through.
	Ends time.Time `json:"ends"`
	// At is the digest that was looked at last, as hex; empty: none yet.
	At string `json:"at,omitempty"`
}

// scrubItem is a digest that the catalog has under some ref.
type scrubItem struct {
	digest   string // hex
	manifest bool
	size     int64
	repos    []string
}

// scrubber looks at every digest of the catalog in turn, in the order of digests, and begins anew.
//
// Digests lie evenly between 0 and 1, so a digest's place says when it is due: nothing needs to be counted for all to be evenly spread over the interval. A pass that is late, or was
// interrupted, spreads what is left over the time that is left.
type scrubber struct {
	interval time.Duration
	// list gives the digests d of the catalog with after < d < before, in order, some of the first where there are very many; before "" is no bound.
	list func(ctx context.Context, after, before string) []scrubItem
	// look looks at one; false: the registry does not answer, try again later.
	look func(ctx context.Context, item scrubItem) bool
	load func() (scrubState, error)
	save func(scrubState) error
	log  *slog.Logger

	state scrubState
	saved time.Time
}

// place of a digest between 0 and 1.
func place(hexDigest string) float64 {
	var b [8]byte
	_, _ = hex.Decode(b[:], []byte(hexDigest[:min(len(hexDigest), 16)]))
	return float64(binary.BigEndian.Uint64(b[:])) / (1 << 64)
}

// sliceEnd is the first digest of the slice after the one in which a digest lies; empty: there is none.
func sliceEnd(hexDigest string) string {
	n := int(place(hexDigest)*scrubSlices) + 1
	if n >= scrubSlices {
		return ""
	}
	return hex.EncodeToString([]byte{byte(n * 256 / scrubSlices)})
}

// run scrubs until ctx ends.
func (s *scrubber) run(ctx context.Context) {
	var err error
	if s.state, err = s.load(); err != nil {
		s.log.Warn("where the scrub was is not known; it begins anew", "error", err)
		s.state = scrubState{}
	}
	if s.state.Ends.IsZero() {
		// Sites that were set up together need not look at the same content at the same time.
		if !sleep(ctx, rand.N(s.interval/100+1)) {
			return
		}
		s.state = scrubState{Ends: time.Now().Add(s.interval)}
	}
	for s.pass(ctx) {
		s.state = scrubState{Ends: time.Now().Add(s.interval)}
		s.keep(true)
	}
	s.keep(true)
}

// keep writes the position down, now and then or at once.
func (s *scrubber) keep(now bool) {
	if !now && time.Since(s.saved) < scrubSave {
		return
	}
	s.saved = time.Now()
	if err := s.save(s.state); err != nil {
		s.log.Warn("where the scrub is was not written down", "error", err)
	}
}

// pass does what is left of one; false when ctx ended.
func (s *scrubber) pass(ctx context.Context) bool {
	begin, from := time.Now(), place(s.state.At)
	// An interval that was made shorter since counts at once.
	left := min(max(time.Until(s.state.Ends), time.Duration(float64(s.interval/scrubCatchUp)*(1-from))), s.interval)
	due := func(p float64) bool {
		at := begin.Add(time.Duration(float64(left) * (p - from) / (1 - from)))
		return sleep(ctx, time.Until(at))
	}
	for {
		end := sliceEnd(s.state.At)
		for {
			items := s.list(ctx, s.state.At, end)
			for _, item := range items {
				if !due(place(item.digest)) {
					return false
				}
				for !s.look(ctx, item) {
					if !sleep(ctx, scrubAgain) {
						return false
					}
				}
				if ctx.Err() != nil {
					return false // it may not have been looked at to the end
				}
				s.state.At = item.digest
				s.keep(false)
			}
			if len(items) < scrubWindow {
				break
			}
		}
		if end == "" {
			return due(1)
		}
		if !due(place(end)) {
			return false
		}
		s.state.At = end
	}
}

// window keeps the first digests of many.
type window struct {
	after, before string
	items         map[string]*scrubItem
	last          string // none behind it is wanted any more; empty: all are
}

func (w *window) add(digest string, manifest bool, size int64, repo string) {
	d := strings.TrimPrefix(digest, "sha256:")
	if d <= w.after || w.before != "" && d >= w.before || w.last != "" && d > w.last {
		return
	}
	it := w.items[d]
	if it == nil {
		it = &scrubItem{digest: d, manifest: manifest, size: size}
		w.items[d] = it
		if len(w.items) >= 2*scrubWindow {
			w.trim()
		}
	}
	if n := len(it.repos); n == 0 || it.repos[n-1] != repo && !slices.Contains(it.repos, repo) { // they mostly come in order
		it.repos = append(it.repos, repo)
	}
}

func (w *window) trim() {
	all := w.sorted()
	for _, it := range all[min(len(all), scrubWindow):] {
		delete(w.items, it.digest)
	}
	if len(all) > scrubWindow {
		w.last = all[scrubWindow-1].digest
	}
}

func (w *window) sorted() []scrubItem {
	all := make([]scrubItem, 0, len(w.items))
	for _, it := range w.items {
		all = append(all, *it)
	}
	slices.SortFunc(all, func(a, b scrubItem) int { return strings.Compare(a.digest, b.digest) })
	return all
}

// first gives what was kept, in order.
func (w *window) first() []scrubItem {
	all := w.sorted()
	return all[:min(len(all), scrubWindow)]
}
