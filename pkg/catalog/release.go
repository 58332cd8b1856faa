package catalog

import (
	"slices"
	"strings"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

const (
	// maxReleases is how many releases a record keeps.
	maxReleases = 16
	// maxReleasePaths bounds the paths in a record's releases in bytes, so that a record stays below MaxItem.
	maxReleasePaths = maxReleases * maxPlanPaths
)

// Target is content that a ref shows, with what refers to it.
type Target struct {
	Descriptor *catalogv1.Descriptor
	Referrers  []*catalogv1.Descriptor
}

// Project returns a record as a group, named by its path, is to show it: with one target, deleted where the group shows nothing, and without releases. Its
// history is extended by every other digest that the record knows, so that whatever another group shows, or this one showed before a release or a rollback, is known as
// fanout's own; it may be longer than maxHistory. A record without releases, or nil, is returned as it is. The result shares what it points to: read only.
func Project(rec *catalogv1.Record, group string) *catalogv1.Record {
	if len(rec.GetReleases()) == 0 {
		return rec
	}
	out := copyRecord(rec)
	out.Releases = nil
	if r := releaseOf(rec, group); r != nil {
		out.Traceparent = r.Traceparent
		if out.Deleted = r.Target == nil; !out.Deleted {
			out.Target, out.Referrers = r.Target, r.Referrers
		}
	}
	out.History = nil
	for _, d := range known(rec) {
		if d != out.Target.GetDigest() {
			out.History = append(out.History, d)
		}
	}
	return out
}

// Within returns a record as a group, named by its path, may know it: its releases name that group and those below it, and no others. For all of these it shows the same, and its
// content is the same. With an empty path, or where nothing is to be left out, it is returned as it is. The result shares what it points to: read only.
func Within(rec *catalogv1.Record, group string) *catalogv1.Record {
	outside := func(path string) bool { return path != group && !strings.HasPrefix(path, group+"/") }
	if group == "" || !slices.ContainsFunc(rec.GetReleases(), func(r *catalogv1.Release) bool { return slices.ContainsFunc(r.GetGroups(), outside) }) {
		return rec
	}
	out := copyRecord(rec)
	out.Releases = make([]*catalogv1.Release, len(rec.Releases))
	for i, r := range rec.Releases {
		out.Releases[i] = copyRelease(r)
		out.Releases[i].Groups = slices.DeleteFunc(slices.Clone(r.Groups), outside)
	}
	return out
}

// ShownBy is the digest that a group is to show of a record, as Project has it; empty: nothing.
func ShownBy(rec *catalogv1.Record, group string) string { return shown(rec, group) }

// Content returns what some group may be to show of a record: the base and every release, each digest once. All of it is kept at every site whose scope includes the
// ref, under holds where the site does not show it. What a tombstone showed is not in it.
func Content(rec *catalogv1.Record) []Target {
	var out []Target
	add := func(target *catalogv1.Descriptor, referrers []*catalogv1.Descriptor) {
		if target == nil {
			return
		}
		i := slices.IndexFunc(out, func(t Target) bool { return t.Descriptor.GetDigest() == target.GetDigest() })
		if i < 0 {
			out = append(out, Target{target, referrers})
			return
		}
		out[i].Referrers = unite(out[i].Referrers, referrers)
	}
	if !rec.GetDeleted() {
		add(rec.GetTarget(), rec.GetReferrers())
	}
	for _, r := range rec.GetReleases() {
		add(r.Target, r.Referrers)
	}
	return out
}

// Tombstone says whether no group shows anything of a record, nor comes to by a rollout.
func Tombstone(rec *catalogv1.Record) bool { return rec.GetDeleted() && len(rec.GetReleases()) == 0 }

// releaseOf returns the release that counts for a group; nil: the base does.
func releaseOf(rec *catalogv1.Record, group string) *catalogv1.Release {
	for _, r := range slices.Backward(rec.GetReleases()) {
		if names(r, group) {
			return r
		}
	}
	return nil
}

// names says whether a release names a group.
func names(r *catalogv1.Release, group string) bool {
	_, found := slices.BinarySearch(r.GetGroups(), group)
	return found
}

// known returns all digests that a record knows: releases', newest first, the base, and the history, each once.
func known(rec *catalogv1.Record) []string {
	var out []string
	add := func(d string) {
		if d != "" && !slices.Contains(out, d) {
			out = append(out, d)
		}
	}
	for _, r := range slices.Backward(rec.GetReleases()) {
		add(r.Target.GetDigest())
	}
	add(rec.GetTarget().GetDigest())
	for _, d := range rec.GetHistory() {
		add(d)
	}
	return out
}

// copyRecord copies a record without what it points to, which is never changed but replaced.
func copyRecord(r *catalogv1.Record) *catalogv1.Record {
	return &catalogv1.Record{
		Repository: r.Repository, Tag: r.Tag, Target: r.Target, Referrers: r.Referrers, Revision: r.Revision, PublishedAt: r.PublishedAt, PublishedBy: r.PublishedBy,
		Origin: r.Origin, PushedAt: r.PushedAt, Deleted: r.Deleted, History: r.History, Sum: r.Sum, Traceparent: r.Traceparent, Releases: r.Releases, MaxFreeze: r.MaxFreeze,
		RemovalTraceparent: r.RemovalTraceparent,
	}
}

func copyRelease(r *catalogv1.Release) *catalogv1.Release {
	return &catalogv1.Release{Target: r.Target, Referrers: r.Referrers, Groups: r.Groups, Rollout: r.Rollout, Traceparent: r.Traceparent}
}

func validateReferrers(where string, list []*catalogv1.Descriptor) *Refusal {
	for i, d := range list {
		if err := validateDescriptor(where, d); err != nil {
			return err
		}
		if i > 0 && list[i-1].Digest >= d.Digest {
			return refuse(ErrInvalid, "%s: referrers are not sorted", where)
		}
	}
	return nil
}

// countReferrers counts those of the base and of all releases: together they are bounded.
func countReferrers(rec *catalogv1.Record) int {
	n := len(rec.GetReferrers())
	for _, r := range rec.GetReleases() {
		n += len(r.GetReferrers())
	}
	return n
}

func validateReleases(where string, rec *catalogv1.Record) *Refusal {
	if len(rec.Releases) > maxReleases {
		return refuse(ErrInvalid, "%s: %d releases, at most %d", where, len(rec.Releases), maxReleases)
	}
	paths := 0
	for _, r := range rec.Releases {
		if r.GetTarget() != nil {
			if err := validateDescriptor(where, r.Target); err != nil {
				return err
			}
		}
		if err := validateReferrers(where, r.GetReferrers()); err != nil {
			return err
		}
		if err := validateWords(r.GetTraceparent()); err != nil {
			return err
		}
		if r.GetRollout() != "" {
			if err := validateID("rollout", r.Rollout); err != nil {
				return err
			}
		}
		for i, g := range r.GetGroups() {
			if err := validateGroupPath(g); err != nil {
				return err
			}
			if i > 0 && r.Groups[i-1] >= g {
				return refuse(ErrInvalid, "%s: the groups of a release are not sorted", where)
			}
			paths += len(g)
		}
	}
	if paths > maxReleasePaths {
		return refuse(ErrInvalid, "%s: releases name groups in %d bytes, at most %d", where, paths, maxReleasePaths)
	}
	return validateDuration(where+": max_freeze", rec.MaxFreeze, 0, maxWait)
}
