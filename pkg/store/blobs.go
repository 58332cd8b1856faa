package store

import (
	"bytes"
	"fmt"

	bolt "go.etcd.io/bbolt"
)

func blobKey(k key, repo string) []byte { return append(k[:len(k):len(k)], repo...) }

// AddBlobs notes that the own registry holds these blobs in repo. That is a hint: the registry has the last word, and the
// note may be lost.
func (s *Store) AddBlobs(repo string, digests ...string) error {
	if err := checkName("repository", repo); err != nil {
		return err
	}
	keys := make([][]byte, len(digests))
	for i, d := range digests {
		k, err := parseDigest(d)
		if err != nil {
			return err
		}
		keys[i] = blobKey(k, repo)
	}
	if len(keys) == 0 {
		return nil
	}
	err := s.cache.update("cache.blobs.put", func(tx *bolt.Tx) error {
		for _, k := range keys {
			if err := tx.Bucket(bucketBlobs).Put(k, []byte{}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("noting blobs of %s: %w", repo, err)
	}
	return nil
}

// RemoveBlob forgets that repo holds these blobs.
func (s *Store) RemoveBlob(repo string, digests ...string) error {
	if err := checkName("repository", repo); err != nil {
		return err
	}
	keys := make([][]byte, len(digests))
	for i, d := range digests {
		k, err := parseDigest(d)
		if err != nil {
			return err
		}
		keys[i] = blobKey(k, repo)
	}
	err := s.cache.update("cache.blobs.delete", func(tx *bolt.Tx) error {
		for _, k := range keys {
			if err := tx.Bucket(bucketBlobs).Delete(k); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("forgetting blobs of %s: %w", repo, err)
	}
	return nil
}

// ForgetBlobs forgets where any blob is: the registry was wiped, restored or replaced.
func (s *Store) ForgetBlobs() error {
	err := s.cache.update("cache.blobs.forget", func(tx *bolt.Tx) error {
		if err := tx.DeleteBucket(bucketBlobs); err != nil {
			return err
		}
		_, err := tx.CreateBucket(bucketBlobs)
		return err
	})
	if err != nil {
		return fmt.Errorf("forgetting all blobs: %w", err)
	}
	return nil
}

// BlobRepositories lists, in order, where the own registry is known to hold a blob.
func (s *Store) BlobRepositories(digest string) (repos []string, err error) {
	k, err := parseDigest(digest)
	if err != nil {
		return nil, err
	}
	err = s.cache.view("cache.blobs.list", func(tx *bolt.Tx) error {
		repos = nil
		c := tx.Bucket(bucketBlobs).Cursor()
		for b, _ := c.Seek(k[:]); bytes.HasPrefix(b, k[:]); b, _ = c.Next() {
			repos = append(repos, string(b[len(k):]))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking up %s: %w", digest, err)
	}
	return repos, nil
}

// HasBlob says whether the own registry is known to hold a blob in repo.
func (s *Store) HasBlob(repo, digest string) (has bool, err error) {
	k, err := parseDigest(digest)
	if err == nil {
		err = checkName("repository", repo)
	}
	if err != nil {
		return false, err
	}
	err = s.cache.view("cache.blobs.get", func(tx *bolt.Tx) error {
		has = tx.Bucket(bucketBlobs).Get(blobKey(k, repo)) != nil
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("looking up %s in %s: %w", digest, repo, err)
	}
	return has, nil
}
