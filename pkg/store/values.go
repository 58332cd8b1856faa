package store

import (
	"bytes"
	"fmt"

	bolt "go.etcd.io/bbolt"
)

// Values returns all values whose keys begin with a prefix, by key without it. They are meant to be few: all are in memory at once.
func (s *Store) Values(prefix string) (map[string][]byte, error) {
	if err := checkName("prefix", prefix); err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	err := s.view("meta.value.list", func(tx *bolt.Tx) error {
		c := tx.Bucket(bucketValues).Cursor()
		for k, v := c.Seek([]byte(prefix)); bytes.HasPrefix(k, []byte(prefix)); k, v = c.Next() {
			out[string(k[len(prefix):])] = bytes.Clone(v)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing values: %w", err)
	}
	return out, nil
}
