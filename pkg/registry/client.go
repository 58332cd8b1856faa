package registry

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// Types of registry.
const (
	// TypeOCI is any registry that follows the OCI distribution specification.
	TypeOCI = "oci"
	// TypeHarbor is Harbor 2.x.
	TypeHarbor = "harbor"
)

// Defaults and limits.
const (
	// DefaultChunkBytes is how much of a blob one request carries at most.
	DefaultChunkBytes = 32 << 20
	// MinChunkBytes is what a request of a blob that still arrives carries at least, but for the last.
	MinChunkBytes = 4 << 20
	// MaxManifestBytes is the largest manifest that is read or put.
	MaxManifestBytes = 4 << 20
	// DefaultHeaderTimeout is how long a registry may take to begin its answer.
	DefaultHeaderTimeout = 60 * time.Second
	// DefaultCommitTimeout bounds how much longer a registry may take to answer the request that closes an upload, the larger the blob the longer: some copy it in their
	// storage then.
	DefaultCommitTimeout = 10 * time.Minute
	// DefaultStallTimeout is how long a body may stand still.
	DefaultStallTimeout = 60 * time.Second
	// DefaultUserAgent is sent unless told otherwise.
	DefaultUserAgent = "fanout"
	// HarborUserAgent is always sent to Harbor, which counts a pull for every GET of a manifest unless the header is exactly this.
	HarborUserAgent = "harbor-registry-client"
)

// Descriptor names content: media type, digest, size, artifact type.
type Descriptor = catalogv1.Descriptor

// Manifest is an image manifest, an index, or another manifest, as the bytes it was pushed as.
type Manifest struct {
	MediaType string
	// Digest as "sha256:<64 hex>".
	Digest  string
	Content []byte
}

// BlobSource is a blob that may still be arriving.
type BlobSource interface {
	// Size of the whole blob.
	Size() int64
	// Wait blocks until there is at least one byte at off and returns how many bytes from off on are there.
	Wait(ctx context.Context, off int64) (int64, error)
	// ReadAt reads bytes that Wait has promised.
	ReadAt(p []byte, off int64) (int, error)
}

// Config of a Client. Type and URL are required.
type Config struct {
	// Type of the registry: TypeOCI or TypeHarbor; empty: TypeOCI.
	Type string
	// URL as http(s)://HOST[:PORT], without a path.
	URL string
	// Username; empty: credentials are taken from ~/.docker/config.json and its helpers, else none are sent.
	Username string
	// Password is asked at the start and after a 401, so that a secret that was renewed is found.
	Password func() (string, error)
	// CAFile holds PEM certificates to trust besides the system's.
	CAFile string
	// InsecureSkipVerify accepts any certificate.
	InsecureSkipVerify bool
	// UserAgent is sent as it is with every request; empty: DefaultUserAgent. Harbor always gets HarborUserAgent.
	UserAgent string
	// Transport replaces the HTTP transport (tests); CAFile and InsecureSkipVerify are then not used.
	Transport http.RoundTripper
	// Logger; nil: nothing is logged.
	Logger *slog.Logger
	// ChunkBytes is the most that one upload request carries; 0: DefaultChunkBytes.
	ChunkBytes int64
	// HeaderTimeout, CommitTimeout and StallTimeout; 0: the defaults.
	HeaderTimeout, CommitTimeout, StallTimeout time.Duration
}

// Client speaks with one registry.
type Client struct {
	log           *slog.Logger
	base          *url.URL
	harbor        bool
	chunk         int64
	commitTimeout time.Duration
	auth          *authenticator
	// merging serialises changes of a fallback tag.
	merging keyedLock
	// ensuring serialises the making of a project.
	ensuring keyedLock

	mu sync.Mutex
	// projects that are known to exist (Harbor).
	projects map[string]bool
	// noReferrers is when the registry was last seen to lack a referrers API.
	noReferrers time.Time
}

// New checks cfg. It sends nothing; see Ping.
func New(cfg Config) (*Client, error) {
	base, err := parseURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	switch cfg.Type {
	case "", TypeOCI, TypeHarbor:
	default:
		return nil, fmt.Errorf("registry type %q: want %s or %s: %w", cfg.Type, TypeHarbor, TypeOCI, ErrInvalid)
	}
	if cfg.ChunkBytes < 0 {
		return nil, fmt.Errorf("registry chunk of %d bytes: %w", cfg.ChunkBytes, ErrInvalid)
	}
	reg, err := name.NewRegistry(base.Host)
	if err != nil {
		return nil, fmt.Errorf("registry url %q: %v: %w", cfg.URL, err, ErrInvalid)
	}
	// Some names stand for another host.
	base.Host = reg.RegistryStr()
	inner, err := newTransport(cfg)
	if err != nil {
		return nil, err
	}
	c := &Client{
		log: cfg.Logger, base: base, harbor: cfg.Type == TypeHarbor,
		chunk: or(cfg.ChunkBytes, DefaultChunkBytes), commitTimeout: or(cfg.CommitTimeout, DefaultCommitTimeout),
		projects: map[string]bool{},
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	agent := or(cfg.UserAgent, DefaultUserAgent)
	if c.harbor {
		agent = HarborUserAgent
	}
	c.auth = &authenticator{reg: reg, creds: newCredentials(cfg, reg), out: &outbound{
		inner: inner, userAgent: agent, host: base.Host, scheme: base.Scheme,
		header: or(cfg.HeaderTimeout, DefaultHeaderTimeout), stall: or(cfg.StallTimeout, DefaultStallTimeout),
	}}
	return c, nil
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

func parseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("registry url: %w: %w", err, ErrInvalid)
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return nil, fmt.Errorf("registry url %q: want http://HOST[:PORT] or https://HOST[:PORT]: %w", clean(s), ErrInvalid)
	case u.User != nil:
		return nil, fmt.Errorf("registry url: credentials do not belong in it; set the user name and the password file: %w", ErrInvalid)
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("registry url %q: nothing may follow the host: %w", clean(s), ErrInvalid)
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host}, nil
}

// Ping proves that the registry answers and accepts the credentials. Harbor gives a token without rights for a wrong password, and its API an
// anonymous view; only /v2/ with the credentials themselves tells.
func (c *Client) Ping(ctx context.Context) error {
	// A token from before proves nothing about the credentials of now.
	c.auth.forgetTokens()
	in := call{op: "ping registry", method: http.MethodGet, path: "/v2/", want: []int{http.StatusOK}, api: c.harbor}
	resp, err := c.do(ctx, in)
	if err != nil {
		return err
	}
	defer closeBody(resp)
	if isHTML(resp.Header) {
		return in.invalid(resp, "")
	}
	return nil
}

// CloseIdle closes idle connections, as at the end of a program or a test.
func (c *Client) CloseIdle() {
	if out, ok := c.auth.out.(*outbound); ok {
		if t, ok := out.inner.(interface{ CloseIdleConnections() }); ok {
			t.CloseIdleConnections()
		}
	}
}
