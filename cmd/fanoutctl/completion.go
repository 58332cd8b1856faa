package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/client"
	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/userconf"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// Bounds of a completion: somebody waits at the prompt.
const (
	completionPatience = time.Second
	completionMost     = 500
)

type completer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

const noFiles = cobra.ShellCompDirectiveNoFileComp

func fixedCompletion(words ...string) completer {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) { return words, noFiles }
}

// completeFlag is for flags that exist.
func (a *app) completeFlag(cmd *cobra.Command, flag string, f completer) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err)
	}
}

// completeContexts needs no agent.
func (a *app) completeContexts(_ *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
	conf, err := userconf.Load(userconf.Path(a.env))
	if err != nil || len(args) > 0 {
		return nil, noFiles
	}
	return withPrefix(conf.Names(), start), noFiles
}

// completeRefs gives refs of the catalog, for a command that takes up to most of them.
func (a *app) completeRefs(most int) completer {
	return func(cmd *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= most {
			return nil, noFiles
		}
		return withPrefix(a.refs(cmd.Context(), start), start), noFiles
	}
}

func (a *app) completeRepositories(cmd *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, noFiles
	}
	var repositories []string
	for _, ref := range a.refs(cmd.Context(), start) {
		repository := ref[:max(strings.LastIndexByte(ref, ':'), 0)]
		if len(repositories) == 0 || repositories[len(repositories)-1] != repository { // refs come in order
			repositories = append(repositories, repository)
		}
	}
	return withPrefix(repositories, start), noFiles
}

func (a *app) completeGroups(cmd *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, noFiles
	}
	var groups []string
	a.ask(cmd.Context(), func(ctx context.Context, c *client.Client) error {
		return each(ctx, 0, func(ctx context.Context) (grpc.ServerStreamingClient[adminv1.TreeResponse], error) {
			return c.Tree(ctx, &adminv1.TreeRequest{})
		}, func(r *adminv1.TreeResponse) error {
			for _, g := range r.GetGroups() {
				groups = append(groups, g.GetGroup())
			}
			return nil
		})
	})
	return withPrefix(groups, start), noFiles
}

// refs of the catalog that begin so.
func (a *app) refs(ctx context.Context, start string) (refs []string) {
	a.ask(ctx, func(ctx context.Context, c *client.Client) error {
		return each(ctx, 0, func(ctx context.Context) (grpc.ServerStreamingClient[adminv1.ImagesResponse], error) {
			return c.Images(ctx, &adminv1.ImagesRequest{Local: true})
		}, func(r *adminv1.ImagesResponse) error {
			if strings.HasPrefix(r.GetRef(), start) {
				refs = append(refs, r.GetRef())
			}
			if len(refs) >= completionMost {
				return errEnough
			}
			return nil
		})
	})
	return refs
}

// errEnough ends a stream of which enough was read.
var errEnough = &exitError{}

// ask is talk for completions: what goes wrong gives no words to complete, and no message in the middle of somebody's line.
func (a *app) ask(ctx context.Context, f func(context.Context, *client.Client) error) {
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completionPatience)
	defer cancel()
	_ = a.talk(ctx, f)
}

func withPrefix(words []string, start string) []string {
	var out []string
	for _, w := range words {
		if strings.HasPrefix(w, start) && len(out) < completionMost {
			out = append(out, w)
		}
	}
	return out
}
