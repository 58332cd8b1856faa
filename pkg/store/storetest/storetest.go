// Package storetest is the contract of a spool as a suite of tests. It runs against interfaces, so that what wraps a spool
// or stands for one can be held to the same contract; [Disk] adapts the one of pkg/store.
package storetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/fanout-io/fanout/pkg/store"
)

// Spool is what the suite tests.
type Spool interface {
	Ingest(digest string, size int64) (Ingest, error)
	Open(digest string) (Reader, error)
	Stat(digest string) (store.Status, error)
	List() []store.Status
	Usage() (used, limit int64)
}

// Ingest is the writer of a blob: Progress and Ending.
type Ingest interface {
	Progress
	Ending
}

// Progress is the part of an ingest that fills it.
type Progress interface {
	Status() store.Status
	Missing() []store.Range
	WriteAt(p []byte, off int64) (int, error)
	NewReader() Reader
}

// Ending is the part of an ingest that ends it.
type Ending interface {
	Commit() error
	Abort(err error) error
	Close() error
}

// Reader reads a blob that may still grow.
type Reader interface {
	Size() int64
	Wait(ctx context.Context, off int64) (int64, error)
	ReadAt(p []byte, off int64) (int, error)
	Stream(ctx context.Context, off int64) io.ReadCloser
	Close() error
}

// Disk adapts the spool of pkg/store.
func Disk(sp *store.Spool) Spool { return diskSpool{sp} }

type diskSpool struct{ *store.Spool }

func (d diskSpool) Ingest(digest string, size int64) (Ingest, error) {
	in, err := d.Spool.Ingest(digest, size)
	if err != nil {
		return nil, err
	}
	return diskIngest{in}, nil
}

func (d diskSpool) Open(digest string) (Reader, error) {
	r, err := d.Spool.Open(digest)
	if err != nil {
		return nil, err
	}
	return r, nil
}

type diskIngest struct{ *store.Ingest }

func (d diskIngest) NewReader() Reader { return d.Ingest.NewReader() }

// Limit is the bound of the spools that Suite asks for.
const Limit = 16 * store.PieceSize

// Subject is a spool under test.
type Subject struct {
	Spool Spool
	// Reopen ends the spool as a stop of the process does and opens it again on the same content. nil: it can't.
	Reopen func() Spool
	// HashedBytes counts, if not nil, what went through SHA-256 since the spool was opened (last).
	HashedBytes func() int64
}

// Suite runs the contract. open makes an empty spool with the bound Limit.
func Suite(t *testing.T, open func(t testing.TB) Subject) {
	for _, c := range []struct {
		name string
		fn   func(t *testing.T, s Subject)
	}{
		{"Lifecycle", testLifecycle},
		{"Sizes", testSizes},
		{"InvalidArguments", testInvalidArguments},
		{"OutOfOrder", testOutOfOrder},
		{"ConcurrentWriters", testConcurrentWriters},
		{"Idempotent", testIdempotent},
		{"Skipped", testSkipped},
		{"Busy", testBusy},
		{"Exists", testExists},
		{"Incomplete", testIncomplete},
		{"Mismatch", testMismatch},
		{"Abort", testAbort},
		{"EndedIngest", testEndedIngest},
		{"OtherSize", testOtherSize},
		{"CloseKeepsProgress", testCloseKeepsProgress},
		{"CloseDropsNothing", testCloseDropsNothing},
		{"ResumeAfterReopen", testResumeAfterReopen},
		{"ReadersFollow", testReadersFollow},
		{"ReaderOutlivesWriter", testReaderOutlivesWriter},
		{"ReaderOnlyPresent", testReaderOnlyPresent},
		{"ReaderContext", testReaderContext},
		{"ReaderClose", testReaderClose},
		{"StreamClose", testStreamClose},
		{"TooLarge", testTooLarge},
		{"Reservation", testReservation},
		{"EvictionOrder", testEvictionOrder},
		{"EvictionSparesOpen", testEvictionSparesOpen},
		{"EvictionAllOrNothing", testEvictionAllOrNothing},
	} {
		t.Run(c.name, func(t *testing.T) { c.fn(t, open(t)) })
	}
}

// Content makes size bytes that depend on seed, and their digest.
func Content(seed uint64, size int64) (data []byte, digest string) {
	var s [32]byte
	s[0], s[1] = byte(seed), byte(seed>>8)
	data = make([]byte, size)
	_, _ = rand.NewChaCha8(s).Read(data)
	return data, Digest(data)
}

// Digest of data.
func Digest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Deadline bounds a test's waiting.
func Deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// Put ingests data whole.
func Put(t testing.TB, sp Spool, data []byte) {
	t.Helper()
	in := Begin(t, sp, data)
	Fill(t, in, data)
	if err := in.Commit(); err != nil {
		t.Fatalf("Commit: %v", err)
	}
}

// Begin opens an ingest of data.
func Begin(t testing.TB, sp Spool, data []byte) Ingest {
	t.Helper()
	in, err := sp.Ingest(Digest(data), int64(len(data)))
	if err != nil {
		t.Fatalf("Ingest: %v", err)
	}
	t.Cleanup(func() { _ = in.Close() })
	return in
}

// Fill writes what is missing, in order.
func Fill(t testing.TB, in Progress, data []byte) {
	t.Helper()
	for _, r := range in.Missing() {
		write(t, in, data, r.Off, r.Len)
	}
}

func write(t testing.TB, in Progress, data []byte, off, n int64) {
	t.Helper()
	if k, err := in.WriteAt(data[off:off+n], off); err != nil || int64(k) != n {
		t.Fatalf("WriteAt %d+%d = %d, %v", off, n, k, err)
	}
}

// writePiece writes piece i of data.
func writePiece(t testing.TB, in Progress, data []byte, i int) {
	t.Helper()
	off := int64(i) * store.PieceSize
	write(t, in, data, off, min(store.PieceSize, int64(len(data))-off))
}

// Check reads data's blob from the spool and compares it.
func Check(t testing.TB, sp Spool, data []byte) {
	t.Helper()
	r, err := sp.Open(Digest(data))
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	defer r.Close()
	checkReader(t, r, data)
}

func checkReader(t testing.TB, r Reader, data []byte) {
	t.Helper()
	st := r.Stream(Deadline(t), 0)
	defer st.Close()
	got, err := io.ReadAll(st)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("read %d bytes (equal: %v), %v; want %d", len(got), bytes.Equal(got, data), err, len(data))
	}
}

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("%s: error %v, want %v", what, err, want)
	}
}

func wantUsed(t testing.TB, sp Spool, want int64) {
	t.Helper()
	used, limit := sp.Usage()
	if used != want || limit != Limit {
		t.Fatalf("Usage = %d of %d, want %d of %d", used, limit, want, int64(Limit))
	}
}

func wantGone(t testing.TB, sp Spool, digest string) {
	t.Helper()
	_, err := sp.Stat(digest)
	wantErr(t, "Stat", err, store.ErrNotFound)
	_, err = sp.Open(digest)
	wantErr(t, "Open", err, store.ErrNotFound)
}
