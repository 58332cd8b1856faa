package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/fanout-io/fanout/pkg/registry/harbortest"
)

// markerOf reads the counter by which a site notices that its registry is not the one that it was.
func markerOf(t testing.TB, s *site) string {
	t.Helper()
	tags, err := remote.List(repository(t, s, "fanout/marker"))
	if err != nil || len(tags) != 1 {
		return ""
	}
	d, err := remote.Get(reference(t, s, "fanout/marker:"+tags[0]))
	if err != nil {
		return ""
	}
	var m struct{ Annotations map[string]string }
	if json.Unmarshal(d.Manifest, &m) != nil {
		return ""
	}
	return m.Annotations["io.fanout.counter"]
}

// raised waits until a site's marker is another than it was.
func raised(t testing.TB, s *site, was string) string {
	t.Helper()
	var now string
	eventually(t, s.name+" raises its marker", func() error {
		if now = markerOf(t, s); now == was || now == "" {
			return errors.New("not yet")
		}
		return nil
	})
	return now
}

// TestLostRegistries: headquarters lets deletions travel, and one of its registries is wiped, then restored from an old backup. Neither is taken for deletions or for pushes: it is
// filled again, and no other site goes back.
func TestLostRegistries(t *testing.T) {
	t.Parallel()
	const policy = "publish: {deletes: propagate}\n"
	sites := start(t,
		spec{name: "hq-a", group: "hq", registry: true, extra: policy}, spec{name: "hq-b", group: "hq", registry: true, extra: policy},
		spec{name: "hq-w", group: "hq", extra: "registry: {type: none}\n" + policy},
		spec{name: "gd-a", group: "hq/gd"},
	)
	hq := sites["hq-a"]
	digests := map[string]string{}
	for i := range 12 {
		ref := fmt.Sprintf("app/web:%d", i)
		digests[ref] = push(t, hq, ref, image(t, 1<<14, 1))
	}
	old := image(t, 1<<14, 1)
	digests["app/web:moves"] = push(t, hq, "app/web:moves", old)
	digests["app/web:goes"] = push(t, hq, "app/web:goes", image(t, 1<<14, 1))
	for ref, digest := range digests {
		hq.quiet(ref, digest)
	}
	all := func(what string) {
		t.Helper()
		for ref, digest := range digests {
			for _, s := range []string{"hq-a", "hq-b", "gd-a"} {
				shows(t, sites[s], ref, digest)
			}
		}
		eventually(t, what+": the deleted tag is nowhere", func() error {
			for _, s := range []string{"hq-a", "hq-b", "gd-a"} {
				if _, ok := digests["app/web:goes"]; !ok {
					if err := gone(t, sites[s], "app/web:goes"); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	before := raised(t, hq, "")

	// Wiped: it comes back empty.
	hq.own.kill()
	if err := os.RemoveAll(hq.own.Dir); err != nil {
		t.Fatal(err)
	}
	hq.own.start()
	all("wiped")
	before = raised(t, hq, before)

	// Restored: it comes back as it was before a tag moved and another was deleted.
	backup := t.TempDir()
	hq.own.kill()
	if err := os.CopyFS(backup, os.DirFS(hq.own.Dir)); err != nil {
		t.Fatal(err)
	}
	hq.own.start()
	order := map[string]int{digests["app/web:moves"]: 0}
	digests["app/web:moves"] = push(t, hq, "app/web:moves", image(t, 1<<14, 1))
	order[digests["app/web:moves"]] = 1
	if err := remote.Delete(reference(t, hq, "app/web:goes")); err != nil {
		t.Fatal(err)
	}
	delete(digests, "app/web:goes")
	all("changed")
	raised(t, hq, before)
	// The agent must have heard that the marker was taken before the registry ends: until then both counters are right.
	digests["app/web:more"] = push(t, hq, "app/web:more", image(t, 1<<14, 1))
	all("pushed after the marker")
	stop := neverOlder(t, map[string]*site{"hq-b": sites["hq-b"], "gd-a": sites["gd-a"]}, "app/web:moves", order)
	hq.own.kill()
	if err := os.RemoveAll(hq.own.Dir); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(hq.own.Dir, os.DirFS(backup)); err != nil {
		t.Fatal(err)
	}
	hq.own.start()
	all("restored")
	stop()
	eventually(t, "it is told of", func() error {
		out, _ := hq.ctl("events", "-o", "json")
		if n := strings.Count(string(out), "RegistryLost"); n != 2 {
			return fmt.Errorf("%d times", n)
		}
		return nil
	})
	// A push after that is a push again.
	var again ggcr.Image = old
	digests["app/web:moves"] = push(t, hq, "app/web:moves", again)
	all("pushed again")
	// And so is a deletion, also of what the backup had as it is.
	if err := remote.Delete(reference(t, hq, "app/web:3")); err != nil {
		t.Fatal(err)
	}
	delete(digests, "app/web:3")
	eventually(t, "the deletion arrives", func() error {
		for _, s := range []string{"hq-a", "hq-b", "gd-a"} {
			if err := gone(t, sites[s], "app/web:3"); err != nil {
				return err
			}
		}
		return nil
	})
	all("deleted again")
}

// TestLossNoticedByAnother: several workers look at tags of a registry that was wiped a moment ago, while the sweep is noticing it. None of them takes what is gone for a deletion.
func TestLossNoticedByAnother(t *testing.T) {
	t.Parallel()
	const policy = "sweep: {interval: 1s}\npublish: {deletes: propagate}\n"
	fake := serveFake(t, "oci", harbortest.Config{Knobs: harbortest.Knobs{Plain: true}})
	sites := start(t, spec{name: "hq-a", group: "hq", extra: fake.extra + policy}, spec{name: "hq-b", group: "hq", extra: policy})
	var imgs []ggcr.Image
	for i := range 4 {
		imgs = append(imgs, image(t, 1<<10, 1))
		push(t, sites["hq-b"], fmt.Sprintf("app/web:%d", i), imgs[i])
		fake.holds(t, fmt.Sprintf("app/web:%d", i), imgs[i])
	}
	marker := ""
	eventually(t, "hq-a has a marker", func() error {
		tags, err := remote.List(repository(t, &site{reg: fake.addr}, "fanout/marker"), remote.WithAuth(&authn.Basic{Username: fake.Username(), Password: fake.Password()}))
		if err != nil || len(tags) == 0 {
			return fmt.Errorf("none: %v", err)
		}
		marker = tags[0]
		return nil
	})

	// Who asks for the marker first is answered when the tags have been asked for.
	asking, asked := make(chan struct{}), make(chan struct{})
	first, all := sync.OnceFunc(func() { close(asking); <-asked }), sync.OnceFunc(func() { close(asked) })
	var looks atomic.Int32
	remove := fake.AddFault(harbortest.Fault{Match: func(r *http.Request) bool {
		switch {
		case strings.Contains(r.URL.Path, "/fanout/marker/manifests/") && r.Method != http.MethodPut:
			first()
		case r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/app/web/manifests/") && looks.Add(1) == int32(len(imgs)):
			all()
		}
		return false
	}})
	defer remove()
	defer all()
	<-asking
	for _, img := range imgs {
		digest, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		fake.RemoveManifest("app/web", digest.String())
	}
	fake.RemoveManifest("fanout/marker", fake.Tag("fanout/marker", marker))
	looks.Store(0)
	for i := range imgs {
		body := fmt.Sprintf(`{"events":[{"action":"delete","target":{"repository":"app/web","tag":"%d"}}]}`, i)
		resp, err := http.Post("http://"+sites["hq-a"].http+"/hooks/distribution", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	}
	for i, img := range imgs {
		fake.holds(t, fmt.Sprintf("app/web:%d", i), img)
	}
	if out, _ := sites["hq-a"].ctl("events", "-o", "json"); strings.Contains(string(out), "Unpublished") {
		t.Errorf("what was wiped counts as deleted: %s", out)
	}
}

// TestLostMemoryReadsThePastFirst: a member without its data learns the group's past from the beginning. A tag that was deleted then and is back does not go meanwhile.
func TestLostMemoryReadsThePastFirst(t *testing.T) {
	t.Parallel()
	sites := start(t, spec{name: "hq-a", group: "hq"}, spec{name: "hq-b", group: "hq"}, spec{name: "hq-c", group: "hq", registry: true})
	a, c := sites["hq-a"], sites["hq-c"]
	const ref = "app/web:1"
	digest := push(t, a, ref, image(t, 1<<10, 1))
	a.quiet(ref, digest)
	a.does("unpublish", ref)
	eventually(t, "the deletion arrives", func() error { return gone(t, c, ref) })
	many, last := tags(t, a, "app/many", 400)
	a.quiet(last, many)
	a.does("undo", ref)
	a.quiet(ref, digest)
	lose("", c)
	vote(t, a, "hq-a", "hq-b", "hq-c")
	a.quiet(last, many)
	a.quiet(ref, digest)
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := strings.Count(c.log.String(), `"action":"remove"`); n != 1 {
		t.Errorf("the tag was removed %d times; it was deleted once", n)
	}
}
