package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/client"
	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/userconf"
	"github.com/fanout-io/fanout/pkg/view"
)

func (a *app) configCommand() *cobra.Command {
	return parent(&cobra.Command{
		Use:   "config",
		Short: "Your contexts: which agent, and with which certificate",
		Long: `A context is an agent and how you prove yourself to it, under a name. Contexts are kept in
$XDG_CONFIG_HOME/fanout/config.yaml, by default ~/.config/fanout/config.yaml.`,
		Example: `  fanoutctl config set prod --server hq.example.com:7400 --tls-cert alice/tls.crt --tls-key alice/tls.key \
      --tls-ca alice/ca.crt --trust-domain example.com
  fanoutctl config use prod`,
	}, a.configViewCommand(), a.configContextsCommand(), a.configUseCommand(), a.configSetCommand())
}

func (a *app) configViewCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "view",
		Short:             "Show the configuration file",
		Long:              `Shows the configuration as fanoutctl understands it. It holds names of files, no secrets.`,
		Example:           `  fanoutctl config view`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			conf, err := userconf.Load(userconf.Path(a.env))
			if err != nil {
				return err
			}
			return a.print(viewDoc{conf, contextsDoc(conf)})
		},
	}
}

// viewDoc is the file itself for people, and the contexts as a document for programs.
type viewDoc struct {
	conf *userconf.File
	view.Contexts
}

func (d viewDoc) Text(view.Style) string {
	b, err := d.conf.Marshal()
	if err != nil {
		return err.Error() + "\n"
	}
	return string(b)
}

func (a *app) configContextsCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "contexts",
		Short:             "List the contexts; * marks the current one",
		Long:              `Lists the contexts of the configuration file. The current one is used where no --server, FANOUT_SERVER or --context says otherwise.`,
		Example:           `  fanoutctl config contexts -o json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			conf, err := userconf.Load(userconf.Path(a.env))
			if err != nil {
				return err
			}
			return a.print(contextsDoc(conf))
		},
	}
}

func contextsDoc(conf *userconf.File) view.Contexts {
	doc := view.Contexts{SchemaVersion: view.SchemaVersion, Contexts: []view.Context{}}
	for _, name := range conf.Names() {
		c := conf.Contexts[name]
		doc.Contexts = append(doc.Contexts, view.Context{
			Name: name, Current: name == conf.Current, Server: c.Server, Cert: c.TLS.Cert, Key: c.TLS.Key, CA: c.TLS.CA, TrustDomain: c.TLS.TrustDomain,
		})
	}
	return doc
}

func (a *app) configUseCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "use NAME",
		Short:             "Make a context the current one",
		Long:              `Makes a context the current one.`,
		Example:           `  fanoutctl config use prod`,
		Args:              args(1, 1, "the name of one context"),
		ValidArgsFunction: a.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.changeConfig(func(conf *userconf.File) error {
				if _, ok := conf.Contexts[args[0]]; !ok {
					return &client.Problem{What: fmt.Sprintf("there is no context %q", args[0]), Todo: "See: fanoutctl config contexts", Err: userconf.ErrNoContext}
				}
				conf.Current = args[0]
				return nil
			})
		},
	}
}

func (a *app) configSetCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "set NAME",
		Short: "Add or change a context",
		Long: `Adds or changes a context with what --server, --tls-cert, --tls-key, --tls-ca and --trust-domain say; what is not given stays as
it is. The first context becomes the current one. The file is written anew: comments in it are lost.`,
		Example: `  fanoutctl config set lab --server 127.0.0.1:7400
  fanoutctl config set here --server unix:/run/fanoutd/fanoutd.sock`,
		Args:              args(1, 1, "the name of one context"),
		ValidArgsFunction: a.completeContexts,
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			if err := userconf.ValidName(name); err != nil {
				return &client.Problem{What: err.Error(), Usage: true, Err: err}
			}
			return a.changeConfig(func(conf *userconf.File) error {
				c := conf.Contexts[name]
				if err := a.fill(cmd, &c); err != nil {
					return err
				}
				conf.Contexts[name] = c
				if conf.Current == "" {
					conf.Current = name
				}
				return nil
			})
		},
	}
}

// fill takes over the flags that were given, with absolute paths: the context is used from elsewhere.
func (a *app) fill(cmd *cobra.Command, c *userconf.Context) error {
	if cmd.Flags().Changed("server") {
		c.Server = a.flags.server
	}
	if c.Server == "" {
		return &client.Problem{What: "a new context needs --server", Usage: true}
	}
	server, err := client.ParseAddress(c.Server)
	if err != nil {
		return &client.Problem{What: err.Error(), Usage: true, Err: err}
	}
	c.Server = server.String()
	for _, x := range []struct {
		flag, value string
		to          *string
	}{{"tls-cert", a.flags.tls.Cert, &c.TLS.Cert}, {"tls-key", a.flags.tls.Key, &c.TLS.Key}, {"tls-ca", a.flags.tls.CA, &c.TLS.CA}} {
		if !cmd.Flags().Changed(x.flag) {
			continue
		}
		*x.to = x.value
		if x.value != "" {
			if *x.to, err = filepath.Abs(x.value); err != nil {
				return err
			}
		}
	}
	if cmd.Flags().Changed("trust-domain") {
		c.TLS.TrustDomain = a.flags.tls.TrustDomain
	}
	return nil
}

func (a *app) changeConfig(change func(*userconf.File) error) error {
	path := userconf.Path(a.env)
	conf, err := userconf.Load(path)
	if err != nil {
		return err
	}
	if err := change(conf); err != nil {
		return err
	}
	return conf.Save(path)
}
