// Package client connects fanoutctl with an agent and says in words why that, or a call, did not work.
//
// Invariant: without TLS nothing leaves this machine. An address that is not loopback is refused before anything is dialled, and a name that turns
// out to lead elsewhere after it.
package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/fanout-io/fanout/pkg/identity"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

const (
	// ConnectTimeout bounds the making of a connection.
	ConnectTimeout = 5 * time.Second
	// tlsPatience bounds the look whether an agent that can't be spoken with wants TLS.
	tlsPatience = 2 * time.Second
	// maxMessage is room for a tree of some ten thousand sites.
	maxMessage = 64 << 20
)

// Address is where an agent is: HOST:PORT or the path of a unix socket.
type Address struct {
	HostPort string
	Socket   string
}

// ParseAddress reads HOST:PORT or unix:PATH.
func ParseAddress(s string) (Address, error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		path = strings.TrimPrefix(path, "//") // unix:///run/x, as others write it
		if path == "" {
			return Address{}, fmt.Errorf("server %q: the path of the socket is missing; want unix:PATH", s)
		}
		abs, err := filepath.Abs(path)
		if err != nil {
			return Address{}, fmt.Errorf("server %q: %w", s, err)
		}
		return Address{Socket: abs}, nil
	}
	if strings.Contains(s, "/") {
		return Address{}, fmt.Errorf("server %q: want HOST:PORT, or unix:PATH for a socket", s)
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" || port == "" {
		return Address{}, fmt.Errorf("server %q: want HOST:PORT, such as 127.0.0.1:7400, or unix:PATH", s)
	}
	if n, err := net.LookupPort("tcp", port); err != nil || n == 0 {
		return Address{}, fmt.Errorf("server %q: %q is not a port", s, port)
	}
	return Address{HostPort: s}, nil
}

func (a Address) String() string {
	if a.Socket != "" {
		return "unix:" + a.Socket
	}
	return a.HostPort
}

// Loopback says whether the agent is on this machine, so that TLS may be absent.
func (a Address) Loopback() bool {
	if a.Socket != "" {
		return true
	}
	ok, err := identity.IsLoopback(a.HostPort)
	return ok && err == nil
}

// Config says where the agent is and who we are.
type Config struct {
	Server         Address
	Identity       *identity.Source // nil: without TLS
	ConnectTimeout time.Duration    // 0: the constant
}

// Client speaks with one agent. It connects with the first call.
type Client struct {
	adminv1.AdminServiceClient
	cfg  Config
	conn *grpc.ClientConn

	mu   sync.Mutex
	last error // why the last attempt to connect failed, as the dialler saw it

	heard atomic.Bool // something came over the last connection
}

// New refuses what must not be dialled. It does not connect yet.
func New(cfg Config) (*Client, error) {
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = ConnectTimeout
	}
	if cfg.Identity == nil && !cfg.Server.Loopback() {
		return nil, &Problem{
			What:  fmt.Sprintf("%s is not on this machine, and without TLS fanoutctl speaks to loopback addresses and unix sockets only", cfg.Server),
			Todo:  "Give --tls-cert, --tls-key, --tls-ca and --trust-domain, or a context that has them (fanoutctl config set).",
			Usage: true,
		}
	}
	c := &Client{cfg: cfg}
	creds := insecure.NewCredentials()
	if cfg.Identity != nil && cfg.Server.Socket == "" {
		creds = credentials.NewTLS(cfg.Identity.ClientTLS(func(id identity.ID) error {
			if !id.IsSite() {
				return fmt.Errorf("%s is not an agent", id)
			}
			return nil
		}))
	}
	conn, err := grpc.NewClient("passthrough:///"+targetName(cfg.Server),
		grpc.WithTransportCredentials(&recording{creds, c}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return c.dial(ctx) }),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 500 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second}, MinConnectTimeout: cfg.ConnectTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithDisableServiceConfig(),
		grpc.WithUserAgent("fanoutctl"),
	)
	if err != nil {
		return nil, fmt.Errorf("connecting with %s: %w", cfg.Server, err)
	}
	c.conn, c.AdminServiceClient = conn, adminv1.NewAdminServiceClient(conn)
	return c, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

func targetName(a Address) string {
	if a.Socket != "" {
		return "localhost"
	}
	return a.HostPort
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.ConnectTimeout)
	defer cancel()
	c.heard.Store(false)
	conn, err := c.dialOnce(ctx)
	c.note(err)
	if err != nil {
		return nil, err
	}
	return &heardConn{conn, &c.heard}, nil
}

func (c *Client) dialOnce(ctx context.Context) (net.Conn, error) {
	if path := c.cfg.Server.Socket; path != "" {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	// A machine that is gone without a word is noticed within a minute, without gRPC pings, which a server may take ill.
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 4}}
	conn, err := d.DialContext(ctx, "tcp", c.cfg.Server.HostPort)
	if err != nil || c.cfg.Identity != nil {
		return conn, err
	}
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); !ok || !tcp.IP.IsLoopback() {
		conn.Close()
		return nil, fmt.Errorf("%s leads to %s, which is not on this machine: %w", c.cfg.Server, conn.RemoteAddr(), errNotLoopback)
	}
	return conn, nil
}

func (c *Client) note(err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = err
}

// lastError is why the last attempt to connect failed, and whether anything was heard over the last connection.
func (c *Client) lastError() (err error, heard bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last, c.heard.Load()
}

// heardConn notes that something came.
type heardConn struct {
	net.Conn
	heard *atomic.Bool
}

func (h *heardConn) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	if n > 0 {
		h.heard.Store(true)
	}
	return n, err
}

// recording keeps the error of a handshake, of which gRPC passes on the text only.
type recording struct {
	credentials.TransportCredentials
	c *Client
}

func (r *recording) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := r.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		r.c.note(&handshakeError{err})
	}
	return conn, info, err
}

func (r *recording) Clone() credentials.TransportCredentials {
	return &recording{r.TransportCredentials.Clone(), r.c}
}

type handshakeError struct{ err error }

func (e *handshakeError) Error() string { return "TLS handshake: " + e.err.Error() }
func (e *handshakeError) Unwrap() error { return e.err }

// Server is the agent's address.
func (c *Client) Server() Address { return c.cfg.Server }
