package transfer_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fanout-io/fanout/pkg/transfer"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"
)

// A blob that a city alone has still comes to headquarters, through a province that is waiting for headquarters to get it.
func TestFetch_FromBelow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, size := range []int{0, 1, 5000, 9 << 20} {
			f := newFabric(t)
			b := newBlob(uint64(size), size)
			hq := newSite(f, "hq", "hq-a", nil, func(fc *transfer.FetcherConfig, _ *transfer.ServerConfig) {
				fc.Resort = func(context.Context, transfer.Request) ([]transfer.Source, error) {
					return []transfer.Source{{Site: "gd-a", Addr: "gd-a", Upstream: true}}, nil
				}
			})
			province := newSite(f, "hq/gd", "gd-a", upstream("hq-a"), func(_ *transfer.FetcherConfig, sc *transfer.ServerConfig) {
				sc.Near = func(ctx context.Context, p *transferv1.Purpose, digest string) (transferv1.TransferServiceClient, *transferv1.Purpose, error) {
					if digest != b.digest {
						return nil, nil, fmt.Errorf("%w: %s", transfer.ErrNotFound, digest)
					}
					c, err := f.dial(ctx, "sz-a")
					return c, p, err
				}
			})
			newSite(f, "hq/gd/sz", "sz-a", upstream("gd-a")).put(t, b)
			province.mustFetch(t, b)
			hq.mustFetch(t, b)
			if up, down := hq.received("gd-a"), province.received("hq-a"); up != int64(size) || down != int64(size) {
				t.Errorf("%d bytes: %d went up and %d down", size, up, down)
			}
			c := client(t, f, "gd-a")
			lost := newBlob(99, 10)
			for _, x := range []struct {
				caller  *transferv1.Caller
				digest  string
				missing bool
			}{{parent, lost.digest, true}, {parent, b.digest, false}, {sibling, lost.digest, true}} {
				resp, err := c.FindMissing(t.Context(), &transferv1.FindMissingRequest{Caller: x.caller, Purpose: purpose, Digests: []string{x.digest}})
				if err != nil || len(resp.GetMissing()) == 1 != x.missing {
					t.Errorf("%s asks for %s: %v, %v", x.caller.GetSite(), x.digest, resp, err)
				}
			}
		}
	})
}

// What comes from a site near is checked on its way, and what it lacks is not waited for.
func TestServer_PassesOnWhatIsWholeNearby(t *testing.T) {
	f := newFabric(t)
	b := newBlob(5, 3<<20)
	bad := &fake{fetch: func(req *transferv1.FetchRequest, send func(int64, []byte) error, _ context.Context) error {
		return send(req.GetOffset()+1, b.data[:100])
	}}
	f.serve("sz-a", bad)
	f.serve("sz-b", goodFake(b))
	near := ""
	newSite(f, "hq/gd", "gd-a", nil, func(_ *transfer.FetcherConfig, sc *transfer.ServerConfig) {
		sc.Near = func(ctx context.Context, p *transferv1.Purpose, _ string) (transferv1.TransferServiceClient, *transferv1.Purpose, error) {
			if near == "" {
				return nil, nil, transfer.ErrNotFound
			}
			c, err := f.dial(ctx, near)
			return c, p, err
		}
	})
	c := client(t, f, "gd-a")
	req := &transferv1.FetchRequest{Caller: parent, Purpose: purpose, Digest: b.digest, Size: int64(len(b.data)), Offset: 7, ReadThrough: true}
	if _, err := ask(t, c, req); status.Code(err) != codes.NotFound {
		t.Errorf("nobody has it: %v", err)
	}
	near = "sz-a"
	if got, err := ask(t, c, req); err == nil || len(got) > 0 {
		t.Errorf("%d bytes of rubbish were passed on: %v", len(got), err)
	}
	near = "sz-b"
	if got, err := ask(t, c, req); err != nil || string(got) != string(b.data[7:]) {
		t.Errorf("%d bytes of %d: %v", len(got), len(b.data)-7, err)
	}
}
