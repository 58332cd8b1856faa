package integration

import (
	"testing"
)

// TestStaged_OtherRegistries: staged content, its promotion and its rollback where two members share a storage, and where the registry is a process of its own.
func TestStaged_OtherRegistries(t *testing.T) {
	t.Parallel()
	keys := sharing(t, "nas")
	sites := start(t, spec{name: "hq-a", group: "hq", counted: true},
		spec{name: "gd-a", group: "hq/gd", keys: keys}, spec{name: "gd-b", group: "hq/gd", keys: keys}, spec{name: "gd-w", group: "hq/gd", extra: noRegistry},
		spec{name: "hn-a", group: "hq/hn", registry: true})
	hq, a, b, own := sites["hq-a"], sites["gd-a"], sites["gd-b"], sites["hn-a"]
	const ref = "prod/web:stable"
	const size, layers = mib, 2
	p := promotionAt(t, hq)
	was := push(t, hq, ref, image(t, 1<<16, 1))
	hq.quiet(ref, was)
	p.staged()
	before := a.received() + b.received()
	stop := unseen(t, ref, was, a, b, own)
	is := push(t, hq, ref, image(t, size, layers))
	hq.held(ref, "gd-a", "gd-b", "hn-a")
	if got := a.received() + b.received() - before; got < size*layers || got > size*layers+chatter {
		t.Errorf("the members of a shared storage took %v bytes of %d", got, size*layers)
	}
	if h := holds(t, own, "prod/web"); len(h) == 0 {
		t.Error("the registry of its own has no hold")
	}
	stop()
	taken := a.received() + b.received() + own.received()
	p.begin(planOf("{name: own, groups: [hq/hn]}", `{name: rest, groups: ["**"]}`), "", ref+"@"+is)
	p.in("succeeded", 2)
	for _, s := range []*site{a, b, own} {
		shows(t, s, ref, is)
	}
	own.own.kill() // what is held outlives its registry's process
	own.own.start()
	p.steer("rollback")
	p.in("rolled-back", 2)
	for _, s := range []*site{a, b, own} {
		shows(t, s, ref, was)
	}
	if got := a.received() + b.received() + own.received() - taken; got > 0 {
		t.Errorf("%v bytes of blobs were taken to move tags", got)
	}
}
