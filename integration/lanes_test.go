package integration

import "testing"

// A thin link is full of one image's content for minutes. What steers must not wait behind it: counted by what the link carries meanwhile, which is a clock that no busy machine can put wrong.
func TestFullLinkDelaysNoControl(t *testing.T) {
	t.Parallel()
	sites := start(t, spec{name: "hq-a", group: "hq", counted: true}, spec{name: "gd-a", group: "hq/gd"})
	hq, city := sites["hq-a"], sites["gd-a"]
	small := image(t, 64<<10, 1)
	digest := push(t, hq, "app/web:1", small)
	hq.quiet("app/web:1", digest)

	hq.link.throttle(mib)
	before := hq.link.down.Load()
	push(t, hq, "app/big:1", image(t, 24*mib, 1))
	hq.link.crossing(t, before, 2*mib)

	// The proxy takes 32 KiB at a time and lets a connection have 64 KiB at once; a few turns of that are fair, megabytes that wait in buffers are not.
	const share = mib
	steps := []struct {
		what string
		do   func()
	}{
		{"a tag moves to content that is there", func() {
			push(t, hq, "app/web:2", small)
			shows(t, city, "app/web:2", digest)
		}},
		{"headquarters asks the city", func() {
			if out, code := hq.ctl("why", "app/web:2", "gd-a"); code != 0 {
				t.Errorf("why: exit code %d: %s", code, out)
			}
		}},
		{"the city says what it shows", func() { hq.quiet("app/web:2", digest) }},
	}
	for _, step := range steps {
		from := hq.link.down.Load()
		step.do()
		crossed := hq.link.down.Load() - from
		t.Logf("%s: the link carried %d KiB meanwhile", step.what, crossed>>10)
		if crossed > share {
			t.Errorf("%s: the link carried %d bytes meanwhile, want %d at the most", step.what, crossed, share)
		}
	}
	if n := hq.link.down.Load() - before; n > 20*mib {
		t.Errorf("the link was free again: %d bytes had crossed", n)
	}
}
