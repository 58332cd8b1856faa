package catalog_test

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/fanout-io/fanout/pkg/catalog"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

var (
	drawRepo   = rapid.SampledFrom([]string{"app/a", "app/b", "db/c", "Bad"})
	drawTag    = rapid.SampledFrom([]string{"v1", "v2", "v3"})
	drawTarget = rapid.SampledFrom([]string{"A", "B", "C", "D"})
	drawSite   = rapid.SampledFrom([]string{"hq-a", "hq-b"})
	drawEpoch  = rapid.SampledFrom([]string{"e1", "e1", "e1", "e2"})
)

func drawDescriptors(t *rapid.T) []*catalogv1.Descriptor {
	var out []*catalogv1.Descriptor
	for _, w := range rapid.SliceOfN(rapid.SampledFrom([]string{"S1", "S2", "S3"}), 0, 3).Draw(t, "referrers") {
		out = append(out, descriptor(w))
	}
	return out
}

// drawRevision draws near what is right.
func drawRevision(t *rapid.T, right uint64) uint64 {
	if rapid.IntRange(0, 5).Draw(t, "wrong revision") == 0 {
		return rapid.Uint64Range(0, 10).Draw(t, "revision")
	}
	return right
}

func drawImport(t *rapid.T, snap *catalog.Snapshot) *catalogv1.Import {
	im := &catalogv1.Import{Position: &catalogv1.Position{
		Epoch:    drawEpoch.Draw(t, "epoch"),
		Revision: snap.Position().Revision + rapid.Uint64Range(0, 4).Draw(t, "step"),
		Scope:    rapid.SampledFrom([]string{"x", "x", "x", "y"}).Draw(t, "scope"),
	}}
	im.Position.Sum = wordSum(fmt.Sprint(im.Position.Epoch, im.Position.Revision))
	if rapid.IntRange(0, 2).Draw(t, "resync?") == 0 {
		im.Resync = rapid.SampledFrom([]string{"r1", "r2"}).Draw(t, "resync")
		im.End = rapid.Bool().Draw(t, "end")
	}
	if rapid.IntRange(0, 4).Draw(t, "ancestors?") == 0 {
		im.Ancestors = []*catalogv1.Ancestor{{Position: &catalogv1.Position{
			Epoch: "e1", Revision: rapid.Uint64Range(0, 9).Draw(t, "left"), Sum: wordSum("left"),
		}}}
	}
	for rev := uint64(1); rev <= im.Position.Revision; rev++ {
		if rapid.IntRange(0, 2).Draw(t, "skip") > 0 {
			continue
		}
		im.Records = append(im.Records, &catalogv1.Record{
			Repository: drawRepo.Draw(t, "repository"), Tag: drawTag.Draw(t, "tag"), Revision: rev,
			Target: descriptor(drawTarget.Draw(t, "target")), Sum: wordSum(fmt.Sprint(rev)), Deleted: rapid.Bool().Draw(t, "deleted"),
		})
	}
	return im
}

// drawChange draws any change, mostly one that is accepted.
func drawChange(t *rapid.T, snap *catalog.Snapshot, next uint64) *catalogv1.Change {
	ref := catalog.Ref{Repository: drawRepo.Draw(t, "repository"), Tag: drawTag.Draw(t, "tag")}
	held, _ := snap.Get(ref)
	switch rapid.IntRange(0, 15).Draw(t, "kind") {
	case 0:
		return &catalogv1.Change{Kind: &catalogv1.Change_Found{Found: &catalogv1.Found{Epoch: drawEpoch.Draw(t, "epoch")}}}
	case 1, 2, 3, 4:
		return &catalogv1.Change{Kind: &catalogv1.Change_Publish{Publish: &catalogv1.Publish{
			Revision: drawRevision(t, next), Expect: drawRevision(t, held.GetRevision()), Repository: ref.Repository, Tag: ref.Tag,
			Target: descriptor(drawTarget.Draw(t, "target")), Referrers: drawDescriptors(t), Origin: "hq-a", Settles: drawSettles(t),
		}}}
	case 5:
		return &catalogv1.Change{Kind: &catalogv1.Change_Unpublish{Unpublish: &catalogv1.Unpublish{
			Revision: drawRevision(t, next), Expect: drawRevision(t, held.GetRevision()), Repository: ref.Repository, Tag: ref.Tag,
			Observed: rapid.IntRange(0, 3).Draw(t, "observed") == 0, Origin: drawSite.Draw(t, "origin"),
		}}}
	case 6, 7:
		return &catalogv1.Change{Kind: &catalogv1.Change_Import{Import: drawImport(t, snap)}}
	case 8:
		return &catalogv1.Change{Kind: &catalogv1.Change_SetMember{SetMember: &catalogv1.SetMember{
			Member: &catalogv1.Member{Site: rapid.SampledFrom([]string{"a", "b", "c/d"}).Draw(t, "site"), FabricAddress: ref.String(),
				Removed: rapid.Bool().Draw(t, "removed")}}}}
	case 9:
		return &catalogv1.Change{Kind: &catalogv1.Change_RemoveMember{RemoveMember: &catalogv1.RemoveMember{
			Site: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "site")}}}
	case 10:
		return &catalogv1.Change{Kind: &catalogv1.Change_SetSettings{SetSettings: &catalogv1.SetSettings{
			Settings: &catalogv1.GroupSettings{Labels: map[string]string{"x": ref.Tag, "y": ref.Repository, "z": ""}}}}}
	}
	if c := drawHealing(t, snap, ref); c != nil {
		return c
	}
	path := rapid.SampledFrom([]string{"hq/a", "hq/b", "hq//c"}).Draw(t, "group")
	if rapid.Bool().Draw(t, "forget") {
		return &catalogv1.Change{Kind: &catalogv1.Change_ForgetGroup{ForgetGroup: &catalogv1.ForgetGroup{Path: path}}}
	}
	return &catalogv1.Change{Kind: &catalogv1.Change_SetGroup{SetGroup: &catalogv1.SetGroup{Group: &catalogv1.Group{
		Path: path, Labels: map[string]string{"b": "1", "a": "2"}, Demand: scopeOf(ref.Repository),
		Sites: []*catalogv1.GroupSite{{Site: "y"}, {Site: "x"}},
	}}}}
}

// drawSettles draws what a publish settles: mostly nothing.
func drawSettles(t *rapid.T) (digests []string) {
	for _, w := range rapid.SampledFrom([]string{"", "", "", "", "A", "B", "AB"}).Draw(t, "settles") {
		digests = append(digests, digest(string(w)))
	}
	return digests
}

// drawHealing draws a change of those that mend a catalog; nil: another.
func drawHealing(t *rapid.T, snap *catalog.Snapshot, ref catalog.Ref) *catalogv1.Change {
	switch rapid.IntRange(0, 9).Draw(t, "healing") {
	case 7, 8:
		held, _ := snap.Get(ref)
		return &catalogv1.Change{Kind: &catalogv1.Change_NoteDeletion{NoteDeletion: &catalogv1.NoteDeletion{
			Repository: ref.Repository, Tag: ref.Tag, Site: drawSite.Draw(t, "site"), Expect: drawRevision(t, held.GetRevision())}}}
	case 9:
		return &catalogv1.Change{Kind: &catalogv1.Change_SettleDeletion{SettleDeletion: &catalogv1.SettleDeletion{
			Repository: ref.Repository, Tag: ref.Tag, Site: rapid.SampledFrom([]string{"", "hq-a"}).Draw(t, "site"), Restore: rapid.Bool().Draw(t, "restore")}}}
	case 0:
		return &catalogv1.Change{Kind: &catalogv1.Change_Prune{Prune: &catalogv1.Prune{
			Through: drawRevision(t, snap.Position().Revision-min(snap.Position().Revision, 1))}}}
	case 1:
		return &catalogv1.Change{Kind: &catalogv1.Change_NoteConflict{NoteConflict: &catalogv1.NoteConflict{Conflict: &catalogv1.Conflict{
			Repository: ref.Repository, Tag: ref.Tag, Target: descriptor(drawTarget.Draw(t, "loser")), Winner: digest(drawTarget.Draw(t, "winner")),
			Site: "hq-a", PushedAt: timestamppb.New(time.Unix(5, 0)), PushedBy: "alice", WinnerSite: "hq-b", WinnerPublishedBy: "webhook (bob)",
			WinnerPushedAt: timestamppb.New(time.Unix(int64(rapid.IntRange(0, 2).Draw(t, "pushed")), 0)),
			Revision:       rapid.Uint64Range(0, 5).Draw(t, "seen"),
		}, Current: rapid.Bool().Draw(t, "current")}}}
	case 2:
		return &catalogv1.Change{Kind: &catalogv1.Change_SettleConflict{SettleConflict: &catalogv1.SettleConflict{
			Repository: ref.Repository, Tag: ref.Tag, Digest: rapid.SampledFrom([]string{"", digest("A")}).Draw(t, "settled")}}}
	case 3:
		return &catalogv1.Change{Kind: &catalogv1.Change_AcceptEpoch{AcceptEpoch: &catalogv1.AcceptEpoch{Epoch: drawEpoch.Draw(t, "epoch")}}}
	case 4, 5:
		r := &catalogv1.RestoreCatalog{Id: rapid.SampledFrom([]string{"r1", "r2"}).Draw(t, "run"), Begin: rapid.Bool().Draw(t, "begin")}
		for rev := uint64(1); rev <= 4; rev++ {
			if rapid.Bool().Draw(t, "record") {
				r.Records = append(r.Records, &catalogv1.Record{
					Repository: drawRepo.Draw(t, "repository"), Tag: drawTag.Draw(t, "tag"), Revision: rev,
					Target: descriptor(drawTarget.Draw(t, "target")), Sum: wordSum(fmt.Sprint(rev)), Deleted: rapid.Bool().Draw(t, "deleted"),
				})
			}
		}
		if r.End = rapid.Bool().Draw(t, "end"); r.End {
			r.Epoch = drawEpoch.Draw(t, "epoch")
			r.Ancestors = []*catalogv1.Ancestor{{Position: &catalogv1.Position{Epoch: "e0", Revision: 5, Sum: wordSum("saved")}}}
		}
		return &catalogv1.Change{Kind: &catalogv1.Change_RestoreCatalog{RestoreCatalog: r}}
	}
	return nil
}

func scopeOf(patterns ...string) *catalogv1.Scope {
	return &catalogv1.Scope{AnyOf: []*catalogv1.Subscription{{Repositories: patterns}}}
}

func drawCommand(t *rapid.T, snap *catalog.Snapshot) *catalogv1.Command {
	cmd := &catalogv1.Command{Actor: "user/ann", Time: timestamppb.New(time.Unix(rapid.Int64Range(1, 1000).Draw(t, "time"), 0))}
	next := snap.Position().Revision + 1
	for range rapid.IntRange(1, 3).Draw(t, "changes") {
		c := drawChange(t, snap, next)
		if rapid.IntRange(0, 2).Draw(t, "delivery?") == 0 {
			c = drawDelivery(t, snap)
		}
		if c.GetPublish() != nil || c.GetUnpublish() != nil {
			next++
		}
		cmd.Changes = append(cmd.Changes, c)
	}
	return cmd
}

func snapshotBytes(t interface{ Fatal(...any) }, s *catalog.Snapshot) []byte {
	var buf bytes.Buffer
	if _, err := s.WriteTo(&buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func describe(results []catalog.Result) string {
	var b strings.Builder
	for _, r := range results {
		rec, _ := proto.MarshalOptions{Deterministic: true}.Marshal(r.Record)
		fmt.Fprintf(&b, "%d %v %v %x\n", r.Revision, r.Err, r.Refs, rec)
	}
	return b.String()
}

// TestReplicas_EqualWhateverRestarts: replicas that apply the same log are equal byte for byte, whether or not they went through snapshots,
// and old snapshots stay as they were.
func TestReplicas_EqualWhateverRestarts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		replicas := []*catalog.Machine{catalog.New(), catalog.New(), catalog.New()}
		type kept struct {
			snap *catalog.Snapshot
			want []byte
		}
		var old []kept
		for range rapid.IntRange(1, 40).Draw(t, "commands") {
			cmd := drawCommand(t, replicas[0].Snapshot())
			before := proto.CloneOf(cmd)
			want := describe(replicas[0].Apply(cmd))
			if !proto.Equal(before, cmd) {
				t.Fatal("Apply changed the command")
			}
			for i, r := range replicas[1:] {
				if got := describe(r.Apply(proto.CloneOf(cmd))); got != want {
					t.Fatalf("replica %d: results differ:\n%s", i+1, cmp.Diff(want, got))
				}
			}
			// A command that the caller changes afterwards does not reach into the state.
			for _, c := range cmd.Changes {
				if p := c.GetPublish(); p != nil {
					p.Target.Digest = "changed"
				}
				for _, it := range c.GetStartRollout().GetRollout().GetItems() {
					it.Target.Digest = "changed"
				}
				for _, w := range c.GetStartRollout().GetRollout().GetPlan().GetWaves() {
					w.Groups[0] = "changed"
				}
				for _, p := range c.GetSetPolicies().GetPolicies() {
					p.Repositories[0] = "changed"
				}
				for _, f := range append(c.GetSetFreezesAbove().GetFreezes(), c.GetSetFreeze().GetFreeze()) {
					if f != nil {
						f.Group = "changed"
					}
				}
				for _, rec := range append(c.GetImport().GetRecords(), c.GetRestoreCatalog().GetRecords()...) {
					rec.Target.Digest = "changed"
				}
				if k := c.GetNoteConflict().GetConflict(); k != nil {
					k.Target.Digest, k.WinnerPushedAt.Seconds, k.PushedBy = "changed", 99, "changed"
				}
			}
			data := snapshotBytes(t, replicas[0].Snapshot())
			old = append(old, kept{replicas[0].Snapshot(), data})
			for i := range replicas {
				if got := snapshotBytes(t, replicas[i].Snapshot()); !bytes.Equal(got, data) {
					t.Fatalf("replica %d: snapshots differ", i)
				}
				if i > 0 && rapid.IntRange(0, 4).Draw(t, "restart") == 0 {
					m, err := catalog.Restore(bytes.NewReader(data))
					if err != nil {
						t.Fatal(err)
					}
					replicas[i] = m
				}
			}
			checkInvariants(t, replicas[0].Snapshot())
		}
		for _, k := range old {
			if !bytes.Equal(snapshotBytes(t, k.snap), k.want) {
				t.Fatal("an old snapshot changed")
			}
		}
	})
}

// checkInvariants checks that the indexes agree, and what must hold of every state.
func checkInvariants(t *rapid.T, s *catalog.Snapshot) {
	byRef := slices.Collect(s.Records())
	byRevision := slices.Collect(s.Since(0))
	if len(byRef) != s.Len() || len(byRevision) != s.Len() {
		t.Fatalf("%d records by ref, %d by revision, Len %d", len(byRef), len(byRevision), s.Len())
	}
	if !slices.IsSortedFunc(byRef, func(a, b *catalogv1.Record) int { return catalog.RefOf(a).Compare(catalog.RefOf(b)) }) {
		t.Fatal("not sorted by ref")
	}
	live := 0
	for _, rec := range byRef {
		if !catalog.Tombstone(rec) {
			live++
		}
	}
	if live != s.Live() {
		t.Fatalf("%d live records, Live %d", live, s.Live())
	}
	for d := range s.AllDeletions() {
		if rec, ok := s.Get(catalog.Ref{Repository: d.Repository, Tag: d.Tag}); !s.Founded() || !ok || catalog.Tombstone(rec) {
			t.Fatalf("a deletion of %s:%s is listed, which is not published", d.Repository, d.Tag)
		}
	}
	last := uint64(0)
	for _, rec := range byRevision {
		if rec.Revision < last || s.Founded() && rec.Revision == last {
			t.Fatalf("revision %d after %d", rec.Revision, last)
		}
		last = rec.Revision
		if got, ok := s.Get(catalog.RefOf(rec)); !ok || got != rec {
			t.Fatalf("%s: Get and Since differ", catalog.RefOf(rec))
		}
		if slices.Contains(rec.History, rec.Target.Digest) || len(rec.History) > 10 {
			t.Fatalf("history %v of %s", rec.History, rec.Target.Digest)
		}
		if s.Founded() {
			if sum, ok := s.SumAt(rec.Revision); !ok || !bytes.Equal(sum, rec.Sum) {
				t.Fatalf("SumAt(%d) = %x, %v", rec.Revision, sum, ok)
			}
		}
	}
	if s.Founded() && last > s.Position().Revision {
		t.Fatalf("a record at %d, position %d", last, s.Position().Revision)
	}
}

// twin is headquarters' machine as simple as can be.
type twin struct {
	last    uint64
	sum     []byte
	records map[catalog.Ref]*catalogv1.Record
}

// publish: listed says that a conflict is listed that it settles.
func (w *twin) publish(p *catalogv1.Publish, actor string, at *timestamppb.Timestamp, listed bool) error {
	ref := catalog.Ref{Repository: p.Repository, Tag: p.Tag}
	held := w.records[ref]
	switch {
	case ref.Validate() != nil:
		return catalog.ErrInvalid
	case p.Revision != w.last+1:
		return catalog.ErrStale
	case held.GetRevision() != p.Expect:
		return catalog.ErrConflict
	case len(p.Settles) > 0 && !listed:
		return catalog.ErrUnchanged
	}
	same := held != nil && !held.Deleted && held.Target.Digest == p.Target.Digest
	set := map[string]*catalogv1.Descriptor{}
	for _, d := range p.Referrers {
		set[d.Digest] = d
	}
	if same {
		before := len(held.Referrers)
		for _, d := range held.Referrers {
			set[d.Digest] = d
		}
		if len(set) == before && !listed {
			return catalog.ErrUnchanged
		}
	}
	rec := &catalogv1.Record{
		Repository: p.Repository, Tag: p.Tag, Target: p.Target, Revision: p.Revision, PublishedAt: at, PublishedBy: actor, Origin: p.Origin,
	}
	if same && listed {
		rec.Origin = held.Origin
	}
	for _, d := range set {
		rec.Referrers = append(rec.Referrers, d)
	}
	slices.SortFunc(rec.Referrers, func(a, b *catalogv1.Descriptor) int { return strings.Compare(a.Digest, b.Digest) })
	before := slices.Clone(p.Settles)
	if held != nil {
		before = append(append(before, held.Target.Digest), held.History...)
	}
	for _, d := range before {
		if d != p.Target.Digest && !slices.Contains(rec.History, d) {
			rec.History = append(rec.History, d)
		}
	}
	rec.History = rec.History[:min(10, len(rec.History))]
	w.commit(rec)
	return nil
}

// unpublish: free says that the deletion that it names was noted long enough ago and is not held.
func (w *twin) unpublish(u *catalogv1.Unpublish, actor string, at *timestamppb.Timestamp, free bool) error {
	ref := catalog.Ref{Repository: u.Repository, Tag: u.Tag}
	held := w.records[ref]
	switch {
	case ref.Validate() != nil:
		return catalog.ErrInvalid
	case u.Revision != w.last+1:
		return catalog.ErrStale
	case held.GetRevision() != u.Expect:
		return catalog.ErrConflict
	case held == nil || held.Deleted:
		return catalog.ErrUnchanged
	case u.Observed && !free:
		return catalog.ErrHeld
	}
	rec := proto.CloneOf(held)
	rec.Deleted, rec.Revision, rec.PublishedAt, rec.PublishedBy, rec.Origin = true, u.Revision, at, actor, u.Origin
	w.commit(rec)
	return nil
}

func (w *twin) commit(rec *catalogv1.Record) {
	rec.Sum = catalog.NextSum(w.sum, rec)
	w.last, w.sum = rec.Revision, rec.Sum
	w.records[catalog.Ref{Repository: rec.Repository, Tag: rec.Tag}] = rec
}

// TestHeadquarters_EqualsTwin compares the machine with the twin after every change.
func TestHeadquarters_EqualsTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := catalog.New()
		m.Apply(foundCommand())
		w := &twin{sum: m.Snapshot().Position().Sum, records: map[catalog.Ref]*catalogv1.Record{}}
		clock := int64(0)
		for range rapid.IntRange(1, 60).Draw(t, "changes") {
			snap := m.Snapshot()
			c := drawChange(t, snap, snap.Position().Revision+1)
			if c.GetRestoreCatalog() != nil {
				continue
			}
			at := rapid.Int64Range(1, 1000).Draw(t, "time")
			clock = max(clock, at)
			d := snap.Deletion(catalog.Ref{Repository: c.GetUnpublish().GetRepository(), Tag: c.GetUnpublish().GetTag()}, c.GetUnpublish().GetOrigin())
			free := d != nil && !d.Held && !d.Restore && clock-d.NotedAt.AsTime().Unix() >= int64(catalog.DeletionGrace/time.Second)
			listed := false
			for k := range snap.Conflicts(catalog.Ref{Repository: c.GetPublish().GetRepository(), Tag: c.GetPublish().GetTag()}) {
				p := c.GetPublish()
				listed = listed || len(p.Settles) > 0 && (slices.Contains(p.Settles, k.Target.Digest) || p.Target.Digest == k.Target.Digest)
			}
			results := m.Apply(&catalogv1.Command{Actor: "sweep", Time: timestamppb.New(time.Unix(at, 0)), Changes: []*catalogv1.Change{c}})
			for k := range m.Snapshot().AllConflicts() {
				p := c.GetPublish()
				if results[0].Err == nil && k.Repository == p.GetRepository() && k.Tag == p.GetTag() && slices.Contains(p.GetSettles(), k.Target.Digest) {
					t.Fatalf("%v is settled and listed", k)
				}
			}
			var want error
			switch now := timestamppb.New(time.Unix(clock, 0)); {
			case c.GetPublish() != nil:
				want = w.publish(c.GetPublish(), "sweep", now, listed)
			case c.GetUnpublish() != nil:
				want = w.unpublish(c.GetUnpublish(), "sweep", now, free)
			case c.GetPrune() != nil:
				if results[0].Err == nil {
					maps.DeleteFunc(w.records, func(_ catalog.Ref, rec *catalogv1.Record) bool {
						return rec.Deleted && rec.Revision <= c.GetPrune().Through
					})
				}
				continue
			default:
				continue
			}
			if got := results[0].Err; !errors.Is(got, want) || (got == nil) != (want == nil) {
				t.Fatalf("%v: got %v, want %v", c, got, want)
			}
			if results[0].Revision != w.last {
				t.Fatalf("revision %d, want %d", results[0].Revision, w.last)
			}
			got := map[catalog.Ref]*catalogv1.Record{}
			for rec := range m.Snapshot().Records() {
				got[catalog.RefOf(rec)] = rec
			}
			if diff := cmp.Diff(w.records, got, protocmp.Transform()); diff != "" {
				t.Fatalf("-twin +machine:\n%s", diff)
			}
		}
	})
}

func foundCommand() *catalogv1.Command {
	return &catalogv1.Command{Changes: []*catalogv1.Change{{Kind: &catalogv1.Change_Found{Found: &catalogv1.Found{Epoch: "e1"}}}}}
}

// resyncs makes IDs, which are never used twice.
var resyncs atomic.Uint64

// run is what a parent remembers of a stream while it resyncs a child.
type run struct {
	id     string
	cursor uint64
	view   catalog.View // a resync is read from one snapshot
}

// feed does what a parent's and a child's root do: one batch, by ordinary import or as part of a resync.
func feed(t *rapid.T, child *catalog.Machine, parent *catalog.Snapshot, scope *catalogv1.Scope, r *run, limit int) (done bool) {
	at := child.Snapshot().Position()
	view := parent.View(scope)
	im := &catalogv1.Import{Ancestors: parent.Ancestors(), Demand: scope}
	if r.id != "" {
		im.Resync, im.Pruned = r.id, r.view.Pruned()
		im.Records, im.Position = r.view.Batch(r.cursor, limit)
		r.cursor = im.Position.Revision
		im.End = im.Position.Revision == r.view.Position().Revision
	} else {
		switch view.Relation(at) {
		case catalog.RelationAhead:
			return true
		case catalog.RelationForeign:
			t.Fatal("foreign on one line")
		case catalog.RelationResync:
			*r = run{id: fmt.Sprintf("r%d", resyncs.Add(1)), view: view}
			return false
		}
		im.Records, im.Position = view.Batch(at.Revision, limit)
	}
	res := child.Apply(&catalogv1.Command{Changes: []*catalogv1.Change{{Kind: &catalogv1.Change_Import{Import: im}}}})
	if res[0].Err != nil {
		t.Fatalf("import refused: %v", res[0].Err)
	}
	if im.End {
		*r = run{}
	}
	return r.id == "" && proto.Equal(child.Snapshot().Position(), view.Position())
}

// TestChild_Converges: a child that is fed in batches of any size, whose stream is cut and opened again at any moment, whose scope changes, and which changes
// between two parents of which one lags, never moves a record back and comes to hold exactly its parent's view.
func TestChild_Converges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hq, gd, sz := catalog.New(), catalog.New(), catalog.New()
		hq.Apply(foundCommand())
		demands := []*catalogv1.Scope{scopeOf("**"), scopeOf("app/*"), scopeOf("db/*"), scopeOf("app/a", "db/*")}
		gdScope, szScope := demands[0], demands[1]
		var gdRun, szRun run
		held := map[catalog.Ref]uint64{}
		step := func(child *catalog.Machine, parent *catalog.Machine, scope *catalogv1.Scope, r *run) bool {
			return feed(t, child, parent.Snapshot(), scope, r, rapid.IntRange(1, 4).Draw(t, "limit"))
		}
		szParent := gd
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0, 1, 2:
				cmd := drawCommand(t, hq.Snapshot())
				cmd.Changes = slices.DeleteFunc(cmd.Changes, func(c *catalogv1.Change) bool { return c.GetRestoreCatalog() != nil })
				hq.Apply(cmd)
			case 3, 4:
				step(gd, hq, gdScope, &gdRun)
			case 5, 6:
				step(sz, szParent, szScope, &szRun)
			case 7: // a cut: what the parent remembered of the stream is gone
				gdRun, szRun = run{}, run{}
			case 8:
				gdScope, gdRun = rapid.SampledFrom(demands).Draw(t, "scope"), run{}
			case 9:
				szScope, szRun = rapid.SampledFrom(demands).Draw(t, "scope"), run{}
				szParent = rapid.SampledFrom([]*catalog.Machine{gd, hq}).Draw(t, "parent")
			}
			// What left the scope may come back older from a parent that lags; the site's base guards against that, see pkg/reconcile.
			for ref := range held {
				if _, ok := sz.Snapshot().Get(ref); !ok {
					delete(held, ref)
				}
			}
			for rec := range sz.Snapshot().Records() {
				ref := catalog.RefOf(rec)
				if rec.Revision < held[ref] {
					t.Fatalf("%s went back from %d to %d", ref, held[ref], rec.Revision)
				}
				held[ref] = rec.Revision
			}
		}
		gdRun, szRun = run{}, run{}
		settle := func(child, parent *catalog.Machine, scope *catalogv1.Scope, r *run) {
			for i := 0; !step(child, parent, scope, r); i++ {
				if i > 1000 {
					t.Fatal("does not converge")
				}
			}
			want, got := parent.Snapshot().View(scope), child.Snapshot().View(scopeOf("**"))
			if want.Digest() != got.Digest() {
				t.Fatal("digests differ")
			}
			var tally catalog.Tally
			for rec := range child.Snapshot().Records() {
				if !catalog.Tombstone(rec) {
					tally.AddRecord(rec)
				}
			}
			if tally.Digest() != want.Digest() {
				t.Fatal("a tally of the same refs has another digest")
			}
			if !proto.Equal(want.Position(), child.Snapshot().Position()) {
				t.Fatalf("position %v, want %v", child.Snapshot().Position(), want.Position())
			}
			// A child keeps tombstones that headquarters has pruned, and a parent thus may have dropped in a resync, until it prunes, too.
			kept := func(records iter.Seq[*catalogv1.Record]) []*catalogv1.Record {
				var out []*catalogv1.Record
				for rec := range records {
					if !rec.Deleted || rec.Revision > max(parent.Snapshot().Pruned(), hq.Snapshot().Pruned()) {
						out = append(out, rec)
					}
				}
				return out
			}
			diff := cmp.Diff(kept(want.Since(0)), kept(child.Snapshot().Since(0)), protocmp.Transform())
			if diff != "" {
				t.Fatalf("-parent +child:\n%s", diff)
			}
		}
		settle(gd, hq, gdScope, &gdRun)
		settle(sz, gd, szScope, &szRun)
	})
}

// TestDeletions_NoMoreTravelThanMay: however deletions are noted, at however many sites, given back and tried, no more of them travel within an hour than ten or a twentieth of what was live,
// and what is held stays so.
func TestDeletions_NoMoreTravelThanMay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := catalog.New()
		m.Apply(foundCommand())
		clock := time.Unix(0, 0)
		apply := func(c *catalogv1.Change) error {
			return m.Apply(&catalogv1.Command{Time: timestamppb.New(clock), Actor: "sweep", Changes: []*catalogv1.Change{c}})[0].Err
		}
		refs := rapid.IntRange(5, 400).Draw(t, "refs")
		ref := func(i int) catalog.Ref { return catalog.Ref{Repository: "app/a", Tag: fmt.Sprint("t", i)} }
		for i := range refs {
			err := apply(&catalogv1.Change{Kind: &catalogv1.Change_Publish{Publish: &catalogv1.Publish{
				Revision: uint64(i + 1), Repository: "app/a", Tag: ref(i).Tag, Target: descriptor("A"), Origin: "hq-a"}}})
			if err != nil {
				t.Fatal(err)
			}
		}
		var travelled []time.Time
		for range rapid.IntRange(1, 150).Draw(t, "steps") {
			clock = clock.Add(rapid.SampledFrom([]time.Duration{0, time.Second, catalog.DeletionGrace, 10 * time.Minute}).Draw(t, "pause"))
			r := ref(rapid.IntRange(0, refs-1).Draw(t, "ref"))
			snap := m.Snapshot()
			rec, _ := snap.Get(r)
			site := drawSite.Draw(t, "site")
			if rapid.IntRange(0, 9).Draw(t, "back") == 0 {
				_ = apply(&catalogv1.Change{Kind: &catalogv1.Change_SettleDeletion{SettleDeletion: &catalogv1.SettleDeletion{Repository: r.Repository, Tag: r.Tag}}})
				continue
			}
			_ = apply(&catalogv1.Change{Kind: &catalogv1.Change_NoteDeletion{NoteDeletion: &catalogv1.NoteDeletion{Repository: r.Repository, Tag: r.Tag, Site: site, Expect: rec.GetRevision()}}})
			for d := range m.Snapshot().AllDeletions() {
				r := catalog.Ref{Repository: d.Repository, Tag: d.Tag}
				rec, _ := m.Snapshot().Get(r)
				err := apply(&catalogv1.Change{Kind: &catalogv1.Change_Unpublish{Unpublish: &catalogv1.Unpublish{
					Revision: m.Snapshot().Position().Revision + 1, Expect: rec.GetRevision(), Repository: r.Repository, Tag: r.Tag, Origin: d.Site, Observed: true}}})
				if err == nil {
					travelled = append(travelled, clock)
				} else if !errors.Is(err, catalog.ErrHeld) && !errors.Is(err, catalog.ErrUnchanged) {
					t.Fatal(err)
				}
				if err == nil && d.Held {
					t.Fatalf("%s was held and travelled", r)
				}
			}
			recent := 0
			for _, at := range travelled {
				if clock.Sub(at) <= time.Hour {
					recent++
				}
			}
			if most := max(10, refs/20); recent > most {
				t.Fatalf("%d deletions of %d refs travelled within an hour, at most %d may", recent, refs, most)
			}
		}
	})
}
