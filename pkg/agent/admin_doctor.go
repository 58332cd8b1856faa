package agent

import (
	"context"
	"errors"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// Doctor implements adminv1.AdminServiceServer. It needs no root: without one it is wanted most.
func (s *admin) Doctor(req *adminv1.DoctorRequest, stream grpc.ServerStreamingServer[adminv1.DoctorResponse]) error {
	ctx := stream.Context()
	actor, err := s.actor(ctx)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	send := func(r *adminv1.DoctorResponse) error {
		mu.Lock()
		defer mu.Unlock()
		return stream.Send(r)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		r := &adminv1.DoctorResponse{Site: s.a.cfg.Site, Group: s.a.cfg.Group}
		for _, c := range s.a.doctor(gctx) {
			r.Checks = append(r.Checks, c.message())
		}
		return send(r)
	})
	for _, m := range s.a.node.Catalog().Members() {
		if m.GetSite() == s.a.cfg.Site || req.GetHere() || passedOn(ctx) {
			continue
		}
		g.Go(func() error {
			r, err := s.doctorAt(gctx, m.GetSite(), actor)
			if gctx.Err() != nil {
				return gctx.Err()
			}
			if err != nil {
				c := s.a.memberAway("agent", m.GetSite(), err)
				r = &adminv1.DoctorResponse{Site: m.GetSite(), Group: s.a.cfg.Group, Checks: []*adminv1.Check{c.message()}}
			}
			return send(r)
		})
	}
	return g.Wait()
}

// doctorAt has a fellow member look at itself.
func (s *admin) doctorAt(ctx context.Context, site, actor string) (*adminv1.DoctorResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	client, err := s.a.reach(ctx, site)
	if err != nil {
		return nil, err
	}
	from, err := client.Doctor(onBehalf(ctx, actor), &adminv1.DoctorRequest{Here: true})
	if err != nil {
		return nil, err
	}
	r, err := from.Recv()
	if errors.Is(err, io.EOF) {
		return nil, errors.New("its agent said nothing")
	}
	return r, err
}
