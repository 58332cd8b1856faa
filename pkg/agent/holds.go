package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/tree"
)

// undoTime is how long a deletion can be undone without content being moved: so long each site keeps what it showed under a hold.
const undoTime = tree.TombstoneAge

// holdKeys is the prefix under which the store remembers the holds of this site: what follows is the repository, "@" and the digest.
const holdKeys = "hold/"

// holdTag is the tag by which a digest is kept from garbage collection.
func holdTag(digest string) string {
	return registry.HoldPrefix + strings.TrimPrefix(digest, "sha256:")[:12]
}

// hold keeps a manifest and what is under it in this site's registry, whatever becomes of its tags, until releaseHolds finds that nothing needs it. It is remembered before it
// is put, so that none is left behind; a manifest that the registry lacks can't be held, and need not be.
func (a *Agent) hold(ctx context.Context, repo, digest string) error {
	if digest == "" {
		return nil
	}
	m, err := a.registry.Manifest(ctx, repo, digest)
	if errors.Is(err, registry.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("holding %s@%s: %w", repo, digest, err)
	}
	return a.putHold(ctx, repo, digest, m)
}

func (a *Agent) putHold(ctx context.Context, repo, digest string, m registry.Manifest) error {
	if err := a.store.PutValue(holdKeys+repo+"@"+digest, []byte(time.Now().UTC().Format(time.RFC3339))); err != nil {
		return err
	}
	if err := a.registry.PutManifest(ctx, repo, holdTag(digest), m); err != nil {
		return fmt.Errorf("holding %s@%s: %w", repo, digest, err)
	}
	return nil
}

// releaseHolds takes away the holds of which nothing is needed any more: see needed. What lost a conflict and is not held is held again. One that can't be taken away is tried again at the next sweep.
func (a *Agent) releaseHolds(ctx context.Context) error {
	held, err := a.store.Values(holdKeys)
	if err != nil {
		return err
	}
	snap := a.node.Catalog()
	if snap.Position().GetEpoch() == "" || snap.Resyncing() != "" {
		return nil // nothing whole is known of what is needed
	}
	var errs []error
	for c := range snap.AllConflicts() {
		if _, ok := held[c.GetRepository()+"@"+c.GetTarget().GetDigest()]; !ok && c.GetSite() == a.cfg.Site {
			errs = append(errs, a.hold(ctx, c.GetRepository(), c.GetTarget().GetDigest()))
		}
	}
	for k := range held {
		repo, digest, ok := strings.Cut(k, "@")
		if !ok {
			continue
		}
		needed, err := a.needed(snap, repo, digest)
		if err != nil {
			errs = append(errs, err)
		}
		if needed || err != nil {
			continue
		}
		err = a.registry.DeleteTag(ctx, repo, holdTag(digest))
		switch {
		case err == nil, errors.Is(err, registry.ErrNotFound):
			err = a.store.PutValue(holdKeys+k, nil)
		case errors.Is(err, registry.ErrUnsupported):
			continue // the tag stays for good in such a registry, and does no harm
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("releasing a hold: %w", err))
		}
	}
	return errors.Join(errs...)
}

// needed says whether content must be held here: it lost a conflict that nobody has settled, its deletion can still be undone, some group shows it or may come to, or it waits for the
// end of a freeze.
func (a *Agent) needed(snap *catalog.Snapshot, repo, digest string) (bool, error) {
	for rec := range snap.Repository(repo) {
		if rec.GetTarget().GetDigest() == digest && catalog.Tombstone(rec) && time.Now().Before(undoUntil(rec)) {
			return true, nil
		}
		if slices.ContainsFunc(catalog.Content(rec), func(t catalog.Target) bool { return t.Descriptor.GetDigest() == digest }) && a.keeping.has(snap, catalog.RefOf(rec)) {
			st, _, err := a.store.RefState(catalog.RefOf(rec).String())
			if err != nil {
				return false, err
			}
			if len(rec.GetReleases()) > 0 || st.Base != digest {
				return true, nil
			}
		}
		for c := range snap.Conflicts(catalog.RefOf(rec)) {
			if c.GetTarget().GetDigest() == digest && c.GetSite() == a.cfg.Site {
				return true, nil
			}
		}
	}
	return false, nil
}

func undoUntil(rec *catalogv1.Record) time.Time { return rec.GetPublishedAt().AsTime().Add(undoTime) }
