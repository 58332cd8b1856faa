package catalog_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/fanout-io/fanout/pkg/catalog"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// pushesOf makes headquarters' machine of lines "TAG TARGET SECOND [signed=WORD]", or "TAG -" for a deletion, in one repository.
func pushesOf(t testing.TB, lines ...string) *catalog.Machine {
	t.Helper()
	m := catalog.New()
	m.Apply(foundCommand())
	for i, line := range lines {
		w := strings.Fields(line)
		held, _ := m.Snapshot().Get(catalog.Ref{Repository: "app/a", Tag: w[0]})
		c := &catalogv1.Change{Kind: &catalogv1.Change_Unpublish{Unpublish: &catalogv1.Unpublish{
			Revision: m.Snapshot().Position().Revision + 1, Expect: held.GetRevision(), Repository: "app/a", Tag: w[0]}}}
		if w[1] != "-" {
			var second int64
			if _, err := fmt.Sscan(w[2], &second); err != nil {
				t.Fatal(err)
			}
			p := &catalogv1.Publish{
				Revision: m.Snapshot().Position().Revision + 1, Expect: held.GetRevision(), Repository: "app/a", Tag: w[0],
				Target: descriptor(w[1]), PushedAt: timestamppb.New(time.Unix(second, 0)), Origin: "hq-a",
			}
			if len(w) > 3 {
				p.Referrers = []*catalogv1.Descriptor{descriptor(w[3])}
			}
			c = &catalogv1.Change{Kind: &catalogv1.Change_Publish{Publish: p}}
		}
		if r := m.Apply(&catalogv1.Command{Time: timestamppb.New(time.Unix(1000+int64(i), 0)), Changes: []*catalogv1.Change{c}}); r[0].Err != nil {
			t.Fatalf("%s: %v", line, r[0].Err)
		}
	}
	return m
}

func sig(target, kind string) string {
	return strings.Replace(digest(target), ":", "-", 1) + "." + kind
}

func TestNewest(t *testing.T) {
	for _, c := range []struct {
		name   string
		keep   uint32
		pushes []string
		want   string // live tags in the set
	}{
		{"all", 0, []string{"v1 A 1", "v2 B 2"}, "v1 v2"},
		{"fewer than are kept", 3, []string{"v1 A 1", "v2 B 2"}, "v1 v2"},
		{"the newest", 2, []string{"v1 A 1", "v2 B 2", "v3 C 3"}, "v2 v3"},
		{"by push, not by the order of records", 2, []string{"v3 C 3", "v2 B 2", "v1 A 1"}, "v2 v3"},
		{"by revision where pushes are of one moment", 1, []string{"v2 B 1", "v1 A 1"}, "v1"},
		{"a tag that moved is new", 1, []string{"v1 A 1", "v2 B 2", "v1 C 3"}, "v1"},
		{"what was signed later is no newer", 1, []string{"v1 A 1", "v2 B 2", "v1 A 3 S"}, "v2"},
		{"the one before comes back", 2, []string{"v1 A 1", "v2 B 2", "v3 C 3", "v3 -"}, "v1 v2"},
		{"signatures count for nothing and follow", 1, []string{"v1 A 1", "v2 B 2", sig("A", "sig") + " SA 3", sig("B", "sig") + " SB 4", sig("B", "att") + " TB 5"},
			"v2 " + sig("B", "sig") + " " + sig("B", "att")},
		{"a signature of a signature", 1, []string{"v1 A 1", "v2 B 2", sig("SA", "sig") + " SSA 3", sig("A", "sig") + " SA 3"}, "v2"},
		{"one image under two tags", 1, []string{"v1 A 1", "v2 B 2", "old A 1", "latest A 3", sig("A", "sbom") + " SA 3"}, "latest " + sig("A", "sbom")},
		{"a signature of what no tag shows stays", 1, []string{"v1 A 1", "v2 B 2", sig("X", "sig") + " SX 3"}, "v2 " + sig("X", "sig")},
		{"other names that begin so are tags", 1, []string{sig("A", "tar") + " A 1", "v2 B 2"}, "v2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			snap := pushesOf(t, c.pushes...).Snapshot()
			set := snap.Newest(c.keep)
			var got []string
			for rec := range snap.Records() {
				has := set.Has(catalog.RefOf(rec))
				if rec.Deleted && !has {
					t.Errorf("the tombstone of %s is not in the set", rec.Tag)
				}
				if has != snap.View(scopeOf("**")).Newest(c.keep).Match(rec) {
					t.Errorf("%s: the view does not agree", rec.Tag)
				}
				if has && !rec.Deleted {
					got = append(got, rec.Tag)
				}
			}
			want := strings.Fields(c.want)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

// TestNewest_ViewIsThatOfTheKeptAlone: the digest of a view that keeps some tags is that of a catalog which has only those, and what is passed down is not narrowed.
func TestNewest_ViewIsThatOfTheKeptAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, kept := catalog.New(), catalog.New()
		m.Apply(foundCommand())
		kept.Apply(foundCommand())
		publish := func(m *catalog.Machine, rec *catalogv1.Record) {
			held, _ := m.Snapshot().Get(catalog.RefOf(rec))
			m.Apply(&catalogv1.Command{Changes: []*catalogv1.Change{{Kind: &catalogv1.Change_Publish{Publish: &catalogv1.Publish{
				Revision: m.Snapshot().Position().Revision + 1, Expect: held.GetRevision(), Repository: rec.Repository, Tag: rec.Tag,
				Target: rec.Target, Referrers: rec.Referrers, PushedAt: rec.PushedAt}}}}})
		}
		for range rapid.IntRange(1, 30).Draw(t, "pushes") {
			publish(m, &catalogv1.Record{
				Repository: drawRepo.Draw(t, "repository"),
				Tag:        rapid.SampledFrom([]string{"v1", "v2", "v3", "v4", "v5", sig("A", "sig"), sig("B", "att")}).Draw(t, "tag"),
				Target:     descriptor(drawTarget.Draw(t, "target")), Referrers: drawDescriptors(t),
				PushedAt: timestamppb.New(time.Unix(rapid.Int64Range(0, 5).Draw(t, "at"), 0)),
			})
		}
		snap := m.Snapshot()
		keep := rapid.Uint32Range(1, 6).Draw(t, "keep")
		set := snap.Newest(keep)
		images := map[string]uint32{}
		for rec := range snap.Records() {
			if set.Has(catalog.RefOf(rec)) {
				publish(kept, rec)
				if !strings.HasPrefix(rec.Tag, "sha256-") {
					images[rec.Repository]++
				}
			}
		}
		for repo, n := range images {
			if n > keep {
				t.Fatalf("%d tags of %s are kept, want %d", n, repo, keep)
			}
		}
		if got, want := snap.View(scopeOf("**")).Newest(keep).Digest(), kept.Snapshot().View(scopeOf("**")).Digest(); got != want {
			t.Fatalf("digest %s, that of the kept alone is %s", got, want)
		}
		if n := len(slices.Collect(snap.View(scopeOf("**")).Since(0))); n != snap.Len() {
			t.Fatalf("%d of %d records are passed down", n, snap.Len())
		}
	})
}
