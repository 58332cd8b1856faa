// Package store is an agent's memory on disk.
package store

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"
)

var errTODO = errors.New("store: not built yet")

const (
	// PieceSize is the unit in which a blob is written, checked and resumed. The last piece of a blob may be shorter.
	PieceSize = 256 << 10
	// DefaultSpoolBytes bounds the spool where Config doesn't.
	DefaultSpoolBytes = 20 << 30
	// DefaultManifestBytes bounds the cache of manifests where Config doesn't.
	DefaultManifestBytes = 512 << 20
	// MaxManifestBytes bounds one manifest.
	MaxManifestBytes = 4 << 20
)

// Config says where and how large. Only Dir is required.
type Config struct {
	// Dir holds everything; it is made when missing. One process at a time may have it open.
	Dir string
	// SpoolBytes bounds the blobs on disk; 0: DefaultSpoolBytes.
	SpoolBytes int64
	// ManifestBytes bounds the cache of manifests; 0: DefaultManifestBytes.
	ManifestBytes int64
	// Logger; nil discards.
	Logger *slog.Logger
	// Fault, for tests, is called before each disk operation with its label; an error is returned in the operation's stead.
	Fault func(op string) error
}

// Store is one open directory.
type Store struct{}

// Open opens the directory, makes it when missing, and mends what a crash left.
func Open(cfg Config) (*Store, error) { return nil, errTODO }

// Close stops everything; open readers and ingests fail with ErrClosed and their progress is kept.
func (s *Store) Close() error { return errTODO }

// Incarnation is a random name made when the directory was first opened.
func (s *Store) Incarnation() string { return "" }

// Spool holds the blobs.
func (s *Store) Spool() *Spool { return nil }

// Range is a part of a blob.
type Range struct{ Off, Len int64 }

// Status says how far a blob is.
type Status struct {
	Digest                 string
	Size, Received, Hashed int64
	Committed              bool
	StartedAt, UpdatedAt   time.Time
}

// Spool is the bounded space through which blobs pass.
type Spool struct{}

// Ingest opens the one writer of a blob.
func (sp *Spool) Ingest(digest string, size int64) (*Ingest, error) { return nil, errTODO }

// Open opens a blob, committed or in progress.
func (sp *Spool) Open(digest string) (*Reader, error) { return nil, errTODO }

// Stat says how far a blob is.
func (sp *Spool) Stat(digest string) (Status, error) { return Status{}, errTODO }

// List says it for all.
func (sp *Spool) List() []Status { return nil }

// Usage is what is used or reserved, and the bound.
func (sp *Spool) Usage() (used, limit int64) { return 0, 0 }

// Remove drops a blob that turned out bad or is no longer wanted; its readers get cause.
func (sp *Spool) Remove(digest string, cause error) error { return errTODO }

// Verify reads a committed blob back and drops it when its digest isn't right (ErrDigestMismatch).
func (sp *Spool) Verify(ctx context.Context, digest string) error { return errTODO }

// Ingest is the writer of a blob.
type Ingest struct{}

// Status says how far it is.
func (in *Ingest) Status() Status { return Status{} }

// Missing lists what has not arrived, piece-aligned, in order.
func (in *Ingest) Missing() []Range { return nil }

// WriteAt writes whole pieces (or the tail). Concurrent calls are welcome; what is present already is not written again.
func (in *Ingest) WriteAt(p []byte, off int64) (int, error) { return 0, errTODO }

// NewReader opens a reader of the same blob.
func (in *Ingest) NewReader() *Reader { return nil }

// Commit verifies size and SHA-256 and publishes the blob.
func (in *Ingest) Commit() error { return errTODO }

// Abort drops the content; waiting readers get an error that wraps ErrAborted and err.
func (in *Ingest) Abort(err error) error { return errTODO }

// Close lets go of the blob and keeps its progress. After Commit or Abort it does nothing.
func (in *Ingest) Close() error { return errTODO }

// Reader reads a blob that is whole or still arriving.
type Reader struct{}

// Size of the whole blob.
func (r *Reader) Size() int64 { return 0 }

// Wait blocks until at least one byte at off is present; n is the number of contiguous bytes available there, 0 at the end.
func (r *Reader) Wait(ctx context.Context, off int64) (n int64, err error) { return 0, errTODO }

// ReadAt reads bytes that are present; ErrAbsent where they are not yet.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) { return 0, errTODO }

// Stream reads from off to the end, following while the blob grows.
func (r *Reader) Stream(ctx context.Context, off int64) io.ReadCloser { return nil }

// Close lets go of the blob; calls that wait return ErrClosed.
func (r *Reader) Close() error { return errTODO }

// RefState is what this site last delivered or published for a ref; an intent is written before a tag is put.
type RefState struct {
	Base           string
	BaseRevision   uint64
	Intent         string
	IntentRevision uint64
	At             time.Time
}

// RefState returns what was last put; false when there is nothing.
func (s *Store) RefState(ref string) (RefState, bool, error) { return RefState{}, false, errTODO }

// PutRefState is durable when it returns.
func (s *Store) PutRefState(ref string, st RefState) error { return errTODO }

// DeleteRefState forgets a ref.
func (s *Store) DeleteRefState(ref string) error { return errTODO }

// RefStates calls yield for each ref in order until it returns false. yield may call the store.
func (s *Store) RefStates(yield func(ref string, st RefState) bool) error { return errTODO }

// AddBlobs notes that the own registry holds these blobs in repo.
func (s *Store) AddBlobs(repo string, digests ...string) error { return errTODO }

// RemoveBlob forgets one.
func (s *Store) RemoveBlob(repo, digest string) error { return errTODO }

// ForgetBlobs forgets all: the registry was wiped or restored.
func (s *Store) ForgetBlobs() error { return errTODO }

// BlobRepositories lists where the own registry is known to hold a blob.
func (s *Store) BlobRepositories(digest string) ([]string, error) { return nil, errTODO }

// HasBlob says whether the own registry is known to hold it in repo.
func (s *Store) HasBlob(repo, digest string) (bool, error) { return false, errTODO }

// Manifest is a manifest as the bytes it was pushed as.
type Manifest struct {
	MediaType, Digest string
	Content           []byte
}

// PutManifests verifies each digest and keeps them all, evicting the oldest-used.
func (s *Store) PutManifests(ms ...Manifest) error { return errTODO }

// Manifest returns one; ErrNotFound.
func (s *Store) Manifest(digest string) (Manifest, error) { return Manifest{}, errTODO }

// HasManifest says whether it is there.
func (s *Store) HasManifest(digest string) (bool, error) { return false, errTODO }

// Value returns a small value that the agent keeps under a key; ErrNotFound.
func (s *Store) Value(key string) ([]byte, error) { return nil, errTODO }

// PutValue is durable when it returns; nil removes the key.
func (s *Store) PutValue(key string, v []byte) error { return errTODO }
