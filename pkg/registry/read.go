package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
)

// Resolve says what a tag or digest stands for. The descriptor's artifact type is not filled in. It asks with HEAD, and with GET where a registry
// does not say enough to that.
func (c *Client) Resolve(ctx context.Context, repo, reference string) (*Descriptor, error) {
	return c.resolveAs(ctx, repo, reference, pull(repo))
}

func (c *Client) resolveAs(ctx context.Context, repo, reference string, scopes []string) (*Descriptor, error) {
	if err := checkReference(repo, reference); err != nil {
		return nil, err
	}
	in := manifestCall("resolve", repo, reference, http.MethodHead)
	in.scopes = scopes
	resp, err := c.do(ctx, in)
	if errors.Is(err, ErrUnsupported) || wordless(err) {
		return c.resolveByGet(ctx, repo, reference, scopes)
	}
	if err != nil {
		return nil, err
	}
	closeBody(resp)
	d := &Descriptor{MediaType: contentType(resp.Header), Digest: resp.Header.Get("Docker-Content-Digest"), Size: resp.ContentLength}
	if !ValidDigest(d.Digest) || d.Size <= 0 || !isManifestType(d.MediaType) {
		return c.resolveByGet(ctx, repo, reference, scopes)
	}
	if ValidDigest(reference) && d.Digest != reference {
		e := in.invalid(resp, "the registry says that it has digest "+d.Digest)
		e.kind = ErrDigest
		return nil, e
	}
	return d, nil
}

// wordless says whether a registry refused a HEAD, which has no room for its words, for a reason that a GET may tell.
func wordless(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == "" && e.Message == "" && e.Status >= 400 && e.Status != http.StatusNotFound
}

func (c *Client) resolveByGet(ctx context.Context, repo, reference string, scopes []string) (*Descriptor, error) {
	m, err := c.manifestAs(ctx, repo, reference, scopes)
	if err != nil {
		return nil, err
	}
	return &Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: int64(len(m.Content))}, nil
}

func manifestCall(op, repo, reference, method string) call {
	return call{
		op: op, repo: repo, ref: reference, method: method, path: "/v2/" + repo + "/manifests/" + reference,
		header: http.Header{"Accept": {acceptManifests}}, want: []int{http.StatusOK},
	}
}

// Manifest reads a manifest by tag or digest. Its digest was verified.
func (c *Client) Manifest(ctx context.Context, repo, reference string) (Manifest, error) {
	return c.manifestAs(ctx, repo, reference, pull(repo))
}

func (c *Client) manifestAs(ctx context.Context, repo, reference string, scopes []string) (Manifest, error) {
	if err := checkReference(repo, reference); err != nil {
		return Manifest{}, err
	}
	in := manifestCall("get manifest", repo, reference, http.MethodGet)
	in.scopes = scopes
	resp, err := c.do(ctx, in)
	if err != nil {
		return Manifest{}, err
	}
	content, err := c.readAll(ctx, in, resp, MaxManifestBytes)
	if err != nil {
		return Manifest{}, err
	}
	m := Manifest{MediaType: contentType(resp.Header), Digest: DigestOf(content), Content: content}
	want := resp.Header.Get("Docker-Content-Digest")
	if ValidDigest(reference) {
		want = reference
	}
	if isHTML(resp.Header) {
		return Manifest{}, in.invalid(resp, "")
	}
	if want != "" && want != m.Digest {
		e := in.invalid(resp, fmt.Sprintf("the content has digest %s, not %s", m.Digest, c.clean(want)))
		e.kind = ErrDigest
		return Manifest{}, e
	}
	var inner struct {
		MediaType string `json:"mediaType"`
	}
	if err := json.Unmarshal(content, &inner); err != nil {
		return Manifest{}, in.invalid(resp, "the manifest is not valid JSON: "+c.clean(err.Error()))
	}
	if !isManifestType(m.MediaType) && inner.MediaType != "" {
		m.MediaType = inner.MediaType
	}
	return m, nil
}

func contentType(h http.Header) string {
	t, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return t
}

func blobCall(op, repo, digest, method string) call {
	return call{op: op, repo: repo, ref: digest, method: method, path: "/v2/" + repo + "/blobs/" + digest, scopes: pull(repo), want: []int{http.StatusOK}}
}

// StatBlob gives a blob's size; ErrNotFound when the repository lacks it.
func (c *Client) StatBlob(ctx context.Context, repo, digest string) (int64, error) {
	if err := checkDigest(repo, digest); err != nil {
		return 0, err
	}
	in := blobCall("stat blob", repo, digest, http.MethodHead)
	resp, err := c.do(ctx, in)
	if err != nil {
		return 0, err
	}
	closeBody(resp)
	if resp.ContentLength < 0 || isHTML(resp.Header) {
		return 0, in.invalid(resp, "the answer gives no size")
	}
	return resp.ContentLength, nil
}

// OpenBlob reads length bytes of a blob from off on; a negative length: up to its end. The reader gives exactly that many bytes or an error. The
// digest is not verified: a part has none.
func (c *Client) OpenBlob(ctx context.Context, repo, digest string, off, length int64) (io.ReadCloser, error) {
	if err := checkDigest(repo, digest); err != nil {
		return nil, err
	}
	if off < 0 {
		return nil, fmt.Errorf("get blob %s@%s: offset %d: %w", repo, digest, off, ErrInvalid)
	}
	if length == 0 {
		return http.NoBody, nil
	}
	in := blobCall("get blob", repo, digest, http.MethodGet)
	if off > 0 || length > 0 {
		in.want = []int{http.StatusOK, http.StatusPartialContent}
		in.header = http.Header{"Range": {rangeOf(off, length)}}
	}
	resp, err := c.do(ctx, in)
	var e *Error
	if errors.As(err, &e) && e.Status == http.StatusRequestedRangeNotSatisfiable && length < 0 {
		// Not every registry knows ranges without an end.
		in.header, in.want = nil, []int{http.StatusOK}
		resp, err = c.do(ctx, in)
	}
	if err != nil {
		return nil, err
	}
	return c.part(ctx, in, resp, off, length)
}

func rangeOf(off, length int64) string {
	if length < 0 {
		return fmt.Sprintf("bytes=%d-", off)
	}
	return fmt.Sprintf("bytes=%d-%d", off, off+length-1)
}

// part cuts what was asked for out of an answer, whether the registry heeded the range or not.
func (c *Client) part(ctx context.Context, in call, resp *http.Response, off, length int64) (io.ReadCloser, error) {
	if isHTML(resp.Header) && resp.Request.URL.Host == c.base.Host {
		closeBody(resp)
		return nil, in.invalid(resp, "")
	}
	r := &blobReader{c: c, ctx: ctx, in: in, body: resp.Body, left: length}
	if resp.StatusCode == http.StatusPartialContent {
		if start, ok := rangeStart(resp.Header.Get("Content-Range")); !ok || start != off {
			closeBody(resp)
			return nil, in.invalid(resp, fmt.Sprintf("asked for bytes from %d on, the answer has range %q", off, c.clean(resp.Header.Get("Content-Range"))))
		}
		if length < 0 {
			r.left = resp.ContentLength
		}
		return r, nil
	}
	if resp.ContentLength >= 0 && off > resp.ContentLength {
		closeBody(resp)
		return nil, in.invalid(resp, fmt.Sprintf("offset %d is behind the end of the blob at %d", off, resp.ContentLength))
	}
	if _, err := io.CopyN(io.Discard, resp.Body, off); err != nil {
		resp.Body.Close()
		return nil, c.failed(ctx, in, &trace{}, err)
	}
	if length < 0 && resp.ContentLength >= 0 {
		r.left = resp.ContentLength - off
	}
	return r, nil
}

// rangeStart reads "bytes 5-9/20".
func rangeStart(s string) (int64, bool) {
	s, ok := strings.CutPrefix(s, "bytes ")
	if !ok {
		return 0, false
	}
	first, _, ok := strings.Cut(s, "-")
	n, err := strconv.ParseInt(first, 10, 64)
	return n, ok && err == nil
}

// blobReader gives exactly the bytes that were asked for, or an error that is not io.EOF.
type blobReader struct {
	c    *Client
	ctx  context.Context
	in   call
	body io.ReadCloser
	left int64 // negative: not known
}

func (r *blobReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	if r.left > 0 && int64(len(p)) > r.left {
		p = p[:r.left]
	}
	n, err := r.body.Read(p)
	if r.left > 0 {
		r.left -= int64(n)
		if err == io.EOF && r.left > 0 {
			err = io.ErrUnexpectedEOF
		}
		if r.left == 0 {
			return n, nil
		}
	}
	if err != nil && err != io.EOF {
		err = r.c.failed(r.ctx, r.in, &trace{}, err)
	}
	return n, err
}

func (r *blobReader) Close() error { return r.body.Close() }
