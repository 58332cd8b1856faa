package integration

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func stateAt(t testing.TB, asked *site, ref, name string) string {
	t.Helper()
	for _, s := range asked.where(ref) {
		if s.Site == name {
			return s.State
		}
	}
	return "not listed"
}

// TestKeepTheNewest: a province shows the newest tags of each repository, removes those that it delivered when newer ones come, and takes them back when these go. What somebody put there is not touched,
// and a city below that wants all gets all.
func TestKeepTheNewest(t *testing.T) {
	t.Parallel()
	const often = "sweep: {interval: 2s}\n"
	sites := start(t,
		spec{name: "hq-a", group: "hq", extra: often},
		spec{name: "gd-a", group: "hq/gd", extra: often + "subscribe: {keep: 3}\ndrift: {changed: report}\n"},
		spec{name: "sz-a", group: "hq/gd/sz", extra: often},
	)
	hq, gd, sz := sites["hq-a"], sites["gd-a"], sites["sz-a"]
	digests := map[string]string{}
	tag := func(n int) string { return fmt.Sprintf("app/web:v%d", n) }
	publish := func(ref string) {
		t.Helper()
		digests[ref] = push(t, hq, ref, image(t, 1<<16, 1))
		shows(t, sz, ref, digests[ref])
	}
	cosign := func(n int) string {
		return "app/web:" + strings.Replace(digests[tag(n)], ":", "-", 1) + ".sig"
	}
	for n := 1; n <= 3; n++ {
		publish(tag(n))
		publish(cosign(n))
		shows(t, gd, tag(n), digests[tag(n)])
	}
	shows(t, gd, cosign(1), digests[cosign(1)])
	other := push(t, gd, "app/web:local", image(t, 1<<10, 1))
	drifted := push(t, gd, tag(2), image(t, 1<<10, 1))
	eventually(t, "the drift is seen", func() error {
		out, _ := gd.ctl("events")
		if !strings.Contains(string(out), "Drift") {
			return errors.New(string(out))
		}
		return nil
	})

	for n := 4; n <= 6; n++ {
		publish(tag(n))
	}
	goes := func(refs ...string) {
		t.Helper()
		for _, ref := range refs {
			eventually(t, ref+" goes", func() error { return gone(t, gd, ref) })
		}
	}
	goes(tag(1), tag(3), cosign(1), cosign(3))
	for n := 4; n <= 6; n++ {
		shows(t, gd, tag(n), digests[tag(n)])
	}
	shows(t, gd, "app/web:local", other)
	shows(t, gd, tag(2), drifted)
	if got := holds(t, gd, "app/web"); len(got) > 0 {
		t.Errorf("what is not kept is held: %v", got)
	}
	for _, asked := range []*site{hq, gd} {
		eventually(t, "where says so at "+asked.name, func() error {
			if s := stateAt(t, asked, tag(1), "gd-a"); s != "unsubscribed" {
				return fmt.Errorf("v1 is %s", s)
			}
			if s := stateAt(t, asked, tag(6), "gd-a"); s != "delivered" {
				return fmt.Errorf("v6 is %s", s)
			}
			if s := stateAt(t, asked, tag(1), "sz-a"); s != "delivered" {
				return fmt.Errorf("v1 at sz-a is %s", s)
			}
			return nil
		})
	}

	// The newest is deleted: the one before comes back, and its signature.
	if _, code := hq.ctl("unpublish", tag(6)); code != 0 {
		t.Fatal("unpublish")
	}
	goes(tag(6))
	shows(t, gd, tag(3), digests[tag(3)])
	shows(t, gd, cosign(3), digests[cosign(3)])
	shows(t, sz, tag(1), digests[tag(1)])

	// Fewer, then all are wanted.
	keep := func(n int) {
		gd.stop()
		gd.extra = strings.Replace(gd.extra, gd.extra[strings.Index(gd.extra, "keep: "):strings.Index(gd.extra, "}\ndrift")], fmt.Sprintf("keep: %d", n), 1)
		gd.start()
		gd.waitReady()
	}
	keep(1)
	goes(tag(3), tag(4), cosign(3))
	shows(t, gd, tag(5), digests[tag(5)])
	keep(0)
	for _, n := range []int{1, 3, 4, 5} {
		shows(t, gd, tag(n), digests[tag(n)])
	}
	shows(t, gd, cosign(1), digests[cosign(1)])
	shows(t, gd, "app/web:local", other)
	if tags, err := remote.List(repository(t, sz, "app/web")); err != nil || len(tags) != 8+len(holds(t, sz, "app/web")) {
		t.Errorf("the city shows %v, %v", tags, err) // v1 to v5 and three signatures
	}
}

// TestKeepEndsADelivery: what falls out of what is kept while it is on its way is not fetched to its end.
func TestKeepEndsADelivery(t *testing.T) {
	t.Parallel()
	const size = 16 * mib
	sites := start(t, spec{name: "hq-a", group: "hq"},
		spec{name: "gd-a", group: "hq/gd", extra: "subscribe: {keep: 1}\nlimits: {download: 8Mbps}\nsweep: {interval: 2s}\n"})
	hq, gd := sites["hq-a"], sites["gd-a"]
	push(t, hq, "app/web:v1", image(t, size, 1))
	eventually(t, "the first is on its way", func() error {
		for _, w := range hq.where("app/web:v1") {
			if w.Site == "gd-a" && w.State == "delivering" && w.BytesLeft > 0 && w.BytesLeft < size-mib {
				return nil
			}
		}
		return errors.New("it is not")
	})
	digest := push(t, hq, "app/web:v2", image(t, 1<<10, 1))
	shows(t, gd, "app/web:v2", digest)
	eventually(t, "nothing is left to do", func() error {
		var tree struct {
			Groups []struct {
				Group   string
				Members []struct {
					State     string
					BytesLeft int64
				}
			}
		}
		gd.document(&tree, "tree")
		if m := tree.Groups[0].Members[0]; m.State != "synced" || m.BytesLeft != 0 {
			return fmt.Errorf("%+v", m)
		}
		return nil
	})
	eventually(t, "nothing is fetched any more", func() error {
		if n := gd.metric("fanout_transfer_active_flights"); n > 0 {
			return fmt.Errorf("%v flights", n)
		}
		return nil
	})
	if n := gd.metric(`fanout_transfer_received_bytes_total{source="upstream"}`); n >= size {
		t.Errorf("%v bytes of %d have come", n, size)
	}
	if err := gone(t, gd, "app/web:v1"); err != nil {
		t.Error(err)
	}
	if s := stateAt(t, hq, "app/web:v1", "gd-a"); s != "unsubscribed" {
		t.Errorf("where says %s", s)
	}
}
