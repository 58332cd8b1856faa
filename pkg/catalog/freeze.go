package catalog

import (
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

const (
	// MaxFreeze is how long a freeze may last, unless a policy says less.
	MaxFreeze = 90 * 24 * time.Hour
	// maxFreezes is how many groups there may be above one.
	maxFreezes = 64
)

// setFreeze freezes this group, or thaws it. It changes no record: the group's members leave their tags as they are while it is in force.
func (m *Machine) setFreeze(f *catalogv1.Freeze) *Refusal {
	if f == nil {
		if m.freeze == nil {
			return refuse(ErrUnchanged, "nothing is frozen here")
		}
		m.freeze = nil
		return nil
	}
	if err := validateFreeze(f); err != nil {
		return err
	}
	until := f.Until.AsTime()
	switch {
	case !until.After(m.clock):
		return refuse(ErrInvalid, "a freeze until %s, which is past: it is %s", stamp(until), stamp(m.clock))
	case until.Sub(m.clock) > MaxFreeze:
		return refuse(ErrInvalid, "a freeze until %s: at most %v are allowed", stamp(until), MaxFreeze)
	}
	f = proto.CloneOf(f)
	f.Since = m.now()
	if m.freeze != nil && m.freeze.Group == f.Group && m.freeze.Until.AsTime().After(m.clock) {
		f.Since = m.freeze.Since // it goes on
	}
	m.freeze = f
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// setFreezesAbove notes what is frozen above, as the parent told it.
func (m *Machine) setFreezesAbove(list []*catalogv1.Freeze) *Refusal {
	if m.founded {
		return refuse(ErrFounded, "nothing is above headquarters")
	}
	if m.restoring != "" {
		return refuse(ErrFounded, "restore %s is under way: nothing is above headquarters", m.restoring)
	}
	if err := validateFreezesAbove(list); err != nil {
		return err
	}
	above := make([]*catalogv1.Freeze, len(list))
	for i, f := range list {
		above[i] = proto.CloneOf(f)
	}
	slices.SortFunc(above, compareFreezes)
	if slices.EqualFunc(above, m.freezesAbove, func(a, b *catalogv1.Freeze) bool { return proto.Equal(a, b) }) {
		return refuse(ErrUnchanged, "these freezes are noted")
	}
	m.freezesAbove = above
	return nil
}

func compareFreezes(a, b *catalogv1.Freeze) int { return strings.Compare(a.Group, b.Group) }

func validateFreezesAbove(list []*catalogv1.Freeze) *Refusal {
	if len(list) > maxFreezes {
		return refuse(ErrInvalid, "%d freezes above, at most %d", len(list), maxFreezes)
	}
	seen := map[string]bool{}
	for _, f := range list {
		if err := validateFreeze(f); err != nil {
			return err
		}
		if seen[f.Group] {
			return refuse(ErrInvalid, "two freezes of group %s", quote(f.Group))
		}
		seen[f.Group] = true
	}
	return nil
}

func validateFreeze(f *catalogv1.Freeze) *Refusal {
	if err := validateGroupPath(f.GetGroup()); err != nil {
		return err
	}
	where := "freeze of " + f.Group
	if f.Until == nil {
		return refuse(ErrInvalid, "%s: no end: say until when", where)
	}
	if err := validateTime(where, f.Until); err != nil {
		return err
	}
	if err := validateTime(where, f.Since); err != nil {
		return err
	}
	return validateWords(f.Reason, f.By)
}

// Freezes returns the freezes that are in force for this group at a time: its own and those of the groups above, by group.
func (s *Snapshot) Freezes(now time.Time) []*catalogv1.Freeze {
	var out []*catalogv1.Freeze
	for _, f := range append(slices.Clone(s.freezesAbove), s.freeze) {
		if f != nil && f.Until.AsTime().After(now) {
			out = append(out, f)
		}
	}
	slices.SortFunc(out, compareFreezes)
	return out
}

// Freeze is this group's own, whether or not its time is over; nil: none.
func (s *Snapshot) Freeze() *catalogv1.Freeze { return s.freeze }
