package integration

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func deleteTag(t testing.TB, s *site, ref string) {
	t.Helper()
	if err := remote.Delete(reference(t, s, ref)); err != nil {
		t.Fatal(err)
	}
}

// TestDeletedAtOneEndPushedAtTheOther: two masters cannot hear of each other, and deletions travel. A push outweighs a deletion, whichever end made which; where nobody pushed, the deletion counts at both.
func TestDeletedAtOneEndPushedAtTheOther(t *testing.T) {
	t.Parallel()
	const policy = "publish: {deletes: propagate}\n"
	sites := start(t,
		spec{name: "hq-a", group: "hq", registry: true, extra: policy}, spec{name: "hq-b", group: "hq", registry: true, extra: policy},
		spec{name: "hq-w", group: "hq", extra: "registry: {type: none}\n" + policy},
		spec{name: "gd-a", group: "hq/gd"},
	)
	a, b, province := sites["hq-a"], sites["hq-b"], sites["gd-a"]
	for _, ref := range []string{"app/web:gone-at-b", "app/web:pushed-at-b", "app/web:only-gone"} {
		a.quiet(ref, push(t, a, ref, image(t, 1<<14, 1)))
	}
	b.kill()
	deleteTag(t, b, "app/web:gone-at-b")
	atA := push(t, a, "app/web:gone-at-b", image(t, 1<<14, 1))
	deleteTag(t, a, "app/web:pushed-at-b")
	atB := push(t, b, "app/web:pushed-at-b", image(t, 1<<14, 1))
	deleteTag(t, a, "app/web:only-gone")
	shows(t, province, "app/web:gone-at-b", atA)
	for _, ref := range []string{"app/web:pushed-at-b", "app/web:only-gone"} {
		eventually(t, ref+" goes", func() error { return gone(t, province, ref) })
	}
	b.start()
	for _, s := range []*site{a, b, province} {
		shows(t, s, "app/web:gone-at-b", atA)
		shows(t, s, "app/web:pushed-at-b", atB)
		eventually(t, "the deleted tag is gone at "+s.name, func() error { return gone(t, s, "app/web:only-gone") })
	}
	var doc conflictDoc
	a.document(&doc, "conflicts")
	if len(doc.Conflicts) != 0 {
		t.Errorf("conflicts: %+v", doc)
	}
}

// loseData ends an agent and loses its data directory; its registry is a process of its own and stays.
func loseData(s *site) {
	s.t.Helper()
	s.kill()
	if err := os.RemoveAll(s.dir); err != nil {
		s.t.Fatal(err)
	}
}

// TestAgentsDataLost: an agent comes back with an empty disk beside a registry that is as it was. Nothing that is there crosses a link again, nothing old is taken for a push, and what was pushed
// meanwhile is.
func TestAgentsDataLost(t *testing.T) {
	t.Parallel()
	sites := start(t,
		spec{name: "hq-a", group: "hq", registry: true, counted: true}, spec{name: "hq-b", group: "hq", registry: true},
		spec{name: "hq-w", group: "hq", extra: "registry: {type: none}\n"},
		spec{name: "gd-a", group: "hq/gd", registry: true},
	)
	a, b, province := sites["hq-a"], sites["hq-b"], sites["gd-a"]
	digests := map[string]string{}
	for i := range 4 {
		ref := fmt.Sprintf("app/web-%d:1", i)
		digests[ref] = push(t, a, ref, image(t, mib, 2))
	}
	pushed := time.Now()
	all := func() {
		t.Helper()
		for ref, digest := range digests {
			a.quiet(ref, digest)
			for _, s := range []*site{a, b, province} {
				if err := head(t, s, ref, digest); err != nil {
					t.Errorf("%s: %v", s.name, err)
				}
			}
		}
	}
	all()

	// A province, with a tag that somebody changed there meanwhile, and one that is none of headquarters'.
	local := push(t, province, "local/x:1", image(t, 1<<14, 1))
	loseData(province)
	push(t, province, "app/web-0:1", image(t, 1<<14, 1))
	before := a.link.down.Load()
	province.start()
	province.waitReady()
	all()
	between(t, "from headquarters to the province that lost its agent's data", a.link.down.Load()-before, 0, 2*chatter)
	if err := head(t, province, "local/x:1", local); err != nil {
		t.Error(err)
	}

	// A member of headquarters: one tag was pushed elsewhere meanwhile, one here.
	loseData(b)
	time.Sleep(time.Until(pushed.Add(clockBound * 3 / 2))) // what is shown is that the later push goes before the earlier
	digests["app/web-1:1"] = push(t, a, "app/web-1:1", image(t, 1<<14, 1))
	shows(t, province, "app/web-1:1", digests["app/web-1:1"])
	digests["app/web-2:1"] = push(t, b, "app/web-2:1", image(t, 1<<14, 1))
	b.start()
	b.waitReady()
	shows(t, province, "app/web-2:1", digests["app/web-2:1"])
	all()
}
