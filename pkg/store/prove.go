package store

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"io"
	"path/filepath"
)

// unprove moves aside what an earlier boot committed: nobody synced it, so the machine may have gone down before it was on
// disk. A blob's place says what is known of it, so this may be cut short anywhere and done again.
func (sp *Spool) unprove() error {
	des, err := sp.disk.readDir("blob.list", sp.blobDir())
	if err != nil {
		return err
	}
	n := 0
	for _, de := range des {
		if _, _, ok := parseBlobName(de.Name()); !ok {
			continue
		}
		if err := sp.disk.rename("blob.unprove", filepath.Join(sp.blobDir(), de.Name()), filepath.Join(sp.unprovedDir(), de.Name())); err != nil {
			return err
		}
		n++
	}
	if n > 0 {
		sp.log.Info("the machine was started anew; each blob is proved when it is next opened", "count", n)
	}
	return nil
}

// prove hashes the content of an unproved blob. What can't be read or doesn't match is damaged. Under prepareMu: one caller
// proves, and the others wait and share what comes of it.
func (e *entry) prove(f *file) error {
	err := e.compare(f)
	if err != nil {
		e.fail(err)
		return err
	}
	sp := e.sp
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if e.elem == nil {
		return e.failure() // dropped meanwhile
	}
	if err := sp.disk.rename("blob.proved", e.blobPath(), sp.blobPath(e.key, e.size)); err != nil {
		sp.log.Warn("moving a proved blob; it will be proved again", "digest", e.key.String(), "error", err)
		return nil
	}
	e.mu.Lock()
	e.unproved = false
	e.mu.Unlock()
	return nil
}

// compare holds a file's content to the digest.
func (e *entry) compare(f *file) error {
	buf := getPiece()
	defer putPiece(buf)
	h := sha256.New()
	for off := int64(0); off < e.size; off += PieceSize {
		if err := e.failure(); err != nil {
			return err
		}
		p := buf[:min(PieceSize, e.size-off)]
		n, err := f.readFull(p, off)
		e.sp.readBack.Add(int64(n))
		if n < len(p) {
			return fmt.Errorf("%w: reading back %s at %d: %w", ErrDamaged, e.key, off, cmp.Or(err, io.ErrUnexpectedEOF))
		}
		h.Write(p)
	}
	if key(h.Sum(nil)) != e.key {
		return fmt.Errorf("%w: %s is not what was committed before the machine went down", ErrDamaged, e.key)
	}
	return nil
}

// settle proves a blob if it is unproved still, so that it counts or is out of the way.
func (sp *Spool) settle(k key) error {
	if !sp.unproved(k) {
		return nil
	}
	r, err := sp.Open(k.String())
	if err == nil {
		return r.Close()
	}
	if sp.unproved(k) {
		return err
	}
	return nil // dropped
}

func (sp *Spool) unproved(k key) bool {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	e := sp.entries[k]
	return e != nil && e.unproved
}
