package integration

import (
	"testing"
)

// TestPromote_ProvinceCutOff: a province, and the city below it, lose the link in the middle of a wave, after they were released and before they heard of it. By onOffline the wave waits
// for them, goes on without them, or counts them as failed; each shows the release when it is back.
func TestPromote_ProvinceCutOff(t *testing.T) {
	t.Parallel()
	var link trunk
	sites := start(t, spec{name: "hq-a", group: "hq", laid: wired(t, &link)}, spec{name: "gd-a", group: "hq/gd"}, spec{name: "sz-a", group: "hq/gd/sz"})
	hq := sites["hq-a"]
	below := map[string]*site{"gd-a": sites["gd-a"], "sz-a": sites["sz-a"]}
	digest := ""
	by := map[string]*promotion{}
	img := image(t, 1<<16, 2)
	for _, word := range []string{"wait", "skip", "fail"} {
		digest = push(t, hq, "app/"+word+":2", img)
		hq.quiet("app/"+word+":2", digest)
	}
	for _, word := range []string{"wait", "skip", "fail"} {
		p := promotionAt(t, hq)
		by[word] = p
		p.watch("app/"+word+":stable", digest, below)
		p.begin(planOf(`{name: all, groups: ["**"], maxConcurrent: 100%, gates: {before: [{approval: {}}]}, onOffline: `+word+"}"), "stable", "app/"+word+":2")
		for _, g := range []string{"hq", "hq/gd", "hq/gd/sz"} {
			p.group(g, "staged")
		}
	}
	link.hold()
	for _, p := range by {
		p.steer("approve")
	}
	for _, p := range by {
		p.group("hq", "succeeded")
		p.group("hq/gd", "running")
	}
	link.sever()

	by["fail"].in("paused", 0)
	by["fail"].group("hq/gd", "failed", "offline", "unreachable")
	by["skip"].in("succeeded", 1)
	by["skip"].watched(3)
	by["skip"].group("hq/gd", "offline", "unreachable")
	by["skip"].group("hq/gd/sz", "offline", "unreachable")
	by["wait"].group("hq/gd", "running", "offline", "unreachable")
	by["wait"].in("running", 0)
	for _, p := range by {
		p.never("gd-a", "sz-a")
	}

	link.mend()
	for word, p := range by {
		shows(t, sites["gd-a"], "app/"+word+":stable", digest)
		shows(t, sites["sz-a"], "app/"+word+":stable", digest)
		p.group("hq/gd", "succeeded")
		p.group("hq/gd/sz", "succeeded")
	}
	by["wait"].in("succeeded", 1)
	by["fail"].in("paused", 0) // it waits for a person
	by["fail"].steer("resume")
	by["fail"].in("succeeded", 1)
	for _, p := range by {
		p.watched(0)
	}
}
