package integration

import (
	"io"
	"strings"
	"testing"
	"time"
)

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
	broken := func(site string, from, to int) []trouble { return []trouble{{span{at(from), at(to)}, site}} }
	for _, tt := range []struct {
		name string
		err  error
		ok   bool
	}{
		{"forward", judgeSite("gd-a", "r", seen("", d("a"), d("b"), "", d("a")), changes, nil, nil), true},
		{"back", judgeSite("gd-a", "r", seen(d("a"), d("b"), d("a"), d("b")), changes, nil, nil), false},
		{"gone without a tombstone", judgeSite("gd-a", "r", seen(d("a"), d("b"), "", d("b")), changes[:2], nil, nil), false},
		{"gone when wiped", judgeSite("gd-a", "r", seen(d("a"), d("b"), "", d("b")), changes[:2], nil, []loss{{"gd-a", span{at(18), at(19)}}}), true},
		{"gone when another was wiped", judgeSite("gd-a", "r", seen(d("a"), d("b"), "", d("b")), changes[:2], nil, []loss{{"gd-b", span{at(18), at(19)}}}), false},
		{"never in the catalog", judgeSite("gd-a", "r", seen(d("c")), changes, nil, nil), false},
		{"passes over some", judgeSite("gd-a", "r", seen("", d("a"), ""), changes, nil, nil), true},
		{"pushed back here", judgeSite("hq-a", "r", seen(d("b"), "", d("b")), changes, []operation{push(d("b"), "hq-a", 19, true)}, nil), true},
		{"pushed back elsewhere", judgeSite("hq-b", "r", seen(d("b"), "", d("b")), changes, []operation{push(d("b"), "hq-a", 19, true)}, nil), false},
		{"pushed back here, earlier", judgeSite("hq-a", "r", seen(d("b"), "", d("b")), changes, []operation{push(d("b"), "hq-a", 2, true)}, nil), false},

		{"ends in the newest", judgeRef("r", []operation{push(d("a"), "hq-a", 0, true), push(d("b"), "hq-b", 5, true)}, change{digest: d("b")}, nil), true},
		{"ends in an older one", judgeRef("r", []operation{push(d("a"), "hq-a", 0, true), push(d("b"), "hq-b", 5, true)}, change{digest: d("a")}, nil), false},
		{"loses in silence", judgeRef("r", []operation{push(d("a"), "hq-a", 0, true), push(d("b"), "hq-b", 5, false)}, change{digest: d("a")}, nil), false},
		{"loses and is listed", judgeRef("r", []operation{push(d("a"), "hq-a", 0, true), push(d("b"), "hq-b", 5, false)}, change{digest: d("a")}, []conflict{{"r", d("b"), "hq-b"}}), true},
		{"loses at its own registry", judgeRef("r", []operation{push(d("a"), "hq-b", 0, true), push(d("b"), "hq-b", 5, false)}, change{digest: d("a")}, []conflict{{"r", d("b"), "hq-b"}}), false},
		{"ends in what nobody pushed", judgeRef("r", []operation{push(d("a"), "hq-a", 0, true)}, change{digest: d("c")}, nil), false},

		{"a conflict of two", judgeConflict(conflict{"r", d("a"), "hq-a"}, []operation{push(d("a"), "hq-a", 0, true), push(d("b"), "hq-b", 3, false)}, nil), true},
		{"a conflict of nobody", judgeConflict(conflict{"r", d("a"), "hq-a"}, []operation{push(d("a"), "hq-a", 0, true), push(d("b"), "hq-b", 3, true)}, nil), false},
		{"a conflict that time decides", judgeConflict(conflict{"r", d("a"), "hq-a"}, []operation{push(d("a"), "hq-a", 0, true), push(d("b"), "hq-b", 5, false)}, nil), false},
		{"a conflict of which the time was lost", judgeConflict(conflict{"r", d("a"), "hq-a"}, []operation{push(d("a"), "hq-a", 0, true), push(d("b"), "hq-b", 5, false)}, broken("hq-a", 1, 2)), true},

		{"in the history", judgePushes("r", []operation{push(d("a"), "hq-a", 0, true)}, changes, nil, nil), true},
		{"vanished", judgePushes("r", []operation{push(d("c"), "hq-a", 0, true)}, changes, nil, nil), false},
		{"vanished, and listed", judgePushes("r", []operation{push(d("c"), "hq-a", 0, true)}, changes, []conflict{{"r", d("c"), "hq-a"}}, nil), true},
		{"overtaken here at once", judgePushes("r", []operation{push(d("c"), "hq-a", 0, true), push(d("b"), "hq-a", 2, true)}, changes, nil, nil), true},
		{"overtaken here later", judgePushes("r", []operation{push(d("c"), "hq-a", 0, true), push(d("b"), "hq-a", 30, true)}, changes, nil, nil), false},
		{"overtaken here later, when the agent could not look", judgePushes("r", []operation{push(d("c"), "hq-a", 0, true), push(d("b"), "hq-a", 30, true)}, changes, nil, broken("", 5, 28)), true},
		{"overtaken here later, when another registry was away", judgePushes("r", []operation{push(d("c"), "hq-a", 0, true), push(d("b"), "hq-a", 30, true)}, changes, nil, broken("hq-b", 5, 28)), false},
		{"overtaken elsewhere", judgePushes("r", []operation{push(d("c"), "hq-a", 0, true), push(d("b"), "hq-b", 4, true)}, changes, nil, nil), true},
		{"overtaken elsewhere within the bound", judgePushes("r", []operation{push(d("c"), "hq-a", 0, true), push(d("b"), "hq-b", 1, true)}, changes, nil, nil), false},

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

// TestSoakHalfOpen: a link that is half open loses what flows one way, and gives it back when it is restored.
func TestSoakHalfOpen(t *testing.T) {
	l := newWires().pair("hq-a", "hq-b")
	arrived := func(towards string) <-chan string {
		from, in := io.Pipe()
		out, to := io.Pipe()
		t.Cleanup(func() { _ = in.Close(); _ = out.Close() })
		go l.flow(to, from, towards, nil)
		go func() { _, _ = io.WriteString(in, towards) }()
		got := make(chan string, 1)
		go func() {
			b := make([]byte, 16)
			n, _ := out.Read(b)
			got <- string(b[:n])
		}()
		return got
	}
	l.swallow("hq-b")
	lost := arrived("hq-b")
	if got := <-arrived("hq-a"); got != "hq-a" { // later on its way, and there first
		t.Errorf("%q arrived at hq-a", got)
	}
	select {
	case got := <-lost:
		t.Errorf("%q arrived at hq-b, which hears nothing", got)
	default:
	}
	l.restore()
	if got := <-lost; got != "hq-b" {
		t.Errorf("%q arrived at hq-b afterwards", got)
	}
}
