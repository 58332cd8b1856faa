package registry

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

var (
	// ErrNotFound says that the repository, manifest, tag or blob is not there.
	ErrNotFound = errors.New("not found")
	// ErrUnauthorized says that the registry does not accept the credentials.
	ErrUnauthorized = errors.New("unauthorized")
	// ErrDenied says that the credentials do not suffice, or that a rule of the registry forbids the request.
	ErrDenied = errors.New("denied")
	// ErrQuota says that a quota is used up. It is also ErrDenied.
	ErrQuota = errors.New("quota exceeded")
	// ErrImmutable says that a rule makes the tag immutable.
	ErrImmutable = errors.New("immutable tag")
	// ErrReadOnly says that the registry is in read-only mode.
	ErrReadOnly = errors.New("registry is read-only")
	// ErrProxyCache says that the repository is in a proxy-cache project, into which nothing can be pushed.
	ErrProxyCache = errors.New("proxy-cache project")
	// ErrTooMany says that the registry limits the rate of requests; see Error.RetryAfter.
	ErrTooMany = errors.New("too many requests")
	// ErrBlobUnknown says that a manifest names content that the repository lacks; see Error.Missing.
	ErrBlobUnknown = errors.New("manifest names unknown content")
	// ErrUnsupported says that the registry, or this package, does not do this.
	ErrUnsupported = errors.New("unsupported")
	// ErrUnavailable says that the registry cannot be reached, hangs, or answers with a status of 500 or more.
	ErrUnavailable = errors.New("registry unavailable")
	// ErrHangs is the cause of a request that was given up because nothing moved. The error is also ErrUnavailable.
	ErrHangs = errors.New("the registry hangs")
	// ErrNoProject says that the repository lies in a project of Harbor that is not there, and that these credentials may not make.
	ErrNoProject = errors.New("missing project")
	// ErrTooLarge says that the registry, or a proxy before it, refuses the size of a request (413).
	ErrTooLarge = errors.New("request too large")
	// ErrDigest says that content does not have the digest it should have.
	ErrDigest = errors.New("digest mismatch")
	// ErrInvalid says that an answer of the registry, or content, or a name makes no sense.
	ErrInvalid = errors.New("invalid")
)

// Error is an answer of the registry that is not success, or the lack of an answer. Its kind is told by errors.Is with the sentinels of this package.
type Error struct {
	// Op says what was being done, such as "put manifest".
	Op string
	// Repository and Reference (a tag, a digest, or empty) of the request.
	Repository, Reference string
	// Status of the answer; 0 when there was none.
	Status int
	// Code and Message are the registry's words, as in the OCI distribution specification, bounded and without control characters.
	Code, Message string
	// RetryAfter is what the registry asked for; 0: nothing.
	RetryAfter time.Duration
	// Missing are the digests that a refused manifest names and the repository lacks.
	Missing []string

	// kind is a sentinel that status and code alone do not tell.
	kind error
	// cause of an answer that never came.
	cause error
	// challenged says that a 401 came with a challenge.
	challenged bool
}

// Error gives operation, object, status, code and message.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Repository != "" {
		b.WriteString(" " + e.Repository)
		switch {
		case strings.Contains(e.Reference, ":"):
			b.WriteString("@" + e.Reference)
		case e.Reference != "":
			b.WriteString(":" + e.Reference)
		}
	}
	b.WriteString(":")
	if e.Status != 0 {
		fmt.Fprintf(&b, " %d %s", e.Status, http.StatusText(e.Status))
	}
	if e.Code != "" {
		b.WriteString(" " + e.Code)
	}
	if e.Message != "" {
		if e.Status != 0 || e.Code != "" {
			b.WriteString(":")
		}
		b.WriteString(" " + e.Message)
	}
	if e.RetryAfter > 0 {
		fmt.Fprintf(&b, " (retry after %s)", e.RetryAfter)
	}
	return b.String()
}

// Unwrap gives the cause of an answer that never came.
func (e *Error) Unwrap() error { return e.cause }

// Is tells the kind of the error.
func (e *Error) Is(target error) bool {
	if e.kind != nil && e.kind == target {
		return true
	}
	says := func(words ...string) bool {
		m := strings.ToLower(e.Message)
		for _, w := range words {
			if strings.Contains(m, w) {
				return true
			}
		}
		return false
	}
	switch target {
	case ErrNotFound:
		return e.Status == http.StatusNotFound && e.Code != codeManifestBlobUnknown
	case ErrUnauthorized:
		return e.Status == http.StatusUnauthorized && e.kind != ErrNotFound
	case ErrDenied:
		return e.Status == http.StatusForbidden
	case ErrQuota:
		return e.Status == http.StatusInsufficientStorage ||
			e.Status == http.StatusForbidden && says("exceed the configured upper limit", "quota")
	case ErrImmutable:
		return e.Status == http.StatusPreconditionFailed || e.Status/100 == 4 && says("immutable")
	case ErrReadOnly:
		return (e.Status == http.StatusForbidden || e.Status == http.StatusMethodNotAllowed) && says("read only", "read-only", "readonly")
	case ErrProxyCache:
		return e.Status/100 == 4 && says("proxy project", "proxy cache", "proxy-cache")
	case ErrTooMany:
		return e.Status == http.StatusTooManyRequests || e.Code == "TOOMANYREQUESTS"
	case ErrBlobUnknown:
		return e.Code == codeManifestBlobUnknown
	case ErrUnsupported:
		return e.Code == codeUnsupported || e.Status == http.StatusMethodNotAllowed || e.Status == http.StatusNotImplemented
	case ErrUnavailable:
		return e.Status == 0 && e.cause != nil && e.kind == nil || e.Status >= 500 || e.Status == http.StatusRequestTimeout
	case ErrTooLarge:
		return e.Status == http.StatusRequestEntityTooLarge
	case ErrDigest:
		return e.Code == codeDigestInvalid
	}
	return false
}

// Codes of the OCI distribution specification that are told apart here.
const (
	codeBlobUploadInvalid   = "BLOB_UPLOAD_INVALID"
	codeBlobUploadUnknown   = "BLOB_UPLOAD_UNKNOWN"
	codeDigestInvalid       = "DIGEST_INVALID"
	codeManifestBlobUnknown = "MANIFEST_BLOB_UNKNOWN"
	codeUnknown             = "UNKNOWN"
	codeUnsupported         = "UNSUPPORTED"
)

// ownWords is a registry's message to a code, unless it is the fixed one of the distribution registry that says no more than the code.
func (c *Client) ownWords(code, message string) string {
	if code == codeUnknown && message == "unknown error" {
		return ""
	}
	return c.clean(message)
}

// RetryAfter gives what the registry asked for in err, or 0.
func RetryAfter(err error) time.Duration {
	var e *Error
	if errors.As(err, &e) {
		return e.RetryAfter
	}
	return 0
}
