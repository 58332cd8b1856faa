package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestAcknowledgedPublishSurvivesItsOrigin: when publish has ended with success, the site that it was pushed to may be lost.
func TestAcknowledgedPublishSurvivesItsOrigin(t *testing.T) {
	t.Parallel()
	sites := start(t,
		spec{name: "hq-a", group: "hq"}, spec{name: "hq-b", group: "hq", counted: true}, spec{name: "hq-c", group: "hq", counted: true}, spec{name: "gd-a", group: "hq/gd"},
	)
	origin := rootOf(t, sites, sites["hq-a"])
	for _, s := range sites {
		if s.link != nil {
			s.link.throttle(16 * mib) // so that not all is done when publish ends
		}
	}
	const ref = "app/web:1"
	digest := push(t, origin, ref, image(t, 4*mib, 2))
	if out, code := origin.ctl("publish", ref); code != 0 {
		t.Fatalf("publish: exit code %d: %s", code, out)
	}
	origin.kill()
	for _, s := range sites {
		if s != origin {
			shows(t, s, ref, digest)
		}
	}
	origin.start()
	origin.waitReady()
	origin.quiet(ref, digest)
}

// TestProvinceWithItsCitiesDownDuringTenPushes: it has all of them soon after its return, and each blob crossed each link once.
func TestProvinceWithItsCitiesDownDuringTenPushes(t *testing.T) {
	sites := start(t,
		spec{name: "hq-a", group: "hq", counted: true},
		spec{name: "gd-a", group: "hq/gd", counted: true}, spec{name: "gd-b", group: "hq/gd", counted: true}, spec{name: "gd-c", group: "hq/gd", counted: true},
		spec{name: "sz-a", group: "hq/gd/sz"}, spec{name: "fs-a", group: "hq/gd/fs"},
	)
	hq := sites["hq-a"]
	down := []*site{sites["gd-a"], sites["gd-b"], sites["gd-c"], sites["sz-a"], sites["fs-a"]}
	var killing sync.WaitGroup
	for _, s := range down {
		killing.Go(s.kill)
	}
	killing.Wait()
	province := func() int64 {
		return sites["gd-a"].link.down.Load() + sites["gd-b"].link.down.Load() + sites["gd-c"].link.down.Load()
	}
	before, within := hq.link.down.Load(), province()

	shared := layer(t, 4*mib)
	blobs := int64(4 * mib)
	digests := map[string]string{}
	for i := range 10 {
		ref := fmt.Sprintf("app/web-%d:%d", i%3, i) // the shared layer is in three repositories
		digests[ref] = push(t, hq, ref, with(t, image(t, 512<<10, 1), shared))
		blobs += 512 << 10
	}
	for _, s := range down {
		s.start()
	}
	begin := time.Now()
	for ref, digest := range digests {
		for _, s := range down {
			eventually(t, s.name+" shows "+ref, func() error { return head(t, s, ref, digest) })
		}
	}
	took := time.Since(begin)
	t.Logf("the cities had all ten %s after they and their province were started", took)
	if took > 20*time.Second {
		t.Errorf("it took %s", took)
	}
	for ref, digest := range digests {
		hq.quiet(ref, digest)
		for _, s := range down {
			whole(t, s, ref, digest)
		}
	}
	between(t, "from headquarters to the province", hq.link.down.Load()-before, blobs, framed(blobs)+chatter)
	// To two fellows and two cities. Each link carries the records and heartbeats of several receivers.
	between(t, "from the province's members", province()-within, 4*blobs, framed(4*blobs)+4*chatter)
}

// TestLargeLayerThroughThreeTiers passes a layer of 512 MiB, which no process holds in memory, to a city.
func TestLargeLayerThroughThreeTiers(t *testing.T) {
	const size = 512 * mib
	sites := start(t, spec{name: "hq-a", group: "hq"}, spec{name: "gd-a", group: "hq/gd"}, spec{name: "sz-a", group: "hq/gd/sz"})
	hq, city := sites["hq-a"], sites["sz-a"]
	begin := time.Now()
	digest := push(t, hq, "app/large:1", generatedImage(t, 1, size, 1))
	pushed := time.Now()
	eventually(t, "the city shows it", func() error { return head(t, city, "app/large:1", digest) })
	arrived := time.Now()
	whole(t, city, "app/large:1", digest)
	t.Logf("made and pushed in %s, at the city %s later, read there in %s; the province's agent had %d MiB resident at most",
		pushed.Sub(begin).Round(time.Millisecond), arrived.Sub(pushed).Round(time.Millisecond), time.Since(arrived).Round(time.Millisecond), sites["gd-a"].peak()/mib)
}

// failing waits until a ref has failed at a site so often that its next attempt is some seconds away, and says when that will be.
func (s *site) failing(ref, at string, attempts int) time.Time {
	s.t.Helper()
	var next time.Time
	eventually(s.t, ref+" fails again and again at "+at, func() error {
		out, _ := s.ctl("where", ref, "-o", "json")
		var w struct {
			Sites []struct {
				Site, State string
				NextAttempt time.Time
				Attempts    int
			}
		}
		if err := json.Unmarshal(out, &w); err != nil {
			return err
		}
		for _, x := range w.Sites {
			if x.Site == at && x.State == "failed" && x.Attempts >= attempts && time.Until(x.NextAttempt) > 5*time.Second {
				next = x.NextAttempt
				return nil
			}
		}
		return fmt.Errorf("%s", out)
	})
	return next
}

// term gives the term of the site's group.
func (s *site) term() (term uint64) {
	s.t.Helper()
	s.waitReady()
	eventually(s.t, "the group has a root", func() error {
		out, _ := s.ctl("tree", s.group, "-o", "json")
		var tree struct {
			Groups []struct {
				Group, Root string
				Term        uint64
			}
		}
		if err := json.Unmarshal(out, &tree); err != nil {
			return err
		}
		for _, g := range tree.Groups {
			if g.Group == s.group && g.Root != "" {
				term = g.Term
				return nil
			}
		}
		return fmt.Errorf("%s", out)
	})
	return term
}

// TestRootKeepsItsOfficeThroughAShortStall: with one member away, a stall of another one that is shorter than what followers bear costs no election.
func TestRootKeepsItsOfficeThroughAShortStall(t *testing.T) {
	sites := start(t, spec{name: "hq-a", group: "hq"}, spec{name: "hq-b", group: "hq"}, spec{name: "hq-c", group: "hq"})
	root := rootOf(t, sites, sites["hq-a"])
	var others []*site
	for _, s := range sites {
		if s != root {
			others = append(others, s)
		}
	}
	others[0].kill()
	for range 3 { // a machine that stalls by itself may spoil one
		before := root.term()
		if err := others[1].cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(600 * time.Millisecond) // the stall
		if err := others[1].cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if after := root.term(); after == before {
			return
		}
	}
	t.Error("an election each time")
}

// TestRegistryThatIsBackIsUsedAtOnce: what failed does not wait for its next attempt.
func TestRegistryThatIsBackIsUsedAtOnce(t *testing.T) {
	t.Parallel()
	sites := start(t, spec{name: "hq-a", group: "hq"}, spec{name: "gd-a", group: "hq/gd", registry: true})
	hq, gd := sites["hq-a"], sites["gd-a"]
	gd.own.kill()
	digest := push(t, hq, "app/web:1", image(t, mib, 1))
	treeSays(t, hq, "gd-a", "degraded", "registry: ", "connection refused")
	next := hq.failing("app/web:1", "gd-a", 6)
	begin := time.Now()
	gd.own.start()
	within(t, patience, "it arrives", func() error { return head(t, gd, "app/web:1", digest) })
	t.Logf("delivered %s after the registry's start, %s before the next attempt", time.Since(begin), time.Until(next))
	if time.Now().After(next) {
		t.Errorf("delivered %s after its next attempt was due", time.Since(next))
	}
	shows(t, gd, "app/web:1", digest)
	treeSays(t, hq, "gd-a", "synced")
}

// TestPushBeforeARegistrysDeathIsFound: what a registry acknowledged and did not tell of is published when it is back.
func TestPushBeforeARegistrysDeathIsFound(t *testing.T) {
	t.Parallel()
	sites := start(t, spec{name: "hq-a", group: "hq", registry: true}, spec{name: "gd-a", group: "hq/gd"})
	hq, gd := sites["hq-a"], sites["gd-a"]
	// A registry at the same folder that tells nobody.
	hook := hq.own.Hook
	hq.own.kill()
	hq.own.Hook = ""
	hq.own.start()
	digest := push(t, hq, "app/web:1", image(t, mib, 1))
	hq.own.kill()
	treeSays(t, hq, "hq-a", "degraded", "registry: ")
	hq.own.Hook = hook
	hq.own.start()
	within(t, 20*time.Second, "it arrives", func() error { return head(t, gd, "app/web:1", digest) })
}

// TestPushToASiteWithoutACatalogIsFound: a push of which an agent hears before it has read its catalog is published when it has.
func TestPushToASiteWithoutACatalogIsFound(t *testing.T) {
	t.Parallel()
	sites := start(t, spec{name: "hq-a", group: "hq", registry: true}, spec{name: "hq-b", group: "hq"})
	a, b := sites["hq-a"], sites["hq-b"]
	a.kill()
	b.kill()
	a.start() // without hq-b there is no root, and nothing that is known to be committed
	eventually(t, "hq-a serves", func() error {
		resp, err := http.Get("http://" + a.http + "/healthz")
		if err == nil {
			err = resp.Body.Close()
		}
		return err
	})
	digest := push(t, a, "app/web:1", image(t, mib, 1))
	eventually(t, "hq-a looks at it", func() error {
		a.mu.Lock()
		defer a.mu.Unlock()
		if !strings.Contains(a.log.String(), "app/web:1") {
			return errors.New("not yet")
		}
		return nil
	})
	b.start()
	within(t, 30*time.Second, "it is published", func() error { return head(t, b, "app/web:1", digest) })
}

// TestParentThatIsBackIsAskedAtOnce: a child whose parent was away in the middle of a blob goes on when it is back.
func TestParentThatIsBackIsAskedAtOnce(t *testing.T) {
	t.Parallel()
	sites := start(t, spec{name: "hq-a", group: "hq", counted: true}, spec{name: "gd-a", group: "hq/gd"})
	hq, gd := sites["hq-a"], sites["gd-a"]
	hq.link.throttle(8 * mib)
	digest := push(t, hq, "app/web:1", image(t, 16*mib, 1))
	hq.link.crossing(t, 0, 4*mib)
	hq.kill()
	hq.link.free()
	next := gd.failing("app/web:1", "gd-a", 6)
	begin := time.Now()
	hq.start()
	within(t, patience, "it arrives", func() error { return head(t, gd, "app/web:1", digest) })
	t.Logf("delivered %s after the parent's start, %s before the next attempt", time.Since(begin), time.Until(next))
	if time.Now().After(next) {
		t.Errorf("delivered %s after its next attempt was due", time.Since(next))
	}
	shows(t, gd, "app/web:1", digest)
}
