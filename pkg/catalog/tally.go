package catalog

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"
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
