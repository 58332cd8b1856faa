package agent

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/pkg/registry"
)

func TestJudgeClock(t *testing.T) {
	for _, c := range []struct {
		least, most time.Duration
		want        string
	}{
		{-time.Millisecond, time.Millisecond, checkOK},
		{-clockBound, -clockBound, checkOK},
		// A slow answer tells nothing against a clock.
		{-10 * time.Second, time.Second, checkOK},
		{-time.Second, 10 * time.Second, checkOK},
		{-10 * time.Second, -clockBound - 1, checkFail},
		{clockBound + 1, time.Minute, checkFail},
	} {
		if got := judgeClock("clock", c.least, c.most); got.state != c.want || (got.mend == "") != (c.want == checkOK) {
			t.Errorf("%s to %s: %+v, want %s", c.least, c.most, got, c.want)
		}
	}
}

func TestJudgeCertificate(t *testing.T) {
	now := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	const day = 24 * time.Hour
	for _, c := range []struct {
		lived, left time.Duration
		want        string
	}{
		{day, 300 * day, checkOK},
		{300 * day, 13 * day, checkWarn},
		{300 * day, 0, checkFail},
		{300 * day, -day, checkFail},
		// One of an hour is renewed in good time.
		{30 * time.Minute, 30 * time.Minute, checkOK},
		{50 * time.Minute, 10 * time.Minute, checkWarn},
	} {
		if got := judgeCertificate("c", "/f", now.Add(-c.lived), now.Add(c.left), now); got.state != c.want {
			t.Errorf("lived %s, %s left: %+v, want %s", c.lived, c.left, got, c.want)
		}
	}
	file := filepath.Join(t.TempDir(), "tls.crt")
	if got := certificate("c", file, now); got.state != checkFail {
		t.Errorf("no file: %+v", got)
	}
	if err := os.WriteFile(file, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := certificate("c", file, now); got.state != checkFail {
		t.Errorf("rubbish: %+v", got)
	}
}

// TestRegistryFailed: a person is told by doctor what why tells him of the same error, in plain words; only where a right lacks the doctor knows better which.
func TestRegistryFailed(t *testing.T) {
	const closed = `Get "https://registry.sz/v2/": dial tcp 127.0.0.1:1: connect: connection refused`
	a := siteOf(t)
	refused := httptest.NewServer(http.NotFoundHandler())
	refused.Close()
	gone, err := registry.New(registry.Config{URL: refused.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer gone.CloseIdle()
	late, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	for _, c := range []struct {
		name         string
		err          error
		detail, mend string
	}{
		{"not running", gone.Ping(t.Context()), "ping registry: " + refused.URL + "/v2/: " + strings.TrimPrefix(refused.URL, "http://") + ": connection refused", "start https://registry.sz, or mend the network between it and sz-a"},
		{"no answer", gone.Ping(late), "ping registry: no answer in time", "look at the load of sz-a and of https://registry.sz"},
		{"403", &registry.Error{Op: "push blob", Status: 403, Code: "DENIED"}, "push blob: 403 Forbidden DENIED", "give rights"},
		{"other", errors.New(closed), "https://registry.sz/v2/: 127.0.0.1:1: connection refused", "give rights"},
	} {
		got := a.registryFailed("x", c.err, "give rights")
		if got.state != checkFail || !strings.Contains(got.mend, c.mend) || got.detail != c.detail {
			t.Errorf("%s: %+v\nwant %s, %s", c.name, got, c.detail, c.mend)
		}
	}
}

// TestDoctor_NoRegistry: of a registry that is not running /readyz, doctor and the preflight of a rollout say the same, without the words of the language.
func TestDoctor_NoRegistry(t *testing.T) {
	g := &gate{url: "http://" + freeAddr(t)}
	hq := runTree(t, map[string]*gate{"hq": g}, "hq")["hq"]
	want := "ping registry: " + g.url + "/v2/: " + strings.TrimPrefix(g.url, "http://") + ": connection refused"
	waitFor(t, "it was noticed", func() error {
		if got := hq.checks()["registry"]; got != want {
			return errors.New(got)
		}
		return nil
	})
	for _, c := range []check{hq.checkRights(t.Context())[0], hq.registryAnswers(t.Context())} {
		if c.detail != want || c.mend != "start "+g.url+", or mend the network between it and s0" {
			t.Errorf("%+v", c)
		}
	}
	for name, why := range hq.checks() {
		if strings.Contains(why, "dial tcp") || strings.Contains(why, "\n") {
			t.Errorf("%s: %s", name, why)
		}
	}
}

// What answers at an address of the file may be somebody who can't be the parent.
func TestJudgeParents(t *testing.T) {
	const group, site = "hq/gd/sz", "sz-a"
	at := func(group, site string) *treev1.IdentifyResponse {
		return &treev1.IdentifyResponse{Group: group, Site: site}
	}
	for _, c := range []struct {
		x                   answering
		state, detail, mend string
	}{
		{answering{id: at("hq/gd", "gd-a")}, checkOK, "gd-a of hq/gd answers", ""},
		{answering{id: at("hq/gd", "gd-a"), fallback: true}, checkOK, "gd-a of hq/gd answers", ""},
		{answering{id: at("hq", "hq-a"), fallback: true}, checkOK, "hq-a of hq answers", ""},
		{answering{err: errors.New("refused")}, checkWarn, "it does not answer: refused", "take the address out of fabric.parents"},
		{answering{err: errors.New("refused"), fallback: true}, checkWarn, "it does not answer", "take the address out of fabric.fallbackParents"},
		{answering{id: at(group, site)}, checkWarn, "this agent itself", "name agents of hq/gd there"},
		{answering{id: at(group, "sz-b")}, checkWarn, "it is sz-b, a member of this group", "name agents of hq/gd there"},
		{answering{id: at("hq/gd/fs", "fs-a")}, checkWarn, "fs-a of hq/gd/fs answers, which is not above hq/gd/sz", "name agents of hq/gd there"},
		{answering{id: at("hq/g", "g-a")}, checkWarn, "which is not above", "name agents of hq/gd there"},
		{answering{id: at("hq/gd/sz/nh", "nh-a"), fallback: true}, checkWarn, "which is not above", "out of fabric.fallbackParents; only agents of groups above hq/gd/sz"},
		{answering{id: at("hq", "hq-a")}, checkWarn, "hq-a of hq answers, which is past hq/gd", "those of groups further up in fabric.fallbackParents"},
	} {
		got := judgeParent(group, site, c.x)
		if got.state != c.state || !strings.Contains(got.detail, c.detail) || !strings.Contains(got.mend, c.mend) || (got.mend == "") != (c.state == checkOK) {
			t.Errorf("%+v: %+v", c.x, got)
		}
	}
	hq, gd := answering{id: at("hq", "hq-a")}, answering{id: at("hq/gd", "gd-a")}
	fallback := answering{id: at("hq", "hq-b"), fallback: true}
	for _, c := range []struct {
		root, parent  string
		answers       []answering
		state, detail string
	}{
		{"sz-a", "hq/gd", []answering{gd, fallback}, checkOK, "attached to hq/gd"},
		{"sz-a", "hq", []answering{{err: errors.New("refused")}, fallback}, checkWarn, "attached to the fallback parent hq: hq/gd was out of reach"},
		{"sz-a", "hq", []answering{hq, gd}, checkWarn, "attached to hq, past hq/gd"},
		{"sz-a", "hq", []answering{hq, fallback}, checkWarn, "attached to hq, past hq/gd"},
		{"", "", nil, checkWarn, "without a root"},
		{"sz-a", "", []answering{gd}, checkFail, "attached to no parent"},
	} {
		if got := judgeAttachment(group, c.root, c.parent, c.answers); got.state != c.state || !strings.Contains(got.detail, c.detail) {
			t.Errorf("%+v: %+v", c, got)
		}
	}
}
