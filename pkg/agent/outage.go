package agent

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/fanout-io/fanout/pkg/tree"
)

const (
	// checkEvery is the time between two looks at whether a registry that answered still does.
	checkEvery = 10 * time.Second
	// checkAgain is the time between two looks at a registry that does not answer, and the least between any two.
	checkAgain = time.Second
	// hurryEvery is the least time between two events that end the waits of failed refs.
	hurryEvery = 250 * time.Millisecond
	// sweepAgain is the least time between two sweeps.
	sweepAgain = 2 * time.Second
)

// nudge makes a loop look sooner. It is told that something happened, not how often.
type nudge chan struct{}

func newNudge() nudge { return make(nudge, 1) }

func (n nudge) set() {
	select {
	case n <- struct{}{}:
	default:
	}
}

// wait returns after a time, or sooner when it was nudged, but not before the least; alive is false when ctx ended first.
func (n nudge) wait(ctx context.Context, least, d time.Duration) (nudged, alive bool) {
	if !sleep(ctx, min(least, d)) {
		return false, false
	}
	t := time.NewTimer(d - min(least, d))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false, false
	case <-n:
		return true, true
	case <-t.C:
		return false, true
	}
}

// checkRegistry asks again and again whether the registry answers and takes the credentials; at once when work failed because it did not.
func (a *Agent) checkRegistry(ctx context.Context) {
	for {
		cctx, cancel := context.WithTimeout(ctx, checkEvery)
		err := a.registry.Ping(cctx)
		if err == nil {
			// It may have been away between two looks, and have come back as another.
			if _, merr := a.checkMarker(cctx); merr != nil {
				a.logger.Debug("the registry's marker was not looked at", "error", merr)
			}
		}
		cancel()
		if ctx.Err() != nil {
			return
		}
		a.registryIs(err)
		wait := checkEvery
		if err != nil {
			wait = checkAgain
		}
		if _, alive := a.doubt.wait(ctx, checkAgain/2, wait/2+rand.N(wait/2)); !alive {
			return
		}
	}
}

// registryIs notes the outcome of a check. When the registry is back, what failed is tried at once, and it is looked through: of what was pushed just before
// it went it may not have told, and it may have come back with other content.
func (a *Agent) registryIs(err error) {
	a.mu.Lock()
	was := a.regErr
	a.regErr = err
	a.mu.Unlock()
	if (err == nil) == (was == nil) {
		return
	}
	a.progress.touch()
	if err != nil {
		a.events.warning("RegistryUnavailable", "", err.Error())
		return
	}
	a.events.normal("RegistryAvailable", "", a.registryAddress())
	a.queue.hurry()
	a.stale.set()
}

// followRoster tries what failed at once when there is somebody else to fetch from, or a root again to publish through.
func (a *Agent) followRoster(ctx context.Context) {
	changed, stop := a.node.WatchRoster()
	defer stop()
	var was tree.Roster
	for {
		if now := a.node.Roster(); !sameSources(was, now) {
			was = now
			a.queue.hurry()
			if !sleep(ctx, hurryEvery) {
				return
			}
			continue // it may have changed meanwhile
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// sameSources says whether two rosters name the same agents to fetch from and to publish through.
func sameSources(x, y tree.Roster) bool {
	return x.Root == y.Root && x.RootAddr == y.RootAddr && x.Carrier == y.Carrier && x.Parent == y.Parent &&
		slices.Equal(x.Members, y.Members) && slices.Equal(x.Parents, y.Parents)
}
