package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/client"
	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

func (a *app) memberCommand() *cobra.Command {
	return parent(&cobra.Command{
		Use:   "member",
		Short: "The members of the agent's group",
		Long: `Commands about the raft members of the group that the agent belongs to. Any member may be asked: the root does
what there is to do.`,
		Example: `  fanoutctl member list
  fanoutctl member add gd-d 127.0.0.1:7401
  fanoutctl --server unix:/run/fanoutd/fanoutd.sock member list -o yaml`,
	}, a.memberListCommand(), a.memberAddCommand(), a.memberRemoveCommand(), a.memberLeadCommand())
}

func (a *app) memberListCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the members: role, vote, state, addresses",
		Long: `Lists the raft members of the agent's group: who is root, who has a vote, and where they listen. A member that was
added and whose agent has not come yet is pending; one that has come has no vote until it has caught up.`,
		Example:           `  fanoutctl member list`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.memberCall(cmd.Context(), func(ctx context.Context, c *client.Client) (texter, error) {
				r, err := c.Members(ctx, &adminv1.MembersRequest{})
				return view.MembersOf(r), err
			})
		},
	}
}

func (a *app) memberAddCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "add SITE RAFT-ADDRESS",
		Short: "Let a site join the group",
		Long: `Lets the agent of SITE, whose raft.advertise is RAFT-ADDRESS (HOST:PORT), join the agent's group. Then start that
agent with an empty dataDir; raft.members in its file lists itself and at least one member of the group. The other
members' files need not list it. It is taken in without a vote, and gets one when it has caught up.

A machine that takes the place of a dead one under the same name and address needs no command.`,
		Example: `  fanoutctl member add gd-d 127.0.0.1:7401
  fanoutctl member list`,
		Args:              args(2, 2, "SITE and RAFT-ADDRESS"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.memberCall(cmd.Context(), func(ctx context.Context, c *client.Client) (texter, error) {
				r, err := c.AddMember(ctx, &adminv1.AddMemberRequest{Site: args[0], RaftAddress: args[1]})
				return view.MemberAdded{SchemaVersion: view.SchemaVersion, Member: view.MemberInfoOf(r.GetMember())}, err
			})
		},
	}
}

func (a *app) memberRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "remove SITE",
		Aliases: []string{"rm"},
		Short:   "Take a site out of the group",
		Long: `Takes SITE out of the agent's group for good: its agent is not let in again, though files may list it, until
'member add' names it. Its registry goes on serving what it has. The root hands leadership on before it goes.

It is refused to remove the last member, or one without which too few of the others could be reached to decide
anything; a member that is dead can be removed as long as a majority of all, it included, is up.`,
		Example:           `  fanoutctl member remove gd-c`,
		Args:              args(1, 1, "one SITE"),
		ValidArgsFunction: a.completeMembers,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.memberCall(cmd.Context(), func(ctx context.Context, c *client.Client) (texter, error) {
				_, err := c.RemoveMember(ctx, &adminv1.RemoveMemberRequest{Site: args[0]})
				return view.MemberRemoved{SchemaVersion: view.SchemaVersion, Site: args[0]}, err
			})
		},
	}
}

func (a *app) memberLeadCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "lead [SITE]",
		Short: "Hand leadership to a member",
		Long: `Makes SITE the root of the agent's group, or without SITE any other member that is fit: one with a vote and a
registry that works. The command returns when it is so. A witness leads only while no member's registry works.`,
		Example: `  fanoutctl member lead gd-b
  fanoutctl member lead`,
		Args:              args(0, 1, "one SITE at most"),
		ValidArgsFunction: a.completeMembers,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &adminv1.LeadRequest{}
			if len(args) > 0 {
				req.Site = args[0]
			}
			return a.memberCall(cmd.Context(), func(ctx context.Context, c *client.Client) (texter, error) {
				r, err := c.Lead(ctx, req)
				return view.Lead{SchemaVersion: view.SchemaVersion, Site: r.GetSite()}, err
			})
		},
	}
}

// memberCall makes one call and prints what it gives.
func (a *app) memberCall(ctx context.Context, call func(context.Context, *client.Client) (texter, error)) error {
	return a.talk(ctx, func(ctx context.Context, c *client.Client) error {
		doc, err := unary(ctx, func(ctx context.Context) (*texter, error) {
			doc, err := call(ctx, c)
			return &doc, err
		})
		if err != nil {
			return err
		}
		return a.print(*doc)
	})
}

// completeMembers gives the sites of the agent's group.
func (a *app) completeMembers(cmd *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, noFiles
	}
	var sites []string
	a.ask(cmd.Context(), func(ctx context.Context, c *client.Client) error {
		r, err := c.Members(ctx, &adminv1.MembersRequest{})
		for _, m := range r.GetMembers() {
			sites = append(sites, m.GetSite())
		}
		return err
	})
	return withPrefix(sites, start), noFiles
}
