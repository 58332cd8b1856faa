package reconcile_test

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/fanout-io/fanout/pkg/reconcile"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

var rewrite = flag.Bool("rewrite", false, "write the tables in testdata as they are now")

// The digests of the enumeration: the record shows T and showed H before; B and X are neither.
var (
	pushTime = time.Unix(1000, 0)
	bound    = 10 * time.Second
)

func record(deleted bool, referrers ...string) *catalogv1.Record {
	rec := &catalogv1.Record{
		Repository: "app", Tag: "v1", Target: &catalogv1.Descriptor{Digest: "T"}, History: []string{"H"}, Revision: 5,
		PushedAt: timestamppb.New(pushTime), PublishedAt: timestamppb.New(pushTime), Deleted: deleted,
	}
	for _, d := range referrers {
		rec.Referrers = append(rec.Referrers, &catalogv1.Descriptor{Digest: d})
	}
	return rec
}

// every calls f with every combination of small domains.
func every(f func(in reconcile.Input)) {
	sides := []reconcile.Side{{}, {Known: true}, {Known: true, Digest: "T"}, {Known: true, Digest: "H"}, {Known: true, Digest: "B"}, {Known: true, Digest: "X"}}
	var flags [][4]bool // publishable, existing, distrusted, deletions travel
	for i := range 16 {
		flags = append(flags, [4]bool{i&1 > 0, i&2 > 0, i&4 > 0, i&8 > 0})
	}
	for _, place := range []reconcile.Place{reconcile.Headquarters, reconcile.Below} {
		for _, ours := range sides {
			for _, base := range sides {
				for _, baseRevision := range []uint64{0, 4, 5, 6} {
					for _, theirs := range []*catalogv1.Record{nil, record(false), record(true), record(false, "S")} {
						for _, intent := range []string{"", "T", "X"} {
							for _, pushed := range []time.Time{{}, pushTime.Add(-time.Hour), pushTime.Add(5 * time.Second), pushTime.Add(time.Hour)} {
								for _, drift := range []string{"", "repair", "report", "accept"} {
									for _, fl := range flags {
										in := reconcile.Input{
											Place: place, Ours: ours, Base: base, BaseRevision: baseRevision, Theirs: theirs, Intent: intent, IntentRevision: 5 * uint64(len(intent)),
											PublishMatch: fl[0], Existing: fl[1], Distrusted: fl[2], PushedAt: pushed, ClockBound: bound,
											Drift: reconcile.Drift{Changed: drift, Deleted: drift},
										}
										if fl[3] {
											in.Deletes = "propagate"
										}
										f(in)
									}
								}
							}
						}
					}
				}
			}
		}
	}
}

// TestMerge_Laws checks what must hold of every verdict.
func TestMerge_Laws(t *testing.T) {
	n := 0
	every(func(in reconcile.Input) {
		n++
		v := reconcile.Merge(in)
		if broken := brokenLaw(in, v); broken != "" {
			t.Fatalf("%s: %v (%s) for %+v", broken, v.Action, v.Reason, in)
		}
	})
	t.Logf("%d combinations", n)
}

func brokenLaw(in reconcile.Input, v reconcile.Verdict) string {
	is := func(actions ...reconcile.Action) bool { return slices.Contains(actions, v.Action) }
	hq := in.Place == reconcile.Headquarters
	base, baseRevision := in.Base, in.BaseRevision
	if in.Intent != "" && in.Ours == (reconcile.Side{Known: true, Digest: in.Intent}) {
		base, baseRevision = in.Ours, max(baseRevision, in.IntentRevision)
	}
	live := in.Theirs != nil && !in.Theirs.Deleted
	tombstone := in.Theirs != nil && in.Theirs.Deleted
	equal := live && in.Ours.Digest == "T" || tombstone && in.Ours.Digest == ""
	behind := in.Theirs != nil && in.Theirs.Revision < baseRevision
	changesHere := is(reconcile.Deliver, reconcile.Remove, reconcile.Conflict)
	changesCatalog := is(reconcile.Publish, reconcile.Unpublish)
	switch {
	case v.Reason == "":
		return "no reason"
	case !in.Ours.Known && !is(reconcile.None):
		return "something is done about what was not looked at"
	case !in.Ours.Known:
		return ""
	case changesCatalog && (!hq || !in.PublishMatch || in.Distrusted):
		return "published without the right to"
	case is(reconcile.Unpublish) && (in.Deletes != "propagate" || in.Ours.Digest != "" || base.Digest == "" || !live):
		return "unpublished without a deletion"
	case is(reconcile.Publish) && in.Ours.Digest == "":
		return "nothing was published"
	case is(reconcile.Publish) && in.Existing && !base.Known:
		return "what was there before fanout was published"
	case is(reconcile.Remove) && (!tombstone || in.Ours.Digest == ""):
		return "removed without a tombstone"
	case is(reconcile.Remove) && (base != in.Ours || baseRevision == 0) && !slices.Contains([]string{"T", "H"}, in.Ours.Digest):
		return "removed what the catalog never had"
	case is(reconcile.Deliver, reconcile.Conflict) && (!live || in.Ours.Digest == "T"):
		return "delivered without a need"
	case behind && (changesHere || changesCatalog || is(reconcile.Adopt)):
		return "an older record had a say"
	case equal && !behind && !is(reconcile.None, reconcile.Adopt):
		return "equal sides, and something is done"
	case is(reconcile.Adopt) && !equal:
		return "adopted what differs"
	case equal && is(reconcile.None) && !behind && (base != in.Ours || baseRevision != 5):
		return "equal sides, and the base is not adopted"
	case v.Referrers != (is(reconcile.Adopt) && live && len(in.Theirs.Referrers) > 0):
		return "referrers"
	case live && !behind && !equal && base == in.Ours && !is(reconcile.Deliver) && !(is(reconcile.Conflict) && in.Existing && baseRevision == 0):
		return "the catalog moved on and was not followed"
	case is(reconcile.Conflict) && (!hq || in.Ours.Digest == "" || in.Distrusted):
		return "a conflict where none can be"
	case live && !behind && !equal && !hq && base.Digest != "T" && !is(reconcile.Deliver):
		return "theirs does not win below headquarters"
	case in.Theirs == nil && !is(reconcile.None, reconcile.Foreign, reconcile.Publish):
		return "something is done about what is not in the catalog"
	case in.Theirs == nil && !hq && in.Ours.Digest != "" && !is(reconcile.Foreign):
		return "a foreign tag is not left alone"
	}
	return ""
}

// TestMerge_Settles: when a verdict was carried out with success, the next look finds nothing to do, or only something to show.
func TestMerge_Settles(t *testing.T) {
	every(func(in reconcile.Input) {
		v := reconcile.Merge(in)
		next := in
		next.Intent, next.IntentRevision = "", 0
		switch v.Action {
		case reconcile.Adopt:
			next.Base, next.BaseRevision = in.Ours, in.Theirs.Revision
		case reconcile.Deliver, reconcile.Conflict:
			next.Ours = reconcile.Side{Known: true, Digest: in.Theirs.Target.Digest}
			next.Base, next.BaseRevision = next.Ours, in.Theirs.Revision
		case reconcile.Remove:
			next.Ours = reconcile.Side{Known: true}
			next.Base, next.BaseRevision = next.Ours, in.Theirs.Revision
		case reconcile.Publish, reconcile.Unpublish:
			next.Theirs = record(v.Action == reconcile.Unpublish)
			next.Theirs.Revision = 7
			if v.Action == reconcile.Publish {
				next.Theirs.Target.Digest = in.Ours.Digest
			}
			next.Base, next.BaseRevision = in.Ours, 7
		default:
			return
		}
		if got := reconcile.Merge(next); got.Action != reconcile.None {
			t.Fatalf("%v, then %v (%s) for %+v", v.Action, got.Action, got.Reason, in)
		}
	})
}

// TestMerge_CrashAfterPut: with the intent noted, a crash between the put and the note of the base looks like the base.
func TestMerge_CrashAfterPut(t *testing.T) {
	every(func(in reconcile.Input) {
		if in.Intent == "" || in.Ours.Digest != in.Intent {
			return
		}
		noted := in
		noted.Base, noted.BaseRevision = in.Ours, max(in.BaseRevision, in.IntentRevision)
		noted.Intent, noted.IntentRevision = "", 0
		if got, want := reconcile.Merge(in), reconcile.Merge(noted); got != want {
			t.Fatalf("%v with an intent, %v with the base, for %+v", got, want, in)
		}
	})
}

// TestMerge_Table prints the verdicts of the ordinary cases for a reader to judge.
func TestMerge_Table(t *testing.T) {
	var b strings.Builder
	b.WriteString("# T: what the record shows; H: what it showed before; B, X: neither; -: absent; ?: not known. Tombstones showed T.\n" +
		"# The base is of the record's revision where it equals the record, else older. Indented: what differs where it is known when ours was pushed.\n")
	digests := []string{"?", "-", "T", "H", "B", "X"}
	side := func(s string) reconcile.Side {
		switch s {
		case "?":
			return reconcile.Side{}
		case "-":
			return reconcile.Side{Known: true}
		}
		return reconcile.Side{Known: true, Digest: s}
	}
	times := []struct {
		name string
		at   time.Time
	}{{"before", pushTime.Add(-time.Hour)}, {"about", pushTime.Add(time.Second)}, {"after", pushTime.Add(time.Hour)}}
	for _, place := range []reconcile.Place{reconcile.Headquarters, reconcile.Below} {
		for _, theirs := range []struct {
			name string
			rec  *catalogv1.Record
		}{{"no record", nil}, {"live record", record(false)}, {"tombstone", record(true)}} {
			fmt.Fprintf(&b, "\n## %s, %s\n", map[reconcile.Place]string{reconcile.Headquarters: "headquarters", reconcile.Below: "below"}[place], theirs.name)
			for _, ours := range []string{"-", "T", "H", "X"} {
				for _, base := range digests {
					if theirs.rec == nil && base != "?" {
						continue
					}
					in := reconcile.Input{
						Place: place, Ours: side(ours), Base: side(base), Theirs: theirs.rec, PublishMatch: true, Deletes: "propagate", ClockBound: bound,
					}
					switch {
					case theirs.name == "live record" && base == "T", theirs.name == "tombstone" && base == "-":
						in.BaseRevision = 5
					case base != "?":
						in.BaseRevision = 4
					}
					v := reconcile.Merge(in)
					fmt.Fprintf(&b, "ours %s base %s   %-9s %s\n", ours, base, v.Action, v.Reason)
					for _, pushed := range times {
						in.PushedAt = pushed.at
						if w := reconcile.Merge(in); w != v {
							fmt.Fprintf(&b, "   pushed %-6s  %-9s %s\n", pushed.name, w.Action, w.Reason)
						}
					}
				}
			}
		}
	}
	golden(t, "testdata/merge.txt", b.String())
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *rewrite {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s: -want +got (go test -rewrite writes it anew):\n%s", file, diff)
	}
}

// TestMerge_Rows has a case for each row of the table in Merge's comment that the printed table does not show.
func TestMerge_Rows(t *testing.T) {
	known := func(d string) reconcile.Side { return reconcile.Side{Known: true, Digest: d} }
	at := func(d time.Duration) time.Time { return pushTime.Add(d) }
	for _, tt := range []struct {
		name string
		in   reconcile.Input
		want reconcile.Action
	}{
		{"registry not looked at", reconcile.Input{Theirs: record(false)}, reconcile.None},
		{"catalog behind", reconcile.Input{Ours: known("X"), Base: known("X"), BaseRevision: 6, Theirs: record(false), PublishMatch: true}, reconcile.None},
		{"record lost from the catalog here", reconcile.Input{Ours: known("X"), Base: known("X"), BaseRevision: 6, PublishMatch: true}, reconcile.None},
		{"record out of scope", reconcile.Input{Place: reconcile.Below, Ours: known("X"), Base: known("X"), BaseRevision: 6}, reconcile.Foreign},
		{"settled, not publishable", reconcile.Input{
			Place: reconcile.Headquarters, Ours: known("L"), Base: known("X"), BaseRevision: 3,
			Theirs: &catalogv1.Record{Target: &catalogv1.Descriptor{Digest: "T"}, Revision: 5, History: []string{"L"}},
		}, reconcile.Deliver},
		{"never published, not publishable", reconcile.Input{Ours: known("X")}, reconcile.Foreign},
		{"never published, existing", reconcile.Input{Ours: known("X"), PublishMatch: true, Existing: true}, reconcile.Foreign},
		{"never published, distrusted", reconcile.Input{Ours: known("X"), PublishMatch: true, Distrusted: true}, reconcile.Foreign},
		{"never published", reconcile.Input{Ours: known("X"), PublishMatch: true}, reconcile.Publish},
		{"wiped", reconcile.Input{Ours: known(""), Base: known("T"), BaseRevision: 5, Theirs: record(false), Distrusted: true, Deletes: "propagate", PublishMatch: true}, reconcile.Deliver},
		{"restored, deleted since", reconcile.Input{Ours: known("T"), Base: known(""), BaseRevision: 5, Theirs: record(true), Distrusted: true, PublishMatch: true}, reconcile.Remove},
		{"restored", reconcile.Input{Ours: known("X"), Base: known("T"), BaseRevision: 5, Theirs: record(false), Distrusted: true, PublishMatch: true}, reconcile.Deliver},
		{"deleted, deletions do not travel", reconcile.Input{Ours: known(""), Base: known("T"), BaseRevision: 5, Theirs: record(false), PublishMatch: true}, reconcile.Report},
		{"deleted, and a new push since", reconcile.Input{Ours: known(""), Base: known("B"), BaseRevision: 4, Theirs: record(false), PublishMatch: true}, reconcile.Deliver},
		{"changed, not publishable", reconcile.Input{Ours: known("X"), Base: known("T"), BaseRevision: 5, Theirs: record(false)}, reconcile.Report},
		{"base lost, existing", reconcile.Input{Ours: known("X"), Theirs: record(false), PublishMatch: true, Existing: true}, reconcile.Conflict},
		{"existing, remembered", reconcile.Input{Ours: known("X"), Base: known("X"), Theirs: record(false), PublishMatch: true, Existing: true}, reconcile.Conflict},
		{"existing, remembered, and a tombstone", reconcile.Input{Ours: known("X"), Base: known("X"), Theirs: record(true), PublishMatch: true, Existing: true}, reconcile.Foreign},
		{"gone before, back from an own publish, deleted since", reconcile.Input{Ours: known("T"), Base: known(""), BaseRevision: 3, Theirs: record(true), PublishMatch: true}, reconcile.Remove},
		{"all differ, within the bound", reconcile.Input{Ours: known("X"), Base: known("B"), BaseRevision: 4, Theirs: record(false), PublishMatch: true, PushedAt: at(bound), ClockBound: bound}, reconcile.Conflict},
		{"new at both, within the bound", reconcile.Input{Ours: known("X"), Theirs: record(false), PublishMatch: true, PushedAt: at(bound), ClockBound: bound}, reconcile.Conflict},
		{"new at both, within the bound, after theirs was known here", reconcile.Input{Ours: known("X"), Theirs: record(false), PublishMatch: true, PushedAt: at(bound), TheirsSeen: at(0), ClockBound: bound}, reconcile.Publish},
		{"new, and theirs is this site's own, pushed again", reconcile.Input{Ours: known("X"), Own: true, Theirs: record(false), PublishMatch: true, PushedAt: at(bound), ClockBound: bound}, reconcile.Publish},
		{"base lost, and when ours was pushed is not known", reconcile.Input{Ours: known("X"), Theirs: record(false), PublishMatch: true, ClockBound: bound}, reconcile.Publish},
		{"own record of which the answer was lost, pushed again", reconcile.Input{Ours: known("X"), Base: known("B"), BaseRevision: 4, Own: true, Theirs: record(false), PublishMatch: true, PushedAt: at(bound), ClockBound: bound}, reconcile.Publish},
		{"the same, set back by a push", reconcile.Input{Ours: known("B"), Base: known("B"), BaseRevision: 4, Own: true, Theirs: record(false), PublishMatch: true}, reconcile.Publish},
		{"the same, deleted", reconcile.Input{Ours: known(""), Base: known("B"), BaseRevision: 4, Own: true, Theirs: record(false), PublishMatch: true}, reconcile.Report},
		{"the same, deleted and pushed again as before", reconcile.Input{Ours: known("B"), Base: known("B"), BaseRevision: 4, Own: true, Theirs: record(true), PublishMatch: true}, reconcile.Publish},
		{"own record, and the memory lost", reconcile.Input{Ours: known("H"), Own: true, Theirs: record(false), PublishMatch: true}, reconcile.Deliver},
		{"own record that has been seen, and moved on elsewhere", reconcile.Input{Ours: known("B"), Base: known("B"), BaseRevision: 5, Own: true, Theirs: record(false), PublishMatch: true}, reconcile.Deliver},
		{"all differ, beyond the bound", reconcile.Input{Ours: known("X"), Base: known("B"), BaseRevision: 4, Theirs: record(false), PublishMatch: true, PushedAt: at(bound + 1), ClockBound: bound}, reconcile.Publish},
		{"all differ, before the bound", reconcile.Input{Ours: known("X"), Base: known("B"), BaseRevision: 4, Theirs: record(false), PublishMatch: true, PushedAt: at(-bound - 1), ClockBound: bound}, reconcile.Deliver},
		{"pushed after theirs was known here", reconcile.Input{Ours: known("X"), Base: known("B"), BaseRevision: 4, Theirs: record(false), PublishMatch: true, ClockBound: time.Hour, PushedAt: time.Unix(1001, 1), TheirsSeen: time.Unix(1001, 0)}, reconcile.Publish},
		{"pushed before theirs was known here", reconcile.Input{Ours: known("X"), Base: known("B"), BaseRevision: 4, Theirs: record(false), PublishMatch: true, ClockBound: time.Hour, PushedAt: time.Unix(1001, 0), TheirsSeen: time.Unix(1001, 0)}, reconcile.Conflict},
		{"drift: changed, report", reconcile.Input{Place: reconcile.Below, Ours: known("X"), Base: known("T"), BaseRevision: 5, Theirs: record(false), Drift: reconcile.Drift{Changed: "report"}}, reconcile.Report},
		{"drift: changed, accept", reconcile.Input{Place: reconcile.Below, Ours: known("X"), Base: known("T"), BaseRevision: 5, Theirs: record(false), Drift: reconcile.Drift{Changed: "accept"}}, reconcile.Accept},
		{"drift: deleted, report", reconcile.Input{Place: reconcile.Below, Ours: known(""), Base: known("T"), BaseRevision: 5, Theirs: record(false), Drift: reconcile.Drift{Deleted: "report"}}, reconcile.Report},
		{"drift: deleted, repair", reconcile.Input{Place: reconcile.Below, Ours: known(""), Base: known("T"), BaseRevision: 5, Theirs: record(false), Drift: reconcile.Drift{Changed: "report"}}, reconcile.Deliver},
		{"set again below after a tombstone, report", reconcile.Input{Place: reconcile.Below, Ours: known("T"), Base: known(""), BaseRevision: 5, Theirs: record(true), Drift: reconcile.Drift{Changed: "report"}}, reconcile.Report},
	} {
		if got := reconcile.Merge(tt.in); got.Action != tt.want {
			t.Errorf("%s: %v (%s), want %v", tt.name, got.Action, got.Reason, tt.want)
		}
	}
}

// TestMerge_Unkept: a tag that is not kept is removed where this site put it, and else left alone, whatever it shows.
func TestMerge_Unkept(t *testing.T) {
	n := 0
	every(func(in reconcile.Input) {
		if in.Place != reconcile.Below || !in.Ours.Known {
			return
		}
		in.Unkept = true
		v := reconcile.Merge(in)
		if in.Theirs == nil || in.Theirs.Deleted {
			kept := in
			kept.Unkept = false
			if v != reconcile.Merge(kept) {
				t.Fatalf("%v for %+v, which is no live record", v, in)
			}
			return
		}
		put := in.Base.Known && in.Base == in.Ours && in.BaseRevision > 0 || in.Intent != "" && in.Intent == in.Ours.Digest && max(in.BaseRevision, in.IntentRevision) > 0
		behind := in.Theirs.Revision < in.BaseRevision || in.Intent != "" && in.Intent == in.Ours.Digest && in.Theirs.Revision < in.IntentRevision
		want := reconcile.None
		if put && in.Ours.Digest != "" && !behind {
			want = reconcile.Trim
			n++
		}
		if v.Action != want || v.Reason == "" {
			t.Fatalf("%v (%s), want %v, for %+v", v.Action, v.Reason, want, in)
		}
	})
	if n == 0 {
		t.Error("nothing was trimmed")
	}
}
