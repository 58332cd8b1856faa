package identity

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const (
	// CheckInterval is how often, at most, handshakes look whether the files have changed.
	CheckInterval = time.Second
	// racyWindow: a file written this short before it was read may be written again without a new time or size.
	racyWindow = 2 * time.Second
	maxFile    = 1 << 20
)

// Files names the files of one identity, all PEM. TrustDomain is the one that the fabric is in.
type Files struct {
	Cert string // the certificate, then any intermediate ones
	Key  string
	CA   string // the authorities of the trust domain
	// TrustDomain such as example.com; empty: that of the certificate.
	TrustDomain string
}

// Source is an identity whose files are followed.
type Source struct {
	files  Files
	logger *slog.Logger

	mu      sync.Mutex
	cur     *loaded
	seen    [3]os.FileInfo // as they were before the last try to read them
	again   bool           // the last try failed, or may have read a file that was being written
	checked time.Time
	trouble string // reason of the last failed try, so that it is logged once
}

// loaded is never changed once it is made.
type loaded struct {
	cert     tls.Certificate
	id       ID
	td       spiffeid.TrustDomain
	bundle   *x509bundle.Bundle
	notAfter time.Time
}

// Load reads the files and checks that key and certificate are a pair, that the certificate carries the ID of a site or user
// of the trust domain, that it is valid now, and that the authorities stand behind it. The logger may be nil.
func Load(f Files, logger *slog.Logger) (*Source, error) {
	for _, x := range []struct{ what, path string }{{"certificate", f.Cert}, {"key", f.Key}, {"CA", f.CA}} {
		if x.path == "" {
			return nil, fmt.Errorf("loading identity: no %s file given; certificate, key and CA are needed together", x.what)
		}
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	s := &Source{files: f, logger: logger}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.reload(); err != nil {
		return nil, err
	}
	return s, nil
}

// Reload reads the files again now. On an error the identity stays as it was.
func (s *Source) Reload() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.reload()
	return err
}

// ID is who we are.
func (s *Source) ID() ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cur.id
}

// TrustDomain is the one that we are in, such as example.com.
func (s *Source) TrustDomain() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cur.td.Name()
}

// NotAfter is when the certificate in use ends.
func (s *Source) NotAfter() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cur.notAfter
}

// Lifetime is how long the certificate in use is good for as a whole, from its beginning to its end.
func (s *Source) Lifetime() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cur.notAfter.Sub(s.cur.cert.Leaf.NotBefore)
}

// AuthorityNotAfter is when the authorities in use end: the last of them, where there are several, as while one takes the place of another.
func (s *Source) AuthorityNotAfter() (last time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ca := range s.cur.bundle.X509Authorities() {
		if ca.NotAfter.After(last) {
			last = ca.NotAfter
		}
	}
	return last
}

// current is what a handshake uses; it reads the files again if they changed.
func (s *Source) current() *loaded {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if since := now.Sub(s.checked); since >= 0 && since < CheckInterval {
		return s.cur
	}
	s.checked = now
	if !s.again && s.sameFiles() {
		return s.cur
	}
	changed, err := s.reload()
	switch {
	case err != nil:
		// The reason is kept, so that a broken file does not fill the log at every handshake.
		if reason := err.Error(); reason != s.trouble {
			s.trouble = reason
			s.logger.Warn("new certificate files cannot be used, keeping the ones before", "error", err, "not_after", s.cur.notAfter)
		}
	case changed:
		s.logger.Info("certificate files read again", "identity", s.cur.id.String(), "not_after", s.cur.notAfter)
	}
	return s.cur
}

func (s *Source) paths() [3]string { return [3]string{s.files.Cert, s.files.Key, s.files.CA} }

func (s *Source) sameFiles() bool {
	for i, path := range s.paths() {
		now, err := os.Stat(path)
		was := s.seen[i]
		if err != nil || was == nil || !os.SameFile(now, was) || !now.ModTime().Equal(was.ModTime()) || now.Size() != was.Size() {
			return false
		}
	}
	return true
}

// reload is called with mu held. The files are looked at before they are read, so that a change during the reading is seen
// as a change the next time.
func (s *Source) reload() (changed bool, err error) {
	start := time.Now()
	var seen [3]os.FileInfo
	racy := false
	for i, path := range s.paths() {
		if fi, err := os.Stat(path); err == nil {
			seen[i] = fi
			racy = racy || fi.ModTime().After(start.Add(-racyWindow))
		}
	}
	next, err := load(s.files, start)
	if err == nil && s.cur != nil && next.id != s.cur.id {
		err = fmt.Errorf("loading identity: %s is now of %s, but this process runs as %s; restart it to change that", s.files.Cert, next.id, s.cur.id)
	}
	s.seen, s.again = seen, racy || err != nil
	if err != nil {
		return false, err
	}
	changed = s.cur == nil || !next.cert.Leaf.Equal(s.cur.cert.Leaf) || !next.bundle.Equal(s.cur.bundle)
	s.cur, s.trouble = next, ""
	return changed, nil
}

func load(f Files, now time.Time) (*loaded, error) {
	certPEM, err := readPEM("certificate", f.Cert)
	if err != nil {
		return nil, err
	}
	keyPEM, err := readPEM("key", f.Key)
	if err != nil {
		return nil, err
	}
	caPEM, err := readPEM("CA", f.CA)
	if err != nil {
		return nil, err
	}
	chain, err := parseCerts(certPEM)
	if err != nil {
		return nil, fmt.Errorf("loading identity: certificate %s: %w", f.Cert, err)
	}
	leaf := chain[0]
	id, tdName, err := CertID(leaf)
	if err != nil {
		return nil, fmt.Errorf("loading identity: certificate %s: %w", f.Cert, err)
	}
	td, err := parseTrustDomain(tdName)
	if err != nil {
		return nil, fmt.Errorf("loading identity: certificate %s: %w", f.Cert, err)
	}
	if f.TrustDomain != "" && f.TrustDomain != tdName {
		return nil, fmt.Errorf("loading identity: certificate %s is of trust domain %q, want %q: %w", f.Cert, tdName, f.TrustDomain, ErrTrustDomain)
	}
	if err := checkTimes(leaf, now); err != nil {
		return nil, fmt.Errorf("loading identity: certificate %s of %s: %w", f.Cert, id, err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("loading identity: key %s for certificate %s: %w: %w", f.Key, f.Cert, ErrKeyMismatch, err)
	}
	pair.Leaf = leaf
	roots, err := parseCerts(caPEM)
	if err != nil {
		return nil, fmt.Errorf("loading identity: CA %s: %w", f.CA, err)
	}
	bundle := x509bundle.FromX509Authorities(td, roots)
	if _, _, err := x509svid.Verify(chain, bundle, x509svid.WithTime(now)); err != nil {
		return nil, fmt.Errorf("loading identity: certificate %s against CA %s: %w: %w", f.Cert, f.CA, ErrUntrusted, err)
	}
	return &loaded{cert: pair, id: id, td: td, bundle: bundle, notAfter: leaf.NotAfter}, nil
}

func checkTimes(cert *x509.Certificate, now time.Time) error {
	switch {
	case now.After(cert.NotAfter):
		return fmt.Errorf("%w: it ended at %s, now is %s; issue a new one", ErrExpired, cert.NotAfter.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case now.Before(cert.NotBefore):
		return fmt.Errorf("%w: it begins at %s, now is %s; check this machine's clock", ErrNotYetValid, cert.NotBefore.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

func readPEM(what, path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("loading identity: %s file: %w", what, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("loading identity: %s file %s: %w", what, path, err)
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("loading identity: %s file %s is larger than %d bytes", what, path, maxFile)
	}
	return b, nil
}

// parseCerts reads all certificates of a PEM file; there is at least one. Other blocks are passed over: some tools write key
// and certificate into one file.
func parseCerts(b []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("reading certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("there is no PEM certificate in it")
	}
	return certs, nil
}
