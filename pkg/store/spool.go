package store

import (
	"container/list"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dustin/go-humanize"
)

// PieceSize is the unit in which a blob is written, checked and resumed. The last piece of a blob may be shorter.
const PieceSize = 256 << 10

// Range is a part of a blob.
type Range struct{ Off, Len int64 }

// Status says how far a blob is.
type Status struct {
	Digest string
	// Size is the whole blob's, Received what is there of it (in whatever order it came), Hashed how far it was hashed.
	// Of an ingest that nothing has opened since the store was, Received is what its marks claim and Hashed is 0.
	Size, Received, Hashed int64
	Committed              bool
	// StartedAt is zero when the blob was committed by an earlier process.
	StartedAt, UpdatedAt time.Time
}

// Counters count since the store was opened.
type Counters struct {
	// HashedBytes went through SHA-256 for ingests (a second look at a mismatch included).
	HashedBytes int64
	// ReadBackBytes were compared with their marks when an ingest was reopened, or with their digest when a blob was proved.
	ReadBackBytes int64
	// EvictedBlobs and EvictedBytes made room for others; ingests that were under way count with their full size.
	EvictedBlobs, EvictedBytes int64
	// Mismatches are contents that were not what their digest promised.
	Mismatches int64
}

// Spool is the bounded space through which blobs pass.
type Spool struct {
	dir             string
	disk            disk
	cache           *cache
	log             *slog.Logger
	limit           int64
	checkpointEvery int64
	trashSeq        atomic.Uint64
	hashed          atomic.Int64
	readBack        atomic.Int64
	evictedBlobs    atomic.Int64
	evictedBytes    atomic.Int64
	mismatches      atomic.Int64

	mu      sync.Mutex
	closed  bool
	entries map[key]*entry
	// lru has every entry, the longest unused first.
	lru  *list.List
	used int64 // sum of the entries' sizes
}

func (sp *Spool) ingestDir() string   { return filepath.Join(sp.dir, "ingest") }
func (sp *Spool) blobDir() string     { return filepath.Join(sp.dir, "blobs") }
func (sp *Spool) unprovedDir() string { return filepath.Join(sp.dir, "unproved") }
func (sp *Spool) trashDir() string    { return filepath.Join(sp.dir, "trash") }

func (sp *Spool) dataPath(k key) string   { return filepath.Join(sp.ingestDir(), k.hex()+".data") }
func (sp *Spool) piecesPath(k key) string { return filepath.Join(sp.ingestDir(), k.hex()+".pieces") }
func (sp *Spool) blobPath(k key, size int64) string {
	return filepath.Join(sp.blobDir(), blobName(k, size))
}

func blobName(k key, size int64) string { return k.hex() + "." + strconv.FormatInt(size, 10) }

// Ingest opens the one writer of a blob and goes on from what an earlier one, or an earlier process, has left. It fails
// with ErrBusy while there is another writer, ErrExists when the blob is committed, ErrTooLarge when it can never fit,
// ErrNoSpace when room can't be reserved now, ErrSizeMismatch when it is committed with another size. Progress under
// another size (one of the two descriptors lied) is dropped.
//
// Reopening what an earlier process left reads back the pieces that no checkpoint covers, and takes its time for it; so does
// proving a blob that was committed before the machine was started anew.
func (sp *Spool) Ingest(digest string, size int64) (*Ingest, error) {
	k, err := parseDigest(digest)
	if err != nil {
		return nil, err
	}
	if size < 0 || size > maxBlob {
		return nil, fmt.Errorf("%w: size of %s is %d", ErrInvalid, k, size)
	}
	if size > sp.limit {
		return nil, fmt.Errorf("%w: %s has %s (%d bytes), the whole spool %s (%d): raise limits.spool", ErrTooLarge, k, inWords(size), size, inWords(sp.limit), sp.limit)
	}
	if err := sp.settle(k); err != nil {
		return nil, err
	}
	e, fresh, trash, err := sp.claim(k, size)
	sp.unlink(trash)
	if err != nil {
		return nil, err
	}
	if fresh {
		err = e.create()
	} else {
		err = e.prepare()
	}
	if err != nil {
		if fresh || errors.Is(err, ErrDamaged) {
			sp.drop(e, err)
		}
		sp.releaseWriter(e)
		return nil, fmt.Errorf("opening ingest of %s: %w", k, err)
	}
	in := &Ingest{e: e}
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.closed { // while it was being prepared
		e.writer = false
		sp.releaseLocked(e)
		return nil, ErrClosed
	}
	e.ingest = in
	return in, nil
}

// claim finds or reserves the entry and makes the caller its writer.
func (sp *Spool) claim(k key, size int64) (e *entry, fresh bool, trash []dropped, err error) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.closed {
		return nil, false, nil, ErrClosed
	}
	e = sp.entries[k]
	switch {
	case e == nil:
	case e.committed && e.size != size:
		return nil, false, nil, fmt.Errorf("%w: %s is committed with %d bytes, not %d", ErrSizeMismatch, k, e.size, size)
	case e.committed:
		sp.lru.MoveToBack(e.elem)
		return nil, false, nil, fmt.Errorf("%w: %s", ErrExists, k)
	case e.writer:
		return nil, false, nil, fmt.Errorf("%w: %s", ErrBusy, k)
	case e.size != size:
		trash = append(trash, sp.dropLocked(e, fmt.Errorf("%w: begun with %d bytes, now %d", ErrSizeMismatch, e.size, size))...)
		e = nil
	}
	if e == nil {
		t, err := sp.reserveLocked(k, size)
		trash = append(trash, t...)
		if err != nil {
			return nil, false, trash, err
		}
		e, fresh = newEntry(sp, k, size), true
		e.prepareMu.Lock() // until create is done: a reader that finds the entry waits for its files
		sp.addLocked(e)
	}
	e.writer = true
	e.open++
	sp.lru.MoveToBack(e.elem)
	return e, fresh, trash, nil
}

func (sp *Spool) addLocked(e *entry) {
	sp.entries[e.key] = e
	e.elem = sp.lru.PushBack(e)
	sp.used += e.size
}

// reserveLocked makes room for size bytes: committed blobs go first, then ingests without a writer, the longest unused
// first, and nothing that is open. It evicts nothing when that would not be enough.
func (sp *Spool) reserveLocked(k key, size int64) (trash []dropped, err error) {
	need := sp.used + size - sp.limit
	if need <= 0 {
		return nil, nil
	}
	var victims []*entry
	for _, committed := range []bool{true, false} {
		for el := sp.lru.Front(); el != nil && need > 0; el = el.Next() {
			if e := el.Value.(*entry); e.open == 0 && e.committed == committed && e.size > 0 {
				victims = append(victims, e)
				need -= e.size
			}
		}
	}
	if need > 0 {
		return nil, fmt.Errorf("%w: %s wants %s; %s of %s are in use and too little of that can be evicted: it is being read or received",
			ErrNoSpace, k, inWords(size), inWords(sp.used), inWords(sp.limit))
	}
	for _, e := range victims {
		trash = append(trash, sp.dropLocked(e, errEvicted)...)
		sp.evictedBlobs.Add(1)
		sp.evictedBytes.Add(e.size)
	}
	return trash, nil
}

var errEvicted = fmt.Errorf("%w: evicted", ErrNotFound)

// drop forgets an entry, tells its readers and removes its files.
func (sp *Spool) drop(e *entry, cause error) {
	sp.mu.Lock()
	trash := sp.dropLocked(e, cause)
	sp.mu.Unlock()
	sp.unlink(trash)
}

// dropped is an entry that is out of the spool, with what is left to do without the lock.
type dropped struct {
	e    *entry
	path string // of its content in trash
}

// dropLocked moves the content aside, so that its name is free at once and unlinking, which takes long for large files,
// happens later without the lock.
func (sp *Spool) dropLocked(e *entry, cause error) (trash []dropped) {
	if e.elem == nil {
		return nil
	}
	delete(sp.entries, e.key)
	sp.lru.Remove(e.elem)
	e.elem = nil
	sp.used -= e.size
	e.fail(cause)
	from := e.blobPath()
	if !e.committed {
		from = sp.dataPath(e.key)
		if err := sp.disk.remove("drop.pieces.remove", sp.piecesPath(e.key)); err != nil {
			sp.log.Warn("removing an ingest's pieces", "digest", e.key.String(), "error", err)
		}
	}
	to := filepath.Join(sp.trashDir(), strconv.FormatUint(sp.trashSeq.Add(1), 10))
	if err := sp.disk.rename("drop.rename", from, to); err != nil {
		// The name must be free, or it would come back to life at the next Open.
		if err := sp.disk.remove("drop.remove", from); err != nil {
			sp.log.Warn("removing content", "digest", e.key.String(), "error", err)
		}
		to = ""
	}
	return []dropped{{e, to}}
}

func (sp *Spool) unlink(trash []dropped) {
	for _, t := range trash {
		t.e.forgetCheckpoint()
		if t.path == "" {
			continue
		}
		if err := sp.disk.remove("trash.remove", t.path); err != nil {
			sp.log.Warn("removing trash; the next start tries again", "path", t.path, "error", err)
		}
	}
}

// lookup finds an entry and keeps it from eviction until release.
func (sp *Spool) lookup(k key) (*entry, error) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.closed {
		return nil, ErrClosed
	}
	e := sp.entries[k]
	if e == nil {
		return nil, fmt.Errorf("%w: %s is not in the spool", ErrNotFound, k)
	}
	e.open++
	sp.lru.MoveToBack(e.elem)
	return e, nil
}

func (sp *Spool) release(e *entry) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	sp.releaseLocked(e)
}

func (sp *Spool) releaseWriter(e *entry) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	e.writer, e.ingest = false, nil
	sp.releaseLocked(e)
}

func (sp *Spool) releaseLocked(e *entry) {
	e.open--
	if e.open > 0 {
		return
	}
	e.closeFiles()
	if e.elem == nil {
		return
	}
	sp.lru.MoveToBack(e.elem)
	if e.committed {
		// Only the order of eviction after a restart hangs on it.
		_ = sp.disk.touch("blob.touch", e.blobPath(), time.Now())
	}
}

// Open opens a blob, committed or in progress; ErrNotFound. One that was committed before the machine was started anew is
// hashed when it is first opened, which takes its time; ErrDamaged says that it was not what its digest promises, and is
// dropped.
func (sp *Spool) Open(digest string) (*Reader, error) {
	k, err := parseDigest(digest)
	if err != nil {
		return nil, err
	}
	e, err := sp.lookup(k)
	if err != nil {
		return nil, err
	}
	if err := e.prepare(); err != nil {
		if errors.Is(err, ErrDamaged) {
			sp.drop(e, err)
		}
		sp.release(e)
		return nil, fmt.Errorf("opening %s: %w", k, err)
	}
	return &Reader{e: e}, nil
}

// Stat says how far a blob is; ErrNotFound.
func (sp *Spool) Stat(digest string) (Status, error) {
	k, err := parseDigest(digest)
	if err != nil {
		return Status{}, err
	}
	sp.mu.Lock()
	e := sp.entries[k]
	sp.mu.Unlock()
	if e == nil {
		return Status{}, fmt.Errorf("%w: %s is not in the spool", ErrNotFound, k)
	}
	return e.status(), nil
}

// List says how far each blob is, in the order of digests.
func (sp *Spool) List() []Status {
	sp.mu.Lock()
	es := make([]*entry, 0, len(sp.entries))
	for _, e := range sp.entries {
		es = append(es, e)
	}
	sp.mu.Unlock()
	out := make([]Status, len(es))
	for i, e := range es {
		out[i] = e.status()
	}
	slices.SortFunc(out, func(a, b Status) int { return strings.Compare(a.Digest, b.Digest) })
	return out
}

// Usage is what is used or reserved, and the bound.
func (sp *Spool) Usage() (used, limit int64) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	return sp.used, sp.limit
}

// Counters returns what was counted since the store was opened.
func (sp *Spool) Counters() Counters {
	return Counters{
		HashedBytes: sp.hashed.Load(), ReadBackBytes: sp.readBack.Load(), EvictedBlobs: sp.evictedBlobs.Load(),
		EvictedBytes: sp.evictedBytes.Load(), Mismatches: sp.mismatches.Load(),
	}
}

// Remove drops a blob that turned out bad or is no longer wanted; readers that have it open get cause (nil: ErrNotFound)
// from then on. ErrBusy while it has a writer: that one can Abort.
func (sp *Spool) Remove(digest string, cause error) error {
	k, err := parseDigest(digest)
	if err != nil {
		return err
	}
	if cause == nil {
		cause = fmt.Errorf("%w: %s was removed", ErrNotFound, k)
	}
	sp.mu.Lock()
	e := sp.entries[k]
	switch {
	case sp.closed:
		err = ErrClosed
	case e == nil:
		err = fmt.Errorf("%w: %s is not in the spool", ErrNotFound, k)
	case e.writer:
		err = fmt.Errorf("%w: %s", ErrBusy, k)
	}
	sp.mu.Unlock()
	if err != nil {
		return err
	}
	sp.drop(e, cause)
	return nil
}

// Evict drops a committed blob that nobody has open, so that its room is free before another needs it. It says whether it
// did: false when the blob is not there, not committed, or open.
func (sp *Spool) Evict(digest string) bool {
	k, err := parseDigest(digest)
	if err != nil {
		return false
	}
	sp.mu.Lock()
	var trash []dropped
	if e := sp.entries[k]; e != nil && !sp.closed && e.committed && e.open == 0 {
		trash = sp.dropLocked(e, errEvicted)
	}
	sp.mu.Unlock()
	sp.unlink(trash)
	return len(trash) > 0
}

// Verify reads a committed blob back, and drops it when it is not what its digest promises (ErrDigestMismatch).
func (sp *Spool) Verify(ctx context.Context, digest string) error {
	r, err := sp.Open(digest)
	if err != nil {
		return err
	}
	defer r.Close()
	if !r.e.status().Committed {
		return fmt.Errorf("verifying %s: %w", digest, ErrIncomplete)
	}
	buf := getPiece()
	defer putPiece(buf)
	h := sha256.New()
	for off := int64(0); off < r.e.size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := r.ReadAt(buf[:min(PieceSize, r.e.size-off)], off)
		if errors.Is(err, ErrDamaged) {
			sp.drop(r.e, err)
			return err
		} else if err != nil && n == 0 {
			return err
		}
		h.Write(buf[:n])
		off += int64(n)
	}
	if key(h.Sum(nil)) == r.e.key {
		return nil
	}
	sp.mismatches.Add(1)
	err = fmt.Errorf("%w: committed content of %s changed on disk; dropped", ErrDigestMismatch, digest)
	sp.drop(r.e, err)
	return err
}

// close saves the progress of open ingests and fails everything that is open.
func (sp *Spool) close() {
	sp.mu.Lock()
	sp.closed = true
	var writers []*Ingest
	all := make([]*entry, 0, len(sp.entries))
	for _, e := range sp.entries {
		all = append(all, e)
		if e.ingest != nil {
			writers = append(writers, e.ingest)
		}
	}
	sp.mu.Unlock()
	for _, in := range writers {
		_ = in.Close()
	}
	for _, e := range all {
		e.fail(ErrClosed)
		e.prepareMu.Lock() // who prepares it sees the failure and opens no files after this
		e.closeFiles()
		e.prepareMu.Unlock()
	}
}

// inWords puts a number of bytes into words: these errors are shown to people.
func inWords(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }
