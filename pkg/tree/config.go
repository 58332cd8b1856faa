package tree

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/fanout-io/fanout/pkg/catalog"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"
)

// MaxMembers is how many founding members a group may have.
const MaxMembers = 7

// MaxMessage is the largest message of the tree service in bytes. Connections that Config.Dial returns and servers that a node registers with must
// allow it; grpc's own default of 4 MiB is too small for one record with the most referrers it may have.
const MaxMessage = 16 << 20

// Defaults of Config.
const (
	DefaultSnapshotBytes = 8 << 20
	witness              = "none"
)

// ManifestStore holds manifests by digest.
type ManifestStore interface {
	// Closure returns the manifests under a record that are at hand at once; it asks no registry. It is called with live records only.
	Closure(rec *catalogv1.Record) []*transferv1.Manifest
	// Put keeps manifests that a parent sent ahead. Their digests were verified.
	Put(manifests []*transferv1.Manifest) error
}

// Config of a node. All addresses are HOST:PORT.
type Config struct {
	// Site, Group: who this member is. A group whose path has no slash is headquarters.
	Site, Group string
	// Incarnation is the random ID kept in the data directory: another directory has another.
	Incarnation string
	// Version of the agent, shown in health.
	Version string
	// DataDir: the raft log and its snapshots are kept in its directory "raft".
	DataDir string
	// RaftListen is where the raft listener binds. It may be empty in a group of one.
	RaftListen string
	// RaftAdvertise is how fellow members reach it; default RaftListen.
	RaftAdvertise string
	// Members are the founding members, the same at each: site to raft address. This site is among them.
	Members map[string]string
	// FabricAdvertise is how children and fellow members reach this agent's gRPC server.
	FabricAdvertise string
	// Parents are fabric addresses of the parent group's members; none at headquarters. FallbackParents are of groups further up.
	Parents, FallbackParents []string
	// RegistryType as in the configuration file; "none": a witness.
	RegistryType string
	// Shared is the word that members have in common whose registries share one storage; empty: none does.
	Shared string
	// Settings of the group as this member's file has them. Those of the root are put in force. Nil: left as they are.
	Settings *catalogv1.GroupSettings
	// RaftServerTLS, RaftClientTLS for the raft listener. Nil: plain.
	RaftServerTLS, RaftClientTLS *tls.Config
	// Dial returns a connection to a fabric address. It is asked again for each call; the caller caches and closes.
	Dial func(ctx context.Context, addr string) (grpc.ClientConnInterface, error)
	// DialTunnel returns the one that a tunnel is to use. Content passes through tunnels, so it should be another than Dial's, in which nothing may wait for long. Nil: Dial.
	DialTunnel func(ctx context.Context, addr string) (grpc.ClientConnInterface, error)
	// AuthorizePeer says whether the peer in ctx, as in grpc's package peer, may speak for this group and site. Nil: anybody may.
	AuthorizePeer func(ctx context.Context, group, site string) error
	// ServeTunnel serves what a parent may ask of this member, on a connection that the parent's end of a tunnel opened, until ctx ends. The server must be made with
	// TunnelCredentials. Nil: no tunnels.
	ServeTunnel func(ctx context.Context, conn *TunnelConn)
	// TunnelOptions are what connections to children are made with, but for credentials.
	TunnelOptions []grpc.DialOption
	// OnParent is told at the root when the group is attached to another parent than before, by which peer, and when it is attached to none any more: parent is empty then, and why in a line says
	// why. It must not block. Nil: nobody is told.
	OnParent func(parent, peer string, fallback bool, why string)
	// Manifests are sent ahead with records. Nil: none are.
	Manifests ManifestStore
	// SnapshotBytes of log are applied before a snapshot is taken; more when the last snapshot was larger.
	SnapshotBytes int64
	// Timeouts; zero values are defaults.
	Timeouts Timeouts
	// Logger; nil: discard.
	Logger *slog.Logger
	// Registerer for metrics; nil: none.
	Registerer prometheus.Registerer
}

// Timeouts of a node. Zero values are the defaults.
type Timeouts struct {
	// Heartbeat, Election and Lease of raft: 1s each. The lease is as long as it may be: a root that gives up sooner than its followers would costs an election
	// for nothing, and while one member is away a single stall of another one is enough.
	Heartbeat, Election, Lease time.Duration
	// Stream: an idle stream carries a heartbeat this often; a member's stream to its root is given up after five without one: 1s.
	Stream time.Duration
	// Silence: how long a stream to the parent or a child may carry nothing. It is long, because a message takes its time on a thin link that blobs cross
	// too; a connection that broke is noticed sooner, by the connection's own keepalive: 60s.
	Silence time.Duration
	// Call bounds short calls and the first answer on a stream: 10s.
	Call time.Duration
	// Backoff is the longest pause between attempts to attach to a parent that refuses or sends rubbish; they begin with a fiftieth of it: 15s.
	Backoff time.Duration
	// Away is the same for parents that do not answer or have no root. It is short, since most such attempts cost nothing: the connection has a back-off of
	// its own, and while that lasts it answers at once: 1s.
	Away time.Duration
	// Fallback: how long all parents must be out of reach before fallback parents are tried: 30s.
	Fallback time.Duration
	// Probe: how often the parents are asked for while attached to a fallback parent: 15s.
	Probe time.Duration
	// Settle: how long changes are gathered before they are passed on (health, rosters): 200ms.
	Settle time.Duration
	// Demand: how long a group's changed demand must stand before the parent is told, as it costs a resync: 1s.
	Demand time.Duration
	// Grace: how long after its election a root waits before it calls who did not report unreachable. It is longer than a child needs to notice that the
	// former root hangs (15s) and to come here: 20s.
	Grace time.Duration
	// Tombstone: how long a tombstone is kept at the least: TombstoneAge.
	Tombstone time.Duration
}

func (t Timeouts) withDefaults() Timeouts {
	for _, d := range []struct {
		value *time.Duration
		def   time.Duration
	}{
		{&t.Heartbeat, time.Second}, {&t.Election, time.Second}, {&t.Lease, time.Second}, {&t.Stream, time.Second}, {&t.Silence, time.Minute}, {&t.Call, 10 * time.Second},
		{&t.Backoff, 15 * time.Second}, {&t.Away, time.Second}, {&t.Fallback, 30 * time.Second}, {&t.Probe, 15 * time.Second}, {&t.Settle, 200 * time.Millisecond},
		{&t.Demand, time.Second}, {&t.Grace, 20 * time.Second}, {&t.Tombstone, TombstoneAge},
	} {
		if *d.value <= 0 {
			*d.value = d.def
		}
	}
	t.Lease = min(t.Lease, t.Heartbeat)
	return t
}

// silence is how long a stream may carry nothing.
func (t Timeouts) silence() time.Duration { return 5 * t.Stream }

func (c *Config) headquarters() bool { return !strings.Contains(c.Group, "/") }

// validate checks the configuration and fills in defaults.
func (c *Config) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Site == "" || strings.ContainsAny(c.Site, "/ |") {
		bad("site %q: write a name without slashes and spaces", c.Site)
	}
	if c.Group == "" || slices.Contains(strings.Split(c.Group, "/"), "") {
		bad("group %q: write a path such as hq/guangdong", c.Group)
	}
	if c.Incarnation == "" || strings.ContainsAny(c.Incarnation, "/ |") {
		bad("incarnation %q: it must be the ID kept in the data directory", c.Incarnation)
	}
	if c.DataDir == "" {
		bad("dataDir is missing")
	}
	if _, ok := c.Members[c.Site]; !ok {
		bad("raft.members: this site, %s, is not among the founding members %v", c.Site, slices.Sorted(maps.Keys(c.Members)))
	}
	if len(c.Members) > MaxMembers {
		bad("raft.members: %d members, at most %d can be", len(c.Members), MaxMembers)
	}
	if c.RaftListen == "" && len(c.Members) > 1 {
		bad("raft.listen is missing: the group has %d members", len(c.Members))
	}
	if c.RaftAdvertise == "" {
		c.RaftAdvertise = c.RaftListen
	}
	if c.RaftAdvertise == "" {
		c.RaftAdvertise = c.Members[c.Site]
	}
	if c.RaftListen == "" && c.RaftAdvertise == "" {
		c.RaftAdvertise = "none" // nobody dials it
	}
	if c.Members[c.Site] == "" && len(c.Members) == 1 {
		c.Members = map[string]string{c.Site: c.RaftAdvertise}
	}
	switch parents := len(c.Parents) + len(c.FallbackParents); {
	case c.headquarters() && parents > 0:
		bad("fabric.parents: group %s is headquarters and has none; a group below is named by its path, such as %s/guangdong", c.Group, c.Group)
	case !c.headquarters() && len(c.Parents) == 0:
		bad("fabric.parents is missing: group %s lies below %s", c.Group, parentOf(c.Group))
	}
	if c.Dial == nil {
		bad("no Dial")
	}
	if c.Settings != nil {
		if err := catalog.ValidateScope(&catalogv1.Scope{AnyOf: []*catalogv1.Subscription{subscriptionOf(c.Settings)}}); err != nil {
			bad("subscribe: %w", err)
		}
	}
	if c.SnapshotBytes <= 0 {
		c.SnapshotBytes = DefaultSnapshotBytes
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.AuthorizePeer == nil {
		c.AuthorizePeer = func(context.Context, string, string) error { return nil }
	}
	if c.DialTunnel == nil {
		c.DialTunnel = c.Dial
	}
	c.Timeouts = c.Timeouts.withDefaults()
	return errors.Join(errs...)
}

// subscriptionOf returns what a group subscribes to; without a word on it, everything.
func subscriptionOf(s *catalogv1.GroupSettings) *catalogv1.Subscription {
	if s.GetSubscribe() == nil {
		return &catalogv1.Subscription{Repositories: []string{"**"}}
	}
	return s.GetSubscribe()
}

// parentOf returns the path of the group above, or "".
func parentOf(group string) string {
	if i := strings.LastIndexByte(group, '/'); i >= 0 {
		return group[:i]
	}
	return ""
}

// below says whether a group lies below another.
func below(group, above string) bool { return strings.HasPrefix(group, above+"/") }

// within says whether a group is another or lies below it.
func within(group, above string) bool { return group == above || below(group, above) }
