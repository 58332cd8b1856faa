package agent

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"

	"github.com/fanout-io/fanout/pkg/store"
	"github.com/fanout-io/fanout/pkg/transfer"
	"github.com/fanout-io/fanout/pkg/tree"
)

const (
	// topTimeout bounds the question for the transfers of others; each tier below has a little less.
	topTimeout = 8 * time.Second
	// topPerAgent and topTotal bound how many transfers are listed.
	topPerAgent = 100
	topTotal    = 2000
	// topAtOnce is how many agents are asked at a time.
	topAtOnce = 16
)

// Top implements adminv1.AdminServiceServer. The root asks the members of its group and the roots of the groups below it.
func (s *admin) Top(ctx context.Context, req *adminv1.TopRequest) (*adminv1.TopResponse, error) {
	actor, err := s.actor(ctx)
	if err != nil {
		return nil, err
	}
	if req.GetHere() {
		return s.a.topHere(), nil
	}
	root, err := s.rootOnce(ctx)
	if err != nil {
		// Without a root this site can say what it does all the same.
		t := s.a.topHere()
		t.Absent = append(t.Absent, &adminv1.Absent{Group: s.a.cfg.Group, Reason: callWords(err)})
		return t, nil
	}
	if root != nil {
		return root.Top(onBehalf(ctx, actor), req)
	}
	return s.topFromHere(ctx, actor, topOf{}), nil
}

// topHere lists this site's own transfers.
func (a *Agent) topHere() *adminv1.TopResponse {
	t := &adminv1.TopResponse{AsOf: now()}
	roster := a.node.Roster()
	for _, f := range a.fetcher.Active() {
		t.Transfers = append(t.Transfers, a.transferOf(f, roster))
	}
	boundTop(t, topPerAgent)
	return t
}

func (a *Agent) transferOf(f transfer.Progress, roster tree.Roster) *adminv1.Transfer {
	x := &adminv1.Transfer{
		Group: a.cfg.Group, Site: a.cfg.Site, From: f.Source.Site, Ref: f.Request.Repository + ":" + f.Request.Tag, Digest: f.Digest, Size: f.Size, Have: f.Have, Rate: f.Rate,
		Pieces: uint64((f.Size + store.PieceSize - 1) / store.PieceSize), PiecesHave: uint64(f.Have / store.PieceSize), Since: timestamppb.New(f.Since), Queued: f.Queued,
	}
	if f.Have >= f.Size {
		x.PiecesHave = x.Pieces
	}
	below, isBelow := strings.CutPrefix(f.Source.Addr, belowScheme)
	switch {
	case f.Source.Site == "":
	case isBelow:
		x.FromGroup = below
	case f.Source.Upstream:
		x.FromGroup = roster.Parent
	default:
		x.FromGroup = a.cfg.Group
	}
	if f.Err != nil {
		x.Error = firstLine(f.Err.Error())
	}
	return x
}

// boundTop leaves out what is more than there may be: those that began last.
func boundTop(t *adminv1.TopResponse, most int) {
	slices.SortStableFunc(t.Transfers, func(x, y *adminv1.Transfer) int {
		return cmp.Or(x.GetSince().AsTime().Compare(y.GetSince().AsTime()), cmp.Compare(x.GetSite(), y.GetSite()), cmp.Compare(x.GetDigest(), y.GetDigest()))
	})
	if extra := len(t.Transfers) - most; extra > 0 {
		t.Transfers, t.LeftOut = t.Transfers[:most], t.LeftOut+uint64(extra)
	}
}

// topOf is of whom transfers are asked for: a site, a group as a whole, or all where both are empty. Whoever is not on the way to it, and is silent, holds up no answer.
type topOf struct{ group, site string }

// fellow says whether a member of the own group is to be asked.
func (p topOf) fellow(own, site string) bool {
	return p.group == "" || p.group == own && (p.site == "" || p.site == site)
}

// child says whether a group below is to be asked.
func (p topOf) child(group string) bool {
	return p.group == "" || p.group == group || strings.HasPrefix(p.group, group+"/")
}

// topFromHere asks all that are on the way to a place, some at a time, and says who did not answer.
func (s *admin) topFromHere(ctx context.Context, actor string, about topOf) *adminv1.TopResponse {
	a := s.a
	ctx, cancel := context.WithTimeout(onBehalf(ctx, actor), within(ctx, topTimeout))
	defer cancel()
	var mu sync.Mutex
	out := a.topHere()
	add := func(t *adminv1.TopResponse, err error, group, site string) {
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			out.Absent = append(out.Absent, &adminv1.Absent{Group: group, Site: site, Reason: callWords(err)})
			return
		}
		out.Transfers, out.Absent, out.LeftOut = append(out.Transfers, t.GetTransfers()...), append(out.Absent, t.GetAbsent()...), out.LeftOut+t.GetLeftOut()
	}
	var g errgroup.Group
	g.SetLimit(topAtOnce)
	asked := map[string]bool{}
	for _, h := range a.node.Health().Sites {
		if h.GetGroup() != a.cfg.Group || h.GetSite() == a.cfg.Site || h.GetRegistryType() == "none" || !about.fellow(a.cfg.Group, h.GetSite()) {
			continue
		}
		g.Go(func() error {
			client, err := a.reach(ctx, h.GetSite())
			if err != nil {
				add(nil, err, a.cfg.Group, h.GetSite())
				return nil
			}
			t, err := client.Top(ctx, &adminv1.TopRequest{Here: true})
			add(t, err, a.cfg.Group, h.GetSite())
			return nil
		})
	}
	for _, t := range a.node.Tunnels() {
		if !about.child(t.Group) {
			continue
		}
		asked[t.Group] = true
		g.Go(func() error {
			r, err := adminv1.NewAdminServiceClient(t.Conn).Top(ctx, &adminv1.TopRequest{})
			add(r, err, t.Group, "")
			return nil
		})
	}
	_ = g.Wait()
	for child := range a.node.Catalog().Groups() {
		if up := parentPath(child.GetPath()); up == a.cfg.Group && about.child(child.GetPath()) && !asked[child.GetPath()] {
			out.Absent = append(out.Absent, &adminv1.Absent{Group: child.GetPath(), Reason: "not attached here"})
		}
	}
	boundTop(out, topTotal)
	slices.SortFunc(out.Absent, func(x, y *adminv1.Absent) int {
		return cmp.Or(cmp.Compare(x.GetGroup(), y.GetGroup()), cmp.Compare(x.GetSite(), y.GetSite()))
	})
	return out
}
