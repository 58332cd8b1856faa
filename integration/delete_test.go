package integration

import (
	"errors"
	"fmt"
	"net/http"
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
