// Package identity says who an agent or a person is, and proves it with TLS.
//
// An identity is a SPIFFE ID in the certificate's only URI name:
//
//	spiffe://<trust domain>/group/<path…>/site/<name>   an agent
//	spiffe://<trust domain>/user/<name>                 a person
//	spiffe://<trust domain>/group/<path…>/user/<name>   a person of one group
//
// A Source holds one identity's files and makes TLS configurations of them. It reads the files again when they
// change, so whatever writes them (SPIRE, cert-manager, Vault, fanoutctl ca) need not tell anybody. InitCA and Issue are
// for places that have none of these.
//
// The package decides who somebody is, not what they may do: that a site may attach as its own group only is checked by
// those who call PeerID. Host names play no part: a peer is trusted for its SPIFFE ID and the authority behind it.
//
// All methods of Source may be called from several goroutines. No goroutine is started.
//
// Invariant: a Source always holds a certificate, key and authorities that were read together, fit together and were
// valid when they were read. Files that do not are never used; the last good ones stay in use.
package identity
