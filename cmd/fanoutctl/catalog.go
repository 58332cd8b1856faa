package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
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

// catalogPart is what one message of a catalog carries.
const catalogPart = 1 << 20

func (a *app) catalogCommand() *cobra.Command {
	return parent(&cobra.Command{
		Use:   "catalog",
		Short: "Save the catalog; restore it when headquarters was lost",
		Long: `Commands about the catalog as a whole: what every site should show. Headquarters writes it, the groups below hold what
they subscribe to. It is small, and holds no content.`,
		Example: `  fanoutctl catalog save /backup/catalog
  fanoutctl catalog restore /backup/catalog`,
	}, a.catalogSaveCommand(), a.catalogRestoreCommand(), a.catalogAdoptCommand())
}

func (a *app) catalogSaveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "save FILE",
		Short: "Write the agent's catalog to a file, for restore",
		Long: `Writes the catalog that the agent holds to FILE, which is replaced only when all of it was received and is right; - is
stdout. At headquarters that is all of the catalog, elsewhere what the group subscribes to. Save it now and then, and before upgrades.`,
		Example: `  fanoutctl catalog save /backup/catalog
  fanoutctl catalog save - | gzip > /backup/catalog.gz`,
		Args:              args(1, 1, "one FILE"),
		ValidArgsFunction: completeFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.talk(cmd.Context(), func(ctx context.Context, c *client.Client) error { return a.saveCatalog(ctx, c, args[0]) })
		},
	}
}

func (a *app) catalogRestoreCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Take over a saved catalog at a headquarters that was built anew",
		Long: `Takes over the catalog in FILE (- is stdin) at headquarters, which must have published nothing yet. A new epoch of the
catalog begins where the saved one ended: groups that had followed up to there, or less far, go on by themselves. Those that had followed
further keep what they have and say "foreign epoch", until an operator accepts: fanoutctl epoch accept.

If it is broken off, nothing can be published until it is done again.`,
		Example: `  fanoutctl --server hq-a:7400 catalog restore /backup/catalog
  gunzip < /backup/catalog.gz | fanoutctl catalog restore -`,
		Args:              args(1, 1, "one FILE"),
		ValidArgsFunction: completeFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			file, done, err := a.openCatalog(args[0])
			if err != nil {
				return err
			}
			defer done()
			return a.restoreCatalog(cmd.Context(), file, args[0], yes)
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "restore it although it is a part of the catalog only")
	return cmd
}

func (a *app) catalogAdoptCommand() *cobra.Command {
	var from string
	var yes bool
	cmd := &cobra.Command{
		Use:   "adopt --from SERVER",
		Short: "Take over the catalog that another group still has at a headquarters that was built anew",
		Long: `Takes over the catalog of the agent at --from, such as one of a province, at the headquarters of --server: for when
headquarters was lost, with no newer backup than what that group has. It is catalog save there and catalog restore here.

A group holds what it and the groups below it subscribe to. When that is not everything, the command says what it is and wants --yes.`,
		Example: `  fanoutctl --server hq-a:7400 catalog adopt --from gd-a:7400`,
		Args:    noArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := a.bounded(cmd.Context())
			defer cancel()
			file, done, err := tempCatalog()
			if err != nil {
				return err
			}
			defer done()
			there := *a
			there.flags.server = from
			err = there.talk(ctx, func(ctx context.Context, c *client.Client) error {
				_, err := download(ctx, c, file)
				return err
			})
			if err != nil {
				return err
			}
			return a.restoreCatalog(ctx, file, from, yes)
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "agent that has the catalog: HOST:PORT or unix:PATH")
	cmd.Flags().BoolVar(&yes, "yes", false, "take it over although it is a part of the catalog only")
	_ = cmd.MarkFlagRequired("from") // it is there
	return cmd
}

func (a *app) epochCommand() *cobra.Command {
	return parent(&cobra.Command{
		Use:   "epoch",
		Short: "Follow a headquarters that was built anew",
		Long: `Commands about the epoch of the catalog: one life of headquarters' catalog, and those that it goes on from. A group
follows no epoch that does not go on from the one it holds, until an operator accepts it.`,
		Example: `  fanoutctl epoch accept`,
	}, &cobra.Command{
		Use:   "accept [EPOCH]",
		Short: "Let the agent's group follow the catalog that its parent has now",
		Long: `Lets the group that the agent belongs to follow the catalog that its parent has now, or EPOCH, although it does not go
on from the one that is held ("foreign epoch" in tree). All of it is received, and replaces what is held as a whole; what refs show then
follows. Tags that the new catalog does not have stay in the registries as they are. Groups below are asked themselves.

Accepting the epoch that is held takes an earlier word back.`,
		Example: `  fanoutctl --server gd-a:7400 epoch accept`,
		Args:    args(0, 1, "one EPOCH at most"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &adminv1.AcceptEpochRequest{}
			if len(args) > 0 {
				req.Epoch = args[0]
			}
			return a.talk(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				r, err := unary(ctx, func(ctx context.Context) (*adminv1.AcceptEpochResponse, error) { return c.AcceptEpoch(ctx, req) })
				if err != nil {
					return err
				}
				return a.print(view.AcceptedOf(r))
			})
		},
	})
}

func completeFiles(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveDefault
}

// download writes an agent's catalog to w and reads it at the same time, so that what is not whole is noticed.
func download(ctx context.Context, c *client.Client, w io.Writer) (*catalog.Snapshot, error) {
	type read struct {
		m   *catalog.Machine
		err error
	}
	in, out := io.Pipe()
	result := make(chan read, 1)
	go func() {
		m, err := catalog.Restore(in)
		in.CloseWithError(err) // never fails
		result <- read{m, err}
	}()
	err := each(ctx, silence, func(ctx context.Context) (grpc.ServerStreamingClient[adminv1.SaveCatalogResponse], error) {
		return c.SaveCatalog(ctx, &adminv1.SaveCatalogRequest{})
	}, func(r *adminv1.SaveCatalogResponse) error {
		if _, err := w.Write(r.GetData()); err != nil {
			return err
		}
		_, err := out.Write(r.GetData())
		return err
	})
	out.CloseWithError(err) // never fails; nil is the end
	got := <-result
	switch {
	case err != nil:
		return nil, err
	case got.err != nil:
		return nil, fmt.Errorf("what the agent sent is not a whole catalog: %w", got.err)
	}
	return got.m.Snapshot(), nil
}

func (a *app) saveCatalog(ctx context.Context, c *client.Client, name string) error {
	doc := func(snap *catalog.Snapshot) view.SavedCatalog {
		at := snap.Position()
		return view.SavedCatalog{SchemaVersion: view.SchemaVersion, File: name, Epoch: at.GetEpoch(), Revision: at.GetRevision(), Records: uint64(snap.Len())}
	}
	if name == "-" {
		snap, err := download(ctx, c, a.stdout)
		if err == nil {
			fmt.Fprint(a.stderr, doc(snap).Text(a.style()))
		}
		return err
	}
	var snap *catalog.Snapshot
	err := replaceFile(name, func(w io.Writer) (err error) {
		snap, err = download(ctx, c, w)
		return err
	})
	if err != nil {
		return err
	}
	return a.print(doc(snap))
}

// replaceFile writes a file beside the one that it then replaces, durably.
func replaceFile(name string, write func(io.Writer) error) error {
	dir := filepath.Dir(name)
	f, err := os.CreateTemp(dir, "."+filepath.Base(name)+".*")
	var named *fs.PathError
	if errors.As(err, &named) {
		return &fs.PathError{Op: "write", Path: name, Err: named.Err} // the temporary name says nothing to anybody
	}
	if err != nil {
		return err
	}
	if err = write(f); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// tempCatalog is a file for a catalog on its way; done removes it.
func tempCatalog() (f *os.File, done func(), err error) {
	f, err = os.CreateTemp("", "fanout-catalog-")
	if err != nil {
		return nil, nil, err
	}
	return f, func() {
		_ = f.Close() // what was in it was used, or was not
		_ = os.Remove(f.Name())
	}, nil
}

// openCatalog opens a saved catalog, which is read twice: stdin is therefore written down first.
func (a *app) openCatalog(name string) (*os.File, func(), error) {
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, nil, err
		}
		return f, func() { _ = f.Close() }, nil
	}
	f, done, err := tempCatalog()
	if err != nil {
		return nil, nil, err
	}
	if _, err := io.Copy(f, a.stdin); err != nil {
		done()
		return nil, nil, fmt.Errorf("reading stdin: %w", err)
	}
	return f, done, nil
}

// restoreCatalog sends a saved catalog to headquarters, when it is whole, or the user knows that it is not.
func (a *app) restoreCatalog(ctx context.Context, file io.ReadSeeker, name string, yes bool) error {
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	m, err := catalog.Restore(file)
	if err != nil {
		return &client.Problem{What: name + ": " + err.Error(), Todo: "Nothing was changed. Use another backup, or: fanoutctl catalog adopt", Err: err}
	}
	if part := partOnly(m.Snapshot()); part != "" {
		warning := fmt.Sprintf("%s holds a part of the catalog only: %s. What lies outside it is lost to headquarters", screen.Clean(name), screen.Clean(part))
		if !yes {
			return &client.Problem{What: warning, Todo: "Nothing was changed. To take it over all the same, give --yes."}
		}
		fmt.Fprintln(a.stderr, "Warning: "+warning+".")
	}
	if !m.Snapshot().Founded() {
		fmt.Fprintln(a.stderr, "Warning: "+screen.Clean(name)+" has the catalog of a group below headquarters. It knows no policies and no rollouts, and of releases only\n"+
			"what concerns that group: put the policies in force again before anything is pushed, and promote again what other groups had.")
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return a.talk(ctx, func(ctx context.Context, c *client.Client) error {
		r, err := upload(ctx, c, file)
		if err != nil {
			return err
		}
		return a.print(view.RestoredOf(r))
	})
}

func upload(ctx context.Context, c *client.Client, r io.Reader) (*adminv1.RestoreCatalogResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.RestoreCatalog(ctx)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, catalogPart)
	for {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			if err := stream.Send(&adminv1.RestoreCatalogRequest{Data: buf[:n]}); err != nil {
				break // the answer says why
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	return stream.CloseAndRecv()
}

// partOnly says what part of the catalog a saved one is; empty: all of it.
func partOnly(saved *catalog.Snapshot) string {
	everything := &catalogv1.Scope{AnyOf: []*catalogv1.Subscription{{Repositories: []string{"**"}}}}
	if saved.Founded() || saved.Position().GetScope() == catalog.ScopeHash("", nil, everything) {
		return ""
	}
	var subs []string
	for _, s := range saved.Demand().GetAnyOf() {
		text := strings.Join(s.GetRepositories(), " ")
		if len(s.GetExclude()) > 0 {
			text += " without " + strings.Join(s.GetExclude(), " ")
		}
		if s.GetKeep() > 0 {
			text += " (the newest " + view.Plural(int(s.GetKeep()), "tag") + ")"
		}
		subs = append(subs, text)
	}
	if len(subs) == 0 {
		return "of which repositories is not known"
	}
	return strings.Join(subs, ", ") + ", as far as the groups above it had that"
}
