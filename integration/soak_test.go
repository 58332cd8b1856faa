package integration

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	soakSeed     = flag.Uint64("soak.seed", 1, "seed of the randomised fault run")
	soakDuration = flag.Duration("soak.duration", 20*time.Second, "how long the randomised fault run breaks things")
)

// calmTime bounds how long it takes, after the last fault is healed, until everything is everywhere.
const calmTime = 90 * time.Second

// TestSoak is the randomised fault run: pushes, retags and deletions at all registries of headquarters while agents and registries are killed, stopped and wiped, links cut and slowed, and disks
// filled; then calm, then everything is checked. `make soak SEED=… DURATION=…` runs it for longer. The same seed gives the same schedule; what meets what in it depends on the machine.
func TestSoak(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("who dialled is found out in /proc")
	}
	disks := canMount(t)
	list := schedule(*soakSeed, *soakDuration, len(disks) > 0)
	t.Logf("seed %d, %s, %d actions; to repeat: make soak SEED=%[1]d DURATION=%[2]s", *soakSeed, *soakDuration, len(list))
	r := newRun(t, disks)
	defer func() {
		if t.Failed() {
			t.Logf("schedule and what became of it:\n%s", r.told())
			r.keepLogs()
		}
	}()
	watching, stop := context.WithCancel(context.Background())
	var watchers sync.WaitGroup
	watchers.Go(func() { r.watcher.run(watching) })
	watchers.Go(func() { watchCatalog(watching, r.history, r.at(soakHQ...)) })
	stopWatching := sync.OnceFunc(func() { stop(); watchers.Wait() })
	defer stopWatching()

	r.play(list)
	if t.Failed() {
		return
	}
	calm := time.Now()
	r.converged()
	t.Logf("all was everywhere %s after the last fault was healed and the last operation done", time.Since(calm).Round(10*time.Millisecond))
	stopWatching()
	r.check()
}

// specs of the fabric: 3 at headquarters, two provinces of 2, 4 cities.
func (r *run) specs() []spec {
	groups := make([]string, 0, len(soakGroups))
	for g := range soakGroups {
		groups = append(groups, g)
	}
	slices.Sort(groups)
	var specs []spec
	for _, group := range groups {
		for _, name := range soakGroups[group] {
			// A registry that is killed may not have told of a push: then the sweep finds it.
			sp := spec{name: name, group: group, extra: fmt.Sprintf("sweep: {interval: %s}\n", soakSweep), registry: slices.Contains(soakOwn, name), laid: func(s *site) { r.wires.gate(r.t, s) }}
			if group == "hq" {
				sp.extra += "publish: {deletes: propagate}\n"
			}
			if !sp.registry {
				sp.keys = fmt.Sprintf(", gc: {interval: %s, grace: %s}", soakCollect, soakGrace)
			}
			if d := r.disks[name]; d != nil {
				sp.data = d.data()
			}
			specs = append(specs, sp)
		}
	}
	return specs
}

// Sweeps are frequent, and so is the collection of the embedded registries' garbage, which takes what was not used for soakGrace.
const (
	soakSweep   = 5 * time.Second
	soakCollect = 700 * time.Millisecond
	soakGrace   = 2 * time.Second
)

// canMount mounts the small disks, if this user may.
func canMount(t *testing.T) map[string]*smallDisk {
	disks := map[string]*smallDisk{}
	may := false
	t.Run("disks", func(t *testing.T) { mountDisk(t, mib); may = true })
	if may {
		for _, name := range soakSmall {
			disks[name] = mountDisk(t, 1<<30)
		}
	}
	return disks
}

// told gives what happened, in order.
func (r *run) told() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.story, "\n")
}

// say notes what happened.
func (r *run) say(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.story = append(r.story, fmt.Sprintf("%s %7.2fs ", time.Now().Format(timeFormat), time.Since(r.began).Seconds())+fmt.Sprintf(format, args...))
}

// keepLogs writes the agents' whole logs where `go test -artifacts` keeps them.
func (r *run) keepLogs() {
	for _, s := range r.sites {
		s.mu.Lock()
		log := bytes.Clone(s.log.Bytes())
		s.mu.Unlock()
		if err := os.WriteFile(filepath.Join(r.t.ArtifactDir(), s.name+".log"), log, 0o600); err != nil {
			r.t.Error(err)
		}
	}
}
