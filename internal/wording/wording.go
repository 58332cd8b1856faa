// Package wording puts the texts of errors into an operator's words.
package wording

import (
	"regexp"
	"slices"
	"strings"
)

// layer is what a library says around, or instead of, what happened.
type layer struct {
	is   *regexp.Regexp
	word string
}

const address = `(\S+:\d+)`

// layers are taken away in this order: what stands around something before what is within it.
var layers = []layer{
	// gRPC. Its descriptions are quoted, also within each other.
	{regexp.MustCompile(`rpc error: code = \w+ desc = `), ""},
	{regexp.MustCompile(`connection error: desc = \\*"(.*?)\\*"(;|\n|$)`), "$1$2"},
	{regexp.MustCompile(`last (?:connection )?error: `), ""},
	{regexp.MustCompile(`latest balancer error: `), ""},
	{regexp.MustCompile(`transport: Error while dialing: `), ""},
	{regexp.MustCompile(`transport: authentication handshake failed: `), ""},
	{regexp.MustCompile(`(?:connection error: )?error reading server preface: http2: [^;]*`), "what answers there is no agent: it speaks another protocol"},
	{regexp.MustCompile(`(?:error reading from server: |error reading server preface: )`), ""},
	{regexp.MustCompile(`keepalive ping failed to receive ACK within timeout`), "the connection is silent"},
	{regexp.MustCompile(`the client connection is closing|client connection is closing`), "the connection was given up"},
	{regexp.MustCompile(`closing transport due to: [^;]*`), "the connection was cut"},
	{regexp.MustCompile(`stream terminated by RST_STREAM with error code: \w+`), "the connection was cut"},

	// The net and tls packages.
	{regexp.MustCompile(`(?:raw-)?(?:dial|read|write) tcp (?:\S+->)?` + address + `: (?:connect|read|write): (connection timed out|operation timed out)`), "$1: no answer in time"},
	{regexp.MustCompile(`dial tcp ` + address + `: connect: `), "$1: "},
	{regexp.MustCompile(`dial tcp ` + address + `: i/o timeout`), "$1: no answer in time"},
	{regexp.MustCompile(`dial tcp: lookup (\S+?)(?: on \S+)?: `), "name $1: "},
	{regexp.MustCompile(`(?:raw-)?(?:read|write) tcp (?:\S+->)?` + address + `: (?:read|write): (?:connection reset by peer|broken pipe)`), "the connection was cut"},
	{regexp.MustCompile(`(?:raw-)?(?:read|write) tcp (?:\S+->)?` + address + `: (?:use of closed network connection|i/o timeout)`), "the connection was cut"},
	{regexp.MustCompile(`tls: first record does not look like a TLS handshake`), "what answers there does not speak TLS"},
	{regexp.MustCompile(`tls: failed to verify certificate: (?:x509: )?`), "its certificate is refused: "},
	{regexp.MustCompile(`remote error: tls: (?:bad certificate|certificate required|unknown certificate authority|unknown certificate)`), "it refuses the certificate from here"},
	{regexp.MustCompile(`remote error: tls: `), "it refuses to speak TLS with here: "},
	{regexp.MustCompile(`x509svid: could not verify leaf certificate: ([^;\n(]*[^;\n( ])(?: \(possibly because of [^;\n]*)?`), "$1"},
	{regexp.MustCompile(`x509: `), ""},
	{regexp.MustCompile(`net/http: request canceled(?: while waiting for connection)?`), "given up"},
	{regexp.MustCompile(`net/http: timeout awaiting response headers|net/http: TLS handshake timeout`), "no answer in time"},
	{regexp.MustCompile(`context deadline exceeded(?: \(Client\.Timeout exceeded[^)]*\))?|DeadlineExceeded`), "no answer in time"},
	{regexp.MustCompile(`context canceled`), "given up"},
	{regexp.MustCompile(`\bi/o timeout\b`), "no answer in time"},
	{regexp.MustCompile(`connection reset by peer|broken pipe`), "the connection was cut"},
	{regexp.MustCompile(`\b(?:unexpected )?EOF\b`), "the connection was cut"},
	{regexp.MustCompile(`\b(?:Get|Head|Put|Post|Patch|Delete) \\*"([^"\\]+)\\*": `), "$1: "},
}

// Plain gives an error's text without what gRPC, net/http and TLS put around what happened, and with plain words for what these say of it. What it does not know stays as it is, and so does what a
// registry said itself. For people: the log keeps the text as it was.
func Plain(text string) string {
	for _, l := range layers {
		text = l.is.ReplaceAllString(text, l.word)
	}
	return once(text)
}

// once drops what is said again right after it was said: each layer of a call names the address, or the kind of the error, anew, and some calls are made twice.
func once(text string) string {
	const again = "; "
	for i := range text {
		if more, ok := strings.CutPrefix(text[i:], again); ok && (text[:i] == more || strings.HasSuffix(text[:i], " "+more)) {
			text = text[:i]
			break
		}
	}
	parts := strings.Split(text, again)
	for i, p := range parts {
		parts[i] = strings.Join(slices.Compact(strings.Split(p, ": ")), ": ")
	}
	return strings.Join(slices.Compact(parts), again)
}
