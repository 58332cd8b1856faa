package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

const (
	linClients = 6
	linRefs    = 3 // in use at a time
	// linUnanswered settlements of one ref are enough: each may have happened at any time since, and doubles the work of the checker.
	linUnanswered = 4
	linRound      = 5 * time.Second // then others are: what stays without an answer makes a history hard to check
)

// linObject is a ref's record, or its list of conflicts.
type linObject struct {
	ref  string
	list bool
}

// linRun is what the clients do and are told.
type linRun struct {
	began   time.Time
	members []*site
	conns   map[*site]adminv1.AdminServiceClient

	mu       sync.Mutex
	history  map[linObject][]porcupine.Operation
	refs     []string // that were used
	answered map[linKind]int
	open     map[linKind]int // without an answer
}

func newLinRun(sites []*site) *linRun {
	r := &linRun{
		began: time.Now(), members: sites, conns: map[*site]adminv1.AdminServiceClient{}, history: map[linObject][]porcupine.Operation{},
		answered: map[linKind]int{}, open: map[linKind]int{},
	}
	for _, s := range sites {
		again := grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.2, MaxDelay: 300 * time.Millisecond}, MinConnectTimeout: time.Second}
		conn, err := grpc.NewClient("passthrough:///"+s.fabric, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(again))
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { _ = conn.Close() })
		r.conns[s] = adminv1.NewAdminServiceClient(conn)
	}
	return r
}

// now is a moment of the history.
func (r *linRun) now() int64 { return int64(time.Since(r.began)) }

// ref is one of those in use.
func (r *linRun) ref(rng *rand.Rand) string {
	ref := fmt.Sprintf("lin/r%d:t", int(time.Since(r.began)/linRound)*linRefs+rng.IntN(linRefs))
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(r.refs, ref) {
		r.refs = append(r.refs, ref)
	}
	return ref
}

// note enters an operation. A push and a note are open from the start, others when no answer came.
func (r *linRun) note(client int, ref string, call int64, o linOp) {
	ret := r.now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if o.unknown {
		ret = never
		r.open[o.kind]++
	} else {
		r.answered[o.kind]++
	}
	k := linObject{ref, o.kind.list()}
	r.history[k] = append(r.history[k], porcupine.Operation{ClientId: client, Input: o, Call: call, Return: ret})
}

// unanswered counts what settled a conflict over a ref, or did not. While the site of what lost is away a client would try that a hundred times in a round.
func (r *linRun) unanswered(ref string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, op := range r.history[linObject{ref, true}] {
		if o := op.Input.(linOp); o.kind == linSettle && o.unknown {
			n++
		}
	}
	return n
}

// linClient asks and commands at all members, one thing after the other.
type linClient struct {
	*linRun
	n   int
	rng *rand.Rand
}

func (c *linClient) run(ctx context.Context) {
	for ctx.Err() == nil {
		s, ref := c.members[c.rng.IntN(len(c.members))], c.ref(c.rng)
		// Some have no patience, so that their commands stay without an answer; some wait until a root that was stopped answers.
		patience := []time.Duration{300 * time.Millisecond, 2 * time.Second, 8 * time.Second, 8 * time.Second}[c.rng.IntN(4)]
		kind := c.rng.IntN(100)
		once, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		switch {
		case kind < 12:
			c.push(once, s, ref)
		case kind < 20:
			c.duel(once, ref)
		case kind < 42:
			_ = c.where(once, s, ref)
		case kind < 64:
			_ = c.images(once, s, ref)
		case kind < 74:
			_, _ = c.conflicts(once, s, ref)
		case kind < 81:
			c.unpublish(once, s, ref)
		case kind < 90:
			c.undo(once, s, ref)
		default:
			c.settle(once, s, ref)
		}
		cancel()
	}
}

// push pushes a new image, and publishes it.
func (c *linClient) push(ctx context.Context, s *site, ref string) {
	img, err := random.Image(256, 1, random.WithSource(newSource()))
	if err != nil {
		s.t.Error(err)
		return
	}
	d, err := img.Digest()
	if err != nil {
		s.t.Error(err)
		return
	}
	call := c.now()
	err = remote.Write(reference(s.t, s, ref), img, remote.WithContext(ctx))
	c.note(c.n, ref, call, linOp{kind: linPush, digest: d.String(), at: s.name, unknown: true})
	c.note(c.n, ref, call, linOp{kind: linNote, digest: d.String() + "@" + s.name, unknown: true})
	if err != nil {
		return
	}
	call = c.now()
	o := linOp{kind: linPublish, digest: d.String(), at: s.name}
	m, err := first(c.conns[s].Publish(ctx, &adminv1.PublishRequest{Ref: ref}))
	if refused(err) {
		return
	}
	if o.unknown = err != nil; !o.unknown {
		o.digest, o.revision = m.GetDigest(), m.GetRevision()
	}
	c.note(c.n, ref, call, o)
}

// duel pushes two images at two members at the same moment: before either agent hears of the other push. One of them loses.
func (c *linClient) duel(ctx context.Context, ref string) {
	i := c.rng.IntN(len(c.members))
	other := &linClient{c.linRun, linClients + 1 + c.n, nil}
	var wg sync.WaitGroup
	wg.Go(func() { other.push(ctx, c.members[(i+1)%len(c.members)], ref) })
	c.push(ctx, c.members[i], ref)
	wg.Wait()
}

// first reads the first message of a stream.
func first[T any](stream grpc.ServerStreamingClient[T], err error) (*T, error) {
	if err != nil {
		return nil, err
	}
	return stream.Recv()
}

// refused says whether an error is a word for "nothing was done": anything else leaves that open.
func refused(err error) bool {
	switch status.Code(err) {
	case codes.NotFound, codes.FailedPrecondition, codes.InvalidArgument:
		return true
	}
	return false
}

// where asks for a ref, and returns the error if there was no answer.
func (c *linClient) where(ctx context.Context, s *site, ref string) error {
	call := c.now()
	w, err := first(c.conns[s].Where(ctx, &adminv1.WhereRequest{Ref: ref}))
	switch {
	case status.Code(err) == codes.NotFound:
		c.note(c.n, ref, call, linOp{kind: linLook, at: s.name})
		return nil
	case err == nil && w.GetNoRoot() != "":
		return status.Error(codes.Unavailable, w.GetNoRoot()) // it says itself that this is not what the catalog says now
	case err == nil:
		c.note(c.n, ref, call, linOp{kind: linLook, at: s.name, digest: w.GetDigest(), deleted: w.GetDigest() == "", revision: w.GetRevision()})
	}
	return err
}

func (c *linClient) images(ctx context.Context, s *site, ref string) error {
	call := c.now()
	repo, _, _ := strings.Cut(ref, ":")
	stream, err := c.conns[s].Images(ctx, &adminv1.ImagesRequest{Repository: repo, All: true})
	if err != nil {
		return err
	}
	o := linOp{kind: linLook, at: s.name}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			c.note(c.n, ref, call, o)
			return nil
		}
		if err != nil {
			return err
		}
		o.digest, o.deleted, o.revision = m.GetDigest(), m.GetDeleted(), m.GetRevision()
	}
}

// conflicts notes the answer for ref and for all refs over which there are some, and returns these.
func (c *linClient) conflicts(ctx context.Context, s *site, ref string) ([]*adminv1.ConflictInfo, error) {
	call := c.now()
	resp, err := c.conns[s].Conflicts(ctx, &adminv1.ConflictsRequest{})
	if err != nil {
		return nil, err
	}
	losers := map[string][]string{ref: nil}
	for _, x := range resp.GetConflicts() {
		losers[x.GetRef()] = append(losers[x.GetRef()], x.GetLoser().GetDigest()+"@"+x.GetLoser().GetSite())
	}
	for ref, all := range losers {
		c.note(c.n, ref, call, linOp{kind: linList, at: s.name, listed: joined(all)})
	}
	return resp.GetConflicts(), nil
}

func (c *linClient) unpublish(ctx context.Context, s *site, ref string) {
	call := c.now()
	resp, err := c.conns[s].Unpublish(ctx, &adminv1.UnpublishRequest{Ref: ref})
	if refused(err) {
		return
	}
	c.note(c.n, ref, call, linOp{kind: linUnpublish, at: s.name, unknown: err != nil, digest: resp.GetDigest(), revision: resp.GetRevision()})
	if err == nil && c.rng.IntN(2) == 0 {
		c.undo(ctx, c.members[c.rng.IntN(len(c.members))], ref)
	}
}

func (c *linClient) undo(ctx context.Context, s *site, ref string) {
	call := c.now()
	resp, err := c.conns[s].Undo(ctx, &adminv1.UndoRequest{Ref: ref})
	if !refused(err) {
		c.note(c.n, ref, call, linOp{kind: linUndo, at: s.name, unknown: err != nil, digest: resp.GetDigest(), revision: resp.GetRevision()})
	}
}

// settle asks what is in conflict, and keeps one of the losers, or what another member shows.
func (c *linClient) settle(ctx context.Context, s *site, ref string) {
	list, err := c.conflicts(ctx, s, ref)
	if err != nil || len(list) == 0 {
		return
	}
	x := list[c.rng.IntN(len(list))]
	keep := x.GetLoser().GetDigest()
	if c.rng.IntN(2) == 0 {
		w, err := first(c.conns[c.members[c.rng.IntN(len(c.members))]].Where(ctx, &adminv1.WhereRequest{Ref: x.GetRef()}))
		if err != nil || w.GetDigest() == "" {
			return
		}
		keep = w.GetDigest()
	}
	if c.unanswered(x.GetRef()) < linUnanswered {
		_ = c.keep(ctx, s, x.GetRef(), keep)
	}
}

func (c *linClient) keep(ctx context.Context, s *site, ref, keep string) error {
	call := c.now()
	resp, err := c.conns[s].SettleConflict(ctx, &adminv1.SettleConflictRequest{Ref: ref, Keep: keep})
	if status.Code(err) == codes.NotFound && strings.Contains(err.Error(), "no conflict over") {
		c.note(c.n, ref, call, linOp{kind: linList, at: s.name})
		return err
	}
	if refused(err) {
		return err
	}
	c.note(c.n, ref, call, linOp{kind: linKeep, at: s.name, unknown: err != nil, digest: keep, revision: resp.GetRevision()})
	c.note(c.n, ref, call, linOp{kind: linSettle, at: s.name, unknown: err != nil, digest: keep, listed: joined(resp.GetLosers())})
	return err
}
