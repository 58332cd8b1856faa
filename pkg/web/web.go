package web

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"log/slog"
	"mime"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// Fabric answers questions about the fabric as AdminService does: send is called for each message, in order, until it fails, the answer is whole or ctx ends. Errors are gRPC statuses.
type Fabric interface {
	Tree(ctx context.Context, req *adminv1.TreeRequest, send func(*adminv1.TreeResponse) error) error
	Where(ctx context.Context, req *adminv1.WhereRequest, send func(*adminv1.WhereResponse) error) error
	Pending(ctx context.Context, req *adminv1.PendingRequest, send func(*adminv1.PendingResponse) error) error
	Rollouts(ctx context.Context, req *adminv1.RolloutsRequest, send func(*adminv1.RolloutsResponse) error) error
	Why(ctx context.Context, req *adminv1.WhyRequest) (*adminv1.WhyResponse, error)
	Lists
}

// Lists are questions whose answers are lists.
type Lists interface {
	Images(ctx context.Context, req *adminv1.ImagesRequest, send func(*adminv1.ImagesResponse) error) error
	Events(ctx context.Context, req *adminv1.EventsRequest, send func(*adminv1.EventsResponse) error) error
	Conflicts(ctx context.Context) (*adminv1.ConflictsResponse, error)
	Deletions(ctx context.Context) (*adminv1.DeletionsResponse, error)
	Version(ctx context.Context) (*adminv1.VersionResponse, error)
}

// Defaults of Config.
const (
	// DefaultMaxWatchers bounds how many watch at once.
	DefaultMaxWatchers = 64
	// DefaultWriteTimeout is how long a watcher may take to read what it is sent.
	DefaultWriteTimeout = 10 * time.Second
	// DefaultPause between two changes that are sent to a watcher.
	DefaultPause = 250 * time.Millisecond
	// DefaultTick is how often a watcher is told that it is not forgotten, and what time it is.
	DefaultTick = 5 * time.Second
	// DefaultLinger is how long a feed outlives its last watcher, so that who turns a page finds it running.
	DefaultLinger = 10 * time.Second
	// DefaultRetry is how soon an answer that ended is asked for again, and how often what can't be watched is asked.
	DefaultRetry = time.Second
)

// Config of a Server. Its zero values are the defaults; Fabric must be set.
type Config struct {
	Fabric       Fabric
	MaxWatchers  int
	WriteTimeout time.Duration
	Pause        time.Duration
	Tick         time.Duration
	Linger       time.Duration
	Retry        time.Duration
	Logger       *slog.Logger          // nil: none
	Registerer   prometheus.Registerer // nil: none
}

// Server answers GET / and everything under it. It is an http.Handler; Run must be running for watchers to be served.
type Server struct {
	cfg    Config
	mux    *http.ServeMux
	hub    *hub
	files  map[string]file
	dropAt prometheus.Counter
}

// file of the page.
type file struct {
	body, packed []byte // packed by gzip; nil: not worth it
	kind, etag   string
}

//go:embed assets
var assets embed.FS

// New makes a Server. It asks nothing yet.
func New(cfg Config) (*Server, error) {
	if cfg.Fabric == nil {
		return nil, fmt.Errorf("web: no fabric to show")
	}
	if cfg.MaxWatchers <= 0 {
		cfg.MaxWatchers = DefaultMaxWatchers
	}
	for _, d := range []struct {
		at *time.Duration
		by time.Duration
	}{{&cfg.WriteTimeout, DefaultWriteTimeout}, {&cfg.Pause, DefaultPause}, {&cfg.Tick, DefaultTick}, {&cfg.Linger, DefaultLinger}, {&cfg.Retry, DefaultRetry}} {
		if *d.at <= 0 {
			*d.at = d.by
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, mux: http.NewServeMux(), hub: newHub(cfg)}
	if err := s.meters(cfg.Registerer); err != nil {
		return nil, err
	}
	if err := s.load(); err != nil {
		return nil, err
	}
	s.mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { s.serveFile(w, r, "index.html") })
	s.mux.HandleFunc("GET /assets/{name}", func(w http.ResponseWriter, r *http.Request) { s.serveFile(w, r, r.PathValue("name")) })
	s.routes()
	return s, nil
}

// Run serves watchers until ctx ends, and returns when nothing of it runs any more.
func (s *Server) Run(ctx context.Context) error {
	s.hub.run(ctx)
	return nil
}

func (s *Server) meters(r prometheus.Registerer) error {
	s.dropAt = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "fanout_web_watchers_dropped_total", Help: "Watchers of the web page that were let go as they did not read in time.",
	})
	if r == nil {
		return nil
	}
	watching := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "fanout_web_watchers", Help: "Watchers of the web page that are connected.",
	}, func() float64 { return float64(s.hub.watching()) })
	for _, c := range []prometheus.Collector{s.dropAt, watching} {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}

// load reads the files of the page.
func (s *Server) load() error {
	s.files = map[string]file{}
	list, err := fs.ReadDir(assets, "assets")
	if err != nil {
		return err
	}
	for _, e := range list {
		body, err := assets.ReadFile(path.Join("assets", e.Name()))
		if err != nil {
			return err
		}
		sum := sha256.Sum256(body)
		f := file{body: body, etag: `"` + hex.EncodeToString(sum[:8]) + `"`, kind: mime.TypeByExtension(path.Ext(e.Name()))}
		switch path.Ext(e.Name()) { // the machine's own tables may say otherwise
		case ".js":
			f.kind = "text/javascript; charset=utf-8"
		case ".css":
			f.kind = "text/css; charset=utf-8"
		case ".html":
			f.kind = "text/html; charset=utf-8"
		case ".svg":
			f.kind = "image/svg+xml"
		}
		if f.packed, err = pack(body); err != nil {
			return err
		}
		s.files[e.Name()] = f
	}
	return nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	s.mux.ServeHTTP(w, r)
}

// serveFile answers with a file of the page. The browser asks each time whether it changed, so that after an upgrade no old script meets a new document.
func (s *Server) serveFile(w http.ResponseWriter, r *http.Request, name string) {
	f, ok := s.files[name]
	if !ok {
		http.NotFound(w, r)
		return
	}
	h := w.Header()
	h.Set("Cache-Control", "no-cache")
	h.Set("ETag", f.etag)
	h.Set("Vary", "Accept-Encoding")
	h.Set("Content-Type", f.kind)
	if strings.Contains(r.Header.Get("If-None-Match"), f.etag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	body := f.body
	if f.packed != nil && takesGzip(r) {
		h.Set("Content-Encoding", "gzip")
		body = f.packed
	}
	h.Set("Content-Length", fmt.Sprint(len(body)))
	_, _ = w.Write(body)
}
