package transfer_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/fanout-io/fanout/pkg/store"
	"github.com/fanout-io/fanout/pkg/transfer"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"
)

// asked is a stream of which nothing but its context is used.
type asked[T any] struct{ grpc.ServerStreamingServer[T] }

func (asked[T]) Context() context.Context { return context.Background() }

// FuzzRequests takes what others may ask for: what reaches the question whether they may, and with it names of files and URLs, is well formed.
func FuzzRequests(f *testing.F) {
	digest := "sha256:" + strings.Repeat("0a", 32)
	caller, purpose := &transferv1.Caller{Group: "hq/gd", Site: "gd-a"}, &transferv1.Purpose{Repository: "app/web", Tag: "1", Revision: 1, Root: digest}
	for _, m := range []proto.Message{
		&transferv1.FetchRequest{Caller: caller, Purpose: purpose, Digest: digest, Size: 10, Offset: 3, Length: 4, ReadThrough: true},
		&transferv1.FetchRequest{Caller: caller, Purpose: purpose, Digest: digest, Size: 1 << 62, Offset: 1 << 62, Length: 1 << 62},
		&transferv1.FetchRequest{Caller: caller, Purpose: purpose, Digest: "sha256:../../../../etc/passwd", Size: 10, Offset: -1, Length: -4},
		&transferv1.FindMissingRequest{Caller: caller, Purpose: purpose, Digests: []string{digest, digest}},
		&transferv1.ManifestsRequest{Caller: caller, Purpose: purpose, Digests: []string{digest, "x"}},
		&transferv1.ManifestsRequest{Caller: caller, Digests: []string{digest}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	st, err := store.Open(store.Config{Dir: f.TempDir()})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { st.Close() })
	var wrong error
	srv, err := transfer.NewServer(transfer.ServerConfig{
		Self: &transferv1.Caller{Group: "hq", Site: "hq-a"}, Spool: st.Spool(),
		Authorize: func(_ context.Context, c *transferv1.Caller, p *transferv1.Purpose, _ bool, digests ...string) error {
			for _, d := range append(digests, p.GetRoot()) {
				if len(d) != 71 || !strings.HasPrefix(d, "sha256:") || strings.Trim(d[7:], "0123456789abcdef") != "" {
					wrong = fmt.Errorf("digest %q", d)
				}
			}
			if c.GetSite() == "" || c.GetGroup() == "" || p.GetRepository() == "" || len(digests) > transfer.MaxDigests {
				wrong = fmt.Errorf("%v asks %v for %d digests", c, p, len(digests))
			}
			return transfer.ErrDenied
		},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		wrong = nil
		var errs []error
		if m := new(transferv1.FetchRequest); proto.Unmarshal(data, m) == nil {
			errs = append(errs, srv.Fetch(m, asked[transferv1.FetchResponse]{}))
		}
		if m := new(transferv1.FindMissingRequest); proto.Unmarshal(data, m) == nil {
			_, err := srv.FindMissing(t.Context(), m)
			errs = append(errs, err)
		}
		if m := new(transferv1.ManifestsRequest); proto.Unmarshal(data, m) == nil {
			errs = append(errs, srv.Manifests(m, asked[transferv1.ManifestsResponse]{}))
		}
		for _, err := range errs {
			if c := status.Code(err); c != codes.InvalidArgument && c != codes.PermissionDenied {
				t.Fatalf("%v", err)
			}
		}
		if wrong != nil {
			t.Fatal(wrong)
		}
	})
}
