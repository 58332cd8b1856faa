package plan

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/fanout-io/fanout/internal/wording"
)

// MaxBytes bounds the size of a file.
const MaxBytes = 1 << 20

// maxProblems bounds how much is said about one file, and maxKept how much is kept to choose from.
const (
	maxProblems = 100
	maxKept     = 1000
)

// APIVersion is what every file says.
const APIVersion = "fanout/v1"

// source is a file that is being read, and what is wrong with it so far.
type source struct {
	name     string
	problems []problem
}

type problem struct {
	line int // 0: not in the file
	text string
}

// full says that more problems would not be kept, so that nothing more need be read.
func (s *source) full() bool { return len(s.problems) == maxKept }

// fail notes a problem with a key, or with the whole where it is empty.
func (s *source) fail(line int, key, format string, args ...any) {
	if s.full() {
		return
	}
	where := s.name + ": "
	if line > 0 {
		where = fmt.Sprintf("%s:%d: ", s.name, line)
	}
	if key != "" {
		where += key + ": "
	}
	s.problems = append(s.problems, problem{line, where + fmt.Sprintf(format, args...)})
}

// err joins all problems, in the order of the file.
func (s *source) err() error {
	slices.SortStableFunc(s.problems, func(a, b problem) int {
		return cmp.Or(cmp.Compare(a.line, b.line), strings.Compare(a.text, b.text))
	})
	var errs []error
	for i, p := range s.problems {
		if i == maxProblems {
			errs = append(errs, fmt.Errorf("%s: and more that is not shown here", s.name))
			break
		}
		errs = append(errs, errors.New(p.text))
	}
	return errors.Join(errs...)
}

// documents reads the file's documents, without empty ones. All values are read from them by value's methods, which look no deeper than a plan or policy goes: an alias
// within itself ends there, and what many aliases stand for is bounded by the bounds of lists and keys.
func (s *source) documents(data []byte) []value {
	if len(data) > MaxBytes {
		s.fail(0, "", "larger than %d bytes; is this the right file?", MaxBytes)
		return nil
	}
	var docs []value
	for dec := yaml.NewDecoder(bytes.NewReader(data)); ; {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return docs
		}
		if err != nil {
			line, what := wording.YAML(err)
			s.fail(line, "", "is not YAML: %s", what)
			return nil
		}
		if doc.Kind != yaml.DocumentNode || len(doc.Content) == 0 || isNull(doc.Content[0]) {
			continue
		}
		docs = append(docs, newValue(s, "", doc.Content[0].Line, doc.Content[0]))
	}
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// head checks what a document says of itself, and returns its name and its spec.
func (v value) head(kind string) (name string, spec value, ok bool) {
	o, ok := v.object("apiVersion", "kind", "metadata", "spec")
	if !ok {
		return "", value{}, false
	}
	if k, found := o.need("kind", "write kind: "+kind); found {
		switch got, isText := k.text(); {
		case !isText:
		case got == "Plan" && kind == "Policy":
			k.fail("is Plan, but policies are wanted; a plan goes to fanoutctl promote --plan")
			return "", value{}, false
		case got == "Policy" && kind == "Plan":
			k.fail("is Policy, but a plan is wanted; policies go to fanoutctl policy apply -f")
			return "", value{}, false
		case got != kind:
			k.fail("%s is not known; write %s", quote(got), kind)
		}
	}
	if a, found := o.need("apiVersion", "write apiVersion: "+APIVersion); found {
		if got, isText := a.text(); isText && got != APIVersion {
			a.fail("%s is not known; write %s", quote(got), APIVersion)
		}
	}
	if m, found := o.need("metadata", "write metadata: {name: NAME}"); found {
		if mo, isObject := m.object("name"); isObject {
			if n, named := mo.need("name", "give it one"); named {
				name = n.name()
			}
		}
	}
	spec, ok = o.need("spec", "write what the "+strings.ToLower(kind)+" says under it")
	return name, spec, ok
}
