package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/fanout-io/fanout/pkg/tree"
)

const (
	// companyEvery is how often a root looks who is there. A look costs it a view of all health.
	companyEvery = 2 * time.Second
	// memberLostAfter is how long a member must be out of reach before it is told: a connection may break and stand again.
	memberLostAfter = 5 * time.Second
	// groupLostAfter is the same for a group below. Where its root goes, the next one attaches within a few seconds.
	groupLostAfter = 10 * time.Second
)

// company is what a root has told of who is there, in one term of office: of the members of its group, and of the groups that attach to it. What is below those their own roots tell. Not safe for
// concurrent use.
type company struct {
	events  *events
	group   string
	members presence
	groups  presence
}

// presence is by name.
type presence map[string]*attendance

// attendance is whether one is lost, as it was told, and since when he is seen to be.
type attendance struct {
	told  bool
	since time.Time
}

// see notes how one is, and says whether that is news: that he is lost only when he was for as long as wait.
func (p presence) see(name string, lost bool, now time.Time, wait time.Duration) bool {
	at := p[name]
	switch {
	case lost && at == nil:
		p[name] = &attendance{since: now}
		return false
	case lost && !at.told && now.Sub(at.since) >= wait:
		at.told = true
		return true
	case lost:
		return false
	}
	delete(p, name)
	return at != nil && at.told
}

// keep forgets those that do not belong here any more.
func (p presence) keep(there map[string]bool) {
	maps.DeleteFunc(p, func(name string, _ *attendance) bool { return !there[name] })
}

// look tells what is news. The words are the same each time, so that those of a link that breaks again and again are counted.
func (c *company) look(view tree.HealthView, now time.Time) {
	there := map[string]bool{}
	for _, h := range view.Sites {
		site := h.GetSite()
		if h.GetGroup() != c.group {
			continue
		}
		there[site] = true
		switch lost := h.GetState() == "unreachable"; {
		case h.GetState() == "unknown" && !h.GetStarting(): // it is not known yet
		case !c.members.see(site, lost, now, memberLostAfter):
		case lost:
			c.events.warning("MemberLost", "", fmt.Sprintf("%s, of %s, is not heard of any more", site, c.group))
		default:
			c.events.normal("MemberBack", "", fmt.Sprintf("%s, of %s, is heard of again", site, c.group))
		}
	}
	c.members.keep(there)
	below := c.attached(view)
	clear(there)
	for _, g := range below {
		there[g.name] = true
		switch {
		case g.unknown:
		case !c.groups.see(g.name, g.lost, now, groupLostAfter):
		case g.lost:
			c.events.warning("GroupLost", "", fmt.Sprintf("%s is not attached to %s any more", g.name, c.group))
		default:
			c.events.normal("GroupBack", "", fmt.Sprintf("%s is attached to %s again", g.name, c.group))
		}
	}
	c.groups.keep(there)
}

// attachedGroup is a group that attaches to this one.
type attachedGroup struct {
	name          string
	lost, unknown bool
}

// attached are the groups that attach to this one, or did so last. One that was not heard of since the root was elected is taken for one of them where no other lies between.
func (c *company) attached(view tree.HealthView) (out []attachedGroup) {
	names := make([]string, len(view.Groups))
	for i, g := range view.Groups {
		names[i] = g.GetGroup()
	}
	for _, g := range view.Groups {
		name := g.GetGroup()
		between := func(other string) bool {
			return strings.HasPrefix(name, other+"/") && strings.HasPrefix(other, c.group+"/")
		}
		direct := g.GetParent() == c.group || g.GetParent() == "" && !slices.ContainsFunc(names, between)
		if direct && strings.HasPrefix(name, c.group+"/") {
			out = append(out, attachedGroup{name: name, lost: g.GetLost() && g.GetState() != "unknown", unknown: g.GetLost() && g.GetState() == "unknown"})
		}
	}
	return out
}

// attendCompany tells, at each root, that it was elected, and then who goes and comes, until ctx ends.
func (a *Agent) attendCompany(ctx context.Context) {
	changed, stop := a.node.WatchRoster()
	defer stop()
	var term uint64
	for {
		if office, ok := a.node.RootContext(ctx); ok {
			if now := a.node.Term(); now != term {
				term = now
				a.events.normal("Elected", "", fmt.Sprintf("%s is the root of %s, in term %d", a.cfg.Site, a.cfg.Group, term))
			}
			a.companyOffice(office)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// companyOffice tells who goes and comes in one term of office.
func (a *Agent) companyOffice(ctx context.Context) {
	c := &company{events: a.events, group: a.cfg.Group, members: presence{}, groups: presence{}}
	for sleep(ctx, companyEvery) {
		view := a.node.Health()
		if !a.node.IsRoot() { // then it was the view of a member
			return
		}
		c.look(view, time.Now())
	}
}
