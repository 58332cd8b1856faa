package harbortest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sort"
	"strconv"
	"strings"
)

const mediaTypeIndex = "application/vnd.oci.image.index.v1+json"

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (h *Harbor) route(w http.ResponseWriter, r *http.Request) {
	p := r.URL.Path
	k := h.behaviour()
	switch {
	case p == "/service/token":
		h.token(w, r)
	case strings.HasPrefix(p, "/api/v2.0/") && !k.Plain:
		h.api(w, r)
	case p == "/v2/" || p == "/v2":
		if g, known := h.access(r); !known || !g.user {
			h.challenge(w, r, "")
			return
		}
		w.WriteHeader(http.StatusOK)
	case p == "/v2/_catalog":
		h.catalog(w, r)
	case strings.HasPrefix(p, "/v2/"):
		h.repository(w, r, strings.TrimPrefix(p, "/v2/"))
	default:
		http.NotFound(w, r)
	}
}

func (h *Harbor) repository(w http.ResponseWriter, r *http.Request, p string) {
	for _, part := range []struct {
		sep   string
		serve func(w http.ResponseWriter, r *http.Request, repo, rest string)
	}{
		{"/blobs/uploads/", h.upload}, {"/blobs/", h.blob}, {"/manifests/", h.manifest}, {"/tags/", h.tags}, {"/referrers/", h.referrers},
	} {
		if repo, rest, ok := cutLast(p, part.sep); ok {
			if !h.gate(w, r, repo) {
				return
			}
			part.serve(w, r, repo, rest)
			return
		}
	}
	http.NotFound(w, r)
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return "", "", false
	}
	return s[:i], s[i+len(sep):], true
}

// gate refuses what credentials, projects and modes refuse.
func (h *Harbor) gate(w http.ResponseWriter, r *http.Request, repo string) bool {
	action, changes := "pull", false
	switch r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodDelete:
		action, changes = "delete", true
		if strings.Contains(r.URL.Path, "/blobs/uploads/") {
			action = "push"
		}
	default:
		action, changes = "push", true
	}
	k := h.behaviour()
	project, _, nested := strings.Cut(repo, "/")
	h.mu.Lock()
	p := h.projects[project]
	h.mu.Unlock()
	if !k.Plain {
		_, known := h.access(r)
		if known && (p == nil || !nested) {
			w.Header()["Www-Authenticate"] = []string{""}
			fail(w, http.StatusUnauthorized, "UNAUTHORIZED", fmt.Sprintf("project %s not found: project %s not found", project, project))
			return false
		}
	}
	if !h.may(w, r, repo, action) {
		return false
	}
	switch {
	case changes && k.ReadOnly:
		fail(w, http.StatusForbidden, "DENIED", "The system is in read only mode. Any modification is prohibited.")
		return false
	case !k.Plain && p.Proxy && (r.Method == http.MethodPost || r.Method == http.MethodPut):
		fail(w, http.StatusForbidden, "DENIED", "can not push artifact to a proxy project: "+project)
		return false
	}
	return true
}

// repo gives a repository; made when it is not there. h.mu is held.
func (h *Harbor) repo(name string) *repository {
	r := h.repos[name]
	if r == nil {
		r = &repository{blobs: map[string][]byte{}, manifests: map[string]manifest{}, tags: map[string]string{}}
		h.repos[name] = r
	}
	return r
}

func (h *Harbor) catalog(w http.ResponseWriter, r *http.Request) {
	k := h.behaviour()
	_, _, basic := r.BasicAuth()
	g, known := h.access(r)
	if !known || !g.user || !k.Plain && !basic && !k.Open || k.NoCatalog {
		if k.Plain {
			h.challenge(w, r, "registry:catalog:*")
			return
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="harbor"`)
		fail(w, http.StatusUnauthorized, "UNAUTHORIZED", "unauthorized to list catalog")
		return
	}
	h.mu.Lock()
	var names []string
	for name, repo := range h.repos {
		if len(repo.manifests) > 0 {
			names = append(names, name)
		}
	}
	h.mu.Unlock()
	h.page(w, r, names, func(names []string) any { return map[string]any{"repositories": names} })
}

func (h *Harbor) tags(w http.ResponseWriter, r *http.Request, repo, _ string) {
	h.mu.Lock()
	rp := h.repos[repo]
	var names []string
	if rp != nil {
		for t := range rp.tags {
			names = append(names, t)
		}
	}
	h.mu.Unlock()
	if rp == nil {
		fail(w, http.StatusNotFound, "NAME_UNKNOWN", "repository "+repo+" not found")
		return
	}
	h.page(w, r, names, func(names []string) any { return map[string]any{"name": repo, "tags": names} })
}

func (h *Harbor) page(w http.ResponseWriter, r *http.Request, names []string, body func([]string) any) {
	sort.Strings(names)
	size := h.behaviour().PageSize
	if size == 0 {
		size = 1000
	}
	if n, err := strconv.Atoi(r.URL.Query().Get("n")); err == nil && n < size {
		size = n
	}
	if last := r.URL.Query().Get("last"); last != "" {
		i, found := slices.BinarySearch(names, last)
		if found {
			i++
		}
		names = names[i:]
	}
	if len(names) > size {
		names = names[:size]
		q := url.Values{"n": {strconv.Itoa(size)}, "last": {names[size-1]}}
		w.Header().Set("Link", fmt.Sprintf(`<%s?%s>; rel="next"`, r.URL.Path, q.Encode()))
	}
	writeJSON(w, "application/json", body(names))
}

func writeJSON(w http.ResponseWriter, mediaType string, v any) {
	w.Header().Set("Content-Type", mediaType)
	_ = json.NewEncoder(w).Encode(v)
}

func (h *Harbor) manifest(w http.ResponseWriter, r *http.Request, repo, reference string) {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		h.getManifest(w, r, repo, reference)
	case http.MethodPut:
		h.putManifest(w, r, repo, reference)
	case http.MethodDelete:
		h.deleteManifest(w, repo, reference)
	default:
		fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "unsupported")
	}
}

func (h *Harbor) getManifest(w http.ResponseWriter, r *http.Request, repo, reference string) {
	h.mu.Lock()
	rp := h.repos[repo]
	var m manifest
	ok := false
	digest := reference
	if rp != nil {
		if d, tagged := rp.tags[reference]; tagged {
			digest = d
		}
		m, ok = rp.manifests[digest]
	}
	k := h.knobs
	h.mu.Unlock()
	if !ok {
		fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN", fmt.Sprintf("artifact %s:%s not found", repo, reference))
		return
	}
	if !k.NoDigestHeader {
		w.Header().Set("Docker-Content-Digest", digest)
	}
	w.Header().Set("Content-Type", m.mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(m.content)))
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	_, _ = w.Write(m.content)
	if r.UserAgent() != quietUserAgent && !k.Plain {
		h.pulls.Add(1)
		h.hooks.send("PULL_ARTIFACT", repo, reference, digest)
	}
}

type named struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	ArtifactType string            `json:"artifactType,omitempty"`
	URLs         []string          `json:"urls,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

type parsed struct {
	ArtifactType string            `json:"artifactType"`
	Config       *named            `json:"config"`
	Layers       []named           `json:"layers"`
	Blobs        []named           `json:"blobs"`
	Manifests    []named           `json:"manifests"`
	Subject      *named            `json:"subject"`
	Annotations  map[string]string `json:"annotations"`
}

// missing gives what p names and the repository lacks.
func (p *parsed) missing(rp *repository) []string {
	var lacks []string
	for _, n := range p.Manifests {
		if _, ok := rp.manifests[n.Digest]; !ok {
			lacks = append(lacks, n.Digest)
		}
	}
	blobs := append(slices.Clone(p.Layers), p.Blobs...)
	if p.Config != nil {
		blobs = append(blobs, *p.Config)
	}
	for _, n := range blobs {
		if _, ok := rp.blobs[n.Digest]; !ok && len(n.URLs) == 0 {
			lacks = append(lacks, n.Digest)
		}
	}
	return lacks
}

func (h *Harbor) putManifest(w http.ResponseWriter, r *http.Request, repo, reference string) {
	content, err := readBody(r, 4<<20)
	if err != nil {
		fail(w, http.StatusBadRequest, "MANIFEST_INVALID", err.Error())
		return
	}
	var p parsed
	if err := json.Unmarshal(content, &p); err != nil {
		fail(w, http.StatusBadRequest, "MANIFEST_INVALID", "manifest invalid")
		return
	}
	digest := digestOf(content)
	byDigest := strings.HasPrefix(reference, "sha256:")
	if byDigest && reference != digest {
		fail(w, http.StatusBadRequest, "DIGEST_INVALID", "provided digest did not match uploaded content")
		return
	}
	h.mu.Lock()
	project, _, _ := strings.Cut(repo, "/")
	if pr := h.projects[project]; pr != nil && !byDigest && !h.knobs.Plain {
		// Harbor does not look whether the tag shows this very manifest.
		if _, exists := h.repo(repo).tags[reference]; exists && pr.immutable(repo, reference) {
			h.mu.Unlock()
			_, name, _ := strings.Cut(repo, "/")
			fail(w, http.StatusPreconditionFailed, "PRECONDITION",
				fmt.Sprintf("Failed to process request due to '%s:%s' configured as immutable.", name, reference))
			return
		}
	}
	if lacks := p.missing(h.repo(repo)); len(lacks) > 0 {
		h.mu.Unlock()
		var errs []wireError
		for _, d := range lacks {
			errs = append(errs, wireError{Code: "MANIFEST_BLOB_UNKNOWN", Message: "blob unknown to registry", Detail: d})
		}
		failWith(w, http.StatusBadRequest, errs)
		return
	}
	rp := h.repo(repo)
	rp.manifests[digest] = manifest{mediaType: r.Header.Get("Content-Type"), content: content}
	if !byDigest {
		rp.tags[reference] = digest
	}
	k := h.knobs
	h.mu.Unlock()
	if p.Subject != nil && !k.NoReferrers {
		w.Header().Set("OCI-Subject", p.Subject.Digest)
	}
	w.Header().Set("Location", "/v2/"+repo+"/manifests/"+digest)
	w.Header().Set("Docker-Content-Digest", digest)
	w.WriteHeader(http.StatusCreated)
	h.hooks.send("PUSH_ARTIFACT", repo, reference, digest)
}

func (h *Harbor) deleteManifest(w http.ResponseWriter, repo, reference string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	rp := h.repo(repo)
	if !strings.HasPrefix(reference, "sha256:") {
		if !h.knobs.Plain || h.knobs.NoTagDelete {
			fail(w, http.StatusBadRequest, "UNSUPPORTED", "The operation is unsupported.")
			return
		}
		if _, ok := rp.tags[reference]; !ok {
			fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
			return
		}
		delete(rp.tags, reference)
		w.WriteHeader(http.StatusAccepted)
		return
	}
	if _, ok := rp.manifests[reference]; !ok {
		fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
		return
	}
	delete(rp.manifests, reference)
	last := ""
	for tag, d := range rp.tags {
		if d == reference {
			delete(rp.tags, tag)
			last = max(last, tag)
		}
	}
	w.WriteHeader(http.StatusAccepted)
	// Of all the tags that go, Harbor names one.
	h.hooks.send("DELETE_ARTIFACT", repo, last, reference)
}

func (h *Harbor) referrers(w http.ResponseWriter, r *http.Request, repo, subject string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.knobs.NoReferrers {
		http.NotFound(w, r)
		return
	}
	list := []named{}
	if rp := h.repos[repo]; rp != nil {
		for digest, m := range rp.manifests {
			var p parsed
			if json.Unmarshal(m.content, &p) != nil || p.Subject == nil || p.Subject.Digest != subject {
				continue
			}
			n := named{MediaType: m.mediaType, Digest: digest, Size: int64(len(m.content)), ArtifactType: p.ArtifactType, Annotations: p.Annotations}
			if n.ArtifactType == "" && p.Config != nil {
				n.ArtifactType = p.Config.MediaType
			}
			list = append(list, n)
		}
	}
	w.Header().Set("X-Total-Count", strconv.Itoa(len(list)))
	writeJSON(w, mediaTypeIndex, map[string]any{"schemaVersion": 2, "mediaType": mediaTypeIndex, "manifests": list})
}
