package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// tagged is what a tag shows.
type tagged struct {
	name, digest string
	moved        time.Time
}

// repositoryView is a repository as it was when its collection began.
type repositoryView struct {
	c         *collector
	repo      string
	revisions map[string]time.Time
	leftovers []string // places of manifests that were deleted
	tags      []tagged
	named     map[string]named
	kept      map[string]bool // manifests
}

func (c *collector) collectRepository(ctx context.Context, repo string, cutoff time.Time) (sum Collection, err error) {
	v := &repositoryView{c: c, repo: repo, named: map[string]named{}, kept: map[string]bool{}}
	if err := v.read(cutoff); err != nil {
		return sum, err
	}
	needed := map[string]bool{}
	if c.keep != nil {
		if needed, err = c.keep(repo); err != nil {
			return sum, fmt.Errorf("%w: %w", errKeep, err)
		}
	}
	weak, err := v.mark(needed, cutoff)
	if err != nil {
		return sum, err
	}
	if err := v.dropTags(weak, cutoff); err != nil {
		return sum, err
	}
	sum.Manifests, err = v.takeManifests(ctx, cutoff)
	if err != nil {
		return sum, err
	}
	sum.Links, err = v.takeLayers(ctx, needed, cutoff)
	if err != nil {
		return sum, err
	}
	return sum, c.clearEmpty(repo, cutoff)
}

func (v *repositoryView) read(cutoff time.Time) error {
	list, err := entries(v.c.revisionsPath(v.repo), linkFile)
	if err != nil {
		return err
	}
	v.revisions = make(map[string]time.Time, len(list))
	for _, e := range list {
		if e.there {
			v.revisions[e.digest] = e.used
		} else if e.used.Before(cutoff) && ValidDigest(e.digest) {
			v.leftovers = append(v.leftovers, e.digest)
		}
	}
	names, err := os.ReadDir(v.c.tagsPath(v.repo))
	if err != nil {
		return ignoreGone(err)
	}
	for _, d := range names {
		path := filepath.Join(v.c.tagPath(v.repo, d.Name()), currentLink)
		digest, err := readLink(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted, or a put that was cut off
		}
		if err != nil {
			return err
		}
		fi, err := os.Stat(path)
		if err != nil {
			if ignoreGone(err) == nil {
				continue
			}
			return err
		}
		v.tags = append(v.tags, tagged{d.Name(), digest, fi.ModTime()})
	}
	return nil
}

// mark finds the manifests that stay: what tags show, what is needed besides, what was used lately, all under these, and what refers to them. A fallback tag by itself keeps nothing:
// it stays with the manifest whose referrers it lists. Those that don't are returned.
func (v *repositoryView) mark(needed map[string]bool, cutoff time.Time) (weak []tagged, err error) {
	for _, t := range v.tags {
		if _, fallback := IsFallbackTag(t.name); fallback && t.moved.Before(cutoff) {
			weak = append(weak, t)
		} else if err := v.keep(t.digest); err != nil {
			return nil, fmt.Errorf("tag %s: %w", t.name, err)
		}
	}
	for digest, used := range v.revisions {
		if needed[digest] || !used.Before(cutoff) {
			if err := v.keep(digest); err != nil {
				return nil, err
			}
		}
	}
	for more := true; more; {
		more = false
		rest := weak[:0:0]
		for _, t := range weak {
			if subject, _ := IsFallbackTag(t.name); !v.kept[subject] {
				rest = append(rest, t)
				continue
			}
			more = true
			if err := v.keep(t.digest); err != nil {
				return nil, fmt.Errorf("tag %s: %w", t.name, err)
			}
		}
		weak = rest
		for digest := range v.revisions {
			if v.kept[digest] {
				continue
			}
			n, err := v.what(digest)
			if err != nil || !v.kept[n.subject] {
				continue // what is unreadable and nothing needs may go
			}
			more = true
			if err := v.keep(digest); err != nil {
				return nil, err
			}
		}
	}
	return weak, nil
}

func (v *repositoryView) what(digest string) (named, error) {
	n, ok := v.named[digest]
	if ok {
		return n, nil
	}
	n, err := v.c.content(digest)
	if err == nil {
		v.named[digest] = n
	}
	return n, err
}

// keep marks a manifest and those under it. One that is not in the repository is passed over, as a fallback index names such; one that can't be read may name anything.
func (v *repositoryView) keep(digest string) error {
	if _, there := v.revisions[digest]; !there || v.kept[digest] {
		return nil
	}
	v.kept[digest] = true
	n, err := v.what(digest)
	if err != nil {
		return err
	}
	for _, d := range n.all {
		if err := v.keep(d); err != nil {
			return err
		}
	}
	return nil
}

// dropTags removes fallback tags that list the referrers of a manifest which is not there any more.
func (v *repositoryView) dropTags(weak []tagged, cutoff time.Time) error {
	for _, t := range weak {
		if _, err := v.c.take(v.c.tagPath(v.repo, t.name), currentLink, cutoff); err != nil {
			return err
		}
	}
	return nil
}

func (v *repositoryView) takeManifests(ctx context.Context, cutoff time.Time) (n int, err error) {
	doomed := v.leftovers
	for digest, used := range v.revisions {
		if !v.kept[digest] && used.Before(cutoff) && ValidDigest(digest) {
			doomed = append(doomed, digest)
		}
	}
	if err := v.forget(doomed); err != nil {
		return 0, err
	}
	for _, digest := range doomed {
		if ctx.Err() != nil {
			return n, ctx.Err()
		}
		taken, err := v.c.take(v.c.revisionPath(v.repo, digest), linkFile, cutoff)
		if err != nil {
			return n, err
		}
		if taken {
			n++
		}
	}
	return n, v.forgetHistory(cutoff)
}

// forget tells who remembers what this registry has, before it goes: to forget too much costs a question, to believe too much a failed delivery.
func (v *repositoryView) forget(digests []string) error {
	if len(digests) == 0 || v.c.forget == nil {
		return nil
	}
	if err := v.c.forget(v.repo, digests...); err != nil {
		return fmt.Errorf("%w: %w", errTaking, err)
	}
	return nil
}

// forgetHistory removes what tags remember of manifests that are not there any more.
func (v *repositoryView) forgetHistory(cutoff time.Time) error {
	for _, t := range v.tags {
		index := filepath.Join(v.c.tagPath(v.repo, t.name), "index")
		list, err := entries(index, linkFile)
		if err != nil {
			return ignoreGone(err)
		}
		for _, e := range list {
			if e.digest == t.digest || !e.used.Before(cutoff) {
				continue
			}
			if _, err := os.Stat(v.c.revisionPath(v.repo, e.digest)); !errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if _, err := v.c.take(filepath.Join(index, digestPath(e.digest)), linkFile, cutoff); err != nil {
				return err
			}
		}
	}
	return nil
}

// takeLayers removes the links of blobs that no manifest of the repository names. It looks at the manifests anew: some of those that were to go may have been used meanwhile. One that
// is put later has renewed what it names.
func (v *repositoryView) takeLayers(ctx context.Context, needed map[string]bool, cutoff time.Time) (n int, err error) {
	manifests, err := entries(v.c.revisionsPath(v.repo), linkFile)
	if err != nil {
		return 0, err
	}
	used := map[string]bool{}
	for _, m := range manifests {
		if !m.there {
			continue // deleted, or not put yet
		}
		n, err := v.what(m.digest)
		if err != nil {
			return 0, err
		}
		for _, d := range n.all {
			used[d] = true
		}
	}
	layers, err := entries(v.c.layersPath(v.repo), linkFile)
	if err != nil {
		return 0, err
	}
	var doomed []string
	for _, l := range layers {
		if !used[l.digest] && !needed[l.digest] && l.used.Before(cutoff) && ValidDigest(l.digest) {
			doomed = append(doomed, l.digest)
		}
	}
	if err := v.forget(doomed); err != nil {
		return 0, err
	}
	for _, digest := range doomed {
		if ctx.Err() != nil {
			return n, ctx.Err()
		}
		taken, err := v.c.take(v.c.layerPath(v.repo, digest), linkFile, cutoff)
		if err != nil {
			return n, err
		}
		if taken {
			n++
		}
	}
	return n, nil
}

// clearEmpty removes the directories of a repository that has held no file for a grace.
func (c *collector) clearEmpty(repo string, cutoff time.Time) error {
	var dirs []string
	root := c.repositoryPath(repo)
	for _, own := range []string{"_manifests", "_layers", "_uploads"} {
		err := filepath.WalkDir(filepath.Join(root, own), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return ignoreGone(err)
			}
			fi, err := d.Info()
			if err != nil {
				return err
			}
			if !d.IsDir() || !fi.ModTime().Before(cutoff) {
				return errInUse
			}
			dirs = append(dirs, path)
			return nil
		})
		if err != nil {
			if errors.Is(err, errInUse) {
				err = nil
			}
			return ignoreGone(err)
		}
	}
	if fi, err := os.Stat(root); err != nil || !fi.ModTime().Before(cutoff) {
		return ignoreGone(err)
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		if os.Remove(dirs[i]) != nil {
			return nil // something came in
		}
	}
	// The repository's own, and those above it in which nothing is left.
	for dir := root; dir != c.repositoriesPath(); dir = filepath.Dir(dir) {
		if os.Remove(dir) != nil {
			return nil
		}
	}
	return nil
}

var errInUse = errors.New("in use")

// collectBlobs removes the blobs that no repository has.
func (c *collector) collectBlobs(ctx context.Context, cutoff time.Time) (sum Collection, err error) {
	linked, err := c.linked(ctx)
	if err != nil {
		return sum, fmt.Errorf("looking for what repositories have: %w", err)
	}
	prefixes, err := os.ReadDir(filepath.Join(c.root, "blobs", "sha256"))
	if err != nil {
		return sum, ignoreGone(err)
	}
	for _, p := range prefixes {
		dir := filepath.Join(c.root, "blobs", "sha256", p.Name())
		sums, err := os.ReadDir(dir)
		if err != nil {
			return sum, err
		}
		for _, s := range sums {
			if ctx.Err() != nil {
				return sum, ctx.Err()
			}
			if digest := "sha256:" + s.Name(); linked[digest] || !ValidDigest(digest) {
				continue
			}
			var size int64
			if fi, err := os.Stat(filepath.Join(dir, s.Name(), dataFile)); err == nil {
				size = fi.Size()
			}
			taken, err := c.take(filepath.Join(dir, s.Name()), dataFile, cutoff)
			if err != nil {
				return sum, err
			}
			if taken {
				sum.Blobs, sum.Bytes = sum.Blobs+1, sum.Bytes+size
			}
		}
	}
	return sum, nil
}

// linked gives all blobs that any repository has, as a blob or as a manifest.
func (c *collector) linked(ctx context.Context) (map[string]bool, error) {
	repos, err := c.repositories()
	if err != nil {
		return nil, err
	}
	linked := map[string]bool{}
	for _, repo := range repos {
		for _, dir := range []string{c.layersPath(repo), c.revisionsPath(repo)} {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			list, err := entries(dir, linkFile)
			if err != nil {
				return nil, err
			}
			for _, e := range list {
				if !e.there {
					continue
				}
				if linked[e.digest] = true; strings.HasPrefix(e.digest, "sha256:") {
					continue
				}
				// A link by another algorithm leads to the blob by SHA-256.
				target, err := readLink(filepath.Join(dir, digestPath(e.digest), linkFile))
				if err == nil {
					linked[target] = true
				} else if ignoreGone(err) != nil {
					return nil, err
				}
			}
		}
	}
	return linked, nil
}
