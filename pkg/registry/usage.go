package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

const (
	// maxRenewal bounds how old a time of use may be before the next use renews it.
	maxRenewal = time.Minute
	// clockSlack is by how much the times that the system writes by itself may lag behind the clock.
	clockSlack = 100 * time.Millisecond
)

// usage keeps in the storage of an embedded registry when each thing there was last used: the modification times of the links by which a repository has a blob or a manifest, and
// of blobs. That of a link or blob is renewed before a request that relies on it is handed on: one that asks whether it is there, mounts it, uploads it again, or names it in a
// manifest. So is that of the manifest which a tag lets go of. The times are in the storage, so that they outlive the process and hold for every registry that serves the same storage.
//
// Invariant: whoever was told that something is there has renewed its time first. The collector takes a thing out of its place before it looks at its time for the last time, so
// either it sees the new time and puts the thing back, or the request finds nothing.
type usage struct {
	root string // .../docker/registry/v2
	// renewal is how old a time of use may be before it is renewed.
	renewal time.Duration

	mu     sync.Mutex
	writes map[uint64]time.Time // when the requests under way that write began
	last   uint64
}

func newUsage(root string, grace time.Duration) *usage {
	return &usage{root: root, renewal: min(grace/16, maxRenewal), writes: map[uint64]time.Time{}}
}

// began notes a request that writes; it is under way until done is called.
func (u *usage) began() (done func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.last++
	id := u.last
	u.writes[id] = time.Now()
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.writes, id)
	}
}

// cutoff is the time before which things were last used that may go: a grace ago, and before any write under way began, as that may have looked at things which it has not
// named yet.
func (u *usage) cutoff(grace time.Duration) time.Time {
	u.mu.Lock()
	defer u.mu.Unlock()
	t := time.Now().Add(-grace)
	for _, began := range u.writes {
		if began.Before(t) {
			t = began
		}
	}
	return t.Add(-clockSlack)
}

// guard hands requests on after the times of what they rely on are renewed.
func (u *usage) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut || r.Method == http.MethodPost || r.Method == http.MethodDelete {
			defer u.began()()
		}
		if err := u.note(r); err != nil {
			// To hand it on all the same would be to promise what may be collected.
			http.Error(w, "noting the use of content: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// uploadID is how the distribution registry names upload sessions.
var uploadID = regexp.MustCompile(`^[a-f0-9-]{36}$`)

func (u *usage) note(r *http.Request) error {
	path, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	if !ok {
		return nil
	}
	parts := strings.Split(path, "/")
	n := len(parts)
	repo := func(tail int) string { return strings.Join(parts[:max(0, n-tail)], "/") }
	switch {
	case n >= 3 && parts[n-2] == "manifests" && ValidRepository(repo(2)):
		return u.noteManifest(r, repo(2), parts[n-1])
	case n >= 4 && parts[n-3] == "blobs" && parts[n-2] == "uploads" && ValidRepository(repo(3)):
		return u.noteUpload(r, repo(3), parts[n-1])
	case n >= 3 && parts[n-2] == "blobs" && ValidRepository(repo(2)) && ValidDigest(parts[n-1]) && r.Method != http.MethodDelete:
		return u.renewBlob(repo(2), parts[n-1])
	}
	return nil
}

func (u *usage) noteManifest(r *http.Request, repo, reference string) error {
	switch {
	case r.Method == http.MethodPut:
		return errors.Join(u.renewRepository(repo), u.letGo(repo, reference), u.noteNamed(r, repo))
	case r.Method == http.MethodDelete:
		return u.letGo(repo, reference)
	case ValidDigest(reference):
		return u.renewManifest(repo, reference)
	}
	return nil
}

// letGo renews the manifest that a tag shows, because the tag is about to show another, or to go: the grace counts from now.
func (u *usage) letGo(repo, tag string) error {
	if !ValidTag(tag) {
		return nil
	}
	shown, err := readLink(filepath.Join(u.tagPath(repo, tag), currentLink))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return u.renewManifest(repo, shown)
}

// noteNamed renews a manifest that is being put, and all that it names.
func (u *usage) noteNamed(r *http.Request, repo string) error {
	content, err := io.ReadAll(io.LimitReader(r.Body, MaxManifestBytes+1))
	if err != nil {
		return fmt.Errorf("reading a manifest: %w", err)
	}
	r.Body = &readBody{io.MultiReader(bytes.NewReader(content), r.Body), r.Body}
	if len(content) > MaxManifestBytes {
		return nil // it will be refused
	}
	n, err := namedBy(content)
	if err != nil {
		return nil // so will this
	}
	errs := []error{u.renewManifest(repo, DigestOf(content))}
	for _, d := range n.all {
		errs = append(errs, u.renewBlob(repo, d), u.renewManifest(repo, d))
	}
	return errors.Join(errs...)
}

type readBody struct {
	io.Reader
	io.Closer
}

func (u *usage) noteUpload(r *http.Request, repo, id string) error {
	if r.Method != http.MethodPut && r.Method != http.MethodPost {
		return nil
	}
	errs := []error{u.renewRepository(repo)}
	if uploadID.MatchString(id) {
		// The blob will have this time once it is moved to its place.
		errs = append(errs, u.renew(filepath.Join(u.repositoryPath(repo), "_uploads", id, "data")))
	}
	q := r.URL.Query()
	if d := q.Get("digest"); ValidDigest(d) {
		errs = append(errs, u.renewBlob(repo, d))
	}
	if d, from := q.Get("mount"), q.Get("from"); ValidDigest(d) && ValidRepository(from) {
		errs = append(errs, u.renewBlob(from, d), u.renewBlob(repo, d))
	}
	return errors.Join(errs...)
}

// renewBlob renews a blob and a repository's link to it, in this order: a link is never newer than what it leads to.
func (u *usage) renewBlob(repo, digest string) error {
	return errors.Join(u.renew(filepath.Join(u.blobPath(digest), dataFile)), u.renew(filepath.Join(u.layerPath(repo, digest), linkFile)))
}

func (u *usage) renewManifest(repo, digest string) error {
	return errors.Join(u.renew(filepath.Join(u.blobPath(digest), dataFile)), u.renew(filepath.Join(u.revisionPath(repo, digest), linkFile)))
}

// renewRepository keeps an empty repository from being cleared away while something is put into it.
func (u *usage) renewRepository(repo string) error { return u.renew(u.repositoryPath(repo)) }

// renew sets the time of a file that is there.
func (u *usage) renew(path string) error {
	now := time.Now()
	if fi, err := os.Stat(path); err == nil && now.Sub(fi.ModTime()) < u.renewal && !fi.ModTime().After(now) {
		return nil
	}
	err := os.Chtimes(path, time.Time{}, now)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// The layout of the storage, version 2, as the distribution registry has it.
const (
	linkFile    = "link"
	dataFile    = "data"
	currentLink = "current/link"
)

func (u *usage) repositoriesPath() string          { return filepath.Join(u.root, "repositories") }
func (u *usage) repositoryPath(repo string) string { return filepath.Join(u.repositoriesPath(), repo) }
func (u *usage) tagsPath(repo string) string {
	return filepath.Join(u.repositoryPath(repo), "_manifests", "tags")
}
func (u *usage) tagPath(repo, tag string) string { return filepath.Join(u.tagsPath(repo), tag) }
func (u *usage) revisionsPath(repo string) string {
	return filepath.Join(u.repositoryPath(repo), "_manifests", "revisions")
}
func (u *usage) revisionPath(repo, digest string) string {
	return filepath.Join(u.revisionsPath(repo), digestPath(digest))
}
func (u *usage) layersPath(repo string) string {
	return filepath.Join(u.repositoryPath(repo), "_layers")
}
func (u *usage) layerPath(repo, digest string) string {
	return filepath.Join(u.layersPath(repo), digestPath(digest))
}

func (u *usage) blobPath(digest string) string {
	algorithm, sum, _ := strings.Cut(digest, ":")
	return filepath.Join(u.root, "blobs", algorithm, sum[:min(2, len(sum))], sum)
}

func digestPath(digest string) string {
	return strings.Replace(digest, ":", string(filepath.Separator), 1)
}

// readLink gives the digest that a link file holds.
func readLink(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	d := strings.TrimSpace(string(b))
	if !anyDigest.MatchString(d) {
		return "", fmt.Errorf("%s holds %q, which is no digest", path, clean(d))
	}
	return d, nil
}

// anyDigest is a digest of any algorithm. Its parts are safe in paths.
var anyDigest = regexp.MustCompile(`^[a-z0-9]+([+._-][a-z0-9]+)*:[a-f0-9]{32,}$`)

// named is what a manifest names.
type named struct {
	all     []string // blobs and manifests; all but the subject
	subject string
}

// namedBy reads what a manifest names, of whatever kind it is. A field that has another type than it should is passed over, as the distribution registry may not look at it.
func namedBy(content []byte) (n named, err error) {
	type target struct {
		Digest string `json:"digest"`
	}
	var m struct {
		Config    target   `json:"config"`
		Subject   target   `json:"subject"`
		Layers    []target `json:"layers"`
		Blobs     []target `json:"blobs"`
		Manifests []target `json:"manifests"`
	}
	if err := json.Unmarshal(content, &m); err != nil && !errors.As(err, new(*json.UnmarshalTypeError)) {
		return n, err
	}
	for _, list := range [][]target{{m.Config}, m.Layers, m.Blobs, m.Manifests} {
		for _, t := range list {
			if anyDigest.MatchString(t.Digest) {
				n.all = append(n.all, t.Digest)
			}
		}
	}
	n.subject = m.Subject.Digest
	return n, nil
}
