package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// gate is a link that can be shut and opened.
type gate struct {
	addr, to string
	mu       sync.Mutex
	shut     bool
	conns    map[net.Conn]bool
}

func newGate(t testing.TB, to string) *gate {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	g := &gate{addr: l.Addr().String(), to: to, conns: map[net.Conn]bool{}}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go g.pass(c)
		}
	}()
	return g
}

func (g *gate) pass(c net.Conn) {
	defer c.Close()
	g.mu.Lock()
	shut := g.shut
	g.conns[c] = true
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		delete(g.conns, c)
		g.mu.Unlock()
	}()
	if shut {
		return
	}
	up, err := net.Dial("tcp", g.to)
	if err != nil {
		return
	}
	defer up.Close()
	go func() {
		_, _ = io.Copy(up, c)
		_ = up.Close()
	}()
	_, _ = io.Copy(c, up)
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = shut
	for c := range g.conns {
		if shut {
			_ = c.Close()
		}
	}
}

type attachStream = grpc.BidiStreamingServer[treev1.AttachRequest, treev1.AttachResponse]

// rubbishParent answers Attach as it likes.
type rubbishParent struct {
	treev1.UnimplementedTreeServiceServer
	calls  atomic.Int64
	answer func(hello *treev1.Hello, stream attachStream) error
}

func (p *rubbishParent) Attach(stream attachStream) error {
	defer p.calls.Add(1)
	req, err := stream.Recv()
	if err != nil {
		return err
	}
	return p.answer(req.GetHello(), stream)
}

// serve serves it on loopback.
func (p *rubbishParent) serve(t testing.TB) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	treev1.RegisterTreeServiceServer(srv, p)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	return l.Addr().String()
}

// welcome is what a right parent would say to a child.
func welcome(h *treev1.Hello) *treev1.AttachResponse {
	return &treev1.AttachResponse{Kind: &treev1.AttachResponse_Welcome{Welcome: &treev1.Welcome{Group: "hq", Site: "hq-a", Position: h.GetPosition()}}}
}

// record is well formed, and nobody's.
func record(revision uint64) *catalogv1.Record {
	return &catalogv1.Record{
		Repository: "app/rubbish", Tag: fmt.Sprint(revision), Revision: revision, Sum: make([]byte, 16),
		Target: &catalogv1.Descriptor{MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: digestOf([]byte(fmt.Sprint(revision))), Size: 2},
	}
}

func records(h *treev1.Hello, ahead uint64, r *treev1.Records) *treev1.AttachResponse {
	p := h.GetPosition()
	r.Position = &catalogv1.Position{Epoch: p.GetEpoch(), Revision: p.GetRevision() + ahead, Sum: p.GetSum(), Scope: p.GetScope()}
	return &treev1.AttachResponse{Kind: &treev1.AttachResponse_Records{Records: r}}
}

// welcomeThen welcomes the child and goes on with one more message, and then waits for the child to go.
func welcomeThen(next func(h *treev1.Hello) *treev1.AttachResponse) func(*treev1.Hello, attachStream) error {
	return func(h *treev1.Hello, stream attachStream) error {
		if err := stream.Send(welcome(h)); err != nil {
			return err
		}
		if err := stream.Send(next(h)); err != nil {
			return err
		}
		<-stream.Context().Done()
		return nil
	}
}

// noise is a port that answers with bytes that are no protocol.
func noise(t testing.TB, calls *atomic.Int64) (addr string) {
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
			go func() {
				defer c.Close()
				b := make([]byte, 64<<10)
				src := newSource()
				for i := range b {
					b[i] = byte(src.Int64())
				}
				_, _ = c.Write(b)
				calls.Add(1)
			}()
		}
	}()
	return l.Addr().String()
}

// groupSays waits until a site says of its own group that it is degraded, with all the words.
func groupSays(t testing.TB, s *site, words ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("the tree of %s says %q", s.name, words), func() error {
		out, code := s.ctl("tree", s.group, "-o", "json")
		if code != 0 {
			return fmt.Errorf("tree: exit code %d", code)
		}
		var tree struct {
			Groups []struct{ Group, State, Reason string }
		}
		if err := json.Unmarshal(out, &tree); err != nil {
			return err
		}
		for _, g := range tree.Groups {
			if g.Group == s.group {
				if g.State != "degraded" {
					return fmt.Errorf("%+v", g)
				}
				return says(g.Reason, words...)
			}
		}
		return fmt.Errorf("%s", out)
	})
}

// resident is how much memory a site's process holds, in bytes.
func (s *site) resident() int64 {
	s.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				s.t.Fatal(err)
			}
			return kib << 10
		}
	}
	s.t.Fatalf("no VmRSS: %s", status)
	return 0
}

func TestParentSendsRubbish(t *testing.T) {
	t.Parallel()
	hq := start(t, spec{name: "hq-a", group: "hq"})["hq-a"]
	first := push(t, hq, "app/first:1", image(t, 16<<10, 1))
	entire(t, hq, "app/first", "1", first)
	for _, c := range []struct {
		name   string
		answer func(*treev1.Hello, attachStream) error // nil: noise
		words  string
	}{
		{"closes", func(*treev1.Hello, attachStream) error { return nil }, "the parent ended the stream"},
		{"hangs", func(_ *treev1.Hello, s attachStream) error { <-s.Context().Done(); return nil }, "no answer"},
		{"noise", nil, "another protocol"},
		{"unwelcome", func(h *treev1.Hello, s attachStream) error {
			return s.Send(&treev1.AttachResponse{Kind: &treev1.AttachResponse_Heartbeat{Heartbeat: &treev1.Heartbeat{Head: 1 << 60}}})
		}, "neither a welcome nor a redirect"},
		{"stranger", func(h *treev1.Hello, s attachStream) error {
			w := welcome(h)
			w.GetWelcome().Group = "hq/hunan"
			return s.Send(w)
		}, "is not above"},
		{"circle", func(h *treev1.Hello, s attachStream) error {
			return s.Send(&treev1.AttachResponse{Kind: &treev1.AttachResponse_Redirect{Redirect: &treev1.Redirect{Group: "hq", FabricAddress: "not an address"}}})
		}, "not an address"},
		{"crowd", func(h *treev1.Hello, s attachStream) error {
			w := welcome(h)
			w.GetWelcome().Parents = &treev1.Parents{Members: make([]*treev1.ParentMember, 5000)}
			return s.Send(w)
		}, "5000 parents"},
		{"backwards", welcomeThen(func(h *treev1.Hello) *treev1.AttachResponse {
			r := h.GetPosition().GetRevision()
			return records(h, 2, &treev1.Records{Records: []*catalogv1.Record{record(r + 2), record(r + 1)}})
		}), "records come in revision order"},
		{"beyond", welcomeThen(func(h *treev1.Hello) *treev1.AttachResponse {
			return records(h, 1, &treev1.Records{Records: []*catalogv1.Record{record(h.GetPosition().GetRevision() + 5)}})
		}), "beyond the position's"},
		{"manifest", welcomeThen(func(h *treev1.Hello) *treev1.AttachResponse {
			r := h.GetPosition().GetRevision() + 1
			return records(h, 1, &treev1.Records{
				Records:   []*catalogv1.Record{record(r)},
				Manifests: []*transferv1.Manifest{{MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: record(r).GetTarget().GetDigest(), Content: []byte("{}")}},
			})
		}), "a manifest that is not"},
		{"malformed", welcomeThen(func(h *treev1.Hello) *treev1.AttachResponse {
			r := record(h.GetPosition().GetRevision() + 1)
			r.Repository = "../../etc"
			return records(h, 1, &treev1.Records{Records: []*catalogv1.Record{r}})
		}), "repository"},
		{"huge", welcomeThen(func(h *treev1.Hello) *treev1.AttachResponse {
			r := record(h.GetPosition().GetRevision() + 1)
			r.PublishedBy = strings.Repeat("x", 64<<20)
			return records(h, 1, &treev1.Records{Records: []*catalogv1.Record{r}})
		}), "larger than max"},
		{"nothing", welcomeThen(func(*treev1.Hello) *treev1.AttachResponse { return &treev1.AttachResponse{} }), "after the welcome"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			rubbish := &rubbishParent{answer: c.answer}
			addr := ""
			if c.answer == nil {
				addr = noise(t, &rubbish.calls)
			} else {
				addr = rubbish.serve(t)
			}
			right := newGate(t, hq.fabric)
			gd := lay(t, hq, spec{name: "gd-" + c.name, group: "hq/" + c.name})
			gd.parents = []string{addr, right.addr}
			gd.start()
			t.Cleanup(gd.stop)
			entire(t, gd, "app/first", "1", first)

			right.set(true)
			groupSays(t, gd, "not attached to a parent", addr, c.words)
			before, calls := gd.resident(), rubbish.calls.Load()
			more := int64(3)
			if c.name == "hangs" {
				more = 1 // each takes ten seconds
			}
			eventually(t, "more rubbish", func() error {
				if n := rubbish.calls.Load() - calls; n < more {
					return fmt.Errorf("asked %d times", n)
				}
				return nil
			})
			if after := gd.resident(); after > before+48<<20 {
				t.Errorf("the process grew from %d to %d bytes", before, after)
			}
			entire(t, gd, "app/first", "1", first)

			ref := "app/" + c.name
			second := push(t, hq, ref+":2", image(t, 16<<10, 1))
			right.set(false)
			entire(t, gd, ref, "2", second)
			treeSays(t, hq, gd.name, "synced")
		})
	}
}
