package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
)

// deletedHere works off a tag that vanished from this registry and whose deletion is to travel: it is noted, and travels a while later unless the catalog holds it because it is one of too
// many. Then an operator lets it travel, or has the tag put back.
func (a *Agent) deletedHere(ctx context.Context, ref catalog.Ref, rec *catalogv1.Record, looked time.Time) error {
	k := key{repository: ref.Repository, tag: ref.Tag}
	d := a.node.Catalog().Deletion(ref, a.cfg.Site)
	switch {
	case d == nil:
		err := a.change(ctx, a.publisher(ref), &catalogv1.Change{Kind: &catalogv1.Change_NoteDeletion{NoteDeletion: &catalogv1.NoteDeletion{
			Repository: ref.Repository, Tag: ref.Tag, Site: a.cfg.Site, Expect: rec.GetRevision(),
		}}})
		if errors.Is(err, catalog.ErrConflict) {
			return errChanged
		}
		if err != nil {
			return fmt.Errorf("noting a deletion: %w", err)
		}
		a.queue.later(k, catalog.DeletionGrace)
	case d.GetRestore():
		return a.putBack(ctx, ref, rec)
	case d.GetHeld():
		a.differs(ref, rec, "", "held", "it vanished from this registry, with many others; its deletion waits for a word: see 'fanoutctl deletions list'", deletionWaits(ref))
		return nil
	default:
		if wait := time.Until(d.GetNotedAt().AsTime().Add(catalog.DeletionGrace)); wait > 0 {
			a.queue.later(k, wait)
			break
		}
		got, err := a.unpublish(ctx, ref, rec, a.cfg.Site, a.publisher(ref))
		if errors.Is(err, catalog.ErrHeld) {
			// The root's clock is not there yet, or the deletion was held a moment ago.
			a.queue.later(k, time.Second)
			break
		}
		if err != nil {
			return err
		}
		return a.delivered(ref, a.shown(got), looked)
	}
	a.settle(ref, rec.GetRevision())
	return nil
}

// putBack makes the registry show a tag that vanished from it. With the tag seen to be there, the deletion is over.
func (a *Agent) putBack(ctx context.Context, ref catalog.Ref, rec *catalogv1.Record) error {
	if err := a.deliver(ctx, ref, rec, ""); err != nil {
		return err
	}
	a.queue.add(key{repository: ref.Repository, tag: ref.Tag})
	return nil
}

// deletionKept works off a listed deletion of a tag that stays absent here, since deletions do not travel any more.
func (a *Agent) deletionKept(ctx context.Context, ref catalog.Ref, rec *catalogv1.Record) error {
	if a.node.Catalog().Deletion(ref, a.cfg.Site).GetRestore() {
		return a.putBack(ctx, ref, rec)
	}
	return a.deletionOver(ctx, ref)
}

// deletionOver takes this site's deletion of a ref off the list.
func (a *Agent) deletionOver(ctx context.Context, ref catalog.Ref) error {
	err := a.change(ctx, a.publisher(ref), &catalogv1.Change{Kind: &catalogv1.Change_SettleDeletion{SettleDeletion: &catalogv1.SettleDeletion{
		Repository: ref.Repository, Tag: ref.Tag, Site: a.cfg.Site,
	}}})
	if err != nil {
		return fmt.Errorf("taking a deletion back: %w", err)
	}
	return nil
}

// deletionsHere counts this site's deletions that wait for an operator's word.
func (a *Agent) deletionsHere() (n int) {
	for d := range a.node.Catalog().AllDeletions() {
		if d.GetSite() == a.cfg.Site && d.GetHeld() && !d.GetRestore() {
			n++
		}
	}
	return n
}

// deletionWatch sees what the catalog says of this site's deletions: no record changes with that.
type deletionWatch struct {
	held    int
	restore map[catalog.Ref]bool // those that were put into the queue
}

func (w *deletionWatch) look(a *Agent, snap *catalog.Snapshot) {
	held, restore := 0, map[catalog.Ref]bool{}
	for d := range snap.AllDeletions() {
		ref := catalog.Ref{Repository: d.GetRepository(), Tag: d.GetTag()}
		switch {
		case d.GetSite() != a.cfg.Site:
		case d.GetRestore():
			if restore[ref] = true; !w.restore[ref] {
				a.queue.add(key{repository: ref.Repository, tag: ref.Tag})
			}
		case d.GetHeld():
			held++
		}
	}
	if held > 0 && w.held == 0 {
		a.events.warning("DeletionsHeld", "", "many tags vanished from this registry; their deletion waits for a word: see 'fanoutctl deletions list'")
		a.logger.Warn("deletions are held", "count", held)
	}
	if held != w.held {
		a.progress.touch()
	}
	w.held, w.restore = held, restore
}
