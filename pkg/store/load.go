package store

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"container/list"

	bolt "go.etcd.io/bbolt"
)

// found is an entry that load came across.
type found struct {
	e    *entry
	used time.Time
}

// load finds what is in the spool and removes what a crash left over. Names it doesn't know it leaves alone. newBoot: what is
// there was written before the machine was started.
func (sp *Spool) load(newBoot bool) error {
	for _, dir := range []string{sp.ingestDir(), sp.blobDir(), sp.unprovedDir(), sp.trashDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	sp.entries, sp.lru = make(map[key]*entry), list.New()
	if err := sp.emptyTrash(); err != nil {
		return err
	}
	if newBoot {
		if err := sp.unprove(); err != nil {
			return err
		}
	}
	blobs, err := sp.loadBlobs(sp.blobDir(), false)
	if err != nil {
		return err
	}
	ingests, err := sp.loadIngests()
	if err != nil {
		return err
	}
	// Last, because what was begun or committed since is there for the reason that the unproved one was no good.
	unproved, err := sp.loadBlobs(sp.unprovedDir(), true)
	if err != nil {
		return err
	}
	all := slices.Concat(blobs, ingests, unproved)
	slices.SortStableFunc(all, func(a, b found) int { return cmp.Compare(a.used.UnixNano(), b.used.UnixNano()) })
	for _, f := range all {
		sp.addLocked(f.e)
	}
	if err := sp.pruneCheckpoints(); err != nil {
		return err
	}
	trash, err := sp.reserveLocked(key{}, 0) // the bound may be lower than it was
	sp.unlink(trash)
	return err
}

func (sp *Spool) emptyTrash() error {
	des, err := sp.disk.readDir("trash.list", sp.trashDir())
	if err != nil {
		return err
	}
	for _, de := range des {
		if _, err := strconv.ParseUint(de.Name(), 10, 64); err != nil {
			sp.stranger(sp.trashDir(), de)
			continue
		}
		if err := sp.disk.remove("trash.remove", filepath.Join(sp.trashDir(), de.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (sp *Spool) stranger(dir string, de os.DirEntry) {
	sp.log.Warn("a file that is not the store's was left alone", "path", filepath.Join(dir, de.Name()))
}

// parseBlobName reads "<hex>.<size>".
func parseBlobName(name string) (k key, size int64, ok bool) {
	h, s, ok := strings.Cut(name, ".")
	if !ok || !parseHex(&k, h) {
		return key{}, 0, false
	}
	size, err := strconv.ParseInt(s, 10, 64)
	if err != nil || size < 0 || size > maxBlob || strconv.FormatInt(size, 10) != s {
		return key{}, 0, false
	}
	return k, size, true
}

func (sp *Spool) loadBlobs(dir string, unproved bool) ([]found, error) {
	des, err := sp.disk.readDir("blob.list", dir)
	if err != nil {
		return nil, err
	}
	var out []found
	for _, de := range des {
		k, size, ok := parseBlobName(de.Name())
		if !ok {
			sp.stranger(dir, de)
			continue
		}
		fi, err := de.Info()
		if err != nil {
			return nil, err
		}
		if !fi.Mode().IsRegular() || fi.Size() != size || sp.entries[k] != nil {
			sp.log.Warn("committed blob has not the size it was committed with, or is there twice; removed", "digest", k.String(), "size", fi.Size(), "want", size)
			if err := sp.disk.remove("blob.remove", filepath.Join(dir, de.Name())); err != nil {
				return nil, err
			}
			continue
		}
		e := newEntry(sp, k, size)
		e.committed, e.unproved, e.updated = true, unproved, fi.ModTime()
		out = append(out, found{e, fi.ModTime()})
		sp.entries[k] = e
	}
	return out, nil
}

func (sp *Spool) loadIngests() ([]found, error) {
	des, err := sp.disk.readDir("ingest.list", sp.ingestDir())
	if err != nil {
		return nil, err
	}
	const hasData, hasPieces = 1, 2
	has := make(map[key]int)
	for _, de := range des {
		var k key
		h, kind, _ := strings.Cut(de.Name(), ".")
		switch {
		case parseHex(&k, h) && kind == "data":
			has[k] |= hasData
		case parseHex(&k, h) && kind == "pieces":
			has[k] |= hasPieces
		default:
			sp.stranger(sp.ingestDir(), de)
		}
	}
	var out []found
	for k, what := range has {
		if what == hasData|hasPieces && sp.entries[k] == nil {
			e, err := sp.loadIngest(k)
			if err == nil {
				out = append(out, found{e, e.updated})
				sp.entries[k] = e
				continue
			}
			if !errors.Is(err, ErrDamaged) {
				return nil, err
			}
			sp.log.Warn("an ingest can't be continued; removed", "digest", k.String(), "error", err)
		}
		if err := errors.Join(sp.disk.remove("ingest.pieces.remove", sp.piecesPath(k)), sp.disk.remove("ingest.data.remove", sp.dataPath(k))); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// loadIngest believes the marks for now; they are checked when someone opens the ingest.
func (sp *Spool) loadIngest(k key) (*entry, error) {
	f, err := sp.disk.open("ingest.pieces", sp.piecesPath(k), os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.close()
	fi, err := f.f.Stat()
	if err != nil {
		return nil, err
	}
	h, marks, err := readMarks(f, k)
	if err != nil {
		return nil, err
	}
	e := newEntry(sp, k, h.size)
	e.nonce, e.started, e.updated = h.nonce, h.started, fi.ModTime()
	for i, m := range marks {
		if m != 0 {
			e.received += e.pieceLen(i)
		}
	}
	return e, nil
}

// readMarks reads a .pieces file; marks that the file lacks are 0. Damage gives ErrDamaged.
func readMarks(f *file, k key) (header, []uint32, error) {
	b := make([]byte, headerSize)
	n, err := f.readFull(b, 0)
	if err != nil {
		return header{}, nil, err
	}
	h, err := decodeHeader(b[:n])
	if err != nil {
		return header{}, nil, err
	}
	if h.key != k {
		return header{}, nil, fmt.Errorf("%w: pieces of %s are named as %s", ErrDamaged, h.key, k)
	}
	// The file's length bounds what is read, whatever size the header claims.
	end, err := f.size()
	if err != nil {
		return header{}, nil, err
	}
	n64 := min(int64(pieceCount(h.size)), max(end-headerSize, 0)/markSize)
	b = make([]byte, n64*markSize)
	n, err = f.readFull(b, headerSize)
	if err != nil {
		return header{}, nil, err
	}
	marks := make([]uint32, n/markSize)
	for i := range marks {
		marks[i] = binary.LittleEndian.Uint32(b[i*markSize:])
	}
	return h, marks, nil
}

// loaded is what an ingest's files and checkpoint amount to.
type loaded struct {
	header     header
	present    bitset
	checkpoint checkpoint
}

// load reads an ingest back. Under prepareMu, with the files open and no writer at work.
func (e *entry) load() error {
	e.mu.Lock()
	data, pieces := e.data, e.marks
	e.mu.Unlock()
	if data == nil || pieces == nil {
		return ErrClosed
	}
	h, marks, err := readMarks(pieces, e.key)
	if err != nil {
		return err
	}
	if h.size != e.size {
		return fmt.Errorf("%w: pieces of %s name the size %d, not %d", ErrDamaged, e.key, h.size, e.size)
	}
	length, err := data.size()
	if err != nil {
		return err
	}
	cp, err := e.readCheckpoint(h)
	if err != nil {
		return err
	}
	if cp.hashed > length {
		e.sp.log.Warn("an ingest is shorter than its checkpoint says; it is read back from the start", "digest", e.key.String())
		cp = checkpoint{hash: sha256.New()}
	}
	if length != e.size {
		if err := data.truncate(e.size); err != nil {
			return err
		}
	}
	l := loaded{header: h, present: newBitset(e.pieces), checkpoint: cp}
	if err := e.readBack(data, marks, l); err != nil {
		return err
	}
	return e.install(l)
}

// readCheckpoint gives the start when there is no checkpoint of this very ingest.
func (e *entry) readCheckpoint(h header) (checkpoint, error) {
	var raw []byte
	err := e.sp.cache.view("checkpoint.get", func(tx *bolt.Tx) error {
		raw = slices.Clone(tx.Bucket(bucketCheckpoints).Get(e.key[:]))
		return nil
	})
	if err != nil {
		return checkpoint{}, err
	}
	cp, err := decodeCheckpoint(raw)
	if raw == nil || err != nil || cp.nonce != h.nonce || cp.size != h.size {
		return checkpoint{hash: sha256.New()}, nil
	}
	return cp, nil
}

// readBack takes the pieces under the checkpoint as present, and compares the others with their marks.
func (e *entry) readBack(data *file, marks []uint32, l loaded) error {
	trusted := pieceCount(l.checkpoint.hashed)
	l.present.setRange(0, trusted)
	buf := getPiece()
	defer putPiece(buf)
	for i := trusted; i < len(marks); i++ {
		if marks[i] == 0 {
			continue
		}
		if err := e.failure(); err != nil {
			return err
		}
		p := buf[:e.pieceLen(i)]
		n, err := data.readFull(p, e.offset(i))
		if err != nil {
			return err
		}
		e.sp.readBack.Add(int64(n))
		if n == len(p) && pieceMark(p) == marks[i] {
			l.present.set(i)
		} else {
			e.sp.log.Warn("a piece changed on disk; it counts as absent", "digest", e.key.String(), "piece", i)
		}
	}
	return nil
}

// pruneCheckpoints removes those whose ingest is gone.
func (sp *Spool) pruneCheckpoints() error {
	var stale [][]byte
	err := sp.cache.view("checkpoint.list", func(tx *bolt.Tx) error {
		stale = nil
		return tx.Bucket(bucketCheckpoints).ForEach(func(k, v []byte) error {
			if e := sp.entries[key(padKey(k))]; e == nil || len(k) != len(key{}) || e.committed || len(v) < checkpointFixed || nonce(v[1:17]) != e.nonce {
				stale = append(stale, slices.Clone(k))
			}
			return nil
		})
	})
	if err != nil || len(stale) == 0 {
		return err
	}
	return sp.cache.update("checkpoint.prune", func(tx *bolt.Tx) error {
		for _, k := range stale {
			if err := tx.Bucket(bucketCheckpoints).Delete(k); err != nil {
				return err
			}
		}
		return nil
	})
}

func padKey(b []byte) (k key) {
	copy(k[:], b)
	return k
}
