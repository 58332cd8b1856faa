package harbortest_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fanout-io/fanout/pkg/registry/harbortest"
)

var update = flag.Bool("update", false, "write down the answers of the real Harbor")

const golden = "testdata/answers-2.15.txt"

// place is a Harbor, real or not, and the means to make rules in it.
type place struct {
	t              *testing.T
	url            string
	user, password string // a robot account
	project        string // is there
	missing        string // is not
	proxy          string // is a proxy cache; empty: there is none

	quota     func(bytes int64)
	immutable func(tag string)
	readOnly  func(on bool)

	log strings.Builder
}

// TestAnswers asks the fake what a real Harbor was asked, and wants the answers that were written down then.
func TestAnswers(t *testing.T) {
	h := harbortest.New(harbortest.Config{})
	srv := httptest.NewServer(h)
	defer srv.Close()
	defer h.Close()
	p := &place{t: t, url: srv.URL, user: h.Username(), password: h.Password(), project: "answers", missing: "nowhere", proxy: "answers-cache"}
	var pr harbortest.Project
	set := func() { h.SetProject(p.project, pr) }
	set()
	h.SetProject(p.proxy, harbortest.Project{Proxy: true})
	p.quota = func(n int64) { pr.Quota = max(n, 0); set() }
	p.immutable = func(tag string) {
		if pr.Immutable = nil; tag != "" {
			pr.Immutable = []string{p.project + "/*/*:" + tag}
		}
		set()
	}
	p.readOnly = func(on bool) { h.Turn(func(k *harbortest.Knobs) { k.ReadOnly = on }) }
	p.ask()
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(answers(string(want)), answers(p.log.String())); diff != "" {
		t.Errorf("the fake answers otherwise than Harbor (-Harbor +fake):\n%s", diff)
	}
}

// TestAnswers_Real asks a real Harbor, given as for the integration test: FANOUT_TEST_HARBOR_A_URL, _USERNAME and _PASSWORD (an administrator).
// With -update its answers are written down.
func TestAnswers_Real(t *testing.T) {
	p := realPlace(t)
	p.ask()
	got := p.log.String()
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(answers(string(want)), answers(got)); diff != "" {
		t.Errorf("this Harbor answers otherwise than the one before (-before +now):\n%s", diff)
	}
}

// answers by question.
func answers(log string) map[string]string {
	found := map[string]string{}
	what := ""
	for line := range strings.Lines(log) {
		if !strings.HasPrefix(line, " ") {
			what = strings.TrimSpace(line)
			continue
		}
		found[what] += line
	}
	return found
}

func realPlace(t *testing.T) *place {
	env := func(what string) string { return os.Getenv("FANOUT_TEST_HARBOR_A_" + what) }
	if env("URL") == "" {
		t.Skip("skipped: FANOUT_TEST_HARBOR_A_URL names no real Harbor")
	}
	name := "answers-" + strconv.FormatInt(time.Now().UnixMilli(), 36)
	p := &place{t: t, url: env("URL"), user: env("USERNAME"), password: env("PASSWORD"), project: name, missing: name + "-not", proxy: name + "-cache"}
	admin := func(method, path string, body any, out any) http.Header {
		t.Helper()
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequest(method, p.url+"/api/v2.0"+path, bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth(env("USERNAME"), env("PASSWORD"))
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		answer, _ := io.ReadAll(resp.Body)
		if resp.StatusCode/100 != 2 {
			t.Fatalf("%s %s: %s %s", method, path, resp.Status, answer)
		}
		if out != nil {
			if err := json.Unmarshal(answer, out); err != nil {
				t.Fatal(err)
			}
		}
		return resp.Header
	}
	admin("POST", "/projects", map[string]any{"project_name": name, "metadata": map[string]string{"public": "false"}}, nil)
	var project struct {
		ID int64 `json:"project_id"`
	}
	admin("GET", "/projects/"+name, nil, &project)
	admin("POST", "/registries", map[string]any{"name": name, "type": "docker-registry", "url": p.url}, nil)
	var registries []struct{ ID int64 }
	admin("GET", "/registries?q=name%3D"+name, nil, &registries)
	admin("POST", "/projects", map[string]any{"project_name": p.proxy, "registry_id": registries[0].ID, "metadata": map[string]string{"public": "false"}}, nil)
	right := func(resource, action string) map[string]string {
		return map[string]string{"resource": resource, "action": action}
	}
	var robot struct {
		ID           int64
		Name, Secret string
	}
	admin("POST", "/robots", map[string]any{"name": name, "duration": 1, "level": "system", "permissions": []map[string]any{
		{"kind": "system", "namespace": "/", "access": []any{right("project", "create"), right("catalog", "read")}},
		{"kind": "project", "namespace": "*", "access": []any{right("repository", "pull"), right("repository", "push"), right("tag", "delete")}},
	}}, &robot)
	p.user, p.password = robot.Name, robot.Secret
	t.Cleanup(func() {
		for _, repo := range []string{"web", "ruled%252Fapp"} {
			admin("DELETE", "/projects/"+name+"/repositories/"+repo, nil, nil)
		}
		admin("DELETE", "/projects/"+name, nil, nil)
		admin("DELETE", "/projects/"+p.proxy, nil, nil)
		admin("DELETE", fmt.Sprintf("/registries/%d", registries[0].ID), nil, nil)
		admin("DELETE", fmt.Sprintf("/robots/%d", robot.ID), nil, nil)
	})
	p.quota = func(n int64) {
		var quotas []struct{ ID int64 }
		admin("GET", fmt.Sprintf("/quotas?reference=project&reference_id=%d", project.ID), nil, &quotas)
		admin("PUT", fmt.Sprintf("/quotas/%d", quotas[0].ID), map[string]any{"hard": map[string]int64{"storage": n}}, nil)
	}
	rule := ""
	p.immutable = func(tag string) {
		if tag == "" {
			admin("DELETE", rule, nil, nil)
			return
		}
		selector := func(decoration, pattern string) []any {
			return []any{map[string]string{"kind": "doublestar", "decoration": decoration, "pattern": pattern}}
		}
		rule = strings.TrimPrefix(admin("POST", "/projects/"+name+"/immutabletagrules", map[string]any{
			"action": "immutable", "template": "immutable_template", "tag_selectors": selector("matches", tag),
			"scope_selectors": map[string]any{"repository": selector("repoMatches", "**")},
		}, nil).Get("Location"), "/api/v2.0")
	}
	p.readOnly = func(on bool) {
		admin("PUT", "/configurations", map[string]any{"read_only": on}, nil)
		// It takes some seconds until Harbor heeds it.
		deadline := time.Now().Add(30 * time.Second)
		for (p.send("POST", "/v2/"+p.project+"/web/blobs/uploads/", nil, nil).StatusCode == http.StatusForbidden) != on {
			if time.Now().After(deadline) {
				t.Fatal("the mode does not change")
			}
		}
	}
	return p
}

// send sends one request with the robot's credentials, unless the header says otherwise, and gives the answer with its body read.
func (p *place) send(method, path string, header map[string]string, body []byte) *http.Response {
	p.t.Helper()
	target := path
	if strings.HasPrefix(path, "/") {
		target = p.url + path
	}
	req, err := http.NewRequest(method, target, bytes.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	req.SetBasicAuth(p.user, p.password)
	req.Header.Set("User-Agent", "harbor-registry-client")
	for k, v := range header {
		req.Header.Set(k, v)
		if v == "" {
			req.Header.Del(k)
		}
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		p.t.Fatal(err)
	}
	answer, err := io.ReadAll(resp.Body)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		answer = append(answer, " (shorter than it says)"...)
	} else if err != nil {
		p.t.Fatal(err)
	}
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(answer))
	return resp
}

var told = []string{
	"WWW-Authenticate", "Location", "Range", "Content-Range", "Docker-Content-Digest", "OCI-Subject", "OCI-Filters-Applied", "Link", "X-Total-Count", "Content-Type",
}

var random = []struct {
	find *regexp.Regexp
	put  string
}{
	{regexp.MustCompile(`blobs/uploads/[^?"]+`), "blobs/uploads/ID"},
	{regexp.MustCompile(`_state=[^&"]+`), "_state=S"},
	{regexp.MustCompile(`projects/[0-9]+$`), "projects/N"},
	{regexp.MustCompile(`Bearer [A-Za-z0-9._-]{20,}`), "Bearer TOKEN"},
}

// tell writes an answer down, without what differs from one Harbor to the next.
func (p *place) tell(what string, resp *http.Response) *http.Response {
	p.t.Helper()
	u, err := url.Parse(p.url)
	if err != nil {
		p.t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n  %d", what, resp.StatusCode)
	if resp.Request.Method == http.MethodHead && resp.StatusCode == http.StatusOK {
		fmt.Fprintf(&b, " of %d bytes", resp.ContentLength)
	}
	b.WriteByte('\n')
	for _, k := range told {
		for _, v := range resp.Header.Values(k) {
			for _, r := range random {
				v = r.find.ReplaceAllString(v, r.put)
			}
			fmt.Fprintf(&b, "  %s\n", strings.TrimSpace(k+": "+v))
		}
	}
	if len(body) > 0 {
		fmt.Fprintf(&b, "  %s\n", words(body))
	}
	text := strings.NewReplacer(u.Host, "HOST", p.proxy, "PROXY", p.missing, "MISSING", p.project, "PROJECT", p.user, "ROBOT").Replace(b.String())
	p.log.WriteString(text)
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp
}

// words gives what of a body is the same each time: errors as they are, JSON in one form.
func words(body []byte) string {
	var v any
	if json.Unmarshal(body, &v) != nil {
		return strings.TrimSpace(string(body))
	}
	if m, ok := v.(map[string]any); ok {
		for _, k := range []string{"token", "access_token", "issued_at"} {
			if s, ok := m[k].(string); ok && s != "" {
				m[k] = "*"
			}
		}
		if errs, ok := m["errors"].([]any); ok {
			for _, e := range errs {
				if e, ok := e.(map[string]any); ok {
					// It differs with the version, and nobody reads it but for missing blobs.
					if e["code"] != "MANIFEST_BLOB_UNKNOWN" {
						delete(e, "detail")
					}
				}
			}
		}
	}
	out, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(out)
}

func (p *place) step(what, method, path string, header map[string]string, body []byte) *http.Response {
	p.t.Helper()
	return p.tell(what, p.send(method, path, header, body))
}
