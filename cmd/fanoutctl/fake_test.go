package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/fanout-io/fanout/pkg/identity"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is an agent whose answers are functions; a nil one is not implemented.
type fake struct {
	adminv1.UnimplementedAdminServiceServer
	publish func(*adminv1.PublishRequest, grpc.ServerStreamingServer[adminv1.PublishResponse]) error
	tree    func(*adminv1.TreeRequest, grpc.ServerStreamingServer[adminv1.TreeResponse]) error
	where   func(*adminv1.WhereRequest, grpc.ServerStreamingServer[adminv1.WhereResponse]) error
	images  func(*adminv1.ImagesRequest, grpc.ServerStreamingServer[adminv1.ImagesResponse]) error
	events  func(*adminv1.EventsRequest, grpc.ServerStreamingServer[adminv1.EventsResponse]) error
	members func(context.Context) (*adminv1.MembersResponse, error)
	version func(context.Context) (*adminv1.VersionResponse, error)
	add     func(*adminv1.AddMemberRequest) (*adminv1.AddMemberResponse, error)
	remove  func(*adminv1.RemoveMemberRequest) (*adminv1.RemoveMemberResponse, error)
	lead    func(*adminv1.LeadRequest) (*adminv1.LeadResponse, error)
	forget  func(*adminv1.ForgetGroupRequest) (*adminv1.ForgetGroupResponse, error)

	unpublish func(*adminv1.UnpublishRequest) (*adminv1.UnpublishResponse, error)
	undo      func(*adminv1.UndoRequest) (*adminv1.UndoResponse, error)
	conflicts func() (*adminv1.ConflictsResponse, error)
	deletions func() (*adminv1.DeletionsResponse, error)
	allow     func(*adminv1.AllowDeletionsRequest) (*adminv1.AllowDeletionsResponse, error)
	restore   func(*adminv1.RestoreDeletionsRequest) (*adminv1.RestoreDeletionsResponse, error)
	settle    func(*adminv1.SettleConflictRequest) (*adminv1.SettleConflictResponse, error)

	view   func(*adminv1.ViewRequest) (*adminv1.ViewResponse, error)
	verify func(*adminv1.VerifyRequest, grpc.ServerStreamingServer[adminv1.VerifyResponse]) error
	why    func(*adminv1.WhyRequest) (*adminv1.WhyResponse, error)
	top    func() (*adminv1.TopResponse, error)
	doctor func(*adminv1.DoctorRequest, grpc.ServerStreamingServer[adminv1.DoctorResponse]) error

	start       func(*adminv1.StartRolloutRequest) (*adminv1.StartRolloutResponse, error)
	rollouts    func(*adminv1.RolloutsRequest, grpc.ServerStreamingServer[adminv1.RolloutsResponse]) error
	steer       func(*adminv1.SteerRolloutRequest) (*adminv1.SteerRolloutResponse, error)
	policies    func() (*adminv1.PoliciesResponse, error)
	setPolicies func(*adminv1.SetPoliciesRequest) (*adminv1.SetPoliciesResponse, error)
	freeze      func(*adminv1.SetFreezeRequest) (*adminv1.SetFreezeResponse, error)
}

func (f *fake) StartRollout(_ context.Context, r *adminv1.StartRolloutRequest) (*adminv1.StartRolloutResponse, error) {
	if f.start == nil {
		return nil, unimplemented()
	}
	return f.start(r)
}

func (f *fake) Rollouts(r *adminv1.RolloutsRequest, s grpc.ServerStreamingServer[adminv1.RolloutsResponse]) error {
	if f.rollouts == nil {
		return unimplemented()
	}
	return f.rollouts(r, s)
}

func (f *fake) SteerRollout(_ context.Context, r *adminv1.SteerRolloutRequest) (*adminv1.SteerRolloutResponse, error) {
	if f.steer == nil {
		return nil, unimplemented()
	}
	return f.steer(r)
}

func (f *fake) Policies(context.Context, *adminv1.PoliciesRequest) (*adminv1.PoliciesResponse, error) {
	if f.policies == nil {
		return nil, unimplemented()
	}
	return f.policies()
}

func (f *fake) SetPolicies(_ context.Context, r *adminv1.SetPoliciesRequest) (*adminv1.SetPoliciesResponse, error) {
	if f.setPolicies == nil {
		return nil, unimplemented()
	}
	return f.setPolicies(r)
}

func (f *fake) SetFreeze(_ context.Context, r *adminv1.SetFreezeRequest) (*adminv1.SetFreezeResponse, error) {
	if f.freeze == nil {
		return nil, unimplemented()
	}
	return f.freeze(r)
}

func (f *fake) Why(_ context.Context, r *adminv1.WhyRequest) (*adminv1.WhyResponse, error) {
	if f.why == nil {
		return nil, unimplemented()
	}
	return f.why(r)
}

func (f *fake) Top(context.Context, *adminv1.TopRequest) (*adminv1.TopResponse, error) {
	if f.top == nil {
		return nil, unimplemented()
	}
	return f.top()
}

func (f *fake) Doctor(r *adminv1.DoctorRequest, s grpc.ServerStreamingServer[adminv1.DoctorResponse]) error {
	if f.doctor == nil {
		return unimplemented()
	}
	return f.doctor(r, s)
}

func (f *fake) View(_ context.Context, r *adminv1.ViewRequest) (*adminv1.ViewResponse, error) {
	if f.view == nil {
		return nil, unimplemented()
	}
	return f.view(r)
}

func (f *fake) Verify(r *adminv1.VerifyRequest, s grpc.ServerStreamingServer[adminv1.VerifyResponse]) error {
	if f.verify == nil {
		return unimplemented()
	}
	return f.verify(r, s)
}

func (f *fake) Unpublish(_ context.Context, r *adminv1.UnpublishRequest) (*adminv1.UnpublishResponse, error) {
	if f.unpublish == nil {
		return nil, unimplemented()
	}
	return f.unpublish(r)
}

func (f *fake) Undo(_ context.Context, r *adminv1.UndoRequest) (*adminv1.UndoResponse, error) {
	if f.undo == nil {
		return nil, unimplemented()
	}
	return f.undo(r)
}

func (f *fake) Conflicts(context.Context, *adminv1.ConflictsRequest) (*adminv1.ConflictsResponse, error) {
	if f.conflicts == nil {
		return nil, unimplemented()
	}
	return f.conflicts()
}

func (f *fake) Deletions(context.Context, *adminv1.DeletionsRequest) (*adminv1.DeletionsResponse, error) {
	if f.deletions == nil {
		return nil, unimplemented()
	}
	return f.deletions()
}

func (f *fake) AllowDeletions(_ context.Context, r *adminv1.AllowDeletionsRequest) (*adminv1.AllowDeletionsResponse, error) {
	if f.allow == nil {
		return nil, unimplemented()
	}
	return f.allow(r)
}

func (f *fake) RestoreDeletions(_ context.Context, r *adminv1.RestoreDeletionsRequest) (*adminv1.RestoreDeletionsResponse, error) {
	if f.restore == nil {
		return nil, unimplemented()
	}
	return f.restore(r)
}

func (f *fake) SettleConflict(_ context.Context, r *adminv1.SettleConflictRequest) (*adminv1.SettleConflictResponse, error) {
	if f.settle == nil {
		return nil, unimplemented()
	}
	return f.settle(r)
}

func unimplemented() error { return status.Error(codes.Unimplemented, "unknown method") }

func (f *fake) Publish(r *adminv1.PublishRequest, s grpc.ServerStreamingServer[adminv1.PublishResponse]) error {
	if f.publish == nil {
		return unimplemented()
	}
	return f.publish(r, s)
}

func (f *fake) Tree(r *adminv1.TreeRequest, s grpc.ServerStreamingServer[adminv1.TreeResponse]) error {
	if f.tree == nil {
		return unimplemented()
	}
	return f.tree(r, s)
}

func (f *fake) Where(r *adminv1.WhereRequest, s grpc.ServerStreamingServer[adminv1.WhereResponse]) error {
	if f.where == nil {
		return unimplemented()
	}
	return f.where(r, s)
}

func (f *fake) Images(r *adminv1.ImagesRequest, s grpc.ServerStreamingServer[adminv1.ImagesResponse]) error {
	if f.images == nil {
		return unimplemented()
	}
	return f.images(r, s)
}

func (f *fake) Events(r *adminv1.EventsRequest, s grpc.ServerStreamingServer[adminv1.EventsResponse]) error {
	if f.events == nil {
		return unimplemented()
	}
	return f.events(r, s)
}

func (f *fake) Members(ctx context.Context, _ *adminv1.MembersRequest) (*adminv1.MembersResponse, error) {
	if f.members == nil {
		return nil, unimplemented()
	}
	return f.members(ctx)
}

func (f *fake) Version(ctx context.Context, _ *adminv1.VersionRequest) (*adminv1.VersionResponse, error) {
	if f.version == nil {
		return nil, unimplemented()
	}
	return f.version(ctx)
}

func (f *fake) AddMember(_ context.Context, r *adminv1.AddMemberRequest) (*adminv1.AddMemberResponse, error) {
	if f.add == nil {
		return nil, unimplemented()
	}
	return f.add(r)
}

func (f *fake) RemoveMember(_ context.Context, r *adminv1.RemoveMemberRequest) (*adminv1.RemoveMemberResponse, error) {
	if f.remove == nil {
		return nil, unimplemented()
	}
	return f.remove(r)
}

func (f *fake) ForgetGroup(_ context.Context, r *adminv1.ForgetGroupRequest) (*adminv1.ForgetGroupResponse, error) {
	if f.forget == nil {
		return nil, unimplemented()
	}
	return f.forget(r)
}

func (f *fake) Lead(_ context.Context, r *adminv1.LeadRequest) (*adminv1.LeadResponse, error) {
	if f.lead == nil {
		return nil, unimplemented()
	}
	return f.lead(r)
}

// serve runs a fake until the test ends, or stop is called.
func serve(t *testing.T, f adminv1.AdminServiceServer, l net.Listener, id *identity.Source) (stop func()) {
	t.Helper()
	var opts []grpc.ServerOption
	if id != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(id.ServerTLS())))
	}
	s := grpc.NewServer(opts...)
	adminv1.RegisterAdminServiceServer(s, f)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Serve(l); err != nil {
			t.Errorf("serving: %v", err)
		}
	}()
	stop = sync.OnceFunc(func() { s.Stop(); <-done })
	t.Cleanup(stop)
	return stop
}

func listenUnix(t *testing.T) net.Listener {
	t.Helper()
	dir, err := os.MkdirTemp("", "fctl") // t.TempDir may be longer than a socket's path may be
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func listenTCP(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// onSocket serves a fake on a unix socket and gives its address.
func onSocket(t *testing.T, f *fake) string {
	t.Helper()
	l := listenUnix(t)
	serve(t, f, l, nil)
	return "unix:" + l.Addr().String()
}

// locked is a buffer that may be read while it is written.
type locked struct {
	mu  sync.Mutex
	b   bytes.Buffer
	see chan struct{}
}

func newLocked() *locked { return &locked{see: make(chan struct{}, 1)} }

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.see <- struct{}{}:
	default:
	}
	return l.b.Write(p)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// await waits until text was written.
func (l *locked) await(t *testing.T, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for !strings.Contains(l.String(), text) {
		select {
		case <-l.see:
		case <-ctx.Done():
			t.Fatalf("no %q in %q", text, l.String())
		}
	}
}

// result of a run.
type result struct {
	code     int
	out, err string
}

// runTyping runs where somebody sits at a terminal and types.
func runTyping(t *testing.T, typed string, args ...string) result {
	t.Helper()
	out, errs := newLocked(), newLocked()
	a := newApp(strings.NewReader(typed), out, errs, func(string) string { return "" })
	a.asks = true
	return result{a.run(t.Context(), args), out.String(), errs.String()}
}

func runWith(ctx context.Context, env map[string]string, args ...string) result {
	out, errs := newLocked(), newLocked()
	code := run(ctx, args, strings.NewReader(""), out, errs, func(k string) string { return env[k] })
	return result{code, out.String(), errs.String()}
}

func runCtl(t *testing.T, args ...string) result {
	t.Helper()
	return runWith(t.Context(), map[string]string{"HOME": t.TempDir()}, args...)
}
