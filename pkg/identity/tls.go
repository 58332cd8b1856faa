package identity

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// ServerTLS is for a listener: TLS 1.3, a client certificate of the trust domain with the ID of a site or user is required.
// Who may do what is decided by PeerID afterwards.
func (s *Source) ServerTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// Any: the chain is checked by VerifyConnection against the authorities as they are then.
		ClientAuth:             tls.RequireAnyClientCert,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &s.current().cert, nil },
		VerifyConnection:       func(cs tls.ConnectionState) error { return s.verify(cs, nil) },
		SessionTicketsDisabled: true, // each connection proves itself anew
	}
}

// ClientTLS is for a dialler. The server must have a certificate of the trust domain whose ID allow accepts; nil accepts every
// site or user of the trust domain. Host names are not looked at.
func (s *Source) ClientTLS(allow func(ID) error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &s.current().cert, nil
		},
		InsecureSkipVerify:     true, // only the check of names; VerifyConnection, which also runs on resumption, checks the chain
		VerifyConnection:       func(cs tls.ConnectionState) error { return s.verify(cs, allow) },
		SessionTicketsDisabled: true,
	}
}

func (s *Source) verify(cs tls.ConnectionState, allow func(ID) error) error {
	cur := s.current()
	if len(cs.PeerCertificates) == 0 {
		return fmt.Errorf("verifying peer: %w: it showed no certificate", ErrUntrusted)
	}
	leaf := cs.PeerCertificates[0]
	id, td, err := CertID(leaf)
	if err != nil {
		return fmt.Errorf("verifying peer: %w", err)
	}
	if td != cur.td.Name() {
		return fmt.Errorf("verifying peer %s: %w: it is of %q, we are of %q", id, ErrTrustDomain, td, cur.td.Name())
	}
	now := time.Now()
	if err := checkTimes(leaf, now); err != nil {
		return fmt.Errorf("verifying peer %s: %w", id, err)
	}
	if _, _, err := x509svid.Verify(cs.PeerCertificates, cur.bundle, x509svid.WithTime(now)); err != nil {
		return fmt.Errorf("verifying peer %s: %w: %w", id, ErrUntrusted, err)
	}
	if allow != nil {
		if err := allow(id); err != nil {
			return fmt.Errorf("verifying peer %s: %w", id, err)
		}
	}
	return nil
}

// PeerID is who is at the other end of a gRPC call. It is false where there is no TLS, such as on the local socket. It rests on
// the listener having been made with ServerTLS (or the connection with ClientTLS), which has verified the certificate.
func PeerID(ctx context.Context) (ID, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ID{}, false
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return ID{}, false
	}
	id, err := ConnID(info.State)
	return id, err == nil
}

// ConnID is who is at the other end of a TLS connection that was made with ServerTLS or ClientTLS, once its handshake is done.
func ConnID(cs tls.ConnectionState) (ID, error) {
	if !cs.HandshakeComplete || len(cs.PeerCertificates) == 0 {
		return ID{}, errors.New("reading peer's identity: there was no handshake with a certificate")
	}
	id, _, err := CertID(cs.PeerCertificates[0])
	return id, err
}
