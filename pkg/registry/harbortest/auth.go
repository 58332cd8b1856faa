package harbortest

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// access says who asks. With a token it says what that allows.
func (h *Harbor) access(r *http.Request) (g grant, known bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.knobs.Open {
		return grant{user: true}, true
	}
	if user, password, ok := r.BasicAuth(); ok {
		return grant{user: true}, user == h.cfg.Username && password == h.password
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return grant{}, false
	}
	g, ok = h.tokens[token]
	return g, ok && time.Now().Before(g.expires)
}

// may says whether the request may do action in repo; else it has answered.
func (h *Harbor) may(w http.ResponseWriter, r *http.Request, repo, action string) bool {
	g, known := h.access(r)
	k := h.behaviour()
	if action != "delete" || k.DeleteRight || k.Plain {
		if known && (g.user && g.actions == nil || strings.Contains(g.actions[repo], action)) {
			return true
		}
	}
	scope := action
	if action == "push" {
		scope = "pull,push"
	}
	h.challenge(w, r, "repository:"+repo+":"+scope, fmt.Sprintf("unauthorized to access repository: %s, action: %s", repo, action))
	return false
}

// challenge answers 401. Harbor names its token service only to those who sent no credentials.
func (h *Harbor) challenge(w http.ResponseWriter, r *http.Request, scope, why string) {
	value := fmt.Sprintf(`Bearer realm="http://%s/service/token",service="harbor-registry"`, r.Host)
	if scope != "" {
		value += fmt.Sprintf(`,scope=%q`, scope)
	}
	if k := h.behaviour(); k.BasicChallenge || !k.Plain && r.Header.Get("Authorization") != "" {
		value = `Basic realm="harbor"`
	}
	w.Header().Set("WWW-Authenticate", value)
	fail(w, http.StatusUnauthorized, "UNAUTHORIZED", why+": "+why)
}

// token gives anyone a token; one without rights where the credentials are wrong or the project is missing.
func (h *Harbor) token(w http.ResponseWriter, r *http.Request) {
	user, password, _ := r.BasicAuth()
	h.mu.Lock()
	g := grant{actions: map[string]string{}, expires: time.Now().Add(30 * time.Minute)}
	good := user == h.cfg.Username && password == h.password
	g.user = good
	for _, scope := range r.URL.Query()["scope"] {
		parts := strings.SplitN(scope, ":", 3)
		if !good || len(parts) != 3 || parts[0] != "repository" {
			continue
		}
		project, _, _ := strings.Cut(parts[1], "/")
		switch {
		case h.knobs.Plain:
			g.actions[parts[1]] = parts[2]
		case h.projects[project] != nil:
			// Whatever is asked for, Harbor gives all that the account may do.
			g.actions[parts[1]] = "pull,push,delete"
		}
	}
	token := rand.Text()
	h.tokens[token] = g
	h.mu.Unlock()
	w.Header().Set("Content-Type", jsonType)
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": "", "expires_in": 1800, "issued_at": time.Now().UTC().Format(time.RFC3339)})
}
