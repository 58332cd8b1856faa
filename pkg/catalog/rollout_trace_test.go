package catalog_test

import (
	"bytes"
	"strings"
	"testing"

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
