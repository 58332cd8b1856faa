package web

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// source keeps a feed new until ctx ends or there is trouble. It may return without either, and is then asked again a little later.
type source func(ctx context.Context, f *feed) error

const (
	// contactEvery is how much newer the time of the last contact must be for a part to be sent again in which nothing else changed.
	contactEvery = 30 * time.Second
	// lagEvery is the same of a lag in time.
	lagEvery = 5 * time.Second
	// maxFeedEvents bounds what a feed keeps of events.
	maxFeedEvents = 300
)

// sourceOf a feed by its name; nil: there is none of that name.
func sourceOf(name string, fabric Fabric) source {
	kind, of, named := strings.Cut(name, ":")
	if named == (of == "") {
		return nil
	}
	switch {
	case kind == "tree" && !named:
		return treeSource(fabric)
	case kind == "rollouts" && !named:
		return func(ctx context.Context, f *feed) error {
			return fabric.Rollouts(ctx, &adminv1.RolloutsRequest{Watch: true}, func(r *adminv1.RolloutsResponse) error {
				p := parts{}
				for _, x := range view.RolloutsOf(r).Rollouts {
					p.put(x.ID, x)
				}
				return p.into(f)
			})
		}
	case kind == "rollout" && named:
		return func(ctx context.Context, f *feed) error {
			return fabric.Rollouts(ctx, &adminv1.RolloutsRequest{Id: of, Watch: true}, func(r *adminv1.RolloutsResponse) error {
				return rolloutParts(rolloutOf(r)).into(f)
			})
		}
	case kind == "where" && named:
		return func(ctx context.Context, f *feed) error {
			return fabric.Where(ctx, &adminv1.WhereRequest{Ref: of, Watch: true}, func(r *adminv1.WhereResponse) error {
				doc := view.WhereOf(r)
				p := parts{}
				for _, s := range doc.Sites {
					p.put("s/"+s.Site, s)
				}
				doc.Sites, doc.AsOf = nil, nil
				p.put("ref", doc)
				return p.into(f)
			})
		}
	case kind == "pending" && named:
		return func(ctx context.Context, f *feed) error {
			return fabric.Pending(ctx, &adminv1.PendingRequest{Site: of, Watch: true}, func(r *adminv1.PendingResponse) error {
				p := parts{}
				for _, x := range view.PendingOf(r).Refs {
					p.put(x.Ref, x)
				}
				return p.into(f)
			})
		}
	case kind == "why" && named:
		site, ref, ok := strings.Cut(of, " ")
		if !ok {
			return nil
		}
		return whySource(fabric, site, ref)
	case kind == "conflicts" && !named:
		return conflictSource(fabric)
	case kind == "events" && !named:
		return eventSource(fabric)
	}
	return nil
}

// parts of a picture as JSON.
type parts map[string]any

func (p parts) put(key string, doc any) { p[key] = doc }

// into makes them all that a feed has.
func (p parts) into(f *feed) error {
	out := make(map[string][]byte, len(p))
	for key, doc := range p {
		b, err := json.Marshal(doc)
		if err != nil {
			return err
		}
		out[key] = b
	}
	f.change(out, true)
	return nil
}

// limitsKey is where a tree's feed says what it can't show. No group has such a path.
const limitsKey = "!limits"

// treeSource has a part for each group.
func treeSource(fabric Fabric) source {
	return func(ctx context.Context, f *feed) error {
		held := map[string]view.Group{}
		return fabric.Tree(ctx, &adminv1.TreeRequest{Watch: true}, func(r *adminv1.TreeResponse) error {
			doc := view.TreeOf(r)
			p := parts{}
			next := make(map[string]view.Group, len(doc.Groups))
			for _, g := range doc.Groups {
				if old, ok := held[g.Group]; ok && sameButContact(old, g) {
					g = old
				}
				next[g.Group] = g
				p.put(g.Group, g)
			}
			held = next
			if doc.Limits != (view.Limits{}) {
				p.put(limitsKey, doc.Limits)
			}
			return p.into(f)
		})
	}
}

// sameButContact says that two pictures of a group differ in nothing, or only in times that go on by themselves, and by little.
func sameButContact(old, new view.Group) bool {
	near := func(a, b *time.Time) bool {
		return a == nil && b == nil || a != nil && b != nil && b.Sub(*a).Abs() < contactEvery
	}
	nearLag := func(a, b float64) bool { return math.Abs(a-b) < lagEvery.Seconds() && (a > 0) == (b > 0) }
	if !near(old.LastContact, new.LastContact) || !nearLag(old.LagSeconds, new.LagSeconds) || len(old.Members) != len(new.Members) {
		return false
	}
	for i := range old.Members {
		x, y := old.Members[i], new.Members[i]
		if !near(x.LastContact, y.LastContact) || !nearLag(x.LagSeconds, y.LagSeconds) || !sameTime(x.CertificateExpires, y.CertificateExpires) || !sameDisk(x.Disk, y.Disk) || !sameDisk(x.RegistryDisk, y.RegistryDisk) {
			return false
		}
		for _, m := range []*view.Member{&x, &y} { // what is behind pointers was compared
			m.LastContact, m.CertificateExpires, m.Disk, m.RegistryDisk, m.LagSeconds = nil, nil, nil, nil, 0
		}
		if x != y {
			return false
		}
	}
	x, y := encoded(steady(old)), encoded(steady(new))
	return x != "" && x == y
}

func sameTime(a, b *time.Time) bool {
	return a == nil && b == nil || a != nil && b != nil && a.Equal(*b)
}

// sameDisk says that the room on a disk has not changed by more than a thousandth of it: logs are written all the time.
func sameDisk(a, b *view.Disk) bool {
	return a == nil && b == nil || a != nil && b != nil && a.Total == b.Total && max(a.Free-b.Free, b.Free-a.Free) <= a.Total/1000
}

// steady is a group without its members and what goes on by itself.
func steady(g view.Group) view.Group {
	g.LastContact, g.LagSeconds, g.Members = nil, 0, nil
	return g
}

func encoded(doc any) string {
	b, err := json.Marshal(doc)
	if err != nil {
		return ""
	}
	return string(b)
}

// rolloutParts divides a rollout, so that a group that moves on does not send all others again.
func rolloutParts(r view.Rollout) parts {
	p := parts{}
	asOf := r.AsOf
	for i, w := range r.Waves {
		for _, g := range w.Groups {
			p.put(fmt.Sprintf("g/%03d/%s", i, g.Group), g)
		}
		w.Groups = nil
		if w.WindowNext != nil && asOf != nil && !w.WindowNext.After(*asOf) {
			open := w.WindowNext.Truncate(time.Minute) // it is open: the moment is that of the picture
			w.WindowNext = &open
		}
		p.put(fmt.Sprintf("w/%03d", i), w)
	}
	for _, s := range r.Sites {
		p.put("s/"+s.Site+"/"+s.Ref, s)
	}
	for i, s := range r.Steps {
		p.put(fmt.Sprintf("t/%05d", i), s)
	}
	r.Waves, r.Sites, r.Steps, r.AsOf = nil, nil, nil, nil
	p.put("rollout", r)
	return p
}

// whySource has one part. It can't be watched, so it is asked for.
func whySource(fabric Fabric, site, ref string) source {
	return func(ctx context.Context, f *feed) error {
		resp, err := fabric.Why(ctx, &adminv1.WhyRequest{Ref: ref, Site: site})
		if err != nil {
			return err
		}
		doc := view.WhyOf(resp)
		doc.AsOf = nil
		for i := range doc.Hops {
			if doc.Hops[i].Live {
				doc.Hops[i].LastContact = nil // that is now
			}
		}
		return parts{"why": doc}.into(f)
	}
}

// conflictSource has a part for each conflict and each deletion that waits. They can't be watched, so they are asked for.
func conflictSource(fabric Fabric) source {
	return func(ctx context.Context, f *feed) error {
		conflicts, err := fabric.Conflicts(ctx)
		if err != nil {
			return err
		}
		deletions, err := fabric.Deletions(ctx)
		if err != nil {
			return err
		}
		p := parts{}
		for _, c := range view.ConflictsOf(conflicts).Conflicts {
			p.put("c/"+c.Ref+"/"+c.Loser.Digest+"/"+c.Loser.Site, c)
		}
		for _, d := range view.DeletionsOf(deletions).Deletions {
			p.put("d/"+d.Ref+"/"+d.Site, d)
		}
		return p.into(f)
	}
}

// eventSource has a part for each of the newest events. One that happens again takes the place of the one before.
func eventSource(fabric Fabric) source {
	return func(ctx context.Context, f *feed) error {
		var order []string
		if err := (parts{}).into(f); err != nil { // events have no numbers: those of an answer before are not known again
			return err
		}
		return fabric.Events(ctx, &adminv1.EventsRequest{Follow: true}, func(r *adminv1.EventsResponse) error {
			e := view.EventOf(r)
			var first int64
			if e.First != nil {
				first = e.First.UnixNano()
			}
			key := fmt.Sprintf("%d/%s/%s/%s", first, e.Reason, e.Ref, e.Message)
			b, err := json.Marshal(e)
			if err != nil {
				return err
			}
			if i := slices.Index(order, key); i >= 0 {
				order = slices.Delete(order, i, i+1)
			}
			order = append(order, key)
			f.change(map[string][]byte{key: b}, false)
			if n := len(order) - maxFeedEvents; n > 0 {
				f.remove(order[:n]...)
				order = slices.Clone(order[n:])
			}
			return nil
		})
	}
}
