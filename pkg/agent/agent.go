package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/config"
	"github.com/fanout-io/fanout/pkg/identity"
	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/store"
	"github.com/fanout-io/fanout/pkg/tracing"
	"github.com/fanout-io/fanout/pkg/transfer"
	"github.com/fanout-io/fanout/pkg/tree"
	webpage "github.com/fanout-io/fanout/pkg/web"
)

const (
	// workers is how many refs are worked on at once. Most of them wait for bytes.
	workers = 32
	// parallelSteps is how many steps of one ref's plan are taken at once.
	parallelSteps = 16
	// reportEvery is how often health is told upward at most.
	reportEvery = 200 * time.Millisecond
	// registryTimeout is how long the registry may take to begin an answer: so soon it is said that it hangs.
	registryTimeout = 30 * time.Second
	// clockBound is by how much the clocks of two sites at headquarters may differ.
	clockBound = 2 * time.Second
)

// Options are what a configuration file does not say.
type Options struct {
	// Version of the software.
	Version string
	// Logger; nil discards.
	Logger *slog.Logger
	// Timeouts of the group; the zero value means the defaults.
	Timeouts tree.Timeouts
	// Tracer is told what is published and delivered; nil: nobody listens. Who made it closes it, after Run.
	Tracer *tracing.Tracer
}

// Agent runs one site. Make it with New, then call Run once.
type Agent struct {
	cfg     *config.Config
	opts    Options
	logger  *slog.Logger
	metrics *prometheus.Registry
	counts  *measures
	tracer  *tracing.Tracer
	page    *webpage.Server

	store    *store.Store
	registry *registry.Client   // nil at a witness
	embedded *registry.Embedded // nil unless the registry is embedded
	identity *identity.Source   // nil without TLS
	secret   string

	download, upload *rate.Limiter

	node     *tree.Node
	fetcher  *transfer.Fetcher
	transfer *transfer.Server
	peers    *peers
	queue    *queue
	progress *progress
	events   *events
	closures *closures
	asking   turns // for manifests that others are asked for, by digest
	sweeper  *sweeper
	keeping  keeping

	ahead      ahead    // refs with releases of which all content is here
	moves      moves    // refs that move together
	frozenRefs freezes  // refs that a freeze keeps as they are
	refusals   refusals // refs that were changed here under a rollout

	pushes   pushes // when a ref was last said to be pushed
	noted    noted  // referrers that were said to be pushed
	entered  pushes // when referrers of a ref were last entered again
	learned  learned
	disputed pushes // what lost against the catalog, and when that was seen first

	standby  standby  // refs for which others of the shared storage work
	underway underway // what deliveries bring into the registry
	disks    disks    // room as it is reported
	receipts receipts // what came for deliveries that are under way

	marker marker
	amends amends
	doubt  nudge // whether the registry answers
	stale  nudge // what is known of the registry's content

	rolloutCount *prometheus.GaugeVec
	notifiers    []*notifier

	httpCert atomic.Pointer[tls.Certificate] // nil: http.listen has no TLS
	started  atomic.Bool                     // see starting

	mu         sync.Mutex
	regErr     error // last check of the registry
	sweptOnce  bool
	swept      chan struct{} // closed after the first sweep
	sweepError error
	nextSweep  time.Time
}

// New opens the data directory and joins the parts; it starts nothing. Run, or Close where Run is not called, must follow.
func New(cfg *config.Config, opts Options) (*Agent, error) {
	a := &Agent{
		cfg: cfg, opts: opts, logger: opts.Logger, metrics: prometheus.NewRegistry(), counts: newMeasures(), tracer: opts.Tracer,
		queue: newQueue(), progress: newProgress(cfg.Site), events: newEvents(cfg.Site), closures: newClosures(),
		swept: make(chan struct{}), doubt: newNudge(), stale: newNudge(),
	}
	a.sweeper = newSweeper(a)
	if a.logger == nil {
		a.logger = slog.New(slog.DiscardHandler)
	}
	a.logger = a.logger.With("site", cfg.Site, "group", cfg.Group)
	var err error
	if a.identity, err = loadIdentity(cfg, a.logger); err != nil {
		return nil, err
	}
	cert, err := loadHTTPCert(cfg)
	if err != nil {
		return nil, err
	}
	a.httpCert.Store(cert)
	if cfg.Webhook.SecretFile != "" {
		secret, err := os.ReadFile(cfg.Webhook.SecretFile)
		if err != nil {
			return nil, fmt.Errorf("reading webhook.secretFile: %w", err)
		}
		a.secret = strings.TrimSpace(string(secret))
	}
	if err := os.MkdirAll(cfg.DataDir, 0o750); err != nil {
		return nil, fmt.Errorf("making dataDir: %w", err)
	}
	if a.store, err = store.Open(store.Config{Dir: filepath.Join(cfg.DataDir, "store"), SpoolBytes: int64(cfg.Limits.Spool), Logger: a.logger}); err != nil {
		return nil, err
	}
	if err := errors.Join(a.loadMarker(), a.assemble(), a.loadAmends(), a.assembleRollouts(), a.registerMeasures()); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	if a.page, err = webpage.New(webpage.Config{Fabric: page{&admin{a: a, local: true}}, Logger: a.logger, Registerer: a.metrics}); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

// Check looks whether the certificates that the configuration names are good for this site. It leaves nothing behind.
func Check(cfg *config.Config) error {
	_, err := loadIdentity(cfg, nil)
	_, herr := loadHTTPCert(cfg)
	return errors.Join(err, herr)
}

// loadHTTPCert reads the certificate of http.listen; nil: it has none.
func loadHTTPCert(cfg *config.Config) (*tls.Certificate, error) {
	t := cfg.HTTP.TLS
	if t.Cert == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, fmt.Errorf("loading http.tls: %w", err)
	}
	return &cert, nil
}

// loadIdentity reads who this site is and proves that it is the one that the configuration says; nil: without TLS.
func loadIdentity(cfg *config.Config, logger *slog.Logger) (*identity.Source, error) {
	if !cfg.TLS.Enabled() {
		return nil, nil
	}
	files := identity.Files{Cert: cfg.TLS.Cert, Key: cfg.TLS.Key, CA: cfg.TLS.CA, TrustDomain: cfg.TLS.TrustDomain}
	source, err := identity.Load(files, logger)
	if err != nil {
		return nil, fmt.Errorf("loading the identity: %w", err)
	}
	if id := source.ID(); id.Group != cfg.Group || id.Site != cfg.Site {
		return nil, fmt.Errorf("the certificate %s is for %s, but this is site %q of group %q; issue one for it", cfg.TLS.Cert, id, cfg.Site, cfg.Group)
	}
	return source, nil
}

// Close releases what New opened. Run calls it.
func (a *Agent) Close() error {
	a.queue.stop()
	if a.peers != nil {
		a.peers.close()
	}
	var err error
	if a.embedded != nil {
		err = a.embedded.Close()
	}
	return errors.Join(err, a.store.Close())
}

func (a *Agent) assemble() error {
	if err := a.openRegistry(); err != nil {
		return err
	}
	a.peers = newPeers(a.identity, a.cfg.Group)
	a.peers.counted = a.countedTo
	a.download, a.upload = rate.NewLimiter(rate.Inf, 0), rate.NewLimiter(rate.Inf, 0)
	a.setLimits(a.cfg.Limits)
	var err error
	a.fetcher, err = transfer.NewFetcher(transfer.FetcherConfig{
		Spool:      a.store.Spool(),
		Self:       a.caller(),
		Sources:    a.sources,
		Resort:     a.resort,
		Dial:       a.dialTransfer,
		Download:   a.download,
		Logger:     a.logger,
		Registerer: a.metrics,
	})
	if err != nil {
		return err
	}
	server := transfer.ServerConfig{
		Spool: a.store.Spool(), Self: a.caller(), Flights: a.fetcher.Lookup, Manifests: a.serveManifest, Authorize: a.authorize, ReadThrough: a.readThrough, Near: a.near,
		Upload: a.upload, Logger: a.logger, Registerer: a.metrics,
	}
	if a.registry != nil {
		server.Local = local{a.registry}
	}
	if a.transfer, err = transfer.NewServer(server); err != nil {
		return err
	}
	a.node, err = tree.New(a.treeConfig())
	return err
}

func (a *Agent) treeConfig() tree.Config {
	c := a.cfg
	tc := tree.Config{
		Site: c.Site, Group: c.Group, Incarnation: a.store.Incarnation(), Version: a.opts.Version, DataDir: c.DataDir,
		RaftListen: c.Raft.Listen, RaftAdvertise: c.Raft.Advertise, Members: c.Raft.Members,
		FabricAdvertise: c.Fabric.Advertise, Parents: c.Fabric.Parents, FallbackParents: c.Fabric.FallbackParents,
		RegistryType: c.Registry.Type, Shared: c.Registry.Shared, Settings: settings(c),
		Dial: a.peers.conn, DialTunnel: a.peers.tunnel, AuthorizePeer: a.authorizePeer, Manifests: manifests{a}, OnParent: a.parentChanged,
		ServeTunnel: a.serveTunnel, TunnelOptions: a.tunnelOptions(),
		Timeouts: a.opts.Timeouts, Logger: a.logger, Registerer: a.metrics,
	}
	if a.identity != nil {
		fellow := func(id identity.ID) error {
			if id.Group != c.Group || id.Site == "" {
				return fmt.Errorf("%s is no member of group %s", id, c.Group)
			}
			return nil
		}
		tc.RaftServerTLS, tc.RaftClientTLS = a.identity.ServerTLS(), a.identity.ClientTLS(fellow)
	}
	return tc
}

// otherSettings names the key in which this site's file differs from what is in force in the group; empty: none.
func (a *Agent) otherSettings() string {
	in, own := a.node.Catalog().Settings(), settings(a.cfg)
	switch {
	case in == nil:
		return ""
	case !maps.Equal(in.GetLabels(), own.GetLabels()):
		return "labels"
	case !proto.Equal(in.GetSubscribe(), own.GetSubscribe()):
		return "subscribe"
	case !proto.Equal(in.GetPublish(), own.GetPublish()):
		return "publish"
	case !proto.Equal(in.GetDrift(), own.GetDrift()):
		return "drift"
	case in.GetSiblings() != own.GetSiblings():
		return "fabric.siblings"
	}
	return ""
}

func settings(c *config.Config) *catalogv1.GroupSettings {
	s := &catalogv1.GroupSettings{
		Labels: c.Labels,
		Subscribe: &catalogv1.Subscription{
			Repositories: c.Subscribe.Repositories, Exclude: c.Subscribe.Exclude, Keep: uint32(c.Subscribe.Keep),
		},
		Drift:    &catalogv1.DriftSettings{Changed: c.Drift.Changed, Deleted: c.Drift.Deleted},
		Siblings: c.Fabric.Siblings,
	}
	if c.Headquarters() {
		s.Publish = &catalogv1.PublishSettings{
			Repositories: c.Publish.Repositories, Exclude: c.Publish.Exclude, Existing: c.Publish.Existing,
			Deletes: c.Publish.Deletes, Copies: uint32(c.Publish.Copies),
		}
	}
	return s
}

// openRegistry makes the client of the site's registry and, where the registry is embedded, that too.
func (a *Agent) openRegistry() error {
	r := a.cfg.Registry
	rc := registry.Config{
		Type: r.Type, URL: r.URL, Username: r.Username, CAFile: r.CAFile, InsecureSkipVerify: r.InsecureSkipVerify,
		UserAgent: userAgent(a.opts.Version), HeaderTimeout: registryTimeout, Logger: a.logger,
	}
	switch r.Type {
	case "none":
		return nil
	case "embedded":
		var err error
		a.embedded, err = registry.NewEmbedded(registry.EmbeddedConfig{
			Dir: r.Data, Listen: r.Listen, Collect: r.GC.Interval, Grace: r.GC.Grace, Keep: a.keepInRegistry, Forget: a.forgetCollected, Collected: a.collected(),
			Notify: func(ctx context.Context, body []byte) error { return a.hooked(ctx, registry.ParseDistribution, body) }, Logger: a.logger,
		})
		if err != nil {
			return err
		}
		rc.Type, rc.URL = registry.TypeOCI, a.embedded.URL()
	}
	if r.PasswordFile != "" {
		rc.Password = func() (string, error) {
			b, err := os.ReadFile(r.PasswordFile)
			return strings.TrimSpace(string(b)), err
		}
	}
	var err error
	a.registry, err = registry.New(rc)
	return err
}

func userAgent(version string) string { return "fanoutd/" + version }

// Run serves until ctx ends or something fails that can't be mended. It returns nil after a clean stop.
func (a *Agent) Run(ctx context.Context) error {
	defer a.Close()
	listeners, err := a.listen()
	if err != nil {
		return err
	}
	// The node ends first, handing its office on; the servers go on until it has.
	g, gctx := errgroup.WithContext(ctx)
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	a.serve(serving, g, listeners)
	if a.embedded != nil {
		g.Go(func() error { return a.embedded.Run(gctx) })
	}
	g.Go(func() error {
		defer stopServing()
		return a.node.Run(gctx)
	})
	g.Go(func() error { return a.fetcher.Run(gctx) })
	g.Go(func() error { a.followCatalog(gctx); return nil })
	g.Go(func() error { a.reportHealth(gctx); return nil })
	g.Go(func() error { a.followRoster(gctx); return nil })
	g.Go(func() error { a.attendRollouts(gctx); return nil })
	g.Go(func() error { a.attendCompany(gctx); return nil })
	if a.registry != nil {
		g.Go(func() error { a.checkRegistry(gctx); return nil })
		g.Go(func() error { a.sweepForever(gctx); return nil })
		g.Go(func() error { a.keepMarker(gctx); return nil })
		g.Go(func() error { a.scrubForever(gctx); return nil })
		for range workers {
			g.Go(func() error { a.work(gctx); return nil })
		}
	}
	a.logger.Info("agent started", "registry", a.registryAddress(), "fabric", a.cfg.Fabric.Listen)
	err = g.Wait()
	if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
		return nil
	}
	return err
}

func (a *Agent) registryAddress() string {
	switch {
	case a.embedded != nil:
		return strings.TrimPrefix(a.embedded.URL(), "http://")
	case a.registry != nil:
		return a.cfg.Registry.URL
	}
	return ""
}

// followCatalog puts every ref whose record changed into the queue. It starts at the beginning: what is delivered already is found to be so without asking the registry.
func (a *Agent) followCatalog(ctx context.Context) {
	news, stop := a.node.Watch()
	defer stop()
	var seen uint64
	var epoch, scope string
	var keep uint32
	deletions, freezes := deletionWatch{}, freezeWatch{}
	for {
		snap := a.node.Catalog()
		deletions.look(a, snap)
		freezes.look(a, snap)
		for _, ref := range a.refusals.over(snap) {
			a.queue.add(key{repository: ref.Repository, tag: ref.Tag})
		}
		pos := snap.Position()
		another := pos.GetEpoch() != epoch || pos.GetScope() != scope
		if another {
			// Records with old revisions may have come in: look at all.
			epoch, scope, seen = pos.GetEpoch(), pos.GetScope(), 0
		}
		if snap.Keep() != keep {
			keep, seen = snap.Keep(), 0
		}
		changed := map[string]bool{}
		for rec := range snap.Since(seen) {
			if snap.EpochOf(rec) != "" { // else it is about to be replaced, or not whole yet
				a.noteRecord(snap, rec)
				changed[rec.GetRepository()] = true
			}
		}
		a.noteKept(snap, changed)
		if snap.Resyncing() == "" {
			if another {
				a.progress.keep(func(ref catalog.Ref) bool {
					_, ok := snap.Get(ref)
					return ok
				})
			}
			seen = pos.GetRevision()
			a.progress.seen(seen)
		}
		select {
		case <-ctx.Done():
			return
		case <-news:
		}
	}
}

func (a *Agent) noteRecord(snap *catalog.Snapshot, raw *catalogv1.Record) {
	if a.registry == nil {
		return
	}
	a.learned.note(raw)
	rec := a.shown(raw)
	ref := catalog.RefOf(rec)
	st, ok, err := a.store.RefState(ref.String())
	if !catalog.Tombstone(raw) && !a.keeping.has(snap, ref) {
		if ok || err != nil {
			a.queue.add(key{repository: ref.Repository, tag: ref.Tag}) // it was delivered here
		}
		a.progress.settle(ref, rec.GetRevision())
		return
	}
	if err == nil && ok && a.ahead.has(raw) && counted(snap, st).BaseRevision == rec.GetRevision() && st.Intent == "" {
		if a.cfg.Headquarters() && rec.GetOrigin() == a.cfg.Site {
			// Referrers that came between the look that was published and this record were of no record yet: look once more.
			a.queue.add(key{repository: ref.Repository, tag: ref.Tag})
		}
		return
	}
	a.progress.want(ref, rec.GetRevision())
	a.queue.renew(key{repository: ref.Repository, tag: ref.Tag})
}

// sleep waits for a time; false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
