package agent

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// TestDiffering: what was seen to differ counts before what is not known, that before what is accepted; the question whether the catalog is the newest takes a state back that says all is well, and no other.
func TestDiffering(t *testing.T) {
	missing := &adminv1.Difference{Ref: "a:1", Kind: kindMissingTag}
	accepted := &adminv1.Difference{Ref: "a:2", Kind: kindMissingTag, Accepted: true}
	away := &adminv1.Difference{Kind: kindUnreadable, Reason: "it is away"}
	behind, noRoot := &adminv1.Difference{Kind: kindCatalogBehind}, &adminv1.Difference{Kind: kindCatalogUnknown, Reason: "no root"}
	for _, c := range []struct {
		was     string
		diffs   []*adminv1.Difference
		state   string
		because string
	}{
		{"equal", nil, "equal", ""},
		{"equal", []*adminv1.Difference{accepted}, "accepted", ""},
		{"equal", []*adminv1.Difference{accepted, away}, "unknown", "it is away"},
		{"equal", []*adminv1.Difference{away, accepted, missing}, "different", ""},
		{"equal", []*adminv1.Difference{behind}, "different", ""},
		{"witness", []*adminv1.Difference{noRoot}, "unknown", "no root"},
		{"accepted", []*adminv1.Difference{noRoot}, "unknown", "no root"},
		{"different", []*adminv1.Difference{noRoot}, "different", ""},
		{"unknown", []*adminv1.Difference{behind}, "different", ""},
	} {
		var o differing
		d := &adminv1.VerifyDone{State: c.was}
		for _, x := range c.diffs {
			o.add(x)
		}
		o.judge(d)
		if d.GetState() != c.state || d.GetReason() != c.because || d.GetDifferences() != uint64(len(c.diffs)) {
			t.Errorf("%s with %v: %v, want %s", c.was, c.diffs, d, c.state)
		}
	}
}

// verified gives the last word of a verify, and the differences.
func (l *live) verified() (done *adminv1.VerifyDone, diffs []*adminv1.Difference) {
	l.t.Helper()
	err := l.verify(l.t.Context(), &adminv1.VerifyRequest{}, func(m *adminv1.VerifyResponse) error {
		if d := m.GetDifference(); d != nil {
			diffs = append(diffs, d)
		}
		if d := m.GetDone(); d != nil {
			done = d
		}
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return done, diffs
}

// TestVerify_NotLookedAt: of a registry that does not answer nothing is seen to differ; and a difference that the settings leave is told as such.
func TestVerify_NotLookedAt(t *testing.T) {
	g := newGate(t, embeddedRegistry(t))
	g.config = fmt.Sprintf("{type: oci, url: %q}\nsweep: {interval: 1s}\ndrift: {deleted: accept}", g.url)
	tree := runTree(t, map[string]*gate{"hq/gd": g}, "hq", "hq/gd")
	gd := tree["hq/gd"]
	tree["hq"].push("app/web:1")
	waitFor(t, "it is equal", func() error {
		if done, diffs := gd.verified(); done.GetState() != "equal" || done.GetRefs() != 1 || len(diffs) != 0 {
			return fmt.Errorf("%v %v", done, diffs)
		}
		return nil
	})
	g.refuses(func(*http.Request) bool { return true })
	done, diffs := gd.verified()
	if done.GetState() != "unknown" || !strings.HasPrefix(done.GetReason(), "the registry: ") || len(diffs) != 1 || diffs[0].GetKind() != kindUnreadable || done.GetDifferences() != 1 {
		t.Errorf("%v %v", done, diffs)
	}
	g.refuses(nil)
	if err := gd.registry.DeleteTag(t.Context(), "app/web", "1"); err != nil {
		t.Fatal(err)
	}
	gd.Agent.queue.add(key{repository: "app/web", tag: "1"})
	waitFor(t, "the difference is accepted", func() error {
		done, diffs := gd.verified()
		if done.GetState() != "accepted" || len(diffs) != 1 || !diffs[0].GetAccepted() || diffs[0].GetKind() != kindMissingTag || !strings.Contains(diffs[0].GetReason(), acceptedTrouble().GetSummary()) {
			return fmt.Errorf("%v %v", done, diffs)
		}
		return nil
	})
}
