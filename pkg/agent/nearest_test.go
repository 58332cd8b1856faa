package agent

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// sent takes what a call sends.
type sent[T any] struct {
	grpc.ServerStream
	ctx context.Context
	all []*T
}

func (s *sent[T]) Context() context.Context { return s.ctx }
func (s *sent[T]) Send(m *T) error {
	s.all = append(s.all, m)
	return nil
}

// TestOtherKinds: who gives a group for a site, a site for a group, or a ref and a site in the wrong order, is told what he gave and what to write; of a ref that is not there the nearest tags are told,
// and a ref that is none is told without what is for programs.
func TestOtherKinds(t *testing.T) {
	hq := runTree(t, nil, "hq", "hq/gd")["hq"]
	hq.push("team/app:1.0")
	waitFor(t, "headquarters knows the ref and the province", func() error {
		_, known := hq.refNamed("team/app:1.0")
		if !known || !slices.ContainsFunc(hq.node.Health().Sites, func(h *treev1.SiteHealth) bool { return h.GetSite() == "s1" }) {
			return errors.New("not yet")
		}
		return nil
	})
	s := &admin{a: hq.Agent, local: true}
	why := func(ref, site string) error {
		_, err := s.Why(t.Context(), &adminv1.WhyRequest{Ref: ref, Site: site})
		return err
	}
	where := func(ref string) error {
		return s.Where(&adminv1.WhereRequest{Ref: ref}, &sent[adminv1.WhereResponse]{ctx: t.Context()})
	}
	tree := func(group string) error {
		return s.Tree(&adminv1.TreeRequest{Group: group}, &sent[adminv1.TreeResponse]{ctx: t.Context()})
	}
	verify := func(site string) error {
		return s.Verify(&adminv1.VerifyRequest{Site: site}, &sent[adminv1.VerifyResponse]{ctx: t.Context()})
	}
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"why, swapped", why("s1", "team/app:1.0"), "the site comes last: fanoutctl why team/app:1.0 s1"},
		{"why, a group for the site", why("team/app:1.0", "hq/gd"), "hq/gd is a group, and a site is wanted: fanoutctl why team/app:1.0 s1"},
		{"why, a group for the ref", why("hq/gd", "s1"), "hq/gd is a group, and a ref is wanted; what is at its sites: fanoutctl tree hq/gd"},
		{"why, two refs", why("team/app:1.0", "team/app:1.0"), "team/app:1.0 is a ref, and a site is wanted; where it is: fanoutctl where team/app:1.0"},
		{"why, no such site", why("team/app:1.0", "s9"), `no site "s9" is known here; 'fanoutctl tree' lists them; the nearest: s0, s1`},
		{"where, no tag", where("team/app"), "team/app:latest is not in the catalog; 'fanoutctl images' lists what is; the nearest: team/app:1.0"},
		{"where, a site", where("s1"), "s1 is a site of hq/gd, and a ref is wanted; what it lacks: fanoutctl describe s1"},
		{"tree, a site", tree("s1"), "s1 is a site of hq/gd: fanoutctl describe s1, or fanoutctl tree hq/gd"},
		{"tree, a ref", tree("team/app:1.0"), "team/app:1.0 is a ref: fanoutctl where team/app:1.0"},
		{"tree, no such group", tree("hq/ge"), `no group "hq/ge" is known here; 'fanoutctl tree' lists them; the nearest: hq/gd, hq`},
		{"verify, a group", verify("hq/gd"), "hq/gd is a group, and a site is wanted: fanoutctl verify s1"},
	} {
		if status.Code(c.err) != codes.NotFound || status.Convert(c.err).Message() != c.want {
			t.Errorf("%s: %v\nwant %s", c.name, c.err, c.want)
		}
	}
	if err := where("team/app@sha256:" + strings.Repeat("0", 64)); status.Code(err) != codes.InvalidArgument || !strings.HasSuffix(err.Error(), "has a digest; give REPOSITORY:TAG") {
		t.Errorf("of a digest: %v", err)
	}
}
