package store

import (
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func FuzzDecodeCheckpoint(f *testing.F) {
	h := sha256.New()
	h.Write(make([]byte, PieceSize))
	good, err := checkpoint{nonce: nonce{1}, size: 3 * PieceSize, hashed: PieceSize, hash: h}.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:40])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeCheckpoint(b)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("error %v is not ErrDamaged", err)
			}
			return
		}
		if c.hashed < 0 || c.hashed > c.size || (c.hashed%PieceSize != 0 && c.hashed != c.size) {
			t.Fatalf("accepted %+v", c)
		}
		c.hash.Sum(nil)
	})
}

// FuzzPieces reads a .pieces file of any content.
func FuzzPieces(f *testing.F) {
	k := key{7}
	good := header{nonce: nonce{1}, key: k, size: 3 * PieceSize, started: time.Unix(5, 0)}.encode()
	f.Add(append(good, 1, 2, 3, 4, 0, 0, 0, 0, 9))
	f.Add(good)
	f.Add(good[:100])
	f.Add(header{key: k, size: maxBlob, started: time.Unix(5, 0)}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		fl, err := disk{}.open("x", path, os.O_RDONLY)
		if err != nil {
			t.Fatal(err)
		}
		defer fl.close()
		h, marks, err := readMarks(fl, k)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("error %v is not ErrDamaged", err)
			}
			return
		}
		if h.size < 0 || h.size > maxBlob || len(marks) > pieceCount(h.size) || len(marks) > len(b)/markSize {
			t.Fatalf("accepted %+v with %d marks", h, len(marks))
		}
	})
}

func FuzzBlobName(f *testing.F) {
	f.Add(key{1}.hex() + ".12")
	f.Add(key{1}.hex() + ".-0")
	f.Add("..")
	f.Fuzz(func(t *testing.T, name string) {
		k, size, ok := parseBlobName(name)
		if ok && (&Spool{}).blobPath(k, size) != filepath.Join("blobs", name) {
			t.Fatalf("%q is not the name of %s with %d bytes", name, k, size)
		}
	})
}
