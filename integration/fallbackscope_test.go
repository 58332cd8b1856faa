package integration

import (
	"sync"
	"testing"
	"time"
)

// keeps polls a ref at a site until the function that it returns is called, which fails if the ref was gone, or moved back, at any time. Digests are in the order in which they may be shown.
func keeps(t testing.TB, s *site, ref string, digests ...string) (end func()) {
	t.Helper()
	stop, done := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var wrong error
	looks := 0
	go func() {
		defer close(done)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		at := 0
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			i, err := at, error(nil)
			for ; i < len(digests); i++ {
				if err = head(t, s, ref, digests[i]); err == nil {
					break
				}
			}
			if looks++; err != nil && wrong == nil {
				wrong = err
			}
			at = min(i, len(digests)-1)
		}
	}()
	end = func() {
		once.Do(func() {
			close(stop)
			<-done
			if wrong != nil || looks == 0 {
				t.Errorf("%s at %s, looked at %d times: %v", ref, s.name, looks, wrong)
			}
		})
	}
	t.Cleanup(end)
	return end
}

// TestFallbackParentWithAnotherScope: a district whose city is gone attaches to the province, which subscribes to more than the district asks for, and to less. It gets what it asks for and nothing else,
// the province fetching what it lacks itself; what the district has stays all the time, also while the city, which knows nothing of what was asked for since, is its parent again.
func TestFallbackParentWithAnotherScope(t *testing.T) {
	t.Parallel()
	sites := start(t,
		spec{name: "hq-a", group: "hq", counted: true},
		spec{name: "gd-a", group: "hq/gd", counted: true, extra: "subscribe: {repositories: [\"app/**\"]}\n"},
		spec{name: "sz-a", group: "hq/gd/sz", counted: true, extra: "subscribe: {repositories: [\"app/web\"]}\n"},
	)
	hq, province, city := sites["hq-a"], sites["gd-a"], sites["sz-a"]
	district := lay(t, city, spec{name: "ft-a", group: "hq/gd/sz/ft", extra: "subscribe: {repositories: [\"app/web\"]}\n"})
	district.fallback = []string{province.advertised()}
	district.start()
	t.Cleanup(district.stop)
	district.waitReady()
	publish := func(ref string, at ...*site) string {
		t.Helper()
		digest := push(t, hq, ref, image(t, 256<<10, 1))
		for _, s := range at {
			shows(t, s, ref, digest)
		}
		return digest
	}
	web := publish("app/web:1", district, city, province)
	publish("app/api:1", province)
	db := publish("db/x:1", hq)

	// The province has more than the district asks for, and less: it asks headquarters for what it lacks, each byte of which comes once over either link.
	city.kill()
	district.resubscribed("app/web", "db/**")
	endWeb := keeps(t, district, "app/web:1", web)
	down, further := hq.link.down.Load(), province.link.down.Load()
	attachedTo(t, district, "hq/gd")
	shows(t, district, "db/x:1", db)
	shows(t, province, "db/x:1", db)
	between(t, "from headquarters", hq.link.down.Load()-down, 256<<10, framed(256<<10)+chatter)
	between(t, "from the province", province.link.down.Load()-further, 256<<10, framed(256<<10)+chatter)
	publish("app/api:2", province)
	publish("app/web:2", district, province)
	for _, ref := range []string{"app/api:1", "app/api:2"} {
		if err := gone(t, district, ref); err != nil {
			t.Errorf("out of its scope: %v", err)
		}
	}
	endDB := keeps(t, district, "db/x:1", db)

	// The city comes back, and asks for db only when the district has told it.
	before := city.link.down.Load()
	city.start()
	attachedTo(t, district, "hq/gd/sz")
	shows(t, city, "db/x:1", db)
	shows(t, city, "app/web:2", publish("app/web:2", district))
	endDB()
	moved := publish("db/x:1", district)
	endWeb()
	if n := city.link.down.Load() - before; n > 2*framed(256<<10)+2*chatter {
		t.Errorf("%d bytes from the city to the district, for two images of %d", n, 256<<10)
	}
	for ref, digest := range map[string]string{"app/web:1": web, "db/x:1": moved} {
		hq.quiet(ref, digest)
	}
	if out, code := district.ctl("verify", "ft-a", "-o", "json"); code != 0 {
		t.Errorf("verify: exit %d: %s", code, out)
	}
}
