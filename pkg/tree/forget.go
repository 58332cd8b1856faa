package tree

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/fanout-io/fanout/pkg/catalog"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// Subtree returns what is remembered here of a group and of those below it, parents before children; nothing when it is not known.
func (n *Node) Subtree(group string) (out []*catalogv1.Group) {
	for g := range n.Catalog().Groups() {
		if within(g.Path, group) {
			out = append(out, g)
		}
	}
	slices.SortFunc(out, func(a, b *catalogv1.Group) int { return comparePaths(a.Path, b.Path) })
	return out
}

// Gone returns nil when a group and all below it are away, as far as this root knows; else an error that wraps ErrRefused and says which is not. ErrNotRoot elsewhere.
func (n *Node) Gone(group string) error {
	o := n.office.Load()
	if o == nil {
		return ErrNotRoot
	}
	return o.gone(group)
}

func (o *office) gone(group string) error {
	if !below(group, o.n.cfg.Group) {
		return refused("%s is not below %s", group, o.n.cfg.Group)
	}
	for _, t := range o.n.Tunnels() {
		if within(t.Group, group) {
			return refused("%s is attached: stop its agents first", t.Group)
		}
	}
	for _, g := range o.n.Subtree(group) {
		switch h, _ := o.table.group(g.Path); {
		case h == nil || h.GetState() == unknown:
			return refused("%s was not heard of yet since %s became root, %s ago: try again in a while", g.Path, o.n.cfg.Site, time.Since(o.began).Round(time.Second))
		case h.GetState() != unreachable:
			return refused("%s is %s: stop its agents first", g.Path, h.GetState())
		}
	}
	return nil
}

// ForgetGroup forgets a group that is gone, and all below it: in the catalog, and in the health that this root knows. Groups between must have forgotten it before; else they tell of it
// again. What is forgotten already is no error.
func (n *Node) ForgetGroup(ctx context.Context, actor, group string) error {
	o := n.office.Load()
	if o == nil {
		return ErrNotRoot
	}
	if err := o.gone(group); err != nil {
		return err
	}
	for groups := n.Subtree(group); len(groups) > 0; groups = groups[min(len(groups), maxBatch):] {
		var changes []*catalogv1.Change
		for _, g := range groups[:min(len(groups), maxBatch)] {
			changes = append(changes, &catalogv1.Change{Kind: &catalogv1.Change_ForgetGroup{ForgetGroup: &catalogv1.ForgetGroup{Path: g.Path}}})
		}
		// Before, too: what a live group between told of it would be remembered again.
		o.table.forget(group)
		results, err := o.propose(ctx, actor, changes)
		if err != nil {
			return err
		}
		for _, r := range results {
			if r.Err != nil && !errors.Is(r.Err, catalog.ErrUnchanged) {
				return r.Err
			}
		}
	}
	o.table.forget(group)
	o.n.healthChanged.notify()
	return nil
}

// forget drops all that is known of a group and of those below it.
func (t *table) forget(group string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.seq
	for _, e := range t.sites {
		if !e.gone && within(e.msg.(*treev1.SiteHealth).GetGroup(), group) {
			t.remove(e)
		}
	}
	for path, e := range t.groups {
		if !e.gone && within(path, group) {
			t.remove(e)
		}
	}
	t.prune()
	if t.seq != before {
		t.changed.notify()
	}
}
