package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/fanout-io/fanout/pkg/registry/harbortest"
)

// checkLog holds each line of an agent's log to docs/logs.md: JSON, with the keys that every line has, and none twice. So a panic, or a library that writes past the log, fails the test that it
// happens in.
func checkLog(t testing.TB, name string, log []byte) {
	t.Helper()
	for line := range bytes.Lines(log) {
		if err := checkLine(line); err != nil {
			t.Errorf("%s logged a line that is none (%v): %.2000s", name, err, line)
			return
		}
	}
}

func checkLine(line []byte) error {
	keys := map[string]bool{}
	dec := json.NewDecoder(bytes.NewReader(line))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return errors.New("it is no JSON object")
	}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return err
		}
		key := tok.(string)
		if keys[key] {
			return fmt.Errorf("the key %q is there twice", key)
		}
		keys[key] = true
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	for _, key := range []string{"time", "level", "msg"} {
		if !keys[key] {
			return fmt.Errorf("it has no %q", key)
		}
	}
	return nil
}

func TestCheckLine(t *testing.T) {
	good := `{"time":"2026-01-01T00:00:00Z","level":"INFO","msg":"m","site":"a","nested":{"site":"b"}}`
	if err := checkLine([]byte(good)); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{
		`panic: runtime error`, `[1]`, `{"time":"t","level":"INFO"}`, `{"time":"t","level":"INFO","msg":"m","site":"a","site":"b"}`, `{"time":"t","level":"INFO","msg":`,
	} {
		if checkLine([]byte(bad)) == nil {
			t.Errorf("nobody complains of %s", bad)
		}
	}
}

// TestNothingSecretIsSaid plants secrets wherever an agent gets or sends one, lets everything fail that can, and looks for them in all that an agent says, at the level debug.
func TestNothingSecretIsSaid(t *testing.T) {
	t.Parallel()
	secrets := map[string]string{}
	plant := func(what string) string {
		secrets[what] = fmt.Sprintf("planted%d%08x", len(secrets), rand.Uint32())
		return secrets[what]
	}
	file := func(name, content string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(content+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	fake := serveFake(t, "harbor", harbortest.Config{})
	fake.SetProject("team", harbortest.Project{})
	// The storage of the registry beside it is elsewhere: reads are sent there with a signature in the address, and fail there.
	signature := plant("the signature of a redirect")
	upstream := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.Out.URL.Scheme, r.Out.URL.Host = "http", fake.addr
		r.Out.Host = r.In.Host
	}, ErrorLog: log.New(io.Discard, "", 0)}
	storage := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/storage":
			http.Error(w, "no", http.StatusForbidden)
		case r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/sha256:"):
			http.Redirect(w, r, "/storage?X-Amz-Signature="+signature, http.StatusTemporaryRedirect)
		default:
			upstream.ServeHTTP(w, r)
		}
	}))
	defer storage.Close()
	password := fake.Password()
	secrets["the registry's password"] = password
	away := "http://127.0.0.1:1/hook?token=" + plant("the query of a notification's address")
	extra := fmt.Sprintf("registry: {type: harbor, url: %q, username: %s, passwordFile: %q}\nwebhook: {secretFile: %q}\nnotify: [{url: %q, secretFile: %q}]\n",
		storage.URL, fake.Username(), fake.passwordFile, file("webhook", plant("the webhook's secret")), away, file("notify", plant("the notifications' secret")))
	sites := start(t, spec{name: "hq-a", group: "hq", extra: extra}, spec{name: "gd-a", group: "hq/gd"})
	hq, gd := sites["hq-a"], sites["gd-a"]

	hook, err := http.NewRequest(http.MethodPost, "http://"+hq.http+"/hooks/harbor?q="+plant("the query of a request"), strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	hook.Header.Set("Authorization", plant("a wrong webhook secret"))
	resp, err := http.DefaultClient.Do(hook)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	auth := remote.WithAuth(&authn.Basic{Username: fake.Username(), Password: password})
	if err := remote.Write(reference(t, &site{name: "harbor", reg: fake.addr}, "team/app:1"), image(t, 64<<10, 1), auth); err != nil {
		t.Fatal(err)
	}
	if out, code := hq.ctl("publish", "team/app:1"); code != 0 {
		t.Fatalf("publish: %s", out)
	}
	eventually(t, "the province fails to get what the storage refuses", func() error {
		for _, w := range hq.where("team/app:1") {
			if w.Site == "gd-a" && w.State == "failed" {
				return nil
			}
		}
		return errors.New("it does not fail yet")
	})
	plan := file("plan.yaml", "apiVersion: fanout/v1\nkind: Plan\nmetadata: {name: p}\nspec:\n  waves:\n  - name: all\n    groups: ['**']\n    gates: {before: [{check: {url: 'http://127.0.0.1:1/ok?key="+
		"x', interval: 1s, timeout: 1m}}]}\n")
	if out, code := hq.ctl("promote", "team/app:1", "--as", "stable", "--plan", plan, "--yes"); code != 0 {
		t.Fatalf("promote: %s", out)
	}
	eventually(t, "a notification fails", func() error {
		if hq.logged("a notification is tried again") {
			return nil
		}
		return errors.New("none failed yet")
	})

	for _, s := range []*site{hq, gd} {
		said := map[string]string{}
		for _, args := range [][]string{
			{"tree"}, {"where", "team/app:1"}, {"events"}, {"doctor"}, {"rollout", "list"}, {"top"}, {"why", "team/app:1", s.name}, {"describe", s.name}, {"describe", s.group}, {"describe", "team/app:1"},
		} {
			out, _ := s.ctl(append(args, "-o", "json")...)
			said[strings.Join(args, " ")] = string(out)
		}
		for _, path := range []string{"/metrics", "/readyz?verbose", "/api/v1/tree", "/api/v1/where?ref=team/app:1", "/api/v1/pending?site=" + s.name, "/api/v1/rollouts", "/api/v1/events"} {
			resp, err := http.Get("http://" + s.http + path)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil {
				t.Fatal(err)
			}
			said[path] = string(body)
		}
		s.mu.Lock()
		said["the log"] = s.log.String()
		s.mu.Unlock()
		if len(said["the log"]) < 1000 || len(said["tree"]) < 100 {
			t.Errorf("%s said too little: %d bytes of log", s.name, len(said["the log"]))
		}
		for where, text := range said {
			for what, secret := range secrets {
				if i := strings.Index(text, secret); i >= 0 {
					t.Errorf("%s tells %s in %s: %q", s.name, what, where, text[max(0, i-200):i+len(secret)])
				}
			}
		}
	}
}

// logged says whether the log has a line with a message.
func (s *site) logged(message string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Contains(s.log.Bytes(), []byte(`"msg":"`+message+`"`))
}
