package config_test

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/fanout-io/fanout/pkg/config"
)

func TestParseSaysWhatAKeyWants(t *testing.T) {
	for _, tt := range []struct{ name, add, want string }{
		{"duration", "sweep: {interval: 5}", `f.yaml:14: sweep.interval: "5" is not a duration; write one such as 5m`},
		{"rate", "tls:\n\nwebhook: {secretFile: [a]}", `f.yaml:16: webhook.secretFile: a list is not a text`},
		{"a key that holds others", "scrub: 5", `f.yaml:14: scrub: "5" is not a list of keys; write the keys`},
		{"list", "subscribe:\n  exclude: x", `f.yaml:15: subscribe.exclude: "x" is not a list; write one such as [a, b]`},
		{"what is in a list", "subscribe: {exclude: [a, [b]]}", `f.yaml:14: subscribe.exclude: a list is not a text`},
		{"what a name stands for", "webhook: {secretFile: {a: {b: c}}}", `f.yaml:14: webhook.secretFile: a list of keys is not a text`},
		{"number", "subscribe:\n  keep: many", `f.yaml:15: subscribe.keep: "many" is not a whole number`},
		{"key below a key", "http: {lisen: 127.0.0.1:1}", "f.yaml:14: unknown key http.lisen; remove it"},
		{"twice", "site: x", `f.yaml:14: mapping key "site" already defined at line 1; keep one`},
		{"several at once", "sweep: {interval: 5}\nscrub: {interval: x}", `f.yaml:15: scrub.interval: "x" is not a duration`},
		{"syntax", "webhook: {a: [b}", "is not YAML: did not find"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := config.Parse("f.yaml", []byte(province+tt.add+"\n"), none)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
		})
	}
	for _, in := range []string{"- a", "a", "5"} {
		if _, err := config.Parse("f.yaml", []byte(in), none); err == nil || !strings.Contains(err.Error(), "f.yaml:1: the file is no list of keys") {
			t.Errorf("%q: %v", in, err)
		}
	}
	// What is no single value is not the same as nothing, which is unlimited.
	if _, err := config.Parse("f.yaml", []byte(strings.Replace(province, "200Mbps", "{a: b}", 1)), none); err == nil || !strings.Contains(err.Error(), "limits.download: a list of keys is not a rate") {
		t.Errorf("a rate that holds keys: %v", err)
	}
}

func TestCheckLooksForTheFiles(t *testing.T) {
	in := province + "webhook: {secretFile: /there}\nhttp:\n  tls:\n    cert: /gone\n    key: /there\n"
	read := func(file string) error {
		if file == "/gone" {
			return &fs.PathError{Op: "open", Path: file, Err: fs.ErrNotExist}
		}
		return nil
	}
	_, err := config.Check("f.yaml", []byte(in), none, read)
	if want := "f.yaml:17: http.tls.cert: can't be read: open /gone: file does not exist; put the file there, or name another"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if c, err := config.Check("f.yaml", []byte(in), none, func(string) error { return nil }); err != nil || c.Site != "gd-a" {
		t.Errorf("with all files there: %v, %v", c, err)
	}
	if _, err := config.Check("f.yaml", []byte(in+"x: y\n"), none, func(string) error { return errors.New("not to be asked") }); err == nil || !strings.Contains(err.Error(), "unknown key x") {
		t.Errorf("wrong besides: %v", err)
	}
}
