// Package harbortest is a registry in memory that behaves as Harbor 2.15 does where that differs from what one would expect: a missing project is
// answered with 401 and no challenge, an immutable tag refuses even what it shows already, a quota refuses after all bytes have travelled, a
// broken upload is dead, wrong credentials get a token without rights. With Knobs.Plain it is an ordinary registry instead.
//
// What it answers is compared with what a real Harbor v2.15.2 answered to the same questions (testdata, TestAnswers). Known to differ: it heeds a
// switch of the read-only mode at once, Harbor after up to 6 s; it sends a webhook at once and once, Harbor after 0.5 to 5 s and up to three times;
// it has no accessories, and tags of the cosign scheme are tags like any other; the X-Total-Count of referrers is the only list that counts; a
// wrong password is refused at once, Harbor waits 1.5 s; there are no rights but those of one robot account.
//
// It is a test double, not a registry to keep anything in. It may be used by any number of goroutines. Faults of all sorts can be switched on while
// it serves. Invariant: what a client may not do to a Harbor (send Expect, send a body of unknown length) is refused and kept in Violations.
package harbortest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const jsonType = "application/json; charset=utf-8"

// The User-Agent whose reads Harbor does not count as pulls.
const quietUserAgent = "harbor-registry-client"

// Config of a Harbor.
type Config struct {
	// Username and Password that are accepted; default "robot$fanout" and "secret".
	Username, Password string
	// HookURL gets webhooks; empty: none.
	HookURL string
	// HookAuth is their Authorization header.
	HookAuth string
	// CloudEvents chooses that format.
	CloudEvents bool
	// Knobs at the start.
	Knobs Knobs
}

// Knobs are how it behaves; the zero value is a Harbor in good order.
type Knobs struct {
	// Plain makes it an ordinary registry: no projects, no rules, DELETE of a tag works, no API.
	Plain bool
	// Open asks for no credentials.
	Open bool
	// BasicChallenge asks for basic credentials instead of a token.
	BasicChallenge bool
	// ReadOnly refuses all changes.
	ReadOnly bool
	// DeleteRight is the account's right to delete in repositories. Without it Harbor refuses even that an upload is given up.
	DeleteRight bool
	// NoProjectRight refuses to make projects.
	NoProjectRight bool
	// NoQuotaRight tells nothing of quotas.
	NoQuotaRight bool
	// NoCatalog refuses /v2/_catalog, as to a robot of one project.
	NoCatalog bool
	// NoReferrers has no referrers API.
	NoReferrers bool
	// Sessions3 lets broken uploads be continued, as version 3 of the distribution registry does; else they are dead, as in version 2.8.
	Sessions3 bool
	// IgnoreRange answers a range with the whole blob.
	IgnoreRange bool
	// NoOpenRange refuses ranges without an end.
	NoOpenRange bool
	// NoMounts opens a session instead of mounting.
	NoMounts bool
	// NoDigestHeader leaves Docker-Content-Digest away.
	NoDigestHeader bool
	// NoTagDelete refuses to delete a tag in a plain registry too.
	NoTagDelete bool
	// RelativeLocations gives upload locations without scheme and host.
	RelativeLocations bool
	// LocationHost is put into upload locations instead of the request's host.
	LocationHost string
	// RedirectBlobs sends GETs of blobs to this URL, followed by the digest.
	RedirectBlobs string
	// PageSize bounds lists; 0: 1000.
	PageSize int
}

// Project of Harbor.
type Project struct {
	// Quota in bytes; 0: none.
	Quota int64
	// Immutable are patterns (as of path.Match) of REPOSITORY:TAG.
	Immutable []string
	// Proxy makes it a proxy cache.
	Proxy bool
}

// Fault is an answer given instead of the real one.
type Fault struct {
	// Match chooses requests; nil: all. It may call the Harbor's methods.
	Match func(*http.Request) bool
	// Times it strikes; 0: until removed.
	Times int
	// Status, Code, Message and RetryAfter of the answer.
	Status              int
	Code, Message       string
	RetryAfter          string
	ContentType, Body   string
	Location, Challenge string
	// Hang gives no answer until the client or Close ends the request.
	Hang bool
	// CutAfter lets the request be carried out with so many bytes of its body, then cuts the connection.
	CutAfter int64
	// CutAnswer carries the request out and cuts the connection instead of answering.
	CutAnswer bool
}

type fault struct {
	Fault
	left int
}

// Request that was seen.
type Request struct {
	Method, Path, Query, UserAgent, Authorization string
	Length                                        int64
	Header                                        http.Header
}

// String gives method and path.
func (r Request) String() string { return r.Method + " " + r.Path }

// Harbor is the registry; it is an http.Handler.
type Harbor struct {
	cfg   Config
	hooks *hooks
	done  chan struct{}
	close sync.Once

	pulls atomic.Int64

	mu         sync.Mutex
	knobs      Knobs
	password   string
	tokens     map[string]grant
	projects   map[string]*Project
	repos      map[string]*repository
	uploads    map[string]*session
	faults     []*fault
	requests   []Request
	violations []string
	serial     int
}

type repository struct {
	pushed    bool // a manifest was put into it: before that Harbor knows of no repository
	blobs     map[string][]byte
	manifests map[string]manifest
	tags      map[string]string
}

type manifest struct {
	mediaType string
	content   []byte
}

// New gives an empty one. Close it.
func New(cfg Config) *Harbor {
	if cfg.Username == "" {
		cfg.Username = "robot$fanout"
	}
	if cfg.Password == "" {
		cfg.Password = "secret"
	}
	return &Harbor{
		cfg: cfg, hooks: newHooks(cfg), done: make(chan struct{}), knobs: cfg.Knobs, password: cfg.Password,
		tokens: map[string]grant{}, projects: map[string]*Project{}, repos: map[string]*repository{}, uploads: map[string]*session{},
	}
}

// Close ends hanging requests and waits for webhooks under way.
func (h *Harbor) Close() {
	h.close.Do(func() { close(h.done) })
	h.hooks.stop()
}

// Username that is accepted.
func (h *Harbor) Username() string { return h.cfg.Username }

// Password that is accepted now.
func (h *Harbor) Password() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.password
}

// SetPassword changes it, and forgets all tokens.
func (h *Harbor) SetPassword(p string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.password, h.tokens = p, map[string]grant{}
}

// ExpireTokens forgets all tokens.
func (h *Harbor) ExpireTokens() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tokens = map[string]grant{}
}

// Turn changes knobs.
func (h *Harbor) Turn(f func(*Knobs)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(&h.knobs)
}

// SetProject makes a project or changes it.
func (h *Harbor) SetProject(name string, p Project) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.projects[name] = &p
}

// RemoveProject removes a project and all that is in it.
func (h *Harbor) RemoveProject(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.projects, name)
	for repo := range h.repos {
		if strings.HasPrefix(repo, name+"/") {
			delete(h.repos, repo)
		}
	}
}

// HasProject says whether there is one.
func (h *Harbor) HasProject(name string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.projects[name] != nil
}

// AddFault switches a fault on; remove switches it off.
func (h *Harbor) AddFault(f Fault) (remove func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	entry := &fault{Fault: f, left: f.Times}
	h.faults = append(h.faults, entry)
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		for i, other := range h.faults {
			if other == entry {
				h.faults = append(h.faults[:i:i], h.faults[i+1:]...)
				return
			}
		}
	}
}

// On matches requests by method and a part of the path; empty: any.
func On(method, pathPart string) func(*http.Request) bool {
	return func(r *http.Request) bool {
		return (method == "" || r.Method == method) && strings.Contains(r.URL.Path, pathPart)
	}
}

// Requests seen since the last call.
func (h *Harbor) Requests() []Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	seen := h.requests
	h.requests = nil
	return seen
}

// Violations are the things that clients did and must not do to a Harbor.
func (h *Harbor) Violations() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.violations...)
}

// Pulls that were counted.
func (h *Harbor) Pulls() int { return int(h.pulls.Load()) }

// Sessions that are open.
func (h *Harbor) Sessions() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.uploads)
}

// Tag gives the digest that a tag shows; empty: there is no such tag.
func (h *Harbor) Tag(repo, tag string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r := h.repos[repo]; r != nil {
		return r.tags[tag]
	}
	return ""
}

// Content gives the bytes of a manifest or a blob.
func (h *Harbor) Content(repo, digest string) ([]byte, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.repos[repo]
	if r == nil {
		return nil, false
	}
	if m, ok := r.manifests[digest]; ok {
		return m.content, true
	}
	b, ok := r.blobs[digest]
	return b, ok
}

// SetTag moves a tag behind the client's back.
func (h *Harbor) SetTag(repo, tag, digest string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.repo(repo).tags[tag] = digest
}

// RemoveManifest loses a manifest and its tags.
func (h *Harbor) RemoveManifest(repo, digest string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.repo(repo)
	delete(r.manifests, digest)
	for tag, d := range r.tags {
		if d == digest {
			delete(r.tags, tag)
		}
	}
}

// RemoveBlob loses a blob, as a collection gone wrong does.
func (h *Harbor) RemoveBlob(repo, digest string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r := h.repos[repo]; r != nil {
		delete(r.blobs, digest)
	}
}

// ServeHTTP implements http.Handler.
func (h *Harbor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f := h.note(r)
	if r.Header.Get("Expect") != "" || r.ContentLength < 0 {
		h.violation(r)
		fail(w, http.StatusInternalServerError, "UNKNOWN", "Expect and bodies of unknown length are not for Harbor")
		return
	}
	if f == nil {
		h.route(w, r)
		return
	}
	switch {
	case f.Hang:
		select {
		case <-r.Context().Done():
		case <-h.done:
		}
		panic(http.ErrAbortHandler)
	case f.CutAfter > 0:
		r.Body = io.NopCloser(&cutReader{r: r.Body, left: f.CutAfter})
		h.route(discard{}, r)
		panic(http.ErrAbortHandler)
	case f.CutAnswer:
		h.route(discard{}, r)
		panic(http.ErrAbortHandler)
	}
	if f.RetryAfter != "" {
		w.Header().Set("Retry-After", f.RetryAfter)
	}
	if f.Location != "" {
		w.Header().Set("Location", f.Location)
	}
	if f.Challenge != "" {
		w.Header().Set("WWW-Authenticate", f.Challenge)
	}
	if f.Body != "" {
		w.Header().Set("Content-Type", f.ContentType)
		w.WriteHeader(f.Status)
		_, _ = io.WriteString(w, f.Body)
		return
	}
	fail(w, f.Status, f.Code, f.Message)
}

// note keeps the request and finds the fault that strikes it.
func (h *Harbor) note(r *http.Request) *fault {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.requests = append(h.requests, Request{
		Method: r.Method, Path: r.URL.EscapedPath(), Query: r.URL.RawQuery, UserAgent: r.UserAgent(), Authorization: r.Header.Get("Authorization"),
		Length: r.ContentLength, Header: r.Header.Clone(),
	})
	return h.strike(r)
}

// strike finds the fault for a request. Match is called without the lock, so that it may turn knobs.
func (h *Harbor) strike(r *http.Request) *fault {
	for _, f := range append([]*fault(nil), h.faults...) {
		if f.Match != nil {
			h.mu.Unlock()
			matches := f.Match(r)
			h.mu.Lock()
			if !matches {
				continue
			}
		}
		if f.Times > 0 {
			if f.left == 0 {
				continue
			}
			f.left--
		}
		return f
	}
	return nil
}

func (h *Harbor) violation(r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.violations = append(h.violations, fmt.Sprintf("%s %s: Expect %q, length %d", r.Method, r.URL.Path, r.Header.Get("Expect"), r.ContentLength))
}

func (h *Harbor) behaviour() Knobs {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.knobs
}

func fail(w http.ResponseWriter, status int, code, message string) {
	failWith(w, status, []wireError{{Code: code, Message: message}})
}

type wireError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Detail  any    `json:"detail,omitempty"`
}

func failWith(w http.ResponseWriter, status int, errs []wireError) {
	w.Header().Set("Content-Type", jsonType)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": errs})
}

func (p *Project) immutable(repo, tag string) bool {
	for _, pattern := range p.Immutable {
		if ok, err := path.Match(pattern, repo+":"+tag); ok && err == nil {
			return true
		}
	}
	return false
}

type cutReader struct {
	r    io.Reader
	left int64
}

func (c *cutReader) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	if int64(len(p)) > c.left {
		p = p[:c.left]
	}
	n, err := c.r.Read(p)
	c.left -= int64(n)
	return n, err
}

type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) WriteHeader(int)             {}

// grant is what a token allows.
type grant struct {
	user    bool
	actions map[string]string // repository → actions
	expires time.Time
}
