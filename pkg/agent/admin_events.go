package agent

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/tree"
	"github.com/fanout-io/fanout/pkg/view"
)

const (
	// describeEvents bounds the events in a description.
	describeEvents = 20
	// eventsTimeout bounds the question for the events of others; each tier below has a little less.
	eventsTimeout = 8 * time.Second
	// askAgain is after how long somebody who was lost is asked again.
	askAgain = 2 * time.Second
	// toldFor is within what time it is not told again that somebody can't be asked: whoever is followed is asked for what he remembers first, and then again.
	toldFor = 2 * eventsTimeout
	// notKnown is the reason of an event that nobody remembers: what is followed is not there yet.
	notKnown = view.NotKnown
	// notAsked is the reason of an event that nobody remembers: somebody's events are missing.
	notAsked = view.NotAsked
)

// Events implements adminv1.AdminServiceServer. Without a subject they are those of this agent; with one, the root asks the agents that it concerns.
func (s *admin) Events(req *adminv1.EventsRequest, stream grpc.ServerStreamingServer[adminv1.EventsResponse]) error {
	ctx := stream.Context()
	actor, err := s.actor(ctx)
	if err != nil {
		return err
	}
	if req.GetOf() == "" || req.GetHere() {
		return s.a.ownEvents(ctx, req.GetFollow(), req.GetOf(), stream.Send)
	}
	root, err := s.rootOnce(ctx)
	if err != nil {
		return err
	}
	if root != nil {
		from, err := root.Events(onBehalf(ctx, actor), req)
		return relay(from, err, stream.Send)
	}
	x, err := s.a.named(s.a.node.Health(), req.GetOf())
	if ref, isRef := refToCome(req); status.Code(err) == codes.NotFound && isRef {
		x, err = subject{kindRef, ref.String()}, nil
		if !s.tunnel {
			ev := &adminv1.EventsResponse{Time: now(), First: now(), Type: "Normal", Reason: notKnown, Site: s.a.cfg.Site, Ref: ref.String(), Count: 1}
			ev.Message = "it is not in the catalog; what is told of it is shown as it comes" + s.a.nearby(ref)
			if err := stream.Send(ev); err != nil {
				return err
			}
		}
	}
	if err != nil {
		return err
	}
	return newAsking(s, x).all(onBehalf(ctx, actor), req.GetFollow(), stream.Send)
}

// refToCome is the ref that is followed, which may not be there yet. It must have a tag: any word could else be one.
func refToCome(req *adminv1.EventsRequest) (catalog.Ref, bool) {
	name := strings.TrimPrefix(req.GetOf(), kindRef+"/")
	if !req.GetFollow() || !strings.Contains(name, ":") {
		return catalog.Ref{}, false
	}
	ref, err := parseRef(name)
	return ref, err == nil
}

// ownEvents are those of this agent; with a ref those about it.
func (a *Agent) ownEvents(ctx context.Context, follow bool, ref string, send func(*adminv1.EventsResponse) error) error {
	var n uint64
	for {
		list, next, wake := a.events.since(n)
		for _, ev := range list {
			if ref != "" && ev.GetRef() != ref {
				continue
			}
			if err := send(ev); err != nil {
				return err
			}
		}
		n = next
		if !follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wake:
		}
	}
}

// source is somebody who has events about a subject.
type source struct {
	group, site string // site: "" for all of a group that is asked through its root
	ask         func(ctx context.Context, follow bool, send func(*adminv1.EventsResponse) error) error
}

func (t *source) key() string { return t.group + " " + t.site }

// asking is one question for the events about a subject. What its sources gave is known to all of them: an agent below may be reached another way than before, and tells all that it remembers again.
type asking struct {
	s     *admin
	x     subject
	ways  map[string]string // by group below: through which attached one it was reached last
	find  func() []*source  // those that there are now
	leads func() bool       // whether this agent is the root

	mu    sync.Mutex           // what is fresh is passed on under it, so that a site's events keep their order whichever way they come
	taken view.EventCursor     // what came
	told  map[string]time.Time // by site and words: when it was told last that somebody can't be asked
}

func newAsking(s *admin, x subject) *asking {
	q := &asking{s: s, x: x, ways: map[string]string{}, leads: s.a.node.IsRoot, told: map[string]time.Time{}}
	q.find = func() []*source { return q.sources(s.a.node.Health()) }
	return q
}

// take passes an event on unless it came before. It returns what send does.
func (q *asking) take(ev *adminv1.EventsResponse, send func(*adminv1.EventsResponse) error) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.fresh(ev) {
		return nil
	}
	return send(ev)
}

// fresh notes an event, and says whether it did not come before.
func (q *asking) fresh(ev *adminv1.EventsResponse) bool {
	if ev.GetReason() == notAsked { // its time is that of a question, after events of its site that are still to come
		key, at := ev.GetSite()+" "+ev.GetMessage(), ev.GetTime().AsTime()
		before, again := q.told[key]
		q.told[key] = at
		return !again || at.Sub(before) > toldFor
	}
	if !q.taken.Before(ev) {
		return false
	}
	q.taken.Note(ev)
	return true
}

// sources are this agent, the members of its group, and for the groups below those through whom they are reached, so far as the subject concerns them.
func (q *asking) sources(health tree.HealthView) (out []*source) {
	a, x, through := q.s.a, q.x, map[string]bool{}
	places := map[string]string{}
	for _, h := range health.Sites {
		places[h.GetSite()] = h.GetGroup()
	}
	ref := ""
	if x.kind == kindRef {
		ref = x.name
	}
	for _, h := range health.Sites {
		group, site := h.GetGroup(), h.GetSite()
		switch {
		case x.kind == kindSite && site != x.name, x.kind == kindGroup && group != x.name:
		case site == a.cfg.Site:
			out = append(out, &source{group: group, site: site, ask: func(ctx context.Context, follow bool, send func(*adminv1.EventsResponse) error) error {
				return a.ownEvents(ctx, follow, ref, send)
			}})
		case group == a.cfg.Group:
			out = append(out, &source{group: group, site: site, ask: func(ctx context.Context, follow bool, send func(*adminv1.EventsResponse) error) error {
				client, err := a.reach(ctx, site)
				if err != nil {
					return err
				}
				return relayEvents(ctx, client, &adminv1.EventsRequest{Follow: follow, Of: ref, Here: true}, func(ev *adminv1.EventsResponse) bool { return x.concerns(ev, places) }, send)
			}})
		default:
			child := q.way(group, a.node.Toward)
			if through[child] {
				continue
			}
			through[child] = true
			out = append(out, &source{group: child, ask: func(ctx context.Context, follow bool, send func(*adminv1.EventsResponse) error) error {
				t, ok := a.node.Toward(child)
				if !ok {
					return status.Errorf(codes.Unavailable, "%s is not attached here", child)
				}
				err := relayEvents(ctx, adminv1.NewAdminServiceClient(t.Conn), &adminv1.EventsRequest{Follow: follow, Of: x.String()}, func(ev *adminv1.EventsResponse) bool { return x.concerns(ev, places) }, send)
				if x.kind == kindRef && status.Code(err) == codes.NotFound {
					return nil // it does not subscribe to that
				}
				return err
			}})
		}
	}
	return out
}

// way is the attached group through which another is reached. Where there is none it is the one that was last: somebody is to be told of as lost once, not again under each name that he is known by.
func (q *asking) way(group string, toward func(string) (tree.Tunnel, bool)) string {
	if t, ok := toward(group); ok {
		q.ways[group] = t.Group
	}
	return cmp.Or(q.ways[group], group)
}

// concerns says whether an event is about a subject. An agent of an older version, which knows of no subjects, gives all that it remembers. Places are the groups of the sites that are known.
func (x subject) concerns(ev *adminv1.EventsResponse, places map[string]string) bool {
	if x.kind == kindRef {
		return ev.GetRef() == x.name
	}
	if ev.GetReason() == notAsked {
		return true // its site is that of who asked
	}
	if x.kind == kindSite {
		return ev.GetSite() == x.name
	}
	group, known := places[ev.GetSite()]
	return !known || group == x.name
}

// relayEvents asks another agent, and passes on what is to be kept.
func relayEvents(ctx context.Context, client adminv1.AdminServiceClient, req *adminv1.EventsRequest, keep func(*adminv1.EventsResponse) bool, send func(*adminv1.EventsResponse) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	from, err := client.Events(ctx, req)
	return relay(from, err, func(ev *adminv1.EventsResponse) error {
		if !keep(ev) {
			return nil
		}
		return send(ev)
	})
}

// all asks all sources. What they remember comes in the order of its time; after that, with follow, each event when it comes. Who can't be asked, or is lost, is told of by an event that
// nobody remembers, and is asked again.
func (q *asking) all(ctx context.Context, follow bool, send func(*adminv1.EventsResponse) error) error {
	for _, ev := range q.gather(ctx, q.find()) {
		if err := send(ev); err != nil {
			return err
		}
	}
	if !follow {
		return nil
	}
	return q.follow(ctx, send)
}

// follow follows the sources that there are, as groups attach and go; one whose place another has taken is let go. It ends when this agent is no longer the root: then another one hears of what is
// below.
func (q *asking) follow(ctx context.Context, send func(*adminv1.EventsResponse) error) error {
	a := q.s.a
	g, ctx := errgroup.WithContext(ctx)
	followed := map[string]context.CancelFunc{}
	g.Go(func() error {
		for {
			now := map[string]bool{}
			for _, t := range q.find() {
				now[t.key()] = true
				if followed[t.key()] != nil {
					continue
				}
				sctx, stop := context.WithCancel(ctx)
				followed[t.key()] = stop
				g.Go(func() error {
					defer stop()
					err := q.followSource(sctx, t, send)
					if sctx.Err() != nil && ctx.Err() == nil {
						return nil
					}
					return err
				})
			}
			for key, stop := range followed {
				if !now[key] {
					stop()
					delete(followed, key)
				}
			}
			if !sleep(ctx, askAgain) {
				return ctx.Err()
			}
			if !q.leads() {
				return status.Errorf(codes.Unavailable, "%s is no longer the root of %s", a.cfg.Site, a.cfg.Group)
			}
		}
	})
	return g.Wait()
}

// followSource passes on what is new at one source until ctx ends or it can't be sent.
func (q *asking) followSource(ctx context.Context, t *source, send func(*adminv1.EventsResponse) error) error {
	told := ""
	for {
		var sending error
		err := t.ask(ctx, true, func(ev *adminv1.EventsResponse) error {
			told = ""
			sending = q.take(ev, send)
			return sending
		})
		if sending != nil {
			return sending
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && told != callWords(err) {
			told = callWords(err)
			if err := q.take(q.unasked(t, err), send); err != nil {
				return err
			}
		}
		if !sleep(ctx, askAgain) {
			return ctx.Err()
		}
	}
}

// gather gives what all sources remember, oldest first by the clocks of the sites; what one site remembers stays in its order, whatever its clock did.
func (q *asking) gather(ctx context.Context, sources []*source) (out []*adminv1.EventsResponse) {
	ctx, cancel := context.WithTimeout(ctx, within(ctx, eventsTimeout))
	defer cancel()
	keep := func(ev *adminv1.EventsResponse) error {
		out = append(out, ev)
		return nil
	}
	var g errgroup.Group
	g.SetLimit(topAtOnce)
	for _, t := range sources {
		g.Go(func() error {
			err := t.ask(ctx, false, func(ev *adminv1.EventsResponse) error { return q.take(ev, keep) })
			if err != nil {
				return q.take(q.unasked(t, err), keep)
			}
			return nil
		})
	}
	_ = g.Wait()
	return inOrder(out)
}

// inOrder sorts events by time. A site's clock may have been set back: what it remembers after that counts as no earlier than what was before.
func inOrder(list []*adminv1.EventsResponse) []*adminv1.EventsResponse {
	type placed struct {
		ev *adminv1.EventsResponse
		at time.Time
	}
	latest := map[string]time.Time{}
	all := make([]placed, len(list))
	for i, ev := range list {
		at := ev.GetTime().AsTime()
		if ev.GetReason() != notAsked { // its time is that of a question
			if before := latest[ev.GetSite()]; at.Before(before) {
				at = before
			}
			latest[ev.GetSite()] = at
		}
		all[i] = placed{ev, at}
	}
	slices.SortStableFunc(all, func(a, b placed) int { return a.at.Compare(b.at) })
	for i, x := range all {
		list[i] = x.ev
	}
	return list
}

// unasked says that somebody's events are not among those that are shown.
func (q *asking) unasked(t *source, err error) *adminv1.EventsResponse {
	ev := &adminv1.EventsResponse{Time: now(), First: now(), Type: "Warning", Reason: notAsked, Site: q.s.a.cfg.Site, Count: 1}
	ev.Message = "the events of " + cmp.Or(t.site, t.group) + " are not among these: " + callWords(err)
	if q.x.kind == kindRef {
		ev.Ref = q.x.name
	}
	return ev
}
