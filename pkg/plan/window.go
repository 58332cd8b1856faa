package plan

import (
	"fmt"
	"strings"
	"time"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// MaxSpan bounds how long a window stays open after it opened.
const MaxSpan = 31 * 24 * time.Hour

// span is a stretch of time that begins at the times of a cron expression.
type span struct {
	start cron
	long  time.Duration
}

// parseSpan reads five cron fields, a slash and a duration: "0 1 * * * / 4h".
func parseSpan(s string) (span, error) {
	// A step has a slash too, so the duration is what follows the last.
	i := strings.LastIndexByte(s, '/')
	if i < 0 || len(strings.Fields(s[:i])) < 5 {
		return span{}, fmt.Errorf("%s is no span of time; write five cron fields, a slash and a duration, such as 0 1 * * * / 4h", quote(s))
	}
	start, err := parseCron(strings.TrimSpace(s[:i]))
	if err != nil {
		return span{}, err
	}
	long, err := parseDuration(strings.TrimSpace(s[i+1:]), time.Minute, MaxSpan)
	if err != nil {
		return span{}, err
	}
	return span{start, long}, nil
}

// Open says whether a window is open at a time. A span begins when the clocks of tz show the time that its cron fields name, and lasts as long as its duration says, in
// time that goes by, over midnight and past its own next beginning too. Where clocks are put back, a time that comes twice counts once, the first time; a time that is
// skipped, because they are put forward, counts as when that is done. No window is always open; a span that Parse would refuse is never.
func Open(w *catalogv1.Window, tz *time.Location, now time.Time) bool {
	if w == nil {
		return true
	}
	for _, s := range w.Allow {
		if p, err := parseSpan(s); err == nil {
			// Open when it began at now, or at most its duration ago.
			if at := p.start.next(now.Add(-p.long), tz); !at.IsZero() && !at.After(now) {
				return true
			}
		}
	}
	return false
}

// Next returns when a window is open: now if it is, else when it opens next, in tz. Zero: never. See Open for what counts.
func Next(w *catalogv1.Window, tz *time.Location, now time.Time) time.Time {
	if Open(w, tz, now) {
		return now
	}
	var first time.Time
	for _, s := range w.Allow {
		if p, err := parseSpan(s); err == nil {
			if at := p.start.next(now, tz); first.IsZero() || at.Before(first) && !at.IsZero() {
				first = at
			}
		}
	}
	return first
}
