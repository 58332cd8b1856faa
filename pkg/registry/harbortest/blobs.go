package harbortest

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// session is an upload. In the 2.8 line its state says how far it is; a state that does not fit the bytes is refused for good.
type session struct {
	repo string
	data []byte
}

func readBody(r *http.Request, most int64) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, most+1))
	if err != nil {
		return body, err
	}
	if int64(len(body)) > most {
		return nil, fmt.Errorf("body exceeds %d bytes", most)
	}
	return body, nil
}

func (h *Harbor) blob(w http.ResponseWriter, r *http.Request, repo, digest string) {
	h.mu.Lock()
	var content []byte
	ok := false
	if rp := h.repos[repo]; rp != nil {
		content, ok = rp.blobs[digest]
	}
	k := h.knobs
	if ok && r.Method == http.MethodDelete {
		delete(h.repos[repo].blobs, digest)
	}
	h.mu.Unlock()
	switch {
	case !ok:
		fail(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry")
		return
	case r.Method == http.MethodDelete:
		w.WriteHeader(http.StatusAccepted)
		return
	case r.Method == http.MethodGet && k.RedirectBlobs != "":
		http.Redirect(w, r, k.RedirectBlobs+digest, http.StatusTemporaryRedirect)
		return
	}
	if k.IgnoreRange {
		r.Header.Del("Range")
	}
	if k.NoOpenRange && strings.HasSuffix(r.Header.Get("Range"), "-") {
		fail(w, http.StatusRequestedRangeNotSatisfiable, "BLOB_UNKNOWN", "We don't understand your Range")
		return
	}
	w.Header().Set("Docker-Content-Digest", digest)
	if from, ok := behind(r.Header.Get("Range"), len(content)); ok && !k.Plain {
		// The registry under Harbor promises the blob's length here and sends nothing.
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", len(content)))
		w.Header().Set("Content-Length", strconv.Itoa(from))
		w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
}

// behind says whether a range begins behind the end of size bytes.
func behind(value string, size int) (length int, ok bool) {
	first, _, _ := strings.Cut(strings.TrimPrefix(value, "bytes="), "-")
	n, err := strconv.Atoi(first)
	return size, err == nil && n >= size
}

func (h *Harbor) upload(w http.ResponseWriter, r *http.Request, repo, id string) {
	if r.Method == http.MethodPost && id == "" {
		h.begin(w, r, repo)
		return
	}
	h.mu.Lock()
	s := h.uploads[id]
	v3 := h.knobs.Sessions3
	h.mu.Unlock()
	if s == nil || s.repo != repo {
		fail(w, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
		return
	}
	h.mu.Lock()
	size := len(s.data)
	h.mu.Unlock()
	fits := r.URL.Query().Get("_state") == strconv.Itoa(size)
	switch {
	case r.Method == http.MethodDelete:
		h.mu.Lock()
		delete(h.uploads, id)
		h.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	case !fits && !v3:
		fail(w, http.StatusNotFound, "BLOB_UPLOAD_INVALID", "blob upload invalid")
	case r.Method == http.MethodGet:
		h.where(w, r, repo, id, size)
		w.WriteHeader(http.StatusNoContent)
	case !fits:
		fail(w, http.StatusRequestedRangeNotSatisfiable, "RANGE_INVALID", "invalid content range")
	case r.Method == http.MethodPatch:
		h.patch(w, r, repo, id, s)
	case r.Method == http.MethodPut:
		h.commit(w, r, repo, id, s)
	default:
		fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "unsupported")
	}
}

func (h *Harbor) where(w http.ResponseWriter, r *http.Request, repo, id string, size int) {
	k := h.behaviour()
	host := "http://" + r.Host
	if k.LocationHost != "" {
		host = k.LocationHost
	}
	if k.RelativeLocations {
		host = ""
	}
	w.Header().Set("Location", fmt.Sprintf("%s/v2/%s/blobs/uploads/%s?_state=%d", host, repo, id, size))
	w.Header().Set("Range", fmt.Sprintf("0-%d", max(size-1, 0)))
}

func (h *Harbor) begin(w http.ResponseWriter, r *http.Request, repo string) {
	digest, from := r.URL.Query().Get("mount"), r.URL.Query().Get("from")
	h.mu.Lock()
	if project, _, _ := strings.Cut(from, "/"); from != "" && !h.knobs.Plain && h.projects[project] == nil {
		h.mu.Unlock()
		noProject(w, project)
		return
	}
	if digest != "" && from != "" && !h.knobs.NoMounts && h.repos[from] != nil {
		if content, ok := h.repos[from].blobs[digest]; ok {
			h.mu.Unlock()
			h.accept(w, r.Host, repo, digest, content, "")
			return
		}
	}
	h.serial++
	id := fmt.Sprintf("upload-%d", h.serial)
	h.uploads[id] = &session{repo: repo}
	h.mu.Unlock()
	h.where(w, r, repo, id, 0)
	w.WriteHeader(http.StatusAccepted)
}

// take adds what comes to the session, also what comes before a connection breaks.
func (h *Harbor) take(r *http.Request, s *session) error {
	body, err := io.ReadAll(r.Body)
	h.mu.Lock()
	defer h.mu.Unlock()
	s.data = append(s.data, body...)
	return err
}

func (h *Harbor) patch(w http.ResponseWriter, r *http.Request, repo, id string, s *session) {
	if err := h.take(r, s); err != nil {
		fail(w, http.StatusInternalServerError, "UNKNOWN", "client disconnected")
		return
	}
	h.mu.Lock()
	size := len(s.data)
	h.mu.Unlock()
	h.where(w, r, repo, id, size)
	w.WriteHeader(http.StatusAccepted)
}

func (h *Harbor) commit(w http.ResponseWriter, r *http.Request, repo, id string, s *session) {
	before := len(s.data)
	if err := h.take(r, s); err != nil {
		fail(w, http.StatusInternalServerError, "UNKNOWN", "client disconnected")
		return
	}
	digest := r.URL.Query().Get("digest")
	h.mu.Lock()
	content := s.data
	if digestOf(content) != digest {
		s.data = s.data[:before]
		h.mu.Unlock()
		fail(w, http.StatusBadRequest, "DIGEST_INVALID", "provided digest did not match uploaded content")
		return
	}
	h.mu.Unlock()
	h.accept(w, r.Host, repo, digest, content, id)
}

// accept stores a blob unless the quota forbids it: the refusal comes after all bytes have travelled.
func (h *Harbor) accept(w http.ResponseWriter, host, repo, digest string, content []byte, id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	project, _, _ := strings.Cut(repo, "/")
	if h.exceeds(w, project, digest, len(content)) {
		return
	}
	delete(h.uploads, id)
	h.repo(repo).blobs[digest] = content
	w.Header().Set("Docker-Content-Digest", digest)
	w.Header().Set("Location", "http://"+host+"/v2/"+repo+"/blobs/"+digest)
	w.WriteHeader(http.StatusCreated)
}

// exceeds says whether a blob or manifest is too much for its project's quota, and has answered then. What the project has already costs nothing.
// h.mu is held.
func (h *Harbor) exceeds(w http.ResponseWriter, project, digest string, size int) bool {
	p := h.projects[project]
	if p == nil || p.Quota <= 0 || h.knobs.Plain {
		return false
	}
	sizes, sum := h.sizes(project), 0
	for _, n := range sizes {
		sum += n
	}
	if _, there := sizes[digest]; there || int64(sum+size) <= p.Quota {
		return false
	}
	fail(w, http.StatusForbidden, "DENIED", fmt.Sprintf("adding %s of storage resource, which when updated to current usage of %s will exceed the "+
		"configured upper limit of %s.", binary(int64(size)), binary(int64(sum)), binary(p.Quota)))
	return true
}

// sizes of all that a project has, each digest once.
func (h *Harbor) sizes(project string) map[string]int {
	sizes := map[string]int{}
	for name, rp := range h.repos {
		if !strings.HasPrefix(name, project+"/") {
			continue
		}
		for d, b := range rp.blobs {
			sizes[d] = len(b)
		}
		for d, m := range rp.manifests {
			sizes[d] = len(m.content)
		}
	}
	return sizes
}

// binary writes a size as Harbor does: "3.0 MiB".
func binary(n int64) string {
	f, unit := float64(n), 0
	for f >= 1024 && unit < 4 {
		f, unit = f/1024, unit+1
	}
	if unit == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGT"[unit-1])
}
