package integration

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/fanout-io/fanout/pkg/registry/harbortest"
)

// tagPuts matches the puts of a tag in a repository; content and holds go on being taken.
func tagPuts(repo, tag string) func(*http.Request) bool {
	return harbortest.On("PUT", "/v2/"+repo+"/manifests/"+tag)
}

// nowShows waits until the fake shows a digest under a ref.
func (f *fakeRegistry) nowShows(ref, digest string) {
	f.t.Helper()
	repo, tag, _ := strings.Cut(ref, ":")
	eventually(f.t, "the fake shows "+ref, func() error {
		if got := f.Tag(repo, tag); got != digest {
			return fmt.Errorf("it shows %q, not %s", got, digest)
		}
		return nil
	})
}

// TestPromote_RegistryFails: a registry refuses a tag in the first wave. Without maxFailures the rollout pauses, ends or goes back by onFailure; with a percentage that allows it, the wave goes on.
func TestPromote_RegistryFails(t *testing.T) {
	t.Parallel()
	fake := serveFake(t, "oci", harbortest.Config{Knobs: harbortest.Knobs{Plain: true}})
	sites := start(t, spec{name: "hq-a", group: "hq"}, spec{name: "gd-a", group: "hq/gd", extra: fake.extra}, spec{name: "hn-a", group: "hq/hn"})
	hq, hn := sites["hq-a"], sites["hn-a"]
	words := []string{"pause", "abort", "rollback", "within"}
	old, release := image(t, 1<<16, 1), image(t, 1<<16, 2)
	was, is := "", ""
	for _, w := range words {
		was = push(t, hq, "prod/"+w+":stable", old)
	}
	for _, w := range words {
		fake.nowShows("prod/"+w+":stable", was)
		shows(t, hn, "prod/"+w+":stable", was)
	}
	promotionAt(t, hq).staged()
	by := map[string]*promotion{}
	mend := map[string]func(){}
	for _, w := range words {
		p := promotionAt(t, hq)
		by[w] = p
		is = push(t, hq, "prod/"+w+":stable", release)
		mend[w] = fake.AddFault(harbortest.Fault{Match: tagPuts("prod/"+w, "stable"), Status: 500, Code: "UNKNOWN", Message: "the database is down"})
		on, most := w, "0"
		if w == "within" {
			on, most = "abort", "50%"
		}
		p.begin(planOf("{name: provinces, groups: [hq/gd, hq/hn], maxConcurrent: 100%, maxFailures: "+most+", onFailure: "+on+"}", "{name: rest, groups: [hq], gates: {before: [{approval: {}}]}}"),
			"", "prod/"+w+":stable@"+is)
	}

	r := by["pause"].in("paused", 0)
	if err := says(r.GetReason(), "wave provinces", "failed are 1 of at most 0 groups", "hq/gd"); err != nil {
		t.Error(err)
	}
	by["pause"].group("hq/gd", "failed", "500", "UNKNOWN", "the database is down")
	by["abort"].in("failed", 0)
	by["rollback"].in("rolled-back", 0)
	by["within"].in("awaiting-approval", 1)
	by["within"].group("hq/gd", "failed", "500", "UNKNOWN", "the database is down")
	by["within"].group("hq/hn", "succeeded")
	by["abort"].watched(1)
	for _, w := range words {
		if got := fake.Tag("prod/"+w, "stable"); got != was {
			t.Errorf("%s: the registry that fails shows %s", w, got)
		}
		mend[w]()
	}
	// What was released comes to be shown after all, and what was taken back does not.
	for _, w := range []string{"abort", "pause", "within"} {
		fake.nowShows("prod/"+w+":stable", is)
		shows(t, hn, "prod/"+w+":stable", is)
		by[w].group("hq/gd", "succeeded")
	}
	by["pause"].in("paused", 0)
	by["pause"].steer("resume")
	by["pause"].in("awaiting-approval", 1)
	by["pause"].steer("approve")
	by["pause"].in("succeeded", 2)
	by["within"].steer("approve")
	by["within"].in("succeeded", 2)
	by["within"].watched(0)
	by["rollback"].watched(1)
	fake.nowShows("prod/rollback:stable", was)
	shows(t, hn, "prod/rollback:stable", was)
}
