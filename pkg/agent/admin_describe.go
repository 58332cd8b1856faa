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

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/tree"
)

// describePatience is how long is waited for what other agents, or the registry, say of one thing.
const describePatience = 5 * time.Second

// The kinds of what a person may name.
const (
	kindGroup = "group"
	kindSite  = "site"
	kindRef   = "ref"
)

// subject is what a person named.
type subject struct{ kind, name string }

func (x subject) String() string { return x.kind + "/" + x.name }

// Describe implements adminv1.AdminServiceServer. The root answers.
func (s *admin) Describe(ctx context.Context, req *adminv1.DescribeRequest) (*adminv1.DescribeResponse, error) {
	actor, err := s.actor(ctx)
	if err != nil {
		return nil, err
	}
	root, err := s.rootOnce(ctx)
	alone := ""
	if err != nil {
		if alone = s.a.rootless(); alone == "" {
			return nil, err
		}
	}
	if root != nil {
		return root.Describe(onBehalf(ctx, actor), req)
	}
	view := s.a.node.Health()
	x, err := s.a.named(view, req.GetName())
	if err != nil {
		return nil, err
	}
	d := &adminv1.DescribeResponse{Kind: x.kind, Name: x.name, AsOf: now(), Headquarters: s.a.cfg.Headquarters()}
	switch x.kind {
	case kindGroup:
		s.a.describeGroup(d, view)
	case kindSite:
		s.a.describeSite(d, view)
	default:
		s.a.describeRef(d)
		s.a.describeContent(ctx, d)
	}
	q := newAsking(s, x)
	if alone != "" {
		d.Notes = append(d.Notes, "only what "+s.a.cfg.Site+" knows itself: "+alone)
		own := slices.DeleteFunc(q.sources(view), func(t *source) bool { return t.site != s.a.cfg.Site })
		d.Events = lastEvents(q.gather(ctx, own))
		return d, nil
	}
	switch x.kind {
	case kindGroup:
		s.describeRunning(ctx, d, x.name, "", actor)
	case kindSite:
		s.describeRunning(ctx, d, findSite(view, x.name).GetGroup(), x.name, actor)
	}
	if cut := s.a.cutOff(); cut != nil {
		d.Notes = append(d.Notes, cut.GetGroup()+" "+cutOffWords(cut))
	}
	d.Events = lastEvents(q.gather(onBehalf(ctx, actor), q.sources(view)))
	return d, nil
}

func lastEvents(events []*adminv1.EventsResponse) []*adminv1.EventsResponse {
	return events[max(0, len(events)-describeEvents):]
}

// describeRunning asks for what nobody reports: who has a vote, and what is being fetched.
func (s *admin) describeRunning(ctx context.Context, d *adminv1.DescribeResponse, group, site, actor string) {
	ctx, cancel := context.WithTimeout(ctx, describePatience)
	defer cancel()
	m, err := s.Members(ctx, &adminv1.MembersRequest{Group: group})
	switch {
	case err != nil:
		d.Notes = append(d.Notes, "who has a vote is not known: "+callWords(err))
	case m.GetGroup() != group:
		d.Notes = append(d.Notes, "who has a vote is not known: the group's root is of an older version")
	default:
		d.Servers = slices.DeleteFunc(m.GetMembers(), func(x *adminv1.MemberInfo) bool { return site != "" && x.GetSite() != site })
	}
	top := s.topFromHere(ctx, actor, topOf{group, site})
	for _, x := range top.GetAbsent() {
		if x.GetSite() == site && site != "" || x.GetGroup() == group || strings.HasPrefix(group, x.GetGroup()+"/") {
			d.Notes = append(d.Notes, fmt.Sprintf("what %s fetches is not known: %s", cmp.Or(x.GetSite(), x.GetGroup()), x.GetReason()))
		}
	}
	for _, x := range top.GetTransfers() {
		if x.GetGroup() == group && (site == "" || x.GetSite() == site) {
			d.Transfers = append(d.Transfers, x)
		}
	}
}

// describeContent reads the manifests of a ref, where they are at hand.
func (a *Agent) describeContent(ctx context.Context, d *adminv1.DescribeResponse) {
	rec := d.GetRecord()
	if rec.GetTarget() == nil || rec.GetDeleted() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, describePatience)
	defer cancel()
	d.ImageBytes, _ = a.contentSize(ctx, &catalogv1.RolloutItem{SourceRepository: rec.GetRepository(), Target: rec.GetTarget()})
	if m, err := a.manifestAtHand(ctx, rec.GetRepository(), rec.GetTarget().GetDigest()); err == nil {
		d.Platforms = registry.Platforms(m.Content)
	}
}

// named finds what a person means by a name. A name with a colon can only be a ref; one that may be several things is refused, with the ways to say which.
func (a *Agent) named(view tree.HealthView, name string) (subject, error) {
	known := map[string]func(string) bool{
		kindGroup: func(n string) bool { return slices.Contains(groupNames(view), n) },
		kindSite:  func(n string) bool { return findSite(view, n) != nil },
		kindRef:   func(n string) bool { _, ok := a.refNamed(n); return ok },
	}
	var found []subject
	for _, kind := range []string{kindGroup, kindSite, kindRef} {
		if known[kind](name) {
			found = append(found, subject{kind, name})
		}
	}
	if kind, rest, ok := strings.Cut(name, "/"); ok && known[kind] != nil && known[kind](rest) {
		found = append(found, subject{kind, rest})
	}
	switch len(found) {
	case 1:
		if found[0].kind == kindRef {
			ref, _ := a.refNamed(found[0].name)
			found[0].name = ref.String()
		}
		return found[0], nil
	case 0:
		names := slices.Concat(groupNames(view), siteNames(view, ""), a.refNames())
		return subject{}, status.Error(codes.NotFound, unknownName("group, site or ref", name, names, "'fanoutctl tree' and 'fanoutctl images' list them")+a.notAll())
	}
	var ways []string
	for _, x := range found {
		ways = append(ways, x.String())
	}
	return subject{}, status.Errorf(codes.InvalidArgument, "%q may be several things; say which: %s", name, strings.Join(ways, ", "))
}

func groupNames(view tree.HealthView) (names []string) {
	for _, g := range view.Groups {
		names = append(names, g.GetGroup())
	}
	return names
}

// refNamed finds a ref of the catalog.
func (a *Agent) refNamed(name string) (catalog.Ref, bool) {
	repository, tag, err := registry.ParseRef(name)
	if err != nil {
		return catalog.Ref{}, false
	}
	ref := catalog.Ref{Repository: repository, Tag: tag}
	_, ok := a.node.Catalog().Get(ref)
	return ref, ok
}

func (a *Agent) describeGroup(d *adminv1.DescribeResponse, view tree.HealthView) {
	all := a.tree("").GetGroups()
	d.Group = groupNamed(all, d.GetName())
	for _, g := range all {
		if g.GetParent() == d.GetName() && g != d.GetGroup() {
			g.Members = nil
			d.Children = append(d.Children, g)
		}
	}
	for _, h := range view.Groups {
		if h.GetGroup() == d.GetName() {
			d.Demand, d.Keep, d.Parents, d.FallbackParents = h.GetDemand(), h.GetKeep(), h.GetParents(), h.GetFallbackParents()
			a.noteParents(d, h)
		}
	}
	d.Rollouts = a.rolloutsWith(func(r *catalogv1.Rollout) bool {
		return !catalog.Ended(r) && slices.ContainsFunc(r.GetGroups(), func(g *catalogv1.RolloutGroup) bool { return g.GetGroup() == d.GetName() })
	})
	a.noteHeadquarters(d)
}

// noteParents says why there are no parents in an answer about a group that must have some.
func (a *Agent) noteParents(d *adminv1.DescribeResponse, h *treev1.GroupHealth) {
	if len(h.GetParents()) == 0 && strings.Contains(h.GetGroup(), "/") {
		d.Notes = append(d.Notes, "which parents it tries is not known: its root has not said so yet, or is of an older version")
	}
}

// noteHeadquarters says what only headquarters knows.
func (a *Agent) noteHeadquarters(d *adminv1.DescribeResponse) {
	if !a.cfg.Headquarters() {
		d.Notes = append(d.Notes, fmt.Sprintf("asked at %s: rollouts, policies and conflicts are known at headquarters only", a.cfg.Group))
	}
}

func (a *Agent) describeSite(d *adminv1.DescribeResponse, view tree.HealthView) {
	h := findSite(view, d.GetName())
	d.Incarnation = h.GetIncarnation()
	if g := groupNamed(a.tree(h.GetGroup()).GetGroups(), h.GetGroup()); g != nil {
		g.Members = slices.DeleteFunc(g.GetMembers(), func(m *adminv1.TreeMember) bool { return m.GetSite() != d.GetName() })
		d.Group = g
	}
	if d.Pending = a.pendingAt(d.GetName()); d.GetPending().GetRefsTotal() > uint64(len(d.GetPending().GetRefs())) {
		d.Notes = append(d.Notes, fmt.Sprintf("%d refs are pending, of which %d are listed", d.GetPending().GetRefsTotal(), len(d.GetPending().GetRefs())))
	}
	for c := range a.node.Catalog().AllConflicts() {
		if c.GetSite() == d.GetName() {
			d.Conflicts = append(d.Conflicts, a.conflictOf(c))
		}
	}
}

func (a *Agent) describeRef(d *adminv1.DescribeResponse) {
	ref, _ := a.refNamed(d.GetName())
	snap := a.node.Catalog()
	rec, ok := snap.Get(ref)
	if !ok {
		return // it was pruned in this moment: there is nothing to tell
	}
	d.Record, d.Sites = rec, a.where(ref, rec).GetSites()
	for c := range snap.Conflicts(ref) {
		d.Conflicts = append(d.Conflicts, a.conflictOf(c))
	}
	d.Policy = snap.PolicyFor(ref.Repository)
	d.Rollouts = a.rolloutsWith(func(r *catalogv1.Rollout) bool {
		return slices.ContainsFunc(r.GetItems(), func(i *catalogv1.RolloutItem) bool {
			return i.GetRepository() == ref.Repository && i.GetTag() == ref.Tag
		})
	})
	a.noteHeadquarters(d)
}

func (a *Agent) conflictOf(c *catalogv1.Conflict) *adminv1.ConflictInfo {
	_, rec := a.record(catalog.Ref{Repository: c.GetRepository(), Tag: c.GetTag()})
	return conflictInfo(c, rec)
}

// rolloutsWith gives those that are asked for, newest first.
func (a *Agent) rolloutsWith(want func(*catalogv1.Rollout) bool) (out []*catalogv1.Rollout) {
	for _, r := range slices.Backward(a.node.Catalog().Rollouts()) {
		if want(r) {
			out = append(out, r)
		}
	}
	return out
}

func groupNamed(groups []*adminv1.TreeGroup, path string) *adminv1.TreeGroup {
	for _, g := range groups {
		if g.GetGroup() == path {
			return g
		}
	}
	return nil
}
