package harbortest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"sort"
	"strconv"
	"strings"
)

var projectName = regexp.MustCompile(`^[a-z0-9]+(?:[._-][a-z0-9]+)*$`)

// api is what fanout uses of Harbor's own API. Wrong credentials get an anonymous view.
func (h *Harbor) api(w http.ResponseWriter, r *http.Request) {
	_, known := h.access(r)
	p := strings.TrimPrefix(r.URL.EscapedPath(), "/api/v2.0/")
	switch {
	case !known && r.Method != http.MethodGet:
		fail(w, http.StatusUnauthorized, "UNAUTHORIZED", "unauthorized")
	case p == "projects" && r.Method == http.MethodHead:
		if !h.HasProject(r.URL.Query().Get("project_name")) {
			fail(w, http.StatusNotFound, "NOT_FOUND", "")
		}
	case h.behaviour().ReadOnly && r.Method != http.MethodGet:
		fail(w, http.StatusForbidden, "DENIED", "The system is in read only mode. Any modification is prohibited.")
	case p == "projects" && r.Method == http.MethodPost:
		h.makeProject(w, r)
	case p == "repositories" && r.Method == http.MethodGet:
		h.listRepositories(w, r, known)
	case strings.HasPrefix(p, "projects/") && strings.HasSuffix(p, "/summary") && r.Method == http.MethodGet:
		h.summary(w, strings.TrimSuffix(strings.TrimPrefix(p, "projects/"), "/summary"), known)
	case strings.HasPrefix(p, "projects/") && r.Method == http.MethodDelete:
		h.deleteTag(w, strings.Split(p, "/"))
	default:
		http.NotFound(w, r)
	}
}

// summary tells of a project, and of its quota only whom it lets read that.
func (h *Harbor) summary(w http.ResponseWriter, project string, known bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.projects[project]
	switch {
	case !known:
		fail(w, http.StatusUnauthorized, "UNAUTHORIZED", "unauthorized")
		return
	case p == nil:
		fail(w, http.StatusNotFound, "NOT_FOUND", "project "+project+" not found")
		return
	}
	out := map[string]any{"repo_count": 0}
	if !h.knobs.NoQuotaRight {
		used := 0
		for _, n := range h.sizes(project) {
			used += n
		}
		hard := p.Quota
		if hard <= 0 {
			hard = -1
		}
		out["quota"] = map[string]any{"hard": map[string]int64{"storage": hard}, "used": map[string]int{"storage": used}}
	}
	writeJSON(w, jsonType, out)
}

func (h *Harbor) makeProject(w http.ResponseWriter, r *http.Request) {
	body, err := readBody(r, 64<<10)
	var in struct {
		Name string `json:"project_name"`
	}
	if err != nil || json.Unmarshal(body, &in) != nil || !projectName.MatchString(in.Name) {
		fail(w, http.StatusBadRequest, "BAD_REQUEST", "project name is not in lower case or contains illegal characters")
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.knobs.NoProjectRight:
		fail(w, http.StatusForbidden, "FORBIDDEN", "Only system level robot can create project")
	case h.projects[in.Name] != nil:
		fail(w, http.StatusConflict, "CONFLICT", fmt.Sprintf("The project named %s already exists", in.Name))
	default:
		h.projects[in.Name] = &Project{}
		w.Header().Set("Location", "/api/v2.0/projects/"+strconv.Itoa(len(h.projects)))
		w.WriteHeader(http.StatusCreated)
	}
}

func (h *Harbor) listRepositories(w http.ResponseWriter, r *http.Request, known bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var names []string
	for name, rp := range h.repos {
		if known && len(rp.manifests) > 0 {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	size, _ := strconv.Atoi(r.URL.Query().Get("page_size"))
	number, _ := strconv.Atoi(r.URL.Query().Get("page"))
	if size > 100 {
		fail(w, http.StatusUnprocessableEntity, "UNPROCESSABLE_ENTITY", "validation failure list:\npage_size in query should be less than or equal to 100")
		return
	}
	from := min(max(number-1, 0)*size, len(names))
	out := []map[string]string{}
	for _, name := range names[from:min(from+size, len(names))] {
		out = append(out, map[string]string{"name": name})
	}
	w.Header().Set("X-Total-Count", strconv.Itoa(len(names)))
	writeJSON(w, jsonType, out)
}

// deleteTag serves projects/P/repositories/R/artifacts/REF/tags/TAG, with the slashes of R escaped once or twice.
func (h *Harbor) deleteTag(w http.ResponseWriter, parts []string) {
	if len(parts) != 8 || parts[2] != "repositories" || parts[4] != "artifacts" || parts[6] != "tags" {
		fail(w, http.StatusNotFound, "NOT_FOUND", "path not found")
		return
	}
	name := parts[3]
	for range 2 {
		if u, err := url.PathUnescape(name); err == nil {
			name = u
		}
	}
	repo, tag := parts[1]+"/"+name, parts[7]
	h.mu.Lock()
	defer h.mu.Unlock()
	rp := h.repos[repo]
	switch {
	case h.projects[parts[1]] == nil:
		fail(w, http.StatusForbidden, "FORBIDDEN", "forbidden")
	case rp == nil || !rp.pushed:
		fail(w, http.StatusNotFound, "NOT_FOUND", fmt.Sprintf("repository %s not found", repo))
	case rp.tags[tag] == "":
		fail(w, http.StatusNotFound, "NOT_FOUND", fmt.Sprintf("artifact %s:%s not found", repo, tag))
	case h.projects[parts[1]].immutable(repo, tag):
		fail(w, http.StatusPreconditionFailed, "PRECONDITION", fmt.Sprintf("the tag %s configured as immutable, cannot be deleted", tag))
	default:
		// No webhook tells of this.
		delete(rp.tags, tag)
		w.WriteHeader(http.StatusOK)
	}
}
