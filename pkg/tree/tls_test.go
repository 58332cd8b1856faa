package tree_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// authority issues certificates whose common name is "group site".
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, pool: x509.NewCertPool()}
	c := a.issue("ca", "127.0.0.1")
	a.key = c.PrivateKey.(*ecdsa.PrivateKey)
	a.cert, _ = x509.ParseCertificate(c.Certificate[0])
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) issue(name, ip string) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.ParseIP(ip)}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: a.cert == nil,
	}
	parent, signer := tmpl, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// secure gives a site a certificate in some name.
func (a *authority) secure(s *site, name string) {
	host, _, _ := net.SplitHostPort(s.cfg.RaftListen)
	c := a.issue(name, host)
	s.cfg.RaftServerTLS = &tls.Config{Certificates: []tls.Certificate{c}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: a.pool}
	s.cfg.RaftClientTLS = &tls.Config{Certificates: []tls.Certificate{c}, RootCAs: a.pool}
	s.cfg.AuthorizePeer = func(ctx context.Context, group, site string) error {
		p, _ := peer.FromContext(ctx)
		info, ok := p.AuthInfo.(credentials.TLSInfo)
		if !ok {
			return nil // the fabric is plain in this test
		}
		if got := info.State.PeerCertificates[0].Subject.CommonName; got != group+" "+site {
			return fmt.Errorf("the certificate is for %s", got)
		}
		return nil
	}
}

func TestTLS_RaftChecksWhoSpeaks(t *testing.T) {
	a := newAuthority(t)
	f := newFabric(t)
	hq := f.group("hq", three)
	for _, s := range hq {
		a.secure(s, "hq "+s.cfg.Site)
	}
	a.secure(hq[2], "hq hq-x")
	f.start(three...)
	until(t, "the wrong certificate is named", func() bool {
		return has(hq[0].node.Waiting(), "hq-c") && has(hq[0].node.Waiting(), "the certificate is for hq hq-x")
	})
	hq[2].kill()
	a.secure(hq[2], "hq hq-c")
	f.start("hq-c")
	root(t, hq).publish("app", "v1", "1")
	for _, s := range hq {
		until(t, "it is replicated", func() bool { return s.shows("app", "v1", "1") })
	}
}
