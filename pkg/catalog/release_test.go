package catalog_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/fanout-io/fanout/pkg/catalog"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// fullRecord has every field set, with two releases: A for two groups, and after it B for one of these.
func fullRecord(t testing.TB) *catalogv1.Record {
	rec := &catalogv1.Record{
		Repository: "app", Tag: "v1", Target: descriptor("base"), Referrers: []*catalogv1.Descriptor{descriptor("S")}, Revision: 7,
		PublishedAt: timestamppb.New(time.Unix(1, 0)), PublishedBy: "ann", Origin: "hq-a", PushedAt: timestamppb.New(time.Unix(2, 0)), Deleted: true,
		History: []string{digest("old"), digest("A")}, Sum: wordSum("x"), Traceparent: "t", RemovalTraceparent: "tD", MaxFreeze: durationpb.New(time.Hour),
		Releases: []*catalogv1.Release{
			{Target: descriptor("A"), Groups: []string{"hq/a", "hq/b"}, Rollout: "r1", Traceparent: "tA"},
			{Target: descriptor("B"), Referrers: []*catalogv1.Descriptor{descriptor("T")}, Groups: []string{"hq/b"}, Rollout: "r2", Traceparent: "tB"},
			{Groups: []string{"hq/c"}, Rollout: "r3", Traceparent: "tC"},
		},
	}
	for i := range rec.ProtoReflect().Descriptor().Fields().Len() {
		if f := rec.ProtoReflect().Descriptor().Fields().Get(i); !rec.ProtoReflect().Has(f) {
			t.Fatalf("%s is not set: the tests with this record say nothing about it", f.Name())
		}
	}
	return rec
}

func TestProject_LastReleaseThatNamesTheGroup(t *testing.T) {
	rec := fullRecord(t)
	before := proto.CloneOf(rec)
	for _, tt := range []struct {
		group, shows, trace string
		history             []string
	}{
		{"hq/a", "A", "tA", []string{"B", "base", "old"}},
		{"hq/b", "B", "tB", []string{"A", "base", "old"}},
		{"hq/c", "", "tC", []string{"B", "A", "old"}},
		{"hq", "", "t", []string{"B", "A", "old"}},
		{"hq/a/x", "", "t", []string{"B", "A", "old"}}, // a group below is another group
	} {
		got := catalog.Project(rec, tt.group)
		want := proto.CloneOf(rec)
		want.Releases, want.History, want.Traceparent = nil, nil, tt.trace
		for _, w := range tt.history {
			want.History = append(want.History, digest(w))
		}
		if tt.shows != "" {
			want.Deleted, want.Target, want.Referrers = false, descriptor(tt.shows), nil
		}
		if tt.shows == "B" {
			want.Referrers = []*catalogv1.Descriptor{descriptor("T")}
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("%s: -want +got:\n%s", tt.group, diff)
		}
		shows := ""
		if tt.shows != "" {
			shows = digest(tt.shows)
		}
		if by := catalog.ShownBy(rec, tt.group); by != shows {
			t.Errorf("%s shows %q, want %q", tt.group, by, shows)
		}
	}
	if !proto.Equal(rec, before) {
		t.Error("Project changed the record")
	}
	rec.Releases = nil
	if catalog.Project(rec, "hq") != rec || catalog.Project(nil, "hq") != nil {
		t.Error("a record without releases is not returned as it is")
	}
}

func TestContent_AllThatSomeGroupShows(t *testing.T) {
	words := map[string]string{}
	for _, w := range []string{"base", "A", "B", "S", "T", "U"} {
		words[digest(w)] = w
	}
	show := func(rec *catalogv1.Record) (out []string) {
		for _, c := range catalog.Content(rec) {
			s := words[c.Descriptor.Digest]
			for _, d := range c.Referrers {
				s += "+" + words[d.Digest]
			}
			out = append(out, s)
		}
		return out
	}
	rec := fullRecord(t)
	if got := show(rec); !slices.Equal(got, []string{"A", "B+T"}) || catalog.Tombstone(rec) {
		t.Errorf("base absent: %v", got)
	}
	rec.Deleted = false
	rec.Releases[1].Target = rec.Target
	if got := show(rec); !slices.Equal(got, []string{"base+S+T", "A"}) && !slices.Equal(got, []string{"base+T+S", "A"}) {
		t.Errorf("a release of the base's digest: %v", got)
	}
	rec.Releases = nil
	if got := show(rec); !slices.Equal(got, []string{"base+S"}) {
		t.Errorf("no releases: %v", got)
	}
	rec.Deleted = true
	if got := show(rec); len(got) > 0 || !catalog.Tombstone(rec) {
		t.Errorf("a tombstone: %v", got)
	}
}

// TestNextSum_CoversAllFields: no field of a record, release or descriptor can change without the sum, but the trace that a release belongs to.
func TestNextSum_CoversAllFields(t *testing.T) {
	rec := fullRecord(t)
	sum := catalog.NextSum(nil, rec)
	if same := proto.CloneOf(rec); !bytes.Equal(sum, catalog.NextSum(nil, same)) {
		t.Fatal("equal records, different sums")
	}
	visit := func(what string, msg func(*catalogv1.Record) protoreflect.Message) {
		fields := msg(rec).Descriptor().Fields()
		for i := range fields.Len() {
			f := fields.Get(i)
			if what == "record" && (f.Name() == "sum" || f.Name() == "removal_traceparent") || what == "release" && f.Name() == "traceparent" { // which an older agent does not know
				continue
			}
			altered := proto.CloneOf(rec)
			msg(altered).Clear(f)
			if !proto.Equal(rec, altered) && bytes.Equal(sum, catalog.NextSum(nil, altered)) {
				t.Errorf("%s: %s is not in the sum", what, f.Name())
			}
		}
	}
	visit("record", func(r *catalogv1.Record) protoreflect.Message { return r.ProtoReflect() })
	visit("release", func(r *catalogv1.Record) protoreflect.Message { return r.Releases[1].ProtoReflect() })
	visit("target of a release", func(r *catalogv1.Record) protoreflect.Message { return r.Releases[1].Target.ProtoReflect() })
}

// TestView_DigestCoversReleases: what the view of a group depends on is in the digest.
func TestView_DigestCoversReleases(t *testing.T) {
	of := func(rec *catalogv1.Record) string {
		m := catalog.New()
		res := m.Apply(&catalogv1.Command{Changes: []*catalogv1.Change{{Kind: &catalogv1.Change_Import{Import: &catalogv1.Import{
			Records: []*catalogv1.Record{rec}, Position: &catalogv1.Position{Epoch: "e1", Revision: 9, Sum: wordSum("p"), Scope: "s"},
		}}}}})
		if res[0].Err != nil {
			t.Fatal(res[0].Err)
		}
		return m.Snapshot().View(scopeOf("**")).Digest()
	}
	seen := map[string]string{}
	for i, alter := range []func(*catalogv1.Record){
		func(*catalogv1.Record) {},
		func(r *catalogv1.Record) { r.Deleted = false },
		func(r *catalogv1.Record) { r.Releases = nil },
		func(r *catalogv1.Record) { r.Releases, r.Deleted = nil, false },
		func(r *catalogv1.Record) { slices.Reverse(r.Releases) },
		func(r *catalogv1.Record) { r.Releases[0].Groups = r.Releases[0].Groups[:1] },
		func(r *catalogv1.Record) { r.Releases[1].Referrers = nil },
		func(r *catalogv1.Record) { r.Releases[1].Target = nil },
	} {
		rec := fullRecord(t)
		alter(rec)
		d, what := of(rec), fmt.Sprint(i)
		if other, twice := seen[d]; twice {
			t.Errorf("alterations %s and %s: one digest", other, what)
		}
		seen[d] = what
	}
}

func TestFreezes(t *testing.T) {
	m := populated(t)
	apply := func(c *catalogv1.Change) error {
		return m.Apply(&catalogv1.Command{Changes: []*catalogv1.Change{c}})[0].Err
	}
	set := func(f *catalogv1.Freeze) error {
		return apply(&catalogv1.Change{Kind: &catalogv1.Change_SetFreeze{SetFreeze: &catalogv1.SetFreeze{Freeze: f}}})
	}
	clock := m.Snapshot().Clock()
	at := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(clock.Add(d)) }
	for name, f := range map[string]*catalogv1.Freeze{
		"no end":     {Group: "hq"},
		"past":       {Group: "hq", Until: at(0)},
		"too long":   {Group: "hq", Until: at(catalog.MaxFreeze + 1)},
		"no group":   {Until: at(time.Hour)},
		"bad reason": {Group: "hq", Reason: "\n", Until: at(time.Hour)},
	} {
		if err := set(f); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := set(nil); !errors.Is(err, catalog.ErrUnchanged) {
		t.Errorf("thawed what is not frozen: %v", err)
	}
	if err := set(&catalogv1.Freeze{Group: "hq", Until: at(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	in := func(d time.Duration) int { return len(m.Snapshot().Freezes(clock.Add(d))) }
	if in(time.Hour-1) != 1 || in(time.Hour) != 0 {
		t.Error("the freeze does not end when it should")
	}
	m.Apply(&catalogv1.Command{Time: at(time.Minute)})
	if err := set(&catalogv1.Freeze{Group: "hq", Until: at(2 * time.Hour)}); err != nil || !m.Snapshot().Freeze().Since.AsTime().Equal(clock) {
		t.Errorf("a freeze that is made longer goes on: %v, %v", err, m.Snapshot().Freeze())
	}
	above := func(list ...*catalogv1.Freeze) error {
		return apply(&catalogv1.Change{Kind: &catalogv1.Change_SetFreezesAbove{SetFreezesAbove: &catalogv1.SetFreezesAbove{Freezes: list}}})
	}
	if err := above(&catalogv1.Freeze{Group: "hq", Until: at(time.Hour)}); !errors.Is(err, catalog.ErrFounded) {
		t.Errorf("above headquarters: %v", err)
	}
	if err := set(nil); err != nil || m.Snapshot().Freeze() != nil {
		t.Errorf("thaw: %v", err)
	}

	m = catalog.New()
	if err := apply(&catalogv1.Change{Kind: &catalogv1.Change_RestoreCatalog{RestoreCatalog: &catalogv1.RestoreCatalog{Id: "r1", Begin: true}}}); err != nil {
		t.Fatal(err)
	}
	if err := above(&catalogv1.Freeze{Group: "hq", Until: at(time.Hour)}); !errors.Is(err, catalog.ErrFounded) {
		t.Errorf("above what is to be headquarters again: %v", err)
	}

	m = catalog.New()
	m.Apply(&catalogv1.Command{Time: at(0)})
	gd, hq := &catalogv1.Freeze{Group: "hq/gd", Until: at(2 * time.Hour)}, &catalogv1.Freeze{Group: "hq", Until: at(time.Hour)}
	if err := above(gd, hq); err != nil {
		t.Fatal(err)
	}
	if err := above(hq, gd); !errors.Is(err, catalog.ErrUnchanged) {
		t.Errorf("the same, in another order: %v", err)
	}
	if err := above(hq, hq); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("a group twice: %v", err)
	}
	if err := set(&catalogv1.Freeze{Group: "hq/gd/sz", Until: at(3 * time.Hour)}); err != nil {
		t.Fatal(err)
	}
	again, err := catalog.Restore(bytes.NewReader(snapshotBytes(t, m.Snapshot())))
	if err != nil {
		t.Fatal(err)
	}
	for _, snap := range []*catalog.Snapshot{m.Snapshot(), again.Snapshot()} {
		var groups []string
		for _, f := range snap.Freezes(clock.Add(90 * time.Minute)) {
			groups = append(groups, f.Group)
		}
		if !slices.Equal(groups, []string{"hq/gd", "hq/gd/sz"}) {
			t.Errorf("in force: %v", groups)
		}
	}
}

func TestPolicies(t *testing.T) {
	m := populated(t)
	set := func(list ...*catalogv1.Policy) error {
		return m.Apply(&catalogv1.Command{Changes: []*catalogv1.Change{{Kind: &catalogv1.Change_SetPolicies{SetPolicies: &catalogv1.SetPolicies{Policies: list}}}}})[0].Err
	}
	policy := func(name, delivery string, patterns ...string) *catalogv1.Policy {
		return &catalogv1.Policy{Name: name, Delivery: delivery, Repositories: patterns}
	}
	long := policy("a", "staged", "**")
	long.MaxFreeze = durationpb.New(-1)
	for name, list := range map[string][]*catalogv1.Policy{
		"no name":        {policy("", "staged", "**")},
		"twice":          {policy("a", "staged", "x"), policy("a", "staged", "y")},
		"no patterns":    {policy("a", "staged")},
		"bad pattern":    {policy("a", "staged", "a[")},
		"bad delivery":   {policy("a", "", "**")},
		"bad max_freeze": {long},
		"absent":         {nil},
	} {
		if err := set(list...); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := set(policy("exception", "cascade", "prod/base/*"), policy("releases", "staged", "prod/**")); err != nil {
		t.Fatal(err)
	}
	if err := set(m.Snapshot().Policies()...); !errors.Is(err, catalog.ErrUnchanged) {
		t.Errorf("the same: %v", err)
	}
	again, err := catalog.Restore(bytes.NewReader(snapshotBytes(t, m.Snapshot())))
	if err != nil {
		t.Fatal(err)
	}
	for _, snap := range []*catalog.Snapshot{m.Snapshot(), again.Snapshot()} {
		for repo, want := range map[string]string{"prod/base/x": "exception", "prod/x": "releases", "dev/x": ""} {
			if got := snap.PolicyFor(repo).GetName(); got != want {
				t.Errorf("%s: policy %q, want %q", repo, got, want)
			}
		}
	}
	if err := set(); err != nil || len(m.Snapshot().Policies()) != 0 {
		t.Errorf("none: %v", err)
	}
	below := catalog.New()
	res := below.Apply(&catalogv1.Command{Changes: []*catalogv1.Change{{Kind: &catalogv1.Change_SetPolicies{SetPolicies: &catalogv1.SetPolicies{}}}}})
	if !errors.Is(res[0].Err, catalog.ErrNotHeadquarters) {
		t.Errorf("below headquarters: %v", res[0].Err)
	}
}

// TestWithin: what a group is told of releases names it and those below it alone, and it and they show the same, with the same content, as by the whole record.
func TestWithin(t *testing.T) {
	d := func(w string) *catalogv1.Descriptor { return &catalogv1.Descriptor{Digest: digest(w), Size: 1} }
	rec := &catalogv1.Record{Repository: "app", Tag: "v1", Target: d("A"), Revision: 7, Releases: []*catalogv1.Release{
		{Target: d("B"), Groups: []string{"hq", "hq/gd", "hq/gd/sz", "hq/gx"}, Rollout: "r1"},
		{Target: d("C"), Groups: []string{"hq/gd/sz", "hq/gdx", "hq/gx"}, Rollout: "r2"},
		{Groups: []string{"hq/gx/nn"}, Rollout: "r3"},
	}}
	whole := proto.CloneOf(rec)
	for _, c := range []struct {
		group, names string
		knows        []string
	}{
		{"hq/gd", "hq/gd,hq/gd/sz;hq/gd/sz;", []string{"hq/gd", "hq/gd/sz", "hq/gd/fs"}},
		{"hq/gd/sz", "hq/gd/sz;hq/gd/sz;", []string{"hq/gd/sz"}},
		{"hq/gx", "hq/gx;hq/gx;hq/gx/nn", []string{"hq/gx", "hq/gx/nn"}},
		{"hq/hn", ";;", []string{"hq/hn"}},
	} {
		got := catalog.Within(rec, c.group)
		var names []string
		for _, r := range got.Releases {
			names = append(names, strings.Join(r.Groups, ","))
		}
		if strings.Join(names, ";") != c.names {
			t.Errorf("%s is told of %q", c.group, names)
		}
		for _, g := range c.knows {
			if a, b := catalog.Project(rec, g), catalog.Project(got, g); !proto.Equal(a, b) {
				t.Errorf("%s shows %v, by what %s is told %v", g, a, c.group, b)
			}
		}
		if a, b := catalog.Content(rec), catalog.Content(got); len(a) != len(b) {
			t.Errorf("%s is told of %d targets of %d", c.group, len(b), len(a))
		}
		if again := catalog.Within(got, c.group); !proto.Equal(again, got) {
			t.Errorf("twice: %v", again)
		}
	}
	if catalog.Within(rec, "") != rec || catalog.Within(rec, "hq") != rec || !proto.Equal(rec, whole) {
		t.Error("a record of which nothing is left out is another, or the record was changed")
	}
}
