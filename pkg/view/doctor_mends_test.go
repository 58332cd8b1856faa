package view

import (
	"strings"
	"testing"
)

// TestDoctor_MendsOnce: what several checks want done is said once, with all of them.
func TestDoctor_MendsOnce(t *testing.T) {
	c := func(name, mend string) Check { return Check{Name: name, State: CheckFail, Mend: mend} }
	d := &Doctor{Sites: []CheckedSite{{Site: "a", Checks: []Check{c("clock of b", "start b"), c("disk", "make room"), c("raft port of b", "start b")}}}}
	_, got, _ := strings.Cut(d.Text(Style{}), "What to do\n")
	if want := "a, clock of b; a, raft port of b: start b\na, disk: make room\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
