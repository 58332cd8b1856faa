package tree

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/fanout-io/fanout/internal/wording"
	"github.com/fanout-io/fanout/pkg/catalog"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// Bounds of what a parent may send.
const (
	maxRedirects   = 3
	maxRecvRecords = 4 * maxSendRecords
	maxManifests   = 4096
	maxManifest    = 4 << 20
	maxParents     = 64
)

type attachClientStream = grpc.BidiStreamingClient[treev1.AttachRequest, treev1.AttachResponse]

// attachClient holds the group's stream to its parent's root. Its only memory is the catalog: it may be cut off at any moment, and the next one goes on from the
// position that the group has committed.
type attachClient struct {
	o    *office
	head atomic.Uint64
	// acked makes the stream tell the parent how far the group is.
	acked notifier

	mu      sync.Mutex
	group   string // attached to; "" when to none
	members []*treev1.ParentMember
	state   string // of the link, for health
	reason  string
	offered string // the foreign epoch that the parent has; "" when it has none
	// detached is since when it is attached to none; zero while it is.
	detached time.Time
	// cutOff is what the parent says of those above; nil: they are attached.
	cutOff *treev1.CutOff
	// told is the parent that Config.OnParent was told last, "" for none; nil: nothing was told yet.
	told *string
}

func newAttachClient(o *office) *attachClient {
	a := &attachClient{o: o}
	if !o.n.cfg.headquarters() {
		a.state, a.reason, a.detached = "behind", "attaching to the parent", time.Now()
	}
	return a
}

func (a *attachClient) parent() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.group
}

// detachedSince is since when the group is attached to none; nil while it is.
func (a *attachClient) detachedSince() *timestamppb.Timestamp {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.detached.IsZero() {
		return nil
	}
	return timestamppb.New(a.detached)
}

// severed is the group that keeps news of headquarters from coming here: this one, or one above it; nil: none, as far as is known.
func (a *attachClient) severed() *treev1.CutOff {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.detached.IsZero() {
		return &treev1.CutOff{Group: a.o.n.cfg.Group, Since: timestamppb.New(a.detached)}
	}
	return a.cutOff
}

// noteCutOff takes in what the parent says of the way to headquarters.
func (a *attachClient) noteCutOff(parent string, c *treev1.CutOff) error {
	if c != nil && (!within(parent, c.GetGroup()) || c.GetSince().CheckValid() != nil) {
		return rubbish("group %.80q told that %.80q is cut off, which is not above it", parent, c.GetGroup())
	}
	a.mu.Lock()
	same := proto.Equal(a.cutOff, c)
	a.mu.Unlock()
	if !same {
		a.set(func() { a.cutOff = c })
	}
	return nil
}

// parents are those from whom blobs may be fetched; while the group is attached to none, those it knew last, for they may still answer.
func (a *attachClient) parents() []*treev1.ParentMember {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.members
}

// trouble is what is wrong with the link to the parent.
func (a *attachClient) trouble() (state, reason string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state, a.reason
}

func (a *attachClient) set(change func()) {
	a.mu.Lock()
	change()
	attached := a.group != ""
	a.mu.Unlock()
	if attached {
		a.o.n.metrics.attached.Set(1)
	} else {
		a.o.n.metrics.attached.Set(0)
	}
	a.o.wake.notify()
}

// run attaches, for ever.
func (a *attachClient) run() {
	cfg := &a.o.n.cfg
	ctx := a.o.ctx
	defer a.set(func() { a.group, a.offered = "", "" })
	refusals, away := backoff{limit: cfg.Timeouts.Backoff}, backoff{limit: cfg.Timeouts.Away}
	// Two agents that call themselves root of one group, each with a raft of its own, would take the place from each other for ever, and as fast as they can.
	replaced := backoff{limit: cfg.Timeouts.Backoff}
	said := ""         // the reason that was logged last
	var lost time.Time // since when no parent was reached
	for first := 0; ctx.Err() == nil; {
		tr := a.try(ctx, cfg.Parents, first, false)
		if first = tr.next; tr.attached {
			lost = time.Time{}
		} else if lost.IsZero() {
			lost = time.Now()
		}
		if !tr.attached && len(cfg.FallbackParents) > 0 && time.Since(lost) >= cfg.Timeouts.Fallback && ctx.Err() == nil {
			tr = a.try(ctx, cfg.FallbackParents, 0, true)
		}
		err := tr.err
		if ctx.Err() != nil {
			return
		}
		pauses := &away
		switch {
		case tr.refused:
			pauses = &refusals
		case tr.attached && errors.Is(err, errReplaced):
			pauses = &replaced
		case tr.attached:
			refusals.reset()
			away.reset()
			replaced.reset()
		}
		a.lost(err)
		level := slog.LevelWarn
		switch {
		case err.Error() == said:
			level = slog.LevelDebug
		case errors.Is(err, errAgain):
			level = slog.LevelInfo
		}
		said = err.Error()
		a.o.n.log.Log(ctx, level, "not attached to a parent", "error", err)
		if !pause(ctx, pauses.step()) {
			return
		}
	}
}

// lost notes that the group is attached to none now.
func (a *attachClient) lost(err error) {
	a.mu.Lock()
	why := lostWords(err, a.group)
	a.mu.Unlock()
	a.set(func() {
		if a.detached.IsZero() {
			a.detached = time.Now()
		}
		if a.group, a.offered, a.cutOff = "", "", nil; !errors.Is(err, errAgain) {
			a.state, a.reason = "degraded", shorten(errNotAttached.Error()+": "+why)
		}
	})
	if !errors.Is(err, errAgain) {
		a.changed("", "", false, why)
	}
}

// lostWords says to a person why the group is attached to none; from is the group to which it was attached just now, if any.
func lostWords(err error, from string) string {
	why := wording.Plain(strings.ReplaceAll(err.Error(), "\n", "; "))
	if !errors.Is(err, ErrNotRoot) {
		return why
	}
	if from == "" {
		return strings.ReplaceAll(why, ErrNotRoot.Error(), "it is not the root of its group now")
	}
	return strings.ReplaceAll(why, ErrNotRoot.Error(), "who was root of "+from+" is it no more; the next one is looked for")
}

// changed passes on to which parent the group is attached, when that is another than was told last.
func (a *attachClient) changed(parent, peer string, fallback bool, why string) {
	a.mu.Lock()
	news := a.told == nil || *a.told != parent
	a.told = &parent
	a.mu.Unlock()
	if news && a.o.n.cfg.OnParent != nil {
		a.o.n.cfg.OnParent(parent, peer, fallback, why)
	}
}

// bad says that a stream ended because of what the parent sent or did not send: another may do better.
func bad(err error) bool { return refusal(err) || errors.Is(err, errSilent) }

// refusal says that asking again soon changes nothing.
func refusal(err error) bool {
	return !errors.Is(err, errAgain) && (errors.Is(err, ErrRefused) || errors.Is(err, ErrRubbish))
}

// trial is what became of asking a list of addresses.
type trial struct {
	// attached: one led to a root, which did as it should.
	attached bool
	// refused: what there is to wait for is a person, since all answered, and all refused or sent rubbish.
	refused bool
	// next is where to begin the next time: at the one that did well, else one further; and not with the one to which the connection was lost, which may hang.
	next int
	// err says how it ended, or why it came to nothing.
	err error
}

// try attaches to the first of these addresses, beginning with one of them, that leads to a root, and returns when that ends.
func (a *attachClient) try(ctx context.Context, addrs []string, first int, fallback bool) trial {
	var errs []error
	refusals := 0
	for i := range addrs {
		at := (first + i) % len(addrs)
		addr, path := addrs[at], addrs[at]
		for range maxRedirects {
			attached, redirect, err := a.session(ctx, addr, fallback)
			if ctx.Err() != nil || attached && !bad(err) {
				if attached && addr == addrs[at] && !errors.Is(err, errAgain) {
					at = (at + 1) % len(addrs)
				}
				return trial{attached: attached, next: at, err: err}
			}
			if attached {
				a.head.Store(0) // what it said of headquarters may be rubbish too
				a.lost(fmt.Errorf("%s: %w", path, err))
			}
			if redirect == "" || redirect == addr {
				errs = append(errs, fmt.Errorf("%s: %w", path, err))
				if refusal(err) {
					refusals++
				}
				break
			}
			addr = redirect
			path = addrs[at] + ", which leads to " + shorten(addr)
		}
	}
	if len(errs) == 0 {
		errs = append(errs, errors.New("the parents redirect in a circle"))
	}
	// In one order, whoever was asked first: the same words are not logged again.
	slices.SortFunc(errs, func(x, y error) int { return strings.Compare(x.Error(), y.Error()) })
	return trial{refused: refusals == len(errs), next: (first + 1) % len(addrs), err: errors.Join(errs...)}
}

// session attaches to one address and serves the stream until it ends.
func (a *attachClient) session(ctx context.Context, addr string, fallback bool) (attached bool, redirect string, err error) {
	n := a.o.n
	h := hold(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer h.cancel(nil)
	answer := time.AfterFunc(n.cfg.Timeouts.Call, func() { h.cancel(fmt.Errorf("%w: no answer", errSilent)) })
	defer answer.Stop()
	why := func(err error) error {
		if cause := context.Cause(h.ctx); cause != nil {
			return cause
		}
		return fromStream(err)
	}
	conn, err := n.cfg.Dial(h.ctx, addr)
	if err != nil {
		return false, "", why(err)
	}
	stream, err := treev1.NewTreeServiceClient(conn).Attach(h.ctx)
	if err != nil {
		return false, "", why(err)
	}
	hello := a.hello()
	// Should the stream have ended already, Recv says why, or where to go.
	if err := stream.Send(&treev1.AttachRequest{Kind: &treev1.AttachRequest_Hello{Hello: hello}}); err != nil && !errors.Is(err, io.EOF) {
		return false, "", why(err)
	}
	resp, err := stream.Recv()
	if err != nil {
		return false, "", why(err)
	}
	if r := resp.GetRedirect(); r != nil {
		return false, r.GetFabricAddress(), fmt.Errorf("group %q has no root now", shorten(r.GetGroup()))
	}
	welcome := resp.GetWelcome()
	if err := a.checkWelcome(stream, welcome); err != nil {
		return false, "", err
	}
	answer.Stop()
	h.touch()
	a.welcomed(welcome, addr, fallback)
	wg.Go(func() { h.watch(n.cfg.Timeouts.Silence) })
	wg.Go(func() { a.watchDemand(h, hello.GetDemand()) })
	wg.Go(func() { a.keepTunnel(h, addr) })
	wg.Go(func() { a.watchAccepted(h, hello.GetAccepted()) })
	wg.Go(func() {
		if err := a.tell(h.ctx, stream); !errors.Is(err, io.EOF) { // else Recv says why
			h.cancel(err)
		}
	})
	if fallback {
		wg.Go(func() { a.probe(h) })
	}
	return true, "", why(a.receive(h, stream, welcome, hello.GetDemand()))
}

func (a *attachClient) hello() *treev1.Hello {
	n := a.o.n
	snap := n.Catalog()
	return &treev1.Hello{
		Group: n.cfg.Group, Site: n.cfg.Site, Position: snap.Position(), Demand: n.demand(), Labels: snap.Settings().GetLabels(), Version: n.cfg.Version,
		Accepted: snap.Accepted(),
	}
}

func (a *attachClient) checkWelcome(stream attachClientStream, w *treev1.Welcome) error {
	switch {
	case w == nil:
		return rubbish("the first answer is neither a welcome nor a redirect")
	case !below(a.o.n.cfg.Group, w.GetGroup()):
		return refused("group %.80q is not above %s: correct fabric.parents", w.GetGroup(), a.o.n.cfg.Group)
	case !word(w.GetGroup(), w.GetSite()):
		return rubbish("malformed welcome")
	}
	if err := a.o.n.cfg.AuthorizePeer(stream.Context(), w.GetGroup(), w.GetSite()); err != nil {
		return refused("parent: %v", err)
	}
	return checkParents(w.GetParents())
}

func checkParents(p *treev1.Parents) error {
	if len(p.GetMembers()) > maxParents {
		return rubbish("%d parents", len(p.GetMembers()))
	}
	for _, m := range p.GetMembers() {
		if !word(m.GetSite(), m.GetFabricAddress()) {
			return rubbish("malformed parents")
		}
	}
	return nil
}

func (a *attachClient) welcomed(w *treev1.Welcome, addr string, fallback bool) {
	a.o.n.metrics.attachments.Inc()
	a.o.n.log.Info("attached to a parent", "parent", w.GetGroup(), "peer", w.GetSite(), "address", addr, "fallback", fallback)
	a.head.Store(w.GetPosition().GetRevision()) // and no more of what an earlier parent said
	a.set(func() {
		a.group, a.members, a.state, a.reason, a.offered = w.GetGroup(), w.GetParents().GetMembers(), "", "", ""
		a.detached, a.cutOff = time.Time{}, nil
		switch {
		case w.GetForeignEpoch():
			a.offered = w.GetPosition().GetEpoch()
			a.state, a.reason = "degraded", a.o.n.foreign(w)
		case fallback:
			a.state, a.reason = "degraded", "attached to the fallback parent "+w.GetGroup()+": no parent answers"
		}
	})
	a.changed(w.GetGroup(), w.GetSite(), fallback, "")
}

// seen notes a revision of headquarters'.
func (a *attachClient) seen(revision uint64) {
	for {
		old := a.head.Load()
		if revision <= old {
			return
		}
		if a.head.CompareAndSwap(old, revision) {
			a.o.wake.notify()
			return
		}
	}
}

// receive takes in what the parent sends, each message committed before the next is read: so what is under way is bounded, by the stream's own flow control.
func (a *attachClient) receive(h *held, stream attachClientStream, w *treev1.Welcome, demand *catalogv1.Scope) error {
	ancestors := w.GetAncestors()
	for {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		h.touch()
		switch k := resp.GetKind().(type) {
		case *treev1.AttachResponse_Records:
			if w.GetForeignEpoch() {
				return rubbish("records of a foreign epoch")
			}
			h.busy.Store(true)
			err := a.take(h.ctx, k.Records, ancestors, demand)
			h.busy.Store(false)
			if err != nil {
				return err
			}
			ancestors = nil
			h.touch()
			a.acked.notify()
		case *treev1.AttachResponse_Heartbeat:
			a.seen(k.Heartbeat.GetHead())
			a.compare(w, k.Heartbeat.GetPosition())
			if err := a.noteCutOff(w.GetGroup(), k.Heartbeat.GetCutOff()); err != nil {
				return err
			}
			if err := a.noteFreezes(h.ctx, w.GetGroup(), k.Heartbeat.GetFreezes()); err != nil {
				return err
			}
		case *treev1.AttachResponse_Parents:
			if err := checkParents(k.Parents); err != nil {
				return err
			}
			a.set(func() { a.members = k.Parents.GetMembers() })
		case *treev1.AttachResponse_Redirect:
			return errAgain
		default:
			return rubbish("%T after the welcome", k)
		}
	}
}

// noteFreezes has the group note what is frozen above it, where that differs from what it knows. A parent knows of its own freeze and of those above it: what a group between said, as when
// this one is attached to a fallback parent, stays.
func (a *attachClient) noteFreezes(ctx context.Context, parent string, told []*catalogv1.Freeze) error {
	n, now := a.o.n, time.Now()
	known := slices.DeleteFunc(n.Catalog().Freezes(now), func(f *catalogv1.Freeze) bool { return f.GetGroup() == n.cfg.Group })
	var above []*catalogv1.Freeze
	for _, f := range told {
		switch {
		case !within(parent, f.GetGroup()):
			return rubbish("group %.80q told of a freeze of %.80q, which is not above it", parent, f.GetGroup())
		case f.GetUntil().AsTime().After(now):
			above = append(above, f)
		}
	}
	for _, f := range known {
		if below(f.GetGroup(), parent) {
			above = append(above, f)
		}
	}
	slices.SortFunc(above, func(x, y *catalogv1.Freeze) int { return strings.Compare(x.GetGroup(), y.GetGroup()) })
	if sameFreezes(above, known) {
		return nil
	}
	results, err := a.o.propose(ctx, actor, []*catalogv1.Change{{Kind: &catalogv1.Change_SetFreezesAbove{SetFreezesAbove: &catalogv1.SetFreezesAbove{Freezes: above}}}})
	if err != nil {
		return fmt.Errorf("noting freezes: %w", err)
	}
	if err := results[0].Err; err != nil && !errors.Is(err, catalog.ErrUnchanged) {
		return fmt.Errorf("%w: the freezes that the parent told of: %w", ErrRefused, err)
	}
	return nil
}

// compare says so when the parent is behind this group.
func (a *attachClient) compare(w *treev1.Welcome, parent *catalogv1.Position) {
	const behind = "the parent is behind this group: "
	held := a.o.n.Catalog().Position()
	is := parent.GetEpoch() == held.GetEpoch() && parent.GetRevision() < held.GetRevision()
	state, reason := a.trouble()
	was := len(reason) >= len(behind) && reason[:len(behind)] == behind
	switch {
	case is && state == "":
		a.set(func() {
			a.state, a.reason = "behind", fmt.Sprintf("%s%s is at revision %d", behind, w.GetGroup(), parent.GetRevision())
		})
	case was && !is:
		a.set(func() { a.state, a.reason = "", "" })
	}
}

// take commits one message of records. Manifests go before them, so that whoever sees a record finds what came with it.
func (a *attachClient) take(ctx context.Context, r *treev1.Records, ancestors []*catalogv1.Ancestor, demand *catalogv1.Scope) error {
	n := a.o.n
	if len(r.GetRecords()) > maxRecvRecords || len(r.GetManifests()) > maxManifests {
		return rubbish("%d records and %d manifests in one message", len(r.GetRecords()), len(r.GetManifests()))
	}
	if err := checkManifests(r.GetManifests()); err != nil {
		return err
	}
	if len(r.GetManifests()) > 0 && n.cfg.Manifests != nil {
		if err := n.cfg.Manifests.Put(r.GetManifests()); err != nil {
			n.log.Warn("keeping manifests that came with records", "error", err) // they are fetched when they are wanted
		}
	}
	im := importOf(r, ancestors, demand)
	results, err := a.o.propose(ctx, actor, []*catalogv1.Change{{Kind: &catalogv1.Change_Import{Import: im}}})
	if err != nil {
		return fmt.Errorf("importing records: %w", err)
	}
	switch err := results[0].Err; {
	case err == nil:
	case errors.Is(err, catalog.ErrResync):
		return fmt.Errorf("%w: %w", errAgain, err)
	default:
		return fmt.Errorf("%w: what the parent sent is refused: %w", ErrRefused, err)
	}
	n.metrics.received.Add(float64(len(r.GetRecords())))
	a.seen(r.GetPosition().GetRevision())
	return nil
}

func importOf(r *treev1.Records, ancestors []*catalogv1.Ancestor, demand *catalogv1.Scope) *catalogv1.Import {
	return &catalogv1.Import{Records: r.GetRecords(), Position: r.GetPosition(), Ancestors: ancestors, Resync: r.GetResync(), End: r.GetEnd(), Demand: demand, Pruned: r.GetPruned()}
}

func checkManifests(list []*transferv1.Manifest) error {
	for _, m := range list {
		sum := sha256.Sum256(m.GetContent())
		if len(m.GetContent()) > maxManifest || m.GetDigest() != "sha256:"+hex.EncodeToString(sum[:]) {
			return rubbish("a manifest that is not %.80q", m.GetDigest())
		}
	}
	return nil
}

// tell sends acknowledgements and health up, now and then at the least.
func (a *attachClient) tell(ctx context.Context, stream attachClientStream) error {
	t := a.o.n.cfg.Timeouts
	acked, stopAcked := a.acked.watch()
	defer stopAcked()
	changed, stopChanged := a.o.table.changed.watch()
	defer stopChanged()
	tick := time.NewTicker(t.Stream)
	defer tick.Stop()
	var c cursor
	for {
		ack := &treev1.Ack{Position: a.o.n.Catalog().Position()}
		if err := stream.Send(&treev1.AttachRequest{Kind: &treev1.AttachRequest_Ack{Ack: ack}}); err != nil {
			return err
		}
		for more := true; more; {
			var u *treev1.HealthUpdate
			if u, more = a.o.table.diff(&c); u != nil {
				if err := stream.Send(&treev1.AttachRequest{Kind: &treev1.AttachRequest_Health{Health: u}}); err != nil {
					return err
				}
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		case <-acked:
		case <-changed:
		}
		if !pause(ctx, t.Settle) {
			return context.Cause(ctx)
		}
	}
}

// watchDemand ends the stream when what the group and those below it subscribe to has changed for good: the next one asks for that.
func (a *attachClient) watchDemand(h *held, asked *catalogv1.Scope) {
	n := a.o.n
	changed, stop := n.fsm.changed.watch()
	defer stop()
	for {
		if now := n.demand(); !proto.Equal(now, asked) {
			if !pause(h.ctx, n.cfg.Timeouts.Demand) {
				return
			}
			if proto.Equal(now, n.demand()) {
				h.cancel(fmt.Errorf("%w: the group's demand changed", errAgain))
				return
			}
			continue
		}
		select {
		case <-h.ctx.Done():
			return
		case <-changed:
		}
	}
}

// watchAccepted ends the stream when an operator accepted an epoch: the next one tells the parent. That the accepted one has come needs no new stream.
func (a *attachClient) watchAccepted(h *held, told string) {
	n := a.o.n
	changed, stop := n.fsm.changed.watch()
	defer stop()
	for {
		if now := n.Catalog().Accepted(); now != "" && now != told {
			h.cancel(fmt.Errorf("%w: epoch %s was accepted", errAgain, now))
			return
		}
		select {
		case <-h.ctx.Done():
			return
		case <-changed:
		}
	}
}

// probe ends a stream to a fallback parent when a parent has a root again.
func (a *attachClient) probe(h *held) {
	n := a.o.n
	for pause(h.ctx, n.cfg.Timeouts.Probe) {
		for _, addr := range n.cfg.Parents {
			ctx, cancel := context.WithTimeout(h.ctx, n.cfg.Timeouts.Call)
			conn, err := n.cfg.Dial(ctx, addr)
			if err == nil {
				var id *treev1.IdentifyResponse
				id, err = treev1.NewTreeServiceClient(conn).Identify(ctx, &treev1.IdentifyRequest{})
				if err == nil && id.GetRoot() != "" && below(n.cfg.Group, id.GetGroup()) {
					cancel()
					h.cancel(fmt.Errorf("%w: a parent is back", errAgain))
					return
				}
			}
			cancel()
		}
	}
}
