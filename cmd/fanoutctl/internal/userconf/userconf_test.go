package userconf_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/userconf"
)

func TestPath(t *testing.T) {
	tests := []struct{ xdg, home, want string }{
		{"/x", "/h", "/x/fanout/config.yaml"},
		{"", "/h", "/h/.config/fanout/config.yaml"},
		{"relative", "/h", "/h/.config/fanout/config.yaml"},
		{"", "", ""},
	}
	for _, tc := range tests {
		env := map[string]string{"XDG_CONFIG_HOME": tc.xdg, "HOME": tc.home}
		if got := userconf.Path(func(k string) string { return env[k] }); got != tc.want {
			t.Errorf("%+v: %q", tc, got)
		}
	}
}

func TestSaveAndLoad(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "new", "config.yaml")
	empty, err := userconf.Load(path)
	if err != nil || empty.Version != 1 || len(empty.Contexts) != 0 {
		t.Fatalf("%+v %v", empty, err)
	}
	empty.Contexts["lab"] = userconf.Context{Server: "127.0.0.1:7400"}
	empty.Contexts["prod"] = userconf.Context{Server: "hq:7400", TLS: userconf.TLS{Cert: "/c", Key: "k", CA: "ca.crt", TrustDomain: "example.com"}}
	empty.Current = "prod"
	if err := empty.Save(path); err != nil {
		t.Fatal(err)
	}
	got, err := userconf.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	prod := got.Contexts["prod"].TLS
	want := userconf.TLS{Cert: "/c", Key: filepath.Join(dir, "new", "k"), CA: filepath.Join(dir, "new", "ca.crt"), TrustDomain: "example.com"}
	if diff := cmp.Diff(want, prod); diff != "" || got.Current != "prod" || cmp.Diff([]string{"lab", "prod"}, got.Names()) != "" {
		t.Errorf("%+v %s", got, diff)
	}
	if fi, _ := os.Stat(path); fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", fi.Mode())
	}
	// A file that is a link to somewhere else stays one.
	link := filepath.Join(dir, "link.yaml")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	got.Current = "lab"
	if err := got.Save(link); err != nil {
		t.Fatal(err)
	}
	if fi, _ := os.Lstat(link); fi.Mode()&os.ModeSymlink == 0 {
		t.Error("the link is gone")
	}
	if again, _ := userconf.Load(path); again.Current != "lab" {
		t.Errorf("%+v", again)
	}
}

func TestParse_Refused(t *testing.T) {
	for in, text := range map[string]string{
		"version: 2":         "version 2",
		"version: 1\nfoo: x": "line 2",
		"contexts: {a: {server: x, tls: {b: c}}}": "field b not found",
		"contexts: {a: {}}":                       "context a has no server",
		"contexts: {a/b: {server: x}}":            "context name",
		"current: x":                              `no such context: "x"`,
		"version: 1\n---\nversion: 1":             "more than one",
		"[":                                       "",
	} {
		if _, err := userconf.Parse([]byte(in)); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: %v; want %q", in, err, text)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("version: 1\ncurrent: a\ncontexts:\n  a:\n    server: x:1\n    tls: {cert: c, key: k, ca: a, trustDomain: t}\n"))
	f.Add([]byte(""))
	f.Add([]byte("a: &x [*x]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := userconf.Parse(b)
		if err != nil {
			return
		}
		out, err := c.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := userconf.Parse(out)
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if diff := cmp.Diff(c, again); diff != "" {
			t.Fatal(diff)
		}
	})
}
