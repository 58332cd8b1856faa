package catalog

import (
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

func compareMember(m *catalogv1.Member, site string) int { return strings.Compare(m.Site, site) }

// setMember adds or replaces a member. Setting what is set already is accepted, so that a retry needs no care.
func (m *Machine) setMember(member *catalogv1.Member) *Refusal {
	if err := validateMember(member); err != nil {
		return err
	}
	i, found := slices.BinarySearchFunc(m.members, member.Site, compareMember)
	members := slices.Clone(m.members)
	if found {
		members[i] = proto.CloneOf(member)
	} else {
		if len(members) >= maxMembers {
			return refuse(ErrInvalid, "member %s: there are %d members already", quote(member.Site), len(members))
		}
		members = slices.Insert(members, i, proto.CloneOf(member))
	}
	m.members = members
	return nil
}

func (m *Machine) removeMember(site string) {
	if i, found := slices.BinarySearchFunc(m.members, site, compareMember); found {
		m.members = slices.Delete(slices.Clone(m.members), i, i+1)
	}
}

func (m *Machine) setSettings(s *catalogv1.GroupSettings) *Refusal {
	if err := validateSettings(s); err != nil {
		return err
	}
	m.settings = proto.CloneOf(s)
	return nil
}

func (m *Machine) setGroup(g *catalogv1.Group) *Refusal {
	if err := validateGroup(g); err != nil {
		return err
	}
	if _, known := m.groups.Get(g); !known && m.groups.Len() >= maxGroups {
		return refuse(ErrInvalid, "group %s: %d groups are remembered already", g.Path, m.groups.Len())
	}
	g = proto.CloneOf(g)
	slices.SortFunc(g.Sites, func(a, b *catalogv1.GroupSite) int { return strings.Compare(a.Site, b.Site) })
	m.groups.Set(g)
	return nil
}

func validateMember(m *catalogv1.Member) *Refusal {
	if err := validateSite(m.GetSite()); err != nil {
		return err
	}
	return validateWords(m.Incarnation, m.RaftAddress, m.FabricAddress, m.RegistryType, m.Shared)
}

func validateSite(site string) *Refusal {
	if site == "" || len(site) > maxTag || strings.ContainsFunc(site, func(r rune) bool { return r <= ' ' || r == '/' || r >= 0x7f }) {
		return refuse(ErrInvalid, "site %s: write 1 to %d letters, digits and signs without / and spaces", quote(site), maxTag)
	}
	return nil
}

func validateSettings(s *catalogv1.GroupSettings) *Refusal {
	if s == nil {
		return refuse(ErrInvalid, "no settings")
	}
	if err := validateLabels(s.Labels); err != nil {
		return err
	}
	if sub := s.Subscribe; sub != nil {
		if err := validatePatterns("subscribe", sub.Repositories, sub.Exclude); err != nil {
			return err
		}
	}
	if err := validatePatterns("publish", s.GetPublish().GetRepositories(), s.GetPublish().GetExclude()); err != nil {
		return err
	}
	for _, v := range []struct {
		key, value string
		allowed    []string
	}{
		{"publish.existing", s.GetPublish().GetExisting(), []string{"", "ignore", "publish"}},
		{"publish.deletes", s.GetPublish().GetDeletes(), []string{"", "ignore", "propagate"}},
		{"drift.changed", s.GetDrift().GetChanged(), []string{"", "repair", "report", "accept"}},
		{"drift.deleted", s.GetDrift().GetDeleted(), []string{"", "repair", "report", "accept"}},
	} {
		if !slices.Contains(v.allowed, v.value) {
			return refuse(ErrInvalid, "%s: %s: write %s", v.key, quote(v.value), strings.Join(v.allowed[1:], ", "))
		}
	}
	return nil
}

func validateLabels(labels map[string]string) *Refusal {
	if len(labels) > maxLabels {
		return refuse(ErrInvalid, "%d labels, at most %d", len(labels), maxLabels)
	}
	for _, k := range slices.Sorted(maps.Keys(labels)) { // sorted: the same label is refused on every replica
		if err := validateWords(k, labels[k]); err != nil {
			return err
		}
	}
	return nil
}

func validateGroup(g *catalogv1.Group) *Refusal {
	if err := validateGroupPath(g.GetPath()); err != nil {
		return err
	}
	if err := validateLabels(g.Labels); err != nil {
		return err
	}
	if err := ValidateScope(g.Demand); err != nil {
		return refuse(ErrInvalid, "group %s: %v", g.Path, err)
	}
	if len(g.Sites) > maxSites {
		return refuse(ErrInvalid, "group %s: %d sites, at most %d", g.Path, len(g.Sites), maxSites)
	}
	for _, s := range g.Sites {
		if err := validateSite(s.GetSite()); err != nil {
			return err
		}
		if err := validateWords(s.RegistryType); err != nil {
			return err
		}
	}
	return nil
}

func validateGroupPath(path string) *Refusal {
	bad := path == "" || len(path) > maxWord
	for part := range strings.SplitSeq(path, "/") {
		bad = bad || part == "" || strings.ContainsFunc(part, func(r rune) bool { return r <= ' ' || r >= 0x7f })
	}
	if bad {
		return refuse(ErrInvalid, "group %s: write names joined by /, such as hq/guangdong", quote(path))
	}
	return nil
}
