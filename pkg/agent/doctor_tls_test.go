package agent

import (
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/fanout-io/fanout/pkg/identity"
)

// TestDoctor_Handshakes: who answers at an address and can't be spoken with is told apart from nobody, by real handshakes, in plain words and with the mend that fits.
func TestDoctor_Handshakes(t *testing.T) {
	authority := func(domain string) string {
		dir := t.TempDir()
		if err := identity.InitCA(dir, domain); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	source := func(ca, group, site string, ttl time.Duration) *identity.Source {
		dir := t.TempDir()
		if err := identity.Issue(ca, identity.ID{Group: group, Site: site}, identity.IssueOptions{OutDir: dir, TTL: ttl}); err != nil {
			t.Fatal(err)
		}
		src, err := identity.Load(identity.Files{Cert: filepath.Join(dir, identity.CertFile), Key: filepath.Join(dir, identity.KeyFile), CA: filepath.Join(dir, identity.CACertFile)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return src
	}
	listen := func(creds credentials.TransportCredentials) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		opts := []grpc.ServerOption{}
		if creds != nil {
			opts = append(opts, grpc.Creds(creds))
		}
		srv := grpc.NewServer(opts...)
		go func() { _ = srv.Serve(l) }()
		t.Cleanup(srv.Stop)
		return l.Addr().String()
	}
	secure := func(src *identity.Source) string { return listen(credentials.NewTLS(src.ServerTLS())) }
	ours := authority("example.com")
	other := authority("example.com")
	const group, site = "hq/gd/fs", "fs-a"
	mine := newPeers(source(ours, group, site, 0), group)
	defer mine.close()
	ended := source(ours, "hq/gd", "gd-a", time.Second)
	for _, c := range []struct {
		name, addr   string
		detail, mend string
	}{
		{"another authority", secure(source(other, "hq/gd", "gd-a", 0)), "an authority that is not trusted here", "tls.ca"},
		{"another trust domain", secure(source(authority("example.org"), "hq/gd", "gd-a", 0)), "another trust domain", "correct the address"},
		{"a sibling", secure(source(ours, "hq/gd/sz", "sz-a", 0)), "sz-a of hq/gd/sz answers, which is not above hq/gd/fs", "name agents of hq/gd there"},
		{"no TLS", listen(nil), "does not speak TLS", "fabric.listen"},
		{"an ended certificate", secure(ended), "has ended", "new certificate"},
		{"nobody", freeAddr(t), "it does not answer: ", "start that agent"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.name == "an ended certificate" {
				waitFor(t, "it has ended", func() error {
					if time.Now().After(ended.NotAfter()) {
						return nil
					}
					return errors.New("not yet")
				})
			}
			a := &Agent{peers: mine}
			_, err := a.whoAt(t.Context(), c.addr)
			if err == nil {
				t.Fatal("it answered")
			}
			got := judgeParent(group, site, answering{addr: c.addr, err: err})
			if got.state != checkWarn || !strings.Contains(got.detail, c.detail) || !strings.Contains(got.mend, c.mend) {
				t.Errorf("%+v\nof %v", got, err)
			}
			for _, w := range []string{"x509", "svid", `\`, `"`, "verifying peer"} {
				if strings.Contains(got.detail+got.mend, w) {
					t.Errorf("%q is in %+v", w, got)
				}
			}
			if c.name == "a sibling" {
				return // is no member
			}
			if detail, mend := refused(err); (c.name == "nobody") != (detail == "") || (detail == "") != (mend == "") {
				t.Errorf("of a member: %q, %q", detail, mend)
			}
		})
	}
}

// TestReady_CertificateEnded: an agent whose own certificate has ended is not ready, and says why, also while its connections of before stand.
func TestReady_CertificateEnded(t *testing.T) {
	ca, dir := t.TempDir(), t.TempDir()
	if err := errors.Join(identity.InitCA(ca, "example.com"), identity.Issue(ca, identity.ID{Group: "hq", Site: "s0"}, identity.IssueOptions{OutDir: dir, TTL: 2 * time.Second})); err != nil {
		t.Fatal(err)
	}
	src, err := identity.Load(identity.Files{Cert: filepath.Join(dir, identity.CertFile), Key: filepath.Join(dir, identity.KeyFile), CA: filepath.Join(dir, identity.CACertFile)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	hq := runTree(t, map[string]*gate{"hq": {url: "http://" + freeAddr(t)}}, "hq")["hq"]
	says := func() string { return (&Agent{cfg: hq.cfg, node: hq.node, identity: src}).checks()["certificate"] }
	if got := says(); time.Now().Before(src.NotAfter()) && got != "ok" {
		t.Errorf("while it is good: %q", got)
	}
	waitFor(t, "it has ended", func() error {
		if got := says(); !strings.Contains(got, "this site's certificate ended at ") {
			return errors.New(got)
		}
		return nil
	})
	if _, there := hq.checks()["certificate"]; there {
		t.Error("without TLS there is a certificate")
	}
}
