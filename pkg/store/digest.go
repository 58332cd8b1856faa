package store

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// key is a digest's 32 bytes. Digests become file names and database keys only through it.
type key [sha256.Size]byte

const digestPrefix = "sha256:"

func parseDigest(digest string) (key, error) {
	var k key
	h, ok := strings.CutPrefix(digest, digestPrefix)
	if !ok || !parseHex(&k, h) {
		if len(digest) > 100 {
			digest = digest[:100] + "…"
		}
		return key{}, fmt.Errorf("%w: %q is not a digest: it must be sha256: and 64 lower-case hex digits", ErrInvalid, digest)
	}
	return k, nil
}

// parseHex takes lower case only, so that a digest has one name.
func parseHex(k *key, h string) bool {
	if len(h) != 2*len(k) || strings.ContainsAny(h, "ABCDEF") {
		return false
	}
	_, err := hex.Decode(k[:], []byte(h))
	return err == nil
}

func (k key) hex() string    { return hex.EncodeToString(k[:]) }
func (k key) String() string { return digestPrefix + k.hex() }
