package integration

import (
	"fmt"
	"testing"
)

// TestOnlyAtADeadSite: what was published with one copy, and whose site died since, is shown as that; and all is well when it is back.
func TestOnlyAtADeadSite(t *testing.T) {
	t.Parallel()
	sites := start(t,
		spec{name: "hq-a", group: "hq"}, spec{name: "hq-b", group: "hq"}, spec{name: "hq-w", group: "hq", extra: "registry: {type: none}\n"},
	)
	a, b := sites["hq-a"], sites["hq-b"]
	b.kill()
	const ref = "app/web:1"
	digest := push(t, a, ref, image(t, 1<<16, 1))
	eventually(t, "it is published", func() error {
		for _, w := range sites["hq-w"].where(ref) {
			if w.Site == "hq-a" && w.State == "delivered" {
				return nil
			}
		}
		return fmt.Errorf("not yet")
	})
	a.kill()
	b.start()
	for at, words := range map[string]string{"hq-b": "only at hq-a, which does not answer", "hq-a": "only this site is known to have the content"} {
		eventually(t, "where says so at "+at, func() error {
			for _, w := range sites["hq-w"].where(ref) {
				if w.Site == at {
					return says(w.Reason, words)
				}
			}
			return fmt.Errorf("%s is not shown", at)
		})
	}
	a.start()
	a.quiet(ref, digest)
	shows(t, b, ref, digest)
}
