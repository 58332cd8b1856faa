package main

import (
	"context"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/client"
	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// version is set by the linker: -X main.version=v1.2.3.
var version = ""

// versionPatience bounds the wait for an agent that need not be there.
const versionPatience = 3 * time.Second

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "version",
		Short:             "Show the versions of fanoutctl and of the agent",
		Long:              `Shows the versions of fanoutctl and of the agent. An agent that cannot be reached is said to be so; that is not an error.`,
		Example:           `  fanoutctl version -o json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			doc := view.Version{
				SchemaVersion: view.SchemaVersion,
				Client:        view.ClientVersion{Version: clientVersion(), Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH},
			}
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), versionPatience, errSilence)
			defer cancel()
			err := a.talk(ctx, func(ctx context.Context, c *client.Client) error {
				r, err := c.Version(ctx, &adminv1.VersionRequest{})
				if err != nil {
					return err
				}
				doc.Server = &view.ServerVersion{Version: r.GetVersion(), Site: r.GetSite(), Group: r.GetGroup()}
				return nil
			})
			if cmd.Context().Err() != nil {
				return err
			}
			if err != nil {
				doc.ServerError = err.Error()
			}
			return a.print(doc)
		},
	}
}

func clientVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
