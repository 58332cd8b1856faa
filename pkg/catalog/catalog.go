// Package catalog is the replicated state of a group as a pure machine: commands go in, results come out, and every replica that applies the same
// commands holds the same state, byte for byte. It holds the records (what each ref should show), the position in headquarters' catalog, the group's
// members and settings, and the groups below; at headquarters also rollouts and the policies of delivery.
//
// It is not a store and not a protocol: it does no I/O, reads no clock, starts no goroutine and draws no random number. Time comes with a command, and
// the machine's clock is the larger of the last and the command's. pkg/tree feeds it from a raft log; everybody else reads snapshots.
//
// A Machine is not safe for concurrent use. A Snapshot is immutable and may be read by any number of goroutines for ever, while the machine goes on.
// Messages that a Snapshot or a Result hands out are shared: they must not be changed. The machine keeps copies of what it is given.
//
// # Roles
//
// A machine starts empty. [catalogv1.Found] makes it headquarters, which alone accepts Publish and Unpublish; the first Import makes it a follower,
// which accepts only imports. Neither role is ever left. A machine that is empty, or headquarters before its first publish, may take over a saved
// catalog ([catalogv1.RestoreCatalog]) and is headquarters then.
//
// # Invariants
//
//   - The record of a ref never goes back to a lower revision. A resync may drop it, when it left the scope; pruning drops a tombstone. Only a resync of an
//     epoch that an operator accepted replaces records whatever their revisions.
//   - At headquarters each revision from one up to the position's is the revision of exactly one change, and the sum is a hash over all of them.
//   - At a follower, outside a resync, every change within scope up to the position's revision was received. Records newer than the position
//     exist only while a resync runs, or after one from a parent that was behind; views do not show them until the position reaches them.
//   - While a resync is unfinished the position's scope is "resync:" and its ID, which no parent's scope hash equals. Whichever parent is
//     asked next therefore starts a resync of its own, and none can continue from a half-replaced catalog.
package catalog

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/tidwall/btree"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// recentSums is how many sums of recent revisions are remembered.
const recentSums = 4096

// Ref names a tag in a repository.
type Ref struct {
	Repository, Tag string
}

// RefOf returns the ref of a record.
func RefOf(rec *catalogv1.Record) Ref { return Ref{rec.GetRepository(), rec.GetTag()} }

// ParseRef parses "repository:tag", as String writes it, and checks both parts.
func ParseRef(s string) (Ref, error) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return Ref{}, refuse(ErrInvalid, "ref %s has no tag: write repository:tag", quote(s))
	}
	ref := Ref{s[:i], s[i+1:]}
	if err := ref.Validate(); err != nil {
		return Ref{}, err
	}
	return ref, nil
}

// String returns "repository:tag".
func (r Ref) String() string { return r.Repository + ":" + r.Tag }

// Compare orders refs by repository, then by tag.
func (r Ref) Compare(o Ref) int {
	if c := strings.Compare(r.Repository, o.Repository); c != 0 {
		return c
	}
	return strings.Compare(r.Tag, o.Tag)
}

// Result is what became of one change.
type Result struct {
	// Revision of the machine's position afterwards.
	Revision uint64
	// Err is nil, or a *Refusal.
	Err error
	// Record of the change's ref as it stands afterwards, also when refused; nil when there is none or the change names no ref. Shared: read only.
	Record *catalogv1.Record
	// Refs whose records this change set or dropped. An import may set records with revisions older than the position, so a reader that
	// follows changes looks here, not at revisions.
	Refs []Ref
}

// Machine is the state of a group. Not safe for concurrent use.
type Machine struct {
	state
	// sums of recent revisions. It is not part of the replicated state: a restored machine starts without it, and no result depends on it.
	sums *btree.BTreeG[sumAt]
	// snap is the last snapshot while nothing changed since.
	snap *Snapshot
}

// state is the replicated state. Everything it points to is immutable or a copy-on-write tree, so that copying it is cheap.
type state struct {
	records    *btree.BTreeG[*catalogv1.Record] // by ref
	revisions  *btree.BTreeG[*catalogv1.Record] // by revision, then ref: the same records
	members    []*catalogv1.Member              // by site; the slice is replaced, never changed
	groups     *btree.BTreeG[*catalogv1.Group]  // by path
	settings   *catalogv1.GroupSettings         // nil until set
	position   *catalogv1.Position              // replaced, never changed
	ancestors  []*catalogv1.Ancestor            // replaced, never changed
	clock      time.Time                        // zero until the first command
	founded    bool
	resync     string             // ID of the resync under way
	resyncSeen *btree.BTreeG[Ref] // refs that it named
	demand     *catalogv1.Scope   // for which the position's scope hash was given; nil: not known
	pruned     uint64             // revision up to which tombstones were dropped
	accepted   string             // epoch that the next resync may bring in place of what is held
	replacing  bool               // the resync under way brings it
	restoring  string             // ID of the restore under way
	conflicts  *btree.BTreeG[*catalogv1.Conflict]
	deletions  *btree.BTreeG[*catalogv1.Deletion]
	live       int // records that are no tombstones; follows from the records

	rollouts *btree.BTreeG[*catalogv1.Rollout] // by ID
	policies []*catalogv1.Policy               // in their order; replaced, never changed

	freeze       *catalogv1.Freeze   // of this group; nil: none
	freezesAbove []*catalogv1.Freeze // by group; replaced, never changed
}

type sumAt struct {
	revision uint64
	sum      []byte
}

// Trees take no locks: the machine has one user, and snapshots are only read.
var treeOptions = btree.Options{NoLocks: true}

func newSeen() *btree.BTreeG[Ref] {
	return btree.NewBTreeGOptions(func(a, b Ref) bool { return a.Compare(b) < 0 }, treeOptions)
}

func lessByRef(a, b *catalogv1.Record) bool {
	if a.Repository != b.Repository {
		return a.Repository < b.Repository
	}
	return a.Tag < b.Tag
}

func lessByRevision(a, b *catalogv1.Record) bool {
	if a.Revision != b.Revision {
		return a.Revision < b.Revision
	}
	return lessByRef(a, b)
}

// New returns an empty machine.
func New() *Machine {
	return &Machine{
		state: state{
			records:    btree.NewBTreeGOptions(lessByRef, treeOptions),
			revisions:  btree.NewBTreeGOptions(lessByRevision, treeOptions),
			groups:     btree.NewBTreeGOptions(func(a, b *catalogv1.Group) bool { return a.Path < b.Path }, treeOptions),
			position:   &catalogv1.Position{},
			resyncSeen: newSeen(),
			conflicts:  btree.NewBTreeGOptions(lessConflict, treeOptions),
			deletions:  btree.NewBTreeGOptions(lessDeletion, treeOptions),

			rollouts: btree.NewBTreeGOptions(lessRollout, treeOptions),
		},
		sums: btree.NewBTreeGOptions(func(a, b sumAt) bool { return a.revision < b.revision }, treeOptions),
	}
}

// DecodeCommand decodes one entry of a raft log. An error means that this version cannot apply the entry; the agent must then stop, since a replica
// that skips an entry no longer equals the others.
func DecodeCommand(data []byte) (*catalogv1.Command, error) {
	cmd := &catalogv1.Command{}
	if err := proto.Unmarshal(data, cmd); err != nil {
		return nil, refuse(ErrUnknown, "decoding a command of %d bytes: %v", len(data), err)
	}
	if i := unknownChange(cmd); i >= 0 {
		return nil, refuse(ErrUnknown, "change %d of %d: written by a newer version: upgrade this agent", i+1, len(cmd.Changes))
	}
	return cmd, nil
}

func unknownChange(cmd *catalogv1.Command) int {
	return slices.IndexFunc(cmd.GetChanges(), func(c *catalogv1.Change) bool { return c.GetKind() == nil })
}

// Apply applies a command and returns one result per change. Each change is accepted or refused on its own and as a whole. When any change is of
// an unknown kind, nothing is applied and every result is ErrUnknown: the caller must stop, see DecodeCommand.
func (m *Machine) Apply(cmd *catalogv1.Command) []Result {
	results := make([]Result, len(cmd.GetChanges()))
	if i := unknownChange(cmd); i >= 0 {
		for j := range results {
			results[j] = Result{Revision: m.position.Revision, Err: refuse(ErrUnknown, "change %d of %d: upgrade this agent", i+1, len(results))}
		}
		return results
	}
	m.snap = nil
	if t := cmd.GetTime(); t != nil && t.IsValid() && t.AsTime().After(m.clock) {
		m.clock = t.AsTime()
	}
	for i, change := range cmd.GetChanges() {
		results[i] = m.apply(change, cmd.GetActor())
	}
	return results
}

func (m *Machine) apply(change *catalogv1.Change, actor string) Result {
	var (
		ref  Ref
		refs []Ref
		err  *Refusal
	)
	switch k := change.Kind.(type) {
	case *catalogv1.Change_Found:
		err = m.found(k.Found)
	case *catalogv1.Change_Publish:
		ref = Ref{k.Publish.GetRepository(), k.Publish.GetTag()}
		refs, err = m.publish(k.Publish, actor)
	case *catalogv1.Change_Unpublish:
		ref = Ref{k.Unpublish.GetRepository(), k.Unpublish.GetTag()}
		refs, err = m.unpublish(k.Unpublish, actor)
	case *catalogv1.Change_Import:
		refs, err = m.imports(k.Import)
	case *catalogv1.Change_SetMember:
		err = m.setMember(k.SetMember.GetMember())
	case *catalogv1.Change_RemoveMember:
		m.removeMember(k.RemoveMember.GetSite())
	case *catalogv1.Change_SetSettings:
		err = m.setSettings(k.SetSettings.GetSettings())
	case *catalogv1.Change_SetGroup:
		err = m.setGroup(k.SetGroup.GetGroup())
	case *catalogv1.Change_ForgetGroup:
		m.groups.Delete(&catalogv1.Group{Path: k.ForgetGroup.GetPath()})
	case *catalogv1.Change_Prune:
		refs, err = m.prune(k.Prune.GetThrough())
	case *catalogv1.Change_NoteConflict:
		err = m.noteConflict(k.NoteConflict)
	case *catalogv1.Change_SettleConflict:
		err = m.settleConflict(k.SettleConflict)
	case *catalogv1.Change_NoteDeletion:
		err = m.noteDeletion(k.NoteDeletion)
	case *catalogv1.Change_SettleDeletion:
		err = m.settleDeletion(k.SettleDeletion)
	case *catalogv1.Change_AcceptEpoch:
		err = m.acceptEpoch(k.AcceptEpoch.GetEpoch())
	case *catalogv1.Change_RestoreCatalog:
		refs, err = m.restoreCatalog(k.RestoreCatalog)
	case *catalogv1.Change_StartRollout:
		refs, err = m.startRollout(k.StartRollout, actor)
	case *catalogv1.Change_SteerRollout:
		refs, err = m.steerRollout(k.SteerRollout, actor)
	case *catalogv1.Change_ObserveRollout:
		refs, err = m.observeRollout(k.ObserveRollout)
	case *catalogv1.Change_SetPolicies:
		err = m.setPolicies(k.SetPolicies)
	case *catalogv1.Change_SetFreeze:
		err = m.setFreeze(k.SetFreeze.GetFreeze())
	case *catalogv1.Change_SetFreezesAbove:
		err = m.setFreezesAbove(k.SetFreezesAbove.GetFreezes())
	default:
		err = refuse(ErrUnknown, "%T", k)
	}
	res := Result{Revision: m.position.Revision, Refs: refs}
	if err != nil {
		res.Err = err // assigned here only: a nil *Refusal in an error is not nil
	}
	if ref != (Ref{}) {
		res.Record, _ = m.get(ref)
	}
	return res
}

func (s *state) get(ref Ref) (*catalogv1.Record, bool) {
	return s.records.Get(&catalogv1.Record{Repository: ref.Repository, Tag: ref.Tag})
}

// put makes rec, which must not change any more, the record of its ref.
func (m *Machine) put(rec *catalogv1.Record) {
	if old, replaced := m.records.Set(rec); replaced {
		m.revisions.Delete(old)
		m.live -= alive(old)
	}
	m.revisions.Set(rec)
	m.live += alive(rec)
}

func (m *Machine) drop(rec *catalogv1.Record) {
	m.records.Delete(rec)
	m.revisions.Delete(rec)
	m.live -= alive(rec)
}

// alive counts a record that is no tombstone.
func alive(rec *catalogv1.Record) int {
	if Tombstone(rec) {
		return 0
	}
	return 1
}

// moveTo sets the position, which must not change any more, and remembers its sum.
func (m *Machine) moveTo(p *catalogv1.Position) {
	m.position = p
	m.sums.Set(sumAt{p.Revision, p.Sum})
	for m.sums.Len() > recentSums {
		m.sums.PopMin()
	}
}

// Snapshot returns the state as it is now. It is cheap: trees are shared until they are written to.
func (m *Machine) Snapshot() *Snapshot {
	if m.snap == nil {
		s := &Snapshot{state: m.state, sums: m.sums.Copy()}
		s.records = m.records.Copy()
		s.revisions = m.revisions.Copy()
		s.groups = m.groups.Copy()
		s.resyncSeen = m.resyncSeen.Copy()
		s.conflicts = m.conflicts.Copy()
		s.deletions = m.deletions.Copy()

		s.rollouts = m.rollouts.Copy()
		m.snap = s
	}
	return m.snap
}

func (m *Machine) now() *timestamppb.Timestamp {
	if m.clock.IsZero() {
		return nil
	}
	return timestamppb.New(m.clock)
}

func compareDescriptors(a, b *catalogv1.Descriptor) int {
	return cmp.Compare(a.GetDigest(), b.GetDigest())
}
