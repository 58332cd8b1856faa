package transfer

import (
	"fmt"

	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"
)

// Bounds of what is asked for.
const (
	MaxDigests  = 1000    // in one FindMissing or Manifests request
	MaxManifest = 4 << 20 // bytes of one manifest
	MaxBlob     = 1 << 44 // bytes of one blob
	maxName     = 512     // bytes of a group, site, repository or tag
)

// checkDigest accepts sha256 digests in their one spelling. The digest becomes part of file names and URLs, so nothing
// else may pass.
func checkDigest(d string) error {
	const prefix = "sha256:"
	if len(d) != len(prefix)+64 || d[:len(prefix)] != prefix {
		return fmt.Errorf("%w: digest %.80q is not sha256:<64 hex digits>", ErrInvalid, d)
	}
	for _, c := range []byte(d[len(prefix):]) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return fmt.Errorf("%w: digest %q has a character that is not a lower-case hex digit", ErrInvalid, d)
		}
	}
	return nil
}

// checkAsker accepts a caller and a purpose that are whole and of sane length. Whether they are true is Authorize's matter.
func checkAsker(c *transferv1.Caller, p *transferv1.Purpose) error {
	if c.GetSite() == "" || c.GetGroup() == "" {
		return fmt.Errorf("%w: caller has no group or site", ErrInvalid)
	}
	if p == nil {
		return fmt.Errorf("%w: no purpose", ErrInvalid)
	}
	for _, s := range []string{c.GetGroup(), c.GetSite(), p.GetRepository(), p.GetTag()} {
		if len(s) > maxName {
			return fmt.Errorf("%w: a name of %d bytes, at most %d", ErrInvalid, len(s), maxName)
		}
	}
	if p.GetRepository() == "" {
		return fmt.Errorf("%w: purpose has no repository", ErrInvalid)
	}
	if err := checkDigest(p.GetRoot()); err != nil {
		return fmt.Errorf("purpose's root: %w", err)
	}
	return nil
}

// checkDigests accepts at most MaxDigests digests.
func checkDigests(ds []string) error {
	if len(ds) > MaxDigests {
		return fmt.Errorf("%w: %d digests, at most %d", ErrInvalid, len(ds), MaxDigests)
	}
	for _, d := range ds {
		if err := checkDigest(d); err != nil {
			return err
		}
	}
	return nil
}

// checkFetch accepts a fetch request and gives the end of its range.
func checkFetch(r *transferv1.FetchRequest) (end int64, err error) {
	if err := checkAsker(r.GetCaller(), r.GetPurpose()); err != nil {
		return 0, err
	}
	if err := checkDigest(r.GetDigest()); err != nil {
		return 0, err
	}
	size, off, n := r.GetSize(), r.GetOffset(), r.GetLength()
	switch {
	case size < 0 || size > MaxBlob:
		return 0, fmt.Errorf("%w: size %d, want 0 to %d", ErrInvalid, size, int64(MaxBlob))
	case off < 0 || off > size:
		return 0, fmt.Errorf("%w: offset %d of a blob of %d bytes", ErrInvalid, off, size)
	case n < 0 || n > size-off:
		return 0, fmt.Errorf("%w: length %d from offset %d of a blob of %d bytes", ErrInvalid, n, off, size)
	case n == 0:
		return size, nil
	}
	return off + n, nil
}
