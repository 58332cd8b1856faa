package view_test

import (
	"strings"
	"testing"
	"time"

	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

var why = view.WhyOf(&adminv1.WhyResponse{
	Ref: "team/app:1.4", Site: "sz-a", Digest: digestB, Revision: 42, State: "failed", Cause: "quota", AsOf: before(0),
	Answer: "team/app:1.4 is not at sz-a: the quota of project team is used up.", Mend: "raise the quota of project team in https://harbor.sz.example.com",
	Notes: []string{"asked at hq: \x1b[2J"},
	Hops: []*adminv1.WhyHop{
		{Group: "hq", Root: "hq-a", Carrier: "hq-a", Site: "hq-a", State: "delivered", Revision: 42, Want: 42, Live: true, LastContact: before(0)},
		{
			Group: "hq/guangdong", Root: "gd-a", Carrier: "gd-b", Parent: "hq", Site: "gd-b", State: "delivering", Revision: 42, Want: 42, Live: true, LastContact: before(0), BytesLeft: 3 << 29,
			Blob: &treev1.BlobProgress{Digest: digestA, Size: 2 << 30, Have: 1 << 29, Source: "hq-a", Rate: 25 << 20},
		},
		{
			Group: "hq/guangdong/shenzhen", Root: "sz-a", DetachedSince: before(time.Hour), Link: "not attached to a parent: 10.0.0.1:7400: connection refused", Carrier: "sz-a", Site: "sz-a", State: "failed",
			Revision: 41, Want: 42, Reason: "push blob team/app: 403 Forbidden DENIED: over the quota", Since: before(5 * time.Minute), Attempts: 4, NextAttempt: before(-30 * time.Second),
			LastContact: before(2 * time.Minute), Away: "no contact with its root", Registry: "https://harbor.sz.example.com",
			Trouble: &treev1.Trouble{Cause: "quota", Summary: "the quota of project team is used up", Mend: "raise it", Status: 403, Code: "DENIED", Message: "over the quota"},
			Receipt: &adminv1.Receipt{At: before(time.Hour), Bytes: 12 << 20, Sources: []string{"gd-a", "gd-b"}},
		},
	},
})

// A site that is away, and one that holds content for a promotion: each thing is said once.
var whyAway = view.WhyOf(&adminv1.WhyResponse{
	Ref: "team/app:1.4", Site: "sz-a", Digest: digestB, Revision: 42, State: "waiting", Cause: "unreachable", AsOf: before(0),
	Answer: "team/app:1.4 is not at sz-a: sz-a is unreachable: not heard of since sz-b became root.", Mend: "start the agent of sz-a, or mend the network to it",
	Hops: []*adminv1.WhyHop{
		{
			Group: "hq", Root: "hq-a", Site: "hq-a", State: "held", Revision: 42, Want: 42, Live: true, LastContact: before(0), Reason: "waits for a promotion; its content is here",
			Trouble: &treev1.Trouble{Cause: "held-for-promotion", Summary: "nobody has promoted it yet; its content is there"},
		},
		{
			Group: "hq/guangdong/shenzhen", Root: "sz-b", Parent: "hq", Site: "sz-a", State: "waiting", Revision: 41, Want: 42, Reason: "the site is unreachable", Since: before(time.Minute),
			Away: "not heard of since sz-b became root", Trouble: &treev1.Trouble{Cause: "unreachable", Summary: "sz-a is unreachable: not heard of since sz-b became root", Mend: "start the agent of sz-a"},
		},
	},
})

var top = view.TopOf(&adminv1.TopResponse{AsOf: before(0), LeftOut: 3, Transfers: []*adminv1.Transfer{
	{Group: "hq/guangdong/shenzhen", Site: "sz-a", FromGroup: "hq/guangdong", From: "gd-a", Ref: "team/app:1.4", Digest: digestA, Size: 1 << 30, Have: 1 << 28, Rate: 1 << 20, Pieces: 1024, PiecesHave: 256, Since: before(time.Minute)},
	{Group: "hq/guangdong", Site: "gd-a", FromGroup: "hq", From: "hq-a", Ref: "team/app:1.4", Digest: digestA, Size: 1 << 30, Have: 1 << 29, Rate: 25 << 20, Pieces: 1024, PiecesHave: 512, Since: before(time.Minute)},
	{Group: "hq/guangdong", Site: "gd-a", FromGroup: "hq", From: "hq-b", Ref: "team/app:1.5", Digest: digestB, Size: 1 << 20, Pieces: 1, Since: before(2 * time.Second)},
	{Group: "hq/guangdong", Site: "gd-b", Ref: "team/app:1.5", Digest: digestB, Size: 1 << 20, Pieces: 1, Since: before(0), Queued: true},
	{Group: "hq/hunan", Site: "hn-a", Ref: "team/app:1.5", Digest: digestB, Size: 0, Since: before(0), Error: "no source \x1b[2J"},
}, Absent: []*adminv1.Absent{{Group: "hq/hunan", Reason: "not attached here"}, {Group: "hq", Site: "hq-c", Reason: "connection refused"}}})

// TestWhy_JustAsked: in the first seconds in which a blob is asked for nothing has to come.
func TestWhy_JustAsked(t *testing.T) {
	for says, b := range map[string]*treev1.BlobProgress{
		"from hq-b, asked for just now": {Since: before(time.Second)},
		"from hq-b, nothing comes":      {Since: before(6 * time.Second)},
		"from hq-b, 2 B/s":              {Since: before(time.Second), Rate: 2},
	} {
		b.Digest, b.Size, b.Source = "sha256:a6a8dd8e7100", 95<<20, "hq-b"
		text := view.WhyOf(&adminv1.WhyResponse{AsOf: before(0), Hops: []*adminv1.WhyHop{{Group: "hq/gd", Site: "gd-a", State: "delivering", Live: true, Blob: b}}}).Text(view.Style{})
		if !strings.Contains(text, "0 B of 95 MiB "+says+"\n") {
			t.Errorf("%v: want %q in\n%s", b, says, text)
		}
	}
	// An agent of an earlier version does not say since when.
	text := view.WhyOf(&adminv1.WhyResponse{AsOf: before(0), Hops: []*adminv1.WhyHop{{Group: "hq/gd", State: "delivering", Blob: &treev1.BlobProgress{Digest: "sha256:1", Size: 1}}}}).Text(view.Style{})
	if !strings.Contains(text, "nothing comes") {
		t.Errorf("%s", text)
	}
}
