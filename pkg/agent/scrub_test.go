package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// scrubbed is a registry in which a scrub notes what it looks at.
type scrubbed struct {
	mu      sync.Mutex // of digests and away
	digests []string   // sorted
	looked  []string
	at      []time.Time
	away    bool
	state   scrubState
}

func newScrubbed(n int) *scrubbed {
	s := &scrubbed{}
	for i := range n {
		s.digests = append(s.digests, hexOf(strconv.Itoa(i)))
	}
	slices.Sort(s.digests)
	return s
}

func hexOf(word string) string {
	sum := sha256.Sum256([]byte(word))
	return hex.EncodeToString(sum[:])
}

func (r *scrubbed) scrubber(interval time.Duration) *scrubber {
	return &scrubber{
		interval: interval, log: slog.New(slog.DiscardHandler),
		list: func(_ context.Context, after, before string) []scrubItem {
			r.mu.Lock()
			defer r.mu.Unlock()
			w := &window{after: after, before: before, items: map[string]*scrubItem{}}
			for i := range r.digests {
				w.add("sha256:"+r.digests[len(r.digests)-1-i], false, 1, "a")
			}
			return w.first()
		},
		look: func(_ context.Context, it scrubItem) bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.away {
				return false
			}
			r.looked, r.at = append(r.looked, it.digest), append(r.at, time.Now())
			return true
		},
		load: func() (scrubState, error) { return r.state, nil },
		save: func(s scrubState) error { r.state = s; return nil },
	}
}

// during runs a scrubber for a time.
func during(t *testing.T, s *scrubber, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	s.run(ctx)
}

const week = 168 * time.Hour

// TestScrub_OncePerInterval: all is looked at once in each interval, in order, evenly spread.
func TestScrub_OncePerInterval(t *testing.T) {
	for _, n := range []int{0, 1, 1000, 2*scrubWindow*scrubSlices/100 + 7, 3 * scrubWindow} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newScrubbed(n)
				r.state.Ends = time.Now().Add(week) // begins now
				begin := time.Now()
				during(t, r.scrubber(week), week-time.Second)
				if !slices.Equal(r.looked, r.digests) {
					t.Fatalf("looked at %d of %d", len(r.looked), n)
				}
				for i, at := range r.at {
					if want := begin.Add(time.Duration(place(r.digests[i]) * float64(week))); at.Sub(want).Abs() > time.Second {
						t.Fatalf("digest %d was looked at %s from its time", i, at.Sub(want))
					}
				}
				r.looked = nil
				during(t, r.scrubber(week), week)
				if !slices.Equal(r.looked, r.digests) {
					t.Fatalf("in the second pass looked at %d of %d", len(r.looked), n)
				}
			})
		})
	}
}

// TestScrub_GoesOn: a scrub that is stopped now and then goes on where it was, and is through in time.
func TestScrub_GoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newScrubbed(5000)
		r.state.Ends = time.Now().Add(week)
		for range 5 {
			during(t, r.scrubber(week), 20*time.Hour)
			time.Sleep(8 * time.Hour)
		}
		during(t, r.scrubber(week), 28*time.Hour-time.Second)
		if !slices.Equal(r.looked, r.digests) {
			t.Fatalf("looked at %d of 5000", len(r.looked))
		}
	})
}

// TestScrub_Late: what is left after a long stop is done soon, but not at once.
func TestScrub_Late(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newScrubbed(1000)
		r.state = scrubState{Ends: time.Now().Add(-week), At: r.digests[499]}
		begin := time.Now()
		during(t, r.scrubber(week), week/scrubCatchUp*6/10)
		if len(r.looked) < 500 || !slices.Equal(r.looked[:500], r.digests[500:]) {
			t.Fatalf("looked at %d of 500", len(r.looked))
		}
		if middle := r.at[250].Sub(begin); middle < week/scrubCatchUp/5 {
			t.Fatalf("half of it was done within %s", middle)
		}
	})
}

// TestScrub_Shorter: an interval that was made shorter counts at once.
func TestScrub_Shorter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newScrubbed(100)
		r.state.Ends = time.Now().Add(week)
		during(t, r.scrubber(time.Hour), time.Hour-time.Second)
		if len(r.looked) != 100 {
			t.Fatalf("looked at %d of 100", len(r.looked))
		}
	})
}

// TestScrub_SeesWhatCame: content that comes before its turn is looked at in the pass that is under way.
func TestScrub_SeesWhatCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newScrubbed(10)
		r.state.Ends = time.Now().Add(week)
		ctx, cancel := context.WithTimeout(t.Context(), week-time.Second)
		defer cancel()
		done := make(chan struct{})
		go func() { defer close(done); r.scrubber(week).run(ctx) }()
		time.Sleep(week / 4)
		synctest.Wait()
		late := "c0ffee" + hexOf("late")[6:]
		r.mu.Lock()
		r.digests = append(r.digests, late)
		slices.Sort(r.digests)
		r.mu.Unlock()
		<-done
		if !slices.Contains(r.looked, late) || len(r.looked) != 11 {
			t.Fatalf("looked at %v", r.looked)
		}
	})
}

// TestScrub_RegistryAway: nothing is passed over while the registry does not answer.
func TestScrub_RegistryAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newScrubbed(100)
		r.state.Ends = time.Now().Add(week)
		r.away = true
		go func() {
			time.Sleep(week / 2)
			r.mu.Lock()
			defer r.mu.Unlock()
			r.away = false
		}()
		during(t, r.scrubber(week), week-time.Second)
		if !slices.Equal(r.looked, r.digests) {
			t.Fatalf("looked at %d of 100", len(r.looked))
		}
	})
}
