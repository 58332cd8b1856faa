package integration

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/time/rate"
)

// linkRate is what a link of a fault run carries in bytes a second, all its connections together; slow: half of it.
const linkRate = 16 * mib

// wires are the links of a fabric: between a group and its parent, and between any two members of one group. Every connection to an agent that has children or fellows passes through a gate, which finds
// out who dialled, and so which link it belongs to.
type wires struct {
	mu    sync.Mutex
	sites map[string]*site
	links map[string]*wire // by what it joins, see linkName and pairName
}

func newWires() *wires { return &wires{sites: map[string]*site{}, links: map[string]*wire{}} }

func linkName(from, to string) string { return from + " from " + to }

func pairName(x, y string) string { return min(x, y) + " and " + max(x, y) }

// wire is all that flows between two groups, or between two members of one group, whoever dialled.
type wire struct {
	down   atomic.Int64 // bytes towards who dialled, as its sockets took them
	breaks atomic.Int64 // connections that ended while they carried blobs
	pace   atomic.Pointer[rate.Limiter]
	delay  atomic.Int64 // of each chunk, nanoseconds

	mu    sync.Mutex
	cut   bool
	holes map[string]chan struct{} // by the site to which what is swallowed is on its way, or empty: to any; closed when it flows again
	conns map[net.Conn]bool
}

// link gives the one between two groups.
func (w *wires) link(from, to string) *wire { return w.named(linkName(from, to), linkRate) }

// pair gives the one between two members of a group. Its rate has no bound.
func (w *wires) pair(x, y string) *wire { return w.named(pairName(x, y), 0) }

// between gives the link that a connection of two sites belongs to.
func (w *wires) between(from, to *site) *wire {
	if from.group == to.group {
		return w.pair(from.name, to.name)
	}
	return w.link(from.group, to.group)
}

func (w *wires) named(name string, bytes int) *wire {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.links[name]
	if l == nil {
		l = &wire{conns: map[net.Conn]bool{}, holes: map[string]chan struct{}{}}
		if bytes > 0 {
			l.rate(bytes)
		}
		w.links[name] = l
	}
	return l
}

func (l *wire) rate(bytes int) { l.pace.Store(rate.NewLimiter(rate.Limit(bytes), 64<<10)) }

// sever ends all connections and refuses new ones, until join.
func (l *wire) sever() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = true
	for c := range l.conns {
		_ = c.Close()
	}
}

func (l *wire) join() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = false
}

// swallow lets nothing through, or nothing towards the sites that are named, and ends nothing, until restore.
func (l *wire) swallow(towards ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(towards) == 0 {
		towards = []string{""}
	}
	for _, to := range towards {
		if l.holes[to] == nil {
			l.holes[to] = make(chan struct{})
		}
	}
}

func (l *wire) restore() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for to, hole := range l.holes {
		close(hole)
		delete(l.holes, to)
	}
}

func (l *wire) enter(cs ...net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		return false
	}
	for _, c := range cs {
		l.conns[c] = true
	}
	return true
}

func (l *wire) leave(cs ...net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range cs {
		delete(l.conns, c)
	}
}

// open waits while the link swallows what is on its way to a site.
func (l *wire) open(towards string) {
	for {
		l.mu.Lock()
		hole := l.holes[""]
		if hole == nil {
			hole = l.holes[towards]
		}
		l.mu.Unlock()
		if hole == nil {
			return
		}
		<-hole
	}
}

// gate puts one in front of a site's fabric address, and of its raft address.
func (w *wires) gate(t testing.TB, s *site) {
	w.mu.Lock()
	w.sites[s.name] = s
	w.mu.Unlock()
	if strings.Count(s.group, "/") > 1 {
		return // a city has neither children nor fellows
	}
	s.gate = w.stand(t, s, s.fabric)
	s.raftGate = w.stand(t, s, s.raft)
}

// stand opens a gate in front of one address of a site.
func (w *wires) stand(t testing.TB, s *site, addr string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go w.pass(c, s, addr)
		}
	}()
	return l.Addr().String()
}

func (w *wires) pass(c net.Conn, to *site, addr string) {
	defer c.Close()
	from, err := w.owner(c)
	if err != nil {
		return // whoever it was is gone
	}
	l := w.between(from, to)
	up, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer up.Close()
	if !l.enter(c, up) {
		return
	}
	defer l.leave(c, up)
	var flows sync.WaitGroup
	seen := &counter{}
	flows.Go(func() { l.flow(up, c, to.name, nil); _ = up.Close(); _ = c.Close() })
	flows.Go(func() { l.flow(c, up, from.name, seen); _ = up.Close(); _ = c.Close() })
	flows.Wait()
	if seen.busy() {
		l.breaks.Add(1)
	}
}

// chunk is what was read, and when it is due at the other end.
type chunk struct {
	b   []byte
	due time.Time
}

// flow copies until either end is closed. Towards the dialler (seen is not nil) the link's rate is kept and bytes are counted.
func (l *wire) flow(to io.Writer, from io.Reader, towards string, seen *counter) {
	queue := make(chan chunk, 16)
	done := make(chan struct{})
	go func() {
		defer close(queue)
		for {
			b := make([]byte, 32<<10)
			n, err := from.Read(b)
			if n > 0 {
				select {
				case queue <- chunk{b[:n], time.Now().Add(time.Duration(l.delay.Load()))}:
				case <-done:
					return
				}
			}
			if err != nil {
				return
			}
		}
	}()
	defer close(done)
	for c := range queue {
		time.Sleep(time.Until(c.due)) // the delay
		l.open(towards)
		if p := l.pace.Load(); seen != nil && p != nil {
			time.Sleep(p.ReserveN(time.Now(), len(c.b)).Delay())
		}
		n, err := to.Write(c.b)
		if seen != nil {
			l.down.Add(int64(n))
			seen.note(n)
		}
		if err != nil {
			return
		}
	}
}

// owner finds the site whose agent opened a connection.
func (w *wires) owner(c net.Conn) (*site, error) {
	inode, err := socketOf(c)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	sites := make([]*site, 0, len(w.sites))
	for _, s := range w.sites {
		sites = append(sites, s)
	}
	w.mu.Unlock()
	for _, s := range sites {
		if pid := s.pid(); pid > 0 && has(pid, inode) {
			return s, nil
		}
	}
	return nil, fmt.Errorf("no agent has socket %s", inode)
}

// socketOf finds the inode of the socket at the other end of a connection. Both ends are compared: two sockets may have the same local port, towards different places.
func socketOf(c net.Conn) (string, error) {
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return "", err
	}
	there, here, err := kernelAddresses(c)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 9 && f[1] == there && f[2] == here {
			return f[9], nil
		}
	}
	return "", fmt.Errorf("no socket from %s to %s", c.RemoteAddr(), c.LocalAddr())
}

// kernelAddresses are the ends of a connection over IPv4 as /proc/net/tcp writes them.
func kernelAddresses(c net.Conn) (there, here string, err error) {
	write := func(a net.Addr) string {
		tcp, ok := a.(*net.TCPAddr)
		if !ok || tcp.IP.To4() == nil {
			err = fmt.Errorf("%s is no TCP address of IPv4", a)
			return ""
		}
		ip := tcp.IP.To4()
		return fmt.Sprintf("%02X%02X%02X%02X:%04X", ip[3], ip[2], ip[1], ip[0], tcp.Port)
	}
	there, here = write(c.RemoteAddr()), write(c.LocalAddr())
	return there, here, err
}

// has says whether a process has a socket open.
func has(pid int, inode string) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	for _, e := range entries {
		if to, err := os.Readlink(dir + "/" + e.Name()); err == nil && to == "socket:["+inode+"]" {
			return true
		}
	}
	return false
}
