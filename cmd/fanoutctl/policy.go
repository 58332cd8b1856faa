package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/client"
	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/screen"
	"github.com/fanout-io/fanout/docs/schemas"
	"github.com/fanout-io/fanout/pkg/plan"
	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

func (a *app) policyCommand() *cobra.Command {
	list := func(cmd *cobra.Command, _ []string) error {
		return a.talk(cmd.Context(), func(ctx context.Context, c *client.Client) error {
			r, err := policies(ctx, c)
			if err != nil {
				return err
			}
			return a.print(view.PoliciesOf(r))
		})
	}
	cmd := parent(&cobra.Command{
		Use:   "policy",
		Short: "Say which repositories wait for a promotion",
		Long: `A policy says for repositories by pattern whether a push moves tags everywhere at once (cascade), or only brings the
content there, and tags move by "fanoutctl promote" (staged). The first policy that matches counts.`,
		Example: `  fanoutctl policy apply -f policies.yaml
  fanoutctl policy list`,
	}, a.policyApplyCommand(), a.policyDeleteCommand())
	cmd.AddCommand(&cobra.Command{
		Use: "list", Short: "Show the policies, in the order in which they count", Args: noArgs, ValidArgsFunction: cobra.NoFileCompletions, RunE: list,
		Long:    "Shows the policies. The first whose patterns match a repository counts for it.",
		Example: "  fanoutctl policy list\n  fanoutctl policy list -o json",
	}, &cobra.Command{
		Use: "schema", Short: "Print the JSON Schema of policies", Args: noArgs, ValidArgsFunction: cobra.NoFileCompletions,
		Long:    "Prints the JSON Schema of one policy, for editors. A file may hold several policies, one document each.",
		Example: "  fanoutctl policy schema > policy.schema.json",
		RunE: func(*cobra.Command, []string) error {
			_, err := io.WriteString(a.stdout, schemas.Policy)
			return err
		},
	})
	return cmd
}

func policies(ctx context.Context, c *client.Client) ([]*catalogv1.Policy, error) {
	r, err := unary(ctx, func(ctx context.Context) (*adminv1.PoliciesResponse, error) {
		return c.Policies(ctx, &adminv1.PoliciesRequest{})
	})
	return r.GetPolicies(), err
}

func (a *app) setPolicies(ctx context.Context, c *client.Client, req *adminv1.SetPoliciesRequest) error {
	r, err := unary(ctx, func(ctx context.Context) (*adminv1.SetPoliciesResponse, error) { return c.SetPolicies(ctx, req) })
	if err != nil {
		return err
	}
	return a.print(view.PoliciesOf(r.GetPolicies()))
}

func (a *app) policyApplyCommand() *cobra.Command {
	var file string
	var prune bool
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Put the policies of a file in force",
		Long: `Puts the policies in FILE (- is stdin) in force. One whose name is known replaces that policy in its place, others come
last. With --prune those in FILE are all there are, in the order of FILE. What was published before stays as it is.`,
		Example: `  fanoutctl policy apply -f policies.yaml
  fanoutctl policy apply -f policies.yaml --prune`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			data, err := a.readInput(file)
			if err != nil {
				return err
			}
			list, warnings, err := plan.ParsePolicies(file, data)
			if err != nil {
				return err
			}
			for _, w := range warnings {
				fmt.Fprintln(a.stderr, "Warning: "+screen.Clean(w.String()))
			}
			return a.talk(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				return a.setPolicies(ctx, c, &adminv1.SetPoliciesRequest{Policies: list, Upsert: !prune})
			})
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "file with the policies, - for stdin (required)")
	cmd.Flags().BoolVar(&prune, "prune", false, "take away all policies that are not in the file")
	_ = cmd.MarkFlagRequired("file")
	a.completeFlag(cmd, "file", completeFiles)
	return cmd
}

func (a *app) policyDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "delete NAME…",
		Short: "Take policies away",
		Long: `Takes policies away. Repositories for which one counted go by the next that matches, or are delivered as cascade. What
was published before stays as it is.`,
		Example:           "  fanoutctl policy delete releases",
		Args:              args(1, most, "at least one NAME"),
		ValidArgsFunction: a.completePolicies,
		RunE: func(cmd *cobra.Command, names []string) error {
			return a.talk(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				return a.setPolicies(ctx, c, &adminv1.SetPoliciesRequest{Upsert: true, Remove: names})
			})
		},
	}
}

func (a *app) completePolicies(cmd *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
	var names []string
	a.ask(cmd.Context(), func(ctx context.Context, c *client.Client) error {
		list, err := policies(ctx, c)
		for _, p := range list {
			if !slices.Contains(args, p.GetName()) {
				names = append(names, p.GetName())
			}
		}
		return err
	})
	return withPrefix(names, start), noFiles
}

func (a *app) freezeCommand() *cobra.Command {
	var until string
	req := &adminv1.SetFreezeRequest{}
	cmd := &cobra.Command{
		Use:   "freeze GROUP --reason R --until T",
		Short: "Keep the tags of a group as they are for a time",
		Long: `Keeps GROUP and the groups below it from changing tags until T: a time (2026-10-01T06:00:00+08:00) or a duration from
now (36h). Content still comes. Headquarters sees the freeze with its reason and end; a rollout passes over the group
or waits for it, as its plan says of groups that are offline. A policy may say how long a freeze may last.

Ask an agent of the group itself: no other may freeze it, or thaw it.`,
		Example: `  fanoutctl freeze hq/guangdong --reason "stocktaking" --until 36h
  fanoutctl freeze hq/guangdong --reason "stocktaking" --until 2026-10-08T06:00:00+08:00`,
		Args:              args(1, 1, "one GROUP"),
		ValidArgsFunction: a.completeGroups,
		RunE: func(cmd *cobra.Command, args []string) error {
			at, err := moment(until, time.Now())
			if err != nil {
				return err
			}
			if strings.TrimSpace(req.GetReason()) == "" {
				return wrongUsage("--reason is empty", "Say why, for those who wait for the group.")
			}
			req.Group, req.Until = args[0], timestamppb.New(at)
			return a.setFreeze(cmd.Context(), req)
		},
	}
	cmd.Flags().StringVar(&req.Reason, "reason", "", "why, in words (required)")
	cmd.Flags().StringVar(&until, "until", "", "until when: a time as in RFC 3339, or a duration (required)")
	_ = cmd.MarkFlagRequired("reason")
	_ = cmd.MarkFlagRequired("until")
	return cmd
}

// moment reads a time as in RFC 3339, or a duration from now.
func moment(text string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(text); err == nil {
		if d <= 0 {
			return time.Time{}, wrongUsage(fmt.Sprintf("--until %s: it is over already", text), "")
		}
		return now.Add(d).Truncate(time.Second), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	switch {
	case err != nil:
		return time.Time{}, wrongUsage(fmt.Sprintf("--until %q is neither a time nor a duration", text), "Write a time with its zone, such as 2026-10-01T06:00:00+08:00, or a duration, such as 36h.")
	case !at.After(now):
		return time.Time{}, wrongUsage(fmt.Sprintf("--until %s: it is over already", text), "")
	}
	return at, nil
}

func (a *app) thawCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "thaw GROUP",
		Short: "Let the tags of a frozen group move again",
		Long: `Ends a freeze before its time: the group and those below it catch up with what the catalog says. A freeze of a group
above it stays in force.`,
		Example:           "  fanoutctl thaw hq/guangdong",
		Args:              args(1, 1, "one GROUP"),
		ValidArgsFunction: a.completeGroups,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.setFreeze(cmd.Context(), &adminv1.SetFreezeRequest{Group: args[0], Thaw: true})
		},
	}
}

func (a *app) setFreeze(ctx context.Context, req *adminv1.SetFreezeRequest) error {
	return a.talk(ctx, func(ctx context.Context, c *client.Client) error {
		r, err := unary(ctx, func(ctx context.Context) (*adminv1.SetFreezeResponse, error) { return c.SetFreeze(ctx, req) })
		if err != nil {
			return err
		}
		return a.print(view.FreezeOf(req.GetGroup(), r))
	})
}
