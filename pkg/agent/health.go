package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/pkg/transfer"
)

// maxAccepted bounds the accepted differences and the held refs that are reported, so that they leave room for what is still to do: the others are shown as delivered, or held by a release.
const maxAccepted = 200

func boundAccepted(pending map[string]*treev1.PendingRef) {
	boundState(pending, "accepted")
	boundState(pending, "held")
}

func boundState(pending map[string]*treev1.PendingRef, state string) {
	var accepted []string
	for id, p := range pending {
		if p.GetState() == state {
			accepted = append(accepted, id)
		}
	}
	if len(accepted) <= maxAccepted {
		return
	}
	slices.Sort(accepted)
	for _, id := range accepted[maxAccepted:] {
		delete(pending, id)
	}
}

// reportHealth tells the tree how this site is, whenever that changed.
func (a *Agent) reportHealth(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		starting := a.starting() // before what it is about
		pending, revision := a.progress.snapshot()
		boundAccepted(pending)
		a.addBlobs(pending)
		a.node.Report(a.health(pending, revision, starting), pending)
		if !sleep(ctx, reportEvery) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-a.progress.dirty:
		case <-tick.C:
		}
	}
}

// addBlobs adds to what is being delivered the blob that is waited for. The entries themselves are never changed.
func (a *Agent) addBlobs(pending map[string]*treev1.PendingRef) {
	for _, f := range a.fetcher.Active() {
		id := f.Request.Repository + ":" + f.Request.Tag
		p := pending[id]
		if p == nil || p.GetBlob() != nil || p.GetState() != "delivering" && p.GetState() != "waiting" {
			continue
		}
		p = proto.CloneOf(p)
		p.Blob = blobProgress(f)
		pending[id] = p
	}
}

func blobProgress(f transfer.Progress) *treev1.BlobProgress {
	return &treev1.BlobProgress{Digest: f.Digest, Size: f.Size, Have: f.Have, Source: f.Source.Site, Rate: f.Rate, Since: timestampOf(f.Since)}
}

// failure says why a ref fails, when it is tried again or that it is, and how many others fail.
func failure(id string, p *treev1.PendingRef, failures int) string {
	s := id + ": " + p.GetReason()
	if p.GetNextAttempt() != nil {
		s += "; next attempt at " + p.GetNextAttempt().AsTime().Format(time.TimeOnly) + " UTC"
	} else if p.GetState() == "delivering" {
		s += "; tried again now"
	}
	if failures > 1 {
		s += fmt.Sprintf("; %d more fail", failures-1)
	}
	return s
}

// conflictsHere counts the conflicts that this site's pushes lost and nobody has settled.
func (a *Agent) conflictsHere() (n int) {
	for c := range a.node.Catalog().AllConflicts() {
		if c.GetSite() == a.cfg.Site {
			n++
		}
	}
	return n
}

// first counts, and keeps the first of what it counts in the order of their names.
type first struct {
	id string
	n  int
}

func (f *first) add(id string) {
	if f.n++; f.n == 1 || id < f.id {
		f.id = id
	}
}

func lostHere(n int) string {
	if n == 1 {
		return "a push here lost against another of its tag and waits for a word: see 'fanoutctl conflicts'"
	}
	return count(n, "push", "pushes") + " here lost against others of their tags and wait for a word: see 'fanoutctl conflicts'"
}

func difference(id string, p *treev1.PendingRef, n int) string {
	if n == 1 {
		return id + " differs: " + p.GetReason()
	}
	return count(n, "ref") + " differ, as " + id + ": " + p.GetReason()
}

// starting says whether this site has still to take note of what it knew before it was started. It never becomes true again.
func (a *Agent) starting() bool {
	if a.started.Load() {
		return false
	}
	if !a.node.LogRead() {
		return true
	}
	snap := a.node.Catalog() // looked at after the log
	if snap.Resyncing() == "" && a.progress.reached() < snap.Position().GetRevision() {
		return true
	}
	a.started.Store(true)
	return false
}

func (a *Agent) health(pending map[string]*treev1.PendingRef, revision uint64, starting bool) *treev1.SiteHealth {
	a.mu.Lock()
	regErr, sweepErr, nextSweep := a.regErr, a.sweepError, a.nextSweep
	a.mu.Unlock()
	h := &treev1.SiteHealth{
		Site: a.cfg.Site, Group: a.cfg.Group, Registry: a.registryAddress(), RegistryType: a.cfg.Registry.Type,
		RegistryOk: a.registry != nil && regErr == nil, Revision: revision, Rate: a.fetcher.Rate(),
		FabricAddress: a.cfg.Fabric.Advertise, Version: a.opts.Version, Incarnation: a.store.Incarnation(), Starting: starting,
	}
	if len(a.fetcher.Active()) == 0 {
		h.Rate = 0 // it is a mean of the last seconds, and nothing comes now
	}
	a.putResources(h)
	var failed, drifted first
	todo := 0
	for id, p := range pending {
		h.BytesLeft += p.GetBytesLeft()
		switch state := p.GetState(); {
		case state == "failed", state == "delivering" && p.GetRefused():
			failed.add(id) // an attempt may last half a minute, and the wait for it a part of a second
		case state == "drifted":
			drifted.add(id)
		case state == "accepted", state == "held": // a word, a wave or a time is waited for
		default:
			todo++
		}
	}
	roster, diskErr := a.node.Roster(), a.node.DiskTrouble()
	switch {
	case a.node.Removed():
		h.State, h.Reason = "degraded", a.removedReason()
	case a.node.Estranged() != "":
		h.State, h.Reason = "degraded", a.node.Estranged()
	case a.registry == nil && diskErr == nil:
		h.State = "witness"
	case regErr != nil:
		h.State, h.Reason = "degraded", "registry: "+plainWords(regErr)+"; asked again every second"
	case diskErr != nil:
		h.State, h.Reason = "degraded", "raft log: "+plainWords(diskErr)+"; written again every second"
	case a.otherSettings() != "":
		h.State, h.Reason = "degraded", "the configuration file differs from the group's in "+a.otherSettings()+"; make the members' files equal and restart"
	case failed.n > 0:
		h.State, h.Reason = "degraded", failure(failed.id, pending[failed.id], failed.n)
	case sweepErr != nil:
		h.State, h.Reason = "degraded", "sweep: "+plainWords(sweepErr)+"; next attempt at "+nextSweep.UTC().Format(time.TimeOnly)+" UTC"
	case a.deletionsHere() > 0:
		h.State, h.Reason = "degraded", fmt.Sprintf("deletions here that wait for a word: %d; see 'fanoutctl deletions list'", a.deletionsHere())
	case a.conflictsHere() > 0:
		h.State, h.Reason = "conflict", lostHere(a.conflictsHere())
	case starting:
		h.State, h.Reason = "unknown", "it has just started, and reads what its group has decided"
	case todo > 0:
		h.State, h.Reason = "syncing", fmt.Sprintf("refs to deliver: %d", todo)
	case drifted.n > 0:
		h.State, h.Reason = "degraded", difference(drifted.id, pending[drifted.id], drifted.n)
	case revision < roster.Head:
		h.State, h.Reason = "behind", count(roster.Head-revision, "revision")+" behind"
	default:
		h.State = "synced"
	}
	return h
}
