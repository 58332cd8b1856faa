package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/client"
	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/screen"
	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/userconf"
	"github.com/fanout-io/fanout/pkg/view"
)

// silence is how long a connected agent may say nothing where an answer is due at once.
const silence = 30 * time.Second

// app is what all commands share.
type app struct {
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	env    func(string) string
	out    screen.Caps // of stdout
	err    screen.Caps // of stderr
	asks   bool        // somebody can be asked: stdin and stderr are terminals
	flags  globalFlags

	started bool           // the command line was understood
	command *cobra.Command // the one that runs
	printed bool           // a document was written
}

type globalFlags struct {
	server  string
	context string
	output  string
	timeout time.Duration
	tls     userconf.TLS
}

func newApp(stdin io.Reader, stdout, stderr io.Writer, env func(string) string) *app {
	return &app{stdin: stdin, stdout: stdout, stderr: stderr, env: env, out: screen.Of(stdout, env), err: screen.Of(stderr, env), asks: screen.Keyboard(stdin) && screen.Of(stderr, env).Terminal}
}

// commands is the list of what fanoutctl can do, in the order of its help.
func (a *app) commands() []*cobra.Command {
	return []*cobra.Command{
		a.publishCommand(),
		a.treeCommand(),
		a.whereCommand(),
		a.whyCommand(), a.describeCommand(),
		a.topCommand(),
		a.imagesCommand(),
		a.eventsCommand(),
		a.promoteCommand(),
		a.rolloutCommand(),
		a.policyCommand(),
		a.freezeCommand(),
		a.thawCommand(),
		a.conflictsCommand(),
		a.deletionsCommand(),
		a.verifyCommand(),
		a.diffCommand(),
		a.doctorCommand(),
		a.unpublishCommand(),
		a.undoCommand(),
		a.memberCommand(),
		a.groupCommand(),
		a.catalogCommand(),
		a.epochCommand(),
		a.caCommand(),
		a.configCommand(),
		a.versionCommand(),
		a.demoCommand(),
	}
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "fanoutctl",
		Short: "Show and steer a fanout fabric",
		Long: `fanoutctl speaks with an agent (fanoutd) of a fanout fabric. The agent answers for its own group and
everything below it; ask one at headquarters to see the whole fabric.

Which agent: --server, else FANOUT_SERVER, else the current context of the configuration file
(~/.config/fanout/config.yaml, see "fanoutctl config"), else the socket /run/fanoutd/fanoutd.sock.
To an agent on another machine fanoutctl speaks with TLS only: give the files of your certificate.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done at some sites only, 4 not equal,
5 timed out waiting, 130 interrupted.`,
		Example: `  fanoutctl publish team/app:1.4 --wait
  fanoutctl tree --watch
  fanoutctl where team/app:1.4 -o json`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error {
			switch a.flags.output {
			case "table", "json", "yaml":
			default:
				return fmt.Errorf("--output %q: want table, json or yaml", a.flags.output)
			}
			if a.flags.timeout < 0 {
				return fmt.Errorf("--timeout %s: want a duration such as 30s; 0 is none", a.flags.timeout)
			}
			return nil
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return errors.New(notANumber.ReplaceAllString(err.Error(), `"$1" is not a whole number that is meant here`))
	})
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	f := root.PersistentFlags()
	f.StringVar(&a.flags.server, "server", "", "agent to speak with: HOST:PORT or unix:PATH")
	f.StringVar(&a.flags.context, "context", "", "context of the configuration file to use instead of the current one")
	f.StringVarP(&a.flags.output, "output", "o", "table", "output: table, json or yaml")
	f.DurationVar(&a.flags.timeout, "timeout", 0, "bound for the whole command, such as 30s (0: none)")
	f.StringVar(&a.flags.tls.Cert, "tls-cert", "", "file of your certificate")
	f.StringVar(&a.flags.tls.Key, "tls-key", "", "file of its key")
	f.StringVar(&a.flags.tls.CA, "tls-ca", "", "file of the fabric's certificate authority")
	f.StringVar(&a.flags.tls.TrustDomain, "trust-domain", "", "trust domain of the fabric, such as example.com")
	a.completeFlag(root, "output", fixedCompletion("table", "json", "yaml"))
	a.completeFlag(root, "context", a.completeContexts)
	root.AddCommand(a.commands()...)
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" {
			cmd.Short = "Write a completion script: bash, zsh, fish or powershell"
			cmd.Example = "  source <(fanoutctl completion bash)"
			parent(cmd)
		}
	}
	a.noteStart(root)
	return root
}

// notANumber finds what Go says of one.
var notANumber = regexp.MustCompile(`strconv\.Parse(?:Int|Uint): parsing "([^"]*)": (?:invalid syntax|value out of range)`)

// noteStart lets a command say that it has begun: what went wrong before is wrong usage.
func (a *app) noteStart(cmd *cobra.Command) {
	if f := cmd.RunE; f != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			a.started = true
			return f(cmd, args)
		}
	}
	for _, child := range cmd.Commands() {
		a.noteStart(child)
	}
}

func (a *app) helpCommand() string {
	if a.command == nil {
		return "fanoutctl --help"
	}
	return a.command.CommandPath() + " --help"
}

// parent is a command that only has commands under it.
func parent(cmd *cobra.Command, children ...*cobra.Command) *cobra.Command {
	cmd.Args = noArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.AddCommand(children...)
	return cmd
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.HasAvailableSubCommands() {
		text := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			text += fmt.Sprintf("; did you mean %q?", near[0])
		}
		return errors.New(text)
	}
	return fmt.Errorf("%s takes no arguments, not %q", cmd.CommandPath(), args[0])
}

// args wants from least to most arguments that are called what.
func args(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		switch {
		case len(given) < least:
			return fmt.Errorf("%s needs %s", cmd.CommandPath(), what)
		case len(given) > most:
			return fmt.Errorf("%s takes %s, not %q as well", cmd.CommandPath(), what, given[most])
		}
		return nil
	}
}

// bounded applies --timeout.
func (a *app) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if a.flags.timeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, a.flags.timeout, errTimeout)
}

// talk connects with the agent and puts what goes wrong into words.
func (a *app) talk(ctx context.Context, f func(context.Context, *client.Client) error) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := a.bounded(ctx)
	defer cancel()
	return settle(ctx, c, f(ctx, c))
}

// settle prefers why we gave up over what gRPC made of it.
func settle(ctx context.Context, c *client.Client, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, errSilence) {
		return &client.Problem{What: fmt.Sprintf("the agent at %s has not answered for %s", c.Server(), silence), Todo: "It may be overloaded or stuck; its log says more. --timeout bounds a command.", Err: err}
	}
	err = c.Explain(err)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		// The agent knows our deadline too and may be a moment ahead of us.
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < time.Second {
			<-ctx.Done()
		}
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
	}
	return err
}

// each reads a stream to its end. With a limit, silence longer than it ends the stream with errSilence.
func each[T any](ctx context.Context, limit time.Duration, open func(context.Context) (grpc.ServerStreamingClient[T], error), f func(*T) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if limit > 0 {
		timer := time.AfterFunc(limit, func() { cancel(errSilence) })
		defer timer.Stop()
		inner := f
		f = func(m *T) error {
			timer.Stop() // the time that f takes is not the agent's
			defer timer.Reset(limit)
			return inner(m)
		}
	}
	silent := func(err error) error {
		if errors.Is(context.Cause(ctx), errSilence) {
			return errSilence
		}
		return err
	}
	stream, err := open(ctx)
	if err != nil {
		return silent(err)
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return silent(err)
		}
		if err := f(m); err != nil {
			return err
		}
	}
}

// retryMost is the longest wait between attempts to reach an agent that was lost.
const retryMost = 5 * time.Second

// persist runs once again whenever the agent is lost after something came from it. What was never reached is an error at once.
func (a *app) persist(ctx context.Context, c *client.Client, came *bool, lost func(reason string), once func(context.Context) error) error {
	wait := retryMost / 10
	ever := false
	for {
		*came = false
		err := once(ctx)
		if *came {
			ever, wait = true, retryMost/10
		}
		if err == nil || !ever || !client.Lost(err) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx) // and not that the agent was lost when the time was over
		}
		lost(c.Explain(err).Error() + "; trying again")
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
		wait = min(2*wait, retryMost)
	}
}

func (a *app) style() view.Style { return view.Style{Color: a.out.Color} }

// texter is a document that can be shown to people.
type texter interface{ Text(view.Style) string }

// print writes a document whole.
func (a *app) print(doc texter) error { return a.emit(doc, true) }

// printLine writes a document of which there are several: JSON on one line.
func (a *app) printLine(doc texter) error { return a.emit(doc, false) }

func (a *app) emit(doc texter, indent bool) error {
	defer func() { a.printed = true }()
	switch a.flags.output {
	case "json":
		return view.JSON(a.stdout, doc, indent)
	case "yaml":
		return view.YAML(a.stdout, doc)
	}
	text := doc.Text(a.style())
	if a.printed && indent {
		text = "\n" + text
	}
	_, err := io.WriteString(a.stdout, text)
	return err
}

// picture shows documents of a watch, one in place of the other on a terminal and one after the other elsewhere.
type picture struct {
	a     *app
	frame *screen.Frame
	last  string
}

func (a *app) newPicture() *picture {
	p := &picture{a: a}
	if a.flags.output == "table" && a.out.Terminal {
		p.frame = screen.NewFrame(a.stdout, a.out)
	}
	return p
}

func (p *picture) show(doc texter) error {
	if p.frame == nil {
		if p.a.flags.output == "table" {
			return p.a.print(doc)
		}
		return p.a.printLine(doc)
	}
	p.last = doc.Text(p.a.style())
	return p.frame.Draw(p.last)
}

// note tells of trouble without spoiling the picture.
func (p *picture) note(text string) {
	if p.frame == nil {
		fmt.Fprintln(p.a.stderr, screen.Clean(text))
		return
	}
	// The next write to the terminal fails in the same way, if this one does.
	_ = p.frame.Draw(p.last + "\n" + screen.Clean(text) + "\n")
}
