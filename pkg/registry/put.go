package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// PutManifest puts a manifest, by tag or by its digest, as the bytes that it is. A tag is looked at first: one that shows the manifest already is
// left alone, since Harbor refuses even that under a rule of immutability. When the manifest has a subject and the registry has no referrers API, it
// is also entered in the fallback tag of the subject. Putting the same again is harmless.
func (c *Client) PutManifest(ctx context.Context, repo, reference string, m Manifest) error {
	if err := checkReference(repo, reference); err != nil {
		return err
	}
	p, err := checkManifest(repo, reference, &m)
	if err != nil {
		return err
	}
	handled := false
	err = c.pushing(ctx, repo, func() error {
		handled, err = c.putOnce(ctx, repo, reference, m)
		return err
	})
	if err != nil || p.Subject == nil || handled {
		return err
	}
	return c.enterReferrer(ctx, repo, p.Subject.Digest, m, p)
}

func checkManifest(repo, reference string, m *Manifest) (Parsed, error) {
	digest := DigestOf(m.Content)
	if m.Digest == "" {
		m.Digest = digest
	}
	if m.Digest != digest || ValidDigest(reference) && reference != digest {
		return Parsed{}, fmt.Errorf("put manifest %s %s: the content has digest %s, not %s: %w", repo, reference, digest, m.Digest, ErrDigest)
	}
	p, err := ParseManifest(*m)
	if err != nil {
		return p, fmt.Errorf("put manifest %s %s: %w", repo, reference, err)
	}
	if m.MediaType == "" {
		return p, fmt.Errorf("put manifest %s %s: no media type: %w", repo, reference, ErrInvalid)
	}
	return p, nil
}

// putOnce says whether the registry has taken note of the manifest's subject.
func (c *Client) putOnce(ctx context.Context, repo, reference string, m Manifest) (subject bool, err error) {
	if !ValidDigest(reference) {
		shows, err := c.shows(ctx, repo, reference, m.Digest)
		if err != nil || shows {
			return false, err
		}
	}
	subject, err = c.put(ctx, repo, reference, m)
	if err != nil && !ValidDigest(reference) && errors.Is(err, ErrImmutable) {
		// Another may have put the same meanwhile; or our own request was carried out and its answer lost.
		if shows, lookErr := c.shows(ctx, repo, reference, m.Digest); lookErr == nil && shows {
			return false, nil
		}
	}
	return subject, err
}

func (c *Client) shows(ctx context.Context, repo, tag, digest string) (bool, error) {
	d, err := c.resolveAs(ctx, repo, tag, push(repo))
	switch {
	case errors.Is(err, errNoProject):
		return false, err
	case errors.Is(err, ErrNotFound):
		return false, nil
	case errors.Is(err, ErrInvalid) || errors.Is(err, ErrDigest):
		// What the tag shows now is rubbish; it will be what is put.
		return false, nil
	case err != nil:
		return false, err
	}
	return d.Digest == digest, nil
}

func (c *Client) put(ctx context.Context, repo, reference string, m Manifest) (subject bool, err error) {
	in := call{
		op: "put manifest", repo: repo, ref: reference, method: http.MethodPut, path: "/v2/" + repo + "/manifests/" + reference,
		header: http.Header{"Content-Type": {m.MediaType}}, scopes: push(repo), want: []int{http.StatusCreated, http.StatusOK},
		body: func() io.Reader { return bytes.NewReader(m.Content) }, length: int64(len(m.Content)),
	}
	resp, err := c.do(ctx, in)
	if err != nil {
		return false, err
	}
	closeBody(resp)
	if isHTML(resp.Header) {
		return false, in.invalid(resp, "")
	}
	if got := resp.Header.Get("Docker-Content-Digest"); got != "" && got != m.Digest {
		e := in.invalid(resp, fmt.Sprintf("the registry has stored digest %s, not %s", c.clean(got), m.Digest))
		e.kind = ErrDigest
		return false, e
	}
	return resp.Header.Get("OCI-Subject") != "", nil
}
