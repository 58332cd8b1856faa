package view

import (
	"fmt"
	"strings"
	"time"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// Unpublish is the document of `unpublish`.
type Unpublish struct {
	SchemaVersion int        `json:"schemaVersion"`
	Ref           string     `json:"ref"`
	Digest        string     `json:"digest"`
	Revision      uint64     `json:"revision"`
	UndoUntil     *time.Time `json:"undoUntil,omitempty"`
	// Already: it was deleted before, by whom and when the next two say.
	Already   bool       `json:"already"`
	DeletedBy string     `json:"deletedBy,omitempty"`
	DeletedAt *time.Time `json:"deletedAt,omitempty"`
	Sites     *[]Site    `json:"sites,omitempty"` // with --wait; delivered: the tag is gone there
	// AsOf is when the sites were asked about.
	AsOf *time.Time `json:"asOf,omitempty"`
}

// UnpublishOf makes it.
func UnpublishOf(r *adminv1.UnpublishResponse) Unpublish {
	return Unpublish{
		SchemaVersion: SchemaVersion, Ref: r.GetRef(), Digest: r.GetDigest(), Revision: r.GetRevision(), UndoUntil: moment(r.GetUndoUntil()),
		Already: r.GetAlready(), DeletedBy: r.GetDeletedBy(), DeletedAt: moment(r.GetDeletedAt()),
	}
}

// Text says what was deleted, and until when that can be undone.
func (u Unpublish) Text(s Style) string {
	ref := s.paint(bold, Clean(u.Ref))
	text := fmt.Sprintf("%s is deleted as revision %s, and the deletion travels to every site; it showed %s", ref, count(u.Revision), Clean(u.Digest))
	if u.Already {
		text = fmt.Sprintf("%s was deleted already, as revision %s", ref, count(u.Revision))
		if u.DeletedBy != "" {
			text += " by " + Clean(u.DeletedBy)
		}
		if u.DeletedAt != nil {
			text += " at " + stamp(u.DeletedAt)
		}
		text += "; nothing was changed. It showed " + Clean(u.Digest)
	}
	if u.Sites != nil {
		gone, total := deliveredAt(*u.Sites)
		text += fmt.Sprintf("\nIt is gone from %d of %s", gone, plural(total, "site"))
	}
	if u.UndoUntil != nil {
		text += "\nUntil " + stamp(u.UndoUntil) + " it comes back with: fanoutctl undo " + Clean(u.Ref)
	}
	return text + "\n"
}

// deliveredAt counts the sites that are as the catalog says, of those that want the ref.
func deliveredAt(sites []Site) (delivered, total int) {
	for _, x := range sites {
		if x.State == "unsubscribed" {
			continue
		}
		total++
		if x.State == "delivered" {
			delivered++
		}
	}
	return delivered, total
}

// Changed is the document of `undo` and `conflicts settle`: what a ref shows now.
type Changed struct {
	SchemaVersion int    `json:"schemaVersion"`
	Ref           string `json:"ref"`
	Digest        string `json:"digest"`
	Revision      uint64 `json:"revision"`
	Settled       uint32 `json:"settled,omitempty"`
	// Losers are the digests of the settled conflicts.
	Losers []string `json:"losers,omitempty"`
}

// Text says it in a line.
func (c Changed) Text(s Style) string {
	text := fmt.Sprintf("%s shows %s, as revision %s", s.paint(bold, Clean(c.Ref)), Clean(c.Digest), count(c.Revision))
	if c.Settled > 0 {
		text += "; " + plural(int(c.Settled), "conflict") + " settled"
	}
	return text + "\n"
}

// Conflicts is the document of `conflicts`.
type Conflicts struct {
	SchemaVersion int        `json:"schemaVersion"`
	Conflicts     []Conflict `json:"conflicts"`
}

// Conflict is one push that lost: what won then, and what the ref shows now.
type Conflict struct {
	Ref     string     `json:"ref"`
	Winner  Push       `json:"winner"`
	Loser   Push       `json:"loser"`
	Now     Push       `json:"now"`
	NotedAt *time.Time `json:"notedAt,omitempty"`
	Reason  string     `json:"reason"`
}

// Push is one side of a Conflict. Without a digest: it was deleted.
type Push struct {
	Digest   string     `json:"digest"`
	Site     string     `json:"site"`
	PushedAt *time.Time `json:"pushedAt,omitempty"`
	// PushedBy whom, where the registry said it.
	PushedBy    string `json:"pushedBy,omitempty"`
	PublishedBy string `json:"publishedBy,omitempty"`
	Revision    uint64 `json:"revision,omitempty"`
}

// by says whose it was, as far as that is known.
func (p Push) by() string {
	switch {
	case p.PushedBy != "":
		return p.PushedBy
	case p.PublishedBy != "" && p.PublishedBy != "webhook" && p.PublishedBy != "sweep":
		return p.PublishedBy
	case p.Site != "":
		return "a push at " + p.Site
	}
	return "unknown"
}

// ConflictsOf makes it.
func ConflictsOf(r *adminv1.ConflictsResponse) Conflicts {
	side := func(x *adminv1.ConflictSide) Push {
		return Push{
			Digest: x.GetDigest(), Site: x.GetSite(), PushedAt: moment(x.GetPushedAt()), PushedBy: x.GetPushedBy(), PublishedBy: x.GetPublishedBy(), Revision: x.GetRevision(),
		}
	}
	doc := Conflicts{SchemaVersion: SchemaVersion, Conflicts: []Conflict{}}
	for _, c := range r.GetConflicts() {
		doc.Conflicts = append(doc.Conflicts, Conflict{
			Ref: c.GetRef(), Winner: side(c.GetWinner()), Loser: side(c.GetLoser()), Now: side(c.GetNow()), NotedAt: moment(c.GetNotedAt()), Reason: c.GetReason(),
		})
	}
	return doc
}

// Text is a line for each side of each conflict: whole digests, since one of them is to be named. Those of a ref come one after the other, and after them what it shows now, where that is
// neither.
func (c Conflicts) Text(s Style) string {
	if len(c.Conflicts) == 0 {
		return "No conflicts.\n"
	}
	var rows [][]cell
	row := func(ref, what string, p Push) {
		rows = append(rows, []cell{plain(ref), plain(what), plain(fallback(p.Digest, "(deleted)")), plain(p.Site), plain(stamp(p.PushedAt)), plain(p.by())})
	}
	for i, x := range c.Conflicts {
		row(x.Ref, "lost", x.Loser)
		last := i+1 == len(c.Conflicts) || c.Conflicts[i+1].Ref != x.Ref
		switch next := !last && c.Conflicts[i+1].Winner.Digest == x.Winner.Digest; {
		case next: // it is told once, with the last that lost against it
		case x.Winner.Digest == x.Now.Digest:
			row(x.Ref, "won, and shown now", x.Winner)
		default:
			row(x.Ref, "won then", x.Winner)
		}
		if last && x.Winner.Digest != x.Now.Digest && x.Now.Revision > 0 {
			row(x.Ref, "shown now", x.Now)
		}
	}
	return table(s, []string{"REF", "WHAT", "DIGEST", "SITE", "PUSHED", "BY"}, rows) +
		"\nSettle one with: fanoutctl conflicts settle REF --keep DIGEST\n"
}

// ForgottenGroups is the document of `group forget`.
type ForgottenGroups struct {
	SchemaVersion int      `json:"schemaVersion"`
	DryRun        bool     `json:"dryRun"`
	Groups        []string `json:"groups"`
	Sites         []string `json:"sites"`
	// Rollouts in which one of the groups was skipped.
	Rollouts []string `json:"rollouts"`
}

// ForgottenOf makes it.
func ForgottenOf(r *adminv1.ForgetGroupResponse, dry bool) ForgottenGroups {
	return ForgottenGroups{
		SchemaVersion: SchemaVersion, DryRun: dry, Groups: append([]string{}, r.GetGroups()...), Sites: append([]string{}, r.GetSites()...), Rollouts: append([]string{}, r.GetRollouts()...),
	}
}

// Text names all of them.
func (f ForgottenGroups) Text(s Style) string {
	verb, skipped := "Forgotten", "they were skipped"
	if f.DryRun {
		verb, skipped = "Would be forgotten", "they would be skipped"
	}
	list := func(n int, word string, names []string) string {
		return plural(n, word) + " (" + Clean(strings.Join(names, ", ")) + ")"
	}
	text := fmt.Sprintf("%s: %s with %s\n", verb, list(len(f.Groups), "group", f.Groups), list(len(f.Sites), "site", f.Sites))
	if len(f.Rollouts) > 0 {
		text += fmt.Sprintf("Waited for in %s: %s there\n", list(len(f.Rollouts), "rollout", f.Rollouts), skipped)
	}
	return text
}

// Deletions is the document of `deletions`.
type Deletions struct {
	SchemaVersion int        `json:"schemaVersion"`
	Deletions     []Deletion `json:"deletions"`
}

// Deletion is a tag that vanished from one registry.
type Deletion struct {
	Ref     string     `json:"ref"`
	Digest  string     `json:"digest"`
	Site    string     `json:"site"`
	NotedAt *time.Time `json:"notedAt,omitempty"`
	State   string     `json:"state"`
}

// DeletionsOf makes it.
func DeletionsOf(r *adminv1.DeletionsResponse) Deletions {
	doc := Deletions{SchemaVersion: SchemaVersion, Deletions: []Deletion{}}
	for _, d := range r.GetDeletions() {
		doc.Deletions = append(doc.Deletions, Deletion{Ref: d.GetRef(), Digest: d.GetDigest(), Site: d.GetSite(), NotedAt: moment(d.GetNotedAt()), State: d.GetState()})
	}
	return doc
}

// Text is a line for each, and what can be done where something waits.
func (d Deletions) Text(s Style) string {
	if len(d.Deletions) == 0 {
		return "No deletions wait.\n"
	}
	rows := make([][]cell, 0, len(d.Deletions))
	held := 0
	for _, x := range d.Deletions {
		rows = append(rows, []cell{plain(x.Ref), plain(x.Site), plain(x.State), plain(stamp(x.NotedAt)), plain(x.Digest)})
		if x.State == "held" {
			held++
		}
	}
	text := table(s, []string{"REF", "GONE AT", "STATE", "SEEN", "SHOWS ELSEWHERE"}, rows)
	if held > 0 {
		text += "\n" + plural(held, "deletion") + " held. Delete them everywhere with: fanoutctl deletions allow REF… | --all\n" +
			"Put the tags back with: fanoutctl deletions restore REF… | --all\n"
	}
	return text
}

// Settled is the document of `deletions allow` and `deletions restore`.
type Settled struct {
	SchemaVersion int    `json:"schemaVersion"`
	Settled       uint32 `json:"settled"`
	// Changed meanwhile, and left as they are.
	Changed uint32 `json:"changed,omitempty"`
	What    string `json:"-"`
}

// Text says how many.
func (x Settled) Text(Style) string {
	text := plural(int(x.Settled), "tag") + " " + x.What
	if x.Changed > 0 {
		text += "; " + plural(int(x.Changed), "tag") + " changed meanwhile: look again with 'fanoutctl deletions list'"
	}
	return text + "\n"
}
