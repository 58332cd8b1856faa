package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"

	"github.com/fanout-io/fanout/pkg/registry"
)

// checkUnknown is of what can't be found out from here.
const checkUnknown = "unknown"

func unknown(name, detail string) check { return check{name, checkUnknown, detail, ""} }

const (
	// readyTimeout bounds what a site does to see whether it is ready, and readyPatience what the root waits for one; both are well within what fanoutctl takes for silence.
	readyTimeout  = 8 * time.Second
	readyPatience = 10 * time.Second
	// readyAll is how long the root asks sites at all, and readyAtOnce how many at a time.
	readyAll    = 20 * time.Second
	readyAtOnce = 32
)

// Ready implements adminv1.AdminServiceServer.
func (s *admin) Ready(ctx context.Context, req *adminv1.ReadyRequest) (*adminv1.ReadyResponse, error) {
	actor, err := s.actor(ctx)
	if err != nil {
		return nil, err
	}
	if req.GetSite() == "" || req.GetSite() == s.a.cfg.Site {
		return s.a.readiness(ctx, req.GetNeeds()), nil
	}
	root, err := s.rootOnce(ctx)
	if err != nil {
		return nil, err
	}
	if root != nil {
		return root.Ready(onBehalf(ctx, actor), req)
	}
	client, err := s.a.reach(ctx, req.GetSite())
	if err != nil {
		return nil, err
	}
	return client.Ready(onBehalf(ctx, actor), req)
}

// Ready implements adminv1.AdminServiceServer.
func (x aboveAdmin) Ready(ctx context.Context, req *adminv1.ReadyRequest) (*adminv1.ReadyResponse, error) {
	return x.s.Ready(ctx, req)
}

// readiness looks whether this site could take in content now.
func (a *Agent) readiness(ctx context.Context, needs []*adminv1.Need) *adminv1.ReadyResponse {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	r := &adminv1.ReadyResponse{Site: a.cfg.Site, Group: a.cfg.Group}
	if a.registry == nil {
		return r // a witness takes in nothing
	}
	r.Rate = a.fetcher.LinkRate()
	checks := []check{a.registryAnswers(ctx), a.spoolRoom(needs)}
	if a.embedded != nil {
		checks = append(checks, a.registryRoom(needs))
	}
	if a.cfg.Registry.Type == registry.TypeHarbor && checks[0].state == checkOK {
		checks = append(checks, a.quotas(ctx, needs)...)
	}
	for _, c := range checks {
		r.Checks = append(r.Checks, c.message())
	}
	return r
}

// registryAnswers asks the registry itself, whatever was seen of it last.
func (a *Agent) registryAnswers(ctx context.Context) check {
	begin := time.Now()
	err := a.registry.Ping(ctx)
	if err == nil {
		return ok("registry", "it answered in "+time.Since(begin).Round(time.Millisecond).String())
	}
	return a.registryFailed("registry", err, mayLogIn)
}

// spoolRoom compares the largest blob with the spool, through which each has to pass whole.
func (a *Agent) spoolRoom(needs []*adminv1.Need) check {
	const name = "spool"
	largest := int64(0)
	for _, n := range needs {
		if n.GetBytes() > 0 {
			largest = max(largest, n.GetLargest())
		}
	}
	used, limit := a.store.Spool().Usage()
	if largest > limit {
		return fail(name, fmt.Sprintf("a blob of %s is to pass through it, and limits.spool is %s", size(largest), size(limit)), "raise limits.spool above "+size(largest))
	}
	left, known := room(a.cfg.DataDir)
	if !known {
		return unknown(name, "how much room "+a.cfg.DataDir+" has can't be found out")
	}
	// What is in the spool makes way, where nobody is at it.
	words := fmt.Sprintf("%s has %s left, and the spool holds %s", a.cfg.DataDir, size(left), size(used))
	if left+used < largest+leastRoom {
		return fail(name, words+"; a blob of "+size(largest)+" is to pass through it", "make room on the disk of "+a.cfg.DataDir)
	}
	return ok(name, words)
}

// registryRoom compares what would come with the disk of the embedded registry.
func (a *Agent) registryRoom(needs []*adminv1.Need) check {
	const name = "registry's disk"
	want := int64(0)
	for _, n := range needs {
		want += n.GetBytes()
	}
	left, known := room(a.cfg.Registry.Data)
	if !known {
		return unknown(name, "how much room "+a.cfg.Registry.Data+" has can't be found out")
	}
	words := fmt.Sprintf("%s has %s left", a.cfg.Registry.Data, size(left))
	if want > 0 && left < want+leastRoom {
		return fail(name, fmt.Sprintf("%s; %s would come", words, size(want)), "make room on the disk of "+a.cfg.Registry.Data+": at least "+size(want+leastRoom))
	}
	return ok(name, words)
}

// quotas compares what would come with the quotas of Harbor's projects.
func (a *Agent) quotas(ctx context.Context, needs []*adminv1.Need) []check {
	want := map[string]int64{}
	for _, n := range needs {
		project, _, _ := strings.Cut(n.GetRepository(), "/")
		want[project] += max(n.GetCounted(), n.GetBytes())
	}
	projects := slices.Sorted(maps.Keys(want))
	return together(len(projects), func(i int) check { return a.quota(ctx, projects[i], want[projects[i]]) })
}

func (a *Agent) quota(ctx context.Context, project string, want int64) check {
	name := "quota of project " + project
	q, err := a.registry.Quota(ctx, project+"/x")
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return unknown(name, "the project is not there yet; it is made when content comes, with Harbor's quota for new projects")
	case errors.Is(err, registry.ErrDenied), errors.Is(err, registry.ErrUnauthorized):
		return unknown(name, "this account is not told; the right to read quotas is in docs/harbor.md")
	case err != nil:
		return unknown(name, plainWords(err))
	case q.Limit < 0:
		return ok(name, size(q.Used)+" are used; there is no limit")
	}
	words := fmt.Sprintf("%s of %s are used", size(q.Used), size(q.Limit))
	if left := q.Limit - q.Used; want > left {
		return fail(name, fmt.Sprintf("%s, and up to %s would be added", words, size(want)), "raise the quota to "+size(q.Used+want)+", or delete what is not needed there")
	}
	return ok(name, words)
}

func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// askReady asks a site whether it is ready.
func (a *Agent) askReady(ctx context.Context, site, actor string, needs []*adminv1.Need) *adminv1.ReadyResponse {
	if site == a.cfg.Site {
		return a.readiness(ctx, needs)
	}
	ctx, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	client, err := a.reach(ctx, site)
	var r *adminv1.ReadyResponse
	if err == nil {
		r, err = client.Ready(onBehalf(ctx, actor), &adminv1.ReadyRequest{Site: site, Needs: needs})
	}
	var c check
	switch status.Code(err) {
	case codes.OK:
		return r
	case codes.Unimplemented:
		c = unknown("agent", "its agent, or one on the way to it, is of a version that can't be asked whether it is ready")
	case codes.DeadlineExceeded:
		c = fail("agent", fmt.Sprintf("it did not answer within %s", readyPatience), a.absent(site))
	default:
		c = fail("agent", "it can't be asked: "+callWords(err), "start its agent, or mend the network to it; by onOffline it is waited for or passed over")
	}
	return &adminv1.ReadyResponse{Site: site, Checks: []*adminv1.Check{c.message()}}
}
