package agent

import (
	"maps"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
)

// progress is what this site has still to do, as it is reported upward. Safe for concurrent use; entries handed out are never changed again.
type progress struct {
	site string

	mu       sync.Mutex
	pending  map[string]*treev1.PendingRef
	revision uint64
	dirty    chan struct{}
}

func newProgress(site string) *progress {
	return &progress{site: site, pending: map[string]*treev1.PendingRef{}, dirty: make(chan struct{}, 1)}
}

func (p *progress) touch() {
	select {
	case p.dirty <- struct{}{}:
	default:
	}
}

// want notes that a ref has to reach a revision. What is known of an earlier failure stays until the next attempt; what was held for an earlier record is not held for this one.
func (p *progress) want(ref catalog.Ref, revision uint64) {
	p.update(ref, func(r *treev1.PendingRef) {
		if r.State == "held" && r.Revision < revision {
			r.State, r.Reason, r.Trouble = "waiting", "", nil // what the later record asks for may not be here
		}
		r.Revision = revision
	}, true)
}

// update changes a ref's entry by a copy; create says whether one is made where none is.
func (p *progress) update(ref catalog.Ref, change func(*treev1.PendingRef), create bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id := ref.String()
	old := p.pending[id]
	if old == nil && !create {
		return
	}
	entry := &treev1.PendingRef{Site: p.site, Repository: ref.Repository, Tag: ref.Tag, State: "waiting", Since: timestamppb.New(time.Now())}
	if old != nil {
		entry.Revision, entry.State, entry.Digest, entry.Reason = old.Revision, old.State, old.Digest, old.Reason
		entry.Since, entry.BytesLeft, entry.NextAttempt, entry.Attempts, entry.Trouble, entry.Refused = old.Since, old.BytesLeft, old.NextAttempt, old.Attempts, old.Trouble, old.Refused
	}
	change(entry)
	p.pending[id] = entry
	p.touch()
}

// settle removes a ref's entry when it wants no more than the revision that was reached.
func (p *progress) settle(ref catalog.Ref, revision uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.pending[ref.String()]; e != nil && e.GetRevision() <= revision {
		delete(p.pending, ref.String())
		p.touch()
	}
}

// keep removes the entries of refs of which want says no: they are in the catalog no more.
func (p *progress) keep(want func(catalog.Ref) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, e := range p.pending {
		if !want(catalog.Ref{Repository: e.GetRepository(), Tag: e.GetTag()}) {
			delete(p.pending, id)
			p.touch()
		}
	}
}

// seen notes that every record up to the revision is either delivered or pending.
func (p *progress) seen(revision uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if revision != p.revision {
		p.revision = revision
		p.touch()
	}
}

// reached is the revision up to which every record is either delivered or pending.
func (p *progress) reached() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.revision
}

// get one entry; nil: it is not pending.
func (p *progress) get(ref catalog.Ref) *treev1.PendingRef {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pending[ref.String()]
}

// snapshot of all entries and the revision.
func (p *progress) snapshot() (map[string]*treev1.PendingRef, uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.pending), p.revision
}
