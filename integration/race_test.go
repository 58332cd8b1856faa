package integration

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// TestNoPushIsLostBetweenTwoMasters: one tag is pushed at A, and a moment later, acknowledged at A, at B: while A's push is on its way to B, is being put there, or has been. The later one is shown
// everywhere, or it is listed as a conflict; it never just vanishes.
func TestNoPushIsLostBetweenTwoMasters(t *testing.T) {
	sites := start(t,
		spec{name: "hq-a", group: "hq", registry: true}, spec{name: "hq-b", group: "hq"},
		spec{name: "hq-w", group: "hq", extra: "registry: {type: none}\n"}, spec{name: "gd-a", group: "hq/gd"},
	)
	a, b := sites["hq-a"], sites["hq-b"]
	const refs, atOnce = 60, 4
	type pair struct{ earlier, later string }
	pairs := make([]pair, refs)
	old := image(t, 1<<10, 1)
	for i := range refs {
		if i%2 == 0 {
			push(t, a, fmt.Sprintf("app/web:%d", i), old) // half of the tags exist already
		}
	}
	seed := uint64(7)
	var workers sync.WaitGroup
	for w := range atOnce {
		workers.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(w)))
			for i := w; i < refs; i += atOnce {
				ref := fmt.Sprintf("app/web:%d", i)
				first, second := image(t, 1<<10, 1), image(t, 1<<10, 1)
				pairs[i].earlier = push(t, a, ref, first)
				// The time between the two is what the test is about.
				time.Sleep(time.Duration(rng.IntN(200)) * time.Millisecond)
				pairs[i].later = push(t, b, ref, second)
			}
		})
	}
	workers.Wait()
	won, listed := 0, 0
	for i, p := range pairs {
		ref := fmt.Sprintf("app/web:%d", i)
		eventually(t, ref+" has settled", func() error {
			var shown string
			for _, s := range []*site{a, b, sites["gd-a"]} {
				d, err := remote.Head(reference(t, s, ref))
				if err != nil {
					return err
				}
				if got := d.Digest.String(); shown == "" {
					shown = got
				} else if got != shown {
					return fmt.Errorf("%s shows %s, another %s", s.name, got, shown)
				}
			}
			if shown == p.later {
				return nil
			}
			if shown != p.earlier {
				return fmt.Errorf("it shows %s, neither %s nor %s", shown, p.earlier, p.later)
			}
			var doc conflictDoc
			a.document(&doc, "conflicts")
			for _, c := range doc.Conflicts {
				if c.Ref == ref && c.Loser.Digest == p.later {
					return nil
				}
			}
			return fmt.Errorf("the later push, %s at hq-b, is neither shown nor listed", p.later)
		})
		if head(t, a, ref, p.later) == nil {
			won++
		} else {
			listed++
		}
	}
	t.Logf("of %d later pushes %d won and %d are listed as conflicts", refs, won, listed)
}
