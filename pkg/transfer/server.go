package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/fanout-io/fanout/pkg/store"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"
)

// Local reads the site's own registry. Its methods return ErrNotFound for what is not there.
type Local interface {
	// OpenBlob reads length bytes from off; length is never 0.
	OpenBlob(ctx context.Context, repository, digest string, off, length int64) (io.ReadCloser, error)
	StatBlob(ctx context.Context, repository, digest string) (size int64, err error)
}

// ServerConfig configures a Server. Spool and Authorize are required.
type ServerConfig struct {
	Spool *store.Spool
	// Self is this site. With it, only groups below this one are served what is still arriving, and others (parents,
	// siblings) whole content alone, so that no two sites wait for each other. Without it everybody counts as below.
	Self *transferv1.Caller
	// Local is the own registry; nil for a witness.
	Local Local
	// Flights finds the flight of a digest: Fetcher.Lookup. Nil: nothing is served while it arrives.
	Flights func(digest string) (*Flight, bool)
	// Manifests gives a manifest; ErrNotFound or store.ErrNotFound when it can't. Nil: there are none.
	Manifests func(ctx context.Context, req *transferv1.ManifestsRequest, digest string) (store.Manifest, error)
	// Near finds a site at or below this group that has a blob whole, for a caller above this group; ErrNotFound when there is none. Nil: none is looked for.
	// The purpose is what to ask that site under.
	Near func(ctx context.Context, p *transferv1.Purpose, digest string) (transferv1.TransferServiceClient, *transferv1.Purpose, error)
	// Authorize says whether the caller is who it says and may read the digests for that purpose: ErrDenied, or a gRPC
	// status; any other error means "try again" to the caller. Far: the caller wants the content from wherever this site can
	// get it, so others may be asked for what must be known to judge; else it asks what is here, as this site itself may be
	// asked in turn.
	Authorize func(ctx context.Context, caller *transferv1.Caller, p *transferv1.Purpose, far bool, digests ...string) error
	// ReadThrough begins to get what this site lacks, or says with ErrNotFound that it does not. The server releases the
	// flight. Nil: never.
	ReadThrough func(ctx context.Context, req *transferv1.FetchRequest) (*Flight, error)
	// Fellow says whether the caller is of this group. Nil: its group's name is Self's.
	Fellow func(caller *transferv1.Caller) bool
	// Upload limits bytes sent; nil is unlimited.
	Upload *rate.Limiter
	// SlowReader is how long a peer may take for one message before it is let go (it comes back for the rest), so that a
	// paused one does not keep content from eviction. Default DefaultSlowReader.
	SlowReader time.Duration
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

const (
	// DefaultSlowReader is enough for a message over the thinnest of links.
	DefaultSlowReader = 5 * time.Minute
	// fellowPatience is how long a fellow is kept waiting for a flight that has not shown yet that it leads outside the
	// group; it also bounds how long two members that ask each other can wait.
	fellowPatience = 10 * time.Second
	statsAtOnce    = 8
)

// Server answers other agents' requests for content.
type Server struct {
	transferv1.UnimplementedTransferServiceServer
	cfg     ServerConfig
	log     *slog.Logger
	metrics *serveMetrics

	mu     sync.Mutex
	proved map[string]time.Time // when suspected content was looked at last
}

var _ transferv1.TransferServiceServer = (*Server)(nil)

// NewServer checks cfg. The server must be registered with a grpc.Server made with ServerOptions.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.Spool == nil || cfg.Authorize == nil {
		return nil, errors.New("transfer: a server needs Spool and Authorize")
	}
	if cfg.Fellow == nil && cfg.Self.GetGroup() == "" {
		return nil, errors.New("transfer: a server needs Fellow or Self")
	}
	if cfg.Fellow == nil {
		group := cfg.Self.GetGroup()
		cfg.Fellow = func(c *transferv1.Caller) bool { return c.GetGroup() == group }
	}
	if cfg.SlowReader <= 0 {
		cfg.SlowReader = DefaultSlowReader
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	m, err := newServeMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("registering metrics: %w", err)
	}
	return &Server{cfg: cfg, log: cfg.Logger, metrics: m, proved: make(map[string]time.Time)}, nil
}

// Fetch implements transferv1.TransferServiceServer.
func (s *Server) Fetch(req *transferv1.FetchRequest, stream grpc.ServerStreamingServer[transferv1.FetchResponse]) error {
	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()
	err := toStatus(s.fetch(req, stream))
	if err != nil {
		s.metrics.refused.WithLabelValues(status.Code(err).String()).Inc()
		s.log.Debug("fetch refused or cut", "peer", req.GetCaller().GetSite(), "digest", req.GetDigest(), "error", err)
	}
	return err
}

func (s *Server) fetch(req *transferv1.FetchRequest, stream grpc.ServerStreamingServer[transferv1.FetchResponse]) error {
	end, err := checkFetch(req)
	if err != nil {
		return err
	}
	ctx := stream.Context()
	if err := s.cfg.Authorize(ctx, req.GetCaller(), req.GetPurpose(), true, req.GetDigest()); err != nil {
		return err
	}
	if req.GetOffset() == end {
		return nil
	}
	// The sending is a goroutine of its own, so that a peer that takes nothing can be let go: gRPC ends a blocked send
	// when the handler returns, and in no other way. The goroutine ends with the stream's context then.
	p := &sender{stream: stream, limit: s.cfg.Upload, patience: s.cfg.SlowReader, stuck: make(chan struct{}), metrics: s.metrics}
	once := sync.OnceFunc(func() { close(p.stuck) })
	p.timer = time.AfterFunc(p.patience, once)
	p.timer.Stop()
	done := make(chan error, 1)
	go func() { done <- s.serve(ctx, req, end, p) }()
	select {
	case err := <-done:
		return err
	case <-p.stuck:
		return fmt.Errorf("%w: nothing was taken for %s; come back for the rest", ErrUnavailable, s.cfg.SlowReader)
	}
}

// FindMissing implements transferv1.TransferServiceServer. Arriving digests are not among the missing ones.
func (s *Server) FindMissing(ctx context.Context, req *transferv1.FindMissingRequest) (*transferv1.FindMissingResponse, error) {
	resp, err := s.findMissing(ctx, req)
	return resp, toStatus(err)
}

func (s *Server) findMissing(ctx context.Context, req *transferv1.FindMissingRequest) (*transferv1.FindMissingResponse, error) {
	if err := checkAsker(req.GetCaller(), req.GetPurpose()); err != nil {
		return nil, err
	}
	digests := req.GetDigests()
	if err := checkDigests(digests); err != nil {
		return nil, err
	}
	if err := s.cfg.Authorize(ctx, req.GetCaller(), req.GetPurpose(), false, digests...); err != nil {
		return nil, err
	}
	const (
		missing = iota
		here
		arriving
	)
	states := make([]int, len(digests))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(statsAtOnce)
	for i, d := range digests {
		if st, err := s.cfg.Spool.Stat(d); err == nil && st.Committed {
			states[i] = here
		} else if s.isArriving(req.GetCaller(), d) {
			states[i] = arriving
		} else if s.cfg.Local != nil {
			g.Go(func() error {
				if _, err := s.cfg.Local.StatBlob(ctx, req.GetPurpose().GetRepository(), d); err == nil {
					states[i] = here
				}
				return ctx.Err()
			})
		}
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	resp := new(transferv1.FindMissingResponse)
	for i, d := range digests {
		if states[i] == missing && s.isAbove(req.GetCaller()) && s.cfg.Near != nil {
			if _, _, err := s.cfg.Near(ctx, req.GetPurpose(), d); err == nil {
				continue
			}
		}
		switch states[i] {
		case missing:
			resp.Missing = append(resp.Missing, d)
		case arriving:
			resp.Arriving = append(resp.Arriving, d)
		}
	}
	return resp, nil
}

// Manifests implements transferv1.TransferServiceServer.
func (s *Server) Manifests(req *transferv1.ManifestsRequest, stream grpc.ServerStreamingServer[transferv1.ManifestsResponse]) error {
	return toStatus(s.manifests(req, stream))
}

func (s *Server) manifests(req *transferv1.ManifestsRequest, stream grpc.ServerStreamingServer[transferv1.ManifestsResponse]) error {
	ctx := stream.Context()
	if err := checkAsker(req.GetCaller(), req.GetPurpose()); err != nil {
		return err
	}
	if err := checkDigests(req.GetDigests()); err != nil {
		return err
	}
	if err := s.cfg.Authorize(ctx, req.GetCaller(), req.GetPurpose(), !req.GetAtHand(), req.GetDigests()...); err != nil {
		return err
	}
	if s.cfg.Manifests == nil {
		return nil
	}
	for _, d := range req.GetDigests() {
		m, err := s.cfg.Manifests(ctx, req, d)
		if errors.Is(err, ErrNotFound) || errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return fmt.Errorf("manifest %s: %w", d, err)
		}
		if len(m.Content) > MaxManifest {
			return fmt.Errorf("%w: manifest %s has %d bytes, at most %d", ErrSize, d, len(m.Content), MaxManifest)
		}
		if err := spend(ctx, s.cfg.Upload, len(m.Content)); err != nil {
			return err
		}
		err = stream.Send(&transferv1.ManifestsResponse{
			Manifest: &transferv1.Manifest{MediaType: m.MediaType, Digest: m.Digest, Content: m.Content},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// mayFollow says whether the caller may be served from a flight under way. It must not be that two wait for each other:
// groups below this one never are its flights' sources while content still arrives at them (nothing but whole content is
// served upwards or sideways), and fellows follow only flights that lead outside.
func (s *Server) mayFollow(c *transferv1.Caller, fl *Flight) bool {
	if s.cfg.Fellow(c) {
		return fl.waitsOutside()
	}
	return s.isBelow(c)
}

// isBelow says whether the caller is of a group under this one.
func (s *Server) isBelow(c *transferv1.Caller) bool {
	own := s.cfg.Self.GetGroup()
	return own == "" || strings.HasPrefix(c.GetGroup(), own+"/")
}

// isAbove says whether the caller is of a group over this one.
func (s *Server) isAbove(c *transferv1.Caller) bool {
	return c.GetGroup() != "" && strings.HasPrefix(s.cfg.Self.GetGroup(), c.GetGroup()+"/")
}

func (s *Server) isArriving(c *transferv1.Caller, digest string) bool {
	fl, ok := s.flight(digest)
	if !ok {
		return false
	}
	defer fl.Release()
	return s.mayFollow(c, fl)
}

func (s *Server) flight(digest string) (*Flight, bool) {
	if s.cfg.Flights == nil {
		return nil, false
	}
	return s.cfg.Flights(digest)
}
