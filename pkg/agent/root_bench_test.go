package agent

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// wide is a fabric of 400 groups: headquarters, which is an agent with all that it has, 31 provinces and their cities, which only report.
const (
	wideProvinces = 31
	wideCities    = 368
)

// province is attached to headquarters, and says of its subtree how it is.
type province struct {
	stream grpc.BidiStreamingClient[treev1.AttachRequest, treev1.AttachResponse]
	path   string
	cities []*treev1.SiteHealth
}

func (p *province) report(b *testing.B, u *treev1.HealthUpdate) {
	b.Helper()
	if err := p.stream.Send(&treev1.AttachRequest{Kind: &treev1.AttachRequest_Health{Health: u}}); err != nil {
		b.Fatal(err)
	}
}

// attachWide attaches the provinces, each with its cities.
func attachWide(b *testing.B, ctx context.Context, hq *live) (out []*province) {
	b.Helper()
	conn, err := grpc.NewClient(hq.cfg.Fabric.Advertise, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = conn.Close() })
	at := hq.node.Catalog().Position()
	for i := range wideProvinces {
		p := &province{path: fmt.Sprintf("hq/province-%02d", i)}
		if p.stream, err = treev1.NewTreeServiceClient(conn).Attach(ctx); err != nil {
			b.Fatal(err)
		}
		hello := &treev1.Hello{Group: p.path, Site: fmt.Sprintf("p%02d", i), Demand: &catalogv1.Scope{AnyOf: []*catalogv1.Subscription{{Repositories: []string{"**"}}}}}
		if err := p.stream.Send(&treev1.AttachRequest{Kind: &treev1.AttachRequest_Hello{Hello: hello}}); err != nil {
			b.Fatal(err)
		}
		go func() {
			for {
				if _, err := p.stream.Recv(); err != nil {
					return
				}
			}
		}()
		u := &treev1.HealthUpdate{Full: true}
		add := func(path, parent, site string) *treev1.SiteHealth {
			u.Groups = append(u.Groups, &treev1.GroupHealth{Group: path, Parent: parent, Root: site, Term: 1, Position: at, State: "synced"})
			h := &treev1.SiteHealth{Site: site, Group: path, State: "synced", Registry: "https://" + site, RegistryType: "harbor", RegistryOk: true, Revision: at.GetRevision(), Version: "v1", LastContact: timestamppb.Now()}
			u.Sites = append(u.Sites, h)
			return h
		}
		add(p.path, "hq", hello.GetSite())
		for c := i; c < wideCities; c += wideProvinces {
			p.cities = append(p.cities, add(fmt.Sprintf("%s/city-%03d", p.path, c), p.path, fmt.Sprintf("c%03d", c)))
		}
		p.report(b, u)
		out = append(out, p)
	}
	waitFor(b, "headquarters knows all", func() error {
		if n := len(hq.tree("").GetGroups()); n != 1+wideProvinces+wideCities {
			return fmt.Errorf("%d groups", n)
		}
		return nil
	})
	return out
}

// beat has each province say, as it would while content flows, how far some of its cities are.
func beat(b *testing.B, all []*province, busy, n int) {
	for i, p := range all {
		u := &treev1.HealthUpdate{}
		for j, h := range p.cities {
			if (i+j*len(all))%9 == 0 && len(u.GetSites()) < (busy+len(all)-1)/len(all) {
				u.Sites = append(u.Sites, &treev1.SiteHealth{
					Site: h.GetSite(), Group: h.GetGroup(), State: "syncing", Registry: h.GetRegistry(), RegistryType: "harbor", RegistryOk: true, Revision: h.GetRevision(), Version: "v1",
					Rate: int64(11<<20 + n*7919), BytesLeft: int64(734<<20 - n*(11<<18)), LastContact: timestamppb.Now(),
				})
			}
		}
		if len(u.GetSites()) > 0 {
			p.report(b, u)
		}
	}
}

// BenchmarkRootWatched is what twenty watchers of the page cost headquarters' root, a whole agent with 400 groups below it, for ten seconds: at rest, and while forty cities report a rate and bytes left four
// times a second. The processor's time is that of the whole process: the provinces that report and those who read are in it, as they are without watchers.
func BenchmarkRootWatched(b *testing.B) {
	for _, busy := range []int{0, 40} {
		for _, watchers := range []int{0, 20} {
			b.Run(fmt.Sprintf("syncing=%d/watchers=%d", busy, watchers), func(b *testing.B) {
				hq := runTree(b, nil, "hq")["hq"]
				ctx, cancel := context.WithCancel(b.Context())
				defer cancel()
				all := attachWide(b, ctx, hq)
				for range b.N {
					rootWatched(b, ctx, hq, all, busy, watchers)
				}
			})
		}
	}
}

func rootWatched(b *testing.B, ctx context.Context, hq *live, all []*province, busy, watchers int) {
	const runs, every = 10 * time.Second, 250 * time.Millisecond
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var bytes atomic.Int64
	var first sync.WaitGroup
	began := time.Now()
	for range watchers {
		first.Add(1)
		wg.Go(func() {
			once := sync.OnceFunc(first.Done)
			defer once()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+hq.cfg.HTTP.Listen+"/api/v1/watch?feed=tree", nil)
			if err != nil {
				return
			}
			resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
			if err != nil {
				return
			}
			defer resp.Body.Close()
			r := bufio.NewReaderSize(resp.Body, 1<<20)
			for {
				line, err := r.ReadString('\n')
				if bytes.Add(int64(len(line))); err != nil {
					return
				}
				if len(line) > 50_000 {
					once() // the whole picture
				}
			}
		})
	}
	first.Wait()
	picture, whole := time.Since(began), bytes.Load()
	runtime.GC()
	before, updates := processorTime(), 0
	began = time.Now()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for time.Since(began) < runs {
		<-tick.C
		updates++
		beat(b, all, busy, updates)
	}
	spent := processorTime() - before
	sent := bytes.Load() - whole
	cancel()
	wg.Wait()
	b.ReportMetric(100*spent.Seconds()/time.Since(began).Seconds(), "%cpu")
	if watchers > 0 {
		b.ReportMetric(float64(picture.Milliseconds()), "ms-first")
		b.ReportMetric(float64(sent)/float64(watchers*updates), "B/update")
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkRootTree is one picture of the tree at headquarters' root, as fanoutctl tree and the page ask for it.
func BenchmarkRootTree(b *testing.B) {
	hq := runTree(b, nil, "hq")["hq"]
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	attachWide(b, ctx, hq)
	var t *adminv1.TreeResponse
	for b.Loop() {
		t = hq.tree("")
	}
	if len(t.GetGroups()) != 1+wideProvinces+wideCities {
		b.Fatalf("%d groups", len(t.GetGroups()))
	}
}

func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
