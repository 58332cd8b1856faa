package transfer_test

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/fanout-io/fanout/pkg/transfer"
	transferv1 "github.com/fanout-io/fanout/proto/fanout/transfer/v1"
)

// BenchmarkHop moves 512 MiB from one spool to another over loopback TCP, verified and committed.
func BenchmarkHop(b *testing.B) {
	const size = 512 << 20
	content := newBlob(1, size)
	for _, streams := range []int{1, 4} {
		b.Run(fmt.Sprintf("streams=%d", streams), func(b *testing.B) {
			f := newFabric(b)
			hq := newSite(f, "hq", "hq-a", nil)
			hq.put(b, content)
			conn := tcpFront(b, hq)
			b.SetBytes(size)
			var before, after runtime.MemStats
			var spent time.Duration
			var mallocs, alloced uint64
			for b.Loop() {
				b.StopTimer()
				gd := newSite(f, "hq/gd", "gd-a", upstream("hq-a"), func(fc *transfer.FetcherConfig, _ *transfer.ServerConfig) {
					fc.Streams = streams
					fc.Dial = func(context.Context, string) (transferv1.TransferServiceClient, error) {
						return transferv1.NewTransferServiceClient(conn), nil
					}
				})
				runtime.GC()
				runtime.ReadMemStats(&before)
				b.StartTimer()
				begin := time.Now()
				fl, err := gd.fetcher.Fetch(b.Context(), content.request())
				if err == nil {
					err = fl.Wait(b.Context())
					fl.Release()
				}
				if err != nil {
					b.Fatal(err)
				}
				spent += time.Since(begin)
				b.StopTimer()
				runtime.ReadMemStats(&after)
				mallocs += after.Mallocs - before.Mallocs
				alloced += after.TotalAlloc - before.TotalAlloc
				_ = gd.spool.Remove(content.digest, nil)
				gd.stop()
				b.StartTimer()
			}
			n := float64(b.N)
			b.ReportMetric(n*(size>>20)/spent.Seconds(), "MiB/s")
			b.ReportMetric(float64(mallocs)/n/(size/piece), "allocs/piece")
			b.ReportMetric(float64(alloced)/n/(1<<20), "MiB-alloc/op")
		})
	}
}

// tcpFront serves a site's content on loopback TCP.
func tcpFront(b *testing.B, s *site) *grpc.ClientConn {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	srv, err := transfer.NewServer(transfer.ServerConfig{
		Self: &transferv1.Caller{Group: "hq", Site: s.name}, Spool: s.spool,
		Authorize: func(context.Context, *transferv1.Caller, *transferv1.Purpose, bool, ...string) error { return nil },
	})
	if err != nil {
		b.Fatal(err)
	}
	g := grpc.NewServer(transfer.ServerOptions()...)
	transferv1.RegisterTransferServiceServer(g, srv)
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(l) }()
	conn, err := grpc.NewClient(l.Addr().String(), append(transfer.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close(); g.Stop(); <-done })
	return conn
}
