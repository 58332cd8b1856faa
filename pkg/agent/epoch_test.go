package agent

import (
	"testing"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/reconcile"
	"github.com/fanout-io/fanout/pkg/store"
)

func sumOf(b byte) []byte {
	s := make([]byte, 16)
	s[0] = b
	return s
}

func importInto(epoch string, revision uint64, resync string, end bool, tags ...string) *catalogv1.Change {
	im := &catalogv1.Import{Position: &catalogv1.Position{Epoch: epoch, Revision: revision, Sum: sumOf(byte(revision)), Scope: "s"}, Resync: resync, End: end}
	for i, tag := range tags {
		im.Records = append(im.Records, &catalogv1.Record{
			Repository: "app", Tag: tag, Revision: uint64(i + 1), Sum: sumOf(byte(i + 1)),
			Target: &catalogv1.Descriptor{Digest: "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"},
		})
	}
	return &catalogv1.Change{Kind: &catalogv1.Change_Import{Import: im}}
}

func applied(t *testing.T, m *catalog.Machine, changes ...*catalogv1.Change) *catalog.Snapshot {
	t.Helper()
	for i, r := range m.Apply(&catalogv1.Command{Changes: changes}) {
		if r.Err != nil {
			t.Fatalf("change %d: %v", i, r.Err)
		}
	}
	return m.Snapshot()
}

func TestCounted(t *testing.T) {
	continued := importInto("e2", 9, "", false)
	continued.GetImport().Ancestors = []*catalogv1.Ancestor{{Position: &catalogv1.Position{Epoch: "e1", Revision: 5, Sum: sumOf(5)}}}
	snap := applied(t, catalog.New(), continued)
	for _, c := range []struct {
		name           string
		snap           *catalog.Snapshot
		epoch          string
		base, intent   uint64
		wantB, wantI   uint64
		wantEpochAfter string
	}{
		{"its own epoch", snap, "e2", 9, 10, 9, 10, "e2"},
		{"an ancestor, within", snap, "e1", 5, 4, 5, 4, "e2"},
		{"an ancestor, beyond where it was left", snap, "e1", 6, 5, 0, 5, "e2"},
		{"an ancestor, the intent beyond", snap, "e1", 5, 6, 5, 0, "e2"},
		{"a foreign one", snap, "e9", 1, 2, 0, 0, "e2"},
		{"not known", snap, "", 7, 8, 7, 8, ""},
		{"nothing is held", catalog.New().Snapshot(), "e1", 7, 8, 7, 8, "e1"},
	} {
		st := store.RefState{Base: "b", BaseRevision: c.base, Intent: "i", IntentRevision: c.intent, Epoch: c.epoch}
		want := store.RefState{Base: "b", BaseRevision: c.wantB, Intent: "i", IntentRevision: c.wantI, Epoch: c.wantEpochAfter}
		if got := counted(c.snap, st); got != want {
			t.Errorf("%s: %+v, want %+v", c.name, got, want)
		}
	}
}

// TestRevisionIn: while an accepted epoch replaces what is held, a record of the old one gets no revision that would count in the new one.
func TestRevisionIn(t *testing.T) {
	m := catalog.New()
	old := applied(t, m, importInto("e1", 2, "", false, "v1", "v2"))
	v1, _ := old.Get(catalog.Ref{Repository: "app", Tag: "v1"})
	v2, _ := old.Get(catalog.Ref{Repository: "app", Tag: "v2"})
	if a, b := revisionIn(old, v1), revisionIn(old, v2); a != 1 || b != 2 {
		t.Errorf("%d, %d", a, b)
	}
	half := applied(t, m, &catalogv1.Change{Kind: &catalogv1.Change_AcceptEpoch{AcceptEpoch: &catalogv1.AcceptEpoch{Epoch: "e9"}}}, importInto("e9", 4, "r", false, "v1"))
	if now, _ := half.Get(catalog.Ref{Repository: "app", Tag: "v1"}); revisionIn(half, now) != 1 || revisionIn(half, v2) != 0 {
		t.Errorf("half replaced: %d, %d", revisionIn(half, now), revisionIn(half, v2))
	}
	whole := applied(t, m, importInto("e9", 4, "r", true))
	if revisionIn(whole, v2) != 0 {
		t.Errorf("no longer held: %d", revisionIn(whole, v2))
	}
}

func TestProgress_KeepForgetsWhatTheCatalogDropped(t *testing.T) {
	p := newProgress("gd-a")
	stays, goes := catalog.Ref{Repository: "app", Tag: "v1"}, catalog.Ref{Repository: "app", Tag: "v2"}
	p.want(stays, 1)
	p.want(goes, 2)
	p.keep(func(ref catalog.Ref) bool { return ref == stays })
	if pending, _ := p.snapshot(); len(pending) != 1 || pending[stays.String()] == nil {
		t.Errorf("pending: %v", pending)
	}
}

// A tag that is pushed again after its tombstone was dropped is news, and the catalog is not behind.
func TestUnpruned(t *testing.T) {
	found := &catalogv1.Change{Kind: &catalogv1.Change_Found{Found: &catalogv1.Found{Epoch: "e1"}}}
	publish := &catalogv1.Change{Kind: &catalogv1.Change_Publish{Publish: &catalogv1.Publish{
		Revision: 1, Repository: "app", Tag: "v1", Target: &catalogv1.Descriptor{Digest: "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"},
	}}}
	unpublish := &catalogv1.Change{Kind: &catalogv1.Change_Unpublish{Unpublish: &catalogv1.Unpublish{Revision: 2, Expect: 1, Repository: "app", Tag: "v1"}}}
	m := catalog.New()
	applied(t, m, found, publish)
	kept := applied(t, m, unpublish)
	pruned := applied(t, m, &catalogv1.Change{Kind: &catalogv1.Change_Prune{Prune: &catalogv1.Prune{Through: 2}}})
	obeyed := store.RefState{BaseRevision: 2}
	judge := func(snap *catalog.Snapshot) reconcile.Action {
		rec, _ := snap.Get(catalog.Ref{Repository: "app", Tag: "v1"})
		return reconcile.Merge(reconcile.Input{
			Ours: reconcile.Side{Known: true, Digest: "sha256:b"}, Base: reconcile.Side{Known: true}, BaseRevision: unpruned(snap, rec, obeyed).BaseRevision,
			Theirs: rec, PublishMatch: true,
		}).Action
	}
	if got := judge(kept); got != reconcile.Publish {
		t.Errorf("after a tombstone: %s", got)
	}
	if got := judge(pruned); got != reconcile.Publish {
		t.Errorf("after a dropped tombstone: %s", got)
	}
	if st := unpruned(pruned, nil, store.RefState{BaseRevision: 3}); st.BaseRevision != 3 {
		t.Error("a revision that was not pruned no longer counts")
	}
}
