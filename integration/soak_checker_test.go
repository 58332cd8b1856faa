package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

func (r *run) refs() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	refs := make([]string, 0, len(r.ops))
	for ref := range r.ops {
		refs = append(refs, ref)
	}
	slices.Sort(refs)
	return refs
}

// freeze stops an agent's process for a time.
func (r *run) freeze(s *site, wait func()) {
	if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		r.t.Error(err)
		return
	}
	wait()
	if err := s.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		r.t.Error(err)
	}
}

// converged waits until the catalog rests and every registry shows what it says, nothing else.
func (r *run) converged() {
	r.t.Helper()
	rest := time.Now()
	top := uint64(0)
	within(r.t, calmTime, "every registry shows what the catalog says", func() error {
		time.Sleep(200 * time.Millisecond) // between two looks at all of them
		r.history.mu.Lock()
		now := r.history.top
		r.history.mu.Unlock()
		if now != top {
			top, rest = now, time.Now()
		}
		if err := r.equal(); err != nil {
			rest = time.Now()
			return err
		}
		// What a registry never told of is found by its sweep.
		if quiet := time.Since(rest); quiet < 7*time.Second {
			return fmt.Errorf("equal, for %s only", quiet)
		}
		return nil
	})
}

// equal compares all registries with the catalog; the error names some of what differs.
func (r *run) equal() error {
	var mu sync.Mutex
	var differ []string
	var wg sync.WaitGroup
	for _, s := range r.sites {
		wg.Go(func() {
			for _, ref := range r.refs() {
				now, _ := r.history.now(ref)
				d, err := r.watcher.head(context.Background(), s, ref)
				if err == nil && d == now.digest {
					continue
				}
				mu.Lock()
				differ = append(differ, fmt.Sprintf("%s shows %.19q under %s, the catalog says %.19q, revision %d (%v)", s.name, d, ref, now.digest, now.revision, err))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(differ) == 0 {
		return nil
	}
	slices.Sort(differ)
	return fmt.Errorf("%d differ:\n  %s", len(differ), strings.Join(differ[:min(len(differ), 12)], "\n  "))
}

// check judges what was seen.
func (r *run) check() {
	r.t.Helper()
	conflicts := r.conflicts()
	r.contents()
	r.meter()
	r.readLogs()
	r.balance()
	for _, err := range append(r.watcher.failures, r.history.bad...) {
		r.t.Error(err)
	}
	fail := func(err error) {
		if err != nil {
			r.t.Error(err)
		}
	}
	acked, commands, unclean := 0, 0, 0
	for _, ref := range r.refs() {
		ops, changes := r.ops[ref], r.history.of(ref)
		inOrder(ops)
		now, _ := r.history.now(ref)
		fail(judgeRef(ref, ops, now, conflicts))
		fail(judgeAcks(ops, changes))
		fail(judgePushes(ref, ops, changes, conflicts, r.troubles))
		for _, s := range r.sites {
			fail(judgeSite(s.name, ref, r.watcher.seen[s.name][ref], changes, ops, r.losses))
		}
		for _, o := range ops {
			acked += btoi(o.acked)
			commands += btoi(o.revision > 0)
			unclean += btoi(!o.clean)
		}
	}
	for _, c := range conflicts {
		fail(judgeConflict(c, r.ops[c.ref], r.troubles))
	}
	r.t.Logf("%d refs, %d operations acknowledged, %d of them by a command, %d that competed; %d revisions; %d conflicts listed; %d looks",
		len(r.refs()), acked, commands, unclean, r.history.top, len(conflicts), r.watcher.looks)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (r *run) conflicts() (list []conflict) {
	var doc conflictDoc
	r.sites["hq-a"].document(&doc, "conflicts")
	for _, c := range doc.Conflicts {
		list = append(list, conflict{c.Ref, c.Loser.Digest, c.Loser.Site})
	}
	return list
}

// contents reads all that every registry has under the catalog's refs, each blob once for each repository, and proves it.
func (r *run) contents() {
	r.t.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var total int64
	for _, s := range r.sites {
		wg.Go(func() {
			proved := map[string]bool{}
			for _, ref := range r.refs() {
				now, _ := r.history.now(ref)
				if now.digest == "" {
					continue
				}
				n, err := s.prove(ref, now.digest, proved)
				if err != nil {
					r.t.Errorf("%s: %s: %v", s.name, ref, err)
				}
				mu.Lock()
				total += n
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	r.t.Logf("%.1f MiB were read and have the right SHA-256", float64(total)/mib)
}

// prove reads a manifest and all under it that was not read in its repository yet.
func (s *site) prove(ref, digest string, proved map[string]bool) (n int64, err error) {
	repo, _, _ := strings.Cut(ref, ":")
	if proved[repo+digest] {
		return 0, nil
	}
	body, _, err := s.read(repo, "manifests", digest)
	if err != nil {
		return 0, err
	}
	var m struct {
		Config struct{ Digest string }
		Layers []struct{ Digest string }
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return 0, err
	}
	for _, d := range append(m.Layers, m.Config) {
		if proved[repo+d.Digest] {
			continue
		}
		body, _, err := s.read(repo, "blobs", d.Digest)
		if err != nil {
			return n, err
		}
		proved[repo+d.Digest] = true
		n += int64(len(body))
	}
	proved[repo+digest] = true
	return n, nil
}
