package agent

import (
	"cmp"
	"context"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/tree"
)

// passedOnKey marks a question that another agent passed on.
const passedOnKey = "fanout-passed-on"

// maxActor bounds the name of a person, in bytes.
const maxActor = 256

// passOn passes a call on, and the trace that it belongs to, whether or not this agent tells of traces.
func passOn(ctx context.Context) context.Context {
	if traceparent := askedTrace(ctx); traceparent != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, traceKey, traceparent)
	}
	return metadata.AppendToOutgoingContext(ctx, passedOnKey, "1")
}

func passedOn(ctx context.Context) bool {
	return len(metadata.ValueFromIncomingContext(ctx, passedOnKey)) > 0
}

// behalfKey names the person whose call another agent of the group passes on. The value of a key that ends so may be any text.
const behalfKey = "fanout-on-behalf-of-bin"

// onBehalf passes a call on with the name of who asked.
func onBehalf(ctx context.Context, actor string) context.Context {
	return metadata.AppendToOutgoingContext(passOn(ctx), behalfKey, actor)
}

func behalf(ctx context.Context) string {
	if v := metadata.ValueFromIncomingContext(ctx, behalfKey); len(v) == 1 && len(v[0]) <= maxActor && utf8.ValidString(v[0]) {
		return v[0]
	}
	return ""
}

// severity orders states from good to bad.
var severity = map[string]int{
	"witness": 0, "synced": 1, "syncing": 2, "behind": 3, "unknown": 4, "degraded": 5, "conflict": 6, "unreachable": 7,
}

// tree draws what this root knows at and below a group; all of it when the group is empty.
func (a *Agent) tree(top string) *adminv1.TreeResponse {
	t := &adminv1.TreeResponse{AsOf: now(), CutOff: a.cutOff(), NoRoot: a.rootless()}
	view := a.node.Health()
	head := a.node.Roster().Head
	sites := map[string][]*treev1.SiteHealth{}
	for _, h := range view.Sites {
		sites[h.GetGroup()] = append(sites[h.GetGroup()], h)
	}
	for _, g := range view.Groups {
		path := g.GetGroup()
		if top != "" && path != top && !strings.HasPrefix(path, top+"/") {
			continue
		}
		if path == a.cfg.Group && t.GetNoRoot() != "" {
			g = proto.CloneOf(g)
			g.State, g.Reason, g.Position = "degraded", t.GetNoRoot(), a.node.Catalog().Position()
		}
		t.Groups = append(t.Groups, a.treeGroup(g, sites[path], head))
	}
	worst(t.GetGroups())
	return t
}

// cutOff is the group, this one or one above it, that is attached to no parent; nil: none is, as far as is known.
func (a *Agent) cutOff() *treev1.CutOff { return a.node.Roster().CutOff }

// notAll says why what is not known here may be all the same; empty where all is known that there is.
func (a *Agent) notAll() string {
	if why := a.rootless(); why != "" {
		return "; " + why + ", and " + a.cfg.Site + " may have read a part of the catalog only"
	}
	if c := a.cutOff(); c != nil {
		return "; " + c.GetGroup() + " " + cutOffWords(c)
	}
	return ""
}

// cutOffWords say what a cut-off means to those below.
func cutOffWords(c *treev1.CutOff) string {
	return "is attached to no parent since " + clock(c.GetSince()) + ": what headquarters has published since is not known here"
}

// worst puts at each group the worst state of all that is below it in the tree as it hangs now: a group that went over to another parent counts there. One whose parent is not in the
// picture counts above by its path.
func worst(groups []*adminv1.TreeGroup) {
	by := map[string]*adminv1.TreeGroup{}
	for _, g := range groups {
		by[g.GetGroup()] = g
		g.Worst, g.WorstAt = g.GetState(), g.GetGroup()
	}
	above := func(path string) string {
		if up := by[path].GetParent(); by[up] != nil {
			return up
		}
		return parentPath(path)
	}
	for _, g := range groups {
		path := above(g.GetGroup())
		for steps := 0; path != "" && steps < len(groups); steps++ { // a picture taken during a change may go round in a circle
			if up := by[path]; up != nil && severity[g.GetState()] > severity[up.GetWorst()] {
				up.Worst, up.WorstAt = g.GetState(), g.GetGroup()
			}
			path = above(path)
		}
	}
}

func (a *Agent) treeGroup(g *treev1.GroupHealth, sites []*treev1.SiteHealth, head uint64) *adminv1.TreeGroup {
	out := &adminv1.TreeGroup{
		Group: g.GetGroup(), Parent: g.GetParent(), Tier: uint32(strings.Count(g.GetGroup(), "/")), Root: g.GetRoot(), Term: g.GetTerm(),
		State: g.GetState(), Reason: g.GetReason(), Revision: g.GetPosition().GetRevision(), LastContact: g.GetLastContact(),
		Carrier: g.GetCarrier(), Labels: g.GetLabels(), DetachedSince: g.GetDetachedSince(), Answers: !g.GetLost() && g.GetRoot() != "",
	}
	if head > out.GetRevision() && g.GetPosition() != nil {
		out.Lag = head - out.GetRevision()
		out.LagSeconds = a.unseen(g.GetGroup(), out.GetRevision()).Seconds()
	}
	if out.GetState() == "" {
		out.State = "unknown"
	}
	if f := g.GetFreeze(); f.GetUntil().AsTime().After(time.Now()) {
		out.Freeze = f
	}
	for _, h := range sites {
		m := &adminv1.TreeMember{
			Site: h.GetSite(), State: h.GetState(), Reason: h.GetReason(), Registry: h.GetRegistry(), RegistryType: h.GetRegistryType(),
			Revision: h.GetRevision(), BytesLeft: h.GetBytesLeft(), Rate: h.GetRate(), Pending: toDo(h),
			LastContact: h.GetLastContact(), Version: h.GetVersion(), Disk: h.GetDisk(), RegistryDisk: h.GetRegistryDisk(), CertificateExpires: h.GetCertificateExpires(),
		}
		if h.GetRegistryType() != "none" && heard(h) {
			m.Lag, m.LagSeconds = max(head, h.GetRevision())-h.GetRevision(), a.lacking(h).Seconds()
			out.LagSeconds = max(out.GetLagSeconds(), m.GetLagSeconds())
		}
		if m.GetBytesLeft() > 0 && m.GetRate() > 0 {
			m.EtaSeconds = float64(m.GetBytesLeft()) / float64(m.GetRate())
		}
		out.BytesLeft, out.EtaSeconds = out.GetBytesLeft()+m.GetBytesLeft(), max(out.GetEtaSeconds(), m.GetEtaSeconds())
		if m.GetState() == "" {
			m.State = "unknown"
		}
		if m.GetState() == "synced" && m.GetRevision() < head {
			m.State = "behind"
		}
		out.Members = append(out.Members, m)
		if severity[m.GetState()] > severity[out.GetState()] {
			out.State, out.Reason = m.GetState(), m.GetReason()
		}
	}
	if f := out.GetFreeze(); f != nil {
		words := frozenWords(f, f.GetUntil().AsTime())
		if out.GetReason() != "" {
			words += "; " + out.GetReason()
		}
		out.Reason = words
	}
	return out
}

// where says how one ref is at every site that this root knows.
func (a *Agent) where(ref catalog.Ref, rec *catalogv1.Record) *adminv1.WhereResponse {
	w := &adminv1.WhereResponse{Ref: ref.String(), Revision: rec.GetRevision(), AsOf: now(), CutOff: a.cutOff(), NoRoot: a.rootless()}
	w.Digest = showsDigest(a.shown(rec))
	if passedBy(rec, a.shown(rec)) != "" {
		w.Held = rec.GetReleases()[len(rec.GetReleases())-1].GetTarget().GetDigest()
	}
	view := a.node.Health(ref)
	for _, h := range view.Sites {
		if h.GetRegistryType() == "none" {
			continue
		}
		w.Sites = append(w.Sites, a.siteRef(view, h, ref, rec))
	}
	if !catalog.Tombstone(rec) {
		sayOnlyAt(w.Sites, view.Sites, rec.GetOrigin())
	}
	return w
}

// sayOnlyAt says so where nobody that answers has the content, and the site that it was pushed at does not answer.
func sayOnlyAt(refs []*adminv1.SiteRef, sites []*treev1.SiteHealth, origin string) {
	answers := map[string]bool{}
	for _, h := range sites {
		answers[h.GetSite()] = h.GetState() != "unreachable" && h.GetState() != "unknown" && h.GetState() != ""
	}
	known := false
	for _, s := range refs {
		has := s.GetState() == "delivered" || s.GetState() == "held"
		if known = known || s.GetSite() == origin; has && answers[s.GetSite()] || s.GetSite() == origin && answers[origin] {
			return
		}
	}
	if !known {
		return // a person's word, or a site that was removed
	}
	for _, s := range refs {
		switch {
		case s.GetSite() == origin:
			s.Reason = strings.TrimSuffix("only this site is known to have the content, and it does not answer; "+s.GetReason(), "; ")
		case s.GetState() != "delivered" && s.GetState() != "unsubscribed":
			s.Reason = strings.TrimSuffix("only at "+origin+", which does not answer; "+s.GetReason(), "; ")
		}
	}
}

// siteRef says how a ref is at a site, by the record as the site's group is to show it.
func (a *Agent) siteRef(view tree.HealthView, h *treev1.SiteHealth, ref catalog.Ref, raw *catalogv1.Record) *adminv1.SiteRef {
	rec := catalog.Project(raw, h.GetGroup())
	want := showsDigest(rec)
	s := &adminv1.SiteRef{Site: h.GetSite(), Group: h.GetGroup(), Want: want}
	pending := view.Pending(h.GetSite(), ref)
	switch {
	case !a.inScope(h.GetGroup(), ref.Repository), !catalog.Tombstone(raw) && !a.keptAt(h.GetGroup(), ref):
		s.State, s.Want = "unsubscribed", ""
	case pending != nil:
		s.State, s.Digest, s.Reason, s.Since = pending.GetState(), pending.GetDigest(), pending.GetReason(), pending.GetSince()
		s.BytesLeft, s.NextAttempt, s.Attempts, s.Trouble = pending.GetBytesLeft(), pending.GetNextAttempt(), pending.GetAttempts(), pending.GetTrouble()
		if silent(h) {
			s.State, s.NextAttempt = "waiting", nil
			s.Trouble = away(h.GetSite(), h.GetReason())
			s.Reason = strings.TrimSuffix("the site does not answer; last known: "+pending.GetState()+", "+pending.GetReason(), ", ")
		}
	case !h.GetStarting() && h.GetRevision() >= rec.GetRevision() && (h.GetPendingFrom() == 0 || rec.GetRevision() < h.GetPendingFrom()):
		s.State, s.Digest = "delivered", want
		if s.Reason = passedBy(raw, rec); s.Reason != "" {
			s.State = "held"
		}
	case silent(h) && !heard(h):
		s.State, s.Reason = "unknown", cmp.Or(h.GetReason(), "the site was not heard of yet")
	case silent(h):
		s.State, s.Reason, s.Since = "waiting", "the site is unreachable", later(h.GetLastContact(), rec.GetPublishedAt())
	default:
		s.State, s.Reason, s.Since = "waiting", "the site has not received the record yet", rec.GetPublishedAt()
		if h.GetState() == "degraded" && h.GetReason() != "" {
			s.Reason += "; " + h.GetReason()
		}
	}
	if s.GetState() == "held" && passedBy(raw, rec) != "" {
		s.Held = raw.GetReleases()[len(raw.GetReleases())-1].GetTarget().GetDigest()
	}
	return s
}

// silent says of a site that it is not heard of now.
func silent(h *treev1.SiteHealth) bool {
	return h.GetState() == "unreachable" || h.GetState() == "unknown" || h.GetState() == ""
}

// later gives the later of two times. Nobody can wait for what was not there yet.
func later(x, y *timestamppb.Timestamp) *timestamppb.Timestamp {
	if x == nil || x.AsTime().Before(y.AsTime()) {
		return y
	}
	return x
}

func (a *Agent) inScope(group, repository string) bool {
	if group == a.cfg.Group {
		return true
	}
	g, ok := a.node.Catalog().Group(group)
	return !ok || catalog.MatchScope(g.GetDemand(), repository)
}

// heard says whether anything is known of how far a site is. A root knows of a site that is away since before its election only that it is there, and a site that has just started does not know
// what it has: from revision 0 on it would lack all that there is.
func heard(h *treev1.SiteHealth) bool {
	return !h.GetStarting() && (h.GetLastContact().IsValid() || h.GetRevision() > 0)
}

// toDo is how many refs a site does not show and is to.
func toDo(h *treev1.SiteHealth) uint64 {
	return h.GetPendingTotal() - min(h.GetPendingAccepted()+h.GetPendingHeld(), h.GetPendingTotal())
}
