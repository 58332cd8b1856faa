package wording

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func TestPlain(t *testing.T) {
	for text, want := range map[string]string{
		`rpc error: code = Unavailable desc = connection error: desc = "transport: Error while dialing: dial tcp 10.0.0.1:7400: connect: connection refused"`:                      "10.0.0.1:7400: connection refused",
		`10.0.0.1:7400: connection error: desc = "transport: Error while dialing: dial tcp 10.0.0.1:7400: connect: no route to host"`:                                              "10.0.0.1:7400: no route to host",
		`a at 10.0.0.1:7400: unavailable: rpc error: code = Unavailable desc = error reading from server: EOF; b at 10.0.0.2:7400: no`:                                             "a at 10.0.0.1:7400: unavailable: the connection was cut; b at 10.0.0.2:7400: no",
		`rpc error: code = DeadlineExceeded desc = context deadline exceeded`:                                                                                                      "no answer in time",
		`connection error: desc = "transport: Error while dialing: dial tcp 10.0.0.1:7400: i/o timeout"`:                                                                           "10.0.0.1:7400: no answer in time",
		`content not found: rpc error: code = NotFound desc = content not found: blob sha256:1`:                                                                                    "content not found: blob sha256:1",
		`read tcp 10.0.0.9:4711->10.0.0.1:7400: read: connection reset by peer`:                                                                                                    "the connection was cut",
		`Get "http://10.0.0.1:5000/v2/": dial tcp 10.0.0.1:5000: connect: connection refused; Get "http://10.0.0.1:5000/v2/": dial tcp 10.0.0.1:5000: connect: connection refused`: "http://10.0.0.1:5000/v2/: 10.0.0.1:5000: connection refused",
		`connection error: desc = "error reading server preface: raw-read tcp 127.0.0.1:43482->127.0.5.5:7400: use of closed network connection"`:                                  "the connection was cut",
		`put manifest team/app:1: 403 Forbidden DENIED: over the quota`:                                                                                                            "put manifest team/app:1: 403 Forbidden DENIED: over the quota",
		`dial tcp: lookup hq.example on 10.0.0.53:53: no such host`:                                                                                                                "name hq.example: no such host",
		`the registry redirects; set its url: invalid; the registry redirects; set its url: invalid`:                                                                               "the registry redirects; set its url: invalid",
		`resolve app:1: http://a/: no; yes; http://a/: no; yes`:                                                                                                                    "resolve app:1: http://a/: no; yes",
		`a:1: a:1: refused; b:1: b:1: refused`:                                                                                                                                     "a:1: refused; b:1: refused",
		`connection error: desc = "transport: authentication handshake failed: verifying peer group/hq/site/a: certificate is not from a trusted authority: x509svid: could not verify leaf certificate: x509: certificate signed by unknown authority (possibly because of \"x509: ECDSA verification failure\" while trying to verify candidate authority certificate \"fanout\")"`: "verifying peer group/hq/site/a: certificate is not from a trusted authority: certificate signed by unknown authority",
		`GEOFFREY: the EOFs`: "GEOFFREY: the EOFs",
		"":                   "",
	} {
		if got := Plain(text); got != want {
			t.Errorf("%s\n got %q\nwant %q", text, got, want)
		}
	}
}

// library is what no text for people may have in it.
var library = []string{"rpc error", "desc =", "context ", "transport:", "tls:", "x509", "EOF", "dial tcp", "read tcp", "i/o timeout", "http2", `"`}

// TestPlain_OfARealCall: what gRPC makes of peers that are not as they should be.
func TestPlain_OfARealCall(t *testing.T) {
	listen := func(then func(net.Conn)) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go then(c)
			}
		}()
		return l.Addr().String()
	}
	closed := httptest.NewServer(nil)
	closed.Close()
	web := httptest.NewServer(nil)
	t.Cleanup(web.Close)
	secure := httptest.NewUnstartedServer(nil)
	secure.EnableHTTP2, secure.Config.ErrorLog = true, log.New(io.Discard, "", 0)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	plain, encrypted := insecure.NewCredentials(), credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13})
	for _, c := range []struct {
		name, addr string
		creds      credentials.TransportCredentials
		want       string
	}{
		{"nobody listens", closed.Listener.Addr().String(), plain, "connection refused"},
		{"it closes at once", listen(func(c net.Conn) { _ = c.Close() }), plain, "the connection was cut"},
		{"a web server", web.Listener.Addr().String(), plain, "another protocol"},
		{"no TLS there", web.Listener.Addr().String(), encrypted, "does not speak TLS"},
		{"another authority", secure.Listener.Addr().String(), encrypted, "its certificate is refused"},
		{"it says nothing", listen(func(c net.Conn) { <-t.Context().Done(); _ = c.Close() }), plain, "no answer in time"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			conn, err := grpc.NewClient("passthrough:///"+c.addr, grpc.WithTransportCredentials(c.creds))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err = grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
			if err == nil {
				t.Fatal("it answered")
			}
			got := Plain(err.Error())
			if !strings.Contains(got, c.want) {
				t.Errorf("%q of\n%v", got, err)
			}
			for _, w := range library {
				if strings.Contains(got, w) {
					t.Errorf("it has %q: %q of\n%v", w, got, err)
				}
			}
		})
	}
}
