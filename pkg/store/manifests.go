package store

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	bolt "go.etcd.io/bbolt"
)

const (
	maxMediaType = 255
	// maxTouched bounds how many uses are remembered before they are written down.
	maxTouched = 256
)

// Manifest is a manifest as the bytes it was pushed as.
type Manifest struct {
	MediaType, Digest string
	Content           []byte
}

// PutManifests keeps manifests, all or none, after verifying each digest; the oldest-used of the others make room. Each may
// have MaxManifestBytes, all together Config.ManifestBytes (ErrTooLarge). They are a cache: one that was put may be gone later.
func (s *Store) PutManifests(ms ...Manifest) error {
	keys := make([]key, len(ms))
	var total int64
	for i, m := range ms {
		k, err := parseDigest(m.Digest)
		if err != nil {
			return err
		}
		switch {
		case len(m.Content) > MaxManifestBytes:
			return fmt.Errorf("%w: manifest %s has %d bytes, at most %d are kept", ErrTooLarge, k, len(m.Content), MaxManifestBytes)
		case len(m.MediaType) > maxMediaType:
			return fmt.Errorf("%w: media type of manifest %s has %d bytes, at most %d", ErrInvalid, k, len(m.MediaType), maxMediaType)
		case sha256.Sum256(m.Content) != k:
			return fmt.Errorf("%w: manifest %s", ErrDigestMismatch, k)
		}
		keys[i] = k
		total += manifestCost(m)
	}
	if total > s.cache.manifestLimit {
		return fmt.Errorf("%w: %d bytes of manifests at once, the whole cache has %d", ErrTooLarge, total, s.cache.manifestLimit)
	}
	if len(ms) == 0 {
		return nil
	}
	err := s.cache.update("cache.manifests.put", func(tx *bolt.Tx) error {
		t := manifestTx{tx}
		for i, m := range ms {
			if err := t.put(keys[i], m); err != nil {
				return err
			}
		}
		return t.evict(s.cache.manifestLimit)
	})
	if err != nil {
		return fmt.Errorf("keeping manifests: %w", err)
	}
	return nil
}

// Manifest returns one, verified against its digest; ErrNotFound.
func (s *Store) Manifest(digest string) (Manifest, error) {
	k, err := parseDigest(digest)
	if err != nil {
		return Manifest{}, err
	}
	m, found := Manifest{Digest: digest}, false
	err = s.cache.view("cache.manifests.get", func(tx *bolt.Tx) error {
		v := tx.Bucket(bucketManifests).Get(k[:])
		if found = len(v) > 0 && len(v) > int(v[0]); found {
			m.MediaType, m.Content = string(v[1:1+int(v[0])]), append([]byte{}, v[1+int(v[0]):]...)
		}
		return nil
	})
	if err != nil {
		return Manifest{}, fmt.Errorf("reading manifest %s: %w", digest, err)
	}
	if found && sha256.Sum256(m.Content) != k {
		found = false
		if err := s.cache.update("cache.manifests.delete", func(tx *bolt.Tx) error { return manifestTx{tx}.remove(k) }); err != nil {
			return Manifest{}, fmt.Errorf("dropping damaged manifest %s: %w", digest, err)
		}
	}
	if !found {
		return Manifest{}, fmt.Errorf("%w: manifest %s", ErrNotFound, digest)
	}
	s.cache.touch(k)
	return m, nil
}

// HasManifest says whether it is there.
func (s *Store) HasManifest(digest string) (has bool, err error) {
	k, err := parseDigest(digest)
	if err != nil {
		return false, err
	}
	err = s.cache.view("cache.manifests.has", func(tx *bolt.Tx) error {
		has = tx.Bucket(bucketManifests).Get(k[:]) != nil
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("looking for manifest %s: %w", digest, err)
	}
	return has, nil
}

// touch remembers that a manifest was used, and writes uses down in bulk.
func (c *cache) touch(k key) {
	c.touchMu.Lock()
	c.touched[k] = struct{}{}
	full := len(c.touched) >= maxTouched
	c.touchMu.Unlock()
	if full {
		if err := c.flushTouched(); err != nil && !errors.Is(err, ErrClosed) {
			c.log.Warn("noting the use of manifests", "error", err)
		}
	}
}

func (c *cache) flushTouched() error {
	c.touchMu.Lock()
	ks := c.touched
	c.touched = make(map[key]struct{})
	c.touchMu.Unlock()
	if len(ks) == 0 {
		return nil
	}
	return c.update("cache.manifests.touch", func(tx *bolt.Tx) error {
		for k := range ks {
			if err := (manifestTx{tx}).use(k); err != nil {
				return err
			}
		}
		return nil
	})
}

// manifestCost is what a manifest counts against the bound: its content and about what the database adds.
func manifestCost(m Manifest) int64 { return int64(len(m.Content)+len(m.MediaType)) + 128 }

// manifestTx keeps the four manifest buckets in step within one transaction.
type manifestTx struct{ tx *bolt.Tx }

func (t manifestTx) put(k key, m Manifest) error {
	if t.tx.Bucket(bucketManifests).Get(k[:]) != nil {
		if err := t.remove(k); err != nil { // the media type may be another
			return err
		}
	}
	v := make([]byte, 0, 1+len(m.MediaType)+len(m.Content))
	v = append(append(append(v, byte(len(m.MediaType))), m.MediaType...), m.Content...)
	if err := t.tx.Bucket(bucketManifests).Put(k[:], v); err != nil {
		return err
	}
	cost := manifestCost(m)
	if err := t.setUse(k, cost); err != nil {
		return err
	}
	return t.addTotal(cost)
}

// setUse gives k the next number of use.
func (t manifestTx) setUse(k key, cost int64) error {
	lru := t.tx.Bucket(bucketManifestLRU)
	seq, err := lru.NextSequence()
	if err != nil {
		return err
	}
	u := binary.BigEndian.AppendUint64(nil, seq)
	if err := lru.Put(u, k[:]); err != nil {
		return err
	}
	return t.tx.Bucket(bucketManifestUse).Put(k[:], binary.BigEndian.AppendUint64(u[:8:8], uint64(cost)))
}

// unuse removes k from the order of use and says what it cost; found is false when it is not there.
func (t manifestTx) unuse(k key) (cost int64, found bool, err error) {
	use := t.tx.Bucket(bucketManifestUse)
	v := use.Get(k[:])
	if len(v) != 16 {
		return 0, false, nil
	}
	seq := append([]byte{}, v[:8]...)
	cost = int64(binary.BigEndian.Uint64(v[8:]))
	if err := t.tx.Bucket(bucketManifestLRU).Delete(seq); err != nil {
		return 0, false, err
	}
	return cost, true, use.Delete(k[:])
}

func (t manifestTx) use(k key) error {
	cost, found, err := t.unuse(k)
	if err != nil || !found {
		return err
	}
	return t.setUse(k, cost)
}

func (t manifestTx) remove(k key) error {
	cost, _, err := t.unuse(k)
	if err != nil {
		return err
	}
	if err := t.tx.Bucket(bucketManifests).Delete(k[:]); err != nil {
		return err
	}
	return t.addTotal(-cost)
}

func (t manifestTx) total() int64 {
	v := t.tx.Bucket(bucketState).Get(keyManifestBytes)
	if len(v) != 8 {
		return 0
	}
	return int64(binary.BigEndian.Uint64(v))
}

func (t manifestTx) addTotal(n int64) error {
	return t.tx.Bucket(bucketState).Put(keyManifestBytes, binary.BigEndian.AppendUint64(nil, uint64(t.total()+n)))
}

// evict removes the longest unused until the rest fits.
func (t manifestTx) evict(limit int64) error {
	for t.total() > limit {
		_, v := t.tx.Bucket(bucketManifestLRU).Cursor().First()
		if len(v) != len(key{}) {
			return nil
		}
		if err := t.remove(key(append([]byte{}, v...))); err != nil {
			return err
		}
	}
	return nil
}
