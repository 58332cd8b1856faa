package store

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
)

// maxName bounds refs, keys and repositories: they become database keys.
const maxName = 1024

func checkName(what, s string) error {
	if s == "" || len(s) > maxName {
		return fmt.Errorf("%w: a %s of %d bytes: it must have 1 to %d", ErrInvalid, what, len(s), maxName)
	}
	return nil
}

// RefState is what this site last delivered or published for a ref. Base and Intent are digests, or empty for absent; what
// they mean is the caller's business. An intent is put before a tag is. Epoch is that of the catalog in which the revisions count; empty in what
// versions wrote that did not know it.
type RefState struct {
	Base           string    `json:"base,omitempty"`
	BaseRevision   uint64    `json:"baseRevision,omitempty"`
	Intent         string    `json:"intent,omitempty"`
	IntentRevision uint64    `json:"intentRevision,omitempty"`
	Epoch          string    `json:"epoch,omitempty"`
	At             time.Time `json:"at"`
	// Receipt says how the base came here; nil: that is not known.
	Receipt *Receipt `json:"receipt,omitempty"`
}

// Receipt says how content came to this site.
type Receipt struct {
	// Digest that was delivered.
	Digest string `json:"digest"`
	// At is when it was shown.
	At time.Time `json:"at"`
	// Bytes that came from other sites for it.
	Bytes int64 `json:"bytes,omitempty"`
	// Sources that sent them, those that sent most first.
	Sources []string `json:"sources,omitempty"`
}

// RefState returns what was last put; false when there is nothing.
func (s *Store) RefState(ref string) (st RefState, ok bool, err error) {
	if err := checkName("ref", ref); err != nil {
		return RefState{}, false, err
	}
	err = s.view("meta.ref.get", func(tx *bolt.Tx) error {
		v := tx.Bucket(bucketRefs).Get([]byte(ref))
		if v == nil {
			return nil
		}
		ok = true
		return decodeRefState(ref, v, &st)
	})
	if err != nil {
		return RefState{}, false, fmt.Errorf("reading ref state: %w", err)
	}
	return st, ok, nil
}

func decodeRefState(ref string, v []byte, st *RefState) error {
	if err := json.Unmarshal(v, st); err != nil {
		return fmt.Errorf("%w: state of ref %q: %w", ErrDamaged, ref, err)
	}
	return nil
}

// PutRefState is durable when it returns.
func (s *Store) PutRefState(ref string, st RefState) error {
	if err := checkName("ref", ref); err != nil {
		return err
	}
	v, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("%w: state of ref %q: %w", ErrInvalid, ref, err)
	}
	err = s.update("meta.ref.put", func(tx *bolt.Tx) error { return tx.Bucket(bucketRefs).Put([]byte(ref), v) })
	if err != nil {
		return fmt.Errorf("writing ref state: %w", err)
	}
	return nil
}

// DeleteRefState forgets a ref; one that is not there is forgotten already.
func (s *Store) DeleteRefState(ref string) error {
	if err := checkName("ref", ref); err != nil {
		return err
	}
	err := s.update("meta.ref.delete", func(tx *bolt.Tx) error { return tx.Bucket(bucketRefs).Delete([]byte(ref)) })
	if err != nil {
		return fmt.Errorf("deleting ref state: %w", err)
	}
	return nil
}

// RefStates calls yield for each ref in order until it returns false. It reads in parts, so yield may use the store, and
// sees or misses what changes meanwhile.
func (s *Store) RefStates(yield func(ref string, st RefState) bool) error {
	type item struct {
		ref string
		st  RefState
	}
	const part = 256
	items := make([]item, 0, part)
	for next, more := []byte{}, true; more; {
		items = items[:0]
		err := s.view("meta.ref.list", func(tx *bolt.Tx) error {
			c := tx.Bucket(bucketRefs).Cursor()
			k, v := c.Seek(next)
			for ; k != nil && len(items) < part; k, v = c.Next() {
				it := item{ref: string(k)}
				if err := decodeRefState(it.ref, v, &it.st); err != nil {
					return err
				}
				items = append(items, it)
			}
			next, more = slices.Clone(k), k != nil
			return nil
		})
		if err != nil {
			return fmt.Errorf("listing ref states: %w", err)
		}
		for _, it := range items {
			if !yield(it.ref, it.st) {
				return nil
			}
		}
	}
	return nil
}

// Value returns a small value that the agent keeps under a key; ErrNotFound.
func (s *Store) Value(key string) (v []byte, err error) {
	if err := checkName("key", key); err != nil {
		return nil, err
	}
	found := false
	err = s.view("meta.value.get", func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketValues).Get([]byte(key))
		v, found = bytes.Clone(b), b != nil
		return nil
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading value: %w", err)
	case !found:
		return nil, fmt.Errorf("%w: value %q", ErrNotFound, key)
	}
	return v, nil
}

// PutValue is durable when it returns; nil removes the key. At most MaxValueBytes.
func (s *Store) PutValue(key string, v []byte) error {
	if err := checkName("key", key); err != nil {
		return err
	}
	if len(v) > MaxValueBytes {
		return fmt.Errorf("%w: value %q has %d bytes, at most %d are kept", ErrTooLarge, key, len(v), MaxValueBytes)
	}
	err := s.update("meta.value.put", func(tx *bolt.Tx) error {
		if v == nil {
			return tx.Bucket(bucketValues).Delete([]byte(key))
		}
		return tx.Bucket(bucketValues).Put([]byte(key), v)
	})
	if err != nil {
		return fmt.Errorf("writing value: %w", err)
	}
	return nil
}
