package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	mergeTries = 5
	// apiMemory is how long a registry is believed to have no referrers API, so that one that was upgraded is noticed.
	apiMemory = 10 * time.Minute
)

// Referrers lists what refers to a manifest, sorted by digest: the union of the referrers API and the fallback tag, since a registry that has the
// API may still hold tags from before. None, and an unknown digest, give an empty list.
func (c *Client) Referrers(ctx context.Context, repo, digest string) ([]*Descriptor, error) {
	if err := checkDigest(repo, digest); err != nil {
		return nil, err
	}
	all, _, err := c.referrersAPI(ctx, repo, digest)
	if err != nil {
		return nil, err
	}
	index, err := c.fallbackIndex(ctx, repo, digest, pull(repo))
	if errors.Is(err, errNoIndex) {
		// Someone put something else there, which refers to nothing. It must not hold up the image.
		c.log.Warn("fallback tag passed over", "repository", repo, "digest", digest, "error", err)
		index, err = &referrerIndex{}, nil
	}
	if err != nil {
		return nil, err
	}
	for i := range index.entries {
		all = append(all, index.entries[i].desc)
	}
	slices.SortFunc(all, func(a, b *Descriptor) int {
		if a.Digest != b.Digest {
			return strings.Compare(a.Digest, b.Digest)
		}
		// Of two that name the same, the one that says more comes first.
		return len(b.ArtifactType) - len(a.ArtifactType)
	})
	all = slices.CompactFunc(all, func(a, b *Descriptor) bool { return a.Digest == b.Digest })
	if len(all) > MaxEntries {
		return nil, fmt.Errorf("list referrers %s@%s: %d exceed %d: %w", repo, digest, len(all), MaxEntries, ErrInvalid)
	}
	return all, nil
}

// HasReferrersAPI says whether the registry lists referrers itself; where it does not, only a fallback tag lists those of a digest, and a digest without one has none. It asks for
// those of a digest, in a repository that is there. Where the answer tells neither, it is taken to have the API.
func (c *Client) HasReferrersAPI(ctx context.Context, repo, digest string) (bool, error) {
	if err := checkDigest(repo, digest); err != nil {
		return false, err
	}
	if _, supported, err := c.referrersAPI(ctx, repo, digest); err != nil || supported {
		return supported, err
	}
	return !c.lacksReferrers(), nil
}

// lacksReferrers: the registry was seen to have no referrers API, not long ago.
func (c *Client) lacksReferrers() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.noReferrers.IsZero() && time.Since(c.noReferrers) < apiMemory
}

// referrersAPI asks the registry; supported is false where it has no such API.
func (c *Client) referrersAPI(ctx context.Context, repo, digest string) (all []*Descriptor, supported bool, err error) {
	if c.lacksReferrers() {
		return nil, false, nil
	}
	in := call{
		op: "list referrers", repo: repo, ref: digest, method: http.MethodGet, scopes: pull(repo), want: []int{http.StatusOK},
		header: http.Header{"Accept": {MediaTypeOCIIndex}},
	}
	path := "/v2/" + repo + "/referrers/" + digest
	query, seen := url.Values{}, map[string]bool{}
	for {
		in.path = path
		if len(query) > 0 {
			in.path += "?" + query.Encode()
		}
		resp, err := c.do(ctx, in)
		if err != nil {
			return c.noReferrersAPI(err)
		}
		var index struct {
			Manifests []wireDescriptor `json:"manifests"`
		}
		if err := c.decode(ctx, in, resp, &index); err != nil {
			return nil, false, err
		}
		for i := range index.Manifests {
			d, err := index.Manifests[i].descriptor("referrer")
			if err != nil {
				return nil, false, in.invalid(resp, err.Error())
			}
			all = append(all, d)
		}
		next, err := nextPage(resp.Header)
		if err != nil || next != nil && seen[next.Encode()] || len(all) > MaxEntries {
			return nil, false, in.invalid(resp, "its list of referrers does not end")
		}
		if next == nil {
			return all, true, nil
		}
		seen[next.Encode()], query = true, next
	}
}

// noReferrersAPI tells a registry without the API from one that refuses or fails.
func (c *Client) noReferrersAPI(err error) ([]*Descriptor, bool, error) {
	var e *Error
	if !errors.As(err, &e) || errors.Is(err, errNoProject) {
		return nil, false, err
	}
	switch e.Status {
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusBadRequest, http.StatusNotAcceptable:
	default:
		return nil, false, err
	}
	// A registry that has the API may answer so for a repository that is not there, with a code of its own; Harbor always has it.
	if !c.harbor && (e.Code == "" || e.Code == codeUnsupported) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.noReferrers = time.Now()
	}
	return nil, false, nil
}

// referrerIndex is the content of a fallback tag. Entries and fields that others wrote are kept as they are.
type referrerIndex struct {
	digest  string // empty: there is no such tag
	fields  map[string]json.RawMessage
	entries []referrerEntry
}

// errNoIndex says that a fallback tag shows something that is no list of referrers.
var errNoIndex = fmt.Errorf("no list of referrers: %w", ErrInvalid)

type referrerEntry struct {
	desc *Descriptor
	raw  json.RawMessage
}

func (c *Client) fallbackIndex(ctx context.Context, repo, subject string, scopes []string) (*referrerIndex, error) {
	index := &referrerIndex{fields: map[string]json.RawMessage{}}
	m, err := c.manifestAs(ctx, repo, FallbackTag(subject), scopes)
	if errors.Is(err, ErrNotFound) {
		return index, nil
	}
	if err != nil {
		return nil, err
	}
	fail := func(why string) error {
		return fmt.Errorf("fallback tag %s:%s: %s: %w", repo, FallbackTag(subject), why, errNoIndex)
	}
	if m.MediaType != MediaTypeOCIIndex {
		return nil, fail("it shows " + c.clean(m.MediaType) + ", not an index")
	}
	if err := json.Unmarshal(m.Content, &index.fields); err != nil {
		return nil, fail(c.clean(err.Error()))
	}
	var raw []json.RawMessage
	if err := json.Unmarshal(index.fields["manifests"], &raw); err != nil && len(index.fields["manifests"]) > 0 {
		return nil, fail(c.clean(err.Error()))
	}
	if len(raw) > MaxEntries {
		return nil, fail(fmt.Sprintf("%d entries exceed %d", len(raw), MaxEntries))
	}
	for _, r := range raw {
		var w wireDescriptor
		if err := json.Unmarshal(r, &w); err != nil {
			return nil, fail(c.clean(err.Error()))
		}
		d, err := w.descriptor("referrer")
		if err != nil {
			return nil, fail(err.Error())
		}
		index.entries = append(index.entries, referrerEntry{desc: d, raw: r})
	}
	index.digest = m.Digest
	return index, nil
}

func (x *referrerIndex) has(digest string) bool {
	return slices.ContainsFunc(x.entries, func(e referrerEntry) bool { return e.desc.Digest == digest })
}

// manifest gives the index with its entries sorted by digest, so that sites which merge the same set agree.
func (x *referrerIndex) manifest() (Manifest, error) {
	slices.SortFunc(x.entries, func(a, b referrerEntry) int { return strings.Compare(a.desc.Digest, b.desc.Digest) })
	raw := make([]json.RawMessage, len(x.entries))
	for i := range x.entries {
		raw[i] = x.entries[i].raw
	}
	list, err := json.Marshal(raw)
	if err != nil {
		return Manifest{}, err
	}
	x.fields["manifests"] = list
	x.fields["schemaVersion"] = json.RawMessage("2")
	x.fields["mediaType"] = json.RawMessage(`"` + MediaTypeOCIIndex + `"`)
	content, err := json.Marshal(x.fields)
	if err != nil {
		return Manifest{}, err
	}
	if len(content) > MaxManifestBytes {
		return Manifest{}, fmt.Errorf("list of %d referrers exceeds %d bytes: %w", len(raw), MaxManifestBytes, ErrInvalid)
	}
	return Manifest{MediaType: MediaTypeOCIIndex, Digest: DigestOf(content), Content: content}, nil
}

// enterReferrer sees to it that the registry lists m as a referrer of subject. Without a referrers API it merges m into the fallback tag by union:
// read, add, put, and read again, since another client may have put meanwhile; within this client it is serialised.
func (c *Client) enterReferrer(ctx context.Context, repo, subject string, m Manifest, p Parsed) error {
	listed, _, err := c.referrersAPI(ctx, repo, subject)
	if err != nil || slices.ContainsFunc(listed, func(d *Descriptor) bool { return d.Digest == m.Digest }) {
		return err
	}
	entry, err := newEntry(m, p)
	if err != nil {
		return err
	}
	unlock, err := c.merging.lock(ctx, repo+"@"+subject)
	if err != nil {
		return fmt.Errorf("enter referrer of %s@%s: %w", repo, subject, err)
	}
	defer unlock()
	for range mergeTries {
		index, err := c.fallbackIndex(ctx, repo, subject, push(repo))
		if err != nil {
			return err
		}
		if index.has(entry.desc.Digest) {
			return nil
		}
		index.entries = append(index.entries, entry)
		if err := c.putIndex(ctx, repo, subject, index, m.Digest); err != nil {
			return err
		}
	}
	index, err := c.fallbackIndex(ctx, repo, subject, push(repo))
	if err != nil {
		return err
	}
	if !index.has(entry.desc.Digest) {
		return &Error{Op: "enter referrer of", Repository: repo, Reference: subject, Message: "others keep overwriting the fallback tag", kind: ErrUnavailable}
	}
	return nil
}

// putIndex puts a fallback tag with a new entry. Older entries whose manifests the registry says it lacks are left out: they lead nowhere there.
func (c *Client) putIndex(ctx context.Context, repo, subject string, index *referrerIndex, added string) error {
	for {
		m, err := index.manifest()
		if err != nil {
			return fmt.Errorf("fallback tag %s:%s: %w", repo, FallbackTag(subject), err)
		}
		_, err = c.put(ctx, repo, FallbackTag(subject), m)
		var e *Error
		if !errors.Is(err, ErrBlobUnknown) || !errors.As(err, &e) {
			return err
		}
		before := len(index.entries)
		index.entries = slices.DeleteFunc(index.entries, func(entry referrerEntry) bool { return slices.Contains(e.Missing, entry.desc.Digest) })
		if len(index.entries) == before || !index.has(added) {
			return err
		}
		c.log.Warn("referrers that the registry lacks are left out of its fallback tag", "repository", repo, "digest", subject, "missing", e.Missing)
	}
}

func newEntry(m Manifest, p Parsed) (referrerEntry, error) {
	d := &Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: int64(len(m.Content)), ArtifactType: p.ArtifactType}
	raw, err := json.Marshal(struct {
		wireDescriptor
		Annotations map[string]string `json:"annotations,omitempty"`
	}{wireDescriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, ArtifactType: d.ArtifactType}, p.Annotations})
	return referrerEntry{desc: d, raw: raw}, err
}
