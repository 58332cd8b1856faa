package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

type verifiedDifference struct{ Ref, Kind, Digest, Reason string }

type verifiedSite struct {
	Site, State, Reason, View, Shown string
	Refs, Blobs, Repaired            int
	Bytes                            int64
	Differences                      []verifiedDifference
}

// verify runs fanoutctl verify and gives what it says of one site, with the exit code.
func (s *site) verify(of string, args ...string) (verifiedSite, int) {
	s.t.Helper()
	out, code := s.ctl(append([]string{"verify", "-o", "json"}, args...)...)
	var doc struct {
		SchemaVersion int
		Sites         []verifiedSite
	}
	if err := json.Unmarshal(out, &doc); err != nil || doc.SchemaVersion != 1 {
		s.t.Fatalf("verify -o json: %v: %s", err, out)
	}
	i := slices.IndexFunc(doc.Sites, func(v verifiedSite) bool { return v.Site == of })
	if i < 0 {
		s.t.Fatalf("verify says nothing of %s: %s", of, out)
	}
	return doc.Sites[i], code
}

// finds wants a verify to say of a site that these are what is wrong, by "ref kind digest", and nothing else.
func (s *site) finds(of string, args []string, want ...string) {
	s.t.Helper()
	v, code := s.verify(of, append([]string{of}, args...)...)
	var got []string
	for _, d := range v.Differences {
		got = append(got, d.Ref+" "+d.Kind+" "+d.Digest)
		if d.Reason == "" {
			s.t.Errorf("%s %s has no reason", d.Ref, d.Kind)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	wantCode, wantState := 0, "equal"
	if len(want) > 0 {
		wantCode, wantState = 4, "different"
	}
	if !slices.Equal(got, want) || code != wantCode || v.State != wantState {
		s.t.Fatalf("verify %s %v: exit %d, %s, %q; want exit %d, %q", of, args, code, v.State, got, wantCode, want)
	}
}

// TestVerify: what was lost or damaged behind a registry's back is named by ref, kind and digest, and mended with --repair; at headquarters and in a province.
func TestVerify(t *testing.T) {
	t.Parallel()
	sites := start(t, spec{name: "hq-a", group: "hq"}, spec{name: "hq-b", group: "hq"}, spec{name: "hq-w", group: "hq", extra: "registry: {type: none}\n"},
		spec{name: "gd-a", group: "hq/gd", extra: "drift: {deleted: accept}\n"})
	hq := sites["hq-a"]
	img, other := image(t, 40<<10, 2), image(t, 30<<10, 1)
	digest := push(t, hq, "app/web:1", img)
	if err := remote.Write(reference(t, hq, "app/web:same"), img); err != nil {
		t.Fatal(err)
	}
	idx := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img}, mutate.IndexAddendum{Add: other})
	if err := remote.WriteIndex(reference(t, hq, "app/multi:1"), idx); err != nil {
		t.Fatal(err)
	}
	index, err := idx.Digest()
	if err != nil {
		t.Fatal(err)
	}
	child, err := other.Digest()
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	layer := func(i int) string {
		h, err := layers[i].Digest()
		if err != nil {
			t.Fatal(err)
		}
		return h.String()
	}
	signature := sign(t, hq, "app/web", digest, "signed")
	hq.quiet("app/multi:1", index.String())
	hq.quiet("app/web:same", digest)
	eventually(t, "the signature is in the province", func() error {
		_, _, err := sites["gd-a"].read("app/web", "manifests", signature)
		return err
	})
	hq.quiet("app/web:1", digest)
	for _, at := range []string{"hq-a", "hq-b", "gd-a"} {
		s, asked := sites[at], hq
		if at == "gd-a" {
			asked = s
		}
		asked.finds(at, nil)
		asked.finds(at, []string{"--deep"})
		deep, _ := asked.verify(at, at, "--deep")
		if deep.View == "" || deep.View != deep.Shown || deep.Refs != 3 || deep.Bytes < 110<<10 || deep.Bytes > 130<<10 {
			t.Errorf("%s: %+v: want 3 refs, and each blob read once", at, deep)
		}
		if at == "hq-a" {
			continue
		}
		s.lose(layer(0))
		s.flip(layer(1))
		s.lose(child.String())
		lost := []string{
			"app/web:1 missing-blob " + layer(0), "app/web:same missing-blob " + layer(0), "app/multi:1 missing-blob " + layer(0),
			"app/multi:1 missing-manifest " + child.String(),
		}
		asked.finds(at, nil, lost...)
		asked.finds(at, []string{"--deep"}, append(lost,
			"app/web:1 wrong-bytes "+layer(1), "app/web:same wrong-bytes "+layer(1), "app/multi:1 wrong-bytes "+layer(1))...)
		if v, code := asked.verify(at, at, "--deep", "--repair"); code != 0 || v.Repaired != 3 {
			t.Fatalf("repairing %s: exit %d, %+v", at, code, v)
		} else if v.Refs != deep.Refs || v.Blobs != deep.Blobs { // what was looked at twice is counted once
			t.Errorf("repairing %s looked at %d refs and %d blobs, verifying at %d and %d", at, v.Refs, v.Blobs, deep.Refs, deep.Blobs)
		}
		for _, d := range []string{layer(0), layer(1), child.String()} {
			if err := s.intact(d); err != nil {
				t.Error(err)
			}
		}
		// The manifest that a tag shows, and the list of referrers.
		s.lose(index.String())
		s.flip(digest)
		tag := filepath.Join(s.dir, "registry", "data", "docker", "registry", "v2", "repositories", "app", "web", "_manifests", "tags", strings.Replace(digest, ":", "-", 1))
		if err := os.RemoveAll(tag); err != nil {
			t.Fatal(err)
		}
		asked.finds(at, []string{"--deep"}, "app/multi:1 missing-manifest "+index.String(), "app/web:1 wrong-bytes "+digest, "app/web:same wrong-bytes "+digest,
			"app/web:1 missing-referrer "+signature, "app/web:same missing-referrer "+signature)
		if v, code := asked.verify(at, at, "--deep", "--repair"); code != 0 {
			t.Fatalf("repairing %s: exit %d, %+v", at, code, v)
		}
		for _, d := range []string{index.String(), digest} {
			if err := s.intact(d); err != nil {
				t.Error(err)
			}
		}
		shows(t, s, "app/multi:1", index.String())
		shows(t, s, "app/web:1", digest)
	}
	verifyDeleted(t, sites)
	diffs(t, sites)
	verifyAll(t, sites)
}

// verifyDeleted: a tag that was deleted where deletions are accepted is told of, and not brought back.
func verifyDeleted(t *testing.T, sites map[string]*site) {
	gd := sites["gd-a"]
	digest := push(t, sites["hq-a"], "app/gone:1", image(t, 1<<10, 1))
	sites["hq-a"].quiet("app/gone:1", digest)
	if err := remote.Delete(reference(t, gd, "app/gone:1")); err != nil {
		t.Fatal(err)
	}
	v, code := gd.verify("gd-a", "gd-a", "--repair")
	if code != 0 || v.State != "accepted" || len(v.Differences) != 1 || v.Differences[0].Kind != "missing-tag" || v.Differences[0].Digest != digest {
		t.Errorf("exit %d, %+v", code, v)
	}
	if err := gone(t, gd, "app/gone:1"); err != nil {
		t.Error(err)
	}
}

// diffs compares two members of headquarters before and after one of them lost a tag, which it keeps absent.
func diffs(t *testing.T, sites map[string]*site) {
	if out, code := sites["hq-w"].ctl("diff", "hq-a", "hq-b"); code != 0 || !strings.Contains(string(out), "are equal in ") || !strings.Contains(string(out), "What lies under the tags was not looked at") {
		t.Errorf("exit %d: %s", code, out)
	}
	digest := push(t, sites["hq-a"], "app/apart:1", image(t, 1<<10, 1))
	sites["hq-a"].quiet("app/apart:1", digest)
	if err := remote.Delete(reference(t, sites["hq-b"], "app/apart:1")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "diff names the tag", func() error {
		out, code := sites["hq-w"].ctl("diff", "hq-a", "hq-b", "-o", "json")
		var doc struct {
			A, B struct{ View string }
			Refs []struct {
				Ref  string
				A, B struct{ Digest, Shown string }
			}
		}
		if err := json.Unmarshal(out, &doc); err != nil || code != 4 || doc.A.View != doc.B.View || len(doc.Refs) != 1 {
			return fmt.Errorf("exit %d, %v: %s", code, err, out)
		}
		if r := doc.Refs[0]; r.Ref != "app/apart:1" || r.A.Shown != digest || r.B.Shown != "" || r.B.Digest != digest {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	sites["hq-a"].quiet("app/apart:1", push(t, sites["hq-b"], "app/apart:1", image(t, 1<<10, 1)))
}

// verifyAll: without a site all are looked at; one that can't be reached is told as that, and one whose registry is right and whose witness is too has nothing wrong.
func verifyAll(t *testing.T, sites map[string]*site) {
	hq := sites["hq-a"]
	for _, at := range []string{"hq-a", "hq-b", "hq-w"} {
		want := "equal"
		if at == "hq-w" {
			want = "witness"
		}
		if out, code := sites["hq-a"].ctl("diff", "hq-a", at); code != 0 || strings.Contains(string(out), at+" is a witness: it has no registry to compare") != (at == "hq-w") {
			t.Errorf("diff with %s: exit %d, %s", at, code, out)
		}
		if v, code := sites["hq-w"].verify(at); v.State != want || code != 0 {
			t.Errorf("%s: exit %d, %+v", at, code, v)
		}
	}
	sites["hq-b"].kill()
	eventually(t, "a dead site is told as unreachable", func() error {
		v, code := hq.verify("hq-b")
		if v.State != "unreachable" || v.Reason == "" || code != 3 {
			return fmt.Errorf("exit %d, %+v", code, v)
		}
		return nil
	})
	if v, code := hq.verify("hq-b", "hq-b"); code != 3 || v.State != "unreachable" || v.Reason == "" {
		t.Errorf("a dead site that is named: exit %d, %+v", code, v)
	}
	if _, errs, code := hq.says("diff", "hq-a", "hq-b"); code != 3 || !strings.Contains(string(errs), "hq-b could not be looked at: ") {
		t.Errorf("diff with a dead site: exit %d, %s", code, errs)
	}
	if v, code := hq.verify("hq-a", "hq-a"); code != 0 || v.State != "equal" {
		t.Errorf("exit %d, %+v", code, v)
	}
	if _, code := hq.ctl("verify", "nowhere"); code != 1 {
		t.Errorf("a site that does not exist: exit %d", code)
	}
}
