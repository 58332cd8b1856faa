package config

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/fanout-io/fanout/internal/wording"
)

var (
	unknownField = regexp.MustCompile(`^line (\d+): field (.*) not found in type `)
	wrongType    = regexp.MustCompile("(?s)^line (\\d+): cannot unmarshal (!!\\S+)(?: `(.*)`)? into (\\S+)$")
	otherError   = regexp.MustCompile(`(?s)^line (\d+): (.*)$`)
)

// wanted says for a type of the configuration what to write; those of keys that hold other keys are not in it.
var wanted = map[string]string{
	"time.Duration":     "a duration; write one such as 5m",
	"string":            "a text; write one, in quotes if need be",
	"[]string":          "a list; write one such as [a, b]",
	"map[string]string": "a list of names with values; write one such as {name: value}",
	"int":               "a whole number; write one such as 2",
	"bool":              "true or false; write one of these",
	"config.Rate":       "a rate; write unlimited, or a number with bps, kbps, Mbps or Gbps, such as 200Mbps",
	"config.Size":       "a size; write a number of bytes, or one with MB, GB, MiB or GiB, such as 20GiB",
}

// decodeError puts the words of the YAML decoder into the form of all errors here: name:line: key: what; mend.
func decodeError(name string, doc *yaml.Node, err error) error {
	var te *yaml.TypeError
	if !errors.As(err, &te) {
		if line, what := wording.YAML(err); line > 0 {
			return fmt.Errorf("%s:%d: is not YAML: %s", name, line, what)
		}
		return fmt.Errorf("%s: %w", name, err)
	}
	errs := make([]error, 0, len(te.Errors))
	for _, msg := range te.Errors {
		errs = append(errs, decodeProblem(name, doc, msg))
	}
	return errors.Join(errs...)
}

func decodeProblem(name string, doc *yaml.Node, msg string) error {
	if m := unknownField.FindStringSubmatch(msg); m != nil {
		path := find(doc, func(_ string, key, _ *yaml.Node) bool { return strconv.Itoa(key.Line) == m[1] && key.Value == m[2] })
		if path == "" {
			path = m[2]
		}
		return fmt.Errorf("%s:%s: unknown key %s; remove it, or look for a slip of the pen", name, m[1], path)
	}
	if m := wrongType.FindStringSubmatch(msg); m != nil {
		line, tag, value, into := m[1], m[2], strings.TrimSuffix(m[3], "..."), m[4]
		path := find(doc, func(path string, _, v *yaml.Node) bool {
			return strconv.Itoa(v.Line) == line && v.ShortTag() == tag && strings.HasPrefix(v.Value, value) && holds(path, into)
		})
		if into == "config.Config" {
			return fmt.Errorf("%s:%s: the file is no list of keys; write keys such as site and group, a line each", name, line)
		}
		what := map[string]string{"!!seq": "a list", "!!map": "a list of keys"}[tag]
		if what == "" {
			what = strconv.Quote(value)
		}
		want := wanted[into]
		if want == "" {
			want = "a list of keys; write the keys that belong under it"
		}
		return fmt.Errorf("%s:%s: %s: %s is not %s", name, line, path, what, want)
	}
	if m := otherError.FindStringSubmatch(msg); m != nil {
		if strings.Contains(m[2], "already defined at line") {
			m[2] += "; keep one of them"
		}
		return fmt.Errorf("%s:%s: %s", name, m[1], m[2])
	}
	return fmt.Errorf("%s: %s", name, msg)
}

// find returns the dotted path of the first key for which match is true; empty: none.
func find(n *yaml.Node, match func(path string, key, value *yaml.Node) bool) string {
	return findBelow("", n, match)
}

func findBelow(prefix string, n *yaml.Node, match func(path string, key, value *yaml.Node) bool) string {
	if n.Kind == yaml.DocumentNode && len(n.Content) > 0 {
		n = n.Content[0]
	}
	if n.Kind == yaml.SequenceNode {
		for _, value := range n.Content {
			if path := strings.TrimSuffix(prefix, "."); match(path, &yaml.Node{}, value) {
				return path
			}
		}
	}
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		path := prefix + key.Value
		if match(path, key, value) {
			return path
		}
		if below := findBelow(path+".", value, match); below != "" {
			return below
		}
	}
	return ""
}

// holds says whether a key of the configuration, or what is below it, is of the named type.
func holds(path, typ string) bool {
	t := reflect.TypeFor[Config]()
	for _, name := range strings.Split(path, ".") {
		if t.Kind() != reflect.Struct {
			break
		}
		field, ok := t.FieldByNameFunc(func(f string) bool {
			sf, _ := t.FieldByName(f)
			return sf.Tag.Get("yaml") == name
		})
		if !ok {
			return false
		}
		t = field.Type
	}
	return t.String() == typ || t.Kind() != reflect.Struct && t.Kind() != reflect.Int64 && strings.HasSuffix(t.String(), typ)
}

// notA is the decoder's own error for a value that a type of this package does not take.
func notA(n *yaml.Node, what string) error {
	return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: cannot unmarshal %s `%s` into config.%s", n.Line, n.ShortTag(), n.Value, what)}}
}
