package catalog

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// Words of Policy.delivery.
const (
	DeliveryCascade = "cascade"
	DeliveryStaged  = "staged"
)

// maxPolicies bounds the list, which every publish may go through.
const maxPolicies = 256

// setPolicies replaces the policies, where compare is set only those that are expected. What was published before keeps what it was published with until it changes.
func (m *Machine) setPolicies(set *catalogv1.SetPolicies) *Refusal {
	if !m.founded {
		return refuse(ErrNotHeadquarters, "policies are kept at headquarters only")
	}
	if set.GetCompare() && !samePolicies(set.GetExpect(), m.policies) {
		return refuse(ErrConflict, "the policies are not those that were expected")
	}
	list := set.GetPolicies()
	if err := validatePolicies(list); err != nil {
		return err
	}
	if samePolicies(list, m.policies) {
		return refuse(ErrUnchanged, "these policies are in force")
	}
	m.policies = copyPolicies(list)
	return nil
}

func samePolicies(a, b []*catalogv1.Policy) bool {
	return slices.EqualFunc(a, b, func(x, y *catalogv1.Policy) bool { return proto.Equal(x, y) })
}

func copyPolicies(list []*catalogv1.Policy) []*catalogv1.Policy {
	out := make([]*catalogv1.Policy, len(list))
	for i, p := range list {
		out[i] = proto.CloneOf(p)
	}
	return out
}

func validatePolicies(list []*catalogv1.Policy) *Refusal {
	if len(list) > maxPolicies {
		return refuse(ErrInvalid, "%d policies, at most %d", len(list), maxPolicies)
	}
	seen := map[string]bool{}
	patterns := 0
	for _, p := range list {
		name := p.GetName()
		switch {
		case name == "":
			return refuse(ErrInvalid, "a policy without a name")
		case seen[name]:
			return refuse(ErrInvalid, "two policies have the name %s", quote(name))
		case len(p.Repositories) == 0:
			return refuse(ErrInvalid, "policy %s: no repositories: write ** for all", quote(name))
		case p.Delivery != DeliveryCascade && p.Delivery != DeliveryStaged:
			return refuse(ErrInvalid, "policy %s: delivery %s: write %s or %s", quote(name), quote(p.Delivery), DeliveryCascade, DeliveryStaged)
		}
		seen[name] = true
		if err := validateWords(name); err != nil {
			return err
		}
		if err := validatePatterns("policy "+quote(name), p.Repositories); err != nil {
			return err
		}
		if err := validateDuration("policy "+quote(name)+": max_freeze", p.MaxFreeze, 0, maxWait); err != nil {
			return err
		}
		patterns += len(p.Repositories)
	}
	if patterns > maxPatterns {
		return refuse(ErrInvalid, "policies with %d patterns, at most %d", patterns, maxPatterns)
	}
	return nil
}

// validateDuration checks a duration, which may be absent, against its bounds.
func validateDuration(where string, d *durationpb.Duration, least, most time.Duration) *Refusal {
	if d != nil && !d.IsValid() {
		return refuse(ErrInvalid, "%s: %d s %d ns is no duration", where, d.Seconds, d.Nanos)
	}
	if v := d.AsDuration(); v < least || v > most {
		return refuse(ErrInvalid, "%s: %v is not between %v and %v", where, v, least, most)
	}
	return nil
}

// Policies in their order.
func (s *Snapshot) Policies() []*catalogv1.Policy { return s.policies }

// PolicyFor returns the policy of a repository: the first that matches. nil: there is none, and it cascades.
func (s *Snapshot) PolicyFor(repository string) *catalogv1.Policy { return s.policyFor(repository) }

func (s *state) policyFor(repository string) *catalogv1.Policy {
	for _, p := range s.policies {
		if MatchPatterns(p.Repositories, nil, repository) {
			return p
		}
	}
	return nil
}

// staged says whether pushes to a repository reach headquarters' own registries alone, until they are promoted.
func (s *state) staged(repository string) bool {
	return s.policyFor(repository).GetDelivery() == DeliveryStaged
}

// maxFreeze is what a record of the repository says about freezes; nil: not bounded.
func (s *state) maxFreeze(repository string) *durationpb.Duration {
	if d := s.policyFor(repository).GetMaxFreeze(); d.AsDuration() > 0 {
		return d
	}
	return nil
}
