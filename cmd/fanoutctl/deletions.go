package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/client"
	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

func (a *app) deletionsCommand() *cobra.Command {
	list := func(cmd *cobra.Command, _ []string) error {
		return a.talk(cmd.Context(), func(ctx context.Context, c *client.Client) error {
			r, err := unary(ctx, func(ctx context.Context) (*adminv1.DeletionsResponse, error) {
				return c.Deletions(ctx, &adminv1.DeletionsRequest{})
			})
			if err != nil {
				return err
			}
			return a.print(view.DeletionsOf(r))
		})
	}
	cmd := &cobra.Command{
		Use:   "deletions",
		Short: "Show tags that vanished from a registry of headquarters and wait for a word",
		Long: `With publish.deletes: propagate a tag that vanishes from a registry of headquarters is deleted everywhere, but not
when many vanish at once: more than ten and more than a twentieth of all within an hour. Then none of them is, until
someone allows it, or has the tags put back.`,
		Example: `  fanoutctl deletions list
  fanoutctl deletions allow team/app:1.4
  fanoutctl deletions restore --all`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              list,
	}
	cmd.AddCommand(&cobra.Command{
		Use: "list", Short: "Show them", Args: noArgs, ValidArgsFunction: cobra.NoFileCompletions, RunE: list,
		Long:    "Shows each tag that vanished, what it shows elsewhere, the site, and when it was seen.",
		Example: "  fanoutctl deletions list\n  fanoutctl deletions list -o json",
	})
	cmd.AddCommand(a.settleDeletionsCommand("allow", "Delete tags everywhere that vanished from a registry",
		`The tags are deleted everywhere, as with "fanoutctl unpublish"; "fanoutctl undo" brings one back within seven days.`,
		func(ctx context.Context, c *client.Client, refs []string, all bool) (*view.Settled, error) {
			r, err := c.AllowDeletions(ctx, &adminv1.AllowDeletionsRequest{Refs: refs, All: all})
			return &view.Settled{Settled: r.GetSettled(), Changed: r.GetChanged(), What: "deleted everywhere"}, err
		}))
	cmd.AddCommand(a.settleDeletionsCommand("restore", "Put tags back that vanished from a registry",
		`Each site from whose registry a tag vanished puts it back, with what the catalog says that it shows.`,
		func(ctx context.Context, c *client.Client, refs []string, all bool) (*view.Settled, error) {
			r, err := c.RestoreDeletions(ctx, &adminv1.RestoreDeletionsRequest{Refs: refs, All: all})
			return &view.Settled{Settled: r.GetSettled(), What: "to be put back"}, err
		}))
	return cmd
}

func (a *app) settleDeletionsCommand(name, short, long string, settle func(context.Context, *client.Client, []string, bool) (*view.Settled, error)) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: name + " REF… | --all", Short: short, Long: long, ValidArgsFunction: a.completeRefs(0),
		Example: "  fanoutctl deletions " + name + " team/app:1.4\n  fanoutctl deletions " + name + " --all",
		Args: func(cmd *cobra.Command, given []string) error {
			if all == (len(given) > 0) {
				return errors.New("name refs, or write --all for all that are held")
			}
			for _, text := range given {
				if err := tagged(cmd, []string{text}); err != nil {
					return err
				}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, given []string) error {
			var refs []string
			for _, text := range given {
				ref, err := parseRef(text)
				if err != nil {
					return err
				}
				refs = append(refs, ref)
			}
			return a.talk(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				r, err := unary(ctx, func(ctx context.Context) (*view.Settled, error) { return settle(ctx, c, refs, all) })
				if err != nil {
					return err
				}
				r.SchemaVersion = view.SchemaVersion
				return a.print(*r)
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "all that are held")
	return cmd
}
