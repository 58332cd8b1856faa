package integration

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"
)

// failures are the refs' events Failed that a site remembers.
func (s *site) failures() (list []string) {
	s.t.Helper()
	out, code := s.ctl("events", "-o", "json")
	if code != 0 {
		s.t.Fatalf("events of %s: %d: %s", s.name, code, out)
	}
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var ev struct{ Reason, Ref, Message string }
		if err := dec.Decode(&ev); err != nil {
			s.t.Fatalf("events of %s: %v", s.name, err)
		}
		if ev.Reason == "Failed" {
			list = append(list, ev.Ref+": "+ev.Message)
		}
	}
	return list
}

// TestManifestsComeThroughTheCarrier: manifests that don't come with a record (here one is too large for it; others where the record's root has not got it itself) are asked for by all
// members of a province at once. Those that ask the carrier before it has them get them when they come: nothing fails, and each crosses the link to headquarters once.
func TestManifestsComeThroughTheCarrier(t *testing.T) {
	t.Parallel()
	const group, size = "hq/gd", 700 << 10 // pkg/tree sends no more than half a MiB along with a record
	sites := start(t, spec{name: "hq-a", group: "hq", counted: true}, spec{name: "gd-a", group: group}, spec{name: "gd-b", group: group}, spec{name: "gd-c", group: group})
	hq := sites["hq-a"]
	carries(t, hq, group, "")
	large := make([]byte, size/2)
	if _, err := rand.Read(large); err != nil {
		t.Fatal(err)
	}
	before := hq.link.down.Load()
	hq.link.throttle(300 << 10) // some seconds for the manifest, in which the others ask
	digest := artifact(t, hq, "app/large", "1", fmt.Sprintf(`"annotations": {"x": %q},`, hex.EncodeToString(large)), types.OCILayer, "{}", "one")
	hq.quiet("app/large:1", digest)
	between(t, "a manifest for three members", hq.link.down.Load()-before, size, framed(size))
	for _, s := range sites {
		if list := s.failures(); len(list) > 0 {
			t.Errorf("%s: %q", s.name, list)
		}
	}
}
