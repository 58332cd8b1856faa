package tree

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// Of a member that is down raft warns several times a second: an operator is to read it, and the other warnings too.
func TestRaftLogger_WarnsOnceAMinute(t *testing.T) {
	var out bytes.Buffer
	l := newRaftLogger(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})))
	for range 3 {
		l.Error("failed to heartbeat to", "peer", "a")
		l.With("peer", "b").Error("failed to heartbeat to")
		l.Warn("heartbeat timeout reached")
	}
	if warn, debug := strings.Count(out.String(), "level=WARN"), strings.Count(out.String(), "level=DEBUG"); warn != 2 || debug != 7 {
		t.Errorf("%d warnings, %d lines at debug:\n%s", warn, debug, out.String())
	}
	s := &said{last: map[string]time.Time{}}
	at := time.Now()
	for _, c := range []struct {
		after time.Duration
		want  bool
	}{{0, true}, {sayAgain - 1, false}, {sayAgain, true}, {sayAgain + 1, false}} {
		if got := s.now("x", at.Add(c.after)); got != c.want {
			t.Errorf("after %v: %v", c.after, got)
		}
	}
}
