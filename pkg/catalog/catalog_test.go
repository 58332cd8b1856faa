package catalog_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/fanout-io/fanout/pkg/catalog"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// one of everything.
func populated(t testing.TB) *catalog.Machine {
	m := catalog.New()
	cmd := foundCommand()
	cmd.Time = timestamppb.New(time.Unix(100, 5))
	for i, ref := range []string{"app:v1", "app:v2", "db/x:v1"} {
		r := splitRef(ref)
		cmd.Changes = append(cmd.Changes, &catalogv1.Change{Kind: &catalogv1.Change_Publish{Publish: &catalogv1.Publish{
			Revision: uint64(i + 1), Repository: r.Repository, Tag: r.Tag, Target: descriptor(ref), Referrers: []*catalogv1.Descriptor{descriptor("sig")},
		}}})
	}
	cmd.Changes = append(cmd.Changes,
		&catalogv1.Change{Kind: &catalogv1.Change_Unpublish{Unpublish: &catalogv1.Unpublish{Revision: 4, Expect: 1, Repository: "app", Tag: "v1"}}},
		&catalogv1.Change{Kind: &catalogv1.Change_SetMember{SetMember: &catalogv1.SetMember{Member: &catalogv1.Member{Site: "b", Incarnation: "1"}}}},
		&catalogv1.Change{Kind: &catalogv1.Change_SetMember{SetMember: &catalogv1.SetMember{Member: &catalogv1.Member{Site: "a", RegistryType: "oci", Shared: "nas"}}}},
		&catalogv1.Change{Kind: &catalogv1.Change_SetMember{SetMember: &catalogv1.SetMember{Member: &catalogv1.Member{Site: "c", Incarnation: "2", Removed: true}}}},
		&catalogv1.Change{Kind: &catalogv1.Change_SetSettings{SetSettings: &catalogv1.SetSettings{Settings: &catalogv1.GroupSettings{
			Labels: map[string]string{"tier": "hq"}, Publish: &catalogv1.PublishSettings{Repositories: []string{"**"}, Deletes: "propagate"},
		}}}},
		&catalogv1.Change{Kind: &catalogv1.Change_SetGroup{SetGroup: &catalogv1.SetGroup{Group: &catalogv1.Group{
			Path: "hq/gd", Demand: scopeOf("app"), Sites: []*catalogv1.GroupSite{{Site: "z"}, {Site: "y"}},
		}}}},
	)
	for i, r := range m.Apply(cmd) {
		if r.Err != nil {
			t.Fatalf("change %d: %v", i, r.Err)
		}
	}
	return m
}

// promoting is populated, and has a rollout under way, one that has ended, policies and a freeze.
func promoting(t testing.TB) *catalog.Machine {
	m := populated(t)
	plan := &catalogv1.Plan{Waves: []*catalogv1.Wave{
		{Name: "one", Groups: []string{"hq/gd"}, MaxConcurrent: 1, OnFailure: "pause", OnOffline: "skip", Deadline: durationpb.New(time.Hour), Soak: durationpb.New(time.Hour)},
		{Name: "two", Groups: []string{"hq/hn", "hq/sc"}, MaxConcurrent: 1, OnFailure: "rollback", OnOffline: "wait", Before: []*catalogv1.Gate{
			{Kind: &catalogv1.Gate_Approval{Approval: &catalogv1.Approval{}}}}},
	}}
	start := func(id, tag string) *catalogv1.Change {
		return &catalogv1.Change{Kind: &catalogv1.Change_StartRollout{StartRollout: &catalogv1.StartRollout{Rollout: &catalogv1.Rollout{
			Id: id, Plan: plan, Items: []*catalogv1.RolloutItem{{Repository: "app", Tag: tag, Target: descriptor("N"), Referrers: []*catalogv1.Descriptor{descriptor("sig")}}},
		}}}}
	}
	observe := func(seen uint64, state string) *catalogv1.Change {
		return &catalogv1.Change{Kind: &catalogv1.Change_ObserveRollout{ObserveRollout: &catalogv1.ObserveRollout{
			Id: "r1", Seen: seen, Groups: []*catalogv1.ObservedGroup{{Group: "hq/gd", State: state, Reason: "x"}}, Elapsed: durationpb.New(time.Minute)}}}
	}
	for i, r := range m.Apply(&catalogv1.Command{Actor: "ann", Time: timestamppb.New(time.Unix(200, 0)), Changes: []*catalogv1.Change{
		{Kind: &catalogv1.Change_SetPolicies{SetPolicies: &catalogv1.SetPolicies{Policies: []*catalogv1.Policy{
			{Name: "p", Repositories: []string{"rel/**"}, Delivery: "staged", MaxFreeze: durationpb.New(time.Hour)}}}}},
		{Kind: &catalogv1.Change_Publish{Publish: &catalogv1.Publish{Revision: 5, Repository: "rel/x", Tag: "v1", Target: descriptor("R"), Group: "hq"}}},
		start("r1", "v2"), observe(1, "staged"), observe(2, "delivered"), observe(3, "pending"), start("r0", "v3"),
		{Kind: &catalogv1.Change_SteerRollout{SteerRollout: &catalogv1.SteerRollout{Id: "r0", Verb: "abort", Reason: "x"}}},
		{Kind: &catalogv1.Change_SetFreeze{SetFreeze: &catalogv1.SetFreeze{Freeze: &catalogv1.Freeze{Group: "hq", Until: timestamppb.New(time.Unix(300, 0)), By: "ann"}}}},
	}}) {
		if r.Err != nil {
			t.Fatalf("change %d: %v", i, r.Err)
		}
	}
	return m
}

func TestSnapshot_RoundTrip(t *testing.T) {
	want := promoting(t).Snapshot()
	data := snapshotBytes(t, want)
	m, err := catalog.Restore(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	got := m.Snapshot()
	if got.Founded() != want.Founded() || !got.Clock().Equal(want.Clock()) || got.Len() != want.Len() {
		t.Errorf("got %v %v %d, want %v %v %d", got.Founded(), got.Clock(), got.Len(), want.Founded(), want.Clock(), want.Len())
	}
	for what, pair := range map[string][2]any{
		"position": {want.Position(), got.Position()},
		"records":  {slices.Collect(want.Records()), slices.Collect(got.Records())},
		"members":  {want.Members(), got.Members()},
		"removed":  {want.Member("c"), got.Member("c")},
		"groups":   {slices.Collect(want.Groups()), slices.Collect(got.Groups())},
		"settings": {want.Settings(), got.Settings()},
		"rollouts": {want.Rollouts(), got.Rollouts()},
		"policies": {want.Policies(), got.Policies()},
		"freeze":   {want.Freeze(), got.Freeze()},
	} {
		if diff := cmp.Diff(pair[0], pair[1], protocmp.Transform()); diff != "" {
			t.Errorf("%s: -want +got:\n%s", what, diff)
		}
	}
	if g, ok := got.Group("hq/gd"); !ok || g.Sites[0].Site != "y" {
		t.Errorf("group: %v", g)
	}
	if _, ok := got.Group("hq/hn"); ok {
		t.Error("a group from nowhere")
	}
	var tags []string
	for rec := range got.Repository("app") {
		tags = append(tags, rec.Tag)
	}
	if diff := cmp.Diff([]string{"v1", "v2", "v3"}, tags); diff != "" {
		t.Error(diff)
	}
}

func TestRestore_CutOrAltered(t *testing.T) {
	data := snapshotBytes(t, promoting(t).Snapshot())
	for n := range data {
		if _, err := catalog.Restore(bytes.NewReader(data[:n])); !errors.Is(err, catalog.ErrCorrupt) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d of %d: %v", n, len(data), err)
		}
		for _, mask := range []byte{1, 0x80, 0xff} {
			altered := bytes.Clone(data)
			altered[n] ^= mask
			if _, err := catalog.Restore(bytes.NewReader(altered)); !errors.Is(err, catalog.ErrCorrupt) {
				t.Fatalf("altered at %d of %d: %v", n, len(data), err)
			}
		}
	}
	if _, err := catalog.Restore(bytes.NewReader(append(bytes.Clone(data), 0))); !errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("more after the end: %v", err)
	}
	huge := protowire.AppendVarint(nil, catalog.MaxItem+1)
	if _, err := catalog.Restore(bytes.NewReader(huge)); !errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("a huge item: %v", err)
	}
	if _, err := catalog.Restore(&failing{data: data[:20]}); !errors.Is(err, errDisk) || errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("a failing disk is not a corrupt snapshot: %v", err)
	}
	if _, err := populated(t).Snapshot().WriteTo(&failing{}); !errors.Is(err, errDisk) {
		t.Errorf("WriteTo: %v", err)
	}
}

var errDisk = errors.New("disk on fire")

type failing struct{ data []byte }

func (f *failing) Read(p []byte) (int, error) {
	if len(f.data) == 0 {
		return 0, errDisk
	}
	n := copy(p, f.data)
	f.data = f.data[n:]
	return n, nil
}

func (f *failing) Write([]byte) (int, error) { return 0, errDisk }

func TestApply_UnknownKindStopsAll(t *testing.T) {
	cmd := foundCommand()
	cmd.Changes = append(cmd.Changes, &catalogv1.Change{})
	data, err := proto.Marshal(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := catalog.DecodeCommand(data); !errors.Is(err, catalog.ErrUnknown) {
		t.Errorf("DecodeCommand: %v", err)
	}
	if _, err := catalog.DecodeCommand([]byte{0xff}); !errors.Is(err, catalog.ErrUnknown) {
		t.Errorf("DecodeCommand of rubbish: %v", err)
	}
	m := catalog.New()
	before := snapshotBytes(t, m.Snapshot())
	for i, r := range m.Apply(cmd) {
		if !errors.Is(r.Err, catalog.ErrUnknown) {
			t.Errorf("change %d: %v", i, r.Err)
		}
	}
	if !bytes.Equal(before, snapshotBytes(t, m.Snapshot())) {
		t.Error("something was applied")
	}
}

func TestClock_NeverGoesBack(t *testing.T) {
	m := catalog.New()
	for _, at := range []*timestamppb.Timestamp{{Seconds: 50}, {Seconds: 40}, nil, {Seconds: -1 << 60}, {Seconds: 45, Nanos: -3}} {
		m.Apply(&catalogv1.Command{Time: at})
		if got := m.Snapshot().Clock().Unix(); got != 50 {
			t.Errorf("after %v: %d", at, got)
		}
	}
}

func TestHistory_TenWithoutRepeats(t *testing.T) {
	m := catalog.New()
	m.Apply(foundCommand())
	var res []catalog.Result
	for i := range 30 {
		word := fmt.Sprint(i % 15)
		res = m.Apply(&catalogv1.Command{Changes: []*catalogv1.Change{{Kind: &catalogv1.Change_Publish{Publish: &catalogv1.Publish{
			Revision: uint64(i + 1), Expect: uint64(i), Repository: "app", Tag: "v1", Target: descriptor(word),
		}}}}})
		if res[0].Err != nil {
			t.Fatal(res[0].Err)
		}
	}
	var want []string
	for i := 13; i > 3; i-- {
		want = append(want, digest(fmt.Sprint(i)))
	}
	if diff := cmp.Diff(want, res[0].Record.History); diff != "" {
		t.Error(diff)
	}
}

func TestMembers_ThoseRemovedAreRememberedAndNoMembers(t *testing.T) {
	m := populated(t)
	sites := func() (out []string) {
		for _, member := range m.Snapshot().Members() {
			out = append(out, member.Site)
		}
		return out
	}
	if diff := cmp.Diff([]string{"a", "b"}, sites()); diff != "" {
		t.Error(diff)
	}
	if s := m.Snapshot(); !s.Member("c").GetRemoved() || s.Member("c").GetIncarnation() != "2" || s.Member("a").GetRemoved() || s.Member("d") != nil {
		t.Errorf("remembered: %v %v %v", s.Member("c"), s.Member("a"), s.Member("d"))
	}
	for _, r := range m.Apply(&catalogv1.Command{Changes: []*catalogv1.Change{
		{Kind: &catalogv1.Change_SetMember{SetMember: &catalogv1.SetMember{Member: &catalogv1.Member{Site: "c", RaftAddress: "x:1"}}}},
	}}) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	if diff := cmp.Diff([]string{"a", "b", "c"}, sites()); diff != "" {
		t.Error(diff)
	}
}

func TestMembersAndSettings_Refused(t *testing.T) {
	long := strings.Repeat("x", 600)
	for name, c := range map[string]*catalogv1.Change{
		"no member":         {Kind: &catalogv1.Change_SetMember{SetMember: &catalogv1.SetMember{}}},
		"site with a slash": {Kind: &catalogv1.Change_SetMember{SetMember: &catalogv1.SetMember{Member: &catalogv1.Member{Site: "a/b"}}}},
		"long address":      {Kind: &catalogv1.Change_SetMember{SetMember: &catalogv1.SetMember{Member: &catalogv1.Member{Site: "a", RaftAddress: long}}}},
		"no settings":       {Kind: &catalogv1.Change_SetSettings{SetSettings: &catalogv1.SetSettings{}}},
		"bad drift": {Kind: &catalogv1.Change_SetSettings{SetSettings: &catalogv1.SetSettings{Settings: &catalogv1.GroupSettings{
			Drift: &catalogv1.DriftSettings{Changed: "shrug"}}}}},
		"bad subscription": {Kind: &catalogv1.Change_SetSettings{SetSettings: &catalogv1.SetSettings{Settings: &catalogv1.GroupSettings{
			Subscribe: &catalogv1.Subscription{Repositories: []string{"a["}}}}}},
		"bad label": {Kind: &catalogv1.Change_SetSettings{SetSettings: &catalogv1.SetSettings{Settings: &catalogv1.GroupSettings{
			Labels: map[string]string{"a": "b\n"}}}}},
		"no group":   {Kind: &catalogv1.Change_SetGroup{SetGroup: &catalogv1.SetGroup{}}},
		"bad demand": {Kind: &catalogv1.Change_SetGroup{SetGroup: &catalogv1.SetGroup{Group: &catalogv1.Group{Path: "hq/a", Demand: scopeOf("")}}}},
		"no epoch":   {Kind: &catalogv1.Change_Found{Found: &catalogv1.Found{}}},
		"no import":  {Kind: &catalogv1.Change_Import{}},
	} {
		m := catalog.New()
		before := snapshotBytes(t, m.Snapshot())
		res := m.Apply(&catalogv1.Command{Changes: []*catalogv1.Change{c}})
		if !errors.Is(res[0].Err, catalog.ErrInvalid) {
			t.Errorf("%s: %v", name, res[0].Err)
		}
		if !bytes.Equal(before, snapshotBytes(t, m.Snapshot())) {
			t.Errorf("%s: the state changed", name)
		}
	}
}

var (
	specRepository = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	specTag        = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

// TestRef_GrammarOfSpecification compares the checks with the expressions of the OCI distribution specification.
func TestRef_GrammarOfSpecification(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ref := catalog.Ref{
			Repository: rapid.StringOfN(rapid.SampledFrom([]rune("ab0._-/A:")), 0, 12, -1).Draw(t, "repository"),
			Tag:        rapid.StringOfN(rapid.SampledFrom([]rune("aZ0._-/é")), 0, 130, -1).Draw(t, "tag"),
		}
		want := specRepository.MatchString(ref.Repository) && specTag.MatchString(ref.Tag)
		err := ref.Validate()
		if (err == nil) != want {
			t.Fatalf("%q: %v", ref, err)
		}
		if err == nil {
			if got, err := catalog.ParseRef(ref.String()); err != nil || got != ref {
				t.Fatalf("ParseRef(%q) = %v, %v", ref, got, err)
			}
		}
	})
	if catalog.ValidDigest("sha256:"+strings.Repeat("A", 64)) || catalog.ValidDigest("sha512:"+strings.Repeat("a", 64)) || !catalog.ValidDigest(digest("x")) {
		t.Error("ValidDigest")
	}
}

func TestContinues(t *testing.T) {
	pos := func(epoch string, rev uint64, sum string) *catalogv1.Position {
		return &catalogv1.Position{Epoch: epoch, Revision: rev, Sum: []byte(sum)}
	}
	line := []*catalogv1.Ancestor{{Position: pos("e1", 10, "ten")}, {Position: pos("e2", 20, "twenty")}}
	current := pos("e3", 30, "thirty")
	for _, tt := range []struct {
		child *catalogv1.Position
		want  bool
	}{
		{nil, true}, {pos("", 0, ""), true},
		{pos("e3", 5, ""), true}, {pos("e3", 30, "thirty"), true}, {pos("e3", 40, ""), true},
		{pos("e1", 9, "nine"), true}, {pos("e1", 10, "ten"), true}, {pos("e1", 10, "other"), false}, {pos("e1", 11, ""), false},
		{pos("e2", 20, "twenty"), true}, {pos("e2", 21, ""), false}, {pos("e4", 1, ""), false},
	} {
		if got := catalog.Continues(line, current, tt.child); got != tt.want {
			t.Errorf("%v: %v", tt.child, got)
		}
	}
}

// TestRelation_RestoredHeadquarters: a headquarters that was restored from a backup and written since is told by the sum.
func TestRelation_RestoredHeadquarters(t *testing.T) {
	s := &stage{machines: map[string]*catalog.Machine{}, cursor: map[string]uint64{}, words: map[string]string{}}
	for _, line := range []string{"hq found e1", "hq publish app:v1 A", "bk found e1", "bk publish app:v1 A", "hq publish app:v1 B", "gd pull hq"} {
		s.run(t, line)
	}
	relation := func() catalog.Relation {
		return s.machine("bk").Snapshot().View(scopeOf("**")).Relation(s.machine("gd").Snapshot().Position())
	}
	if got := relation(); got != catalog.RelationAhead {
		t.Errorf("restored: %v", got)
	}
	s.run(t, "bk publish app:v1 C")
	if got := relation(); got != catalog.RelationForeign {
		t.Errorf("restored and written: %v", got)
	}
	s.run(t, "bk publish app:v2 C")
	s.run(t, "bk restart")
	if got := relation(); got != catalog.RelationForeign {
		t.Errorf("restored and written further: %v", got)
	}
}

func TestApply_ResultsSayWhy(t *testing.T) {
	m := populated(t)
	res := m.Apply(&catalogv1.Command{Changes: []*catalogv1.Change{
		{Kind: &catalogv1.Change_Publish{Publish: &catalogv1.Publish{Revision: 5, Expect: 1, Repository: "app", Tag: "v2", Target: descriptor("n")}}},
	}})[0]
	var refusal *catalog.Refusal
	if !errors.As(res.Err, &refusal) || refusal.Kind != catalog.ErrConflict || res.Revision != 4 || res.Record.GetRevision() != 2 {
		t.Errorf("%+v", res)
	}
}

func FuzzDecodeCommand(f *testing.F) {
	seed, err := proto.Marshal(foundCommand())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	im, err := proto.Marshal(&catalogv1.Command{Changes: []*catalogv1.Change{{Kind: &catalogv1.Change_Import{Import: &catalogv1.Import{
		Position: &catalogv1.Position{Epoch: "e1", Revision: 3, Sum: wordSum("x"), Scope: "s"}, Resync: "r", End: true,
		Records: []*catalogv1.Record{{Repository: "a", Tag: "b", Revision: 1, Target: descriptor("x"), Sum: wordSum("y")}},
	}}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(im)
	rollout, err := proto.Marshal(&catalogv1.Command{Changes: []*catalogv1.Change{
		{Kind: &catalogv1.Change_StartRollout{StartRollout: &catalogv1.StartRollout{Supersede: true, Rollout: &catalogv1.Rollout{
			Id: "r2", Plan: promoting(f).Snapshot().Rollout("r1").Plan, Items: promoting(f).Snapshot().Rollout("r1").Items}}}},
		{Kind: &catalogv1.Change_ObserveRollout{ObserveRollout: &catalogv1.ObserveRollout{Id: "r1", Seen: 4, WindowOpen: true, Elapsed: durationpb.New(time.Hour)}}},
		{Kind: &catalogv1.Change_SteerRollout{SteerRollout: &catalogv1.SteerRollout{Id: "r1", Verb: "rollback"}}},
		{Kind: &catalogv1.Change_SetPolicies{SetPolicies: &catalogv1.SetPolicies{Policies: promoting(f).Snapshot().Policies()}}},
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(rollout)
	f.Fuzz(func(t *testing.T, data []byte) {
		cmd := &catalogv1.Command{}
		if proto.Unmarshal(data, cmd) != nil {
			return
		}
		for _, m := range []*catalog.Machine{catalog.New(), populated(t), promoting(t)} {
			m.Apply(cmd)
			m.Apply(cmd)
			again, err := catalog.Restore(bytes.NewReader(snapshotBytes(t, m.Snapshot())))
			if err != nil {
				t.Fatalf("what was written cannot be read: %v", err)
			}
			if !bytes.Equal(snapshotBytes(t, again.Snapshot()), snapshotBytes(t, m.Snapshot())) {
				t.Fatal("a restored machine differs")
			}
		}
	})
}

func FuzzRestore(f *testing.F) {
	f.Add(snapshotBytes(f, populated(f).Snapshot()))
	f.Add(snapshotBytes(f, promoting(f).Snapshot()))
	f.Add(snapshotBytes(f, catalog.New().Snapshot()))
	var buf bytes.Buffer
	if _, err := protodelim.MarshalTo(&buf, &catalogv1.SnapshotItem{Kind: &catalogv1.SnapshotItem_Trailer{Trailer: &catalogv1.SnapshotTrailer{}}}); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := catalog.Restore(bytes.NewReader(data))
		if err != nil {
			return
		}
		m.Apply(foundCommand())
		if _, err := catalog.Restore(bytes.NewReader(snapshotBytes(t, m.Snapshot()))); err != nil {
			t.Fatal(err)
		}
	})
}

func large(b *testing.B, n int) *catalog.Machine {
	m := catalog.New()
	m.Apply(foundCommand())
	cmd := &catalogv1.Command{}
	for i := range n {
		cmd.Changes = append(cmd.Changes, &catalogv1.Change{Kind: &catalogv1.Change_Publish{Publish: &catalogv1.Publish{
			Revision: uint64(i + 1), Repository: fmt.Sprintf("team%d/app%d", i%10, i%1000), Tag: fmt.Sprintf("v%d", i), Target: descriptor("x"),
		}}})
	}
	m.Apply(cmd)
	if m.Snapshot().Len() != n {
		b.Fatal("not all were published")
	}
	return m
}

func BenchmarkSnapshot100k(b *testing.B) {
	m := large(b, 100_000)
	s := m.Snapshot()
	ref := catalog.Ref{Repository: "team7/app777", Tag: "v50777"}
	b.Run("Get", func(b *testing.B) {
		for b.Loop() {
			if _, ok := s.Get(ref); !ok {
				b.Fatal("not found")
			}
		}
	})
	b.Run("Since", func(b *testing.B) {
		for b.Loop() {
			for range s.Since(99_990) {
			}
		}
	})
	b.Run("ViewSinceAll", func(b *testing.B) {
		for b.Loop() {
			for range s.View(scopeOf("team1/**", "team2/**")).Since(0) {
			}
		}
	})
	b.Run("Digest", func(b *testing.B) {
		for b.Loop() {
			s.View(scopeOf("**")).Digest()
		}
	})
	b.Run("WriteTo", func(b *testing.B) {
		for b.Loop() {
			_, _ = s.WriteTo(io.Discard)
		}
	})
	rev := s.Position().Revision
	b.Run("PublishAndSnapshot", func(b *testing.B) {
		for b.Loop() {
			rev++
			m.Apply(&catalogv1.Command{Changes: []*catalogv1.Change{{Kind: &catalogv1.Change_Publish{Publish: &catalogv1.Publish{
				Revision: rev, Repository: "bench", Tag: fmt.Sprint("v", rev), Target: descriptor("x"),
			}}}}})
			m.Snapshot()
		}
	})
}

// TestView_HidesWhatIsBeyondThePosition: after a resync from a parent that was behind, a record may be newer than the position. It comes into view
// when the position reaches it, so that what a child receives is never beyond the position that comes with it.
func TestView_HidesWhatIsBeyondThePosition(t *testing.T) {
	s := &stage{machines: map[string]*catalog.Machine{}, cursor: map[string]uint64{}, words: map[string]string{}}
	s.run(t, "gd import e1/9 app:v1=A@3 app:v2=B@9")
	s.run(t, "gd import e1/5 resync=r1 app:v1=A@3 app:v2=B@4")
	s.run(t, "gd import e1/5 resync=r1 end")
	for _, step := range []struct {
		line string
		want int
	}{{"gd import e1/8", 1}, {"gd import e1/9", 2}} {
		s.run(t, step.line)
		snap := s.machine("gd").Snapshot()
		view := snap.View(scopeOf("**"))
		matched := 0
		for rec := range snap.Records() {
			if view.Match(rec) {
				matched++
			}
		}
		records, _ := view.Batch(0, 10)
		if snap.Len() != 2 || matched != step.want || len(records) != step.want {
			t.Errorf("%s: holds %d, matches %d, sends %d, want %d", step.line, snap.Len(), matched, len(records), step.want)
		}
	}
}

// TestPublish_KeepsWhatIsKnownOfTheTarget: a signature that comes later does not change when the target was pushed, and two sites that describe
// one digest differently do not take turns.
func TestPublish_KeepsWhatIsKnownOfTheTarget(t *testing.T) {
	m := catalog.New()
	m.Apply(foundCommand())
	publish := func(revision uint64, mediaType string, pushed int64, referrers ...*catalogv1.Descriptor) catalog.Result {
		target := descriptor("A")
		target.MediaType = mediaType
		return m.Apply(&catalogv1.Command{Changes: []*catalogv1.Change{{Kind: &catalogv1.Change_Publish{Publish: &catalogv1.Publish{
			Revision: revision, Expect: revision - 1, Repository: "app", Tag: "v1", Target: target, Referrers: referrers,
			PushedAt: timestamppb.New(time.Unix(pushed, 0)),
		}}}}})[0]
	}
	publish(1, "one", 100)
	if r := publish(2, "two", 200); !errors.Is(r.Err, catalog.ErrUnchanged) {
		t.Errorf("%v", r.Err)
	}
	r := publish(2, "two", 200, descriptor("S"))
	if r.Err != nil || r.Record.PushedAt.Seconds != 100 || r.Record.Target.MediaType != "one" {
		t.Errorf("%+v", r)
	}
}
