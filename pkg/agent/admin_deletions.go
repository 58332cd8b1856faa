package agent

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
)

// deletionsAtOnce is how many are proposed together.
const deletionsAtOnce = 200

// Deletions implements adminv1.AdminServiceServer.
func (s *admin) Deletions(ctx context.Context, req *adminv1.DeletionsRequest) (*adminv1.DeletionsResponse, error) {
	if _, err := s.actor(ctx); err != nil {
		return nil, err
	}
	if err := s.headquarters("ask for deletions"); err != nil {
		return nil, err
	}
	if root, err := s.rootNow(ctx); err != nil || root != nil {
		if err != nil {
			return nil, err
		}
		return root.Deletions(ctx, req)
	}
	resp := &adminv1.DeletionsResponse{}
	snap := s.a.node.Catalog()
	for d := range snap.AllDeletions() {
		ref := catalog.Ref{Repository: d.GetRepository(), Tag: d.GetTag()}
		_, rec := s.a.record(ref)
		info := &adminv1.DeletionInfo{Ref: ref.String(), Digest: rec.GetTarget().GetDigest(), Site: d.GetSite(), NotedAt: d.GetNotedAt(), State: "noted"}
		switch {
		case d.GetRestore():
			info.State = "restoring"
		case d.GetHeld():
			info.State = "held"
		}
		resp.Deletions = append(resp.Deletions, info)
	}
	return resp, nil
}

// listed gives the refs that a person named, each once, or all of which a deletion is held. Each must be listed.
func (s *admin) listed(refs []string, all bool) ([]catalog.Ref, error) {
	snap := s.a.node.Catalog()
	named := map[catalog.Ref]bool{}
	for _, text := range refs {
		ref, err := parseRef(text)
		if err != nil {
			return nil, err
		}
		named[ref] = true
	}
	var out []catalog.Ref
	for d := range snap.AllDeletions() {
		ref := catalog.Ref{Repository: d.GetRepository(), Tag: d.GetTag()}
		if (named[ref] || all && d.GetHeld()) && (len(out) == 0 || out[len(out)-1] != ref) {
			out = append(out, ref)
		}
		delete(named, ref)
	}
	for ref := range named {
		return nil, status.Errorf(codes.NotFound, "no deletion of %s is listed; 'fanoutctl deletions list' shows those that are", ref)
	}
	return out, nil
}

// AllowDeletions implements adminv1.AdminServiceServer. What a person allows is a deletion of his own, and is not counted among those that a registry showed.
func (s *admin) AllowDeletions(ctx context.Context, req *adminv1.AllowDeletionsRequest) (*adminv1.AllowDeletionsResponse, error) {
	actor, root, err := s.steer(ctx, "allow deletions")
	if err != nil {
		return nil, err
	}
	if root != nil {
		return root.AllowDeletions(onBehalf(ctx, actor), req)
	}
	refs, err := s.listed(req.GetRefs(), req.GetAll())
	if err != nil {
		return nil, err
	}
	snap := s.a.node.Catalog()
	settled, changed, err := s.settleDeletions(ctx, actor, refs, func(ref catalog.Ref) *catalogv1.Change {
		rec, _ := snap.Get(ref)
		return &catalogv1.Change{Kind: &catalogv1.Change_Unpublish{Unpublish: &catalogv1.Unpublish{Expect: rec.GetRevision(), Repository: ref.Repository, Tag: ref.Tag}}}
	})
	if err != nil {
		return nil, err
	}
	s.a.events.normal("DeletionsAllowed", "", fmt.Sprintf("%d, by %s", settled, actor))
	return &adminv1.AllowDeletionsResponse{Settled: settled, Changed: changed}, nil
}

// RestoreDeletions implements adminv1.AdminServiceServer. The sites do it when they hear of it.
func (s *admin) RestoreDeletions(ctx context.Context, req *adminv1.RestoreDeletionsRequest) (*adminv1.RestoreDeletionsResponse, error) {
	actor, root, err := s.steer(ctx, "restore deletions")
	if err != nil {
		return nil, err
	}
	if root != nil {
		return root.RestoreDeletions(onBehalf(ctx, actor), req)
	}
	refs, err := s.listed(req.GetRefs(), req.GetAll())
	if err != nil {
		return nil, err
	}
	settled, _, err := s.settleDeletions(ctx, actor, refs, func(ref catalog.Ref) *catalogv1.Change {
		return &catalogv1.Change{Kind: &catalogv1.Change_SettleDeletion{SettleDeletion: &catalogv1.SettleDeletion{Repository: ref.Repository, Tag: ref.Tag, Restore: true}}}
	})
	if err != nil {
		return nil, err
	}
	s.a.events.normal("DeletionsRestored", "", fmt.Sprintf("%d, by %s", settled, actor))
	return &adminv1.RestoreDeletionsResponse{Settled: settled}, nil
}

// settleDeletions proposes a change for each ref, many at once, and counts those that are in force and those that changed meanwhile. What is in force when one fails stays so; asking again does the rest.
func (s *admin) settleDeletions(ctx context.Context, actor string, refs []catalog.Ref, change func(catalog.Ref) *catalogv1.Change) (settled, changed uint32, err error) {
	for len(refs) > 0 {
		part := refs[:min(deletionsAtOnce, len(refs))]
		refs = refs[len(part):]
		var changes []*catalogv1.Change
		for _, ref := range part {
			changes = append(changes, change(ref))
		}
		pctx, cancel := context.WithTimeout(ctx, proposeTimeout)
		results, err := s.a.node.Propose(pctx, actor, changes...)
		cancel()
		if err != nil {
			return settled, changed, status.Errorf(codes.Unavailable, "after %d: %v", settled, err)
		}
		for i, r := range results {
			switch {
			case r.Err == nil, errors.Is(r.Err, catalog.ErrUnchanged):
				settled++
			case errors.Is(r.Err, catalog.ErrConflict), errors.Is(r.Err, catalog.ErrStale):
				changed++
			default:
				return settled, changed, status.Errorf(codes.Unavailable, "after %d: %s: %v", settled, part[i], r.Err)
			}
		}
	}
	return settled, changed, nil
}
