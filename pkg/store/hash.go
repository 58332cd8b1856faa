package store

import (
	"errors"
	"fmt"
	"io"
	"math"
	"sync"

	bolt "go.etcd.io/bbolt"
)

// catchUp bounds what a writer hashes besides its own bytes when its piece closes a gap, so that its stream is not held
// up for long. What remains is hashed by the next writes and by Commit.
const catchUp = 4 << 20

var piecePool = sync.Pool{New: func() any { return new([PieceSize]byte) }}

func getPiece() *[PieceSize]byte  { return piecePool.Get().(*[PieceSize]byte) }
func putPiece(b *[PieceSize]byte) { piecePool.Put(b) }

// advance hashes on, at most budget bytes, while the next piece is there. p, at off, is at hand; other pieces are read back.
// When someone else is hashing it leaves the work to them: they look again after each piece.
func (e *entry) advance(p []byte, off, budget int64) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for budget > 0 {
		n := min(e.offset(e.front)-e.hashed, PieceSize)
		if e.hashing || e.err != nil || e.syncErr != nil || n <= 0 {
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
				err = e.save(hashed)
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
	case e.syncErr != nil:
		return e.syncErr
	case e.hashed != e.size:
		return fmt.Errorf("%w: hashed %d of %d bytes of %s", ErrIncomplete, e.hashed, e.size, e.key)
	}
	return nil
}

// save makes the data durable and then the checkpoint at hashed. It belongs to who has the hash. A checkpoint that can't
// be put costs only hashing after a restart, so that is logged; a sync that fails is an error.
func (e *entry) save(hashed int64) error {
	if err := e.sync("checkpoint"); err != nil {
		return err
	}
	e.mu.Lock()
	n := e.nonce
	e.mu.Unlock()
	v, err := checkpoint{nonce: n, size: e.size, hashed: hashed, hash: e.hash}.encode()
	if err == nil {
		err = e.sp.cache.update("checkpoint.put", func(tx *bolt.Tx) error { return tx.Bucket(bucketCheckpoints).Put(e.key[:], v) })
	}
	if err != nil {
		e.sp.log.Warn("putting a checkpoint", "digest", e.key.String(), "error", err)
		return nil
	}
	e.mu.Lock()
	e.saved = hashed
	e.mu.Unlock()
	return nil
}

// sync makes content, marks and names durable. It belongs to who has the hash.
func (e *entry) sync(why string) error {
	e.mu.Lock()
	data, marks, synced, err := e.data, e.marks, e.synced, e.err
	e.mu.Unlock()
	if err != nil {
		return err
	}
	if data == nil || marks == nil {
		return ErrClosed
	}
	if err := data.sync(); err != nil {
		return e.distrust(fmt.Errorf("syncing %s for its %s: %w", e.key, why, err), marks)
	}
	if why == "commit" {
		return nil // the marks are about to go
	}
	if err := marks.sync(); err != nil {
		return e.distrust(fmt.Errorf("syncing pieces of %s: %w", e.key, err), marks)
	}
	if !synced {
		if err := e.sp.disk.syncDir("ingest.dir.sync", e.sp.ingestDir()); err != nil {
			return e.distrust(err, marks)
		}
		e.mu.Lock()
		e.synced = true
		e.mu.Unlock()
	}
	return nil
}

// distrust handles a failed sync. The kernel may have dropped the dirty pages and call the next sync good, so all that
// came after the checkpoint loses its marks; the next writer finds it absent. Without even that, the content goes.
func (e *entry) distrust(cause error, marks *file) error {
	cause = fmt.Errorf("%w; close the ingest and open it again: what came after its checkpoint is fetched anew", cause)
	e.mu.Lock()
	saved := e.saved
	e.syncErr = cause
	e.cond.Broadcast()
	e.mu.Unlock()
	if err := marks.truncate(headerSize + int64(pieceCount(saved))*markSize); err != nil {
		e.sp.drop(e, fmt.Errorf("%w: %w", ErrAborted, errors.Join(cause, err)))
	}
	return cause
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
