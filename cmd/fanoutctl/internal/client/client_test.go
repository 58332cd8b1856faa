package client_test

import (
	"testing"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/client"
)

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"127.0.0.1:7400", "[::1]:7400", "unix:/run/x", "unix:///run/x", "unix:", "x", ":1", "x:", "x:99999", "unix:a\x00b", "a/b:1", "host:http"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := client.ParseAddress(s)
		if err != nil {
			return
		}
		again, err := client.ParseAddress(a.String())
		if err != nil || again != a {
			t.Fatalf("%q gave %v, which gave %v, %v", s, a, again, err)
		}
		_ = a.Loopback()
	})
}
