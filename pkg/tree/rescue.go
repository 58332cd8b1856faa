package tree

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/fanout-io/fanout/pkg/catalog"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// Bounds of one part of a restore, which is one entry of the log.
const (
	maxRestoreItems = 500
	maxRestoreBytes = 256 << 10
)

// RestoreCatalog takes over a saved catalog at the root of a headquarters that has published nothing, and returns the position at which a new epoch goes on: who
// had followed the saved catalog up to there follows on. The whole is tried on an empty machine before anything is proposed. ErrNotRoot: nothing was done.
// ErrRefused: it can't be taken over, in words. After any other error it may be half taken over, and is begun anew by restoring again; until then nothing
// can be published.
func (n *Node) RestoreCatalog(ctx context.Context, actor string, saved *catalog.Snapshot) (*catalogv1.Position, error) {
	if !n.cfg.headquarters() {
		return nil, refused("group %s follows %s: a catalog is restored at headquarters, %s", n.cfg.Group, parentOf(n.cfg.Group), top(n.cfg.Group))
	}
	o := n.office.Load()
	if o == nil {
		return nil, ErrNotRoot
	}
	if err := restorable(saved); err != nil {
		return nil, err
	}
	parts := restoreParts(saved, n.cfg.Group, randomID(), randomID())
	trial := catalog.New()
	for _, part := range parts {
		if err := trial.Apply(&catalogv1.Command{Actor: actor, Changes: []*catalogv1.Change{part}})[0].Err; err != nil {
			return nil, refused("what was saved can't be restored: %v", err)
		}
	}
	for i, part := range parts {
		// One after the other: a part counts when a majority has it, and the next builds on it.
		results, err := o.propose(ctx, actor, []*catalogv1.Change{part})
		if err == nil {
			err = restoreRefusal(results[0].Err)
		}
		switch {
		case err == nil:
		case i == 0 && (errors.Is(err, ErrNotRoot) || errors.Is(err, ErrRefused)):
			return nil, err
		case errors.Is(err, ErrNotRoot):
			err = fmt.Errorf("%w: the root of %s changed", ErrUnknownOutcome, n.cfg.Group)
			fallthrough
		default:
			return nil, fmt.Errorf("restoring part %d of %d; look at the catalog, and restore again if it is not whole: %w", i+1, len(parts), err)
		}
	}
	return n.restored(parts[len(parts)-1].GetRestoreCatalog()), nil
}

// restored is the position that a restore leads to.
func (n *Node) restored(end *catalogv1.RestoreCatalog) *catalogv1.Position {
	saved := end.Ancestors[len(end.Ancestors)-1].Position
	return &catalogv1.Position{Epoch: end.Epoch, Revision: saved.Revision, Sum: saved.Sum}
}

// restorable says what keeps a snapshot from being a catalog that can be gone on from.
func restorable(saved *catalog.Snapshot) error {
	switch p := saved.Position(); {
	case saved.Restoring():
		return refused("what was saved is a half-restored catalog: restore the one that it was restored from")
	case saved.Resyncing() != "":
		return refused("what was saved is a half-received catalog, of epoch %s: save it when the group has received it whole", p.GetEpoch())
	case p.GetEpoch() == "":
		return refused("what was saved is empty")
	}
	return nil
}

// restoreRefusal adds to what the machine refuses how to do it right.
func restoreRefusal(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, catalog.ErrFounded):
		return refused("%v. To begin with an empty one, stop all agents of headquarters, move the dataDir of each away (but keep the directory registry in it, where the registry is embedded), start them, and restore before anything is pushed", err)
	}
	return refused("%v", err)
}

// restoreParts cuts a snapshot into changes. Groups that do not lie below this one are left out.
func restoreParts(saved *catalog.Snapshot, group, id, epoch string) []*catalogv1.Change {
	part := &catalogv1.RestoreCatalog{Id: id, Begin: true}
	var parts []*catalogv1.Change
	items, size := 0, 0
	add := func(m proto.Message) *catalogv1.RestoreCatalog {
		n := proto.Size(m)
		if items > 0 && (items == maxRestoreItems || size+n > maxRestoreBytes) {
			parts = append(parts, restoreChange(part))
			part, items, size = &catalogv1.RestoreCatalog{Id: id}, 0, 0
		}
		items, size = items+1, size+n
		return part
	}
	for g := range saved.Groups() {
		if below(g.GetPath(), group) {
			p := add(g)
			p.Groups = append(p.Groups, g)
		}
	}
	for rec := range saved.Records() {
		p := add(rec)
		p.Records = append(p.Records, rec)
	}
	for _, r := range saved.Rollouts() {
		p := add(r)
		p.Rollouts = append(p.Rollouts, r)
	}
	at := saved.Position()
	part.Policies, part.Freeze = saved.Policies(), freezeOf(saved, group)
	part.End, part.Epoch, part.Pruned = true, epoch, saved.Pruned()
	part.Ancestors = append(append([]*catalogv1.Ancestor{}, saved.Ancestors()...), &catalogv1.Ancestor{
		Position: &catalogv1.Position{Epoch: at.GetEpoch(), Revision: at.GetRevision(), Sum: at.GetSum()},
	})
	return append(parts, restoreChange(part))
}

// freezeOf finds a group's freeze in its own catalog or in that of a group below it; nil: it has none.
func freezeOf(saved *catalog.Snapshot, group string) *catalogv1.Freeze {
	for _, f := range saved.Freezes(time.Time{}) {
		if f.GetGroup() == group {
			return f
		}
	}
	return nil
}

func restoreChange(r *catalogv1.RestoreCatalog) *catalogv1.Change {
	return &catalogv1.Change{Kind: &catalogv1.Change_RestoreCatalog{RestoreCatalog: r}}
}

// AcceptEpoch lets this group, whose root this member is, follow a catalog that does not continue the one it holds; empty: the one that its parent has now. The
// parent then sends all of it, and it replaces what is held as a whole. It returns that epoch, and the position that is replaced. Accepting the epoch
// that is held takes an earlier word back. ErrNotRoot: nothing was done. ErrRefused: there is nothing to accept, in words.
func (n *Node) AcceptEpoch(ctx context.Context, actor, epoch string) (string, *catalogv1.Position, error) {
	if n.cfg.headquarters() {
		return "", nil, refused("group %s is headquarters, which follows no epoch but its own; accept it at the group that says \"foreign epoch\"", n.cfg.Group)
	}
	o := n.office.Load()
	if o == nil {
		return "", nil, ErrNotRoot
	}
	snap := n.Catalog()
	if epoch == "" {
		parent, offered := o.attach.offer()
		switch {
		case parent == "":
			return "", nil, refused("group %s is attached to no parent now, so there is none whose epoch could be accepted; name the epoch, or wait", n.cfg.Group)
		case offered == "" && snap.Accepted() != "":
			return "", nil, refused("epoch %s is accepted already, and on its way", snap.Accepted())
		case offered == "":
			return "", nil, refused("group %s follows %s: there is no foreign epoch to accept", n.cfg.Group, parent)
		}
		epoch = offered
	}
	held := snap.Position()
	results, err := o.propose(ctx, actor, []*catalogv1.Change{{Kind: &catalogv1.Change_AcceptEpoch{AcceptEpoch: &catalogv1.AcceptEpoch{Epoch: epoch}}}})
	if err != nil {
		return "", nil, err
	}
	if err := results[0].Err; err != nil {
		return "", nil, refused("%v", err)
	}
	return epoch, held, nil
}

// offer is the group that this one is attached to, and the foreign epoch that it has; each may be empty.
func (a *attachClient) offer() (parent, epoch string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.group, a.offered
}

// foreign says what a parent has that does not continue what is held here, and what to do about it.
func (n *Node) foreign(w *treev1.Welcome) string {
	held := n.Catalog().Position()
	return fmt.Sprintf("foreign epoch: %s has epoch %s, held is epoch %s up to revision %d, which it does not continue; an operator must accept it: fanoutctl --server %s epoch accept",
		w.GetGroup(), w.GetPosition().GetEpoch(), held.GetEpoch(), held.GetRevision(), n.cfg.FabricAdvertise)
}

// top is the path of headquarters.
func top(group string) string {
	for parent := parentOf(group); parent != ""; parent = parentOf(group) {
		group = parent
	}
	return group
}
