package plan

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/fanout-io/fanout/pkg/catalog"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// Group is a group that headquarters knows.
type Group struct {
	Path   string
	Labels map[string]string
}

// Resolve looks up the groups of each wave, in the order of waves: a group goes with the first that selects it. What it returns is what a rollout keeps. Errors, all at
// once, are waves that would have no group, paths of groups that do not exist, and paths that an earlier wave has by a pattern, as these groups would get the release
// earlier than the file says by name.
func Resolve(p *Plan, groups []Group) (*catalogv1.Plan, []Warning, error) {
	r := resolver{plan: p, src: &source{name: cmp.Or(p.file, "plan")}, waveOf: map[string]int{}}
	for _, g := range slices.SortedFunc(slices.Values(groups), func(a, b Group) int { return strings.Compare(a.Path, b.Path) }) {
		if n := len(r.groups); n == 0 || r.groups[n-1].Path != g.Path {
			r.groups = append(r.groups, g)
		}
	}
	out := &catalogv1.Plan{Name: p.Name, Timezone: p.Timezone}
	for i := range p.Waves {
		out.Waves = append(out.Waves, r.wave(i))
	}
	if err := r.src.err(); err != nil {
		return nil, nil, err
	}
	var left []string
	for _, g := range r.groups {
		if _, taken := r.waveOf[g.Path]; !taken {
			left = append(left, g.Path)
		}
	}
	if out.AllGroups = len(left) == 0; !out.AllGroups {
		r.warnings = append(r.warnings, Warning{File: p.file, Key: "spec.waves", Text: "in no wave, so without the release: " + list(left)})
	}
	return out, r.warnings, nil
}

type resolver struct {
	plan     *Plan
	groups   []Group // by path, each once
	src      *source
	waveOf   map[string]int // by path
	warnings []Warning
}

func (r *resolver) warn(w *Wave, at place, format string, args ...any) {
	r.warnings = append(r.warnings, Warning{File: r.plan.file, Line: at.line, Key: at.key, Text: "wave " + w.Name + ": " + fmt.Sprintf(format, args...)})
}

func (r *resolver) fail(at place, format string, args ...any) {
	r.src.fail(at.line, at.key, format, args...)
}

// note is what one entry of a wave lacks.
type note struct {
	at   place
	text string
}

func (r *resolver) wave(i int) *catalogv1.Wave {
	w := &r.plan.Waves[i]
	var mine []string
	var notes []note
	wrong := false
	if w.MatchLabels != nil {
		mine, notes = r.take(i, "selector "+labelsText(w.MatchLabels), w.place.sub("selector"), func(g Group) bool { return matches(w.MatchLabels, g.Labels) })
	}
	for n, entry := range w.Groups {
		at := w.place
		if n < len(w.entries) {
			at = w.entries[n]
		}
		if isPattern(entry) {
			more, about := r.take(i, entry, at, func(g Group) bool { return catalog.MatchPatterns([]string{entry}, nil, g.Path) })
			mine, notes = append(mine, more...), append(notes, about...)
			continue
		}
		added, ok := r.exact(i, entry, at)
		if added {
			mine = append(mine, entry)
		}
		wrong = wrong || !ok
	}
	slices.Sort(mine)
	switch {
	case len(mine) > 0:
		for _, n := range notes {
			r.warn(w, n.at, "%s", n.text)
		}
	case !wrong: // else that is what must be mended
		var why []string
		for _, n := range notes {
			why = append(why, n.text)
		}
		r.fail(w.place, "wave %s would have no group: %s; mend its groups or selector, or remove the wave", w.Name, strings.Join(why, "; "))
	}
	out := &catalogv1.Wave{
		Name: w.Name, Groups: mine, MaxConcurrent: w.MaxConcurrent.Down(len(mine)), MaxFailures: w.MaxFailures.Up(len(mine)), Soak: durationpb.New(w.Soak),
		Before: w.Before, After: w.After, Window: w.Window, OnFailure: w.OnFailure, OnOffline: w.OnOffline, Deadline: durationpb.New(w.Deadline),
	}
	r.advise(i, out)
	return out
}

// take gives a wave the groups that a pattern or selector matches, as far as no earlier wave has them.
func (r *resolver) take(wave int, what string, at place, match func(Group) bool) (mine []string, notes []note) {
	found := false
	earlier := map[int][]string{}
	for _, g := range r.groups {
		if !match(g) {
			continue
		}
		found = true
		if of, taken := r.waveOf[g.Path]; !taken {
			r.waveOf[g.Path] = wave
			mine = append(mine, g.Path)
		} else if of < wave {
			earlier[of] = append(earlier[of], g.Path)
		}
	}
	switch {
	case !found:
		return nil, []note{{at, what + " matches no group"}}
	case what == everything && len(mine) > 0: // which means what is left
		return mine, nil
	}
	for _, of := range slices.Sorted(maps.Keys(earlier)) {
		notes = append(notes, note{at, fmt.Sprintf("%s matches groups that stay in the earlier wave %s: %s", what, r.plan.Waves[of].Name, list(earlier[of]))})
	}
	return mine, notes
}

// exact gives a wave the group with a path, unless it has that already. It is not ok that there is none, or that an earlier wave has it.
func (r *resolver) exact(wave int, path string, at place) (added, ok bool) {
	if _, known := slices.BinarySearchFunc(r.groups, path, func(g Group, s string) int { return strings.Compare(g.Path, s) }); !known {
		r.fail(at, "there is no group %s; look for a slip of the pen, or at fanoutctl tree", path)
		return false, false
	}
	of, taken := r.waveOf[path]
	switch {
	case !taken:
		r.waveOf[path] = wave
		return true, true
	case of < wave:
		r.fail(at, "%s would go with the earlier wave %s, which matches it; narrow that wave, or remove the path here", path, r.plan.Waves[of].Name)
		return false, false
	}
	return false, true
}

// advise looks at a resolved wave as one who has seen releases go wrong.
func (r *resolver) advise(i int, out *catalogv1.Wave) {
	w := &r.plan.Waves[i]
	if n := uint32(len(out.Groups)); n > 0 && out.MaxFailures >= n {
		r.warn(w, w.place.sub("maxFailures"), "%s of %d allows every group to fail, so onFailure: %s is never done", w.MaxFailures, n, w.OnFailure)
	}
	if w.OnOffline == "wait" && w.Deadline == 0 {
		r.warn(w, w.place.sub("deadline"), "without one the wave waits for offline groups for ever")
	}
	if i+1 < len(r.plan.Waves) && w.Soak == 0 && len(w.After) == 0 {
		if next := r.plan.Waves[i+1]; len(next.Before) == 0 && next.Window == nil {
			r.warn(w, w.place.sub("soak"), "without a soak or a gate the wave %s begins as soon as this one is done", next.Name)
		}
	}
}

func matches(want, labels map[string]string) bool {
	for k, v := range want {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

func labelsText(labels map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		out = append(out, k+"="+labels[k])
	}
	return strings.Join(out, ",")
}

// list names groups, the first ones where there are many.
func list(paths []string) string {
	const most = 20
	if len(paths) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(paths[:most], ", "), len(paths)-most)
	}
	return strings.Join(paths, ", ")
}
