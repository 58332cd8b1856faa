package store

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

var (
	bucketBlobs       = []byte("blobs")        // digest, repository → nothing
	bucketManifests   = []byte("manifests")    // digest → media type, content
	bucketManifestUse = []byte("manifest-use") // digest → number of last use, size
	bucketManifestLRU = []byte("manifest-lru") // number of last use → digest
	bucketCheckpoints = []byte("checkpoints")  // digest → checkpoint
	keyManifestBytes  = []byte("manifest-bytes")
)

// cache is cache.db. It isn't synced: a killed process loses nothing, and after the machine went down while it was open
// (cache.open names the boot) nothing in it is believed. A transaction that finds damage throws the file away and starts
// again on an empty one.
//
// Checkpoints speak of files that nobody synced, so they are worth nothing in another boot, also after a clean stop. The
// transaction that names the boot is the one that removes those of the boot before, and comes before all others.
type cache struct {
	path          string
	marker        string
	boot          string
	disk          disk
	log           *slog.Logger
	manifestLimit int64

	// writing is held around updates, so that none waits within bbolt: a transaction that met damage may keep its locks for good.
	writing sync.Mutex
	mu      sync.RWMutex // for writing: db is being replaced
	db      *bolt.DB     // nil when it could not be replaced
	closed  bool

	touchMu sync.Mutex
	touched map[key]struct{} // manifests read since their use was last written down
}

func openCache(dir, boot string, manifestLimit int64, d disk, log *slog.Logger) (*cache, error) {
	c := &cache{
		path: filepath.Join(dir, "cache.db"), marker: filepath.Join(dir, "cache.open"), boot: boot, disk: d, log: log,
		manifestLimit: manifestLimit, touched: make(map[key]struct{}),
	}
	if was, err := os.ReadFile(c.marker); err == nil && string(was) != boot {
		log.Warn("the machine went down while the cache was open; starting with an empty one")
		if err := d.remove("cache.remove", c.path); err != nil {
			return nil, fmt.Errorf("removing the cache: %w", err)
		}
	}
	if err := c.mark(dir); err != nil {
		return nil, fmt.Errorf("opening the cache: %w", err)
	}
	err := c.openDB()
	if errors.Is(err, ErrDamaged) {
		log.Warn("the cache is damaged; starting with an empty one", "error", err)
		if err = d.remove("cache.remove", c.path); err == nil {
			err = c.openDB()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("opening the cache: %w", err)
	}
	return c, nil
}

// mark notes, durably and before anything is written, that the cache is open.
func (c *cache) mark(dir string) error {
	f, err := c.disk.open("cache.marker", c.marker, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	defer f.close()
	if err := f.writeAt([]byte(c.boot), 0); err != nil {
		return err
	}
	if err := f.sync(); err != nil {
		return err
	}
	return c.disk.syncDir("cache.dir.sync", dir)
}

// bootID names the time since the machine was started; empty where that can't be known.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// guard turns what bbolt makes of a damaged file, which are panics and memory faults, into ErrDamaged.
func guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, p)
		}
	}()
	return fn()
}

func (c *cache) openDB() error {
	if err := c.disk.check("cache.open"); err != nil {
		return err
	}
	var db *bolt.DB
	err := guard(func() (err error) {
		db, err = bolt.Open(c.path, 0o600, &bolt.Options{Timeout: lockTimeout, NoSync: true, NoGrowSync: true, FreelistType: bolt.FreelistMapType})
		if err != nil {
			return err
		}
		return db.Update(c.prepare)
	})
	if err == nil {
		c.db = db
		return nil
	}
	if db != nil && !errors.Is(err, ErrDamaged) {
		_ = db.Close()
	}
	var perr *os.PathError
	switch {
	case errors.Is(err, ErrDamaged), errors.Is(err, berrors.ErrTimeout), errors.As(err, &perr):
		return diskErr(err)
	}
	if err := diskErr(err); errors.Is(err, ErrNoSpace) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

func (c *cache) prepare(tx *bolt.Tx) error {
	for _, b := range [][]byte{bucketState, bucketBlobs, bucketManifests, bucketManifestUse, bucketManifestLRU, bucketCheckpoints} {
		if _, err := tx.CreateBucketIfNotExists(b); err != nil {
			return err
		}
	}
	st := tx.Bucket(bucketState)
	if string(st.Get(keyBoot)) == c.boot {
		return nil
	}
	if err := tx.DeleteBucket(bucketCheckpoints); err != nil {
		return err
	}
	if _, err := tx.CreateBucket(bucketCheckpoints); err != nil {
		return err
	}
	return st.Put(keyBoot, []byte(c.boot))
}

func (c *cache) view(op string, fn func(*bolt.Tx) error) error {
	return c.do(op, func(db *bolt.DB) error { return db.View(fn) })
}

// update runs fn in the caller's goroutine, where a panic can be caught; a commit without a sync is too short to be worth sharing.
func (c *cache) update(op string, fn func(*bolt.Tx) error) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	return c.do(op, func(db *bolt.DB) error { return db.Update(fn) })
}

func (c *cache) do(op string, fn func(*bolt.DB) error) error {
	if err := c.disk.check(op); err != nil {
		return err
	}
	db, err := c.try(fn)
	if errors.Is(err, ErrDamaged) {
		if err := c.replace(db, err); err != nil {
			return err
		}
		_, err = c.try(fn)
	}
	return dbErr(err)
}

func (c *cache) try(fn func(*bolt.DB) error) (*bolt.DB, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		return nil, ErrClosed
	}
	if c.db == nil {
		return nil, fmt.Errorf("%w: %s could not be made anew", ErrDamaged, c.path)
	}
	return c.db, guard(func() error { return fn(c.db) })
}

// replace begins a new file, unless another caller already has.
func (c *cache) replace(bad *bolt.DB, cause error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	if c.db != bad {
		return nil
	}
	c.log.Warn("the cache is damaged; going on with an empty one", "error", cause)
	// It isn't closed, because Close waits for every lock; cut to nothing, it takes no room on disk while it is mapped still.
	c.db = nil
	_ = os.Truncate(c.path, 0)
	if err := c.disk.remove("cache.remove", c.path); err != nil {
		return fmt.Errorf("removing the cache: %w", err)
	}
	if err := c.openDB(); err != nil {
		return fmt.Errorf("making the cache anew: %w", err)
	}
	return nil
}

func (c *cache) close() error {
	_ = c.flushTouched()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	if c.db == nil {
		return nil
	}
	// Only what was synced is believed after the marker is gone; when that fails it stays, and the worst is an empty cache.
	serr := guard(c.db.Sync)
	if err := guard(c.db.Close); err != nil {
		return fmt.Errorf("closing the cache: %w", err)
	}
	if serr != nil {
		return fmt.Errorf("syncing the cache: %w", serr)
	}
	return c.disk.remove("cache.marker.remove", c.marker)
}
