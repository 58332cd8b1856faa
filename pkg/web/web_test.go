package web_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fanout-io/fanout/pkg/view"
	"github.com/fanout-io/fanout/pkg/web"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

const patience = 20 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve serves a fabric's page until the test ends.
func serve(t testing.TB, cfg web.Config) *httptest.Server {
	t.Helper()
	s, err := web.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	srv := httptest.NewServer(s)
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		srv.CloseClientConnections()
		srv.Close()
		http.DefaultClient.CloseIdleConnections()
	})
	eventually(t, "watchers are served", func() error {
		resp, err := http.Get(srv.URL + "/api/v1/watch?feed=")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode == http.StatusServiceUnavailable {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	return srv
}

func eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, patience, err)
		}
		<-tick.C
	}
}

func get(t testing.TB, url string, header ...string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, body
}

// TestDocuments: the JSON under /api/v1 is that of fanoutctl -o json, and what can't be answered is said in words.
func TestDocuments(t *testing.T) {
	f := wideFabric(40)
	f.rollouts = append(f.rollouts, aRollout())
	f.images = []*adminv1.ImagesResponse{{Ref: "shop/web:2.4.1", Digest: "sha256:aa", Size: 7}, {Ref: "shop/api:1.0", Digest: "sha256:bb"}, {Ref: "base/os:12", Digest: "sha256:cc"}}
	f.events = []*adminv1.EventsResponse{{Type: "Normal", Reason: "Published", Ref: "shop/web:2.4.1", Count: 1}}
	f.conflicts = []*adminv1.ConflictInfo{{Ref: "shop/web:2.4.1", Loser: &adminv1.ConflictSide{Digest: "sha256:dd"}}}
	f.deletions = []*adminv1.DeletionInfo{{Ref: "old:1", Site: "hq-a", State: "held"}}
	f.pending["c01-01"] = &adminv1.PendingResponse{Site: "c01-01", Group: "hq/province-01/city-01", RefsTotal: 1, Refs: []*adminv1.PendingAtSite{{Ref: "a/b:1", At: &adminv1.SiteRef{Site: "c01-01", State: "failed", Reason: "full"}}}}
	f.why["c01-01 a/b:1"] = &adminv1.WhyResponse{Ref: "a/b:1", Site: "c01-01", State: "failed", Answer: "it is full", Hops: []*adminv1.WhyHop{{Group: "hq", State: "delivered", Live: true}}}
	srv := serve(t, web.Config{Fabric: f})
	for path, want := range map[string]any{
		"why?site=c01-01&ref=a/b:1": view.WhyOf(f.why["c01-01 a/b:1"]),
		"tree":                      view.TreeOf(f.tree),
		"where?ref=shop/web:2.4.1":  view.WhereOf(f.where["shop/web:2.4.1"]),
		"pending?site=c01-01":       view.PendingOf(f.pending["c01-01"]),
		"conflicts":                 view.ConflictsOf(&adminv1.ConflictsResponse{Conflicts: f.conflicts}),
		"deletions":                 view.DeletionsOf(&adminv1.DeletionsResponse{Deletions: f.deletions}),
		"events":                    web.EventList{SchemaVersion: 1, Events: []view.Event{view.EventOf(f.events[0])}},
		"version":                   view.ServerVersion{Version: "v0", Site: "hq-a", Group: "hq"},
		"images?contains=SHOP":      web.ImageList{Images: view.Images{SchemaVersion: 1, Images: []view.Image{view.ImageOf(f.images[0]), view.ImageOf(f.images[1])}}},
		"images?limit=2":            web.ImageList{Images: view.Images{SchemaVersion: 1, Images: []view.Image{view.ImageOf(f.images[0]), view.ImageOf(f.images[1])}}, More: true},
		"images?limit=3":            web.ImageList{Images: view.Images{SchemaVersion: 1, Images: []view.Image{view.ImageOf(f.images[0]), view.ImageOf(f.images[1]), view.ImageOf(f.images[2])}}},
	} {
		resp, body := get(t, srv.URL+"/api/v1/"+path)
		wanted, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got, exp any
		if json.Unmarshal(body, &got) != nil || json.Unmarshal(wanted, &exp) != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/json; charset=utf-8" || resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %v: %s", path, resp.StatusCode, resp.Header, body)
		}
		if d := cmp.Diff(exp, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", path, d)
		}
	}
	for path, want := range map[string]string{"rollouts": `"id":"k3x9q2mzpa"`, "rollouts/k3x9q2mzpa": `"soakSeconds":900`} {
		if _, body := get(t, srv.URL+"/api/v1/"+path); !bytes.Contains(body, []byte(want)) {
			t.Errorf("%s: %s has no %s", path, body, want)
		}
	}
	for path, want := range map[string]int{"where?ref=no:1": 404, "tree?group=nowhere": 404, "rollouts/none": 404, "why?site=c01-01": 404, "watch?feed=why:c01-01": 400, "images?limit=x": 400, "images?limit=-1": 400, "nothing": 404, "watch": 400, "watch?feed=sing": 400, "watch?feed=where:": 400, "watch?feed=tree:x": 400} {
		resp, body := get(t, srv.URL+"/api/v1/"+path)
		if resp.StatusCode != want {
			t.Errorf("%s: %d: %s; want %d", path, resp.StatusCode, body, want)
		}
	}
	f.change(func() { f.fails = status.Error(codes.FailedPrecondition, "ask at\nheadquarters") })
	resp, body := get(t, srv.URL+"/api/v1/tree")
	if resp.StatusCode != http.StatusConflict || strings.TrimSpace(string(body)) != `{"code":"FailedPrecondition","message":"ask at headquarters"}` {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

// TestOnlyReads: whatever is no GET is refused, and every answer carries what keeps a browser from being misused.
func TestOnlyReads(t *testing.T) {
	srv := serve(t, web.Config{Fabric: newFabric()})
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE"} {
		for _, path := range []string{"/", "/api/v1/tree", "/assets/app.js"} {
			req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusMethodNotAllowed {
				t.Errorf("%s %s: %d", method, path, resp.StatusCode)
			}
		}
	}
	for _, path := range []string{"/", "/assets/app.js", "/api/v1/tree", "/api/v1/nothing", "/nothing"} {
		resp, _ := get(t, srv.URL+path)
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
			"Access-Control-Allow-Origin": "", "Set-Cookie": "",
		} {
			if got := resp.Header.Get(name); got != want {
				t.Errorf("%s: %s is %q; want %q", path, name, got, want)
			}
		}
		if csp := resp.Header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'self';") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: Content-Security-Policy is %q", path, csp)
		}
	}
}

// TestFiles: each file of the page has its kind, is packed for who takes that, and is not sent again to who has it.
func TestFiles(t *testing.T) {
	srv := serve(t, web.Config{Fabric: newFabric()})
	for path, kind := range map[string]string{"/": "text/html", "/assets/app.js": "text/javascript", "/assets/style.css": "text/css", "/assets/icon.svg": "image/svg+xml"} {
		resp, plain := get(t, srv.URL+path, "Accept-Encoding", "identity")
		if resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Content-Type"), kind) || len(plain) == 0 {
			t.Errorf("%s: %d %s", path, resp.StatusCode, resp.Header.Get("Content-Type"))
		}
		etag := resp.Header.Get("ETag")
		if resp, body := get(t, srv.URL+path, "If-None-Match", etag); resp.StatusCode != http.StatusNotModified || len(body) > 0 {
			t.Errorf("%s again: %d, %d bytes", path, resp.StatusCode, len(body))
		}
		resp, packed := get(t, srv.URL+path, "Accept-Encoding", "br, gzip;q=0.5")
		if resp.Header.Get("Content-Encoding") != "gzip" {
			if len(plain) > 1024 {
				t.Errorf("%s is not packed", path)
			}
			continue
		}
		z, err := gzip.NewReader(bytes.NewReader(packed))
		if err != nil {
			t.Fatal(err)
		}
		if unpacked, err := io.ReadAll(z); err != nil || !bytes.Equal(unpacked, plain) {
			t.Errorf("%s packed is not what it is unpacked: %v", path, err)
		}
	}
	if resp, _ := get(t, srv.URL+"/assets/..%2fweb.go"); resp.StatusCode != 404 {
		t.Errorf("a file outside: %d", resp.StatusCode)
	}
}

// TestAssets: no file of the page writes HTML from text, names another host, or has a script within the document.
func TestAssets(t *testing.T) {
	files, err := filepath.Glob("assets/*")
	if err != nil || len(files) < 10 {
		t.Fatalf("%v, %v", files, err)
	}
	index, err := os.ReadFile("assets/index.html")
	if err != nil {
		t.Fatal(err)
	}
	page := string(index)
	foreign := regexp.MustCompile(`(?i)(https?:)?//[a-z0-9-]+(\.[a-z0-9-]+)+`)
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		for _, bad := range []string{"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser", "setAttribute(\"style\"", "style: "} {
			if strings.HasSuffix(file, ".js") && strings.Contains(text, bad) {
				t.Errorf("%s has %q", file, bad)
			}
		}
		for _, url := range foreign.FindAllString(text, -1) {
			if !strings.Contains(url, "www.w3.org") { // a name, not an address
				t.Errorf("%s names another host: %s", file, url)
			}
		}
		if name := filepath.Base(file); strings.HasSuffix(name, ".js") && !strings.Contains(page, `"/assets/`+name+`"`) {
			t.Errorf("index.html does not name %s: the browser would ask for it only when another module has come", name)
		}
		if strings.HasSuffix(file, ".html") && regexp.MustCompile(`<script(?:[^>]*)>[^<]|<style|\son[a-z]+=|style=`).MatchString(text) {
			t.Errorf("%s has a script or a style within it", file)
		}
	}
}

// TestWords: both languages have every word, with the same places in it, and every word that the page uses is there.
func TestWords(t *testing.T) {
	b, err := os.ReadFile("assets/words.js")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	en, zh, ok := strings.Cut(text[strings.Index(text, "  en: {"):strings.Index(text, "\n};")], "  zh: {")
	if !ok {
		t.Fatal("words.js is not in two parts")
	}
	pair := regexp.MustCompile(`"([a-z][A-Za-z0-9.-]*)": "([^"]*)"`)
	table := func(part string) map[string]string {
		m := map[string]string{}
		for _, x := range pair.FindAllStringSubmatch(part, -1) {
			if _, twice := m[x[1]]; twice {
				t.Errorf("%s is there twice", x[1])
			}
			m[x[1]] = x[2]
		}
		return m
	}
	words, chinese := table(en), table(zh)
	if len(words) < 100 {
		t.Fatalf("%d words only", len(words))
	}
	places := func(s string) []string {
		var p []string
		for _, x := range regexp.MustCompile(`\{(\d)(\|[^|}]+\|[^|}]+)?\}`).FindAllStringSubmatch(s, -1) {
			p = append(p, x[1])
		}
		slices.Sort(p)
		return p
	}
	for key, word := range words {
		other, ok := chinese[key]
		if !ok || other == "" || word == "" {
			t.Errorf("%s is not in both languages", key)
		} else if d := cmp.Diff(places(word), places(other)); d != "" {
			t.Errorf("%s has other places: %q, %q", key, word, other)
		}
		if !ok && key == "" {
			t.Error("a word without a key")
		}
	}
	for key := range chinese {
		if _, ok := words[key]; !ok {
			t.Errorf("%s is in Chinese only", key)
		}
	}
	used := map[string]bool{}
	files, _ := filepath.Glob("assets/*.js")
	var all strings.Builder
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Base(file) == "words.js" {
			continue
		}
		all.Write(b)
		for _, x := range regexp.MustCompile(`\bt\("([^"]+)"[,)]`).FindAllSubmatch(b, -1) {
			used[string(x[1])] = true
			if _, ok := words[string(x[1])]; !ok {
				t.Errorf("%s uses %s, which is not among the words", file, x[1])
			}
		}
	}
	for key := range words {
		prefix, _, _ := strings.Cut(key, ".")
		if !used[key] && !strings.Contains(all.String(), `"`+key+`"`) && !slices.Contains([]string{"state", "theme", "nav", "then", "offline"}, prefix) && !strings.HasPrefix(key, "rollout.gate.") && !strings.HasPrefix(key, "deletions.state.") {
			t.Errorf("%s is used nowhere", key)
		}
	}
}
