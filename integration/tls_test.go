package integration

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// authority makes a certificate authority with fanoutctl, as a person would, and gives the configuration for a site's certificate.
func authority(t testing.TB) (issue func(args ...string) string) {
	t.Helper()
	ca := filepath.Join(t.TempDir(), "ca")
	ctl := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(filepath.Join(binaries, "fanoutctl"), args...).CombinedOutput(); err != nil {
			t.Fatalf("fanoutctl %v: %v: %s", args, err, out)
		}
	}
	ctl("ca", "init", "--dir", ca, "--trust-domain", "example.com")
	return func(args ...string) string {
		out := filepath.Join(t.TempDir(), "issued")
		ctl(append([]string{"ca", "issue", "--ca-dir", ca, "--out", out}, args...)...)
		return out
	}
}

func tlsConfig(dir string) string {
	return fmt.Sprintf("tls: {cert: %[1]s/tls.crt, key: %[1]s/tls.key, ca: %[1]s/ca.crt, trustDomain: example.com}\n", dir)
}

// TestEmbeddedRegistryTellsWhereHTTPHasTLS: the agent hears at once of pushes to its own registry, whoever may have signed the certificate for its webhooks.
func TestEmbeddedRegistryTellsWhereHTTPHasTLS(t *testing.T) {
	t.Parallel()
	hq := start(t, spec{name: "hq-a", group: "hq"})["hq-a"]
	gd := lay(t, hq, spec{name: "gd-a", group: "hq/gd"})
	issue := authority(t)
	dir := issue("--group", "hq/gd", "--site", "gd-a")
	gd.extra = fmt.Sprintf("http:\n  listen: %s\n  tls: {cert: %s/tls.crt, key: %[2]s/tls.key}\n", gd.http, dir)
	gd.start()
	t.Cleanup(gd.stop)
	digest := push(t, hq, "app/web:1", image(t, 1<<12, 1))
	shows(t, gd, "app/web:1", digest)
	push(t, gd, "app/web:1", image(t, 1<<12, 1)) // a drift, which is repaired: now, or minutes later by the sweep
	shows(t, gd, "app/web:1", digest)

	// A renewed certificate is shown after SIGHUP.
	before := served(t, gd.http)
	renewed := issue("--group", "hq/gd", "--site", "gd-a")
	for _, f := range []string{"tls.crt", "tls.key"} {
		if err := os.Rename(filepath.Join(renewed, f), filepath.Join(dir, f)); err != nil {
			t.Fatal(err)
		}
	}
	if err := gd.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "http.listen shows the new certificate", func() error {
		if served(t, gd.http) == before {
			return errors.New("it shows the old one")
		}
		return nil
	})
}

// served is the serial number of the certificate that a server shows.
func served(t testing.TB, addr string) string {
	t.Helper()
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// quietAs is quiet with a person's certificate.
func (s *site) quietAs(flags []string, ref string) {
	s.t.Helper()
	if out, code := s.ctl(append(flags, "publish", ref, "--wait")...); code != 0 {
		s.t.Fatalf("publish --wait: exit %d: %s", code, out)
	}
}

func TestMutualTLS(t *testing.T) {
	t.Parallel()
	issue := authority(t)
	site := func(name, group string) spec {
		return spec{name: name, group: group, extra: tlsConfig(issue("--group", group, "--site", name))}
	}
	sites := start(t, site("hq-a", "hq"), site("hq-b", "hq"), site("hq-c", "hq"), site("gd-a", "hq/gd"), site("sz-a", "hq/gd/sz"))
	digest := push(t, sites["hq-b"], "app/web:1.0", image(t, 1<<20, 2))
	for _, s := range sites {
		shows(t, s, "app/web:1.0", digest)
	}
	user := issue("--user", "alice")
	flags := []string{"--tls-cert", user + "/tls.crt", "--tls-key", user + "/tls.key", "--tls-ca", user + "/ca.crt", "--trust-domain", "example.com"}
	if out, code := sites["gd-a"].ctl(append(flags, "tree")...); code != 0 || !strings.Contains(string(out), "sz-a") {
		t.Errorf("tree with a user's certificate: exit %d: %s", code, out)
	}
	if _, code := sites["gd-a"].ctl("tree"); code == 0 {
		t.Error("tree without a certificate was answered")
	}
	// Any member of headquarters has every site looked at, two groups down too, though nobody can dial a child.
	sites["hq-c"].quietAs(flags, "app/web:1.0")
	if v, code := sites["hq-b"].verify("sz-a", append(flags, "--deep")...); code != 0 || v.State != "equal" || v.Blobs == 0 {
		t.Errorf("verify of all: exit %d, the city is %+v", code, v)
	}
	if out, code := sites["hq-c"].ctl(append(flags, "diff", "hq-a", "sz-a")...); code != 0 {
		t.Errorf("diff: exit %d: %s", code, out)
	}
	img, err := remote.Image(reference(t, sites["sz-a"], "app/web:1.0"))
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	lost, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	sites["sz-a"].lose(lost.String())
	if v, code := sites["hq-a"].verify("sz-a", append(flags, "sz-a")...); code != 4 || len(v.Differences) != 1 || v.Differences[0].Kind != "missing-blob" {
		t.Errorf("verify of a damaged city: exit %d, %+v", code, v)
	}
	if v, code := sites["hq-a"].verify("sz-a", append(flags, "sz-a", "--repair")...); code != 0 || v.Repaired != 1 {
		t.Errorf("repair of a city: exit %d, %+v", code, v)
	}
	if err := sites["sz-a"].intact(lost.String()); err != nil {
		t.Error(err)
	}
}

// TestForeignCertificateIsRefused: a site with a certificate for another group can't start, and one from another authority can't attach.
func TestForeignCertificateIsRefused(t *testing.T) {
	t.Parallel()
	issue := authority(t)
	other := authority(t)
	sites := start(t, spec{name: "hq-a", group: "hq", extra: tlsConfig(issue("--group", "hq", "--site", "hq-a"))})
	stranger := lay(t, sites["hq-a"], spec{name: "gd-a", group: "hq/gd", extra: tlsConfig(other("--group", "hq/gd", "--site", "gd-a"))})
	stranger.start()
	t.Cleanup(stranger.stop)
	digest := push(t, sites["hq-a"], "app/web:1.0", image(t, 1<<16, 1))
	shows(t, sites["hq-a"], "app/web:1.0", digest)
	eventually(t, "the stranger says why it is not attached", func() error {
		stranger.mu.Lock()
		defer stranger.mu.Unlock()
		if !strings.Contains(stranger.log.String(), "certificate") {
			return fmt.Errorf("nothing of a certificate in its log")
		}
		return nil
	})
	if err := head(t, stranger, "app/web:1.0", digest); err == nil {
		t.Error("a site with a certificate from another authority received an image")
	}
	wrong := lay(t, sites["hq-a"], spec{name: "gd-b", group: "hq/gd", extra: tlsConfig(issue("--group", "hq/hn", "--site", "gd-b"))})
	wrong.start()
	if err := wrong.cmd.Wait(); err == nil {
		t.Error("an agent started with a certificate for another group")
	}
	if log := wrong.log.String(); !strings.Contains(log, "hq/hn") {
		t.Errorf("its log does not say which group the certificate is for: %s", log)
	}
}
