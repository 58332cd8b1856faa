package view

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/cheggaaa/pb/v3"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/plan"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

const (
	// textWidth is what notes are wrapped to.
	textWidth = 80
	// foldAbove is how many groups of a wave that are the same in phase and reason have lines of their own.
	foldAbove = 4
)

// phaseColor is of phases of rollouts, of their waves and groups. The word is always there too.
func phaseColor(phase string) string {
	switch phase {
	case catalog.RolloutSucceeded:
		return green
	case catalog.RolloutStaging, catalog.GroupStaged, catalog.RolloutRunning, catalog.RolloutSoaking, catalog.WaveChecking:
		return cyan
	case catalog.RolloutAwaitingApproval, catalog.RolloutAwaitingWindow, catalog.RolloutPaused, catalog.RolloutRollingBack, catalog.RolloutRolledBack,
		catalog.GroupOffline, catalog.GroupSkipped:
		return yellow
	case catalog.RolloutFailed, catalog.RolloutAborted:
		return red
	default: // pending, and phases of newer agents
		return dim
	}
}

func phase(text string) cell { return cell{text: text, color: phaseColor(text)} }

// Text of the rollouts.
func (d Rollouts) Text(s Style) string {
	if len(d.Rollouts) == 0 {
		return "No rollouts.\n"
	}
	rows := make([][]cell, 0, len(d.Rollouts))
	for _, r := range d.Rollouts {
		refs := ""
		if len(r.Refs) > 0 {
			refs = r.Refs[0].Ref
		}
		if n := len(r.Refs); n > 1 {
			refs += fmt.Sprintf(" +%d", n-1)
		}
		rows = append(rows, []cell{plain(r.ID), phase(r.Phase), plain(r.place()), plain(ago(d.AsOf, r.Started)), plain(refs)})
	}
	return table(s, []string{"ROLLOUT", "PHASE", "WAVE", "STARTED", "REFS"}, rows)
}

// place is the wave in words.
func (r RolloutSummary) place() string {
	if r.Wave == "" {
		return ""
	}
	return fmt.Sprintf("%d/%d %s", r.WaveNumber, r.WaveCount, r.Wave)
}

// Text of one rollout: what moves, and wave by wave where it is.
func (r Rollout) Text(s Style) string {
	var b strings.Builder
	b.WriteString(r.head(s))
	b.WriteString("\n")
	b.WriteString(r.wavesText(s))
	if hint := r.hint(); hint != "" {
		b.WriteString("\n" + hint + "\n")
	}
	return b.String()
}

func (r Rollout) head(s Style) string {
	var b strings.Builder
	fmt.Fprintf(&b, "rollout %s  %s", s.paint(bold, Clean(r.ID)), s.paint(phaseColor(r.Phase), Clean(r.Phase)))
	if place := r.place(); place != "" && !r.Over() {
		b.WriteString(", wave " + Clean(place))
	}
	if r.Plan != "" {
		b.WriteString(", plan " + Clean(r.Plan))
	}
	b.WriteString("\n")
	b.WriteString(wrap(r.Reason, 2, textWidth))
	b.WriteString(refsText(s, r.Refs))
	line := "  started " + fallback(stamp(r.Started), "at an unknown time")
	if r.Actor != "" {
		line += " by " + Clean(r.Actor)
	}
	if r.Ended != nil {
		line += ", ended " + stamp(r.Ended)
	}
	b.WriteString(line + "\n")
	return b.String()
}

func refsText(s Style, refs []RolloutRef) string {
	var b strings.Builder
	for _, x := range refs {
		fmt.Fprintf(&b, "  %s  %s", s.paint(bold, Clean(x.Ref)), Clean(shortDigest(x.Digest)))
		if x.Source != "" && x.Source != ":" && x.Source != x.Ref {
			b.WriteString("  from " + Clean(x.Source))
		}
		b.WriteString("\n")
	}
	return b.String()
}

// hint is the command that somebody may be waited for to give.
func (r Rollout) hint() string {
	id := Clean(r.ID)
	switch r.Phase {
	case catalog.RolloutAwaitingApproval:
		return fmt.Sprintf("It waits for: fanoutctl rollout approve %s  (or reject)", id)
	case catalog.RolloutPaused:
		return fmt.Sprintf("It waits for: fanoutctl rollout resume %s  (or abort, rollback)", id)
	}
	return ""
}

// wavesText is a table in whose lines notes stand under what they belong to.
func (r Rollout) wavesText(s Style) string {
	var rows [][]cell
	var notes []string
	for _, w := range r.Waves {
		rows = append(rows, []cell{{text: w.Name, color: bold}, phase(w.Phase), plain(""), plain(w.progress())})
		note := ""
		for _, n := range r.waveNotes(w) {
			note += wrap(n, 4, textWidth)
		}
		notes = append(notes, note)
		for _, f := range fold(w.Groups) {
			rows = append(rows, r.foldedRow(w, f))
			notes = append(notes, f.note(6))
		}
	}
	return interleave(table(s, []string{"WAVE / GROUP", "PHASE", "SINCE", "NOTE"}, rows), notes)
}

func interleave(table string, notes []string) string {
	lines := strings.SplitAfter(table, "\n")
	var b strings.Builder
	b.WriteString(lines[0])
	for i, note := range notes {
		b.WriteString(lines[i+1] + note)
	}
	return b.String()
}

func (r Rollout) foldedRow(w RolloutWave, f folded) []cell {
	if len(f.groups) > 1 {
		return []cell{plain("  " + plural(len(f.groups), "group")), phase(f.phase), plain(""), plain("")}
	}
	g := f.groups[0]
	note := ""
	switch {
	case g.Phase == catalog.GroupRunning || g.Phase == catalog.GroupStaging:
		waits := r.Phase == catalog.RolloutPaused && g.Phase == catalog.GroupStaging // it gets its time anew when the rollout goes on
		if w.DeadlineSeconds > 0 && !waits {
			note = until("deadline", duration(w.DeadlineSeconds-g.WaitedSeconds))
		}
	case g.Attempts > 1:
		note = fmt.Sprintf("released %s", times(g.Attempts))
	}
	return []cell{plain("  " + g.Group), phase(g.Phase), plain(ago(r.AsOf, g.Since)), plain(note)}
}

// until says how long something is away, or for how long it is over.
func until(what string, left time.Duration) string {
	if left <= 0 {
		return what + " over"
	}
	return what + " in " + span(left)
}

// progress of a wave in few words.
func (w RolloutWave) progress() string {
	done, failed, back := 0, 0, 0
	for _, g := range w.Groups {
		switch g.Phase {
		case catalog.GroupSucceeded:
			done++
		case catalog.GroupFailed:
			failed++
		case catalog.GroupRolledBack:
			back++
		}
	}
	text := fmt.Sprintf("%d of %s done", done, plural(len(w.Groups), "group"))
	if back > 0 {
		text = fmt.Sprintf("%d of %s rolled back", back, plural(len(w.Groups), "group"))
	}
	if failed > 0 {
		text += fmt.Sprintf(", %d failed", failed)
	}
	return text
}

// waveNotes says what a wave waits for, and what comes of it next.
func (r Rollout) waveNotes(w RolloutWave) (notes []string) {
	over := slices.Contains([]string{catalog.WaveSucceeded, catalog.WaveFailed, catalog.WaveSkipped}, w.Phase) || r.Over()
	if w.Reason != "" && w.Reason != r.Reason && !strings.HasSuffix(r.Reason, ": "+w.Reason) {
		notes = append(notes, w.Reason)
	}
	gates := func(when string) {
		for _, g := range w.Gates {
			if g.When == when && (!over || g.Result != "pending") {
				notes = append(notes, g.text())
			}
		}
	}
	gates("before") // all in the order in which it happens
	if !over {
		notes = append(notes, r.windowAndSoak(w)...)
	}
	gates("after")
	return notes
}

// windowAndSoak says what a wave that is not over waits for between its gates.
func (r Rollout) windowAndSoak(w RolloutWave) (notes []string) {
	switch {
	case len(w.Window) == 0:
	case w.WindowNext == nil:
		notes = append(notes, "window "+strings.Join(w.Window, ", ")+": it never opens")
	case r.AsOf != nil && !w.WindowNext.After(*r.AsOf):
		notes = append(notes, "window open")
	default:
		notes = append(notes, "window opens "+w.windowText(r.timezone, r.AsOf))
	}
	switch {
	case w.SoakSeconds <= 0:
	case w.Phase == catalog.WaveSoaking:
		notes = append(notes, fmt.Sprintf("soaks %s: %s left", span(duration(w.SoakSeconds)), span(duration(max(w.SoakSeconds-w.SoakedSeconds, 0)))))
	case w.SoakedSeconds < w.SoakSeconds:
		notes = append(notes, "then soaks "+span(duration(w.SoakSeconds)))
	}
	return notes
}

func (w RolloutWave) windowText(zone string, now *time.Time) string {
	at := *w.WindowNext
	if tz, err := time.LoadLocation(zone); err == nil {
		at = at.In(tz)
	}
	text := at.Format("2006-01-02 15:04 MST")
	if now != nil {
		text += ", in " + span(at.Sub(*now))
	}
	return text
}

// windowNext is when a window is open, seen from a time.
func windowNext(w *catalogv1.Window, zone string, now *time.Time) *time.Time {
	if w == nil || now == nil {
		return nil
	}
	tz, err := time.LoadLocation(zone)
	if err != nil {
		return nil // a zone that this machine does not know
	}
	next := plan.Next(w, tz, *now)
	if next.IsZero() {
		return nil
	}
	next = next.UTC()
	return &next
}

func (g RolloutGate) text() string {
	what := g.When + " it: "
	if g.Kind == "approval" {
		what += "approval"
		switch g.Result {
		case "waiting":
			what += ": waited for"
		case "passed":
			what += " given by " + fallback(g.By, "somebody")
		case "failed":
			what += " refused by " + fallback(g.By, "somebody")
		}
		if g.Detail != "" {
			what += ": " + g.Detail
		}
		return what
	}
	what += "check " + g.URL
	if g.Result == "pending" {
		return what
	}
	what += ": " + g.Result
	if g.Attempts > 0 {
		what += ", asked " + times(g.Attempts)
	}
	if g.Detail != "" {
		what += ", last " + g.Detail
		if g.TookSeconds > 0 {
			what += " in " + duration(g.TookSeconds).Round(time.Millisecond).String()
		}
	}
	if left := g.TimeoutSeconds - g.WaitedSeconds; g.Result == "waiting" && left > 0 {
		what += ", " + span(duration(left)) + " left"
	}
	return what
}

// folded are groups of a wave that have one line together.
type folded struct {
	phase, reason string
	groups        []RolloutGroup
}

// note is the reason, or the names of groups that have none, a few of them.
func (f folded) note(indent int) string {
	if len(f.groups) == 1 {
		return wrap(f.reason, indent, textWidth)
	}
	names := make([]string, 0, len(f.groups))
	for _, g := range f.groups {
		names = append(names, g.Group)
	}
	return wrap(some(names, 3), indent, textWidth) + wrap(f.reason, indent, textWidth)
}

// some names of many.
func some(names []string, most int) string {
	if len(names) <= most+1 {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

// fold puts groups together that say the same, where they are many. Everything stands where its first group does.
func fold(groups []RolloutGroup) (out []folded) {
	type key struct{ phase, reason string }
	counts := map[key]int{}
	for _, g := range groups {
		counts[key{g.Phase, g.Reason}]++
	}
	at := map[key]int{}
	for _, g := range groups {
		k := key{g.Phase, g.Reason}
		if i, ok := at[k]; ok && counts[k] > foldAbove {
			out[i].groups = append(out[i].groups, g)
			continue
		}
		at[k] = len(out)
		out = append(out, folded{phase: g.Phase, reason: g.Reason, groups: []RolloutGroup{g}})
	}
	return out
}

// wrap makes lines of a text that came from elsewhere, indented; "" makes none.
func wrap(text string, indent, width int) string {
	var b strings.Builder
	line := ""
	flush := func() {
		if line != "" {
			b.WriteString(strings.Repeat(" ", indent) + line + "\n")
		}
	}
	for word := range strings.FieldsSeq(Clean(text)) {
		if line != "" && indent+pb.CellCount(line)+1+pb.CellCount(word) > width {
			flush()
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	flush()
	return b.String()
}

func duration(seconds float64) time.Duration {
	return time.Duration(min(seconds, math.MaxInt64/2e9) * float64(time.Second))
}

// Changes tells what became of a rollout since an earlier picture of it, a line for each change; nil: nothing was seen before.
func (r Rollout) Changes(old *Rollout) (lines []string) {
	add := func(format string, args ...any) {
		at := ""
		if r.AsOf != nil {
			at = stamp(r.AsOf) + "  "
		}
		lines = append(lines, at+Clean(fmt.Sprintf(format, args...)))
	}
	why := func(reason string) string {
		if reason == "" {
			return ""
		}
		return ": " + reason
	}
	phases, groups := map[string]string{}, map[string]RolloutGroup{}
	if old != nil {
		for _, w := range old.Waves {
			phases[w.Name] = w.Phase
			for _, g := range w.Groups {
				groups[g.Group] = g
			}
		}
	}
	for _, w := range r.Waves {
		if was, ok := phases[w.Name]; was != w.Phase && (ok || w.Phase != catalog.WavePending) {
			add("wave %s: %s%s", w.Name, w.Phase, why(w.Reason))
		}
		for _, g := range w.Groups {
			if was, ok := groups[g.Group]; ok && (was.Phase != g.Phase || was.Reason != g.Reason && g.Reason != "") || !ok && g.Phase != catalog.GroupPending {
				add("%s: %s%s", g.Group, g.Phase, why(g.Reason))
			}
		}
	}
	if old == nil || old.Phase != r.Phase || old.Reason != r.Reason && r.Reason != "" {
		text := r.Phase
		if place := r.place(); place != "" && !r.Over() {
			text += ", wave " + place
		}
		add("rollout %s: %s%s", r.ID, text, why(r.Reason))
	}
	return lines
}
