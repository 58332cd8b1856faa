package tree

import (
	"context"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/fanout-io/fanout/pkg/catalog"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// ErrKilled is errKilled.
var ErrKilled = errKilled

// ApplyRaw puts an entry into the log as it is.
func (n *Node) ApplyRaw(data []byte) error { return n.raft.Load().Apply(data, time.Second).Error() }

// Table is a health table for tests.
type Table struct {
	t *table
	s *source
	c cursor
}

// NewTable returns a table that is told by one source.
func NewTable(group, site string, members ...string) *Table {
	t := newTable(func(s string) bool {
		for _, m := range members {
			if m == s {
				return true
			}
		}
		return false
	})
	return &Table{t: t, s: t.join(group, site)}
}

// Remembers says what the catalog has: groups with their sites.
func (t *Table) Remembers(groups map[string][]string) {
	t.t.remembers = func(group, site string) bool {
		sites, known := groups[group]
		return known && (site == "" || slices.Contains(sites, site))
	}
}

// InParts makes updates small.
func (t *Table) InParts(items int) { t.t.items = items }

// Source adds a source.
func (t *Table) Source(group string) *Table { return &Table{t: t.t, s: t.t.join(group, "")} }

// Report is what the node's Report does.
func (t *Table) Report(h *treev1.SiteHealth, pending map[string]*treev1.PendingRef) {
	t.t.report(t.s, h, pending)
}

// Again is the same table, read from the start.
func (t *Table) Again() Table { return Table{t: t.t, s: t.s} }

// Merge takes in an update.
func (t *Table) Merge(u *treev1.HealthUpdate) (int, error) { return t.t.merge(t.s, u) }

// Diff reads on.
func (t *Table) Diff() (*treev1.HealthUpdate, bool) { return t.t.diff(&t.c) }

// Leave makes the source go.
func (t *Table) Leave(reason string) { t.t.leave(t.s, reason) }

// View of the whole table.
func (t *Table) View(refs ...catalog.Ref) HealthView { return t.t.view(refs) }

// PendingOf a site by ref.
func (t *Table) PendingOf(site string) map[string]*treev1.PendingRef {
	out := map[string]*treev1.PendingRef{}
	for ref, e := range t.t.pending[site] {
		if !e.gone {
			out[ref] = e.msg.(*treev1.PendingRef)
		}
	}
	return out
}

// ReadHello is readHello.
var ReadHello = readHello

// FailDisk makes every write to the raft log ask fault first. To be called before Run.
func (n *Node) FailDisk(fault func() error) {
	n.faulty = func(s logAndStable) logAndStable { return &faultyStore{s, fault} }
}

type faultyStore struct {
	logAndStable
	fault func() error
}

func (f *faultyStore) StoreLogs(logs []*raft.Log) error {
	if err := f.fault(); err != nil {
		return err
	}
	return f.logAndStable.StoreLogs(logs)
}

func (f *faultyStore) Set(key, value []byte) error {
	if err := f.fault(); err != nil {
		return err
	}
	return f.logAndStable.Set(key, value)
}

func (f *faultyStore) SetUint64(key []byte, value uint64) error {
	if err := f.fault(); err != nil {
		return err
	}
	return f.logAndStable.SetUint64(key, value)
}

// CheckFromParent is what a child of headquarters looks at before it acts on a message.
func CheckFromParent(group string, r *treev1.AttachResponse) error {
	cfg := Config{Group: group, AuthorizePeer: func(context.Context, string, string) error { return nil }}
	switch k := r.GetKind().(type) {
	case *treev1.AttachResponse_Welcome:
		a := &attachClient{o: &office{n: &Node{cfg: cfg}}}
		return a.checkWelcome(noStream{}, k.Welcome)
	case *treev1.AttachResponse_Parents:
		return checkParents(k.Parents)
	case *treev1.AttachResponse_Records:
		return checkManifests(k.Records.GetManifests())
	}
	return nil
}

type noStream struct{ attachClientStream }

func (noStream) Context() context.Context { return context.Background() }

// CheckRoster is checkRoster.
func CheckRoster(r *treev1.Roster) error { return checkRoster(r) }

// ImportOf is what a child proposes for records that a parent sent.
func ImportOf(r *treev1.Records) *catalogv1.Change {
	return &catalogv1.Change{Kind: &catalogv1.Change_Import{Import: importOf(r, nil, nil)}}
}

// BeginRestore proposes all parts of a restore but the last, as a root does that dies in the middle.
func (n *Node) BeginRestore(ctx context.Context, saved *catalog.Snapshot) (parts int, err error) {
	changes := restoreParts(saved, n.cfg.Group, randomID(), randomID())
	for _, c := range changes[:len(changes)-1] {
		if _, err := n.office.Load().propose(ctx, "test", []*catalogv1.Change{c}); err != nil {
			return 0, err
		}
	}
	return len(changes), nil
}

// PrunableAt is up to which revision tombstones could be dropped at a time.
func (n *Node) PrunableAt(now time.Time) uint64 { return n.office.Load().prunable(n.Catalog(), now) }

// TakeSnapshot makes raft take one now.
func (n *Node) TakeSnapshot() error { return n.raft.Load().Snapshot().Error() }

// ComparePaths is comparePaths.
var ComparePaths = comparePaths

// LostWords says what a person is told when a stream to a parent ended with a status; from is the group to which it led.
func LostWords(status error, from string) string { return lostWords(fromStream(status), from) }

// EndOfOffice is with what a root ends the streams of those below it when it is root no more.
func EndOfOffice() error { return toStatus(ErrNotRoot) }
