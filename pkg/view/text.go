package view

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// Text of one ref at every site.
func (w Where) Text(s Style) string {
	target, summary := w.Digest, SitesSummary(w.Sites)
	switch {
	case w.Held != "":
		target = fallback(target, "none") + " → " + w.Held + ", which is held"
	case target == "":
		delivered, total := deliveredAt(w.Sites)
		target, summary = "deleted", fmt.Sprintf("gone from %d of %s", delivered, plural(total, "site"))
	}
	head := fmt.Sprintf("%s  %s  revision %s\n\n", s.paint(bold, Clean(w.Ref)), Clean(target), count(w.Revision))
	return head + SitesText(s, w.Sites, w.AsOf) + "\n" + summary + asOf(w.AsOf) + "\n" + w.Limits.text(s, w.AsOf)
}

// SitesText is a table of a ref's sites; ages count from now, which may be nil.
func SitesText(s Style, sites []Site, now *time.Time) string {
	rows := make([][]cell, 0, len(sites))
	for _, x := range sites {
		digest := shortDigest(x.Digest)
		if next := cmp.Or(x.Held, x.Want); next != "" && next != x.Digest {
			none := "none"
			if x.State == "unknown" {
				none = "?"
			}
			digest = fallback(digest, none) + " → " + shortDigest(next)
		}
		rows = append(rows, []cell{
			plain(x.Site), plain(x.Group), state(x.State), plain(digest), number(bytesText(x.BytesLeft)), plain(ago(now, x.Since)),
			plain(x.why(now)),
		})
	}
	return table(s, []string{"SITE", "GROUP", "STATE", "DIGEST", "BYTES LEFT", "SINCE", "REASON"}, rows)
}

func (x Site) why(now *time.Time) string {
	var more []string
	if x.Attempts > 0 {
		more = append(more, "failed "+times(x.Attempts))
	}
	if x.NextAttempt != nil && now != nil {
		if d := x.NextAttempt.Sub(*now); d > 0 {
			more = append(more, "next attempt in "+span(d))
		} else {
			more = append(more, "next attempt now")
		}
	}
	switch {
	case len(more) == 0:
		return x.Reason
	case x.Reason == "":
		return strings.Join(more, ", ")
	}
	text := x.Reason + " (" + strings.Join(more, ", ") + ")"
	if x.State == "delivering" {
		return "before: " + text // what comes now is another attempt
	}
	return text
}

// SitesSummary counts the sites that show what they should. Sites that do not want the ref are not counted.
func SitesSummary(sites []Site) string {
	delivered, total := deliveredAt(sites)
	return fmt.Sprintf("%d of %s delivered", delivered, plural(total, "site"))
}

// Text of the catalog.
func (d Images) Text(s Style) string {
	rows := make([][]cell, 0, len(d.Images))
	for _, x := range d.Images {
		digest, size, color := shortDigest(x.Digest), "", ""
		if x.Size > 0 {
			size = humanize.IBytes(uint64(x.Size))
		}
		if x.Deleted {
			digest, color = "deleted", dim
		}
		rows = append(rows, []cell{
			{text: x.Ref, color: color}, {text: digest, color: color}, number(size), number(count(x.Revision)), number(nonzero(uint64(x.Referrers))),
			plain(stamp(x.PublishedAt)), plain(x.PublishedBy), plain(x.Origin),
		})
	}
	return table(s, []string{"REF", "DIGEST", "SIZE", "REVISION", "REFERRERS", "PUBLISHED", "BY", "ORIGIN"}, rows)
}

// Text of an event is a line.
func (e Event) Text(s Style) string {
	color := ""
	if e.Type == "Warning" {
		color = yellow
	}
	line := fmt.Sprintf("%-20s  %s  %s  %s", stamp(e.Time), s.paint(color, pad(e.Type, 7)), pad(e.Reason, 18), pad(e.Site, 10))
	if e.Ref != "" {
		line += "  " + Clean(e.Ref)
	}
	if e.Message != "" {
		line += "  " + Clean(e.Message)
	}
	if e.Count > 1 {
		line += fmt.Sprintf("  (%s since %s)", times(e.Count), fallback(stamp(e.First), "an unknown time"))
	}
	return strings.TrimRight(line, " ") + "\n"
}

// Text of a group's members.
func (d Members) Text(s Style) string {
	rows := make([][]cell, 0, len(d.Members))
	for _, m := range d.Members {
		rows = append(rows, []cell{
			plain(m.Site), plain(fallback(m.Role, "unknown")), plain(voteText(m.Voter)), state(m.State), plain(m.RegistryType), plain(m.RaftAddress),
			plain(m.FabricAddress), plain(m.ID),
		})
	}
	return fmt.Sprintf("group %s\n\n", s.paint(bold, Clean(d.Group))) +
		table(s, []string{"SITE", "ROLE", "VOTE", "STATE", "REGISTRY", "RAFT", "FABRIC", "ID"}, rows)
}

// Text of a catalog that was saved.
func (c SavedCatalog) Text(Style) string {
	return fmt.Sprintf("saved %s of epoch %s, up to revision %s, to %s\n", records(c.Records), Clean(c.Epoch), count(c.Revision), Clean(c.File))
}

// Text of a catalog that was restored.
func (c RestoredCatalog) Text(Style) string {
	return fmt.Sprintf("restored %s of epoch %s; the catalog goes on from revision %s in epoch %s\n", records(c.Records), Clean(c.From), count(c.Revision), Clean(c.Epoch))
}

// Text of an epoch that was accepted.
func (e AcceptedEpoch) Text(Style) string {
	return fmt.Sprintf("accepted epoch %s; it replaces epoch %s, which was held up to revision %s\n", Clean(e.Epoch), Clean(fallback(e.Held, "(none)")), count(e.HeldRevision))
}

func records(n uint64) string {
	if n == 1 {
		return "1 record"
	}
	return count(n) + " records"
}

// Text says what is to be done next.
func (d MemberAdded) Text(Style) string {
	site, addr := Clean(d.Member.Site), Clean(d.Member.RaftAddress)
	if d.Member.ID != "" {
		return fmt.Sprintf("%s at %s is a member already\n", site, addr)
	}
	return fmt.Sprintf("%s at %s may join; start its agent with itself and at least one other member in raft.members\n", site, addr)
}

// Text of a removal.
func (d MemberRemoved) Text(Style) string {
	return fmt.Sprintf("%s was removed; its agent is not let in again until it is added\n", Clean(d.Site))
}

// Text names the root.
func (d Lead) Text(Style) string { return Clean(d.Site) + " is the root\n" }

// Text of the versions.
func (v Version) Text(Style) string {
	text := fmt.Sprintf("fanoutctl %s (%s, %s)\n", v.Client.Version, v.Client.Go, v.Client.Platform)
	if v.Server != nil {
		return text + fmt.Sprintf("fanoutd   %s (site %s of %s)\n", Clean(v.Server.Version), Clean(v.Server.Site), Clean(v.Server.Group))
	}
	return text + "fanoutd   not reached: " + Clean(v.ServerError) + "\n"
}

// Text of what was issued.
func (c Certificate) Text(Style) string {
	return fmt.Sprintf("%s\n  certificate  %s\n  key          %s\n  CA           %s\n  valid until  %s\n", c.ID, c.Cert, c.Key, c.CA, stamp(c.NotAfter))
}

// Text of the contexts.
func (d Contexts) Text(s Style) string {
	rows := make([][]cell, 0, len(d.Contexts))
	for _, c := range d.Contexts {
		mark := ""
		if c.Current {
			mark = "*"
		}
		rows = append(rows, []cell{plain(mark), plain(c.Name), plain(c.Server), plain(c.TrustDomain), plain(c.Cert)})
	}
	return table(s, []string{"", "NAME", "SERVER", "TRUST DOMAIN", "CERTIFICATE"}, rows)
}

// Text of a publish that is done.
func (p Publish) Text(s Style) string {
	line := fmt.Sprintf("%s  %s  revision %s  %s", s.paint(bold, Clean(p.Ref)), Clean(fallback(p.Digest, "unknown digest")),
		count(p.Revision), pluralOf(int(p.Copies), "copy", "copies"))
	if p.Sites != nil {
		line += "  " + SitesSummary(*p.Sites)
	}
	if p.Message != "" {
		line += "  (" + Clean(p.Message) + ")"
	}
	return line + "\n"
}

func count(n uint64) string { return strconv.FormatUint(n, 10) }

func nonzero(n uint64) string {
	if n == 0 {
		return ""
	}
	return count(n)
}

func bytesText(n int64) string {
	if n <= 0 {
		return ""
	}
	return humanize.IBytes(uint64(n))
}

// Bytes in words, such as "1.5 GiB".
func Bytes(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

func rate(n int64) string {
	if n <= 0 {
		return ""
	}
	return humanize.IBytes(uint64(n)) + "/s"
}

func shortDigest(d string) string {
	algorithm, hex, ok := strings.Cut(d, ":")
	if !ok || len(hex) <= 12 {
		return d
	}
	return algorithm + ":" + hex[:12]
}

func plural(n int, word string) string { return pluralOf(n, word, word+"s") }

// Plural is a number of things in words. The plural is the word and an s, unless it is given.
func Plural(n int, word string, many ...string) string {
	if len(many) > 0 {
		return pluralOf(n, word, many[0])
	}
	return plural(n, word)
}

func pluralOf(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

func times(n uint32) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func stamp(t *time.Time) string {
	if t == nil {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}

func asOf(t *time.Time) string {
	if t == nil {
		return ""
	}
	return ", as of " + stamp(t)
}

// ago is how long before now something was; without now, when it was.
func ago(now, then *time.Time) string {
	switch {
	case then == nil:
		return ""
	case now == nil:
		return stamp(then)
	}
	d := now.Sub(*then)
	if d < time.Second {
		return "now"
	}
	return span(d) + " ago"
}

// span is a duration in its two largest units at most.
func span(d time.Duration) string {
	switch {
	case d < time.Second:
		return "1s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%02dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}

func pad(s string, width int) string { return fmt.Sprintf("%-*s", width, Clean(s)) }

func fallback(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
