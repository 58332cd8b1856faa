package store

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Ingest is the one writer of a blob. It ends with Commit, Abort or Close; calls after that do nothing or fail with ErrClosed.
type Ingest struct {
	e *entry
	// life is held for reading while a write is under way, and for writing by what ends the ingest.
	life sync.RWMutex
	done bool
}

// Status says how far the blob is.
func (in *Ingest) Status() Status { return in.e.status() }

// Missing lists what has not arrived, piece-aligned and in order, adjacent pieces as one range.
func (in *Ingest) Missing() []Range {
	e := in.e
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.committed || !e.ready {
		return nil
	}
	var out []Range
	for i := e.present.nextClear(0, e.pieces); i < e.pieces; {
		j := e.present.nextSet(i, e.pieces)
		out = append(out, Range{Off: e.offset(i), Len: e.offset(j) - e.offset(i)})
		i = e.present.nextClear(j, e.pieces)
	}
	return out
}

// WriteAt writes whole pieces from a piece's start on; only the blob's end may be a part of a piece. Concurrent calls are
// welcome. What is present already is skipped, whatever p says there. n counts from the front of p what is now present.
// A full disk is ErrNoSpace; what was written stays.
func (in *Ingest) WriteAt(p []byte, off int64) (n int, err error) {
	e := in.e
	end := off + int64(len(p))
	if off < 0 || off%PieceSize != 0 || off > e.size || end > e.size || (end%PieceSize != 0 && end != e.size) {
		return 0, fmt.Errorf("%w: write of %d bytes at %d into %s of %d bytes is not whole pieces of it", ErrInvalid, len(p), off, e.key, e.size)
	}
	in.life.RLock()
	defer in.life.RUnlock()
	if in.done {
		return 0, fmt.Errorf("writing %s: %w", e.key, ErrClosed)
	}
	first, last := int(off/PieceSize), pieceCount(end)
	for i := first; i < last; {
		j, wrote, err := e.writeSome(i, last, p[e.offset(i)-off:])
		if err != nil {
			return int(e.offset(i) - off), fmt.Errorf("writing %s at %d: %w", e.key, e.offset(i), err)
		}
		var run []byte // what was present may be something else than p says
		if wrote {
			run = p[e.offset(i)-off : e.offset(j)-off]
		}
		if err := e.advance(run, e.offset(i), int64(len(run))+catchUp); err != nil {
			return int(e.offset(j) - off), fmt.Errorf("writing %s: %w", e.key, err)
		}
		i = j
	}
	return len(p), nil
}

// maxRun bounds the pieces of one write.
const maxRun = 16

// marksPool has the buffers in which the marks of one run are written.
var marksPool = sync.Pool{New: func() any { return new([maxRun * markSize]byte) }}

// writeSome makes at least piece i present and returns the first piece that it has not looked at. It wrote all before that
// from p, or none.
func (e *entry) writeSome(i, last int, p []byte) (next int, wrote bool, err error) {
	e.mu.Lock()
	for e.err == nil && e.busy.get(i) && !e.present.get(i) {
		e.cond.Wait()
	}
	switch {
	case e.err != nil:
		err = e.err
	case e.present.get(i):
		next = i + 1
	}
	if err != nil || next > 0 {
		e.mu.Unlock()
		return next, false, err
	}
	j := i
	for j < last && j < i+maxRun && !e.busy.get(j) && !e.present.get(j) {
		e.busy.set(j)
		j++
	}
	data, marks := e.data, e.marks
	e.mu.Unlock()

	err = e.writeRun(data, marks, i, j, p[:e.offset(j)-e.offset(i)])

	e.mu.Lock()
	defer e.mu.Unlock()
	for k := i; k < j; k++ {
		e.busy.clear(k)
	}
	if err == nil {
		e.markPresent(i, j)
		e.updated = time.Now()
	}
	e.cond.Broadcast()
	return j, true, err
}

// writeRun writes the data and then the marks, so that a kill between the two leaves the pieces absent.
func (e *entry) writeRun(data, marks *file, i, j int, p []byte) error {
	if data == nil || marks == nil {
		return ErrClosed
	}
	if err := data.writeAt(p, e.offset(i)); err != nil {
		return err
	}
	buf := marksPool.Get().(*[maxRun * markSize]byte)
	defer marksPool.Put(buf)
	b := buf[:0]
	for k := i; k < j; k++ {
		at := e.offset(k) - e.offset(i)
		b = binary.LittleEndian.AppendUint32(b, pieceMark(p[at:at+e.pieceLen(k)]))
	}
	return marks.writeAt(b, headerSize+int64(i)*markSize)
}

// NewReader opens a reader of the same blob. It never fails: where there is nothing to read any more, the reader's methods do.
func (in *Ingest) NewReader() *Reader {
	e, sp := in.e, in.e.sp
	sp.mu.Lock()
	var err error
	switch {
	case sp.closed:
		err = ErrClosed
	case e.elem == nil:
		e.mu.Lock()
		err = e.err
		e.mu.Unlock()
	default:
		e.open++
	}
	sp.mu.Unlock()
	if err != nil {
		return deadReader(e, err)
	}
	if err := e.prepare(); err != nil {
		sp.release(e)
		return deadReader(e, err)
	}
	return &Reader{e: e}
}

// Commit publishes the blob once every piece is there (else ErrIncomplete) and its size and SHA-256 are verified. Content
// that is something else is dropped, readers are told, and the error is ErrDigestMismatch. After another error the ingest
// stays open: call Commit again, or Close and open it anew.
func (in *Ingest) Commit() error {
	in.life.Lock()
	defer in.life.Unlock()
	e, sp := in.e, in.e.sp
	if in.done {
		return fmt.Errorf("committing %s: %w", e.key, ErrClosed)
	}
	err := in.verify()
	if err == nil {
		err = sp.disk.rename("commit.rename", sp.dataPath(e.key), sp.blobPath(e.key, e.size))
	}
	if err != nil {
		if errors.Is(err, ErrDigestMismatch) || errors.Is(err, ErrDamaged) {
			sp.drop(e, err)
			in.done = true
			sp.releaseWriter(e)
		}
		return fmt.Errorf("committing %s: %w", e.key, err)
	}
	sp.mu.Lock()
	e.mu.Lock()
	e.committed = true
	marks := e.marks
	e.marks, e.present, e.busy, e.hash = nil, nil, nil, nil
	e.mu.Unlock()
	sp.mu.Unlock()
	marks.close()
	// The blob is there. What fails from here on is mended by the next Open, so it is no reason to say otherwise.
	if err := sp.disk.remove("commit.pieces.remove", sp.piecesPath(e.key)); err != nil {
		sp.log.Warn("removing a committed blob's pieces", "digest", e.key.String(), "error", err)
	}
	e.forgetCheckpoint()
	in.done = true
	sp.releaseWriter(e)
	return nil
}

// verify hashes what is not hashed yet, and looks at size and digest.
func (in *Ingest) verify() error {
	e := in.e
	e.mu.Lock()
	err, missing, data := e.err, e.size-e.received, e.data
	e.mu.Unlock()
	switch {
	case err != nil:
		return err
	case data == nil:
		return ErrClosed
	case missing > 0:
		return fmt.Errorf("%w: %d of %d bytes are missing", ErrIncomplete, missing, e.size)
	}
	if err := e.finishHash(); err != nil {
		return err
	}
	e.takeHash()
	defer e.giveHash()
	length, err := data.size()
	if err != nil {
		return err
	}
	if length != e.size {
		return fmt.Errorf("%w: the file has %d bytes, not %d", ErrDamaged, length, e.size)
	}
	var sum key
	if e.hash.Sum(sum[:0]); sum == e.key {
		return nil
	}
	if e.resumed {
		// The source is not to blame for a checkpoint that was wrong: look again from the start.
		e.hash = sha256.New()
		for off := int64(0); off < e.size; off += PieceSize {
			if err := e.hashPiece(nil, 0, off, min(PieceSize, e.size-off), data); err != nil {
				e.resumed = true
				return err
			}
		}
		e.resumed = false
		if e.hash.Sum(sum[:0]); sum == e.key {
			return nil
		}
	}
	e.sp.mismatches.Add(1)
	return fmt.Errorf("%w: it is %s", ErrDigestMismatch, sum)
}

// Abort drops the content; readers get an error that wraps ErrAborted and err. After Commit it does nothing.
func (in *Ingest) Abort(err error) error {
	in.life.Lock()
	defer in.life.Unlock()
	if in.done {
		return nil
	}
	in.done = true
	cause := ErrAborted
	if err != nil {
		cause = fmt.Errorf("%w: %w", ErrAborted, err)
	}
	in.e.sp.drop(in.e, cause)
	in.e.sp.releaseWriter(in.e)
	return nil
}

// Close lets go of the blob and keeps its progress, for the next Ingest of the same digest. Readers keep waiting for that
// one, each as long as its context lets it. An ingest that has received nothing and that nobody reads is dropped. After
// Commit or Abort it does nothing.
func (in *Ingest) Close() error {
	in.life.Lock()
	defer in.life.Unlock()
	if in.done {
		return nil
	}
	in.done = true
	e, sp := in.e, in.e.sp
	e.takeHash()
	e.mu.Lock()
	hashed, worth := e.hashed, e.err == nil && e.hashed > e.saved
	e.mu.Unlock()
	if worth {
		e.save(hashed)
	}
	e.giveHash()

	sp.mu.Lock()
	var trash []dropped
	if e.open == 1 && e.status().Received == 0 {
		trash = sp.dropLocked(e, fmt.Errorf("%w: nothing of %s was received", ErrNotFound, e.key))
	}
	sp.mu.Unlock()
	sp.unlink(trash)
	sp.releaseWriter(e)
	return nil
}
