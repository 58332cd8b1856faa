package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// TestHeldContentThatIsLost: what was unpublished and can be undone is lost by a registry all the same, its blobs, its manifest and the tag that holds it. verify names it, and --repair brings it back from a site that has
// it; the scrub does so with nobody asking. Undoing the deletion then moves nothing.
func TestHeldContentThatIsLost(t *testing.T) {
	t.Parallel()
	const often = "sweep: {interval: 2s}\n"
	sites := start(t, spec{name: "hq-a", group: "hq", extra: often, counted: true}, spec{name: "gd-a", group: "hq/gd", extra: often},
		spec{name: "gz-a", group: "hq/gz", extra: often + "scrub: {interval: 2s}\n"})
	hq, gd, gz := sites["hq-a"], sites["gd-a"], sites["gz-a"]
	img := image(t, 50<<10, 2)
	digest := push(t, hq, "app/web:1", img)
	hq.quiet("app/web:1", digest)
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	layer := m.Layers[0].Digest.String()
	var deleted struct{ Digest string }
	hq.document(&deleted, "unpublish", "app/web:1")
	for _, s := range sites {
		eventually(t, "the deletion arrives at "+s.name, func() error { return gone(t, s, "app/web:1") })
	}
	gd.finds("gd-a", []string{"--deep"})
	hold := "fanout-hold." + strings.TrimPrefix(digest, "sha256:")[:12]

	// A province that does not scrub now: verify finds it, and mends it when it is told to.
	gd.lose(layer)
	gd.finds("gd-a", nil, "app/web:1 missing-blob "+layer)
	if v, code := gd.verify("gd-a", "gd-a", "--repair"); code != 0 || v.Repaired != 1 {
		t.Errorf("repairing: exit %d, %+v", code, v)
	}
	if err := gd.intact(layer); err != nil {
		t.Error(err)
	}
	if err := remote.Delete(reference(t, gd, "app/web:"+hold)); err != nil {
		t.Fatal(err)
	}
	gd.lose(digest)
	gd.finds("gd-a", nil, "app/web:1 missing-manifest "+digest, "app/web:1 missing-tag "+digest)
	if v, code := gd.verify("gd-a", "gd-a", "--repair"); code != 0 || v.Repaired != 1 {
		t.Errorf("repairing: exit %d, %+v", code, v)
	}
	if err := head(t, gd, "app/web:"+hold, digest); err != nil {
		t.Error(err)
	}

	// One that scrubs.
	for _, what := range []string{layer, m.Config.Digest.String(), digest} {
		gz.lose(what)
		eventually(t, "the scrub mends "+what, func() error { return gz.intact(what) })
	}
	if err := remote.Delete(reference(t, gz, "app/web:"+hold)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the scrub puts the hold again", func() error { return head(t, gz, "app/web:"+hold, digest) })
	eventually(t, "it tells of it", func() error {
		out, _ := gz.ctl("events", "-o", "json")
		return says(string(out), "Scrubbed", "missing-blob of "+layer, "so that its deletion can be undone")
	})

	before := hq.link.down.Load()
	hq.document(&deleted, "undo", "app/web:1")
	for _, s := range sites {
		shows(t, s, "app/web:1", digest)
	}
	if crossed := hq.link.down.Load() - before; crossed > 40<<10 {
		t.Errorf("%d bytes crossed for an undo", crossed)
	}
}

// TestLostLoserOfAConflict: the one site that has what lost a conflict loses it. verify says so; nobody can bring it back, and an event says that.
func TestLostLoserOfAConflict(t *testing.T) {
	t.Parallel()
	const often = "sweep: {interval: 2s}\n"
	sites := start(t,
		spec{name: "hq-a", group: "hq", extra: often}, spec{name: "hq-b", group: "hq", registry: true, extra: often},
		spec{name: "hq-w", group: "hq", extra: "registry: {type: none}\n"},
	)
	a, b := sites["hq-a"], sites["hq-b"]
	b.registryDir = b.own.Dir
	a.quiet("app/web:1", push(t, a, "app/web:1", image(t, 1<<14, 1)))
	b.kill()
	winner := push(t, a, "app/web:1", image(t, 1<<14, 1))
	img := image(t, 1<<14, 1)
	push(t, b, "app/web:1", img)
	eventually(t, "the winner is published", func() error {
		out, _ := a.ctl("images", "app/web", "-o", "json")
		return says(string(out), winner)
	})
	b.start()
	shows(t, b, "app/web:1", winner)
	eventually(t, "the conflict is listed", func() error {
		var doc conflictDoc
		if a.document(&doc, "conflicts"); len(doc.Conflicts) != 1 {
			return fmt.Errorf("%+v", doc)
		}
		return nil
	})
	b.waitReady()
	b.finds("hq-b", nil)

	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	layer := m.Layers[0].Digest.String()
	bytes, err := os.ReadFile(b.dataFile(layer))
	if err != nil {
		t.Fatal(err)
	}
	b.lose(layer)
	b.finds("hq-b", []string{"--repair"}, "app/web:1 missing-blob "+layer)
	eventually(t, "it is told", func() error {
		out, _ := b.ctl("events", "-o", "json")
		return says(string(out), `"Lost"`, "no other site has it")
	})
	if err := os.WriteFile(b.dataFile(layer), bytes, 0o600); err != nil {
		t.Fatal(err)
	}
	b.finds("hq-b", []string{"--repair"})
	eventually(t, "nothing else is wrong there", func() error {
		for _, w := range a.where("app/web:1") {
			if w.State != "delivered" && w.Site != "hq-w" {
				return fmt.Errorf("%+v", w)
			}
		}
		return nil
	})
}
