package agent

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"

	"github.com/fanout-io/fanout/pkg/config"
	"github.com/fanout-io/fanout/pkg/store"
	"github.com/fanout-io/fanout/pkg/transfer"
	"github.com/fanout-io/fanout/pkg/tree"
)

// TestBlobProgress: who asks why is told since when a blob is asked for, so that one that was asked for just now is not said not to come.
func TestBlobProgress(t *testing.T) {
	since := time.Now().Add(-time.Minute)
	if b := blobProgress(transfer.Progress{Digest: "sha256:1", Size: 10, Have: 3, Rate: 2, Since: since, Source: transfer.Source{Site: "hq-a"}}); !b.GetSince().AsTime().Equal(since) || b.GetSource() != "hq-a" || b.GetHave() != 3 {
		t.Errorf("%v", b)
	}
}

// TestTop_Bounded: those that began first are listed, and how many are left out is said, what others left out counted.
func TestTop_Bounded(t *testing.T) {
	r := &adminv1.TopResponse{LeftOut: 7}
	for i := range 5 {
		r.Transfers = append(r.Transfers, &adminv1.Transfer{Site: fmt.Sprint("s", i), Since: timestamppb.New(noon.Add(-time.Duration(i) * time.Second))})
	}
	boundTop(r, 3)
	if len(r.Transfers) != 3 || r.Transfers[0].GetSite() != "s4" || r.Transfers[2].GetSite() != "s2" || r.LeftOut != 9 {
		t.Errorf("%v", r)
	}
}

// TestTop_Transfer: from whom a blob comes, and how many of its pieces are there.
func TestTop_Transfer(t *testing.T) {
	a := &Agent{cfg: &config.Config{Site: "gd-a", Group: "hq/gd"}}
	roster := tree.Roster{Parent: "hq"}
	flight := func(have int64, s transfer.Source) transfer.Progress {
		return transfer.Progress{Digest: "sha256:1", Size: 2*store.PieceSize + 1, Have: have, Source: s, Request: transfer.Request{Repository: "team/app", Tag: "1"}}
	}
	for _, tt := range []struct {
		f      transfer.Progress
		from   string
		pieces uint64
	}{
		{flight(0, transfer.Source{}), "", 0},
		{flight(store.PieceSize+5, transfer.Source{Site: "hq-a", Upstream: true}), "hq", 1},
		{flight(2*store.PieceSize, transfer.Source{Site: "gd-b"}), "hq/gd", 2},
		{flight(2*store.PieceSize+1, transfer.Source{Site: "sz-a", Addr: belowScheme + "hq/gd/sz", Upstream: true}), "hq/gd/sz", 3},
	} {
		got := a.transferOf(tt.f, roster)
		if got.GetFromGroup() != tt.from || got.GetPiecesHave() != tt.pieces || got.GetPieces() != 3 || got.GetRef() != "team/app:1" || got.GetSite() != "gd-a" {
			t.Errorf("%v", got)
		}
	}
}

// TestTop_Place: for one place only those on the way to it are asked, so that a silent one elsewhere holds nothing up.
func TestTop_Place(t *testing.T) {
	for _, c := range []struct {
		about  topOf
		fellow bool // gd-b of hq/gd is asked
		child  bool // hq/gd/sz is
	}{
		{topOf{}, true, true},
		{topOf{"hq/gd", ""}, true, false},
		{topOf{"hq/gd", "gd-b"}, true, false},
		{topOf{"hq/gd", "gd-a"}, false, false},
		{topOf{"hq/gd/sz", "sz-a"}, false, true},
		{topOf{"hq/gd/sz/ft", ""}, false, true},
		{topOf{"hq/gd/szx", "szx-a"}, false, false},
	} {
		if f, ch := c.about.fellow("hq/gd", "gd-b"), c.about.child("hq/gd/sz"); f != c.fellow || ch != c.child {
			t.Errorf("%v: %v, %v", c.about, f, ch)
		}
	}
}
