package wording

import (
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestYAML: the line is the one that a person has to look at.
func TestYAML(t *testing.T) {
	for text, want := range map[string]struct {
		line int
		word string
	}{
		"a: 1\nb: 2\nc: [{x: 1, y: [\"**\"}]\n": {3, "close the bracket"},
		"c: [{x: 1, y: [\"**\"}]\n":             {1, "close the bracket"},
		"a: 1\nb: 2\nc: @x\n":                   {3, "cannot start any token"},
		"a: 1\nb: 2\n c: 3\n":                   {3, "not allowed"},
		"a: 1\nb: {c: 1\nd: 2":                  {2, "close the bracket"},
		"a: 1\nb: 1\n- b\n":                     {3, "indented"},
		"a: *x\n":                               {0, "unknown anchor"},
	} {
		var n yaml.Node
		err := yaml.Unmarshal([]byte(text), &n)
		if err == nil {
			t.Fatalf("%q is YAML", text)
		}
		if line, what := YAML(err); line != want.line || !strings.Contains(what, want.word) {
			t.Errorf("%q: %v: line %d: %s", text, err, line, what)
		}
	}
}
