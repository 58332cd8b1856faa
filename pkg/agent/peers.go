package agent

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"

	"github.com/fanout-io/fanout/pkg/identity"
	"github.com/fanout-io/fanout/pkg/transfer"
	"github.com/fanout-io/fanout/pkg/tree"
)

// peers keeps one connection for each address; gRPC mends it when it breaks.
type peers struct {
	identity *identity.Source
	group    string

	mu     sync.Mutex
	conns  map[string]*grpc.ClientConn
	closed bool
}

func newPeers(id *identity.Source, group string) *peers {
	return &peers{identity: id, group: group, conns: map[string]*grpc.ClientConn{}}
}

// conn gives the connection to an address. Without TLS only loopback addresses are dialled.
func (p *peers) conn(_ context.Context, addr string) (grpc.ClientConnInterface, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, context.Canceled
	}
	if c := p.conns[addr]; c != nil {
		return c, nil
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
	c, err := grpc.NewClient("passthrough:///"+addr, opts...)
	if err != nil {
		return nil, fmt.Errorf("dialling %s: %w", addr, err)
	}
	p.conns[addr] = c
	return c, nil
}

// related allows agents of the own group and of the groups above it.
func (p *peers) related(id identity.ID) error {
	if id.Site == "" || (id.Group != p.group && !strings.HasPrefix(p.group, id.Group+"/")) {
		return fmt.Errorf("%s is neither of group %s nor of one above it", id, p.group)
	}
	return nil
}

func (p *peers) transfer(ctx context.Context, addr string) (transferv1.TransferServiceClient, error) {
	c, err := p.conn(ctx, addr)
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
