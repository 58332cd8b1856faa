package integration

import (
	"syscall"
	"testing"
	"time"
)

// TestTwoMastersAndNobodyRepairsThem is the complaint that this project began with. Two registries copy to each other; one is down for a while; then they differ, until a person
// switches the copying off and on. Here no command is given, and they are equal again: after one master was down, after the other was, and after both were cut from each other
// while both were pushed to.
func TestTwoMastersAndNobodyRepairsThem(t *testing.T) {
	t.Parallel()
	m, _ := startMasters(t, true)
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

	// Neither agent hears of the other, nor of its own registry.
	m.a.signal(syscall.SIGSTOP)
	m.b.signal(syscall.SIGSTOP)
	m.push(m.a, "app/web:pushed-at-a")
	m.push(m.b, "app/web:pushed-at-b")
	m.push(m.a, "app/web:latest")
	earlier := time.Now()
	m.push(m.b, "app/api:latest")
	time.Sleep(time.Until(earlier.Add(clockBound * 3 / 2))) // what is shown is that time decides
	m.push(m.b, "app/web:latest")
	m.a.signal(syscall.SIGCONT)
	m.b.signal(syscall.SIGCONT)
	m.equal(m.a, m.b, m.gd)
	m.peace()
	for _, s := range []*site{m.a, m.b, m.gd} {
		for ref, digest := range m.expected {
			whole(t, s, ref, digest)
		}
	}
}
