package tree

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

const (
	helloByte     = 0xFA
	maxHello      = 64 << 10
	maxHandshakes = 64
)

// raftListener owns the raft listener. Every connection begins with a RaftHello. Those that are channels for raft, and mean this very server, are handed to
// raft; the others are answered here.
//
// Invariant: raft never hears a message that was meant for another server ID. raft itself does not check this, and an agent with an empty disk at the address
// of the server it was would vote and acknowledge in that one's name, by which entries that a majority had acknowledged could be lost.
type raftListener struct {
	n        *Node
	ln       net.Listener // nil: a group of one that needs none
	channels chan net.Conn
	closed   chan struct{} // no more channels are wanted
	once     sync.Once
	slots    chan struct{}

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	done  bool
	wg    sync.WaitGroup
}

func (n *Node) listenRaft(ctx context.Context) (*raftListener, error) {
	l := &raftListener{
		n: n, channels: make(chan net.Conn), closed: make(chan struct{}), slots: make(chan struct{}, maxHandshakes), conns: map[net.Conn]struct{}{},
	}
	if n.cfg.RaftListen == "" {
		return l, nil
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", n.cfg.RaftListen)
	if err != nil {
		return nil, fmt.Errorf("raft.listen: %w", err)
	}
	l.ln = ln
	return l, nil
}

// serve accepts until stop. It must be run in l.wg, so that stop waits for all that it begins.
func (l *raftListener) serve() {
	if l.ln == nil {
		return
	}
	pauses := backoff{limit: time.Second}
	for {
		conn, err := l.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of file descriptors, or the like
			l.n.log.Warn("accepting a raft connection", "error", err)
			select {
			case <-l.closed:
				return
			case <-time.After(pauses.step()):
			}
			continue
		}
		pauses.reset()
		select {
		case l.slots <- struct{}{}:
		default:
			_ = conn.Close() // too many that say nothing; fellow members come again
			continue
		}
		tracked := l.track(conn)
		if tracked == nil {
			return
		}
		l.wg.Go(func() {
			defer func() { <-l.slots }()
			l.handle(tracked)
		})
	}
}

// stop ends serve and all connections, those of raft too.
func (l *raftListener) stop() {
	_ = l.Close() // never fails
	if l.ln != nil {
		_ = l.ln.Close() // what it may say changes nothing
	}
	l.mu.Lock()
	l.done = true
	conns := l.conns
	l.conns = nil
	l.mu.Unlock()
	for c := range conns {
		_ = c.Close()
	}
	l.wg.Wait()
}

// trackedConn is a connection that stop closes.
type trackedConn struct {
	net.Conn
	l *raftListener
}

func (c *trackedConn) Close() error {
	c.l.mu.Lock()
	delete(c.l.conns, c)
	c.l.mu.Unlock()
	return c.Conn.Close()
}

func (l *raftListener) track(conn net.Conn) net.Conn {
	c := &trackedConn{conn, l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done {
		_ = conn.Close()
		return nil
	}
	l.conns[c] = struct{}{}
	return c
}

// handle sees a new connection through its hello.
func (l *raftListener) handle(conn net.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), l.n.cfg.Timeouts.Call)
	defer cancel()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline) // a connection that can't have one fails at the first read
	conn, ctx, err := l.secure(ctx, conn)
	if err != nil {
		l.n.log.Debug("raft connection refused", "address", conn.RemoteAddr().String(), "error", err)
		_ = conn.Close()
		return
	}
	hello, err := readHello(conn)
	if err == nil && hello.GetChannel() != nil {
		if err = l.admit(ctx, hello); err == nil {
			_ = conn.SetDeadline(time.Time{})
			select {
			case l.channels <- conn:
				return // raft's from here on
			case <-l.closed:
			}
		}
	} else if err == nil {
		err = writeFrame(conn, l.answer(ctx, hello))
	}
	if err != nil {
		l.n.log.Debug("raft connection refused", "address", conn.RemoteAddr().String(), "error", err)
	}
	_ = conn.Close()
}

// secure does the TLS handshake and puts the peer into the context, as grpc does.
func (l *raftListener) secure(ctx context.Context, conn net.Conn) (net.Conn, context.Context, error) {
	p := &peer.Peer{Addr: conn.RemoteAddr()}
	if l.n.cfg.RaftServerTLS != nil {
		sec := tls.Server(conn, l.n.cfg.RaftServerTLS)
		if err := sec.HandshakeContext(ctx); err != nil {
			return conn, ctx, fmt.Errorf("TLS handshake: %w", err)
		}
		p.AuthInfo = credentials.TLSInfo{State: sec.ConnectionState()}
		conn = sec
	}
	return conn, peer.NewContext(ctx, p), nil
}

// admit says whether a channel for raft may be opened.
func (l *raftListener) admit(ctx context.Context, h *treev1.RaftHello) error {
	if to := h.GetChannel().GetTo(); to != string(l.n.id) {
		return refused("it means server %q, this is %s", to, l.n.id)
	}
	err := l.n.authorizeFellow(ctx, h.GetGroup(), h.GetSite())
	if errors.Is(err, ErrRemoved) && slices.ContainsFunc(l.n.Servers(), func(s Server) bool { return s.Site == h.GetSite() }) {
		return l.n.cfg.AuthorizePeer(ctx, h.GetGroup(), h.GetSite()) // raft has still to let go of it
	}
	return err
}

// answer answers a hello that is not a channel.
func (l *raftListener) answer(ctx context.Context, h *treev1.RaftHello) *treev1.RaftReply {
	if err := l.n.authorizeFellow(ctx, h.GetGroup(), h.GetSite()); err != nil {
		return &treev1.RaftReply{Refusal: err.Error(), Removed: errors.Is(err, ErrRemoved)}
	}
	switch {
	case h.GetIdentify() != nil:
		return &treev1.RaftReply{Identify: l.n.identity()}
	case h.GetJoin() != nil:
		m := h.GetJoin().GetMember()
		if m.GetSite() != h.GetSite() || m.GetIncarnation() != h.GetIncarnation() {
			return &treev1.RaftReply{Refusal: "a site joins for itself only"}
		}
		if err := l.n.acceptJoin(h.GetJoin()); err != nil {
			return &treev1.RaftReply{Refusal: err.Error()}
		}
		return &treev1.RaftReply{Join: &treev1.JoinResponse{Accepted: true}}
	}
	return &treev1.RaftReply{Refusal: "unknown purpose: is one of the two agents older than the other?"}
}

// authorizeFellow says whether the peer in ctx may speak for a site of this group.
func (n *Node) authorizeFellow(ctx context.Context, group, site string) error {
	if group != n.cfg.Group {
		return refused("this is site %s of group %s, and the caller %s is of group %s: correct raft.members or group", n.cfg.Site, n.cfg.Group, site, group)
	}
	if n.Catalog().Member(site).GetRemoved() {
		return fmt.Errorf("%w: site %s was removed from group %s; 'fanoutctl member add %s RAFT-ADDRESS' lets it in again", ErrRemoved, site, group, site)
	}
	if !n.memberSite(site) {
		return refused("site %s is not a member of group %s: raft.members at %s does not list it, and 'fanoutctl member add %s RAFT-ADDRESS' was not called", site, group, n.cfg.Site, site)
	}
	if err := n.cfg.AuthorizePeer(ctx, group, site); err != nil {
		return refused("%v", err)
	}
	return nil
}

// memberSite says whether a site belongs to this group: not when the catalog says that it was removed; else by the catalog, this agent's file, or its raft log. One
// that has just come has none but its file, and believes those of whom a member in it says that they are members, too.
func (n *Node) memberSite(site string) bool {
	if m := n.Catalog().Member(site); m != nil {
		return !m.Removed
	}
	if _, ok := n.cfg.Members[site]; ok {
		return true
	}
	if vouched := n.vouched.Load(); vouched != nil && (*vouched)[site] {
		return true
	}
	return slices.ContainsFunc(n.Servers(), func(s Server) bool { return s.Site == site })
}

// memberSites are all sites for which memberSite holds.
func (n *Node) memberSites() []string {
	sites := map[string]bool{}
	for site := range n.cfg.Members {
		sites[site] = true
	}
	for _, s := range n.Servers() {
		sites[s.Site] = true
	}
	snap := n.Catalog()
	for _, m := range snap.Members() {
		sites[m.Site] = true
	}
	return slices.DeleteFunc(slices.Sorted(maps.Keys(sites)), func(site string) bool { return snap.Member(site).GetRemoved() })
}

// Accept implements net.Listener for raft.
func (l *raftListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.channels:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener for raft. Hellos are still answered until stop.
func (l *raftListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements net.Listener for raft: the address by which others know this server.
func (l *raftListener) Addr() net.Addr { return advertised(l.n.cfg.RaftAdvertise) }

type advertised string

func (a advertised) Network() string { return "tcp" }
func (a advertised) String() string  { return string(a) }

// Dial implements raft.StreamLayer. The address names the server that is meant too: see transport.
func (l *raftListener) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	addr, id, ok := strings.Cut(string(address), "|")
	if !ok {
		return nil, fmt.Errorf("dialling %s: no server ID", address)
	}
	site, _ := splitID(raft.ServerID(id))
	hello := l.n.hello()
	hello.Purpose = &treev1.RaftHello_Channel{Channel: &treev1.RaftChannel{To: id}}
	conn, err := l.n.dialRaft(ctx, addr, site, hello)
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Time{}) // raft sets its own
	tracked := l.track(conn)
	if tracked == nil {
		return nil, net.ErrClosed
	}
	return tracked, nil
}

func (n *Node) hello() *treev1.RaftHello {
	return &treev1.RaftHello{Group: n.cfg.Group, Site: n.cfg.Site, Incarnation: n.cfg.Incarnation}
}

// dialRaft connects to a raft listener, which must be the site's when one is named, and says hello. The deadline of ctx stays on the connection.
func (n *Node) dialRaft(ctx context.Context, addr, site string, hello *treev1.RaftHello) (_ net.Conn, err error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	raw := conn
	defer func() {
		if err != nil {
			_ = raw.Close()
		}
	}()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	if n.cfg.RaftClientTLS != nil {
		conf := n.cfg.RaftClientTLS.Clone()
		if conf.ServerName == "" {
			conf.ServerName, _, _ = net.SplitHostPort(addr)
		}
		sec := tls.Client(conn, conf)
		if err := sec.HandshakeContext(ctx); err != nil {
			return nil, fmt.Errorf("TLS handshake with %s: %w", addr, err)
		}
		p := &peer.Peer{Addr: conn.RemoteAddr(), AuthInfo: credentials.TLSInfo{State: sec.ConnectionState()}}
		if site != "" {
			if err := n.cfg.AuthorizePeer(peer.NewContext(ctx, p), n.cfg.Group, site); err != nil {
				return nil, refused("%s: %v", addr, err)
			}
		}
		conn = sec
	}
	return conn, writeFrame(conn, hello, helloByte)
}

// ask says hello to a raft listener and returns the answer.
func (n *Node) ask(ctx context.Context, addr, site string, hello *treev1.RaftHello) (*treev1.RaftReply, error) {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Timeouts.Call)
	defer cancel()
	conn, err := n.dialRaft(ctx, addr, site, hello)
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	defer func() { _ = conn.Close() }()
	reply := &treev1.RaftReply{}
	if err := readFrame(conn, reply); err != nil {
		return nil, fmt.Errorf("answer of %s: %w", addr, err)
	}
	if reply.GetRemoved() {
		return nil, fmt.Errorf("%w: %s", ErrRemoved, reply.GetRefusal())
	}
	if reply.GetRefusal() != "" {
		return nil, refused("%s", reply.GetRefusal())
	}
	return reply, nil
}

// identifyAt asks who is at a raft address.
func (n *Node) identifyAt(ctx context.Context, addr, site string) (*treev1.IdentifyResponse, error) {
	hello := n.hello()
	hello.Purpose = &treev1.RaftHello_Identify{Identify: &treev1.IdentifyRequest{}}
	reply, err := n.ask(ctx, addr, site, hello)
	if err != nil {
		return nil, err
	}
	id := reply.GetIdentify()
	switch {
	case id == nil:
		return nil, rubbish("no identity in the answer of %s", addr)
	case id.GetGroup() != n.cfg.Group:
		return nil, refused("at %s is site %s of group %s", addr, id.GetSite(), id.GetGroup())
	case site != "" && id.GetSite() != site:
		return nil, refused("at %s is site %s, not %s: correct raft.members", addr, id.GetSite(), site)
	}
	return id, nil
}

// identity says who this agent is.
func (n *Node) identity() *treev1.IdentifyResponse {
	id := &treev1.IdentifyResponse{
		Site: n.cfg.Site, Group: n.cfg.Group, Incarnation: n.cfg.Incarnation, Founding: n.cfg.Members, FabricAddress: n.cfg.FabricAdvertise,
	}
	if r := n.raft.Load(); r != nil {
		id.LastIndex = r.LastIndex()
		id.Empty = id.LastIndex == 0
		_, id.RootRaftAddress = leader(r)
		id.Root = n.rootAddr()
		if !id.Empty {
			id.Members = n.memberSites()
		}
	}
	return id
}

func readHello(conn io.Reader) (*treev1.RaftHello, error) {
	var first [1]byte
	if _, err := io.ReadFull(conn, first[:]); err != nil {
		return nil, err
	}
	if first[0] != helloByte {
		return nil, rubbish("first byte %#x: is this an agent's raft address?", first[0])
	}
	h := &treev1.RaftHello{}
	if err := readFrame(conn, h); err != nil {
		return nil, err
	}
	return h, nil
}

// readFrame reads a message and its length, and not a byte more.
func readFrame(conn io.Reader, m proto.Message) error {
	var size [4]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxHello {
		return rubbish("a greeting of %d bytes", n)
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(conn, data); err != nil {
		return err
	}
	if err := proto.Unmarshal(data, m); err != nil {
		return rubbish("a greeting that does not decode: %v", err)
	}
	return nil
}

func writeFrame(conn net.Conn, m proto.Message, prefix ...byte) error {
	data, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	buf := binary.BigEndian.AppendUint32(prefix, uint32(len(data)))
	_, err = conn.Write(append(buf, data...))
	return err
}
