package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Names of the files that InitCA and Issue write.
const (
	CACertFile = "ca.crt"
	CAKeyFile  = "ca.key"
	CertFile   = "tls.crt"
	KeyFile    = "tls.key"
)

const (
	// CATTL is how long an authority made by InitCA is valid.
	CATTL = 10 * 365 * 24 * time.Hour
	// DefaultTTL is how long an issued certificate is valid, if the authority lasts that long.
	DefaultTTL = 365 * 24 * time.Hour
	// backdate lets a certificate be used by machines whose clocks are a little behind.
	backdate = 5 * time.Minute
)

// IssueOptions are those of Issue.
type IssueOptions struct {
	TTL    time.Duration // 0: DefaultTTL, or less where the authority ends earlier
	DNS    []string      // further names, for clients that look at them; fanout does not
	IPs    []net.IP
	OutDir string // where tls.crt, tls.key and ca.crt are written; made if missing
}

// InitCA makes an authority, ca.crt and ca.key, in dir. It overwrites nothing.
func InitCA(dir, trustDomain string) error {
	td, err := parseTrustDomain(trustDomain)
	if err != nil {
		return fmt.Errorf("making CA: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making CA: %w", err)
	}
	for _, name := range []string{CAKeyFile, CACertFile} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return fmt.Errorf("making CA: %s %w; it is not overwritten, choose another directory", filepath.Join(dir, name), ErrExists)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("making CA: %w", err)
		}
	}
	key, keyPEM, err := newKey()
	if err != nil {
		return fmt.Errorf("making CA: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return fmt.Errorf("making CA: %w", err)
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "fanout CA of " + td.Name()},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(CATTL),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
		URIs:                  []*url.URL{td.ID().URL()},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return fmt.Errorf("making CA: %w", err)
	}
	// The key first: a certificate is never there without its key. Two calls at once meet here, and one of them fails.
	if err := writeNew(filepath.Join(dir, CAKeyFile), keyPEM, 0o600); err != nil {
		return fmt.Errorf("making CA: %w", err)
	}
	if err := writeNew(filepath.Join(dir, CACertFile), certPEM(der), 0o644); err != nil {
		return fmt.Errorf("making CA: %w", err)
	}
	return nil
}

// Issue makes a key and a certificate for id, signed by the authority in caDir, and writes them with the authority's certificate
// to o.OutDir. A certificate that is there is replaced: that is how one is renewed.
func Issue(caDir string, id ID, o IssueOptions) error {
	if err := id.Validate(); err != nil {
		return fmt.Errorf("issuing certificate: %w", err)
	}
	if o.OutDir == "" {
		return errors.New("issuing certificate: no directory given to write it to")
	}
	now := time.Now()
	ca, err := loadCA(caDir, now)
	if err != nil {
		return fmt.Errorf("issuing certificate: %w", err)
	}
	notAfter, err := lifetime(ca.cert, now, o.TTL)
	if err != nil {
		return fmt.Errorf("issuing certificate: %w", err)
	}
	bundle, err := checkOutDir(o.OutDir, ca)
	if err != nil {
		return fmt.Errorf("issuing certificate: %w", err)
	}
	key, keyPEM, err := newKey()
	if err != nil {
		return fmt.Errorf("issuing certificate: %w", err)
	}
	der, err := sign(ca, id, o, key.Public(), now, notAfter)
	if err != nil {
		return fmt.Errorf("issuing certificate: %w", err)
	}
	if err := os.MkdirAll(o.OutDir, 0o755); err != nil {
		return fmt.Errorf("issuing certificate: %w", err)
	}
	// Between two of these a reader finds a pair that does not match; a Source keeps the old one then and looks again.
	for _, f := range []struct {
		name string
		data []byte
		mode os.FileMode
	}{{CACertFile, bundle, 0o644}, {KeyFile, keyPEM, 0o600}, {CertFile, certPEM(der), 0o644}} {
		if err := writeFile(filepath.Join(o.OutDir, f.name), f.data, f.mode); err != nil {
			return fmt.Errorf("issuing certificate: %w", err)
		}
	}
	return nil
}

type authority struct {
	cert *x509.Certificate
	pem  []byte
	key  crypto.Signer
	td   spiffeid.TrustDomain
}

func loadCA(dir string, now time.Time) (*authority, error) {
	certPath, keyPath := filepath.Join(dir, CACertFile), filepath.Join(dir, CAKeyFile)
	certBytes, err := readPEM("CA", certPath)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("there is no CA in %s; make one with: fanoutctl ca init --dir %s --trust-domain NAME: %w", dir, dir, err)
		}
		return nil, err
	}
	keyBytes, err := readPEM("CA key", keyPath)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certBytes, keyBytes)
	if err != nil {
		return nil, fmt.Errorf("CA %s and %s: %w: %w", certPath, keyPath, ErrKeyMismatch, err)
	}
	cert, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("CA %s: %w", certPath, err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	switch {
	case !ok:
		return nil, fmt.Errorf("CA key %s cannot sign", keyPath)
	case !cert.IsCA:
		return nil, fmt.Errorf("%s is not the certificate of an authority", certPath)
	case len(cert.URIs) != 1:
		return nil, fmt.Errorf("CA %s names no trust domain (a single URI spiffe://NAME)", certPath)
	}
	td, err := spiffeid.TrustDomainFromURI(cert.URIs[0])
	if err != nil {
		return nil, fmt.Errorf("CA %s: %w", certPath, err)
	}
	if err := checkTimes(cert, now); err != nil {
		return nil, fmt.Errorf("CA %s: %w", certPath, err)
	}
	return &authority{cert: cert, pem: certBytes, key: key, td: td}, nil
}

func lifetime(ca *x509.Certificate, now time.Time, ttl time.Duration) (time.Time, error) {
	switch {
	case ttl < 0:
		return time.Time{}, fmt.Errorf("time to live %s is negative", ttl)
	case ttl == 0:
		if notAfter := now.Add(DefaultTTL); notAfter.Before(ca.NotAfter) {
			return notAfter, nil
		}
		return ca.NotAfter, nil
	case now.Add(ttl).After(ca.NotAfter):
		return time.Time{}, fmt.Errorf("time to live %s is longer than the CA's own, which ends at %s", ttl, ca.NotAfter.Format(time.RFC3339))
	}
	return now.Add(ttl), nil
}

// checkOutDir gives the ca.crt to write: one that is there and holds this authority, perhaps among others, stays as it is, as in the
// middle of a change of authority; one of others only is not ours to overwrite.
func checkOutDir(dir string, ca *authority) ([]byte, error) {
	if _, err := os.Lstat(filepath.Join(dir, CAKeyFile)); err == nil {
		return nil, fmt.Errorf("%s holds a CA; write certificates to another directory", dir)
	}
	path := filepath.Join(dir, CACertFile)
	b, err := readPEM("CA", path)
	if errors.Is(err, fs.ErrNotExist) {
		return ca.pem, nil
	}
	if err != nil {
		return nil, err
	}
	certs, err := parseCerts(b)
	if err != nil {
		return nil, fmt.Errorf("CA %s: %w", path, err)
	}
	for _, c := range certs {
		if c.Equal(ca.cert) {
			return b, nil
		}
	}
	return nil, fmt.Errorf("%s %w and holds other authorities; append this one to it or move it away", path, ErrExists)
}

func sign(ca *authority, id ID, o IssueOptions, pub crypto.PublicKey, now, notAfter time.Time) ([]byte, error) {
	uri, err := id.URI(ca.td.Name())
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(uri)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	notBefore := now.Add(-backdate)
	if notBefore.Before(ca.cert.NotBefore) {
		notBefore = ca.cert.NotBefore
	}
	name := id.Site
	if name == "" {
		name = id.User
	}
	return x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{u},
		DNSNames:              o.DNS,
		IPAddresses:           o.IPs,
	}, ca.cert, pub, ca.key)
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	return n.Add(n, big.NewInt(1)), nil
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
