package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	maxErrorBytes   = 64 << 10
	maxListBytes    = 8 << 20
	maxRedirects    = 5
	connectionTries = 3
	maxRetryAfter   = 24 * time.Hour
)

// call is one request to the registry.
type call struct {
	op, repo, ref string
	method        string
	// path and query, as they go on the wire.
	path   string
	header http.Header
	// body gives the body, again for each time that it is sent; length is its size.
	body   func() io.Reader
	length int64
	// scopes for which a token is asked; none with api.
	scopes []string
	// api requests go with the credentials themselves.
	api bool
	// want are the statuses of success.
	want []int
	// single requests are not tried again when the connection breaks.
	single bool
	// patience is how much longer than usual the answer may take.
	patience time.Duration
}

func pull(repo string) []string { return []string{"repository:" + repo + ":pull"} }
func push(repo string) []string { return []string{"repository:" + repo + ":pull,push"} }

// do sends a request until there is an answer, follows redirects of reads, and returns an answer with a wanted status or an error.
func (c *Client) do(ctx context.Context, in call) (*http.Response, error) {
	for try := 1; ; try++ {
		resp, err := c.attempt(ctx, in)
		if err == nil {
			return resp, nil
		}
		var e *Error
		if !errors.As(err, &e) || e.Status != 0 || e.cause == nil || in.single || try == connectionTries || !brokenConnection(e) {
			return nil, err
		}
		c.log.Debug("registry connection broke; trying again", "op", in.op, "error", err)
		if err := sleep(ctx, time.Duration(try*try)*100*time.Millisecond); err != nil {
			return nil, canceled(in.op, ctx)
		}
	}
}

// brokenConnection says whether trying again at once may help: not when the registry hangs, since that took long enough.
func brokenConnection(e *Error) bool {
	return e.kind == nil && !errors.Is(e.cause, ErrHangs)
}

// attempt sends a request, and once more if it is refused with 401 and the credentials have changed since.
func (c *Client) attempt(ctx context.Context, in call) (*http.Response, error) {
	resp, err := c.send(ctx, in)
	var e *Error
	if err == nil || !errors.As(err, &e) || e.Status != http.StatusUnauthorized {
		return resp, err
	}
	changed, loadErr := c.auth.creds.reload()
	switch {
	case loadErr != nil:
		c.log.Warn("reading the registry's credentials again", "error", loadErr)
	case changed:
		c.auth.forget()
		resp, err = c.send(ctx, in)
		if err == nil || !errors.As(err, &e) {
			return resp, err
		}
	}
	if again := c.harborRefusal(ctx, in, e); again {
		return c.send(ctx, in)
	}
	return nil, e
}

func (c *Client) send(ctx context.Context, in call) (*http.Response, error) {
	tr := &trace{patience: min(in.patience, c.commitTimeout)}
	ctx = context.WithValue(ctx, traceKey{}, tr)
	rt, err := c.transportFor(ctx, in)
	if err != nil {
		return nil, c.failed(ctx, in, tr, err)
	}
	target, err := c.resolve(in.path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", in.op, err)
	}
	for hop := 0; ; hop++ {
		resp, err := rt.RoundTrip(in.request(ctx, target))
		if err != nil {
			return nil, c.failed(ctx, in, tr, err)
		}
		if slices.Contains(in.want, resp.StatusCode) {
			return resp, nil
		}
		if !redirects(resp) {
			return nil, c.refused(in, resp)
		}
		resp.Body.Close()
		if in.method != http.MethodGet && in.method != http.MethodHead {
			return nil, c.failed(ctx, in, tr, c.auth.creds.secrets.redirectError(resp))
		}
		if hop == maxRedirects {
			return nil, c.failed(ctx, in, tr, fmt.Errorf("more than %d redirects: %w", maxRedirects, ErrInvalid))
		}
		if target, rt, err = c.redirected(target, resp, rt); err != nil {
			return nil, c.failed(ctx, in, tr, err)
		}
	}
}

func (c *Client) transportFor(ctx context.Context, in call) (http.RoundTripper, error) {
	if in.api {
		return c.auth.basic()
	}
	return c.auth.transport(ctx, in.scopes)
}

func redirects(resp *http.Response) bool {
	switch resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// redirected says where a redirect of a read leads. Another host (object storage) gets no credentials, on this hop and on all that follow.
func (c *Client) redirected(from *url.URL, resp *http.Response, rt http.RoundTripper) (*url.URL, http.RoundTripper, error) {
	location, err := from.Parse(resp.Header.Get("Location"))
	if err != nil || location.Host == "" {
		return nil, nil, fmt.Errorf("redirect to %q: %w", c.clean(destination(resp.Header.Get("Location"))), ErrInvalid)
	}
	if location.Host == c.base.Host {
		if location.Scheme != c.base.Scheme {
			return nil, nil, c.auth.creds.secrets.redirectError(resp)
		}
		return location, rt, nil
	}
	if location.Scheme != "https" && (location.Scheme != "http" || c.base.Scheme != "http") {
		return nil, nil, fmt.Errorf("redirect from https to %s://%s is not followed: %w", c.clean(location.Scheme), c.clean(location.Host), ErrInvalid)
	}
	if addr, err := netip.ParseAddr(location.Hostname()); err == nil && (addr.IsLinkLocalUnicast() || addr.IsUnspecified() || addr.IsMulticast()) {
		return nil, nil, fmt.Errorf("redirect to %s is not followed: %w", addr, ErrInvalid)
	}
	location.User = nil
	return location, c.auth.out, nil
}

func (in call) request(ctx context.Context, target *url.URL) *http.Request {
	req := (&http.Request{
		Method: in.method, URL: target, Host: target.Host, Header: in.header.Clone(),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Body: http.NoBody,
	}).WithContext(ctx)
	if req.Header == nil {
		req.Header = http.Header{}
	}
	if in.length > 0 {
		// The innermost transport takes the body anew each time, since a request may be sent again with a renewed token.
		req.ContentLength = in.length
		req.Body = io.NopCloser(strings.NewReader(""))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(in.body()), nil }
	}
	return req
}

// resolve makes a URL of the configured registry, whatever the host of a Location was; see location.
func (c *Client) resolve(path string) (*url.URL, error) {
	u, err := url.Parse(path)
	if err != nil || u.Host != "" || u.Scheme != "" || !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("request path %q: %w", c.clean(destination(path)), ErrInvalid)
	}
	u.Scheme, u.Host = c.base.Scheme, c.base.Host
	return u, nil
}

// failed is the error of a request without an answer.
func (c *Client) failed(ctx context.Context, in call, tr *trace, err error) error {
	if ctx.Err() != nil {
		return canceled(in.op, ctx)
	}
	e := &Error{Op: in.op, Repository: in.repo, Reference: in.ref, Message: c.clean(c.ownScheme(err.Error())), cause: err}
	c.transportError(e, err)
	if e.Status != 0 {
		e.RetryAfter = tr.retryAfter
	}
	for _, kind := range []error{ErrInvalid, ErrUnauthorized} {
		if errors.Is(err, kind) {
			e.kind = kind
		}
	}
	return e
}

// ownScheme corrects what the auth transport says of a registry without TLS: it means https wherever it speaks of itself, see outbound.
func (c *Client) ownScheme(words string) string {
	return strings.ReplaceAll(words, `Get "https://`+c.base.Host, `Get "`+c.base.Scheme+"://"+c.base.Host)
}

func canceled(op string, ctx context.Context) error {
	if cause := context.Cause(ctx); cause != ctx.Err() {
		return fmt.Errorf("%s: %w: %w", op, ctx.Err(), cause)
	}
	return fmt.Errorf("%s: %w", op, ctx.Err())
}

var digestInText = regexp.MustCompile(`sha256:[a-f0-9]{64}`)

// refused is the error of an answer with a status that was not wanted. It closes the body.
func (c *Client) refused(in call, resp *http.Response) *Error {
	defer resp.Body.Close()
	e := &Error{
		Op: in.op, Repository: in.repo, Reference: in.ref, Status: resp.StatusCode,
		RetryAfter: retryAfter(resp.Header), challenged: resp.Header.Get("WWW-Authenticate") != "",
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes))
	if err != nil && len(body) == 0 {
		return e
	}
	var words struct {
		Errors []struct {
			Code    string          `json:"code"`
			Message string          `json:"message"`
			Detail  json.RawMessage `json:"detail"`
		} `json:"errors"`
	}
	if json.Unmarshal(body, &words) != nil || len(words.Errors) == 0 {
		e.Message = c.plainMessage(resp, body)
		return e
	}
	e.Code = c.clean(words.Errors[0].Code)
	e.Message = c.ownWords(e.Code, words.Errors[0].Message)
	for _, w := range words.Errors {
		if w.Code != codeManifestBlobUnknown {
			continue
		}
		e.Code = codeManifestBlobUnknown
		for _, d := range digestInText.FindAllString(string(w.Detail)+" "+w.Message, -1) {
			if !slices.Contains(e.Missing, d) {
				e.Missing = append(e.Missing, d)
			}
		}
	}
	return e
}

func (c *Client) plainMessage(resp *http.Response, body []byte) string {
	if isHTML(resp.Header) {
		return "the answer is a web page, not a registry's"
	}
	return c.clean(string(body))
}

func isHTML(h http.Header) bool {
	return strings.HasPrefix(strings.ToLower(h.Get("Content-Type")), "text/html")
}

func retryAfter(h http.Header) time.Duration {
	value := h.Get("Retry-After")
	if value == "" {
		return 0
	}
	var d time.Duration
	if seconds, err := strconv.ParseInt(value, 10, 32); err == nil {
		d = time.Duration(seconds) * time.Second
	} else if when, err := http.ParseTime(value); err == nil {
		d = time.Until(when).Round(time.Second)
	}
	return min(max(d, 0), maxRetryAfter)
}

// readAll reads an answer of bounded size and closes it.
func (c *Client) readAll(ctx context.Context, in call, resp *http.Response, most int64) ([]byte, error) {
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	if err != nil {
		return nil, c.failed(ctx, in, &trace{}, err)
	}
	if int64(len(body)) > most {
		return nil, in.invalid(resp, fmt.Sprintf("the answer exceeds %d bytes", most))
	}
	return body, nil
}

// invalid is the error of an answer that says success and makes no sense.
func (in call) invalid(resp *http.Response, message string) *Error {
	if resp != nil && isHTML(resp.Header) {
		message = "the answer is a web page, not a registry's; is the registry's url right, or does a login page stand before it?"
	}
	e := &Error{Op: in.op, Repository: in.repo, Reference: in.ref, Message: message, kind: ErrInvalid}
	if resp != nil {
		e.Status = resp.StatusCode
	}
	return e
}

// decode reads a JSON answer.
func (c *Client) decode(ctx context.Context, in call, resp *http.Response, into any) error {
	body, err := c.readAll(ctx, in, resp, maxListBytes)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, into); err != nil {
		return in.invalid(resp, "the answer is not valid JSON: "+c.clean(err.Error()))
	}
	return nil
}

func closeBody(resp *http.Response) {
	// Reading what is left lets the connection be used again.
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10)
	resp.Body.Close()
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
