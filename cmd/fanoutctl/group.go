package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/client"
	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

func (a *app) groupCommand() *cobra.Command {
	return parent(&cobra.Command{
		Use:     "group",
		Short:   "Groups of the fabric",
		Long:    `Commands about whole groups. Members of a group are added and removed with "fanoutctl member".`,
		Example: `  fanoutctl group forget hq/guangdong/shenzhen`,
	}, a.groupForgetCommand())
}

func (a *app) groupForgetCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "forget GROUP",
		Short: "Forget a group that went away for good",
		Long: `Headquarters, and the groups between, remember every group that was ever attached: it is shown as unreachable, waited
for, and keeps deletions on record. This forgets GROUP and all groups below it. What rollouts still wait for there is
skipped. Its registries keep what they have. It is refused while one of them is attached; a group that comes back is
attached as a new one.

Ask an agent of headquarters. On a terminal the command shows what it would forget and asks; elsewhere it wants --yes.`,
		Example: `  fanoutctl group forget hq/guangdong/shenzhen
  fanoutctl group forget hq/hunan --yes`,
		Args:              args(1, 1, "one GROUP"),
		ValidArgsFunction: a.completeGroups,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.forgetGroup(cmd.Context(), args[0], yes)
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "forget it without asking")
	return cmd
}

func (a *app) forgetGroup(ctx context.Context, group string, yes bool) error {
	if !yes && !a.asks {
		return wrongUsage("nobody can be asked here: this is not a terminal", "Forget it without being asked with --yes.")
	}
	return a.talk(ctx, func(ctx context.Context, c *client.Client) error {
		forget := func(dry bool) (view.ForgottenGroups, error) {
			r, err := unary(ctx, func(ctx context.Context) (*adminv1.ForgetGroupResponse, error) {
				return c.ForgetGroup(ctx, &adminv1.ForgetGroupRequest{Group: group, DryRun: dry})
			})
			return view.ForgottenOf(r, dry), err
		}
		if !yes {
			would, err := forget(true)
			if err != nil {
				return err
			}
			if _, err := fmt.Fprint(a.stderr, would.Text(view.Style{Color: a.err.Color})); err != nil {
				return err
			}
			if err := a.confirm(ctx, "Forget it?", "nothing was forgotten"); err != nil {
				return err
			}
		}
		doc, err := forget(false)
		if err != nil {
			return err
		}
		return a.print(doc)
	})
}
