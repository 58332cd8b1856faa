package registry

import (
	"context"
	"log/slog"
	"net"
)

// EmbeddedConfig of an Embedded registry.
type EmbeddedConfig struct {
	// Dir holds its data.
	Dir string
	// Listen as HOST:PORT; not used when Listener is set.
	Listen string
	// Listener to serve on; it is closed by Run or Close.
	Listener net.Listener
	// HookURL gets its notifications; empty: none are sent.
	HookURL string
	// HookSecret is sent as the header Authorization of notifications.
	HookSecret string
	// Logger; nil: nothing is logged.
	Logger *slog.Logger
}

// Embedded is a distribution registry inside this process.
type Embedded struct{ ln net.Listener }

// NewEmbedded binds the address and prepares Dir.
func NewEmbedded(cfg EmbeddedConfig) (*Embedded, error) { return nil, errTODO }

// Run serves until ctx ends.
func (e *Embedded) Run(ctx context.Context) error { return errTODO }

// Close gives up the address of a registry that was never run.
func (e *Embedded) Close() error { return e.ln.Close() }

// Addr is the address that is listened on.
func (e *Embedded) Addr() net.Addr { return e.ln.Addr() }

// URL is http:// and an address at which this machine reaches it.
func (e *Embedded) URL() string { return "" }
