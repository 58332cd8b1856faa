package integration

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// What a fault run may do, so that the promises hold throughout.
//
//   - Headquarters has three members, and one of them at a time is in trouble: agent killed, stopped, without its disk or cut off from fellows, registry killed or wiped. The next trouble
//     begins when the last one is over; after a lost disk that is when the member votes again. More would take a majority.
//   - At headquarters a registry is wiped, or an agent's memory lost, only at a moment when what was pushed there is in the catalog and in the two other registries: publish promises no more
//     than that. Pushes go elsewhere until it is done.
//   - A province has two members, so one lost raft log is already a majority, which no group survives: its agents lose their disks both at once, and the group is founded anew
//     and follows. A city is one site, so the same goes for it. Registries, and spools with them, may be lost one by one.
//   - The registry of a province or city may be wiped at any time. So may links be cut, and disks filled, below headquarters.
//   - One tag has one push or command at a time, each begun after the one before it has ended, but for rivals: a push at another registry 0 to 5 s after a push began, whether or not that has ended.

// kind is what an action does.
type kind int

const (
	pushNew   kind = iota // a tag that never was
	pushMove              // a tag moves to a new image
	pushBack              // a tag moves to an image that it showed before
	removeTag             // in the registry; publish.deletes lets it travel
	unpublish
	undo

	killAgent
	killRegistry
	stopAgent // SIGSTOP
	cutLink
	holeLink
	delayLink
	slowLink
	fillDisk
	loseMemory // the agent's data, with the registry kept
	wipeRegistry

	cutMember   // between one member of a group and all its fellows
	cutPair     // between two members; the third hears both
	isolateRoot // between who leads headquarters just then and its fellows
	muteMember  // half open: what a member sends to its fellows is lost, what they send arrives
	delayMember
)

var kindNames = [...]string{
	"push a new tag", "move a tag", "move a tag back", "delete a tag", "unpublish", "undo",
	"kill agent", "kill registry", "stop agent", "cut link", "black-hole link", "delay link", "slow link", "fill disk", "lose memory", "wipe registry",
	"cut member from fellows", "cut members from each other", "cut root from fellows", "mute member", "delay member",
}

func (k kind) String() string { return kindNames[k] }

// pushes says whether an action pushes an image.
func (k kind) pushes() bool { return k <= pushBack }

// fault says whether an action breaks something.
func (k kind) fault() bool { return k >= killAgent }

// action is one line of a schedule.
type action struct {
	at   time.Duration
	kind kind
	// For changes.
	ref     string
	image   int // number of the image, from which it is made
	site    string
	confirm bool // with `publish`, which acknowledges
	rival   bool // begins though an operation on its ref may be under way
	// For faults.
	what  string   // site, group, or child group of a link
	from  []string // from whom a member is cut
	ends  bool     // what is cut off is told so: connections end, and new ones are refused; else it waits in vain
	slots []string // of those that share a slot one is under way at a time
	last  time.Duration
}

func (a action) String() string {
	at := fmt.Sprintf("%7.2fs %s", a.at.Seconds(), a.kind)
	if a.kind.fault() {
		how := ""
		if len(a.from) > 0 {
			how = " and " + strings.Join(a.from, ", ")
		}
		if a.ends {
			how += ", by ending connections,"
		}
		return fmt.Sprintf("%s %s%s for %s", at, a.what, how, a.last.Round(10*time.Millisecond))
	}
	s := fmt.Sprintf("%s %s at %s", at, a.ref, a.site)
	if a.kind.pushes() {
		s += fmt.Sprintf(" (image %d)", a.image)
	}
	if a.confirm {
		s += ", confirmed"
	}
	if a.rival {
		s += ", a rival"
	}
	return s
}

// The fabric of a fault run.
var (
	soakHQ     = []string{"hq-a", "hq-b", "hq-c"}
	soakGroups = map[string][]string{
		"hq": soakHQ, "hq/gd": {"gd-a", "gd-b"}, "hq/hn": {"hn-a", "hn-b"},
		"hq/gd/sz": {"sz-a"}, "hq/gd/fs": {"fs-a"}, "hq/hn/cs": {"cs-a"}, "hq/hn/zz": {"zz-a"},
	}
	soakBelow   = []string{"hq/gd", "hq/gd/fs", "hq/gd/sz", "hq/hn", "hq/hn/cs", "hq/hn/zz"}               // children of a link each
	soakOwn     = []string{"gd-a", "hq-a", "hq-b", "hq-c"}                                                 // have a registry of their own
	soakSmall   = []string{"hn-b", "hq-c", "zz-a"}                                                         // have a disk of their own
	soakFellows = []string{"gd-a", "gd-b", "hn-a", "hn-b", "hq-a", "hq-a", "hq-b", "hq-b", "hq-c", "hq-c"} // have fellows; headquarters counts twice
	soakMoving  = 6                                                                                        // tags that move
	soakOpEvery = 900 * time.Millisecond
	// soakPause is what a fault takes beyond its time: until the registries are equal, until the member votes, until what is wiped is noticed.
	soakPause = map[kind]time.Duration{
		killAgent: time.Second, killRegistry: time.Second, stopAgent: time.Second, cutLink: time.Second, holeLink: time.Second, delayLink: time.Second, slowLink: time.Second,
		fillDisk: time.Second, loseMemory: 8 * time.Second, wipeRegistry: 5 * time.Second,
		cutMember: time.Second, cutPair: time.Second, isolateRoot: time.Second, muteMember: time.Second, delayMember: time.Second,
	}
	soakFaultTime = map[kind][2]time.Duration{
		killAgent: {0, 3 * time.Second}, killRegistry: {0, 3 * time.Second}, stopAgent: {200 * time.Millisecond, 8 * time.Second},
		cutLink: {100 * time.Millisecond, 6 * time.Second}, holeLink: {500 * time.Millisecond, 8 * time.Second},
		delayLink: {time.Second, 10 * time.Second}, slowLink: {time.Second, 10 * time.Second}, fillDisk: {time.Second, 8 * time.Second},
		loseMemory: {0, 2 * time.Second}, wipeRegistry: {0, 2 * time.Second},
		cutMember: {500 * time.Millisecond, 8 * time.Second}, cutPair: {500 * time.Millisecond, 8 * time.Second}, isolateRoot: {500 * time.Millisecond, 8 * time.Second},
		muteMember: {500 * time.Millisecond, 8 * time.Second}, delayMember: {time.Second, 10 * time.Second},
	}
)

func groupOf(site string) string {
	for g, members := range soakGroups {
		if slices.Contains(members, site) {
			return g
		}
	}
	return ""
}

// generator makes a schedule from a seed, and nothing else.
type generator struct {
	*rand.Rand
	images int
	tags   map[string][]int // of moving tags: the images that they showed, oldest first
	gone   map[string]bool
	fresh  int
	disks  bool
}

// schedule makes the actions of a run. Without disks none is filled: not everybody may mount.
func schedule(seed uint64, length time.Duration, disks bool) []action {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 1)), tags: map[string][]int{}, gone: map[string]bool{}, disks: disks}
	var all []action
	for at := time.Duration(0); at < length; at += g.between(0, 2*soakOpEvery) {
		a := g.change()
		a.at = at
		all = append(all, a)
		if a.kind == pushMove && g.IntN(5) == 0 {
			all = append(all, g.rival(a))
		}
	}
	free := map[string]time.Duration{} // slot → when it is free again
	for at := g.between(0, time.Second); at < length; at += g.between(100*time.Millisecond, 2500*time.Millisecond) {
		a, ok := g.fault()
		if !ok || slices.ContainsFunc(a.slots, func(s string) bool { return free[s] > at }) {
			continue
		}
		a.at, a.last = at, min(a.last, length-at)
		for _, s := range a.slots {
			free[s] = at + a.last + soakPause[a.kind]
		}
		all = append(all, a)
	}
	slices.SortStableFunc(all, func(x, y action) int { return cmp.Compare(x.at, y.at) })
	return all
}

func (g *generator) between(low, high time.Duration) time.Duration {
	return low + time.Duration(g.Int64N(int64(high-low)))
}

func pick[T any](g *generator, of []T) T { return of[g.IntN(len(of))] }

func (g *generator) change() action {
	a := action{site: pick(g, soakHQ), confirm: g.IntN(3) == 0}
	roll := g.IntN(100)
	if roll < 25 {
		a.kind, a.image = pushNew, g.newImage()
		a.ref = fmt.Sprintf("app/new-%d:v%d", g.fresh%3, g.fresh)
		g.fresh++
		return a
	}
	a.ref = fmt.Sprintf("app/moving-%d:latest", g.IntN(soakMoving))
	shown := g.tags[a.ref]
	switch {
	case g.gone[a.ref] && roll < 65:
		a.kind, a.confirm = undo, false
		g.gone[a.ref] = false
	case len(shown) == 0 || roll < 70:
		a.kind, a.image = pushMove, g.newImage()
	case roll < 84 && len(shown) > 1:
		a.kind, a.image = pushBack, shown[g.IntN(len(shown)-1)]
	case roll < 92 && !g.gone[a.ref]:
		a.kind, a.confirm = removeTag, false
		g.gone[a.ref] = true
	case !g.gone[a.ref]:
		a.kind, a.confirm = unpublish, false
		g.gone[a.ref] = true
	default:
		a.kind, a.image = pushMove, g.newImage()
	}
	if a.kind.pushes() {
		g.gone[a.ref] = false
		g.tags[a.ref] = append(shown, a.image)
	}
	return a
}

// rival makes a push of the same tag at another registry of headquarters, a moment after the first began.
func (g *generator) rival(of action) action {
	others := slices.DeleteFunc(slices.Clone(soakHQ), func(s string) bool { return s == of.site })
	a := action{at: of.at + g.between(0, rivalTime), kind: pushMove, ref: of.ref, image: g.newImage(), site: pick(g, others), rival: true}
	g.tags[a.ref] = append(g.tags[a.ref], a.image)
	return a
}

// rivalTime bounds the time between two pushes that compete: some lie within the clock bound, some beyond.
const rivalTime = 5 * time.Second

func (g *generator) newImage() int {
	g.images++
	return g.images
}

// fault makes one; false: what was rolled can't be done here.
func (g *generator) fault() (action, bool) {
	kinds := []kind{
		killAgent, killAgent, killAgent, killRegistry, killRegistry, stopAgent, stopAgent, cutLink, cutLink, holeLink, delayLink, slowLink, fillDisk, loseMemory, wipeRegistry,
		cutMember, cutMember, cutPair, cutPair, isolateRoot, isolateRoot, muteMember, muteMember, delayMember,
	}
	a := action{kind: pick(g, kinds)}
	var names []string
	for _, group := range soakGroups {
		names = append(names, group...)
	}
	slices.Sort(names)
	switch a.kind {
	case cutLink, holeLink, delayLink, slowLink:
		a.what = pick(g, soakBelow)
		a.slots = []string{"link " + a.what}
	case killRegistry:
		a.what = pick(g, soakOwn)
	case fillDisk:
		a.what = pick(g, soakSmall)
	case cutMember, cutPair, muteMember, delayMember:
		a.what = pick(g, soakFellows)
		a.from = slices.DeleteFunc(slices.Clone(soakGroups[groupOf(a.what)]), func(s string) bool { return s == a.what })
		if a.kind == cutPair {
			a.from = []string{pick(g, a.from)}
		}
		a.ends = g.IntN(2) == 0
	case isolateRoot:
		a.what, a.ends = soakHQ[0], g.IntN(2) == 0 // who it is shows when the time comes
	default:
		a.what = pick(g, names)
	}
	group := groupOf(a.what)
	switch {
	case len(a.slots) > 0:
	case group == "hq":
		a.slots = []string{group}
	case len(a.from) > 0:
		a.slots = append([]string{a.what}, a.from...)
	case a.kind == loseMemory:
		a.what, a.slots = group, soakGroups[group] // of all its members at once, while none is in other trouble
	default:
		a.slots = []string{a.what}
	}
	span := soakFaultTime[a.kind]
	a.last = g.between(span[0], span[1])
	return a, a.kind != fillDisk || g.disks
}
