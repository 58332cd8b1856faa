package integration

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// TestTwoMastersAndNobodyRepairsThem is the complaint that this project began with. Two registries copy to each other; one is down for a while; then they differ, until a person
// switches the copying off and on. Here no command is given, and they are equal again: after one master was down, after the other was, and after the network between them was, while
// both were pushed to.
func TestTwoMastersAndNobodyRepairsThem(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("who dialled is found out in /proc")
	}
	w := newWires()
	laid := func(s *site) { w.gate(t, s) }
	m := mastersOf(t, start(t,
		spec{name: "hq-a", group: "hq", registry: true, laid: laid}, spec{name: "hq-b", group: "hq", registry: true, laid: laid},
		spec{name: "hq-w", group: "hq", extra: witnessRegistry, laid: laid},
		spec{name: "gd-a", group: "hq/gd", laid: laid},
	))
	m.push(m.a, "app/web:latest")
	m.push(m.b, "app/api:latest")
	m.equal(m.a, m.b, m.gd)

	for _, down := range []*site{m.a, m.b} {
		up := m.other(down)
		down.own.kill()
		down.kill()
		m.push(up, "app/web:latest")
		m.push(up, "app/web:pushed-without-"+down.name)
		m.equal(up, m.gd)
		down.own.start()
		down.start()
		m.equal(m.a, m.b, m.gd)
	}
	m.peace()

	contested := map[string]string{} // what the registry that was cut off showed → what all show
	for _, root := range []*site{m.a, m.b} {
		cut := m.other(root)
		m.lead(root)
		between := w.pair(m.a.name, m.b.name)
		between.swallow() // both processes go on, and the witness hears both

		atBoth := "app/web:pushed-at-both-while-" + root.name + "-led"
		lost, won := m.race(cut, root, atBoth)
		contested[lost] = won
		early := time.Now()
		m.push(root, "app/web:latest")
		m.push(cut, "app/api:latest")
		m.push(root, "app/web:pushed-at-"+root.name)
		m.equalBut(cut, root, m.gd)
		time.Sleep(time.Until(early.Add(clockBound * 3 / 2))) // what is shown is that time decides
		m.push(cut, "app/web:latest")
		m.push(root, "app/api:latest")
		unheard := "app/web:pushed-at-" + cut.name + "-cut-off"
		m.push(cut, unheard)
		if _, err := remote.Head(reference(t, root, unheard)); err == nil {
			t.Errorf("%s shows what was pushed at %s: they are not cut from each other", root.name, cut.name)
		}

		between.restore()
		m.equal(m.a, m.b, m.gd)
	}

	// Only where two pushes came at about the same time nobody can say which is the later: the one that lost is listed.
	eventually(t, "the pushes that lost are listed, and no others", func() error {
		var doc conflictDoc
		m.b.document(&doc, "conflicts")
		for _, c := range doc.Conflicts {
			if contested[c.Loser.Digest] != c.Winner.Digest {
				t.Fatalf("listed without need: %+v", c)
			}
		}
		if len(doc.Conflicts) != len(contested) {
			return fmt.Errorf("%+v; %v", doc, contested)
		}
		return nil
	})
	for _, s := range []*site{m.a, m.b, m.gd} {
		for ref, digest := range m.expected {
			whole(t, s, ref, digest)
		}
	}
}

// race pushes one tag at both masters, within less than the clock bound. What is pushed at the second, which can publish, is expected everywhere.
func (m *masters) race(first, second *site, ref string) (lost, won string) {
	m.t.Helper()
	for {
		began := time.Now()
		m.push(first, ref)
		lost = m.expected[ref]
		m.push(second, ref)
		if time.Since(began) < clockBound/2 {
			return lost, m.expected[ref]
		}
	}
}

// equalBut is equal, but for what was last pushed at a master of which these can't hear.
func (m *masters) equalBut(cut *site, sites ...*site) {
	m.t.Helper()
	heard := &masters{t: m.t, expected: map[string]string{}}
	for ref, digest := range m.expected {
		if head(m.t, cut, ref, digest) != nil {
			heard.expected[ref] = digest
		}
	}
	heard.equal(sites...)
}
