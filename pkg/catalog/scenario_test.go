package catalog_test

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/fanout-io/fanout/pkg/catalog"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

var rewrite = flag.Bool("rewrite", false, "write what the scenarios in testdata show now")

// digest makes a digest of a word.
func digest(word string) string {
	sum := sha256.Sum256([]byte(word))
	return "sha256:" + hex.EncodeToString(sum[:])
}

func descriptor(word string) *catalogv1.Descriptor {
	return &catalogv1.Descriptor{MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: digest(word), Size: int64(len(word))}
}

// stage is the machines of a scenario, by name. The words of a scenario:
//
//	NAME found EPOCH
//	NAME publish REF TARGET [rev=N] [expect=N] [signed=WORD,WORD]     rev and expect default to what is right
//	NAME unpublish REF [rev=N] [expect=N]
//	NAME pull PARENT [scope=PATTERN,…] [limit=N] [resync=ID] [again]  asks the parent's view for a batch after its position and imports it
//	NAME import EPOCH/REVISION [scope=HASH] [sum=WORD] [resync=ID] [end] [from=EPOCH/REVISION]… [REF=TARGET@REVISION]…
//	NAME prune REVISION
//	NAME conflict REF LOSER WINNER [site=NAME] [by=NAME] [won=SITE/NAME]
//	NAME settle REF [LOSER]
//	NAME vanish REF [site=NAME] [expect=N]                            notes a deletion
//	NAME travel REF [site=NAME]                                       an observed unpublish
//	NAME back REF [site=NAME] [restore]                               settles a deletion: the tag is there again, or is to be put back
//	NAME fill REPOSITORY N                                            publishes tags t1 to tN
//	NAME wait SECONDS
//	NAME accept EPOCH
//	NAME takeover SAVED EPOCH [limit=N] [stop]                        restores what machine SAVED holds, in parts; stop: without the last
//	NAME restart                                                      through a snapshot
//	NAME show
//	NAME relation PARENT [scope=PATTERN,…]
//
// and those of rollouts, see rollout_scenario_test.go.
type stage struct {
	machines map[string]*catalog.Machine
	cursor   map[string]uint64 // of resyncs
	words    map[string]string // digest to word
	clock    int64
	steps    map[string]int // of rollouts, shown already
}

func newStage() *stage {
	return &stage{machines: map[string]*catalog.Machine{}, cursor: map[string]uint64{}, words: map[string]string{}, steps: map[string]int{}}
}

func (s *stage) machine(name string) *catalog.Machine {
	if s.machines[name] == nil {
		s.machines[name] = catalog.New()
	}
	return s.machines[name]
}

func (s *stage) word(d string) string { return s.words[d] }

func (s *stage) descriptor(word string) *catalogv1.Descriptor {
	s.words[digest(word)] = word
	return descriptor(word)
}

// options are the KEY=VALUE words and bare words of a line.
type options struct {
	keys map[string]string
	bare []string
}

func parseOptions(words []string) options {
	o := options{keys: map[string]string{}}
	for _, w := range words {
		if k, v, ok := strings.Cut(w, "="); ok {
			o.keys[k] = v
		} else {
			o.bare = append(o.bare, w)
		}
	}
	return o
}

func (o options) number(key string, otherwise uint64) uint64 {
	if v, ok := o.keys[key]; ok {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			panic(err)
		}
		return n
	}
	return otherwise
}

func (o options) seconds() uint64 {
	if d, err := time.ParseDuration(o.bare[0]); err == nil {
		return uint64(d / time.Second)
	}
	n, err := strconv.ParseUint(o.bare[0], 10, 32)
	if err != nil {
		panic(err)
	}
	return n
}

func (o options) scope() *catalogv1.Scope {
	patterns := o.keys["scope"]
	if patterns == "" {
		patterns = "**"
	}
	return &catalogv1.Scope{AnyOf: []*catalogv1.Subscription{{Repositories: strings.Split(patterns, ",")}}}
}

func splitRef(s string) catalog.Ref {
	repo, tag, _ := strings.Cut(s, ":")
	return catalog.Ref{Repository: repo, Tag: tag}
}

func (s *stage) run(t *testing.T, line string) string {
	words := strings.Fields(line)
	name, verb := words[0], words[1]
	m := s.machine(name)
	snap := m.Snapshot()
	o := parseOptions(words[2:])
	switch verb {
	case "found":
		return s.apply(m, &catalogv1.Change{Kind: &catalogv1.Change_Found{Found: &catalogv1.Found{Epoch: o.bare[0]}}})
	case "publish":
		ref := splitRef(o.bare[0])
		held, _ := snap.Get(ref)
		p := &catalogv1.Publish{
			Repository: ref.Repository, Tag: ref.Tag, Target: s.descriptor(o.bare[1]), Origin: name + "-a", Group: cmp.Or(o.keys["group"], "hq"),
			Revision: o.number("rev", snap.Position().Revision+1), Expect: o.number("expect", held.GetRevision()),
		}
		if o.keys["signed"] != "" {
			for _, w := range strings.Split(o.keys["signed"], ",") {
				p.Referrers = append(p.Referrers, s.descriptor(w))
			}
		}
		if o.keys["settles"] != "" {
			p.Origin = ""
			for _, w := range strings.Split(o.keys["settles"], ",") {
				p.Settles = append(p.Settles, digest(w))
			}
		}
		return s.apply(m, &catalogv1.Change{Kind: &catalogv1.Change_Publish{Publish: p}})
	case "unpublish":
		ref := splitRef(o.bare[0])
		held, _ := snap.Get(ref)
		return s.apply(m, &catalogv1.Change{Kind: &catalogv1.Change_Unpublish{Unpublish: &catalogv1.Unpublish{
			Repository: ref.Repository, Tag: ref.Tag,
			Revision: o.number("rev", snap.Position().Revision+1), Expect: o.number("expect", held.GetRevision()),
		}}})
	case "pull":
		return s.pull(name, o)
	case "import":
		return s.apply(m, &catalogv1.Change{Kind: &catalogv1.Change_Import{Import: s.parseImport(words[2:])}})
	case "prune":
		n, err := strconv.ParseUint(o.bare[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return s.apply(m, &catalogv1.Change{Kind: &catalogv1.Change_Prune{Prune: &catalogv1.Prune{Through: n}}})
	case "conflict":
		ref := splitRef(o.bare[0])
		held, _ := snap.Get(ref)
		winnerSite, winnerBy, _ := strings.Cut(o.keys["won"], "/")
		return s.apply(m, &catalogv1.Change{Kind: &catalogv1.Change_NoteConflict{NoteConflict: &catalogv1.NoteConflict{Conflict: &catalogv1.Conflict{
			Repository: ref.Repository, Tag: ref.Tag, Target: s.descriptor(o.bare[1]), Winner: s.descriptor(o.bare[2]).Digest,
			Site: cmp.Or(o.keys["site"], "hq-b"), Revision: o.number("seen", held.GetRevision()), Reason: o.keys["reason"],
			PushedBy: o.keys["by"], WinnerSite: winnerSite, WinnerPublishedBy: winnerBy, WinnerPushedAt: held.GetPushedAt(),
		}, Current: o.keys["seen"] != ""}}})
	case "settle":
		ref := splitRef(o.bare[0])
		c := &catalogv1.SettleConflict{Repository: ref.Repository, Tag: ref.Tag}
		if len(o.bare) > 1 {
			c.Digest = digest(o.bare[1])
		}
		return s.apply(m, &catalogv1.Change{Kind: &catalogv1.Change_SettleConflict{SettleConflict: c}})
	case "vanish", "travel", "back":
		return s.apply(m, deletionChange(verb, snap, o))
	case "fill":
		n, err := strconv.Atoi(o.bare[1])
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			s.run(t, fmt.Sprintf("%s publish %s:t%d T%d", name, o.bare[0], i+1, i+1))
		}
		return fmt.Sprintf("ok: %d live\n", m.Snapshot().Live())
	case "wait":
		s.clock += int64(o.seconds())
		return "ok\n"
	case "accept":
		return s.apply(m, &catalogv1.Change{Kind: &catalogv1.Change_AcceptEpoch{AcceptEpoch: &catalogv1.AcceptEpoch{Epoch: o.bare[0]}}})
	case "takeover":
		return s.takeover(m, o)
	case "restart":
		var buf bytes.Buffer
		n, err := snap.WriteTo(&buf)
		if err != nil || n != int64(buf.Len()) {
			t.Fatalf("WriteTo: %d of %d bytes: %v", n, buf.Len(), err)
		}
		m, err := catalog.Restore(&buf)
		if err != nil {
			t.Fatal(err)
		}
		s.machines[name] = m
		return "ok\n"
	case "show":
		return s.show(snap)
	case "relation":
		return s.machine(o.bare[0]).Snapshot().View(o.scope()).Relation(snap.Position()).String() + "\n"
	}
	return s.runRollout(t, line)
}

func deletionChange(verb string, snap *catalog.Snapshot, o options) *catalogv1.Change {
	ref := splitRef(o.bare[0])
	held, _ := snap.Get(ref)
	site := cmp.Or(o.keys["site"], "hq-a")
	switch verb {
	case "vanish":
		return &catalogv1.Change{Kind: &catalogv1.Change_NoteDeletion{NoteDeletion: &catalogv1.NoteDeletion{
			Repository: ref.Repository, Tag: ref.Tag, Site: site, Expect: o.number("expect", held.GetRevision())}}}
	case "travel":
		return &catalogv1.Change{Kind: &catalogv1.Change_Unpublish{Unpublish: &catalogv1.Unpublish{
			Repository: ref.Repository, Tag: ref.Tag, Origin: site, Observed: true, Revision: snap.Position().Revision + 1, Expect: held.GetRevision()}}}
	}
	return &catalogv1.Change{Kind: &catalogv1.Change_SettleDeletion{SettleDeletion: &catalogv1.SettleDeletion{
		Repository: ref.Repository, Tag: ref.Tag, Site: o.keys["site"], Restore: slices.Contains(o.bare, "restore")}}}
}

func (s *stage) apply(m *catalog.Machine, changes ...*catalogv1.Change) string {
	s.clock++
	var out strings.Builder
	for _, r := range m.Apply(&catalogv1.Command{Time: timestamppb.New(time.Unix(s.clock, 0)), Actor: "user/ann", Changes: changes}) {
		if r.Err != nil {
			msg := r.Err.Error()
			for d, w := range s.words {
				msg = strings.ReplaceAll(msg, d, w)
			}
			fmt.Fprintf(&out, "refused: %s\n", msg)
			continue
		}
		fmt.Fprintf(&out, "ok: revision %d", r.Revision)
		for _, ref := range r.Refs {
			fmt.Fprintf(&out, " %s", ref)
		}
		out.WriteByte('\n')
	}
	return out.String()
}

func (s *stage) takeover(m *catalog.Machine, o options) string {
	saved := s.machine(o.bare[0]).Snapshot()
	s.clock++
	var parts []*catalogv1.RestoreCatalog
	id := fmt.Sprint("run", s.clock)
	part := &catalogv1.RestoreCatalog{Id: id, Begin: true}
	for rec := range saved.Records() {
		if len(part.Records) == int(o.number("limit", 1000)) {
			parts = append(parts, part)
			part = &catalogv1.RestoreCatalog{Id: id}
		}
		part.Records = append(part.Records, rec)
	}
	parts = append(parts, part)
	if rollouts := saved.Rollouts(); len(rollouts) > 0 {
		parts = append(parts, &catalogv1.RestoreCatalog{Id: id, Rollouts: rollouts})
	}
	if !slices.Contains(o.bare, "stop") {
		p := saved.Position()
		line := append(slices.Clone(saved.Ancestors()), &catalogv1.Ancestor{Position: &catalogv1.Position{Epoch: p.Epoch, Revision: p.Revision, Sum: p.Sum}})
		parts = append(parts, &catalogv1.RestoreCatalog{Id: id, End: true, Epoch: o.bare[1], Ancestors: line, Policies: saved.Policies(), Freeze: saved.Freeze()})
	}
	var out strings.Builder
	for _, r := range parts {
		out.WriteString(s.apply(m, &catalogv1.Change{Kind: &catalogv1.Change_RestoreCatalog{RestoreCatalog: r}}))
	}
	return out.String()
}

func (s *stage) pull(name string, o options) string {
	m, parent := s.machine(name), s.machine(o.bare[0]).Snapshot()
	view := parent.View(o.scope())
	im := &catalogv1.Import{Ancestors: parent.Ancestors(), Resync: o.keys["resync"], Demand: o.scope()}
	after := m.Snapshot().Position().GetRevision()
	if im.Resync != "" {
		after, im.Pruned = s.cursor[name+im.Resync], parent.Pruned()
	}
	im.Records, im.Position = view.Batch(after, int(o.number("limit", 1000)))
	if im.Resync != "" {
		s.cursor[name+im.Resync] = im.Position.Revision
		im.End = im.Position.Revision == view.Position().Revision
	}
	return s.apply(m, &catalogv1.Change{Kind: &catalogv1.Change_Import{Import: im}})
}

func parsePosition(w string) *catalogv1.Position {
	epoch, rev, _ := strings.Cut(w, "/")
	n, err := strconv.ParseUint(rev, 10, 64)
	if err != nil {
		panic(err)
	}
	return &catalogv1.Position{Epoch: epoch, Revision: n, Sum: wordSum(w)}
}

func wordSum(w string) []byte {
	sum := sha256.Sum256([]byte(w))
	return sum[:16]
}

func (s *stage) parseImport(words []string) *catalogv1.Import {
	im := &catalogv1.Import{Position: parsePosition(words[0])}
	im.Position.Scope = "whole"
	for _, w := range words[1:] {
		k, v, _ := strings.Cut(w, "=")
		switch k {
		case "scope":
			im.Position.Scope = v
		case "sum":
			im.Position.Sum = wordSum(v)
		case "resync":
			im.Resync = v
		case "end":
			im.End = true
		case "from":
			im.Ancestors = append(im.Ancestors, &catalogv1.Ancestor{Position: parsePosition(v)})
		default:
			target, rev, _ := strings.Cut(v, "@")
			n, _ := strconv.ParseUint(rev, 10, 64)
			ref := splitRef(k)
			im.Records = append(im.Records, &catalogv1.Record{
				Repository: ref.Repository, Tag: ref.Tag, Target: s.descriptor(target), Revision: n, Sum: wordSum(w),
			})
		}
	}
	return im
}

func (s *stage) show(snap *catalog.Snapshot) string {
	var out strings.Builder
	p := snap.Position()
	fmt.Fprintf(&out, "epoch %q revision %d sum %x", p.Epoch, p.Revision, p.Sum[:min(4, len(p.Sum))])
	if p.Scope != "" {
		fmt.Fprintf(&out, " scope %.12s", p.Scope)
	}
	if snap.Founded() {
		out.WriteString(" founded")
	}
	fmt.Fprintf(&out, " clock %d\n", snap.Clock().Unix())
	if snap.Restoring() {
		out.WriteString("  restoring\n")
	}
	if snap.Accepted() != "" {
		fmt.Fprintf(&out, "  accepted %s\n", snap.Accepted())
	}
	if snap.Pruned() > 0 {
		fmt.Fprintf(&out, "  pruned through %d\n", snap.Pruned())
	}
	for c := range snap.AllConflicts() {
		fmt.Fprintf(&out, "  conflict over %s:%s: %s at %s", c.Repository, c.Tag, s.word(c.Target.Digest), c.Site)
		if c.PushedBy != "" {
			out.WriteString(" by " + c.PushedBy)
		}
		fmt.Fprintf(&out, ", against %s@%d", s.word(c.Winner), c.Revision)
		if c.WinnerSite+c.WinnerPublishedBy != "" {
			fmt.Fprintf(&out, " at %s by %s", c.WinnerSite, c.WinnerPublishedBy)
		}
		out.WriteString("\n")
	}
	for d := range snap.AllDeletions() {
		fmt.Fprintf(&out, "  deletion of %s:%s at %s, noted at %d", d.Repository, d.Tag, d.Site, d.NotedAt.AsTime().Unix())
		if d.Held {
			out.WriteString(", held")
		}
		if d.Restore {
			out.WriteString(", to be put back")
		}
		out.WriteByte('\n')
	}
	for rec := range snap.Records() {
		fmt.Fprintf(&out, "  %s@%d %s", catalog.RefOf(rec), rec.Revision, s.word(rec.Target.Digest))
		if rec.Deleted {
			out.WriteString(" deleted")
		}
		var names []string
		for _, d := range rec.Referrers {
			names = append(names, s.word(d.Digest))
		}
		if slices.Sort(names); len(names) > 0 {
			fmt.Fprintf(&out, " signed %s", strings.Join(names, ","))
		}
		for i, d := range rec.History {
			if i == 0 {
				out.WriteString(" before")
			}
			out.WriteString(" " + s.word(d))
		}
		if rec.MaxFreeze != nil {
			fmt.Fprintf(&out, " max_freeze %v", rec.MaxFreeze.AsDuration())
		}
		out.WriteByte('\n')
		for _, r := range rec.Releases {
			fmt.Fprintf(&out, "    %s for %s", s.word(r.GetTarget().GetDigest()), cmp.Or(strings.Join(r.Groups, " "), "none yet"))
			if r.Rollout != "" {
				fmt.Fprintf(&out, " by %s", r.Rollout)
			}
			for i, d := range r.Referrers {
				if i == 0 {
					out.WriteString(" signed")
				}
				out.WriteString(" " + s.word(d.Digest))
			}
			out.WriteByte('\n')
		}
	}
	return out.String()
}

// TestScenarios runs the scripts in testdata: a line, then what it shows behind "> ".
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scenarios", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := newStage()
			var got strings.Builder
			for line := range strings.Lines(string(data)) {
				line = strings.TrimRight(line, "\n")
				if strings.HasPrefix(line, ">") {
					continue
				}
				got.WriteString(line + "\n")
				if line == "" || strings.HasPrefix(line, "#") {
					continue
				}
				for out := range strings.Lines(s.run(t, line)) {
					got.WriteString("> " + out)
				}
			}
			if *rewrite {
				if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := gocmp.Diff(string(data), got.String()); diff != "" {
				t.Errorf("-want +got (go test -rewrite writes it anew):\n%s", diff)
			}
		})
	}
}
