package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// outbound is the innermost transport: every request to the registry, its token service and the targets of its redirects passes here. It sets the
// exact User-Agent, never sends Expect, gives a request that is sent again its body again, and gives up on what stands still.
type outbound struct {
	inner         http.RoundTripper
	userAgent     string
	host, scheme  string
	header, stall time.Duration
}

// trace carries what the auth transport does not hand up.
type trace struct {
	// patience is how much longer than usual the answer may take.
	patience time.Duration
	// retryAfter of the last answer that was not success.
	retryAfter time.Duration
}

type traceKey struct{}

func newTransport(cfg Config) (http.RoundTripper, error) {
	if cfg.Transport != nil {
		return cfg.Transport, nil
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: cfg.InsecureSkipVerify}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("reading the registry's CA file: %w", err)
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("reading the registry's CA file: %s holds no PEM certificate: %w", cfg.CAFile, ErrInvalid)
		}
		conf.RootCAs = pool
	}
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:     conf,
		TLSHandshakeTimeout: 10 * time.Second,
		ForceAttemptHTTP2:   true,
		MaxIdleConns:        64,
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     30 * time.Second,
		WriteBufferSize:     256 << 10,
		ReadBufferSize:      64 << 10,
		// A blob is stored as it came; a compressed answer would have another digest.
		DisableCompression: true,
	}, nil
}

func (o *outbound) RoundTrip(in *http.Request) (*http.Response, error) {
	tr, _ := in.Context().Value(traceKey{}).(*trace)
	header := o.header
	if tr != nil {
		header += tr.patience
	}
	ctx, cancel := context.WithCancel(in.Context())
	w := &watch{cancel: cancel, stall: o.stall, header: header}
	req := in.Clone(ctx)
	req.Header.Set("User-Agent", o.userAgent)
	req.Header.Del("Expect")
	if req.URL.Host == o.host {
		// The auth transport's handshake tries https first, everywhere.
		req.URL.Scheme = o.scheme
	}
	if in.GetBody != nil && in.ContentLength > 0 {
		body, err := in.GetBody()
		if err != nil {
			cancel()
			return nil, err
		}
		req.Body = &sentBody{ReadCloser: body, watch: w}
	}
	w.timer = time.AfterFunc(header, w.fire)
	resp, err := o.inner.RoundTrip(req)
	w.answer()
	if err != nil {
		cancel()
		return nil, w.explain(err)
	}
	if tr != nil && resp.StatusCode >= 400 {
		tr.retryAfter = retryAfter(resp.Header)
	}
	resp.Request = req
	resp.Body = &gotBody{ReadCloser: resp.Body, watch: w}
	return resp, nil
}

// watch gives up on a request when nothing moves: while a body is sent or read for the stall time, after it was sent for the header time. There is
// no bound on the whole, since a blob may be of any size.
type watch struct {
	cancel        context.CancelFunc
	stall, header time.Duration
	fired         atomic.Bool

	mu       sync.Mutex
	timer    *time.Timer
	answered bool
}

func (w *watch) fire() {
	w.fired.Store(true)
	w.cancel()
}

// answer ends the time for sending; a body that is still being sent after that has no say any more.
func (w *watch) answer() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answered = true
	w.timer.Stop()
}

func (w *watch) sending(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.answered {
		w.timer.Reset(d)
	}
}

func (w *watch) explain(err error) error {
	if err != nil && err != io.EOF && w.fired.Load() {
		return ErrHangs
	}
	return err
}

// sentBody is a request's body.
type sentBody struct {
	io.ReadCloser
	watch *watch
}

func (b *sentBody) Read(p []byte) (int, error) {
	b.watch.sending(b.watch.stall)
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.watch.sending(b.watch.header)
	}
	return n, err
}

func (b *sentBody) Close() error {
	b.watch.sending(b.watch.header)
	return b.ReadCloser.Close()
}

// gotBody is an answer's body.
type gotBody struct {
	io.ReadCloser
	watch *watch
}

func (b *gotBody) Read(p []byte) (int, error) {
	// Between reads it is the reader who is slow, which is no fault of the registry's.
	b.watch.timer.Reset(b.watch.stall)
	n, err := b.ReadCloser.Read(p)
	b.watch.timer.Stop()
	return n, b.watch.explain(err)
}

func (b *gotBody) Close() error {
	b.watch.timer.Stop()
	b.watch.cancel()
	return b.ReadCloser.Close()
}
