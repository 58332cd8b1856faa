package catalog

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"

	"github.com/bmatcuk/doublestar/v4"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// Bounds of scopes, which come from children.
const (
	maxPattern       = 512
	maxPatterns      = 4096
	maxAlternatives  = 256
	maxSubscriptions = 4096
	everything       = "**"
)

// ValidatePattern checks a doublestar pattern for repositories. Braces are bounded, because matching them takes time exponential in their number.
func ValidatePattern(pattern string) error {
	if err := validatePattern(pattern); err != nil {
		return err
	}
	return nil
}

func validatePattern(pattern string) *Refusal {
	switch {
	case pattern == "":
		return refuse(ErrInvalid, "an empty pattern: write ** for everything")
	case len(pattern) > maxPattern:
		return refuse(ErrInvalid, "pattern %s has %d bytes, at most %d", quote(pattern), len(pattern), maxPattern)
	case !doublestar.ValidatePattern(pattern):
		return refuse(ErrInvalid, "pattern %s is malformed", quote(pattern))
	}
	depth, here, all := 0, 1, 1
	for i := 0; i < len(pattern); i++ {
		switch pattern[i] {
		case '\\':
			i++
		case '{':
			if depth++; depth > 1 {
				return refuse(ErrInvalid, "pattern %s: braces within braces: write the patterns one by one", quote(pattern))
			}
			here = 1
		case ',':
			here++
		case '}':
			if depth == 1 {
				depth, all = 0, all*here
			}
			if all > maxAlternatives {
				return refuse(ErrInvalid, "pattern %s has more than %d alternatives: write several patterns", quote(pattern), maxAlternatives)
			}
		}
	}
	return nil
}

func validatePatterns(where string, lists ...[]string) *Refusal {
	n := 0
	for _, list := range lists {
		n += len(list)
		for _, p := range list {
			if err := validatePattern(p); err != nil {
				return refuse(ErrInvalid, "%s: %s", where, err.Message)
			}
		}
	}
	if n > maxPatterns {
		return refuse(ErrInvalid, "%s: %d patterns, at most %d", where, n, maxPatterns)
	}
	return nil
}

// ValidateScope checks a scope that came from outside.
func ValidateScope(scope *catalogv1.Scope) error {
	if n := len(scope.GetAnyOf()); n > maxSubscriptions {
		return refuse(ErrInvalid, "%d subscriptions, at most %d", n, maxSubscriptions)
	}
	var all []string
	for _, s := range scope.GetAnyOf() {
		all = append(append(all, s.GetRepositories()...), s.GetExclude()...)
	}
	if err := validatePatterns("scope", all); err != nil {
		return err
	}
	return nil
}

// MatchScope says whether a repository is within a scope. A malformed pattern matches nothing.
func MatchScope(scope *catalogv1.Scope, repository string) bool {
	return slices.ContainsFunc(scope.GetAnyOf(), func(s *catalogv1.Subscription) bool { return MatchSubscription(s, repository) })
}

// MatchSubscription says whether a repository matches one of a subscription's patterns and none of its exclusions.
func MatchSubscription(s *catalogv1.Subscription, repository string) bool {
	return MatchPatterns(s.GetRepositories(), s.GetExclude(), repository)
}

// MatchPatterns says whether a repository matches one of the patterns and none of the exclusions. It is the rule of subscriptions and of publishing.
func MatchPatterns(patterns, exclude []string, repository string) bool {
	match := func(p string) bool { return p == everything || doublestar.MatchUnvalidated(p, repository) }
	return slices.ContainsFunc(patterns, match) && !slices.ContainsFunc(exclude, match)
}

// Union returns the union of scopes in canonical form: patterns and subscriptions sorted, each once, without what selects nothing, and without what an
// all-embracing subscription makes needless. Equal unions of one set of subscriptions are equal messages, in whatever order they came.
func Union(scopes ...*catalogv1.Scope) *catalogv1.Scope {
	var subs []*catalogv1.Subscription
	for _, scope := range scopes {
		for _, s := range scope.GetAnyOf() {
			if c := canonical(s); c != nil {
				subs = append(subs, c)
			}
		}
	}
	slices.SortFunc(subs, compareSubscriptions)
	subs = slices.CompactFunc(subs, func(a, b *catalogv1.Subscription) bool { return compareSubscriptions(a, b) == 0 })
	out := &catalogv1.Scope{}
	for i, s := range subs {
		if !slices.ContainsFunc(subs[:i], func(o *catalogv1.Subscription) bool { return absorbs(o, s) }) &&
			!slices.ContainsFunc(subs[i+1:], func(o *catalogv1.Subscription) bool { return absorbs(o, s) }) {
			out.AnyOf = append(out.AnyOf, s)
		}
	}
	return out
}

// canonical returns s with sorted patterns, each once; nil when it selects nothing.
func canonical(s *catalogv1.Subscription) *catalogv1.Subscription {
	c := &catalogv1.Subscription{Repositories: sortedOnce(s.GetRepositories()), Exclude: sortedOnce(s.GetExclude()), Keep: s.GetKeep()}
	if len(c.Repositories) == 0 || slices.Contains(c.Exclude, everything) {
		return nil
	}
	if slices.Contains(c.Repositories, everything) {
		c.Repositories = []string{everything}
	}
	return c
}

func sortedOnce(list []string) []string { return slices.Compact(slices.Sorted(slices.Values(list))) }

func compareSubscriptions(a, b *catalogv1.Subscription) int {
	if c := slices.Compare(a.Repositories, b.Repositories); c != 0 {
		return c
	}
	if c := slices.Compare(a.Exclude, b.Exclude); c != 0 {
		return c
	}
	return cmp.Compare(a.Keep, b.Keep)
}

// absorbs says whether all that s selects is selected by o, a different subscription: o selects every repository, and no fewer tags of each.
func absorbs(o, s *catalogv1.Subscription) bool {
	return o.Repositories[0] == everything && len(o.Exclude) == 0 && (o.Keep == 0 || s.Keep != 0 && s.Keep <= o.Keep)
}

// ScopeHash returns the hash of the scope that is in force at a group with this demand, given what its parent's position carries (parentHash, empty at
// headquarters) and what the parent demanded for that (parentDemand; nil: not known).
//
// What a group demands includes what the groups below it demand, so the scope in force at a group is mostly just its own demand, whoever its parent is: then the
// hash is of that alone, and a group may change to a parent further up without receiving anything anew. Where the parent's own scope is narrower, or not known, the
// hash covers the whole path, and changes with any scope on it.
func ScopeHash(parentHash string, parentDemand, demand *catalogv1.Scope) string {
	own := scopeHash("", demand)
	if parentHash == "" || parentDemand != nil && parentHash == scopeHash("", parentDemand) && covers(parentDemand, demand) {
		return own
	}
	return scopeHash(parentHash, demand)
}

// covers says whether each subscription of inner is one of outer, or absorbed by one.
func covers(outer, inner *catalogv1.Scope) bool {
	all := Union(outer).AnyOf
	return !slices.ContainsFunc(Union(inner).AnyOf, func(s *catalogv1.Subscription) bool {
		return !slices.ContainsFunc(all, func(o *catalogv1.Subscription) bool { return compareSubscriptions(o, s) == 0 || absorbs(o, s) })
	})
}

func scopeHash(parentHash string, demand *catalogv1.Scope) string {
	e := encoder{}
	e.text("fanout scope")
	e.text(parentHash)
	subs := Union(demand).AnyOf
	e.number(uint64(len(subs)))
	for _, s := range subs {
		for _, list := range [][]string{s.Repositories, s.Exclude} {
			e.number(uint64(len(list)))
			for _, p := range list {
				e.text(p)
			}
		}
		e.number(uint64(s.Keep))
	}
	sum := sha256.Sum256(e.Bytes())
	return hex.EncodeToString(sum[:])
}
