package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestWords(t *testing.T) {
	dial := status.Error(codes.Unavailable, `connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:1: connect: connection refused"`)
	full := fmt.Errorf("receiving: %w", &fs.PathError{Op: "write", Path: "/var/lib/fanoutd/spool/ab/cd", Err: syscall.ENOSPC})
	for _, c := range []struct{ got, want string }{
		{count(1, "push", "pushes"), "1 push"},
		{count(2, "push", "pushes"), "2 pushes"},
		{count(0, "ref"), "0 refs"},
		{count(uint64(1), "ref"), "1 ref"},
		{inBytes(3 << 30), "3.0 GiB"},
		{inBytes(-1), "0 B"},
		{days(7 * 24 * time.Hour), "7 days"},
		{days(24 * time.Hour), "1 day"},
		{lostHere(1), "a push here lost against another of its tag and waits for a word: see 'fanoutctl conflicts'"},
		{lostHere(2), "2 pushes here lost against others of their tags and wait for a word: see 'fanoutctl conflicts'"},
		{callWords(dial), "127.0.0.1:1: connection refused"},
		{callWords(status.Error(codes.NotFound, "no site")), "no site"},
		{plainWords(full), "receiving: write: no space left on device"},
		{plainWords(errors.New("x")), "x"},
	} {
		if c.got != c.want {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
}
