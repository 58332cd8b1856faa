package view_test

import (
	"strings"
	"testing"
	"time"

	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// describeDocuments are one of each kind, each with something wrong, and one of which little is known.
func describeDocuments() map[string]document {
	events := []*adminv1.EventsResponse{
		{Time: before(time.Hour), First: before(time.Hour), Type: "Normal", Reason: "Attached", Site: "gd-a", Message: "to hq, by hq-a", Count: 1},
		{Time: before(time.Minute), First: before(time.Hour), Type: "Warning", Reason: "Failed", Site: "gd-a", Ref: "team/app:1.4", Message: "quota\x1b[2J", Count: 7},
	}
	conflicts := []*adminv1.ConflictInfo{{
		Ref: "team/app:1.4", Winner: &adminv1.ConflictSide{Digest: digestB, Site: "hq-a", Revision: 42}, Loser: &adminv1.ConflictSide{Digest: digestA, Site: "hq-b"},
		Now: &adminv1.ConflictSide{Digest: digestB, Site: "hq-a", Revision: 42},
	}}
	rollouts := []*catalogv1.Rollout{{Id: "r1", Phase: "running", Started: before(time.Hour), Items: []*catalogv1.RolloutItem{{Repository: "team/app", Tag: "1.4"}}}}
	member := &adminv1.TreeMember{
		Site: "gd-a", State: "degraded", Registry: "https://harbor.gd.example.com", RegistryType: "harbor", Revision: 40, Pending: 2, Lag: 2, LagSeconds: 75, BytesLeft: 1 << 30, Rate: 1 << 20, EtaSeconds: 1024,
		Reason: "1 ref fails", Version: "v0.1.0", LastContact: before(time.Second), Disk: &treev1.Disk{Free: 1 << 30, Total: 1 << 34}, CertificateExpires: before(-72 * time.Hour),
	}
	group := &adminv1.TreeGroup{
		Group: "hq/gd", Parent: "hq", Tier: 1, Root: "gd-a", Term: 3, State: "syncing", Worst: "unreachable", WorstAt: "hq/gd/sz", Revision: 40, Lag: 2, LagSeconds: 75, Carrier: "gd-a", LastContact: before(time.Second),
		Labels: map[string]string{"tier": "province", "land": "cn"}, Freeze: &catalogv1.Freeze{Reason: "holidays", By: "alice", Since: before(time.Hour), Until: before(-time.Hour)},
		Members: []*adminv1.TreeMember{member, {Site: "gd-w", State: "witness", RegistryType: "none", Revision: 40}},
	}
	alone := &adminv1.TreeGroup{Group: "hq/gd", Root: "gd-a", Carrier: "gd-a", Members: []*adminv1.TreeMember{member}}
	return map[string]document{
		"describe_group": view.DescribeOf(&adminv1.DescribeResponse{
			Kind: "group", Name: "hq/gd", AsOf: before(0), Group: group, Keep: 5, Parents: []string{"10.0.0.1:7400", "10.0.0.2:7400"}, FallbackParents: []string{"10.9.0.1:7400"},
			Demand:   &catalogv1.Scope{AnyOf: []*catalogv1.Subscription{{Repositories: []string{"team/**"}, Exclude: []string{"team/lab"}, Keep: 5}, {Repositories: []string{"base/os"}}}},
			Children: []*adminv1.TreeGroup{{Group: "hq/gd/sz", Parent: "hq/gd", State: "unreachable", Revision: 39, Lag: 3}}, Rollouts: rollouts, Events: events,
			Servers:   []*adminv1.MemberInfo{{Site: "gd-a", Id: "gd-a/1f", Role: "root", Voter: true, RaftAddress: "10.0.1.1:7401"}, {Site: "gd-b", Id: "gd-b/2e", Role: "follower", Voter: true, RaftAddress: "10.0.1.2:7401"}, {Site: "gd-c", Id: "gd-c/3d", Role: "follower"}},
			Transfers: []*adminv1.Transfer{{Group: "hq/gd", Site: "gd-a", FromGroup: "hq", From: "hq-a", Ref: "team/app:1.4", Digest: digestA, Size: 8 << 20, Have: 3 << 20, Rate: 1 << 20, Pieces: 8, PiecesHave: 3, Since: before(3 * time.Second)}},
			Notes:     []string{"asked at hq/gd: rollouts, policies and conflicts are known at headquarters only"},
		}),
		"describe_site": view.DescribeOf(&adminv1.DescribeResponse{
			Kind: "site", Name: "gd-a", AsOf: before(0), Group: alone, Events: events, Conflicts: conflicts, Incarnation: "1f", Servers: []*adminv1.MemberInfo{{Site: "gd-a", Id: "gd-a/1f", Role: "root", Voter: true, RaftAddress: "10.0.1.1:7401"}},
			Pending: &adminv1.PendingResponse{Site: "gd-a", Group: "hq/gd", RefsTotal: 7, Refs: []*adminv1.PendingAtSite{
				{Ref: "team/app:1.4", At: &adminv1.SiteRef{Site: "gd-a", State: "failed", Want: digestB, Reason: "403 DENIED", Attempts: 7, NextAttempt: before(-time.Minute), BytesLeft: 1 << 30, Since: before(time.Hour)},
					Trouble: &treev1.Trouble{Cause: "quota", Summary: "the quota of project team is used up", Mend: "raise the quota of project team"}},
				{Ref: "team/db:1", At: &adminv1.SiteRef{Site: "gd-a", State: "waiting", Want: digestA}},
			}},
		}),
		"describe_ref": view.DescribeOf(&adminv1.DescribeResponse{
			Kind: "ref", Name: "team/app:1.4", AsOf: before(0), Conflicts: conflicts, Rollouts: rollouts, Events: events, ImageBytes: 734 << 20, Platforms: []string{"linux/amd64", "linux/arm64/v8"},
			Record: &catalogv1.Record{
				Repository: "team/app", Tag: "1.4", Revision: 42, PublishedAt: before(time.Hour), PushedAt: before(2 * time.Hour), PublishedBy: "alice", Origin: "hq-a",
				Target: &catalogv1.Descriptor{Digest: digestB, MediaType: "application/vnd.oci.image.index.v1+json", Size: 1234}, History: []string{digestA},
				Referrers: []*catalogv1.Descriptor{{Digest: digestA}}, Releases: []*catalogv1.Release{{Target: &catalogv1.Descriptor{Digest: digestA}, Groups: []string{"hq/hn", "hq/gx"}, Rollout: "r0"}},
			},
			Policy: &catalogv1.Policy{Name: "releases", Repositories: []string{"team/**"}, Delivery: "staged"},
			Sites: []*adminv1.SiteRef{
				{Site: "hq-a", Group: "hq", State: "delivered", Digest: digestB, Want: digestB},
				{Site: "gd-a", Group: "hq/gd", State: "failed", Digest: digestA, Want: digestB, Reason: "403 DENIED"},
			},
		}),
		"describe_little": view.DescribeOf(&adminv1.DescribeResponse{Kind: "group", Name: "hq/hn", Group: &adminv1.TreeGroup{Group: "hq/hn", State: "unreachable", DetachedSince: before(time.Hour)}, Notes: []string{"which parents it tries is not known"}}),
	}
}

// TestDescribe_Odd: an answer of a newer or a broken agent is shown as far as it goes.
func TestDescribe_Odd(t *testing.T) {
	for _, r := range []*adminv1.DescribeResponse{nil, {}, {Kind: "site"}, {Kind: "ref"}, {Kind: "站", Name: "x"}, {Kind: "site", Group: &adminv1.TreeGroup{}}, {Kind: "site", Pending: &adminv1.PendingResponse{Refs: []*adminv1.PendingAtSite{{}}}}} {
		_ = view.DescribeOf(r).Text(view.Style{})
	}
}

// A tag that is new, and comes by a promotion, is not deleted where it is not shown yet.
func TestDescribe_NewByRelease(t *testing.T) {
	t.Parallel()
	rec := &catalogv1.Record{Repository: "prod/web", Tag: "1", Deleted: true, Target: &catalogv1.Descriptor{Digest: "sha256:old"}, Releases: []*catalogv1.Release{
		{Target: &catalogv1.Descriptor{Digest: "sha256:new"}, Groups: []string{"hq"}}, {Target: &catalogv1.Descriptor{Digest: "sha256:new"}, Rollout: "r1"},
	}}
	doc := view.DescribeOf(&adminv1.DescribeResponse{Kind: "ref", Name: "prod/web:1", Record: rec})
	text := doc.Text(view.Style{})
	for _, want := range []string{"none, but what is released below", "sha256:new at hq; elsewhere it waits for a promotion", "sha256:new nowhere yet, by rollout r1", "known at headquarters only"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	if doc.Record.Deleted || strings.Contains(text, "deleted") || strings.Contains(text, "sha256:old") {
		t.Errorf("it is not deleted: %s", text)
	}
	where := view.WhereOf(&adminv1.WhereResponse{Ref: "prod/web:1", Held: "sha256:new", Sites: []*adminv1.SiteRef{{Site: "a", State: "held", Held: "sha256:new"}}}).Text(view.Style{})
	if !strings.HasPrefix(where, "prod/web:1  none → sha256:new, which is held  revision") {
		t.Errorf("where:\n%s", where)
	}
	gone := view.WhereOf(&adminv1.WhereResponse{Ref: "team/app:1", Sites: []*adminv1.SiteRef{{Site: "a", State: "delivered"}, {Site: "b", State: "waiting"}}}).Text(view.Style{})
	if !strings.Contains(gone, "deleted") || !strings.Contains(gone, "gone from 1 of 2 sites") {
		t.Errorf("where of a deleted one:\n%s", gone)
	}
}

// TestDescribe_WasAttached: who does not answer is not said to be attached.
func TestDescribe_WasAttached(t *testing.T) {
	for _, c := range []struct {
		state   string
		answers bool
		want    string
	}{{"synced", true, "Attached to:"}, {"unreachable", true, "Attached to:"}, {"unreachable", false, "Was attached to:"}, {"unknown", false, "Was attached to:"}} {
		d := view.DescribeOf(&adminv1.DescribeResponse{Kind: "group", Name: "hq/gd", Group: &adminv1.TreeGroup{Group: "hq/gd", Parent: "hq", State: c.state, Answers: c.answers}})
		if text := d.Text(view.Style{}); !strings.Contains(text, "\n"+c.want) {
			t.Errorf("%s, answers %v: want %s in\n%s", c.state, c.answers, c.want, text)
		}
	}
}
