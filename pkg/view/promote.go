package view

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fanout-io/fanout/pkg/catalog"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// Promotion is the document of `promote`: the rollout that was started, or would be.
type Promotion struct {
	Rollout
	DryRun    bool            `json:"dryRun"`
	Warnings  []string        `json:"warnings"`
	Preflight []PreflightSite `json:"preflight,omitempty"`
}

// PreflightSite is what is known of a site before a rollout.
type PreflightSite struct {
	Site         string `json:"site"`
	Group        string `json:"group"`
	Wave         string `json:"wave"`
	State        string `json:"state"`
	Reason       string `json:"reason"`
	BytesMissing int64  `json:"bytesMissing"`
	// Seconds that these take at the rates measured last; null: not known.
	Seconds *float64 `json:"seconds"`
	// Shows are the digests that the refs show there now, in the order of the refs; empty: none.
	Shows []string `json:"shows"`
	// Checks that the site made of itself when it was asked.
	Checks []Check `json:"checks"`
}

// ready says whether nothing is known that would keep a site from taking in the release.
func (p PreflightSite) ready() bool {
	well := p.State == "synced" || p.State == "syncing" || p.State == "witness"
	return well && p.Reason == "" && !slices.ContainsFunc(p.Checks, Check.bad)
}

// bad: something was found, which is not the same as that nothing could be.
func (c Check) bad() bool { return c.State == CheckWarn || c.State == CheckFail }

// PromotionOf makes the document of an answer.
func PromotionOf(r *adminv1.StartRolloutResponse, dryRun bool, asOf *time.Time) Promotion {
	doc := Promotion{Rollout: RolloutOf(r.GetRollout(), nil, asOf), DryRun: dryRun, Warnings: []string{}}
	doc.Warnings = append(doc.Warnings, r.GetWarnings()...)
	for _, p := range r.GetPreflight() {
		site := PreflightSite{
			Site: p.GetSite(), Group: p.GetGroup(), Wave: p.GetWave(), State: p.GetState(), Reason: p.GetReason(), BytesMissing: p.GetBytesMissing(), Shows: p.GetShows(), Checks: checksOf(p.GetChecks()),
		}
		if p.GetSeconds() >= 0 {
			s := finite(p.GetSeconds())
			site.Seconds = &s
		}
		if site.Shows == nil {
			site.Shows = []string{}
		}
		doc.Preflight = append(doc.Preflight, site)
	}
	return doc
}

// Text of a rollout that was started is where it stands; of one that would be, what it would do.
func (p Promotion) Text(s Style) string {
	text := ""
	if p.DryRun {
		text = refsText(s, p.Refs) + "\n" + p.planText(s) + p.sitesText(s)
	} else {
		text = p.Rollout.Text(s)
	}
	if len(p.Warnings) == 0 {
		return text
	}
	text += "\n"
	for _, w := range p.Warnings {
		lines := wrap("Warning: "+w, 0, textWidth)
		text += s.paint(yellow, strings.TrimSuffix(lines, "\n")) + "\n"
	}
	return text
}

// planText is the resolved waves: which groups, what has to be fetched there, and how it goes.
func (p Promotion) planText(s Style) string {
	var rows [][]cell
	var notes []string
	for _, w := range p.Waves {
		sites, missing, longest, known := 0, int64(0), 0.0, true
		for _, x := range p.Preflight {
			if x.Wave != w.Name {
				continue
			}
			sites++
			missing += max(x.BytesMissing, 0)
			switch {
			case x.BytesMissing <= 0:
			case x.Seconds == nil:
				known = false
			default:
				longest = max(longest, *x.Seconds)
			}
		}
		took := ""
		switch {
		case missing <= 0:
		case !known:
			took = "unknown"
		default:
			took = span(duration(longest))
		}
		fetch := "nothing"
		if missing > 0 {
			fetch = Bytes(missing)
		}
		rows = append(rows, []cell{{text: w.Name, color: bold}, number(fmt.Sprint(len(w.Groups))), number(fmt.Sprint(sites)), number(fetch), number(took)})
		names := make([]string, 0, len(w.Groups))
		for _, g := range w.Groups {
			names = append(names, g.Group)
		}
		notes = append(notes, wrap(some(names, 4), 2, textWidth)+wrap(w.rules(p.timezone, p.AsOf), 2, textWidth))
	}
	return interleave(table(s, []string{"WAVE", "GROUPS", "SITES", "TO FETCH", "TIME"}, rows), notes)
}

// rules of a wave in one sentence.
func (w RolloutWave) rules(zone string, now *time.Time) string {
	var parts []string
	for _, g := range w.Gates {
		if g.When == "before" {
			parts = append(parts, "waits for "+g.short())
		}
	}
	if len(w.Window) > 0 {
		text := "window " + strings.Join(w.Window, ", ")
		switch {
		case w.WindowNext != nil && now != nil && w.WindowNext.After(*now):
			text += " (opens " + w.windowText(zone, now) + ")"
		case w.WindowNext != nil:
			text += " (open now)"
		}
		parts = append(parts, text)
	}
	failures := "no group may fail"
	if w.MaxFailures > 0 {
		failures = plural(int(w.MaxFailures), "group") + " may fail"
	}
	parts = append(parts, fmt.Sprintf("%d at once", w.MaxConcurrent), failures+", else "+w.OnFailure)
	switch w.OnOffline {
	case catalog.OnOfflineWait:
		parts = append(parts, "groups that are offline are waited for")
	case catalog.OnOfflineFail:
		parts = append(parts, "groups that are offline count as failed")
	}
	if w.DeadlineSeconds > 0 {
		parts = append(parts, "deadline "+span(duration(w.DeadlineSeconds)))
	}
	if w.SoakSeconds > 0 {
		parts = append(parts, "then soaks "+span(duration(w.SoakSeconds)))
	}
	for _, g := range w.Gates {
		if g.When == "after" {
			parts = append(parts, "then "+g.short())
		}
	}
	return strings.Join(parts, "; ")
}

func (g RolloutGate) short() string {
	if g.Kind == "check" {
		return "check " + g.URL
	}
	return "approval"
}

// sitesText says what the sites show now, and names those that are not well.
func (p Promotion) sitesText(s Style) string {
	if len(p.Preflight) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("\n")
	for i, ref := range p.Refs {
		b.WriteString(wrap(Clean(ref.Ref)+" now: "+p.shown(i, ref.Digest), 0, textWidth))
	}
	var rows [][]cell
	var notes []string
	asked := 0
	for _, x := range p.Preflight {
		if len(x.Checks) > 0 {
			asked++
		}
		if x.ready() {
			continue
		}
		rows = append(rows, []cell{plain(x.Site), plain(x.Group), state(x.State)})
		note := wrap(x.Reason, 4, textWidth)
		for _, c := range x.Checks {
			if c.bad() && !(c.Name == "agent" && x.Reason != "") { // what is known of a site says already that it can't be asked
				note += wrap(c.Name+": "+c.Detail, 4, textWidth) + wrap("mend: "+c.Mend, 6, textWidth)
			}
		}
		notes = append(notes, note)
	}
	if len(rows) == 0 {
		if asked == len(p.Preflight) {
			fmt.Fprintf(&b, "Asked just now, %s: the registry answers, and no lack of room is known.\n", plural(asked, "site"))
		}
		return b.String()
	}
	const most = 20
	more := len(rows) - most
	rows, notes = rows[:min(most, len(rows))], notes[:min(most, len(rows))]
	fmt.Fprintf(&b, "\nNot ready, of %s:\n\n%s", plural(len(p.Preflight), "site"), interleave(table(s, []string{"SITE", "GROUP", "STATE"}, rows), notes))
	if more > 0 {
		fmt.Fprintf(&b, "… and %d more: --dry-run -o json has all of them\n", more)
	}
	return b.String()
}

// shown counts the sites by what they show of the i-th ref.
func (p Promotion) shown(i int, target string) string {
	counts := map[string]int{}
	var order []string
	for _, x := range p.Preflight {
		digest := "unknown"
		if i < len(x.Shows) {
			digest = x.Shows[i]
		}
		if counts[digest] == 0 {
			order = append(order, digest)
		}
		counts[digest]++
	}
	slices.SortStableFunc(order, func(a, b string) int { return counts[b] - counts[a] })
	parts := make([]string, 0, len(order))
	for _, digest := range order {
		what := fallback(shortDigest(digest), "nothing") // or unknown
		if digest != "" && digest == target {
			what = "this already"
		}
		parts = append(parts, what+" at "+plural(counts[digest], "site"))
	}
	return strings.Join(parts, ", ")
}
