package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/plan"
	"github.com/fanout-io/fanout/pkg/tree"
)

const (
	// lookEvery is how often rollouts are looked at: while anything soaks, waits or has a deadline, nobody says when its time is over.
	lookEvery = time.Second
	// lookPause is between two looks at least, however much is heard.
	lookPause = 100 * time.Millisecond
	// reasonEvery is how often the words alone of what is seen are written down.
	reasonEvery = 5 * time.Second
	// checkStep is how often the time is written down that a check has waited; a soak's is its 600th part, within soakStep, and a deadline's its 100th, within deadlineStep.
	checkStep     = 10 * time.Second
	soakParts     = 600
	deadlineParts = 100
)

// soakStep and deadlineStep bound how much of a soak, or of what a deadline bounds, is lost at most when the root changes.
var (
	soakStep     = struct{ least, most time.Duration }{time.Second, 30 * time.Second}
	deadlineStep = struct{ least, most time.Duration }{time.Second, 10 * time.Minute}
)

// rollouts is the controller of rollouts: headquarters' root, for one term of office, looks how the groups are, asks the addresses of checks, judges windows and counts time, and
// proposes what it saw. What follows from that is the catalog's affair. It goes by the catalog as it is at each look and keeps nothing that the next root could not do without.
type rollouts struct {
	group   string // headquarters
	catalog func() *catalog.Snapshot
	health  func(refs ...catalog.Ref) fabricView
	propose func(context.Context, *catalogv1.Change) error
	zone    func(string) (*time.Location, error)
	client  *http.Client
	logger  *slog.Logger

	watched  map[string]*tended // by rollout
	patience *patience
	results  chan checkResult
	checking sync.WaitGroup
}

// tended is what this term of office knows of one rollout.
type tended struct {
	// at is when the last observation was made, by the monotonic clock; zero: none in this term.
	at time.Time
	// What the last whole observation said, of which version of the rollout, and when.
	groups []*catalogv1.ObservedGroup
	seen   uint64
	whole  time.Time
	wave   uint32
	window bool

	gate   gateKey // the check that is due
	next   time.Time
	cancel context.CancelFunc // of an attempt under way; nil: there is none
	run    int                // counts attempts, so that one that was given up is known
	result *catalogv1.ObservedCheck
}

type checkResult struct {
	rollout string
	run     int
	check   *catalogv1.ObservedCheck
}

func (c *rollouts) init() *rollouts {
	c.watched, c.results = map[string]*tended{}, make(chan checkResult)
	c.patience = &patience{had: map[patient]uint32{}}
	return c
}

// run looks after the rollouts until ctx ends.
func (c *rollouts) run(ctx context.Context, changed, health <-chan struct{}, looked func(*catalog.Snapshot)) {
	ctx, stop := context.WithCancel(ctx)
	defer c.checking.Wait()
	defer stop()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		snap := c.catalog()
		looked(snap)
		c.look(ctx, snap)
		if !sleep(ctx, lookPause) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-changed:
		case <-health:
		case r := <-c.results:
			if w := c.watched[r.rollout]; w != nil && w.cancel != nil && w.run == r.run {
				w.cancel()
				w.cancel, w.result = nil, r.check
			}
		}
	}
}

// look goes through all rollouts that go on, or may still come to an end that is written down. The catalog is read before health is: so what is heard of a record is never taken for
// what was asked of it later.
func (c *rollouts) look(ctx context.Context, snap *catalog.Snapshot) {
	now := time.Now()
	var todo []*catalogv1.Rollout
	var refs []catalog.Ref
	stays := map[string]bool{}
	for _, r := range snap.Rollouts() {
		if !attended(r, now) {
			continue
		}
		todo = append(todo, r)
		stays[r.GetId()] = true
		for _, it := range r.GetItems() {
			refs = append(refs, catalog.Ref{Repository: it.GetRepository(), Tag: it.GetTag()})
		}
	}
	for id, w := range c.watched {
		if !stays[id] {
			w.stop()
			delete(c.watched, id)
		}
	}
	c.patience.forget(func(id string) bool { return stays[id] })
	if len(todo) == 0 {
		return
	}
	s := newSight(c.group, now, snap, c.health(refs...), c.patience)
	for _, r := range todo {
		if ctx.Err() != nil {
			return
		}
		c.tend(ctx, s, r)
	}
}

// attended says whether a rollout is looked at: one that goes on, is to be settled, or has ended before all of its groups have come to rest.
func attended(r *catalogv1.Rollout, now time.Time) bool {
	if !catalog.Ended(r) || catalog.SettleDue(r, now) {
		return true
	}
	if r.GetSettled() && r.GetPhase() != catalog.RolloutRolledBack {
		return false
	}
	return slices.ContainsFunc(r.GetGroups(), restless)
}

// restless says whether something may still be seen of a group whose rollout has ended.
func restless(g *catalogv1.RolloutGroup) bool {
	switch g.GetPhase() {
	case catalog.GroupRunning, catalog.GroupRollingBack:
		return true
	case catalog.GroupOffline, catalog.GroupFailed:
		return g.GetAttempts() > 0
	}
	return false
}

// tend looks at one rollout, and proposes what was seen if there is a need.
func (c *rollouts) tend(ctx context.Context, s *sight, r *catalogv1.Rollout) {
	w := c.watched[r.GetId()]
	if w == nil {
		w = &tended{}
		c.watched[r.GetId()] = w
	}
	c.check(ctx, w, s.now, r)
	o := &catalogv1.ObserveRollout{Id: r.GetId(), Seen: r.GetVersion(), Check: w.result, WindowOpen: c.windowOpen(r, s.now)}
	if !w.at.IsZero() {
		o.Elapsed = durationpb.New(s.now.Sub(w.at))
	}
	for _, g := range r.GetGroups() {
		seen := s.group(r, g)
		seen.Reason = wordsUpTo(seen.GetReason(), maxSeenWord)
		o.Groups = append(o.Groups, seen)
	}
	need := w.need(s, r, o)
	if need == needNothing {
		return
	}
	sent := o
	if need == needTime {
		sent = &catalogv1.ObserveRollout{Id: o.Id, Seen: o.Seen, Elapsed: o.Elapsed, WindowOpen: o.WindowOpen}
	}
	err := c.propose(ctx, &catalogv1.Change{Kind: &catalogv1.Change_ObserveRollout{ObserveRollout: sent}})
	var refusal *catalog.Refusal
	switch {
	case err == nil:
	case errors.As(err, &refusal):
		// It is taken for seen: proposing the same again would be refused again.
		c.logger.Warn("what was seen of a rollout is refused", "rollout", r.GetId(), "error", err)
	case errors.Is(err, tree.ErrUnknownOutcome):
		// It may be in force: rather less time than twice the same.
		w.at = s.now
		return
	default:
		if ctx.Err() == nil {
			c.logger.Warn("what was seen of a rollout can't be written down; tried again every second", "rollout", r.GetId(), "error", err)
		}
		return
	}
	w.at = s.now
	if need == needWhole {
		w.groups, w.seen, w.whole, w.wave, w.window, w.result = o.Groups, o.Seen, s.now, r.GetWave(), o.WindowOpen, nil
	}
}

// need says what of an observation is to be proposed.
type need int

const (
	needNothing need = iota
	needTime         // the time that passed alone
	needWhole
)

func (w *tended) need(s *sight, r *catalogv1.Rollout, o *catalogv1.ObserveRollout) need {
	states, reasons := differ(w.groups, o.GetGroups())
	if catalog.Ended(r) {
		news := false
		for i, g := range r.GetGroups() {
			news = news || restless(g) && settles(g, o.GetGroups()[i])
		}
		if catalog.SettleDue(r, s.now) || news && (states || w.seen != r.GetVersion()) {
			return needWhole
		}
		return needNothing
	}
	moved := slices.ContainsFunc(r.GetGroups(), func(g *catalogv1.RolloutGroup) bool { return g.GetMoved() > w.seen })
	switch {
	case w.at.IsZero(), r.GetVersion() != r.GetObserved(), moved, states, o.GetCheck() != nil:
		return needWhole
	case reasons && s.now.Sub(w.whole) >= reasonEvery:
		return needWhole
	case o.GetWindowOpen() != w.window, o.GetWindowOpen() && w.wave != r.GetWave():
		return needWhole
	}
	return timeNeed(r, o.GetElapsed().AsDuration(), w.cancel != nil)
}

// settles says whether a sight brings a group of a rollout that has ended to rest.
func settles(g *catalogv1.RolloutGroup, o *catalogv1.ObservedGroup) bool {
	if o.GetState() == catalog.ObservedDelivered {
		return true
	}
	waits := g.GetPhase() == catalog.GroupRunning || g.GetPhase() == catalog.GroupRollingBack
	return waits && slices.Contains([]string{catalog.ObservedFailed, catalog.ObservedOffline, catalog.ObservedFrozen}, o.GetState())
}

// differ says whether two sights of the same groups differ in states, and whether they do in reasons.
func differ(was, is []*catalogv1.ObservedGroup) (states, reasons bool) {
	if len(was) != len(is) {
		return true, true
	}
	for i := range is {
		states = states || was[i].GetState() != is[i].GetState() || !slices.Equal(was[i].GetSites(), is[i].GetSites())
		reasons = reasons || was[i].GetReason() != is[i].GetReason()
	}
	return states, reasons
}

// deadline is the time until the first deadline of a group is over, by what was written down, and how often it is to be written down that some of it has passed. Not any: none counts now.
func deadline(r *catalogv1.Rollout) (left, step time.Duration, any bool) {
	for _, g := range r.GetGroups() {
		limit := r.GetPlan().GetWaves()[g.GetWave()].GetDeadline().AsDuration()
		if limit <= 0 || !catalog.DeadlineCounts(r, g) {
			continue
		}
		if l := limit - g.GetWaited().AsDuration(); !any || l < left {
			left = l
		}
		if s := min(max(limit/deadlineParts, deadlineStep.least), deadlineStep.most); !any || s < step {
			step = s
		}
		any = true
	}
	return left, step, any
}

// timeNeed says whether it matters how much time has passed. A check whose time is over while its address is asked is not judged before that answer is there: the last attempt ends soon,
// and what comes of it is the reason that people read.
func timeNeed(r *catalogv1.Rollout, elapsed time.Duration, asking bool) need {
	left, step, any := deadline(r)
	goes := r.GetPhase() != catalog.RolloutPaused && r.GetPhase() != catalog.RolloutRollingBack && int(r.GetWave()) < len(r.GetWaves())
	if !any && !goes {
		return needNothing
	}
	asks := false
	if !any { // a deadline counts neither while a wave soaks nor at its gates
		w := r.GetWaves()[r.GetWave()]
		if w.GetPhase() == catalog.WaveSoaking {
			soak := r.GetPlan().GetWaves()[r.GetWave()].GetSoak().AsDuration()
			left = soak - w.GetSoaked().AsDuration()
			step = min(max(soak/soakParts, soakStep.least), soakStep.most)
		} else if _, g, check := checkDue(r); check != nil {
			left, step, asks = check.GetTimeout().AsDuration()-g.GetWaited().AsDuration(), checkStep, asking
		} else {
			return needNothing
		}
	}
	switch {
	case elapsed >= left && !asks:
		return needWhole
	case elapsed >= step && elapsed < left:
		return needTime
	}
	return needNothing
}

// windowOpen judges the window of the wave that is open or comes next.
func (c *rollouts) windowOpen(r *catalogv1.Rollout, now time.Time) bool {
	if int(r.GetWave()) >= len(r.GetWaves()) {
		return false
	}
	window := r.GetPlan().GetWaves()[r.GetWave()].GetWindow()
	if window == nil {
		return false // nobody asks
	}
	tz, err := c.zone(r.GetPlan().GetTimezone())
	if err != nil {
		c.logger.Error("the time zone of a rollout is not known here; its windows stay closed", "rollout", r.GetId(), "error", err)
		return false
	}
	return plan.Open(window, tz, now)
}

// check has the address asked that a rollout waits for, one attempt at a time. An attempt whose gate is not waited for any more is given up.
func (c *rollouts) check(ctx context.Context, w *tended, now time.Time, r *catalogv1.Rollout) {
	key, gate, check := checkDue(r)
	if key != w.gate {
		w.stop()
		w.gate, w.next = key, now
	}
	if check == nil || w.cancel != nil || w.result != nil || now.Before(w.next) {
		return
	}
	w.next = now.Add(check.GetInterval().AsDuration())
	left := check.GetTimeout().AsDuration() - gate.GetWaited().AsDuration()
	if !w.at.IsZero() {
		left -= now.Sub(w.at)
	}
	w.run++
	run := w.run
	actx, cancel := context.WithCancel(ctx)
	w.cancel = cancel
	c.checking.Go(func() {
		defer cancel()
		out := attempt(actx, c.client, key, check, attemptLimit(left))
		select {
		case c.results <- checkResult{key.rollout, run, out}:
		case <-actx.Done():
		}
	})
}

// stop gives up the attempt of a check.
func (w *tended) stop() {
	if w.cancel != nil {
		w.cancel()
	}
	w.cancel, w.result = nil, nil
}

func (a *Agent) assembleRollouts() (err error) {
	if a.rolloutCount, err = newRolloutCount(a.metrics); err != nil {
		return err
	}
	a.notifiers, err = newNotifiers(a.cfg.Notify, a.logger, a.metrics)
	return err
}

// attendRollouts looks after the rollouts whenever this member is headquarters' root.
func (a *Agent) attendRollouts(ctx context.Context) {
	if !a.cfg.Headquarters() {
		return
	}
	changed, stop := a.node.WatchRoster()
	defer stop()
	for {
		if office, ok := a.node.RootContext(ctx); ok {
			a.rolloutOffice(office)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// rolloutOffice looks after the rollouts for one term of office.
func (a *Agent) rolloutOffice(ctx context.Context) {
	changed, stopChanged := a.node.Watch()
	defer stopChanged()
	health, stopHealth := a.node.WatchHealth()
	defer stopHealth()
	c := (&rollouts{
		group: a.cfg.Group, catalog: a.node.Catalog, propose: a.proposeSeen, zone: time.LoadLocation, client: newCheckClient(), logger: a.logger,
		health: func(refs ...catalog.Ref) fabricView {
			v := a.node.Health(refs...)
			return fabricView{groups: v.Groups, sites: v.Sites, pending: func(site string, ref catalog.Ref) *treev1.PendingRef { return v.Pending(site, ref) }}
		},
	}).init()
	news := newRolloutNews(a.rolloutNews)
	spans := &rolloutSpans{tracer: a.tracer}
	defer a.rolloutCount.Reset()
	var telling sync.WaitGroup
	defer telling.Wait()
	for _, n := range a.notifiers {
		telling.Go(func() { n.run(ctx) })
	}
	below := freezesBelow{}
	c.run(ctx, changed, health, func(snap *catalog.Snapshot) {
		below.look(time.Now(), a.cfg.Group, func() []*treev1.GroupHealth { return a.node.Health().Groups }, a.events)
		countRollouts(a.rolloutCount, snap.Rollouts())
		news.look(snap)
		spans.look(snap.Rollouts())
	})
}

// proposeSeen proposes what the controller saw. An observation that changes nothing is as good as one that does.
func (a *Agent) proposeSeen(ctx context.Context, c *catalogv1.Change) error {
	return a.change(ctx, "fanout", c)
}
