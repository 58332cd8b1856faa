package agent

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// goldenLink is how docs/operations.md names what why says.
var goldenLink = regexp.MustCompile(`\[([a-z-]+)\]\(\.\./pkg/agent/testdata/why/([a-z-]+)\.txt\)`)

// failureTables gives the rows of those tables in docs/operations.md that say what happens when something fails, each with its cells by column.
func failureTables(t *testing.T) (rows []map[string]string) {
	t.Helper()
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	var head []string
	lines := strings.Split(string(doc), "\n")
	for i, line := range lines {
		if !strings.HasPrefix(line, "|") {
			head = nil
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for j := range cells {
			cells[j] = strings.TrimSpace(cells[j])
		}
		switch {
		case i+1 < len(lines) && strings.HasPrefix(lines[i+1], "|--"):
			if head = nil; slices.Contains([]string{"failure", "what is down", "a group below"}, cells[0]) {
				head = cells
			}
		case head != nil && !strings.HasPrefix(line, "|--"):
			row := map[string]string{"": cells[0]}
			for j, c := range cells {
				if j < len(head) {
					row[head[j]] = c
				}
			}
			rows = append(rows, row)
		}
	}
	return rows
}

// TestFailures_WhatWhySays: each failure that docs/operations.md knows names what why says then, and no golden stands there for nothing.
func TestFailures_WhatWhySays(t *testing.T) {
	named := map[string]bool{}
	rows := failureTables(t)
	if len(rows) < 80 {
		t.Fatalf("docs/operations.md has %d failures: its tables are not found", len(rows))
	}
	for _, row := range rows {
		links := goldenLink.FindAllStringSubmatch(row["`why`"], -1)
		if len(links) == 0 {
			t.Errorf("docs/operations.md does not say what why says of %q: its column `why` has %q", row[""], row["`why`"])
		}
		for _, l := range links {
			if named[l[2]] = true; l[1] != l[2] {
				t.Errorf("%q leads to %s by the name of %s", row[""], l[2], l[1])
			}
			if _, err := os.Stat(filepath.Join("testdata", "why", l[2]+".txt")); err != nil {
				t.Errorf("%q: %v", row[""], err)
			}
		}
	}
	files, err := filepath.Glob(filepath.Join("testdata", "why", "*.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if name := strings.TrimSuffix(filepath.Base(f), ".txt"); !named[name] {
			t.Errorf("%s: no failure in docs/operations.md leads there", f)
		}
	}
}
