package integration

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fanout-io/fanout/pkg/registry/harbortest"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// orderly asks all members of headquarters how the rollout is until the test ends, and fails it when a member ever says that two waves are open, or that a group was released whose wave is not.
func (p *promotion) orderly() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	asked := make([]int, len(p.hq))
	for i, s := range p.hq {
		c, id := s.admin(), p.id
		wg.Go(func() {
			for ctx.Err() == nil {
				r, _ := rollout(ctx, c, id)
				if r != nil {
					asked[i]++
					if err := wavesInOrder(r); err != nil {
						p.t.Errorf("%s says: %v", s.name, err)
						return
					}
				}
				select {
				case <-ctx.Done():
				case <-time.After(50 * time.Millisecond):
				}
			}
		})
	}
	p.t.Cleanup(func() {
		cancel()
		wg.Wait()
		if slices.Max(asked) < 20 {
			p.t.Errorf("the members answered %v times: too seldom to have seen anything", asked)
		}
	})
}

// wavesInOrder says what is wrong with the order of a rollout's waves and groups.
func wavesInOrder(r *catalogv1.Rollout) error {
	var open []string
	for _, w := range r.GetWaves() {
		if w.GetOpened() != nil && w.GetClosed() == nil {
			open = append(open, w.GetName())
		}
	}
	if len(open) > 1 {
		return fmt.Errorf("open are %v", open)
	}
	for _, g := range r.GetGroups() {
		w := r.GetWaves()[g.GetWave()]
		switch {
		case g.GetReleased() == nil:
		case w.GetOpened() == nil:
			return fmt.Errorf("%s was released, and wave %s has not opened", g.GetGroup(), w.GetName())
		case g.GetReleased().AsTime().Before(w.GetOpened().AsTime()):
			return fmt.Errorf("%s was released at %v, and wave %s opened at %v", g.GetGroup(), g.GetReleased().AsTime(), w.GetName(), w.GetOpened().AsTime())
		}
	}
	return nil
}

// TestPromote_RootKilledInEachPhase: the root of headquarters is killed while a promotion is asked for, and then in every phase that a rollout stays in. Each goes on where it was, no wave begins
// early, and the end is what was planned.
func TestPromote_RootKilledInEachPhase(t *testing.T) {
	t.Parallel()
	fake := serveFake(t, "oci", harbortest.Config{Knobs: harbortest.Knobs{Plain: true}})
	sites := start(t,
		spec{name: "hq-a", group: "hq", counted: true}, spec{name: "hq-b", group: "hq", counted: true}, spec{name: "hq-c", group: "hq", counted: true},
		spec{name: "gd-a", group: "hq/gd", extra: fake.extra}, spec{name: "hn-a", group: "hq/hn"},
	)
	const ref = "prod/web:stable"
	hn := sites["hn-a"]
	p := promotionAt(t, sites["hq-a"], sites["hq-b"], sites["hq-c"])
	was := push(t, sites["hq-a"], ref, image(t, 1<<16, 1))
	fake.nowShows(ref, was)
	shows(t, hn, ref, was)
	p.staged()
	const rate = mib
	for _, s := range p.hq {
		s.link.throttle(rate / len(p.hq))
	}
	// The content takes its time, so that the rollout begins by staging it.
	is := push(t, sites["hq-a"], ref, image(t, 4*mib, 2))
	p.watch(ref, is, map[string]*site{"hn-a": hn})
	slow := func(times int) (remove func()) {
		return fake.AddFault(harbortest.Fault{Match: tagPuts("prod/web", "stable"), Times: times, Status: 503, Code: "UNAVAILABLE", Message: "try later", RetryAfter: "8"})
	}
	remove := slow(0)

	// pending: the one who asked does not know whether it has begun.
	dead := make(chan struct{})
	go func() { defer close(dead); p.killRoot() }()
	p.begin(planOf(
		"{name: first, groups: [hq/gd], onOffline: wait, soak: 6s}",
		"{name: second, groups: [hq/hn], onOffline: wait, gates: {after: [{approval: {}}]}}",
		fmt.Sprintf("{name: third, groups: [hq], window: {allow: [%q]}}", tomorrow()),
	), "", ref+"@"+is)
	<-dead
	p.orderly()
	p.in("staging", 0)
	p.killRoot()
	if p.in("staging", 0); fake.Tag("prod/web", "stable") != was {
		t.Fatal("a tag moved before the content was there")
	}
	for _, s := range p.hq {
		s.link.free()
	}
	p.in("running", 0)
	p.killRoot()
	p.in("running", 0)
	remove()
	p.in("soaking", 0)
	p.killRoot()
	p.in("soaking", 0)
	p.steer("pause")
	p.killRoot()
	p.in("paused", 0)
	p.never("hn-a")
	p.steer("resume")
	p.in("awaiting-approval", 1)
	p.killRoot()
	p.in("awaiting-approval", 1)
	p.steer("approve")
	p.in("awaiting-window", 2)
	p.killRoot()
	p.in("awaiting-window", 2)
	fake.nowShows(ref, is)
	shows(t, hn, ref, is)

	remove = slow(0)
	p.steer("rollback")
	p.in("rolling-back", 2)
	p.killRoot()
	p.group("hq/gd", "rolling-back")
	remove()
	r := p.in("rolled-back", 2)
	fake.nowShows(ref, was)
	shows(t, hn, ref, was)
	for _, s := range p.hq {
		shows(t, s, ref, is) // the push was shown there before
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if opened := r.GetWaves()[1].GetOpened().AsTime(); p.first["hn-a"].Before(opened) {
		t.Errorf("hn-a showed the release %v before its wave opened", opened.Sub(p.first["hn-a"]))
	}
	if soaked := r.GetWaves()[0].GetSoaked().AsDuration(); soaked < 6*time.Second {
		t.Errorf("the first wave soaked for %v", soaked)
	}
	for _, g := range r.GetGroups() {
		if want := map[string]string{"hq/gd": "rolled-back", "hq/hn": "rolled-back"}[g.GetGroup()]; want != "" && g.GetPhase() != want {
			t.Errorf("%s is %s, not %s", g.GetGroup(), g.GetPhase(), want)
		}
		if g.GetGroup() == "hq" && g.GetReleased() != nil {
			t.Error("hq was released, outside its window")
		}
	}
	started := 0
	p.ask("the list", func(ctx context.Context, c adminv1.AdminServiceClient) error {
		stream, err := c.Rollouts(ctx, &adminv1.RolloutsRequest{})
		if err != nil {
			return err
		}
		list, err := stream.Recv()
		started = len(list.GetRollouts())
		return err
	})
	if started != 1 {
		t.Errorf("%d rollouts were started", started)
	}
}

// tomorrow is a window that is shut for hours.
func tomorrow() string {
	at := time.Now().UTC().Add(12 * time.Hour)
	return fmt.Sprintf("0 %d %d %d * / 1h", at.Hour(), at.Day(), at.Month())
}
