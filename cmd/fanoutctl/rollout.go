package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/client"
	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/screen"
	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

func (a *app) rolloutCommand() *cobra.Command {
	cmd := parent(&cobra.Command{
		Use:   "rollout",
		Short: "Show and steer promotions that are under way",
		Long: `A promotion that is under way is a rollout. It goes by its plan; with these commands you see where it is, and have a
hand on the brake. See docs/promote.md for what every phase means and what to do in each trouble.`,
		Example: `  fanoutctl rollout list
  fanoutctl rollout watch 7f3a9c
  fanoutctl rollout rollback 7f3a9c --reason "login is slow"`,
	}, a.rolloutListCommand(), a.rolloutShowCommand(), a.rolloutWatchCommand())
	for _, verb := range steering {
		cmd.AddCommand(a.steerCommand(verb))
	}
	return cmd
}

func (a *app) rolloutListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Show rollouts, newest first",
		Long:  "Shows the rollouts that go on and the last that ended, newest first.",
		Example: `  fanoutctl rollout list
  fanoutctl rollout list -o json | jq -r '.rollouts[] | select(.phase == "paused") | .id'`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.talk(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				r, err := rollouts(ctx, c, "")
				if err != nil {
					return err
				}
				return a.print(view.RolloutsOf(r))
			})
		},
	}
}

// rollouts asks for one picture.
func rollouts(ctx context.Context, c *client.Client, id string) (*adminv1.RolloutsResponse, error) {
	var last *adminv1.RolloutsResponse
	err := each(ctx, silence, func(ctx context.Context) (grpc.ServerStreamingClient[adminv1.RolloutsResponse], error) {
		return c.Rollouts(ctx, &adminv1.RolloutsRequest{Id: id})
	}, func(r *adminv1.RolloutsResponse) error {
		last = r
		return nil
	})
	return last, err
}

// oneRollout makes the document of an answer about one rollout.
func oneRollout(r *adminv1.RolloutsResponse, id string) (view.Rollout, error) {
	for _, x := range r.GetRollouts() {
		if x.GetId() == id {
			return view.RolloutOf(x, r.GetSites(), view.RolloutsOf(r).AsOf), nil
		}
	}
	return view.Rollout{}, &client.Problem{What: "no rollout " + screen.Clean(id) + " is known", Todo: "See: fanoutctl rollout list"}
}

func (a *app) rolloutShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show one rollout: its waves and groups, what it waits for, and the delivery receipt",
		Long: `Shows a rollout wave by wave: where its groups are, what it waits for, and how long yet. Groups that are many and the
same are shown together.

With -o json or yaml the document has every group, the history (steps) and the delivery receipt (sites): for each site
and each ref the digest that it shows, its state, and since when.`,
		Example: `  fanoutctl rollout show 7f3a9c
  fanoutctl rollout show 7f3a9c -o json > receipt.json
  fanoutctl rollout show 7f3a9c -o json | jq -r '.sites[] | [.site, .ref, .digest, .state, .time] | @csv'`,
		Args:              args(1, 1, "the ID of a rollout"),
		ValidArgsFunction: a.completeRollouts(func(*catalogv1.Rollout) bool { return true }, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.talk(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				r, err := rollouts(ctx, c, args[0])
				if err != nil {
					return err
				}
				doc, err := oneRollout(r, args[0])
				if err != nil {
					return err
				}
				return a.print(doc)
			})
		},
	}
}

func (a *app) rolloutWatchCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "watch ID",
		Short: "Follow one rollout until it ends",
		Long: `Shows a rollout as it goes, until it has ended: on a terminal as a table that is drawn again, elsewhere a line for each
change; with -o json a document for each. It goes on when the agent is restarted.

Exit codes: 0 succeeded, 1 failed, aborted or rolled back, 3 succeeded, but not at groups that were offline, skipped or
failed, 5 timed out (--timeout). Ctrl-C ends the watching, not the rollout.`,
		Example: `  fanoutctl rollout watch 7f3a9c
  fanoutctl rollout watch 7f3a9c --timeout 2h`,
		Args:              args(1, 1, "the ID of a rollout"),
		ValidArgsFunction: a.completeRollouts(going, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.talk(cmd.Context(), func(ctx context.Context, c *client.Client) error { return a.follow(ctx, c, args[0], true) })
		},
	}
}

// errOver ends the reading of a watch whose rollout has ended.
var errOver = errors.New("the rollout has ended")

// follow shows a rollout until it has ended, and says as an exit code how. Documents are for every change, or else for the end only, with changes
// on stderr.
func (a *app) follow(ctx context.Context, c *client.Client, id string, documents bool) error {
	w := &watched{a: a, documents: documents || a.flags.output == "table"}
	if w.documents {
		w.picture = a.newPicture()
	}
	came := false
	note := func(text string) {
		if w.picture != nil {
			w.picture.note(text)
			return
		}
		fmt.Fprintln(a.stderr, screen.Clean(text))
	}
	err := settle(ctx, c, a.persist(ctx, c, &came, note, func(ctx context.Context) error {
		err := each(ctx, 0, func(ctx context.Context) (grpc.ServerStreamingClient[adminv1.RolloutsResponse], error) {
			return c.Rollouts(ctx, &adminv1.RolloutsRequest{Id: id, Watch: true})
		}, func(r *adminv1.RolloutsResponse) error {
			doc, err := oneRollout(r, id)
			if err != nil {
				return err
			}
			came = true
			if err := w.show(doc); err != nil {
				return err
			}
			if doc.Over() {
				return errOver
			}
			return nil
		})
		if err == nil {
			err = errors.New("the agent ended its answer before the rollout had ended; see: fanoutctl rollout show " + id)
		}
		return err
	}))
	if errors.Is(err, errOver) {
		if !w.documents {
			if err := a.print(*w.last); err != nil {
				return err
			}
		}
		return rolloutVerdict(*w.last)
	}
	if w.last != nil && errors.Is(err, errTimeout) {
		return &exitError{code: exitTimeout, text: fmt.Sprintf("timed out after %s (--timeout): rollout %s is %s, and goes on", a.flags.timeout, id, w.last.Phase),
			todo: "Follow it with: fanoutctl rollout watch " + screen.Clean(id)}
	}
	if w.last != nil && ctx.Err() != nil {
		fmt.Fprintf(a.stderr, "Rollout %s goes on. Follow it with: fanoutctl rollout watch %s\n", screen.Clean(id), screen.Clean(id))
	}
	return err
}

// watched is what a watch has shown.
type watched struct {
	a         *app
	documents bool
	picture   *picture
	last      *view.Rollout
}

func (w *watched) show(doc view.Rollout) error {
	old := w.last
	w.last = &doc
	switch {
	case w.picture != nil && w.picture.frame != nil:
		return w.picture.show(doc)
	case w.documents && w.a.flags.output != "table":
		changed := old == nil || len(doc.Changes(old)) > 0 || len(old.Steps) != len(doc.Steps)
		if !changed && !doc.Over() {
			return nil
		}
		return w.a.printLine(doc)
	}
	out := w.a.stdout
	if !w.documents {
		out = w.a.stderr
	}
	for _, line := range doc.Changes(old) {
		if _, err := fmt.Fprintln(out, line); err != nil {
			return err
		}
	}
	return nil
}

// rolloutVerdict is the exit code of a rollout that has ended.
func rolloutVerdict(r view.Rollout) error {
	if r.Phase != catalog.RolloutSucceeded {
		text := fmt.Sprintf("rollout %s is %s", r.ID, r.Phase)
		if r.Reason != "" {
			text += ": " + r.Reason
		}
		return &exitError{code: exitFailed, text: text, todo: "See: fanoutctl rollout show " + screen.Clean(r.ID)}
	}
	groups := r.Partial()
	if len(groups) == 0 {
		return nil
	}
	list := strings.Join(groups[:min(5, len(groups))], ", ")
	if len(groups) > 5 {
		list += ", …"
	}
	return &exitError{code: exitPartial, text: fmt.Sprintf("rollout %s succeeded, but not at: %s", r.ID, list), todo: "See why with: fanoutctl rollout show " + screen.Clean(r.ID)}
}

func going(r *catalogv1.Rollout) bool { return !catalog.Ended(r) }

// completeRollouts gives IDs of rollouts, and with groups the groups of the one that was named.
func (a *app) completeRollouts(which func(*catalogv1.Rollout) bool, groups bool) completer {
	return func(cmd *cobra.Command, args []string, start string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 1 || len(args) == 1 && !groups {
			return nil, noFiles
		}
		var words []string
		a.ask(cmd.Context(), func(ctx context.Context, c *client.Client) error {
			r, err := rollouts(ctx, c, strings.Join(args, ""))
			for _, x := range r.GetRollouts() {
				switch {
				case len(args) == 1 && x.GetId() == args[0]:
					for _, g := range x.GetGroups() {
						words = append(words, g.GetGroup())
					}
				case len(args) == 0 && which(x):
					word := x.GetId() + "\t" + x.GetPhase()
					if len(x.GetItems()) > 0 {
						word += ": " + x.GetItems()[0].GetRepository() + ":" + x.GetItems()[0].GetTag()
					}
					words = append(words, word)
				}
			}
			return err
		})
		return withPrefix(words, start), noFiles
	}
}
