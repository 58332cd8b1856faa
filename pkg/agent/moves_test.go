package agent

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/fanout-io/fanout/pkg/catalog"
)

// TestStaged_TogetherOrNotAtAll: of two refs of one rollout none moves while the content of one can't come, and one that moved is put back when the other can't be put.
func TestStaged_TogetherOrNotAtAll(t *testing.T) {
	gdReg := newGate(t, embeddedRegistry(t))
	tree := runTree(t, map[string]*gate{"hq/gd": gdReg}, "hq", "hq/gd")
	hq, gd := tree["hq"], tree["hq/gd"]
	hq.stage("prod/**")
	refs := []string{"prod/api:1", "prod/web:1"}
	old := map[string]string{}
	for _, ref := range refs {
		old[ref] = hq.push(ref)
		gd.state(ref, "held", "waits for a promotion")
	}
	hq.promote("r1", refs, same, "hq/gd")
	hq.saw("r1", "hq/gd", catalog.ObservedStaged)
	for _, ref := range refs {
		gd.shows(ref, old[ref])
		gd.state(ref, "")
	}
	hq.saw("r1", "hq/gd", catalog.ObservedDelivered)

	next := map[string]string{}
	for _, ref := range refs {
		next[ref] = hq.push(ref)
		gd.state(ref, "held", "waits for a promotion")
	}
	tagPut := func(r *http.Request) bool {
		return r.Method == http.MethodPut && r.URL.Path == "/v2/prod/web/manifests/1"
	}
	gdReg.wrote()
	gdReg.refuses(tagPut)
	hq.promote("r2", refs, same, "hq/gd")
	hq.saw("r2", "hq/gd", catalog.ObservedStaged)
	gd.state("prod/web:1", "failed", "quota")
	waitFor(t, "api is put back", func() error {
		moved, back := 0, gd.look("prod/api:1")
		gdReg.mu.Lock()
		for _, w := range gdReg.written {
			if w == "PUT /v2/prod/api/manifests/1" {
				moved++
			}
		}
		gdReg.mu.Unlock()
		if moved == 1 || back != old["prod/api:1"] {
			return fmt.Errorf("put %d times, shows %s", moved, back)
		}
		return nil
	})
	gdReg.refuses(nil)
	for _, ref := range refs {
		gd.shows(ref, next[ref])
		gd.state(ref, "")
	}
	hq.saw("r2", "hq/gd", catalog.ObservedDelivered)

	// So they do on the way back.
	gdReg.wrote()
	gdReg.refuses(tagPut)
	hq.steer("r2", catalog.SteerRollback)
	gd.state("prod/web:1", "failed", "quota")
	gd.state("prod/api:1", "failed", "moves together with prod/web:1")
	gd.shows("prod/api:1", next["prod/api:1"])
	gdReg.refuses(nil)
	for _, ref := range refs {
		gd.shows(ref, old[ref])
	}
}

// TestRollback_NewTagsTogether: tags that were new go away together on the way back. One that can't be taken away has the others put back; one that the registry can't ever take away stays alone, and the group says so.
func TestRollback_NewTagsTogether(t *testing.T) {
	gdReg := newGate(t, embeddedRegistry(t))
	tree := runTree(t, map[string]*gate{"hq/gd": gdReg}, "hq", "hq/gd")
	hq, gd := tree["hq"], tree["hq/gd"]
	hq.stage("prod/**")
	refs := []string{"prod/api:1", "prod/web:1"}
	is := map[string]string{}
	release := func(id string) {
		t.Helper()
		hq.promote(id, refs, same, "hq/gd")
		for _, ref := range refs {
			gd.shows(ref, is[ref])
			gd.state(ref, "")
		}
		hq.saw(id, "hq/gd", catalog.ObservedDelivered)
	}
	for _, ref := range refs {
		is[ref] = hq.push(ref)
		gd.state(ref, "held", "waits for a promotion")
	}
	tagDelete := func(r *http.Request) bool {
		return r.Method == http.MethodDelete && r.URL.Path == "/v2/prod/web/manifests/1"
	}
	removed := func() (n int) {
		for _, w := range gdReg.wrote() {
			if w == "DELETE /v2/prod/api/manifests/1" {
				n++
			}
		}
		return n
	}
	release("r1")
	gdReg.wrote()
	gdReg.refuses(tagDelete)
	hq.steer("r1", catalog.SteerRollback)
	gd.state("prod/web:1", "failed", "quota")
	gd.state("prod/api:1", "failed", "moves together with prod/web:1")
	gd.shows("prod/api:1", is["prod/api:1"])
	if n := removed(); n > 1 {
		t.Errorf("the tag that can go was taken away %d times", n)
	}
	gdReg.refuses(nil)
	for _, ref := range refs {
		gd.shows(ref, "")
		gd.state(ref, "held")
	}
	waitFor(t, "the rollback ends", func() error {
		if p := hq.node.Catalog().Rollout("r1").GetPhase(); p != catalog.RolloutRolledBack {
			return fmt.Errorf("it is %s", p)
		}
		return nil
	})

	release("r2")
	gdReg.mu.Lock()
	gdReg.refuse, gdReg.cannot = tagDelete, true
	gdReg.mu.Unlock()
	hq.steer("r2", catalog.SteerRollback)
	gd.shows("prod/api:1", "")
	gd.state("prod/api:1", "held")
	gd.state("prod/web:1", "failed", "cannot remove a tag alone")
	gd.shows("prod/web:1", is["prod/web:1"])
	waitFor(t, "the group says so", func() error {
		if g := hq.node.Catalog().Rollout("r2").GetGroups()[0]; g.GetPhase() != catalog.GroupFailed {
			return fmt.Errorf("it is %s: %s", g.GetPhase(), g.GetReason())
		}
		return nil
	})
}
