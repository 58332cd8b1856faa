package integration

import (
	"fmt"
	"strings"
	"testing"
)

// TestMemberWithAnotherFileIsDegraded: what members of a group must agree on is replicated, and who says otherwise is named.
func TestMemberWithAnotherFileIsDegraded(t *testing.T) {
	t.Parallel()
	sites := start(t, spec{name: "hq-a", group: "hq"}, spec{name: "hq-b", group: "hq"}, spec{name: "hq-c", group: "hq", extra: "drift: {changed: report}\n"})
	eventually(t, "the tree names the key", func() error {
		out, _ := sites["hq-a"].ctl("tree", "-o", "json")
		if !strings.Contains(string(out), "differs from the group's in drift") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
}
