package main

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/client"
	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

func (a *app) describeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "describe GROUP|SITE|REF",
		Short: "Tell all that is known of a group, a site or a ref",
		Long: `Tells, in one page, all that the agent's group knows of
  a group: its state, root, position, parents, subscription and freeze, who has a vote, its members with registry, disk,
    certificate and version, what is being fetched, the groups attached to it, and the rollouts that have it in a wave;
  a site: the same of one, with each ref that it does not show as it should, what keeps it, and what to do;
  a ref: its record (digest, who published it, when and where, what it showed before, signatures), size and platforms,
    its policy, how it is at each site, its conflicts and the rollouts that move it;
and the latest events about it, asked of the agents that it concerns.

A name that may be several things is written group/NAME, site/NAME or ref/NAME. Any agent tells of what is in and
below its group, also while headquarters is out of reach.`,
		Example: `  fanoutctl describe hq/guangdong
  fanoutctl describe gd-a
  fanoutctl describe team/app:1.4
  fanoutctl describe site/gd-a -o json | jq '.pending[] | {ref, cause, mend}'`,
		Args:              args(1, 1, "one GROUP, SITE or REF"),
		ValidArgsFunction: a.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.talk(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				r, err := unary(ctx, func(ctx context.Context) (*adminv1.DescribeResponse, error) {
					return c.Describe(ctx, &adminv1.DescribeRequest{Name: args[0]})
				})
				if err != nil {
					return err
				}
				return a.print(view.DescribeOf(r))
			})
		},
	}
}

// completeNames gives groups, sites and refs.
func (a *app) completeNames(cmd *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
	groups, _ := a.completeGroups(cmd, args, start)
	sites, _ := a.completeSites(1)(cmd, args, start)
	refs, _ := a.completeRefs(1)(cmd, args, start)
	return slices.Concat(groups, sites, refs), noFiles
}
