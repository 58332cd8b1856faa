package registry

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	// The file-system driver enters itself when it is imported.
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	"github.com/sirupsen/logrus"
)

const shutdownTimeout = 5 * time.Second

// EmbeddedConfig of an Embedded registry.
type EmbeddedConfig struct {
	// Dir holds its data.
	Dir string
	// Listen as HOST:PORT; not used when Listener is set.
	Listen string
	// Listener to serve on; it is closed by Run or Close.
	Listener net.Listener
	// HookURL gets its notifications, in the form of the distribution registry; empty: none are sent.
	HookURL string
	// Notify, if set, gets the same bodies in place of HookURL. It is called by one goroutine.
	Notify func(ctx context.Context, body []byte) error
	// HookSecret is sent as the header Authorization of notifications.
	HookSecret string
	// Collect is how often garbage is collected while Run runs; 0: never. Of several that serve one folder, one at a time collects.
	Collect time.Duration
	// Grace is how long something that nothing needs was not used before it is collected. All that serve one folder must have the same, an hour or more.
	Grace time.Duration
	// Keep, if set, gives the digests that must stay in a repository whatever its tags show. It is asked in a collection, once for each repository; an error of it ends the
	// collection, which is tried again before long.
	Keep func(repo string) (map[string]bool, error)
	// Forget, if set, is told what a repository is about to lose; an error of it ends the collection.
	Forget func(repo string, digests ...string) error
	// Collected, if set, is told how each collection ended.
	Collected func(Collection, error)
	// Logger; nil: nothing is logged.
	Logger *slog.Logger
}

// Embedded is a distribution registry inside this process. It has no referrers API: the fallback tag serves there. Several in one process are
// fine, and several over one folder too. It collects its own garbage, while requests go on, and keeps no cache of what it holds, so that this cannot make it lie.
//
// The distribution registry logs to the standard logrus logger, which is therefore silenced for the process.
type Embedded struct {
	cfg     EmbeddedConfig
	ln      net.Listener
	log     *slog.Logger
	secret  string
	garbage *collector
}

var silence = sync.OnceFunc(func() { logrus.SetOutput(io.Discard) })

// NewEmbedded prepares Dir and binds the address, so that the address is known before Run.
func NewEmbedded(cfg EmbeddedConfig) (*Embedded, error) {
	silence()
	if cfg.Dir == "" {
		return nil, fmt.Errorf("embedded registry: no directory: %w", ErrInvalid)
	}
	if err := os.MkdirAll(filepath.Join(cfg.Dir, "data"), 0o750); err != nil {
		return nil, fmt.Errorf("embedded registry: %w", err)
	}
	secret, err := persistentSecret(filepath.Join(cfg.Dir, "http-secret"))
	if err != nil {
		return nil, fmt.Errorf("embedded registry: %w", err)
	}
	e := &Embedded{cfg: cfg, ln: cfg.Listener, log: cfg.Logger, secret: secret}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	e.garbage = &collector{
		usage: newUsage(filepath.Join(cfg.Dir, "data", "docker", "registry", "v2"), cfg.Grace),
		dir:   cfg.Dir, grace: cfg.Grace, keep: cfg.Keep, forget: cfg.Forget,
	}
	if err := e.garbage.recover(); err != nil {
		return nil, fmt.Errorf("embedded registry: %w", err)
	}
	if e.ln == nil {
		if e.ln, err = net.Listen("tcp", cfg.Listen); err != nil {
			return nil, fmt.Errorf("embedded registry: %w", err)
		}
	}
	return e, nil
}

// persistentSecret gives the secret that signs the state of uploads. It is kept, so that an upload survives a restart.
func persistentSecret(path string) (string, error) {
	content, err := os.ReadFile(path)
	if err == nil && len(strings.TrimSpace(string(content))) == 64 {
		return strings.TrimSpace(string(content)), nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	var b [32]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	secret := hex.EncodeToString(b[:])
	temp := path + "." + rand.Text()
	if err := os.WriteFile(temp, []byte(secret+"\n"), 0o600); err != nil {
		return "", err
	}
	defer os.Remove(temp)
	if err == nil { // it was cut off
		return secret, os.Rename(temp, path)
	}
	err = os.Link(temp, path)
	if errors.Is(err, os.ErrExist) {
		return persistentSecret(path) // another registry over this folder was first
	}
	if err != nil { // a file system without hard links
		err = os.Rename(temp, path)
	}
	return secret, err
}

// Addr is the address that is listened on.
func (e *Embedded) Addr() net.Addr { return e.ln.Addr() }

// URL is http:// and an address at which this machine reaches it.
func (e *Embedded) URL() string {
	host, port, err := net.SplitHostPort(e.ln.Addr().String())
	if err != nil {
		return "http://" + e.ln.Addr().String()
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port)
}

// Close gives up the address of a registry that was never run.
func (e *Embedded) Close() error { return e.ln.Close() }

// Run serves until ctx ends; then requests under way have a few seconds. It returns nil when ctx ended it.
func (e *Embedded) Run(ctx context.Context) error {
	app, err := e.newApp(ctx)
	if err != nil {
		e.ln.Close()
		return err
	}
	hooks := newHookSender(e.cfg, e.log)
	hooksDone := make(chan struct{})
	hookCtx, stopHooks := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(hooksDone)
		hooks.run(hookCtx)
	}()
	server := &http.Server{
		Handler: e.garbage.guard(hooks.watch(app)), ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(e.log.Handler(), slog.LevelDebug),
	}
	collectCtx, stopCollecting := context.WithCancel(ctx)
	collected := make(chan struct{})
	go func() {
		defer close(collected)
		e.collectForever(collectCtx)
	}()
	served := make(chan error, 1)
	go func() { served <- server.Serve(e.ln) }()
	e.log.Info("embedded registry serves", "address", e.ln.Addr().String())
	select {
	case err = <-served:
		err = fmt.Errorf("embedded registry: %w", err)
	case <-ctx.Done():
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		if server.Shutdown(grace) != nil {
			server.Close()
		}
		cancel()
		<-served
		err = nil
	}
	stopCollecting()
	<-collected
	stopHooks()
	<-hooksDone
	return errors.Join(err, app.Shutdown())
}

func (e *Embedded) newApp(ctx context.Context) (app *handlers.App, err error) {
	conf := &configuration.Configuration{
		Storage: configuration.Storage{
			"filesystem": {"rootdirectory": filepath.Join(e.cfg.Dir, "data")},
			"delete":     {"enabled": true},
			"redirect":   {"disable": true},
			"maintenance": {"uploadpurging": map[any]any{
				"enabled": true, "age": "48h", "interval": "6h", "dryrun": false,
			}},
		},
	}
	conf.HTTP.Secret = e.secret
	conf.HTTP.Addr = e.ln.Addr().String()
	conf.Log.AccessLog.Disabled = true
	conf.Catalog.MaxEntries, conf.Tags.MaxTags = 1000, 1000
	// What it finds wrong with its configuration it says by a panic.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("embedded registry: %v", r)
		}
	}()
	return handlers.NewApp(context.WithoutCancel(ctx), conf), nil
}
