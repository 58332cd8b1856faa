package agent

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(noon.Add(-d)) }

// wayTo is headquarters, a province and its city, all level, live and delivered, as a test changes them.
func wayTo(change func(hq, gd, sz *adminv1.WhyHop)) []*adminv1.WhyHop {
	hop := func(group, site string) *adminv1.WhyHop {
		return &adminv1.WhyHop{Group: group, Site: site, Carrier: site, Root: site, State: "delivered", Revision: 7, Want: 7, Epoch: "e", Live: true, LastContact: ago(0)}
	}
	hops := []*adminv1.WhyHop{hop("hq", "hq-a"), hop("hq/gd", "gd-a"), hop("hq/gd/sz", "sz-a")}
	change(hops[0], hops[1], hops[2])
	return hops
}

func missing(h *adminv1.WhyHop, state string, t *treev1.Trouble) {
	h.State, h.Trouble = state, t
}

// TestVerdict: of a way, the sentence on top names the hop that keeps the ref from going on, and not the one that only waits for it.
func TestVerdict(t *testing.T) {
	noSource := &treev1.Trouble{Cause: "sources-unreachable", Summary: "no source can give the content now", Mend: "look above"}
	detach := func(h *adminv1.WhyHop) {
		h.DetachedSince, h.Parent, h.Link = ago(time.Hour), "", "not attached to a parent: 10.0.0.1:7400: connection refused"
	}
	blob := &treev1.BlobProgress{Digest: "sha256:1", Size: 100 << 20, Have: 10 << 20, Source: "gd-a", Rate: 2 << 20}
	cases := []struct {
		name   string
		change func(hq, gd, sz *adminv1.WhyHop)
	}{
		{"delivered, and the city does not answer now", func(_, _, sz *adminv1.WhyHop) {
			sz.Live, sz.Away, sz.LastContact = false, "no contact with its root", ago(time.Minute)
		}},
		{"delivered, and its registry does not answer now", func(_, _, sz *adminv1.WhyHop) {
			sz.Trouble = &treev1.Trouble{Cause: "registry-unreachable", Summary: "the registry does not answer", Mend: "start it"}
		}},
		{"all of it was there", func(_, _, sz *adminv1.WhyHop) { sz.Receipt = &adminv1.Receipt{At: ago(time.Hour)} }},
		{"on its way", func(_, _, sz *adminv1.WhyHop) {
			missing(sz, "delivering", nil)
			sz.Blob, sz.BytesLeft = blob, 90<<20
		}},
		{"nothing comes, as the province is cut off", func(_, gd, sz *adminv1.WhyHop) {
			detach(gd)
			missing(gd, "delivering", nil)
			missing(sz, "delivering", nil)
			sz.Blob, sz.BytesLeft = &treev1.BlobProgress{Digest: "sha256:1", Size: 100 << 20, Source: "gd-a"}, 100<<20
		}},
		{"the record is held up, as the province is cut off", func(_, gd, sz *adminv1.WhyHop) {
			detach(gd)
			gd.Revision, sz.Revision = 5, 5
			missing(gd, "waiting", nil)
			missing(sz, "waiting", nil)
		}},
		{"the record is held up, as the province is unreachable from headquarters", func(_, gd, sz *adminv1.WhyHop) {
			gd.Revision, gd.Live, gd.Away, gd.LastContact = 5, false, "no contact with its root", ago(time.Hour)
			sz.Revision, sz.Live, sz.Away, sz.LastContact = 5, false, "no contact with its root", ago(time.Hour)
			missing(gd, "waiting", nil)
			missing(sz, "waiting", nil)
		}},
		{"the record is on its way", func(_, _, sz *adminv1.WhyHop) {
			sz.Revision = 6
			missing(sz, "waiting", nil)
		}},
		{"another epoch", func(_, gd, sz *adminv1.WhyHop) {
			gd.Epoch, sz.Epoch = "other", "other"
		}},
		{"the city fails, as the province has it not either", func(_, gd, sz *adminv1.WhyHop) {
			missing(gd, "failed", &treev1.Trouble{Cause: "content-nowhere", Summary: "no site that can be asked has the content", Mend: "push it again"})
			missing(sz, "failed", noSource)
		}},
		{"the province's registry refuses, which is not the city's trouble", func(_, gd, sz *adminv1.WhyHop) {
			missing(gd, "failed", &treev1.Trouble{Cause: "quota", Summary: "the quota of project team is used up"})
			missing(sz, "failed", &treev1.Trouble{Cause: "rights", Summary: "the agent's account lacks a right", Mend: "give it"})
			sz.Attempts, sz.Since, sz.NextAttempt = 4, ago(5*time.Minute), timestamppb.New(noon.Add(40*time.Second))
		}},
		{"no source, and nothing above is to blame", func(_, _, sz *adminv1.WhyHop) {
			missing(sz, "failed", noSource)
			sz.Attempts, sz.Since = 1, ago(time.Minute)
		}},
		{"drift", func(_, _, sz *adminv1.WhyHop) {
			missing(sz, "drifted", &treev1.Trouble{Cause: causeDrift, Summary: "its registry was changed there, and drift says report", Mend: "verify --repair"})
		}},
		{"a witness", func(_, _, sz *adminv1.WhyHop) { missing(sz, "witness", waitsBecause(causeWitness, "", "")) }},
		{"not subscribed", func(_, gd, sz *adminv1.WhyHop) {
			missing(sz, "unsubscribed", waitsBecause(causeUnsubscribed, "hq/gd does not subscribe to team/app", "add it"))
			gd.Revision, sz.Revision = 2, 2
		}},
		{"not heard of", func(_, _, sz *adminv1.WhyHop) {
			missing(sz, "unknown", waitsBecause(causeUnheard, "sz-a was not heard of yet", "start it"))
		}},
	}
	var b strings.Builder
	for _, tt := range cases {
		v := verdict{w: &adminv1.WhyResponse{Ref: "team/app:1", Site: "sz-a", AsOf: ago(0), Hops: wayTo(tt.change)}, epoch: "e", origin: "hq-a"}
		v.judge()
		fmt.Fprintf(&b, "%s\n  %s\n  mend: %s\n  cause: %s\n", tt.name, v.w.GetAnswer(), v.w.GetMend(), v.w.GetCause())
	}
	v := verdict{w: &adminv1.WhyResponse{Ref: "team/app:1", Site: "sz-a", AsOf: ago(0), Hops: wayTo(func(_, _, _ *adminv1.WhyHop) {})}, epoch: "e", deleted: true}
	v.judge()
	fmt.Fprintf(&b, "deleted\n  %s\n", v.w.GetAnswer())
	golden(t, "verdicts", b.String())
}
