package integration

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

var (
	linearSeed     = flag.Uint64("linear.seed", 1, "seed of the run for the history checker")
	linearDuration = flag.Duration("linear.duration", 25*time.Second, "how long its clients work")
)

// checkTime bounds the check of one object's history. It takes milliseconds.
const checkTime = 60 * time.Second

// TestLinear lets clients push, publish, unpublish, undo, settle conflicts and ask at all three members of headquarters, while its root is killed and stopped again and again, and proves that each
// record and each list of conflicts went as if one thing had happened after the other. `make linear SEED=… DURATION=…` runs it for longer.
func TestLinear(t *testing.T) {
	t.Parallel()
	sites := start(t,
		spec{name: "hq-a", group: "hq", extra: "sweep: {interval: 5s}\n"}, spec{name: "hq-b", group: "hq", extra: "sweep: {interval: 5s}\n"},
		spec{name: "hq-c", group: "hq", extra: "sweep: {interval: 5s}\n"},
	)
	members := []*site{sites["hq-a"], sites["hq-b"], sites["hq-c"]}
	r := newLinRun(members)
	t.Logf("seed %d, %s; to repeat: make linear SEED=%[1]d DURATION=%[2]s", *linearSeed, *linearDuration)

	working, stop := context.WithTimeout(t.Context(), *linearDuration)
	defer stop()
	var wg sync.WaitGroup
	for i := range linClients {
		c := &linClient{r, i, rand.New(rand.NewPCG(*linearSeed, uint64(i)))}
		wg.Go(func() { c.run(working) })
	}
	story := breakRoots(working, t, members, rand.New(rand.NewPCG(*linearSeed, 1<<32)))
	wg.Wait()
	for _, s := range members {
		s.waitReady()
	}
	r.settleAll(t, rand.New(rand.NewPCG(*linearSeed, 1<<33)))
	r.lastLook(t)
	r.check(t, story)
	if t.Failed() {
		for _, s := range members {
			s.keepLog()
		}
	}
}

// breakRoots kills and stops members, mostly the root, and mends them, until ctx ends; one at a time, so that two of three go on.
func breakRoots(ctx context.Context, t *testing.T, members []*site, rng *rand.Rand) (story []string) {
	began := time.Now()
	for i := 0; ctx.Err() == nil; i++ {
		root := ""
		eventually(t, "a root", func() error {
			if root = members[rng.IntN(len(members))].leads(); root == "" && ctx.Err() == nil {
				return fmt.Errorf("there is none")
			}
			return nil
		})
		victim := members[rng.IntN(len(members))]
		if k := slices.IndexFunc(members, func(s *site) bool { return s.name == root }); k >= 0 && (i < 3 || rng.IntN(4) > 0) {
			victim = members[k]
		}
		stopped := i == 1 || i > 2 && rng.IntN(3) == 0
		down, calm := time.Duration(500+rng.IntN(2000))*time.Millisecond, time.Duration(1000+rng.IntN(2000))*time.Millisecond
		if stopped {
			down += 2 * time.Second // until another was elected
		}
		wait(ctx, calm)
		if ctx.Err() != nil {
			return story
		}
		story = append(story, fmt.Sprintf("%6.2fs %s, root: %v, stopped: %v, for %s", time.Since(began).Seconds(), victim.name, victim.name == root, stopped, down))
		if stopped {
			victim.signal(syscall.SIGSTOP)
			wait(ctx, down)
			victim.signal(syscall.SIGCONT)
		} else {
			victim.kill()
			wait(ctx, down)
			victim.start()
		}
		victim.waitReady()
	}
	return story
}

// wait lets time pass: a fault lasts so long.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// settleAll settles, when all is well again, what is left of the conflicts: for the one and for the other by turns. There is at least one.
func (r *linRun) settleAll(t *testing.T, rng *rand.Rand) {
	c := &linClient{r, linClients, rng}
	var list []*adminv1.ConflictInfo
	eventually(t, "a conflict", func() (err error) {
		ref := c.ref(rng)
		if list, err = c.conflicts(t.Context(), r.members[0], ref); err == nil && len(list) == 0 {
			c.duel(t.Context(), ref)
			err = errors.New("none is listed")
		}
		return err
	})
	for i, x := range list {
		keep := x.GetLoser().GetDigest()
		if w, err := first(r.conns[r.members[0]].Where(t.Context(), &adminv1.WhereRequest{Ref: x.GetRef()})); err == nil && w.GetDigest() != "" && i%2 == 0 {
			keep = w.GetDigest()
		}
		eventually(t, "a conflict is settled", func() error {
			if err := c.keep(t.Context(), r.members[i%len(r.members)], x.GetRef(), keep); err != nil && !refused(err) {
				return err
			}
			return nil
		})
	}
}

// lastLook asks every member about every ref, when all is well again.
func (r *linRun) lastLook(t *testing.T) {
	for i, s := range r.members {
		c := &linClient{r, 2*linClients + 1 + i, nil}
		for _, ref := range r.refs {
			eventually(t, s.name+" answers", func() error { return c.where(t.Context(), s, ref) })
			eventually(t, s.name+" answers", func() error { return c.images(t.Context(), s, ref) })
			eventually(t, s.name+" answers", func() error { _, err := c.conflicts(t.Context(), s, ref); return err })
		}
	}
}

// check gives each object's history to porcupine.
func (r *linRun) check(t *testing.T, story []string) {
	ops, answered := 0, 0
	for k, history := range r.history {
		history = told(history)
		model, name := recordModel, "record"
		if k.list {
			model, name = conflictsModel, "conflicts"
		}
		ops += len(history)
		for _, op := range history {
			if op.Return != never {
				answered++
			}
		}
		result, info := porcupine.CheckOperationsVerbose(model, inRows(history), checkTime)
		if result == porcupine.Ok {
			continue
		}
		path := filepath.Join(t.ArtifactDir(), strings.NewReplacer("/", "-", ":", "-").Replace(k.ref)+"-"+name+".html")
		t.Errorf("%s, %s: %s; see %s", k.ref, name, map[porcupine.CheckResult]string{porcupine.Illegal: "not linearizable", porcupine.Unknown: "not decided in time"}[result], path)
		if err := porcupine.VisualizePath(model, info, path); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d operations were checked, %d of them answered, over %d objects", ops, answered, len(r.history))
	for _, k := range slices.Sorted(maps.Keys(r.answered)) {
		t.Logf("%-10s %5d answered, %4d open", linKinds[k], r.answered[k], r.open[k])
	}
	t.Logf("faults:\n%s", strings.Join(story, "\n"))
	// What did not happen was not checked.
	for _, k := range []linKind{linPublish, linLook, linUnpublish, linUndo, linList, linSettle, linKeep} {
		if r.answered[k] == 0 {
			t.Errorf("no %s was answered", linKinds[k])
		}
	}
	if len(story) < 3 || answered < 200 {
		t.Errorf("%d faults, %d answers: too few to show anything", len(story), answered)
	}
}

// inRows gives operations that overlap others of their client rows of their own in the picture.
func inRows(history []porcupine.Operation) []porcupine.Operation {
	row := 2*linClients + 4
	for i := range history {
		if history[i].Return == never {
			history[i].ClientId = row
			row++
		}
	}
	return history
}

// keepLog writes the agent's whole log where `go test -artifacts` keeps it.
func (s *site) keepLog() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.WriteFile(filepath.Join(s.t.ArtifactDir(), s.name+".log"), s.log.Bytes(), 0o600); err != nil {
		s.t.Error(err)
	}
}
