package identity

import "errors"

var (
	// ErrID: a name is not a SPIFFE ID of the form that this package describes.
	ErrID = errors.New("not the identity of a site or user")
	// ErrTrustDomain: an identity belongs to another trust domain.
	ErrTrustDomain = errors.New("other trust domain")
	// ErrExpired: a certificate is not valid any more.
	ErrExpired = errors.New("certificate has expired")
	// ErrNotYetValid: a certificate is not valid yet; a clock may be wrong.
	ErrNotYetValid = errors.New("certificate is not valid yet")
	// ErrKeyMismatch: a private key is not the one of the certificate.
	ErrKeyMismatch = errors.New("key does not belong to the certificate")
	// ErrUntrusted: no authority of the trust domain stands behind a certificate.
	ErrUntrusted = errors.New("certificate is not from a trusted authority")
	// ErrExists: a file is there that must not be overwritten.
	ErrExists = errors.New("already exists")
)
