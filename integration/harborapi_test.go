package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// realHarbor is a Harbor that runs, with the credentials of an administrator.
type realHarbor struct {
	t                  testing.TB
	url, user, secret  string
	addr               string // host and port
	robotUser, robotPw string // the account that the agent uses
}

// realHarbors gives the two Harbors of the environment; without them the test is skipped.
func realHarbors(t testing.TB) (a, b *realHarbor) {
	t.Helper()
	get := func(which string) *realHarbor {
		v := func(what string) string {
			key := "FANOUT_TEST_HARBOR_" + which + "_" + what
			s := os.Getenv(key)
			if s == "" {
				t.Skipf("skipped: no real Harbor to test with (%s is not set; see the comment on TestHarbor)", key)
			}
			return s
		}
		h := &realHarbor{t: t, url: strings.TrimSuffix(v("URL"), "/"), user: v("USERNAME"), secret: v("PASSWORD")}
		u, err := url.Parse(h.url)
		if err != nil || u.Host == "" {
			t.Fatalf("FANOUT_TEST_HARBOR_%s_URL %q: want http://HOST[:PORT] (%v)", which, h.url, err)
		}
		h.addr = u.Host
		return h
	}
	return get("A"), get("B")
}

// api sends a request to Harbor's API and reads the answer into out, unless that is nil.
func (h *realHarbor) api(method, path string, body, out any, want ...int) http.Header {
	h.t.Helper()
	header, err := h.try(method, path, body, out, want...)
	if err != nil {
		h.t.Fatal(err)
	}
	return header
}

func (h *realHarbor) try(method, path string, body, out any, want ...int) (http.Header, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, h.url+"/api/v2.0"+path, r)
	if err != nil {
		return nil, err
	}
	req.SetBasicAuth(h.user, h.secret)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	ok := len(want) == 0 && resp.StatusCode/100 == 2
	for _, w := range want {
		ok = ok || resp.StatusCode == w
	}
	if !ok {
		return nil, fmt.Errorf("%s %s of %s: %s: %s", method, path, h.url, resp.Status, answer)
	}
	if out != nil && resp.StatusCode/100 == 2 {
		err = json.Unmarshal(answer, out)
	}
	return resp.Header, err
}

// agentRights are what the agents' robot account may do. docs/harbor.md says the same.
func agentRights() []map[string]any {
	right := func(resource, action string) map[string]string {
		return map[string]string{"resource": resource, "action": action}
	}
	return []map[string]any{
		{"kind": "system", "namespace": "/", "access": []map[string]string{right("project", "create"), right("catalog", "read")}},
		{"kind": "project", "namespace": "*", "access": []map[string]string{
			right("repository", "pull"), right("repository", "push"), right("tag", "delete"),
		}},
	}
}

// robot makes the agent's account; it goes with the test.
func (h *realHarbor) robot(name string) {
	h.t.Helper()
	var made struct {
		ID           int64
		Name, Secret string
	}
	h.api("POST", "/robots", map[string]any{
		"name": name, "duration": 1, "level": "system", "description": "fanout's integration test", "permissions": agentRights(),
	}, &made, http.StatusCreated)
	h.robotUser, h.robotPw = made.Name, made.Secret
	h.t.Cleanup(func() { h.tidy("DELETE", "/robots/"+strconv.FormatInt(made.ID, 10)) })
}

// tidy clears up after a test.
func (h *realHarbor) tidy(method, path string) {
	if _, err := h.try(method, path, nil, nil, http.StatusOK, http.StatusNotFound, http.StatusForbidden); err != nil {
		h.t.Logf("clearing up: %v", err)
	}
}

// project makes a project, with a quota in bytes (-1: none).
func (h *realHarbor) project(name string, quota int64) {
	h.t.Helper()
	h.api("POST", "/projects", map[string]any{"project_name": name, "storage_limit": quota, "metadata": map[string]string{"public": "false"}}, nil, http.StatusCreated)
}

// drop removes a project and all in it at the end of the test, whoever made it.
func (h *realHarbor) drop(project string) {
	h.t.Cleanup(func() {
		var repos []struct{ Name string }
		if _, err := h.try("GET", "/projects/"+project+"/repositories?page_size=100", nil, &repos); err != nil {
			return // it is not there
		}
		for _, r := range repos {
			h.tidy("DELETE", "/projects/"+project+"/repositories/"+escape(strings.TrimPrefix(r.Name, project+"/")))
		}
		h.tidy("DELETE", "/projects/"+project)
	})
}

// escape makes a repository's name fit for a path of the API.
func escape(repo string) string { return url.PathEscape(url.PathEscape(repo)) }

// webhook lets Harbor tell an address of a project's events; Harbor must be able to reach it.
func (h *realHarbor) webhook(project, address, auth, format string, events ...string) {
	h.t.Helper()
	h.api("POST", "/projects/"+project+"/webhook/policies", map[string]any{
		"name": strings.ToLower(strings.ReplaceAll(events[0], "_", "-")) + "-" + strings.ToLower(format), "enabled": true, "event_types": events,
		"targets": []map[string]any{{"type": "http", "address": address, "auth_header": auth, "skip_cert_verify": false, "payload_format": format}},
	}, nil, http.StatusCreated)
}

// immutable makes the tags of a pattern immutable in a project; remove ends that.
func (h *realHarbor) immutable(project, tags string) (remove func()) {
	h.t.Helper()
	selector := func(decoration, pattern string) []map[string]string {
		return []map[string]string{{"kind": "doublestar", "decoration": decoration, "pattern": pattern}}
	}
	header := h.api("POST", "/projects/"+project+"/immutabletagrules", map[string]any{
		"disabled": false, "action": "immutable", "template": "immutable_template", "tag_selectors": selector("matches", tags),
		"scope_selectors": map[string]any{"repository": selector("repoMatches", "**")},
	}, nil, http.StatusCreated)
	path := strings.TrimPrefix(header.Get("Location"), "/api/v2.0")
	remove = sync.OnceFunc(func() { h.tidy("DELETE", path) })
	h.t.Cleanup(remove)
	return remove
}

// quota sets a project's storage limit in bytes.
func (h *realHarbor) quota(project string, limit int64) {
	h.t.Helper()
	var p struct {
		ID int64 `json:"project_id"`
	}
	h.api("GET", "/projects/"+project, nil, &p)
	var quotas []struct{ ID int64 }
	h.api("GET", fmt.Sprintf("/quotas?reference=project&reference_id=%d", p.ID), nil, &quotas)
	if len(quotas) != 1 {
		h.t.Fatalf("project %s has %d quotas", project, len(quotas))
	}
	h.api("PUT", fmt.Sprintf("/quotas/%d", quotas[0].ID), map[string]any{"hard": map[string]int64{"storage": limit}}, nil)
}

// readOnly switches the mode of the whole Harbor.
func (h *realHarbor) readOnly(on bool) {
	h.t.Helper()
	h.api("PUT", "/configurations", map[string]any{"read_only": on}, nil)
}

// pulls that Harbor has counted for a repository.
func (h *realHarbor) pulls(project, repo string) int {
	h.t.Helper()
	var r struct {
		PullCount int `json:"pull_count"`
	}
	h.api("GET", "/projects/"+project+"/repositories/"+escape(repo), nil, &r)
	return r.PullCount
}

func (h *realHarbor) auth() remote.Option {
	return remote.WithAuth(&authn.Basic{Username: h.user, Password: h.secret})
}

func (h *realHarbor) reference(ref string) name.Reference {
	h.t.Helper()
	r, err := name.ParseReference(h.addr+"/"+ref, name.Insecure)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

// push pushes an image or an index, as an administrator would.
func (h *realHarbor) push(ref string, what remote.Taggable) string {
	h.t.Helper()
	var err error
	switch x := what.(type) {
	case ggcr.Image:
		err = remote.Write(h.reference(ref), x, h.auth())
	case ggcr.ImageIndex:
		err = remote.WriteIndex(h.reference(ref), x, h.auth())
	default:
		err = remote.Put(h.reference(ref), x, h.auth())
	}
	if err != nil {
		h.t.Fatal(err)
	}
	raw, err := what.RawManifest()
	if err != nil {
		h.t.Fatal(err)
	}
	return digestOf(raw)
}

// shown gives the digest that a ref shows. HEAD is no pull.
func (h *realHarbor) shown(ref string) (string, error) {
	d, err := remote.Head(h.reference(ref), h.auth())
	if err != nil {
		return "", err
	}
	return d.Digest.String(), nil
}

// shows waits until a ref shows a digest.
func (h *realHarbor) shows(ref, digest string) {
	h.t.Helper()
	eventually(h.t, h.addr+" shows "+ref, func() error {
		got, err := h.shown(ref)
		if err == nil && got != digest {
			err = fmt.Errorf("it shows %s", got)
		}
		return err
	})
}

// holds waits until a ref shows a digest and proves that all under it is there, whole and unchanged.
func (h *realHarbor) holds(ref, digest string) {
	h.t.Helper()
	h.shows(ref, digest)
	d, err := remote.Get(h.reference(ref), h.auth())
	if err != nil {
		h.t.Fatal(err)
	}
	if got := digestOf(d.Manifest); got != digest {
		h.t.Errorf("%s: the manifest's bytes have digest %s, want %s", ref, got, digest)
	}
	if d.MediaType.IsIndex() {
		var idx ggcr.ImageIndex
		if idx, err = d.ImageIndex(); err == nil {
			err = validate.Index(idx)
		}
	} else {
		var img ggcr.Image
		if img, err = d.Image(); err == nil {
			err = validate.Image(img)
		}
	}
	if err != nil {
		h.t.Errorf("%s at %s: %v", ref, h.addr, err)
	}
}

// agent gives the configuration of an agent beside this Harbor, reached at addr.
func (h *realHarbor) agent(addr, more string) string {
	h.t.Helper()
	file := filepath.Join(h.t.TempDir(), "password")
	if err := os.WriteFile(file, []byte(h.robotPw+"\n"), 0o600); err != nil {
		h.t.Fatal(err)
	}
	scheme, _, _ := strings.Cut(h.url, "://")
	return fmt.Sprintf("registry: {type: harbor, url: \"%s://%s\", username: \"%s\", passwordFile: %q}\n%s", scheme, addr, h.robotUser, file, more)
}

// uplink passes TCP on to a registry, counts what is sent to it, and can be cut.
type uplink struct {
	addr  string
	up    atomic.Int64
	limit atomic.Int64 // cut when so many bytes were sent; 0: never

	mu    sync.Mutex
	conns map[net.Conn]bool
}

func newUplink(t testing.TB, to string) *uplink {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := net.SplitHostPort(to); err != nil {
		to = net.JoinHostPort(to, "80")
	}
	u := &uplink{addr: l.Addr().String(), conns: map[net.Conn]bool{}}
	t.Cleanup(func() { _ = l.Close(); u.cut() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go u.pass(c, to)
		}
	}()
	return u
}

func (u *uplink) pass(c net.Conn, to string) {
	defer c.Close()
	far, err := net.DialTimeout("tcp", to, 5*time.Second)
	if err != nil {
		return
	}
	defer far.Close()
	u.mu.Lock()
	u.conns[c] = true
	u.mu.Unlock()
	go func() {
		_, _ = io.Copy(c, far)
		_ = c.Close()
	}()
	_, _ = io.Copy(far, io.TeeReader(c, u))
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.conns, c)
}

// Write counts, and cuts all connections once when the limit is reached.
func (u *uplink) Write(p []byte) (int, error) {
	n := u.up.Add(int64(len(p)))
	if limit := u.limit.Load(); limit > 0 && n >= limit && u.limit.CompareAndSwap(limit, 0) {
		u.cut()
	}
	return len(p), nil
}

// cut ends all connections that are open.
func (u *uplink) cut() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for c := range u.conns {
		_ = c.Close()
	}
}
