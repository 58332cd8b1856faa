package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/reconcile"
)

// frozenBy finds the freeze that keeps a ref as it is for longest, and until when: a freeze ends at its own end, or when the ref has been kept for as long as the policy allows. nil: none.
func frozenBy(freezes []*catalogv1.Freeze, rec *catalogv1.Record, now time.Time) (by *catalogv1.Freeze, until time.Time) {
	for _, f := range freezes {
		end := f.GetUntil().AsTime()
		if most := rec.GetMaxFreeze().AsDuration(); most > 0 {
			if bound := f.GetSince().AsTime().Add(most); bound.Before(end) {
				end = bound
			}
		}
		if end.After(now) && end.After(until) {
			by, until = f, end
		}
	}
	return by, until
}

// frozen finds the freeze that is in force here for a record.
func (a *Agent) frozen(rec *catalogv1.Record) (*catalogv1.Freeze, time.Time) {
	now := time.Now()
	return frozenBy(a.node.Catalog().Freezes(now), rec, now)
}

func frozenWords(f *catalogv1.Freeze, until time.Time) string {
	return "frozen " + freezeWords(f, until)
}

// freezeWords says by whom, until when and why.
func freezeWords(f *catalogv1.Freeze, until time.Time) string {
	words := fmt.Sprintf("by %s until %s", f.GetGroup(), until.UTC().Format(time.RFC3339))
	if f.GetReason() != "" {
		words += ": " + f.GetReason()
	}
	return words
}

// changesTag says whether carrying out a verdict would make the tag show something else than this site had it show. Putting back what it showed is no change.
func changesTag(v reconcile.Verdict, in reconcile.Input) bool {
	switch v.Action {
	case reconcile.Deliver, reconcile.Conflict:
		want := showsDigest(in.Theirs)
		return in.Ours.Digest != want && !(in.Base.Known && in.Base.Digest == want)
	case reconcile.Remove, reconcile.Trim:
		return true
	}
	return false
}

// freezes remembers the refs that a freeze keeps as they are. Safe for concurrent use.
type freezes struct {
	mu   sync.Mutex
	refs map[catalog.Ref]bool
}

func (f *freezes) note(ref catalog.Ref) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refs == nil {
		f.refs = map[catalog.Ref]bool{}
	}
	f.refs[ref] = true
}

// take gives all, and forgets them.
func (f *freezes) take() (out []catalog.Ref) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for ref := range f.refs {
		out = append(out, ref)
	}
	clear(f.refs)
	return out
}

// keepFrozen leaves a tag as it is while a freeze is in force, and brings the content of what it is to show then. It goes on by itself at the end.
func (a *Agent) keepFrozen(ctx context.Context, ref catalog.Ref, raw, rec *catalogv1.Record, ours string, f *catalogv1.Freeze, until time.Time) error {
	digest := rec.GetTarget().GetDigest()
	held, err := a.holds(ref.Repository, digest)
	if err != nil {
		return err
	}
	has, err := a.store.HasBlob(ref.Repository, digest)
	if err != nil {
		return err
	}
	if !rec.GetDeleted() && !(held && has) { // the hold is put last
		if err := a.bring(ctx, ref, raw, catalog.Target{Descriptor: rec.GetTarget(), Referrers: rec.GetReferrers()}); err != nil {
			return err
		}
	}
	a.frozenRefs.note(ref)
	a.differs(ref, rec, ours, "held", frozenWords(f, until), frozenTrouble(f, until))
	a.queue.later(key{repository: ref.Repository, tag: ref.Tag}, max(time.Until(until), time.Second))
	return nil
}

// freezeWatch sees freezes begin and end: no record changes with that.
type freezeWatch struct{ said string }

func (w *freezeWatch) look(a *Agent, snap *catalog.Snapshot) {
	var list []string
	for _, f := range snap.Freezes(time.Now()) {
		list = append(list, frozenWords(f, f.GetUntil().AsTime()))
	}
	said := strings.Join(list, "; ")
	if said == w.said {
		return
	}
	switch {
	case said != "":
		a.events.warning("Frozen", "", said)
	default:
		a.events.normal("Thawed", "", "tags may change again")
	}
	w.said = said
	for _, ref := range a.frozenRefs.take() {
		a.queue.add(key{repository: ref.Repository, tag: ref.Tag})
	}
	a.progress.touch()
}

// freezesBelow tells, at headquarters' root, of freezes of the groups below: who waits for a group is to see why, without asking for it.
type freezesBelow struct {
	told map[string]string // by group
	at   time.Time
}

// toldAlready is how old a freeze is that the root before told of.
const toldAlready = time.Minute

// look compares the freezes that are in force with those that were told, at most once a second. The first look of a term takes for told what is older than a change of root takes.
func (w *freezesBelow) look(now time.Time, own string, groups func() []*treev1.GroupHealth, e *events) {
	if now.Sub(w.at) < lookEvery {
		return
	}
	first := w.at.IsZero()
	w.at = now
	in := map[string]string{}
	for _, g := range groups() {
		f := g.GetFreeze()
		if g.GetGroup() == own || !f.GetUntil().AsTime().After(now) {
			continue
		}
		words := fmt.Sprintf("%s is frozen until %s by %s: %s", g.GetGroup(), f.GetUntil().AsTime().UTC().Format(time.RFC3339), f.GetBy(), f.GetReason())
		in[g.GetGroup()] = words
		if w.told[g.GetGroup()] != words && !(first && now.Sub(f.GetSince().AsTime()) > toldAlready) {
			e.warning("GroupFrozen", "", words)
		}
	}
	for _, group := range slices.Sorted(maps.Keys(w.told)) {
		if in[group] == "" {
			e.normal("GroupThawed", "", group+" is not frozen any more: its tags move again")
		}
	}
	w.told = in
}
