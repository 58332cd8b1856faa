package reconcile_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/reconcile"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

var testRef = catalog.Ref{Repository: "app", Tag: "v1"}

func blob(digest string, size int64) *catalogv1.Descriptor {
	return &catalogv1.Descriptor{Digest: digest, Size: size}
}

// fake is a registry that a plan is carried out on, and that minds the rules.
type fake struct {
	manifests map[string]reconcile.Manifest // known to the test
	have      map[string]bool               // manifests
	listed    map[string]bool               // referrers
	blobs     map[string]bool
	elsewhere map[string][]string
	tag       string
}

func (f *fake) view() reconcile.Have {
	return reconcile.Have{
		Manifest:      func(d string) bool { return f.have[d] },
		Referrer:      func(d string) bool { return f.listed[d] },
		Blob:          func(d string) bool { return f.blobs[d] },
		BlobElsewhere: func(d string) []string { return f.elsewhere[d] },
	}
}

// whole returns what a manifest lacks under it.
func (f *fake) lacks(digest string) string {
	m := f.manifests[digest]
	for _, b := range m.Blobs {
		if !f.blobs[b.Digest] {
			return b.Digest
		}
	}
	for _, c := range m.Children {
		if !f.have[c] {
			return c
		}
	}
	return ""
}

// carry carries the first steps of a plan out, each stage judged by what stood before it: its steps may be taken at once.
func (f *fake) carry(plan reconcile.Plan, steps int) error {
	for i, stage := range plan.Stages {
		var done []func()
		for _, s := range stage {
			if steps--; steps < 0 {
				break
			}
			switch s.Kind {
			case reconcile.MountBlob, reconcile.FetchBlob:
				if f.blobs[s.Digest] {
					return fmt.Errorf("stage %d: blob %s is there", i, s.Digest)
				}
				if elsewhere := len(f.elsewhere[s.Digest]) > 0; elsewhere != (s.Kind == reconcile.MountBlob) {
					return fmt.Errorf("stage %d: %v of %s", i, s.Kind, s.Digest)
				}
				done = append(done, func() { f.blobs[s.Digest] = true })
			case reconcile.PutManifest, reconcile.PutReferrer:
				if f.have[s.Digest] && s.Kind == reconcile.PutManifest {
					return fmt.Errorf("stage %d: manifest %s is there", i, s.Digest)
				}
				if lacks := f.lacks(s.Digest); lacks != "" {
					return fmt.Errorf("stage %d: %s lacks %s", i, s.Digest, lacks)
				}
				done = append(done, func() {
					f.have[s.Digest] = true
					if s.Kind == reconcile.PutReferrer {
						f.listed[s.Digest] = true
					}
				})
			case reconcile.PutTag:
				if len(stage) != 1 || i != len(plan.Stages)-1 {
					return fmt.Errorf("stage %d: the tag is not last and alone", i)
				}
				if lacks := f.lacks(s.Digest); lacks != "" {
					return fmt.Errorf("the target %s lacks %s", s.Digest, lacks)
				}
				done = append(done, func() { f.tag, f.have[s.Digest] = s.Digest, true })
			}
		}
		for _, d := range done {
			d()
		}
	}
	return nil
}

// drawWorld draws a graph of manifests: later ones may name earlier ones as children or subject.
func drawWorld(t *rapid.T) (*fake, *catalogv1.Record) {
	f := &fake{
		manifests: map[string]reconcile.Manifest{}, have: map[string]bool{}, listed: map[string]bool{}, blobs: map[string]bool{}, elsewhere: map[string][]string{},
	}
	n := rapid.IntRange(1, 9).Draw(t, "manifests")
	name := func(i int) string { return fmt.Sprintf("m%02d", i) }
	for i := range n {
		m := reconcile.Manifest{Digest: name(i)}
		for range rapid.IntRange(0, 3).Draw(t, "blobs") {
			b := rapid.IntRange(0, 5).Draw(t, "blob")
			m.Blobs = append(m.Blobs, blob(fmt.Sprintf("b%d", b), int64(100-b%3)))
		}
		for range rapid.IntRange(0, 2).Draw(t, "children") {
			if i > 0 {
				m.Children = append(m.Children, name(rapid.IntRange(0, i-1).Draw(t, "child")))
			}
		}
		if i > 0 && rapid.Bool().Draw(t, "refers") {
			m.Subject = name(rapid.IntRange(0, i-1).Draw(t, "subject"))
		}
		f.manifests[m.Digest] = m
	}
	target := rapid.IntRange(0, n-1).Draw(t, "target")
	rec := &catalogv1.Record{Repository: "app", Tag: "v1", Revision: 3, Target: &catalogv1.Descriptor{Digest: name(target)}}
	for i := range n {
		if i != target && rapid.IntRange(0, 2).Draw(t, "referrer") == 0 {
			rec.Referrers = append(rec.Referrers, blob(name(i), 1))
		}
	}
	for b := range 6 {
		d := fmt.Sprintf("b%d", b)
		f.blobs[d] = rapid.IntRange(0, 2).Draw(t, "has blob") == 0
		if rapid.IntRange(0, 2).Draw(t, "elsewhere") == 0 {
			f.elsewhere[d] = []string{"other"}
		}
	}
	for i := range n {
		// A registry has a manifest only after all below it; it may have lost blobs since.
		if rapid.IntRange(0, 2).Draw(t, "has manifest") == 0 && !slices.ContainsFunc(f.manifests[name(i)].Children, func(c string) bool { return !f.have[c] }) {
			f.have[name(i)] = true
			f.listed[name(i)] = rapid.Bool().Draw(t, "listed")
		}
	}
	return f, rec
}

// TestPlan_WholeOrNotAtAll carries plans out on a registry that minds the rules, breaks them off anywhere, and makes new ones.
func TestPlan_WholeOrNotAtAll(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f, rec := drawWorld(t)
		for {
			plan, err := reconcile.NewPlan(testRef, rec, f.manifests, f.view())
			if err != nil {
				t.Fatal(err)
			}
			again, _ := reconcile.NewPlan(testRef, rec, f.manifests, f.view())
			if diff := cmp.Diff(plan, again); diff != "" {
				t.Fatalf("two plans for one state:\n%s", diff)
			}
			all, seen, bytes := 0, map[string]bool{}, int64(0)
			for _, stage := range plan.Stages {
				if len(stage) == 0 {
					t.Fatal("an empty stage")
				}
				for i, s := range stage {
					if all++; s.Kind != reconcile.PutTag && seen[s.Digest] {
						t.Fatalf("%s twice", s.Digest)
					}
					seen[s.Digest] = true
					if s.Kind == reconcile.FetchBlob {
						bytes += s.Size
					}
					if i > 0 && s.Kind == stage[i-1].Kind && s.Size < stage[i-1].Size {
						t.Fatal("large before small")
					}
				}
			}
			if bytes != plan.BytesToFetch {
				t.Fatalf("%d bytes to fetch, said %d", bytes, plan.BytesToFetch)
			}
			if slices.ContainsFunc(rec.Referrers, func(d *catalogv1.Descriptor) bool {
				return f.manifests[d.Digest].Subject != "" && !subjectFirst(plan, f, rec)
			}) {
				t.Fatal("a referrer before its subject")
			}
			steps := rapid.IntRange(0, all+3).Draw(t, "steps")
			if err := f.carry(plan, steps); err != nil {
				t.Fatal(err)
			}
			if f.tag != "" {
				break
			}
		}
		complete(t, f, rec)
	})
}

// subjectFirst: a manifest whose subject is put too, but not as the target, comes after it.
func subjectFirst(plan reconcile.Plan, f *fake, rec *catalogv1.Record) bool {
	at := map[string]int{}
	for i, stage := range plan.Stages {
		for _, s := range stage {
			if s.Kind == reconcile.PutManifest || s.Kind == reconcile.PutReferrer {
				at[s.Digest] = i
			}
		}
	}
	for d, i := range at {
		subject := f.manifests[d].Subject
		if j, put := at[subject]; put && subject != rec.Target.Digest && j >= i {
			return false
		}
	}
	return true
}

// complete checks that the registry has the closures and lists the referrers.
func complete(t *rapid.T, f *fake, rec *catalogv1.Record) {
	if f.tag != rec.Target.Digest {
		t.Fatalf("the tag shows %q", f.tag)
	}
	todo := []string{rec.Target.Digest}
	for _, d := range rec.Referrers {
		if todo = append(todo, d.Digest); !f.listed[d.Digest] {
			t.Fatalf("referrer %s is not listed", d.Digest)
		}
	}
	for len(todo) > 0 {
		d := todo[0]
		if !f.have[d] || f.lacks(d) != "" {
			t.Fatalf("%s is not whole: %v lacks %q", d, f.have[d], f.lacks(d))
		}
		todo = append(todo[1:], f.manifests[d].Children...)
	}
}

// TestPlan_Image shows the plan for a signed index of two platforms that share a layer.
func TestPlan_Image(t *testing.T) {
	manifests := map[string]reconcile.Manifest{
		"index":  {Digest: "index", Children: []string{"amd64", "arm64"}},
		"amd64":  {Digest: "amd64", Blobs: []*catalogv1.Descriptor{blob("config1", 10), blob("base", 5000), blob("app1", 300)}},
		"arm64":  {Digest: "arm64", Blobs: []*catalogv1.Descriptor{blob("config2", 12), blob("base", 5000), blob("app2", 200)}},
		"sbom":   {Digest: "sbom", Subject: "amd64", Blobs: []*catalogv1.Descriptor{blob("empty", 2)}},
		"sig":    {Digest: "sig", Subject: "index", Blobs: []*catalogv1.Descriptor{blob("empty", 2)}},
		"sigsig": {Digest: "sigsig", Subject: "sig", Blobs: []*catalogv1.Descriptor{blob("empty", 2)}},
	}
	rec := &catalogv1.Record{Target: blob("index", 1), Referrers: []*catalogv1.Descriptor{blob("sbom", 1), blob("sig", 1), blob("sigsig", 1)}}
	have := reconcile.Have{
		Blob:          func(d string) bool { return d == "config2" },
		BlobElsewhere: func(d string) []string { return map[string][]string{"base": {"lib/base"}}[d] },
	}
	plan, err := reconcile.NewPlan(testRef, rec, manifests, have)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for i, stage := range plan.Stages {
		for _, s := range stage {
			fmt.Fprintf(&b, "%d %v %s %d %s\n", i, s.Kind, s.Digest, s.Size, strings.Join(s.From, ","))
		}
	}
	fmt.Fprintf(&b, "to fetch: %d bytes\n", plan.BytesToFetch)
	golden(t, "testdata/plan.txt", b.String())
}

func TestPlan_Missing(t *testing.T) {
	manifests := map[string]reconcile.Manifest{"index": {Digest: "index", Children: []string{"b", "a", "there"}}}
	rec := &catalogv1.Record{Target: blob("index", 1), Referrers: []*catalogv1.Descriptor{blob("sig", 1)}}
	have := reconcile.Have{Manifest: func(d string) bool { return d == "there" }}
	_, err := reconcile.NewPlan(testRef, rec, manifests, have)
	var missing *reconcile.MissingError
	if !errors.As(err, &missing) {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a", "b", "sig"}, missing.Digests); diff != "" {
		t.Error(diff)
	}
	// The target's bytes are needed for the tag, even where the registry has them.
	have.Manifest = func(string) bool { return true }
	if _, err := reconcile.NewPlan(testRef, rec, nil, have); !errors.As(err, &missing) || len(missing.Digests) != 1 || missing.Digests[0] != "index" {
		t.Error(err)
	}
}

func TestPlan_NothingToDoButTheTag(t *testing.T) {
	have := reconcile.Have{Manifest: func(string) bool { return true }, Blob: func(string) bool { return true }}
	plan, err := reconcile.NewPlan(testRef, &catalogv1.Record{Target: blob("m", 1)}, map[string]reconcile.Manifest{"m": {Blobs: []*catalogv1.Descriptor{blob("b", 1)}}}, have)
	if err != nil {
		t.Fatal(err)
	}
	want := reconcile.Plan{Stages: [][]reconcile.Step{{{Kind: reconcile.PutTag, Digest: "m"}}}}
	if diff := cmp.Diff(want, plan); diff != "" {
		t.Error(diff)
	}
}

func TestPlan_Refused(t *testing.T) {
	live := &catalogv1.Record{Target: blob("m", 1)}
	one := func(m reconcile.Manifest) map[string]reconcile.Manifest { return map[string]reconcile.Manifest{"m": m} }
	for name, tt := range map[string]struct {
		rec       *catalogv1.Record
		manifests map[string]reconcile.Manifest
		want      error
	}{
		"no record":   {nil, nil, reconcile.ErrNotLive},
		"tombstone":   {&catalogv1.Record{Target: blob("m", 1), Deleted: true}, nil, reconcile.ErrNotLive},
		"circle":      {live, map[string]reconcile.Manifest{"m": {Children: []string{"n"}}, "n": {Children: []string{"m"}}}, reconcile.ErrMalformed},
		"itself":      {live, one(reconcile.Manifest{Children: []string{"m"}}), reconcile.ErrMalformed},
		"two sizes":   {live, one(reconcile.Manifest{Blobs: []*catalogv1.Descriptor{blob("b", 1), blob("b", 2)}}), reconcile.ErrMalformed},
		"nil blob":    {live, one(reconcile.Manifest{Blobs: []*catalogv1.Descriptor{nil}}), reconcile.ErrMalformed},
		"below zero":  {live, one(reconcile.Manifest{Blobs: []*catalogv1.Descriptor{blob("b", -1)}}), reconcile.ErrMalformed},
		"overflow":    {live, one(reconcile.Manifest{Blobs: []*catalogv1.Descriptor{blob("b", 1<<62), blob("c", 1<<62)}}), reconcile.ErrMalformed},
		"many of one": {live, one(reconcile.Manifest{Children: names(1 << 16)}), reconcile.ErrMalformed},
	} {
		if _, err := reconcile.NewPlan(testRef, tt.rec, tt.manifests, reconcile.Have{}); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func names(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprint(i)
	}
	return out
}
