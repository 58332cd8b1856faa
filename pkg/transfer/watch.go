package transfer

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// peers knows when each source that is being drawn from was last heard.
type peers struct {
	mu sync.Mutex
	m  map[string]*peer
}

type peer struct {
	users int // under peers.mu
	last  atomic.Int64
}

func (p *peers) get(addr string) *peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.m == nil {
		p.m = make(map[string]*peer)
	}
	e := p.m[addr]
	if e == nil {
		e = new(peer)
		p.m[addr] = e
	}
	e.users++
	return e
}

func (p *peers) put(addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.m[addr]; e != nil {
		if e.users--; e.users == 0 {
			delete(p.m, addr)
		}
	}
}

// lonelyStalls is how many stall time-outs a stream may be silent while its source still sends on others.
const lonelyStalls = 10

// watch cancels a stream that waits in vain.
//
// On a thin link one message of one of many streams may take minutes, so a stream's silence is held against it only when
// its source is silent on all streams of this site, or when it lasts ten times as long.
type watch struct {
	peer   *peer
	stall  time.Duration
	cancel context.CancelCauseFunc
	timer  *time.Timer

	mu    sync.Mutex
	armed bool
	since time.Time
}

func newWatch(p *peer, stall time.Duration, cancel context.CancelCauseFunc) *watch {
	w := &watch{peer: p, stall: stall, cancel: cancel}
	w.timer = time.AfterFunc(stall, w.check) // not armed yet, so it does nothing
	return w
}

// arm begins a wait.
func (w *watch) arm() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.armed, w.since = true, time.Now()
	w.timer.Reset(w.stall)
}

// disarm ends it. What lies between waits (a limit, the disk) is not the source's fault.
func (w *watch) disarm() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.armed = false
	w.timer.Stop()
}

func (w *watch) check() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.armed {
		return
	}
	now := time.Now()
	own := now.Sub(w.since)
	all := min(own, now.Sub(time.Unix(0, w.peer.last.Load())))
	if all >= w.stall || own >= lonelyStalls*w.stall {
		w.cancel(fmt.Errorf("%w: nothing for %s", ErrStalled, own.Round(time.Second)))
		return
	}
	w.timer.Reset(max(w.stall-all, time.Millisecond))
}
