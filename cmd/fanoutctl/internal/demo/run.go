package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fanout-io/fanout/pkg/agent"
	"github.com/fanout-io/fanout/pkg/config"
	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/tree"
)

// Options of a demo.
type Options struct {
	// Dir keeps the fabric; empty: a temporary folder that is removed at the end.
	Dir string
	// Version of the agents.
	Version string
	// Command is how this program was called, for the commands that are printed.
	Command string
	// Out gets what the demo says.
	Out io.Writer
	// Show publishes a ref at an agent and draws the tree until every site has it.
	Show func(ctx context.Context, server, ref string, sites int) error
}

// errDone ends the fabric when a person asked for that.
var errDone = errors.New("done")

// Run starts the fabric, publishes the sample and keeps running until ctx ends. Nothing is left behind but what Options.Dir names.
func Run(ctx context.Context, opts Options) (err error) {
	dir := opts.Dir
	failed := false // what the log says is then wanted
	if dir == "" {
		if dir, err = os.MkdirTemp("", "fanout-demo-"); err != nil {
			return err
		}
		defer func() {
			if !failed {
				err = errors.Join(err, os.RemoveAll(dir))
			}
		}()
	}
	fabric, err := open(dir)
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(dir, "demo.log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	logger := slog.New(slog.NewTextHandler(log, nil))

	g, gctx := errgroup.WithContext(ctx)
	for _, s := range fabric.Sites {
		g.Go(func() error {
			if err := s.run(gctx, fabric, opts.Version, logger); err != nil {
				return fmt.Errorf("site %s: %w", s.Name, err)
			}
			return nil
		})
	}
	g.Go(func() error { return fabric.tour(gctx, dir, opts) })
	if err := g.Wait(); err != nil && !errors.Is(err, errDone) && ctx.Err() == nil {
		failed = true
		return fmt.Errorf("%w; the log is in %s", err, log.Name())
	}
	return nil
}

// run is one agent, until ctx ends.
func (s Site) run(ctx context.Context, f *Fabric, version string, logger *slog.Logger) error {
	cfg, err := s.config(f)
	if err != nil {
		return err
	}
	// Nine agents share this machine: they are given time before they suspect each other.
	a, err := agent.New(cfg, agent.Options{Version: version, Logger: logger, Timeouts: tree.Timeouts{Grace: 5 * time.Second}})
	if err != nil {
		return err
	}
	return a.Run(ctx)
}

// tour is what a person sees.
func (f *Fabric) tour(ctx context.Context, dir string, opts Options) error {
	first := f.Sites[0]
	fmt.Fprintf(opts.Out, "Starting %d sites, state in %s …\n", len(f.Sites), dir)
	if err := f.waitReady(ctx); err != nil {
		return err
	}
	if err := f.sample(ctx, opts.Out); err != nil {
		return fmt.Errorf("pushing the sample image: %w", err)
	}
	if err := opts.Show(ctx, first.Fabric, SampleRef, len(f.Sites)); err != nil {
		return err
	}
	fmt.Fprintf(opts.Out, "\nEvery registry has %s:\n", SampleRef)
	for _, s := range f.Sites {
		fmt.Fprintf(opts.Out, "  %-6s %-24s http://%s\n", s.Name, s.Group, s.Registry)
	}
	fmt.Fprintf(opts.Out, `
Push an image of your own to any registry of headquarters; it arrives everywhere:
  crane copy IMAGE %[1]s/my/app:1.0
  docker tag IMAGE %[1]s/my/app:1.0 && docker push %[1]s/my/app:1.0
Then look where it is:
  %[3]s --server %[2]s where my/app:1.0
  %[3]s --server %[2]s tree --watch

Ctrl-C stops the demo.
`, first.Registry, first.Fabric, opts.Command)
	<-ctx.Done()
	return errDone
}

// sample pushes the sample image to the first registry, unless that shows something under its name: then the fabric was started again, and comes up with what it had.
func (f *Fabric) sample(ctx context.Context, out io.Writer) error {
	first := f.Sites[0]
	client, err := registry.New(registry.Config{URL: "http://" + first.Registry})
	if err != nil {
		return err
	}
	defer client.CloseIdle()
	if _, err := client.Resolve(ctx, sampleRepository, sampleTag); !errors.Is(err, registry.ErrNotFound) {
		return err
	}
	fmt.Fprintf(out, "Pushing %s to %s, once …\n", SampleRef, first.Registry)
	return pushSample(ctx, client)
}

// waitReady waits until every agent says that it is ready.
func (f *Fabric) waitReady(ctx context.Context) error {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: (&net.Dialer{}).DialContext, DisableKeepAlives: true}}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for _, s := range f.Sites {
		for {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.HTTP+"/readyz", nil)
			if err != nil {
				return err
			}
			if resp, err := client.Do(req); err == nil {
				resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					break
				}
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			}
		}
	}
	return nil
}

// config writes the site's configuration file, as a person would, and reads it.
func (s Site) config(f *Fabric) (*config.Config, error) {
	members, parents := "", ""
	for _, other := range f.Sites {
		if other.Group == s.Group {
			members += fmt.Sprintf("    %s: %s\n", other.Name, other.Raft)
		}
		if other.Group == filepath.Dir(s.Group) {
			parents += fmt.Sprintf("    - %s\n", other.Fabric)
		}
	}
	if parents != "" {
		parents = "  parents:\n" + parents
	}
	text := fmt.Sprintf(`site: %s
group: %s
dataDir: %q
raft:
  listen: %s
  members:
%sfabric:
  listen: %s
  socket: %q
%shttp: {listen: "%s"}
registry:
  type: embedded
  listen: %s
`, s.Name, s.Group, s.DataDir, s.Raft, members, s.Fabric, s.Socket, parents, s.HTTP, s.Registry)
	if err := os.MkdirAll(s.DataDir, 0o750); err != nil {
		return nil, err
	}
	file := filepath.Join(s.DataDir, "fanoutd.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, err
	}
	return config.Parse(file, []byte(text), os.LookupEnv)
}
