package integration

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// span is a time in which something was done.
type span struct{ from, to time.Time }

func (s span) meets(from, to time.Time) bool { return !s.to.Before(from) && !s.from.After(to) }

// attempt is one try to do an operation at one registry, or by one command. Its span is that in which the tag may have moved.
type attempt struct {
	span
	site  string // whose registry; empty: a command
	acked bool
}

// operation is a change that a client made, or tried to make.
type operation struct {
	action
	digest   string // that it should end in; empty: the tag is gone
	attempts []attempt
	life     span // with the command that may follow a push
	acked    bool
	revision uint64 // that a command was told; 0: none was
	// clean: when it began, all registries of headquarters and the catalog showed what the operation before it should end in, so there was nothing that it could compete with.
	clean bool
}

func (o operation) String() string {
	short := "absent"
	if o.digest != "" {
		short = o.digest[7:19]
	}
	s := fmt.Sprintf("%s: %s", o.action, short)
	for _, a := range o.attempts {
		s += fmt.Sprintf("; %s acked=%v", a.site, a.acked)
	}
	return s + fmt.Sprintf("; acked=%v revision=%d clean=%v", o.acked, o.revision, o.clean)
}

// loss is a time in which a registry was wiped.
type loss struct {
	site string
	span
}

// trouble is a time in which something at headquarters was broken.
type trouble struct {
	span
	site string // whose registry; empty: an agent or the network between agents, so that none may have had a root
}

// judgeSite says whether what one site showed under one ref went only forward through the catalog's revisions, all of which are known. It may pass over any: a site that was away, or was
// still receiving, shows the newest when it can. At a registry of headquarters a client may set and delete the tag itself: such a step counts as explained when it falls into the time of that
// client's attempt. A registry that was wiped shows nothing for a while.
func judgeSite(site, ref string, seen []stretch, changes []change, ops []operation, losses []loss) error {
	var at uint64 // revision that the site has reached
	was := time.Time{}
	for _, s := range seen {
		from := was
		was = s.last
		switch {
		case s.digest == "" && at == 0:
			continue // nothing came yet
		case byClient(site, s.digest, from, s.first, ops), s.digest == "" && wiped(site, from, s.first, losses):
			continue
		}
		next, ok := later(s.digest, at, changes)
		if !ok {
			return fmt.Errorf("%s shows %q under %s at %s, after it had reached revision %d: no later revision has that\n  seen: %s\n  revisions: %v\n  %s",
				site, s.digest, ref, s.first.Format(timeFormat), at, stretches(seen), changes, lines(ops))
		}
		at = next
	}
	return nil
}

const timeFormat = "15:04:05.000"

func stretches(list []stretch) string {
	var b strings.Builder
	for _, s := range list {
		fmt.Fprintf(&b, "[%s–%s %.19s] ", s.first.Format(timeFormat), s.last.Format(timeFormat), s.digest)
	}
	return b.String()
}

// later finds the first revision from at on that shows a digest.
func later(digest string, at uint64, changes []change) (uint64, bool) {
	for _, c := range changes {
		if c.revision >= at && c.digest == digest {
			return c.revision, true
		}
	}
	return 0, false
}

func byClient(site, digest string, from, to time.Time, ops []operation) bool {
	for _, o := range ops {
		for _, a := range o.attempts {
			if a.site == site && o.digest == digest && a.meets(from, to) {
				return true
			}
		}
	}
	return false
}

func wiped(site string, from, to time.Time, losses []loss) bool {
	return slices.ContainsFunc(losses, func(l loss) bool { return l.site == site && l.meets(from, to) })
}

// conflict is one that is listed.
type conflict struct{ ref, loser, site string }

// judgeRef says whether a ref ended as its operations say: in the newest one, or, where that one competed with others, in one of these, and then the newest is not lost in silence.
func judgeRef(ref string, ops []operation, now change, conflicts []conflict) error {
	last := len(ops) - 1
	for last >= 0 && !ops[last].acked {
		last-- // what nobody acknowledged may have happened or not
	}
	first := max(last, 0)
	for first > 0 && !ops[first].clean {
		first--
	}
	for i, o := range ops {
		if o.digest == now.digest && (i >= last || o.meets(ops[last])) {
			return nil
		}
	}
	if last < 0 {
		if now.digest == "" {
			return nil // nothing was acknowledged, nothing happened
		}
		return fmt.Errorf("%s is %q, which nobody asked for: %v", ref, now.digest, ops)
	}
	newest, rivals := ops[last], ops[first:last]
	wrong := func(why string) error {
		return fmt.Errorf("%s ended as %q, revision %d, and not as %q: %s\n  %s", ref, now.digest, now.revision, newest.digest, why, lines(ops))
	}
	if !slices.ContainsFunc(rivals, func(o operation) bool { return o.digest == now.digest }) {
		return wrong("no operation that it competed with says so")
	}
	if oneRegistry(ops[first:]) {
		return wrong("all these operations were at one registry, in order")
	}
	switch {
	case newest.kind == pushBack, !newest.kind.pushes():
		return nil // a digest that was replaced already counts as stale, and a push outweighs a deletion: docs/operations.md
	case slices.Contains(conflicts, conflict{ref, newest.digest, winnerSite(newest)}):
		return nil
	}
	return wrong("it was lost in silence")
}

func lines(ops []operation) string {
	var all []string
	for _, o := range ops {
		all = append(all, o.String())
	}
	return strings.Join(all, "\n  ")
}

// winnerSite is the registry that acknowledged an operation.
func winnerSite(o operation) string {
	for _, a := range o.attempts {
		if a.acked {
			return a.site
		}
	}
	return ""
}

func oneRegistry(ops []operation) bool {
	site := ""
	for _, o := range ops {
		for _, a := range o.attempts {
			if a.site == "" || site != "" && a.site != site {
				return false
			}
			site = a.site
		}
	}
	return true
}

// whole is the time from an operation's first attempt to the end of its last.
func (o operation) whole() span {
	if len(o.attempts) == 0 {
		return span{}
	}
	return span{o.attempts[0].from, o.attempts[len(o.attempts)-1].to}
}

// meets says whether two operations were under way at the same time.
func (o operation) meets(p operation) bool {
	x, y := o.whole(), p.whole()
	return !x.to.IsZero() && !y.to.IsZero() && x.meets(y.from, y.to)
}

// inOrder puts operations on one ref in the order in which they were done, and notes that those which were under way at the same time competed: what was settled when the first
// began says nothing of the other.
func inOrder(ops []operation) {
	slices.SortStableFunc(ops, func(x, y operation) int { return x.whole().to.Compare(y.whole().to) })
	for i := range ops {
		for j := range ops[:i] {
			if ops[i].life.meets(ops[j].life.from, ops[j].life.to) {
				ops[i].clean, ops[j].clean = false, false
			}
		}
	}
}

// lookTime is how long an agent of headquarters may take to publish what was pushed at its registry, or to say that it can't be, when nothing is in its way: it is told at once, or its
// sweep finds it.
const lookTime = 5*time.Second + soakSweep

// acknowledged gives the attempt that was.
func (o operation) acknowledged() (attempt, bool) {
	i := slices.IndexFunc(o.attempts, func(a attempt) bool { return a.acked })
	if i < 0 {
		return attempt{}, false
	}
	return o.attempts[i], true
}

// judgePushes says whether every new image whose push a registry acknowledged is in the catalog's history, or is listed as a conflict, or was overtaken before the agent could look: by a
// later push or deletion at the same registry, or by one of another registry that came so much later that the times decide. Images that were shown before are not judged: they are in the history anyhow.
func judgePushes(ref string, ops []operation, changes []change, conflicts []conflict, troubles []trouble) error {
	for _, o := range ops {
		a, ok := o.acknowledged()
		switch {
		case !ok, o.kind != pushNew && o.kind != pushMove,
			slices.ContainsFunc(changes, func(c change) bool { return c.digest == o.digest }),
			slices.ContainsFunc(conflicts, func(c conflict) bool { return c.ref == ref && c.loser == o.digest }),
			slices.ContainsFunc(ops, func(p operation) bool { return p.digest != o.digest && overtakes(p, a, troubles) }):
			continue
		}
		return fmt.Errorf("a push of %s was acknowledged by %s and vanished: %s\n  revisions: %v\n  %s", ref, a.site, o, changes, lines(ops))
	}
	return nil
}

// overtakes says whether an operation can be why another, acknowledged, push never became a revision.
func overtakes(p operation, a attempt, troubles []trouble) bool {
	for _, b := range p.attempts {
		if free(a.site, a.to, b.to, troubles) > lookTime {
			continue // there was time to look
		}
		switch {
		case b.site == a.site && b.to.After(a.from):
			return true
		case b.site != "" && p.kind.pushes() && b.acked && b.to.Sub(a.from) > clockBound:
			return true
		}
	}
	return false
}

// free is the longest time in a span in which nothing was in the way of a site's agent.
func free(site string, from, to time.Time, troubles []trouble) (longest time.Duration) {
	list := slices.DeleteFunc(slices.Clone(troubles), func(t trouble) bool { return t.site != "" && t.site != site || !t.meets(from, to) })
	slices.SortFunc(list, func(x, y trouble) int { return x.from.Compare(y.from) })
	for _, t := range list {
		longest = max(longest, t.from.Sub(from))
		if t.to.After(from) {
			from = t.to
		}
	}
	return max(longest, to.Sub(from))
}

// judgeConflict says whether a listed conflict is one between pushes that competed, and whose times could not decide: they differ by less than the clock bound, or something was broken, so
// that an agent may not know when its registry was pushed to.
func judgeConflict(c conflict, ops []operation, troubles []trouble) error {
	for i, o := range ops {
		a, ok := o.acknowledged()
		if !ok {
			a = attempt{span: o.whole()}
		}
		if o.digest != c.loser || !slices.ContainsFunc(ops[i:], func(p operation) bool { return !p.clean }) {
			continue
		}
		for j, p := range ops {
			if i != j && undecided(a, p, troubles) {
				return nil
			}
		}
	}
	return fmt.Errorf("a conflict is listed over %s, %s of %s, although nothing competed with that push\n  %s", c.ref, c.loser, c.site, lines(ops))
}

// undecided says whether the times of a push and of a rival's may not tell which is the later.
func undecided(a attempt, rival operation, troubles []trouble) bool {
	for _, b := range rival.attempts {
		apart := max(b.from.Sub(a.to), a.from.Sub(b.to))
		if apart <= clockBound+time.Second || slices.ContainsFunc(troubles, func(t trouble) bool {
			return t.meets(a.from, a.to.Add(lookTime)) || t.meets(b.from, b.to.Add(lookTime))
		}) {
			return true
		}
	}
	return false
}

// judgeAcks says whether every command's answer is in the catalog, and in order.
func judgeAcks(ops []operation, changes []change) error {
	var before uint64
	for _, o := range ops {
		if o.revision == 0 {
			continue
		}
		if o.revision < before {
			return fmt.Errorf("acknowledged as revision %d after one as %d\n  %s", o.revision, before, lines(ops))
		}
		before = o.revision
		i := slices.IndexFunc(changes, func(c change) bool { return c.revision == o.revision })
		if i < 0 {
			return fmt.Errorf("acknowledged as revision %d, which is none of %v: %s", o.revision, changes, o)
		}
		if changes[i].digest != o.digest {
			return fmt.Errorf("acknowledged as revision %d, which is %q: %s", o.revision, changes[i].digest, o)
		}
	}
	return nil
}
