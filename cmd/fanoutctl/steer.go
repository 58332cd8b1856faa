package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/client"
	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/screen"
	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// steer is a word that people may say of a rollout.
type steer struct {
	verb, short, long string
	group             bool   // of one of its groups
	asks              string // what is asked before; empty: nothing
	which             func(*catalogv1.Rollout) bool
}

var steering = []steer{
	{verb: catalog.SteerPause, short: "Stop it: no more tags move until it is resumed", which: inPhase(catalog.RolloutPaused, false),
		long: `No group gets the release that has not got it, from within a second on. Groups that are under way are done.`},
	{verb: catalog.SteerResume, short: "Let a paused rollout go on", which: inPhase(catalog.RolloutPaused, true),
		long: `The rollout goes on where it was. Failures for which it was paused are accepted; a gate that failed is tried again.`},
	{verb: catalog.SteerApprove, short: "Say yes to a gate that waits for it", which: inPhase(catalog.RolloutAwaitingApproval, true),
		long: `Passes the gate before or after the wave that waits for an approval.`},
	{verb: catalog.SteerReject, short: "Say no to a gate that waits for an approval", which: inPhase(catalog.RolloutAwaitingApproval, true),
		long: `The gate has failed, and what the plan says under onFailure is done: pause, abort or rollback.`},
	{verb: catalog.SteerSkip, short: "Leave a group out", group: true, which: going,
		long: `The group is not waited for, and gets no release if it has none yet. One that was released to it stays: it gets it when it can.`},
	{verb: catalog.SteerRetry, short: "Try a group again that failed or was skipped", group: true, which: going,
		long: `The group is tried again, as long as its wave is open; the wave soaks again afterwards. A skipped group whose wave is
still to come is taken in again.`},
	{verb: catalog.SteerAbort, short: "End it: what is released stays, and no more is", which: going, asks: "Abort rollout %s? What is released stays.",
		long: `The rollout ends. Groups that have the release keep it, the others stay as they are, and the next promotion goes on from that.`},
	{verb: catalog.SteerRollback, short: "Take it back: every group shows again what it did", asks: "Roll back rollout %s? Every group shows again what it did before.",
		which: func(r *catalogv1.Rollout) bool { return !r.GetSettled() && r.GetPhase() != catalog.RolloutRollingBack },
		long: `Every group that was released shows again what it showed before, newest wave first. No content is moved, as all of it is
still there. A tag that was new goes away. A rollout that has ended can be rolled back for seven days, unless what it
moved has changed since.`},
}

func inPhase(phase string, in bool) func(*catalogv1.Rollout) bool {
	return func(r *catalogv1.Rollout) bool { return going(r) && (r.GetPhase() == phase) == in }
}

func (a *app) steerCommand(s steer) *cobra.Command {
	req := &adminv1.SteerRolloutRequest{Verb: s.verb}
	var yes bool
	use, what, n, example := s.verb+" ID", "the ID of a rollout", 1, "7f3a9c"
	if s.group {
		use, what, n, example = use+" GROUP", "the ID of a rollout and a GROUP", 2, "7f3a9c hq/guangdong"
	}
	cmd := &cobra.Command{
		Use: use, Short: s.short, Long: s.long,
		Example:           fmt.Sprintf("  fanoutctl rollout %s %s\n  fanoutctl rollout %s %s --reason \"seen on the dashboard\"", s.verb, example, s.verb, example),
		Args:              args(n, n, what),
		ValidArgsFunction: a.completeRollouts(s.which, s.group),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Id = args[0]
			if s.group {
				req.Group = args[1]
			}
			if s.asks != "" && !yes && !a.asks {
				return wrongUsage("nobody can be asked here: this is not a terminal", "Add --yes to "+s.verb+" it.")
			}
			return a.talk(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				if s.asks != "" && !yes {
					if err := a.confirmSteer(ctx, c, s, req.GetId()); err != nil {
						return err
					}
				}
				return a.steer(ctx, c, req)
			})
		},
	}
	cmd.Flags().StringVar(&req.Reason, "reason", "", "why, for those who look at it later")
	help := "nothing is asked; for scripts that say it always"
	if s.asks != "" {
		help = "do it without asking"
	}
	cmd.Flags().BoolVar(&yes, "yes", false, help)
	return cmd
}

// confirmSteer shows what is meant, and asks.
func (a *app) confirmSteer(ctx context.Context, c *client.Client, s steer, id string) error {
	r, err := rollouts(ctx, c, id)
	if err != nil {
		return err
	}
	doc, err := oneRollout(r, id)
	if err != nil {
		return err
	}
	fmt.Fprint(a.stderr, doc.Text(view.Style{Color: a.err.Color}))
	return a.confirm(ctx, fmt.Sprintf(s.asks, id), "nothing was changed")
}

func (a *app) steer(ctx context.Context, c *client.Client, req *adminv1.SteerRolloutRequest) error {
	r, err := unary(ctx, func(ctx context.Context) (*adminv1.SteerRolloutResponse, error) { return c.SteerRollout(ctx, req) })
	if err != nil {
		return err
	}
	if r.GetUnchanged() != "" {
		fmt.Fprintln(a.stderr, "Nothing was changed: "+screen.Clean(r.GetUnchanged())+".")
	}
	now := time.Now()
	return a.print(view.RolloutOf(r.GetRollout(), nil, &now))
}
