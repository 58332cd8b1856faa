package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/tree"
)

const (
	// maxCatalogPart is what one message of a saved catalog carries.
	maxCatalogPart = 1 << 20
	// maxSavedCatalog bounds what is read of one into memory.
	maxSavedCatalog = 1 << 30
)

// rootOnce is root for a call that changes something: one that was passed on is not passed on again.
func (s *admin) rootOnce(ctx context.Context) (adminv1.AdminServiceClient, error) {
	root, err := s.root(ctx)
	if root != nil && passedOn(ctx) {
		return nil, s.rootChanged()
	}
	return root, err
}

func (s *admin) rootChanged() error {
	return status.Errorf(codes.Unavailable, "the root of group %s has just changed", s.a.cfg.Group)
}

// SaveCatalog implements adminv1.AdminServiceServer. Any member saves what it has: it may be the last one that has it.
func (s *admin) SaveCatalog(_ *adminv1.SaveCatalogRequest, stream grpc.ServerStreamingServer[adminv1.SaveCatalogResponse]) error {
	if _, err := s.actor(stream.Context()); err != nil {
		return err
	}
	snap := s.a.node.Catalog()
	if snap.Position().GetEpoch() == "" || snap.Resyncing() != "" {
		return status.Errorf(codes.FailedPrecondition, "site %s holds no whole catalog now: it is being founded, received or restored", s.a.cfg.Site)
	}
	_, err := snap.WriteTo(partWriter(func(b []byte) error { return stream.Send(&adminv1.SaveCatalogResponse{Data: b}) }))
	return err
}

// partWriter writes parts that fit into a message.
type partWriter func([]byte) error

func (w partWriter) Write(b []byte) (int, error) {
	n := 0
	for n < len(b) {
		end := min(n+maxCatalogPart, len(b))
		if err := w(b[n:end]); err != nil {
			return n, err
		}
		n = end
	}
	return n, nil
}

// partReader reads the parts of a stream one after the other.
type partReader struct {
	next func() ([]byte, error)
	part []byte
	left int64
}

func (r *partReader) Read(b []byte) (int, error) {
	for len(r.part) == 0 {
		part, err := r.next()
		if err != nil {
			return 0, err
		}
		if r.left -= int64(len(part)); r.left < 0 {
			return 0, fmt.Errorf("%w: it has more than %d bytes", catalog.ErrCorrupt, int64(maxSavedCatalog))
		}
		r.part = part
	}
	n := copy(b, r.part)
	r.part = r.part[n:]
	return n, nil
}

// RestoreCatalog implements adminv1.AdminServiceServer.
func (s *admin) RestoreCatalog(stream grpc.ClientStreamingServer[adminv1.RestoreCatalogRequest, adminv1.RestoreCatalogResponse]) error {
	ctx := stream.Context()
	actor, err := s.actor(ctx)
	if err != nil {
		return err
	}
	if !s.a.cfg.Headquarters() {
		return status.Errorf(codes.FailedPrecondition, "group %s is not headquarters; a catalog is restored at an agent of %s", s.a.cfg.Group, strings.Split(s.a.cfg.Group, "/")[0])
	}
	root, err := s.rootOnce(ctx)
	if err != nil {
		return err
	}
	if root != nil {
		to, err := root.RestoreCatalog(onBehalf(ctx, actor))
		return relayUp(stream, to, err)
	}
	m, err := catalog.Restore(&partReader{left: maxSavedCatalog, next: func() ([]byte, error) {
		r, err := stream.Recv()
		return r.GetData(), err
	}})
	if err != nil {
		return rescueStatus(err)
	}
	saved := m.Snapshot()
	at, err := s.a.node.RestoreCatalog(ctx, actor, saved)
	if err != nil {
		s.a.logger.Warn("restoring a catalog", "actor", actor, "error", err)
		return rescueStatus(err)
	}
	from := saved.Position()
	s.a.events.normal("CatalogRestored", "", fmt.Sprintf("%s restored a catalog of %s, %s and %s, saved in epoch %s; it goes on from revision %d in epoch %s",
		actor, count(saved.Len(), "record"), count(len(saved.Policies()), "policy", "policies"), count(len(saved.Rollouts()), "rollout"), from.GetEpoch(), at.GetRevision(), at.GetEpoch()))
	return stream.SendAndClose(&adminv1.RestoreCatalogResponse{Epoch: at.GetEpoch(), From: from.GetEpoch(), Revision: at.GetRevision(), Records: uint64(saved.Len())})
}

// relayUp passes a stream of requests on to the root, and its answer back.
func relayUp[Req, Res any](from grpc.ClientStreamingServer[Req, Res], to grpc.ClientStreamingClient[Req, Res], err error) error {
	for err == nil {
		var m *Req
		if m, err = from.Recv(); err == nil {
			err = to.Send(m)
		} else if !errors.Is(err, io.EOF) {
			return err
		}
	}
	if !errors.Is(err, io.EOF) { // of Recv: that was all; of Send: the answer says why
		return err
	}
	res, err := to.CloseAndRecv()
	if err != nil {
		return err
	}
	return from.SendAndClose(res)
}

// AcceptEpoch implements adminv1.AdminServiceServer.
func (s *admin) AcceptEpoch(ctx context.Context, req *adminv1.AcceptEpochRequest) (*adminv1.AcceptEpochResponse, error) {
	actor, err := s.actor(ctx)
	if err != nil {
		return nil, err
	}
	root, err := s.rootOnce(ctx)
	if err != nil {
		return nil, err
	}
	if root != nil {
		return root.AcceptEpoch(onBehalf(ctx, actor), req)
	}
	epoch, held, err := s.a.node.AcceptEpoch(ctx, actor, req.GetEpoch())
	if err != nil {
		return nil, rescueStatus(err)
	}
	s.a.events.normal("EpochAccepted", "", fmt.Sprintf("%s accepted epoch %s in place of epoch %s, which was held up to revision %d", actor, epoch, held.GetEpoch(), held.GetRevision()))
	return &adminv1.AcceptEpochResponse{Epoch: epoch, Held: held.GetEpoch(), HeldRevision: held.GetRevision()}, nil
}

// rescueStatus is how what went wrong with these calls is told.
func rescueStatus(err error) error {
	switch {
	case errors.Is(err, tree.ErrRefused):
		return status.Error(codes.FailedPrecondition, strings.TrimPrefix(err.Error(), tree.ErrRefused.Error()+": "))
	case errors.Is(err, tree.ErrNotRoot):
		return status.Error(codes.Unavailable, "the root of the group has just changed")
	case errors.Is(err, catalog.ErrCorrupt):
		return status.Error(codes.InvalidArgument, err.Error())
	case errors.Is(err, tree.ErrUnknownOutcome):
		return status.Error(codes.Aborted, err.Error())
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Unavailable, err.Error())
}
