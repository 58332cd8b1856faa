package view_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cheggaaa/pb/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

func item(ref, source, digest string) *catalogv1.RolloutItem {
	repository, tag, _ := strings.Cut(ref, ":")
	from, fromTag, _ := strings.Cut(source, ":")
	return &catalogv1.RolloutItem{Repository: repository, Tag: tag, SourceRepository: from, SourceTag: fromTag, Target: &catalogv1.Descriptor{Digest: digest}}
}

// rollout is one in the middle of the second of three waves, with forty groups.
func rollout() *catalogv1.Rollout {
	hours := func(n float64) *durationpb.Duration { return durationpb.New(time.Duration(n * float64(time.Hour))) }
	r := &catalogv1.Rollout{
		Id: "7f3a9c", Phase: "running", Wave: 1, Actor: "ann", Started: before(5 * time.Hour), Version: 9,
		Items: []*catalogv1.RolloutItem{item("prod/web:2.0", "staging/web:2.0", digestB), item("prod/api:2.0", "prod/api:2.0", digestA)},
		Plan: &catalogv1.Plan{Name: "by-tier", Timezone: "Asia/Shanghai", Waves: []*catalogv1.Wave{
			{Name: "canary", Groups: []string{"hq/guangdong/shenzhen"}, MaxConcurrent: 1, Soak: hours(0.5), OnFailure: "pause", OnOffline: "skip", Deadline: hours(6),
				After: []*catalogv1.Gate{{Kind: &catalogv1.Gate_Approval{Approval: &catalogv1.Approval{}}}}},
			{Name: "provinces", MaxConcurrent: 2, MaxFailures: 1, Soak: hours(2), OnFailure: "pause", OnOffline: "wait", Deadline: hours(6), After: []*catalogv1.Gate{
				{Kind: &catalogv1.Gate_Check{Check: &catalogv1.Check{Url: "http://metrics.internal/ok?app=web", Interval: hours(0.01), Timeout: hours(0.5)}}},
			}},
			{Name: "the-others", MaxConcurrent: 9, OnFailure: "rollback", OnOffline: "skip", Window: &catalogv1.Window{Allow: []string{"0 1 * * mon-thu / 4h"}}},
		}},
		Waves: []*catalogv1.RolloutWave{
			{Name: "canary", Phase: "succeeded", Opened: before(5 * time.Hour), Closed: before(4 * time.Hour), Soaked: hours(0.5),
				Gates: []*catalogv1.RolloutGate{{After: true, Result: "passed", By: "bob", Detail: "no errors seen", At: before(4 * time.Hour)}}},
			{Name: "provinces", Phase: "running", Opened: before(4 * time.Hour), Soaked: hours(0)},
			{Name: "the-others", Phase: "pending"},
		},
		Groups: []*catalogv1.RolloutGroup{{Group: "hq/guangdong/shenzhen", Phase: "succeeded", Since: before(5 * time.Hour), Released: before(5 * time.Hour), Attempts: 1, Before: []string{digestA, ""}}},
		Steps: []*catalogv1.RolloutStep{
			{At: before(5 * time.Hour), Actor: "ann", Text: "started"}, {At: before(4 * time.Hour), Actor: "bob", Text: "approve: no errors seen"},
		},
	}
	add := func(wave uint32, group, phase, reason string, since time.Duration, attempts uint32) {
		g := &catalogv1.RolloutGroup{Group: group, Wave: wave, Phase: phase, Reason: reason, Before: []string{digestA, digestA}, Attempts: attempts}
		if since > 0 {
			g.Since = before(since)
		}
		if phase == "running" || phase == "staging" {
			g.Waited = durationpb.New(since)
		}
		r.Groups = append(r.Groups, g)
	}
	for i := range 14 {
		add(1, fmt.Sprintf("hq/province-%02d", i), "succeeded", "", time.Duration(i+10)*time.Minute, 1)
	}
	add(1, "hq/guangdong", "running", "gd-a: 3 refs to go", 2*time.Minute, 1)
	add(1, "hq/hunan", "failed", "hn-a: 413 DENIED: quota of 10 GiB is used up; the project prod needs more room than that \x1b[2J", 9*time.Minute, 2)
	add(1, "hq/tibet", "running", "", 7*time.Hour, 2)
	add(1, "hq/qinghai", "staging", "no contact for 3h12m", 4*time.Hour, 0)
	for i := range 21 {
		add(2, fmt.Sprintf("hq/guangdong/city-%02d", i), "pending", "", 0, 0)
	}
	return r
}

func shown(change func(*catalogv1.Rollout)) view.Rollout {
	r := rollout()
	change(r)
	return view.RolloutOf(r, []*adminv1.RolloutSite{
		{Site: "sz", Group: "hq/guangdong/shenzhen", Refs: []*adminv1.SiteRef{
			{State: "delivered", Digest: digestB, Want: digestB}, {State: "delivered", Digest: digestA, Want: digestA, Since: before(time.Hour)},
		}},
		{Site: "hn-a", Group: "hq/hunan", Refs: []*adminv1.SiteRef{
			{State: "failed", Digest: digestA, Want: digestB, Reason: "413 DENIED", Since: before(9 * time.Minute)}, {State: "delivered", Digest: digestA, Want: digestA},
		}},
	}, &now)
}

func rolloutDocuments() map[string]document {
	soaking := shown(func(r *catalogv1.Rollout) {
		r.Phase, r.Waves[1].Phase, r.Waves[1].Soaked = "soaking", "soaking", durationpb.New(47*time.Minute)
		for _, g := range r.Groups[1:19] {
			g.Phase, g.Reason = "succeeded", ""
		}
	})
	paused := shown(func(r *catalogv1.Rollout) {
		r.Phase, r.ResumePhase, r.Reason = "paused", "running", "wave provinces: failed are 2 of at most 1 groups: hq/hunan, hq/tibet"
		r.Waves[1].Reason = "failed are 2 of at most 1 groups: hq/hunan, hq/tibet"
		r.Waves[1].Gates = []*catalogv1.RolloutGate{{After: true, Result: "waiting", Attempts: 3, Detail: "503 Service Unavailable", Took: durationpb.New(120 * time.Millisecond), Waited: durationpb.New(90 * time.Second)}}
	})
	approval := shown(func(r *catalogv1.Rollout) {
		r.Phase, r.Wave, r.Waves[0].Phase, r.Waves[0].Closed, r.Waves[1].Phase = "awaiting-approval", 0, "awaiting-approval", nil, "pending"
		r.Waves[0].Gates[0] = &catalogv1.RolloutGate{After: true, Result: "waiting"}
		for _, g := range r.Groups[1:] {
			g.Phase, g.Reason, g.Since = "pending", "", nil
		}
	})
	back := shown(func(r *catalogv1.Rollout) {
		r.Phase, r.Reason, r.Ended, r.Wave, r.Settled = "rolled-back", "rolled back by ann: login is slow", before(time.Minute), 1, true
		r.Waves[1].Phase, r.Waves[1].Reason, r.Waves[2].Phase = "failed", r.Reason, "skipped"
		for _, g := range r.Groups[:19] {
			g.Phase, g.Reason = "rolled-back", ""
		}
		r.Groups[0].Phase, r.Groups[0].Reason = "failed", "sz: this registry can't remove a single tag; prod/web:2.0 stays there"
	})
	preflight := &adminv1.StartRolloutResponse{Rollout: rollout(), Warnings: []string{"prod.yaml:14: spec.waves[2].groups: group hq/yunnan is in no wave, and stays without the release"}}
	preflight.Rollout.Id = ""
	for _, w := range []int{0, 1, 2} {
		preflight.Rollout.Plan.Waves[w].Groups = nil
		preflight.Rollout.Waves[w] = &catalogv1.RolloutWave{Name: preflight.Rollout.Waves[w].Name, Phase: "pending"}
	}
	for i, g := range preflight.Rollout.Groups {
		g.Phase, g.Reason, g.Since, g.Attempts = "pending", "", nil, 0
		p := &adminv1.PreflightSite{Site: fmt.Sprintf("site-%02d", i), Group: g.Group, Wave: preflight.Rollout.Waves[g.Wave].Name, State: "synced", Shows: []string{digestA, ""}}
		switch g.Group {
		case "hq/hunan":
			p.BytesMissing, p.Seconds = 3<<30, 754
			p.Checks = []*adminv1.Check{{Name: "registry", State: "ok", Detail: "it answered in 3ms"}, {Name: "quota of project prod", State: "fail",
				Detail: "8.0 GiB of 10 GiB are used, and up to 3.0 GiB would be added", Mend: "raise the quota to 11 GiB, or delete what is not needed there"}}
		case "hq/qinghai":
			p.Checks = []*adminv1.Check{{Name: "agent", State: "fail", Detail: "it can't be asked"}}
			p.State, p.Reason, p.BytesMissing, p.Seconds, p.Shows = "unreachable", "no contact for 3h12m", 1<<30, 300, nil
		case "hq/guangdong/city-03":
			p.BytesMissing, p.Seconds, p.Shows = 4<<20, -1, []string{digestB, digestA}
		}
		preflight.Preflight = append(preflight.Preflight, p)
	}
	started := proto.CloneOf(rollout())
	return map[string]document{
		"rollout_running":  shown(func(*catalogv1.Rollout) {}),
		"rollout_soaking":  soaking,
		"rollout_paused":   paused,
		"rollout_approval": approval,
		"rollout_back":     back,
		"promote_dry":      view.PromotionOf(preflight, true, &now),
		"rollouts": view.RolloutsOf(&adminv1.RolloutsResponse{AsOf: before(0), Rollouts: []*catalogv1.Rollout{
			started, {Id: "00ff12", Phase: "succeeded", Wave: 1, Waves: []*catalogv1.RolloutWave{{Name: "all"}}, Started: before(50 * time.Hour), Ended: before(49 * time.Hour), Items: []*catalogv1.RolloutItem{item("app:stable", "app:1.4", digestA)}},
		}}),
		"policies": view.PoliciesOf([]*catalogv1.Policy{
			{Name: "releases", Repositories: []string{"prod/**", "shop/{web,api}"}, Delivery: "staged", MaxFreeze: durationpb.New(72 * time.Hour)},
			{Name: "hotfix", Repositories: []string{"hotfix/**"}, Delivery: "cascade"},
		}),
		"freeze": view.FreezeOf("hq/guangdong", &adminv1.SetFreezeResponse{Freeze: &catalogv1.Freeze{Group: "hq/guangdong", Reason: "stocktaking in all shops", By: "li", Since: before(0), Until: before(-36 * time.Hour)},
			Shorter: []*adminv1.SetFreezeResponse_Shorter{{Until: before(-time.Hour), Refs: 3, Example: "prod/web:1"}}}),
		"thaw":         view.FreezeOf("hq/guangdong", &adminv1.SetFreezeResponse{Thawed: true}),
		"thaw_nothing": view.FreezeOf("hq/guangdong", &adminv1.SetFreezeResponse{}),
	}
}

// TestRollout_Fits: a terminal of 80 columns shows everything, and one of 40 lines a rollout of 40 groups.
func TestRollout_Fits(t *testing.T) {
	for name, doc := range rolloutDocuments() {
		text := doc.Text(view.Style{})
		for line := range strings.SplitSeq(text, "\n") {
			if pb.CellCount(line) > 80 {
				t.Errorf("%s: %d columns: %s", name, pb.CellCount(line), line)
			}
		}
		if n := strings.Count(text, "\n"); n > 39 {
			t.Errorf("%s: %d lines:\n%s", name, n, text)
		}
	}
}

func TestRollout_Changes(t *testing.T) {
	first := shown(func(*catalogv1.Rollout) {})
	if got := first.Changes(&first); len(got) != 0 {
		t.Errorf("nothing changed: %q", got)
	}
	second := shown(func(r *catalogv1.Rollout) {
		r.Groups[15].Phase, r.Groups[15].Reason = "succeeded", ""
		r.Groups[16].Reason = "still no room\nthere"
		r.Waves[1].Phase, r.Phase = "soaking", "soaking"
	})
	want := []string{
		"2026-11-24 08:00:00Z  wave provinces: soaking",
		"2026-11-24 08:00:00Z  hq/guangdong: succeeded",
		"2026-11-24 08:00:00Z  hq/hunan: failed: still no room there",
		"2026-11-24 08:00:00Z  rollout 7f3a9c: soaking, wave 2/3 provinces",
	}
	if got := second.Changes(&first); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	// Of what was not seen before, what is pending goes without saying.
	lines := first.Changes(nil)
	if n := len(lines); n != 2+19+1 || !strings.Contains(lines[0], "wave canary: succeeded") {
		t.Errorf("%d lines: %q", n, lines)
	}
}

func TestRollout_Receipt(t *testing.T) {
	sites := shown(func(*catalogv1.Rollout) {}).Sites
	if len(sites) != 4 {
		t.Fatalf("%+v", sites)
	}
	for i, want := range []struct {
		ref  string
		time *time.Time
	}{
		{"prod/web:2.0", ptr(now.Add(-5 * time.Hour))}, // its group's
		{"prod/api:2.0", ptr(now.Add(-time.Hour))},
		{"prod/web:2.0", ptr(now.Add(-9 * time.Minute))},
		{"prod/api:2.0", nil}, // the group is not done, so nobody knows
	} {
		got := sites[i]
		if got.Ref != want.ref || (got.Time == nil) != (want.time == nil) || got.Time != nil && !got.Time.Equal(*want.time) {
			t.Errorf("%d: %+v", i, got)
		}
	}
}

func ptr[T any](v T) *T { return &v }

func TestRollout_Partial(t *testing.T) {
	r := rollout()
	if got := view.RolloutOf(r, nil, nil).Partial(); len(got) != 25 {
		t.Errorf("%q", got)
	}
	for _, g := range r.Groups {
		g.Phase = "succeeded"
	}
	r.Groups[3].Phase = "offline"
	if got := view.RolloutOf(r, nil, nil).Partial(); !slices.Equal(got, []string{r.Groups[3].Group}) {
		t.Errorf("%q", got)
	}
}

// TestRollout_Odd: an agent that is newer, or wrong, is shown all the same.
func TestRollout_Odd(t *testing.T) {
	doc := view.RolloutOf(&catalogv1.Rollout{
		Wave: 9, Waves: []*catalogv1.RolloutWave{{Name: "a", Phase: "new-phase"}}, Groups: []*catalogv1.RolloutGroup{{Group: "hq", Wave: 7}, {Group: "hq/a"}},
		Plan: &catalogv1.Plan{Timezone: "No/Where", Waves: []*catalogv1.Wave{{Window: &catalogv1.Window{Allow: []string{"nonsense"}}, Before: []*catalogv1.Gate{{}}}, {}}},
	}, []*adminv1.RolloutSite{{Site: "a", Refs: []*adminv1.SiteRef{{State: "delivered"}}}}, &now)
	for _, want := range []string{"new-phase", "hq/a"} {
		if text := doc.Text(view.Style{}); !strings.Contains(text, want) {
			t.Errorf("no %s:\n%s", want, text)
		}
	}
	_ = view.RolloutOf(nil, nil, nil).Text(view.Style{})
	_ = view.PromotionOf(nil, true, nil).Text(view.Style{})
}

// TestRolloutOf_Receipt: what a rollout remembers of a site is what the receipt says of it, whatever the site shows later. Of a site that it does not remember the receipt says what is the case now; of
// one that was left out, when the rollout is over, what became of its group.
func TestRolloutOf_Receipt(t *testing.T) {
	at := func(min int) *timestamppb.Timestamp {
		return timestamppb.New(time.Date(2026, 11, 24, 7, min, 0, 0, time.UTC))
	}
	now := &adminv1.SiteRef{State: "held", Digest: "sha256:is", Want: "sha256:next", Since: at(50), Reason: "waits for a promotion"}
	for _, c := range []struct {
		name, phase, group string
		receipt            *catalogv1.RolloutReceipt
		now                *adminv1.SiteRef
		want               view.RolloutSite
	}{
		{"delivered, and over", "succeeded", "succeeded", &catalogv1.RolloutReceipt{Site: "a", At: at(5)}, now, view.RolloutSite{State: "delivered", Digest: "sha256:is", Want: "sha256:is", Time: when(5)}},
		{"taken back, and over", "rolled-back", "rolled-back", &catalogv1.RolloutReceipt{Site: "a", At: at(6), Back: true}, now, view.RolloutSite{State: "rolled-back", Digest: "sha256:was", Want: "sha256:was", Time: when(6)}},
		{"delivered, and it goes on", "running", "succeeded", &catalogv1.RolloutReceipt{Site: "a", At: at(5)}, &adminv1.SiteRef{State: "delivered", Digest: "sha256:is", Want: "sha256:is"}, view.RolloutSite{State: "delivered", Digest: "sha256:is", Want: "sha256:is", Time: when(5)}},
		{"delivered, and changed there while it goes on", "running", "succeeded", &catalogv1.RolloutReceipt{Site: "a", At: at(5)}, &adminv1.SiteRef{State: "drifted", Digest: "sha256:x", Want: "sha256:is", Since: at(7)}, view.RolloutSite{State: "drifted", Digest: "sha256:x", Want: "sha256:is", Time: when(7)}},
		{"skipped", "succeeded", "skipped", nil, now, view.RolloutSite{State: "skipped", Digest: "sha256:was", Want: "sha256:is", Time: when(9), Reason: "why"}},
		{"failed, and still to come", "failed", "failed", nil, &adminv1.SiteRef{State: "failed", Digest: "sha256:was", Want: "sha256:is", Since: at(8), Reason: "413"}, view.RolloutSite{State: "failed", Digest: "sha256:was", Want: "sha256:is", Time: when(8), Reason: "413"}},
		{"failed, and something else is wanted since", "failed", "failed", nil, now, view.RolloutSite{State: "failed", Digest: "sha256:was", Want: "sha256:is", Time: when(9), Reason: "why"}},
		{"not subscribed", "succeeded", "succeeded", nil, &adminv1.SiteRef{State: "unsubscribed"}, view.RolloutSite{State: "unsubscribed", Time: when(9)}},
	} {
		g := &catalogv1.RolloutGroup{Group: "hq/a", Phase: c.group, Reason: "why", Since: at(9), Before: []string{"sha256:was"}, Attempts: 1}
		if c.receipt != nil {
			g.Receipts = []*catalogv1.RolloutReceipt{c.receipt}
		}
		r := &catalogv1.Rollout{Id: "r", Phase: c.phase, Groups: []*catalogv1.RolloutGroup{g}, Items: []*catalogv1.RolloutItem{{Repository: "p/w", Tag: "1", Target: &catalogv1.Descriptor{Digest: "sha256:is"}}}}
		if g.GetReceipts() != nil && catalog.Ended(r) {
			others := view.RolloutOf(r, []*adminv1.RolloutSite{{Site: "b", Group: "hq/b", Refs: []*adminv1.SiteRef{{State: "unsubscribed"}}}}, nil).Sites
			if len(others) != 2 || others[1].Site != "a" || others[1].State != c.want.State || others[1].Time == nil {
				t.Errorf("%s: of a site that is no more: %+v", c.name, others)
			}
		}
		got := view.RolloutOf(r, []*adminv1.RolloutSite{{Site: "a", Group: "hq/a", Refs: []*adminv1.SiteRef{c.now}}}, nil).Sites
		c.want.Site, c.want.Group, c.want.Ref = "a", "hq/a", "p/w:1"
		if c.now.GetState() == "unsubscribed" {
			c.want.Time = nil
		}
		if d := cmp.Diff([]view.RolloutSite{c.want}, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}

func when(min int) *time.Time {
	x := time.Date(2026, 11, 24, 7, min, 0, 0, time.UTC)
	return &x
}
