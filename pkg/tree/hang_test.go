package tree_test

import (
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// TestAttach_DoesNotBeginWithTheRootThatHangs: a root whose process is stopped accepts connections, and says nothing. Whoever lost it asks another first.
func TestAttach_DoesNotBeginWithTheRootThatHangs(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", three)
	f.start(three...)
	r := root(t, hq)
	others := slices.DeleteFunc(slices.Clone(three), func(name string) bool { return name == r.cfg.Site })
	gd := f.group("hq/gd", []string{"gd-a"}, append([]string{r.cfg.Site}, others...)...)
	mute := newMute(t, r.cfg.FabricAdvertise)
	gd[0].detour = map[string]string{r.cfg.FabricAdvertise: mute.addr}
	f.start("gd-a")
	until(t, "it is attached to that root", func() bool {
		if now := root(t, hq); now != r {
			_, _ = now.node.Lead(t.Context(), r.cfg.Site) // what came of it is looked at again
			return false
		}
		return gd[0].node.Roster().Parent == "hq"
	})
	mute.hang()
	r.kill()
	until(t, "another root is elected", func() bool {
		return slices.ContainsFunc(hq, func(s *site) bool { return s.node != nil && s.node.IsRoot() })
	})
	mute.drop()
	root(t, hq).publish("app", "v1", "1")
	until(t, "it follows the next root", func() bool { return gd[0].shows("app", "v1", "1") })
	if n := mute.hung.Load(); n != 0 {
		t.Errorf("the root that hangs was asked %d times before the others", n)
	}
}

// mute passes connections on until it hangs: then those that there are carry nothing, and new ones are accepted and answered with nothing.
type mute struct {
	addr  string
	hung  atomic.Int64 // connections accepted since
	quiet chan struct{}
	mu    sync.Mutex
	conns []net.Conn
}

func newMute(t testing.TB, to string) *mute {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &mute{addr: l.Addr().String(), quiet: make(chan struct{})}
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); m.drop(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			m.keep(c)
			select {
			case <-m.quiet:
				m.hung.Add(1)
				continue
			default:
			}
			up, err := net.Dial("tcp", to)
			if err != nil {
				_ = c.Close()
				continue
			}
			m.keep(up)
			wg.Go(func() { m.pass(up, c) })
			wg.Go(func() { m.pass(c, up) })
		}
	})
	return m
}

func (m *mute) keep(c net.Conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.conns = append(m.conns, c)
}

func (m *mute) hang() { close(m.quiet) }

// drop closes what is open, as keepalive does.
func (m *mute) drop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.conns {
		_ = c.Close()
	}
}

func (m *mute) pass(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			break
		}
		select {
		case <-m.quiet:
			continue
		default:
		}
		if _, err := to.Write(buf[:n]); err != nil {
			break
		}
	}
	select {
	case <-m.quiet: // the end of the one side is not told to the other
	default:
		_ = to.Close()
	}
}
