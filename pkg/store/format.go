package store

import (
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"fmt"
	"hash"
	"hash/crc32"
	"time"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// pieceMark is what stands for a piece in .pieces: its CRC-32C, but never 0, which means absent.
func pieceMark(p []byte) uint32 { return max(crc32.Checksum(p, castagnoli), 1) }

// pieceCount is how many pieces size bytes make.
func pieceCount(size int64) int { return int((size + PieceSize - 1) / PieceSize) }

const (
	headerMagic = "fanoutp1"
	headerSize  = 128
	markSize    = 4
	// maxBlob keeps arithmetic on sizes and piece numbers from overflowing.
	maxBlob = 1 << 50
)

// nonce ties a checkpoint to the one ingest it was made for.
type nonce [16]byte

// header begins a .pieces file:
//
//	 0  magic         8
//	 8  nonce        16
//	24  digest       32
//	56  size          8
//	64  started at    8   Unix nanoseconds
//	72  zero         52
//	124 CRC-32C       4   of all before it
type header struct {
	nonce   nonce
	key     key
	size    int64
	started time.Time
}

func (h header) encode() []byte {
	b := make([]byte, headerSize)
	copy(b, headerMagic)
	copy(b[8:], h.nonce[:])
	copy(b[24:], h.key[:])
	binary.LittleEndian.PutUint64(b[56:], uint64(h.size))
	binary.LittleEndian.PutUint64(b[64:], uint64(h.started.UnixNano()))
	binary.LittleEndian.PutUint32(b[124:], crc32.Checksum(b[:124], castagnoli))
	return b
}

func decodeHeader(b []byte) (header, error) {
	if len(b) < headerSize || string(b[:8]) != headerMagic {
		return header{}, fmt.Errorf("%w: not a header of pieces", ErrDamaged)
	}
	if crc32.Checksum(b[:124], castagnoli) != binary.LittleEndian.Uint32(b[124:]) {
		return header{}, fmt.Errorf("%w: header of pieces has a wrong checksum", ErrDamaged)
	}
	var h header
	copy(h.nonce[:], b[8:])
	copy(h.key[:], b[24:])
	h.size = int64(binary.LittleEndian.Uint64(b[56:]))
	h.started = time.Unix(0, int64(binary.LittleEndian.Uint64(b[64:])))
	if h.size < 0 || h.size > maxBlob {
		return header{}, fmt.Errorf("%w: header of pieces names the size %d", ErrDamaged, h.size)
	}
	return h, nil
}

// checkpoint is a value in cache.db, under the digest's bytes:
//
//	 0  version       1
//	 1  nonce        16
//	17  size          8
//	25  hashed        8
//	33  SHA-256 state
//	    CRC-32C       4   of all before it
type checkpoint struct {
	nonce  nonce
	size   int64
	hashed int64
	hash   hash.Hash
}

const (
	checkpointVersion = 1
	checkpointFixed   = 33
	maxCheckpoint     = 512
)

func (c checkpoint) encode() ([]byte, error) {
	b := make([]byte, checkpointFixed, 256)
	b[0] = checkpointVersion
	copy(b[1:], c.nonce[:])
	binary.LittleEndian.PutUint64(b[17:], uint64(c.size))
	binary.LittleEndian.PutUint64(b[25:], uint64(c.hashed))
	state, err := c.hash.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		return nil, fmt.Errorf("saving the hash state: %w", err)
	}
	b = append(b, state...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)), nil
}

func decodeCheckpoint(b []byte) (checkpoint, error) {
	if len(b) < checkpointFixed+4 || len(b) > maxCheckpoint || b[0] != checkpointVersion {
		return checkpoint{}, fmt.Errorf("%w: not a checkpoint", ErrDamaged)
	}
	body, sum := b[:len(b)-4], binary.LittleEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return checkpoint{}, fmt.Errorf("%w: checkpoint has a wrong checksum", ErrDamaged)
	}
	var c checkpoint
	copy(c.nonce[:], b[1:])
	c.size = int64(binary.LittleEndian.Uint64(b[17:]))
	c.hashed = int64(binary.LittleEndian.Uint64(b[25:]))
	if c.size < 0 || c.size > maxBlob || c.hashed < 0 || c.hashed > c.size || (c.hashed%PieceSize != 0 && c.hashed != c.size) {
		return checkpoint{}, fmt.Errorf("%w: checkpoint at %d of %d", ErrDamaged, c.hashed, c.size)
	}
	c.hash = sha256.New()
	// A state of another version of Go's hash is refused here: then the blob is hashed from its start.
	if err := c.hash.(encoding.BinaryUnmarshaler).UnmarshalBinary(body[checkpointFixed:]); err != nil {
		return checkpoint{}, fmt.Errorf("%w: checkpoint's hash state: %w", ErrDamaged, err)
	}
	return c, nil
}
