package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/fanout-io/fanout/pkg/identity"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// patience is for what happens at once unless something is broken.
const patience = 20 * time.Second

const digestA = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func site(name, state string) *adminv1.SiteRef {
	return &adminv1.SiteRef{Site: name, Group: "hq", State: state, Want: digestA}
}

func treeOnce(groups ...*adminv1.TreeGroup) func(*adminv1.TreeRequest, grpc.ServerStreamingServer[adminv1.TreeResponse]) error {
	return func(_ *adminv1.TreeRequest, s grpc.ServerStreamingServer[adminv1.TreeResponse]) error {
		return s.Send(&adminv1.TreeResponse{AsOf: timestamppb.New(time.Unix(1_800_000_000, 0)), Groups: groups})
	}
}

func keys(t *testing.T, doc map[string]any, path ...string) []string {
	t.Helper()
	var at any = doc
	for _, p := range path {
		at = at.(map[string]any)[p].([]any)[0]
	}
	var names []string
	for k := range at.(map[string]any) {
		names = append(names, k)
	}
	return names
}

func subset(have []string, want string) (lacking []string) {
	for w := range strings.FieldsSeq(want) {
		found := false
		for _, h := range have {
			found = found || h == w
		}
		if !found {
			lacking = append(lacking, w)
		}
	}
	return lacking
}

func TestTree_Shape(t *testing.T) {
	server := onSocket(t, &fake{tree: treeOnce(&adminv1.TreeGroup{
		Group: "hq", Root: "hq-a", Term: 1 << 60, Members: []*adminv1.TreeMember{{Site: "hq-a", State: "synced", Revision: 1<<63 + 1}},
	})})
	r := runCtl(t, "--server", server, "tree", "-o", "json")
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	var doc map[string]any
	if err := json.Unmarshal([]byte(r.out), &doc); err != nil {
		t.Fatal(err)
	}
	if lacking := subset(keys(t, doc), "schemaVersion asOf groups"); lacking != nil {
		t.Errorf("lacking %v", lacking)
	}
	if lacking := subset(keys(t, doc, "groups"), "group parent tier root term state revision lag lagSeconds members"); lacking != nil {
		t.Errorf("lacking %v", lacking)
	}
	if lacking := subset(keys(t, doc, "groups", "members"), "site state registry revision bytesLeft reason"); lacking != nil {
		t.Errorf("lacking %v", lacking)
	}
	if !strings.Contains(r.out, `"revision": 9223372036854775809`) {
		t.Errorf("a large number is not exact: %s", r.out)
	}
	y := runCtl(t, "--server", server, "tree", "-o", "yaml")
	var same map[string]any
	if err := yaml.Unmarshal([]byte(y.out), &same); err != nil {
		t.Fatal(err)
	}
	b, _ := json.Marshal(same)
	var again map[string]any
	_ = json.Unmarshal(b, &again)
	if diff := cmp.Diff(doc, again); diff != "" {
		t.Errorf("YAML is not the same as JSON: %s", diff)
	}
	table := runCtl(t, "--server", server, "tree")
	if !strings.Contains(table.out, "hq-a (root)") || strings.Contains(table.out, "\x1b") {
		t.Errorf("table: %q", table.out)
	}
}

func TestWhere_Shape(t *testing.T) {
	server := onSocket(t, &fake{where: func(r *adminv1.WhereRequest, s grpc.ServerStreamingServer[adminv1.WhereResponse]) error {
		if r.GetRef() != "team/app:latest" {
			return status.Error(codes.InvalidArgument, r.GetRef())
		}
		return s.Send(&adminv1.WhereResponse{Ref: r.GetRef(), Revision: 3, Digest: digestA, AsOf: timestamppb.Now(), Sites: []*adminv1.SiteRef{{
			Site: "hq-a", Group: "hq", State: "failed", Reason: "413 DENIED: quota", Since: timestamppb.Now(),
		}}})
	}})
	r := runCtl(t, "--server", server, "where", "team/app", "-o", "json")
	var doc map[string]any
	if err := json.Unmarshal([]byte(r.out), &doc); err != nil {
		t.Fatalf("%v: %+v", err, r)
	}
	if lacking := subset(keys(t, doc), "schemaVersion ref revision digest asOf sites"); lacking != nil {
		t.Errorf("lacking %v", lacking)
	}
	if lacking := subset(keys(t, doc, "sites"), "site group state digest want reason since bytesLeft"); lacking != nil {
		t.Errorf("lacking %v", lacking)
	}
	if strings.Contains(r.out, "null") {
		t.Errorf("there is a null: %s", r.out)
	}
	// A key is never missing, also where a site has nothing to say under it.
	r = runCtl(t, "--server", onSocket(t, &fake{where: func(_ *adminv1.WhereRequest, s grpc.ServerStreamingServer[adminv1.WhereResponse]) error {
		return s.Send(&adminv1.WhereResponse{Ref: "team/app:1", Sites: []*adminv1.SiteRef{{Site: "hq-a", State: "delivered"}}})
	}}), "where", "team/app:1", "-o", "json")
	if !strings.Contains(r.out, `"since": null`) {
		t.Errorf("since is not said to be unknown: %s", r.out)
	}
}

func TestEmptyAnswers_NoNulls(t *testing.T) {
	server := onSocket(t, &fake{
		tree: treeOnce(),
		where: func(_ *adminv1.WhereRequest, s grpc.ServerStreamingServer[adminv1.WhereResponse]) error {
			return s.Send(&adminv1.WhereResponse{})
		},
		images:  func(*adminv1.ImagesRequest, grpc.ServerStreamingServer[adminv1.ImagesResponse]) error { return nil },
		members: func(context.Context) (*adminv1.MembersResponse, error) { return &adminv1.MembersResponse{}, nil },
	})
	for _, command := range []string{"tree", "where x", "images", "member list", "config contexts", "config view", "version"} {
		for _, output := range []string{"json", "yaml", "table"} {
			r := runCtl(t, append([]string{"--server", server, "-o", output}, strings.Fields(command)...)...)
			if r.code != 0 || strings.Contains(r.out, "null") {
				t.Errorf("%s -o %s: %+v", command, output, r)
			}
			if output == "json" && (!json.Valid([]byte(r.out)) || !strings.Contains(r.out, `"schemaVersion": 1`)) {
				t.Errorf("%s: %s", command, r.out)
			}
		}
	}
}

func TestUsage(t *testing.T) {
	tests := []struct{ args, text string }{
		{"nonsense", "unknown command"},
		{"member nonsense", "unknown command"},
		{"member add gd-d", "SITE and RAFT-ADDRESS"},
		{"member add a b c", "SITE and RAFT-ADDRESS"},
		{"member remove", "one SITE"},
		{"member lead a b", "one SITE at most"},
		{"completion nonsense", "unknown command"},
		{"tree --nonsense", "unknown flag"},
		{"tree a b", "one group at most"},
		{"tree -o xml", "want table, json or yaml"},
		{"tree --timeout -3s", "--timeout"},
		{"publish", "at least one REF"},
		{"where", "one REF"},
		{"where a b", "one REF"},
		{"where localhost:5000/app:1", "host"},
		{"where app@sha256:aa", "has a digest; give REPOSITORY:TAG\n"},
		{"publish UPPER:1", "not a repository name"},
		{"publish app:", "not a tag"},
		{"ca init", "required flag"},
		{"ca issue --ca-dir x --out y", "neither a site nor a user"},
		{"ca issue --ca-dir x --out y --site a", "no group"},
		{"ca issue --ca-dir x --out y --site a --user b", "[site user]"},
		{"ca issue --ca-dir x --out y --user b --ttl 0d", "want a number of days"},
		{"config use", "one context"},
		{"config set x", "needs --server"},
		{"config set x --server nowhere", "want HOST:PORT"},
		{"config set a/b --server x:1", "context name"},
		{"--server nowhere tree", "want HOST:PORT"},
		{"--server unix: tree", "path of the socket"},
		{"--server http://x:1 tree", "want HOST:PORT"},
		{"--server 127.0.0.1:99999 tree", "not a port"},
		{"--server 10.0.0.1:7400 tree", "not on this machine"},
		{"--server example.com:7400 tree", "not on this machine"},
		{"--server 127.0.0.1:7400 --tls-cert x tree", "--tls-key is missing"},
		{"--context none tree", "no context"},
	}
	for _, tc := range tests {
		r := runCtl(t, strings.Fields(tc.args)...)
		if r.code != exitUsage || !strings.HasPrefix(r.err, "Error: ") || !strings.Contains(r.err, tc.text) || r.out != "" {
			t.Errorf("fanoutctl %s: %+v; want 2 and %q", tc.args, r, tc.text)
		}
	}
}

func TestUnreachable(t *testing.T) {
	gone := listenUnix(t)
	gone.Close()            // removes the socket
	closing := listenTCP(t) // as a proxy whose agent is down
	go func() {
		for {
			conn, err := closing.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	defer closing.Close()
	silent := listenTCP(t)
	defer silent.Close() // the kernel answers, nobody else does
	tests := []struct{ name, server, text, todo string }{
		{"no socket", "unix:" + gone.Addr().String(), "no such socket", "Is fanoutd running"},
		{"refused", closedPort(t), "connection refused", "Is fanoutd running"},
		{"closes", closing.Addr().String(), "takes connections and closes them without an answer", "behind a proxy"},
		{"silent", silent.Addr().String(), "did not answer as an agent", "Is it fanoutd"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			start := time.Now()
			r := runCtl(t, "--server", tc.server, "tree")
			if r.code != exitFailed || !strings.Contains(r.err, tc.text) || !strings.Contains(r.err, tc.todo) || !strings.Contains(r.err, tc.server) || strings.Contains(r.err, "TLS") {
				t.Errorf("%+v", r)
			}
			if took := time.Since(start); took > 15*time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
}

func closedPort(t *testing.T) string {
	t.Helper()
	l := listenTCP(t)
	l.Close()
	return l.Addr().String()
}

func TestTimeout(t *testing.T) {
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	server := onSocket(t, &fake{
		tree: func(_ *adminv1.TreeRequest, s grpc.ServerStreamingServer[adminv1.TreeResponse]) error {
			return hang(s.Context())
		},
		members: func(ctx context.Context) (*adminv1.MembersResponse, error) { return nil, hang(ctx) },
	})
	for _, command := range []string{"tree", "member list"} {
		r := runCtl(t, append([]string{"--server", server, "--timeout", "100ms"}, strings.Fields(command)...)...)
		if r.code != exitTimeout || !strings.Contains(r.err, "timed out after 100ms") {
			t.Errorf("%s: %+v", command, r)
		}
	}
}

func TestInterrupted(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	server := onSocket(t, &fake{tree: func(_ *adminv1.TreeRequest, s grpc.ServerStreamingServer[adminv1.TreeResponse]) error {
		interrupt()
		<-s.Context().Done()
		return s.Context().Err()
	}})
	if r := runWith(ctx, nil, "--server", server, "tree", "--watch"); r.code != exitInterrupted || r.err != "Error: interrupted\n" {
		t.Errorf("%+v", r)
	}
}

// TestWrongNumbers: what is no number is said without a programmer's words.
func TestWrongNumbers(t *testing.T) {
	for args, want := range map[string]string{"tree --depth x": `"x" is not a whole number`, "tree --depth -1": "0 is all"} {
		r := runCtl(t, append([]string{"--server", "127.0.0.1:1"}, strings.Fields(args)...)...)
		if r.code != exitUsage || !strings.Contains(r.err, want) || strings.Contains(r.err, "strconv") {
			t.Errorf("%s: %+v", args, r)
		}
	}
}

func TestServerErrors(t *testing.T) {
	tests := []struct {
		code codes.Code
		text string
	}{
		{codes.NotFound, "fanoutctl images"},
		{codes.FailedPrecondition, "Error: words\x20"},
		{codes.PermissionDenied, "not allowed"},
		{codes.Unauthenticated, "--tls-cert"},
		{codes.Unimplemented, "fanoutctl version"},
		{codes.Unavailable, "cannot answer now"},
		{codes.Internal, "Internal"},
		{codes.DeadlineExceeded, "gave up"},
	}
	for _, tc := range tests {
		server := onSocket(t, &fake{where: func(*adminv1.WhereRequest, grpc.ServerStreamingServer[adminv1.WhereResponse]) error {
			return status.Error(tc.code, "words \x1b[2Jof the agent")
		}})
		r := runCtl(t, "--server", server, "where", "app:1")
		if r.code != exitFailed || !strings.Contains(r.err, tc.text) || !strings.Contains(r.err, "of the agent") || strings.ContainsRune(r.err, 0x1b) {
			t.Errorf("%s: %+v", tc.code, r)
		}
	}
	// What the agent says of another that it asked is not taken for its own silence.
	server := onSocket(t, &fake{where: func(*adminv1.WhereRequest, grpc.ServerStreamingServer[adminv1.WhereResponse]) error {
		return status.Error(codes.Unavailable, `connection error: desc = "transport: Error while dialing: dial tcp 10.1.1.1:7400: connect: connection refused"`)
	}})
	if r := runCtl(t, "--server", server, "where", "app:1"); !strings.Contains(r.err, "cannot answer now: 10.1.1.1:7400: connection refused") {
		t.Errorf("%+v", r)
	}
}

func TestServerErrors_AdviceOfTheAgentIsEnough(t *testing.T) {
	server := onSocket(t, &fake{tree: func(*adminv1.TreeRequest, grpc.ServerStreamingServer[adminv1.TreeResponse]) error {
		return status.Error(codes.NotFound, "no group is known here; 'fanoutctl tree' lists them")
	}})
	if r := runCtl(t, "--server", server, "tree", "hq/none"); r.code != exitFailed || r.err != "Error: no group is known here; 'fanoutctl tree' lists them\n" {
		t.Errorf("%+v", r)
	}
}

func TestWatch_GoesOnWhenAgentRestarts(t *testing.T) {
	l := listenUnix(t)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	path := l.Addr().String()
	f := func(revision uint64) *fake {
		return &fake{tree: func(_ *adminv1.TreeRequest, s grpc.ServerStreamingServer[adminv1.TreeResponse]) error {
			if err := s.Send(&adminv1.TreeResponse{Groups: []*adminv1.TreeGroup{{Group: "hq", Revision: revision}}}); err != nil {
				return err
			}
			<-s.Context().Done()
			return s.Context().Err()
		}}
	}
	stop := serve(t, f(41), l, nil)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	out, errs := newLocked(), newLocked()
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, []string{"--server", "unix:" + path, "tree", "--watch", "-o", "json"}, strings.NewReader(""), out, errs, func(string) string { return "" })
	}()
	out.await(t, `"revision":41`)
	stop()
	errs.await(t, "trying again")
	os.Remove(path)
	again, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, f(42), again, nil)
	out.await(t, `"revision":42`)
	interrupt()
	if c := <-code; c != exitInterrupted {
		t.Errorf("exit code %d: %s", c, errs)
	}
	for line := range strings.SplitSeq(strings.TrimSpace(out.String()), "\n") {
		if !json.Valid([]byte(line)) {
			t.Errorf("not a JSON document a line: %q", line)
		}
	}
}

func TestWatch_EndsWithTimeoutAsDone(t *testing.T) {
	server := onSocket(t, &fake{events: func(r *adminv1.EventsRequest, s grpc.ServerStreamingServer[adminv1.EventsResponse]) error {
		if err := s.Send(&adminv1.EventsResponse{Time: timestamppb.Now(), Type: "Normal", Reason: "Published", Site: "hq-a", Ref: "app:1", Message: "revision 1", Count: 1}); err != nil || !r.GetFollow() {
			return err
		}
		<-s.Context().Done()
		return s.Context().Err()
	}})
	r := runCtl(t, "--server", server, "events", "--follow", "--timeout", "300ms", "-o", "json")
	if r.code != exitOK || strings.Count(r.out, "\n") != 1 || !strings.Contains(r.out, `"reason":"Published"`) {
		t.Errorf("%+v", r)
	}
	if r := runCtl(t, "--server", server, "events"); r.code != exitOK || !strings.Contains(r.out, "Published") {
		t.Errorf("%+v", r)
	}
	// Also while there is no root.
	var calls atomic.Int32
	server = onSocket(t, &fake{tree: func(_ *adminv1.TreeRequest, s grpc.ServerStreamingServer[adminv1.TreeResponse]) error {
		if calls.Add(1) > 1 {
			return status.Error(codes.Unavailable, "group hq has no root now")
		}
		if err := s.Send(&adminv1.TreeResponse{Groups: []*adminv1.TreeGroup{{Group: "hq"}}}); err != nil {
			return err
		}
		return status.Error(codes.Unavailable, "hq-a is no longer the root")
	}})
	r = runCtl(t, "--server", server, "tree", "--watch", "--timeout", "800ms", "-o", "json")
	if r.code != exitOK || strings.Count(r.out, "\n") != 1 || !strings.Contains(r.err, "no root now; ") || calls.Load() < 2 {
		t.Errorf("%+v, %d calls", r, calls.Load())
	}
}

// TestEvents_ClockSetBack: the agent is lost, and meanwhile its clock was set back by an hour. What happened after that is shown, and what was shown before is not shown again.
func TestEvents_ClockSetBack(t *testing.T) {
	var calls atomic.Int32
	begin := time.Date(2026, 11, 25, 8, 0, 0, 0, time.UTC)
	event := func(number uint64, at time.Time, reason string) *adminv1.EventsResponse {
		return &adminv1.EventsResponse{Time: timestamppb.New(at), Type: "Normal", Reason: reason, Site: "hq-a", Count: 1, Run: "r1", Number: number}
	}
	server := onSocket(t, &fake{events: func(_ *adminv1.EventsRequest, s grpc.ServerStreamingServer[adminv1.EventsResponse]) error {
		list := []*adminv1.EventsResponse{event(1, begin, "Published"), event(2, begin.Add(time.Second), "Delivered")}
		if calls.Add(1) == 1 {
			for _, ev := range list {
				if err := s.Send(ev); err != nil {
					return err
				}
			}
			return status.Error(codes.Unavailable, "stopping")
		}
		for _, ev := range append(list, event(3, begin.Add(-time.Hour), "Detached"), event(4, begin.Add(-time.Hour), "Attached")) {
			if err := s.Send(ev); err != nil {
				return err
			}
		}
		return status.Error(codes.PermissionDenied, "enough")
	}})
	r := runCtl(t, "--server", server, "events", "--follow", "-o", "json")
	var got []string
	for line := range strings.Lines(r.out) {
		var ev struct{ Reason string }
		if err := json.Unmarshal([]byte(line), &ev); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		got = append(got, ev.Reason)
	}
	if want := []string{"Published", "Delivered", "Detached", "Attached"}; !slices.Equal(got, want) || calls.Load() < 2 {
		t.Errorf("%d calls: got %q, want %q", calls.Load(), got, want)
	}
}

func TestMTLS(t *testing.T) {
	dir := t.TempDir()
	home := map[string]string{"HOME": dir}
	must := func(args ...string) {
		t.Helper()
		if r := runWith(t.Context(), home, args...); r.code != 0 {
			t.Fatalf("%v: %+v", args, r)
		}
	}
	in := func(parts ...string) string { return filepath.Join(append([]string{dir}, parts...)...) }
	must("ca", "init", "--dir", in("ca"), "--trust-domain", "example.com")
	must("ca", "init", "--dir", in("ca2"), "--trust-domain", "example.com")
	must("ca", "issue", "--ca-dir", in("ca"), "--group", "hq", "--site", "hq-a", "--out", in("hq-a"))
	must("ca", "issue", "--ca-dir", in("ca"), "--user", "alice", "--out", in("alice"), "--ttl", "30d")
	must("ca", "issue", "--ca-dir", in("ca"), "--user", "eve", "--out", in("eve"))
	must("ca", "issue", "--ca-dir", in("ca2"), "--user", "mallory", "--out", in("mallory"))

	load := func(name string) *identity.Source {
		s, err := identity.Load(identity.Files{Cert: in(name, "tls.crt"), Key: in(name, "tls.key"), CA: in(name, "ca.crt"), TrustDomain: "example.com"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	agent := &fake{version: func(ctx context.Context) (*adminv1.VersionResponse, error) {
		id, ok := identity.PeerID(ctx)
		return &adminv1.VersionResponse{Version: fmt.Sprintf("v1 for %s %v", id, ok), Site: "hq-a", Group: "hq"}, nil
	}, tree: treeOnce()}
	l, l2 := listenTCP(t), listenTCP(t)
	serve(t, agent, l, load("hq-a"))
	serve(t, agent, l2, load("eve")) // a person who plays an agent
	server := l.Addr().String()
	tls := func(who, ca string) []string {
		return []string{"--tls-cert", in(who, "tls.crt"), "--tls-key", in(who, "tls.key"), "--tls-ca", in(ca, "ca.crt"), "--trust-domain", "example.com"}
	}

	r := runWith(t.Context(), home, append([]string{"--server", server, "version"}, tls("alice", "alice")...)...)
	if r.code != 0 || !strings.Contains(r.out, "v1 for user/alice true") {
		t.Errorf("with a certificate: %+v", r)
	}
	// The same out of a context.
	must(append([]string{"config", "set", "prod", "--server", server}, tls("alice", "alice")...)...)
	if r := runWith(t.Context(), home, "version", "-o", "json"); !strings.Contains(r.out, "user/alice true") {
		t.Errorf("out of a context: %+v", r)
	}
	refusals := []struct {
		name string
		args []string
		text string
	}{
		{"another authority's certificate", append([]string{"--server", server}, append(tls("mallory", "ca2"), "--tls-ca", in("ca", "ca.crt"))...), "certificate"},
		{"no certificate", []string{"--server", server}, "wants TLS"},
		{"agent of another authority", append([]string{"--server", server}, tls("mallory", "mallory")...), "not trusted"},
		{"a person who plays an agent", append([]string{"--server", l2.Addr().String()}, tls("alice", "alice")...), "user/eve is not an agent"},
		{"another trust domain", append(append([]string{"--server", server}, tls("alice", "alice")...), "--trust-domain", "example.org"), "example.org"},
	}
	for _, tc := range refusals {
		if r := runWith(t.Context(), home, append(tc.args, "tree")...); r.code != exitFailed || !strings.Contains(r.err, tc.text) {
			t.Errorf("%s: %+v", tc.name, r)
		}
	}
}

func TestContexts(t *testing.T) {
	a := onSocket(t, &fake{version: func(context.Context) (*adminv1.VersionResponse, error) {
		return &adminv1.VersionResponse{Site: "site-a"}, nil
	}})
	b := onSocket(t, &fake{version: func(context.Context) (*adminv1.VersionResponse, error) {
		return &adminv1.VersionResponse{Site: "site-b"}, nil
	}})
	c := onSocket(t, &fake{version: func(context.Context) (*adminv1.VersionResponse, error) {
		return &adminv1.VersionResponse{Site: "site-c"}, nil
	}})
	env := map[string]string{"HOME": "/nowhere", "XDG_CONFIG_HOME": t.TempDir()}
	do := func(args ...string) result { return runWith(t.Context(), env, args...) }
	do("config", "set", "a", "--server", a)
	do("config", "set", "b", "--server", b)
	expect := func(want string, args ...string) {
		t.Helper()
		if r := do(append(args, "version")...); !strings.Contains(r.out, want) {
			t.Errorf("%v: %+v; want %s", args, r, want)
		}
	}
	expect("site-a") // the first became the current one
	if r := do("config", "use", "b"); r.code != 0 {
		t.Errorf("%+v", r)
	}
	expect("site-b")
	expect("site-a", "--context", "a")
	expect("site-c", "--server", c)
	env["FANOUT_SERVER"] = c
	expect("site-c")
	expect("site-a", "--context", "a")
	if r := do("config", "contexts", "-o", "json"); !strings.Contains(r.out, `"name": "b",`+"\n      "+`"current": true`) {
		t.Errorf("%+v", r)
	}
	path := filepath.Join(env["XDG_CONFIG_HOME"], "fanout", "config.yaml")
	os.WriteFile(path, []byte("version: 1\ncurent: b\n"), 0o600)
	if r := do("config", "view"); r.code != exitFailed || !strings.Contains(r.err, "line 2") {
		t.Errorf("a broken file: %+v", r)
	}
}

func TestCompletion(t *testing.T) {
	server := onSocket(t, &fake{
		tree: treeOnce(&adminv1.TreeGroup{Group: "hq"}, &adminv1.TreeGroup{Group: "hq/guangdong"}),
		images: func(_ *adminv1.ImagesRequest, s grpc.ServerStreamingServer[adminv1.ImagesResponse]) error {
			for _, ref := range []string{"base/os:1", "team/app:1", "team/app:2", "team/web:1"} {
				if err := s.Send(&adminv1.ImagesResponse{Ref: ref}); err != nil {
					return err
				}
			}
			return nil
		},
	})
	tests := []struct {
		args []string
		want string
	}{
		{[]string{"where", "team/a"}, "team/app:1 team/app:2"},
		{[]string{"where", "team/app:1", ""}, ""},
		{[]string{"publish", "team/app:1", "base"}, "base/os:1"},
		{[]string{"images", "team"}, "team/app team/web"},
		{[]string{"tree", "hq/"}, "hq/guangdong"},
		{[]string{"tree", "-o", ""}, "table json yaml"},
	}
	for _, tc := range tests {
		r := runCtl(t, append([]string{"__complete", "--server", server}, tc.args...)...)
		words, _, _ := strings.Cut(r.out, ":4") // no file names
		if got := strings.Join(strings.Fields(words), " "); r.code != 0 || got != tc.want {
			t.Errorf("%v: %q; want %q (%+v)", tc.args, got, tc.want, r)
		}
	}
	if r := runCtl(t, "__complete", "--server", closedPort(t), "where", ""); r.code != 0 || strings.Contains(r.err, "Error") {
		t.Errorf("without an agent: %+v", r)
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if r := runCtl(t, "completion", shell); r.code != 0 || !strings.Contains(r.out, "fanoutctl") {
			t.Errorf("%s: %d", shell, r.code)
		}
	}
}

func TestHelp_EveryCommandHasAnExample(t *testing.T) {
	a := newApp(nil, nil, nil, func(string) string { return "" })
	root := a.root()
	todo := root.Commands()
	for len(todo) > 0 {
		cmd := todo[0]
		todo = append(todo[1:], cmd.Commands()...)
		if cmd.Parent().Name() == "completion" {
			continue // cobra's own; they explain themselves at length
		}
		if cmd.Short == "" || cmd.Long == "" || cmd.Example == "" {
			t.Errorf("%s has no short, long or example", cmd.CommandPath())
		}
	}
}

func TestVersion_UnreachableIsNoError(t *testing.T) {
	r := runCtl(t, "--server", closedPort(t), "version", "-o", "json")
	var doc struct {
		Client      map[string]string `json:"client"`
		Server      any               `json:"server"`
		ServerError string            `json:"serverError"`
	}
	if err := json.Unmarshal([]byte(r.out), &doc); err != nil || r.code != 0 || doc.Client["version"] == "" || doc.Server != nil || !strings.Contains(doc.ServerError, "refused") {
		t.Errorf("%v %+v", err, r)
	}
}
