package view_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

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
	{Group: "hq/jx", Parent: "hq", Tier: 1, Root: "jx-a", State: "synced", Worst: "synced", WorstAt: "hq/jx", Revision: 42, Members: []*adminv1.TreeMember{{Site: "jx-a", State: "synced"}, {Site: "jx-w", State: "witness", RegistryType: "none"}}},
}})

// TestTree_MemberAway: of a group that is unreachable because of a member its line says that the root answers; of one that is away it does not.
func TestTree_MemberAway(t *testing.T) {
	at := before(0)
	text := view.TreeOf(&adminv1.TreeResponse{AsOf: at, Groups: []*adminv1.TreeGroup{
		{Group: "hq", Root: "hq-a", State: "degraded", Answers: true, LastContact: at, Reason: "hq-a: registry"},
		{Group: "hq/gd", Parent: "hq", Root: "gd-b", State: "unreachable", Answers: true, LastContact: at, Reason: "gd-a: no contact"},
		{Group: "hq/hn", Parent: "hq", Root: "hn-a", State: "unreachable", LastContact: before(time.Minute), Reason: "its stream broke"},
	}}).Text(view.Style{})
	for _, want := range []string{"now root gd-b answers; gd-a: no contact", "1m00s ago its stream broke", "now hq-a: registry"} {
		if !strings.Contains(strings.Join(strings.Fields(text), " "), want) {
			t.Errorf("%q is not in it:\n%s", want, text)
		}
	}
	if strings.Contains(text, "hn-a answers") || strings.Contains(text, "hq-a answers") {
		t.Errorf("who is away does not answer, and of others it goes without saying:\n%s", text)
	}
}

// fourHundred is a tree in which cities are in the states that are given for them, province and city, and else all is well.
func fourHundred(odd map[[2]int]*adminv1.TreeMember) *adminv1.TreeResponse {
	r := &adminv1.TreeResponse{AsOf: before(0)}
	add := func(path, parent string, like *adminv1.TreeMember) {
		g := &adminv1.TreeGroup{Group: path, Parent: parent, Tier: uint32(strings.Count(path, "/")), State: like.GetState(), LagSeconds: like.GetLagSeconds(), Worst: like.GetState(), WorstAt: path}
		for i := range 4 {
			m := proto.CloneOf(like)
			m.Site = fmt.Sprintf("%s-%d", path, i)
			g.Members = append(g.Members, m)
		}
		r.Groups = append(r.Groups, g)
	}
	synced := &adminv1.TreeMember{State: "synced"}
	add("hq", "", synced)
	for p := range 21 {
		province := fmt.Sprintf("hq/p%02d", p)
		add(province, "hq", synced)
		for c := range 18 {
			like := synced
			if m := odd[[2]int{p, c}]; m != nil {
				like = m
			}
			add(fmt.Sprintf("%s/c%02d", province, c), province, like)
		}
	}
	return r
}

// TestPicture_FourHundredGroups: what is well is summed up, so that a large tree fits on a screen, and the document stays whole.
func TestPicture_FourHundredGroups(t *testing.T) {
	r := fourHundred(map[[2]int]*adminv1.TreeMember{
		{7, 3}:  {State: "degraded"},
		{2, 1}:  {State: "syncing", BytesLeft: 1 << 30}, // on its way
		{2, 2}:  {State: "behind", LagSeconds: 2},       // as everybody is for a moment
		{20, 0}: {State: "behind", LagSeconds: 300},
		{11, 5}: {State: "synced", CertificateExpires: before(-time.Hour)}, // nothing says so yet but this
	})
	p := view.Picture{Tree: view.TreeOf(r), Fold: true}
	text := p.Text(view.Style{})
	if n := strings.Count(text, "\n"); n > 50 {
		t.Errorf("%d lines for %d groups:\n%s", n, len(r.Groups), text)
	}
	for _, want := range []string{
		"hq/p07/c03", "hq/p20/c00", "hq/p11/c05", "its certificate ends in 1h00m", "… 133 groups, 532 sites: 524 synced, 4 syncing, 4 behind, 4.0 GiB left", "… 3 groups, 12 sites: synced",
		"400 groups, 1600 sites: 1584 synced, 4 syncing, 8 behind, 4 degraded",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in it:\n%s", want, text)
		}
	}
	p.Fold, p.Unhealthy = false, true
	if sick := p.Text(view.Style{}); !strings.Contains(sick, "hq/p07/c03-0") || !strings.Contains(sick, "hq/p11/c05-3") || strings.Contains(sick, "hq/p07-0") || strings.Count(sick, "\n") > 35 {
		t.Errorf("only what is not well:\n%s", sick)
	}
	var whole, folded bytes.Buffer
	if err := view.JSON(&whole, p.Tree, false); err != nil {
		t.Fatal(err)
	}
	if err := view.JSON(&folded, p, false); err != nil || !bytes.Equal(whole.Bytes(), folded.Bytes()) {
		t.Errorf("the document is another: %v", err)
	}
}

// BenchmarkTree400 is the text and the document of a tree of 400 groups: lines and bytes of each, and what it allocates.
func BenchmarkTree400(b *testing.B) {
	r := fourHundred(map[[2]int]*adminv1.TreeMember{{7, 3}: {State: "degraded"}, {12, 9}: {State: "unreachable"}})
	for name, p := range map[string]view.Picture{"folded": {Fold: true}, "all": {}, "unhealthy": {Unhealthy: true}, "wide": {Wide: true}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var text string
			for b.Loop() {
				p.Tree = view.TreeOf(r)
				text = p.Text(view.Style{})
			}
			b.ReportMetric(float64(strings.Count(text, "\n")), "lines")
			b.ReportMetric(float64(len(text)), "B")
		})
	}
	b.Run("json", func(b *testing.B) {
		b.ReportAllocs()
		var doc bytes.Buffer
		for b.Loop() {
			doc.Reset()
			if err := view.JSON(&doc, view.TreeOf(r), false); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(doc.Len()), "B")
		b.ReportMetric(float64(proto.Size(r)), "B-on-the-wire")
	})
}

// What a picture can't show it says, under the table and in the document.
func TestTree_Limits(t *testing.T) {
	t.Parallel()
	r := &adminv1.TreeResponse{AsOf: before(0), Groups: []*adminv1.TreeGroup{{Group: "hq/gd/sz", State: "synced"}}, CutOff: &treev1.CutOff{Group: "hq/gd\x1b[2J", Since: before(3 * time.Minute)}, NoRoot: "group hq/gd/sz has no root now"}
	doc := view.TreeOf(r)
	text := doc.Text(view.Style{})
	for _, want := range []string{"its group has no root now.\n", "hq/gd�[2J is attached to no parent since 2026-11-24 07:57:00Z (3m00s ago): what headquarters has published since is not known here.\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	where := view.WhereOf(&adminv1.WhereResponse{AsOf: r.AsOf, CutOff: r.CutOff})
	if !strings.HasSuffix(where.Text(view.Style{}), "is not known here.\n") {
		t.Errorf("where:\n%s", where.Text(view.Style{}))
	}
	r.CutOff, r.NoRoot = nil, ""
	if out, err := json.Marshal(view.TreeOf(r)); err != nil || strings.Contains(string(out), "cutOff") || strings.Contains(string(out), "noRoot") {
		t.Errorf("%v: %s", err, out)
	}
}
