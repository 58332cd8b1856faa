package web_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// fabric is made up: what a test puts into it is what it answers. It watches as an agent does: a new picture after a change. Safe for concurrent use.
type fabric struct {
	mu        sync.Mutex
	changed   chan struct{} // closed with a change
	tree      *adminv1.TreeResponse
	where     map[string]*adminv1.WhereResponse
	pending   map[string]*adminv1.PendingResponse
	why       map[string]*adminv1.WhyResponse // by "SITE REF"
	rollouts  []*catalogv1.Rollout
	images    []*adminv1.ImagesResponse
	events    []*adminv1.EventsResponse
	conflicts []*adminv1.ConflictInfo
	deletions []*adminv1.DeletionInfo
	fails     error // what every question is answered with
	asked     int   // watches of the tree that began
	running   int   // that go on
}

func newFabric() *fabric {
	return &fabric{changed: make(chan struct{}), tree: &adminv1.TreeResponse{}, where: map[string]*adminv1.WhereResponse{}, pending: map[string]*adminv1.PendingResponse{}, why: map[string]*adminv1.WhyResponse{}}
}

// change lets a test change something; who watches is told.
func (f *fabric) change(how func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	how()
	close(f.changed)
	f.changed = make(chan struct{})
}

// show answers with pictures: one, or with watch one after each change.
func show[T proto.Message](ctx context.Context, f *fabric, watch bool, picture func() (T, error), send func(T) error) error {
	for {
		f.mu.Lock()
		changed := f.changed
		m, err := picture()
		if f.fails != nil {
			err = f.fails
		}
		if err == nil {
			m = proto.CloneOf(m)
		}
		f.mu.Unlock()
		if err != nil {
			return err
		}
		if err := send(m); err != nil || !watch {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

func (f *fabric) Tree(ctx context.Context, req *adminv1.TreeRequest, send func(*adminv1.TreeResponse) error) error {
	f.mu.Lock()
	f.asked++
	f.running++
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.running--
	}()
	return show(ctx, f, req.GetWatch(), func() (*adminv1.TreeResponse, error) {
		if req.GetGroup() == "" {
			return f.tree, nil
		}
		t := &adminv1.TreeResponse{AsOf: f.tree.GetAsOf()}
		for _, g := range f.tree.GetGroups() {
			if g.GetGroup() == req.GetGroup() || strings.HasPrefix(g.GetGroup(), req.GetGroup()+"/") {
				t.Groups = append(t.Groups, g)
			}
		}
		if len(t.GetGroups()) == 0 {
			return nil, status.Error(codes.NotFound, "no such group")
		}
		return t, nil
	}, send)
}

func (f *fabric) Where(ctx context.Context, req *adminv1.WhereRequest, send func(*adminv1.WhereResponse) error) error {
	return show(ctx, f, req.GetWatch(), func() (*adminv1.WhereResponse, error) {
		if w := f.where[req.GetRef()]; w != nil {
			return w, nil
		}
		return nil, status.Errorf(codes.NotFound, "%s is not in the catalog", req.GetRef())
	}, send)
}

func (f *fabric) Pending(ctx context.Context, req *adminv1.PendingRequest, send func(*adminv1.PendingResponse) error) error {
	return show(ctx, f, req.GetWatch(), func() (*adminv1.PendingResponse, error) {
		if p := f.pending[req.GetSite()]; p != nil {
			return p, nil
		}
		return &adminv1.PendingResponse{Site: req.GetSite()}, nil
	}, send)
}

func (f *fabric) Rollouts(ctx context.Context, req *adminv1.RolloutsRequest, send func(*adminv1.RolloutsResponse) error) error {
	return show(ctx, f, req.GetWatch(), func() (*adminv1.RolloutsResponse, error) {
		r := &adminv1.RolloutsResponse{AsOf: timestamppb.Now()}
		for _, x := range f.rollouts {
			if req.GetId() == "" || req.GetId() == x.GetId() {
				r.Rollouts = append(r.Rollouts, x)
			}
		}
		if req.GetId() != "" && len(r.GetRollouts()) == 0 {
			return nil, status.Errorf(codes.NotFound, "no rollout %q", req.GetId())
		}
		return r, nil
	}, send)
}

func (f *fabric) Why(_ context.Context, req *adminv1.WhyRequest) (*adminv1.WhyResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if w := f.why[req.GetSite()+" "+req.GetRef()]; w != nil {
		return proto.CloneOf(w), f.fails
	}
	return nil, status.Errorf(codes.NotFound, "no site %q is known here", req.GetSite())
}

func (f *fabric) Images(_ context.Context, _ *adminv1.ImagesRequest, send func(*adminv1.ImagesResponse) error) error {
	f.mu.Lock()
	list, err := slices.Clone(f.images), f.fails
	f.mu.Unlock()
	for _, m := range list {
		if err == nil {
			err = send(m)
		}
	}
	return err
}

func (f *fabric) Events(ctx context.Context, req *adminv1.EventsRequest, send func(*adminv1.EventsResponse) error) error {
	for sent := 0; ; {
		f.mu.Lock()
		list, changed := slices.Clone(f.events[sent:]), f.changed
		f.mu.Unlock()
		for _, e := range list {
			if err := send(e); err != nil {
				return err
			}
			sent++
		}
		if !req.GetFollow() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

func (f *fabric) Conflicts(context.Context) (*adminv1.ConflictsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &adminv1.ConflictsResponse{Conflicts: slices.Clone(f.conflicts)}, f.fails
}

func (f *fabric) Deletions(context.Context) (*adminv1.DeletionsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &adminv1.DeletionsResponse{Deletions: slices.Clone(f.deletions)}, f.fails
}

func (f *fabric) Version(context.Context) (*adminv1.VersionResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &adminv1.VersionResponse{Version: "v0", Site: "hq-a", Group: "hq"}, f.fails
}

func group(path string, members ...*adminv1.TreeMember) *adminv1.TreeGroup {
	g := &adminv1.TreeGroup{Group: path, Tier: uint32(strings.Count(path, "/")), State: "synced", Revision: 812, Term: 3, LastContact: timestamppb.Now(), Members: members}
	if i := strings.LastIndex(path, "/"); i >= 0 {
		g.Parent = path[:i]
	}
	for _, m := range members {
		if g.GetRoot() == "" {
			g.Root, g.Carrier = m.GetSite(), m.GetSite()
		}
		if m.GetState() != "synced" && m.GetState() != "witness" {
			g.State, g.Reason = m.GetState(), m.GetReason()
		}
	}
	return g
}

func member(site, state string) *adminv1.TreeMember {
	m := &adminv1.TreeMember{Site: site, State: state, Registry: "http://10.1.0.11:5000", RegistryType: "harbor", Revision: 812, Version: "v0.4.0", LastContact: timestamppb.Now()}
	switch state {
	case "witness":
		m.RegistryType, m.Registry = "none", ""
	case "syncing":
		m.BytesLeft, m.Rate, m.Pending, m.Reason = 734<<20, 11<<20, 3, "refs to deliver: 3"
	case "degraded":
		m.Pending, m.Reason = 1, "shop/web:2.4.1: registry answered 413 Request Entity Too Large: quota of project shop: 3.1 of 3.0 GiB; next attempt at 14:02:11 UTC"
	case "unreachable":
		m.Reason = "no contact for 4m12s; last seen synced"
	case "behind":
		m.Reason, m.Revision = "2 revisions behind", 810
	}
	return m
}

// wideFabric has headquarters, 31 provinces and cities up to n groups, with the troubles of an ordinary day, and a ref on its way.
func wideFabric(n int) *fabric {
	f := newFabric()
	f.tree.AsOf = timestamppb.Now()
	add := func(g *adminv1.TreeGroup) { f.tree.Groups = append(f.tree.Groups, g) }
	add(group("hq", member("hq-a", "synced"), member("hq-b", "synced"), member("hq-w", "witness")))
	const provinces = 31
	odd := map[int]string{17: "syncing", 40: "degraded", 41: "syncing", 97: "unreachable", 140: "behind", 215: "syncing", 216: "syncing", 300: "syncing"}
	city := 0
	for p := range provinces {
		path := fmt.Sprintf("hq/province-%02d", p+1)
		add(group(path, member(fmt.Sprintf("p%02d-a", p+1), "synced"), member(fmt.Sprintf("p%02d-b", p+1), "synced")))
		for c := 0; c < (n-1-provinces)/provinces+1 && len(f.tree.Groups) < n; c++ {
			state := odd[city]
			if state == "" {
				state = "synced"
			}
			add(group(fmt.Sprintf("%s/city-%02d", path, c+1), member(fmt.Sprintf("c%02d-%02d", p+1, c+1), state)))
			city++
		}
	}
	w := &adminv1.WhereResponse{Ref: "shop/web:2.4.1", Revision: 812, Digest: "sha256:" + strings.Repeat("3f9a", 16), AsOf: timestamppb.Now()}
	for _, g := range f.tree.GetGroups() {
		for _, m := range g.GetMembers() {
			if m.GetRegistryType() == "none" {
				continue
			}
			s := &adminv1.SiteRef{Site: m.GetSite(), Group: g.GetGroup(), State: "delivered", Digest: w.GetDigest(), Want: w.GetDigest()}
			switch m.GetState() {
			case "syncing":
				s.State, s.Digest, s.BytesLeft, s.Since = "delivering", "", m.GetBytesLeft(), timestamppb.New(time.Now().Add(-90*time.Second))
			case "degraded":
				s.State, s.Digest, s.Reason, s.Attempts, s.NextAttempt = "failed", "", m.GetReason(), 4, timestamppb.New(time.Now().Add(40*time.Second))
			case "unreachable":
				s.State, s.Digest, s.Reason = "waiting", "", "the site is unreachable"
			}
			w.Sites = append(w.Sites, s)
		}
	}
	f.where[w.GetRef()] = w
	return f
}

// aRollout is one in its second of three waves, which soaks.
func aRollout() *catalogv1.Rollout {
	at := func(ago time.Duration) *timestamppb.Timestamp { return timestamppb.New(time.Now().Add(-ago)) }
	return &catalogv1.Rollout{
		Id: "k3x9q2mzpa", Phase: "soaking", Actor: "chen", Started: at(50 * time.Minute), Wave: 1,
		Items: []*catalogv1.RolloutItem{{Repository: "shop/web", Tag: "stable", SourceRepository: "shop/web", SourceTag: "2.4.1", Target: &catalogv1.Descriptor{Digest: "sha256:" + strings.Repeat("3f9a", 16)}}},
		Plan: &catalogv1.Plan{Name: "prod", Timezone: "Asia/Shanghai", Waves: []*catalogv1.Wave{
			{Soak: durationpb.New(30 * time.Minute), MaxConcurrent: 1, OnFailure: "pause", OnOffline: "wait"},
			{Soak: durationpb.New(15 * time.Minute), MaxConcurrent: 4, OnFailure: "pause", OnOffline: "skip", Deadline: durationpb.New(6 * time.Hour)},
			{MaxConcurrent: 25, OnFailure: "rollback", OnOffline: "skip", Before: []*catalogv1.Gate{{Kind: &catalogv1.Gate_Approval{Approval: &catalogv1.Approval{}}}}},
		}},
		Waves: []*catalogv1.RolloutWave{
			{Name: "canary", Phase: "succeeded", Opened: at(50 * time.Minute), Closed: at(19 * time.Minute), Soaked: durationpb.New(30 * time.Minute)},
			{Name: "provinces", Phase: "soaking", Opened: at(19 * time.Minute), Soaked: durationpb.New(11 * time.Minute)},
			{Name: "rest", Phase: "pending"},
		},
		Groups: []*catalogv1.RolloutGroup{
			{Group: "hq/guangdong/shenzhen", Wave: 0, Phase: "succeeded", Since: at(48 * time.Minute)},
			{Group: "hq/guangdong", Wave: 1, Phase: "succeeded", Since: at(17 * time.Minute)}, {Group: "hq/hunan", Wave: 1, Phase: "offline", Reason: "unreachable when its turn came"},
			{Group: "hq/guangdong/foshan", Wave: 2, Phase: "pending"}, {Group: "hq/hunan/changsha", Wave: 2, Phase: "pending"},
		},
		Steps: []*catalogv1.RolloutStep{{At: at(50 * time.Minute), Actor: "chen", Text: "started"}, {At: at(19 * time.Minute), Actor: "fanout", Text: "wave canary succeeded"}},
	}
}
