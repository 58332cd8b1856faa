package integration

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// fault breaks something, waits, and heals it.
func (r *run) fault(a action) {
	r.say("begin: %s", a)
	wait := func() { time.Sleep(a.last) }
	s := r.sites[a.what]
	defer r.trouble(a, time.Now())
	switch a.kind {
	case killAgent:
		r.missing(s)
		r.end(s)
		wait()
		s.start()
	case killRegistry:
		r.missing(s)
		s.own.kill()
		wait()
		s.own.start()
	case stopAgent:
		r.missing(s)
		r.freeze(s, wait)
	case cutLink, holeLink, delayLink, slowLink:
		r.hamper(a, wait)
	case fillDisk:
		r.missing(s)
		r.disks[a.what].fill(r.t, 0)
		wait()
		r.disks[a.what].empty(r.t)
	case loseMemory:
		r.loseMemory(a, wait)
	case wipeRegistry:
		r.wipeRegistry(a, wait)
	case isolateRoot:
		a.what = cmp.Or(s.leads(), a.what)
		a.from = slices.DeleteFunc(slices.Clone(soakHQ), func(name string) bool { return name == a.what })
		r.part(a, wait)
	default:
		r.part(a, wait)
	}
	r.say("over: %s", a)
}

// trouble notes a fault at headquarters that is over: until then agents there could not do all that they should.
func (r *run) trouble(a action, began time.Time) {
	if groupOf(a.what) != "hq" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	t := trouble{span: span{began, time.Now()}, site: a.what}
	if a.kind != killRegistry && a.kind != wipeRegistry {
		t.site = "" // who could not hear of a root, or was one, may be any of them
	}
	r.troubles = append(r.troubles, t)
}

// part takes the network between a member and some of its fellows away, or a part of it.
func (r *run) part(a action, wait func()) {
	r.missing(r.sites[a.what])
	var links []*wire
	for _, fellow := range a.from {
		l := r.wires.pair(a.what, fellow)
		links = append(links, l)
		switch {
		case a.kind == muteMember:
			l.swallow(fellow)
		case a.kind == delayMember:
			l.delay.Store(int64(300 * time.Millisecond))
		case a.ends:
			l.sever()
		default:
			l.swallow()
		}
	}
	wait()
	for _, l := range links {
		l.restore()
		l.join()
		l.delay.Store(0)
	}
}

func (r *run) hamper(a action, wait func()) {
	l := r.wires.link(a.what, a.what[:strings.LastIndex(a.what, "/")])
	switch a.kind {
	case cutLink:
		l.sever()
		wait()
		l.join()
	case holeLink:
		l.swallow()
		wait()
		l.restore()
	case delayLink:
		l.delay.Store(int64(300 * time.Millisecond))
		wait()
		l.delay.Store(0)
	default:
		l.rate(linkRate / 2)
		wait()
		l.rate(linkRate)
	}
}

// keepOnly removes all of an agent's data but its registry.
func (r *run) keepOnly(s *site, keep string) {
	dir := s.dir
	if s.data != "" {
		dir = s.data
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		r.t.Error(err)
	}
	for _, e := range entries {
		if e.Name() != keep {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				r.t.Error(err)
			}
		}
	}
}

// loseMemory takes the data of one member of headquarters, or of all agents of a group below.
func (r *run) loseMemory(a action, wait func()) {
	if groupOf(a.what) == "hq" {
		open, ok := r.safe(a)
		defer open()
		if !ok {
			return
		}
	}
	var lost []*site
	if members, ok := soakGroups[a.what]; ok {
		lost = r.at(members...)
	} else {
		lost = r.at(a.what)
	}
	for _, s := range lost {
		r.lone(s)
		r.end(s)
	}
	for _, s := range lost {
		r.keepOnly(s, "registry")
	}
	wait()
	r.mu.Lock()
	r.accountOf(lost[0].group).resyncs++
	r.mu.Unlock()
	for _, s := range lost {
		s.start()
	}
	if groupOf(a.what) == "hq" {
		r.votes(r.sites[a.what])
	}
}

// votes waits until a member that lost its disk has a vote again: before that no other may be in trouble.
func (r *run) votes(s *site) {
	eventually(r.t, s.name+" votes again", func() error {
		for _, at := range r.at(soakHQ...) {
			if at == s {
				continue
			}
			list, err := at.memberList()
			if err != nil {
				return err
			}
			if m := list[s.name]; !m.Voter || m.State == "unreachable" {
				return fmt.Errorf("%v", list)
			}
			return nil
		}
		return nil
	})
}

func (r *run) wipeRegistry(a action, wait func()) {
	s := r.sites[a.what]
	if s.group == "hq" {
		open, ok := r.safe(a)
		defer open()
		if !ok {
			return
		}
	}
	r.missing(s)
	r.emptied(s)
	begin := time.Now()
	if s.own != nil {
		s.own.kill()
		_ = os.RemoveAll(s.own.Dir)
		wait()
		s.own.start()
	} else {
		dir := s.dir
		if s.data != "" {
			dir = s.data
		}
		r.end(s)
		_ = os.RemoveAll(filepath.Join(dir, "registry"))
		wait()
		s.start()
	}
	r.watcher.forget(s.name)
	r.mu.Lock()
	r.losses = append(r.losses, loss{s.name, span{begin, time.Now()}})
	r.mu.Unlock()
}

// safeTime is how long a registry of headquarters waits for its moment to be wiped.
const safeTime = 15 * time.Second

// safe closes a registry of headquarters to clients and waits until nothing depends on it, or on its agent's memory, alone. Open lets clients in again.
func (r *run) safe(a action) (open func(), ok bool) {
	door := r.doors[a.what]
	door.Lock()
	deadline := time.Now().Add(safeTime)
	for {
		err := r.depends()
		if err == nil {
			return door.Unlock, true
		}
		if time.Now().After(deadline) {
			r.say("not done: %s: %v", a, err)
			return door.Unlock, false
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// depends says what is not yet the same at all registries of headquarters and in the catalog.
func (r *run) depends() error {
	r.mu.Lock()
	refs := make([]string, 0, len(r.ops))
	for ref := range r.ops {
		refs = append(refs, ref)
	}
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, ref := range refs {
		now, _ := r.history.now(ref)
		for _, s := range r.at(soakHQ...) {
			d, err := r.watcher.head(ctx, s, ref)
			if err != nil {
				return err
			}
			if again, _ := r.history.now(ref); d != now.digest || again != now {
				return fmt.Errorf("%s shows %q under %s, the catalog says %q", s.name, d, ref, now.digest)
			}
		}
	}
	return nil
}
