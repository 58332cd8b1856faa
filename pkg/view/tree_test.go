package view_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// troubled is a tree in which little is wrong, deep down, and some will be soon.
var troubled = view.TreeOf(&adminv1.TreeResponse{AsOf: before(0), Groups: []*adminv1.TreeGroup{
	{Group: "hq", Root: "hq-a", State: "synced", Worst: "unreachable", WorstAt: "hq/gd/sz", Revision: 42, Carrier: "hq-a", LastContact: before(0), Members: []*adminv1.TreeMember{
		{Site: "hq-a", State: "synced", Revision: 42, RegistryType: "embedded", Registry: "127.0.0.1:5001", Version: "v0.1.0", LastContact: before(0), Disk: &treev1.Disk{Free: 12 << 30, Total: 40 << 30},
			RegistryDisk: &treev1.Disk{Free: 100 << 20, Total: 1 << 40}, CertificateExpires: before(-3 * 24 * time.Hour)},
		{Site: "hq-w", State: "witness", Revision: 42, RegistryType: "none", Version: "v0.1.0", LastContact: before(0), CertificateExpires: before(time.Hour)},
		{Site: "hq-x", State: "unreachable", Revision: 41, RegistryType: "none", LastContact: before(time.Hour), CertificateExpires: before(-90 * 24 * time.Hour), Disk: &treev1.Disk{Free: 12 << 30, Total: 40 << 30},
			RegistryDisk: &treev1.Disk{Free: 12 << 30, Total: 40 << 30}},
	}},
	{Group: "hq/gd", Parent: "hq", Tier: 1, Root: "gd-a", State: "syncing", Worst: "unreachable", WorstAt: "hq/gd/sz", Revision: 42, LagSeconds: 35, BytesLeft: 1 << 30, EtaSeconds: 41, Members: []*adminv1.TreeMember{
		{Site: "gd-a", State: "syncing", Revision: 42, LagSeconds: 35, BytesLeft: 1 << 30, Rate: 25 << 20, EtaSeconds: 41, Pending: 1},
	}},
	{Group: "hq/gd/fs", Parent: "hq/gd", Tier: 2, Root: "fs-a", State: "synced", Worst: "synced", WorstAt: "hq/gd/fs", Revision: 42, Members: []*adminv1.TreeMember{{Site: "fs-a", State: "synced"}, {Site: "fs-b", State: "synced"}}},
	{Group: "hq/gd/sz", Parent: "hq/gd", Tier: 2, Root: "sz-a", State: "unreachable", Worst: "unreachable", WorstAt: "hq/gd/sz", Revision: 40, Lag: 2, LagSeconds: 600, Members: []*adminv1.TreeMember{{Site: "sz-a", State: "unreachable", Lag: 2, LagSeconds: 600, Reason: "no contact"}}},
	{Group: "hq/hn", Parent: "hq", Tier: 1, Root: "hn-a", State: "synced", Worst: "synced", WorstAt: "hq/hn", Revision: 42, Members: []*adminv1.TreeMember{{Site: "hn-a", State: "synced"}}},
	{Group: "hq/hn/cs", Parent: "hq/hn", Tier: 2, Root: "cs-a", State: "synced", Worst: "synced", WorstAt: "hq/hn/cs", Revision: 42, Members: []*adminv1.TreeMember{{Site: "cs-a", State: "synced"}}},
	{Group: "hq/jx", Parent: "hq", Tier: 1, Root: "jx-a", State: "synced", Worst: "synced", WorstAt: "hq/jx", Revision: 42, Members: []*adminv1.TreeMember{{Site: "jx-a", State: "synced"}}},
}})

// TestPicture_FourHundredGroups: what is well is summed up, so that a large tree fits on a screen, and the document stays whole.
func TestPicture_FourHundredGroups(t *testing.T) {
	r := &adminv1.TreeResponse{AsOf: before(0)}
	add := func(path, parent, state string) {
		g := &adminv1.TreeGroup{Group: path, Parent: parent, Tier: uint32(strings.Count(path, "/")), State: state, Worst: state, WorstAt: path}
		for i := range 4 {
			g.Members = append(g.Members, &adminv1.TreeMember{Site: fmt.Sprintf("%s-%d", path, i), State: state})
		}
		r.Groups = append(r.Groups, g)
	}
	add("hq", "", "synced")
	for p := range 21 {
		province := fmt.Sprintf("hq/p%02d", p)
		add(province, "hq", "synced")
		for c := range 18 {
			state := "synced"
			if p == 7 && c == 3 {
				state = "degraded"
			}
			add(fmt.Sprintf("%s/c%02d", province, c), province, state)
		}
	}
	p := view.Picture{Tree: view.TreeOf(r), Fold: true}
	text := p.Text(view.Style{})
	if n := strings.Count(text, "\n"); n > 24 {
		t.Errorf("%d lines for %d groups:\n%s", n, len(r.Groups), text)
	}
	for _, want := range []string{"hq/p07/c03", "… 133 groups, 532 sites: synced", "… 3 groups, 12 sites: synced", "400 groups, 1600 sites: 1596 synced, 4 degraded"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in it:\n%s", want, text)
		}
	}
	var whole, folded bytes.Buffer
	if err := view.JSON(&whole, p.Tree, false); err != nil {
		t.Fatal(err)
	}
	if err := view.JSON(&folded, p, false); err != nil || !bytes.Equal(whole.Bytes(), folded.Bytes()) {
		t.Errorf("the document is another: %v", err)
	}
}
