// Mutants breaks each of the guarantees on purpose, one at a time, and runs the test that is named for it. It fails when the test passes all the same: then nothing would notice if
// somebody broke it by mistake. `make mutants` runs it. Nothing in the tree is changed: the broken file takes the place of the real one by Go's -overlay.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// mutant is one way to break something.
type mutant struct {
	// guarantee that is broken, in words.
	guarantee string
	// file in which old, which is there once, is replaced by broken.
	file, old, broken string
	// pkg and test that must notice, and what the test says then: any other failure, of a machine too slow say, proves nothing.
	pkg, test, says string
}

var mutants = []mutant{
	{
		guarantee: "a tag moves last: put it before the blobs",
		file:      "pkg/reconcile/plan.go",
		old:       "plan.Stages = append(plan.Stages, []Step{{Kind: PutTag, Digest: p.target}})",
		broken:    "plan.Stages = append([][]Step{{{Kind: PutTag, Digest: p.target}}}, plan.Stages...)",
		pkg:       "./pkg/reconcile", test: "TestPlan_WholeOrNotAtAll",
		says: "the tag is not last and alone",
	},
	{
		guarantee: "a site knows what it did itself: forget the base",
		file:      "pkg/agent/reconcile.go",
		old:       "		st.Base = rec.GetTarget().GetDigest()\n",
		broken:    "		st.BaseRevision = 0\n",
		pkg:       "./integration", test: "TestDrift",
		says: "where says drifted of app/web:changes at rp-a: not within",
	},
	{
		guarantee: "content is what its digest says: skip the check",
		file:      "pkg/store/ingest.go",
		old:       "	var sum key\n	if e.hash.Sum(sum[:0]); sum == e.key {",
		broken:    "	var sum key\n	if e.hash.Sum(sum[:0]); true {",
		pkg:       "./pkg/store", test: "TestSuite",
		says: "Commit: error <nil>, want store: content does not match its digest",
	},
	{
		guarantee: "a catalog that does not continue another is foreign to it: ignore the epoch",
		file:      "pkg/catalog/snapshot.go",
		old:       "	case !Continues(s.ancestors, s.position, child):\n",
		broken:    "	case false:\n",
		pkg:       "./pkg/catalog", test: "TestScenarios",
		says: "--- FAIL: TestScenarios/heal",
	},
	{
		guarantee: "a record never goes back: accept an older revision",
		file:      "pkg/catalog/follow.go",
		old:       "held.Revision >= rec.Revision && !m.outdated(ref)",
		broken:    "false && held.Revision >= rec.Revision && !m.outdated(ref)",
		pkg:       "./pkg/catalog", test: "TestScenarios",
		says: "--- FAIL: TestScenarios/follow",
	},
	{
		guarantee: "bytes cross a link once: let every member fetch",
		file:      "pkg/agent/content.go",
		old:       "if !roster.IsCarrier || a.cfg.Headquarters() {",
		broken:    "if a.cfg.Headquarters() {",
		pkg:       "./integration", test: "TestFollowersTakeNothingFromTheParent",
		says: "bytes crossed the link for two layers of",
	},
	{
		guarantee: "what was acknowledged is seen at every member: read a member's own catalog without asking the root",
		file:      "pkg/tree/sync.go",
		old:       "	conn, err := n.cfg.Dial(ctx, addr)\n",
		broken:    "	if true {\n		return 0, nil\n	}\n	conn, err := n.cfg.Dial(ctx, addr)\n",
		pkg:       "./pkg/tree", test: "TestSync_ShowsAtEveryMemberWhatAnotherAcknowledged",
		says: "is not to be seen at",
	},
	{
		guarantee: "a root that was deposed answers nothing old: let it vouch without a majority",
		file:      "pkg/tree/sync.go",
		old:       "	case servers == 1:\n",
		broken:    "	case servers >= 1:\n",
		pkg:       "./pkg/tree", test: "TestSync_NotByARootWithoutAMajority",
		says: "a root without fellows vouched for its catalog: <nil>",
	},
}

func main() {
	root, err := os.Getwd()
	if err == nil {
		err = run(root)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(root string) error {
	dir, err := os.MkdirTemp("", "fanout-mutants-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	sound := map[string]bool{}
	survived := 0
	for _, m := range mutants {
		if name := m.pkg + " " + m.test; !sound[name] {
			if out, err := test(m, ""); err != nil {
				return fmt.Errorf("%s fails without any mutation: %w\n%s", name, err, tail(out))
			}
			sound[name] = true
		}
		overlay, err := m.overlay(root, dir)
		if err != nil {
			return fmt.Errorf("%s: %w", m.guarantee, err)
		}
		began := time.Now()
		out, err := test(m, overlay)
		switch {
		case err == nil:
			survived++
			fmt.Printf("SURVIVED  %s (%s %s)\n", m.guarantee, m.pkg, m.test)
		case bytes.Contains(out, []byte("[build failed]")) || bytes.Contains(out, []byte("building the binaries")):
			return fmt.Errorf("%s: it does not compile:\n%s", m.guarantee, tail(out))
		case !bytes.Contains(out, []byte(m.says)):
			return fmt.Errorf("%s: %s %s fails, and does not say %q:\n%s", m.guarantee, m.pkg, m.test, m.says, tail(out))
		default:
			fmt.Printf("caught    %s (%s %s, %s)\n", m.guarantee, m.pkg, m.test, time.Since(began).Round(time.Second))
		}
	}
	if survived > 0 {
		return fmt.Errorf("%d of %d survived", survived, len(mutants))
	}
	return nil
}

// overlay writes the broken file, and the description by which Go takes it for the real one.
func (m mutant) overlay(root, dir string) (string, error) {
	path := filepath.Join(root, m.file)
	content, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(content), m.old); n != 1 {
		return "", fmt.Errorf("%s has the text to break %d times, not once: write the mutation anew:\n%s", m.file, n, m.old)
	}
	broken := filepath.Join(dir, strings.ReplaceAll(m.file, "/", "_"))
	if err := os.WriteFile(broken, []byte(strings.Replace(string(content), m.old, m.broken, 1)), 0o600); err != nil {
		return "", err
	}
	text, err := json.Marshal(map[string]map[string]string{"Replace": {path: broken}})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(dir, "overlay.json")
	return overlay, os.WriteFile(overlay, text, 0o600)
}

// test runs the mutant's test; the tests that build binaries of their own hand the overlay on.
func test(m mutant, overlay string) ([]byte, error) {
	cmd := exec.Command("go", "test", m.pkg, "-run", "^"+m.test, "-count=1", "-timeout", "10m")
	cmd.Env = os.Environ()
	if overlay != "" {
		cmd.Env = append(cmd.Env, "GOFLAGS=-overlay="+overlay)
	}
	return cmd.CombinedOutput()
}

func tail(out []byte) []byte { return out[max(0, len(out)-2000):] }
