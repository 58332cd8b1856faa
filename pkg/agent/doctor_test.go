package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

// What a registry can't do is not mended by rights.
func TestDoctorsMend(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{&registry.Error{Op: "push blob", Status: 403, Code: "DENIED"}, "give rights"},
		{&registry.Error{Op: "push blob", Status: 503}, "the registry has trouble of its own"},
		{fmt.Errorf("pushing: %w", &registry.Error{Op: "push blob"}), "start the registry"},
		{errors.New("other"), "give rights"},
	} {
		if got := failed("x", c.err, "give rights"); !strings.HasPrefix(got.mend, c.want) {
			t.Errorf("%v: %q, want %q", c.err, got.mend, c.want)
		}
	}
}
