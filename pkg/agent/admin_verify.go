package agent

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

const (
	// viewPatience is how long a site's catalog may take to equal this one: records are under way all the time.
	viewPatience = 5 * time.Second
	// viewTimeout bounds one question for a view.
	viewTimeout = 10 * time.Second
	// sitesAtOnce is how many sites are verified at a time.
	sitesAtOnce = 4
)

// reach gives an admin service that leads to another site of the fabric: the site's own where it is a member of this group, else that of the root of the child group on the
// way to it, through its tunnel.
func (a *Agent) reach(ctx context.Context, site string) (adminv1.AdminServiceClient, error) {
	if m := a.node.Catalog().Member(site); m.GetFabricAddress() != "" {
		conn, err := a.peers.conn(ctx, m.GetFabricAddress())
		if err != nil {
			return nil, status.Error(codes.Unavailable, err.Error())
		}
		return adminv1.NewAdminServiceClient(conn), nil
	}
	h := a.siteHealth(site)
	switch {
	case h == nil:
		return nil, a.unknownSite(a.node.Health(), site, "verify")
	case h.GetGroup() == a.cfg.Group:
		return nil, status.Errorf(codes.Unavailable, "the fabric address of %s is not known; its agent has not come yet", site)
	}
	if t, ok := a.node.Toward(h.GetGroup()); ok {
		return adminv1.NewAdminServiceClient(t.Conn), nil
	}
	return nil, status.Errorf(codes.Unavailable, "%s is in group %s, to which there is no way from here now: the group on the way is not attached", site, h.GetGroup())
}

// siteHealth finds a site among those that this agent knows of; nil: it is not there.
func (a *Agent) siteHealth(site string) *treev1.SiteHealth {
	for _, h := range a.node.Health().Sites {
		if h.GetSite() == site {
			return h
		}
	}
	return nil
}

// View implements adminv1.AdminServiceServer.
func (s *admin) View(ctx context.Context, req *adminv1.ViewRequest) (*adminv1.ViewResponse, error) {
	actor, err := s.actor(ctx)
	if err != nil {
		return nil, err
	}
	if req.GetSite() == "" || req.GetSite() == s.a.cfg.Site {
		return s.a.ownView(req.GetWithin()), nil
	}
	// Only the root hears of what is below.
	root, err := s.rootOnce(ctx)
	if err != nil {
		return nil, err
	}
	if root != nil {
		return root.View(onBehalf(ctx, actor), req)
	}
	client, err := s.a.reach(ctx, req.GetSite())
	if err != nil {
		return nil, err
	}
	return client.View(onBehalf(ctx, actor), req)
}

// Verify implements adminv1.AdminServiceServer. The root compares a site's catalog with its own, and has the site look at its registry.
func (s *admin) Verify(req *adminv1.VerifyRequest, stream grpc.ServerStreamingServer[adminv1.VerifyResponse]) error {
	ctx := stream.Context()
	actor, err := s.actor(ctx)
	if err != nil {
		return err
	}
	if req.GetRepair() && strings.HasPrefix(actor, "site ") {
		return status.Errorf(codes.PermissionDenied, "%s is an agent; a repair is for people to ask for", actor)
	}
	if req.GetSite() == s.a.cfg.Site && passedOn(ctx) {
		return s.a.verifyHere(ctx, req, actor, stream.Send)
	}
	root, err := s.rootOnce(ctx)
	if err != nil && !passedOn(ctx) && (req.GetSite() == "" || req.GetSite() == s.a.cfg.Site) {
		// Without a root this site can be looked at all the same.
		note := &adminv1.Difference{Kind: kindCatalogUnknown, Reason: "whether the catalog of this site is the newest is not known: " + callWords(err)}
		return s.a.verifyHere(ctx, req, actor, noting(note, stream.Send))
	}
	if err != nil {
		return err
	}
	if root != nil {
		from, err := root.Verify(onBehalf(ctx, actor), req)
		return relay(from, err, stream.Send)
	}
	if h := s.a.siteHealth(req.GetSite()); h != nil {
		return s.verifyReachable(ctx, h, req, actor, stream.Send)
	}
	if req.GetSite() != "" {
		return s.verifySite(ctx, req, actor, stream.Send)
	}
	return s.verifyAll(ctx, req, actor, stream.Send)
}

func (a *Agent) verifyHere(ctx context.Context, req *adminv1.VerifyRequest, actor string, send func(*adminv1.VerifyResponse) error) error {
	if req.GetRepair() {
		a.logger.Info("a verify with repair was asked for", "actor", actor, "deep", req.GetDeep())
	}
	return a.verify(ctx, req, send)
}

// noting adds a difference to what is sent of a site, before the last message.
func noting(d *adminv1.Difference, send func(*adminv1.VerifyResponse) error) func(*adminv1.VerifyResponse) error {
	return func(m *adminv1.VerifyResponse) error {
		if done := m.GetDone(); done != nil {
			if err := send(&adminv1.VerifyResponse{Site: m.GetSite(), Group: m.GetGroup(), What: &adminv1.VerifyResponse_Difference{Difference: d}}); err != nil {
				return err
			}
			var o differing
			o.add(d)
			o.judge(done)
		}
		return send(m)
	}
}

// verifyAll verifies every site that is known here, some at a time. Those that can't be reached are told as such.
func (s *admin) verifyAll(ctx context.Context, req *adminv1.VerifyRequest, actor string, send func(*adminv1.VerifyResponse) error) error {
	var mu sync.Mutex
	one := func(m *adminv1.VerifyResponse) error {
		mu.Lock()
		defer mu.Unlock()
		return send(m)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(sitesAtOnce)
	for _, h := range s.a.node.Health().Sites {
		g.Go(func() error {
			r := &adminv1.VerifyRequest{Site: h.GetSite(), Deep: req.GetDeep(), Repair: req.GetRepair(), TagsOnly: req.GetTagsOnly(), List: req.GetList(), Within: req.GetWithin()}
			return s.verifyReachable(gctx, h, r, actor, one)
		})
	}
	return g.Wait()
}

// verifyReachable is verifySite for a site that is known here. One that can't be reached is told as such: the question was answered as far as it can be.
func (s *admin) verifyReachable(ctx context.Context, h *treev1.SiteHealth, req *adminv1.VerifyRequest, actor string, send func(*adminv1.VerifyResponse) error) error {
	err := s.verifySite(ctx, req, actor, send)
	switch status.Code(err) {
	case codes.Unavailable, codes.NotFound, codes.Unimplemented, codes.FailedPrecondition, codes.PermissionDenied:
		done := &adminv1.VerifyDone{State: "unreachable", Reason: callWords(err)}
		return send(&adminv1.VerifyResponse{Site: h.GetSite(), Group: h.GetGroup(), What: &adminv1.VerifyResponse_Done{Done: done}})
	}
	return err
}

// verifySite compares a site's catalog with this one, in one round trip where they are equal, and has the site look at its registry.
func (s *admin) verifySite(ctx context.Context, req *adminv1.VerifyRequest, actor string, send func(*adminv1.VerifyResponse) error) error {
	if req.GetSite() == s.a.cfg.Site {
		return s.a.verifyHere(ctx, req, actor, send) // the root's catalog is the one that the others are compared with
	}
	client, err := s.a.reach(ctx, req.GetSite())
	if err != nil {
		return err
	}
	behind, err := s.a.compareViews(onBehalf(ctx, actor), client, req)
	if err != nil {
		return err
	}
	if behind != nil {
		send = noting(behind, send)
	}
	from, err := client.Verify(onBehalf(ctx, actor), req)
	return relay(from, err, send)
}

// compareViews says how a site's catalog differs from what this one has for its group; nil: not at all.
func (a *Agent) compareViews(ctx context.Context, client adminv1.AdminServiceClient, req *adminv1.VerifyRequest) (*adminv1.Difference, error) {
	begin := time.Now()
	for {
		vctx, cancel := context.WithTimeout(ctx, viewTimeout)
		theirs, err := client.View(vctx, &adminv1.ViewRequest{Site: req.GetSite(), Within: req.GetWithin()})
		cancel()
		if status.Code(err) == codes.DeadlineExceeded && ctx.Err() == nil {
			err = status.Errorf(codes.Unavailable, "%s does not answer within %s", req.GetSite(), viewTimeout)
		}
		if err != nil {
			return nil, err
		}
		snap := a.node.Catalog()
		scope := whole()
		if group := theirs.GetGroup(); group != a.cfg.Group {
			g, ok := snap.Group(group)
			if !ok {
				return &adminv1.Difference{Kind: kindCatalogBehind, Reason: fmt.Sprintf("group %s is not known here", group)}, nil
			}
			scope = g.GetDemand()
		}
		if viewDigest(snap, theirs.GetGroup(), scope, req.GetWithin()) == theirs.GetView() {
			return nil, nil
		}
		if time.Since(begin) > viewPatience {
			return &adminv1.Difference{Kind: kindCatalogBehind, Shown: theirs.GetView(), Reason: viewsDiffer(snap.Position(), theirs)}, nil
		}
		if !sleep(ctx, watchEvery) {
			return nil, ctx.Err()
		}
	}
}

func viewsDiffer(own *catalogv1.Position, theirs *adminv1.ViewResponse) string {
	switch {
	case own.GetEpoch() != theirs.GetEpoch():
		return fmt.Sprintf("its catalog is of epoch %s, this one of %s", theirs.GetEpoch(), own.GetEpoch())
	case own.GetRevision() != theirs.GetRevision():
		return fmt.Sprintf("its catalog is at revision %d, this one at %d", theirs.GetRevision(), own.GetRevision())
	}
	return fmt.Sprintf("its catalog differs from this one, both at revision %d", own.GetRevision())
}
