package integration

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

func promotionAt(t *testing.T, hq ...*site) *promotion {
	return &promotion{t: t, hq: hq, first: map[string]time.Time{}}
}

// staged has all that is pushed below prod/ from now on delivered as content only.
func (p *promotion) staged(more ...*catalogv1.Policy) {
	p.t.Helper()
	p.ask("policies", func(ctx context.Context, c adminv1.AdminServiceClient) error {
		_, err := c.SetPolicies(ctx, &adminv1.SetPoliciesRequest{Policies: append([]*catalogv1.Policy{{Name: "releases", Repositories: []string{"prod/**"}, Delivery: "staged"}}, more...)})
		return err
	})
}

// planOf is a plan by its waves, each a line of YAML.
func planOf(waves ...string) string {
	return "apiVersion: fanout/v1\nkind: Plan\nmetadata: {name: plan}\nspec:\n  waves:\n  - " + strings.Join(waves, "\n  - ") + "\n"
}

// begin starts a rollout. An answer that was lost is none that was no. A ref with a digest is one that was just pushed: it is asked for until it is published.
func (p *promotion) begin(plan, as string, refs ...string) {
	p.t.Helper()
	p.ask("the start", func(ctx context.Context, c adminv1.AdminServiceClient) error {
		got, err := c.StartRollout(ctx, &adminv1.StartRolloutRequest{Refs: refs, As: as, Plan: []byte(plan), PlanName: "plan.yaml"})
		if p.id = got.GetRollout().GetId(); status.Code(err) != codes.FailedPrecondition {
			return err
		}
		stream, lerr := c.Rollouts(ctx, &adminv1.RolloutsRequest{})
		if lerr != nil {
			return lerr
		}
		list, lerr := stream.Recv()
		if lerr != nil {
			return lerr
		}
		for _, r := range list.GetRollouts() {
			if it := r.GetItems()[0]; strings.HasPrefix(refs[0]+"@", it.GetRepository()+":"+it.GetTag()+"@") && r.GetEnded() == nil {
				p.id = r.GetId()
				return nil
			}
		}
		return err
	})
}

// steer gives a person's word, again until it was heard. What was obeyed already is no error.
func (p *promotion) steer(verb string) {
	p.t.Helper()
	p.ask(verb, func(ctx context.Context, c adminv1.AdminServiceClient) error {
		_, err := c.SteerRollout(ctx, &adminv1.SteerRolloutRequest{Id: p.id, Verb: verb, Reason: "by the test"})
		if verb == "approve" && status.Code(err) == codes.InvalidArgument && strings.Contains(err.Error(), "waits for no approval") {
			return nil // an earlier question did it
		}
		return err
	})
}

// group waits until a group is in a phase, for a reason with all the words.
func (p *promotion) group(group, phase string, words ...string) {
	p.t.Helper()
	p.ask(group+" is "+phase, func(ctx context.Context, c adminv1.AdminServiceClient) error {
		r, _ := rollout(ctx, c, p.id)
		for _, g := range r.GetGroups() {
			if g.GetGroup() == group {
				if g.GetPhase() != phase {
					return fmt.Errorf("%v; the rollout is %s: %s", g, r.GetPhase(), r.GetReason())
				}
				return says(g.GetReason(), words...)
			}
		}
		return fmt.Errorf("it is not in %v", r.GetGroups())
	})
}

// shown is the document of `rollout show`, as far as tests read it.
type shownRollout struct {
	Phase, Reason string
	Waves         []struct {
		Name, Phase, Reason string
		Groups              []struct{ Group, Phase, Reason string }
		Gates               []struct {
			When, Kind, Result, URL, Detail string
			Attempts                        int
			TookSeconds, WaitedSeconds      float64
		}
		SoakedSeconds float64
	}
	Sites []struct{ Site, Ref, State, Digest string }
	Steps []struct{ Actor, Text string }
}

func (p *promotion) document() (r shownRollout) {
	p.t.Helper()
	p.hq[0].document(&r, "rollout", "show", p.id)
	return r
}

// watched ends with what `rollout watch` ends with; the rollout has ended.
func (p *promotion) watched(code int) {
	p.t.Helper()
	if out, got := p.hq[0].ctl("rollout", "watch", p.id); got != code {
		p.t.Errorf("rollout watch: exit %d, want %d: %s", got, code, out)
	}
}

// never fails the test when a group of a wave that has not opened shows the release, by what was polled.
func (p *promotion) never(names ...string) {
	p.t.Helper()
	released := p.released()
	for _, n := range names {
		if released[n] {
			p.t.Errorf("%s has shown the release", n)
		}
	}
}

// trunk is a link that counts in both directions and can be held up or cut.
type trunk struct {
	addr     string
	up, down atomic.Int64 // bytes from the dialler, and towards it

	mu    sync.Mutex
	flow  *sync.Cond
	held  bool
	cut   bool
	conns map[net.Conn]bool
}

// wired is for spec.laid: children and fellows reach the site through a trunk.
func wired(t testing.TB, w *trunk) func(*site) {
	return func(s *site) {
		w.flow, w.conns = sync.NewCond(&w.mu), map[net.Conn]bool{}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		w.addr, s.gate = l.Addr().String(), l.Addr().String()
		t.Cleanup(func() { _ = l.Close(); w.sever() })
		to := s.fabric
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go w.pass(c, to)
			}
		}()
	}
}

func (w *trunk) pass(c net.Conn, to string) {
	defer c.Close()
	far, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer far.Close()
	w.mu.Lock()
	cut := w.cut
	if !cut {
		w.conns[c], w.conns[far] = true, true
	}
	w.mu.Unlock()
	if cut {
		return
	}
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.conns, c)
		delete(w.conns, far)
	}()
	go func() {
		_, _ = io.Copy(tally{far, w, &w.up}, c)
		_ = far.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(tally{c, w, &w.down}, far)
}

// tally writes to one end of a trunk.
type tally struct {
	io.Writer
	w *trunk
	n *atomic.Int64
}

func (t tally) Write(b []byte) (int, error) {
	t.w.mu.Lock()
	for t.w.held && !t.w.cut {
		t.w.flow.Wait()
	}
	t.w.mu.Unlock()
	n, err := t.Writer.Write(b)
	t.n.Add(int64(n))
	return n, err
}

// hold lets nothing pass, and breaks no connection.
func (w *trunk) hold() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held = true
}

// sever ends all connections, and lets none come about until it is mended.
func (w *trunk) sever() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut, w.held = true, false
	for c := range w.conns {
		_ = c.Close()
	}
	w.flow.Broadcast()
}

func (w *trunk) mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut, w.held = false, false
	w.flow.Broadcast()
}
