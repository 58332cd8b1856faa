package agent

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/tree"
)

// TestUpsert: a policy of the same name is replaced in its place, as their order counts; a new one comes last, twice if it is given twice: the machine refuses that.
func TestUpsert(t *testing.T) {
	list := func(words string) (out []*catalogv1.Policy) {
		for _, w := range strings.Fields(words) {
			name, delivery, _ := strings.Cut(w, "=")
			out = append(out, &catalogv1.Policy{Name: name, Delivery: delivery})
		}
		return out
	}
	for _, c := range []struct{ held, given, want string }{
		{"", "a=staged", "a=staged"},
		{"a=staged b=staged", "c=cascade a=cascade", "a=cascade b=staged c=cascade"},
		{"a=staged", "b=staged b=cascade", "a=staged b=staged b=cascade"},
		{"a=staged", "", "a=staged"},
	} {
		held := list(c.held)
		var got []string
		for _, p := range upsert(held, list(c.given)) {
			got = append(got, p.GetName()+"="+p.GetDelivery())
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s with %s: %v, want %s", c.held, c.given, got, c.want)
		}
		for i, p := range list(c.held) {
			if held[i].GetDelivery() != p.GetDelivery() {
				t.Errorf("%s with %s: the list in force was changed", c.held, c.given)
			}
		}
	}
}

// TestNewPolicies: what is to be taken away and what is to be added is one change, which counts only if the policies are still those that it was made from.
func TestNewPolicies(t *testing.T) {
	held := []*catalogv1.Policy{{Name: "a"}, {Name: "b"}, {Name: "c"}}
	set, err := newPolicies(&adminv1.SetPoliciesRequest{Remove: []string{"b"}, Policies: []*catalogv1.Policy{{Name: "d"}, {Name: "a", Delivery: "staged"}}}, held)
	var got []string
	for _, p := range set.GetPolicies() {
		got = append(got, p.GetName()+p.GetDelivery())
	}
	if err != nil || strings.Join(got, " ") != "astaged c d" || !set.GetCompare() || len(set.GetExpect()) != 3 || len(held) != 3 || held[1].GetName() != "b" {
		t.Errorf("%v, %v", set, err)
	}
	if _, err := newPolicies(&adminv1.SetPoliciesRequest{Remove: []string{"a", "x"}}, held); status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), `"x"`) {
		t.Errorf("%v", err)
	}
	if set, err := newPolicies(&adminv1.SetPoliciesRequest{}, held); err != nil || set.GetCompare() || len(set.GetPolicies()) != 0 {
		t.Errorf("all replaced by none: %v, %v", set, err)
	}
}

// TestProposed: what a person is told of a change that did not come into force.
func TestProposed(t *testing.T) {
	refusal := func(kind error) error { return &catalog.Refusal{Kind: kind, Message: "said"} }
	for _, c := range []struct {
		err  error
		code codes.Code
	}{
		{nil, codes.OK},
		{refusal(catalog.ErrInvalid), codes.InvalidArgument},
		{refusal(catalog.ErrUnderRollout), codes.FailedPrecondition},
		{refusal(catalog.ErrNotHeadquarters), codes.FailedPrecondition},
		{fmt.Errorf("%w: no majority", tree.ErrNoRoot), codes.Unavailable},
		{tree.ErrUnknownOutcome, codes.Unavailable},
	} {
		got := proposed(c.err)
		if status.Code(got) != c.code {
			t.Errorf("%v: %v", c.err, got)
		}
		var r *catalog.Refusal
		if errors.As(c.err, &r) && status.Convert(got).Message() != "said" {
			t.Errorf("%v: %v", c.err, got)
		}
	}
}
