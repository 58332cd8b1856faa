package agent

import "testing"

// TestAmends: what is noted while an earlier note is being seen to stays.
func TestAmends(t *testing.T) {
	var m amends
	if m.get("a:1") != 0 || m.done("a:1", 0) {
		t.Fatal("a note where there is none")
	}
	m.note("a:1")
	first := m.get("a:1")
	m.note("a:1")
	if m.done("a:1", first) || m.get("a:1") == 0 {
		t.Fatal("the later note is gone")
	}
	if second := m.get("a:1"); !m.done("a:1", second) || m.get("a:1") != 0 || m.done("a:1", second) {
		t.Fatal("the note stays")
	}
}
