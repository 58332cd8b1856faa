package integration

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// span is a time in which something was done.
type span struct{ from, to time.Time }

func (s span) meets(from, to time.Time) bool { return !s.to.Before(from) && !s.from.After(to) }

// attempt is one try to do an operation at one registry, or by one command.
type attempt struct {
	span
	site  string // whose registry; empty: a command
	acked bool
}

// operation is a change that a client made, or tried to make.
type operation struct {
	action
	digest   string // that it should end in; empty: the tag is gone
	attempts []attempt
	acked    bool
	revision uint64 // that a command was told; 0: none was
	// clean: when it began, all registries of headquarters and the catalog showed what the operation before it should end in, so there was nothing that it could compete with.
	clean bool
}

func (o operation) String() string {
	short := "absent"
	if o.digest != "" {
		short = o.digest[7:19]
	}
	s := fmt.Sprintf("%s: %s", o.action, short)
	for _, a := range o.attempts {
		s += fmt.Sprintf("; %s acked=%v", a.site, a.acked)
	}
	return s + fmt.Sprintf("; acked=%v revision=%d clean=%v", o.acked, o.revision, o.clean)
}

// loss is a time in which a registry was wiped.
type loss struct {
	site string
	span
}

// judgeSite says whether what one site showed under one ref went only forward through the catalog's revisions. At a registry of headquarters a client may set and delete the tag
// itself: such a step counts as explained when it falls into the time of that client's attempt. A registry that was wiped shows nothing for a while. A revision that was not seen
// (hole) may have been anything.
func judgeSite(site, ref string, seen []stretch, changes []change, holes []uint64, ops []operation, losses []loss) error {
	var at uint64 // revision that the site has reached
	was := time.Time{}
	for _, s := range seen {
		from := was
		was = s.last
		switch {
		case s.digest == "" && at == 0:
			continue // nothing came yet
		case byClient(site, s.digest, from, s.first, ops), s.digest == "" && wiped(site, from, s.first, losses):
			continue
		}
		if next, ok := later(s.digest, at, changes); ok {
			at = next
			continue
		}
		if i := slices.IndexFunc(holes, func(r uint64) bool { return r > at }); i >= 0 {
			at = holes[i]
			continue
		}
		return fmt.Errorf("%s shows %q under %s at %s, after it had reached revision %d: no later revision has that\n  seen: %s\n  revisions: %v",
			site, s.digest, ref, s.first.Format(timeFormat), at, stretches(seen), changes)
	}
	return nil
}

const timeFormat = "15:04:05.000"

func stretches(list []stretch) string {
	var b strings.Builder
	for _, s := range list {
		fmt.Fprintf(&b, "[%s–%s %.19s] ", s.first.Format(timeFormat), s.last.Format(timeFormat), s.digest)
	}
	return b.String()
}

// later finds the first revision from at on that shows a digest.
func later(digest string, at uint64, changes []change) (uint64, bool) {
	for _, c := range changes {
		if c.revision >= at && c.digest == digest {
			return c.revision, true
		}
	}
	return 0, false
}

func byClient(site, digest string, from, to time.Time, ops []operation) bool {
	for _, o := range ops {
		for _, a := range o.attempts {
			if a.site == site && o.digest == digest && a.meets(from, to) {
				return true
			}
		}
	}
	return false
}

func wiped(site string, from, to time.Time, losses []loss) bool {
	return slices.ContainsFunc(losses, func(l loss) bool { return l.site == site && l.meets(from, to) })
}

// conflict is one that is listed.
type conflict struct{ ref, loser, site string }

// judgeRef says whether a ref ended as its operations say: in the newest one, or, where that one competed with others, in one of these, and then the newest is not lost in silence.
func judgeRef(ref string, ops []operation, now change, conflicts []conflict) error {
	last := len(ops) - 1
	for last >= 0 && !ops[last].acked {
		last-- // what nobody acknowledged may have happened or not
	}
	first := max(last, 0)
	for first > 0 && !ops[first].clean {
		first--
	}
	for _, o := range ops[max(last, 0):] {
		if o.digest == now.digest {
			return nil
		}
	}
	if last < 0 {
		if now.digest == "" {
			return nil // nothing was acknowledged, nothing happened
		}
		return fmt.Errorf("%s is %q, which nobody asked for: %v", ref, now.digest, ops)
	}
	newest, rivals := ops[last], ops[first:last]
	wrong := func(why string) error {
		return fmt.Errorf("%s ended as %q, revision %d, and not as %q: %s\n  %s", ref, now.digest, now.revision, newest.digest, why, lines(ops))
	}
	if !slices.ContainsFunc(rivals, func(o operation) bool { return o.digest == now.digest }) {
		return wrong("no operation that it competed with says so")
	}
	if oneRegistry(ops[first:]) {
		return wrong("all these operations were at one registry, in order")
	}
	switch {
	case newest.kind == pushBack, !newest.kind.pushes():
		return nil // a digest that was replaced already counts as stale, and a push outweighs a deletion: docs/operations.md
	case slices.Contains(conflicts, conflict{ref, newest.digest, winnerSite(newest)}):
		return nil
	}
	return wrong("it was lost in silence")
}

func lines(ops []operation) string {
	var all []string
	for _, o := range ops {
		all = append(all, o.String())
	}
	return strings.Join(all, "\n  ")
}

// winnerSite is the registry that acknowledged an operation.
func winnerSite(o operation) string {
	for _, a := range o.attempts {
		if a.acked {
			return a.site
		}
	}
	return ""
}

func oneRegistry(ops []operation) bool {
	site := ""
	for _, o := range ops {
		for _, a := range o.attempts {
			if a.site == "" || site != "" && a.site != site {
				return false
			}
			site = a.site
		}
	}
	return true
}

// judgeConflict says whether a listed conflict is one between pushes that competed.
func judgeConflict(c conflict, ops []operation) error {
	for i, o := range ops {
		if o.digest != c.loser {
			continue
		}
		for _, other := range ops[i:] {
			if !other.clean {
				return nil
			}
		}
	}
	return fmt.Errorf("a conflict is listed over %s, %s of %s, although nothing competed with that push\n  %s", c.ref, c.loser, c.site, lines(ops))
}

// judgeAcks says whether every command's answer is in the catalog, and in order.
func judgeAcks(ops []operation, changes []change) error {
	var before uint64
	for _, o := range ops {
		if o.revision == 0 {
			continue
		}
		if o.revision < before {
			return fmt.Errorf("acknowledged as revision %d after one as %d\n  %s", o.revision, before, lines(ops))
		}
		before = o.revision
		i := slices.IndexFunc(changes, func(c change) bool { return c.revision == o.revision })
		if i < 0 {
			return fmt.Errorf("acknowledged as revision %d, which is none of %v: %s", o.revision, changes, o)
		}
		if changes[i].digest != o.digest {
			return fmt.Errorf("acknowledged as revision %d, which is %q: %s", o.revision, changes[i].digest, o)
		}
	}
	return nil
}

// TestSoakJudges: the judges of a fault run can say no.
func TestSoakJudges(t *testing.T) {
	begin := time.Now()
	at := func(s int) time.Time { return begin.Add(time.Duration(s) * time.Second) }
	d := func(b string) string { return "sha256:" + strings.Repeat(b, 64) }
	seen := func(digests ...string) (list []stretch) {
		for i, x := range digests {
			list = append(list, stretch{x, at(10 * i), at(10*i + 9)})
		}
		return list
	}
	changes := []change{{1, "r", d("a"), ""}, {2, "r", d("b"), ""}, {5, "r", "", ""}, {6, "r", d("a"), ""}}
	push := func(digest, site string, s int, clean bool) operation {
		return operation{action: action{kind: pushMove}, digest: digest, acked: true, clean: clean, attempts: []attempt{{span{at(s), at(s + 1)}, site, true}}}
	}
	for _, tt := range []struct {
		name string
		err  error
		ok   bool
	}{
		{"forward", judgeSite("gd-a", "r", seen("", d("a"), d("b"), "", d("a")), changes, nil, nil, nil), true},
		{"back", judgeSite("gd-a", "r", seen(d("a"), d("b"), d("a"), d("b")), changes, nil, nil, nil), false},
		{"gone without a tombstone", judgeSite("gd-a", "r", seen(d("a"), d("b"), "", d("b")), changes[:2], nil, nil, nil), false},
		{"gone when wiped", judgeSite("gd-a", "r", seen(d("a"), d("b"), "", d("b")), changes[:2], nil, nil, []loss{{"gd-a", span{at(18), at(19)}}}), true},
		{"gone when another was wiped", judgeSite("gd-a", "r", seen(d("a"), d("b"), "", d("b")), changes[:2], nil, nil, []loss{{"gd-b", span{at(18), at(19)}}}), false},
		{"never in the catalog", judgeSite("gd-a", "r", seen(d("c")), changes, nil, nil, nil), false},
		{"perhaps in what was not seen", judgeSite("gd-a", "r", seen(d("b"), d("c")), changes, []uint64{3, 4}, nil, nil), true},
		{"not in what was not seen, which is older", judgeSite("gd-a", "r", seen("", d("a"), d("b"), "", d("a"), d("c")), changes, []uint64{3, 4}, nil, nil), false},
		{"pushed back here", judgeSite("hq-a", "r", seen(d("b"), "", d("b")), changes, nil, []operation{push(d("b"), "hq-a", 19, true)}, nil), true},
		{"pushed back elsewhere", judgeSite("hq-b", "r", seen(d("b"), "", d("b")), changes, nil, []operation{push(d("b"), "hq-a", 19, true)}, nil), false},
		{"pushed back here, earlier", judgeSite("hq-a", "r", seen(d("b"), "", d("b")), changes, nil, []operation{push(d("b"), "hq-a", 2, true)}, nil), false},

		{"ends in the newest", judgeRef("r", []operation{push(d("a"), "hq-a", 0, true), push(d("b"), "hq-b", 5, true)}, change{digest: d("b")}, nil), true},
		{"ends in an older one", judgeRef("r", []operation{push(d("a"), "hq-a", 0, true), push(d("b"), "hq-b", 5, true)}, change{digest: d("a")}, nil), false},
		{"loses in silence", judgeRef("r", []operation{push(d("a"), "hq-a", 0, true), push(d("b"), "hq-b", 5, false)}, change{digest: d("a")}, nil), false},
		{"loses and is listed", judgeRef("r", []operation{push(d("a"), "hq-a", 0, true), push(d("b"), "hq-b", 5, false)}, change{digest: d("a")}, []conflict{{"r", d("b"), "hq-b"}}), true},
		{"loses at its own registry", judgeRef("r", []operation{push(d("a"), "hq-b", 0, true), push(d("b"), "hq-b", 5, false)}, change{digest: d("a")}, []conflict{{"r", d("b"), "hq-b"}}), false},
		{"ends in what nobody pushed", judgeRef("r", []operation{push(d("a"), "hq-a", 0, true)}, change{digest: d("c")}, nil), false},

		{"a conflict of two", judgeConflict(conflict{"r", d("a"), "hq-a"}, []operation{push(d("a"), "hq-a", 0, true), push(d("b"), "hq-b", 5, false)}), true},
		{"a conflict of nobody", judgeConflict(conflict{"r", d("a"), "hq-a"}, []operation{push(d("a"), "hq-a", 0, true), push(d("b"), "hq-b", 5, true)}), false},

		{"acknowledged as it is", judgeAcks([]operation{{digest: d("a"), revision: 1}, {digest: "", revision: 5}}, changes), true},
		{"acknowledged as another", judgeAcks([]operation{{digest: d("b"), revision: 1}}, changes), false},
		{"acknowledged and not there", judgeAcks([]operation{{digest: d("b"), revision: 3}}, changes), false},
		{"acknowledged out of order", judgeAcks([]operation{{digest: "", revision: 5}, {digest: d("b"), revision: 2}}, changes), false},
	} {
		if (tt.err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, tt.err)
		}
	}
}
