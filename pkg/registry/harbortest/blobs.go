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
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
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
	if digest != "" && from != "" && !h.knobs.NoMounts && h.repos[from] != nil {
		if content, ok := h.repos[from].blobs[digest]; ok {
			h.mu.Unlock()
			h.accept(w, repo, digest, content, "")
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
	h.accept(w, repo, digest, content, id)
}

// accept stores a blob unless the quota forbids it: the refusal comes after all bytes have travelled.
func (h *Harbor) accept(w http.ResponseWriter, repo, digest string, content []byte, id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	project, _, _ := strings.Cut(repo, "/")
	if p := h.projects[project]; p != nil && p.Quota > 0 && !h.knobs.Plain {
		if used := h.used(project); used+int64(len(content)) > p.Quota {
			fail(w, http.StatusForbidden, "DENIED", fmt.Sprintf("adding %d B of storage resource, which when updated to current usage of %d B will exceed the "+
				"configured upper limit of %d B.", len(content), used, p.Quota))
			return
		}
	}
	delete(h.uploads, id)
	h.repo(repo).blobs[digest] = content
	w.Header().Set("Docker-Content-Digest", digest)
	w.Header().Set("Location", "/v2/"+repo+"/blobs/"+digest)
	w.WriteHeader(http.StatusCreated)
}

func (h *Harbor) used(project string) int64 {
	seen, sum := map[string]bool{}, int64(0)
	for name, rp := range h.repos {
		if !strings.HasPrefix(name, project+"/") {
			continue
		}
		for d, b := range rp.blobs {
			if !seen[d] {
				seen[d] = true
				sum += int64(len(b))
			}
		}
	}
	return sum
}
