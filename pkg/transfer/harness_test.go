package transfer_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/fanout-io/fanout/pkg/store"
	"github.com/fanout-io/fanout/pkg/transfer"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const piece = store.PieceSize

// blob is content with its digest.
type blob struct {
	data   []byte
	digest string
}

func newBlob(seed uint64, size int) blob {
	b := make([]byte, size)
	var key [32]byte
	key[0] = byte(seed)
	_, _ = rand.NewChaCha8(key).Read(b)
	return blob{b, digestOf(b)}
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (b blob) request() transfer.Request {
	return transfer.Request{Repository: "app", Tag: "v1", Revision: 1, Root: digestOf([]byte("root")), Digest: b.digest, Size: int64(len(b.data))}
}

// fabric is a network of in-memory connections.
type fabric struct {
	t     testing.TB
	mu    sync.Mutex
	lis   map[string]*bufconn.Listener
	conns map[string]*grpc.ClientConn
}

func newFabric(t testing.TB) *fabric {
	f := &fabric{t: t, lis: map[string]*bufconn.Listener{}, conns: map[string]*grpc.ClientConn{}}
	t.Cleanup(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, c := range f.conns {
			c.Close()
		}
	})
	return f
}

// serve runs a server at an address until the returned function or the test's end.
func (f *fabric) serve(addr string, srv transferv1.TransferServiceServer) (stop func()) {
	l := bufconn.Listen(1 << 20)
	g := grpc.NewServer(transfer.ServerOptions()...)
	transferv1.RegisterTransferServiceServer(g, srv)
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	f.mu.Lock()
	f.lis[addr] = l
	f.mu.Unlock()
	stop = sync.OnceFunc(func() { g.Stop(); <-done })
	f.t.Cleanup(stop)
	return stop
}

func (f *fabric) dial(_ context.Context, addr string) (transferv1.TransferServiceClient, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conns[addr] == nil {
		opts := append(transfer.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
				f.mu.Lock()
				l := f.lis[addr]
				f.mu.Unlock()
				if l == nil {
					return nil, errors.New("no such host")
				}
				return l.DialContext(ctx)
			}))
		c, err := grpc.NewClient("passthrough:///"+addr, opts...)
		if err != nil {
			return nil, err
		}
		f.conns[addr] = c
	}
	return transferv1.NewTransferServiceClient(f.conns[addr]), nil
}

// site is an agent's content half.
type site struct {
	name    string
	dir     string
	spool   *store.Spool
	fetcher *transfer.Fetcher
	stop    func() // of the fetcher
	sources atomic.Pointer[[]transfer.Source]
	local   localRegistry
	got     sync.Map // site → *atomic.Int64
}

type siteOption func(*transfer.FetcherConfig, *transfer.ServerConfig)

// newSite starts a site whose sources are the given ones; see source.
func newSite(f *fabric, group, name string, sources []transfer.Source, opts ...siteOption) *site {
	t := f.t
	t.Helper()
	dir := t.TempDir()
	st, err := store.Open(store.Config{Dir: dir, SpoolBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	s := &site{name: name, dir: dir, spool: st.Spool()}
	s.sources.Store(&sources)
	self := &transferv1.Caller{Group: group, Site: name}
	fc := transfer.FetcherConfig{
		Spool: s.spool, Self: self, Dial: f.dial,
		Sources: func(context.Context, transfer.Request) ([]transfer.Source, error) { return *s.sources.Load(), nil },
		OnBytes: func(src transfer.Source, n int) {
			c, _ := s.got.LoadOrStore(src.Site, new(atomic.Int64))
			c.(*atomic.Int64).Add(int64(n))
		},
	}
	sc := transfer.ServerConfig{
		Self: self, Spool: s.spool, Local: &s.local,
		Authorize: func(context.Context, *transferv1.Caller, *transferv1.Purpose, bool, ...string) error { return nil },
		ReadThrough: func(ctx context.Context, req *transferv1.FetchRequest) (*transfer.Flight, error) {
			p := req.GetPurpose()
			return s.fetcher.Fetch(ctx, transfer.Request{
				Repository: p.GetRepository(), Tag: p.GetTag(), Revision: p.GetRevision(), Root: p.GetRoot(),
				Digest: req.GetDigest(), Size: req.GetSize(),
			})
		},
	}
	for _, o := range opts {
		o(&fc, &sc)
	}
	if s.fetcher, err = transfer.NewFetcher(fc); err != nil {
		t.Fatal(err)
	}
	sc.Flights = s.fetcher.Lookup
	srv, err := transfer.NewServer(sc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.fetcher.Run(ctx) }()
	f.serve(name, srv)
	s.stop = func() { cancel(); <-done }
	t.Cleanup(s.stop)
	return s
}

// received is the number of bytes that came from a site.
func (s *site) received(from string) int64 {
	c, ok := s.got.Load(from)
	if !ok {
		return 0
	}
	return c.(*atomic.Int64).Load()
}

// put commits content to the spool.
func (s *site) put(t testing.TB, b blob) {
	t.Helper()
	in, err := s.spool.Ingest(b.digest, int64(len(b.data)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.WriteAt(b.data, 0); err != nil {
		t.Fatal(err)
	}
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
}

// mustFetch fetches to the end and compares.
func (s *site) mustFetch(t testing.TB, b blob) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.fetch(ctx, b); err != nil {
		t.Fatal(err)
	}
}

func (s *site) fetch(ctx context.Context, b blob) error {
	fl, err := s.fetcher.Fetch(ctx, b.request())
	if err != nil {
		return err
	}
	defer fl.Release()
	rc, err := fl.Stream(ctx, 0)
	if err != nil {
		return err
	}
	defer rc.Close()
	if err := fl.Wait(ctx); err != nil {
		return err
	}
	r := fl.Reader()
	defer r.Close()
	got := make([]byte, len(b.data))
	if _, err := r.ReadAt(got, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if !bytes.Equal(got, b.data) {
		return errors.New("committed content differs")
	}
	return nil
}

// localRegistry is a registry in memory, whose reading may be gated.
type localRegistry struct {
	mu    sync.Mutex
	blobs map[string][]byte
	gate  *gate
	err   error
}

func (l *localRegistry) put(b blob) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.blobs == nil {
		l.blobs = map[string][]byte{}
	}
	l.blobs[b.digest] = b.data
}

func (l *localRegistry) OpenBlob(ctx context.Context, _, digest string, off, n int64) (io.ReadCloser, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, ok := l.blobs[digest]
	switch {
	case l.err != nil:
		return nil, l.err
	case !ok:
		return nil, transfer.ErrNotFound
	}
	r := io.Reader(bytes.NewReader(b[off : off+n]))
	if l.gate != nil {
		r = &gated{g: l.gate, ctx: ctx, b: b[:off+n], off: off}
	}
	return io.NopCloser(r), nil
}

func (l *localRegistry) StatBlob(_ context.Context, _, digest string) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b, ok := l.blobs[digest]; ok && l.err == nil {
		return int64(len(b)), nil
	}
	return 0, transfer.ErrNotFound
}

// gate lets bytes below a limit pass.
type gate struct {
	mu    sync.Mutex
	limit int64
	moved chan struct{}
}

func newGate() *gate { return &gate{moved: make(chan struct{})} }

func (g *gate) open(limit int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limit = limit
	close(g.moved)
	g.moved = make(chan struct{})
}

type gated struct {
	g   *gate
	ctx context.Context
	b   []byte
	off int64
}

func (r *gated) Read(p []byte) (int, error) {
	if r.off == int64(len(r.b)) {
		return 0, io.EOF
	}
	for {
		r.g.mu.Lock()
		limit, moved := min(r.g.limit, int64(len(r.b))), r.g.moved
		r.g.mu.Unlock()
		if limit > r.off {
			n := copy(p, r.b[r.off:limit])
			r.off += int64(n)
			return n, nil
		}
		select {
		case <-moved:
		case <-r.ctx.Done():
			return 0, r.ctx.Err()
		}
	}
}

// fake is a source that behaves as it likes.
type fake struct {
	transferv1.UnimplementedTransferServiceServer
	calls atomic.Int64
	fetch func(req *transferv1.FetchRequest, send func(off int64, data []byte) error, ctx context.Context) error
	raw   func(req *transferv1.FetchRequest, send func(*transferv1.FetchResponse) error, ctx context.Context) error
}

func (s *fake) Fetch(req *transferv1.FetchRequest, stream grpc.ServerStreamingServer[transferv1.FetchResponse]) error {
	s.calls.Add(1)
	if s.raw != nil {
		return s.raw(req, stream.Send, stream.Context())
	}
	return s.fetch(req, func(off int64, data []byte) error {
		return stream.Send(&transferv1.FetchResponse{Offset: off, Data: data, Crc32C: crc32.Checksum(data, transfer.Castagnoli)})
	}, stream.Context())
}

// sendRange sends a part of data in messages of n bytes.
func sendRange(data []byte, off, end int64, n int64, send func(int64, []byte) error) error {
	for off < end {
		m := min(n, end-off)
		if err := send(off, data[off:off+m]); err != nil {
			return err
		}
		off += m
	}
	return nil
}

func rangeOf(req *transferv1.FetchRequest) (off, end int64) {
	if req.GetLength() == 0 {
		return req.GetOffset(), req.GetSize()
	}
	return req.GetOffset(), req.GetOffset() + req.GetLength()
}

// goodFake sends the blob as it should be.
func goodFake(b blob) *fake {
	return &fake{fetch: func(req *transferv1.FetchRequest, send func(int64, []byte) error, _ context.Context) error {
		off, end := rangeOf(req)
		return sendRange(b.data, off, end, piece, send)
	}}
}

func upstream(names ...string) []transfer.Source {
	var out []transfer.Source
	for _, n := range names {
		out = append(out, transfer.Source{Site: n, Addr: n, Upstream: true, ReadThrough: true})
	}
	return out
}

func fellows(names ...string) []transfer.Source {
	out := upstream(names...)
	for i := range out {
		out[i].Upstream = false
	}
	return out
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting until %s", what)
		}
	}
}

func sizes() []int {
	return []int{0, 1, piece - 1, piece, piece + 1, 4<<20 - 1, 4 << 20, 4<<20 + 1, 9<<20 + 12345, 20 << 20}
}

// tampered is a server stream whose messages go through a function.
type tampered struct {
	grpc.ServerStream
	ctx  context.Context
	send func(*transferv1.FetchResponse) error
}

func (s *tampered) Context() context.Context               { return s.ctx }
func (s *tampered) Send(m *transferv1.FetchResponse) error { return s.send(m) }

func readAll(r io.Reader, buf []byte) error {
	_, err := io.ReadFull(r, buf)
	return err
}
