package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/reconcile"
	"github.com/fanout-io/fanout/pkg/store"
)

// Members whose files have the same word in registry.shared have registries over one storage and one database: what one puts, all show. One of them delivers, so that a blob comes to
// that storage once: the first of Roster.Sharing. The others look at what their registries show, and note a ref as delivered when it is. Nothing is locked: when the one that
// delivers is gone or makes no progress another takes over, and two that deliver at once waste bytes and do no harm.

const (
	// takeOverAfter is how long the others wait for the one that delivers while it makes no progress with a ref.
	takeOverAfter = 20 * time.Second
	// settleTime is how long a change that another member may have made is left alone: this one may not have its record yet, and must not turn it back.
	settleTime = 3 * time.Second
	// standbyPoll bounds the time between two looks at what the others have done.
	standbyPoll = 5 * time.Second
	// askTimeout bounds the question how far another member is.
	askTimeout = 5 * time.Second
)

// standbyError says that another member of the shared storage is at work on a ref.
type standbyError struct{ reason string }

func (e standbyError) Error() string { return e.reason }

// watched is what this site knows of a ref for which another member works.
type watched struct {
	revision uint64
	who      string    // delivers
	movedAt  time.Time // when it last made progress
	progress string    // how far it was
	took     bool      // this site has taken over

	other      string    // what the tag shows that this site did not put there
	otherSince time.Time // since when
}

// standby remembers refs for which others work. Bounded by the refs that are not delivered yet.
type standby struct {
	mu   sync.Mutex
	refs map[catalog.Ref]watched
}

// set is called with s.mu held.
func (s *standby) set(ref catalog.Ref, w watched) {
	if s.refs == nil {
		s.refs = map[catalog.Ref]watched{}
	}
	s.refs[ref] = w
}

func (s *standby) forget(ref catalog.Ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.refs, ref)
}

// sharesWith says whether a site of this group, other than this one, has its registry over the same storage.
func (a *Agent) sharesWith(site string) bool {
	return a.cfg.Registry.Shared != "" && site != a.cfg.Site && a.node.Catalog().Member(site).GetShared() == a.cfg.Registry.Shared
}

// storage names the storage of a site's registry: two that share one have the same.
func (a *Agent) storage(site string) string {
	shared := a.node.Catalog().Member(site).GetShared()
	if site == a.cfg.Site {
		shared = a.cfg.Registry.Shared
	}
	if shared != "" {
		return "shared " + shared
	}
	return "site " + site
}

// together fits a verdict on a ref to what others do in the same storage. A standbyError: look again later.
func (a *Agent) together(ctx context.Context, ref catalog.Ref, rec *catalogv1.Record, st store.RefState, ours string, v reconcile.Verdict) (reconcile.Verdict, error) {
	if a.cfg.Registry.Shared == "" {
		return v, nil
	}
	switch v.Action {
	case reconcile.Deliver, reconcile.Conflict, reconcile.Remove, reconcile.Report:
		if err := a.othersChange(ref, st, ours); err != nil {
			return v, err
		}
		if v.Action == reconcile.Report {
			return v, nil
		}
		return v, a.turn(ctx, ref, rec)
	case reconcile.Adopt:
		if rec.GetDeleted() {
			return v, nil
		}
		// Another may have put it there: what lies under it need not be sent again, by this site either.
		if _, _, err := a.readClosure(ctx, ref.Repository, ours); err != nil {
			return v, err
		}
		if !v.Referrers {
			return v, nil
		}
		unlisted, err := a.unlistedReferrers(ctx, ref.Repository, rec)
		if err != nil {
			return v, err
		}
		if len(unlisted) > 0 {
			return v, a.turn(ctx, ref, rec)
		}
		v.Referrers = false
	}
	return v, nil
}

// othersChange holds an answer back to what a tag shows and this site did not put there, until it is sure not to be a record that this site has not seen yet. A tag would go back else.
func (a *Agent) othersChange(ref catalog.Ref, st store.RefState, ours string) error {
	if ours == st.Base || st.Intent != "" && ours == st.Intent {
		a.standby.ownChange(ref)
		return nil
	}
	roster := a.node.Roster()
	upToDate := roster.Root != "" && a.node.Catalog().Position().GetRevision() >= roster.Head
	if a.standby.settled(ref, ours, time.Now()) && upToDate {
		return nil
	}
	return standbyError{"the shared storage was changed by another, whose record may be on its way"}
}

// ownChange notes that a tag shows what this site put there.
func (s *standby) ownChange(ref catalog.Ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w, ok := s.refs[ref]; ok {
		w.other, w.otherSince = "", time.Time{}
		s.refs[ref] = w
	}
}

// settled says whether a tag has shown the same, which another put there, for the settle time.
func (s *standby) settled(ref catalog.Ref, shows string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.refs[ref]
	if w.otherSince.IsZero() || w.other != shows {
		w.other, w.otherSince = shows, now
		s.set(ref, w)
	}
	return now.Sub(w.otherSince) >= settleTime
}

// turn says by a standbyError that it is for another member to make the shared storage show a record.
func (a *Agent) turn(ctx context.Context, ref catalog.Ref, rec *catalogv1.Record) error {
	set := a.node.Roster().Sharing
	if a.cfg.Registry.Shared == "" || len(set) == 0 || set[0].Site == a.cfg.Site {
		return nil
	}
	first := set[0].Site
	if a.standby.waits(ref, rec.GetRevision(), first, time.Now()) {
		why := sharedTrouble(first)
		a.progress.update(ref, func(p *treev1.PendingRef) {
			p.State, p.Reason, p.NextAttempt, p.Trouble = "waiting", why.GetSummary(), nil, why
		}, false)
		return standbyError{why.GetSummary()}
	}
	if a.standby.moved(ref, a.progressOf(ctx, ref, first), time.Now()) {
		return standbyError{first + " delivers to the storage that this site shares with it"}
	}
	return nil
}

// waits says whether it is too early to ask how far the one is that delivers. What was known of an older record, or of another one who delivered it, is dropped.
func (s *standby) waits(ref catalog.Ref, revision uint64, who string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.refs[ref]
	if w.revision != revision || w.who != who {
		w.revision, w.who, w.movedAt, w.progress, w.took = revision, who, now, "", false
		s.set(ref, w)
	}
	return !w.took && now.Sub(w.movedAt) < takeOverAfter
}

// moved says whether the one that delivers has come further since it was last asked for; if not, this site has taken over, for good.
func (s *standby) moved(ref catalog.Ref, progress string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.refs[ref]
	if w.took || progress == "" || progress == w.progress {
		w.took = true
		s.set(ref, w)
		return false
	}
	w.progress, w.movedAt = progress, now
	s.set(ref, w)
	return true
}

// progressOf asks the root how far a member is with a ref; empty: it failed, or that can't be found out.
func (a *Agent) progressOf(ctx context.Context, ref catalog.Ref, site string) string {
	roster := a.node.Roster()
	if roster.IsRoot {
		rec, _ := a.record(ref)
		return progressIn(a.where(ref, rec), site)
	}
	conn, err := a.peers.conn(ctx, roster.RootAddr)
	if err != nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	stream, err := adminv1.NewAdminServiceClient(conn).Where(passOn(ctx), &adminv1.WhereRequest{Ref: ref.String()})
	if err != nil {
		return ""
	}
	w, err := stream.Recv()
	if err != nil {
		return ""
	}
	return progressIn(w, site)
}

func progressIn(w *adminv1.WhereResponse, site string) string {
	for _, s := range w.GetSites() {
		if s.GetSite() == site && s.GetState() != "failed" && s.GetState() != "unreachable" {
			return fmt.Sprintf("%s %s %d %d", s.GetState(), s.GetDigest(), s.GetBytesLeft(), w.GetRevision())
		}
	}
	return ""
}
