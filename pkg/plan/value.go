package plan

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// maxName bounds names, labels and addresses, in bytes. The catalog keeps no longer ones.
const maxName = 512

// maxKeys bounds what is looked at under a key, known or not.
const maxKeys = 256

var (
	nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)
	plainKey = regexp.MustCompile(`^[A-Za-z0-9_/<-]{1,80}$`)
)

// value is a place in a file. Its methods return what stands there, or note what is wrong with it and return false.
type value struct {
	src  *source
	key  string // as in spec.waves[0].soak
	line int    // of the key, or of the value where it has none
	node *yaml.Node
}

func newValue(src *source, key string, line int, n *yaml.Node) value {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind == yaml.ScalarNode || line == 0 {
		line = n.Line
	}
	return value{src, key, line, n}
}

// fail notes a problem: what it is, a semicolon, and the mend.
func (v value) fail(format string, args ...any) { v.src.fail(v.line, v.key, format, args...) }

// below is how the path of a key below is written. A key may be any text.
func (v value) below(name string) string {
	if !plainKey.MatchString(name) {
		name = quote(name)
	}
	if v.key == "" {
		return name
	}
	return v.key + "." + name
}

// shown is how a value is called in an error.
func (v value) shown() string {
	switch {
	case v.node.Kind == yaml.MappingNode:
		return "a list of keys"
	case v.node.Kind == yaml.SequenceNode:
		return "a list"
	case isNull(v.node):
		return "nothing"
	}
	return quote(v.node.Value)
}

// quote shortens and quotes a text from a file.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return strconv.Quote(s)
}

type pair struct {
	name string
	value
}

// pairs returns the keys under a value, in their order, each once.
func (v value) pairs(mend string) ([]pair, bool) {
	if v.src.full() {
		return nil, false
	}
	if v.node.Kind != yaml.MappingNode {
		v.fail("%s is not a list of keys; %s", v.shown(), mend)
		return nil, false
	}
	if n := len(v.node.Content) / 2; n > maxKeys {
		v.fail("has %d keys; at most %d are allowed", n, maxKeys)
		return nil, false
	}
	var out []pair
	lines := map[string]int{}
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		k, n := v.node.Content[i], v.node.Content[i+1]
		if k.Kind == yaml.AliasNode {
			k = k.Alias
		}
		name := k.Value
		switch {
		case k.Kind == yaml.ScalarNode && k.ShortTag() == "!!merge":
			v.src.fail(k.Line, v.below(name), "lists are not merged here; write the keys, or an alias for each value")
			continue
		case k.Kind != yaml.ScalarNode || k.ShortTag() != "!!str":
			v.src.fail(k.Line, v.key, "a key is no text; write it in quotes")
			continue
		}
		if first, twice := lines[name]; twice {
			v.src.fail(k.Line, v.below(name), "is there already in line %d; keep one of them", first)
			continue
		}
		lines[name] = k.Line
		out = append(out, pair{name, newValue(v.src, v.below(name), k.Line, n)})
	}
	return out, true
}

// object is a value under which only known keys stand.
type object struct {
	value
	keys map[string]value
}

func (v value) object(known ...string) (object, bool) {
	mend := "write keys such as " + strings.Join(known, ", ")
	if len(known) == 1 {
		mend = "write the key " + known[0] + " under it"
	}
	pairs, ok := v.pairs(mend)
	if !ok {
		return object{}, false
	}
	o := object{v, map[string]value{}}
	for _, p := range pairs {
		if !slices.Contains(known, p.name) {
			v.src.fail(p.line, "", "unknown key %s; remove it, or look for a slip of the pen: known are %s", p.key, strings.Join(known, ", "))
			continue
		}
		o.keys[p.name] = p.value
	}
	return o, true
}

// get returns a key that need not be there.
func (o object) get(name string) (value, bool) {
	v, ok := o.keys[name]
	return v, ok
}

// need returns a key that must be there.
func (o object) need(name, mend string) (value, bool) {
	v, ok := o.keys[name]
	if !ok {
		o.src.fail(o.line, o.below(name), "is missing; %s", mend)
	}
	return v, ok
}

// list returns between one and most values.
func (v value) list(most int, mend string) ([]value, bool) {
	if v.src.full() {
		return nil, false
	}
	if v.node.Kind != yaml.SequenceNode {
		v.fail("%s is not a list; %s", v.shown(), mend)
		return nil, false
	}
	switch n := len(v.node.Content); {
	case n == 0:
		v.fail("is empty; %s", mend)
		return nil, false
	case n > most:
		v.fail("has %d entries; at most %d are allowed", n, most)
		return nil, false
	}
	out := make([]value, 0, len(v.node.Content))
	for i, n := range v.node.Content {
		out = append(out, newValue(v.src, fmt.Sprintf("%s[%d]", v.key, i), 0, n))
	}
	return out, true
}

// text returns a text that is not empty.
func (v value) text() (string, bool) {
	switch {
	case v.node.Kind != yaml.ScalarNode || v.node.ShortTag() != "!!str":
		v.fail("%s is not a text; write one, in quotes if need be", v.shown())
		return "", false
	case v.empty():
		v.fail("is empty; write a text")
		return "", false
	case len(v.node.Value) > maxName:
		v.fail("%s has %d bytes; at most %d are allowed", quote(v.node.Value), len(v.node.Value), maxName)
		return "", false
	}
	return v.node.Value, true
}

// empty says whether a value is a text with nothing in it.
func (v value) empty() bool {
	return v.node.Kind == yaml.ScalarNode && v.node.ShortTag() == "!!str" && v.node.Value == ""
}

// texts returns the texts of a list, each of which stands there once. What is wrong is left out.
func (v value) texts(most int, mend string) []value {
	items, _ := v.list(most, mend)
	var out []value
	seen := map[string]int{}
	for _, item := range items {
		s, ok := item.text()
		if !ok {
			continue
		}
		if first, twice := seen[s]; twice {
			item.fail("%s is there already in line %d; remove one", quote(s), first)
			continue
		}
		seen[s] = item.line
		out = append(out, item)
	}
	return out
}

// name returns the name of a plan, wave or policy; empty: it has none.
func (v value) name() string {
	s, ok := v.text()
	if ok && !nameForm.MatchString(s) {
		v.fail("%s is no name; use lower-case letters, digits, '.', '_' and '-', at most 63", quote(s))
		return ""
	}
	return s
}

func (v value) oneOf(allowed ...string) string {
	s, ok := v.text()
	if ok && !slices.Contains(allowed, s) {
		v.fail("%s is none of %s", quote(s), strings.Join(allowed, ", "))
		return ""
	}
	return s
}

// duration returns a duration between two bounds. Nothing, or what is wrong, is zero.
func (v value) duration(least, most time.Duration) time.Duration {
	if v.node.Kind != yaml.ScalarNode || v.node.ShortTag() != "!!str" && v.node.Value != "0" {
		v.fail("%s is not a duration; write one such as 5m", v.shown())
		return 0
	}
	d, err := parseDuration(v.node.Value, least, most)
	if err != nil {
		v.fail("%v", err)
		return 0
	}
	return d
}

// days finds them in what was meant as a duration.
var days = regexp.MustCompile(`^\d+d`)

func parseDuration(s string, least, most time.Duration) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	switch {
	case err != nil && days.MatchString(s):
		return 0, fmt.Errorf("%s is not a duration; write days in hours, such as 48h", quote(s))
	case err != nil:
		return 0, fmt.Errorf("%s is not a duration; write one such as 5m, at most %s", quote(s), short(most))
	case d < least || d > most:
		return 0, fmt.Errorf("%s is out of range; write a duration from %s to %s", s, short(least), short(most))
	}
	return d, nil
}

// short is a duration as a person would write it: 4h, not 4h0m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

var digits = regexp.MustCompile(`^\d+$`)

// quantity returns a number of groups, at least least, or a percentage of at least leastPercent.
func (v value) quantity(least, leastPercent uint32) (Quantity, bool) {
	if v.node.Kind != yaml.ScalarNode {
		v.fail("%s is neither a number nor a percentage; write one such as 4 or 25%%", v.shown())
		return Quantity{}, false
	}
	q, err := parseQuantity(v.node)
	switch {
	case err != nil && v.node.ShortTag() == "!!str" && digits.MatchString(v.node.Value):
		v.fail("%s is a text; write the number without quotes", v.shown())
	case err != nil:
		v.fail("%s is neither a number of groups nor a percentage; write one such as 4 or 25%%", v.shown())
	case q.Percent && (q.N < leastPercent || q.N > 100):
		v.fail("%s is out of range; write a percentage from %d%% to 100%%", v.node.Value, leastPercent)
	case !q.Percent && (q.N < least || q.N > maxGroups):
		v.fail("%s is out of range; write a number from %d to %d", v.node.Value, least, maxGroups)
	default:
		return q, true
	}
	return Quantity{}, false
}

var errQuantity = errors.New("not a quantity")

func parseQuantity(n *yaml.Node) (Quantity, error) {
	s, percent := strings.CutSuffix(n.Value, "%")
	if want := map[bool]string{false: "!!int", true: "!!str"}[percent]; n.ShortTag() != want {
		return Quantity{}, errQuantity
	}
	// Longer numbers, and negative ones, are out of every range.
	digits := strings.TrimPrefix(s, "-")
	if digits == "" || strings.Trim(digits, "0123456789") != "" || len(digits) > 1 && digits[0] == '0' {
		return Quantity{}, errQuantity
	}
	i, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		i = 1<<32 - 1
	}
	return Quantity{N: uint32(i), Percent: percent}, nil
}
