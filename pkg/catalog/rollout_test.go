package catalog_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/fanout-io/fanout/pkg/catalog"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// TestRollouts_LastHundredAreRemembered: those that ended first are settled and forgotten; what they released stays.
func TestRollouts_LastHundredAreRemembered(t *testing.T) {
	s := newStage()
	s.run(t, "hq found e1")
	s.run(t, "hq publish app:v1 A")
	for i := range 105 {
		id := fmt.Sprintf("r%03d", i)
		for _, line := range []string{"hq start %s app%d:v1=B one(hq/a,hq/b;max=1)", "hq observe %s hq/a=staged", "hq steer %s abort"} {
			if strings.Contains(line, "start") {
				line = fmt.Sprintf(line, id, i)
			} else {
				line = fmt.Sprintf(line, id)
			}
			if out := s.run(t, line); strings.HasPrefix(out, "refused") {
				t.Fatal(line, out)
			}
		}
	}
	s.run(t, "hq restart")
	snap := s.machine("hq").Snapshot()
	all := snap.Rollouts()
	if len(all) != 100 || all[0].Id != "r005" || all[99].Id != "r104" {
		t.Fatalf("%d from %s to %s", len(all), all[0].Id, all[len(all)-1].Id)
	}
	rec, _ := snap.Get(splitRef("app0:v1"))
	if got := catalog.Project(rec, "hq/a"); got.Deleted || got.Target.Digest != digest("B") {
		t.Errorf("of a forgotten rollout hq/a shows %v", got)
	}
	if out := s.run(t, "hq steer r000 rollback"); !strings.Contains(out, "no rollout") {
		t.Error(out)
	}
	if out := s.run(t, "hq publish app0:v1 C"); strings.HasPrefix(out, "refused") {
		t.Error(out)
	}
}

// TestSetPolicies_Compare: of two changes that were made from the same policies the second is refused, and changes nothing.
func TestSetPolicies_Compare(t *testing.T) {
	s := newStage()
	s.run(t, "hq found e1")
	s.run(t, "hq policy a:staged:a b:staged:b")
	m := s.machine("hq")
	held := m.Snapshot().Policies()
	set := func(list, expect []*catalogv1.Policy) error {
		return m.Apply(&catalogv1.Command{Changes: []*catalogv1.Change{{Kind: &catalogv1.Change_SetPolicies{
			SetPolicies: &catalogv1.SetPolicies{Policies: list, Compare: true, Expect: expect},
		}}}})[0].Err
	}
	if err := set(held[:1], held); err != nil {
		t.Fatal(err)
	}
	if err := set(held[1:], held); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("%v", err)
	}
	if got := m.Snapshot().Policies(); len(got) != 1 || got[0].Name != "a" {
		t.Errorf("%v", got)
	}
	if err := set(nil, held[:1]); err != nil || len(m.Snapshot().Policies()) != 0 {
		t.Errorf("%v: %v", err, m.Snapshot().Policies())
	}
	if err := set(held, nil); err != nil || len(m.Snapshot().Policies()) != 2 {
		t.Errorf("%v: %v", err, m.Snapshot().Policies())
	}
}

// TestReleases_Bounded: a record keeps so many releases and no more, whoever piles them up; a promotion to all groups makes room, and a push always has it.
func TestReleases_Bounded(t *testing.T) {
	s := newStage()
	s.run(t, "hq found e1")
	s.run(t, "hq policy p:staged:app")
	must := func(format string, args ...any) {
		t.Helper()
		if out := s.run(t, fmt.Sprintf(format, args...)); strings.HasPrefix(out, "refused") {
			t.Fatal(format, args, out)
		}
	}
	promote := func(i int) string {
		out := s.run(t, fmt.Sprintf("hq start r%d app:v1=T%d one(hq/%d)", i, i, i))
		if !strings.HasPrefix(out, "refused") {
			must("hq observe r%d hq/%d=staged", i, i)
			must("hq observe r%d hq/%d=delivered", i, i)
		}
		return out
	}
	must("hq publish app:v1 A")
	n := 0
	for ; n < 40; n++ {
		if out := promote(n); strings.HasPrefix(out, "refused") {
			if !strings.Contains(out, "promote one of them to all groups first") {
				t.Fatal(out)
			}
			break
		}
	}
	if n != 12 {
		t.Errorf("%d different things", n)
	}
	must("hq publish app:v1 B")
	must("hq restart")
	rec, _ := s.machine("hq").Snapshot().Get(splitRef("app:v1"))
	if len(rec.Releases) != 13 {
		t.Errorf("%d releases", len(rec.Releases))
	}
	groups, staged, delivered := []string{}, "", ""
	for i := range n {
		g := fmt.Sprint("hq/", i)
		groups, staged, delivered = append(groups, g), staged+" "+g+"=staged", delivered+" "+g+"=delivered"
	}
	must("hq start all app:v1=Z one(%s) all", strings.Join(groups, ","))
	must("hq observe all%s", staged)
	must("hq observe all%s", delivered)
	for i := range 2 {
		must("hq start same%d app:v1=Y one(hq/%d)", i, i+1)
		must("hq observe same%d hq/%d=staged", i, i+1)
		must("hq observe same%d hq/%d=delivered", i, i+1)
	}
	must("hq start last app:v1=X one(hq/9)")
	// Over the base: what headquarters pushed, what two promotions of one target show at a group each, in one, and the last.
	rec, _ = s.machine("hq").Snapshot().Get(splitRef("app:v1"))
	if got := s.views(s.machine("hq").Snapshot(), strings.Fields("app:v1 hq hq/0 hq/1 hq/2 hq/3")); len(rec.Releases) != 3 || got != "hq B, hq/0 Z, hq/1 Y, hq/2 Y, hq/3 Z\n" {
		t.Errorf("%s%d releases", got, len(rec.Releases))
	}
}

// TestPublish_StagedNeedsTheGroup: an old proposer does not say which group is headquarters; its pushes are not taken for anybody's.
func TestPublish_StagedNeedsTheGroup(t *testing.T) {
	s := newStage()
	s.run(t, "hq found e1")
	s.run(t, "hq policy p:staged:app")
	c := publishChange("app:v1", "A", 1, 0)
	c.GetPublish().Group = ""
	if out := s.apply(s.machine("hq"), c); !strings.Contains(out, "upgrade its agents") {
		t.Error(out)
	}
	c.GetPublish().Group = "hq//x"
	if out := s.apply(s.machine("hq"), c); !strings.Contains(out, `group "hq//x"`) {
		t.Error(out)
	}
}

// TestReferrers_BoundedOverAllReleases: what a base and its releases have together is bounded, so that a record can always be kept and sent.
func TestReferrers_BoundedOverAllReleases(t *testing.T) {
	s := newStage()
	s.run(t, "hq found e1")
	m := s.machine("hq")
	c := publishChange("app:v1", "A", 1, 0)
	for i := range 4000 {
		c.GetPublish().Referrers = append(c.GetPublish().Referrers, descriptor(fmt.Sprint(i)))
	}
	if out := s.apply(m, c); strings.HasPrefix(out, "refused") {
		t.Fatal(out)
	}
	start := s.start(t, strings.Fields("r1 app:v1=B one(hq/a)"))
	it := start.GetStartRollout().Rollout.Items[0]
	it.Referrers = slices.Clone(c.GetPublish().Referrers[:97])
	if out := s.apply(m, start); !strings.Contains(out, "4097 referrers") {
		t.Error(out)
	}
	if rec, _ := m.Snapshot().Get(splitRef("app:v1")); len(rec.Releases) > 0 || m.Snapshot().Rollout("r1") != nil {
		t.Error("it was refused, and yet something changed")
	}
	it.Referrers = it.Referrers[:96]
	if out := s.apply(m, start); strings.HasPrefix(out, "refused") {
		t.Error(out)
	}
	if m.Snapshot().ActiveRollout(splitRef("app:v1")).GetId() != "r1" {
		t.Error("not started")
	}
}

func publishChange(ref, word string, revision, expect uint64) *catalogv1.Change {
	r := splitRef(ref)
	return &catalogv1.Change{Kind: &catalogv1.Change_Publish{Publish: &catalogv1.Publish{
		Revision: revision, Expect: expect, Repository: r.Repository, Tag: r.Tag, Target: descriptor(word), Group: "hq",
	}}}
}
