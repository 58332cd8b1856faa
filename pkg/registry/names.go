package registry

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

var (
	repositoryPattern = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagPattern        = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)
	digestPattern     = regexp.MustCompile(`^sha256:[a-f0-9]{64}$`)
	fallbackPattern   = regexp.MustCompile(`^sha256-([a-f0-9]{64})$`)
	cosignPattern     = regexp.MustCompile(`^sha256-([a-f0-9]{64})\.(sig|att|sbom)$`)
	holdPattern       = regexp.MustCompile(`^fanout-hold\.[a-f0-9]{12}$`)
)

const maxRepositoryLength = 255

// DigestOf gives the digest of bytes.
func DigestOf(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// ValidRepository says whether s is a repository name as the OCI distribution specification has it.
func ValidRepository(s string) bool {
	return len(s) <= maxRepositoryLength && repositoryPattern.MatchString(s)
}

// ValidTag says whether s is a tag.
func ValidTag(s string) bool { return tagPattern.MatchString(s) }

// ValidDigest says whether s is a SHA-256 digest, the only kind that is handled.
func ValidDigest(s string) bool { return digestPattern.MatchString(s) }

// ParseRef reads "REPOSITORY[:TAG]" as people write it; the tag is "latest" by default. A registry's host and a digest are refused: a ref is the
// same in every registry. A host is told by its port, and so are "localhost" and IP addresses; a first part that only has a dot in it may be a project of Harbor's, see
// MayBeHost.
func ParseRef(s string) (repository, tag string, err error) {
	if len(s) > maxRepositoryLength+129 {
		return "", "", invalidRef(fmt.Sprintf("reference of %d bytes is too long", len(s)))
	}
	if strings.Contains(s, "@") {
		return "", "", invalidRef(fmt.Sprintf("reference %q has a digest; give REPOSITORY:TAG", s))
	}
	first, _, nested := strings.Cut(s, "/")
	if nested && looksLikeHost(first) {
		return "", "", invalidRef(fmt.Sprintf("reference %q begins with a registry's host; give REPOSITORY:TAG without it", s))
	}
	repository, tag, tagged := strings.Cut(s, ":")
	if !tagged {
		tag = "latest"
	}
	if !ValidRepository(repository) {
		return "", "", invalidRef(fmt.Sprintf("reference %q: %q is not a repository name (lower-case letters, digits, and . _ - / between them)", s, repository))
	}
	if !ValidTag(tag) {
		return "", "", invalidRef(fmt.Sprintf("reference %q: %q is not a tag (letters, digits, and . _ -; at most 128)", s, tag))
	}
	return repository, tag, nil
}

// invalidRef says to a person why a text is no reference. It is ErrInvalid.
type invalidRef string

func (e invalidRef) Error() string { return string(e) }
func (e invalidRef) Unwrap() error { return ErrInvalid }

func looksLikeHost(part string) bool {
	if _, err := netip.ParseAddr(part); err == nil {
		return true
	}
	return part == "localhost" || strings.ContainsAny(part, ":[")
}

// MayBeHost says whether a repository begins with what may have been meant as a registry's host: a word with a dot, and something after it.
func MayBeHost(repository string) bool {
	first, _, nested := strings.Cut(repository, "/")
	return nested && strings.Contains(first, ".")
}

// FallbackTag is the tag at which registries without a referrers API keep the list of what refers to a digest.
func FallbackTag(digest string) string { return strings.Replace(digest, ":", "-", 1) }

// IsFallbackTag says whether tag is a fallback referrers tag, and of which digest.
func IsFallbackTag(tag string) (digest string, ok bool) {
	if m := fallbackPattern.FindStringSubmatch(tag); m != nil {
		return "sha256:" + m[1], true
	}
	return "", false
}

// IsCosignTag says whether tag is a signature, an attestation or an SBOM in cosign's tag scheme, and of which digest.
func IsCosignTag(tag string) (digest string, ok bool) {
	if m := cosignPattern.FindStringSubmatch(tag); m != nil {
		return "sha256:" + m[1], true
	}
	return "", false
}

// HoldPrefix begins the name of every hold.
const HoldPrefix = "fanout-hold."

// IsHoldTag says whether tag is a hold, by which a site keeps content from its registry's garbage collection.
func IsHoldTag(tag string) bool { return holdPattern.MatchString(tag) }

func checkRepository(repo string) error {
	if !ValidRepository(repo) {
		return fmt.Errorf("%q is not a repository name: %w", repo, ErrInvalid)
	}
	return nil
}

func checkReference(repo, reference string) error {
	if err := checkRepository(repo); err != nil {
		return err
	}
	if !ValidTag(reference) && !ValidDigest(reference) {
		return fmt.Errorf("%q is neither a tag nor a sha256 digest: %w", reference, ErrInvalid)
	}
	return nil
}

func checkDigest(repo, digest string) error {
	if err := checkRepository(repo); err != nil {
		return err
	}
	if !ValidDigest(digest) {
		return fmt.Errorf("%q is not a sha256 digest: %w", digest, ErrInvalid)
	}
	return nil
}
