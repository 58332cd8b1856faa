package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/client"
	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

func (a *app) imagesCommand() *cobra.Command {
	var all, local bool
	cmd := &cobra.Command{
		Use:   "images [REPOSITORY]",
		Short: "Show the catalog: what every site in scope should have",
		Long: `Shows the records of the catalog in the order of their refs. REPOSITORY narrows that to one repository or to a
pattern (** stands for any number of parts). Signature tags and deleted refs are shown with --all only.

What was published before the command began is shown, whichever member of a group is asked: its root says how far
the catalog is. Where the group has no root now, --local shows what the agent that is asked has, which may be old.`,
		Example: `  fanoutctl images
  fanoutctl images 'team/**' --all
  fanoutctl images -o json | jq -r '.images[] | .ref + " " + .digest'`,
		Args:              args(0, 1, "one repository at most"),
		ValidArgsFunction: a.completeRepositories,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &adminv1.ImagesRequest{All: all, Local: local}
			if len(args) > 0 {
				req.Repository = args[0]
			}
			doc := view.Images{SchemaVersion: view.SchemaVersion, Images: []view.Image{}}
			return a.talk(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				err := each(ctx, silence, func(ctx context.Context) (grpc.ServerStreamingClient[adminv1.ImagesResponse], error) {
					return c.Images(ctx, req)
				}, func(r *adminv1.ImagesResponse) error {
					doc.Images = append(doc.Images, view.ImageOf(r))
					return nil
				})
				if err != nil {
					return err
				}
				return a.print(doc)
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "signature tags and deleted refs too")
	cmd.Flags().BoolVar(&local, "local", false, "what the agent that is asked has, without asking the root of its group")
	return cmd
}

func (a *app) eventsCommand() *cobra.Command {
	var follow bool
	var of string
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happened lately and, with --follow, what happens",
		Long: `Shows the latest events that the agent remembers, oldest first, a line each (with -o json a JSON document a line).
Equal events in a row are counted instead of repeated. With --follow the command goes on when the agent is
restarted; it ends with Ctrl-C or, as done, with --timeout.

With --for they are those about a group, a site or a ref, as told by all agents that it concerns, in and below the
agent's group: of a group all that its members tell, of a ref what is told of it everywhere. Which agent could not be
asked is told as an event NotAsked. A name that may be several things is written group/NAME, site/NAME or ref/NAME.
With --follow the ref may be one that is not pushed yet: write its tag.`,
		Example: `  fanoutctl events
  fanoutctl events --follow
  fanoutctl events --for team/app:1.4 --follow
  fanoutctl events -o json | jq 'select(.type == "Warning")'`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := a.events(cmd.Context(), of, follow)
			if follow && errors.Is(err, errTimeout) {
				return nil
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what happens")
	cmd.Flags().StringVar(&of, "for", "", "only those about this group, site or ref, from all agents that it concerns")
	a.completeFlag(cmd, "for", a.completeNames)
	return cmd
}

func (a *app) events(ctx context.Context, of string, follow bool) error {
	return a.talk(ctx, func(ctx context.Context, c *client.Client) error {
		came := false
		var shown view.EventCursor
		p := a.newPicture()
		p.frame = nil
		return a.persist(ctx, c, &came, p.note, func(ctx context.Context) error {
			before := shown.Clone() // what is not after it was shown before the agent was lost
			return each(ctx, limit(follow), func(ctx context.Context) (grpc.ServerStreamingClient[adminv1.EventsResponse], error) {
				return c.Events(ctx, &adminv1.EventsRequest{Follow: follow, Of: of})
			}, func(r *adminv1.EventsResponse) error {
				came = true
				if !before.Before(r) {
					return nil
				}
				shown.Note(r)
				return a.printLine(view.EventOf(r))
			})
		})
	})
}

// unary makes a call that is answered at once.
func unary[T any](ctx context.Context, call func(context.Context) (*T, error)) (*T, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, silence, errSilence)
	defer cancel()
	r, err := call(ctx)
	if err != nil && errors.Is(context.Cause(ctx), errSilence) {
		return nil, errSilence
	}
	return r, err
}
