package integration

import (
	"fmt"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/v1"

	"github.com/fanout-io/fanout/pkg/view"
)

// TestLoopsAreImpossible: a tag goes from master to master and back to what it showed before, with every registry's notifications sent, sweeps each second, and an agent that is killed after it put
// the tag. What fanout put is never taken for a push: the catalog has one revision for each push, and no other.
func TestLoopsAreImpossible(t *testing.T) {
	t.Parallel()
	const often = "sweep: {interval: 1s}\n"
	sites := start(t,
		spec{name: "hq-a", group: "hq", registry: true, extra: often}, spec{name: "hq-b", group: "hq", registry: true, extra: often},
		spec{name: "hq-w", group: "hq", extra: "registry: {type: none}\n"},
		spec{name: "gd-a", group: "hq/gd", registry: true, extra: often},
	)
	a, b, province := sites["hq-a"], sites["hq-b"], sites["gd-a"]
	const ref = "app/web:latest"
	first, second := image(t, 1<<14, 1), image(t, 1<<14, 1)
	pushes := uint64(0)
	moved := func(at *site, img ggcr.Image) {
		t.Helper()
		digest := push(t, at, ref, img)
		pushes++
		for _, s := range []*site{a, b, province} {
			shows(t, s, ref, digest)
		}
		a.quiet(ref, digest)
	}
	moved(a, first)
	moved(b, second)
	moved(a, first) // what hq-b showed before, and put itself
	b.kill()
	b.start()
	b.waitReady()
	moved(b, second)
	province.kill()
	province.start()
	province.waitReady()

	// Two sweeps after the last move: the first may have begun before it.
	for _, s := range []*site{a, b, province} {
		const swept = "fanout_sweep_duration_seconds_count"
		before, _ := s.findMetric(swept)
		eventually(t, s.name+" looked through its registry twice", func() error {
			if now, _ := s.findMetric(swept); now < before+2 {
				return fmt.Errorf("%v sweeps after %v", now, before)
			}
			return nil
		})
	}
	for _, s := range []*site{a, b, province} {
		tree, err := asks[view.Tree](s, "tree")
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range tree.Groups {
			if g.Revision != pushes {
				t.Errorf("%s: %s is at revision %d after %d pushes", s.name, g.Group, g.Revision, pushes)
			}
		}
	}
}
