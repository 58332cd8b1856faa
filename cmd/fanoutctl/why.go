package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/client"
	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// topEvery is how often a watch of the transfers asks again.
const topEvery = time.Second

func (a *app) whyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "why REF SITE",
		Short: "Say why a ref is or is not at a site, hop by hop, and what to do",
		Long: `Says in one sentence whether REF (REPOSITORY:TAG) is at SITE and, where it is not, what keeps it; then the way from the
agent's group down to the site: at each group its root, what it is attached to, its revision, whether the content is
there, the blob that is waited for and from whom, the last error in the registry's own words, attempts and the next
one; then what a person does about it. Each group on the way is asked now; what can't be asked is told as it was last
reported. At an agent of headquarters the way is whole; elsewhere it begins at the agent's group.

Exit codes: 0 answered, whatever the answer; 1 the ref or the site is not known (the nearest names are told).`,
		Example: `  fanoutctl why team/app:1.4 sz-a
  fanoutctl why team/app:1.4 sz-a -o json | jq '{answer, mend}'`,
		Args: args(2, 2, "a REF and a SITE"),
		ValidArgsFunction: func(cmd *cobra.Command, given []string, start string) ([]string, cobra.ShellCompDirective) {
			if len(given) == 1 {
				return a.completeSites(2)(cmd, given, start)
			}
			return a.completeRefs(1)(cmd, given, start)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := parseRef(args[0])
			if err != nil {
				return err
			}
			return a.talk(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				r, err := unary(ctx, func(ctx context.Context) (*adminv1.WhyResponse, error) {
					return c.Why(ctx, &adminv1.WhyRequest{Ref: ref, Site: args[1]})
				})
				if err != nil {
					return err
				}
				return a.print(view.WhyOf(r))
			})
		},
	}
}

func (a *app) topCommand() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show what is on its way now: blobs, from where to where, how fast",
		Long: `Shows the blobs that are arriving at the agent's group and below it, asked of the agents now, and for each link the sum.
On a terminal the picture is drawn again every second until Ctrl-C; elsewhere it is one snapshot, unless --watch is
given. An agent lists 100 blobs at most; who did not answer is named.`,
		Example: `  fanoutctl top
  fanoutctl top --watch=false
  fanoutctl top -o json | jq '.links[] | {from, to, rate}'`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			again := watch
			if !cmd.Flags().Changed("watch") {
				again = a.out.Terminal && a.flags.output == "table"
			}
			return a.pictures(cmd.Context(), again, func(ctx context.Context, c *client.Client, show func(texter) error) error {
				return a.top(ctx, c, again, show)
			})
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "draw it again every second (default on a terminal)")
	return cmd
}

// top shows one picture, or one after the other.
func (a *app) top(ctx context.Context, c *client.Client, again bool, show func(texter) error) error {
	for {
		r, err := unary(ctx, func(ctx context.Context) (*adminv1.TopResponse, error) { return c.Top(ctx, &adminv1.TopRequest{}) })
		if err != nil {
			return err
		}
		if err := show(view.TopOf(r)); err != nil || !again {
			return err
		}
		t := time.NewTimer(topEvery)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-t.C:
		}
	}
}
