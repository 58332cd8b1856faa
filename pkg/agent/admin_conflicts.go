package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/transfer"
)

// changeTries is how often a person's change is proposed again when the record changed meanwhile.
const changeTries = 5

// maxSettled is how many digests a record remembers of those that lost; more are settled by asking again.
const maxSettled = 10

// noteConflict keeps what lost against the catalog's record under a hold and lists it, before the tag is moved: it must not be lost for want of a person who looks in time.
func (a *Agent) noteConflict(ctx context.Context, ref catalog.Ref, rec *catalogv1.Record, ours, reason string) error {
	a.events.warning("Conflict", ref.String(), fmt.Sprintf("%s; this site showed %s", reason, ours))
	target, _, err := a.readClosure(ctx, ref.Repository, ours)
	if errors.Is(err, registry.ErrNotFound) {
		return nil // it is not whole any more: there is nothing to choose
	}
	if err != nil {
		return fmt.Errorf("reading what lost: %w", err)
	}
	c := &catalogv1.Conflict{
		Repository: ref.Repository, Tag: ref.Tag, Target: target, Site: a.cfg.Site,
		Winner: rec.GetTarget().GetDigest(), Revision: rec.GetRevision(), Reason: reason, PushedBy: a.pushes.by(ref.String(), ours),
		WinnerSite: rec.GetOrigin(), WinnerPushedAt: rec.GetPushedAt(), WinnerPublishedBy: rec.GetPublishedBy(),
	}
	if at := a.pushes.of(ref.String(), ours); !at.IsZero() {
		c.PushedAt = timestamppb.New(at)
	}
	err = a.change(ctx, "sweep", &catalogv1.Change{Kind: &catalogv1.Change_NoteConflict{NoteConflict: &catalogv1.NoteConflict{Conflict: c, Current: true}}})
	if errors.Is(err, catalog.ErrConflict) {
		return errChanged // it may have been settled since, by a revision that knows what is here
	}
	if err != nil {
		return err
	}
	// Listed first: a sweep in between must not find a hold that nothing needs.
	return a.hold(ctx, ref.Repository, ours)
}

// change proposes one change of no record; one that would change nothing is done.
func (a *Agent) change(ctx context.Context, actor string, c *catalogv1.Change) error {
	_, err := a.changes(ctx, actor, c)
	return err
}

// changes also says why nothing would change.
func (a *Agent) changes(ctx context.Context, actor string, c *catalogv1.Change) (unchanged string, err error) {
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	results, err := a.node.Propose(ctx, actor, c)
	if err != nil {
		return "", err
	}
	if err := results[0].Err; errors.Is(err, catalog.ErrUnchanged) {
		return strings.TrimPrefix(err.Error(), catalog.ErrUnchanged.Error()+": "), nil
	}
	return "", results[0].Err
}

// headquarters refuses what can be done at headquarters only.
func (s *admin) headquarters(what string) error {
	if s.a.cfg.Headquarters() {
		return nil
	}
	return status.Errorf(codes.FailedPrecondition, "group %s is not headquarters; %s at an agent of %s", s.a.cfg.Group, what, strings.Split(s.a.cfg.Group, "/")[0])
}

// record finds a record that a person named.
func (s *admin) record(ref catalog.Ref) (*catalogv1.Record, error) {
	rec, ok := s.a.node.Catalog().Get(ref)
	if !ok {
		return nil, status.Errorf(codes.NotFound, "%s is not in the catalog; 'fanoutctl images' lists what is%s", ref, hostHint(ref))
	}
	return rec, nil
}

// Unpublish implements adminv1.AdminServiceServer. The root's catalog is the one to look at: so it is asked there.
func (s *admin) Unpublish(ctx context.Context, req *adminv1.UnpublishRequest) (*adminv1.UnpublishResponse, error) {
	actor, root, err := s.steer(ctx, "unpublish")
	if err != nil {
		return nil, err
	}
	if root != nil {
		return root.Unpublish(onBehalf(ctx, actor), req)
	}
	ref, err := parseRef(req.GetRef())
	if err != nil {
		return nil, err
	}
	ctx = s.a.tracer.Join(ctx, askedTrace(ctx))
	for range changeTries {
		rec, err := s.record(ref)
		if err != nil {
			return nil, err
		}
		already := catalog.Tombstone(rec)
		if !already {
			if rec, err = s.a.unpublish(ctx, ref, rec, "", actor); errors.Is(err, errChanged) {
				continue
			}
			if errors.Is(err, catalog.ErrUnderRollout) {
				return nil, status.Error(codes.FailedPrecondition, err.Error())
			}
			if err != nil {
				return nil, status.Error(codes.Unavailable, err.Error())
			}
		}
		return &adminv1.UnpublishResponse{
			Ref: ref.String(), Digest: rec.GetTarget().GetDigest(), Revision: rec.GetRevision(), UndoUntil: timestamppb.New(undoUntil(rec)),
			Already: already, DeletedBy: rec.GetPublishedBy(), DeletedAt: rec.GetPublishedAt(),
		}, nil
	}
	return nil, status.Errorf(codes.Aborted, "%s keeps changing; try again", ref)
}

// steer names who asks for a change at headquarters, and gives the root's service when this member is not the root.
func (s *admin) steer(ctx context.Context, what string) (actor string, root adminv1.AdminServiceClient, err error) {
	if actor, err = s.actor(ctx); err != nil {
		return "", nil, err
	}
	if err := s.headquarters(what); err != nil {
		return "", nil, err
	}
	root, err = s.rootNow(ctx)
	if root != nil && passedOn(ctx) {
		return "", nil, s.rootChanged()
	}
	return actor, root, err
}

// Undo implements adminv1.AdminServiceServer.
func (s *admin) Undo(ctx context.Context, req *adminv1.UndoRequest) (*adminv1.UndoResponse, error) {
	actor, root, err := s.steer(ctx, "undo")
	if err != nil {
		return nil, err
	}
	if root != nil {
		return root.Undo(onBehalf(ctx, actor), req)
	}
	ref, err := parseRef(req.GetRef())
	if err != nil {
		return nil, err
	}
	for range changeTries {
		rec, ok := s.a.node.Catalog().Get(ref)
		if !ok {
			return nil, status.Errorf(codes.NotFound, "there is nothing to undo: %s is not in the catalog, nor is a deletion of it, which is remembered for %s; 'fanoutctl images --all' lists what is", ref, days(undoTime))
		}
		if !catalog.Tombstone(rec) {
			return nil, status.Errorf(codes.FailedPrecondition, "there is nothing to undo: %s is not deleted; it shows %s since revision %d", ref, s.a.shown(rec).GetTarget().GetDigest(), rec.GetRevision())
		}
		if err := s.contentAt(ctx, ref, rec.GetTarget().GetDigest()); err != nil {
			return nil, err
		}
		got, err := s.a.tracePublish(s.a.tracer.Join(ctx, askedTrace(ctx)), spanUndo, ref, "", actor, func(ctx context.Context) (*catalogv1.Record, error) {
			return s.a.propose(ctx, ref, rec, rec.GetTarget(), rec.GetReferrers(), "", now().AsTime(), actor)
		})
		if errors.Is(err, errChanged) {
			continue
		}
		if err != nil {
			return nil, status.Error(codes.Unavailable, err.Error())
		}
		s.a.events.normal("Undone", ref.String(), fmt.Sprintf("%s as revision %d, by %s", got.GetTarget().GetDigest(), got.GetRevision(), actor))
		return &adminv1.UndoResponse{Ref: ref.String(), Digest: got.GetTarget().GetDigest(), Revision: got.GetRevision()}, nil
	}
	return nil, status.Errorf(codes.Aborted, "%s keeps changing; try again", ref)
}

// contentAt makes sure that some registry of headquarters still has a manifest, so that a record of it is no empty promise.
func (s *admin) contentAt(ctx context.Context, ref catalog.Ref, digest string) error {
	var words []string
	if s.a.registry != nil {
		target, _, err := s.a.readClosure(ctx, ref.Repository, digest)
		if err == nil {
			err = s.a.reallyHas(ctx, ref, target)
		}
		if err == nil {
			return nil
		}
		words = append(words, s.a.cfg.Site+": "+err.Error())
	}
	rec, _ := s.a.node.Catalog().Get(ref)
	purpose := &transferv1.Purpose{Repository: ref.Repository, Tag: ref.Tag, Revision: rec.GetRevision(), Root: digest}
	for _, m := range s.a.node.Roster().Members {
		if m.Site == s.a.cfg.Site {
			continue
		}
		_, err := s.a.askManifest(ctx, transfer.Source{Site: m.Site, Addr: m.Addr}, purpose, digest, true)
		if err == nil {
			return nil
		}
		words = append(words, m.Site+": "+err.Error())
	}
	if _, err := s.a.askManifests(ctx, s.a.below(ref.Repository), purpose, digest, false); err == nil {
		return nil // the content comes back from there
	}
	return status.Errorf(codes.FailedPrecondition, "no registry of headquarters that answers, and none below, has %s of %s any more (%s); push it again", digest, ref, strings.Join(words, "; "))
}

// Conflicts implements adminv1.AdminServiceServer.
func (s *admin) Conflicts(ctx context.Context, req *adminv1.ConflictsRequest) (*adminv1.ConflictsResponse, error) {
	if _, err := s.actor(ctx); err != nil {
		return nil, err
	}
	if err := s.headquarters("ask for conflicts"); err != nil {
		return nil, err
	}
	if root, err := s.rootNow(ctx); err != nil || root != nil {
		if err != nil {
			return nil, err
		}
		return root.Conflicts(ctx, req)
	}
	resp := &adminv1.ConflictsResponse{}
	for c := range s.a.node.Catalog().AllConflicts() {
		_, rec := s.a.record(catalog.Ref{Repository: c.GetRepository(), Tag: c.GetTag()})
		resp.Conflicts = append(resp.Conflicts, conflictInfo(c, rec))
	}
	return resp, nil
}

// conflictInfo describes a conflict and what its ref shows now.
func conflictInfo(c *catalogv1.Conflict, rec *catalogv1.Record) *adminv1.ConflictInfo {
	info := &adminv1.ConflictInfo{
		Ref: catalog.Ref{Repository: c.GetRepository(), Tag: c.GetTag()}.String(), NotedAt: c.GetNotedAt(), Reason: c.GetReason(),
		Loser: &adminv1.ConflictSide{Digest: c.GetTarget().GetDigest(), Site: c.GetSite(), PushedAt: c.GetPushedAt(), PushedBy: c.GetPushedBy()},
		Winner: &adminv1.ConflictSide{
			Digest: c.GetWinner(), Site: c.GetWinnerSite(), PushedAt: c.GetWinnerPushedAt(), PublishedBy: c.GetWinnerPublishedBy(),
			PushedBy: pushedBy(c.GetWinnerPublishedBy()), Revision: c.GetRevision(),
		},
		Now: &adminv1.ConflictSide{
			Digest: showsDigest(rec), Site: rec.GetOrigin(), PushedAt: rec.GetPushedAt(), PublishedBy: rec.GetPublishedBy(),
			PushedBy: pushedBy(rec.GetPublishedBy()), Revision: rec.GetRevision(),
		},
	}
	if info.Winner.GetPublishedBy() == "" && showsDigest(rec) == c.GetWinner() {
		// It was noted before these were kept with it.
		info.Winner.Site, info.Winner.PushedAt, info.Winner.PublishedBy, info.Winner.PushedBy = rec.GetOrigin(), rec.GetPushedAt(), rec.GetPublishedBy(), info.Now.GetPushedBy()
	}
	return info
}

// SettleConflict implements adminv1.AdminServiceServer. It is one change, made at a site that has the content: the record shows what is kept, knows what lost, and nothing of that is listed any more.
func (s *admin) SettleConflict(ctx context.Context, req *adminv1.SettleConflictRequest) (*adminv1.SettleConflictResponse, error) {
	actor, err := s.actor(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.headquarters("settle conflicts"); err != nil {
		return nil, err
	}
	ref, err := parseRef(req.GetRef())
	if err != nil {
		return nil, err
	}
	for range changeTries {
		if err := s.current(ctx); err != nil {
			return nil, err
		}
		resp, err := s.settleOnce(ctx, ref, req, actor)
		if !errors.Is(err, errChanged) {
			return resp, err
		}
	}
	return nil, status.Errorf(codes.Aborted, "%s keeps changing; try again", ref)
}

func (s *admin) settleOnce(ctx context.Context, ref catalog.Ref, req *adminv1.SettleConflictRequest, actor string) (*adminv1.SettleConflictResponse, error) {
	snap := s.a.node.Catalog()
	raw, ok := snap.Get(ref)
	if !ok {
		return nil, status.Errorf(codes.NotFound, "%s is not in the catalog; 'fanoutctl images' lists what is", ref)
	}
	rec, losers := s.a.shown(raw), slices.Collect(snap.Conflicts(ref))
	if len(losers) == 0 {
		return nil, status.Errorf(codes.NotFound, "no conflict over %s is listed; 'fanoutctl conflicts' lists all", ref)
	}
	p := &catalogv1.Publish{Expect: raw.GetRevision(), Repository: ref.Repository, Tag: ref.Tag, PushedAt: timestamppb.New(time.Now())}
	for _, c := range losers {
		if d := c.GetTarget().GetDigest(); !slices.Contains(p.Settles, d) && len(p.Settles) < maxSettled {
			p.Settles = append(p.Settles, d)
		}
	}
	if keep := req.GetKeep(); showsDigest(rec) == keep {
		p.Target = rec.GetTarget()
	} else {
		var err error
		lost := slices.IndexFunc(losers, func(c *catalogv1.Conflict) bool { return c.GetTarget().GetDigest() == keep })
		switch {
		case lost >= 0 && losers[lost].GetSite() != s.a.cfg.Site:
			return s.settleAt(ctx, losers[lost].GetSite(), actor, req)
		case lost >= 0:
			p.Target, p.Referrers, err = s.held(ctx, ref, keep)
		case slices.ContainsFunc(losers, func(c *catalogv1.Conflict) bool { return c.GetWinner() == keep }):
			// It won then and was superseded: nobody holds it, though a registry may have it still.
			if p.Target, p.Referrers, err = s.held(ctx, ref, keep); status.Code(err) == codes.FailedPrecondition && !passedOn(ctx) {
				return s.settleAnywhere(ctx, ref, actor, req, losers)
			}
		default:
			err = status.Errorf(codes.InvalidArgument, "%q is none of the digests that %s is in conflict over: keep %s", keep, ref, choices(rec, losers, ""))
		}
		if err != nil {
			return nil, err
		}
	}
	got, err := s.a.tracePublish(ctx, spanSettle, ref, rec.GetTraceparent(), actor, func(ctx context.Context) (*catalogv1.Record, error) {
		return s.a.proposePublish(ctx, p, actor)
	})
	switch {
	case errors.Is(err, errChanged):
		return nil, errChanged
	case errors.Is(err, catalog.ErrUnderRollout):
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	case err != nil:
		return nil, status.Error(codes.Unavailable, err.Error())
	case got.GetRevision() == raw.GetRevision():
		return nil, errChanged // somebody else has settled it
	}
	settled := 0
	for _, c := range losers {
		if slices.Contains(p.Settles, c.GetTarget().GetDigest()) {
			settled++
		}
	}
	s.a.events.normal("ConflictSettled", ref.String(), fmt.Sprintf("%s is kept, by %s", req.GetKeep(), actor))
	return &adminv1.SettleConflictResponse{Ref: ref.String(), Digest: req.GetKeep(), Revision: got.GetRevision(), Settled: uint32(settled), Losers: p.GetSettles()}, nil
}

// choices names what may be kept, and what each is; not one that is known to be gone.
func choices(rec *catalogv1.Record, losers []*catalogv1.Conflict, gone string) string {
	var out []string
	named := []string{gone}
	add := func(digest, what string) {
		if digest != "" && !slices.Contains(named, digest) {
			named = append(named, digest)
			out = append(out, digest+" ("+what+")")
		}
	}
	add(showsDigest(rec), "shown now")
	for _, c := range losers {
		add(c.GetTarget().GetDigest(), "lost, held at "+c.GetSite())
	}
	for _, c := range losers {
		add(c.GetWinner(), "won then")
	}
	return strings.Join(out, " or ")
}

// settleAt passes the question on to the site that holds what is to be kept.
func (s *admin) settleAt(ctx context.Context, site, actor string, req *adminv1.SettleConflictRequest) (*adminv1.SettleConflictResponse, error) {
	for _, m := range s.a.node.Roster().Members {
		if m.Site != site || passedOn(ctx) {
			continue
		}
		conn, err := s.a.peers.conn(ctx, m.Addr)
		if err != nil {
			return nil, status.Error(codes.Unavailable, err.Error())
		}
		return adminv1.NewAdminServiceClient(conn).SettleConflict(onBehalf(ctx, actor), req)
	}
	return nil, status.Errorf(codes.Unavailable, "%s is only at site %s, which is not connected now; try again when it is back", req.GetKeep(), site)
}

// settleAnywhere has one of the other members settle that has what is to be kept. It is asked when this one lacks it.
func (s *admin) settleAnywhere(ctx context.Context, ref catalog.Ref, actor string, req *adminv1.SettleConflictRequest, losers []*catalogv1.Conflict) (*adminv1.SettleConflictResponse, error) {
	var away []string
	for _, m := range s.a.node.Roster().Members {
		if m.Site == s.a.cfg.Site {
			continue
		}
		r, err := s.settleAt(ctx, m.Site, actor, req)
		switch status.Code(err) {
		case codes.OK:
			return r, nil
		case codes.FailedPrecondition: // it lacks it, too
		default:
			away = append(away, m.Site+": "+callWords(err))
		}
	}
	_, rec := s.a.record(ref)
	words := fmt.Sprintf("%s won then, was superseded since, and no registry of headquarters that answers has it whole any more", req.GetKeep())
	if len(away) > 0 {
		words += " (" + strings.Join(away, "; ") + ")"
	}
	return nil, status.Errorf(codes.FailedPrecondition, "%s: push it again, or keep %s", words, choices(rec, losers, req.GetKeep()))
}

// held describes what this site holds.
func (s *admin) held(ctx context.Context, ref catalog.Ref, digest string) (target *catalogv1.Descriptor, referrers []*catalogv1.Descriptor, err error) {
	if s.a.registry == nil {
		return nil, nil, status.Errorf(codes.FailedPrecondition, "%s has no registry", s.a.cfg.Site)
	}
	target, closure, err := s.a.readClosure(ctx, ref.Repository, digest)
	if err == nil {
		err = s.a.reallyHas(ctx, ref, target)
	}
	if err != nil {
		return nil, nil, status.Errorf(codes.FailedPrecondition, "the registry of %s no longer has %s whole: %v; push it again", s.a.cfg.Site, digest, err)
	}
	referrers, _, err = s.a.findReferrers(ctx, ref.Repository, closure.Manifests)
	if err != nil {
		return nil, nil, status.Error(codes.Unavailable, err.Error())
	}
	return target, referrers, nil
}
