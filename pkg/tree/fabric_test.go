package tree_test

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/tree"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 40 * time.Second

// fabric is a tree of groups in one process, over loopback.
type fabric struct {
	t     testing.TB
	dir   string
	host  string // 127.x.y: each fabric has addresses of its own
	next  int
	sites map[string]*site
	mu    sync.Mutex
}

// site is one agent; it can be stopped, killed, wiped and started again.
type site struct {
	f           *fabric
	cfg         tree.Config
	incarnation int
	node        *tree.Node
	reg         *prometheus.Registry
	server      *grpc.Server
	conns       map[string]*grpc.ClientConn
	dials       int // calls of dial, guarded by the fabric's lock
	cancel      context.CancelCauseFunc
	done        chan error
	full        atomic.Bool       // the disk takes no more of the raft log
	detour      map[string]string // where addresses lead to for this site's dial, guarded by the fabric's lock
}

func newFabric(t testing.TB) *fabric {
	f := &fabric{t: t, dir: t.TempDir(), host: fmt.Sprintf("127.%d.%d", 1+rand.IntN(250), 1+rand.IntN(250)), sites: map[string]*site{}}
	t.Cleanup(func() {
		var wg sync.WaitGroup
		for _, s := range f.sites {
			wg.Go(func() { s.kill() })
		}
		wg.Wait()
	})
	return f
}

func (f *fabric) addr(port int) string {
	f.next++
	return fmt.Sprintf("%s.%d:%d", f.host, f.next, port)
}

func quick() tree.Timeouts {
	return tree.Timeouts{
		Heartbeat: 250 * time.Millisecond, Election: 250 * time.Millisecond, Lease: 200 * time.Millisecond, Stream: 150 * time.Millisecond, Silence: 3 * time.Second,
		Call: 3 * time.Second, Backoff: time.Second, Fallback: 500 * time.Millisecond, Probe: 200 * time.Millisecond, Settle: 20 * time.Millisecond,
		Demand: 100 * time.Millisecond, Grace: time.Second,
	}
}

// group adds a group that is not started. Parents are sites.
func (f *fabric) group(path string, names []string, parents ...string) []*site {
	members := map[string]string{}
	for _, name := range names {
		members[name] = f.addr(7401)
	}
	var out []*site
	for _, name := range names {
		host, _, _ := net.SplitHostPort(members[name])
		s := &site{f: f, incarnation: 1, cfg: tree.Config{
			Site: name, Group: path, Version: "test", RaftListen: members[name], Members: members,
			FabricAdvertise: net.JoinHostPort(host, "7400"), RegistryType: "oci", Timeouts: quick(),
			Settings: &catalogv1.GroupSettings{Subscribe: &catalogv1.Subscription{Repositories: []string{"**"}}},
		}}
		for _, p := range parents {
			s.cfg.Parents = append(s.cfg.Parents, f.sites[p].cfg.FabricAdvertise)
		}
		f.sites[name] = s
		out = append(out, s)
	}
	return out
}

// calm gives a group that is not started yet timeouts at which a busy machine alone brings no election about: for what is not about elections, and says nothing when one comes in between.
func calm(sites []*site) []*site {
	for _, s := range sites {
		t := &s.cfg.Timeouts
		t.Heartbeat, t.Election, t.Lease = 1500*time.Millisecond, 1500*time.Millisecond, 1200*time.Millisecond
		t.Stream = 400 * time.Millisecond // nor is a member taken for unreachable
	}
	return sites
}

func (f *fabric) start(names ...string) {
	f.t.Helper()
	for _, name := range names {
		f.sites[name].start()
	}
}

func (s *site) start() {
	t := s.f.t
	t.Helper()
	cfg := s.cfg
	cfg.Incarnation = fmt.Sprintf("i%d", s.incarnation)
	cfg.DataDir = filepath.Join(s.f.dir, cfg.Site)
	s.reg = prometheus.NewRegistry()
	cfg.Registerer = s.reg
	if os.Getenv("TREE_LOG") != "" {
		cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("me", cfg.Site)
	}
	s.conns = map[string]*grpc.ClientConn{}
	cfg.Dial = s.dial
	node, err := tree.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	node.FailDisk(func() error {
		if s.full.Load() {
			return fmt.Errorf("writing: %w", syscall.ENOSPC)
		}
		return nil
	})
	ln, err := net.Listen("tcp", cfg.FabricAdvertise)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(tree.MaxMessage))
	node.Register(server)
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan error, 2)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(ln)
	}()
	go func() {
		err := node.Run(ctx)
		server.Stop()
		<-served
		done <- err
	}()
	s.node, s.server, s.cancel, s.done = node, server, cancel, done
}

func (s *site) dial(_ context.Context, addr string) (grpc.ClientConnInterface, error) {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	s.dials++
	if c := s.conns[addr]; c != nil {
		return c, nil
	}
	c, err := grpc.NewClient("passthrough:///"+cmp.Or(s.detour[addr], addr), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(tree.MaxMessage)),
		// As the agents do: without it a site that was away for some seconds is not asked again for longer than that.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: 5 * time.Second,
		}))
	if err != nil {
		return nil, err
	}
	s.conns[addr] = c
	return c, nil
}

// cut closes the connections that the site has opened; they are opened again.
func (s *site) cut() {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	for addr, c := range s.conns {
		_ = c.Close()
		delete(s.conns, addr)
	}
}

// stop ends the site in good order.
func (s *site) stop() error { return s.end(nil) }

// kill ends it as a crash would.
func (s *site) kill() { _ = s.end(tree.ErrKilled) }

func (s *site) end(cause error) error {
	if s.node == nil {
		return nil
	}
	if cause != nil {
		s.server.Stop()
	}
	s.cancel(cause)
	err := <-s.done
	s.cut()
	s.node = nil
	return err
}

// wipe loses the site's disk.
func (s *site) wipe() {
	s.f.t.Helper()
	s.incarnation++
	if err := os.RemoveAll(filepath.Join(s.f.dir, s.cfg.Site)); err != nil {
		s.f.t.Fatal(err)
	}
}

// until waits for a condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("gave up waiting: %s", what)
		}
		time.Sleep(5 * time.Millisecond) // polls a condition; the deadline decides
	}
}

// root waits for the root among sites, and returns it.
func root(t testing.TB, sites []*site) *site {
	t.Helper()
	var found *site
	until(t, "a root of "+sites[0].cfg.Group, func() bool {
		for _, s := range sites {
			if s.node != nil && s.node.IsRoot() {
				found = s
				return true
			}
		}
		return false
	})
	return found
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return "sha256:" + hex.EncodeToString(sum[:])
}

func publishChange(repo, tag, content string, expect uint64) *catalogv1.Change {
	return &catalogv1.Change{Kind: &catalogv1.Change_Publish{Publish: &catalogv1.Publish{
		Repository: repo, Tag: tag, Expect: expect, Origin: "hq-a",
		Target: &catalogv1.Descriptor{MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: digest(content), Size: int64(len(content))},
	}}}
}

// publish sets a ref through a member, and returns the revision.
func (s *site) publish(repo, tag, content string) uint64 {
	s.f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		rec, _ := s.node.Catalog().Get(catalog.Ref{Repository: repo, Tag: tag})
		res, err := s.node.Propose(ctx, "test", publishChange(repo, tag, content, rec.GetRevision()))
		switch {
		case err == nil && res[0].Err == nil:
			return res[0].Revision
		case err == nil && errors.Is(res[0].Err, catalog.ErrUnchanged):
			return res[0].Record.GetRevision()
		case err == nil && !errors.Is(res[0].Err, catalog.ErrConflict) && !errors.Is(res[0].Err, catalog.ErrNoEpoch):
			s.f.t.Fatalf("publishing %s:%s: %v", repo, tag, res[0].Err)
		case err != nil && !errors.Is(err, tree.ErrUnknownOutcome):
			s.f.t.Fatalf("publishing %s:%s: %v", repo, tag, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// shows says whether a site's catalog has a ref with that content.
func (s *site) shows(repo, tag, content string) bool {
	if s.node == nil {
		return false
	}
	rec, ok := s.node.Catalog().Get(catalog.Ref{Repository: repo, Tag: tag})
	return ok && rec.GetTarget().GetDigest() == digest(content)
}

func (s *site) position() *catalogv1.Position { return s.node.Catalog().Position() }

// counter reads a metric.
func (s *site) counter(name string) float64 {
	families, err := s.reg.Gather()
	if err != nil {
		s.f.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	s.f.t.Fatalf("no metric %s", name)
	return 0
}

// everything is one value for all that a catalog wants.
func everything(s *site) string {
	return s.node.Catalog().View(&catalogv1.Scope{AnyOf: []*catalogv1.Subscription{{Repositories: []string{"**"}}}}).Digest()
}

func groupOf(v tree.HealthView, path string) *treev1.GroupHealth {
	i := slices.IndexFunc(v.Groups, func(g *treev1.GroupHealth) bool { return g.Group == path })
	if i < 0 {
		return nil
	}
	return v.Groups[i]
}

func siteOf(v tree.HealthView, name string) *treev1.SiteHealth {
	i := slices.IndexFunc(v.Sites, func(s *treev1.SiteHealth) bool { return s.Site == name })
	if i < 0 {
		return nil
	}
	return v.Sites[i]
}

func has(s, part string) bool { return strings.Contains(s, part) }
