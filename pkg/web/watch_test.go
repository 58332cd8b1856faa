package web_test

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/fanout-io/fanout/pkg/view"
	"github.com/fanout-io/fanout/pkg/web"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

// message of a watch.
type message struct {
	Feed  string
	At    string
	Whole bool
	Set   map[string]json.RawMessage
	Gone  []string
}

// watcher reads a watch.
type watcher struct {
	t    testing.TB
	stop context.CancelFunc
	got  chan message
}

func watch(t testing.TB, srv *httptest.Server, query string, header ...string) *watcher {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL+"/api/v1/watch?"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		t.Fatalf("watch: %d: %s", resp.StatusCode, body)
	}
	w := &watcher{t: t, stop: cancel, got: make(chan message, 1000)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(w.got)
		defer resp.Body.Close()
		event := ""
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, 8<<20)
		for lines.Scan() {
			if name, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
				event = name
			}
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok && event == "part" {
				var m message
				if err := json.Unmarshal([]byte(data), &m); err != nil {
					t.Errorf("%v: %s", err, data)
				}
				w.got <- m
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

func (w *watcher) next() message {
	w.t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case m, ok := <-w.got:
		if !ok {
			w.t.Fatal("the watch has ended")
		}
		return m
	case <-timer.C:
		w.t.Fatalf("no message within %s", patience)
	}
	return message{}
}

func keys(m message) []string {
	var out []string
	for key := range m.Set {
		out = append(out, key)
	}
	slices.Sort(out)
	return out
}

// TestWatch: first everything, then what changed, and what went.
func TestWatch(t *testing.T) {
	f := newFabric()
	f.tree = &adminv1.TreeResponse{Groups: []*adminv1.TreeGroup{group("hq", member("hq-a", "synced")), group("hq/gd", member("gd-a", "synced")), group("hq/hn", member("hn-a", "synced"))}}
	srv := serve(t, web.Config{Fabric: f, Pause: time.Millisecond})
	w := watch(t, srv, "feed=tree")
	m := w.next()
	if !m.Whole || m.Feed != "tree" || !slices.Equal(keys(m), []string{"hq", "hq/gd", "hq/hn"}) {
		t.Fatalf("%+v", m)
	}
	var g view.Group
	if err := json.Unmarshal(m.Set["hq/gd"], &g); err != nil || cmp.Diff(view.TreeOf(f.tree).Groups[1], g) != "" {
		t.Errorf("%v: %+v", err, g)
	}
	// Only what changed. That somebody was heard again, with nothing else, is no change.
	f.change(func() {
		f.tree.Groups[1] = group("hq/gd", member("gd-a", "syncing"))
		f.tree.Groups[2].LastContact = timestamppb.New(time.Now().Add(2 * time.Second))
	})
	if m = w.next(); m.Whole || !slices.Equal(keys(m), []string{"hq/gd"}) || len(m.Gone) > 0 {
		t.Fatalf("%+v", m)
	}
	at := m.At
	f.change(func() { f.tree.Groups[2].LastContact = timestamppb.New(time.Now().Add(2 * time.Minute)) })
	if m = w.next(); !slices.Equal(keys(m), []string{"hq/hn"}) {
		t.Fatalf("heard of after minutes: %+v", m)
	}
	f.change(func() { f.tree.Groups = f.tree.Groups[:2] })
	if m = w.next(); len(m.Set) > 0 || !slices.Equal(m.Gone, []string{"hq/hn"}) {
		t.Fatalf("%+v", m)
	}
	// Who comes back is told what changed meanwhile; who comes from another run, everything.
	back := watch(t, srv, "feed=tree@"+at).next()
	if back.Whole || len(back.Set) > 0 || !slices.Equal(back.Gone, []string{"hq/hn"}) {
		t.Errorf("who comes back: %+v", back)
	}
	for _, at := range []string{"", "other.1", m.At + "9", "x"} {
		if m := watch(t, srv, "feed=tree@"+at).next(); !m.Whole || len(m.Set) != 2 || len(m.Gone) > 0 {
			t.Errorf("who comes with %q: %+v", at, m)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.asked != 1 {
		t.Errorf("the tree is watched %d times for six watchers", f.asked)
	}
}

// TestWatch_LittleChanges: what goes on by itself in a site, and by little, is not sent; more is.
func TestWatch_LittleChanges(t *testing.T) {
	const gib = 1 << 30
	ends := time.Now().Add(48 * time.Hour)
	site := func(free int64, ends time.Time, lag float64) *adminv1.TreeGroup {
		m := member("gd-a", "behind")
		m.Disk, m.RegistryDisk = &treev1.Disk{Free: free, Total: 100 * gib}, &treev1.Disk{Free: 7 * gib, Total: 8 * gib}
		m.CertificateExpires, m.LagSeconds = timestamppb.New(ends), lag
		return group("hq/gd", m)
	}
	f := newFabric()
	f.tree = &adminv1.TreeResponse{Groups: []*adminv1.TreeGroup{group("hq", member("hq-a", "synced")), site(50*gib, ends, 1)}}
	w := watch(t, serve(t, web.Config{Fabric: f, Pause: time.Millisecond}), "feed=tree")
	w.next()
	state := "syncing"
	for name, changed := range map[string]*adminv1.TreeGroup{
		"a disk with less room": site(49*gib, ends, 1), "another certificate": site(50*gib, ends.Add(time.Hour), 1),
		"a longer lag": site(50*gib, ends, 7), "no lag": site(50*gib, ends, 0),
	} {
		// Headquarters' state tells that the picture with the little change was looked at.
		f.change(func() {
			f.tree.Groups[0], f.tree.Groups[1] = group("hq", member("hq-a", state)), site(50*gib-1<<20, ends, 2)
		})
		if m := w.next(); !slices.Equal(keys(m), []string{"hq"}) {
			t.Errorf("before %s: %v", name, keys(m))
		}
		f.change(func() { f.tree.Groups[1] = changed })
		if m := w.next(); !slices.Equal(keys(m), []string{"hq/gd"}) {
			t.Errorf("%s: %v", name, keys(m))
		}
		f.change(func() { f.tree.Groups[1] = site(50*gib, ends, 1) })
		if m := w.next(); !slices.Equal(keys(m), []string{"hq/gd"}) {
			t.Errorf("after %s: %v", name, keys(m))
		}
		state = map[string]string{"syncing": "synced", "synced": "syncing"}[state]
	}
}

// TestWatch_Trouble: an answer that fails leaves what there was, says why, and is asked for again.
func TestWatch_Trouble(t *testing.T) {
	f := newFabric()
	f.tree = &adminv1.TreeResponse{Groups: []*adminv1.TreeGroup{group("hq", member("hq-a", "synced"))}}
	srv := serve(t, web.Config{Fabric: f, Pause: time.Millisecond, Retry: 5 * time.Millisecond})
	w := watch(t, srv, "feed=tree&feed=where:no/such:1")
	seen := map[string]message{}
	for len(seen) < 2 {
		m := w.next()
		seen[m.Feed] = m
	}
	if got := string(seen["where:no/such:1"].Set["!"]); got != `{"code":"NotFound","message":"no/such:1 is not in the catalog"}` {
		t.Errorf("a ref that is not there: %s", got)
	}
	f.change(func() { f.fails = status.Error(codes.Unavailable, "group hq has no root now") })
	m := w.next()
	for m.Feed != "tree" {
		m = w.next()
	}
	if got := string(m.Set["!"]); got != `{"code":"Unavailable","message":"group hq has no root now"}` || len(m.Gone) > 0 {
		t.Errorf("%+v", m)
	}
	f.change(func() { f.fails = nil })
	for m = w.next(); m.Feed != "tree"; m = w.next() {
	}
	if len(m.Set) > 0 || !slices.Equal(m.Gone, []string{"!"}) {
		t.Errorf("after it: %+v", m)
	}
	f.change(func() { f.where["no/such:1"] = &adminv1.WhereResponse{Ref: "no/such:1", Revision: 3} })
	for m = w.next(); m.Set["ref"] == nil; m = w.next() {
	}
}

// TestWatch_Coalesces: who is told seldom is told of the newest only, and of each part once.
func TestWatch_Coalesces(t *testing.T) {
	f := newFabric()
	f.tree = &adminv1.TreeResponse{Groups: []*adminv1.TreeGroup{group("hq", member("hq-a", "synced"))}}
	const pause = 100 * time.Millisecond
	srv := serve(t, web.Config{Fabric: f, Pause: pause})
	w := watch(t, srv, "feed=tree")
	w.next()
	began, changes := time.Now(), uint64(0)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for time.Since(began) < 5*pause {
		<-tick.C
		changes++
		f.change(func() {
			f.tree.Groups[0] = group("hq", member("hq-a", "synced"))
			f.tree.Groups[0].Revision = 1000 + changes
		})
	}
	var g view.Group
	messages := 0
	for g.Revision != 1000+changes {
		m := w.next()
		messages++
		if err := json.Unmarshal(m.Set["hq"], &g); err != nil {
			t.Fatal(err)
		}
	}
	if most := int(time.Since(began)/pause) + 2; messages > most {
		t.Errorf("%d messages for %d changes within %s, one each %s", messages, changes, time.Since(began), pause)
	}
}

// TestWatch_Bounded: no more watch than may, and who does not read is dropped and holds up nobody.
func TestWatch_Bounded(t *testing.T) {
	f := newFabric()
	srv := serve(t, web.Config{Fabric: f, MaxWatchers: 2, Pause: time.Millisecond, WriteTimeout: 3 * time.Second, Linger: time.Millisecond})
	big := func(i int) {
		f.change(func() {
			f.tree = &adminv1.TreeResponse{}
			for j := range 200 {
				g := group(fmt.Sprintf("hq/g%03d", j), member("s", "degraded"))
				g.Members[0].Reason = strings.Repeat(fmt.Sprint(i%10), 2000)
				f.tree.Groups = append(f.tree.Groups, g)
			}
		})
	}
	big(0)
	slow, err := net.Dial("tcp", strings.TrimPrefix(srv.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if _, err := io.WriteString(slow, "GET /api/v1/watch?feed=tree HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReaderSize(slow, 16).ReadString('\n') // it was taken in, and reads no more
	if err != nil || !strings.Contains(line, "200") {
		t.Fatalf("%q, %v", line, err)
	}
	quick := watch(t, srv, "feed=tree")
	quick.next()
	if resp, body := get(t, srv.URL+"/api/v1/watch?feed=tree"); resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("a third: %d %s", resp.StatusCode, body)
	}
	i := 0
	eventually(t, "the slow one is dropped", func() error {
		i++
		big(i)
		quick.next()
		resp, err := http.Get(srv.URL + "/api/v1/watch?feed=nothing") // refused for its name once there is room
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			return fmt.Errorf("%d", resp.StatusCode)
		}
		return nil
	})
	quick.stop()
	eventually(t, "nobody watches, and nothing is asked", func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.running > 0 {
			return fmt.Errorf("%d run", f.running)
		}
		return nil
	})
}

// TestWatch_Feeds: every feed, in its parts.
func TestWatch_Feeds(t *testing.T) {
	f := wideFabric(40)
	f.rollouts = append(f.rollouts, aRollout())
	f.pending["c01-01"] = &adminv1.PendingResponse{Site: "c01-01", Refs: []*adminv1.PendingAtSite{{Ref: "a/b:1", At: &adminv1.SiteRef{State: "failed"}}}}
	f.conflicts = []*adminv1.ConflictInfo{{Ref: "shop/web:2.4.1", Loser: &adminv1.ConflictSide{Digest: "sha256:dd", Site: "hq-b"}}}
	f.deletions = []*adminv1.DeletionInfo{{Ref: "old:1", Site: "hq-a", State: "held"}}
	srv := serve(t, web.Config{Fabric: f, Pause: time.Millisecond, Retry: time.Millisecond})
	for feed, want := range map[string][]string{
		"rollouts":           {"k3x9q2mzpa"},
		"rollout:k3x9q2mzpa": {"g/000/hq/guangdong/shenzhen", "g/001/hq/guangdong", "g/001/hq/hunan", "g/002/hq/guangdong/foshan", "g/002/hq/hunan/changsha", "rollout", "t/00000", "t/00001", "w/000", "w/001", "w/002"},
		"pending:c01-01":     {"a/b:1"},
		"conflicts":          {"c/shop/web:2.4.1/sha256:dd/hq-b", "d/old:1/hq-a"},
	} {
		if got := keys(watch(t, srv, "feed="+feed).next()); !slices.Equal(got, want) {
			t.Errorf("%s: %q; want %q", feed, got, want)
		}
	}
	if m := watch(t, srv, "feed=where:shop/web:2.4.1").next(); len(m.Set) != 1+len(f.where["shop/web:2.4.1"].GetSites()) || m.Set["ref"] == nil || m.Set["s/hq-a"] == nil {
		t.Errorf("where: %q", keys(m))
	}
	// A soak that goes on sends its wave, and nothing else of the rollout.
	w := watch(t, srv, "feed=rollout:k3x9q2mzpa")
	w.next()
	f.change(func() { f.rollouts[0].Waves[1].Soaked.Seconds++ })
	if m := w.next(); !slices.Equal(keys(m), []string{"w/001"}) {
		t.Errorf("a second of a soak sends %q", keys(m))
	}
	// A conflict is noticed although it can't be watched.
	c := watch(t, srv, "feed=conflicts")
	c.next()
	f.change(func() { f.conflicts = nil })
	if m := c.next(); !slices.Equal(m.Gone, []string{"c/shop/web:2.4.1/sha256:dd/hq-b"}) {
		t.Errorf("%+v", m)
	}
}

// TestWatch_Events: the newest are kept, and one that happens again takes the place of the one before.
func TestWatch_Events(t *testing.T) {
	f := newFabric()
	srv := serve(t, web.Config{Fabric: f, Pause: time.Millisecond})
	w := watch(t, srv, "feed=events")
	held := map[string]view.Event{}
	take := func(m message) {
		if m.Whole {
			clear(held)
		}
		for key, raw := range m.Set {
			var e view.Event
			if err := json.Unmarshal(raw, &e); err != nil {
				t.Fatal(err)
			}
			held[key] = e
		}
		for _, key := range m.Gone {
			delete(held, key)
		}
	}
	take(w.next())
	first := timestamppb.Now()
	e := func(reason string, count uint32) *adminv1.EventsResponse {
		return &adminv1.EventsResponse{Type: "Normal", Reason: reason, First: first, Time: timestamppb.Now(), Count: count}
	}
	f.change(func() { f.events = append(f.events, e("Again", 1), e("Again", 2), e("Once", 1)) })
	for len(held) != 2 {
		take(w.next())
	}
	for _, x := range held {
		if x.Reason == "Again" && x.Count != 2 {
			t.Errorf("%+v", x)
		}
	}
	f.change(func() {
		for i := range 2000 {
			f.events = append(f.events, e(fmt.Sprint("Many", i), 1))
		}
	})
	newest := func() bool {
		for _, x := range held {
			if x.Reason == "Many1999" {
				return true
			}
		}
		return false
	}
	for !newest() || len(held) > 300 {
		take(w.next())
	}
	if len(held) < 300 {
		t.Errorf("%d are kept", len(held))
	}
}

// TestWatch_Packed: the stream is packed for who takes that, message by message.
func TestWatch_Packed(t *testing.T) {
	f := wideFabric(400)
	srv := serve(t, web.Config{Fabric: f, Pause: time.Millisecond})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+"/api/v1/watch?feed=tree", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept-Encoding", "gzip")
	resp, err := (&http.Transport{DisableCompression: true, DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	counted := &countingReader{r: resp.Body}
	z, err := gzip.NewReader(counted)
	if err != nil {
		t.Fatal(err)
	}
	plain := 0
	lines := bufio.NewScanner(z)
	lines.Buffer(nil, 8<<20)
	for lines.Scan() && !strings.Contains(lines.Text(), `"feed":"tree"`) {
	}
	plain = len(lines.Text())
	if plain < 100_000 || counted.n > plain/5 {
		t.Errorf("%d bytes, %d packed", plain, counted.n)
	}
}

type countingReader struct {
	r io.Reader
	n int
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}

// TestRun_Ends: when the agent stops, watchers are let go at once.
func TestRun_Ends(t *testing.T) {
	f := newFabric()
	s, err := web.New(web.Config{Fabric: f})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	srv := httptest.NewServer(s)
	defer srv.Close()
	eventually(t, "it runs", func() error {
		resp, err := http.Get(srv.URL + "/api/v1/watch?feed=")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			return fmt.Errorf("%d", resp.StatusCode)
		}
		return nil
	})
	w := watch(t, srv, "feed=tree")
	w.next()
	stop()
	for open := true; open; {
		select {
		case _, open = <-w.got:
		case <-time.After(patience):
			t.Fatal("the watcher is not let go")
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if resp, _ := get(t, srv.URL+"/api/v1/watch?feed=tree"); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("afterwards: %d", resp.StatusCode)
	}
	http.DefaultClient.CloseIdleConnections()
}
