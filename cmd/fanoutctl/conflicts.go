package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/client"
	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

func (a *app) unpublishCommand() *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use:   "unpublish REF",
		Short: "Delete a tag everywhere",
		Long: `Makes the record of REF a tombstone, which travels: every site removes the tag. What it showed is kept for
seven days, so long "fanoutctl undo REF" brings it back without content being moved. The command returns when the
deletion is recorded; with --wait it stays until every site in scope has removed the tag. To ask again is harmless:
what is deleted already is told as that.

With --wait: exit code 3 when it is gone at some sites only and no more will happen by itself, as where somebody
changed the tag and the configuration leaves that so, or when all others had failed as --timeout ran out; 5 when some
were still on their way then. Nothing is undone in either case.`,
		Example: `  fanoutctl unpublish team/app:1.4
  fanoutctl unpublish team/app:1.4 --wait --timeout 10m
  fanoutctl undo team/app:1.4`,
		Args:              tagged,
		ValidArgsFunction: a.completeRefs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := parseRef(args[0])
			if err != nil {
				return err
			}
			return a.unpublish(cmd.Context(), ref, wait)
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "stay until every site has removed it")
	return cmd
}

// tagged wants one ref with its tag: what is deleted everywhere is not guessed.
func tagged(cmd *cobra.Command, given []string) error {
	if err := args(1, 1, "one ref")(cmd, given); err != nil {
		return err
	}
	if i := strings.LastIndexByte(given[0], ':'); i <= strings.LastIndexByte(given[0], '/') {
		return fmt.Errorf("%q has no tag: write what is to be deleted as REPOSITORY:TAG", given[0])
	}
	return nil
}

func (a *app) undoCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "undo REF",
		Short: "Bring back a tag that was deleted everywhere",
		Long: `Publishes again what REF showed before it was deleted. Where the content is still there, which it is for seven
days, no content is moved.`,
		Example: `  fanoutctl undo team/app:1.4
  fanoutctl undo team/app:1.4 -o json`,
		Args:              args(1, 1, "one ref"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := parseRef(args[0])
			if err != nil {
				return err
			}
			return a.talk(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				r, err := unary(ctx, func(ctx context.Context) (*adminv1.UndoResponse, error) {
					return c.Undo(a.traced(ctx), &adminv1.UndoRequest{Ref: ref})
				})
				if err != nil {
					return err
				}
				return a.print(view.Changed{SchemaVersion: view.SchemaVersion, Ref: r.GetRef(), Digest: r.GetDigest(), Revision: r.GetRevision()})
			})
		},
	}
}

func (a *app) conflictsCommand() *cobra.Command {
	list := func(cmd *cobra.Command, _ []string) error {
		return a.talk(cmd.Context(), func(ctx context.Context, c *client.Client) error {
			r, err := unary(ctx, func(ctx context.Context) (*adminv1.ConflictsResponse, error) {
				return c.Conflicts(ctx, &adminv1.ConflictsRequest{})
			})
			if err != nil {
				return err
			}
			return a.print(view.ConflictsOf(r))
		})
	}
	cmd := &cobra.Command{
		Use:   "conflicts",
		Short: "Show pushes at headquarters that lost against another of their tag",
		Long: `When one tag was pushed differently at two registries of headquarters that could not hear of each other, the
order of the catalog decides which is shown. The other is kept, and listed here until someone settles it.`,
		Example: `  fanoutctl conflicts
  fanoutctl conflicts settle team/app:1.4 --keep sha256:…`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              list,
	}
	cmd.AddCommand(a.settleCommand())
	return cmd
}

func (a *app) settleCommand() *cobra.Command {
	var keep string
	cmd := &cobra.Command{
		Use:   "settle REF --keep DIGEST",
		Short: "Say which of two pushes a tag shall show",
		Long: `Publishes the digest to keep, if the tag does not show it already, and takes all conflicts over REF off the list.
Once that has arrived, the other is no longer kept from garbage collection.`,
		Example:           `  fanoutctl conflicts settle team/app:1.4 --keep sha256:…`,
		Args:              args(1, 1, "one ref"),
		ValidArgsFunction: a.completeRefs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := parseRef(args[0])
			if err != nil {
				return err
			}
			if !registry.ValidDigest(keep) {
				return wrongUsage(fmt.Sprintf("--keep %q is not a digest (sha256: and 64 hexadecimal digits)", keep), "Digests are listed by: fanoutctl conflicts")
			}
			return a.talk(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				r, err := unary(ctx, func(ctx context.Context) (*adminv1.SettleConflictResponse, error) {
					return c.SettleConflict(ctx, &adminv1.SettleConflictRequest{Ref: ref, Keep: keep})
				})
				if err != nil {
					return err
				}
				return a.print(view.Changed{SchemaVersion: view.SchemaVersion, Ref: r.GetRef(), Digest: r.GetDigest(), Revision: r.GetRevision(), Settled: r.GetSettled(), Losers: r.GetLosers()})
			})
		},
	}
	cmd.Flags().StringVar(&keep, "keep", "", "digest that the tag shall show (required)")
	_ = cmd.MarkFlagRequired("keep")
	return cmd
}
