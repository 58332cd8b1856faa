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
	"github.com/fanout-io/fanout/pkg/transfer"
)

// held is content under a hold of this site that no record shows: a deletion may be undone, or a conflict settled, and brings it back. What a record with releases has held is looked at with
// that record.
type held struct {
	// rec is what would show it: the ref, the target and its referrers, and the revision under which it can be asked for.
	rec *catalogv1.Record
	// why it is held, in words.
	why string
	// alone: it may be at no other site.
	alone bool
}

// helds lists what this site remembers to hold and still needs, in the order of repositories.
func (a *Agent) helds(snap *catalog.Snapshot) ([]held, error) {
	known, err := a.store.Values(holdKeys)
	if err != nil {
		return nil, err
	}
	byRepo := map[string]map[string]bool{}
	var repos []string
	for k := range known {
		repo, digest, ok := strings.Cut(k, "@")
		if !ok {
			continue
		}
		if byRepo[repo] == nil {
			byRepo[repo] = map[string]bool{}
			repos = append(repos, repo)
		}
		byRepo[repo][digest] = true
	}
	slices.Sort(repos)
	var out []held
	for _, repo := range repos {
		for rec := range snap.Repository(repo) {
			if byRepo[repo][rec.GetTarget().GetDigest()] && catalog.Tombstone(rec) && time.Now().Before(undoUntil(rec)) {
				out = append(out, held{rec: rec, why: "it is held so that its deletion can be undone"})
			}
			for c := range snap.Conflicts(catalog.RefOf(rec)) {
				if c.GetSite() == a.cfg.Site && byRepo[repo][c.GetTarget().GetDigest()] {
					out = append(out, held{
						rec: &catalogv1.Record{Repository: repo, Tag: rec.GetTag(), Target: c.GetTarget(), Revision: rec.GetRevision()},
						why: "it is held since it lost a conflict that nobody has settled", alone: true,
					})
				}
			}
		}
	}
	return out, nil
}

// held looks at what is under a hold, and at the tag that holds it. An error means that ctx ended.
func (c *checker) held(ctx context.Context, h held) (diffs []defect, err error) {
	c.enter(h.rec.GetRepository())
	named := map[string]bool{}
	add := func(manifest bool, digest string, t *trouble) {
		if !named[t.kind+digest] {
			named[t.kind+digest] = true
			diffs = append(diffs, defect{ref: catalog.RefOf(h.rec), kind: t.kind, digest: digest, reason: t.reason + "; " + h.why, manifest: manifest})
		}
	}
	for _, root := range roots(h.rec) {
		if err := c.closure(ctx, h.rec, root, add); err != nil {
			return diffs, err
		}
	}
	t, err := c.holdTag(ctx, h.rec.GetTarget().GetDigest())
	if t != nil {
		add(true, h.rec.GetTarget().GetDigest(), t)
	}
	return diffs, err
}

// holdTag says what is wrong with the tag that holds a manifest in the repository.
func (c *checker) holdTag(ctx context.Context, digest string) (*trouble, error) {
	d, err := c.a.registry.Resolve(ctx, c.repo, holdTag(digest))
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, registry.ErrNotFound):
		return &trouble{kindMissingTag, "the tag " + holdTag(digest) + ", which keeps it from being collected, is gone"}, nil
	case err == nil && d.GetDigest() != digest:
		return &trouble{kindOtherDigest, "the tag " + holdTag(digest) + ", which is to keep it from being collected, shows " + d.GetDigest()}, nil
	}
	return nil, nil // what can't be read is found when the content is
}

// mendHolds brings back what the registry lost of the content that is held for a ref, and puts the tags that hold it.
func (a *Agent) mendHolds(ctx context.Context, ref catalog.Ref) error {
	all, err := a.helds(a.node.Catalog())
	if err != nil {
		return err
	}
	for _, h := range all {
		if catalog.RefOf(h.rec) != ref {
			continue
		}
		err := a.mendHold(ctx, ref, h)
		if h.alone && (errors.Is(err, transfer.ErrNotFound) || errors.Is(err, transfer.ErrDenied) || errors.Is(err, registry.ErrNotFound)) {
			a.events.warning("Lost", ref.String(), fmt.Sprintf("%s: %s, and no other site has it: %v", h.rec.GetTarget().GetDigest(), h.why, err))
			continue // to ask again and again brings it no nearer
		}
		if err != nil {
			return fmt.Errorf("%s, %s: %w", h.rec.GetTarget().GetDigest(), h.why, err)
		}
	}
	return nil
}

func (a *Agent) mendHold(ctx context.Context, ref catalog.Ref, h held) error {
	if err := a.turnToHold(ctx, ref, h.rec); err != nil {
		return err
	}
	d := newDelivery(a, ref, &catalogv1.Record{
		Repository: ref.Repository, Tag: ref.Tag, Target: h.rec.GetTarget(), Referrers: h.rec.GetReferrers(), Revision: h.rec.GetRevision(),
	}, "")
	d.hold, d.anew = true, true
	return d.carryOut(ctx)
}
