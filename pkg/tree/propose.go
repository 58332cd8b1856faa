package tree

import (
	"context"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/fanout-io/fanout/pkg/catalog"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

const (
	maxBatch      = 512     // changes gathered into one entry of the log
	maxBatchBytes = 1 << 20 // likewise
	maxForwarded  = 1000    // changes in one call
	retryPause    = 50 * time.Millisecond
)

// Propose hands changes to the group's root, from any member, and returns one result per change when a majority holds them. Revisions and time are the
// root's. Changes are applied in order, each accepted or refused on its own: see Result.Err. While the group has no root it waits, until ctx ends:
// ErrNoRoot. After ErrUnknownOutcome the changes may or may not be in force. At a member that is not the root, Catalog may show them a little later.
func (n *Node) Propose(ctx context.Context, actor string, changes ...*catalogv1.Change) ([]catalog.Result, error) {
	if len(changes) == 0 {
		return nil, nil
	}
	changed, stop := n.rosterChanged.watch()
	defer stop()
	for {
		results, err := n.proposeOnce(ctx, actor, changes)
		if !errors.Is(err, ErrNotRoot) {
			return results, err
		}
		n.metrics.proposals("again")
		t := time.NewTimer(retryPause)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, fmt.Errorf("proposing to the root of %s: %w: %s: %w", n.cfg.Group, ErrNoRoot, n.Waiting(), context.Cause(ctx))
		case <-n.stopped:
			t.Stop()
			return nil, ErrStopped
		case <-changed:
		case <-t.C:
		}
		t.Stop()
	}
}

// proposeOnce returns ErrNotRoot only when nothing was done.
func (n *Node) proposeOnce(ctx context.Context, actor string, changes []*catalogv1.Change) ([]catalog.Result, error) {
	if o := n.office.Load(); o != nil {
		return o.propose(ctx, actor, changes)
	}
	site, _ := n.rootSite()
	addr := n.rootAddr()
	if site == "" || site == n.cfg.Site || addr == "" {
		return nil, ErrNotRoot
	}
	conn, err := n.cfg.Dial(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("%w: dialling %s: %w", ErrNotRoot, addr, err)
	}
	ctx, cancel := n.whileRoot(ctx, site)
	defer cancel()
	resp, err := treev1.NewTreeServiceClient(conn).Propose(ctx, &treev1.ProposeRequest{Site: n.cfg.Site, Actor: actor, Changes: changes})
	if err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, ErrUnknownOutcome) {
			return nil, cause
		}
		return nil, fmt.Errorf("proposing to %s: %w", site, fromStatus(err))
	}
	if len(resp.GetResults()) != len(changes) {
		return nil, fmt.Errorf("%w: %s answered %d results to %d changes", ErrUnknownOutcome, site, len(resp.GetResults()), len(changes))
	}
	results := make([]catalog.Result, len(changes))
	for i, r := range resp.GetResults() {
		results[i] = fromResult(r)
	}
	return results, nil
}

// whileRoot returns a context that also ends, with ErrUnknownOutcome as its cause, when another member than this one is root. A root that hangs, as one whose machine was
// paused or cut off, answers nothing and breaks no connection, while the others go on without it. cancel must be called.
func (n *Node) whileRoot(ctx context.Context, site string) (_ context.Context, cancel func()) {
	ctx, end := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		changed, stop := n.rosterChanged.watch()
		defer stop()
		for {
			if now, _ := n.rootSite(); now != "" && now != site {
				end(fmt.Errorf("%w: %s was asked, and %s is the root now", ErrUnknownOutcome, site, now))
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
		}
	}()
	return ctx, func() { end(nil); <-done }
}

// Propose implements the tree service.
func (s *service) Propose(ctx context.Context, req *treev1.ProposeRequest) (*treev1.ProposeResponse, error) {
	if err := s.n.authorizeFellow(ctx, s.n.cfg.Group, req.GetSite()); err != nil {
		return nil, toStatus(err)
	}
	if len(req.GetChanges()) > maxForwarded {
		return nil, toStatus(rubbish("%d changes in one call, at most %d", len(req.GetChanges()), maxForwarded))
	}
	for i, c := range req.GetChanges() {
		if !forwarded(c) {
			return nil, toStatus(rubbish("change %d: %T is not proposed by members", i+1, c.GetKind()))
		}
	}
	o := s.n.office.Load()
	if o == nil {
		return nil, toStatus(ErrNotRoot)
	}
	results, err := o.propose(ctx, req.GetActor(), req.GetChanges())
	if err != nil {
		return nil, toStatus(err)
	}
	resp := &treev1.ProposeResponse{}
	for _, r := range results {
		resp.Results = append(resp.Results, toResult(r))
	}
	return resp, nil
}

// forwarded says whether a fellow member may propose a change: it publishes, unpublishes, tells of conflicts and passes on what a person says there of promotions. What
// concerns the group itself, and what is seen of a rollout, is the root's own doing.
func forwarded(c *catalogv1.Change) bool {
	switch c.GetKind().(type) {
	case *catalogv1.Change_Publish, *catalogv1.Change_Unpublish, *catalogv1.Change_ForgetGroup, *catalogv1.Change_NoteConflict, *catalogv1.Change_SettleConflict,
		*catalogv1.Change_NoteDeletion, *catalogv1.Change_SettleDeletion,
		*catalogv1.Change_StartRollout, *catalogv1.Change_SteerRollout, *catalogv1.Change_SetPolicies, *catalogv1.Change_SetFreeze:
		return true
	}
	return false
}

// proposal waits for its results. The proposer answers every one that it has taken.
type proposal struct {
	actor   string
	changes []*catalogv1.Change
	size    int
	done    chan outcome
}

type outcome struct {
	results []catalog.Result
	err     error
}

// propose hands changes to the proposer of this term. ErrNotRoot: nothing was done.
func (o *office) propose(ctx context.Context, actor string, changes []*catalogv1.Change) ([]catalog.Result, error) {
	p := &proposal{actor: actor, changes: make([]*catalogv1.Change, len(changes)), done: make(chan outcome, 1)}
	if !utf8.ValidString(actor) {
		return nil, rubbish("actor %q is not UTF-8", actor)
	}
	for i, c := range changes {
		// What can't be encoded, or decoded again by every member, must not reach the log, nor spoil the entry that it would share with others.
		if c.GetKind() == nil {
			return nil, rubbish("change %d has no kind", i+1)
		}
		if c.GetImport() == nil {
			if _, err := proto.Marshal(c); err != nil {
				return nil, rubbish("change %d: %v", i+1, err)
			}
		}
		p.changes[i] = ownChange(c)
		p.size += proto.Size(c)
	}
	select {
	case o.proposals <- p: // unbuffered: the proposer has it
	case <-ctx.Done():
		if err := o.n.DiskTrouble(); err != nil {
			return nil, fmt.Errorf("the raft log can't be written: %w: %w", err, context.Cause(ctx))
		}
		return nil, context.Cause(ctx)
	case <-o.ctx.Done():
		return nil, ErrNotRoot
	}
	select {
	case out := <-p.done:
		return out.results, out.err
	case <-ctx.Done():
		if err := o.n.DiskTrouble(); err != nil {
			return nil, fmt.Errorf("%w: the raft log can't be written: %w: %w", ErrUnknownOutcome, err, context.Cause(ctx))
		}
		return nil, fmt.Errorf("%w: %w", ErrUnknownOutcome, context.Cause(ctx))
	}
}

// ownChange returns a change whose revision may be set.
func ownChange(c *catalogv1.Change) *catalogv1.Change {
	if c.GetPublish() != nil || c.GetUnpublish() != nil {
		return proto.CloneOf(c)
	}
	return c
}

// proposer turns proposals into entries of the log. It is the only one that does in a term of office, and has one entry under way at a time: so the
// machine's last revision, which it counts on from, is exact, and gathering makes up for what that costs. Changes of rollouts, and a push that takes over what one
// promoted, give out revisions that are not counted: what stands behind them in an entry is stale and goes into the next.
func (o *office) proposer() {
	for {
		select {
		case <-o.ctx.Done():
			return
		case p := <-o.proposals:
			o.commit(o.gather(p))
		}
	}
}

// gather takes what else waits, as far as it goes into the same entry.
func (o *office) gather(first *proposal) []*proposal {
	batch, changes, size := []*proposal{first}, len(first.changes), first.size
	for changes < maxBatch && size < maxBatchBytes {
		select {
		case p := <-o.proposals:
			batch, changes, size = append(batch, p), changes+len(p.changes), size+p.size
		default:
			return batch
		}
	}
	return batch
}

// commit sees a batch through. An entry has one actor, so a batch is cut where the actor changes.
func (o *office) commit(batch []*proposal) {
	for len(batch) > 0 {
		k := 1
		for k < len(batch) && batch[k].actor == batch[0].actor {
			k++
		}
		o.commitRun(batch[:k])
		batch = batch[k:]
	}
}

// slot is one change of a run, and where its result goes.
type slot struct {
	change *catalogv1.Change
	result catalog.Result
}

func (o *office) commitRun(run []*proposal) {
	var slots []*slot
	for _, p := range run {
		for _, c := range p.changes {
			slots = append(slots, &slot{change: c})
		}
	}
	begun, err := o.applyAll(run[0].actor, slots)
	if err != nil {
		kind := ErrUnknownOutcome
		if definitelyNot(err) && !begun {
			kind = ErrNotRoot
		}
		err = fmt.Errorf("%w: %w", kind, err)
		o.n.metrics.proposals("failed")
	} else {
		o.n.metrics.proposals("committed")
	}
	for _, p := range run {
		out := outcome{err: err}
		for range p.changes {
			out.results = append(out.results, slots[0].result)
			slots = slots[1:]
		}
		if err != nil {
			out.results = nil
		}
		p.done <- out
	}
}

// applyAll applies changes until each has a result of its own. A change that was refused as stale merely stood behind one that was refused, against
// expectation, and so got no revision: it goes into the next entry. begun: something may be committed.
func (o *office) applyAll(actor string, slots []*slot) (begun bool, err error) {
	for rounds := len(slots); len(slots) > 0; rounds-- {
		o.assign(slots)
		cmd := &catalogv1.Command{Time: timestamppb.Now(), Actor: actor}
		for _, s := range slots {
			cmd.Changes = append(cmd.Changes, s.change)
		}
		results, err := o.apply(cmd)
		if err != nil {
			return begun, err
		}
		begun = true
		var again []*slot
		for i, s := range slots {
			s.result = results[i]
			if rounds > 1 && revised(s.change) && errors.Is(s.result.Err, catalog.ErrStale) {
				again = append(again, s)
			}
		}
		slots = again
	}
	return begun, nil
}

// apply commits one entry.
func (o *office) apply(cmd *catalogv1.Command) ([]catalog.Result, error) {
	data, err := encodeCommand(cmd)
	if err != nil {
		return nil, err
	}
	future := o.raft.Apply(data, o.n.cfg.Timeouts.Call)
	if err := future.Error(); err != nil {
		return nil, err
	}
	switch resp := future.Response().(type) {
	case []catalog.Result:
		if len(resp) == len(cmd.Changes) {
			return resp, nil
		}
		return nil, fmt.Errorf("%d results for %d changes", len(resp), len(cmd.Changes))
	case error:
		return nil, resp
	default:
		return nil, fmt.Errorf("no results: %T", resp)
	}
}

func revised(c *catalogv1.Change) bool { return c.GetPublish() != nil || c.GetUnpublish() != nil }

// assign gives consecutive revisions to the changes that will be accepted, as far as can be foreseen; one that will be refused uses none.
func (o *office) assign(slots []*slot) {
	snap := o.n.Catalog()
	next := snap.Position().GetRevision() + 1
	ahead := map[catalog.Ref]uint64{} // revisions that this entry gives
	for _, s := range slots {
		var (
			ref       catalog.Ref
			expect    uint64
			unchanged bool
		)
		switch {
		case s.change.GetPublish() != nil:
			p := s.change.GetPublish()
			p.Revision, p.Group = next, o.n.cfg.Group
			ref, expect = catalog.Ref{Repository: p.Repository, Tag: p.Tag}, p.Expect
			held, _ := snap.Get(ref)
			unchanged = ahead[ref] == 0 && (shows(held, p) && len(p.Settles) == 0 || moves(held, p) && snap.ActiveRollout(ref) != nil)
		case s.change.GetUnpublish() != nil:
			u := s.change.GetUnpublish()
			u.Revision = next
			ref, expect = catalog.Ref{Repository: u.Repository, Tag: u.Tag}, u.Expect
			held, _ := snap.Get(ref)
			unchanged = ahead[ref] == 0 && (held == nil || catalog.Tombstone(held) || snap.ActiveRollout(ref) != nil)
		default:
			continue
		}
		at, ok := ahead[ref]
		if !ok {
			held, _ := snap.Get(ref)
			at = held.GetRevision()
		}
		if at == expect && !unchanged {
			ahead[ref] = next
			next++
		}
	}
}

// moves says whether a publish is of another target than the publisher's group is to show.
func moves(rec *catalogv1.Record, p *catalogv1.Publish) bool {
	rec = catalog.Project(rec, p.GetGroup())
	return rec == nil || rec.Deleted || rec.GetTarget().GetDigest() != p.GetTarget().GetDigest()
}

// shows says whether a record is already what a publish would make it.
func shows(rec *catalogv1.Record, p *catalogv1.Publish) bool {
	if moves(rec, p) {
		return false
	}
	rec = catalog.Project(rec, p.GetGroup())
	held := map[string]bool{}
	for _, d := range rec.Referrers {
		held[d.GetDigest()] = true
	}
	for _, d := range p.Referrers {
		if !held[d.GetDigest()] {
			return false
		}
	}
	return true
}
