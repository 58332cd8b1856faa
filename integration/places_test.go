package integration

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/fanout-io/fanout/pkg/registry/harbortest"
)

// refusal is an answer of a registry, and what must be said of it.
type refusal struct {
	name  string
	fault harbortest.Fault
	words []string
}

// refusals are the answers that a registry may give to a step of a delivery.
func refusals() []refusal {
	var all []refusal
	for _, f := range []harbortest.Fault{
		{Status: 401, Code: "UNAUTHORIZED", Message: "the robot has expired"},
		{Status: 403, Code: "DENIED", Message: "the policy forbids it"},
		{Status: 404, Code: "NAME_UNKNOWN", Message: "no such place"},
		{Status: 413, Code: "SIZE_INVALID", Message: "more than the proxy takes"},
		{Status: 429, Code: "TOOMANYREQUESTS", Message: "slow down", RetryAfter: "4"},
		{Status: 500, Code: "UNKNOWN", Message: "the database is down"},
	} {
		all = append(all, refusal{fmt.Sprint(f.Status), f, []string{fmt.Sprint(f.Status), f.Code, f.Message}})
	}
	all[4].words = append(all[4].words, "retry after 4s")
	return append(all, refusal{"hang", harbortest.Fault{Hang: true}, []string{"the registry hangs"}})
}

// strikes notes when a fault struck.
type strikes struct {
	mu sync.Mutex
	at []time.Time
}

func (s *strikes) noting(match func(*http.Request) bool) func(*http.Request) bool {
	return func(r *http.Request) bool {
		if !match(r) {
			return false
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.at = append(s.at, time.Now())
		return true
	}
}

// apart fails the test unless there were two attempts, and each began so long after the requests of the one before it.
func (s *strikes) apart(t testing.TB, d time.Duration) {
	t.Helper()
	var at []time.Time
	eventually(t, "a second attempt", func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if at = s.at; len(at) < 2 || at[len(at)-1].Sub(at[0]) < d {
			return fmt.Errorf("%d requests", len(at))
		}
		return nil
	})
	for i := range at[1:] {
		if gap := at[i+1].Sub(at[i]); gap > 500*time.Millisecond && gap < d {
			t.Errorf("asked again after %s, in spite of Retry-After: %s", gap, d)
		}
	}
}

// TestRefusalsByPlace lets the registry of a province refuse each step of a delivery in each way: a read, an upload, a manifest.
func TestRefusalsByPlace(t *testing.T) {
	t.Parallel()
	on := harbortest.On
	hq := start(t, spec{name: "hq-a", group: "hq"})["hq-a"]
	for _, place := range []struct {
		name  string
		match func(repo string) func(*http.Request) bool
	}{
		{"read", func(p string) func(*http.Request) bool {
			return func(r *http.Request) bool {
				return (r.Method == http.MethodHead || r.Method == http.MethodGet) && strings.Contains(r.URL.Path, p)
			}
		}},
		{"upload", func(p string) func(*http.Request) bool { return on(http.MethodPost, p) }},
		{"bytes", writes},
		{"manifest", func(p string) func(*http.Request) bool { return on(http.MethodPut, p+"manifests/") }},
	} {
		t.Run(place.name, func(t *testing.T) {
			t.Parallel()
			fake := serveFake(t, "oci", harbortest.Config{Knobs: harbortest.Knobs{Plain: true}})
			gd := lay(t, hq, spec{name: "gd-" + place.name, group: "hq/" + place.name, extra: fake.extra})
			gd.start()
			t.Cleanup(gd.stop)
			gd.waitReady()
			for _, r := range refusals() {
				if place.name == "read" && r.name == "404" {
					continue // that is: there is no such tag yet
				}
				words := r.words
				repo := place.name + "-" + r.name
				fault, seen := r.fault, &strikes{}
				fault.Match = seen.noting(place.match("/v2/" + repo + "/app/"))
				remove := sync.OnceFunc(fake.AddFault(fault))
				t.Cleanup(remove)
				img := image(t, 64<<10, 1)
				push(t, hq, repo+"/app:1", img)
				other := image(t, 16<<10, 1)
				begin := time.Now()
				push(t, hq, repo+"/other:1", other)
				fake.holds(t, repo+"/other:1", other)
				if took := time.Since(begin); took > 20*time.Second {
					t.Errorf("%s: another repository's image was held up for %s", r.name, took)
				}
				fails(t, hq, gd.name, repo+"/app:1", words...)
				treeSays(t, hq, gd.name, "degraded", append([]string{repo + "/app:1: "}, words...)...)
				if fault.RetryAfter != "" {
					seen.apart(t, 4*time.Second)
				}
				remove()
				fake.holds(t, repo+"/app:1", img)
				treeSays(t, hq, gd.name, "synced")
			}
		})
	}
}

// TestRefusalsOnListing lets the registry of headquarters refuse to list its repositories, or the tags of one, in each way.
func TestRefusalsOnListing(t *testing.T) {
	t.Parallel()
	for _, place := range []struct{ name, path string }{{"repositories", "/v2/_catalog"}, {"tags", "/v2/app/a/tags/list"}} {
		t.Run(place.name, func(t *testing.T) {
			t.Parallel()
			fake := serveFake(t, "oci", harbortest.Config{Knobs: harbortest.Knobs{Plain: true}})
			sites := start(t, spec{name: "hq-a", group: "hq", extra: fake.extra + "sweep: {interval: 1s}\n"}, spec{name: "gd-a", group: "hq/gd"})
			hq := sites["hq-a"]
			at, auth := &site{name: "fake", reg: fake.addr}, remote.WithAuth(&authn.Basic{Username: fake.Username(), Password: fake.Password()})
			put := func(ref string) (digest string) {
				img := image(t, 16<<10, 1)
				if err := remote.Write(reference(t, at, ref), img, auth); err != nil {
					t.Fatal(err)
				}
				d, err := img.Digest()
				if err != nil {
					t.Fatal(err)
				}
				return d.String()
			}
			shows(t, sites["gd-a"], "app/a:first", put("app/a:first"))
			for _, r := range refusals() {
				if place.name == "tags" && r.name == "404" {
					continue // that is: it has no tags left
				}
				fault, seen := r.fault, &strikes{}
				fault.Match = seen.noting(harbortest.On(http.MethodGet, place.path))
				remove := sync.OnceFunc(fake.AddFault(fault))
				t.Cleanup(remove)
				digest := put("app/a:" + r.name)
				treeSays(t, hq, "hq-a", "degraded", append([]string{"sweep: ", "next attempt"}, r.words...)...)
				if place.name == "tags" { // what is listed after it
					ref := "app/b:" + r.name
					shows(t, sites["gd-a"], ref, put(ref))
				}
				if fault.RetryAfter != "" && place.name == "repositories" {
					seen.apart(t, 4*time.Second)
				}
				remove()
				shows(t, sites["gd-a"], "app/a:"+r.name, digest)
				treeSays(t, hq, "hq-a", "synced")
			}
		})
	}
}
