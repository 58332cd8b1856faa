package registry

import (
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"time"

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
	// DefaultCommitTimeout is how long a registry may take to answer the request that closes an upload: some copy the blob in their storage then.
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
type Client struct{ cfg Config }

// New checks cfg. It sends nothing; see Ping.
func New(cfg Config) (*Client, error) { return &Client{cfg: cfg}, nil }

var errTODO = errors.New("not yet implemented")

// Ping proves that the registry answers and accepts the credentials.
func (c *Client) Ping(ctx context.Context) error { return errTODO }

// Repositories lists all repositories that the credentials may see.
func (c *Client) Repositories(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) { yield("", errTODO) }
}

// Tags lists the tags of a repository. A repository that is not there is ErrNotFound.
func (c *Client) Tags(ctx context.Context, repo string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) { yield("", errTODO) }
}

// Resolve says what a tag or digest stands for. The descriptor's artifact type is not filled in.
func (c *Client) Resolve(ctx context.Context, repo, reference string) (*Descriptor, error) {
	return nil, errTODO
}

// Manifest reads a manifest by tag or digest. Its digest was verified.
func (c *Client) Manifest(ctx context.Context, repo, reference string) (Manifest, error) {
	return Manifest{}, errTODO
}

// PutManifest puts a manifest, by tag or by its digest.
func (c *Client) PutManifest(ctx context.Context, repo, reference string, m Manifest) error {
	return errTODO
}

// DeleteTag removes a tag and leaves the manifest and its other tags.
func (c *Client) DeleteTag(ctx context.Context, repo, tag string) error { return errTODO }

// StatBlob gives a blob's size; ErrNotFound when the repository lacks it.
func (c *Client) StatBlob(ctx context.Context, repo, digest string) (int64, error) {
	return 0, errTODO
}

// OpenBlob reads length bytes of a blob from off on; a negative length: up to its end. The digest is not verified.
func (c *Client) OpenBlob(ctx context.Context, repo, digest string, off, length int64) (io.ReadCloser, error) {
	return nil, errTODO
}

// PushBlob brings a blob into a repository: mounted from one of mountFrom if possible, else uploaded while it arrives.
func (c *Client) PushBlob(ctx context.Context, repo, digest string, src BlobSource, mountFrom ...string) (mounted bool, err error) {
	return false, errTODO
}

// Referrers lists what refers to a manifest, sorted by digest: the union of the referrers API and the fallback tag.
func (c *Client) Referrers(ctx context.Context, repo, digest string) ([]*Descriptor, error) {
	return nil, errTODO
}

// EnsureRepository makes what a push into repo needs: in Harbor its project. Elsewhere it does nothing.
func (c *Client) EnsureRepository(ctx context.Context, repo string) error { return errTODO }
