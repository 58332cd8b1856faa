package tree_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/fanout-io/fanout/pkg/tree"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// A trouble travels with its ref. Its words are bounded, and what is no word is not taken from another group.
func TestHealth_Trouble(t *testing.T) {
	long := strings.Repeat("x", 10_000)
	pending := func(t *treev1.Trouble) *treev1.HealthUpdate {
		return &treev1.HealthUpdate{Pending: []*treev1.PendingRef{{Site: "gd-a", Repository: "team/app", Tag: "1", State: "failed", Trouble: t, Blob: &treev1.BlobProgress{Digest: "sha256:1", Size: 9, Have: 3, Source: "hq-a"}}}}
	}
	hq := tree.NewTable("hq", "hq-a", "hq-a")
	gd := hq.Source("hq/gd")
	if _, err := gd.Merge(pending(&treev1.Trouble{Cause: "quota", Summary: long, Mend: long, Message: long, Status: 403, Code: "DENIED"})); err != nil {
		t.Fatal(err)
	}
	u, _ := hq.Diff()
	if len(u.GetPending()) != 1 {
		t.Fatalf("%v", u)
	}
	p := u.GetPending()[0]
	if got := p.GetTrouble(); got.GetCause() != "quota" || got.GetCode() != "DENIED" || got.GetStatus() != 403 || p.GetBlob().GetHave() != 3 {
		t.Errorf("%v", p)
	}
	for name, s := range map[string]string{"summary": p.GetTrouble().GetSummary(), "mend": p.GetTrouble().GetMend(), "message": p.GetTrouble().GetMessage()} {
		if len(s) > 2048 || !strings.HasSuffix(s, "…") {
			t.Errorf("the %s has %d bytes", name, len(s))
		}
	}
	for _, bad := range []*treev1.Trouble{{Cause: "quo\x1bta"}, {Code: long}} {
		if _, err := gd.Merge(pending(bad)); !errors.Is(err, tree.ErrRubbish) {
			t.Errorf("%.40v: %v", bad, err)
		}
	}
	// What this site says itself is made fit, not refused.
	hq.Report(&treev1.SiteHealth{State: "degraded"}, map[string]*treev1.PendingRef{"team/app:1": {State: "failed", Trouble: &treev1.Trouble{Cause: "quo\x1bta", Summary: "\xff", Mend: long}}})
	u, _ = hq.Diff()
	if got := u.GetPending()[0].GetTrouble(); got.GetCause() != "quo ta" || got.GetSummary() != "?" || len(got.GetMend()) > 2048 {
		t.Errorf("%v", got)
	}
}
