package plan

import (
	"errors"
	"net/url"
	"regexp"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/fanout-io/fanout/pkg/catalog"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// everything matches every group: what earlier waves have left over.
const everything = "**"

var (
	groupPath = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]*[a-z0-9])?(/[a-z0-9]([a-z0-9._-]*[a-z0-9])?){0,15}$`)
	zoneName  = regexp.MustCompile(`^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$`)
)

// Zones finds a time zone by its name in the IANA database, as time.LoadLocation does.
type Zones func(name string) (*time.Location, error)

// Parse reads a plan. name is how the file is called in errors. The error joins all that is wrong, a line each, as "name:line: key: what; mend".
func Parse(name string, data []byte, zones Zones) (*Plan, error) {
	src := &source{name: name}
	docs := src.documents(data)
	switch {
	case len(src.problems) > 0:
		return nil, src.err()
	case len(docs) == 0:
		src.fail(0, "", "has nothing in it; write a plan")
		return nil, src.err()
	case len(docs) > 1:
		src.fail(docs[1].line, "", "more than one document; keep one plan in a file")
	}
	p := &Plan{file: name}
	var spec value
	var ok bool
	if p.Name, spec, ok = docs[0].head("Plan"); ok {
		p.read(spec, zones)
	}
	if err := src.err(); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Plan) read(spec value, zones Zones) {
	o, ok := spec.object("timezone", "defaults", "waves")
	if !ok {
		return
	}
	p.Timezone = DefaultTimezone
	if v, found := o.get("timezone"); found {
		p.Timezone = v.timezone(zones)
	}
	defaults := Default().Waves[0]
	if v, found := o.get("defaults"); found {
		if do, isObject := v.object(settings...); isObject {
			defaults.settings(do)
		}
	}
	v, found := o.need("waves", "write at least one")
	if !found {
		return
	}
	items, _ := v.list(MaxWaves, "write waves such as - {name: all, groups: ['**']}")
	names := map[string]int{}
	paths := map[string]int{}
	for _, item := range items {
		w := Wave{
			MaxConcurrent: defaults.MaxConcurrent, MaxFailures: defaults.MaxFailures, Soak: defaults.Soak,
			OnFailure: defaults.OnFailure, OnOffline: defaults.OnOffline, Deadline: defaults.Deadline,
			place: place{item.line, item.key},
		}
		w.read(item)
		if first, twice := names[w.Name]; twice && w.Name != "" {
			item.src.fail(item.line, item.below("name"), "%s is the name of the wave in line %d too; give each its own", quote(w.Name), first)
		}
		names[w.Name] = item.line
		for i, g := range w.Groups {
			if first, twice := paths[g]; twice {
				item.src.fail(w.entries[i].line, w.entries[i].key, "%s is in the wave in line %d too; a group is in one wave, so remove one", g, first)
			} else if !isPattern(g) {
				paths[g] = w.place.line
			}
		}
		p.Waves = append(p.Waves, w)
	}
}

func (v value) timezone(zones Zones) string {
	s, ok := v.text()
	if !ok {
		return ""
	}
	if zoneName.MatchString(s) && s != "Local" {
		if _, err := zones(s); err == nil {
			return s
		}
	}
	v.fail("%s is no time zone; write one such as Asia/Shanghai or UTC", quote(s))
	return ""
}

// settings are the keys of a wave that defaults may hold.
var settings = []string{"maxConcurrent", "maxFailures", "soak", "onFailure", "onOffline", "deadline"}

func (w *Wave) settings(o object) {
	if v, ok := o.get("maxConcurrent"); ok {
		w.MaxConcurrent, _ = v.quantity(1, 1)
	}
	if v, ok := o.get("maxFailures"); ok {
		w.MaxFailures, _ = v.quantity(0, 0)
	}
	if v, ok := o.get("soak"); ok {
		w.Soak = v.duration(0, MaxSoak)
	}
	if v, ok := o.get("onFailure"); ok {
		w.OnFailure = v.oneOf("pause", "abort", "rollback")
	}
	if v, ok := o.get("onOffline"); ok {
		w.OnOffline = v.oneOf("wait", "skip", "fail")
	}
	if v, ok := o.get("deadline"); ok {
		w.Deadline = v.duration(0, MaxTime)
	}
}

func (w *Wave) read(v value) {
	o, ok := v.object(append([]string{"name", "groups", "selector", "gates", "window"}, settings...)...)
	if !ok {
		return
	}
	if n, found := o.need("name", "give the wave one"); found {
		w.Name = n.name()
	}
	w.settings(o)
	w.selection(o)
	if g, found := o.get("gates"); found {
		if gates, isObject := g.object("before", "after"); isObject {
			w.Before, w.After = gates.gates("before"), gates.gates("after")
		}
	}
	if n, found := o.get("window"); found {
		w.Window = n.window()
	}
}

// selection reads which groups a wave has.
func (w *Wave) selection(o object) {
	groups, byPath := o.get("groups")
	selector, byLabel := o.get("selector")
	if byPath == byLabel {
		what := "has neither groups nor selector; write one of them"
		if byPath {
			what = "has groups and selector; keep one of them, or make two waves"
		}
		o.fail("%s", what)
	}
	if byPath {
		for _, item := range groups.texts(maxEntries, "write paths or patterns such as [hq/guangdong, hq/hunan/*]") {
			s := item.node.Value
			item.pattern(isPattern(s), groupPath.MatchString, "group path; write names joined by '/', such as hq/guangdong, or a pattern such as hq/*")
			w.Groups = append(w.Groups, s)
			w.entries = append(w.entries, place{item.line, item.key})
		}
	}
	if byLabel {
		if so, isObject := selector.object("matchLabels"); isObject {
			if m, found := so.need("matchLabels", "write labels such as {tier: province}"); found {
				w.MatchLabels = m.labels()
			}
		}
	}
}

// isPattern says whether a text is a pattern and not a path.
func isPattern(s string) bool { return strings.ContainsAny(s, `*?[{\`) }

// pattern checks a pattern, or else what stands for itself alone.
func (v value) pattern(pattern bool, valid func(string) bool, what string) {
	s := v.node.Value
	if pattern {
		if refusal := (*catalog.Refusal)(nil); errors.As(catalog.ValidatePattern(s), &refusal) {
			v.fail("%s; * stands for one part of a path, ** for any number", refusal.Message)
		}
	} else if !valid(s) {
		v.fail("%s is no %s", quote(s), what)
	}
}

func (v value) labels() map[string]string {
	pairs, ok := v.pairs("write labels such as {tier: province}")
	if !ok {
		return nil
	}
	if len(pairs) == 0 || len(pairs) > maxLabels {
		v.fail("has %d labels; write from 1 to %d, such as {tier: province}", len(pairs), maxLabels)
	}
	labels := map[string]string{}
	for _, p := range pairs {
		if p.empty() {
			labels[p.name] = "" // a label may be that
		} else if s, isText := p.text(); isText {
			labels[p.name] = s
		}
	}
	return labels
}

func (o object) gates(key string) []*catalogv1.Gate {
	v, ok := o.get(key)
	if !ok {
		return nil
	}
	items, _ := v.list(MaxGates, "write gates such as [{approval: {}}]")
	var gates []*catalogv1.Gate
	for _, item := range items {
		g, isObject := item.object("approval", "check")
		if !isObject {
			continue
		}
		approval, byPerson := g.get("approval")
		check, byCheck := g.get("check")
		switch {
		case byPerson == byCheck:
			item.fail("is not one gate; write approval: {} or check: {url: …}, each as an entry of its own")
		case byPerson:
			if pairs, good := approval.pairs("write approval: {}"); good && len(pairs) > 0 {
				pairs[0].fail("is not known; write approval: {}")
			}
			gates = append(gates, &catalogv1.Gate{Kind: &catalogv1.Gate_Approval{Approval: &catalogv1.Approval{}}})
		default:
			gates = append(gates, &catalogv1.Gate{Kind: &catalogv1.Gate_Check{Check: check.check()}})
		}
	}
	return gates
}

func (v value) check() *catalogv1.Check {
	o, ok := v.object("url", "interval", "timeout")
	if !ok {
		return nil
	}
	c := &catalogv1.Check{}
	if u, found := o.need("url", "write the address that is to answer 2xx"); found {
		c.Url = u.address()
	}
	interval, timeout := DefaultCheckInterval, DefaultCheckTimeout
	if d, found := o.get("timeout"); found {
		timeout = d.duration(time.Second, MaxTimeout)
	}
	if d, found := o.get("interval"); found {
		interval = d.duration(time.Second, MaxInterval)
	} else if timeout > 0 {
		interval = min(interval, timeout) // asked at the beginning and at the end
	}
	if interval > timeout && timeout > 0 {
		v.fail("interval %s is longer than timeout %s, so it would be asked once only; make it shorter", short(interval), short(timeout))
	}
	c.Interval, c.Timeout = durationpb.New(interval), durationpb.New(timeout)
	return c
}

func (v value) address() string {
	s, ok := v.text()
	if !ok {
		return ""
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		v.fail("%s is no address; write http:// or https://, a host and a path", quote(s))
	case u.User != nil:
		// Not quoted: plans and errors are shown to many.
		v.fail("has a user or password in it, and plans are shown to everybody; remove it")
	default:
		return s
	}
	return ""
}

func (v value) window() *catalogv1.Window {
	o, ok := v.object("allow")
	if !ok {
		return nil
	}
	const mend = "write spans such as ['0 1 * * * / 4h']"
	allow, ok := o.need("allow", mend)
	if !ok {
		return nil
	}
	w := &catalogv1.Window{}
	for _, item := range allow.texts(MaxSpans, mend) {
		if _, err := parseSpan(item.node.Value); err != nil {
			item.fail("%v", err)
		}
		w.Allow = append(w.Allow, item.node.Value)
	}
	return w
}
