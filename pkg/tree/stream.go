package tree

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

var (
	errSilent   = errors.New("nothing was heard for too long")
	errReplaced = errors.New("another stream took this one's place")
	errAgain    = errors.New("attach again")
)

// service implements treev1.TreeServiceServer.
type service struct {
	treev1.UnimplementedTreeServiceServer
	n *Node
}

// Register registers the tree service. It may be done before Run; until then, and after it, callers are told that this is not the root.
func (n *Node) Register(r grpc.ServiceRegistrar) {
	treev1.RegisterTreeServiceServer(r, &service{n: n})
}

// Identify implements the tree service.
func (s *service) Identify(context.Context, *treev1.IdentifyRequest) (*treev1.IdentifyResponse, error) {
	return s.n.identity(), nil
}

// held is a stream that is held open. Its context ends with the reason.
type held struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	heard  atomic.Int64
	busy   atomic.Bool // what was heard is being worked on: that it is not read from meanwhile is not the other side's silence
}

func hold(ctx context.Context) *held {
	h := &held{}
	h.ctx, h.cancel = context.WithCancelCause(ctx)
	h.touch()
	return h
}

// touch notes that the other side was heard.
func (h *held) touch() { h.heard.Store(time.Now().UnixNano()) }

// watch ends the stream when the other side is silent for too long. It returns when the stream's context ends.
func (h *held) watch(silence time.Duration) {
	tick := time.NewTicker(silence / 5)
	defer tick.Stop()
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-tick.C:
			if h.busy.Load() {
				h.touch()
			}
			if quiet := time.Since(time.Unix(0, h.heard.Load())); quiet > silence {
				h.cancel(fmt.Errorf("%w: %s", errSilent, quiet.Round(time.Millisecond)))
				return
			}
		}
	}
}

// serveStream runs the body of a stream's handler and returns when it has ended, or when the term of office has, or the other side is silent. A Send that blocks
// because the other side does not read, and a Recv, end only when the handler has returned: so the body runs beside it, and Run waits for it.
func (n *Node) serveStream(o *office, ctx context.Context, silence time.Duration, body func(h *held) error) error {
	h := hold(ctx)
	defer h.cancel(nil)
	result := make(chan error, 1)
	if !n.track(func() { result <- body(h) }) {
		return toStatus(ErrStopped)
	}
	if !n.track(func() { h.watch(silence) }) {
		return toStatus(ErrStopped)
	}
	select {
	case err := <-result:
		return toStatus(err)
	case <-o.ctx.Done():
		h.cancel(ErrNotRoot)
		return toStatus(ErrNotRoot)
	case <-h.ctx.Done():
		return toStatus(context.Cause(h.ctx))
	}
}

// track runs f in a goroutine that Run waits for; false when Run has ended.
func (n *Node) track(f func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ended {
		return false
	}
	n.streams.Go(f)
	return true
}
