package agent

import (
	"context"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/stats"

	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/pkg/tree"
)

// Links, seen from this agent.
const (
	linkParent = "parent"
	linkChild  = "child"
	linkFellow = "fellow"
	linkPerson = "person"
)

// links counts the bytes of gRPC messages, as they are on the wire: by link, direction and lane. Raft's own connections, which never leave the group, and TLS are not in it.
type links struct{ bytes *prometheus.CounterVec }

func newLinks() *links {
	return &links{prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "fanout_link_bytes_total",
		Help: "Bytes of gRPC messages by link (parent, child, fellow, person), direction (in, out) and lane (content, manifests, control).",
	}, []string{"link", "direction", "lane"})}
}

// through counts one connection's or server's messages. Link says what is at the other end where that is known; else it is found by the method and the request.
func (l *links) through(own string, link func() string) stats.Handler {
	return &linkStats{links: l, group: own, link: link}
}

// countedTo counts what is said with an address that this agent dials.
func (a *Agent) countedTo(addr string) stats.Handler {
	return a.counts.links.through(a.cfg.Group, func() string {
		r := a.node.Roster()
		if addr == r.RootAddr || slices.ContainsFunc(r.Members, func(p tree.Peer) bool { return p.Addr == addr }) {
			return linkFellow
		}
		return linkParent
	})
}

type linkStats struct {
	links *links
	group string // own
	link  func() string
}

// linkCall is one call. Its link may be found with its first message, which comes before all others.
type linkCall struct {
	link, lane string
	passed     bool // it is counted within
}

type linkKey struct{}

func (s *linkStats) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (s *linkStats) HandleConn(context.Context, stats.ConnStats)                       {}

func (s *linkStats) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	c := &linkCall{lane: "control"}
	service, method, _ := strings.Cut(strings.TrimPrefix(info.FullMethodName, "/"), "/")
	switch {
	case service == "fanout.transfer.v1.TransferService" && method == "Fetch":
		c.lane = "content"
	case service == "fanout.transfer.v1.TransferService" && method == "Manifests":
		c.lane = "manifests"
	case service == "fanout.tree.v1.TreeService" && method == "Tunnel":
		c.passed = true // what goes through it is counted by who speaks and who serves through it
	}
	switch {
	case s.link != nil:
		c.link = s.link()
	case method == "Attach":
		c.link = linkChild
	case method == "Follow", method == "Propose":
		c.link = linkFellow
	}
	return context.WithValue(ctx, linkKey{}, c)
}

func (s *linkStats) HandleRPC(ctx context.Context, e stats.RPCStats) {
	c, ok := ctx.Value(linkKey{}).(*linkCall)
	if !ok || c.passed {
		return
	}
	switch e := e.(type) {
	case *stats.InPayload:
		if c.link == "" {
			c.link = s.asker(e.Payload)
		}
		s.links.bytes.WithLabelValues(c.link, "in", c.lane).Add(float64(e.WireLength))
	case *stats.OutPayload:
		s.links.bytes.WithLabelValues(c.link, "out", c.lane).Add(float64(e.WireLength))
	}
}

// asker is who sends a request to a server.
func (s *linkStats) asker(request any) string {
	switch r := request.(type) {
	case interface{ GetCaller() *transferv1.Caller }:
		if r.GetCaller().GetGroup() != s.group {
			return linkChild
		}
		return linkFellow
	case *treev1.IdentifyRequest:
		return linkFellow
	}
	return linkPerson
}
