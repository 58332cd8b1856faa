package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// Sync returns nil when Catalog, here, has all that anybody was told to be committed before the call. It asks the group's root, which vouches for its office: one that was deposed and does
// not know it yet can't. While the group has no root it waits, until ctx ends: ErrNoRoot. It changes nothing, and may be called as often as one likes: the root answers all that wait with
// one entry of its log.
func (n *Node) Sync(ctx context.Context) error {
	changed, stop := n.rosterChanged.watch()
	defer stop()
	for {
		index, err := n.syncOnce(ctx)
		if err == nil {
			return n.applied(ctx, index)
		}
		if ctx.Err() == nil && !errors.Is(err, ErrNotRoot) && !errors.Is(err, ErrUnknownOutcome) {
			return fmt.Errorf("asking the root of %s how far its catalog is: %w", n.cfg.Group, err)
		}
		t := time.NewTimer(retryPause)
		select {
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("asking the root of %s how far its catalog is: %w: %w", n.cfg.Group, ErrNoRoot, context.Cause(ctx))
		case <-n.stopped:
			t.Stop()
			return ErrStopped
		case <-changed:
		case <-t.C:
		}
		t.Stop()
	}
}

// syncOnce returns the index of the log up to which this member must have applied it.
func (n *Node) syncOnce(ctx context.Context) (uint64, error) {
	if o := n.office.Load(); o != nil {
		return o.vouch(ctx)
	}
	site, _ := n.rootSite()
	addr := n.rootAddr()
	if site == "" || site == n.cfg.Site || addr == "" {
		return 0, ErrNotRoot
	}
	conn, err := n.cfg.Dial(ctx, addr)
	if err != nil {
		return 0, fmt.Errorf("%w: dialling %s: %w", ErrNotRoot, addr, err)
	}
	ctx, cancel := n.whileRoot(ctx, site)
	defer cancel()
	resp, err := treev1.NewTreeServiceClient(conn).Vouch(ctx, &treev1.VouchRequest{Site: n.cfg.Site})
	if status.Code(err) == codes.Unimplemented {
		// The root runs an earlier version, as while a group is upgraded one member at a time: what this member has must do.
		return 0, nil
	}
	if err != nil {
		return 0, fromStatus(err)
	}
	return resp.GetIndex(), nil
}

// applied waits until this member's catalog is that of an index of the log, or of a later one.
func (n *Node) applied(ctx context.Context, index uint64) error {
	changed, stop := n.fsm.changed.watch()
	defer stop()
	for n.fsm.reached() < index {
		select {
		case <-ctx.Done():
			return fmt.Errorf("this member has still to read what the group decided: %w", context.Cause(ctx))
		case <-n.stopped:
			return ErrStopped
		case <-changed:
		}
	}
	return nil
}

// Vouch implements the tree service.
func (s *service) Vouch(ctx context.Context, req *treev1.VouchRequest) (*treev1.VouchResponse, error) {
	if err := s.n.authorizeFellow(ctx, s.n.cfg.Group, req.GetSite()); err != nil {
		return nil, toStatus(err)
	}
	o := s.n.office.Load()
	if o == nil {
		return nil, toStatus(ErrNotRoot)
	}
	index, err := o.vouch(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	return &treev1.VouchResponse{Index: index}, nil
}

// vouch returns the index of the last command that this root has applied, once it is certain that no other root had committed anything before the call. ErrNotRoot: this one is no more.
func (o *office) vouch(ctx context.Context) (uint64, error) {
	done := make(chan error, 1)
	select {
	case o.vouches <- done: // unbuffered: the voucher has it
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	case <-o.ctx.Done():
		return 0, ErrNotRoot
	}
	select {
	case err := <-done:
		return o.n.fsm.reached(), err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// voucher answers all that wait with one entry of the log, which only a root can commit. Raft's VerifyLeader would cost no entry, and is not enough: it takes an answer of a follower to a heartbeat
// that was sent before the question. Of a process that was stopped and goes on such answers lie in its buffers, while another is root.
func (o *office) voucher() {
	for {
		select {
		case <-o.ctx.Done():
			return
		case done := <-o.vouches:
			waiting := []chan error{done}
			for more := true; more; {
				select {
				case done := <-o.vouches:
					waiting = append(waiting, done)
				default:
					more = false
				}
			}
			err := o.stands()
			for _, done := range waiting {
				done <- err
			}
		}
	}
}

// stands returns nil when this member was the root at some time after the call began, and its fsm's index is one that all members come to.
func (o *office) stands() error {
	servers, voters, err := o.count()
	switch {
	case err != nil:
	case servers == 1:
		// Nobody else can be elected, nobody else asks; and its disk may be full.
	case o.n.fsm.fromSnapshot():
		var data []byte
		if data, err = encodeCommand(&catalogv1.Command{Actor: actor}); err == nil {
			err = o.raft.Apply(data, o.n.cfg.Timeouts.Call).Error()
		}
	case voters > 1:
		err = o.raft.Barrier(o.n.cfg.Timeouts.Call).Error()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotRoot, err)
	}
	return nil
}

// count returns how many members the group has, and how many of them have a vote.
func (o *office) count() (servers, voters int, err error) {
	all, err := o.servers()
	for _, s := range all {
		if s.Suffrage == raft.Voter {
			voters++
		}
	}
	return len(all), voters, err
}

// indexedSnapshots tells the fsm to which index of the log a snapshot belongs that it is given to restore.
type indexedSnapshots struct{ raft.SnapshotStore }

// indexedSnapshot is the content of one.
type indexedSnapshot struct {
	io.ReadCloser
	index uint64
}

// Open implements raft.SnapshotStore.
func (s indexedSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, r, err := s.SnapshotStore.Open(id)
	if err != nil {
		return nil, nil, err
	}
	return meta, indexedSnapshot{r, meta.Index}, nil
}

// indexOf a snapshot that raft hands to the fsm.
func indexOf(r io.ReadCloser) uint64 {
	for {
		if s, ok := r.(indexedSnapshot); ok {
			return s.index
		}
		w, ok := r.(raft.ReadCloserWrapper)
		if !ok {
			return 0
		}
		r = w.WrappedReadCloser()
	}
}
