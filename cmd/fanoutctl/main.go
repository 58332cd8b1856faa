// Command fanoutctl shows and steers a fanout fabric.
//
// Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done at some sites only, 4 not equal, 5 timed out waiting, 130 interrupted.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	_ "time/tzdata" // windows are judged in the zones that a plan names, also where the machine has no database of them

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/client"
	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/screen"
)

// Exit codes.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitPartial     = 3
	exitNotEqual    = 4
	exitTimeout     = 5
	exitInterrupted = 130
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv))
}

// run is the whole program. The end of ctx is the user's interruption.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, env func(string) string) int {
	return newApp(stdin, stdout, stderr, env).run(ctx, args)
}

func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	a.command = cmd
	code := a.exitCode(ctx, err)
	if err != nil {
		a.complain(ctx, err)
	}
	return code
}

// exitError carries an exit code. An empty text is not shown.
type exitError struct {
	code int
	text string
	todo string
}

func (e *exitError) Error() string { return e.text }

var (
	// errTimeout: --timeout has passed.
	errTimeout = errors.New("timed out")
	// errSilence: an agent that is connected does not answer.
	errSilence = errors.New("no answer")
)

func (a *app) exitCode(ctx context.Context, err error) int {
	var (
		exit    *exitError
		problem *client.Problem
	)
	switch {
	case err == nil:
		return exitOK
	case ctx.Err() != nil:
		return exitInterrupted
	case errors.As(err, &exit):
		return exit.code
	case errors.Is(err, errTimeout):
		return exitTimeout
	case errors.As(err, &problem) && problem.Usage, !a.started: // cobra refused flags, arguments or the command's name
		return exitUsage
	}
	return exitFailed
}

func (a *app) complain(ctx context.Context, err error) {
	var (
		exit    *exitError
		problem *client.Problem
		todo    string
	)
	text := err.Error()
	switch {
	case ctx.Err() != nil:
		text = "interrupted"
	case errors.As(err, &exit):
		todo = exit.todo
	case errors.Is(err, errTimeout):
		text = fmt.Sprintf("timed out after %s (--timeout)", a.flags.timeout)
	case errors.As(err, &problem):
		todo = problem.Todo
	case !a.started:
		todo = "See: " + a.helpCommand()
	}
	if text == "" {
		return
	}
	// Errors of several parts come on several lines.
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		fmt.Fprintln(a.stderr, "Error: "+screen.Clean(line))
	}
	if todo != "" {
		fmt.Fprintln(a.stderr, todo)
	}
}
