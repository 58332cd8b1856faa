package plan

import (
	"fmt"
	"time"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// What a wave does when neither it nor the plan's defaults say so. A release without a plan goes by these too.
const (
	DefaultOnFailure     = "pause"
	DefaultOnOffline     = "skip"
	DefaultDeadline      = 6 * time.Hour
	DefaultTimezone      = "UTC"
	DefaultCheckInterval = 30 * time.Second
	DefaultCheckTimeout  = 10 * time.Minute
)

// DefaultMaxConcurrent is how many groups of a wave are under way at once. By default no group may fail.
var DefaultMaxConcurrent = Quantity{N: 25, Percent: true}

// Bounds of files. The catalog has them too, so that what is accepted here is not refused there.
const (
	MaxWaves    = 64
	MaxGates    = 16 // before a wave, and after it
	MaxSpans    = 32 // of a window
	MaxPolicies = 256
	MaxSoak     = 30 * 24 * time.Hour
	MaxTime     = 365 * 24 * time.Hour // of deadlines and freezes
	MaxInterval = 24 * time.Hour       // of a check
	MaxTimeout  = 30 * 24 * time.Hour  // of a check
	maxGroups   = 1 << 16
	// maxEntries bounds how many paths and patterns a wave, or patterns a policy, lists, and maxPatterns those of all policies.
	maxEntries  = 1024
	maxPatterns = 4096
	maxLabels   = 64
)

// Quantity is a number of groups, or a percentage of a wave's groups.
type Quantity struct {
	N       uint32
	Percent bool
}

// String is the quantity as a file has it.
func (q Quantity) String() string {
	if q.Percent {
		return fmt.Sprintf("%d%%", q.N)
	}
	return fmt.Sprint(q.N)
}

// Down is how many of n groups it is; percentages are rounded down, to 1 at least.
func (q Quantity) Down(n int) uint32 {
	if !q.Percent {
		return q.N
	}
	return uint32(max(1, uint64(n)*uint64(q.N)/100))
}

// Up is how many of n groups it is; percentages are rounded up.
func (q Quantity) Up(n int) uint32 {
	if !q.Percent {
		return q.N
	}
	return uint32((uint64(n)*uint64(q.N) + 99) / 100)
}

// Plan is a plan file: waves one after another, of groups that are not looked up yet. What the file left out has its default.
type Plan struct {
	Name     string
	Timezone string // as in the IANA database
	Waves    []Wave

	file string
}

// Wave is a set of groups that get a release together.
type Wave struct {
	Name string
	// Groups are paths and doublestar patterns. Either these or MatchLabels are set.
	Groups []string
	// MatchLabels selects the groups that have all of these labels.
	MatchLabels   map[string]string
	MaxConcurrent Quantity
	MaxFailures   Quantity
	Soak          time.Duration
	Before, After []*catalogv1.Gate
	Window        *catalogv1.Window // nil: at any time
	OnFailure     string            // pause, abort or rollback
	OnOffline     string            // wait, skip or fail
	Deadline      time.Duration     // 0: none

	place   place   // in the file
	entries []place // of Groups
}

// place is a key in a file and its line; zero: it was not read from one.
type place struct {
	line int
	key  string
}

// sub is a key below a place.
func (p place) sub(key string) place {
	if p.key == "" {
		return p
	}
	return place{p.line, p.key + "." + key}
}

// Default is the plan of a release without one: a single wave with every group.
func Default() *Plan {
	return &Plan{Timezone: DefaultTimezone, Waves: []Wave{{
		Name: "all", Groups: []string{everything}, MaxConcurrent: DefaultMaxConcurrent,
		OnFailure: DefaultOnFailure, OnOffline: DefaultOnOffline, Deadline: DefaultDeadline,
	}}}
}

// Warning is what may be meant, and a careful person looks at first.
type Warning struct {
	File string // empty: there is none
	Line int    // 0: not in the file
	Key  string
	Text string
}

// String is the warning as errors are written: file:line: key: text.
func (w Warning) String() string {
	where := ""
	if w.File != "" {
		where = w.File + ": "
		if w.Line > 0 {
			where = fmt.Sprintf("%s:%d: ", w.File, w.Line)
		}
	}
	if w.Key != "" {
		where += w.Key + ": "
	}
	return where + w.Text
}
