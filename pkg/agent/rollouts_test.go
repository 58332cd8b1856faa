package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
)

const (
	digestOld = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
	digestNew = "sha256:2222222222222222222222222222222222222222222222222222222222222222"
)

var web = catalog.Ref{Repository: "prod/web", Tag: "stable"}

// fakeFabric is headquarters with its catalog, and groups of one site each, named as the group, that do what the test says.
type fakeFabric struct {
	t       *testing.T
	changed chan struct{}
	health  chan struct{}
	answer  func(*http.Request) (*http.Response, error)

	mu        sync.Mutex
	machine   *catalog.Machine
	sites     map[string]*treev1.SiteHealth
	pending   map[string]*treev1.PendingRef
	freezes   map[string]*catalogv1.Freeze
	proposals int
	lost      error         // what a proposal fails with; nil: none does
	ahead     time.Duration // is the clock of whoever proposes
	stop      func()
}

// fakes founds a catalog in which every group shows the old digest, and lets a controller look after it until the test ends.
func fakes(t *testing.T, groups ...string) *fakeFabric {
	f := &fakeFabric{
		t: t, changed: make(chan struct{}, 1), health: make(chan struct{}, 1), machine: catalog.New(),
		sites: map[string]*treev1.SiteHealth{}, pending: map[string]*treev1.PendingRef{}, freezes: map[string]*catalogv1.Freeze{},
	}
	f.must(&catalogv1.Change{Kind: &catalogv1.Change_Found{Found: &catalogv1.Found{Epoch: "e1"}}})
	f.must(&catalogv1.Change{Kind: &catalogv1.Change_Publish{Publish: &catalogv1.Publish{
		Revision: 1, Repository: web.Repository, Tag: web.Tag, Target: &catalogv1.Descriptor{Digest: digestOld, MediaType: "m", Size: 1},
	}}})
	for _, g := range groups {
		f.sites[g] = &treev1.SiteHealth{Site: g, Group: g, State: "synced", RegistryType: "oci", Revision: 1}
	}
	f.elect()
	return f
}

// elect begins a term of office, and ends the one before it.
func (f *fakeFabric) elect() {
	if f.stop != nil {
		f.stop()
	}
	ctx, cancel := context.WithCancel(f.t.Context())
	c := (&rollouts{
		group: "hq", catalog: f.catalog, health: f.view, propose: f.propose, zone: time.LoadLocation, client: &http.Client{Transport: f}, logger: slog.New(slog.DiscardHandler),
	}).init()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.run(ctx, f.changed, f.health, func(*catalog.Snapshot) {})
	}()
	f.stop = func() { cancel(); <-done }
}

func (f *fakeFabric) RoundTrip(req *http.Request) (*http.Response, error) {
	f.mu.Lock()
	answer := f.answer
	f.mu.Unlock()
	return answer(req)
}

func (f *fakeFabric) catalog() *catalog.Snapshot {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.machine.Snapshot()
}

func (f *fakeFabric) view(...catalog.Ref) fabricView {
	f.mu.Lock()
	defer f.mu.Unlock()
	v := fabricView{groups: []*treev1.GroupHealth{{Group: "hq", Freeze: f.freezes["hq"]}}}
	everything := whole()
	pending := map[string]*treev1.PendingRef{}
	for g, h := range f.sites {
		v.groups = append(v.groups, &treev1.GroupHealth{Group: g, Demand: everything, Freeze: f.freezes[g]})
		v.sites = append(v.sites, h)
		pending[g] = f.pending[g]
	}
	v.pending = func(site string, _ catalog.Ref) *treev1.PendingRef { return pending[site] }
	return v
}

func (f *fakeFabric) apply(actor string, c *catalogv1.Change) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.machine.Apply(&catalogv1.Command{Time: timestamppb.New(time.Now().Add(f.ahead)), Actor: actor, Changes: []*catalogv1.Change{c}})[0].Err
	select {
	case f.changed <- struct{}{}:
	default:
	}
	return err
}

func (f *fakeFabric) propose(_ context.Context, c *catalogv1.Change) error {
	f.mu.Lock()
	f.proposals++
	lost := f.lost
	f.mu.Unlock()
	if lost != nil {
		return lost
	}
	if err := f.apply("fanout", c); !errors.Is(err, catalog.ErrUnchanged) {
		return err
	}
	return nil
}

func (f *fakeFabric) must(c *catalogv1.Change) {
	f.t.Helper()
	if err := f.apply("anna", c); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fakeFabric) start(waves ...*catalogv1.Wave) {
	f.t.Helper()
	for _, w := range waves {
		if w.MaxConcurrent == 0 {
			w.MaxConcurrent = 10
		}
		if w.OnFailure == "" {
			w.OnFailure = catalog.OnFailurePause
		}
		if w.OnOffline == "" {
			w.OnOffline = catalog.OnOfflineWait
		}
	}
	f.must(&catalogv1.Change{Kind: &catalogv1.Change_StartRollout{StartRollout: &catalogv1.StartRollout{Rollout: &catalogv1.Rollout{
		Id: "r1", Plan: &catalogv1.Plan{Timezone: "UTC", Waves: waves, AllGroups: true}, Items: []*catalogv1.RolloutItem{{
			Repository: web.Repository, Tag: web.Tag, SourceRepository: web.Repository, Target: &catalogv1.Descriptor{Digest: digestNew, MediaType: "m", Size: 1},
		}},
	}}}})
}

func (f *fakeFabric) steer(verb, group string) {
	f.t.Helper()
	f.must(&catalogv1.Change{Kind: &catalogv1.Change_SteerRollout{SteerRollout: &catalogv1.SteerRollout{Id: "r1", Verb: verb, Group: group}}})
}

// site has a site say how it is; it has received all that the catalog has.
func (f *fakeFabric) site(site, state string, p *treev1.PendingRef) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sites[site] = &treev1.SiteHealth{Site: site, Group: site, State: state, RegistryType: "oci", Revision: f.machine.Snapshot().Position().GetRevision()}
	if state == "unreachable" {
		f.sites[site].Revision = 1
	}
	f.pending[site] = p
	select {
	case f.health <- struct{}{}:
	default:
	}
}

// follow has sites do what the catalog says: they hold what they are not to show, and show what they are to show.
func (f *fakeFabric) follow(sites ...string) {
	for _, s := range sites {
		rec, _ := f.catalog().Get(web)
		var p *treev1.PendingRef
		if by := catalog.ShownBy(rec, s); by != digestNew && len(rec.GetReleases()) > 0 {
			p = &treev1.PendingRef{Site: s, State: "held", Digest: by, Revision: rec.GetRevision()}
		}
		f.site(s, "synced", p)
	}
}

// in lets time pass, in steps of a second with the sites following, until the rollout is in a phase; it fails after a limit.
func (f *fakeFabric) in(phase string, limit time.Duration, sites ...string) *catalogv1.Rollout {
	f.t.Helper()
	for begin := time.Now(); ; time.Sleep(time.Second) {
		f.follow(sites...)
		synctest.Wait()
		r := f.catalog().Rollout("r1")
		if r.GetPhase() == phase {
			return r
		}
		if time.Since(begin) > limit {
			f.t.Fatalf("after %v the rollout is %s (%s), not %s\n%s", limit, r.GetPhase(), r.GetReason(), phase, rolloutText(r))
		}
	}
}

func (f *fakeFabric) proposed() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.proposals
}

func rolloutText(r *catalogv1.Rollout) string {
	var b strings.Builder
	for _, s := range r.GetSteps() {
		fmt.Fprintln(&b, s.GetAt().AsTime().Format(time.TimeOnly), s.GetActor(), s.GetText())
	}
	for _, g := range r.GetGroups() {
		fmt.Fprintln(&b, g.GetGroup(), g.GetPhase(), g.GetReason())
	}
	return b.String()
}

func (f *fakeFabric) shownAt(group string) string {
	rec, _ := f.catalog().Get(web)
	return catalog.ShownBy(rec, group)
}

func approval() *catalogv1.Gate {
	return &catalogv1.Gate{Kind: &catalogv1.Gate_Approval{Approval: &catalogv1.Approval{}}}
}

func checkGate(interval, timeout time.Duration) *catalogv1.Gate {
	return &catalogv1.Gate{Kind: &catalogv1.Gate_Check{Check: &catalogv1.Check{
		Url: "http://metrics.internal/ok", Interval: durationpb.New(interval), Timeout: durationpb.New(timeout),
	}}}
}

func answers(status int, body string) func(*http.Request) (*http.Response, error) {
	return func(req *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(body)), Request: req}, nil
	}
}

// TestRollouts_ThreeWaves: soak, check and approval, one wave after another. No group is released before its wave, whatever it holds.
func TestRollouts_ThreeWaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := []string{"hq/gd", "hq/hn", "hq/gd/sz"}
		f := fakes(t, all...)
		defer func() { f.stop() }()
		f.answer = answers(200, "fine\nreally")
		f.start(
			&catalogv1.Wave{Name: "canary", Groups: []string{"hq/gd/sz"}, Soak: durationpb.New(10 * time.Minute)},
			&catalogv1.Wave{Name: "gd", Groups: []string{"hq/gd"}, After: []*catalogv1.Gate{checkGate(30*time.Second, 10*time.Minute)}},
			&catalogv1.Wave{Name: "rest", Groups: []string{"hq/hn"}, Before: []*catalogv1.Gate{approval()}},
		)
		f.in(catalog.RolloutSoaking, time.Minute, all...)
		if f.shownAt("hq/gd/sz") != digestNew || f.shownAt("hq/gd") != digestOld || f.shownAt("hq/hn") != digestOld {
			t.Fatal("released are not those of the first wave alone")
		}
		begin := time.Now()
		r := f.in(catalog.RolloutAwaitingApproval, 15*time.Minute, all...)
		if took := time.Since(begin); took < 10*time.Minute || took > 10*time.Minute+10*time.Second {
			t.Errorf("the soak of 10m took %v", took)
		}
		if g := r.GetWaves()[1].GetGates()[0]; g.GetResult() != catalog.GatePassed || g.GetDetail() != "status 200: fine" || g.GetAttempts() != 1 {
			t.Errorf("the check: %v", g)
		}
		if f.shownAt("hq/gd") != digestNew || f.shownAt("hq/hn") != digestOld {
			t.Fatal("released are not those of the first two waves")
		}
		n := f.proposed()
		time.Sleep(time.Hour)
		if more := f.proposed() - n; more > 1 {
			t.Errorf("%d proposals in an hour in which nothing happened", more)
		}
		f.steer(catalog.SteerApprove, "")
		f.in(catalog.RolloutSucceeded, time.Minute, all...)
	})
}

// TestRollouts_NewRootSoaksOn: the time that a root had written down counts for the next; what passed between the two does not.
func TestRollouts_NewRootSoaksOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fakes(t, "hq/gd")
		defer func() { f.stop() }()
		f.start(&catalogv1.Wave{Name: "w", Groups: []string{"hq/gd"}, Soak: durationpb.New(10 * time.Minute)})
		f.in(catalog.RolloutSoaking, time.Minute, "hq/gd")
		time.Sleep(5 * time.Minute)
		f.stop()
		time.Sleep(time.Hour)
		f.elect()
		begin := time.Now()
		f.in(catalog.RolloutSucceeded, 10*time.Minute, "hq/gd")
		if took := time.Since(begin); took < 5*time.Minute-5*time.Second || took > 5*time.Minute+10*time.Second {
			t.Errorf("half of the soak was left and took %v", took)
		}
	})
}

// TestRollouts_Pause: nothing is released while a rollout is paused, and its soak does not go on.
func TestRollouts_Pause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fakes(t, "hq/gd", "hq/hn")
		defer func() { f.stop() }()
		f.start(&catalogv1.Wave{Name: "a", Groups: []string{"hq/gd"}, Soak: durationpb.New(time.Minute)}, &catalogv1.Wave{Name: "b", Groups: []string{"hq/hn"}})
		f.in(catalog.RolloutSoaking, time.Minute, "hq/gd", "hq/hn")
		f.steer(catalog.SteerPause, "")
		time.Sleep(time.Hour)
		if f.shownAt("hq/hn") != digestOld {
			t.Fatal("released while paused")
		}
		f.steer(catalog.SteerResume, "")
		begin := time.Now()
		f.in(catalog.RolloutSucceeded, 2*time.Minute, "hq/gd", "hq/hn")
		if took := time.Since(begin); took < 50*time.Second {
			t.Errorf("the soak was over %v after it went on", took)
		}
	})
}

// TestRollouts_Checks: an answer that is no, none, and one that hangs are attempts; at its timeout the gate fails.
func TestRollouts_Checks(t *testing.T) {
	for _, c := range []struct {
		name     string
		answer   func(*http.Request) (*http.Response, error)
		detail   string
		attempts uint32
	}{
		{"no", answers(503, "error budget is spent"), "status 503: error budget is spent", 4},
		{"unreachable", func(*http.Request) (*http.Response, error) { return nil, errors.New("connection refused") }, "connection refused", 4},
		{"hangs", func(req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			return nil, req.Context().Err()
		}, "no answer within 10s", 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := fakes(t, "hq/gd")
				defer func() { f.stop() }()
				f.answer = c.answer
				f.start(&catalogv1.Wave{Name: "w", Groups: []string{"hq/gd"}, After: []*catalogv1.Gate{checkGate(30*time.Second, 2*time.Minute)}})
				f.in(catalog.RolloutRunning, time.Minute, "hq/gd")
				begin := time.Now()
				r := f.in(catalog.RolloutPaused, 3*time.Minute, "hq/gd")
				if took := time.Since(begin); took < 115*time.Second || took > 130*time.Second {
					t.Errorf("a gate with a timeout of 2m failed after %v", took)
				}
				if g := r.GetWaves()[0].GetGates()[0]; g.GetResult() != catalog.GateFailed || !strings.Contains(g.GetDetail(), c.detail) || g.GetAttempts() < c.attempts || g.GetAttempts() > c.attempts+1 {
					t.Errorf("%v", g)
				}
				f.mu.Lock()
				f.answer = answers(204, "")
				f.mu.Unlock()
				f.steer(catalog.SteerResume, "")
				f.in(catalog.RolloutSucceeded, 10*time.Second, "hq/gd")
			})
		})
	}
}

// TestRollouts_Failures: a registry that fails again and again fails its group; what failed before a retry counts no more.
func TestRollouts_Failures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fakes(t, "hq/gd")
		defer func() { f.stop() }()
		f.start(&catalogv1.Wave{Name: "w", Groups: []string{"hq/gd"}})
		fails := func(attempts uint32) {
			f.site("hq/gd", "degraded", &treev1.PendingRef{State: "failed", Attempts: attempts, Reason: "500 of the registry"})
			time.Sleep(10 * time.Second)
		}
		fails(failedAttempts - 1)
		if r := f.catalog().Rollout("r1"); r.GetPhase() != catalog.RolloutStaging {
			t.Fatalf("after %d attempts: %s", failedAttempts-1, r.GetPhase())
		}
		fails(failedAttempts)
		if r := f.catalog().Rollout("r1"); r.GetPhase() != catalog.RolloutPaused || !strings.Contains(r.GetGroups()[0].GetReason(), "500 of the registry") {
			t.Fatalf("after %d attempts: %s", failedAttempts, rolloutText(r))
		}
		f.steer(catalog.SteerRetry, "hq/gd")
		f.steer(catalog.SteerResume, "")
		fails(failedAttempts + 1)
		if r := f.catalog().Rollout("r1"); r.GetPhase() != catalog.RolloutStaging {
			t.Fatalf("right after a retry: %s", rolloutText(r))
		}
		fails(2*failedAttempts + 1)
		if r := f.catalog().Rollout("r1"); r.GetPhase() != catalog.RolloutPaused {
			t.Fatalf("as many attempts after the retry: %s", rolloutText(r))
		}
	})
}

// TestRollouts_OfflineAndFrozen: a group that can't be reached is waited for and gets the release when it is back; a frozen one too, and its freeze ends by itself.
func TestRollouts_OfflineAndFrozen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fakes(t, "hq/gd", "hq/hn")
		defer func() { f.stop() }()
		f.site("hq/gd", "unreachable", nil)
		f.freezes["hq/hn"] = &catalogv1.Freeze{Group: "hq/hn", Since: timestamppb.Now(), Until: timestamppb.New(time.Now().Add(time.Hour)), Reason: "festival"}
		f.start(&catalogv1.Wave{Name: "w", Groups: []string{"hq/gd", "hq/hn"}, OnOffline: catalog.OnOfflineSkip})
		r := f.in(catalog.RolloutSucceeded, time.Minute, "hq/hn")
		for i, want := range []string{"offline: hq/gd is unreachable", "frozen: by hq/hn until 2000-01-01T01:00:00Z: festival"} {
			if g := r.GetGroups()[i]; g.GetPhase() != catalog.GroupOffline || g.GetReason() != want {
				t.Errorf("%s: %s %q", g.GetGroup(), g.GetPhase(), g.GetReason())
			}
		}
		f.follow("hq/gd", "hq/hn")
		time.Sleep(5 * time.Second)
		for _, g := range f.catalog().Rollout("r1").GetGroups() {
			if g.GetPhase() != catalog.GroupSucceeded {
				t.Errorf("%s is back: %s %q", g.GetGroup(), g.GetPhase(), g.GetReason())
			}
		}
		n := f.proposed()
		time.Sleep(time.Hour)
		if more := f.proposed() - n; more > 0 {
			t.Errorf("%d proposals after all had come to rest", more)
		}
		time.Sleep(catalog.SettleAfter)
		if !f.catalog().Rollout("r1").GetSettled() {
			t.Error("it was not settled in time")
		}
	})
}

// TestRollouts_PushedOver: somebody pushes over what a registry of headquarters was released. The group has failed, in words, and does not wait until its deadline; when the release is
// pushed there again it is done.
func TestRollouts_PushedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fakes(t, "hq/gd", "hq/hn")
		defer func() { f.stop() }()
		f.start(&catalogv1.Wave{Name: "w", Groups: []string{"hq/gd", "hq/hn"}, Deadline: durationpb.New(6 * time.Hour)})
		other := "sha256:" + strings.Repeat("7", 64)
		pushed := func() {
			rec, _ := f.catalog().Get(web)
			f.site("hq/gd", "synced", &treev1.PendingRef{Site: "hq/gd", State: "held", Digest: other, Revision: rec.GetRevision(), Pushed: true, Reason: "pushed here"})
		}
		pushed()
		f.follow("hq/hn")
		time.Sleep(2 * time.Second)
		if g := f.catalog().Rollout("r1").GetGroups()[0]; g.GetPhase() != catalog.GroupRunning {
			t.Fatalf("before it was released: %s %q", g.GetPhase(), g.GetReason())
		}
		pushed() // again, as of the release
		begin := time.Now()
		r := f.in(catalog.RolloutPaused, time.Minute, "hq/hn")
		if g := r.GetGroups()[0]; g.GetPhase() != catalog.GroupFailed || !strings.Contains(g.GetReason(), "was changed there meanwhile, and shows sha256:777777777777: push the release there again") || time.Since(begin) > 10*time.Second {
			t.Errorf("after %v: %s %q", time.Since(begin), g.GetPhase(), g.GetReason())
		}
		f.follow("hq/gd")
		time.Sleep(2 * time.Second)
		if g := f.catalog().Rollout("r1").GetGroups()[0]; g.GetPhase() != catalog.GroupSucceeded {
			t.Errorf("put right: %s %q", g.GetPhase(), g.GetReason())
		}
		f.steer(catalog.SteerResume, "")
		f.in(catalog.RolloutSucceeded, time.Minute, "hq/gd", "hq/hn")
	})
}

// TestRollouts_Window: a wave waits for its window, and groups of an open wave do too.
func TestRollouts_Window(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fakes(t, "hq/gd", "hq/hn")
		defer func() { f.stop() }()
		// It is midnight, the first of January 2000.
		f.start(&catalogv1.Wave{Name: "w", Groups: []string{"hq/gd", "hq/hn"}, MaxConcurrent: 1, Window: &catalogv1.Window{Allow: []string{"0 1 * * * / 1h"}}})
		f.in(catalog.RolloutAwaitingWindow, time.Minute, "hq/gd", "hq/hn")
		f.in(catalog.RolloutRunning, time.Hour, "hq/gd", "hq/hn")
		if at := time.Now().UTC(); at.Hour() != 1 || at.Minute() != 0 {
			t.Errorf("it opened at %v", at)
		}
		// The first group takes until the window is closed.
		f.site("hq/gd", "syncing", &treev1.PendingRef{State: "delivering"})
		for range 2 * 60 * 60 {
			f.follow("hq/hn")
			time.Sleep(time.Second)
		}
		f.follow("hq/gd", "hq/hn")
		time.Sleep(time.Minute)
		if f.shownAt("hq/gd") != digestNew || f.shownAt("hq/hn") != digestOld {
			t.Fatal("released when the window was closed")
		}
		f.in(catalog.RolloutSucceeded, 24*time.Hour, "hq/gd", "hq/hn")
		if at := time.Now().UTC(); at.Day() != 2 || at.Hour() != 1 {
			t.Errorf("the rest came at %v", at)
		}
	})
}

// TestRollouts_Rollback: newest wave first; a group that does not come back fails at its deadline, and is seen to have managed after all.
func TestRollouts_Rollback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fakes(t, "hq/gd", "hq/hn")
		defer func() { f.stop() }()
		f.start(
			&catalogv1.Wave{Name: "a", Groups: []string{"hq/gd"}, Deadline: durationpb.New(time.Hour)},
			&catalogv1.Wave{Name: "b", Groups: []string{"hq/hn"}, Deadline: durationpb.New(time.Hour)},
		)
		f.in(catalog.RolloutSucceeded, time.Minute, "hq/gd", "hq/hn")
		f.steer(catalog.SteerRollback, "")
		f.site("hq/hn", "syncing", &treev1.PendingRef{State: "delivering"})
		begin := time.Now()
		r := f.in(catalog.RolloutRolledBack, 2*time.Hour, "hq/gd")
		if took := time.Since(begin); took < time.Hour || took > time.Hour+time.Minute {
			t.Errorf("the deadline of an hour took %v", took)
		}
		if a, b := r.GetGroups()[0], r.GetGroups()[1]; a.GetPhase() != catalog.GroupRolledBack || b.GetPhase() != catalog.GroupFailed {
			t.Errorf("%s", rolloutText(r))
		}
		f.follow("hq/hn")
		time.Sleep(5 * time.Second)
		if g := f.catalog().Rollout("r1").GetGroups()[1]; g.GetPhase() != catalog.GroupRolledBack {
			t.Errorf("it managed after all: %s", g.GetPhase())
		}
	})
}

// TestRollouts_LostProposals: what can't be written down is seen again, and no time counts twice.
func TestRollouts_LostProposals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fakes(t, "hq/gd")
		defer func() { f.stop() }()
		f.start(&catalogv1.Wave{Name: "w", Groups: []string{"hq/gd"}, Soak: durationpb.New(10 * time.Minute)})
		f.in(catalog.RolloutSoaking, time.Minute, "hq/gd")
		begin := time.Now()
		f.mu.Lock()
		f.lost = errors.New("no majority")
		f.mu.Unlock()
		time.Sleep(5 * time.Minute)
		f.mu.Lock()
		f.lost = nil
		f.mu.Unlock()
		f.in(catalog.RolloutSucceeded, 10*time.Minute, "hq/gd")
		if took := time.Since(begin); took < 10*time.Minute || took > 10*time.Minute+10*time.Second {
			t.Errorf("the soak of 10m took %v", took)
		}
	})
}

// TestProgress_HeldIsOfItsRevision: a later record may ask for content that is not here, and must not be taken for held before somebody looked.
func TestProgress_HeldIsOfItsRevision(t *testing.T) {
	p := newProgress("gd-a")
	p.update(web, func(r *treev1.PendingRef) { r.Revision, r.State, r.Reason = 5, "held", "waits for a wave" }, true)
	p.want(web, 5)
	if list, _ := p.snapshot(); list[web.String()].GetState() != "held" {
		t.Error("the same record: it is held no more")
	}
	p.want(web, 6)
	if list, _ := p.snapshot(); list[web.String()].GetState() != "waiting" || list[web.String()].GetReason() != "" {
		t.Errorf("a later record: %v", list[web.String()])
	}
}

// TestSight_FrozenSiteThatListsTooLittle: a site lists only so much of what it holds; what is not listed there is not taken for delivered while the group is frozen.
func TestSight_FrozenSiteThatListsTooLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := fakes(t, "hq/gd")
		defer func() { f.stop() }()
		f.start(&catalogv1.Wave{Name: "w", Groups: []string{"hq/gd"}})
		f.in(catalog.RolloutRunning, time.Minute, "hq/gd")
		f.mu.Lock()
		f.freezes["hq/gd"] = &catalogv1.Freeze{Group: "hq/gd", Since: timestamppb.Now(), Until: timestamppb.New(time.Now().Add(time.Hour))}
		f.sites["hq/gd"] = &treev1.SiteHealth{Site: "hq/gd", Group: "hq/gd", State: "synced", RegistryType: "oci", Revision: 100, PendingTotal: maxAccepted}
		f.pending["hq/gd"] = nil
		f.mu.Unlock()
		time.Sleep(10 * time.Second)
		if g := f.catalog().Rollout("r1").GetGroups()[0]; g.GetPhase() != catalog.GroupRunning || !strings.Contains(g.GetReason(), "frozen") {
			t.Errorf("%s %q", g.GetPhase(), g.GetReason())
		}
	})
}
