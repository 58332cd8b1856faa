package store

import (
	"errors"
	"fmt"
	"io"
	"math"
	"sync"

	bolt "go.etcd.io/bbolt"
)

// catchUp bounds what a writer hashes besides its own bytes when its run of pieces closes a gap, so that its stream is not
// held up for long. What remains is hashed by the next writes and by Commit.
const catchUp = 4 << 20

var piecePool = sync.Pool{New: func() any { return new([PieceSize]byte) }}

func getPiece() *[PieceSize]byte  { return piecePool.Get().(*[PieceSize]byte) }
func putPiece(b *[PieceSize]byte) { piecePool.Put(b) }

// advance hashes on, at most budget bytes, while the next piece is there. p, which was written at off, is at hand; other
// pieces are read back.
// When someone else is hashing it leaves the work to them: they look again after each piece.
func (e *entry) advance(p []byte, off, budget int64) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for budget > 0 {
		n := min(e.offset(e.front)-e.hashed, PieceSize)
		if e.hashing || e.err != nil || n <= 0 {
			return nil
		}
		e.hashing = true
		from, data := e.hashed, e.data
		e.mu.Unlock()
		err := e.hashPiece(p, off, from, n, data)
		hashed := from
		if err == nil {
			hashed += n
			if hashed-e.saved >= e.sp.checkpointEvery && hashed < e.size {
				e.save(hashed)
			}
		}
		e.mu.Lock()
		e.hashing, e.hashed = false, hashed
		e.cond.Broadcast()
		if err != nil {
			return err
		}
		budget -= n
	}
	return nil
}

// hashPiece belongs to who has set hashing. It fails before it changes anything.
func (e *entry) hashPiece(p []byte, off, from, n int64, data *file) error {
	if from >= off && from+n <= off+int64(len(p)) {
		e.hash.Write(p[from-off:][:n])
		e.sp.hashed.Add(n)
		return nil
	}
	if data == nil {
		return ErrClosed
	}
	buf := getPiece()
	defer putPiece(buf)
	if k, err := data.readFull(buf[:n], from); err != nil {
		return fmt.Errorf("reading back %s at %d: %w", e.key, from, err)
	} else if int64(k) < n {
		return fmt.Errorf("reading back %s at %d: %w: %w", e.key, from, ErrDamaged, io.ErrUnexpectedEOF)
	}
	e.hash.Write(buf[:n])
	e.sp.hashed.Add(n)
	return nil
}

// takeHash waits until nobody hashes and takes the hash; giveHash gives it back.
func (e *entry) takeHash() {
	e.mu.Lock()
	for e.hashing {
		e.cond.Wait()
	}
	e.hashing = true
	e.mu.Unlock()
}

func (e *entry) giveHash() {
	e.mu.Lock()
	e.hashing = false
	e.cond.Broadcast()
	e.mu.Unlock()
}

// finishHash hashes the rest. Every piece is present.
func (e *entry) finishHash() error {
	if err := e.advance(nil, 0, math.MaxInt64); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.err != nil:
		return e.err
	case e.hashed != e.size:
		return fmt.Errorf("%w: hashed %d of %d bytes of %s", ErrIncomplete, e.hashed, e.size, e.key)
	}
	return nil
}

// save puts a checkpoint at hashed. It belongs to who has the hash. One that can't be put costs only reading and hashing
// after a restart.
func (e *entry) save(hashed int64) {
	e.mu.Lock()
	n := e.nonce
	e.mu.Unlock()
	v, err := checkpoint{nonce: n, size: e.size, hashed: hashed, hash: e.hash}.encode()
	if err == nil {
		err = e.sp.cache.update("checkpoint.put", func(tx *bolt.Tx) error { return tx.Bucket(bucketCheckpoints).Put(e.key[:], v) })
	}
	if err != nil {
		e.sp.log.Warn("putting a checkpoint", "digest", e.key.String(), "error", err)
		return
	}
	e.mu.Lock()
	e.saved = hashed
	e.mu.Unlock()
}

// forgetCheckpoint removes the checkpoint of this ingest, not that of a later one.
func (e *entry) forgetCheckpoint() {
	e.mu.Lock()
	n, skip := e.nonce, e.nonce == nonce{} || e.ready && e.saved == 0
	e.mu.Unlock()
	if skip {
		return
	}
	err := e.sp.cache.update("checkpoint.delete", func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketCheckpoints)
		if v := b.Get(e.key[:]); len(v) < checkpointFixed || nonce(v[1:17]) != n {
			return nil
		}
		return b.Delete(e.key[:])
	})
	if err != nil && !errors.Is(err, ErrClosed) {
		e.sp.log.Warn("removing a checkpoint; the next start tries again", "digest", e.key.String(), "error", err)
	}
}
