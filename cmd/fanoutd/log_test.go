package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestNewLogger_Attributes(t *testing.T) {
	var out bytes.Buffer
	l, err := newLogger(&out, "info")
	if err != nil {
		t.Fatal(err)
	}
	l.Warn("work on a ref failed", "digest", "", "retry_in", 90*time.Second)
	l.Info("x", "digest", "sha256:1")
	if got := out.String(); !strings.Contains(got, `"retry_in":"1m30s"`) || strings.Contains(got, `"digest":""`) || !strings.Contains(got, `"digest":"sha256:1"`) {
		t.Error(got)
	}
}
