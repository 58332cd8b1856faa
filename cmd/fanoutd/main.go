// Command fanoutd is the agent beside a registry.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	_ "time/tzdata" // windows are judged in the zones that a plan names, also where the machine has no database of them

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/grpc/grpclog"

	"github.com/fanout-io/fanout/pkg/agent"
	"github.com/fanout-io/fanout/pkg/config"
	"github.com/fanout-io/fanout/pkg/tracing"
)

// version is set by the linker.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := command(os.Stderr).ExecuteContext(ctx); err != nil {
		stop()
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func command(stderr io.Writer) *cobra.Command {
	var file, level string
	var check bool
	cmd := &cobra.Command{
		Use:           "fanoutd --config FILE",
		Short:         "The fanout agent that runs beside one registry",
		Long:          "fanoutd keeps one registry equal to what headquarters published. It runs in the foreground, logs to stderr and stops on SIGTERM or SIGINT.",
		Version:       version,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if check {
				cfg, err := load(file, readable)
				if err != nil {
					return err
				}
				if err := agent.Check(cfg); err != nil {
					return fmt.Errorf("%s: %w", file, err)
				}
				for _, key := range cfg.NotInForce() {
					fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s is not in force in this version\n", file, key)
				}
				for _, doubt := range cfg.Doubts() {
					fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", file, doubt)
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: ok\n", file)
				return err
			}
			cfg, err := load(file, nil)
			if err != nil {
				return err
			}
			logger, err := newLogger(stderr, level)
			if err != nil {
				return err
			}
			grpclog.SetLoggerV2(grpcLogger{logger.With("site", cfg.Site, "group", cfg.Group)})
			for _, key := range cfg.NotInForce() {
				logger.Warn("this key is not in force in this version", "key", key)
			}
			for _, doubt := range cfg.Doubts() {
				logger.Warn("the configuration says what can't be meant", "reason", doubt)
			}
			tracer, err := newTracer(cmd.Context(), cfg, logger)
			if err != nil {
				return err
			}
			defer tracer.Close()
			a, err := agent.New(cfg, agent.Options{Version: version, Logger: logger, Tracer: tracer})
			if err != nil {
				return err
			}
			hup := make(chan os.Signal, 1)
			signal.Notify(hup, syscall.SIGHUP)
			defer signal.Stop(hup)
			go reloadOn(cmd.Context(), hup, func() {
				cfg, err := load(file, nil)
				if err == nil {
					err = a.Reload(cfg)
				}
				if err != nil {
					logger.Error("not reloaded", "error", err)
				}
			})
			return a.Run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "the configuration file (required)")
	cmd.Flags().BoolVar(&check, "check", false, "validate the configuration and exit")
	cmd.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error")
	_ = cmd.MarkFlagRequired("config")
	return cmd
}

// newTracer tells a collector of spans where the environment names one; nil: it does not.
func newTracer(ctx context.Context, cfg *config.Config, logger *slog.Logger) (*tracing.Tracer, error) {
	logger = logger.With("site", cfg.Site, "group", cfg.Group)
	if tracing.Wanted(os.LookupEnv) {
		tracing.LogTo(logger)
	}
	return tracing.New(ctx, tracing.Config{Lookup: os.LookupEnv, Site: cfg.Site, Group: cfg.Group, Version: version, Logger: logger})
}

// reloadOn calls reload for each signal until ctx ends.
func reloadOn(ctx context.Context, hup <-chan os.Signal, reload func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
			reload()
		}
	}
}

// load reads a configuration; with read, also whether the files that it names can be read.
func load(file string, read func(string) error) (*config.Config, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, config.MaxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	if read != nil {
		return config.Check(file, data, os.LookupEnv, read)
	}
	return config.Parse(file, data, os.LookupEnv)
}

// readable says why a file can't be read.
func readable(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.ReadAll(io.LimitReader(f, 1)) // a folder can be opened, but not read
	return err
}

// newLogger writes text on a terminal and JSON elsewhere.
func newLogger(w io.Writer, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q is none of debug, info, warn, error", level)
	}
	opts := &slog.HandlerOptions{Level: l, ReplaceAttr: plainAttr}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return slog.New(slog.NewTextHandler(w, opts)), nil
	}
	return slog.New(slog.NewJSONHandler(w, opts)), nil
}

// plainAttr writes durations with their unit, and leaves out a digest that a line has none of.
func plainAttr(_ []string, a slog.Attr) slog.Attr {
	switch {
	case a.Value.Kind() == slog.KindDuration:
		a.Value = slog.StringValue(a.Value.Duration().String())
	case a.Key == "digest" && a.Value.Kind() == slog.KindString && a.Value.String() == "":
		return slog.Attr{}
	}
	return a
}
