package plan

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// cron is a set of starting times, given by five fields as cron reads them: minute, hour, day of month, month, day of week. A bit stands for a value.
type cron struct {
	minute, hour, dom, month, dow uint64
	// either: one of the two days is enough. That is so when both are restricted, which cron tells by whether the field begins with a star.
	either bool
}

// field of a cron expression.
type field struct {
	name     string
	min, max int
	names    []string // of values from min on
}

var cronFields = [5]field{
	{name: "minute", min: 0, max: 59},
	{name: "hour", min: 0, max: 23},
	{name: "day of month", min: 1, max: 31},
	{name: "month", min: 1, max: 12, names: []string{"jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"}},
	{name: "day of week", min: 0, max: 7, names: []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}},
}

// daysIn a month at most, January first.
var daysIn = [12]int{31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31}

// searchYears is how far ahead a start is looked for. The rarest is a 29 February that must fall on one day of the week: across a year 2100, 40 years.
const searchYears = 41

func parseCron(s string) (cron, error) {
	words := strings.Fields(s)
	if len(words) != len(cronFields) {
		return cron{}, fmt.Errorf("%s has %d fields; write five: minute, hour, day of month, month, day of week", quote(s), len(words))
	}
	var bits [5]uint64
	for i, f := range cronFields {
		var err error
		if bits[i], err = f.parse(words[i]); err != nil {
			return cron{}, err
		}
	}
	c := cron{minute: bits[0], hour: bits[1], dom: bits[2], month: bits[3], dow: bits[4]}
	if has(c.dow, 7) { // Sunday is 0 and 7
		c.dow = c.dow&^(1<<7) | 1
	}
	c.either = words[2][0] != '*' && words[4][0] != '*'
	if c.never() {
		return cron{}, fmt.Errorf("%s names days that no month of it has, so it never begins; name others", quote(s))
	}
	return c, nil
}

// parse reads one field: a list of *, N or N-M, each with /STEP if need be. As in cron, N/STEP goes from N to the end.
func (f field) parse(s string) (uint64, error) {
	var bits uint64
	for item := range strings.SplitSeq(s, ",") {
		part, step, stepped := strings.Cut(item, "/")
		by := 1
		if stepped {
			var err error
			if by, err = number(step); err != nil || by < 1 || by > f.max {
				return 0, fmt.Errorf("%s is no step of the %s; write one from 1 to %d", quote(step), f.name, f.max)
			}
		}
		from, to := f.min, f.max
		if part != "*" {
			first, last, ranged := strings.Cut(part, "-")
			var err error
			if from, err = f.value(first); err != nil {
				return 0, err
			}
			switch {
			case ranged:
				if to, err = f.value(last); err != nil {
					return 0, err
				}
			case !stepped:
				to = from
			}
			if from > to {
				return 0, fmt.Errorf("%s is no range of the %s; write the smaller one first", quote(part), f.name)
			}
		}
		for v := from; v <= to; v += by {
			bits |= 1 << v
		}
	}
	return bits, nil
}

func (f field) value(s string) (int, error) {
	for i, name := range f.names {
		if strings.EqualFold(s, name) {
			return f.min + i, nil
		}
	}
	if n, err := number(s); err == nil && n >= f.min && n <= f.max {
		return n, nil
	}
	return 0, fmt.Errorf("%s is no %s; write %d to %d, or * for any", quote(s), f.name, f.min, f.max)
}

// number reads one or two decimal digits.
func number(s string) (int, error) {
	if len(s) > 2 {
		return 0, strconv.ErrRange
	}
	n, err := strconv.ParseUint(s, 10, 8)
	return int(n), err
}

func has(bits uint64, v int) bool { return bits>>v&1 == 1 }

// never says whether no date fits, such as 30 February.
func (c cron) never() bool {
	if c.either {
		return false
	}
	for m, days := range daysIn {
		if has(c.month, m+1) && c.dom&(1<<(days+1)-1) != 0 {
			return false
		}
	}
	return true
}

func (c cron) day(d time.Time) bool {
	dom, dow := has(c.dom, d.Day()), has(c.dow, int(d.Weekday()))
	if c.either {
		return dom || dow
	}
	return dom && dow
}

// next returns the first start after t; zero: there is none within searchYears.
func (c cron) next(t time.Time, tz *time.Location) time.Time {
	// Dates are counted in UTC, where every day has 24 hours. What begins on an earlier date than that of t began before t, as each time counts when clocks first show it.
	y, m, d := t.In(tz).Date()
	date := time.Date(y, m, d, 0, 0, 0, 0, time.UTC)
	for end := date.AddDate(searchYears, 0, 0); date.Before(end); {
		if !has(c.month, int(date.Month())) {
			date = time.Date(date.Year(), date.Month()+1, 1, 0, 0, 0, 0, time.UTC)
			continue
		}
		if c.day(date) {
			if at, ok := c.nextOn(date, t, tz); ok {
				return at
			}
		}
		date = date.AddDate(0, 0, 1)
	}
	return time.Time{}
}

// nextOn returns the first start of a date that is after t.
func (c cron) nextOn(date, t time.Time, tz *time.Location) (time.Time, bool) {
	clock := func(h, m int) time.Time {
		return instant(date.Add(time.Duration(h)*time.Hour+time.Duration(m)*time.Minute), tz)
	}
	if !clock(23, 59).After(t) {
		return time.Time{}, false
	}
	for h := range 24 {
		if !has(c.hour, h) || !clock(h, 59).After(t) {
			continue
		}
		for m := range 60 {
			if !has(c.minute, m) {
				continue
			}
			if at := clock(h, m); at.After(t) {
				return at, true
			}
		}
	}
	return time.Time{}, false
}

// instant is when the clocks of a time zone first show a time, which is given in UTC. What they skip, because they are put forward, is when they are put forward.
func instant(wall time.Time, tz *time.Location) time.Time {
	y, mo, d := wall.Date()
	u := time.Date(y, mo, d, wall.Hour(), wall.Minute(), 0, 0, tz) // where there are two, or none, one of the two that are near
	start, end := u.ZoneBounds()
	switch shown := shows(u); {
	case shown.After(wall):
		return start
	case shown.Before(wall):
		return end
	}
	if start.IsZero() {
		return u
	}
	_, offset := u.Zone()
	_, before := start.Add(-1).Zone()
	if first := u.Add(time.Duration(offset-before) * time.Second); first.Before(start) && shows(first).Equal(wall) {
		return first
	}
	return u
}

// shows is what the clocks show at u, as a time in UTC.
func shows(u time.Time) time.Time {
	_, offset := u.Zone()
	return u.UTC().Add(time.Duration(offset) * time.Second)
}
