package view

import (
	"maps"
	"time"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// The reasons of events that nobody remembers, each of a question of its own.
const (
	// NotAsked: somebody's events are missing among those that come.
	NotAsked = "NotAsked"
	// NotKnown: what is followed is not there yet.
	NotKnown = "NotKnown"
)

// remembered says of an event that its agent gives it again to who asks later.
func remembered(ev *adminv1.EventsResponse) bool {
	return ev.GetReason() != NotAsked && ev.GetReason() != NotKnown
}

// EventCursor is up to where the events of each site have come, for who asks for them again. It goes by the numbers that a site's agent gives to them, and by the site's times only where the
// agent's version gives none: a clock may be set back. The zero value is before all events. Not safe for concurrent use.
type EventCursor struct {
	sites map[string]reached
}

// reached is the last event of a site that has come.
type reached struct {
	run    string
	number uint64
	at     time.Time
}

// Before says whether an event lies after all that were noted. What nobody remembers always does: each is of a question of its own.
func (c *EventCursor) Before(ev *adminv1.EventsResponse) bool {
	was, ok := c.sites[ev.GetSite()]
	switch {
	case !remembered(ev), !ok:
		return true
	case ev.GetRun() != was.run:
		return true // the agent started anew, and remembers nothing of before
	case ev.GetRun() != "":
		return ev.GetNumber() > was.number
	}
	return ev.GetTime().AsTime().After(was.at)
}

// Note notes that an event has come.
func (c *EventCursor) Note(ev *adminv1.EventsResponse) {
	if !remembered(ev) || !c.Before(ev) {
		return
	}
	if c.sites == nil {
		c.sites = map[string]reached{}
	}
	c.sites[ev.GetSite()] = reached{ev.GetRun(), ev.GetNumber(), ev.GetTime().AsTime()}
}

// Clone gives a cursor that stays where this one is now.
func (c *EventCursor) Clone() EventCursor { return EventCursor{maps.Clone(c.sites)} }
