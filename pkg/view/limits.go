package view

import (
	"fmt"
	"strings"
	"time"

	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// Limits say what a picture can't show.
type Limits struct {
	// CutOff: the group that answers, or one above it, is attached to no parent.
	CutOff *CutOff `json:"cutOff,omitempty"`
	// NoRoot says why the group of the agent that answers has no root: only what that agent knows itself is shown.
	NoRoot string `json:"noRoot,omitempty"`
}

// CutOff is a group to which nothing new comes from headquarters.
type CutOff struct {
	Group string     `json:"group"`
	Since *time.Time `json:"since,omitempty"`
}

func limitsOf(c *treev1.CutOff, noRoot string) Limits {
	l := Limits{NoRoot: noRoot}
	if c != nil {
		l.CutOff = &CutOff{Group: c.GetGroup(), Since: moment(c.GetSince())}
	}
	return l
}

// text says them, each on a line.
func (l Limits) text(s Style, asOf *time.Time) string {
	var b strings.Builder
	if l.NoRoot != "" {
		fmt.Fprintln(&b, s.paint(yellow, "Only what this agent knows itself is shown: its group has no root now."))
	}
	if c := l.CutOff; c != nil {
		since := ""
		if c.Since != nil {
			since = " since " + stamp(c.Since)
			if age := ago(asOf, c.Since); age != "" {
				since += " (" + age + ")"
			}
		}
		fmt.Fprintln(&b, s.paint(yellow, Clean(c.Group+" is attached to no parent"+since+": what headquarters has published since is not known here.")))
	}
	return b.String()
}
