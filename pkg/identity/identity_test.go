package identity_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/fanout-io/fanout/pkg/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const domain = "example.com"

var (
	hqA   = identity.ID{Group: "hq", Site: "hq-a"}
	gdA   = identity.ID{Group: "hq/guangdong", Site: "gd-a"}
	alice = identity.ID{User: "alice"}
)

func newCA(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	if err := identity.InitCA(dir, domain); err != nil {
		t.Fatal(err)
	}
	return dir
}

func issue(t testing.TB, ca string, id identity.ID, out string, ttl time.Duration) identity.Files {
	t.Helper()
	if err := identity.Issue(ca, id, identity.IssueOptions{OutDir: out, TTL: ttl}); err != nil {
		t.Fatal(err)
	}
	return filesIn(out)
}

func filesIn(dir string) identity.Files {
	return identity.Files{
		Cert:        filepath.Join(dir, identity.CertFile),
		Key:         filepath.Join(dir, identity.KeyFile),
		CA:          filepath.Join(dir, identity.CACertFile),
		TrustDomain: domain,
	}
}

func source(t testing.TB, ca string, id identity.ID) *identity.Source {
	t.Helper()
	s, err := identity.Load(issue(t, ca, id, t.TempDir(), 0), nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// handshake gives what each end says, and whom each end sees.
func handshake(t testing.TB, server, client *tls.Config) (seen [2]identity.ID, serverErr, clientErr error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	s, c := tls.Server(a, server), tls.Client(b, client)
	done := make(chan error, 1)
	go func() {
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("hello"))
		}
		a.Close()
		done <- err
	}()
	buf := make([]byte, 5)
	_, clientErr = io.ReadFull(c, buf) // in TLS 1.3 a refusal by the server comes with the first read
	b.Close()
	serverErr = <-done
	if serverErr == nil && clientErr == nil {
		seen[0], _ = identity.ConnID(s.ConnectionState())
		seen[1], _ = identity.ConnID(c.ConnectionState())
	}
	return seen, serverErr, clientErr
}

func TestHandshake_BothEndsSeeEachOther(t *testing.T) {
	ca := newCA(t)
	server, client := source(t, ca, hqA), source(t, ca, gdA)
	seen, serverErr, clientErr := handshake(t, server.ServerTLS(), client.ClientTLS(func(id identity.ID) error {
		if id != hqA {
			return errors.New("want hq-a")
		}
		return nil
	}))
	if serverErr != nil || clientErr != nil {
		t.Fatalf("server: %v, client: %v", serverErr, clientErr)
	}
	if seen != [2]identity.ID{gdA, hqA} {
		t.Errorf("seen %v", seen)
	}
}

func TestHandshake_Refused(t *testing.T) {
	ca, otherCA := newCA(t), newCA(t) // both of the same trust domain
	elsewhere := filepath.Join(t.TempDir(), "ca")
	if err := identity.InitCA(elsewhere, "example.org"); err != nil {
		t.Fatal(err)
	}
	foreignFiles := issue(t, elsewhere, gdA, t.TempDir(), 0)
	foreignFiles.TrustDomain = ""
	foreign, err := identity.Load(foreignFiles, nil)
	if err != nil {
		t.Fatal(err)
	}
	us := source(t, ca, hqA)
	them := source(t, otherCA, gdA)
	anyServer := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}
	old := us.ServerTLS()
	old.MaxVersion = tls.VersionTLS12
	old.MinVersion = tls.VersionTLS12
	// plain shows a certificate of ours but trusts everybody, as an attacker does.
	trusting := func(s *identity.Source) *tls.Config {
		c := s.ClientTLS(nil)
		c.VerifyConnection = nil
		return c
	}
	tests := []struct {
		name           string
		server, client *tls.Config
		end            string // whose refusal it is
		want           error
		text           string
	}{
		{"no client certificate", us.ServerTLS(), anyServer, "server", nil, "didn't provide a certificate"},
		{"client of another authority", us.ServerTLS(), trusting(them), "server", identity.ErrUntrusted, "site/gd-a"},
		{"client of another trust domain", us.ServerTLS(), trusting(foreign), "server", identity.ErrTrustDomain, "example.org"},
		{"server of another authority", them.ServerTLS(), us.ClientTLS(nil), "client", identity.ErrUntrusted, "site/gd-a"},
		{"server of another trust domain", foreign.ServerTLS(), us.ClientTLS(nil), "client", identity.ErrTrustDomain, "example.org"},
		{"server that is not allowed", us.ServerTLS(), source(t, ca, gdA).ClientTLS(func(identity.ID) error { return os.ErrPermission }), "client", os.ErrPermission, "site/hq-a"},
		{"TLS 1.2", old, source(t, ca, gdA).ClientTLS(nil), "client", nil, "protocol version"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			_, serverErr, clientErr := handshake(t, tc.server, tc.client)
			err := serverErr
			if tc.end == "client" {
				err = clientErr
			}
			if err == nil || clientErr == nil {
				t.Fatalf("server: %v, client: %v; want a refusal", serverErr, clientErr)
			}
			if tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("error %v; want %v", err, tc.want)
			}
			if !strings.Contains(err.Error(), tc.text) {
				t.Errorf("error %q; want %q in it", err, tc.text)
			}
		})
	}
}

func TestHandshake_CertificateEndsWhileRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t)
		us := source(t, ca, hqA)
		them, err := identity.Load(issue(t, ca, gdA, t.TempDir(), time.Hour), nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, s, c := handshake(t, us.ServerTLS(), them.ClientTLS(nil)); s != nil || c != nil {
			t.Fatalf("before: %v, %v", s, c)
		}
		time.Sleep(time.Hour + time.Second)
		if _, s, _ := handshake(t, us.ServerTLS(), them.ClientTLS(nil)); !errors.Is(s, identity.ErrExpired) {
			t.Errorf("client's certificate ended: server says %v", s)
		}
		if _, _, c := handshake(t, them.ServerTLS(), us.ClientTLS(nil)); !errors.Is(c, identity.ErrExpired) {
			t.Errorf("server's certificate ended: client says %v", c)
		}
	})
}

func TestLoad_Refused(t *testing.T) {
	ca, otherCA := newCA(t), newCA(t)
	good := func(t *testing.T) identity.Files { return issue(t, ca, hqA, t.TempDir(), 0) }
	tests := []struct {
		name  string
		files func(t *testing.T) identity.Files
		want  error
		text  string
	}{
		{"no key", func(t *testing.T) identity.Files { f := good(t); f.Key = ""; return f }, nil, "no key file given"},
		{"missing file", func(t *testing.T) identity.Files { f := good(t); os.Remove(f.Key); return f }, os.ErrNotExist, "tls.key"},
		{"key of another", func(t *testing.T) identity.Files { f := good(t); f.Key = good(t).Key; return f }, identity.ErrKeyMismatch, "tls.key"},
		{"not PEM", func(t *testing.T) identity.Files {
			f := good(t)
			os.WriteFile(f.Cert, []byte("hello"), 0o600)
			return f
		}, nil, "no PEM certificate"},
		{"empty CA", func(t *testing.T) identity.Files {
			f := good(t)
			os.WriteFile(f.CA, nil, 0o600)
			return f
		}, nil, "ca.crt"},
		{"too large", func(t *testing.T) identity.Files {
			f := good(t)
			os.WriteFile(f.CA, make([]byte, 2<<20), 0o600)
			return f
		}, nil, "larger than"},
		{"another trust domain", func(t *testing.T) identity.Files { f := good(t); f.TrustDomain = "example.net"; return f }, identity.ErrTrustDomain, `"example.com", want "example.net"`},
		{"another authority", func(t *testing.T) identity.Files {
			f := good(t)
			f.CA = filepath.Join(otherCA, identity.CACertFile)
			return f
		}, identity.ErrUntrusted, "against CA"},
		{"the authority itself", func(t *testing.T) identity.Files {
			return identity.Files{Cert: filepath.Join(ca, "ca.crt"), Key: filepath.Join(ca, "ca.key"), CA: filepath.Join(ca, "ca.crt")}
		}, identity.ErrID, "want spiffe://example.com/group/PATH/site/NAME"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			_, err := identity.Load(tc.files(t), nil)
			if err == nil {
				t.Fatal("no error")
			}
			if tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("error %v; want %v", err, tc.want)
			}
			if !strings.Contains(err.Error(), tc.text) {
				t.Errorf("error %q; want %q in it", err, tc.text)
			}
		})
	}
}

func TestLoad_ExpiredSaysWhen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := issue(t, newCA(t), hqA, t.TempDir(), time.Hour)
		time.Sleep(2 * time.Hour)
		_, err := identity.Load(f, nil)
		if !errors.Is(err, identity.ErrExpired) || !strings.Contains(err.Error(), "ended at 2000-01-01T01:00:00Z") {
			t.Errorf("error %v", err)
		}
	})
}

// touch makes a change visible without waiting for the file system's clock.
func touch(t testing.TB, f identity.Files, at time.Time) {
	t.Helper()
	for _, path := range []string{f.Cert, f.Key, f.CA} {
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSource_FollowsFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newCA(t)
		dir := t.TempDir()
		f := issue(t, ca, hqA, dir, time.Hour)
		touch(t, f, time.Now().Add(-time.Hour))
		var log strings.Builder
		s, err := identity.Load(f, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		client := source(t, ca, gdA)
		shake := func() error {
			_, s, c := handshake(t, s.ServerTLS(), client.ClientTLS(nil))
			return errors.Join(s, c)
		}
		first := s.NotAfter()

		// A key that is not the certificate's, as between two writes: the old pair stays, and the log says why, once.
		goodKey, _ := os.ReadFile(f.Key)
		os.WriteFile(f.Key, []byte("half a ke"), 0o600)
		for range 3 {
			time.Sleep(identity.CheckInterval)
			if err := shake(); err != nil {
				t.Fatalf("with a broken file: %v", err)
			}
		}
		if n := strings.Count(log.String(), "cannot be used"); n != 1 {
			t.Errorf("logged %d times: %s", n, log.String())
		}
		if err := s.Reload(); !errors.Is(err, identity.ErrKeyMismatch) {
			t.Errorf("Reload: %v", err)
		}
		os.WriteFile(f.Key, goodKey, 0o600)

		// A renewed certificate is used at the first handshake after the interval.
		time.Sleep(30 * time.Minute)
		issue(t, ca, hqA, dir, 24*time.Hour)
		if err := shake(); err != nil {
			t.Fatal(err)
		}
		if !s.NotAfter().After(first) {
			t.Errorf("still the old certificate, which ends at %s", s.NotAfter())
		}

		// Somebody else's certificate does not turn a running process into somebody else.
		issue(t, ca, gdA, dir, 24*time.Hour)
		if err := s.Reload(); err == nil || !strings.Contains(err.Error(), "restart") {
			t.Errorf("another identity: %v", err)
		}
		if s.ID() != hqA {
			t.Errorf("ID is %v", s.ID())
		}
	})
}

func TestSource_AuthorityChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		oldCA := newCA(t)
		time.Sleep(time.Hour)
		newCA := newCA(t)
		f := issue(t, oldCA, hqA, t.TempDir(), 0)
		s, err := identity.Load(f, nil)
		if err != nil {
			t.Fatal(err)
		}
		ends := s.AuthorityNotAfter()
		client := source(t, newCA, gdA)
		trusting := client.ClientTLS(nil)
		trusting.VerifyConnection = nil
		if _, err, _ := handshake(t, s.ServerTLS(), trusting); !errors.Is(err, identity.ErrUntrusted) {
			t.Fatalf("before: %v", err)
		}
		a, _ := os.ReadFile(filepath.Join(oldCA, "ca.crt"))
		b, _ := os.ReadFile(filepath.Join(newCA, "ca.crt"))
		os.WriteFile(f.CA, append(a, b...), 0o644)
		time.Sleep(identity.CheckInterval)
		if _, err, _ := handshake(t, s.ServerTLS(), trusting); err != nil {
			t.Errorf("with both authorities: %v", err)
		}
		if later := s.AuthorityNotAfter(); ends.IsZero() || later.Sub(ends) != time.Hour {
			t.Errorf("the authority ended at %v, both end at %v", ends, later)
		}
	})
}

func TestInitCA(t *testing.T) {
	dir := newCA(t)
	if fi, err := os.Stat(filepath.Join(dir, "ca.key")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("key: %v %v", fi.Mode(), err)
	}
	before, _ := os.ReadFile(filepath.Join(dir, "ca.key"))
	if err := identity.InitCA(dir, domain); !errors.Is(err, identity.ErrExists) {
		t.Errorf("second time: %v", err)
	}
	os.Remove(filepath.Join(dir, "ca.crt"))
	if err := identity.InitCA(dir, domain); !errors.Is(err, identity.ErrExists) {
		t.Errorf("with a key alone: %v", err)
	}
	if after, _ := os.ReadFile(filepath.Join(dir, "ca.key")); string(after) != string(before) {
		t.Error("the key was overwritten")
	}
	for _, td := range []string{"", "Example.com", "a b", "spiffe://example.com", "example.com/x", "example.com:80"} {
		if err := identity.InitCA(t.TempDir(), td); err == nil {
			t.Errorf("trust domain %q: no error", td)
		}
	}
	left, _ := filepath.Glob(filepath.Join(dir, ".*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestInitCA_AtOnce(t *testing.T) {
	dir := t.TempDir()
	errs := make(chan error)
	for range 8 {
		go func() { errs <- identity.InitCA(dir, domain) }()
	}
	made := 0
	for range 8 {
		if err := <-errs; err == nil {
			made++
		} else if !errors.Is(err, identity.ErrExists) {
			t.Error(err)
		}
	}
	if made != 1 {
		t.Errorf("%d of 8 say that they made it", made)
	}
	issue(t, dir, hqA, t.TempDir(), 0) // and what is there is a pair
}

func TestIssue(t *testing.T) {
	ca := newCA(t)
	out := filepath.Join(t.TempDir(), "new", "dir")
	err := identity.Issue(ca, gdA, identity.IssueOptions{OutDir: out, TTL: time.Hour, DNS: []string{"gd.example.com"}, IPs: []net.IP{net.IPv4(10, 1, 0, 11)}})
	if err != nil {
		t.Fatal(err)
	}
	f := filesIn(out)
	if fi, _ := os.Stat(f.Key); fi.Mode().Perm() != 0o600 {
		t.Errorf("key has mode %v", fi.Mode())
	}
	s, err := identity.Load(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	pair, _ := tls.LoadX509KeyPair(f.Cert, f.Key)
	if s.ID() != gdA || s.TrustDomain() != domain || !s.NotAfter().Equal(pair.Leaf.NotAfter) || s.Lifetime() != pair.Leaf.NotAfter.Sub(pair.Leaf.NotBefore) || pair.Leaf.VerifyHostname("gd.example.com") != nil || pair.Leaf.VerifyHostname("10.1.0.11") != nil {
		t.Errorf("ID %v in %s until %s, %v %v", s.ID(), s.TrustDomain(), s.NotAfter(), pair.Leaf.DNSNames, pair.Leaf.IPAddresses)
	}

	tests := []struct {
		name string
		ca   string
		id   identity.ID
		o    identity.IssueOptions
		text string
	}{
		{"no CA", t.TempDir(), gdA, identity.IssueOptions{OutDir: t.TempDir()}, "fanoutctl ca init"},
		{"no directory", ca, gdA, identity.IssueOptions{}, "no directory"},
		{"into the CA", ca, gdA, identity.IssueOptions{OutDir: ca}, "holds a CA"},
		{"longer than the CA", ca, gdA, identity.IssueOptions{OutDir: t.TempDir(), TTL: 20 * identity.DefaultTTL}, "longer than the CA's own"},
		{"negative", ca, gdA, identity.IssueOptions{OutDir: t.TempDir(), TTL: -1}, "negative"},
		{"nobody", ca, identity.ID{}, identity.IssueOptions{OutDir: t.TempDir()}, "neither"},
		{"beside another authority", newCA(t), gdA, identity.IssueOptions{OutDir: out}, "other authorities"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			if err := identity.Issue(tc.ca, tc.id, tc.o); err == nil || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("error %v; want %q in it", err, tc.text)
			}
		})
	}
	if _, err := identity.Load(f, nil); err != nil {
		t.Errorf("a refusal has spoilt what was there: %v", err)
	}
}

func TestPeerID_None(t *testing.T) {
	if id, ok := identity.PeerID(context.Background()); ok {
		t.Errorf("got %v", id)
	}
}

func TestIsLoopback(t *testing.T) {
	tests := []struct {
		addr string
		want bool
		bad  bool
	}{
		{addr: "127.0.0.1:7400", want: true},
		{addr: "127.8.9.1:1", want: true},
		{addr: "[::1]:7400", want: true},
		{addr: "[::ffff:127.0.0.1]:7400", want: true},
		{addr: "localhost:7400", want: true},
		{addr: "LOCALHOST:7400", want: true},
		{addr: ":7400"},
		{addr: "0.0.0.0:7400"},
		{addr: "[::]:7400"},
		{addr: "10.0.0.1:7400"},
		{addr: "[::ffff:10.0.0.1]:7400"},
		{addr: "localhost.example.com:7400"},
		{addr: "127.0.0.1.example.com:7400"},
		{addr: "0x7f.1:7400"},
		{addr: "127.0.0.1", bad: true},
		{addr: "127.0.0.1:", bad: true},
		{addr: "::1:7400", bad: true},
		{addr: "", bad: true},
	}
	for _, tc := range tests {
		got, err := identity.IsLoopback(tc.addr)
		if got != tc.want || (err != nil) != tc.bad {
			t.Errorf("IsLoopback(%q) = %v, %v", tc.addr, got, err)
		}
	}
}

func TestParseID(t *testing.T) {
	long := strings.Repeat("a", identity.MaxSegment)
	tests := []struct {
		uri  string
		want identity.ID
		bad  bool
	}{
		{uri: "spiffe://example.com/group/hq/site/hq-a", want: hqA},
		{uri: "spiffe://example.com/group/hq/guangdong/site/gd-a", want: gdA},
		{uri: "spiffe://example.com/group/hq/site/site/site", want: identity.ID{Group: "hq/site", Site: "site"}},
		{uri: "spiffe://example.com/user/alice", want: alice},
		{uri: "spiffe://example.com/group/hq/user/bob", want: identity.ID{Group: "hq", User: "bob"}},
		{uri: "spiffe://example.com/group/hq/site/" + long, want: identity.ID{Group: "hq", Site: long}},
		{uri: "spiffe://example.com/group/hq/site/" + long + "a", bad: true},
		{uri: "spiffe://example.com/group/" + strings.Repeat("a/", 200) + "b/site/c", bad: true},
		{uri: "spiffe://example.com", bad: true},
		{uri: "spiffe://example.com/", bad: true},
		{uri: "spiffe://example.com/site/a", bad: true},
		{uri: "spiffe://example.com/group/site/a", bad: true},
		{uri: "spiffe://example.com/group/user/a", bad: true},
		{uri: "spiffe://example.com/group/hq/site/a/", bad: true},
		{uri: "spiffe://example.com/group/hq/site/a/b", bad: true},
		{uri: "spiffe://example.com/group/hq//site/a", bad: true},
		{uri: "spiffe://example.com/group/../site/a", bad: true},
		{uri: "spiffe://example.com/group/hq/site/a%20b", bad: true},
		{uri: "spiffe://example.com/groups/hq/site/a", bad: true},
		{uri: "spiffe://example.com/group/hq/Site/a", bad: true},
		{uri: "spiffe://EXAMPLE.com/user/a", bad: true},
		{uri: "spiffe:///user/a", bad: true},
		{uri: "spiffe://a@example.com/user/a", bad: true},
		{uri: "https://example.com/user/a", bad: true},
		{uri: "spiffe://example.com/user/a?x=y", bad: true},
		{uri: "", bad: true},
	}
	for _, tc := range tests {
		got, td, err := identity.ParseID(tc.uri)
		if tc.bad {
			if !errors.Is(err, identity.ErrID) {
				t.Errorf("ParseID(%q) = %v, %v; want ErrID", tc.uri, got, err)
			}
			continue
		}
		if err != nil || td != domain || !cmp.Equal(got, tc.want) {
			t.Errorf("ParseID(%q) = %+v, %q, %v", tc.uri, got, td, err)
		}
		if back, err := got.URI(td); err != nil || back != tc.uri {
			t.Errorf("URI() = %q, %v; want %q", back, err, tc.uri)
		}
	}
}

func FuzzParseID(f *testing.F) {
	for _, s := range []string{
		"spiffe://example.com/group/hq/guangdong/site/gd-a", "spiffe://example.com/user/alice",
		"spiffe://example.com/group/hq/user/bob", "spiffe://example.com/group/site/site/site/site", "spiffe://x/../..", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, td, err := identity.ParseID(s)
		if err != nil {
			return
		}
		if err := id.Validate(); err != nil {
			t.Fatalf("%q gives an ID that is not valid: %v", s, err)
		}
		if back, err := id.URI(td); err != nil || back != s {
			t.Fatalf("%q comes back as %q, %v", s, back, err)
		}
	})
}
