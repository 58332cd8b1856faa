package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/client"
	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/screen"
	"github.com/fanout-io/fanout/docs/schemas"
	"github.com/fanout-io/fanout/pkg/plan"
	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// promotion is what a promote was told.
type promotion struct {
	req               *adminv1.StartRolloutRequest
	plan              string
	yes, wait, schema bool
}

func (a *app) promoteCommand() *cobra.Command {
	p := &promotion{req: &adminv1.StartRolloutRequest{}}
	cmd := &cobra.Command{
		Use:   "promote REF… [--as TAG | --to REPOSITORY] [--plan FILE]",
		Short: "Let tags move, wave by wave",
		Long: `Lets each REF (REPOSITORY:TAG, without a registry's host) move to what headquarters shows under it, or to the digest
that is written after it (REPOSITORY:TAG@sha256:…), in the waves of a plan. Several refs move together. With --as
another tag moves there, with --to the tag moves in another repository; no content is copied for that.

Before anything moves promote shows the waves with their groups, what has still to be fetched there and how long that
takes, what the sites show now, and which are not well. On a terminal it then asks; elsewhere it wants --yes. What is
started is exactly what was shown, also when somebody pushes in between.

With --wait it stays and follows the rollout, as "fanoutctl rollout watch" does. See docs/promote.md for plans.
Where TRACEPARENT is set, as by a pipeline that traces itself, the promotion is a part of that trace.

Exit codes with --wait: 0 succeeded, 1 failed, aborted or rolled back, 3 succeeded, but not at groups that were
offline, skipped or failed, 5 timed out (--timeout); the rollout goes on.`,
		Example: `  fanoutctl promote prod/web:2.0 --plan prod.yaml --dry-run
  fanoutctl promote prod/web:2.0 prod/api:2.0 --plan prod.yaml --yes --wait
  fanoutctl promote team/web:2.0 --as stable
  fanoutctl promote --schema > plan.schema.json`,
		Args: func(cmd *cobra.Command, given []string) error {
			if p.schema {
				return noArgs(cmd, given)
			}
			return args(1, most, "at least one REF")(cmd, given)
		},
		ValidArgsFunction: a.completeRefs(most),
		RunE: func(cmd *cobra.Command, args []string) error {
			if p.schema {
				_, err := io.WriteString(a.stdout, schemas.Plan)
				return err
			}
			if err := a.preparePromotion(p, args); err != nil {
				return err
			}
			return a.promote(cmd.Context(), p)
		},
	}
	f := cmd.Flags()
	f.StringVar(&p.req.As, "as", "", "tag that moves, instead of the one of REF")
	f.StringVar(&p.req.To, "to", "", "repository in which the tag moves, instead of the one of REF")
	f.StringVar(&p.plan, "plan", "", "file with the plan, - for stdin (without: one wave with every group)")
	f.BoolVar(&p.req.DryRun, "dry-run", false, "show what would happen, and start nothing")
	f.BoolVar(&p.yes, "yes", false, "start it without asking")
	f.BoolVar(&p.wait, "wait", false, "stay until the rollout has ended")
	f.BoolVar(&p.req.Supersede, "supersede", false, "end other rollouts of these refs, where they are")
	f.BoolVar(&p.schema, "schema", false, "print the JSON Schema of plans")
	cmd.MarkFlagsMutuallyExclusive("as", "to")
	a.completeFlag(cmd, "to", a.completeRepositories)
	a.completeFlag(cmd, "plan", completeFiles)
	return cmd
}

// preparePromotion judges what can be judged without an agent.
func (a *app) preparePromotion(p *promotion, args []string) error {
	for _, arg := range args {
		ref, err := parseRelease(arg)
		if err != nil {
			return err
		}
		if !slices.Contains(p.req.Refs, ref) {
			p.req.Refs = append(p.req.Refs, ref)
		}
	}
	if p.req.GetAs() != "" && !registry.ValidTag(p.req.GetAs()) {
		return wrongUsage(fmt.Sprintf("--as %q is not a tag (letters, digits, and . _ -; at most 128)", p.req.GetAs()), "")
	}
	if to := p.req.GetTo(); to != "" {
		if _, _, err := registry.ParseRef(to + ":x"); err != nil {
			return wrongUsage(fmt.Sprintf("--to %q is not a repository", to), "Write a repository without a tag, such as prod/web.")
		}
	}
	if !p.req.GetDryRun() && !p.yes && !a.asks {
		return wrongUsage("nobody can be asked here: this is not a terminal", "Look at it with --dry-run, then start it with --yes.")
	}
	if p.plan == "-" && !p.req.GetDryRun() && !p.yes {
		return wrongUsage("the plan comes from stdin, so nobody can be asked there", "Look at it with --dry-run, then start it with --yes.")
	}
	if p.plan == "" {
		return nil
	}
	data, err := a.readInput(p.plan)
	if err != nil {
		return err
	}
	p.req.Plan, p.req.PlanName = data, p.plan
	if p.plan == "-" {
		p.req.PlanName = "stdin"
	}
	// The agent judges it too; here all that is wrong is said with nobody asked.
	_, err = plan.Parse(p.req.PlanName, data, time.LoadLocation)
	return err
}

func wrongUsage(what, todo string) error {
	return &exitError{code: exitUsage, text: what, todo: todo}
}

// parseRelease gives REPOSITORY:TAG, with @DIGEST where one was written.
func parseRelease(s string) (string, error) {
	name, digest, pinned := strings.Cut(s, "@")
	ref, err := parseRef(name)
	if err != nil || !pinned {
		return ref, err
	}
	if !registry.ValidDigest(digest) {
		return "", wrongUsage(fmt.Sprintf("%q: %q is not a digest (sha256: and 64 hexadecimal digits)", s, digest), "")
	}
	return ref + "@" + digest, nil
}

// readInput reads a file that a person wrote; - is stdin.
func (a *app) readInput(name string) ([]byte, error) {
	var in io.Reader = a.stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, plan.MaxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if len(data) > plan.MaxBytes {
		return nil, fmt.Errorf("%s is larger than %s", name, view.Bytes(plan.MaxBytes))
	}
	return data, nil
}

func (a *app) promote(ctx context.Context, p *promotion) error {
	return a.talk(ctx, func(ctx context.Context, c *client.Client) error {
		table := a.flags.output == "table"
		if p.req.GetDryRun() || !p.yes || table {
			look, err := a.startRollout(ctx, c, &adminv1.StartRolloutRequest{
				Refs: p.req.GetRefs(), As: p.req.GetAs(), To: p.req.GetTo(), Plan: p.req.GetPlan(), PlanName: p.req.GetPlanName(), Supersede: p.req.GetSupersede(), DryRun: true,
			})
			if err != nil {
				return err
			}
			now := time.Now()
			doc := view.PromotionOf(look, true, &now)
			switch {
			case p.req.GetDryRun():
				return a.print(doc)
			case table:
				err = a.print(doc)
			default: // stdout is for the document of what is started
				_, err = io.WriteString(a.stderr, doc.Text(view.Style{Color: a.err.Color}))
			}
			if err != nil {
				return err
			}
			if !p.yes {
				if err := a.confirm(ctx, "Start it?", "nothing was started"); err != nil {
					return err
				}
			}
			pin(p.req, look.GetRollout())
		}
		r, err := a.startRollout(ctx, c, p.req)
		if client.Lost(err) {
			return &client.Problem{What: c.Explain(err).Error(), Todo: "It may have been started all the same; see: fanoutctl rollout list", Err: err}
		}
		if err != nil {
			return err
		}
		now := time.Now()
		doc := view.PromotionOf(r, false, &now)
		if !p.wait {
			return a.print(doc)
		}
		fmt.Fprintf(a.stderr, "Rollout %s has started.\n", screen.Clean(doc.ID))
		return a.follow(ctx, c, doc.ID, false)
	})
}

func (a *app) startRollout(ctx context.Context, c *client.Client, req *adminv1.StartRolloutRequest) (*adminv1.StartRolloutResponse, error) {
	return unary(ctx, func(ctx context.Context) (*adminv1.StartRolloutResponse, error) {
		return c.StartRollout(a.traced(ctx), req)
	})
}

// pin names the digests that were shown, so that a push in between changes nothing.
func pin(req *adminv1.StartRolloutRequest, shown *catalogv1.Rollout) {
	for i, ref := range req.GetRefs() {
		name, _, pinned := strings.Cut(ref, "@")
		for _, it := range shown.GetItems() {
			if !pinned && it.GetSourceRepository()+":"+it.GetSourceTag() == name && it.GetTarget().GetDigest() != "" {
				req.Refs[i] = name + "@" + it.GetTarget().GetDigest()
			}
		}
	}
}

// errNo is that somebody who was asked did not say yes.
var errNo = errors.New("not confirmed")

// confirm asks on the terminal.
func (a *app) confirm(ctx context.Context, question, otherwise string) error {
	fmt.Fprintf(a.stderr, "\n%s [y/N] ", question)
	answer := make(chan string, 1)
	go func() { // a read of a terminal can't be broken off; the process ends soon where nobody waits for it any more
		var line []byte
		for b := make([]byte, 1); ; {
			n, err := a.stdin.Read(b)
			if n > 0 && b[0] != '\n' && len(line) < 100 {
				line = append(line, b[0])
			}
			if err != nil || n > 0 && b[0] == '\n' {
				break
			}
		}
		answer <- strings.ToLower(strings.TrimSpace(string(line)))
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(a.stderr)
		return context.Cause(ctx)
	case word := <-answer:
		if word == "y" || word == "yes" {
			return nil
		}
	}
	return &client.Problem{What: otherwise, Err: errNo}
}
