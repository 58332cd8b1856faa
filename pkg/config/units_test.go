package config_test

import (
	"testing"

	"github.com/fanout-io/fanout/pkg/config"
)

func FuzzUnits(f *testing.F) {
	for _, s := range []string{"unlimited", "", "200Mbps", "1.5Gbps", "20GiB", "1kB", "0", "-1MB", "9999999999999999999TB", "1e400", "NaN", ".", "1..2MiB", " 7 MiB "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := config.ParseRate(s); err == nil && r < 0 {
			t.Fatalf("%q gave %d", s, r)
		}
		if n, err := config.ParseSize(s); err == nil && n < 1 {
			t.Fatalf("%q gave %d", s, n)
		}
	})
}
