package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/internal/wording"
	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/identity"
	"github.com/fanout-io/fanout/pkg/reconcile"
	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/tree"
)

// watchEvery is how often a watcher gets a new picture at most.
const watchEvery = 250 * time.Millisecond

// officePatience is how long a call waits for a member that was elected to take office: it first applies what is committed.
const officePatience = 5 * time.Second

// admin serves people. Questions about the tree go to the root of the group, which alone hears of everything below.
type admin struct {
	adminv1.UnimplementedAdminServiceServer
	a      *Agent
	local  bool // on the socket, which only the agent's user can open
	tunnel bool // for the groups above
}

// actor names who asks, and refuses agents other than those of this group, which pass a person's question on and say whose it is.
func (s *admin) actor(ctx context.Context) (string, error) {
	if s.local || s.a.identity == nil {
		return "local", nil
	}
	id, ok := identity.PeerID(ctx)
	switch {
	case !ok:
		return "", status.Error(codes.Unauthenticated, "the client showed no certificate with an identity")
	case id.User != "":
		return id.User, nil
	case id.Group == s.a.cfg.Group, s.tunnel && strings.HasPrefix(s.a.cfg.Group, id.Group+"/"):
		if person := behalf(ctx); person != "" && passedOn(ctx) {
			return person, nil // it asked for the name, and would have to be trusted anyway: it can propose
		}
		return "site " + id.Site, nil
	}
	return "", status.Errorf(codes.PermissionDenied, "%s is an agent of another group; use a user's certificate", id)
}

// root gives the root's admin service when this member is not the root.
func (s *admin) root(ctx context.Context) (adminv1.AdminServiceClient, error) {
	roster, err := s.settled(ctx)
	if err != nil {
		return nil, err
	}
	if roster.IsRoot {
		return nil, nil
	}
	if s.a.node.Removed() {
		return nil, status.Error(codes.FailedPrecondition, s.a.removedReason())
	}
	if roster.RootAddr == "" {
		return nil, s.noRoot()
	}
	conn, err := s.a.peers.conn(ctx, roster.RootAddr)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return adminv1.NewAdminServiceClient(conn), nil
}

func (s *admin) noRoot() error {
	return status.Errorf(codes.Unavailable, "group %s has no root now; it is being elected, or a majority of its members is down", s.a.cfg.Group)
}

// rootless says in words why there is no root to ask; empty: there is one, or this agent is no member.
func (a *Agent) rootless() string {
	if r := a.node.Roster(); r.IsRoot || r.Root != "" || a.node.Removed() {
		return ""
	}
	text := "group " + a.cfg.Group + " has no root now"
	if why := a.node.Waiting(); why != "" {
		text += ": " + strings.ReplaceAll(wording.Plain(why), "\n", "; ")
	}
	return text
}

// errRootMoved ends a picture that another has to draw now.
var errRootMoved = errors.New("the root moved")

// picture answers a question about the tree, once or with watch until ctx ends: elsewhere by passing it on, on the root by drawing, and where there is no root by drawing what this
// agent knows itself, with the reason.
func (s *admin) picture(ctx context.Context, watch bool, find func(context.Context) (adminv1.AdminServiceClient, error), pass func(adminv1.AdminServiceClient) error, draw func(noRoot string) error) error {
	for {
		root, err := find(ctx)
		alone := err != nil && s.a.rootless() != ""
		switch {
		case err != nil && !alone:
			return err
		case root != nil:
			return pass(root)
		}
		err = s.repeat(ctx, watch, func() error {
			noRoot := s.a.rootless()
			if alone != (noRoot != "") || !alone && !s.a.node.IsRoot() {
				return errRootMoved
			}
			// What is drawn alone says so whatever is elected meanwhile: it is not what the catalog says now. Nor is it known then what is not there.
			err := draw(noRoot)
			if alone && status.Code(err) == codes.NotFound {
				return status.Error(codes.Unavailable, status.Convert(err).Message())
			}
			return err
		})
		if !errors.Is(err, errRootMoved) {
			return err
		}
	}
}

// rootNow is root for what is answered, or done, by what the catalog says now: where this member is the root it has vouched for its office, and its catalog has all that was acknowledged before.
func (s *admin) rootNow(ctx context.Context) (adminv1.AdminServiceClient, error) {
	for {
		root, err := s.root(ctx)
		if root != nil || err != nil {
			return root, err
		}
		if err := s.current(ctx); err != nil {
			return nil, err
		}
		if s.a.node.IsRoot() {
			return nil, nil
		}
	}
}

// current waits until the catalog here has all that was acknowledged to anybody before the call.
func (s *admin) current(ctx context.Context) error {
	sctx, cancel := context.WithTimeout(ctx, officePatience)
	defer cancel()
	err := s.a.node.Sync(sctx)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case s.a.node.Removed():
		return status.Error(codes.FailedPrecondition, s.a.removedReason())
	case errors.Is(err, tree.ErrNoRoot):
		return s.noRoot()
	}
	return status.Errorf(codes.Unavailable, "what the catalog of group %s says now is not known: %v", s.a.cfg.Group, err)
}

// settled waits while this member was elected and has not taken office yet: it must not take itself for another root.
func (s *admin) settled(ctx context.Context) (tree.Roster, error) {
	changed, stop := s.a.node.WatchRoster()
	defer stop()
	t := time.NewTimer(officePatience)
	defer t.Stop()
	for {
		roster := s.a.node.Roster()
		if roster.IsRoot || roster.Root != s.a.cfg.Site {
			return roster, nil
		}
		select {
		case <-ctx.Done():
			return roster, ctx.Err()
		case <-t.C:
			return roster, status.Errorf(codes.Unavailable, "%s was elected root of group %s and has not taken office yet", s.a.cfg.Site, s.a.cfg.Group)
		case <-changed:
		}
	}
}

// relay passes a stream on from the root.
func relay[T any](from grpc.ServerStreamingClient[T], err error, to func(*T) error) error {
	if err != nil {
		return err
	}
	for {
		m, err := from.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := to(m); err != nil {
			return err
		}
	}
}

// repeat calls show now and, with watch, whenever something changed.
func (s *admin) repeat(ctx context.Context, watch bool, show func() error) error {
	health, stopHealth := s.a.node.WatchHealth()
	defer stopHealth()
	changed, stopChanged := s.a.node.Watch()
	defer stopChanged()
	roster, stopRoster := s.a.node.WatchRoster()
	defer stopRoster()
	for {
		if err := show(); err != nil || !watch {
			return err
		}
		if !sleep(ctx, watchEvery) {
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-health:
		case <-changed:
		case <-roster:
		}
	}
}

// Tree implements adminv1.AdminServiceServer.
func (s *admin) Tree(req *adminv1.TreeRequest, stream grpc.ServerStreamingServer[adminv1.TreeResponse]) error {
	if _, err := s.actor(stream.Context()); err != nil {
		return err
	}
	return s.picture(stream.Context(), req.GetWatch(), s.root, func(root adminv1.AdminServiceClient) error {
		from, err := root.Tree(stream.Context(), req)
		return relay(from, err, stream.Send)
	}, func(noRoot string) error {
		t := s.a.tree(req.GetGroup())
		if len(t.GetGroups()) == 0 {
			return s.a.unknownGroup(s.a.node.Health(), req.GetGroup())
		}
		t.NoRoot = cmp.Or(noRoot, t.GetNoRoot())
		return stream.Send(t)
	})
}

// Where implements adminv1.AdminServiceServer.
func (s *admin) Where(req *adminv1.WhereRequest, stream grpc.ServerStreamingServer[adminv1.WhereResponse]) error {
	if _, err := s.actor(stream.Context()); err != nil {
		return err
	}
	ref, err := parseRef(req.GetRef())
	if err != nil {
		return err
	}
	var sent *adminv1.WhereResponse
	where := func(noRoot string) error {
		rec, ok := s.a.node.Catalog().Get(ref)
		if !ok {
			return s.a.unknownRef(s.a.node.Health(), ref)
		}
		w := s.a.where(ref, rec)
		w.NoRoot = cmp.Or(noRoot, w.GetNoRoot())
		asOf := w.AsOf
		if w.AsOf = nil; proto.Equal(w, sent) {
			return nil // what changed is of other refs
		}
		sent = proto.CloneOf(w)
		w.AsOf = asOf
		return stream.Send(w)
	}
	return s.picture(stream.Context(), req.GetWatch(), s.rootNow, func(root adminv1.AdminServiceClient) error {
		from, err := root.Where(stream.Context(), req)
		return relay(from, err, stream.Send)
	}, where)
}

func parseRef(s string) (catalog.Ref, error) {
	repo, tag, err := registry.ParseRef(s)
	if err != nil {
		return catalog.Ref{}, status.Error(codes.InvalidArgument, err.Error())
	}
	return catalog.Ref{Repository: repo, Tag: tag}, nil
}

// hostHint is for a ref that is not found and looks as if a registry's host had been written before it.
func hostHint(ref catalog.Ref) string {
	if !registry.MayBeHost(ref.Repository) {
		return ""
	}
	first, rest, _ := strings.Cut(ref.Repository, "/")
	return fmt.Sprintf(" (if %s is the host of a registry, leave it out: %s:%s)", first, rest, ref.Tag)
}

// Images implements adminv1.AdminServiceServer.
func (s *admin) Images(req *adminv1.ImagesRequest, stream grpc.ServerStreamingServer[adminv1.ImagesResponse]) error {
	if _, err := s.actor(stream.Context()); err != nil {
		return err
	}
	pattern := req.GetRepository()
	if pattern == "" {
		pattern = "**"
	}
	if err := catalog.ValidatePattern(pattern); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if !req.GetLocal() {
		if err := s.current(stream.Context()); err != nil {
			st := status.Convert(err)
			return status.Errorf(st.Code(), "%s; 'fanoutctl images --local' shows what site %s has", st.Message(), s.a.cfg.Site)
		}
	}
	for raw := range s.a.node.Catalog().Records() {
		rec := s.a.shown(raw)
		_, signature := registry.IsCosignTag(rec.GetTag())
		if (!req.GetAll() && (signature || rec.GetDeleted())) || !catalog.MatchPatterns([]string{pattern}, nil, rec.GetRepository()) {
			continue
		}
		err := stream.Send(&adminv1.ImagesResponse{
			Ref: catalog.RefOf(rec).String(), Digest: rec.GetTarget().GetDigest(), MediaType: rec.GetTarget().GetMediaType(),
			Size: s.a.closureSize(rec), Revision: rec.GetRevision(), PublishedAt: rec.GetPublishedAt(), PublishedBy: rec.GetPublishedBy(), Origin: rec.GetOrigin(),
			Referrers: uint32(len(rec.GetReferrers())), Deleted: rec.GetDeleted(),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Version implements adminv1.AdminServiceServer.
func (s *admin) Version(context.Context, *adminv1.VersionRequest) (*adminv1.VersionResponse, error) {
	return &adminv1.VersionResponse{Version: s.a.opts.Version, Site: s.a.cfg.Site, Group: s.a.cfg.Group, Now: now()}, nil
}

// Publish implements adminv1.AdminServiceServer.
func (s *admin) Publish(req *adminv1.PublishRequest, stream grpc.ServerStreamingServer[adminv1.PublishResponse]) error {
	ctx := stream.Context()
	actor, err := s.actor(ctx)
	if err != nil {
		return err
	}
	ref, err := parseRef(req.GetRef())
	if err != nil {
		return err
	}
	if !s.a.cfg.Headquarters() {
		return status.Errorf(codes.FailedPrecondition, "group %s is not headquarters; publish at an agent of %s", s.a.cfg.Group, strings.Split(s.a.cfg.Group, "/")[0])
	}
	if err := s.current(ctx); err != nil {
		return err // what is here may long be replaced
	}
	settings := s.a.node.Catalog().Settings()
	if settings == nil {
		return status.Errorf(codes.Unavailable, "%v; the group may be without a root: try again", errNoCatalog)
	}
	if !publishable(settings.GetPublish(), ref) {
		return status.Errorf(codes.FailedPrecondition, "%s is not among publish.repositories, or is excluded", ref)
	}
	ctx = s.a.tracer.Join(ctx, askedTrace(ctx))
	rec, err := s.publishHere(ctx, ref, actor)
	if errors.Is(err, registry.ErrNotFound) {
		return s.publishElsewhere(req, ref, stream)
	}
	if err != nil {
		return err
	}
	s.a.traceAsked(ctx, ref, rec)
	return s.followPublish(ctx, req, ref, rec, stream)
}

// publishHere publishes what this site's registry shows; ErrNotFound when it shows nothing that is news.
func (s *admin) publishHere(ctx context.Context, ref catalog.Ref, actor string) (*catalogv1.Record, error) {
	if s.a.registry == nil {
		return nil, registry.ErrNotFound
	}
	for {
		got, err := s.publishOnce(ctx, ref, actor)
		if errors.Is(err, catalog.ErrUnderRollout) {
			return nil, status.Error(codes.FailedPrecondition, err.Error())
		}
		if err == nil || !errors.Is(err, errChanged) {
			return got, err
		}
		if !sleep(ctx, watchEvery) {
			return nil, ctx.Err()
		}
	}
}

// publishOnce looks and publishes while no worker has the ref in hand: one that is about to put what it delivers would put it over what is published here, and this site would take its own put for
// a push that came after.
func (s *admin) publishOnce(ctx context.Context, ref catalog.Ref, actor string) (*catalogv1.Record, error) {
	k := key{repository: ref.Repository, tag: ref.Tag}
	if err := s.a.queue.take(ctx, k); err != nil {
		return nil, err
	}
	defer s.a.queue.done(k, 0)
	looked := time.Now()
	ours, err := s.a.observe(ctx, ref)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	_, rec := s.a.record(ref)
	if ours == "" {
		return nil, registry.ErrNotFound
	}
	st, _, err := s.a.store.RefState(ref.String())
	if err != nil {
		return nil, err
	}
	if done, err := s.a.overwritten(ctx, ref, rec, st, ours); err != nil {
		return nil, err
	} else if done {
		return nil, errChanged // what was pushed here is published: look again
	}
	if rec != nil && !rec.GetDeleted() && rec.GetTarget().GetDigest() == ours {
		return rec, nil
	}
	v := reconcile.Merge(s.a.mergeInput(ref, rec, st, ours))
	if v.Action == reconcile.Deliver || v.Action == reconcile.Conflict {
		return nil, registry.ErrNotFound // what is here is older than the catalog; another site may have the news
	}
	return s.a.publish(ctx, ref, ours, rec, actor, looked)
}

// publishElsewhere asks the other members, of which one may have the ref. A question that was passed on already is not passed on again.
func (s *admin) publishElsewhere(req *adminv1.PublishRequest, ref catalog.Ref, stream grpc.ServerStreamingServer[adminv1.PublishResponse]) error {
	ctx := stream.Context()
	notFound := status.Errorf(codes.NotFound, "no registry of headquarters that answers has %s; push it first%s", ref, hostHint(ref))
	if passedOn(ctx) {
		return notFound
	}
	for _, m := range s.a.node.Roster().Members {
		if m.Site == s.a.cfg.Site {
			continue
		}
		conn, err := s.a.peers.conn(ctx, m.Addr)
		if err != nil {
			continue
		}
		from, err := adminv1.NewAdminServiceClient(conn).Publish(passOn(ctx), req)
		err = relay(from, err, stream.Send)
		if c := status.Code(err); c != codes.NotFound && c != codes.Unavailable {
			return err
		}
	}
	if _, rec := s.a.record(ref); rec != nil && !rec.GetDeleted() {
		return s.followPublish(ctx, req, ref, rec, stream) // published already, and shown or on its way here
	}
	return notFound
}

// followPublish streams what becomes of a record until it has its copies and, with wait, is everywhere.
func (s *admin) followPublish(ctx context.Context, req *adminv1.PublishRequest, ref catalog.Ref, rec *catalogv1.Record, stream grpc.ServerStreamingServer[adminv1.PublishResponse]) error {
	root, err := s.root(ctx)
	if err != nil {
		return err
	}
	var last *adminv1.PublishResponse
	seen := map[string]*timestamppb.Timestamp{} // by site: since when it was seen to show it
	show := func(w *adminv1.WhereResponse) (bool, error) {
		later := w.GetRevision() > rec.GetRevision()
		if later && w.GetDigest() == "" {
			return false, status.Errorf(codes.Aborted, "%s was deleted as revision %d before it was everywhere", ref, w.GetRevision())
		}
		for _, site := range w.GetSites() {
			if site.GetState() != "delivered" {
				delete(seen, site.GetSite())
			} else if seen[site.GetSite()] == nil {
				seen[site.GetSite()] = w.GetAsOf()
			}
		}
		p := s.a.publishProgress(rec, w)
		if later && w.GetDigest() != rec.GetTarget().GetDigest() {
			p.Message = strings.TrimPrefix(p.GetMessage()+fmt.Sprintf("; superseded by %s as revision %d, whose way is shown", w.GetDigest(), w.GetRevision()), "; ")
		}
		p.Done = p.GetCopies() >= p.GetCopiesWanted() && (!req.GetWait() || p.GetDelivered()+p.GetLeft() == p.GetSites())
		if p.GetDone() && req.GetWait() {
			p.Where = w.GetSites()
			for _, site := range p.GetWhere() {
				if site.GetState() == "delivered" && site.GetSince() == nil {
					site.Since = seen[site.GetSite()]
				}
			}
		}
		if last != nil && !p.GetDone() && samePublish(last, p) {
			return false, nil
		}
		last = p
		return p.GetDone(), stream.Send(p)
	}
	if root != nil {
		wctx, cancel := context.WithCancel(ctx)
		defer cancel()
		from, err := root.Where(wctx, &adminv1.WhereRequest{Ref: ref.String(), Watch: true})
		stop := errors.New("done")
		err = relay(from, err, func(w *adminv1.WhereResponse) error {
			done, err := show(w)
			if done && err == nil {
				return stop
			}
			return err
		})
		if errors.Is(err, stop) {
			return nil
		}
		return err
	}
	stop := errors.New("done")
	err = s.repeat(ctx, true, func() error {
		now, ok := s.a.node.Catalog().Get(ref)
		if !ok {
			return status.Errorf(codes.Aborted, "%s is no longer in the catalog", ref)
		}
		done, err := show(s.a.where(ref, now))
		if done && err == nil {
			return stop
		}
		return err
	})
	if errors.Is(err, stop) {
		return nil
	}
	return err
}

func samePublish(x, y *adminv1.PublishResponse) bool {
	return x.GetCopies() == y.GetCopies() && x.GetDelivered() == y.GetDelivered() && x.GetFailed() == y.GetFailed() && x.GetLeft() == y.GetLeft() &&
		x.GetBytesLeft() == y.GetBytesLeft() && x.GetSites() == y.GetSites() && x.GetRevision() == y.GetRevision() && x.GetMessage() == y.GetMessage()
}

// publishProgress counts a picture of a ref.
func (a *Agent) publishProgress(rec *catalogv1.Record, w *adminv1.WhereResponse) *adminv1.PublishResponse {
	p := &adminv1.PublishResponse{Ref: w.GetRef(), Digest: rec.GetTarget().GetDigest(), Revision: rec.GetRevision()}
	held := map[string]bool{} // by storage of headquarters that can have the closure: whether it has
	for _, s := range w.GetSites() {
		if s.GetState() == "unsubscribed" {
			continue
		}
		p.Sites++
		p.BytesLeft += s.GetBytesLeft()
		left := s.GetState() == "drifted" || s.GetState() == "accepted" || s.GetState() == "held" // nothing more is going to happen there
		if s.GetGroup() == a.cfg.Group && !left {
			st := a.storage(s.GetSite())
			held[st] = held[st] || s.GetState() == "delivered"
		}
		switch s.GetState() {
		case "delivered":
			p.Delivered++
		case "failed":
			p.Failed++
		case "drifted", "accepted", "held":
			p.Left++
		}
	}
	for _, has := range held {
		if has {
			p.Copies++
		}
	}
	want := a.node.Catalog().Settings().GetPublish().GetCopies()
	p.CopiesWanted = min(want, uint32(len(held)))
	if p.GetCopiesWanted() < want {
		p.Message = fmt.Sprintf("publish.copies is %d, but headquarters has %s that can have it", want, count(len(held), "registry", "registries"))
		if a.cfg.Registry.Shared != "" {
			p.Message += ", those that share a storage counted once"
		}
	}
	return p
}

func now() *timestamppb.Timestamp { return timestamppb.New(time.Now()) }
