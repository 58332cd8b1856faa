package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/tree"
)

// lookPatience is how long a question of why waits for this site's registry.
const lookPatience = 5 * time.Second

// hopHere is what this very site says of a ref, its registry asked now.
func (a *Agent) hopHere(ctx context.Context, ref catalog.Ref) *adminv1.WhyHop {
	snap, roster := a.node.Catalog(), a.node.Roster()
	h := &adminv1.WhyHop{
		Group: a.cfg.Group, Root: roster.Root, Parent: a.attachedTo(roster), Carrier: roster.Carrier, Site: a.cfg.Site, Registry: a.registryAddress(),
		Revision: snap.Position().GetRevision(), Epoch: snap.Position().GetEpoch(), Live: true, LastContact: now(),
	}
	raw, rec := a.record(ref)
	p := a.progress.get(ref)
	switch {
	case a.registry == nil:
		h.State, h.Trouble = "witness", witnessTrouble()
	case raw == nil:
		noRecord(h)
	case p == nil && !a.tookNote(ref, raw, rec):
		noRecord(h)
	case p != nil:
		fillPending(h, p)
		for _, f := range a.fetcher.Active() {
			if h.Blob == nil && f.Request.Repository == ref.Repository && f.Request.Tag == ref.Tag {
				h.Blob = blobProgress(f)
			}
		}
		a.addRegistryTrouble(h, ref)
	default:
		a.lookHere(ctx, h, ref, rec)
	}
	return h
}

// attachedTo is the group that this one is attached to. Without a root it is to none, whatever the last one said.
func (a *Agent) attachedTo(roster tree.Roster) string {
	if roster.Root == "" {
		return ""
	}
	return roster.Parent
}

// lookHere fills in what this site's registry shows of a ref that counts as delivered.
func (a *Agent) lookHere(ctx context.Context, h *adminv1.WhyHop, ref catalog.Ref, rec *catalogv1.Record) {
	h.State, h.Digest = "delivered", showsDigest(rec)
	if !catalog.Tombstone(rec) && !a.keeping.has(a.node.Catalog(), ref) {
		h.State, h.Digest, h.Trouble = "unsubscribed", "", notKept(a.cfg.Group)
		return
	}
	if st, ok, err := a.store.RefState(ref.String()); err == nil && ok && st.Receipt != nil && st.Receipt.Digest == h.GetDigest() {
		h.Receipt = &adminv1.Receipt{At: timestampOf(st.Receipt.At), Bytes: st.Receipt.Bytes, Sources: st.Receipt.Sources}
	}
	ctx, cancel := context.WithTimeout(ctx, lookPatience)
	defer cancel()
	shown, err := a.observe(ctx, ref)
	switch {
	case err != nil:
		h.Trouble, h.Reason = a.troubleOf(ref, err), plainWords(err)
	case shown != h.GetDigest():
		h.Reason = showsNow(shown)
		h.Digest = shown
		a.queue.add(key{repository: ref.Repository, tag: ref.Tag})
	}
}

// addRegistryTrouble says what is known to be wrong with this site's registry of a ref of which no attempt has failed yet: against a registry that hangs one takes half a minute.
func (a *Agent) addRegistryTrouble(h *adminv1.WhyHop, ref catalog.Ref) {
	switch {
	case h.GetState() == "waiting" && h.GetTrouble() == nil:
	case h.GetState() == "delivering" && h.GetAttempts() == 0:
		h.Trouble = nil // of what it waited for before
	default:
		return
	}
	a.mu.Lock()
	err := a.regErr
	a.mu.Unlock()
	if err == nil {
		return
	}
	h.Reason = cmp.Or(h.GetReason(), plainWords(err))
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w: %w", errSilent, err)
	}
	h.Trouble = a.troubleOf(ref, err)
}

// showsNow says what a registry shows that was not yet looked at.
func showsNow(digest string) string {
	if digest == "" {
		return "its registry lacks it now, which is about to be looked at"
	}
	return "its registry shows " + digest + " now, which is about to be looked at"
}

func noRecord(h *adminv1.WhyHop) {
	h.State, h.Trouble = "waiting", waitsBecause(causeRecord, h.GetGroup()+" has not received the record yet", "")
}

func notKept(group string) *treev1.Trouble {
	return waitsBecause(causeNotKept, group+" shows the newest tags of the repository only, and this is none of them", "raise subscribe.keep in the files of "+group)
}

func fillPending(h *adminv1.WhyHop, p *treev1.PendingRef) {
	h.State, h.Digest, h.Reason, h.Since, h.Trouble, h.Blob = p.GetState(), p.GetDigest(), p.GetReason(), p.GetSince(), p.GetTrouble(), p.GetBlob()
	h.BytesLeft, h.Attempts, h.NextAttempt = p.GetBytesLeft(), p.GetAttempts(), p.GetNextAttempt()
}

// freshen puts into the hop of this root's own group what it knows itself: what it reported may be some tenths of a second old.
func (a *Agent) freshen(h *adminv1.WhyHop, ref catalog.Ref) {
	pos := a.node.Catalog().Position()
	h.Revision, h.Epoch = pos.GetRevision(), pos.GetEpoch()
	raw, rec := a.record(ref)
	if a.registry == nil || raw == nil {
		return
	}
	own := &adminv1.WhyHop{Group: h.GetGroup(), State: "delivered", Digest: showsDigest(rec)}
	if p := a.progress.get(ref); p != nil {
		fillPending(own, p)
	} else if !a.tookNote(ref, raw, rec) {
		noRecord(own)
	}
	if has := own.State == "delivered" || own.State == "held"; !has && h.GetSite() != a.cfg.Site {
		return // another member has more to offer, or is the one that fetches
	}
	h.Site, h.Registry, h.State, h.Digest, h.Reason, h.Since, h.Trouble, h.Blob = a.cfg.Site, a.registryAddress(), own.State, own.Digest, own.Reason, own.Since, own.Trouble, own.Blob
	h.BytesLeft, h.Attempts, h.NextAttempt = own.BytesLeft, own.Attempts, own.NextAttempt
	h.Live, h.Away, h.LastContact = true, "", now() // it answers, whatever was reported of it last
}

// tookNote says whether this site has taken note of a record: what is then not pending is delivered.
func (a *Agent) tookNote(ref catalog.Ref, raw, rec *catalogv1.Record) bool {
	if a.progress.reached() >= raw.GetRevision() {
		return true
	}
	st, ok, err := a.store.RefState(ref.String())
	return err == nil && ok && counted(a.node.Catalog(), st).BaseRevision >= rec.GetRevision()
}

// hopReported is what is known here of a group, and of the ref at its member from which those below can have it first, or at the end at one site.
func (a *Agent) hopReported(view tree.HealthView, g *treev1.GroupHealth, site string, ref catalog.Ref, raw *catalogv1.Record) *adminv1.WhyHop {
	h := &adminv1.WhyHop{
		Group: g.GetGroup(), Root: g.GetRoot(), Parent: g.GetParent(), DetachedSince: g.GetDetachedSince(), Carrier: g.GetCarrier(),
		Revision: g.GetPosition().GetRevision(), Epoch: g.GetPosition().GetEpoch(), LastContact: g.GetLastContact(), Live: g.GetGroup() == a.cfg.Group && site == "",
	}
	if g.GetDetachedSince() != nil {
		h.Link = g.GetReason()
	}
	if g.GetLost() || g.GetRoot() == "" { // else the group's root says it of a member
		h.Away = g.GetReason()
	}
	if raw == nil {
		h.Site = g.GetCarrier()
		noRecord(h)
		return h
	}
	var best *treev1.SiteHealth
	var bestRef *adminv1.SiteRef
	for _, sh := range view.Sites {
		if sh.GetGroup() != g.GetGroup() || sh.GetRegistryType() == "none" || site != "" && sh.GetSite() != site {
			continue
		}
		s := a.siteRef(view, sh, ref, raw)
		if best == nil || offers(s, g) > offers(bestRef, g) {
			best, bestRef = sh, s
		}
	}
	if best == nil {
		h.State, h.Trouble = "witness", witnessTrouble()
		h.Site = site
		return h
	}
	a.fillReported(h, best, bestRef, view.Pending(best.GetSite(), ref))
	return h
}

// offers says how soon those below a group can have content from a member: at once where it is delivered, else from who fetches it.
func offers(s *adminv1.SiteRef, g *treev1.GroupHealth) int {
	n := 0
	if s.GetState() == "delivered" || s.GetState() == "held" {
		n = 2
	}
	if s.GetSite() == g.GetCarrier() {
		n++
	}
	return n
}

func (a *Agent) fillReported(h *adminv1.WhyHop, sh *treev1.SiteHealth, s *adminv1.SiteRef, p *treev1.PendingRef) {
	h.Site, h.Registry = sh.GetSite(), sh.GetRegistry()
	if p != nil && s.GetState() != "unsubscribed" {
		fillPending(h, p)
	}
	h.State, h.Reason, h.Since, h.Digest = s.GetState(), s.GetReason(), s.GetSince(), s.GetDigest()
	if st := sh.GetState(); st == "unreachable" || st == "unknown" || st == "" {
		h.Live, h.LastContact, h.Revision = false, sh.GetLastContact(), sh.GetRevision()
		if h.Away == "" {
			h.Away = sh.GetReason()
		}
		h.Away = strings.TrimPrefix(h.GetAway(), sh.GetSite()+": ") // the group's reason names the site of which it is
	}
	switch {
	case h.GetTrouble() != nil, h.State == "delivered", h.State == "delivering", h.State == "unsubscribed":
	case h.State == "unknown":
		h.Trouble = waitsBecause(causeUnheard, strings.TrimSuffix(sh.GetSite()+": "+cmp.Or(h.GetAway(), "not heard of yet"), ": "), "ask again in some seconds; if it stays so, start the agent of "+sh.GetSite()+", or mend the network to it")
	case h.GetAway() != "":
		h.Trouble = away(sh.GetSite(), h.GetAway())
	case p == nil:
		noRecord(h)
	}
}

func away(who, reason string) *treev1.Trouble {
	reason = strings.TrimPrefix(reason, who+": ")
	return waitsBecause(causeUnreachable, strings.TrimSuffix(who+" is unreachable: "+reason, ": "), "start the agent of "+who+", or mend the network to it")
}

// leavesOut says which group of a way keeps a repository from those below it, or which tags it keeps.
func (a *Agent) leavesOut(way []*treev1.GroupHealth, ref catalog.Ref) *treev1.Trouble {
	for _, g := range way {
		if !a.inScope(g.GetGroup(), ref.Repository) {
			return waitsBecause(causeUnsubscribed, fmt.Sprintf("%s does not subscribe to %s", g.GetGroup(), ref.Repository),
				fmt.Sprintf("add %s to subscribe.repositories in the files of %s, or take it out of subscribe.exclude", ref.Repository, g.GetGroup()))
		}
	}
	return notKept(way[len(way)-1].GetGroup())
}

// way gives the groups from this one down to another, by what each is attached to, else by their paths. This one is the first.
func (a *Agent) way(view tree.HealthView, group string) []*treev1.GroupHealth {
	by := map[string]*treev1.GroupHealth{}
	for _, g := range view.Groups {
		by[g.GetGroup()] = g
	}
	var out []*treev1.GroupHealth
	for at := group; at != "" && len(out) < maxWay; {
		g := by[at]
		if g == nil {
			g = &treev1.GroupHealth{Group: at, State: "unknown", Reason: "not heard of"}
		}
		out = append(out, g)
		if at == a.cfg.Group {
			break
		}
		up := parentPath(at)
		if p := g.GetParent(); p != "" && strings.HasPrefix(at, p+"/") {
			up = p
		}
		at = up
	}
	slices.Reverse(out)
	return out
}

// maxWay bounds how many tiers a way has.
const maxWay = 64
