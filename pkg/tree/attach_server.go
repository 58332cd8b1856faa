package tree

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/fanout-io/fanout/pkg/catalog"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// Bounds of one message of records. They are small, since a thin link carries nothing else meanwhile.
const (
	maxSendRecords     = 500
	maxSendRecordBytes = 256 << 10
	maxSendManifests   = 1 << 20   // bytes of manifests with one message
	maxRecordManifests = 512 << 10 // of them under one record; the rest is fetched when it is wanted
	maxRemembered      = 8192      // digests of manifests that a stream remembers to have sent
)

type attachServerStream = grpc.BidiStreamingServer[treev1.AttachRequest, treev1.AttachResponse]

// child is a group that is attached here.
type child struct {
	group string
	src   *source
	held  *held
	// tunnel to it; nil when there is none. Under office.mu.
	tunnel *tunnel
}

// Attach implements the tree service.
func (s *service) Attach(stream attachServerStream) error {
	n := s.n
	o := n.office.Load()
	if o == nil {
		r := &treev1.Redirect{Group: n.cfg.Group}
		if site, _ := n.rootSite(); site != n.cfg.Site {
			r.FabricAddress = n.rootAddr()
		}
		return stream.Send(&treev1.AttachResponse{Kind: &treev1.AttachResponse_Redirect{Redirect: r}})
	}
	return n.serveStream(o, stream.Context(), n.cfg.Timeouts.Silence, func(h *held) error { return o.serveChild(h, stream) })
}

func (o *office) serveChild(h *held, stream attachServerStream) error {
	req, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := req.GetHello()
	if err := o.checkHello(h.ctx, hello); err != nil {
		return err
	}
	if err := o.remember(h.ctx, hello); err != nil {
		return fmt.Errorf("remembering group %s: %w", hello.GetGroup(), err)
	}
	c := o.addChild(hello.GetGroup(), h)
	defer o.lostChild(c)
	o.n.log.Info("a group attached", "child", c.group, "peer", hello.GetSite(), "revision", hello.GetPosition().GetRevision())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer h.cancel(nil)
	f := &feeder{o: o, stream: stream, group: hello.GetGroup(), demand: catalog.Union(hello.GetDemand()), at: hello.GetPosition(), accepted: hello.GetAccepted()}
	wg.Go(func() { h.cancel(f.run(h.ctx)) })
	for {
		h.touch()
		o.table.heard(c.src)
		if req, err = stream.Recv(); err != nil {
			return err
		}
		switch k := req.GetKind().(type) {
		case *treev1.AttachRequest_Ack:
		case *treev1.AttachRequest_Health:
			ignored, err := o.table.merge(c.src, k.Health)
			if err != nil {
				return err
			}
			if ignored > 0 {
				o.n.log.Debug("health that a group may not report, or that is known better", "child", c.group, "count", ignored)
			}
		default:
			return rubbish("%T after the hello", k)
		}
	}
}

func (o *office) checkHello(ctx context.Context, h *treev1.Hello) error {
	switch {
	case h == nil:
		return rubbish("the first message is not a hello")
	case !word(h.GetGroup(), h.GetSite(), h.GetVersion(), h.GetPosition().GetEpoch(), h.GetPosition().GetScope(), h.GetAccepted()) || len(h.GetPosition().GetSum()) > 64:
		return rubbish("malformed hello")
	case !below(h.GetGroup(), o.n.cfg.Group):
		return refused("group %q does not lie below %s: correct group, or fabric.parents", h.GetGroup(), o.n.cfg.Group)
	}
	if err := catalog.ValidateScope(h.GetDemand()); err != nil {
		return rubbish("demand of %s: %v", h.GetGroup(), err)
	}
	if err := o.n.cfg.AuthorizePeer(ctx, h.GetGroup(), h.GetSite()); err != nil {
		return refused("%v", err)
	}
	return nil
}

// remember makes the group and its demand durable before it is served: what this group asks of its own parent includes it from now on, also when the group is away.
func (o *office) remember(ctx context.Context, h *treev1.Hello) error {
	known, _ := o.n.Catalog().Group(h.GetGroup())
	g := &catalogv1.Group{Path: h.GetGroup(), Labels: h.GetLabels(), Demand: catalog.Union(h.GetDemand()), Sites: known.GetSites(), Keep: known.GetKeep()}
	if proto.Equal(known, g) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, o.n.cfg.Timeouts.Call)
	defer cancel()
	results, err := o.propose(ctx, actor, []*catalogv1.Change{setGroup(g)})
	if err != nil {
		return err
	}
	return results[0].Err
}

func (o *office) addChild(group string, h *held) *child {
	c := &child{group: group, src: o.table.join(group, ""), held: h}
	o.mu.Lock()
	old := o.children[group]
	o.children[group] = c
	o.n.metrics.children.Set(float64(len(o.children)))
	o.mu.Unlock()
	if old != nil {
		old.held.cancel(fmt.Errorf("%w: another root of %s attached", errReplaced, group))
	}
	return c
}

func (o *office) lostChild(c *child) {
	o.mu.Lock()
	var above []*child
	if o.children[c.group] == c {
		delete(o.children, c.group)
		for _, other := range o.children {
			if below(c.group, other.group) {
				above = append(above, other)
			}
		}
	}
	o.n.metrics.children.Set(float64(len(o.children)))
	o.mu.Unlock()
	o.table.leave(c.src, "no contact with the root of "+c.group)
	for _, other := range above {
		// While it was attached here itself, what the group between said of it did not count. That one comes again and tells everything.
		other.held.cancel(fmt.Errorf("%w: %s is to be reported anew", errAgain, c.group))
	}
	o.n.log.Info("a group is no longer attached", "child", c.group)
	o.wake.notify()
}

// feeder sends a child what it lacks. It reads snapshots and waits for nobody but its own stream, so a slow child costs the others nothing.
type feeder struct {
	o      *office
	stream attachServerStream
	group  string // the child
	demand *catalogv1.Scope
	at     *catalogv1.Position // where the child is when it has taken in all that was sent
	// accepted is the epoch that the child takes in place of what it holds.
	accepted string
	epoch    string
	foreign  bool
	parents  *treev1.Parents
	freezes  []*catalogv1.Freeze // as told last
	sent     map[string]bool
}

func (f *feeder) run(ctx context.Context) error {
	n := f.o.n
	changed, stop := n.fsm.changed.watch()
	defer stop()
	rosters, stopRosters := n.rosterChanged.watch()
	defer stopRosters()
	tick := time.NewTicker(n.cfg.Timeouts.Stream)
	defer tick.Stop()
	if err := f.welcome(); err != nil {
		return err
	}
	if err := f.heartbeat(); err != nil { // what the child knew of headquarters it knew from another stream
		return err
	}
	for whole := true; ; {
		for more := true; more; {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			var err error
			if more, err = f.step(whole); err != nil {
				return err
			}
		}
		whole = false
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
			if !sameFreezes(n.Catalog().Freezes(time.Now()), f.freezes) {
				if err := f.heartbeat(); err != nil {
					return err
				}
			}
		case <-rosters:
			if err := f.sendParents(); err != nil {
				return err
			}
		case <-tick.C:
			if err := f.heartbeat(); err != nil {
				return err
			}
			whole = true
		}
	}
}

func (f *feeder) welcome() error {
	n := f.o.n
	snap := n.Catalog()
	v := snap.View(f.demand).For(f.group)
	f.epoch = snap.Position().GetEpoch()
	f.foreign = f.relation(v) == catalog.RelationForeign
	f.parents = f.o.parentMembers()
	if f.foreign {
		n.log.Warn("a group holds a foreign epoch", "epoch", f.at.GetEpoch(), "revision", f.at.GetRevision())
	}
	return f.stream.Send(&treev1.AttachResponse{Kind: &treev1.AttachResponse_Welcome{Welcome: &treev1.Welcome{
		Group: n.cfg.Group, Site: n.cfg.Site, Position: v.Position(), Ancestors: snap.Ancestors(), Parents: f.parents, ForeignEpoch: f.foreign,
	}}})
}

// relation says how the child is to be served. One that accepted what is held here is sent all of it, whatever it holds.
func (f *feeder) relation(v catalog.View) catalog.Relation {
	r := v.Relation(f.at)
	if r == catalog.RelationForeign && f.accepted != "" && f.accepted == v.Position().GetEpoch() {
		return catalog.RelationResync
	}
	return r
}

// step sends the next records, if there are any; more: there may be more. Changes outside the child's scope move nothing but its position; that is sent only
// with whole, now and then, since each is a commit in the child's group.
func (f *feeder) step(whole bool) (more bool, err error) {
	snap := f.o.n.Catalog()
	if snap.Position().GetEpoch() != f.epoch {
		return false, fmt.Errorf("%w: the epoch changed", errAgain)
	}
	v := snap.View(f.demand).For(f.group)
	relation := f.relation(v)
	if (relation == catalog.RelationForeign) != f.foreign {
		return false, fmt.Errorf("%w: whether the epoch is foreign changed", errAgain)
	}
	switch relation {
	case catalog.RelationResync:
		return true, f.resync(v)
	case catalog.RelationFollows:
	case catalog.RelationForeign, catalog.RelationAhead:
		return false, nil
	}
	records, reached, _ := take(v, f.at.GetRevision())
	if len(records) == 0 && (!whole || proto.Equal(reached, f.at)) {
		return false, nil
	}
	if err := f.send(&treev1.Records{Records: records, Manifests: f.manifests(records), Position: reached}); err != nil {
		return false, err
	}
	f.at = reached
	return true, nil
}

// resync sends all records of a view, and nothing else: what is under them is mostly there.
func (f *feeder) resync(v catalog.View) error {
	id := randomID()
	f.o.n.metrics.resyncs.Inc()
	for after, end := uint64(0), false; !end; {
		records, reached, last := take(v, after)
		after, end = reached.GetRevision(), last
		if err := f.send(&treev1.Records{Records: records, Position: v.Position(), Resync: id, End: end, Pruned: v.Pruned()}); err != nil {
			return err
		}
	}
	f.at = v.Position()
	return nil
}

func (f *feeder) send(r *treev1.Records) error {
	f.o.n.metrics.sent.Add(float64(len(r.Records)))
	return f.stream.Send(&treev1.AttachResponse{Kind: &treev1.AttachResponse_Records{Records: r}})
}

// take returns the records of a view after a revision that go into one message, the position that they lead to, and whether they are the last.
func take(v catalog.View, after uint64) (records []*catalogv1.Record, reached *catalogv1.Position, last bool) {
	reached = v.Position()
	size := 0
	for rec := range v.Since(after) {
		if len(records) == maxSendRecords || size > 0 && size+proto.Size(rec) > maxSendRecordBytes {
			end := records[len(records)-1]
			return records, &catalogv1.Position{Epoch: reached.Epoch, Revision: end.Revision, Sum: end.Sum, Scope: reached.Scope}, false
		}
		size += proto.Size(rec)
		records = append(records, rec)
	}
	return records, reached, true
}

// manifests returns what is at hand under records, without what this stream has carried before.
func (f *feeder) manifests(records []*catalogv1.Record) []*transferv1.Manifest {
	store := f.o.n.cfg.Manifests
	if store == nil {
		return nil
	}
	var out []*transferv1.Manifest
	total := 0
	for _, rec := range records {
		if catalog.Tombstone(rec) {
			continue
		}
		if len(f.sent) > maxRemembered || f.sent == nil {
			f.sent = map[string]bool{}
		}
		under := 0
		for _, m := range store.Closure(rec) {
			size := len(m.GetContent())
			if f.sent[m.GetDigest()] || under+size > maxRecordManifests {
				continue
			}
			if total+size > maxSendManifests {
				return out
			}
			under, total = under+size, total+size
			f.sent[m.GetDigest()] = true
			out = append(out, m)
		}
	}
	return out
}

func (f *feeder) sendParents() error {
	now := f.o.parentMembers()
	if proto.Equal(now, f.parents) {
		return nil
	}
	f.parents = now
	return f.stream.Send(&treev1.AttachResponse{Kind: &treev1.AttachResponse_Parents{Parents: now}})
}

func (f *feeder) heartbeat() error {
	snap := f.o.n.Catalog()
	f.freezes = snap.Freezes(time.Now())
	return f.stream.Send(&treev1.AttachResponse{Kind: &treev1.AttachResponse_Heartbeat{Heartbeat: &treev1.Heartbeat{
		Position: snap.Position(), Time: timestamppb.Now(), Head: f.o.head(), Freezes: f.freezes, CutOff: f.o.attach.severed(),
	}}})
}

func sameFreezes(a, b []*catalogv1.Freeze) bool {
	return slices.EqualFunc(a, b, func(x, y *catalogv1.Freeze) bool { return proto.Equal(x, y) })
}

var errNotAttached = errors.New("not attached to a parent")
