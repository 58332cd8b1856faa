// Package browser lets tests look at the web page as a person does: in Chromium. It notes what goes wrong in a page (exceptions, errors on the console, requests that fail or go to another host), and
// audits it: contrast of text, names of controls, landmarks, widths.
//
// It needs Debian's chromium, or another that is called chromium, chromium-browser or google-chrome; without one the test is skipped, and says so. A Page is used by one goroutine at a time.
package browser

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// patience bounds every wait for the browser itself.
const patience = 60 * time.Second

//go:embed audit.js
var audit string

// Browser is one process of Chromium.
type Browser struct {
	ctx context.Context
}

// View is what a page is looked at with.
type View struct {
	Width, Height int64
	Dark          bool
	Language      string // default en-US
}

// Page is one tab. What goes wrong in it is noted from the beginning.
type Page struct {
	ctx  context.Context
	stop context.CancelFunc
	host string

	mu      sync.Mutex
	wrong   []string
	pending map[network.RequestID]string
}

// Start starts Chromium; it ends with the test.
func Start(t testing.TB) *Browser {
	t.Helper()
	bin := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if p, err := exec.LookPath(name); err == nil {
			bin = p
			break
		}
	}
	if bin == "" {
		t.Skip("no chromium here: the web page is not looked at; install Debian's package chromium")
	}
	// Nothing but what the test opens is asked for, from no other host.
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(bin), chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("no-proxy-server", true), chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"), chromedp.Flag("font-render-hinting", "none"))
	if os.Geteuid() == 0 {
		opts = append(opts, chromedp.NoSandbox) // Chromium refuses to run as root with it
	}
	actx, stop := chromedp.NewExecAllocator(context.Background(), opts...)
	ctx, end := chromedp.NewContext(actx)
	t.Cleanup(func() { _ = chromedp.Cancel(ctx); end(); stop() })
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("starting %s: %v", bin, err)
	}
	return &Browser{ctx: ctx}
}

// Open opens an address in a tab of its own, which is closed with the test.
func (b *Browser) Open(t testing.TB, address string, v View) *Page {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := chromedp.NewContext(b.ctx)
	t.Cleanup(stop)
	p := &Page{ctx: ctx, stop: stop, host: u.Host, pending: map[network.RequestID]string{}}
	if err := chromedp.Listen(ctx, p.heard); err != nil {
		t.Fatalf("the browser: %v", err)
	}
	if v.Language == "" {
		v.Language = "en-US"
	}
	scheme := "light"
	if v.Dark {
		scheme = "dark"
	}
	p.run(t, chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.Call(ctx, network.Enable, network.EnableParams{})
		_, rerr := chromedp.Call(ctx, runtime.Enable, cdp.Empty{})
		_, lerr := chromedp.Call(ctx, log.Enable, cdp.Empty{})
		_, serr := chromedp.Call(ctx, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: v.Width, Height: v.Height, DeviceScaleFactor: 1, Mobile: v.Width < 600})
		_, merr := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
		_, nerr := chromedp.Call(ctx, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{
			Source: fmt.Sprintf("Object.defineProperty(navigator, 'language', {get: () => %q})", v.Language),
		})
		return errors.Join(err, rerr, lerr, serr, merr, nerr)
	}), chromedp.Navigate(address))
	return p
}

// Close closes the tab.
func (p *Page) Close() { p.stop() }

func (p *Page) run(t testing.TB, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	if _, err := ask(p, chromedp.Steps(steps...)); err != nil {
		t.Fatalf("the browser: %v", err)
	}
}

// ask has a bound of its own: a browser that hangs must not hang the test.
func ask[T any](p *Page, a chromedp.Action[T]) (T, error) {
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	return chromedp.Run(ctx, a)
}

// heard notes what goes wrong.
func (p *Page) heard(ev any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	note := func(format string, args ...any) { p.wrong = append(p.wrong, fmt.Sprintf(format, args...)) }
	switch ev := ev.(type) {
	case *runtime.EventExceptionThrown:
		what := ev.ExceptionDetails.Text
		if x := ev.ExceptionDetails.Exception; x != nil {
			what += " " + x.Description
		}
		note("exception: %s", what)
	case *runtime.EventConsoleAPICalled:
		if ev.Type == "error" || ev.Type == "warning" || ev.Type == "assert" {
			var words []string
			for _, a := range ev.Args {
				words = append(words, string(a.Value)+a.Description)
			}
			note("console: %s: %s", ev.Type, strings.Join(words, " "))
		}
	case *log.EventEntryAdded:
		if ev.Entry.Level == "error" || ev.Entry.Level == "warning" {
			note("log: %s: %s %s", ev.Entry.Level, ev.Entry.Text, ev.Entry.URL)
		}
	case *network.EventRequestWillBeSent:
		p.pending[ev.RequestID] = ev.Request.URL
		if u, err := url.Parse(ev.Request.URL); err == nil && u.Scheme != "data" && u.Host != p.host {
			note("a request to another host: %s", ev.Request.URL)
		}
	case *network.EventResponseReceived:
		if ev.Response.Status >= 400 {
			note("answered %d: %s", ev.Response.Status, ev.Response.URL)
		}
	case *network.EventLoadingFailed:
		// A stream that the page itself ends is no failure.
		if !ev.Canceled && ev.ErrorText != "net::ERR_ABORTED" {
			note("failed: %s: %s", ev.ErrorText, p.pending[ev.RequestID])
		}
	}
}

// Wrong returns what went wrong since it was asked last.
func (p *Page) Wrong() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.wrong
	p.wrong = nil
	return w
}

// Eval evaluates an expression, which may be a promise.
func (p *Page) Eval(t testing.TB, expression string) {
	t.Helper()
	p.run(t, chromedp.Evaluate[chromedp.Void](expression, chromedp.EvalAwaitPromise))
}

// Value evaluates an expression, which may be a promise, to a value.
func Value[T any](t testing.TB, p *Page, expression string) T {
	t.Helper()
	v, err := ask(p, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		t.Fatalf("the browser: %s: %v", expression[:min(len(expression), 200)], err)
	}
	return v
}

// Wait waits until an expression is true, and returns how long that took.
func (p *Page) Wait(t testing.TB, limit time.Duration, what, expression string) time.Duration {
	t.Helper()
	began := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if Value[bool](t, p, "Boolean("+expression+")") {
			return time.Since(began)
		}
		if time.Since(began) > limit {
			t.Fatalf("%s: not within %s; the page says:\n%s\nand went wrong: %q", what, limit, Value[string](t, p, "document.body.innerText"), p.Wrong())
		}
		<-tick.C
	}
}

// Go turns to a page by its hash.
func (p *Page) Go(t testing.TB, hash string) {
	t.Helper()
	p.Eval(t, fmt.Sprintf("void (location.hash = %q)", hash))
}

// Key presses a key where the focus is.
func (p *Page) Key(t testing.TB, keys string) {
	t.Helper()
	p.run(t, chromedp.KeyEvent(keys))
}

// Click clicks on the middle of an element.
func (p *Page) Click(t testing.TB, selector string) {
	t.Helper()
	p.run(t, chromedp.Click(chromedp.CSS(selector)))
}

// Screenshot takes a picture of what is seen, as PNG.
func (p *Page) Screenshot(t testing.TB) []byte {
	t.Helper()
	png, err := ask(p, chromedp.CaptureScreenshot())
	if err != nil {
		t.Fatalf("the browser: %v", err)
	}
	return png
}

// Audit lists what a person would stumble over: text with too little contrast, controls without a name, pictures without a description, a page that is wider than the screen.
func (p *Page) Audit(t testing.TB) []string {
	t.Helper()
	return Value[[]string](t, p, audit)
}
