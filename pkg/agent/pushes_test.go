package agent

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/fanout-io/fanout/pkg/catalog"
)

// The time of a push is that of what was pushed, and of nothing that came later without being told of.
func TestPushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pushes
		if at := p.of("app:1", "sha256:a"); !at.IsZero() {
			t.Errorf("nothing was told: %s", at)
		}
		first := time.Now()
		p.note("app:1", "sha256:a", "alice", first)
		time.Sleep(time.Second)
		for _, c := range []struct {
			digest string
			want   time.Time
		}{{"sha256:a", first}, {"sha256:b", time.Time{}}, {"", first}} {
			if at := p.of("app:1", c.digest); !at.Equal(c.want) {
				t.Errorf("pushed %q: %s, want %s", c.digest, at, c.want)
			}
		}
		p.note("app:1", "sha256:old", "bob", first.Add(-time.Hour)) // told late
		if at := p.of("app:1", "sha256:a"); !at.Equal(first) {
			t.Errorf("after an older one: %s", at)
		}
		second := time.Now()
		p.note("app:1", "sha256:b", "", second)
		if at := p.of("app:1", "sha256:b"); !at.Equal(second) || !p.get("app:1").Equal(second) {
			t.Errorf("the second push: %s", at)
		}
		p.note("app:2", "", "carol", first)
		if at := p.of("app:2", "sha256:c"); !at.Equal(first) {
			t.Errorf("a push of which no digest was told: %s", at)
		}
		for _, c := range []struct{ ref, digest, want string }{
			{"app:1", "sha256:b", ""}, {"app:1", "sha256:a", ""}, {"app:2", "sha256:c", ""}, {"app:2", "", ""}, {"app:3", "sha256:c", "dave"},
		} {
			p.note("app:3", "sha256:c", "dave", first)
			if by := p.by(c.ref, c.digest); by != c.want {
				t.Errorf("%s at %s was pushed by %q, want %q", c.digest, c.ref, by, c.want)
			}
		}

		var d pushes
		if at := d.since("app:1", "sha256:a"); !at.Equal(second) {
			t.Errorf("seen first: %s", at)
		}
		time.Sleep(time.Second)
		if at := d.since("app:1", "sha256:a"); !at.Equal(second) {
			t.Errorf("seen again: %s", at)
		}
		if at := d.since("app:1", "sha256:b"); !at.Equal(time.Now()) {
			t.Errorf("another: %s", at)
		}
	})
}

// Who pushed is said as the registry said it, and only of what it was said of; a name that is shaped like ours stays one.
func TestPusher(t *testing.T) {
	a, ref := &Agent{}, catalog.Ref{Repository: "app", Tag: "1"}
	if by := a.pusher(ref, "sha256:a"); by != "sweep" || pushedBy(by) != "" {
		t.Errorf("nothing was told: %s", by)
	}
	for _, name := range []string{"robot$ci+push", "alice", "webhook (bob)", ")"} {
		a.pushes.note(ref.String(), "sha256:a", name, time.Now())
		if by := a.pusher(ref, "sha256:a"); by != "webhook ("+name+")" || pushedBy(by) != name {
			t.Errorf("pushed by %q: %q", name, by)
		}
	}
	if by := a.pusher(ref, "sha256:b"); by != "webhook" || pushedBy(by) != "" {
		t.Errorf("something else: %s", by)
	}
	if by := pushedBy("alice"); by != "" {
		t.Errorf("published by a person: %q", by)
	}
}
