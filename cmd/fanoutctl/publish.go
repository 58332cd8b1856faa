package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/client"
	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// publishAtOnce is how many refs are published at the same time.
const publishAtOnce = 4

func (a *app) publishCommand() *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use:   "publish REF…",
		Short: "Publish what headquarters' registry has under a ref",
		Long: `Publishes what headquarters' registry has under each REF (REPOSITORY:TAG, without a registry's host) and returns when
it is safe: when enough registries of headquarters hold it (publish.copies). It then goes on to every site by
itself; with --wait the command stays until every site shows it, and -o json has a delivery receipt: for each site the
digest that it shows and its state, as of the time in asOf.

Progress goes to stderr, results to stdout, in the order of the refs: with -o json a line for each.

Where TRACEPARENT is set, as by a pipeline that traces itself, the publish is a part of that trace.

With --wait and --timeout: exit code 5 when sites were still on their way as the time ran out, 3 when all sites that
are missing had failed (fanout tries them again, for ever). Nothing is undone in either case.`,
		Example: `  fanoutctl publish team/app:1.4
  fanoutctl publish team/app:1.4 team/web:2.0 --wait --timeout 30m
  fanoutctl publish team/app:1.4 -o json | jq -r .digest`,
		Args:              args(1, most, "at least one REF"),
		ValidArgsFunction: a.completeRefs(most),
		RunE: func(cmd *cobra.Command, args []string) error {
			var refs []string
			for _, arg := range args {
				ref, err := parseRef(arg)
				if err != nil {
					return err
				}
				if !slices.Contains(refs, ref) {
					refs = append(refs, ref)
				}
			}
			return a.publish(cmd.Context(), refs, wait)
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "stay until every site shows it")
	return cmd
}

// parseRef gives REPOSITORY:TAG, or says what is wrong with it as an error of usage.
func parseRef(s string) (string, error) {
	repository, tag, err := registry.ParseRef(s)
	if err != nil {
		return "", &client.Problem{What: err.Error(), Todo: "A ref is the same at every site: write REPOSITORY:TAG, such as team/app:1.4.", Usage: true, Err: err}
	}
	return repository + ":" + tag, nil
}

// published is what became of one ref.
type published struct {
	last  *adminv1.PublishResponse // nil: nothing was heard
	sites *[]view.Site
	asOf  time.Time // of the sites
	err   error
}

func (a *app) publish(ctx context.Context, refs []string, wait bool) error {
	results := make([]published, len(refs))
	err := a.talk(ctx, func(ctx context.Context, c *client.Client) error {
		progress := a.newProgress(refs, wait)
		out := &inOrder{emit: func(i int) error { return a.printPublished(refs[i], results[i]) }, ready: make([]bool, len(refs))}
		var g errgroup.Group
		g.SetLimit(publishAtOnce)
		for i, ref := range refs {
			g.Go(func() error {
				results[i] = a.publishOne(ctx, c, ref, wait, func(r *adminv1.PublishResponse) { progress.update(i, r) }, func(text string) { progress.note(i, text) })
				if progress.board != nil {
					return nil // the board has the terminal until all is over
				}
				return out.done(i)
			})
		}
		err := g.Wait()
		progress.close()
		for i := range refs {
			if err == nil {
				err = out.done(i)
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		if slices.ContainsFunc(results, func(p published) bool { return p.last.GetRevision() > 0 }) {
			fmt.Fprintln(a.stderr, "What was published goes on to every site.")
		}
		return ctx.Err()
	}
	return verdict(refs, results, wait)
}

// publishOne follows one publish. A broken connection is mended only when the record exists: to publish the same again is harmless, and the wait goes on.
func (a *app) publishOne(ctx context.Context, c *client.Client, ref string, wait bool, update func(*adminv1.PublishResponse), note func(string)) (p published) {
	whole := ctx
	if deadline, ok := ctx.Deadline(); ok && wait {
		// A last part of the time is kept for asking which sites were missing.
		left := time.Until(deadline)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, left-min(left/5, 2*time.Second), errTimeout)
		defer cancel()
	}
	came := false
	p.err = settle(ctx, c, a.persist(ctx, c, &came, note, func(ctx context.Context) error {
		err := each(ctx, 0, func(ctx context.Context) (grpc.ServerStreamingClient[adminv1.PublishResponse], error) {
			return c.Publish(a.traced(ctx), &adminv1.PublishRequest{Ref: ref, Wait: wait})
		}, func(r *adminv1.PublishResponse) error {
			came = wait && r.GetRevision() > 0
			p.last = r
			update(r)
			return nil
		})
		if err == nil && !p.last.GetDone() {
			err = errors.New("the agent ended its answer before the publish was done; see: fanoutctl where " + ref)
		}
		return err
	}))
	if !wait || p.last.GetRevision() == 0 {
		return p
	}
	if p.err == nil && len(p.last.GetWhere()) > 0 {
		sites := view.SitesOf(p.last.GetWhere())
		p.sites, p.asOf = &sites, time.Now()
		return p
	}
	if p.err == nil || errors.Is(p.err, errTimeout) {
		p.sites, p.asOf = askWhere(whole, c, ref), time.Now()
	}
	return p
}

// askWhere gives nil where that cannot be had; it is an addition only.
func askWhere(ctx context.Context, c *client.Client, ref string) *[]view.Site {
	var sites *[]view.Site
	err := each(ctx, silence, func(ctx context.Context) (grpc.ServerStreamingClient[adminv1.WhereResponse], error) {
		return c.Where(ctx, &adminv1.WhereRequest{Ref: ref})
	}, func(r *adminv1.WhereResponse) error {
		if s := view.SitesOf(r.GetSites()); r.GetNoRoot() == "" {
			sites = &s
		}
		return nil
	})
	if err != nil {
		return nil
	}
	return sites
}

func (a *app) printPublished(ref string, p published) error {
	if p.last.GetRevision() == 0 {
		return nil // not published; the error says why
	}
	doc := view.PublishOf(p.last, p.sites)
	doc.Ref = ref
	if p.sites != nil {
		asOf := p.asOf.UTC().Truncate(time.Second)
		doc.AsOf = &asOf
	}
	if err := a.printLine(doc); err != nil {
		return err
	}
	if a.flags.output == "table" && p.sites != nil && missing(*p.sites) > 0 {
		_, err := fmt.Fprintln(a.stdout, "\n"+view.SitesText(a.style(), *p.sites, nil))
		return err
	}
	return nil
}

// missing counts the sites that want a ref and do not show it.
func missing(sites []view.Site) (n int) {
	for _, s := range sites {
		if s.State != "delivered" && s.State != "unsubscribed" {
			n++
		}
	}
	return n
}

// verdict makes one exit code of all refs: a failure counts most, then time, then missing sites.
func verdict(refs []string, results []published, wait bool) error {
	var lines []string
	worst := &exitError{code: exitOK}
	order := []int{exitOK, exitPartial, exitTimeout, exitFailed}
	for i, p := range results {
		code, text, todo := p.verdict(refs[i], wait)
		if code == exitOK {
			continue
		}
		lines = append(lines, refs[i]+": "+text)
		if slices.Index(order, code) > slices.Index(order, worst.code) {
			worst.code, worst.todo = code, todo
		}
	}
	if worst.code == exitOK {
		return nil
	}
	worst.text = strings.Join(lines, "\n")
	return worst
}

func (p published) verdict(ref string, wait bool) (code int, text, todo string) {
	t := tally{
		total: int(p.last.GetSites()), delivered: int(p.last.GetDelivered()), failed: int(p.last.GetFailed()), left: int(p.last.GetLeft()),
	}
	if p.sites != nil {
		t = tallyOf(*p.sites)
	}
	where := "See why with: fanoutctl where " + ref
	some := fmt.Sprintf("published as revision %d and delivered to %d of %s; ", p.last.GetRevision(), t.delivered, view.Plural(t.total, "site"))
	switch {
	case p.err == nil && wait && t.delivered < t.total:
		return exitPartial, some + t.rest(), where
	case p.err == nil:
		return exitOK, "", ""
	case !errors.Is(p.err, errTimeout):
		var problem *client.Problem
		if errors.As(p.err, &problem) {
			todo = problem.Todo
		}
		text := p.err.Error()
		if p.last.GetRevision() > 0 {
			text = fmt.Sprintf("published as revision %d, but: %s", p.last.GetRevision(), text)
		}
		return exitFailed, text, todo
	case p.last.GetRevision() == 0:
		return exitTimeout, "timed out before it was published", "It may still be: fanoutctl where " + ref
	case !wait:
		return exitTimeout, fmt.Sprintf("published as revision %d, but timed out with %d of %s at headquarters", p.last.GetRevision(), p.last.GetCopies(), view.Plural(int(p.last.GetCopiesWanted()), "copy", "copies")), where
	case t.failed > 0 && t.delivered+t.failed+t.left+t.held >= t.total:
		return exitPartial, some + t.rest() + "; what failed is tried again", where
	case t.total > 0 && t.delivered >= t.total:
		return exitOK, "", "" // the last site came in while we asked
	}
	return exitTimeout, "timed out: " + some + "the others are on their way", where
}

// inOrder emits results in their order, each as soon as it and all before it are there.
type inOrder struct {
	emit  func(int) error
	mu    sync.Mutex
	ready []bool
	next  int
}

func (o *inOrder) done(i int) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ready[i] = true
	for o.next < len(o.ready) && o.ready[o.next] {
		o.next++
		if err := o.emit(o.next - 1); err != nil {
			return err
		}
	}
	return nil
}
