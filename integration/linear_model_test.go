package integration

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/anishathalye/porcupine"
)

// What headquarters promises of one ref, as two objects: its record, and the list of conflicts over it. Each is linearizable: whoever asks or commands at whichever member, it is as if one
// thing happened after the other, each at a moment between question and answer. `conflicts settle` is one change of both, and an operation on each here: the two are small enough to be checked.
//
// An operation of which the answer did not come may have happened at any time since, or not at all. A push is one throughout: what the registry tells its agent nobody waits for. It is in force when
// somebody is told so.

// linKind is what an operation does.
type linKind int

const (
	linPush      linKind = iota // on the record: a tag was pushed at a registry of headquarters
	linPublish                  // on the record: `publish` was answered, or perhaps published again what was deleted
	linLook                     // on the record: `where`, `images`
	linUnpublish                // on the record
	linUndo                     // on the record
	linKeep                     // on the record: what `conflicts settle` does to it
	linNote                     // on the list: a push lost, and its agent lists it
	linList                     // on the list: `conflicts`
	linSettle                   // on the list: what `conflicts settle` takes off it
)

var linKinds = [...]string{"push", "publish", "look", "unpublish", "undo", "keep", "note", "conflicts", "settle"}

// linOp is an operation on one object, and its answer.
type linOp struct {
	kind     linKind
	unknown  bool   // no answer came
	digest   string // pushed, kept, noted (digest@site); answered otherwise
	at       string // who was asked
	deleted  bool   // answered: a tombstone
	revision uint64 // answered; 0: there is no record
	listed   string // answered by conflicts, or settled, joined
}

func (o linOp) String() string {
	s := fmt.Sprintf("%s %s", linKinds[o.kind], short(o.digest))
	if o.at != "" {
		s += " at " + o.at
	}
	switch {
	case o.unknown:
		return s + " → ?"
	case o.kind == linList:
		return s + " → [" + o.listed + "]"
	case o.kind == linSettle:
		return s + " → [" + o.listed + "] off the list"
	case o.revision == 0:
		return s + " → none"
	case o.deleted:
		return fmt.Sprintf("%s → deleted, revision %d", s, o.revision)
	}
	return fmt.Sprintf("%s → revision %d", s, o.revision)
}

func short(digest string) string {
	if d, ok := strings.CutPrefix(digest, "sha256:"); ok {
		return d[:min(8, len(d))]
	}
	return digest
}

// linRecord is a ref's record as far as the answers tell.
type linRecord struct {
	digest   string
	deleted  bool
	revision uint64 // 0: none
	least    bool   // the revision is that or a higher one
}

func (r linRecord) String() string {
	s := fmt.Sprintf("%s, revision %d", short(r.digest), r.revision)
	if r.least {
		s += " or more"
	}
	if r.deleted {
		s += ", deleted"
	}
	return s
}

// changed is the record after a change whose revision is not known.
func (r linRecord) changed(digest string, deleted bool) linRecord {
	return linRecord{digest, deleted, r.revision + 1, true}
}

// fits says whether an answer describes the record.
func (r linRecord) fits(o linOp) bool {
	return r.deleted == o.deleted && (r.digest == o.digest || o.digest == "" && o.deleted) && (r.revision == o.revision || r.least && o.revision > r.revision)
}

// before says whether the record may be followed by one of a revision.
func (r linRecord) before(revision uint64) bool { return revision > r.revision }

// exact is the record that an answer describes.
func (r linRecord) exact(o linOp) linRecord { return linRecord{r.digest, r.deleted, o.revision, false} }

func (r linRecord) step(o linOp) (bool, linRecord) {
	none := r.revision == 0
	switch o.kind {
	case linPush:
		return true, r.changed(o.digest, false)
	case linLook:
		if o.revision == 0 {
			return none, r
		}
		return r.fits(o), r.exact(o)
	case linPublish:
		switch {
		case o.unknown && r.deleted:
			return true, r.changed(r.digest, false)
		case o.unknown:
			return true, r
		case r.deleted && r.before(o.revision): // a person's word brings back what a registry still shows
			return true, linRecord{digest: o.digest, revision: o.revision}
		}
		return r.fits(o), r.exact(o)
	case linUnpublish:
		switch {
		case o.unknown && (none || r.deleted):
			return true, r
		case o.unknown:
			return true, r.changed(r.digest, true)
		case o.revision == 0:
			return none, r
		case r.deleted:
			return r.fits(linOp{digest: o.digest, deleted: true, revision: o.revision}), r.exact(o)
		}
		return !none && r.digest == o.digest && r.before(o.revision), linRecord{o.digest, true, o.revision, false}
	case linUndo:
		switch {
		case o.unknown && r.deleted:
			return true, r.changed(r.digest, false)
		case o.unknown:
			return true, r
		}
		return r.deleted && r.digest == o.digest && r.before(o.revision), linRecord{o.digest, false, o.revision, false}
	case linKeep:
		if o.unknown {
			return true, r.changed(o.digest, false)
		}
		return r.before(o.revision), linRecord{o.digest, false, o.revision, false}
	}
	return false, r
}

// linConflicts is the list of conflicts over a ref, sorted and joined.
type linConflicts string

// step gives all lists that there may be after an operation. What was settled is what its answer names: a push that loses meanwhile stays listed. Without an answer it may be any part of the list.
func (l linConflicts) step(o linOp) (after []linConflicts) {
	all := strings.Fields(string(l))
	switch o.kind {
	case linNote:
		if !slices.Contains(all, o.digest) {
			all = append(all, o.digest)
		}
		return []linConflicts{linConflicts(joined(all))}
	case linList:
		if string(l) == o.listed {
			return []linConflicts{l}
		}
	case linSettle:
		for part := range 1 << len(all) {
			var gone, left []string
			for i, loser := range all {
				if part>>i&1 == 1 {
					gone = append(gone, loser)
				} else {
					left = append(left, loser)
				}
			}
			if o.unknown || settles(o.listed, gone, left) {
				after = append(after, linConflicts(joined(left)))
			}
		}
	}
	return after
}

// settles says whether digests, joined, are those of all that went and of none that is left.
func settles(digests string, gone, left []string) bool {
	named := map[string]bool{}
	for _, d := range strings.Fields(digests) {
		named[d] = false
	}
	for _, loser := range left {
		if _, ok := named[loserDigest(loser)]; ok {
			return false
		}
	}
	for _, loser := range gone {
		if _, ok := named[loserDigest(loser)]; !ok {
			return false
		}
		named[loserDigest(loser)] = true
	}
	return !slices.Contains(slices.Collect(maps.Values(named)), false)
}

// loserDigest is the digest of a loser, which is listed with its site.
func loserDigest(loser string) string {
	digest, _, _ := strings.Cut(loser, "@")
	return digest
}

func joined(all []string) string {
	slices.Sort(all)
	return strings.Join(all, " ")
}

// recordModel and conflictsModel are what porcupine checks an object against.
var (
	recordModel    = linModel(linRecord{}, linRecord.step)
	conflictsModel = (&porcupine.NondeterministicModel{
		Init: func() []any { return []any{linConflicts("")} },
		Step: func(state, input, _ any) (after []any) {
			for _, l := range state.(linConflicts).step(input.(linOp)) {
				after = append(after, l)
			}
			return after
		},
		DescribeOperation: func(input, _ any) string { return input.(linOp).String() },
		DescribeState:     func(state any) string { return fmt.Sprint(state) },
	}).ToModel()
)

func linModel[S any](none S, step func(S, linOp) (bool, S)) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return none },
		Step: func(state, input, _ any) (bool, any) {
			ok, next := step(state.(S), input.(linOp))
			return ok, next
		},
		DescribeOperation: func(input, _ any) string { return input.(linOp).String() },
		DescribeState:     func(state any) string { return fmt.Sprint(state) },
	}
}

// never is when an operation returns that was not answered.
const never = math.MaxInt64

// object of a linOp: record or list.
func (k linKind) list() bool { return k >= linNote }

// told leaves out pushes and notes that nobody was ever told of: what is not seen may as well not have happened, and each would double the work.
func told(ops []porcupine.Operation) []porcupine.Operation {
	seen, settled := map[string]bool{}, map[string]bool{}
	for _, op := range ops {
		switch o := op.Input.(linOp); o.kind {
		case linPush, linNote:
		case linList:
			for _, d := range strings.Fields(o.listed) {
				seen[d] = true
			}
		case linSettle:
			for _, d := range strings.Fields(o.listed) {
				settled[d] = true
			}
		default:
			seen[o.digest] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(ops), func(op porcupine.Operation) bool {
		o := op.Input.(linOp)
		return o.kind == linPush && !seen[o.digest] || o.kind == linNote && !seen[o.digest] && !settled[loserDigest(o.digest)]
	})
}

// TestLinearModel gives the checker histories that are as they should be, and some that are not: what it must find.
func TestLinearModel(t *testing.T) {
	t.Parallel()
	const x, y = "sha256:xxxxxxxx", "sha256:yyyyyyyy"
	op := func(call, ret int64, o linOp) porcupine.Operation {
		return porcupine.Operation{Call: call, Return: ret, Input: o}
	}
	push := func(call int64, digest string) porcupine.Operation {
		return op(call, never, linOp{kind: linPush, digest: digest, unknown: true})
	}
	published := func(call, ret int64, digest string, revision uint64) porcupine.Operation {
		return op(call, ret, linOp{kind: linPublish, digest: digest, revision: revision})
	}
	look := func(call, ret int64, digest string, revision uint64) porcupine.Operation {
		return op(call, ret, linOp{kind: linLook, digest: digest, revision: revision})
	}
	gone := func(call, ret int64, revision uint64) porcupine.Operation {
		return op(call, ret, linOp{kind: linLook, deleted: true, revision: revision})
	}
	lost := func(call int64, k linKind, digest string) porcupine.Operation {
		return op(call, never, linOp{kind: k, digest: digest, unknown: true})
	}
	done := func(call, ret int64, k linKind, digest string, revision uint64) porcupine.Operation {
		return op(call, ret, linOp{kind: k, digest: digest, revision: revision})
	}
	list := func(call, ret int64, digests ...string) porcupine.Operation {
		return op(call, ret, linOp{kind: linList, listed: joined(digests)})
	}
	settled := func(call, ret int64, digests ...string) porcupine.Operation {
		return op(call, ret, linOp{kind: linSettle, listed: joined(digests)})
	}
	history := func(ops ...porcupine.Operation) []porcupine.Operation { return ops }
	for _, tt := range []struct {
		name string
		ops  []porcupine.Operation
		ok   bool
	}{
		{"published and seen", history(push(0, x), look(1, 2, "", 0), published(3, 4, x, 7), look(5, 6, x, 7)), true},
		{"seen while it is published", history(push(0, x), published(3, 6, x, 7), look(4, 5, "", 0)), true},
		{"a stale read", history(push(0, x), published(1, 2, x, 7), push(3, y), published(4, 5, y, 8), look(6, 7, x, 7)), false},
		{"not seen at all", history(push(0, x), published(1, 2, x, 7), look(3, 4, "", 0)), false},
		{"a lost publish", history(push(0, x), published(1, 2, x, 7), push(3, y), published(4, 5, y, 8), done(6, 7, linUnpublish, x, 9)), false},
		{"a revision that goes back", history(push(0, x), published(1, 2, x, 7), push(3, y), published(4, 5, y, 6)), false},
		{"a revision given twice", history(push(0, x), published(1, 2, x, 7), push(3, y), published(4, 5, y, 7)), false},
		{"one revision, another digest", history(push(0, x), push(0, y), look(1, 2, x, 7), look(3, 4, y, 7)), false},
		{"what nobody pushed", history(push(0, x), look(1, 2, y, 7)), false},
		{"a push comes into force long after", history(push(0, x), push(0, y), look(1, 2, x, 7), look(3, 4, y, 9)), true},
		{"a push that was replaced comes back", history(push(0, x), push(0, y), look(1, 2, x, 7), look(3, 4, y, 9), look(5, 6, x, 11)), false},
		{"unpublished and undone", history(push(0, x), published(1, 2, x, 7), done(3, 4, linUnpublish, x, 8), gone(5, 6, 8), done(7, 8, linUndo, x, 9), look(9, 10, x, 9)), true},
		{"unpublished twice", history(push(0, x), published(1, 2, x, 7), done(3, 4, linUnpublish, x, 8), done(5, 6, linUnpublish, x, 8)), true},
		{"unpublished, by an old word", history(push(0, x), published(1, 2, x, 7), done(3, 4, linUnpublish, x, 8), done(5, 6, linUndo, x, 9), done(7, 8, linUnpublish, x, 8)), false},
		{"undone what is not deleted", history(push(0, x), published(1, 2, x, 7), done(3, 4, linUndo, x, 8)), false},
		{"an undo that was lost", history(push(0, x), published(1, 2, x, 7), done(3, 4, linUnpublish, x, 8), done(5, 6, linUndo, x, 9), gone(7, 8, 8)), false},
		{"an unpublish without an answer, happened", history(push(0, x), published(1, 2, x, 7), lost(3, linUnpublish, ""), look(4, 5, x, 7), gone(6, 7, 8)), true},
		{"an unpublish without an answer, did not", history(push(0, x), published(1, 2, x, 7), lost(3, linUnpublish, ""), look(4, 5, x, 7)), true},
		{"deleted by nobody", history(push(0, x), published(1, 2, x, 7), gone(6, 7, 8)), false},
		{"published again by a person", history(push(0, x), published(1, 2, x, 7), done(3, 4, linUnpublish, x, 8), published(5, 6, x, 9)), true},
		{"settled for what lost", history(push(0, x), push(0, y), published(1, 2, x, 7), done(3, 4, linKeep, y, 8), look(5, 6, y, 8)), true},
		{"settled for what is shown", history(push(0, x), push(0, y), published(1, 2, x, 7), done(3, 4, linKeep, x, 8), look(5, 6, x, 8)), true},
		{"settled for what is not current", history(push(0, x), push(0, y), published(1, 2, x, 7), published(3, 4, y, 8), done(5, 6, linKeep, x, 7)), false},
		{"settled, and what was kept is not shown", history(push(0, x), push(0, y), published(1, 2, x, 7), done(3, 4, linKeep, y, 8), look(5, 6, x, 7)), false},
		{"listed", history(lost(0, linNote, x), list(1, 2), list(3, 4, x), list(5, 6, x)), true},
		{"listed, then not, by nobody", history(lost(0, linNote, x), list(1, 2, x), list(3, 4)), false},
		{"settled and off the list", history(lost(0, linNote, x), list(1, 2, x), settled(3, 4, x), list(5, 6)), true},
		{"settled and still on the list", history(lost(0, linNote, x), list(1, 2, x), settled(3, 4, x), list(5, 6, x)), false},
		{"settled and back on the list", history(lost(0, linNote, x), list(1, 2, x), settled(3, 4, x), list(5, 6), list(7, 8, x)), false},
		{"what lost meanwhile stays listed", history(lost(0, linNote, x), list(1, 2, x), lost(3, linNote, y), list(4, 5, x, y), settled(3, 6, x), list(7, 8, y)), true},
		{"what lost meanwhile is lost", history(lost(0, linNote, x), list(1, 2, x), lost(3, linNote, y), list(4, 5, x, y), settled(3, 6, x), list(7, 8)), false},
		{"settled what nobody had asked for", history(lost(0, linNote, x), lost(0, linNote, y+"@hq-b"), list(1, 2, x), settled(3, 4, x, y), list(5, 6)), true},
		{"settled what was not listed", history(lost(0, linNote, x), list(1, 2, x), settled(3, 4, y)), false},
		{"settled by a command without an answer", history(lost(0, linNote, x), list(1, 2, x), lost(3, linSettle, ""), list(4, 5, x), list(6, 7)), true},
		{"listed what nobody pushed", history(lost(0, linNote, x), list(1, 2, y)), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			model := recordModel
			if tt.ops[0].Input.(linOp).kind.list() {
				model = conflictsModel
			}
			if got := porcupine.CheckOperations(model, told(tt.ops)); got != tt.ok {
				t.Errorf("linearizable: %v, want %v", got, tt.ok)
			}
		})
	}
}
