package agent

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/config"
	"github.com/fanout-io/fanout/pkg/registry"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(noon.Add(-d)) }

// wayTo is headquarters, a province and its city, all level, live and delivered, as a test changes them.
func wayTo(change func(hq, gd, sz *adminv1.WhyHop)) []*adminv1.WhyHop {
	hop := func(group, site string) *adminv1.WhyHop {
		return &adminv1.WhyHop{Group: group, Site: site, Carrier: site, Root: site, State: "delivered", Digest: "sha256:1", Revision: 7, Want: 7, Epoch: "e", Live: true, LastContact: ago(0)}
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
	a := siteOf(t)
	ref := catalog.Ref{Repository: "team/app", Tag: "1"}
	cases := []struct {
		name   string
		change func(hq, gd, sz *adminv1.WhyHop)
	}{
		{"unreachable", func(_, _, sz *adminv1.WhyHop) {
			sz.Live, sz.Away, sz.LastContact = false, "no contact with its root", ago(time.Minute)
		}},
		{"never-heard", func(_, _, sz *adminv1.WhyHop) {
			sz.Live, sz.Away, sz.LastContact = false, "not heard of since gd-b became root of hq/gd at 08:00:00 UTC", nil
			sz.Revision = 0
			missing(sz, "unknown", waitsBecause(causeUnheard, "sz-a: "+sz.Away, "start it"))
		}},
		{"below-a-silent-group", func(_, gd, sz *adminv1.WhyHop) {
			gd.Live, gd.Away, gd.LastContact = false, "no contact with the root of hq/gd", ago(time.Minute)
			missing(sz, "waiting", away("sz-a", gd.Away))
			sz.Live, sz.Away, sz.LastContact = false, gd.Away, ago(time.Minute)
		}},
		{"below-a-group-not-heard-of", func(_, gd, sz *adminv1.WhyHop) {
			gd.Live, gd.Away, gd.LastContact, gd.Revision = false, "not heard of yet since hq-b became root of hq 4s ago", nil, 0
			missing(gd, "unknown", nil)
			missing(sz, "unknown", waitsBecause(causeUnheard, "sz-a: "+gd.Away, "start it"))
			sz.Live, sz.Away, sz.LastContact, sz.Revision = false, gd.Away, nil, 0
		}},
		{"delivered-unseen", func(_, _, sz *adminv1.WhyHop) {
			sz.Trouble = &treev1.Trouble{Cause: "registry-unreachable", Summary: "the registry does not answer", Mend: "start it"}
		}},
		{"all-there", func(_, _, sz *adminv1.WhyHop) { sz.Receipt = &adminv1.Receipt{At: ago(time.Hour)} }},
		{"on-its-way", func(_, _, sz *adminv1.WhyHop) {
			missing(sz, "delivering", nil)
			sz.Blob, sz.BytesLeft = blob, 90<<20
		}},
		{"on-its-way-to-silence", func(_, _, sz *adminv1.WhyHop) {
			missing(sz, "delivering", &treev1.Trouble{Cause: "registry-silent", Summary: "the registry does not answer in time", Mend: "look at it"})
			sz.Blob, sz.BytesLeft = blob, 90<<20
		}},
		{"nothing-comes", func(_, gd, sz *adminv1.WhyHop) {
			detach(gd)
			missing(gd, "delivering", nil)
			missing(sz, "delivering", nil)
			sz.Blob, sz.BytesLeft = &treev1.BlobProgress{Digest: "sha256:1", Size: 100 << 20, Source: "gd-a"}, 100<<20
		}},
		{"cut-off", func(_, gd, sz *adminv1.WhyHop) {
			detach(gd)
			gd.Revision, sz.Revision = 5, 5
			missing(gd, "waiting", nil)
			missing(sz, "waiting", nil)
		}},
		{"away", func(_, gd, sz *adminv1.WhyHop) {
			gd.Revision, gd.Live, gd.Away, gd.LastContact = 5, false, "no contact with its root", ago(time.Hour)
			sz.Revision, sz.Live, sz.Away, sz.LastContact = 5, false, "no contact with its root", ago(time.Hour)
			missing(gd, "waiting", nil)
			missing(sz, "waiting", nil)
		}},
		{"record-on-its-way", func(_, _, sz *adminv1.WhyHop) {
			sz.Revision = 6
			missing(sz, "waiting", nil)
		}},
		{"foreign-epoch", func(_, gd, sz *adminv1.WhyHop) {
			gd.Epoch, sz.Epoch = "other", "other"
		}},
		{"missing-above", func(_, gd, sz *adminv1.WhyHop) {
			missing(gd, "failed", &treev1.Trouble{Cause: "content-nowhere", Summary: "no site that can be asked has the content", Mend: "push it again"})
			missing(sz, "failed", noSource)
		}},
		{"own-refusal", func(_, gd, sz *adminv1.WhyHop) {
			missing(gd, "failed", &treev1.Trouble{Cause: "quota", Summary: "the quota of project team is used up"})
			missing(sz, "failed", &treev1.Trouble{Cause: "rights", Summary: "the agent's account lacks a right", Mend: "give it"})
			sz.Attempts, sz.Since, sz.NextAttempt = 4, ago(5*time.Minute), timestamppb.New(noon.Add(40*time.Second))
		}},
		{"no-source", func(_, _, sz *adminv1.WhyHop) {
			missing(sz, "failed", noSource)
			sz.Attempts, sz.Since = 1, ago(time.Minute)
		}},
		{"drift", func(_, _, sz *adminv1.WhyHop) {
			missing(sz, "drifted", a.drifted(ref, "sha256:2"))
		}},
		{"witness", func(_, _, sz *adminv1.WhyHop) { missing(sz, "witness", witnessTrouble()) }},
		{"not-subscribed", func(_, gd, sz *adminv1.WhyHop) {
			missing(sz, "unsubscribed", waitsBecause(causeUnsubscribed, "hq/gd does not subscribe to team/app", "add it"))
			gd.Revision, sz.Revision = 2, 2
		}},
		{"unheard", func(_, _, sz *adminv1.WhyHop) {
			missing(sz, "unknown", waitsBecause(causeUnheard, "sz-a was not heard of yet", "start it"))
		}},
		{"changed-just-now", func(_, _, sz *adminv1.WhyHop) {
			sz.Digest = "sha256:" + strings.Repeat("2", 64)
			sz.Reason = showsNow(sz.Digest)
		}},
		{"lost-just-now", func(_, _, sz *adminv1.WhyHop) { sz.Digest, sz.Reason = "", showsNow("") }},
		{"deleted-at-headquarters", func(_, _, sz *adminv1.WhyHop) {
			missing(sz, "drifted", (&Agent{cfg: &config.Config{Group: "hq"}}).drifted(ref, ""))
		}},
		{"accepted", func(_, _, sz *adminv1.WhyHop) { missing(sz, "accepted", acceptedTrouble()) }},
		{"deletion-waits", func(_, _, sz *adminv1.WhyHop) { missing(sz, "drifted", deletionWaits(ref)) }},
		{"moves-together", func(_, _, sz *adminv1.WhyHop) { missing(sz, "held", togetherTrouble()) }},
		{"shared-storage", func(_, _, sz *adminv1.WhyHop) { missing(sz, "waiting", sharedTrouble("sz-b")) }},
		{"under-rollout", func(_, _, sz *adminv1.WhyHop) { missing(sz, "drifted", underRollout("pushed here")) }},
		{"newer-tags-kept", func(_, _, sz *adminv1.WhyHop) { missing(sz, "unsubscribed", notKept("hq/gd/sz")) }},
		{"its-turn", func(_, _, sz *adminv1.WhyHop) { missing(sz, "waiting", nil) }},
	}
	for _, tt := range cases {
		golden(t, tt.name, judged(ref, false, tt.change))
	}
	golden(t, "deleted", judged(ref, true, func(_, _, _ *adminv1.WhyHop) {}))
	golden(t, "not-yet-deleted", judged(ref, true, func(_, _, sz *adminv1.WhyHop) {
		missing(sz, "waiting", away("sz-a", "no contact with its root"))
		sz.Live, sz.Away, sz.LastContact = false, "no contact with its root", ago(time.Minute)
	}))
}

// judged is the answer for a ref on its way to sz-a.
func judged(ref catalog.Ref, deleted bool, change func(hq, gd, sz *adminv1.WhyHop)) string {
	v := verdict{w: &adminv1.WhyResponse{Ref: ref.String(), Site: "sz-a", Digest: "sha256:1", AsOf: ago(0), Hops: wayTo(change)}, epoch: "e", origin: "hq-a", deleted: deleted}
	v.judge()
	return inWords(v.w)
}

// siteOf is an agent of the city, as far as words are concerned.
func siteOf(t *testing.T) *Agent {
	reg, err := registry.New(registry.Config{URL: "https://registry.sz"})
	if err != nil {
		t.Fatal(err)
	}
	return &Agent{registry: reg, cfg: &config.Config{Site: "sz-a", Group: "hq/gd/sz", DataDir: "/var/lib/fanoutd", Registry: config.Registry{Type: "oci", URL: "https://registry.sz", Data: "/data"}}}
}
