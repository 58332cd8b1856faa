package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/client"
	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/screen"
	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

func (a *app) treeCommand() *cobra.Command {
	var watch, all bool
	var picture view.Picture
	cmd := &cobra.Command{
		Use:   "tree [GROUP]",
		Short: "Show groups and sites: root, state, lag, bytes left, rate, last contact",
		Long: `Shows every group that the agent knows, with its sites under it, or only GROUP and what is below it.

States: synced, syncing, behind, degraded, conflict, unreachable, witness, unknown. A group that is well above one that
is not says so: "synced, below: unreachable". LAG is in revisions of the catalog, and in the time for which the oldest
record that is lacking has been lacking; ETA is what is left at the rate of now. A certificate that ends within 14 days
and a disk with less than 256 MiB are warned of under REASON; --wide shows them always.

Of a large tree --depth shows so many tiers and --unhealthy what is not well; what is folded is summed up in a line.
What is on its way, or behind for less than a minute, is well; a site that is warned of is not. On a terminal subtrees
that are well are folded where there are more than 60 groups, unless --all is given. A document (-o json) is always
whole. With --watch the picture is drawn again on a terminal; elsewhere a document is printed
for each change. A watch goes on when the agent is restarted; it ends with Ctrl-C or, as done, with --timeout.

Under the table stands what the picture can't show: that this group, or one above it, is attached to no parent, so that
news of headquarters is not known here; or that the agent's group has no root, and only what the agent knows itself is
shown: then the exit code is 1.`,
		Example: `  fanoutctl tree
  fanoutctl tree hq/guangdong --watch
  fanoutctl tree --unhealthy
  fanoutctl tree -o json | jq '.groups[].members[] | select(.state != "synced")'`,
		Args:              args(0, 1, "one group at most"),
		ValidArgsFunction: a.completeGroups,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &adminv1.TreeRequest{Watch: watch}
			if len(args) > 0 {
				req.Group = args[0]
			}
			if picture.Depth < 0 {
				return wrongUsage(fmt.Sprintf("--depth %d: want how many tiers, such as 2; 0 is all", picture.Depth), "")
			}
			noted := false
			return a.pictures(cmd.Context(), watch, func(ctx context.Context, c *client.Client, show func(texter) error) error {
				return each(ctx, limit(watch), func(ctx context.Context) (grpc.ServerStreamingClient[adminv1.TreeResponse], error) {
					return c.Tree(ctx, req)
				}, func(r *adminv1.TreeResponse) error {
					picture.Tree = view.TreeOf(r)
					if top := picture.Groups; !noted && len(top) > 0 && strings.HasPrefix(top[0].Group, req.GetGroup()+"/") {
						noted = true
						fmt.Fprintf(a.stderr, "This agent answers for %s and what is below; of the rest of %s an agent of %s tells.\n", screen.Clean(top[0].Group), screen.Clean(req.GetGroup()), screen.Clean(req.GetGroup()))
					}
					picture.Fold = a.out.Terminal && !all && len(picture.Groups) > foldFrom
					return errors.Join(show(picture), partly(watch, r.GetNoRoot()))
				})
			})
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&watch, "watch", "w", false, "show changes as they happen")
	f.IntVar(&picture.Depth, "depth", 0, "tiers to show (0: all)")
	f.BoolVar(&picture.Unhealthy, "unhealthy", false, "show only what is not well")
	f.BoolVar(&picture.Wide, "wide", false, "show registries, disks, certificates and versions too")
	f.BoolVar(&all, "all", false, "fold nothing")
	return cmd
}

// partly fails a command that could show only what one agent knows itself. A watch goes on: it shows the rest when there is a root again.
func partly(watch bool, noRoot string) error {
	if watch || noRoot == "" {
		return nil
	}
	return errors.New("only what this agent knows itself is shown: " + screen.Clean(noRoot))
}

// foldFrom is from how many groups on a terminal shows what is well as a sum.
const foldFrom = 60

func (a *app) whereCommand() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "where REF",
		Short: "Show one ref at every site: digest, state, why not, bytes left",
		Long: `Shows where REF (REPOSITORY:TAG, without a registry's host) is: at each site its state, the digest that the site
shows and the one that it should show, what is left to fetch, and the reason where it is not there.

States: delivered, delivering, waiting, failed (and tried again), held (by a wave, a promotion or a freeze), drifted,
accepted (a difference that the settings accept), unsubscribed, unknown (nobody here has heard of the site). Where the
agent's group has no root, only what the agent knows itself is shown, and the exit code is 1.`,
		Example: `  fanoutctl where team/app:1.4
  fanoutctl where team/app:1.4 --watch
  fanoutctl where team/app:1.4 -o json | jq '.sites[] | select(.state == "failed") | {site, reason}'`,
		Args:              args(1, 1, "one REF"),
		ValidArgsFunction: a.completeRefs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := parseRef(args[0])
			if err != nil {
				return err
			}
			req := &adminv1.WhereRequest{Ref: ref, Watch: watch}
			return a.pictures(cmd.Context(), watch, func(ctx context.Context, c *client.Client, show func(texter) error) error {
				return each(ctx, limit(watch), func(ctx context.Context) (grpc.ServerStreamingClient[adminv1.WhereResponse], error) {
					return c.Where(ctx, req)
				}, func(r *adminv1.WhereResponse) error {
					return errors.Join(show(view.WhereOf(r)), partly(watch, r.GetNoRoot()))
				})
			})
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show changes as they happen")
	return cmd
}

// pictures shows what one call streams: one document, or with watch one after the other for as long as the user likes.
func (a *app) pictures(ctx context.Context, watch bool, call func(context.Context, *client.Client, func(texter) error) error) error {
	if !watch {
		return a.talk(ctx, func(ctx context.Context, c *client.Client) error { return call(ctx, c, a.print) })
	}
	came, ever := false, false
	err := a.talk(ctx, func(ctx context.Context, c *client.Client) error {
		p := a.newPicture()
		return a.persist(ctx, c, &came, p.note, func(ctx context.Context) error {
			return call(ctx, c, func(doc texter) error {
				came, ever = true, true
				return p.show(doc)
			})
		})
	})
	if ever && errors.Is(err, errTimeout) {
		return nil // that is how a bounded watch ends
	}
	return err
}

// limit is for silence: none in a watch, where it means that nothing changes.
func limit(watch bool) time.Duration {
	if watch {
		return 0
	}
	return silence
}

// most is for commands that take any number of arguments.
const most = math.MaxInt
