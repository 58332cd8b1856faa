package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// sharing are the keys of embedded registries over one folder.
func sharing(t testing.TB, word string) string {
	return fmt.Sprintf(", shared: %s, data: %q", word, t.TempDir())
}

const noRegistry = "registry: {type: none}\n"

// received is how many bytes of blobs a site has taken from others.
func (s *site) received() float64 {
	s.t.Helper()
	upstream, _ := s.findMetric(`fanout_transfer_received_bytes_total{source="upstream"}`)
	fellow, _ := s.findMetric(`fanout_transfer_received_bytes_total{source="fellow"}`)
	return upstream + fellow
}

// TestSharedStorage: a blob comes to a storage that two registries share once, by one of them; the other sees it there. So do a deletion, its undoing and a repair.
func TestSharedStorage(t *testing.T) {
	t.Parallel()
	keys := sharing(t, "nas")
	sites := start(t, spec{name: "hq-a", group: "hq", counted: true},
		spec{name: "gd-a", group: "hq/gd", keys: keys, extra: "sweep: {interval: 2s}\n"}, spec{name: "gd-b", group: "hq/gd", keys: keys, extra: "sweep: {interval: 2s}\n"},
		spec{name: "gd-w", group: "hq/gd", extra: noRegistry})
	hq, a, b := sites["hq-a"], sites["gd-a"], sites["gd-b"]
	const size, layers = mib, 3
	before := hq.link.down.Load()
	digest := push(t, hq, "app/web:1", image(t, size, layers))
	shows(t, a, "app/web:1", digest)
	shows(t, b, "app/web:1", digest)
	hq.quiet("app/web:1", digest)
	if crossed := hq.link.down.Load() - before; crossed > framed(size*layers) {
		t.Errorf("%d bytes crossed for %d", crossed, size*layers)
	}
	ra, rb := a.received(), b.received()
	if min(ra, rb) != 0 || max(ra, rb) < size*layers {
		t.Errorf("gd-a took %v bytes and gd-b %v: one should have taken all", ra, rb)
	}

	var doc struct{ Digest string }
	hq.document(&doc, "unpublish", "app/web:1")
	eventually(t, "the deletion arrives", func() error { return gone(t, a, "app/web:1") })
	if got := holds(t, b, "app/web"); len(got) != 1 {
		t.Errorf("holds %v", got)
	}
	hq.document(&doc, "undo", "app/web:1")
	shows(t, b, "app/web:1", digest)
	hq.quiet("app/web:1", digest)

	// Somebody moves the tag there: it is moved back, and stays.
	other := push(t, b, "app/web:1", image(t, 1<<16, 1))
	eventually(t, "the tag is moved back", func() error {
		d, err := remote.Head(reference(t, a, "app/web:1"))
		if err == nil && d.Digest.String() != digest {
			err = fmt.Errorf("it shows %s, pushed was %s", d.Digest, other)
		}
		return err
	})
	hq.quiet("app/web:1", digest)
	if after := a.received() + b.received(); after != ra+rb {
		t.Errorf("%v bytes were taken for what was there", after-ra-rb)
	}
}

// TestSharedStorage_Takeover: the member that delivers to a shared storage is killed in the middle of a blob, and the other one finishes.
func TestSharedStorage_Takeover(t *testing.T) {
	t.Parallel()
	keys := sharing(t, "nas")
	sites := start(t, spec{name: "hq-a", group: "hq", counted: true},
		spec{name: "gd-a", group: "hq/gd", keys: keys}, spec{name: "gd-b", group: "hq/gd", keys: keys}, spec{name: "gd-w", group: "hq/gd", extra: noRegistry})
	hq, a, b := sites["hq-a"], sites["gd-a"], sites["gd-b"]
	const size = 4 * mib
	hq.link.throttle(mib)
	digest := push(t, hq, "app/web:1", image(t, size, 1))
	one, other := a, b
	eventually(t, "one of them has begun", func() error {
		if b.received() > a.received() {
			one, other = b, a
		}
		if one.received() < mib/2 {
			return fmt.Errorf("%s has %v bytes", one.name, one.received())
		}
		return nil
	})
	if n := other.received(); n > 0 {
		t.Errorf("%s has taken %v bytes, too", other.name, n)
	}
	one.kill()
	hq.link.free()
	shows(t, other, "app/web:1", digest)
	one.start()
	one.waitReady()
	hq.quiet("app/web:1", digest)
	if n := one.received(); n > 0 {
		t.Errorf("%s took %v bytes of what was there when it came back", one.name, n)
	}
}

// TestSharedStorage_Headquarters: of two members over one storage both notice a push; one revision comes of it, no conflict, and one copy.
func TestSharedStorage_Headquarters(t *testing.T) {
	t.Parallel()
	keys := sharing(t, "nas")
	const often = "sweep: {interval: 1s}\n"
	sites := start(t, spec{name: "hq-a", group: "hq", keys: keys, extra: often}, spec{name: "hq-b", group: "hq", keys: keys, extra: often},
		spec{name: "hq-w", group: "hq", extra: noRegistry}, spec{name: "gd-a", group: "hq/gd"})
	both := []*site{sites["hq-a"], sites["hq-b"]}
	const pushes = 6
	var digest string
	for i := range pushes {
		s := both[i%2]
		digest = push(t, s, "app/web:1", image(t, 1<<16, 2))
		// The registries share their database, so each agent is told.
		for _, other := range both {
			event(t, other, "app/web", "1", digest)
		}
		shows(t, sites["gd-a"], "app/web:1", digest)
	}
	both[1].quiet("app/web:1", digest)
	var published struct {
		Revision uint64
		Copies   int
	}
	both[0].document(&published, "publish", "app/web:1")
	if published.Revision != pushes || published.Copies != 1 {
		t.Errorf("revision %d with %d copies after %d pushes to one storage", published.Revision, published.Copies, pushes)
	}
	var conflicts struct{ Conflicts []any }
	both[0].document(&conflicts, "conflicts")
	if len(conflicts.Conflicts) > 0 {
		t.Errorf("conflicts: %v", conflicts)
	}
	for _, s := range both {
		if n := s.received(); n > 0 {
			t.Errorf("%s took %v bytes of what its registry shows", s.name, n)
		}
	}
}

// event tells an agent of a push, as a registry does.
func event(t testing.TB, s *site, repo, tag, digest string) {
	t.Helper()
	body, err := json.Marshal(map[string]any{"events": []any{map[string]any{
		"id": "1", "timestamp": time.Now().UTC(), "action": "push",
		"target": map[string]any{"mediaType": "application/vnd.docker.distribution.manifest.v2+json", "digest": digest, "repository": repo, "tag": tag},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post("http://"+s.http+"/hooks/distribution", "application/json", strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("the hook of %s says %s", s.name, resp.Status)
	}
}
