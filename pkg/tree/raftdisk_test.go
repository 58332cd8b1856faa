package tree_test

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/fanout-io/fanout/pkg/tree"
)

func inTrouble(s *site) func() bool {
	return func() bool { return errors.Is(s.node.DiskTrouble(), syscall.ENOSPC) }
}

func TestFullDisk_FollowerCatchesUpWhenThereIsRoom(t *testing.T) {
	f := newFabric(t)
	hq := calm(f.group("hq", three)) // who can't write its log hears of no other root, either
	f.start(three...)
	r := root(t, hq)
	r.publish("app", "first", "1")
	for _, s := range hq {
		until(t, "all have it", func() bool { return s.shows("app", "first", "1") })
	}
	follower := hq[0]
	if follower == r {
		follower = hq[1]
	}
	follower.full.Store(true)
	for i := range 20 {
		follower.publish("app", fmt.Sprint(i), "x") // through the root: the majority goes on
	}
	until(t, "the follower says so", inTrouble(follower))
	if follower.shows("app", "19", "x") {
		t.Error("shown, but not written")
	}
	follower.full.Store(false)
	until(t, "the follower catches up", func() bool { return follower.shows("app", "19", "x") && follower.node.DiskTrouble() == nil })
}

func TestFullDisk_RootWithFellowsGivesOfficeUp(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", three)
	f.start(three...)
	r := root(t, hq)
	r.publish("app", "first", "1")
	r.full.Store(true)
	var others []*site
	for _, s := range hq {
		if s != r {
			others = append(others, s)
		}
	}
	others[0].publish("app", "web", "x") // makes the root write
	until(t, "the old root says so", inTrouble(r))
	next := root(t, others)
	next.publish("app", "web", "y")
	r.full.Store(false)
	until(t, "the old root catches up", func() bool { return r.shows("app", "web", "y") && r.node.DiskTrouble() == nil })
	root(t, hq).publish("app", "web", "z")
}

func TestFullDisk_AloneKeepsOfficeAndWaits(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", []string{"hq-a"})[0]
	gd := f.group("hq/gd", []string{"gd-a"}, "hq-a")[0]
	f.start("hq-a", "gd-a")
	root(t, []*site{hq}).publish("app", "first", "1")
	until(t, "the child has it", func() bool { return gd.shows("app", "first", "1") })
	term := gd.node.Term()

	gd.full.Store(true)
	hq.publish("app", "web", "x")
	until(t, "the child says so", inTrouble(gd))
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := gd.node.Propose(ctx, "test", publishChange("app", "web", "x", 0))
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a proposal meanwhile: %v", err)
	}
	// Longer than the parent may be silent: what can't be written is not its fault.
	for end := time.Now().Add(2 * quick().Silence); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if s := groupOf(hq.node.Health(), "hq/gd"); s.GetState() == "unreachable" {
			t.Fatalf("the group is called unreachable: %v", s)
		}
	}
	if !gd.node.IsRoot() || gd.node.Term() != term {
		t.Errorf("term %d became %d", term, gd.node.Term())
	}
	gd.full.Store(false)
	until(t, "the child has it", func() bool { return gd.shows("app", "web", "x") && gd.node.DiskTrouble() == nil })
}

func TestFullDisk_StopsAndStartsOnIt(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", []string{"hq-a"})[0]
	f.start("hq-a")
	root(t, []*site{hq}).publish("app", "first", "1")
	hq.full.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := hq.node.Propose(ctx, "test", publishChange("app", "web", "x", 0)); !errors.Is(err, tree.ErrUnknownOutcome) {
		t.Errorf("a proposal on the full disk: %v", err)
	}
	if err := hq.stop(); err != nil {
		t.Fatal(err)
	}
	f.start("hq-a")
	until(t, "it says so", inTrouble(hq))
	if hq.node.IsRoot() {
		t.Error("root of a term that is not written")
	}
	if err := hq.stop(); err != nil {
		t.Fatal(err)
	}
	f.start("hq-a")
	hq.full.Store(false)
	if root(t, []*site{hq}); !hq.shows("app", "first", "1") {
		t.Error("what was committed is gone")
	}
}
