package catalog

import (
	"cmp"
	"slices"
	"strings"
	"time"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// Keep is how many of the newest tags of each repository this group's own registries show; 0: all. Headquarters' show all.
func (s *Snapshot) Keep() uint32 {
	if s.founded {
		return 0
	}
	return s.settings.GetSubscribe().GetKeep()
}

// Newest is the set of refs of which registries show the newest tags of each repository alone. It remembers what it worked out, and is not safe for concurrent use.
//
// A tag is as new as the push that it shows; what was signed later is no newer, and of two pushed at one moment the one with the higher revision is newer. Tags of cosign's scheme
// (sha256-….sig, .att, .sbom) count for nothing: each goes with the tags that show what it names, and stays where no tag shows that. Tombstones are not counted; they are in the set, since what they say
// holds everywhere. So is what is newer than the snapshot's position, of which the rest is still to come.
type Newest struct {
	snap *Snapshot
	keep uint32
	repo string
	out  map[string]bool // tags of the repository looked at last that are not in the set
}

// Newest returns the set for a number of tags; 0: it has all refs.
func (s *Snapshot) Newest(keep uint32) *Newest { return &Newest{snap: s, keep: keep} }

// Has says whether a ref is in the set.
func (n *Newest) Has(ref Ref) bool {
	if n.keep == 0 {
		return true
	}
	if n.out == nil || n.repo != ref.Repository {
		n.repo, n.out = ref.Repository, n.snap.leftOut(ref.Repository, n.keep)
	}
	return !n.out[ref.Tag]
}

// leftOut gives the tags of a repository that are not among its newest, nor go with these.
func (s *Snapshot) leftOut(repo string, keep uint32) map[string]bool {
	var images, signatures []*catalogv1.Record
	byTarget := map[string][]string{} // tags by what they show
	for rec := range s.Repository(repo) {
		if Tombstone(rec) || rec.Revision > s.position.Revision {
			continue
		}
		byTarget[rec.Target.GetDigest()] = append(byTarget[rec.Target.GetDigest()], rec.Tag)
		if named(rec.Tag) == "" {
			images = append(images, rec)
		} else {
			signatures = append(signatures, rec)
		}
	}
	slices.SortFunc(images, func(a, b *catalogv1.Record) int {
		return cmp.Or(pushedAt(b).Compare(pushedAt(a)), cmp.Compare(b.Revision, a.Revision))
	})
	out := map[string]bool{}
	for _, rec := range images[min(len(images), int(keep)):] {
		out[rec.Tag] = true
	}
	// One signature may name another: each round settles those that name what is settled. No circle is possible, a digest can't name itself.
	for settled := false; !settled; {
		settled = true
		for _, rec := range signatures {
			tags := byTarget[named(rec.Tag)]
			gone := len(tags) > 0 && !slices.ContainsFunc(tags, func(tag string) bool { return !out[tag] })
			if gone && !out[rec.Tag] {
				out[rec.Tag], settled = true, false
			}
		}
	}
	return out
}

// pushedAt is when a record's target was pushed, as far as that is known.
func pushedAt(rec *catalogv1.Record) time.Time {
	if rec.PushedAt != nil {
		return rec.PushedAt.AsTime()
	}
	return rec.PublishedAt.AsTime()
}

// named is the digest that a tag of cosign's scheme names; "" for other tags.
func named(tag string) string {
	rest, ok := strings.CutPrefix(tag, fallbackPrefix)
	if !ok {
		return ""
	}
	hex, kind, _ := strings.Cut(rest, ".")
	if !isHex(hex, 64) || kind != "sig" && kind != "att" && kind != "sbom" {
		return ""
	}
	return digestAlgo + hex
}
