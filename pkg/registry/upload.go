package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// maxMounts is how many repositories are tried for a mount.
	maxMounts = 3
	// uploadTries is how often an upload is begun; resumeTries how often a session is taken up again without having moved.
	uploadTries = 4
	resumeTries = 3
	// commitRate, in bytes a second, is how slowly a registry may take in a blob that it has received whole: it hashes it, and in object storage it may copy it.
	commitRate = 4 << 20
	// maxChunk bounds what a registry may demand as its least chunk.
	maxChunk = 1 << 30
	// cancelTimeout bounds the clearing up after an upload that was given up.
	cancelTimeout = 5 * time.Second
)

// PushBlob brings a blob into a repository: mounted from one of mountFrom (repositories of this registry that hold it) if possible, else uploaded from
// src, which may still be arriving. No request is open while bytes are awaited.
//
// A session that broke is continued where the registry allows it, else begun anew from the first byte, a bounded number of times. On failure the
// session is canceled. Success means that the registry accepted the digest, and nothing less.
func (c *Client) PushBlob(ctx context.Context, repo, digest string, src BlobSource, mountFrom ...string) (mounted bool, err error) {
	if err := checkDigest(repo, digest); err != nil {
		return false, err
	}
	for _, from := range mountFrom {
		if err := checkRepository(from); err != nil {
			return false, err
		}
	}
	if src.Size() < 0 {
		return false, fmt.Errorf("push blob %s@%s: size %d: %w", repo, digest, src.Size(), ErrInvalid)
	}
	for try := 1; ; try++ {
		u := &upload{c: c, repo: repo, digest: digest, src: src, size: src.Size()}
		mounted, err := u.run(ctx, mountFrom)
		if err == nil {
			return mounted, nil
		}
		u.cancel(ctx)
		if ctx.Err() != nil || !errors.Is(err, errSession) {
			return false, err
		}
		// The answer to the closing request may have been lost.
		if size, statErr := c.StatBlob(ctx, repo, digest); statErr == nil && size == src.Size() {
			return false, nil
		}
		if try == uploadTries {
			return false, err
		}
		c.log.Debug("upload begun anew", "digest", digest, "error", err)
		if err := sleep(ctx, time.Duration(try*try)*50*time.Millisecond); err != nil {
			return false, canceled("push blob", ctx)
		}
		mountFrom = nil
	}
}

// errSession marks an error that ended an upload session; a new session may go well.
var errSession = errors.New("upload session lost")

// sessionError keeps the error's words and adds errSession to what it is.
type sessionError struct{ error }

func (e sessionError) Is(target error) bool { return target == errSession }
func (e sessionError) Unwrap() error        { return e.error }

// upload is one session.
type upload struct {
	c            *Client
	repo, digest string
	src          BlobSource
	size         int64
	// location of the next request; empty: no session.
	location string
	// least chunk that the registry takes.
	least int64
	// off is how much the registry has acknowledged.
	off int64
	// resumes since off moved.
	resumes int
}

func (u *upload) call(method, path string, want ...int) call {
	return call{op: "push blob", repo: u.repo, ref: u.digest, method: method, path: path, want: want, scopes: push(u.repo)}
}

func (u *upload) run(ctx context.Context, mountFrom []string) (mounted bool, err error) {
	if mounted, err = u.mount(ctx, mountFrom); mounted || err != nil {
		return mounted, err
	}
	// Nothing is opened for a blob of which nothing has come yet.
	have, err := u.wait(ctx, 0, 1)
	if err != nil {
		return false, err
	}
	if u.location == "" {
		if err := u.begin(ctx); err != nil {
			return false, err
		}
	}
	least, most := u.bounds()
	for {
		if have, err = u.wait(ctx, have, least); err != nil {
			return false, err
		}
		n := min(have, most)
		last := u.off+n == u.size
		if last {
			err = u.commit(ctx, n)
		} else {
			err = u.patch(ctx, n)
		}
		if err == nil && last {
			return false, nil
		}
		before := u.off
		if err == nil {
			u.off, u.resumes = u.off+n, 0
		} else if err = u.resume(ctx, n, err); err != nil {
			return false, err
		}
		have = max(0, before+have-u.off)
	}
}

// bounds are the least and the most that a request carries.
func (u *upload) bounds() (least, most int64) {
	most = max(u.c.chunk, u.least)
	return max(min(MinChunkBytes, most), u.least), most
}

// wait blocks until least bytes are there from the acknowledged offset on, or the rest of the blob; have of them were there before.
func (u *upload) wait(ctx context.Context, have, least int64) (int64, error) {
	for have < least && u.off+have < u.size {
		n, err := u.src.Wait(ctx, u.off+have)
		if err != nil {
			return 0, fmt.Errorf("push blob %s@%s: waiting for its bytes: %w", u.repo, u.digest, err)
		}
		if n <= 0 {
			return 0, fmt.Errorf("push blob %s@%s: its source ends at %d of %d bytes: %w", u.repo, u.digest, u.off+have, u.size, io.ErrUnexpectedEOF)
		}
		have += n
	}
	return min(have, u.size-u.off), nil
}

// mount tries each repository in turn. A registry that does not mount opens a session instead, of which the last is used.
func (u *upload) mount(ctx context.Context, from []string) (mounted bool, err error) {
	tried := 0
	for _, source := range from {
		if source == u.repo || tried == maxMounts {
			continue
		}
		tried++
		u.cancel(ctx)
		in := u.call(http.MethodPost, "/v2/"+u.repo+"/blobs/uploads/?"+url.Values{"mount": {u.digest}, "from": {source}}.Encode(),
			http.StatusCreated, http.StatusAccepted)
		in.scopes = append(push(u.repo), pull(source)...)
		var resp *http.Response
		err := u.c.pushing(ctx, u.repo, func() (err error) {
			resp, err = u.c.do(ctx, in)
			return err
		})
		var e *Error
		switch {
		case err == nil && resp.StatusCode == http.StatusCreated:
			closeBody(resp)
			return true, u.accepted(in, resp)
		case err == nil:
			closeBody(resp)
			if err := u.opened(in, resp); err != nil {
				return false, err
			}
		case errors.As(err, &e) && e.Status/100 == 4 && !errors.Is(err, ErrQuota) && !errors.Is(err, ErrTooMany) && !errors.Is(err, errNoProject):
			// Perhaps the source may not be read with these credentials; the upload will tell whether it is more than that.
			u.c.log.Debug("mount refused", "digest", u.digest, "repository", source, "error", err)
		default:
			return false, err
		}
	}
	return false, nil
}

func (u *upload) begin(ctx context.Context) error {
	in := u.call(http.MethodPost, "/v2/"+u.repo+"/blobs/uploads/", http.StatusAccepted)
	return u.c.pushing(ctx, u.repo, func() error {
		resp, err := u.c.do(ctx, in)
		if err != nil {
			return err
		}
		closeBody(resp)
		return u.opened(in, resp)
	})
}

func (u *upload) opened(in call, resp *http.Response) error {
	if err := u.moved(in, resp); err != nil {
		return err
	}
	if s := resp.Header.Get("OCI-Chunk-Min-Length"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < 0 || n > maxChunk {
			return in.invalid(resp, "it demands chunks of at least "+u.c.clean(s)+" bytes")
		}
		u.least = n
	}
	return nil
}

// moved takes the location of the next request from an answer. Requests go to the configured registry alone, whatever the location says: of it only
// path and query are used, and a location on another host is refused. Its port and scheme are not looked at, since registries behind a proxy often
// get them wrong.
func (u *upload) moved(in call, resp *http.Response) error {
	text := resp.Header.Get("Location")
	location, err := resp.Request.URL.Parse(text)
	if err != nil || text == "" || !strings.HasPrefix(location.Path, "/") {
		return in.invalid(resp, fmt.Sprintf("the answer has upload location %q", u.c.clean(destination(text))))
	}
	if !strings.EqualFold(location.Hostname(), u.c.base.Hostname()) {
		return in.invalid(resp, fmt.Sprintf("the answer sends the upload to another host, %q; is the registry's own external address set right?", u.c.clean(location.Host)))
	}
	u.location = location.EscapedPath()
	if location.RawQuery != "" {
		u.location += "?" + location.RawQuery
	}
	return nil
}

func (u *upload) patch(ctx context.Context, n int64) error {
	in := u.call(http.MethodPatch, u.location, http.StatusAccepted, http.StatusNoContent)
	in.header = http.Header{
		"Content-Type":  {"application/octet-stream"},
		"Content-Range": {fmt.Sprintf("%d-%d", u.off, u.off+n-1)},
	}
	resp, err := u.send(ctx, in, n)
	if err != nil {
		return err
	}
	if err := u.moved(in, resp); err != nil {
		return err
	}
	if end, ok := rangeEnd(resp.Header.Get("Range")); ok && end != u.off+n-1 {
		return sessionError{in.invalid(resp, fmt.Sprintf("it acknowledges bytes up to %d, sent were bytes up to %d", end, u.off+n-1))}
	}
	return nil
}

// commit sends the rest and closes the upload.
func (u *upload) commit(ctx context.Context, n int64) error {
	sep := "?"
	if strings.Contains(u.location, "?") {
		sep = "&"
	}
	in := u.call(http.MethodPut, u.location+sep+"digest="+url.QueryEscape(u.digest), http.StatusCreated, http.StatusOK, http.StatusNoContent)
	in.header = http.Header{"Content-Type": {"application/octet-stream"}}
	if u.off > 0 && n > 0 {
		in.header.Set("Content-Range", fmt.Sprintf("%d-%d", u.off, u.off+n-1))
	}
	in.patience = time.Duration(u.size/commitRate) * time.Second
	resp, err := u.send(ctx, in, n)
	if err != nil {
		return err
	}
	if err := u.accepted(in, resp); err != nil {
		return err
	}
	u.location = ""
	return nil
}

// accepted checks what little a registry says with its success.
func (u *upload) accepted(in call, resp *http.Response) error {
	if isHTML(resp.Header) {
		return in.invalid(resp, "")
	}
	if got := resp.Header.Get("Docker-Content-Digest"); got != "" && got != u.digest {
		e := in.invalid(resp, "the registry has stored digest "+u.c.clean(got))
		e.kind = ErrDigest
		return e
	}
	return nil
}

// send sends n bytes from the acknowledged offset on. When it returns, the source is no longer read.
func (u *upload) send(ctx context.Context, in call, n int64) (*http.Response, error) {
	s := &sourceReader{src: u.src}
	defer s.stop()
	off := u.off
	in.single = true
	in.length = n
	in.body = func() io.Reader { return io.NewSectionReader(s, off, n) }
	resp, err := u.c.do(ctx, in)
	if readErr := s.stop(); readErr != nil {
		if err == nil {
			closeBody(resp)
		}
		return nil, fmt.Errorf("push blob %s@%s: reading its bytes: %w", u.repo, u.digest, readErr)
	}
	if err != nil {
		return nil, err
	}
	closeBody(resp)
	return resp, nil
}

// resume finds out, after a request of n bytes failed, how much of the blob the registry has, and moves the offset there. An error that is
// errSession says that the session is dead; another, that starting anew would not help.
func (u *upload) resume(ctx context.Context, n int64, cause error) error {
	var e *Error
	if ctx.Err() != nil || !errors.As(cause, &e) {
		return cause
	}
	if errors.Is(cause, errSession) || e.Status == http.StatusNotFound && (e.Code == codeBlobUploadInvalid || e.Code == codeBlobUploadUnknown) {
		return sessionError{cause}
	}
	broken := e.Status == 0 && brokenConnection(e)
	if !broken && e.Status != http.StatusRequestedRangeNotSatisfiable {
		return cause
	}
	if u.resumes++; u.resumes > resumeTries {
		return sessionError{cause}
	}
	in := u.call(http.MethodGet, u.location, http.StatusNoContent, http.StatusAccepted, http.StatusOK)
	resp, err := u.c.do(ctx, in)
	if ctx.Err() != nil {
		return canceled("push blob", ctx)
	}
	if err != nil {
		// The 2.8 line of the distribution registry never takes such a session up again. What the request itself met is more telling than this.
		return sessionError{cause}
	}
	closeBody(resp)
	end, ok := rangeEnd(resp.Header.Get("Range"))
	// "0-0" stands for no byte as well as for one.
	if !ok || end == 0 || end+1 < u.off || end+1 > u.off+n {
		return sessionError{cause}
	}
	if resp.Header.Get("Location") != "" {
		if err := u.moved(in, resp); err != nil {
			return err
		}
	}
	if end+1 > u.off {
		u.resumes = 0
	}
	u.off = end + 1
	return nil
}

// rangeEnd reads "0-99" or "bytes=0-99".
func rangeEnd(s string) (int64, bool) {
	first, last, ok := strings.Cut(strings.TrimPrefix(s, "bytes="), "-")
	if !ok || first != "0" {
		return 0, false
	}
	n, err := strconv.ParseInt(last, 10, 64)
	return n, err == nil && n >= 0
}

// cancel gives the session up at the registry, if it can be reached; else the registry clears it away in its own time.
func (u *upload) cancel(ctx context.Context) {
	if u.location == "" {
		return
	}
	// What ended the upload must not keep it from being cleared away.
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), cancelTimeout)
	defer stop()
	in := u.call(http.MethodDelete, u.location, http.StatusNoContent, http.StatusAccepted, http.StatusOK, http.StatusNotFound)
	in.single = true
	u.location = ""
	resp, err := u.c.do(ctx, in)
	if err != nil {
		u.c.log.Debug("upload session not canceled", "digest", u.digest, "error", err)
		return
	}
	closeBody(resp)
}

// sourceReader reads a source for a request, keeps its error apart from those of the connection, and can be stopped: the HTTP transport may
// read on for a moment after an answer has come, when the caller may have closed the source already.
type sourceReader struct {
	src BlobSource

	mu      sync.Mutex
	stopped bool
	err     error
}

var errStopped = errors.New("the request has ended")

func (s *sourceReader) ReadAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return 0, errStopped
	}
	n, err := s.src.ReadAt(p, off)
	if n == len(p) {
		err = nil
	} else if err == nil {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		s.err = err
	}
	return n, err
}

func (s *sourceReader) stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	return s.err
}
