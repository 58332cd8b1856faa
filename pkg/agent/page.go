package agent

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	webpage "github.com/fanout-io/fanout/pkg/web"
)

// maxPendingShown bounds what Pending lists of a site.
const maxPendingShown = 1000

// Pending implements adminv1.AdminServiceServer.
func (s *admin) Pending(req *adminv1.PendingRequest, stream grpc.ServerStreamingServer[adminv1.PendingResponse]) error {
	if _, err := s.actor(stream.Context()); err != nil {
		return err
	}
	return s.picture(stream.Context(), req.GetWatch(), s.root, func(root adminv1.AdminServiceClient) error {
		from, err := root.Pending(stream.Context(), req)
		return relay(from, err, stream.Send)
	}, func(string) error {
		p := s.a.pendingAt(req.GetSite())
		if p == nil {
			return status.Errorf(codes.NotFound, "no site %q is known here; 'fanoutctl tree' lists them", req.GetSite())
		}
		return stream.Send(p)
	})
}

// pendingAt lists what a site does not show as it should; nil: the site is not known.
func (a *Agent) pendingAt(site string) *adminv1.PendingResponse {
	var refs []catalog.Ref
	pending := a.node.PendingAt(site)
	trouble := map[catalog.Ref]*treev1.Trouble{}
	for _, p := range pending[:min(len(pending), maxPendingShown)] {
		ref := catalog.Ref{Repository: p.GetRepository(), Tag: p.GetTag()}
		refs, trouble[ref] = append(refs, ref), p.GetTrouble()
	}
	view := a.node.Health(refs...)
	for _, h := range view.Sites {
		if h.GetSite() != site {
			continue
		}
		out := &adminv1.PendingResponse{Site: site, Group: h.GetGroup(), AsOf: now(), RefsTotal: max(h.GetPendingTotal(), uint64(len(pending)))}
		for _, ref := range refs {
			rec, ok := a.node.Catalog().Get(ref)
			if !ok {
				continue
			}
			if at := a.siteRef(view, h, ref, rec); at.GetState() != "delivered" && at.GetState() != "unsubscribed" {
				out.Refs = append(out.Refs, &adminv1.PendingAtSite{Ref: ref.String(), At: at, Trouble: trouble[ref]})
			}
		}
		return out
	}
	return nil
}

// page lets the web page ask what people ask, without a connection. Its questions are those of somebody at the agent's own machine, and none of them changes anything.
type page struct{ admin *admin }

var _ webpage.Fabric = page{}

// answer is the stream of a call within the process.
type answer[T any] struct {
	grpc.ServerStream // nil: nothing else of it is used
	ctx               context.Context
	send              func(*T) error
}

func (s answer[T]) Context() context.Context { return s.ctx }
func (s answer[T]) Send(m *T) error          { return s.send(m) }

// Tree implements web.Fabric.
func (p page) Tree(ctx context.Context, req *adminv1.TreeRequest, send func(*adminv1.TreeResponse) error) error {
	return p.admin.Tree(req, answer[adminv1.TreeResponse]{ctx: ctx, send: send})
}

// Where implements web.Fabric.
func (p page) Where(ctx context.Context, req *adminv1.WhereRequest, send func(*adminv1.WhereResponse) error) error {
	return p.admin.Where(req, answer[adminv1.WhereResponse]{ctx: ctx, send: send})
}

// Pending implements web.Fabric.
func (p page) Pending(ctx context.Context, req *adminv1.PendingRequest, send func(*adminv1.PendingResponse) error) error {
	return p.admin.Pending(req, answer[adminv1.PendingResponse]{ctx: ctx, send: send})
}

// Rollouts implements web.Fabric.
func (p page) Rollouts(ctx context.Context, req *adminv1.RolloutsRequest, send func(*adminv1.RolloutsResponse) error) error {
	return p.admin.Rollouts(req, answer[adminv1.RolloutsResponse]{ctx: ctx, send: send})
}

// Why implements web.Fabric.
func (p page) Why(ctx context.Context, req *adminv1.WhyRequest) (*adminv1.WhyResponse, error) {
	return p.admin.Why(ctx, req)
}

// Images implements web.Lists.
func (p page) Images(ctx context.Context, req *adminv1.ImagesRequest, send func(*adminv1.ImagesResponse) error) error {
	return p.admin.Images(req, answer[adminv1.ImagesResponse]{ctx: ctx, send: send})
}

// Events implements web.Lists.
func (p page) Events(ctx context.Context, req *adminv1.EventsRequest, send func(*adminv1.EventsResponse) error) error {
	return p.admin.Events(req, answer[adminv1.EventsResponse]{ctx: ctx, send: send})
}

// Conflicts implements web.Lists.
func (p page) Conflicts(ctx context.Context) (*adminv1.ConflictsResponse, error) {
	return p.admin.Conflicts(ctx, &adminv1.ConflictsRequest{})
}

// Deletions implements web.Lists.
func (p page) Deletions(ctx context.Context) (*adminv1.DeletionsResponse, error) {
	return p.admin.Deletions(ctx, &adminv1.DeletionsRequest{})
}

// Version implements web.Lists.
func (p page) Version(ctx context.Context) (*adminv1.VersionResponse, error) {
	return p.admin.Version(ctx, &adminv1.VersionRequest{})
}
