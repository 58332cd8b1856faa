package agent

import (
	"context"
	"errors"
	"sync"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/registry"
)

// errUnkept ends a delivery of a tag that fell out of those that this group keeps.
var errUnkept = errors.New("newer tags are kept")

// keeping knows which tags this group's registries show, and which of them are being delivered. Safe for concurrent use.
type keeping struct {
	mu     sync.Mutex
	snap   *catalog.Snapshot
	newest *catalog.Newest
	ends   map[catalog.Ref]context.CancelCauseFunc
}

// has says whether this group's registries are to show a ref of a snapshot.
func (k *keeping) has(snap *catalog.Snapshot, ref catalog.Ref) bool {
	if snap.Keep() == 0 {
		return true
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.snap != snap {
		k.snap, k.newest = snap, snap.Newest(snap.Keep())
	}
	return k.newest.Has(ref)
}

// delivering gives a context that ends, with errUnkept as its cause, when the ref is no longer to be shown. A worker has a ref alone. done must follow.
func (k *keeping) delivering(ctx context.Context, ref catalog.Ref) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ends == nil {
		k.ends = map[catalog.Ref]context.CancelCauseFunc{}
	}
	k.ends[ref] = cancel
	return ctx, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.ends, ref)
		cancel(nil)
	}
}

// end stops the delivery of a ref, if there is one.
func (k *keeping) end(ref catalog.Ref) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if cancel := k.ends[ref]; cancel != nil {
		cancel(errUnkept)
	}
}

// noteKept looks at all refs of repositories in which something changed: a newer tag pushes an older one out, and one that was deleted lets an older one in.
func (a *Agent) noteKept(snap *catalog.Snapshot, repositories map[string]bool) {
	if snap.Keep() == 0 || a.registry == nil {
		return
	}
	for repo := range repositories {
		for rec := range snap.Repository(repo) {
			if catalog.Tombstone(rec) {
				continue
			}
			if ref := catalog.RefOf(rec); !a.keeping.has(snap, ref) {
				a.keeping.end(ref)
			}
			if snap.EpochOf(rec) != "" {
				a.noteRecord(snap, rec)
			}
		}
	}
}

// trim removes a tag that this site delivered, because the group keeps newer ones. Nothing holds its content: it can be had again from above.
func (a *Agent) trim(ctx context.Context, ref catalog.Ref, rec *catalogv1.Record) error {
	if err := a.registry.DeleteTag(ctx, ref.Repository, ref.Tag); err != nil && !errors.Is(err, registry.ErrNotFound) {
		return err
	}
	a.events.normal("Trimmed", ref.String(), "newer tags are kept")
	return a.trimmed(ref, rec, true)
}

// trimmed notes that a tag is not to be shown here. What this site did with it is forgotten when it is gone: then it is delivered as new when it is wanted again.
func (a *Agent) trimmed(ref catalog.Ref, rec *catalogv1.Record, gone bool) error {
	if gone {
		if err := a.store.DeleteRefState(ref.String()); err != nil {
			return err
		}
		a.marker.moved.set()
	}
	a.progress.settle(ref, rec.GetRevision())
	return nil
}

// keptAt says whether a group's registries are to show a ref, as far as it is known here.
func (a *Agent) keptAt(group string, ref catalog.Ref) bool {
	snap := a.node.Catalog()
	if group == a.cfg.Group {
		return a.keeping.has(snap, ref)
	}
	g, ok := snap.Group(group)
	return !ok || snap.Newest(g.GetKeep()).Has(ref)
}
