package agent

import (
	"regexp"
	"strings"

	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/pkg/identity"
)

// unrelated is how peers.related refuses, and of whom: gRPC hands up the text of a handshake's error alone.
const unrelated = "is neither of group"

var unrelatedPeer = regexp.MustCompile(`group/(\S+)/site/(\S+) ` + unrelated)

// strangerOf is who answered a call that was given up because he is of no group that may be asked; nil: it failed otherwise.
func strangerOf(err error) *treev1.IdentifyResponse {
	m := unrelatedPeer.FindStringSubmatch(err.Error())
	if m == nil {
		return nil
	}
	return &treev1.IdentifyResponse{Group: m[1], Site: m[2]}
}

// handshakes are the handshakes that fail though somebody answers: neither starting an agent nor the network mends these.
var handshakes = []struct{ sign, detail, mend string }{
	{identity.ErrUntrusted.Error(), "who answers has a certificate of an authority that is not trusted here",
		"compare the files of tls.ca here and there: each needs the authority that gave the other its certificate (docs/security.md); or correct the address, where it leads to another fabric"},
	{identity.ErrTrustDomain.Error(), "who answers has a certificate of another trust domain", "correct the address, or issue a certificate of this fabric's trust domain there (docs/security.md)"},
	{identity.ErrExpired.Error(), "the certificate of who answers has ended, by the clock here", "put a new certificate in place of that agent's, see tls.cert in its file; it is read again by itself"},
	{identity.ErrNotYetValid.Error(), "the certificate of who answers is not good yet, by the clock here", "have the clocks of both machines set by NTP"},
	{"does not speak TLS", "what answers there does not speak TLS", "correct the address, where it leads to something else than an agent's fabric.listen; or set tls in the file of that agent"},
	{"there is no agent", "what answers there is no agent", "correct the address: it is to lead to the fabric.listen of an agent"},
	{"refuses the certificate from here", "who answers refuses the certificate of this site", "see whether this site's certificate has ended, and whether its authority is in the file of tls.ca there"},
}

// refused says in plain words why somebody who answers was not spoken with, and the mend; empty: nobody answers, as far as is known.
func refused(err error) (detail, mend string) {
	words := callWords(err)
	for _, r := range handshakes {
		if strings.Contains(words, r.sign) {
			return r.detail, r.mend
		}
	}
	return "", ""
}
