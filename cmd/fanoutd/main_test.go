package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fanout-io/fanout/pkg/identity"
)

// checked runs fanoutd --check on a configuration and returns what it says.
func checked(t *testing.T, text string) (string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "f.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := command(&out)
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs([]string{"--config", file, "--check"})
	err := cmd.Execute()
	return out.String(), err
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	base := fmt.Sprintf("site: hq-a\ngroup: hq\ndataDir: %s/data\nraft: {listen: 127.0.0.1:1}\nfabric: {listen: 127.0.0.1:2}\nregistry: {type: none}\n", dir)
	out, err := checked(t, base)
	if err != nil || !strings.HasSuffix(out, "f.yaml: ok\n") {
		t.Errorf("a good file: %v, %q", err, out)
	}
	if _, err := os.Stat(filepath.Join(dir, "data")); err == nil {
		t.Error("--check made the data directory")
	}
	fails := func(what, text, want string) {
		t.Helper()
		if _, err := checked(t, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q in it", what, err, want)
		}
	}
	child := strings.Replace(base, "group: hq\n", "group: hq/gd\n", 1)
	for parents, want := range map[string]string{
		"parents: [127.0.0.1:3]":                                 "",
		"parents: [127.0.0.1:3, 127.0.0.1:2]":                    "fabric.parents names 127.0.0.1:2, which is this agent's own address; name agents of groups above hq/gd\n",
		"parents: [127.0.0.1:3], fallbackParents: [127.0.0.1:2]": "fabric.fallbackParents names 127.0.0.1:2",
		"parents: [127.0.0.1:4], advertise: 127.0.0.1:4":         "fabric.parents names 127.0.0.1:4",
	} {
		out, err := checked(t, strings.Replace(child, "fabric: {", "fabric: {"+parents+", ", 1))
		if err != nil || !strings.HasSuffix(out, "f.yaml: ok\n") || !strings.Contains(out, want) || (want == "") != (strings.Count(out, "\n") == 1) {
			t.Errorf("%s: %v, %q", parents, err, out)
		}
	}
	fails("no secret file", base+"webhook: {secretFile: /nonexistent/secret}\n", "f.yaml:7: webhook.secretFile: can't be read: open /nonexistent/secret")
	fails("a folder", base+"webhook: {secretFile: "+dir+"}\n", "f.yaml:7: webhook.secretFile: can't be read: ")

	ca := filepath.Join(dir, "ca")
	if err := identity.InitCA(ca, "example.com"); err != nil {
		t.Fatal(err)
	}
	for _, site := range []string{"hq-a", "hq-b"} {
		if err := identity.Issue(ca, identity.ID{Group: "hq", Site: site}, identity.IssueOptions{OutDir: filepath.Join(dir, site)}); err != nil {
			t.Fatal(err)
		}
	}
	with := func(site string) string {
		d := filepath.Join(dir, site)
		return base + fmt.Sprintf("tls: {cert: %s/tls.crt, key: %[1]s/tls.key, ca: %[1]s/ca.crt, trustDomain: example.com}\n", d)
	}
	if out, err := checked(t, with("hq-a")); err != nil || !strings.HasSuffix(out, ": ok\n") {
		t.Errorf("its own certificate: %v, %q", err, out)
	}
	fails("another's certificate", with("hq-b"), "site/hq-b, but this is site \"hq-a\"")
}
