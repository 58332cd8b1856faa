package transfer_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fanout-io/fanout/pkg/transfer"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"
)

func TestFetch_BadSources(t *testing.T) {
	b := newBlob(4, 5<<20+5)
	wrong := newBlob(5, len(b.data))
	rubbish := func(change func(m *transferv1.FetchResponse, req *transferv1.FetchRequest)) *fake {
		good := goodFake(b)
		return &fake{raw: func(req *transferv1.FetchRequest, send func(*transferv1.FetchResponse) error, ctx context.Context) error {
			return good.Fetch(req, &tampered{ctx: ctx, send: func(m *transferv1.FetchResponse) error {
				change(m, req)
				return send(m)
			}})
		}}
	}
	tests := map[string]*fake{
		"crc": rubbish(func(m *transferv1.FetchResponse, _ *transferv1.FetchRequest) {
			m.Data = append([]byte(nil), m.Data...)
			m.Data[len(m.Data)/2] ^= 1
		}),
		"offset too low":  rubbish(func(m *transferv1.FetchResponse, _ *transferv1.FetchRequest) { m.Offset -= 1 }),
		"offset too high": rubbish(func(m *transferv1.FetchResponse, _ *transferv1.FetchRequest) { m.Offset += piece }),
		"negative offset": rubbish(func(m *transferv1.FetchResponse, _ *transferv1.FetchRequest) { m.Offset = -1 << 63 }),
		"empty":           rubbish(func(m *transferv1.FetchResponse, _ *transferv1.FetchRequest) { m.Data, m.Crc32C = nil, 0 }),
		"content":         goodFake(wrong),
		"beyond": {fetch: func(req *transferv1.FetchRequest, send func(int64, []byte) error, _ context.Context) error {
			return sendRange(append(b.data, b.data...), req.GetOffset(), 2*req.GetSize(), piece, send)
		}},
		"too large": {fetch: func(req *transferv1.FetchRequest, send func(int64, []byte) error, _ context.Context) error {
			return sendRange(b.data, req.GetOffset(), req.GetSize(), 2<<20, send)
		}},
		"data loss at once": {fetch: func(*transferv1.FetchRequest, func(int64, []byte) error, context.Context) error {
			return status.Error(codes.DataLoss, "sorry")
		}},
		"data loss at the end": {fetch: func(req *transferv1.FetchRequest, send func(int64, []byte) error, _ context.Context) error {
			off, end := rangeOf(req)
			if err := sendRange(wrong.data, off, end, piece, send); err != nil {
				return err
			}
			return status.Error(codes.DataLoss, "sorry")
		}},
		"panic-free nonsense": {fetch: func(*transferv1.FetchRequest, func(int64, []byte) error, context.Context) error {
			return errors.New("what?")
		}},
	}
	for name, bad := range tests {
		t.Run(name, func(t *testing.T) {
			f := newFabric(t)
			f.serve("bad", bad)
			f.serve("good", goodFake(b))
			s := newSite(f, "hq/gd", "gd-a", upstream("bad", "good"))
			s.mustFetch(t, b)
			if bad.calls.Load() == 0 {
				t.Error("the bad source was never asked")
			}
			if n := s.received("good"); n > int64(len(b.data)) {
				t.Errorf("the good source sent %d bytes", n)
			}
		})
		t.Run(name+"/alone", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFabric(t)
				f.serve("bad", bad)
				s := newSite(f, "hq/gd", "gd-a", upstream("bad"))
				err := s.fetch(t.Context(), b)
				if err == nil {
					t.Fatal("fetched")
				}
				if st, serr := s.spool.Stat(b.digest); serr == nil && st.Committed {
					t.Error("committed")
				}
				isBad := name == "content" || strings.HasPrefix(name, "data loss")
				if errors.Is(err, transfer.ErrBadSource) != isBad {
					t.Errorf("errors.Is(err, ErrBadSource) = %v: %v", !isBad, err)
				}
				if !strings.Contains(err.Error(), "bad") {
					t.Errorf("the error names no source: %v", err)
				}
			})
		})
	}
}

// A source that is bad, the only one, and then good again, is asked again in time.
func TestFetch_BadSourceHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, wrong := newBlob(4, 5<<20+5), newBlob(5, 5<<20+5)
		bad, good := goodFake(wrong), goodFake(b)
		current := bad
		f := newFabric(t)
		f.serve("hq-a", &fake{fetch: func(req *transferv1.FetchRequest, send func(int64, []byte) error, ctx context.Context) error {
			return current.fetch(req, send, ctx)
		}})
		s := newSite(f, "hq/gd", "gd-a", upstream("hq-a"))
		for range 3 {
			if err := s.fetch(t.Context(), b); !errors.Is(err, transfer.ErrBadSource) {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		}
		current = good
		if err := s.fetch(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	})
}

// What the province was sent is corrupt with good CRCs. The city, which follows, must drop it too; both get it right from elsewhere.
func TestFetch_MismatchTravelsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFabric(t)
		b, wrong := newBlob(15, 9<<20), newBlob(16, 9<<20)
		f.serve("hq-a", goodFake(wrong))
		f.serve("hq-b", goodFake(b))
		gd := newSite(f, "hq/gd", "gd-a", upstream("hq-a", "hq-b"))
		sz := newSite(f, "hq/gd/sz", "sz-a", upstream("gd-a"))
		begin := time.Now()
		for sz.fetch(t.Context(), b) != nil { // as the work queue does
			if time.Since(begin) > time.Minute {
				t.Fatal("the city still has no good content")
			}
			time.Sleep(time.Second)
		}
		if err := gd.fetch(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	})
}

// A source that sent corrupt content once comes after those that did not, when its penalty is over too.
func TestFetch_CleanSourcesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFabric(t)
		b, bad := newBlob(32, 1000), goodFake(newBlob(33, 1000))
		f.serve("bad", bad)
		f.serve("good", goodFake(b))
		s := newSite(f, "hq/gd", "gd-a", upstream("bad", "good"))
		for range 2 {
			if err := s.fetch(t.Context(), b); err != nil {
				t.Fatal(err)
			}
			if err := s.spool.Remove(b.digest, nil); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Minute)
		}
		if n := bad.calls.Load(); n != 1 {
			t.Errorf("the bad source was asked %d times", n)
		}
	})
}
