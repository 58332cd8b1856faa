package catalog

import (
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// Bounds of what the machine takes in. They keep a record below MaxItem.
const (
	maxRepository  = 255
	maxTag         = 128
	maxWord        = 512
	maxID          = 64
	maxReferrers   = 4096
	maxAncestors   = 1024
	maxSites       = 1024
	maxLabels      = 256
	maxGroups      = 1 << 16
	maxMembers     = 64
	digestAlgo     = "sha256:"
	digestSize     = len(digestAlgo) + 64
	holdPrefix     = "fanout-hold."
	fallbackPrefix = "sha256-"
)

// quote shows a string from outside, shortened.
func quote(s string) string {
	if len(s) > 80 {
		return strconv.Quote(s[:80]) + "…"
	}
	return strconv.Quote(s)
}

// Validate checks a ref against the grammar of the OCI distribution specification.
func (r Ref) Validate() error {
	if err := r.validate(); err != nil {
		return err
	}
	return nil
}

func (r Ref) validate() *Refusal {
	if !validRepository(r.Repository) {
		return refuse(ErrInvalid, "repository %s: write lower-case words parted by . _ __ or -, joined by /, at most %d bytes", quote(r.Repository), maxRepository)
	}
	if !validTag(r.Tag) {
		return refuse(ErrInvalid, "%s: tag %s: write letters, digits, _ . and -, not . or - first, at most %d bytes", r.Repository, quote(r.Tag), maxTag)
	}
	return nil
}

// validatePublishable refuses the tags that are never refs.
func validatePublishable(r Ref) *Refusal {
	if strings.HasPrefix(r.Tag, holdPrefix) {
		return refuse(ErrInvalid, "%s: tags %s… hold content and are never published", r, holdPrefix)
	}
	if rest, ok := strings.CutPrefix(r.Tag, fallbackPrefix); ok && isHex(rest, 64) {
		return refuse(ErrInvalid, "%s: this tag lists referrers and is never published; publish the image that it belongs to", r)
	}
	return nil
}

func validRepository(s string) bool {
	if s == "" || len(s) > maxRepository {
		return false
	}
	for part := range strings.SplitSeq(s, "/") {
		if !validPathComponent(part) {
			return false
		}
	}
	return true
}

// validPathComponent: words of a-z0-9 parted by one of . _ __ or any number of -.
func validPathComponent(s string) bool {
	if s == "" || !alphanumeric(s[0]) || !alphanumeric(s[len(s)-1]) {
		return false
	}
	for i := 0; i < len(s); i++ {
		if alphanumeric(s[i]) {
			continue
		}
		j := i
		for !alphanumeric(s[j]) {
			j++ // ends: the last byte is alphanumeric
		}
		if sep := s[i:j]; sep != "." && sep != "_" && sep != "__" && strings.Trim(sep, "-") != "" {
			return false
		}
		i = j
	}
	return true
}

func alphanumeric(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }

func validTag(s string) bool {
	if s == "" || len(s) > maxTag || s[0] == '.' || s[0] == '-' {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; !alphanumeric(c) && (c < 'A' || c > 'Z') && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return true
}

// ValidDigest says whether s is "sha256:" and 64 lower-case hexadecimal digits.
func ValidDigest(s string) bool {
	return len(s) == digestSize && strings.HasPrefix(s, digestAlgo) && isHex(s[len(digestAlgo):], 64)
}

func isHex(s string, n int) bool {
	if len(s) != n {
		return false
	}
	for i := 0; i < n; i++ {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func validateDescriptor(where string, d *catalogv1.Descriptor) *Refusal {
	switch {
	case d == nil:
		return refuse(ErrInvalid, "%s: no descriptor", where)
	case !ValidDigest(d.Digest):
		return refuse(ErrInvalid, "%s: digest %s: want sha256: and 64 hexadecimal digits", where, quote(d.Digest))
	case d.Size < 0:
		return refuse(ErrInvalid, "%s: %s has size %d", where, d.Digest, d.Size)
	}
	return validateWords(d.MediaType, d.ArtifactType)
}

// validateWords checks short free text: bounded and printable.
func validateWords(words ...string) *Refusal {
	for _, w := range words {
		if len(w) > maxWord {
			return refuse(ErrInvalid, "%s has %d bytes, at most %d are kept", quote(w), len(w), maxWord)
		}
		if strings.ContainsFunc(w, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return refuse(ErrInvalid, "%s has control characters", quote(w))
		}
	}
	return nil
}

func validateTime(where string, t *timestamppb.Timestamp) *Refusal {
	if t != nil && !t.IsValid() {
		return refuse(ErrInvalid, "%s: time %d s %d ns does not exist", where, t.Seconds, t.Nanos)
	}
	return nil
}

// validateID checks an epoch or the like.
func validateID(what, id string) *Refusal {
	if id == "" || len(id) > maxID || strings.ContainsFunc(id, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
	}) {
		return refuse(ErrInvalid, "%s %s: write 1 to %d letters, digits, - and _", what, quote(id), maxID)
	}
	return nil
}

func validateEpoch(id string) *Refusal { return validateID("epoch", id) }

func validatePublish(p *catalogv1.Publish, actor string) *Refusal {
	where := quote(p.GetRepository() + ":" + p.GetTag())
	if err := validateDescriptor(where, p.GetTarget()); err != nil {
		return err
	}
	if len(p.Referrers) > maxReferrers {
		return refuse(ErrInvalid, "%s: %d referrers, at most %d", where, len(p.Referrers), maxReferrers)
	}
	for _, d := range p.Referrers {
		if err := validateDescriptor(where, d); err != nil {
			return err
		}
	}
	if len(p.Settles) > maxHistory {
		return refuse(ErrInvalid, "%s: %d digests that lost, at most %d", where, len(p.Settles), maxHistory)
	}
	for i, d := range p.Settles {
		if !ValidDigest(d) || slices.Contains(p.Settles[:i], d) {
			return refuse(ErrInvalid, "%s: %s as a digest that lost", where, quote(d))
		}
	}
	if err := validateTime(where, p.PushedAt); err != nil {
		return err
	}
	if p.Group != "" {
		if err := validateGroupPath(p.Group); err != nil {
			return err
		}
	}
	return validateWords(actor, p.Origin, p.Traceparent)
}

func validateRecord(rec *catalogv1.Record) *Refusal {
	ref := RefOf(rec)
	if err := ref.validate(); err != nil {
		return err
	}
	where := ref.String()
	switch {
	case rec.Revision == 0:
		return refuse(ErrInvalid, "%s: no revision", where)
	case len(rec.Sum) != sumSize:
		return refuse(ErrInvalid, "%s: a sum of %d bytes, want %d", where, len(rec.Sum), sumSize)
	case len(rec.History) > maxHistory:
		return refuse(ErrInvalid, "%s: %d earlier digests, at most %d", where, len(rec.History), maxHistory)
	case countReferrers(rec) > maxReferrers:
		return refuse(ErrInvalid, "%s: %d referrers, at most %d", where, countReferrers(rec), maxReferrers)
	}
	if err := validateDescriptor(where, rec.Target); err != nil {
		return err
	}
	if err := validateReferrers(where, rec.Referrers); err != nil {
		return err
	}
	if err := validateReleases(where, rec); err != nil {
		return err
	}
	for _, d := range rec.History {
		if !ValidDigest(d) {
			return refuse(ErrInvalid, "%s: earlier digest %s", where, quote(d))
		}
	}
	for _, t := range []*timestamppb.Timestamp{rec.PublishedAt, rec.PushedAt} {
		if err := validateTime(where, t); err != nil {
			return err
		}
	}
	return validateWords(rec.PublishedBy, rec.Origin, rec.Traceparent, rec.RemovalTraceparent)
}

func validatePosition(p *catalogv1.Position) *Refusal {
	if err := validateEpoch(p.GetEpoch()); err != nil {
		return err
	}
	if len(p.GetSum()) != sumSize {
		return refuse(ErrInvalid, "epoch %s revision %d: a sum of %d bytes, want %d", p.Epoch, p.Revision, len(p.GetSum()), sumSize)
	}
	return validateWords(p.GetScope())
}

func validateAncestors(line []*catalogv1.Ancestor) *Refusal {
	if len(line) > maxAncestors {
		return refuse(ErrInvalid, "%d ancestors, at most %d", len(line), maxAncestors)
	}
	for _, a := range line {
		if err := validatePosition(a.GetPosition()); err != nil {
			return err
		}
	}
	return nil
}

func validateImport(im *catalogv1.Import) *Refusal {
	if im.GetPosition() == nil {
		return refuse(ErrInvalid, "an import without a position")
	}
	if err := validatePosition(im.Position); err != nil {
		return err
	}
	if err := validateAncestors(im.Ancestors); err != nil {
		return err
	}
	if im.Resync != "" {
		if err := validateID("resync", im.Resync); err != nil {
			return err
		}
	} else if im.End {
		return refuse(ErrInvalid, "the end of a resync without its ID")
	}
	if im.Position.Scope == "" {
		return refuse(ErrInvalid, "a position without the hash of the scope in force")
	}
	last := uint64(0)
	for _, rec := range im.Records {
		if err := validateRecord(rec); err != nil {
			return err
		}
		if rec.Revision <= last {
			return refuse(ErrInvalid, "%s: revision %d after %d: records come in revision order", RefOf(rec), rec.Revision, last)
		}
		last = rec.Revision
	}
	if last > im.Position.Revision {
		return refuse(ErrInvalid, "a record at revision %d, beyond the position's %d", last, im.Position.Revision)
	}
	return nil
}
