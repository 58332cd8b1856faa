package agent

import (
	"testing"
	"testing/synctest"
	"time"
)

// The time of a push is that of what was pushed, and of nothing that came later without being told of.
func TestPushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pushes
		if at := p.of("app:1", "sha256:a"); !at.IsZero() {
			t.Errorf("nothing was told: %s", at)
		}
		first := time.Now()
		p.note("app:1", "sha256:a", first)
		time.Sleep(time.Second)
		for _, c := range []struct {
			digest string
			want   time.Time
		}{{"sha256:a", first}, {"sha256:b", time.Time{}}, {"", first}} {
			if at := p.of("app:1", c.digest); !at.Equal(c.want) {
				t.Errorf("pushed %q: %s, want %s", c.digest, at, c.want)
			}
		}
		p.note("app:1", "sha256:old", first.Add(-time.Hour)) // told late
		if at := p.of("app:1", "sha256:a"); !at.Equal(first) {
			t.Errorf("after an older one: %s", at)
		}
		second := time.Now()
		p.note("app:1", "sha256:b", second)
		if at := p.of("app:1", "sha256:b"); !at.Equal(second) || !p.get("app:1").Equal(second) {
			t.Errorf("the second push: %s", at)
		}
		p.note("app:2", "", first)
		if at := p.of("app:2", "sha256:c"); !at.Equal(first) {
			t.Errorf("a push of which no digest was told: %s", at)
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
