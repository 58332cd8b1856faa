package store

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

const (
	// DefaultSpoolBytes bounds the spool where Config doesn't.
	DefaultSpoolBytes = 20 << 30
	// DefaultManifestBytes bounds the cache of manifests where Config doesn't.
	DefaultManifestBytes = 512 << 20
	// DefaultCheckpointBytes is how much is hashed between two checkpoints where Config doesn't say.
	DefaultCheckpointBytes = 64 << 20
	// MaxManifestBytes bounds one manifest.
	MaxManifestBytes = 4 << 20
	// MaxValueBytes bounds one value of PutValue.
	MaxValueBytes = 1 << 20

	lockTimeout = time.Second
	// batchDelay is how long a small write waits for others to share its sync.
	batchDelay = time.Millisecond
)

// Config says where and how large. Only Dir is required.
type Config struct {
	// Dir holds everything; it is made when missing. One process at a time may have it open.
	Dir string
	// SpoolBytes bounds the blobs on disk; 0: DefaultSpoolBytes.
	SpoolBytes int64
	// ManifestBytes bounds the cache of manifests; 0: DefaultManifestBytes.
	ManifestBytes int64
	// CheckpointBytes is how much of a blob is hashed between two checkpoints; 0: DefaultCheckpointBytes.
	CheckpointBytes int64
	// Logger; nil discards.
	Logger *slog.Logger
	// Fault, for tests, is called before each disk operation with its label; an error is returned in the operation's
	// stead. A write that fails so is half done first.
	Fault func(op string) error

	// boot, for tests, stands for bootID.
	boot func() string
}

func (cfg *Config) setDefaults() error {
	if cfg.Dir == "" {
		return fmt.Errorf("%w: Dir is empty: name the directory to keep the store in", ErrInvalid)
	}
	for _, b := range []struct {
		name string
		v    *int64
		def  int64
	}{
		{"SpoolBytes", &cfg.SpoolBytes, DefaultSpoolBytes},
		{"ManifestBytes", &cfg.ManifestBytes, DefaultManifestBytes},
		{"CheckpointBytes", &cfg.CheckpointBytes, DefaultCheckpointBytes},
	} {
		if *b.v < 0 {
			return fmt.Errorf("%w: %s is %d: it can't be negative", ErrInvalid, b.name, *b.v)
		}
		if *b.v == 0 {
			*b.v = b.def
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.boot == nil {
		cfg.boot = bootID
	}
	return nil
}

// Store is one open directory.
type Store struct {
	dir         string
	disk        disk
	meta        *bolt.DB
	cache       *cache
	spool       *Spool
	incarnation string
	closeOnce   sync.Once
	closeErr    error
}

// Open opens the directory, makes it when missing, and mends what a crash left. A directory that is open elsewhere gives
// ErrLocked within about a second.
func Open(cfg Config) (_ *Store, err error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the store's directory: %w", err)
	}
	boot := cfg.boot()
	if boot == "" {
		boot = rand.Text() // nothing is known of the time before, so each Open is a boot of its own
	}
	s := &Store{dir: cfg.Dir, disk: disk{fault: cfg.Fault}}
	defer func() {
		if err != nil {
			s.closeDBs()
		}
	}()
	// The lock on meta.db is the lock on the directory: nothing else is touched before it is held.
	lastBoot, err := s.openMeta()
	if err != nil {
		return nil, err
	}
	if s.cache, err = openCache(cfg.Dir, boot, cfg.ManifestBytes, s.disk, cfg.Logger); err != nil {
		return nil, err
	}
	s.spool = &Spool{
		dir: filepath.Join(cfg.Dir, "spool"), disk: s.disk, cache: s.cache, log: cfg.Logger,
		limit: cfg.SpoolBytes, checkpointEvery: cfg.CheckpointBytes,
	}
	if err := s.spool.load(lastBoot != boot); err != nil {
		return nil, fmt.Errorf("opening the spool: %w", err)
	}
	// Only now, when what an earlier boot committed is out of the way, may this one's commits be told from it.
	if lastBoot != boot {
		put := func(tx *bolt.Tx) error { return tx.Bucket(bucketState).Put(keyBoot, []byte(boot)) }
		if err := s.update("spool.boot.put", put); err != nil {
			return nil, fmt.Errorf("opening the spool: %w", err)
		}
	}
	return s, nil
}

var (
	bucketState    = []byte("state")
	bucketRefs     = []byte("refs")
	bucketValues   = []byte("values")
	keyIncarnation = []byte("incarnation")
	keyFormat      = []byte("format")
	keyBoot        = []byte("boot") // meta.db: in which the spool was last opened; cache.db: in which the checkpoints were put
)

const formatVersion = "1"

// openMeta says in which boot of the machine the spool was last opened.
func (s *Store) openMeta() (lastBoot string, err error) {
	path := filepath.Join(s.dir, "meta.db")
	// What bbolt makes of a damaged file may be a panic; it must be an error that names the file.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %s: %v; restore it, or move the store's directory away to begin anew", ErrDamaged, path, p)
		}
	}()
	if err := s.disk.check("meta.open"); err != nil {
		return "", fmt.Errorf("opening %s: %w", path, err)
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: lockTimeout, FreelistType: bolt.FreelistMapType})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return "", fmt.Errorf("%w: %s: stop the other agent, or give this one a directory of its own", ErrLocked, s.dir)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return "", fmt.Errorf("%w: %s: %w; restore it, or move the store's directory away to begin anew", ErrDamaged, path, err)
	case err != nil:
		return "", diskErr(fmt.Errorf("opening %s: %w", path, err))
	}
	db.MaxBatchDelay = batchDelay
	s.meta = db
	err = db.Update(func(tx *bolt.Tx) error {
		for _, b := range [][]byte{bucketState, bucketRefs, bucketValues} {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		// Checkpoints were here before they were in cache.db.
		if err := tx.DeleteBucket(bucketCheckpoints); err != nil && !errors.Is(err, berrors.ErrBucketNotFound) {
			return err
		}
		st := tx.Bucket(bucketState)
		if v := st.Get(keyFormat); v != nil && string(v) != formatVersion {
			return fmt.Errorf("%w: %s has format %q, this program knows %q: use the program that wrote it", ErrDamaged, path, v, formatVersion)
		}
		lastBoot = string(st.Get(keyBoot))
		if v := st.Get(keyIncarnation); v != nil {
			s.incarnation = string(v)
			return nil
		}
		var b [16]byte
		rand.Read(b[:]) // never fails: crypto/rand ends the program instead
		s.incarnation = hex.EncodeToString(b[:])
		if err := st.Put(keyFormat, []byte(formatVersion)); err != nil {
			return err
		}
		return st.Put(keyIncarnation, []byte(s.incarnation))
	})
	if err != nil {
		return "", diskErr(fmt.Errorf("preparing %s: %w", path, err))
	}
	return lastBoot, s.disk.syncDir("meta.dir.sync", s.dir)
}

// Close stops everything: open ingests keep their progress, and they and all readers fail with ErrClosed from now on.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		s.spool.close()
		s.closeErr = s.closeDBs()
	})
	return s.closeErr
}

func (s *Store) closeDBs() error {
	var errs []error
	if s.cache != nil {
		errs = append(errs, s.cache.close())
	}
	if s.meta != nil {
		errs = append(errs, s.meta.Close())
	}
	return errors.Join(errs...)
}

// Incarnation is a random name (32 hex digits) made when the directory was first opened. A new directory is a new incarnation.
func (s *Store) Incarnation() string { return s.incarnation }

// Spool holds the blobs.
func (s *Store) Spool() *Spool { return s.spool }

// update runs fn in a synced transaction that it may share with others; fn may run more than once.
func (s *Store) update(op string, fn func(*bolt.Tx) error) error {
	if err := s.disk.check(op); err != nil {
		return err
	}
	return dbErr(s.meta.Batch(fn))
}

func (s *Store) view(op string, fn func(*bolt.Tx) error) error {
	if err := s.disk.check(op); err != nil {
		return err
	}
	return dbErr(s.meta.View(fn))
}

func dbErr(err error) error {
	if errors.Is(err, berrors.ErrDatabaseNotOpen) {
		return ErrClosed
	}
	return diskErr(err)
}
