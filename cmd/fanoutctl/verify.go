package main

import (
	"context"
	"fmt"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/client"
	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/screen"
	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

func (a *app) verifyCommand() *cobra.Command {
	req := &adminv1.VerifyRequest{}
	cmd := &cobra.Command{
		Use:   "verify [SITE]",
		Short: "Prove that sites show what the catalog says",
		Long: `Compares a site with the catalog, or every site that the agent can reach: first its catalog, by one digest, then what
its registry really shows: each tag, and each manifest and blob under it, is asked for. Nothing is believed that the
agent remembers. With --deep every manifest and blob is read and hashed.

With --repair what is missing or wrong is delivered again, from other sites; verify waits until that is done or fails,
and looks again. A tag that someone deleted or changed stays so where the configuration leaves it so; with "drift:
accept" it is listed, and the site counts as "accepted".

Exit codes: 0 equal, or different only where the settings accept it; 4 not equal; 3 nothing was seen to differ, and some
site (or the one that was named) could not be looked at, or not wholly: it, its registry or the root of its group does
not answer; 1 there is no such site, or the agent that is asked can't answer.`,
		Example: `  fanoutctl verify
  fanoutctl verify gd-a --deep --repair --timeout 1h
  fanoutctl verify -o json | jq '.sites[] | select(.state != "equal") | .differences[]'`,
		Args:              args(0, 1, "one SITE at most"),
		ValidArgsFunction: a.completeSites(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				req.Site = args[0]
			}
			return a.talk(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				doc, err := a.verify(ctx, c, req)
				if err != nil {
					return err
				}
				if err := a.print(doc); err != nil {
					return err
				}
				return verifyExit(doc)
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&req.Deep, "deep", false, "read and hash every manifest and blob")
	f.BoolVar(&req.Repair, "repair", false, "deliver again what is missing or wrong")
	return cmd
}

// verifyExit is the exit code of a verify.
func verifyExit(doc *view.Verify) error {
	different, away, unknown := doc.Count(view.VerifyDifferent), doc.Count(view.VerifyUnreachable), doc.Count(view.VerifyUnknown)
	switch {
	case different > 0:
		return &exitError{code: exitNotEqual, text: fmt.Sprintf("%d of %s not as the catalog says", different, view.Plural(len(doc.Sites), "site"))}
	case unknown > 0:
		return &exitError{code: exitPartial, text: fmt.Sprintf("%d of %s could not be looked at, or not wholly", away+unknown, view.Plural(len(doc.Sites), "site"))}
	case away > 0:
		return &exitError{code: exitPartial, text: fmt.Sprintf("%d of %s could not be looked at", away, view.Plural(len(doc.Sites), "site"))}
	}
	return nil
}

// verify makes the call and gathers what comes.
func (a *app) verify(ctx context.Context, c *client.Client, req *adminv1.VerifyRequest) (*view.Verify, error) {
	doc := &view.Verify{SchemaVersion: view.SchemaVersion, Sites: []view.VerifiedSite{}}
	err := each(ctx, silence, func(ctx context.Context) (grpc.ServerStreamingClient[adminv1.VerifyResponse], error) {
		return c.Verify(ctx, req)
	}, func(m *adminv1.VerifyResponse) error {
		if p := m.GetProgress(); p != nil {
			a.verifyProgress(m.GetSite(), p)
			return nil
		}
		doc.Add(m)
		return nil
	})
	doc.Sort()
	return doc, err
}

// verifyProgress tells people that something happens.
func (a *app) verifyProgress(site string, p *adminv1.VerifyProgress) {
	if a.flags.output != "table" {
		return
	}
	what := "looked at"
	if p.GetRepairing() {
		what = "repaired"
	}
	text := fmt.Sprintf("%s: %d of %s %s", screen.Clean(site), p.GetRefs(), view.Plural(int(p.GetRefsTotal()), "ref"), what)
	if n := p.GetBytes(); n > 0 {
		text += ", " + humanize.IBytes(uint64(n)) + " read"
	}
	fmt.Fprintln(a.stderr, text)
}

// completeSites gives the sites that the agent knows, for a command that takes up to most of them.
func (a *app) completeSites(most int) completer {
	return func(cmd *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= most {
			return nil, noFiles
		}
		var sites []string
		a.ask(cmd.Context(), func(ctx context.Context, c *client.Client) error {
			t, err := oneTree(ctx, c)
			for _, g := range t.GetGroups() {
				for _, m := range g.GetMembers() {
					sites = append(sites, m.GetSite())
				}
			}
			return err
		})
		return withPrefix(sites, start), noFiles
	}
}

// oneTree asks for one picture of all.
func oneTree(ctx context.Context, c *client.Client) (*adminv1.TreeResponse, error) {
	var tree *adminv1.TreeResponse
	err := each(ctx, silence, func(ctx context.Context) (grpc.ServerStreamingClient[adminv1.TreeResponse], error) {
		return c.Tree(ctx, &adminv1.TreeRequest{})
	}, func(t *adminv1.TreeResponse) error {
		tree = t
		return partly(false, t.GetNoRoot())
	})
	return tree, err
}
