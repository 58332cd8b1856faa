package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fanout-io/fanout/pkg/store"
	"github.com/fanout-io/fanout/pkg/transfer"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"
)

var (
	city    = &transferv1.Caller{Group: "hq/gd/sz", Site: "sz-a"}
	fellow  = &transferv1.Caller{Group: "hq/gd", Site: "gd-b"}
	parent  = &transferv1.Caller{Group: "hq", Site: "hq-a"}
	sibling = &transferv1.Caller{Group: "hq/gdx", Site: "gdx-a"}
	purpose = &transferv1.Purpose{Repository: "app", Tag: "v1", Revision: 1, Root: digestOf([]byte("root"))}
)

func client(t testing.TB, f *fabric, addr string) transferv1.TransferServiceClient {
	t.Helper()
	c, err := f.dial(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// ask fetches and gives what came before the error.
func ask(t testing.TB, c transferv1.TransferServiceClient, req *transferv1.FetchRequest) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	stream, err := c.Fetch(ctx, req)
	if err != nil {
		return nil, err
	}
	var out []byte
	for {
		m, err := stream.Recv() // an ordinary message: the client need not know about pieces
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		if m.GetOffset() != req.GetOffset()+int64(len(out)) || len(m.GetData()) > piece {
			t.Errorf("message of %d bytes at %d, have %d", len(m.GetData()), m.GetOffset(), len(out))
		}
		out = append(out, m.GetData()...)
	}
}

func TestServer_Ranges(t *testing.T) {
	f := newFabric(t)
	s := newSite(f, "hq/gd", "gd-a", nil)
	whole, inRegistry := newBlob(1, 3*piece+50), newBlob(2, 3*piece+50)
	s.put(t, whole)
	s.local.put(inRegistry)
	c := client(t, f, "gd-a")
	for _, b := range []blob{whole, inRegistry} {
		size := int64(len(b.data))
		for _, r := range [][2]int64{{0, 0}, {0, 1}, {0, size}, {1, 0}, {piece - 1, 2}, {piece, piece}, {piece + 1, 2 * piece}, {size - 1, 0}, {size - 1, 1}, {size, 0}} {
			got, err := ask(t, c, &transferv1.FetchRequest{
				Caller: parent, Purpose: purpose, Digest: b.digest, Size: size, Offset: r[0], Length: r[1],
			})
			end := r[0] + r[1]
			if r[1] == 0 {
				end = size
			}
			if err != nil || string(got) != string(b.data[r[0]:end]) {
				t.Errorf("range %v: %d bytes, %v", r, len(got), err)
			}
		}
	}
}

func TestServer_RefusesMalformed(t *testing.T) {
	f := newFabric(t)
	newSite(f, "hq/gd", "gd-a", nil, func(_ *transfer.FetcherConfig, sc *transfer.ServerConfig) {
		sc.Authorize = func(context.Context, *transferv1.Caller, *transferv1.Purpose, bool, ...string) error {
			t.Error("Authorize was asked about a malformed request")
			return nil
		}
	})
	c := client(t, f, "gd-a")
	d := digestOf(nil)
	long := strings.Repeat("x", 1000)
	tests := map[string]*transferv1.FetchRequest{
		"nothing":         {},
		"no caller":       {Purpose: purpose, Digest: d, Size: 10},
		"no purpose":      {Caller: city, Digest: d, Size: 10},
		"no root":         {Caller: city, Purpose: &transferv1.Purpose{Repository: "app"}, Digest: d, Size: 10},
		"no repository":   {Caller: city, Purpose: &transferv1.Purpose{Root: d}, Digest: d, Size: 10},
		"long name":       {Caller: &transferv1.Caller{Group: long, Site: "x"}, Purpose: purpose, Digest: d, Size: 10},
		"digest":          {Caller: city, Purpose: purpose, Digest: "sha256:../../../../etc/passwd", Size: 10},
		"negative size":   {Caller: city, Purpose: purpose, Digest: d, Size: -1},
		"huge size":       {Caller: city, Purpose: purpose, Digest: d, Size: 1 << 62},
		"negative offset": {Caller: city, Purpose: purpose, Digest: d, Size: 10, Offset: -1},
		"offset beyond":   {Caller: city, Purpose: purpose, Digest: d, Size: 10, Offset: 11},
		"negative length": {Caller: city, Purpose: purpose, Digest: d, Size: 10, Length: -1},
		"length beyond":   {Caller: city, Purpose: purpose, Digest: d, Size: 10, Offset: 5, Length: 6},
		"overflow":        {Caller: city, Purpose: purpose, Digest: d, Size: 10, Offset: 5, Length: 1<<63 - 1},
	}
	for name, req := range tests {
		if _, err := ask(t, c, req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	many := make([]string, transfer.MaxDigests+1)
	for i := range many {
		many[i] = d
	}
	for name, ds := range map[string][]string{"many": many, "bad": {"sha256:zz"}} {
		if _, err := c.FindMissing(t.Context(), &transferv1.FindMissingRequest{Caller: city, Purpose: purpose, Digests: ds}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("FindMissing, %s: %v", name, err)
		}
		ms, err := c.Manifests(t.Context(), &transferv1.ManifestsRequest{Caller: city, Purpose: purpose, Digests: ds})
		if err == nil {
			_, err = ms.Recv()
		}
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("Manifests, %s: %v", name, err)
		}
	}
}

func TestServer_Authorizes(t *testing.T) {
	f := newFabric(t)
	b := newBlob(1, 10)
	var answer error
	var fars []bool
	s := newSite(f, "hq/gd", "gd-a", nil, func(_ *transfer.FetcherConfig, sc *transfer.ServerConfig) {
		sc.Authorize = func(_ context.Context, c *transferv1.Caller, p *transferv1.Purpose, far bool, ds ...string) error {
			fars = append(fars, far)
			if c.GetSite() != "sz-a" || p.GetTag() != "v1" || len(ds) != 1 || ds[0] != b.digest {
				t.Errorf("Authorize(%v, %v, %v)", c, p, ds)
			}
			return answer
		}
	})
	s.put(t, b)
	c := client(t, f, "gd-a")
	for _, tt := range []struct {
		err  error
		want codes.Code
	}{
		{nil, codes.OK}, {transfer.ErrDenied, codes.PermissionDenied}, {errors.New("catalog is not there yet"), codes.Unavailable},
		{status.Error(codes.Unauthenticated, "who?"), codes.Unauthenticated},
	} {
		answer, fars = tt.err, nil
		_, err := ask(t, c, &transferv1.FetchRequest{Caller: city, Purpose: purpose, Digest: b.digest, Size: 10})
		_, ferr := c.FindMissing(t.Context(), &transferv1.FindMissingRequest{Caller: city, Purpose: purpose, Digests: []string{b.digest}})
		ms, merr := c.Manifests(t.Context(), &transferv1.ManifestsRequest{Caller: city, Purpose: purpose, Digests: []string{b.digest}})
		if merr == nil {
			if _, merr = ms.Recv(); errors.Is(merr, io.EOF) {
				merr = nil
			}
		}
		if status.Code(err) != tt.want || status.Code(ferr) != tt.want || status.Code(merr) != tt.want {
			t.Errorf("Authorize says %v: Fetch %v, FindMissing %v, Manifests %v", tt.err, err, ferr, merr)
		}
		if ms, err := c.Manifests(t.Context(), &transferv1.ManifestsRequest{Caller: city, Purpose: purpose, Digests: []string{b.digest}, AtHand: true}); err == nil {
			_, _ = ms.Recv()
		}
		// What asks for what is here must not make this site ask others: they may be asking it.
		if want := []bool{true, false, true, false}; !slices.Equal(fars, want) {
			t.Errorf("Fetch, FindMissing, Manifests and those at hand go far: %v, want %v", fars, want)
		}
	}
}

// Who may be served what is still arriving, with and without read-through.
func TestServer_WhoMayFollow(t *testing.T) {
	type want map[*transferv1.Caller]codes.Code
	tests := map[string]struct {
		upstream bool
		want     want
	}{
		"flight from outside":  {true, want{city: codes.OK, fellow: codes.OK, parent: codes.Unavailable, sibling: codes.Unavailable}},
		"flight from a fellow": {false, want{city: codes.OK, fellow: codes.Unavailable, parent: codes.Unavailable, sibling: codes.Unavailable}},
	}
	for name, tt := range tests {
		for _, rt := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				f := newFabric(t)
				b := newBlob(1, 2*piece)
				src := newSite(f, "elsewhere", "src", nil)
				src.local.put(b)
				src.local.gate = newGate()
				src.local.gate.open(piece)
				sources := fellows("src")
				sources[0].Upstream = tt.upstream
				s := newSite(f, "hq/gd", "gd-a", sources)
				c := client(t, f, "gd-a")
				fl, err := s.fetcher.Fetch(t.Context(), b.request())
				if err != nil {
					t.Fatal(err)
				}
				defer fl.Release()
				for who, code := range tt.want {
					req := &transferv1.FetchRequest{Caller: who, Purpose: purpose, Digest: b.digest, Size: 2 * piece, Length: piece, ReadThrough: rt}
					if _, err := ask(t, c, req); status.Code(err) != code {
						t.Errorf("%s: %v, want %s", who.GetGroup(), err, code)
					}
					resp, err := c.FindMissing(t.Context(), &transferv1.FindMissingRequest{Caller: who, Purpose: purpose, Digests: []string{b.digest}})
					if err != nil || (len(resp.GetArriving()) == 1) != (code == codes.OK) || (len(resp.GetMissing()) == 1) == (code == codes.OK) {
						t.Errorf("FindMissing, %s: %v, %v", who.GetGroup(), resp, err)
					}
				}
				src.local.gate.open(2 * piece)
				if err := fl.Wait(t.Context()); err != nil {
					t.Fatal(err)
				}
				for who := range tt.want { // whole content is anybody's who is authorized
					req := &transferv1.FetchRequest{Caller: who, Purpose: purpose, Digest: b.digest, Size: 2 * piece}
					if _, err := ask(t, c, req); err != nil {
						t.Errorf("%s, whole: %v", who.GetGroup(), err)
					}
				}
			})
		}
	}
}

func TestServer_ReadThroughOnlyWhenAskedAndGranted(t *testing.T) {
	f := newFabric(t)
	b := newBlob(1, piece)
	f.serve("hq-a", goodFake(b))
	granted := false
	s := newSite(f, "hq/gd", "gd-a", upstream("hq-a"), func(_ *transfer.FetcherConfig, sc *transfer.ServerConfig) {
		through := sc.ReadThrough
		sc.ReadThrough = func(ctx context.Context, req *transferv1.FetchRequest) (*transfer.Flight, error) {
			if !granted {
				return nil, transfer.ErrNotFound
			}
			return through(ctx, req)
		}
	})
	c := client(t, f, "gd-a")
	req := &transferv1.FetchRequest{Caller: city, Purpose: purpose, Digest: b.digest, Size: piece}
	if _, err := ask(t, c, req); status.Code(err) != codes.NotFound {
		t.Errorf("not asked for: %v", err)
	}
	req.ReadThrough = true
	if _, err := ask(t, c, req); status.Code(err) != codes.NotFound {
		t.Errorf("not granted: %v", err)
	}
	granted = true
	got, err := ask(t, c, req)
	if err != nil || string(got) != string(b.data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	eventually(t, "the blob is committed here too", func() bool {
		st, err := s.spool.Stat(b.digest)
		return err == nil && st.Committed
	})
}

func TestServer_RegistryTrouble(t *testing.T) {
	f := newFabric(t)
	b := newBlob(1, 100)
	s := newSite(f, "hq/gd", "gd-a", nil)
	s.local.err = errors.New("503 from the registry")
	_, err := ask(t, client(t, f, "gd-a"), &transferv1.FetchRequest{Caller: city, Purpose: purpose, Digest: b.digest, Size: 100})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "503 from the registry") {
		t.Errorf("err = %v", err)
	}
	s.local.err = nil
	s.local.put(blob{b.data[:40], b.digest}) // the registry lies about what it has
	s.local.gate = newGate()
	s.local.gate.open(100)
	c := &shortLocal{}
	f2 := newFabric(t)
	newSite(f2, "hq/gd", "gd-a", nil, func(_ *transfer.FetcherConfig, sc *transfer.ServerConfig) { sc.Local = c })
	_, err = ask(t, client(t, f2, "gd-a"), &transferv1.FetchRequest{Caller: city, Purpose: purpose, Digest: b.digest, Size: 100})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("short registry: %v", err)
	}
}

type shortLocal struct{}

func (shortLocal) OpenBlob(context.Context, string, string, int64, int64) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader("short")), nil
}
func (shortLocal) StatBlob(context.Context, string, string) (int64, error) { return 5, nil }

func TestServer_FindMissingAndManifests(t *testing.T) {
	f := newFabric(t)
	m := map[string]store.Manifest{}
	var digests []string
	for _, body := range []string{"one", "two", "three"} {
		d := digestOf([]byte(body))
		digests = append(digests, d)
		if body != "two" {
			m[d] = store.Manifest{MediaType: "application/" + body, Digest: d, Content: []byte(body)}
		}
	}
	s := newSite(f, "hq/gd", "gd-a", nil, func(_ *transfer.FetcherConfig, sc *transfer.ServerConfig) {
		sc.Manifests = func(_ context.Context, _ *transferv1.ManifestsRequest, d string) (store.Manifest, error) {
			if x, ok := m[d]; ok {
				return x, nil
			}
			return store.Manifest{}, store.ErrNotFound
		}
	})
	c := client(t, f, "gd-a")
	stream, err := c.Manifests(t.Context(), &transferv1.ManifestsRequest{Caller: city, Purpose: purpose, Digests: digests})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(r.GetManifest().GetContent())+" "+r.GetManifest().GetMediaType())
	}
	if d := cmp.Diff([]string{"one application/one", "three application/three"}, got); d != "" {
		t.Error(d)
	}

	a, b, none := newBlob(1, 10), newBlob(2, 10), newBlob(3, 10)
	s.put(t, a)
	s.local.put(b)
	resp, err := c.FindMissing(t.Context(), &transferv1.FindMissingRequest{
		Caller: parent, Purpose: purpose, Digests: []string{none.digest, a.digest, b.digest},
	})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{none.digest}, resp.GetMissing()); d != "" || len(resp.GetArriving()) != 0 {
		t.Errorf("missing: %s, arriving: %v", d, resp.GetArriving())
	}
}

// A peer that takes nothing is let go, so that what it reads can be evicted; meanwhile others are served.
func TestServer_LetsSlowReaderGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFabric(t)
		b := newBlob(1, 40<<20)
		s := newSite(f, "hq/gd", "gd-a", nil)
		s.put(t, b)
		c := client(t, f, "gd-a")
		req := &transferv1.FetchRequest{Caller: city, Purpose: purpose, Digest: b.digest, Size: int64(len(b.data))}
		slow, err := c.Fetch(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := slow.Recv(); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if got, err := ask(t, c, req); err != nil || len(got) != len(b.data) {
			t.Errorf("the other: %d bytes, %v", len(got), err)
		}
		if d := time.Since(begin); d > time.Second {
			t.Errorf("the other waited %s", d)
		}
		time.Sleep(2 * transfer.DefaultSlowReader)
		synctest.Wait()
		for err == nil {
			_, err = slow.Recv()
		}
		if status.Code(err) != codes.Unavailable {
			t.Errorf("slow reader: %v", err)
		}
		synctest.Wait()
		if err := s.spool.Remove(b.digest, nil); err != nil {
			t.Error(err)
		}
	})
}

func TestServer_UploadLimitAndPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFabric(t)
		b := newBlob(1, 4<<20)
		lim := rate.NewLimiter(1<<20, 1<<20)
		s := newSite(f, "hq/gd", "gd-a", nil, func(_ *transfer.FetcherConfig, sc *transfer.ServerConfig) { sc.Upload = lim })
		s.put(t, b)
		c := client(t, f, "gd-a")
		req := &transferv1.FetchRequest{Caller: city, Purpose: purpose, Digest: b.digest, Size: int64(len(b.data))}
		begin := time.Now()
		if _, err := ask(t, c, req); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(begin).Seconds(); d < 2.5 || d > 4.5 {
			t.Errorf("4 MiB at 1 MiB/s took %.1f s", d)
		}
		lim.SetBurst(0) // pause
		done := make(chan error, 1)
		go func() { _, err := ask(t, c, req); done <- err }()
		time.Sleep(2 * time.Minute)
		select {
		case err := <-done:
			t.Fatalf("not paused: %v", err)
		default:
		}
		lim.SetBurst(1 << 20)
		lim.SetLimit(rate.Inf)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

// Content that went bad on a source's disk is found when a receiver suspects it, and comes from elsewhere then.
func TestServer_SuspectedContentIsProved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFabric(t)
		b := newBlob(40, 3*piece)
		hq := newSite(f, "hq", "hq-a", nil)
		hq.put(t, b)
		hq.local.put(b)
		files, err := filepath.Glob(filepath.Join(hq.dir, "spool", "blobs", "*"))
		if err != nil || len(files) != 1 {
			t.Fatal(files, err)
		}
		bad := bytes.Clone(b.data)
		bad[piece] ^= 1
		if err := os.WriteFile(files[0], bad, 0o600); err != nil {
			t.Fatal(err)
		}
		s := newSite(f, "hq/gd", "gd-a", upstream("hq-a"))
		if err := s.fetch(t.Context(), b); !errors.Is(err, transfer.ErrBadSource) {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // until the source may be asked again
		if err := s.fetch(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		if _, err := hq.spool.Stat(b.digest); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("the source keeps what it found to be bad: %v", err)
		}
	})
}
