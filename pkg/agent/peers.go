package agent

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/stats"

	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"

	"github.com/fanout-io/fanout/pkg/identity"
	"github.com/fanout-io/fanout/pkg/transfer"
	"github.com/fanout-io/fanout/pkg/tree"
)

// maxPeers bounds the connections: others name the addresses, and must not be able to name ever more.
const maxPeers = 256

// lane is what a connection is for. What waits in one connection's buffers, and on a thin link that is megabytes, holds up all that follows in it; so content, and what passes
// through a tunnel, have connections of their own, and nothing that steers waits behind them.
type lane int

const (
	laneControl lane = iota
	laneContent
	laneTunnel
)

type peerKey struct {
	addr string
	lane lane
}

// peers keeps one connection for each address and lane; gRPC mends it when it breaks. The one that was asked for the longest ago makes room for a new one, those first that
// are not in use.
type peers struct {
	identity *identity.Source
	group    string
	// counted gives what counts the messages with an address; nil: nothing does.
	counted func(addr string) stats.Handler

	mu     sync.Mutex
	conns  map[peerKey]*peer
	asked  uint64
	closed bool
}

type peer struct {
	*grpc.ClientConn
	asked uint64 // when it was last asked for, by peers.asked
}

func newPeers(id *identity.Source, group string) *peers {
	return &peers{identity: id, group: group, conns: map[peerKey]*peer{}}
}

// conn gives the connection to an address for what steers.
func (p *peers) conn(_ context.Context, addr string) (grpc.ClientConnInterface, error) {
	return p.in(laneControl, addr)
}

// tunnel gives the one for tunnels.
func (p *peers) tunnel(_ context.Context, addr string) (grpc.ClientConnInterface, error) {
	return p.in(laneTunnel, addr)
}

// in gives the connection to an address in a lane. Without TLS only loopback addresses are dialled.
func (p *peers) in(lane lane, addr string) (grpc.ClientConnInterface, error) {
	key := peerKey{addr, lane}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, context.Canceled
	}
	p.asked++
	if c := p.conns[key]; c != nil {
		c.asked = p.asked
		return c.ClientConn, nil
	}
	var creds credentials.TransportCredentials
	if p.identity != nil {
		creds = credentials.NewTLS(p.identity.ClientTLS(p.related))
	} else {
		if ok, err := identity.IsLoopback(addr); err != nil || !ok {
			return nil, fmt.Errorf("%q is not a loopback address, and without tls the agent speaks to no other", addr)
		}
		creds = insecure.NewCredentials()
	}
	opts := append(transfer.DialOptions(), grpc.WithTransportCredentials(creds), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(tree.MaxMessage)))
	if p.counted != nil {
		opts = append(opts, grpc.WithStatsHandler(p.counted(addr)))
	}
	c, err := grpc.NewClient("passthrough:///"+addr, opts...)
	if err != nil {
		return nil, fmt.Errorf("dialling %s: %w", addr, err)
	}
	p.makeRoom()
	p.conns[key] = &peer{c, p.asked}
	return c, nil
}

// makeRoom closes a connection when there are as many as there may be. p.mu is held.
func (p *peers) makeRoom() {
	if len(p.conns) < maxPeers {
		return
	}
	var victim peerKey
	for key, c := range p.conns {
		v := p.conns[victim]
		inUse := c.GetState() == connectivity.Ready
		switch vInUse := v != nil && v.GetState() == connectivity.Ready; {
		case v == nil, vInUse && !inUse, vInUse == inUse && c.asked < v.asked:
			victim = key
		}
	}
	_ = p.conns[victim].Close()
	delete(p.conns, victim)
}

// related allows agents of the own group and of the groups above it.
func (p *peers) related(id identity.ID) error {
	if id.Site == "" || (id.Group != p.group && !strings.HasPrefix(p.group, id.Group+"/")) {
		return fmt.Errorf("%s "+unrelated+" %s nor of one above it", id, p.group)
	}
	return nil
}

func (p *peers) transfer(_ context.Context, addr string) (transferv1.TransferServiceClient, error) {
	c, err := p.in(laneContent, addr)
	if err != nil {
		return nil, err
	}
	return transferv1.NewTransferServiceClient(c), nil
}

func (p *peers) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, c := range p.conns {
		_ = c.Close()
	}
}
