package agent

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"

	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/transfer"
	"github.com/fanout-io/fanout/pkg/tree"
)

// maxHook bounds the body of a webhook.
const maxHook = 4 << 20

// stopTime is how long clients have to end when the agent stops.
const stopTime = 3 * time.Second

type listeners struct{ fabric, socket, http net.Listener }

// listen opens all addresses before anything is served, so that a mistake in one stops the start.
func (a *Agent) listen() (listeners, error) {
	var l listeners
	var err error
	if l.fabric, err = net.Listen("tcp", a.cfg.Fabric.Listen); err != nil {
		return l, fmt.Errorf("fabric.listen: %w", err)
	}
	if l.http, err = net.Listen("tcp", a.cfg.HTTP.Listen); err != nil {
		return l, errors.Join(fmt.Errorf("http.listen: %w", err), l.fabric.Close())
	}
	if l.socket, err = listenSocket(a.cfg.Fabric.Socket); err != nil {
		return l, errors.Join(fmt.Errorf("fabric.socket: %w", err), l.fabric.Close(), l.http.Close())
	}
	return l, nil
}

// listenSocket makes a socket that only the agent's user can open. One that a killed agent left behind is replaced; the data directory's lock proves that nobody serves it.
func listenSocket(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode()&os.ModeSocket != 0 {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	return l, errors.Join(os.Chmod(path, 0o600))
}

func (a *Agent) serve(ctx context.Context, g *errgroup.Group, l listeners) {
	fabric := append(transfer.ServerOptions(), grpc.MaxRecvMsgSize(tree.MaxMessage))
	if a.identity != nil {
		fabric = append(fabric, grpc.Creds(credentials.NewTLS(a.identity.ServerTLS())))
	}
	a.serveGRPC(ctx, g, l.fabric, fabric, true)
	a.serveGRPC(ctx, g, l.socket, transfer.ServerOptions(), false)

	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", a.ready)
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("POST /hooks/harbor", a.hook(registry.ParseHarbor))
	mux.HandleFunc("POST /hooks/distribution", a.hook(registry.ParseDistribution))
	mux.Handle("GET /", a.page)
	g.Go(func() error { return a.page.Run(ctx) })
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(a.logger.Handler(), slog.LevelDebug),
	}
	g.Go(func() error {
		var err error
		if a.httpCert.Load() != nil {
			server.TLSConfig = &tls.Config{
				MinVersion:     tls.VersionTLS12,
				GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return a.httpCert.Load(), nil },
			}
			err = server.ServeTLS(l.http, "", "")
		} else {
			err = server.Serve(l.http)
		}
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return err
	})
	g.Go(func() error {
		<-ctx.Done()
		sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
		defer cancel()
		if err := server.Shutdown(sctx); err != nil {
			return server.Close()
		}
		return nil
	})
}

// serveGRPC serves the fabric's services, or on the socket the admin service alone.
func (a *Agent) serveGRPC(ctx context.Context, g *errgroup.Group, l net.Listener, opts []grpc.ServerOption, fabric bool) {
	if fabric {
		opts = append(opts, grpc.StatsHandler(a.counts.links.through(a.cfg.Group, nil)))
	}
	server := grpc.NewServer(opts...)
	adminv1.RegisterAdminServiceServer(server, &admin{a: a, local: !fabric})
	status := health.NewServer()
	healthv1.RegisterHealthServer(server, status)
	g.Go(func() error { a.keepStatus(ctx, status); return nil })
	if fabric {
		transferv1.RegisterTransferServiceServer(server, a.transfer)
		a.node.Register(server)
	}
	g.Go(func() error { return server.Serve(l) })
	g.Go(func() error {
		<-ctx.Done()
		stopped := make(chan struct{})
		go func() { server.GracefulStop(); close(stopped) }()
		t := time.NewTimer(stopTime)
		defer t.Stop()
		select {
		case <-stopped:
		case <-t.C:
			server.Stop()
			<-stopped
		}
		return nil
	})
}

func (a *Agent) buildInfo() prometheus.Collector {
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "fanout_build_info", Help: "1, with the version of the agent.", ConstLabels: prometheus.Labels{"version": a.opts.Version},
	})
	info.Set(1)
	return info
}

// keepStatus tells gRPC's health service what /readyz would say, and under the name "live" that the agent runs.
func (a *Agent) keepStatus(ctx context.Context, status *health.Server) {
	status.SetServingStatus("live", healthv1.HealthCheckResponse_SERVING)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		said := healthv1.HealthCheckResponse_SERVING
		if !isReady(a.checks()) {
			said = healthv1.HealthCheckResponse_NOT_SERVING
		}
		status.SetServingStatus("", said)
		select {
		case <-ctx.Done():
			status.Shutdown()
			return
		case <-tick.C:
		}
	}
}

func isReady(checks map[string]string) bool {
	for _, why := range checks {
		if why != "ok" {
			return false
		}
	}
	return true
}

// checks says of each thing that the agent needs for its work "ok", or why it has it not.
func (a *Agent) checks() map[string]string {
	a.mu.Lock()
	regErr, swept, sweepErr := a.regErr, a.sweptOnce, a.sweepError
	a.mu.Unlock()
	roster := a.node.Roster()
	checks := map[string]string{}
	check := func(name string, ok bool, why string) {
		if ok {
			why = "ok"
		}
		checks[name] = why
	}
	noRoot := "the group has no root now"
	if why := a.node.Waiting(); why != "" {
		noRoot += ": " + waitingWords(why)
	}
	if a.identity != nil {
		end := a.identity.NotAfter()
		check("certificate", time.Now().Before(end), certificateEnded(end))
	}
	check("raft", roster.Root != "", noRoot)
	if a.node.Removed() {
		checks["raft"] = a.removedReason()
	}
	if err := a.node.DiskTrouble(); err != nil {
		checks["raft"] = "the raft log can't be written: " + plainWords(err)
	}
	check("catalog", a.node.Catalog().Position().GetEpoch() != "", "no catalog was received yet")
	if a.registry != nil {
		checks["registry"] = "ok"
		if regErr != nil {
			checks["registry"] = plainWords(regErr)
		}
		why := "the registry was not looked through yet"
		if sweepErr != nil {
			why += ": " + plainWords(sweepErr)
		}
		check("sweep", swept, why)
	}
	return checks
}

// ready answers whether the agent can do its work; with ?verbose each check by name.
func (a *Agent) ready(w http.ResponseWriter, r *http.Request) {
	checks := a.checks()
	status := http.StatusOK
	if !isReady(checks) {
		status = http.StatusServiceUnavailable
	}
	if _, verbose := r.URL.Query()["verbose"]; verbose {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(checks)
		return
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, http.StatusText(status)+"\n")
}

// hook takes a registry's notifications. Repository, tag and digest are hints where to look; the time, if it is not in the future, orders pushes of one tag at several registries.
// All else is asked of the registry.
func (a *Agent) hook(parse func([]byte) ([]registry.Event, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if a.secret != "" && subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte(a.secret)) != 1 {
			http.Error(w, "the header Authorization does not carry the webhook secret", http.StatusUnauthorized)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxHook))
		if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
			http.Error(w, fmt.Sprintf("the body has more than %d bytes", tooLarge.Limit), http.StatusRequestEntityTooLarge)
			return
		}
		if err != nil {
			http.Error(w, "reading the body: "+err.Error(), http.StatusBadRequest)
			return
		}
		if err := a.hooked(r.Context(), parse, body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusOK)
	}
}

// hooked takes one notification.
func (a *Agent) hooked(ctx context.Context, parse func([]byte) ([]registry.Event, error), body []byte) error {
	events, err := parse(body)
	if err != nil {
		return err
	}
	for _, ev := range events {
		a.notice(ctx, ev)
	}
	return nil
}

// notice puts what a notification names into the queue.
func (a *Agent) notice(ctx context.Context, ev registry.Event) {
	if a.registry == nil || registry.IsHoldTag(ev.Tag) || ownRepository(ev.Repository) || ev.UserAgent == userAgent(a.opts.Version) {
		return
	}
	hq := a.cfg.Headquarters()
	subject, fallback := registry.IsFallbackTag(ev.Tag)
	switch {
	case fallback:
		a.subjectChanged(ctx, ev.Repository, subject)
	case ev.Tag != "":
		at := ev.Time
		if at.IsZero() || at.After(time.Now()) {
			at = time.Now()
		}
		if ev.Action == registry.ActionPush {
			a.pushes.note(ev.Repository+":"+ev.Tag, ev.Digest, ev.Actor, at)
		}
		a.queue.add(key{repository: ev.Repository, tag: ev.Tag})
	case ev.Digest != "" && hq && ev.Action == registry.ActionPush:
		a.queue.add(key{repository: ev.Repository, digest: ev.Digest})
	}
}
