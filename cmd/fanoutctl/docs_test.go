package main

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// words splits a command as a shell does, as far as the documents need it: quotes, a comment, a pipe.
var word = regexp.MustCompile(`"[^"]*"|'[^']*'|\S+`)

func words(line string) (out []string) {
	for _, w := range word.FindAllString(line, -1) {
		if w == "|" || w == ">" || w == "&&" || strings.HasPrefix(w, "#") {
			break
		}
		out = append(out, strings.Trim(w, `"'`))
	}
	return out
}

// parses says what is wrong with a command's arguments, without running it.
func parses(args []string) error {
	a := newApp(strings.NewReader(""), io.Discard, io.Discard, func(string) string { return "" })
	root := a.root()
	cmd, rest, err := root.Find(args)
	if err != nil {
		return err
	}
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	if err := cmd.ValidateRequiredFlags(); err != nil {
		return err
	}
	if cmd.Args == nil {
		return cobra.ArbitraryArgs(cmd, cmd.Flags().Args())
	}
	return cmd.Args(cmd, cmd.Flags().Args())
}

// shown gives the commands in the code blocks of a document, by the heading above them.
func shown(t *testing.T, file string) map[string][]string {
	t.Helper()
	doc, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	heading, block := "", false
	for line := range strings.Lines(string(doc)) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "```"):
			block = !block
		case !block && strings.HasPrefix(line, "#"):
			heading = strings.TrimLeft(line, "# ")
			out[heading] = nil
		case block:
			if c, ok := strings.CutPrefix(strings.TrimPrefix(line, "$ "), "fanoutctl "); ok {
				out[heading] = append(out[heading], c)
			}
		}
	}
	return out
}

// TestDocs_CommandsParse: what the documents show can be typed: commands, flags and the number of arguments are as they say.
func TestDocs_CommandsParse(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "..", "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, file := range append(files, filepath.Join("..", "..", "README.md")) {
		for heading, commands := range shown(t, file) {
			for _, c := range commands {
				n++
				if err := parses(words(c)); err != nil {
					t.Errorf("%s, %s: fanoutctl %s: %v", filepath.Base(file), heading, c, err)
				}
			}
		}
	}
	if n < 40 {
		t.Errorf("%d commands were found", n)
	}
	for _, wrong := range []string{"wher a:1", "where a:1 --wach", "where", "why a:1", "freeze hq --reason x", "top x y z"} {
		if parses(words(wrong)) == nil {
			t.Errorf("%q is taken for a command", wrong)
		}
	}
}

// TestDocs_TenQuestions: each question of an operator in docs/operations.md shows a command.
func TestDocs_TenQuestions(t *testing.T) {
	file := filepath.Join("..", "..", "docs", "operations.md")
	doc, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(doc), "\n## Ten questions\n")
	section, _, _ := strings.Cut(rest, "\n## ")
	var questions []string
	for line := range strings.Lines(section) {
		if q, ok := strings.CutPrefix(strings.TrimSpace(line), "### "); ok {
			questions = append(questions, q)
		}
	}
	if !found || len(questions) != 10 {
		t.Errorf("docs/operations.md asks %q", questions)
	}
	commands := shown(t, file)
	for _, q := range questions {
		if len(commands[q]) == 0 {
			t.Errorf("%q shows no command", q)
		}
	}
}
