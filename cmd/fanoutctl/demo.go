package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/client"
	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/demo"
	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/screen"
	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

func (a *app) demoCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run a whole fabric on this machine until Ctrl-C",
		Long: `Runs nine sites in one process, each with a registry of its own on a loopback address: three at headquarters, two
provinces, four cities. It builds a sample image, publishes it and shows the tree until every site has it. Ctrl-C
ends it and leaves nothing behind, but for the folder named by --dir: started again with that, it comes up with
what it had. DIR/fabric.json lists each site's name, group and addresses.`,
		Example: `  fanoutctl demo
  fanoutctl demo --dir ~/fanout-demo`,
		Args: args(0, 0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return demo.Run(cmd.Context(), demo.Options{Dir: dir, Version: clientVersion(), Command: os.Args[0], Out: a.stdout, Show: a.showUntilSynced})
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "keep the fabric's state in this folder")
	return cmd
}

// errAllSynced ends a watch that has seen what it waited for.
var errAllSynced = errors.New("all sites are synced")

// showUntilSynced publishes a ref at an agent and draws the tree until every site shows the ref and says synced.
func (a *app) showUntilSynced(ctx context.Context, server, ref string, sites int) error {
	a.flags.server = server
	frame, last := screen.NewFrame(a.stdout, a.out), ""
	draw := func(r *adminv1.TreeResponse) error {
		doc := view.TreeOf(r)
		if a.out.Terminal {
			return frame.Draw(doc.Text(view.Style{Color: a.out.Color}))
		}
		line := doc.Summary()
		if line == last {
			return nil
		}
		last = line
		_, err := fmt.Fprintln(a.stdout, line)
		return err
	}
	return a.talk(ctx, func(ctx context.Context, c *client.Client) error {
		// The first watch ends with the publish, the second, which begins with a picture of its own, when all is calm.
		publishing, published := context.WithCancelCause(ctx)
		defer published(nil)
		go func() {
			err := each(ctx, 0, func(ctx context.Context) (grpc.ServerStreamingClient[adminv1.PublishResponse], error) {
				return c.Publish(ctx, &adminv1.PublishRequest{Ref: ref, Wait: true})
			}, func(*adminv1.PublishResponse) error { return nil })
			if err == nil {
				err = errAllSynced
			}
			published(err)
		}()
		watch := func(ctx context.Context, enough func(*adminv1.TreeResponse) bool) error {
			return each(ctx, 0, func(ctx context.Context) (grpc.ServerStreamingClient[adminv1.TreeResponse], error) {
				return c.Tree(ctx, &adminv1.TreeRequest{Watch: true})
			}, func(r *adminv1.TreeResponse) error {
				if err := draw(r); err != nil {
					return err
				}
				if enough(r) {
					return errAllSynced
				}
				return nil
			})
		}
		err := watch(publishing, func(*adminv1.TreeResponse) bool { return false })
		if cause := context.Cause(publishing); cause != nil {
			err = cause
		}
		if !errors.Is(err, errAllSynced) {
			return err
		}
		var final *adminv1.TreeResponse
		err = watch(ctx, func(r *adminv1.TreeResponse) bool { final = r; return synced(r) == sites })
		if !errors.Is(err, errAllSynced) {
			return err
		}
		if !a.out.Terminal {
			_, err = fmt.Fprint(a.stdout, view.TreeOf(final).Text(view.Style{}))
			return err
		}
		return nil
	})
}

func synced(r *adminv1.TreeResponse) int {
	n := 0
	for _, g := range r.GetGroups() {
		for _, m := range g.GetMembers() {
			if m.GetState() == "synced" {
				n++
			}
		}
	}
	return n
}
