package agent

import (
	"context"
	"fmt"
	"math"
	"time"

	"golang.org/x/sync/errgroup"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/tree"
)

// content is what an item of a rollout brings.
type content struct {
	ref            catalog.Ref // from which it is taken
	bytes, largest int64       // 0 where neither this agent's cache nor its registry knows
}

// preflight says of each site that a rollout would reach how it is, what it shows, and what it lacks, and asks it whether it is ready for that.
func (a *Agent) preflight(ctx context.Context, r *catalogv1.Rollout, actor string) []*adminv1.PreflightSite {
	snap := a.node.Catalog()
	var refs []catalog.Ref
	var items []content
	for _, it := range r.GetItems() {
		ref := catalog.Ref{Repository: it.GetSourceRepository(), Tag: it.GetSourceTag()}
		refs = append(refs, ref)
		bytes, largest := a.contentSize(ctx, it)
		items = append(items, content{ref, bytes, largest})
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
	var needs [][]*adminv1.Need
	for _, h := range view.Sites {
		wave, in := waves[h.GetGroup()]
		if !in || h.GetRegistryType() == "none" {
			continue
		}
		p := &adminv1.PreflightSite{Site: h.GetSite(), Group: h.GetGroup(), Wave: wave, State: h.GetState(), Reason: h.GetReason(), Shows: make([]string, len(refs))}
		if p.GetState() == "" {
			p.State = "unknown"
		}
		for i, ref := range shows[h.GetSite()] {
			p.Shows[i] = ref.GetDigest()
		}
		var list []*adminv1.Need
		for i, it := range r.GetItems() {
			n := &adminv1.Need{Repository: it.GetRepository(), Bytes: a.missing(snap, view, h, it, refs[i], items[i].bytes), Largest: items[i].largest}
			if it.GetRepository() != it.GetSourceRepository() && p.Shows[i] != it.GetTarget().GetDigest() && a.inScope(h.GetGroup(), it.GetRepository()) {
				n.Counted = items[i].bytes // it is mounted there
			}
			p.BytesMissing += n.GetBytes()
			list = append(list, n)
		}
		out, needs = append(out, p), append(needs, list)
	}
	estimate(out, a.askAll(ctx, out, needs, actor))
	s := newSight(a.cfg.Group, time.Now(), snap, fabricView{groups: view.Groups}, nil)
	for _, p := range out {
		if why := s.frozen(r, p.GetGroup()); why != "" {
			p.Checks = append(p.Checks, warn("freeze", "its tags are frozen "+why, "fanoutctl thaw at that group, or start when the freeze is over: till then it counts as offline").message())
		}
	}
	return out
}

// askAll asks all sites that can be reached, many at a time, and enters what they found. It returns the rates that they measured.
func (a *Agent) askAll(ctx context.Context, sites []*adminv1.PreflightSite, needs [][]*adminv1.Need, actor string) []int64 {
	actx, cancel := context.WithTimeout(ctx, readyAll)
	defer cancel()
	rates := make([]int64, len(sites))
	var g errgroup.Group
	g.SetLimit(readyAtOnce)
	for i, p := range sites {
		g.Go(func() error {
			if actx.Err() != nil {
				p.Checks = []*adminv1.Check{unknown("agent", fmt.Sprintf("it was not asked: the others took %s", readyAll)).message()}
				return nil
			}
			r := a.askReady(actx, p.GetSite(), actor, needs[i])
			p.Checks, rates[i] = r.GetChecks(), r.GetRate()
			return nil
		})
	}
	_ = g.Wait() // no question fails as a whole
	return rates
}

// estimate says how long the sites take for what they lack. Content comes through the groups above, each passing it on while it receives: the slowest of these links counts.
func estimate(sites []*adminv1.PreflightSite, rates []int64) {
	groups := map[string]float64{}
	for i, p := range sites {
		own := 0.0
		switch {
		case p.GetBytesMissing() == 0:
		case rates[i] > 0:
			own = float64(p.GetBytesMissing()) / float64(rates[i])
		default:
			own = math.Inf(1)
		}
		groups[p.GetGroup()] = max(groups[p.GetGroup()], own)
		p.Seconds = own
	}
	for _, p := range sites {
		if p.GetBytesMissing() == 0 {
			continue
		}
		for path := parentPath(p.GetGroup()); path != ""; path = parentPath(path) {
			p.Seconds = max(p.GetSeconds(), groups[path])
		}
		if math.IsInf(p.GetSeconds(), 0) {
			p.Seconds = -1
		}
	}
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

// contentSize is the size of all that an item brings, and of its largest blob, in bytes; 0 where neither this agent's cache nor its registry knows.
func (a *Agent) contentSize(ctx context.Context, it *catalogv1.RolloutItem) (bytes, largest int64) {
	c, err := registry.Collect(ctx, func(ctx context.Context, digest string) (registry.Manifest, error) {
		m, err := a.manifestAtHand(ctx, it.GetSourceRepository(), digest)
		return registry.Manifest(m), err
	}, it.GetTarget())
	if err != nil {
		return 0, 0
	}
	for _, b := range c.Blobs {
		largest = max(largest, b.GetSize())
	}
	return closureBytes(c), largest
}
