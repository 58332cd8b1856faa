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
			h.challenge(w, r, "", "unauthorized")
			return
		}
		writeJSON(w, jsonType, struct{}{})
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
	k := h.behaviour()
	switch r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodDelete:
		action, changes = "delete", true
		if k.Plain && strings.Contains(r.URL.Path, "/blobs/uploads/") {
			action = "push"
		}
	default:
		action, changes = "push", true
	}
	project, _, nested := strings.Cut(repo, "/")
	h.mu.Lock()
	p := h.projects[project]
	h.mu.Unlock()
	if !k.Plain {
		switch {
		case !nested:
			fail(w, http.StatusBadRequest, "BAD_REQUEST", "bad request: invalid repository name: "+repo)
			return false
		case action == "pull" && r.Header.Get("Authorization") == "" && !k.Open:
			h.challenge(w, r, "repository:"+repo+":pull", "authorize header needed to send HEAD to repository")
			return false
		case p == nil:
			noProject(w, project)
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
		fail(w, http.StatusForbidden, "DENIED", "denied: can not push artifact to a proxy project: "+project)
		return false
	}
	return true
}

// noProject tells, with 401 and an empty challenge, that a project is not there: whoever asks.
func noProject(w http.ResponseWriter, project string) {
	w.Header()["Www-Authenticate"] = []string{""}
	fail(w, http.StatusUnauthorized, "UNAUTHORIZED", fmt.Sprintf("project %s not found: project %s not found", project, project))
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
			h.challenge(w, r, "registry:catalog:*", "unauthorized to list catalog")
			return
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="harbor"`)
		fail(w, http.StatusUnauthorized, "UNAUTHORIZED", "unauthorized to list catalog: unauthorized to list catalog")
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
	names := []string{}
	there := rp != nil && (h.knobs.Plain || rp.pushed)
	if there {
		for t := range rp.tags {
			names = append(names, t)
		}
	}
	h.mu.Unlock()
	if !there {
		h.noRepository(w, "NAME_UNKNOWN", repo)
		return
	}
	h.page(w, r, names, func(names []string) any { return map[string]any{"name": repo, "tags": names} })
}

// noRepository tells that a repository is not there, with one code in Harbor and another elsewhere.
func (h *Harbor) noRepository(w http.ResponseWriter, code, repo string) {
	if !h.behaviour().Plain {
		code = "NOT_FOUND"
	}
	fail(w, http.StatusNotFound, code, "repository "+repo+" not found")
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
	writeJSON(w, jsonType, body(names))
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
	there := rp != nil && rp.pushed
	h.mu.Unlock()
	switch {
	case ok:
	case k.Plain:
		fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
		return
	case !there:
		h.noRepository(w, "", repo)
		return
	default:
		sep := ":"
		if strings.HasPrefix(reference, "sha256:") {
			sep = "@"
		}
		fail(w, http.StatusNotFound, "NOT_FOUND", fmt.Sprintf("artifact %s%s%s not found", repo, sep, reference))
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
		fail(w, http.StatusBadRequest, "MANIFEST_INVALID", fmt.Sprintf("unmarshal manifest failed: %v", err))
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
	if _, there := rp.manifests[digest]; !there && h.exceeds(w, project, digest, len(content)) {
		h.mu.Unlock()
		return
	}
	rp.pushed = true
	rp.manifests[digest] = manifest{mediaType: r.Header.Get("Content-Type"), content: content}
	if !byDigest {
		rp.tags[reference] = digest
	}
	k := h.knobs
	h.mu.Unlock()
	if p.Subject != nil && !k.NoReferrers {
		w.Header().Set("OCI-Subject", p.Subject.Digest)
	}
	w.Header().Set("Location", "http://"+r.Host+"/v2/"+repo+"/manifests/"+digest)
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
	list, kind, total := []named{}, r.URL.Query().Get("artifactType"), 0
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
			if total++; kind == "" || kind == n.ArtifactType {
				list = append(list, n)
			}
		}
	}
	if kind != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	// Harbor counts also what the filter leaves out.
	w.Header().Set("X-Total-Count", strconv.Itoa(total))
	writeJSON(w, mediaTypeIndex, map[string]any{"schemaVersion": 2, "mediaType": mediaTypeIndex, "manifests": list})
}
