package browser_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/fanout-io/fanout/internal/browser"
)

// faults is a page on which everything is wrong that is looked for.
const faults = `<!doctype html><html><head><title></title></head><body>
<p style="color: #999; background: #fff">pale words</p><p style="font-size: 9px">small words</p>
<button></button><svg width="20" height="20"></svg><div style="width: 3000px">wide</div><table><tr><th>of what</th></tr></table>
<svg role="img" aria-label="x"><g class="glyph" style="color: #eee"><path d="M0 0h20v20z" fill="currentColor"/></g></svg>
<i id="a"></i><i id="a"></i>
<script>console.error("an error"); fetch("/missing"); fetch("http://elsewhere.invalid/x").catch(() => {}); setTimeout(() => { throw new Error("thrown") })</script>
</body></html>`

// sound is a page with nothing wrong.
const sound = `<!doctype html><html lang="en"><head><title>sound</title><link rel="icon" href="data:,"></head><body style="background: #fff"><main><h1>Words</h1><button aria-label="go">x</button><p style="color: #555">plain</p></main></body></html>`

// TestAudit: what is wrong is found, and nothing is found where nothing is.
func TestAudit(t *testing.T) {
	b := browser.Start(t)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		switch r.URL.Path {
		case "/":
			_, _ = io.WriteString(w, faults)
		case "/sound":
			_, _ = io.WriteString(w, sound)
		default:
			http.NotFound(w, r)
		}
	}))
	defer srv.Close()
	p := b.Open(t, srv.URL+"/", browser.View{Width: 1280, Height: 800})
	p.Wait(t, 10*time.Second, "the page", "document.readyState === 'complete'")
	found := strings.Join(p.Audit(t), "\n")
	for _, want := range []string{"contrast 2.85: p \"pale words\"", "letters of 9px", "no name: button", "a picture without a description", "the page is 3", "a heading of a table", "contrast of a shape", "two elements are called a", "the language is not said", "no title", "0 main parts, 0 headings"} {
		if !strings.Contains(found, want) {
			t.Errorf("%q is not found:\n%s", want, found)
		}
	}
	missing := []string{"console: error: \"an error\"", "answered 404", "a request to another host: http://elsewhere.invalid/x", "exception: Uncaught Error: thrown"}
	var wrong string
	deadline := time.Now().Add(10 * time.Second)
	for len(missing) > 0 && time.Now().Before(deadline) {
		wrong += strings.Join(p.Wrong(), "\n") + "\n"
		for len(missing) > 0 && strings.Contains(wrong, missing[0]) {
			missing = missing[1:]
		}
		p.Eval(t, "new Promise((done) => setTimeout(done, 20))")
	}
	if len(missing) > 0 {
		t.Errorf("%q is not noted:\n%s", missing, wrong)
	}
	p.Close()
	p = b.Open(t, srv.URL+"/sound", browser.View{Width: 390, Height: 800})
	p.Wait(t, 10*time.Second, "the page", "document.readyState === 'complete'")
	if w := append(p.Audit(t), p.Wrong()...); len(w) > 0 {
		t.Errorf("a sound page: %q", w)
	}
}
