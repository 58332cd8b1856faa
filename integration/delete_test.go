package integration

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

func gone(t testing.TB, s *site, ref string) error {
	_, err := remote.Head(reference(t, s, ref))
	var te *transport.Error
	if errors.As(err, &te) && te.StatusCode == http.StatusNotFound {
		return nil
	}
	return fmt.Errorf("%s still shows %s (%v)", s.name, ref, err)
}

// TestDeletionTravelsWherePolicySaysSo: with publish.deletes a tag that is deleted at headquarters goes everywhere, and its neighbours stay.
func TestDeletionTravelsWherePolicySaysSo(t *testing.T) {
	t.Parallel()
	sites := start(t, spec{name: "hq-a", group: "hq", extra: "publish: {deletes: propagate}\n"}, spec{name: "gd-a", group: "hq/gd"})
	img := image(t, 1<<16, 1)
	digest := push(t, sites["hq-a"], "app/web:1", img)
	push(t, sites["hq-a"], "app/web:2", img)
	shows(t, sites["gd-a"], "app/web:1", digest)
	shows(t, sites["gd-a"], "app/web:2", digest)
	if err := remote.Delete(reference(t, sites["hq-a"], "app/web:1")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the deletion arrives", func() error { return gone(t, sites["gd-a"], "app/web:1") })
	shows(t, sites["gd-a"], "app/web:2", digest)
	// Pushed again, it is back.
	push(t, sites["hq-a"], "app/web:1", img)
	shows(t, sites["gd-a"], "app/web:1", digest)
}

// TestDeletedSignature: a signature of cosign's scheme is a tag, whose deletion at headquarters travels as any does: with publish.deletes propagate it goes everywhere, with ignore it stays elsewhere. A referrer stays elsewhere
// in either case. The image is touched in none.
func TestDeletedSignature(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{"propagate", "ignore"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			sites := start(t, spec{name: "hq-a", group: "hq", extra: "publish: {deletes: " + policy + "}\nsweep: {interval: 2s}\n"}, spec{name: "gd-a", group: "hq/gd"})
			hq, gd := sites["hq-a"], sites["gd-a"]
			digest := push(t, hq, "app/web:1", image(t, 1<<14, 1))
			tag := "app/web:" + strings.Replace(digest, ":", "-", 1) + ".sig"
			signature := push(t, hq, tag, image(t, 1<<10, 1))
			referrer := sign(t, hq, "app/web", digest, "a referrer")
			for ref, d := range map[string]string{"app/web:1": digest, tag: signature} {
				shows(t, gd, ref, d)
				hq.quiet(ref, d)
			}
			listed(t, sites, "app/web", digest, referrer)
			hq.quiet("app/web:1", digest)

			if err := remote.Delete(reference(t, hq, tag)); err != nil {
				t.Fatal(err)
			}
			deleteManifest(t, hq, "app/web", referrer)
			overwrite(t, hq, "app/web", digest)
			if policy == "propagate" {
				eventually(t, "the signature goes in the province", func() error { return gone(t, gd, tag) })
			} else {
				refState(t, hq, tag, "hq-a", "drifted", "deletions do not travel")
				shows(t, gd, tag, signature)
			}
			eventually(t, "the referrer's deletion is told of", func() error {
				out, _ := hq.ctl("events")
				return says(string(out), referrer)
			})
			if err := gone(t, hq, tag); err != nil {
				t.Error(err)
			}
			listed(t, only(gd), "app/web", digest, referrer)
			for _, s := range sites {
				shows(t, s, "app/web:1", digest)
			}
		})
	}
}
