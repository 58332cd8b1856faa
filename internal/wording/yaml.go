package wording

import (
	"regexp"
	"strconv"
	"strings"
)

var syntaxError = regexp.MustCompile(`^(?:yaml: )?(?:line (\d+): )?(.*)$`)

// YAML gives the line and the words of the YAML decoder's error about a text that is not YAML; line 0: it is not known. Of what its parser, and not its scanner, finds missing the decoder counts lines from 0.
func YAML(err error) (line int, what string) {
	m := syntaxError.FindStringSubmatch(err.Error())
	if m == nil {
		return 0, err.Error()
	}
	line, _ = strconv.Atoi(m[1]) // none is 0
	if strings.HasPrefix(m[2], "did not find expected") {
		line++
		if strings.HasSuffix(m[2], "key") {
			return line, m[2] + "; look at how this line and the next are indented"
		}
		if strings.Contains(m[2], "or") {
			return line, m[2] + "; close the bracket that was opened there"
		}
	}
	return line, m[2]
}
