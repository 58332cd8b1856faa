package transfer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"github.com/fanout-io/fanout/pkg/store"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"
)

// Defaults of FetcherConfig.
const (
	DefaultStreams    = 4
	DefaultBlobs      = 4
	DefaultSmallBlobs = 16
	// SmallBlob is the size below which a blob uses one stream and a place of the small blobs' own.
	SmallBlob = 4 << 20
	// DefaultStall is how long a source may send nothing. It says nothing about dead peers, which keepalive finds in
	// half that time; it ends streams of living peers whose own source has dried up. Nothing but a part of a piece is
	// lost by it, so it need not be long.
	DefaultStall = 30 * time.Second
)

// Request names a blob and the record for whose sake it is wanted.
type Request struct {
	Repository, Tag string
	Revision        uint64
	Root            string // digest of the record's target or of a referrer
	Digest          string // of the blob
	Size            int64  // of the blob, as its descriptor says
}

// Source is a site that may have a blob.
type Source struct {
	Site, Addr  string
	Upstream    bool // outside the own group
	ReadThrough bool // it may be asked to get what it lacks
}

// FetcherConfig configures a Fetcher. Spool, Self, Sources and Dial are required.
type FetcherConfig struct {
	Spool *store.Spool
	// Self is this site, as it presents itself to sources.
	Self *transferv1.Caller
	// Sources gives the sites to try, in order of preference. It is asked again at each round.
	Sources func(ctx context.Context, req Request) ([]Source, error)
	// Resort gives the sites to try when none of those could give the blob. Nil: there are none.
	Resort func(ctx context.Context, req Request) ([]Source, error)
	// Dial gives a client for an address. It is called often: connections are the callee's to keep and share. They must
	// be made with DialOptions.
	Dial func(ctx context.Context, addr string) (transferv1.TransferServiceClient, error)
	// Download limits bytes received; nil is unlimited.
	Download *rate.Limiter
	// Streams for one large blob; Blobs that are large at once; SmallBlobs at once beside these.
	Streams, Blobs, SmallBlobs int
	// Stall is how long a source may send nothing before another is tried.
	Stall      time.Duration
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	// OnBytes is told of every message received. It must not block.
	OnBytes func(source Source, n int)
}

// Fetcher brings blobs from other sites into the spool. Run must be running for Fetch to return.
type Fetcher struct {
	cfg     FetcherConfig
	log     *slog.Logger
	metrics *fetchMetrics
	large   *semaphore.Weighted
	small   *semaphore.Weighted
	bad     penalties
	peers   peers
	meter   meter
	credit  credit
	running chan struct{} // closed by Run
	wg      sync.WaitGroup

	mu      sync.Mutex
	ctx     context.Context // Run's; nil before
	closed  bool
	flights map[string]*flight // by digest; a flight leaves it when it has ended
	had     map[string]bool    // digests committed by this process, bounded; to tell what was evicted
}

// maxHad bounds the memory of what was once fetched.
const maxHad = 16384

// NewFetcher checks cfg and gives a Fetcher that does nothing before Run.
func NewFetcher(cfg FetcherConfig) (*Fetcher, error) {
	if cfg.Spool == nil || cfg.Sources == nil || cfg.Dial == nil {
		return nil, errors.New("transfer: a fetcher needs Spool, Sources and Dial")
	}
	if cfg.Self.GetGroup() == "" || cfg.Self.GetSite() == "" {
		return nil, errors.New("transfer: a fetcher needs Self with group and site")
	}
	cfg.Streams = cmp.Or(max(cfg.Streams, 0), DefaultStreams)
	cfg.Blobs = cmp.Or(max(cfg.Blobs, 0), DefaultBlobs)
	cfg.SmallBlobs = cmp.Or(max(cfg.SmallBlobs, 0), DefaultSmallBlobs)
	cfg.Stall = cmp.Or(max(cfg.Stall, 0), DefaultStall)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	m, err := newFetchMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("registering metrics: %w", err)
	}
	return &Fetcher{
		cfg: cfg, log: cfg.Logger, metrics: m,
		large:   semaphore.NewWeighted(int64(cfg.Blobs)),
		small:   semaphore.NewWeighted(int64(cfg.SmallBlobs)),
		running: make(chan struct{}),
		flights: make(map[string]*flight),
		had:     make(map[string]bool),
	}, nil
}

// Run owns all flights. It blocks until ctx ends and every flight has stopped, with its pieces kept. It may be called once.
func (f *Fetcher) Run(ctx context.Context) error {
	f.mu.Lock()
	if f.ctx != nil {
		f.mu.Unlock()
		return errors.New("transfer: Run called twice")
	}
	fctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	f.ctx = fctx
	close(f.running)
	f.mu.Unlock()

	<-ctx.Done()
	f.mu.Lock()
	f.closed = true // from here on no flight begins, so the group below only shrinks
	f.mu.Unlock()
	cancel(ErrClosed)
	f.wg.Wait()
	return context.Cause(ctx)
}

// Fetch joins the flight of the request's digest, or starts one. It returns when content has begun to arrive (so that a
// reader can follow), or is whole, or with the reason why there is none. The caller must Release what it gets.
func (f *Fetcher) Fetch(ctx context.Context, req Request) (*Flight, error) {
	if err := checkDigest(req.Digest); err != nil {
		return nil, err
	}
	if req.Size < 0 || req.Size > MaxBlob {
		return nil, fmt.Errorf("%w: size %d of %s", ErrInvalid, req.Size, req.Digest)
	}
	select {
	case <-f.running:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	for {
		fl, leaving, err := f.join(req)
		if err != nil {
			return nil, err
		}
		if leaving != nil { // the last flight of this digest has not yet put its ingest down
			select {
			case <-leaving:
				continue
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		select {
		case <-fl.fl.started:
		case <-fl.fl.done:
		case <-ctx.Done():
			fl.Release()
			return nil, context.Cause(ctx)
		}
		if err := fl.fl.failure(); err != nil {
			fl.Release()
			return nil, err
		}
		return fl, nil
	}
}

// join gives a handle on the digest's flight, new or not; or what to wait for before asking again.
func (f *Fetcher) join(req Request) (h *Flight, leaving <-chan struct{}, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, nil, ErrClosed
	}
	fl := f.flights[req.Digest]
	if fl != nil && (fl.refs == 0 || fl.ending) {
		return nil, fl.done, nil
	}
	if fl != nil && fl.size != req.Size {
		return nil, nil, fmt.Errorf("%w: %s is being fetched with %d bytes, asked for with %d", ErrSize, req.Digest, fl.size, req.Size)
	}
	if fl == nil {
		fl = newFlight(f, req)
		f.flights[req.Digest] = fl
		f.metrics.active.Inc()
		f.wg.Add(1)
		go func() {
			defer f.wg.Done()
			fl.run()
		}()
	}
	return fl.handle(req), nil, nil
}

// Lookup gives a handle on the digest's flight, if there is one under way that somebody wants. It must be released.
func (f *Fetcher) Lookup(digest string) (*Flight, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl := f.flights[digest]
	if fl == nil || fl.refs == 0 || fl.ending {
		return nil, false
	}
	return fl.handle(Request{}), true
}

// Rate is the number of bytes received a second, over the last few seconds.
func (f *Fetcher) Rate() int64 { return f.meter.value() }

// LinkRate is the number of bytes a second at which content came when it came last; 0: nothing that could be measured has come yet.
func (f *Fetcher) LinkRate() int64 { return f.meter.link() }

// Progress is a flight as others may see it.
type Progress struct {
	Digest     string
	Size, Have int64
	Request    Request // of the holders, the first one's
	Rate       int64   // bytes received a second, over the last few seconds
	Source     Source  // zero while there is none
	Since      time.Time
	Queued     bool  // waits for its turn
	Err        error // why the last source failed, if nothing has come since
}

// Active lists the flights, oldest first.
func (f *Fetcher) Active() []Progress {
	f.mu.Lock()
	fls := make([]*flight, 0, len(f.flights))
	for _, fl := range f.flights {
		fls = append(fls, fl)
	}
	f.mu.Unlock()
	out := make([]Progress, len(fls))
	for i, fl := range fls {
		out[i] = fl.progress()
		out[i].Request = fl.request(0)
	}
	slices.SortFunc(out, func(a, b Progress) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Digest, b.Digest))
	})
	return out
}

// remember notes that a digest was committed.
func (f *Fetcher) remember(digest string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.had) >= maxHad {
		for d := range f.had { // any one: it is only for a metric
			delete(f.had, d)
			break
		}
	}
	f.had[digest] = true
}
