package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// errCollecting says that another process collects in the same storage.
var errCollecting = errors.New("another registry over the same folder collects garbage now")

// Collection is what one collection took away.
type Collection struct {
	// Manifests and Links of blobs that repositories lost.
	Manifests, Links int
	// Blobs that no repository had any more, and their Bytes.
	Blobs int
	Bytes int64
	// Took is how long it lasted.
	Took time.Duration
}

func (c *Collection) add(o Collection) {
	c.Manifests, c.Links, c.Blobs, c.Bytes = c.Manifests+o.Manifests, c.Links+o.Links, c.Blobs+o.Blobs, c.Bytes+o.Bytes
}

// collector takes away what nothing in the storage needs and nobody has used for a grace. Requests go on meanwhile: see usage. It works repository by repository, and in each
// takes manifests before the links of their blobs, and blobs when no repository has them, so that whatever stops it leaves a storage in which all that is linked is whole.
type collector struct {
	*usage
	dir    string // of the embedded registry
	grace  time.Duration
	keep   func(repo string) (map[string]bool, error)
	forget func(repo string, digests ...string) error
	step   func(op string) error // tests stop it at a step; nil otherwise
}

const (
	// lockName is locked by the one that collects; lastName has the time of the last collection. Both are in the directory of the embedded registry.
	lockName = "collect.lock"
	lastName = "collect.last"
)

// collectedDir holds what was taken out of its place and not judged yet, at the path that it had.
const collectedDir = "collected"

func (c *collector) at(op string) error {
	if c.step == nil {
		return nil
	}
	return c.step(op)
}

// run collects once. What can't be read holds up its own repository only.
func (c *collector) run(ctx context.Context) (sum Collection, err error) {
	began := time.Now()
	unlock, err := lockFile(filepath.Join(c.dir, lockName))
	if err != nil {
		return sum, err
	}
	defer unlock()
	if err := c.putBackAll(); err != nil {
		return sum, err
	}
	cutoff := c.cutoff(c.grace)
	repos, err := c.repositories()
	if err != nil {
		return sum, fmt.Errorf("listing repositories: %w", err)
	}
	var errs []error
	for _, repo := range repos {
		got, err := c.collectRepository(ctx, repo, cutoff)
		sum.add(got)
		if ctx.Err() != nil {
			return sum, ctx.Err()
		}
		if errors.Is(err, errTaking) || errors.Is(err, errKeep) {
			return sum, err
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("repository %s: %w", repo, err))
		}
	}
	got, err := c.collectBlobs(ctx, cutoff)
	sum.add(got)
	sum.Took = time.Since(began)
	if err == nil {
		err = c.putBackAll() // nothing is there: it clears the empty directories
	}
	return sum, errors.Join(append(errs, err)...)
}

// errTaking marks an error after which the collection ends: something may be out of its place.
var errTaking = errors.New("taking away what is not needed")

// errKeep says that it is not known now what must stay.
var errKeep = errors.New("asking what must be kept")

// repositories lists all, those without manifests too.
func (c *collector) repositories() (repos []string, err error) {
	err = filepath.WalkDir(c.repositoriesPath(), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return ignoreGone(err)
		}
		if !d.IsDir() || !strings.HasPrefix(d.Name(), "_") {
			return nil
		}
		repo, err := filepath.Rel(c.repositoriesPath(), filepath.Dir(path))
		if err != nil {
			return err
		}
		if n := len(repos); n == 0 || repos[n-1] != repo {
			repos = append(repos, repo)
		}
		return fs.SkipDir
	})
	return repos, err
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// entry is the directory of a link or a blob in the storage.
type entry struct {
	digest string
	// there: the link or blob is in it. Else it was deleted by a request, or its write was cut off, or goes on.
	there bool
	used  time.Time
}

// entries lists a directory of ALGORITHM/HEX/stamp.
func entries(dir, stamp string) (list []entry, err error) {
	algorithms, err := os.ReadDir(dir)
	if err != nil {
		return nil, ignoreGone(err)
	}
	for _, a := range algorithms {
		sums, err := os.ReadDir(filepath.Join(dir, a.Name()))
		if err != nil {
			return nil, err
		}
		for _, s := range sums {
			e := entry{digest: a.Name() + ":" + s.Name()}
			if !anyDigest.MatchString(e.digest) {
				continue
			}
			if e.used, e.there, err = usedAt(filepath.Join(dir, a.Name(), s.Name()), stamp); err != nil {
				if ignoreGone(err) == nil {
					continue
				}
				return nil, err
			}
			list = append(list, e)
		}
	}
	return list, nil
}

// usedAt is when a stamp was last used; where it is not there, when its directory was changed.
func usedAt(dir, stamp string) (used time.Time, there bool, err error) {
	fi, err := os.Stat(filepath.Join(dir, stamp))
	there = err == nil
	if errors.Is(err, fs.ErrNotExist) {
		fi, err = os.Stat(dir)
	}
	if err != nil {
		return used, false, err
	}
	return fi.ModTime(), there, nil
}

// content of a manifest.
func (c *collector) content(digest string) (named, error) {
	b, err := os.ReadFile(filepath.Join(c.blobPath(digest), dataFile))
	if err != nil {
		return named{}, fmt.Errorf("manifest %s: %w", digest, err)
	}
	n, err := namedBy(b)
	if err != nil {
		return n, fmt.Errorf("manifest %s: %w", digest, err)
	}
	return n, nil
}

// take removes a directory unless it was used after the cutoff. It is moved out of its place, looked at once more, and put back if it was used in that moment.
func (c *collector) take(dir, stamp string, cutoff time.Time) (taken bool, err error) {
	used, _, err := usedAt(dir, stamp)
	if err != nil || !used.Before(cutoff) {
		return false, ignoreGone(err)
	}
	if taken, err = c.takeOut(dir, stamp, cutoff); err != nil {
		err = fmt.Errorf("%w: %w", errTaking, err)
	}
	return taken, err
}

func (c *collector) takeOut(dir, stamp string, cutoff time.Time) (taken bool, err error) {
	rel, err := filepath.Rel(c.root, dir)
	if err != nil {
		return false, err
	}
	away := filepath.Join(c.root, collectedDir, rel)
	if err := os.MkdirAll(filepath.Dir(away), 0o777); err != nil {
		return false, err
	}
	if err := c.at("take"); err != nil {
		return false, err
	}
	if err := os.Rename(dir, away); err != nil {
		return false, ignoreGone(err)
	}
	if err := c.at("judge"); err != nil {
		return false, err
	}
	used, _, err := usedAt(away, stamp)
	if err != nil {
		return false, err
	}
	if !used.Before(cutoff) {
		return false, c.putBack(away)
	}
	if err := c.at("remove"); err != nil {
		return false, err
	}
	return true, os.RemoveAll(away)
}

// putBackAll puts back what a collection that was broken off had not judged. Some of it goes again with the next collection.
func (c *collector) putBackAll() error {
	away := filepath.Join(c.root, collectedDir)
	if _, err := os.Stat(away); err != nil {
		return ignoreGone(err)
	}
	return c.putBack(away)
}

// putBack moves files to where they were. One that was made anew meanwhile stays: it is the newer one.
func (c *collector) putBack(away string) error {
	err := filepath.WalkDir(away, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(filepath.Join(c.root, collectedDir), path)
		if err != nil {
			return err
		}
		to := filepath.Join(c.root, rel)
		if err := os.MkdirAll(filepath.Dir(to), 0o777); err != nil {
			return err
		}
		err = os.Link(path, to)
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		if err != nil { // a file system without hard links
			err = os.Rename(path, to)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("putting back what was not collected: %w", err)
	}
	return os.RemoveAll(away)
}

// recover does so at the start, unless another registry over the same folder collects.
func (c *collector) recover() error {
	unlock, err := lockFile(filepath.Join(c.dir, lockName))
	if errors.Is(err, errCollecting) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	return c.putBackAll()
}

// Collect takes away now what nothing needs and nobody has used for the grace. Requests may go on; a push whose content was uploaded longer than the grace ago, and not asked
// for since, is refused then and must be done again. What can't be read is an error, and holds up its repository only.
func (e *Embedded) Collect(ctx context.Context) (Collection, error) { return e.garbage.run(ctx) }

// collectForever collects at an interval that counts from the last collection of this folder, whichever process did it.
func (e *Embedded) collectForever(ctx context.Context) {
	if e.cfg.Collect <= 0 {
		return
	}
	for {
		last, err := e.garbage.lastRun()
		if err != nil {
			e.log.Warn("garbage is not collected", "error", err, "retry_in", e.cfg.Collect)
			last = time.Now()
		}
		if wait := e.cfg.Collect - time.Since(last); wait > 0 {
			if sleep(ctx, min(wait, e.cfg.Collect)) != nil {
				return
			}
			continue
		}
		got, err := e.Collect(ctx)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errCollecting) || errors.Is(err, errKeep) {
			e.log.Debug("garbage is collected later", "error", err)
			if sleep(ctx, e.cfg.Collect/10+time.Millisecond) != nil {
				return
			}
			continue
		}
		if err := e.garbage.noteRun(); err != nil {
			e.log.Warn("the time of the collection was not noted", "error", err)
			if sleep(ctx, e.cfg.Collect) != nil {
				return
			}
		}
		e.report(got, err)
	}
}

func (e *Embedded) report(got Collection, err error) {
	if err != nil {
		e.log.Warn("garbage was not collected everywhere", "error", err)
	}
	level := slog.LevelInfo
	if got.Blobs+got.Links+got.Manifests == 0 {
		level = slog.LevelDebug
	}
	e.log.Log(context.Background(), level, "garbage was collected", "blobs", got.Blobs, "bytes", got.Bytes, "manifests", got.Manifests, "took", got.Took)
	if e.cfg.Collected != nil {
		e.cfg.Collected(got, err)
	}
}

// lastRun is when this folder was last collected; for one that never was, when that was first asked.
func (c *collector) lastRun() (time.Time, error) {
	fi, err := os.Stat(filepath.Join(c.dir, lastName))
	if errors.Is(err, fs.ErrNotExist) {
		return time.Now(), c.noteRun()
	}
	if err != nil {
		return time.Time{}, err
	}
	return fi.ModTime(), nil
}

func (c *collector) noteRun() error {
	path, now := filepath.Join(c.dir, lastName), time.Now()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Chtimes(path, now, now))
}
