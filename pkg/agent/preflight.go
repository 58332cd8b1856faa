package agent

import (
	"context"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/tree"
)

// preflight says of each site that a rollout would reach how it is, what it shows, and what it lacks.
func (a *Agent) preflight(ctx context.Context, r *catalogv1.Rollout) []*adminv1.PreflightSite {
	snap := a.node.Catalog()
	var refs []catalog.Ref
	var sizes []int64
	for _, it := range r.GetItems() {
		refs = append(refs, catalog.Ref{Repository: it.GetSourceRepository(), Tag: it.GetSourceTag()})
		sizes = append(sizes, a.contentSize(ctx, it))
	}
	waves := map[string]string{}
	for _, g := range r.GetGroups() {
		waves[g.GetGroup()] = r.GetWaves()[g.GetWave()].GetName()
	}
	shows := map[string][]*adminv1.SiteRef{}
	for _, s := range a.receipt(r) {
		shows[s.GetSite()] = s.GetRefs()
	}
	view := a.node.Health(refs...)
	var out []*adminv1.PreflightSite
	for _, h := range view.Sites {
		wave, in := waves[h.GetGroup()]
		if !in || h.GetRegistryType() == "none" {
			continue
		}
		p := &adminv1.PreflightSite{Site: h.GetSite(), Group: h.GetGroup(), Wave: wave, State: h.GetState(), Reason: h.GetReason(), Shows: make([]string, len(refs))}
		if p.GetState() == "" {
			p.State = "unknown"
		}
		for i, it := range r.GetItems() {
			p.BytesMissing += a.missing(snap, view, h, it, refs[i], sizes[i])
		}
		for i, ref := range shows[h.GetSite()] {
			p.Shows[i] = ref.GetDigest()
		}
		switch {
		case p.GetBytesMissing() == 0:
		case h.GetRate() > 0:
			p.Seconds = float64(p.GetBytesMissing()) / float64(h.GetRate())
		default:
			p.Seconds = -1
		}
		out = append(out, p)
	}
	return out
}

// missing is how many bytes of an item a site lacks, as far as is known: none where it has all that the source's record wants there, what is on its way, or all of it.
func (a *Agent) missing(snap *catalog.Snapshot, view tree.HealthView, h *treev1.SiteHealth, it *catalogv1.RolloutItem, ref catalog.Ref, size int64) int64 {
	if !a.inScope(h.GetGroup(), it.GetRepository()) {
		return 0 // nothing of it comes there
	}
	rec, _ := snap.Get(ref)
	wanted := false
	for _, t := range catalog.Content(rec) {
		wanted = wanted || t.Descriptor.GetDigest() == it.GetTarget().GetDigest()
	}
	if !wanted || !a.inScope(h.GetGroup(), ref.Repository) || h.GetRevision() < rec.GetRevision() {
		return size
	}
	p := view.Pending(h.GetSite(), ref)
	switch {
	case p == nil && (h.GetPendingFrom() == 0 || rec.GetRevision() < h.GetPendingFrom()):
		return 0
	case p == nil:
		return size
	case p.GetState() == "held":
		return 0
	case p.GetBytesLeft() > 0:
		return p.GetBytesLeft()
	}
	return size // it has not begun
}

// contentSize is the size of all that an item brings, in bytes; 0 where neither this agent's cache nor its registry knows.
func (a *Agent) contentSize(ctx context.Context, it *catalogv1.RolloutItem) int64 {
	c, err := registry.Collect(ctx, func(ctx context.Context, digest string) (registry.Manifest, error) {
		m, err := a.manifestAtHand(ctx, it.GetSourceRepository(), digest)
		return registry.Manifest(m), err
	}, it.GetTarget())
	if err != nil {
		return 0
	}
	return closureBytes(c)
}
