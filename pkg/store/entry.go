package store

import (
	"container/list"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"math/bits"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// bitset has one bit a piece.
type bitset []uint64

func newBitset(n int) bitset    { return make(bitset, (n+63)/64) }
func (b bitset) get(i int) bool { return b[i>>6]&(1<<(i&63)) != 0 }
func (b bitset) set(i int)      { b[i>>6] |= 1 << (i & 63) }
func (b bitset) clear(i int)    { b[i>>6] &^= 1 << (i & 63) }
func (b bitset) setRange(i, j int) {
	for ; i < j; i++ {
		b.set(i)
	}
}

// nextClear is the first index from i on that is not set, n when there is none below n.
func (b bitset) nextClear(i, n int) int {
	for i < n {
		if w := ^b[i>>6] >> (i & 63); w != 0 {
			return min(i+bits.TrailingZeros64(w), n)
		}
		i = (i>>6 + 1) << 6
	}
	return n
}

// entry is one blob in the spool. It outlives its place in the spool for as long as a reader holds it.
type entry struct {
	sp     *Spool
	key    key
	size   int64
	pieces int

	// Under Spool.mu.
	elem   *list.Element // nil when dropped
	open   int           // readers and writers; not evicted while > 0
	writer bool
	ingest *Ingest // the writer, once it is prepared

	// Written under both Spool.mu and mu; read under either.
	committed bool
	// unproved: committed in an earlier boot of the machine and not looked at in this one. The file is elsewhere then.
	unproved bool

	// prepareMu lets one caller at a time read an ingest back from disk.
	prepareMu sync.Mutex

	mu      sync.Mutex
	cond    sync.Cond // a piece is no longer busy, or the hash is no longer taken
	err     error     // why this entry is of no use any more
	data    *file
	marks   *file
	nonce   nonce
	started time.Time
	updated time.Time
	// ready is false until the fields below agree with what is on disk.
	ready    bool
	present  bitset
	busy     bitset // being written
	received int64
	front    int // first piece that is not present
	waiters  []*waiter

	// The hash belongs to who has set hashing; hashed and saved are written by it, under mu.
	hashing bool
	hash    hash.Hash
	hashed  int64 // always whole pieces, or size
	saved   int64 // covered by the checkpoint
	resumed bool  // the hash began from a checkpoint
}

func newEntry(sp *Spool, k key, size int64) *entry {
	e := &entry{sp: sp, key: k, size: size, pieces: pieceCount(size)}
	e.cond.L = &e.mu
	return e
}

// blobPath is where the content is once it is committed. Under Spool.mu or mu.
func (e *entry) blobPath() string {
	if e.unproved {
		return filepath.Join(e.sp.unprovedDir(), blobName(e.key, e.size))
	}
	return e.sp.blobPath(e.key, e.size)
}

func (e *entry) failure() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.err
}

func (e *entry) pieceLen(i int) int64 { return min(PieceSize, e.size-int64(i)*PieceSize) }

// offset where piece i begins; i may be the number of pieces.
func (e *entry) offset(i int) int64 { return min(int64(i)*PieceSize, e.size) }

func (e *entry) status() Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	st := Status{
		Digest: e.key.String(), Size: e.size, Received: e.received, Hashed: e.hashed, Committed: e.committed,
		StartedAt: e.started, UpdatedAt: e.updated,
	}
	if e.committed {
		st.Received, st.Hashed = e.size, e.size
	}
	return st
}

// fail tells everyone who has the entry open. The first cause counts.
func (e *entry) fail(cause error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err != nil {
		return
	}
	e.err = cause
	for _, w := range e.waiters {
		w.wake()
	}
	e.waiters = e.waiters[:0]
	e.cond.Broadcast()
}

func (e *entry) closeFiles() {
	e.mu.Lock()
	data, marks := e.data, e.marks
	e.data, e.marks = nil, nil
	e.mu.Unlock()
	data.close()
	marks.close()
}

// available is how many bytes follow off without a gap. Under mu.
func (e *entry) available(off int64) int64 {
	switch {
	case e.committed:
		return e.size - off
	case !e.ready || off >= e.size:
		return 0
	case off < e.offset(e.front):
		return e.offset(e.front) - off
	}
	i := int(off / PieceSize)
	j := e.present.nextClear(i, e.pieces)
	if j == i {
		return 0
	}
	return e.offset(j) - off
}

// markPresent notes pieces [i,j) and wakes who waits for them. Under mu.
func (e *entry) markPresent(i, j int) {
	e.present.setRange(i, j)
	e.received += e.offset(j) - e.offset(i)
	if e.front >= i && e.front < j {
		e.front = e.present.nextClear(j, e.pieces)
	}
	keep := e.waiters[:0]
	for _, w := range e.waiters {
		if p := int(w.off / PieceSize); p >= i && p < j {
			w.wake()
		} else {
			keep = append(keep, w)
		}
	}
	clear(e.waiters[len(keep):])
	e.waiters = keep
}

// create makes the files of a new ingest, and unlocks prepareMu. Data first: data without marks is nothing.
func (e *entry) create() error {
	defer e.prepareMu.Unlock()
	err := e.createFiles()
	if err != nil {
		e.fail(err)
	}
	return err
}

func (e *entry) createFiles() error {
	h := header{nonce: newNonce(), key: e.key, size: e.size, started: time.Now()}
	data, err := e.sp.disk.open("ingest.data", e.sp.dataPath(e.key), os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	if err := data.truncate(e.size); err != nil {
		data.close()
		return err
	}
	marks, err := e.sp.disk.open("ingest.pieces", e.sp.piecesPath(e.key), os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		data.close()
		return err
	}
	if err := marks.writeAt(h.encode(), 0); err != nil {
		data.close()
		marks.close()
		return err
	}
	if err := e.adopt(data, marks); err != nil {
		return err
	}
	return e.install(loaded{header: h, present: newBitset(e.pieces), checkpoint: checkpoint{hash: sha256.New()}})
}

// install makes what was read from disk, or begun, the entry's state.
func (e *entry) install(l loaded) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err != nil {
		return e.err
	}
	e.nonce, e.started = l.header.nonce, l.header.started
	e.present, e.busy = l.present, newBitset(e.pieces)
	e.hash, e.hashed, e.saved, e.resumed = l.checkpoint.hash, l.checkpoint.hashed, l.checkpoint.hashed, l.checkpoint.hashed > 0
	e.received, e.front = 0, 0
	for i := e.present.nextSet(0, e.pieces); i < e.pieces; {
		j := e.present.nextClear(i, e.pieces)
		e.markPresent(i, j)
		i = e.present.nextSet(j, e.pieces)
	}
	if e.updated.IsZero() {
		e.updated = e.started
	}
	e.ready = true
	return nil
}

func (b bitset) nextSet(i, n int) int {
	for i < n {
		if w := b[i>>6] >> (i & 63); w != 0 {
			return min(i+bits.TrailingZeros64(w), n)
		}
		i = (i>>6 + 1) << 6
	}
	return n
}

// prepare opens the files, and reads back an ingest that an earlier process left.
func (e *entry) prepare() error {
	e.prepareMu.Lock()
	defer e.prepareMu.Unlock()
	e.mu.Lock()
	committed, err := e.committed, e.err
	usable := committed || e.ready
	open := e.data != nil
	e.mu.Unlock()
	switch {
	case err != nil:
		return err
	case usable && open:
		return nil
	case committed:
		return e.openCommitted()
	case !open:
		err = e.openIngest()
	}
	if err != nil || usable {
		return err
	}
	return e.load()
}

func (e *entry) openCommitted() error {
	e.mu.Lock()
	path, unproved := e.blobPath(), e.unproved
	e.mu.Unlock()
	f, err := e.sp.disk.open("blob", path, os.O_RDONLY)
	if err != nil {
		return lostFile(err)
	}
	if unproved {
		if err := e.prove(f); err != nil {
			f.close()
			return err
		}
	}
	return e.adopt(f, nil)
}

func (e *entry) openIngest() error {
	data, err := e.sp.disk.open("ingest.data", e.sp.dataPath(e.key), os.O_RDWR)
	if err != nil {
		return lostFile(err)
	}
	marks, err := e.sp.disk.open("ingest.pieces", e.sp.piecesPath(e.key), os.O_RDWR)
	if err != nil {
		data.close()
		return lostFile(err)
	}
	return e.adopt(data, marks)
}

func (e *entry) adopt(data, marks *file) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.err != nil {
		data.close()
		marks.close()
		return e.err
	}
	e.data, e.marks = data, marks
	return nil
}

// lostFile: a file that someone else removed is damage that beginning anew mends.
func lostFile(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

func newNonce() (n nonce) {
	rand.Read(n[:]) // never fails: crypto/rand ends the program instead
	return n
}
