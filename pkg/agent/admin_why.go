package agent

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/tree"
)

const (
	// whyTimeout bounds the question to the next group; each tier below has a little less, so that who is furthest gives up first and the others can still say how far they came.
	whyTimeout = 10 * time.Second
	// whyLess is by how much less.
	whyLess = time.Second
)

// Why implements adminv1.AdminServiceServer. The root answers for its group and asks the next root on the way, or at the end the site itself.
func (s *admin) Why(ctx context.Context, req *adminv1.WhyRequest) (*adminv1.WhyResponse, error) {
	actor, err := s.actor(ctx)
	if err != nil {
		return nil, err
	}
	ref, err := parseRef(req.GetRef())
	if err != nil {
		return nil, err
	}
	if req.GetHere() && passedOn(ctx) {
		return &adminv1.WhyResponse{Hops: []*adminv1.WhyHop{s.a.hopHere(ctx, ref)}}, nil
	}
	root, err := s.rootOnce(ctx)
	switch {
	case err != nil && s.a.rootless() != "":
		return s.a.whyAlone(ctx, ref, req.GetSite(), s.a.rootless())
	case err != nil:
		return nil, err
	case root != nil:
		return root.Why(onBehalf(ctx, actor), req)
	}
	return s.whyFromHere(ctx, ref, req.GetSite(), actor)
}

// whyAlone answers when the group has no root: what this agent knows itself.
func (a *Agent) whyAlone(ctx context.Context, ref catalog.Ref, site, noRoot string) (*adminv1.WhyResponse, error) {
	raw, rec := a.record(ref)
	resp := &adminv1.WhyResponse{Ref: ref.String(), Site: site, AsOf: now(), Hops: []*adminv1.WhyHop{a.hopHere(ctx, ref)}}
	mend := "start the members of " + a.cfg.Group + " that are down"
	if site == a.cfg.Site {
		resp.Notes = append(resp.Notes, noRoot+": what is above this site is not known; "+mend)
		a.judge(resp, raw, rec)
		if raw == nil && !a.node.LogRead() {
			resp.Hops[0].State, resp.Hops[0].Trouble = "unknown", waitsBecause(causeNoRoot, "the agent has started, and learns from a root what of its log is decided", mend)
			resp.State, resp.Cause, resp.Mend = "unknown", causeNoRoot, mend
			resp.Answer = fmt.Sprintf("whether %s is to be at %s is not known: %s.", ref, site, resp.GetHops()[0].GetTrouble().GetSummary())
		}
		return resp, nil
	}
	view := a.node.Health(ref)
	sh := findSite(view, site)
	switch {
	case sh == nil:
		return nil, a.unknownSite(view, site, "why "+ref.String())
	case raw == nil: // as far as is known here, which need not be all
		return nil, status.Error(codes.Unavailable, status.Convert(a.unknownRef(view, ref)).Message())
	}
	unknown := waitsBecause(causeNoRoot, "only the root of "+a.cfg.Group+" would know", mend)
	for _, g := range a.way(view, sh.GetGroup())[1:] {
		resp.Hops = append(resp.Hops, &adminv1.WhyHop{Group: g.GetGroup(), State: "unknown", Trouble: unknown})
	}
	resp.Hops = withSite(resp.Hops, &adminv1.WhyHop{Group: sh.GetGroup(), Site: site, State: "unknown", Trouble: unknown})
	a.judge(resp, raw, catalog.Project(raw, sh.GetGroup()))
	resp.Answer, resp.Cause, resp.Mend = fmt.Sprintf("whether %s is at %s is not known here: %s.", ref, site, noRoot), causeNoRoot, mend
	return resp, nil
}

// whyFromHere is the root's answer, which begins at its group.
func (s *admin) whyFromHere(ctx context.Context, ref catalog.Ref, site, actor string) (*adminv1.WhyResponse, error) {
	a := s.a
	raw, _ := a.node.Catalog().Get(ref)
	view := a.node.Health(ref)
	sh := findSite(view, site)
	if sh == nil {
		if err := a.swapped(view, ref, site); err != nil {
			return nil, err
		}
		return nil, a.unknownSite(view, site, "why "+ref.String())
	}
	if raw == nil && !s.tunnel {
		return nil, a.unknownRef(view, ref)
	}
	resp := &adminv1.WhyResponse{Ref: ref.String(), Site: site, AsOf: now()}
	way := a.way(view, sh.GetGroup())
	resp.Hops, resp.Notes = s.hops(ctx, view, way, sh, ref, raw, actor)
	a.addFlights(resp.Hops)
	if s.tunnel {
		return resp, nil // who asked judges
	}
	if !a.cfg.Headquarters() {
		note := fmt.Sprintf("asked at %s: what is above it is not in the answer; ask an agent of %s for all of it", a.cfg.Group, parentPath(a.cfg.Group))
		if top := resp.Hops[0]; top.GetDetachedSince() != nil {
			note = fmt.Sprintf("asked at %s, which is attached to no parent since %s: whether there are newer revisions above is not known here", a.cfg.Group, clock(top.GetDetachedSince()))
		} else if cut := a.cutOff(); cut != nil {
			note = fmt.Sprintf("asked at %s; %s %s", a.cfg.Group, cut.GetGroup(), cutOffWords(cut))
		}
		resp.Notes = append(resp.Notes, note)
	}
	resp.Notes = append(resp.Notes, a.lostPushes(ref)...)
	a.judge(resp, raw, catalog.Project(raw, sh.GetGroup()))
	return resp, nil
}

// lostPushes says where a ref was pushed otherwise, lost, and waits for a word: who pushed that asks why it is not there.
func (a *Agent) lostPushes(ref catalog.Ref) []string {
	var at []string
	for c := range a.node.Catalog().Conflicts(ref) {
		at = append(at, c.GetSite())
	}
	if len(at) == 0 {
		return nil
	}
	slices.Sort(at)
	return []string{fmt.Sprintf("it was pushed otherwise at %s, which lost and waits for a word: fanoutctl conflicts shows both, conflicts settle %s --keep DIGEST decides", strings.Join(slices.Compact(at), ", "), ref)}
}

// hops gives this group's and all that are below on the way, the site's last.
func (s *admin) hops(ctx context.Context, view tree.HealthView, way []*treev1.GroupHealth, sh *treev1.SiteHealth, ref catalog.Ref, raw *catalogv1.Record, actor string) (hops []*adminv1.WhyHop, notes []string) {
	a := s.a
	reported := func(from int) {
		for _, g := range way[from:] {
			hops = append(hops, a.hopReported(view, g, "", ref, raw))
		}
		hops = withSite(hops, a.hopReported(view, way[len(way)-1], sh.GetSite(), ref, raw))
	}
	own := func() *adminv1.WhyHop {
		h := a.hopReported(view, way[0], "", ref, raw)
		a.freshen(h, ref)
		return h
	}
	if raw != nil && a.siteRef(view, sh, ref, raw).GetState() == "unsubscribed" {
		reported(0)
		hops[len(hops)-1].Trouble = a.leavesOut(way, ref)
		return hops, nil
	}
	if len(way) == 1 {
		hop, err := s.askHere(ctx, sh.GetSite(), ref, actor)
		if err != nil {
			reported(0)
			hops[len(hops)-1].Away = callWords(err)
			return hops, nil
		}
		g := way[0]
		hop.DetachedSince, hop.Parent = g.GetDetachedSince(), g.GetParent()
		if g.GetDetachedSince() != nil {
			hop.Link = g.GetReason()
		}
		return withSite([]*adminv1.WhyHop{own()}, hop), nil
	}
	hops = append(hops, own())
	below, err := s.askBelow(ctx, way[1].GetGroup(), ref, sh.GetSite(), actor)
	if err == nil && len(below.GetHops()) > 0 {
		return append(hops, a.remembered(view, way, sh, ref, raw, below.GetHops())...), below.GetNotes()
	}
	reported(1)
	if err != nil && hops[1].GetAway() == "" {
		hops[1].Away = callWords(err)
	}
	for _, h := range hops[1:] {
		h.Live = false
	}
	return hops, nil
}

// remembered puts what is known here in place of hops of which who was asked has not heard: a root below that was elected just now knows less than this one.
func (a *Agent) remembered(view tree.HealthView, way []*treev1.GroupHealth, sh *treev1.SiteHealth, ref catalog.Ref, raw *catalogv1.Record, hops []*adminv1.WhyHop) []*adminv1.WhyHop {
	for i, h := range hops {
		at := slices.IndexFunc(way, func(g *treev1.GroupHealth) bool { return g.GetGroup() == h.GetGroup() })
		if h.GetLive() || h.GetState() != "unknown" || at < 0 || raw == nil {
			continue
		}
		site := ""
		if i == len(hops)-1 {
			site = sh.GetSite()
		}
		if own := a.hopReported(view, way[at], site, ref, raw); own.GetState() != "unknown" {
			own.Live, own.Away = false, cmp.Or(own.GetAway(), h.GetAway())
			hops[i] = own
		}
	}
	return hops
}

// withSite puts a site at the end of a way. Where it is the one by which its group was told, it takes the group's place.
func withSite(hops []*adminv1.WhyHop, site *adminv1.WhyHop) []*adminv1.WhyHop {
	if last := len(hops) - 1; hops[last].GetSite() == site.GetSite() || hops[last].GetSite() == "" {
		hops[last] = site
		return hops
	}
	return append(hops, site)
}

// askHere asks a site of this group about itself.
func (s *admin) askHere(ctx context.Context, site string, ref catalog.Ref, actor string) (*adminv1.WhyHop, error) {
	if site == s.a.cfg.Site {
		return s.a.hopHere(ctx, ref), nil
	}
	ctx, cancel := context.WithTimeout(ctx, within(ctx, whyTimeout))
	defer cancel()
	client, err := s.a.reach(ctx, site)
	if err != nil {
		return nil, err
	}
	resp, err := client.Why(onBehalf(ctx, actor), &adminv1.WhyRequest{Ref: ref.String(), Site: site, Here: true})
	if err != nil {
		return nil, err
	}
	if len(resp.GetHops()) != 1 {
		return nil, status.Error(codes.Internal, site+" gave no answer of its own")
	}
	return resp.GetHops()[0], nil
}

// askBelow asks the root of the next group on the way, through the tunnel that it keeps open.
func (s *admin) askBelow(ctx context.Context, group string, ref catalog.Ref, site, actor string) (*adminv1.WhyResponse, error) {
	t, ok := s.a.node.Toward(group)
	if !ok {
		return nil, status.Errorf(codes.Unavailable, "%s is not attached here", group)
	}
	ctx, cancel := context.WithTimeout(ctx, within(ctx, whyTimeout))
	defer cancel()
	return adminv1.NewAdminServiceClient(t.Conn).Why(onBehalf(ctx, actor), &adminv1.WhyRequest{Ref: ref.String(), Site: site})
}

// within is how long a question to the next may take, so that this one can still be answered without it.
func within(ctx context.Context, most time.Duration) time.Duration {
	if end, ok := ctx.Deadline(); ok {
		return max(min(most, time.Until(end)-whyLess), whyLess/10)
	}
	return most
}

// addFlights shows, where a blob is waited for further down, how far it is here: it may pass through without being wanted for the ref here.
func (a *Agent) addFlights(hops []*adminv1.WhyHop) {
	wanted := ""
	for _, h := range hops {
		if b := h.GetBlob(); b != nil {
			wanted = b.GetDigest()
		}
	}
	if hops[0].GetBlob() != nil || wanted == "" || hops[0].GetSite() != a.cfg.Site {
		return
	}
	for _, f := range a.fetcher.Active() {
		if f.Digest == wanted {
			hops[0].Blob = blobProgress(f)
		}
	}
}

func findSite(view tree.HealthView, site string) *treev1.SiteHealth {
	for _, h := range view.Sites {
		if h.GetSite() == site {
			return h
		}
	}
	return nil
}

// siteNames are those of a group, or of all where it is empty.
func siteNames(view tree.HealthView, group string) (names []string) {
	for _, h := range view.Sites {
		if group == "" || h.GetGroup() == group {
			names = append(names, h.GetSite())
		}
	}
	return names
}

// maxNames bounds the refs among which the nearest is looked for.
const maxNames = 50_000

func (a *Agent) refNames() (names []string) {
	for rec := range a.node.Catalog().Records() {
		if len(names) == maxNames {
			break
		}
		if !catalog.Tombstone(rec) {
			names = append(names, catalog.RefOf(rec).String())
		}
	}
	return names
}

// unknownName says that a name is not known, and which are nearest.
func unknownName(what, name string, known []string, otherwise string) string {
	text := fmt.Sprintf("no %s %q is known here; %s", what, name, otherwise)
	if near := nearest(name, known); len(near) > 0 {
		text += "; the nearest: " + strings.Join(near, ", ")
	}
	return text
}

func timestampOf(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
