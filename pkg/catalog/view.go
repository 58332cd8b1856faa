package catalog

import (
	"crypto/sha256"
	"encoding/hex"
	"iter"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// View is a snapshot as a group with a certain demand sees it: the records in its scope, up to the snapshot's position. It is immutable.
type View struct {
	snap *Snapshot
	hash string
	all  bool
	// scope is canonical.
	scope *catalogv1.Scope
	// keep the newest tags of each repository; 0: all.
	keep uint32
	// group whose subtree alone releases name; empty: they name all groups.
	group string
}

// View returns the view of a scope, such as a child group's demand.
func (s *Snapshot) View(scope *catalogv1.Scope) View {
	scope = Union(scope)
	all := len(scope.AnyOf) == 1 && len(scope.AnyOf[0].Exclude) == 0 && scope.AnyOf[0].Repositories[0] == everything
	return View{snap: s, scope: scope, all: all, hash: ScopeHash(s.position.Scope, s.demand, scope)}
}

// Newest narrows the view to the newest tags of each repository, see [Snapshot.Newest]; 0: all. It is what a group's own registries show, and never what a group is sent.
func (v View) Newest(keep uint32) View {
	v.keep = keep
	return v
}

// For narrows what the view's records say of releases to a group, named by its path, and those below it: what a group is sent, so that it learns of no group outside its subtree.
func (v View) For(group string) View {
	v.group = group
	return v
}

// Shown is the view of what this group's own registries are to show.
func (s *Snapshot) Shown() View {
	return s.View(&catalogv1.Scope{AnyOf: []*catalogv1.Subscription{{Repositories: []string{everything}}}}).Newest(s.Keep())
}

// Hash is the scope hash that the position of a group with this view carries.
func (v View) Hash() string { return v.hash }

// Position of a group that has received all of this view.
func (v View) Position() *catalogv1.Position {
	p := v.snap.position
	return &catalogv1.Position{Epoch: p.Epoch, Revision: p.Revision, Sum: p.Sum, Scope: v.hash}
}

// Pruned is the revision up to which tombstones may be missing from the view.
func (v View) Pruned() uint64 { return v.snap.pruned }

// Match says whether a record of the snapshot is within the view.
func (v View) Match(rec *catalogv1.Record) bool {
	return rec.GetRevision() <= v.snap.position.Revision && (v.all || MatchScope(v.scope, rec.GetRepository())) &&
		(v.keep == 0 || v.snap.Newest(v.keep).Has(RefOf(rec)))
}

// Since yields the records of the view with a revision higher than the one given, in revision order, each ref once, tombstones included.
func (v View) Since(revision uint64) iter.Seq[*catalogv1.Record] {
	return func(yield func(*catalogv1.Record) bool) {
		for rec := range v.snap.Since(revision) {
			if rec.Revision > v.snap.position.Revision {
				return
			}
			if v.Match(rec) && !yield(Within(rec, v.group)) {
				return
			}
		}
	}
}

// Batch returns up to limit records after a revision, in revision order, and the position that a group which was at that revision reaches with them:
// when the view has no more, the view's own. A group that goes on from any position so reached misses nothing, since a ref that changed in
// between has a higher revision and is still to come.
func (v View) Batch(after uint64, limit int) (records []*catalogv1.Record, reached *catalogv1.Position) {
	limit = max(limit, 1)
	for rec := range v.Since(after) {
		if len(records) == limit {
			last := records[limit-1]
			return records, &catalogv1.Position{Epoch: v.snap.position.Epoch, Revision: last.Revision, Sum: last.Sum, Scope: v.hash}
		}
		records = append(records, rec)
	}
	return records, v.Position()
}

// Relation says how a child that demands this view is to be served, given the position that it has committed.
func (v View) Relation(child *catalogv1.Position) Relation {
	r := v.snap.onLine(child)
	if r == RelationFollows && child.GetEpoch() != "" && (child.GetScope() != v.hash || child.GetRevision() < v.snap.pruned) {
		return RelationResync // another scope was in force, or a tombstone that it has not seen may be gone
	}
	return r
}

// Digests yields each repository in the view that has live records, by name, and a digest over these: tags, targets, referrers and releases. Two groups whose digests
// of a repository are equal want the same there. Revisions are not in it: they say when, not what.
func (v View) Digests() iter.Seq2[string, string] {
	return func(yield func(repository, digest string) bool) {
		t := Tally{each: yield}
		repo, within := "", false
		newest := v.snap.Newest(v.keep)
		for rec := range v.snap.Records() {
			if t.done {
				return
			}
			if rec.Repository != repo {
				repo, within = rec.Repository, v.all || MatchScope(v.scope, rec.Repository)
			}
			if within && !Tombstone(rec) && rec.Revision <= v.snap.position.Revision && newest.Has(RefOf(rec)) {
				t.AddRecord(Within(rec, v.group))
			}
		}
		if !t.done {
			t.flush()
		}
	}
}

// ReferrersOf gives the digests of a record's referrers, in order.
func ReferrersOf(rec *catalogv1.Record) []string { return digestsOf(rec.GetReferrers()) }

func digestsOf(list []*catalogv1.Descriptor) []string {
	out := make([]string, len(list))
	for i, d := range list {
		out[i] = d.GetDigest()
	}
	return out
}

// Digest is one value over all of Digests: two groups with equal digests want the same.
func (v View) Digest() string {
	h := sha256.New()
	for repo, digest := range v.Digests() {
		var e encoder
		e.text(repo)
		e.text(digest)
		h.Write(e.Bytes())
	}
	return hex.EncodeToString(h.Sum(nil))
}
