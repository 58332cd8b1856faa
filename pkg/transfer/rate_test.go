package transfer

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestMeter_LinkRate: pauses between transfers don't count, and neither does what is too short to say anything.
func TestMeter_LinkRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m meter
		burst := func(n int, size int, every time.Duration) {
			for range n {
				m.add(size)
				time.Sleep(every)
			}
		}
		burst(1, 1<<20, 0)
		if got := m.link(); got != 0 {
			t.Errorf("of one message: %d", got)
		}
		time.Sleep(time.Hour)
		burst(31, 100_000, 100*time.Millisecond)
		if got := m.link(); got != 1_000_000 {
			t.Errorf("of a million a second: %d", got)
		}
		time.Sleep(time.Hour)
		if m.value() != 0 || m.link() != 1_000_000 {
			t.Errorf("an hour later: %d now, %d then", m.value(), m.link())
		}
		burst(2, 1<<20, time.Millisecond)
		if got := m.link(); got != 1_000_000 {
			t.Errorf("after two messages at once: %d", got)
		}
		time.Sleep(time.Minute)
		burst(400, 5_000, 100*time.Millisecond)
		if got := m.link(); got != 50_000 {
			t.Errorf("the link has become slow: %d", got)
		}
	})
}
