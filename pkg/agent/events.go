package agent

import (
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// maxEvents bounds what is remembered.
const maxEvents = 1000

// events is a bounded record of what happened lately. An event equal to one among the last few is counted there. Safe for concurrent use.
type events struct {
	site string
	run  string // another after each start, when what was remembered is gone

	mu    sync.Mutex
	first uint64 // number of list[0]
	list  []*adminv1.EventsResponse
	wake  chan struct{}
}

func newEvents(site string) *events {
	return &events{site: site, run: rand.Text()[:16], wake: make(chan struct{})}
}

func (e *events) normal(reason, ref, message string)  { e.add("Normal", reason, ref, message) }
func (e *events) warning(reason, ref, message string) { e.add("Warning", reason, ref, message) }

// parentChanged is tree.Config's OnParent.
func (a *Agent) parentChanged(parent, peer string, fallback bool, why string) {
	switch {
	case parent == "":
		a.events.warning("Detached", "", "the group is attached to no parent: "+why)
	case fallback:
		a.events.warning("Attached", "", fmt.Sprintf("to the fallback parent %s, by %s", parent, peer))
	default:
		a.events.normal("Attached", "", fmt.Sprintf("to %s, by %s", parent, peer))
	}
}

func (e *events) add(kind, reason, ref, message string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := timestamppb.New(time.Now())
	ev := &adminv1.EventsResponse{Time: now, First: now, Type: kind, Reason: reason, Site: e.site, Ref: ref, Message: message, Count: 1,
		Run: e.run, Number: e.first + uint64(len(e.list)) + 1}
	for i := len(e.list) - 1; i >= max(0, len(e.list)-32); i-- {
		old := e.list[i]
		if old.GetType() == kind && old.GetReason() == reason && old.GetRef() == ref && old.GetMessage() == message {
			ev.First, ev.Count = old.GetFirst(), old.GetCount()+1
			// The old one's place is emptied, so that followers that have passed it see the new count.
			e.list[i] = nil
			break
		}
	}
	e.list = append(e.list, ev)
	if drop := len(e.list) - maxEvents; drop > 0 {
		e.list = append([]*adminv1.EventsResponse(nil), e.list[drop:]...)
		e.first += uint64(drop)
	}
	close(e.wake)
	e.wake = make(chan struct{})
}

// since returns the events from a number on, the number to ask for next, and a channel that closes with the next event.
func (e *events) since(n uint64) ([]*adminv1.EventsResponse, uint64, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	start := max(n, e.first) - e.first
	var out []*adminv1.EventsResponse
	for _, ev := range e.list[min(start, uint64(len(e.list))):] {
		if ev != nil {
			out = append(out, ev)
		}
	}
	return out, e.first + uint64(len(e.list)), e.wake
}
