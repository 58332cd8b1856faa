package catalog_test

import (
	"bytes"
	"strings"
	"testing"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
)

// TestRollout_Trace: a promotion's context is with what it releases until the end, whatever else is pushed, and in no sum, so that a replica that does not know of it stays equal.
func TestRollout_Trace(t *testing.T) {
	sums := map[string][]byte{}
	for _, trace := range []string{"", "00-promotion"} {
		s := newStage()
		for _, line := range []string{"hq found e1", "hq publish app:v1 A"} {
			s.run(t, line)
		}
		m := s.machine("hq")
		start := s.start(t, strings.Fields("r1 app:v1=B one(hq/a;max=1)"))
		start.GetStartRollout().Rollout.Traceparent = trace
		if out := s.apply(m, start); strings.HasPrefix(out, "refused") {
			t.Fatal(out)
		}
		for _, line := range []string{"hq observe r1 hq/a=staged", "hq observe r1 hq/a=delivered", "hq restart"} {
			if out := s.run(t, line); strings.HasPrefix(out, "refused") {
				t.Fatal(line, out)
			}
		}
		m = s.machine("hq")
		var snapshot bytes.Buffer
		if _, err := m.Snapshot().WriteTo(&snapshot); err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(snapshot.Bytes(), []byte("00-promotion")); trace != "" && n != 1 { // the rollout's own
			t.Errorf("the context of the promotion is in the snapshot %d times", n)
		}
		rec, _ := m.Snapshot().Get(splitRef("app:v1"))
		if got := catalog.Project(rec, "hq/a"); got.Target.GetDigest() != digest("B") || got.GetTraceparent() != trace {
			t.Errorf("hq/a is to show %s, by %q", s.word(got.Target.GetDigest()), got.GetTraceparent())
		}
		if got := m.Snapshot().Rollout("r1").GetTraceparent(); got != trace {
			t.Errorf("the rollout has %q", got)
		}
		sums[trace] = m.Snapshot().Position().GetSum()
		start.GetStartRollout().Rollout.Id, start.GetStartRollout().Rollout.Traceparent = "r2", strings.Repeat("x", 5000)
		if out := s.apply(m, start); !strings.HasPrefix(out, "refused") {
			t.Error("a context without bounds is accepted")
		}
	}
	if !bytes.Equal(sums[""], sums["00-promotion"]) {
		t.Error("the context of a promotion is in the sum")
	}
}

// TestUnpublish_Trace: a deletion's context goes down with the tombstone and ends with it. It is in no sum, nor in a snapshot of headquarters, so that a replica that does not know of it stays equal.
func TestUnpublish_Trace(t *testing.T) {
	sums := map[string][]byte{}
	for _, trace := range []string{"", "00-deletion"} {
		s := newStage()
		ref := splitRef("app:v1")
		of := func(name string) *catalogv1.Record {
			rec, _ := s.machine(name).Snapshot().Get(ref)
			return rec
		}
		run := func(line string) {
			t.Helper()
			if out := s.run(t, line); !strings.HasPrefix(out, "ok") {
				t.Fatal(line, out)
			}
		}
		run("hq found e1")
		run("hq publish app:v1 A")
		u := &catalogv1.Unpublish{Repository: ref.Repository, Tag: ref.Tag, Revision: 2, Expect: 1, Traceparent: strings.Repeat("x", 5000)}
		change := &catalogv1.Change{Kind: &catalogv1.Change_Unpublish{Unpublish: u}}
		if out := s.apply(s.machine("hq"), change); !strings.HasPrefix(out, "refused") {
			t.Error("a context without bounds is accepted")
		}
		u.Traceparent = trace
		if out := s.apply(s.machine("hq"), change); !strings.HasPrefix(out, "ok") {
			t.Fatal(out)
		}
		run("gd pull hq")
		run("gd restart")
		if got := []string{of("hq").GetRemovalTraceparent(), of("gd").GetRemovalTraceparent()}; got[0] != trace || got[1] != trace {
			t.Errorf("headquarters and the group below have %q", got)
		}
		var snapshot bytes.Buffer
		if _, err := s.machine("hq").Snapshot().WriteTo(&snapshot); err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(snapshot.Bytes(), []byte("00-deletion")) {
			t.Error("the context of a deletion is in a snapshot of headquarters")
		}
		sums[trace] = s.machine("hq").Snapshot().Position().GetSum()
		run("hq publish app:v1 A") // undone
		if got := of("hq").GetRemovalTraceparent(); got != "" {
			t.Errorf("what was brought back has the context of its deletion: %q", got)
		}
	}
	if !bytes.Equal(sums[""], sums["00-deletion"]) {
		t.Error("the context of a deletion is in the sum")
	}
}
