package tree_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/fanout-io/fanout/pkg/tree"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// straits are the ways between the raft addresses of a group, on which what one member asks of another can be held up: nothing is lost, nobody is told.
type straits struct {
	mu   sync.Mutex
	hold map[[2]string]chan struct{} // by who asks whom; closed when it flows again
}

// holdUp returns a function that lets it flow again.
func (s *straits) holdUp(from, to *site) (flow func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	way, hold := [2]string{from.cfg.Site, to.cfg.Site}, make(chan struct{})
	s.hold[way] = hold
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.hold, way)
		close(hold)
	}
}

// behind puts a site's raft address behind a strait until the test ends.
func (s *straits) behind(t testing.TB, f *fabric, to *site) {
	t.Helper()
	to.cfg.RaftAdvertise = to.cfg.RaftListen
	to.cfg.RaftListen = f.addr(7401)
	ln, err := net.Listen("tcp", to.cfg.RaftAdvertise)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); _ = ln.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { s.pass(ctx, c, to.cfg) })
		}
	})
}

func (s *straits) pass(ctx context.Context, c net.Conn, to tree.Config) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	greeting := &bytes.Buffer{}
	from, err := whoGreets(io.TeeReader(c, greeting))
	if err != nil {
		return
	}
	up, err := net.Dial("tcp", to.RaftListen)
	if err != nil {
		return
	}
	defer up.Close()
	var back sync.WaitGroup
	defer back.Wait()
	back.Go(func() { _, _ = io.Copy(c, up); _ = c.Close() })
	defer func() { _ = up.Close() }()
	_, _ = io.Copy(up, io.MultiReader(greeting, held{c, ctx, s, [2]string{from, to.Site}}))
}

// whoGreets reads the greeting of a raft connection: a byte, its length, a RaftHello.
func whoGreets(r io.Reader) (string, error) {
	head := make([]byte, 5)
	if _, err := io.ReadFull(r, head); err != nil {
		return "", err
	}
	body := make([]byte, binary.BigEndian.Uint32(head[1:]))
	if _, err := io.ReadFull(r, body); err != nil {
		return "", err
	}
	hello := &treev1.RaftHello{}
	err := proto.Unmarshal(body, hello)
	return hello.GetSite(), err
}

type held struct {
	io.Reader
	ctx context.Context
	s   *straits
	way [2]string
}

func (h held) Read(p []byte) (int, error) {
	n, err := h.Reader.Read(p)
	h.s.mu.Lock()
	hold := h.s.hold[h.way]
	h.s.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-h.ctx.Done():
		}
	}
	return n, err
}

// TestGroup_ARootThatWasReplacedStops: what a root says to one member is held up, while it goes on with the other, until another was made root. Then it arrives, and is answered with the
// newer term. Nobody is left waiting for an answer of which he has no use: each member stops when it is told to.
func TestGroup_ARootThatWasReplacedStops(t *testing.T) {
	f := newFabric(t)
	hq := f.group("hq", three)
	ways := &straits{hold: map[[2]string]chan struct{}{}}
	for _, s := range hq {
		ways.behind(t, f, s)
	}
	f.start(three...)
	for round := range 8 {
		old := root(t, hq)
		rest := slices.DeleteFunc(slices.Clone(hq), func(s *site) bool { return s == old })
		slow, next := rest[round%2], rest[1-round%2]
		old.publish("app", fmt.Sprint("before-", round), "x")
		until(t, "all have the log", func() bool { return slow.position().GetRevision() == old.position().GetRevision() })
		flow := ways.holdUp(old, slow)
		for i := range 5 {
			old.publish("app", fmt.Sprintf("r%d-%d", round, i), "x")
		}
		_, err := old.node.Lead(t.Context(), next.cfg.Site)
		flow()
		if err != nil {
			t.Logf("round %d: %v", round, err)
		}
		until(t, "the slow one has it all", func() bool { return slow.position().GetRevision() >= uint64(6*(round+1)) })
	}
	for _, s := range hq {
		ended := make(chan error, 1)
		go func() { ended <- s.stop() }()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience / 2):
			t.Errorf("%s does not stop", s.cfg.Site)
			s.node = nil // so the test's cleanup does not wait for it
		}
	}
}
