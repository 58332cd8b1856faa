package integration

import (
	"bufio"
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// account is what one link may carry beside the bytes that have to cross it, by promise 5's reasons.
type account struct {
	lone    int64 // held by a member alone which was lost or away: pieces and blobs of what the group was still receiving
	emptied int64 // lost with a registry of which nobody in the group has a copy
	resent  int64 // what agents counted: fanout_transfer_resent_bytes_total
	collect int64 // what their registries collected: fanout_registry_collected_bytes_total
	kills   int64 // of receivers
	killed  int64 // what they had in flight, which nobody counted
	resyncs int64 // the group's memory was lost, and all records came again
	down    int64 // bytes that crossed, in the end
	breaks  int64 // connections that broke while they carried blobs
	mark    int64 // bytes of the link when the group last lacked nothing: only what crossed since can be held by one alone
}

// accountOf gives the account of the link above a group. Under mu.
func (r *run) accountOf(group string) *account {
	a := r.account[group]
	if a == nil {
		a = &account{}
		r.account[group] = a
	}
	return a
}

// missing notes, as a member is about to be away or has no room, what may have to cross its group's link again for that: all that the group is still receiving, where another
// member goes on without it.
func (r *run) missing(s *site) {
	if len(s.members) > 1 {
		r.lone(s)
	}
}

// lone notes what a member may hold alone.
func (r *run) lone(s *site) {
	if s.group == "hq" {
		return
	}
	owed := r.pending(s.members...)
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.accountOf(s.group)
	a.lone += min(owed, r.above(s.group).down.Load()-a.mark)
}

// above is the link between a group and its parent.
func (r *run) above(group string) *wire {
	return r.wires.link(group, group[:strings.LastIndex(group, "/")])
}

// markForever notes the bytes of each link whenever its group lacks nothing, until ctx ends.
func (r *run) markForever(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	before := map[string]int64{} // a round ago: what crossed since may be of a record that nobody has looked at yet
	for ctx.Err() == nil {
		for _, group := range soakBelow {
			down := before[group]
			before[group] = r.above(group).down.Load()
			if r.pending(r.at(soakGroups[group]...)...) > 0 {
				continue
			}
			r.mu.Lock()
			r.accountOf(group).mark = down
			r.mu.Unlock()
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// pending adds up the blobs of what the catalog says and some of these sites do not show yet, each once.
func (r *run) pending(sites ...*site) (bytes int64) {
	owed := map[string]int64{}
	for _, ref := range r.refs() {
		now, ok := r.history.now(ref)
		if !ok || now.digest == "" {
			continue
		}
		for _, m := range sites {
			if d, _ := r.watcher.shown(m.name, ref); d != now.digest {
				r.mu.Lock()
				for b, size := range r.blobs[now.digest] {
					owed[b] = size
				}
				r.mu.Unlock()
			}
		}
	}
	for _, size := range owed {
		bytes += size
	}
	return bytes
}

// emptied notes what a registry held that is about to be wiped, where no fellow has it.
func (r *run) emptied(s *site) {
	if len(s.members) > 1 {
		return
	}
	held := map[string]int64{}
	for _, ref := range r.refs() {
		d, _ := r.watcher.shown(s.name, ref)
		r.mu.Lock()
		for b, size := range r.blobs[d] {
			held[b] = size
		}
		r.mu.Unlock()
	}
	begun := r.pending(s) // of this some blobs may be in the registry already
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.accountOf(s.group)
	a.emptied += min(begun, r.above(s.group).down.Load()-a.mark)
	for _, size := range held {
		a.emptied += size
	}
}

// end kills an agent, and keeps what it had counted.
func (r *run) end(s *site) {
	again, collected := counted(s)
	s.kill()
	lost := min(r.pending(s), inFlight)
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.accountOf(s.group)
	a.resent += again
	a.collect += collected
	a.killed += lost
	a.kills++
}

// counted reads how many bytes an agent says that it had to receive again since its start, and that its registry collected.
func counted(s *site) (again, collected int64) {
	client := &http.Client{Timeout: 500 * time.Millisecond}
	resp, err := client.Get("http://" + s.http + "/metrics")
	if err != nil {
		return 0, 0
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		f, err := strconv.ParseFloat(value, 64)
		switch {
		case err != nil:
		case strings.HasPrefix(name, "fanout_transfer_resent_bytes_total{"):
			again += int64(f)
		case name == "fanout_registry_collected_bytes_total":
			collected += int64(f)
		}
	}
	return again, collected
}

const (
	// What crosses a link beside blobs: heartbeats, records with their manifests, health, questions. Measured without faults: 24 KiB in 30 s with 20 revisions.
	chatterPerSecond = 2 << 10
	chatterPerRecord = 4 << 10
	// unread is what a connection that ends may have carried that the receiver had not read.
	unread = buffered
	// inFlight is what a receiver that is killed may have received of pieces: one of each stream of a large blob, and of each small one.
	inFlight = (largeAtOnce*streams + 16) * piece
)

// meter reads what the agents and links have counted.
func (r *run) meter() {
	for _, group := range soakBelow {
		a, l := r.accountOf(group), r.above(group)
		a.down, a.breaks = l.down.Load(), l.breaks.Load()
		for _, s := range r.at(soakGroups[group]...) {
			again, collected := counted(s)
			a.resent += again
			a.collect += collected
		}
	}
}

// balance compares what crossed each link with what had to, and why it may be more.
func (r *run) balance() {
	r.t.Helper()
	refs, back := int64(len(r.refs())), r.returned()
	for _, group := range soakBelow {
		a := r.accountOf(group)
		unique, dropped := r.unique(group)
		talk := (unique+dropped)/256 + chatter + int64(time.Since(r.began).Seconds())*chatterPerSecond + (int64(r.history.top)+a.resyncs*refs)*chatterPerRecord
		inBreaks := a.breaks*unread + a.killed
		collected := min(a.collect, back*int64(len(soakGroups[group])))
		most := unique + dropped + talk + a.resent + inBreaks + a.lone + a.emptied + collected
		r.t.Logf("link of %s, MiB: %.2f crossed; %.2f had to, %.2f of what was replaced before it was seen, %.2f chatter; again: %.2f counted by the agents, %.2f in flight at %d breaks and %d kills, %.2f held by a member alone, %.2f lost with a registry, %.2f collected; bound %.2f",
			group, mibs(a.down), mibs(unique), mibs(dropped), mibs(talk), mibs(a.resent), mibs(inBreaks), a.breaks, a.kills, mibs(a.lone), mibs(a.emptied), mibs(collected), mibs(most))
		if a.down > most {
			r.t.Errorf("%d bytes crossed the link of %s, at most %d are explained", a.down, group, most)
		}
	}
}

// returned adds up the blobs that a revision needed again after none had needed them: meanwhile a registry may have collected them.
func (r *run) returned() (bytes int64) {
	shows := map[string]string{} // by ref
	users := map[string]int{}    // of a blob: refs that show an image with it
	ever := map[string]bool{}
	for rev := uint64(1); rev <= r.history.top; rev++ {
		c, ok := r.history.all[rev]
		if !ok || shows[c.ref] == c.digest {
			continue
		}
		for b, size := range r.blobs[c.digest] {
			if users[b] == 0 && ever[b] {
				bytes += size
			}
			users[b]++
			ever[b] = true
		}
		for b := range r.blobs[shows[c.ref]] {
			users[b]--
		}
		shows[c.ref] = c.digest
	}
	return bytes
}

// unique adds up the blobs of what was shown in a group or below it, each once, and those of what was published and never shown there, since something newer took its place: of these
// any part may have crossed.
func (r *run) unique(group string) (shown, dropped int64) {
	seen := map[string]bool{}
	for name, s := range r.sites {
		if s.group != group && !strings.HasPrefix(s.group, group+"/") {
			continue
		}
		for _, list := range r.watcher.seen[name] {
			for _, st := range list {
				seen[st.digest] = true
			}
		}
	}
	counted := map[string]bool{}
	add := func(digest string, to *int64) {
		for b, size := range r.blobs[digest] {
			if !counted[b] {
				counted[b] = true
				*to += size
			}
		}
	}
	for digest := range seen {
		add(digest, &shown)
	}
	for _, c := range r.history.all {
		add(c.digest, &dropped)
	}
	return shown, dropped
}

func mibs(n int64) float64 { return float64(n) / mib }
