package main

import (
	"context"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/client"
	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

func (a *app) doctorCommand() *cobra.Command {
	req := &adminv1.DoctorRequest{}
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what is wrong, or will be, and say how to mend it",
		Long: `Looks at the agent and at each other member of its group that can be reached: configuration, quorum, clocks,
certificates, room on the disk, parents, and the rights at the registry, which are tried in the repository
fanout/doctor. Says for each thing that is not well what to do.

Exit codes: 0 nothing failed (warnings do not count), 1 something failed.`,
		Example: `  fanoutctl doctor
  fanoutctl doctor -o json | jq '.sites[] | {site, checks: [.checks[] | select(.state != "ok")]}'`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.talk(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				doc := &view.Doctor{SchemaVersion: view.SchemaVersion, Sites: []view.CheckedSite{}}
				err := each(ctx, silence, func(ctx context.Context) (grpc.ServerStreamingClient[adminv1.DoctorResponse], error) {
					return c.Doctor(ctx, req)
				}, func(r *adminv1.DoctorResponse) error {
					doc.Add(r)
					return nil
				})
				if err != nil {
					return err
				}
				if err := a.print(doc); err != nil {
					return err
				}
				if doc.Count(view.CheckFail) > 0 {
					return &exitError{code: exitFailed}
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&req.Here, "here", false, "only at the agent that is asked")
	return cmd
}
