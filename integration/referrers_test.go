package integration

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// only gives one site as a set of sites.
func only(s *site) map[string]*site { return map[string]*site{s.name: s} }

// overwrite makes a fallback tag list nothing, as a client does that knows of no other's entries.
func overwrite(t testing.TB, s *site, repo, subject string) {
	t.Helper()
	empty := raw{types.OCIImageIndex, fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[]}`, types.OCIImageIndex)}
	if err := remote.Put(reference(t, s, repo+":"+strings.Replace(subject, ":", "-", 1)), empty); err != nil {
		t.Fatal(err)
	}
}

// TestReferrersWrittenOverBelow: a client in a city writes over the list of an image's signatures; they are entered again, and what it added itself stays.
func TestReferrersWrittenOverBelow(t *testing.T) {
	t.Parallel()
	sites := start(t, spec{name: "hq-a", group: "hq"}, spec{name: "gd-a", group: "hq/gd"}, spec{name: "sz-a", group: "hq/gd/sz"})
	const repo = "app/signed"
	subject := push(t, sites["hq-a"], repo+":1", image(t, 1<<14, 1))
	first := sign(t, sites["hq-a"], repo, subject, "first")
	second := sign(t, sites["hq-a"], repo, subject, "second")
	listed(t, sites, repo, subject, first, second)
	sites["hq-a"].quiet(repo+":1", subject)

	overwrite(t, sites["sz-a"], repo, subject)
	listed(t, sites, repo, subject, first, second)
}

// TestDeletedReferrer: a signature that is deleted at one headquarters registry does not come back there, and stays elsewhere.
func TestDeletedReferrer(t *testing.T) {
	t.Parallel()
	sites := start(t, spec{name: "hq-a", group: "hq", extra: "sweep: {interval: 2s}\n"}, spec{name: "gd-a", group: "hq/gd"})
	hq := sites["hq-a"]
	const repo = "app/signed"
	subject := push(t, hq, repo+":1", image(t, 1<<14, 1))
	stays, goes := sign(t, hq, repo, subject, "stays"), sign(t, hq, repo, subject, "goes")
	listed(t, sites, repo, subject, stays, goes)
	hq.quiet(repo+":1", subject)

	deleteManifest(t, hq, repo, goes)
	overwrite(t, hq, repo, subject)
	// The one that is still there was only written over, and is entered again. By then the other was looked at, too.
	listed(t, only(hq), repo, subject, stays)
	eventually(t, "the deletion is told of", func() error {
		out, _ := hq.ctl("events")
		if !strings.Contains(string(out), goes) {
			return errors.New("no such event")
		}
		return nil
	})
	listed(t, only(hq), repo, subject, stays)
	listed(t, only(sites["gd-a"]), repo, subject, stays, goes)
	if _, _, err := hq.read(repo, "manifests", goes); err == nil {
		t.Error("the deleted signature is back at headquarters")
	}
}

func deleteManifest(t testing.TB, s *site, repo, digest string) {
	t.Helper()
	err := remote.Delete(reference(t, s, repo+"@"+digest))
	var te *transport.Error
	if err != nil && !(errors.As(err, &te) && te.StatusCode == http.StatusAccepted) {
		t.Fatal(err)
	}
}
