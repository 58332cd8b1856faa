package catalog

import (
	"iter"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// maxConflicts bounds the list. Whoever has so many has another problem than which of two images wins.
const maxConflicts = 10_000

func lessConflict(a, b *catalogv1.Conflict) bool { return compareConflicts(a, b) < 0 }

func compareConflicts(a, b *catalogv1.Conflict) int {
	if c := (Ref{a.Repository, a.Tag}).Compare(Ref{b.Repository, b.Tag}); c != 0 {
		return c
	}
	if c := strings.Compare(a.GetTarget().GetDigest(), b.GetTarget().GetDigest()); c != 0 {
		return c
	}
	return strings.Compare(a.Site, b.Site)
}

// noteConflict lists a push that lost. It changes no record: the catalog's order has decided.
func (m *Machine) noteConflict(n *catalogv1.NoteConflict) *Refusal {
	if !m.founded {
		return refuse(ErrNotHeadquarters, "conflicts are listed at headquarters only")
	}
	c := n.GetConflict()
	if err := validateConflict(c); err != nil {
		return err
	}
	if held, _ := m.get(Ref{c.Repository, c.Tag}); n.Current && held.GetRevision() != c.Revision {
		return refuse(ErrConflict, "%s: the record is at revision %d, not %d", Ref{c.Repository, c.Tag}, held.GetRevision(), c.Revision)
	}
	c = proto.CloneOf(c)
	c.NotedAt = m.now()
	if held, ok := m.conflicts.Get(c); ok {
		c.NotedAt = held.NotedAt
		if proto.Equal(held, c) {
			return refuse(ErrUnchanged, "the conflict over %s is listed", Ref{c.Repository, c.Tag})
		}
	} else if m.conflicts.Len() >= maxConflicts {
		return refuse(ErrInvalid, "%d conflicts are listed already: settle some", m.conflicts.Len())
	}
	m.conflicts.Set(c)
	return nil
}

func (m *Machine) settleConflict(s *catalogv1.SettleConflict) *Refusal {
	if !m.founded {
		return refuse(ErrNotHeadquarters, "conflicts are settled at headquarters only")
	}
	ref := Ref{s.GetRepository(), s.GetTag()}
	var settled []*catalogv1.Conflict
	for c := range m.conflictsOf(ref) {
		if s.GetDigest() == "" || s.GetDigest() == c.Target.Digest {
			settled = append(settled, c)
		}
	}
	if len(settled) == 0 {
		return refuse(ErrUnchanged, "no such conflict over %s is listed", quote(ref.String()))
	}
	for _, c := range settled {
		m.conflicts.Delete(c)
	}
	return nil
}

// settled returns the conflicts of a ref that a publish settles.
func (m *Machine) settled(ref Ref, p *catalogv1.Publish) (list []*catalogv1.Conflict) {
	if len(p.Settles) == 0 {
		return nil
	}
	for c := range m.conflictsOf(ref) {
		if d := c.GetTarget().GetDigest(); d == p.GetTarget().GetDigest() || slices.Contains(p.Settles, d) {
			list = append(list, c)
		}
	}
	return list
}

func validateConflict(c *catalogv1.Conflict) *Refusal {
	ref := Ref{c.GetRepository(), c.GetTag()}
	if err := ref.validate(); err != nil {
		return err
	}
	where := "conflict over " + ref.String()
	if err := validateDescriptor(where, c.Target); err != nil {
		return err
	}
	if err := validateSite(c.Site); err != nil {
		return err
	}
	if !ValidDigest(c.Winner) {
		return refuse(ErrInvalid, "%s: winner %s", where, quote(c.Winner))
	}
	for _, t := range []*timestamppb.Timestamp{c.PushedAt, c.NotedAt, c.WinnerPushedAt} {
		if err := validateTime(where, t); err != nil {
			return err
		}
	}
	return validateWords(c.Reason, c.PushedBy, c.WinnerSite, c.WinnerPublishedBy)
}

// AllConflicts yields the conflicts that are not settled, by ref, target and site.
func (s *Snapshot) AllConflicts() iter.Seq[*catalogv1.Conflict] {
	return func(yield func(*catalogv1.Conflict) bool) { s.conflicts.Scan(yield) }
}

// Conflicts yields those of one ref.
func (s *Snapshot) Conflicts(ref Ref) iter.Seq[*catalogv1.Conflict] { return s.conflictsOf(ref) }

func (s *state) conflictsOf(ref Ref) iter.Seq[*catalogv1.Conflict] {
	return func(yield func(*catalogv1.Conflict) bool) {
		s.conflicts.Ascend(&catalogv1.Conflict{Repository: ref.Repository, Tag: ref.Tag}, func(c *catalogv1.Conflict) bool {
			return c.Repository == ref.Repository && c.Tag == ref.Tag && yield(c)
		})
	}
}
