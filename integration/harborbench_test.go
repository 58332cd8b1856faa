package integration

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkHarbor measures two agents beside two real Harbors, named as for TestHarbor:
//
//	go test ./integration -run '^$' -bench Harbor -benchtime 1x -v
//
// It measures, beside Harbor's own replication in the same run: from the end of a push at A until B shows the tag, for a small image and for three layers
// of 100 MiB; and the bytes that cross the link for a layer of 100 MiB when the receiver dies for 5 s in the middle of it.
func BenchmarkHarbor(b *testing.B) {
	secret := filepath.Join(b.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("hush\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	p := harborPair(b, fmt.Sprintf("sweep: {interval: 1h}\nwebhook: {secretFile: %q}\n", secret))
	p.a.webhook(p.project, "http://"+p.hq.http+"/hooks/harbor", "hush", "Default", "PUSH_ARTIFACT")
	silent := unique("silent")
	p.a.project(silent, -1)
	p.a.drop(silent)
	p.b.drop(silent)

	for i := range 5 {
		ref := p.repo(fmt.Sprintf("small:%d", i))
		digest := p.a.push(ref, image(b, 1<<12, 1))
		begin := time.Now()
		p.b.shows(ref, digest)
		b.Logf("small image, webhook: %s from the end of the push", time.Since(begin).Round(10*time.Millisecond))
	}
	for i := range 5 {
		// Without waiting for Harbor's webhook: the share of fanout and of the two Harbors' answers.
		ref := fmt.Sprintf("%s/small:%d", silent, i)
		digest := p.a.push(ref, image(b, 1<<12, 1))
		begin := time.Now()
		if out, code := p.hq.ctl("publish", ref); code != 0 {
			b.Fatalf("publish: exit code %d: %s", code, out)
		}
		p.b.shows(ref, digest)
		b.Logf("small image, fanoutctl publish: %s", time.Since(begin).Round(10*time.Millisecond))
	}

	own := unique("own")
	p.a.project(own, -1)
	p.a.drop(own)
	p.b.drop(own)
	p.a.replicate(own, p.b)
	for i := range 5 {
		ref := fmt.Sprintf("%s/small:%d", own, i)
		digest := p.a.push(ref, image(b, 1<<12, 1))
		begin := time.Now()
		p.showsWithin(b, time.Minute, ref, digest)
		b.Logf("small image, Harbor's own replication: %s", time.Since(begin).Round(10*time.Millisecond))
	}

	const layerSize = 100 << 20
	large := image(b, layerSize, 3)
	before, up := p.hq.link.down.Load(), p.up.up.Load()
	begin := time.Now()
	ref := p.repo("large:1")
	digest := p.a.push(ref, large)
	pushed := time.Now()
	p.showsWithin(b, 5*time.Minute, ref, digest)
	b.Logf("3 x 100 MiB: push %s, then %s until B shows it; %d bytes over the link, %d to B's registry, for %d of layers", pushed.Sub(begin).Round(10*time.Millisecond),
		time.Since(pushed).Round(10*time.Millisecond), p.hq.link.down.Load()-before, p.up.up.Load()-up, 3*layerSize)

	// Other layers, so that B has none of them.
	ref = own + "/large:1"
	theirs := p.a.push(ref, image(b, layerSize, 3))
	pushed = time.Now()
	p.showsWithin(b, 5*time.Minute, ref, theirs)
	b.Logf("3 x 100 MiB, Harbor's own replication: %s until B shows it", time.Since(pushed).Round(10*time.Millisecond))

	before, up = p.hq.link.down.Load(), p.up.up.Load()
	again := p.repo("copy:1")
	p.a.push(again, large)
	begin = time.Now()
	p.showsWithin(b, time.Minute, again, digest)
	b.Logf("the same in another repository: %s; %d bytes over the link, %d to B's registry", time.Since(begin).Round(10*time.Millisecond),
		p.hq.link.down.Load()-before, p.up.up.Load()-up)

	p.hq.link.throttle(20 * mib)
	before = p.hq.link.down.Load()
	digest = p.a.push(p.repo("cut:1"), image(b, layerSize, 1))
	p.hq.link.crossing(b, before, 55<<20)
	p.gd.kill()
	// An outage of 5 s is what is measured, not a wait for something.
	<-time.After(5 * time.Second)
	p.gd.start()
	p.showsWithin(b, 5*time.Minute, p.repo("cut:1"), digest)
	b.Logf("receiver dead for 5 s at 55 MiB of 100 MiB: %d bytes over the link for %d", p.hq.link.down.Load()-before, layerSize)
	p.hq.link.free()

	p.gd.waitReady()
	before, up = p.hq.link.down.Load(), p.up.up.Load()
	p.up.limit.Store(up + 55<<20)
	digest = p.a.push(p.repo("cut:2"), image(b, layerSize, 1))
	p.showsWithin(b, 5*time.Minute, p.repo("cut:2"), digest)
	b.Logf("upload into B cut at 55 MiB of 100 MiB: %d bytes over the link, %d to B's registry", p.hq.link.down.Load()-before, p.up.up.Load()-up)
}

// showsWithin waits until B shows a digest.
func (p *pair) showsWithin(t testing.TB, patience time.Duration, ref, digest string) {
	t.Helper()
	within(t, patience, "B shows "+ref, func() error {
		got, err := p.b.shown(ref)
		if err == nil && got != digest {
			err = fmt.Errorf("it shows %s", got)
		}
		return err
	})
}

// replicate lets Harbor itself bring a project's pushes to another Harbor.
func (h *realHarbor) replicate(project string, to *realHarbor) {
	h.t.Helper()
	header := h.api("POST", "/registries", map[string]any{
		"name": project, "type": "harbor", "url": to.url, "insecure": true,
		"credential": map[string]string{"type": "basic", "access_key": to.user, "access_secret": to.secret},
	}, nil, http.StatusCreated)
	registry := strings.TrimPrefix(header.Get("Location"), "/api/v2.0")
	h.t.Cleanup(func() { h.tidy("DELETE", registry) })
	id, err := strconv.Atoi(registry[strings.LastIndexByte(registry, '/')+1:])
	if err != nil {
		h.t.Fatal(err)
	}
	header = h.api("POST", "/replication/policies", map[string]any{
		"name": project, "enabled": true, "override": true, "dest_registry": map[string]int{"id": id}, "trigger": map[string]string{"type": "event_based"},
		"filters": []map[string]string{{"type": "name", "value": project + "/**"}},
	}, nil, http.StatusCreated)
	policy := strings.TrimPrefix(header.Get("Location"), "/api/v2.0")
	h.t.Cleanup(func() { h.tidy("DELETE", policy) })
}
