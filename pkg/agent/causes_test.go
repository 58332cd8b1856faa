package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/reconcile"
	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/registry/harbortest"
	"github.com/fanout-io/fanout/pkg/store"
	"github.com/fanout-io/fanout/pkg/transfer"
	"github.com/fanout-io/fanout/pkg/tree"
)

// asked gives the error of a question to a registry that answers as the handler does.
func asked(t *testing.T, h http.Handler, tls bool, patience time.Duration) error {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	if srv.Config.ErrorLog = log.New(io.Discard, "", 0); tls {
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(srv.Close)
	return askedAt(t, srv.URL, patience)
}

func askedAt(t *testing.T, url string, patience time.Duration) error {
	c, err := registry.New(registry.Config{URL: url, HeaderTimeout: patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdle)
	_, err = c.Resolve(t.Context(), "team/app", "1")
	return err
}

func sources(errs ...error) error {
	all := &transfer.SourcesError{Digest: "sha256:1"}
	for i, err := range errs {
		all.Sources, all.Errs = append(all.Sources, transfer.Source{Site: fmt.Sprint("s", i), Addr: "10.0.0.1:7400"}), append(all.Errs, err)
	}
	return fmt.Errorf("gathering manifests: %w", all)
}

// troubles makes an error of each kind that no test of a whole delivery shows, the registry's by asking one.
func troubles(t *testing.T) map[string]error {
	status := func(code int, body string) error {
		return asked(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v2/" {
				return
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(code)
			_, _ = io.WriteString(w, body)
		}), false, 0)
	}
	hang := harbortest.New(harbortest.Config{Knobs: harbortest.Knobs{Plain: true, Open: true}})
	t.Cleanup(hang.Close)
	hang.AddFault(harbortest.Fault{Hang: true})
	refused := httptest.NewServer(nil)
	refused.Close()
	elsewhere := asked(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://"+r.Host+r.URL.Path, http.StatusPermanentRedirect)
	}), false, 0)
	_, notThere := os.Open(filepath.Join(t.TempDir(), "no"))
	broken := status(500, `{"errors":[{"code":"UNKNOWN","message":"unknown error"}]}`)
	return map[string]error{
		"registry-hangs":         asked(t, hang, false, 100*time.Millisecond),
		"registry-silent":        fmt.Errorf("%w: ping registry: %w", errSilent, context.DeadlineExceeded),
		"registry-certificate":   asked(t, http.NotFoundHandler(), true, 0),
		"registry-unreachable":   askedAt(t, refused.URL, 0),
		"registry-error":         broken,
		"registry-disk":          &roomError{broken, 4096},
		"registry-deletes-not":   status(405, `{"errors":[{"code":"UNSUPPORTED","message":"The operation is unsupported."}]}`),
		"registry-answer":        elsewhere,
		"registry-refuses":       status(418, ""),
		"blob-larger-than-spool": fmt.Errorf("opening: %w", store.ErrTooLarge),
		"disk-full":              &fs.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC},
		"disk-error":             notThere,
		"no-parent":              sources(fmt.Errorf("choosing sources: group hq/gd: %w", errNoParent)),
		"no-fellow":              sources(fmt.Errorf("choosing sources: group hq: %w", errNoFellow)),
		"content-altered":        sources(transfer.ErrBadSource, transfer.ErrBadSource),
		"content-nowhere":        sources(transfer.ErrNotFound, transfer.ErrNotFound),
		"not-in-scope":           sources(transfer.ErrDenied),
		"sources-unreachable":    sources(transfer.ErrNotFound, transfer.ErrUnavailable),
		"content-invalid":        fmt.Errorf("planning: %w", reconcile.ErrMalformed),
		"no-root":                fmt.Errorf("publishing: %w", tree.ErrNoRoot),
		"refused-by-catalog":     &catalog.Refusal{Kind: catalog.ErrInvalid, Message: "it is stale"},
		"timed-out":              fmt.Errorf("asking: %w", context.DeadlineExceeded),
		"agent-error":            errors.New("bolt: page 7 already freed"),
	}
}

// TestCauses: each kind of error has a word, words and a mend of its own, and none is left without. Those that need a whole delivery are in TestWhy_Refusals.
func TestCauses(t *testing.T) {
	a := siteOf(t)
	ref := catalog.Ref{Repository: "team/app", Tag: "1"}
	shown := map[string]bool{}
	for _, r := range refusalsOfHarbor {
		b, err := os.ReadFile(filepath.Join("testdata", "why", r.name+".txt"))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(b), "\ncause: ")
		word, _, _ := strings.Cut(rest, "\n")
		shown[word] = true
	}
	all := troubles(t)
	for _, k := range causes {
		err := all[k.word]
		if err == nil {
			if !shown[k.word] {
				t.Errorf("no test shows the cause %q", k.word)
			}
			continue
		}
		got := a.troubleOf(ref, err)
		if got.GetCause() != k.word {
			t.Errorf("%v is taken for %q, want %q", err, got.GetCause(), k.word)
		}
		if got.GetMend() == "" || strings.ContainsAny(got.GetSummary()+got.GetMend(), "{}") {
			t.Errorf("%s: %q, %q", k.word, got.GetSummary(), got.GetMend())
		}
		golden(t, k.word, judged(ref, false, func(_, _, sz *adminv1.WhyHop) {
			missing(sz, "failed", got)
			sz.Reason, sz.Attempts, sz.Since, sz.NextAttempt = plainWords(err), 2, ago(time.Minute), timestamppb.New(noon.Add(40*time.Second))
		}))
	}
}

func TestNearest(t *testing.T) {
	known := []string{"gd-a", "gd-b", "hn-a", "shenzhen-a", "team/app:1.4", "team/api:1.4"}
	for name, want := range map[string]string{
		"gd-c": "gd-a gd-b", "gda": "gd-a gd-b", "shenzen-a": "shenzhen-a", "shenzhen": "shenzhen-a", "team/ap:1.4": "team/api:1.4 team/app:1.4", "quite-another-name": "", "": "",
	} {
		if got := strings.Join(nearest(name, known), " "); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}

// TestCauses_InChinese: the page has a sentence for each cause, and for each that a person can mend one for that, in the language that it is not said in.
func TestCauses_InChinese(t *testing.T) {
	read := func(elem ...string) string {
		b, err := os.ReadFile(filepath.Join(elem...))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	page := map[string][]string{}
	for _, m := range regexp.MustCompile(`(?m)^  "([a-z-]+)": \["([^"]+)", "([^"]*)"\],$`).FindAllStringSubmatch(read("..", "web", "assets", "causes.js"), -1) {
		page[m[1]] = m[2:]
	}
	mends := map[string]bool{}
	for _, k := range causes {
		mends[k.word] = k.mend != ""
	}
	for _, m := range regexp.MustCompile(`(?m)^\tcause\w+ += "([a-z-]+)"$`).FindAllStringSubmatch(read("causes.go"), -1) {
		mends[m[1]] = false // it may have one
	}
	if len(mends) < 45 {
		t.Fatalf("only %d causes are found", len(mends))
	}
	for word, mend := range mends {
		switch said := page[word]; {
		case said == nil:
			t.Errorf("causes.js does not have %q", word)
		case mend && said[1] == "":
			t.Errorf("causes.js does not say what to do about %q", word)
		}
	}
	for word := range page {
		if _, ok := mends[word]; !ok {
			t.Errorf("causes.js has %q, which is none", word)
		}
	}
}
