package catalog

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// Tally makes the digest that View.Digest makes, of whatever it is told, such as what a registry shows. The zero value is empty. Refs must come in the order of
// repositories, then tags, as Records yields them. Not safe for concurrent use.
type Tally struct {
	whole    hash.Hash
	part     encoder
	repo     string
	anything bool
	// each, if set, gets the digest of each repository.
	each func(repository, digest string) bool
	done bool
}

// Add tells that a tag shows a target, and of which digests its referrers are, in order.
func (t *Tally) Add(repository, tag, target string, referrers ...string) {
	if repository != t.repo {
		t.flush()
		t.repo = repository
	}
	t.anything = true
	t.part.text(tag)
	t.part.text(target)
	t.part.number(uint64(len(referrers)))
	for _, d := range referrers {
		t.part.text(d)
	}
}

// AddRecord tells what a record that is no tombstone wants: one without releases as Add of its target, one with releases as no Add of a tag can, since no tag has such a name.
func (t *Tally) AddRecord(rec *catalogv1.Record) {
	if len(rec.GetReleases()) == 0 {
		t.Add(rec.GetRepository(), rec.GetTag(), rec.GetTarget().GetDigest(), ReferrersOf(rec)...)
		return
	}
	base := "base "
	if rec.GetDeleted() {
		base = "no base "
	}
	t.Add(rec.GetRepository(), base+rec.GetTag(), rec.GetTarget().GetDigest(), ReferrersOf(rec)...)
	for _, r := range rec.GetReleases() {
		t.Add(rec.GetRepository(), "release "+rec.GetTag(), r.GetTarget().GetDigest(), digestsOf(r.GetReferrers())...)
		t.Add(rec.GetRepository(), "released to "+rec.GetTag(), "", r.GetGroups()...)
	}
}

// flush ends a repository.
func (t *Tally) flush() {
	if !t.anything {
		return
	}
	sum := sha256.Sum256(t.part.Bytes())
	t.part.Reset()
	t.anything = false
	digest := hex.EncodeToString(sum[:])
	if t.each != nil {
		t.done = t.done || !t.each(t.repo, digest)
		return
	}
	if t.whole == nil {
		t.whole = sha256.New()
	}
	var e encoder
	e.text(t.repo)
	e.text(digest)
	t.whole.Write(e.Bytes())
}

// Digest of what was added. Nothing may be added after it.
func (t *Tally) Digest() string {
	t.flush()
	if t.whole == nil {
		t.whole = sha256.New()
	}
	return hex.EncodeToString(t.whole.Sum(nil))
}
