package main

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/client"
	"github.com/fanout-io/fanout/pkg/identity"
	"github.com/fanout-io/fanout/pkg/view"
)

func (a *app) caCommand() *cobra.Command {
	return parent(&cobra.Command{
		Use:   "ca",
		Short: "A small certificate authority, where there is nothing else",
		Long: `Makes the certificates by which agents and people prove who they are (SPIFFE IDs), for places that have no SPIRE,
cert-manager or Vault. These commands work on files only; they speak with no agent.`,
		Example: `  fanoutctl ca init --dir ./ca --trust-domain example.com
  fanoutctl ca issue --ca-dir ./ca --group hq --site hq-a --out ./hq-a
  fanoutctl ca issue --ca-dir ./ca --user alice --out ./alice --ttl 30d`,
	}, a.caInitCommand(), a.caIssueCommand())
}

func (a *app) caInitCommand() *cobra.Command {
	var dir, trustDomain string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make a certificate authority",
		Long: `Writes ca.crt and ca.key to a directory. An authority that is there is never overwritten. Keep ca.key off the agents' machines:
who has it can be anybody in the fabric.`,
		Example:           `  fanoutctl ca init --dir ./ca --trust-domain example.com`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			if err := identity.InitCA(dir, trustDomain); err != nil {
				return err
			}
			cert := filepath.Join(dir, identity.CACertFile)
			end := time.Now().Add(identity.CATTL).UTC().Truncate(time.Second)
			return a.print(view.Certificate{
				SchemaVersion: view.SchemaVersion, ID: "spiffe://" + trustDomain, Cert: cert, Key: filepath.Join(dir, identity.CAKeyFile), CA: cert, NotAfter: &end,
			})
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory to write to (required)")
	// The global flag of that name says in which domain an agent must be; here it names the new one.
	cmd.Flags().StringVar(&trustDomain, "trust-domain", "", "trust domain of the fabric, such as example.com (required)")
	require(cmd, "dir", "trust-domain")
	return cmd
}

func (a *app) caIssueCommand() *cobra.Command {
	var (
		caDir, out string
		id         identity.ID
		ttl        days
		dns        []string
		ips        []net.IP
	)
	cmd := &cobra.Command{
		Use:   "issue",
		Short: "Issue a certificate to a site or a user",
		Long: `Writes tls.crt, tls.key and ca.crt for one site (--group and --site) or one user (--user). Issue again to the same
directory to renew: agents read the files again by themselves.`,
		Example: `  fanoutctl ca issue --ca-dir ./ca --group hq/guangdong --site gd-a --out ./gd-a
  fanoutctl ca issue --ca-dir ./ca --user alice --ttl 30d --out ~/.config/fanout/alice`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			if err := id.Validate(); err != nil {
				return &client.Problem{What: err.Error(), Todo: "Give --group and --site for an agent, or --user for a person.", Usage: true, Err: err}
			}
			if err := identity.Issue(caDir, id, identity.IssueOptions{TTL: time.Duration(ttl), DNS: dns, IPs: ips, OutDir: out}); err != nil {
				return err
			}
			f := identity.Files{Cert: filepath.Join(out, identity.CertFile), Key: filepath.Join(out, identity.KeyFile), CA: filepath.Join(out, identity.CACertFile)}
			s, err := identity.Load(f, nil) // what was written can be used
			if err != nil {
				return err
			}
			uri, err := s.ID().URI(s.TrustDomain())
			if err != nil {
				return err
			}
			end := s.NotAfter().UTC()
			return a.print(view.Certificate{SchemaVersion: view.SchemaVersion, ID: uri, Cert: f.Cert, Key: f.Key, CA: f.CA, NotAfter: &end})
		},
	}
	f := cmd.Flags()
	f.StringVar(&caDir, "ca-dir", "", "directory of the certificate authority (required)")
	f.StringVar(&id.Group, "group", "", "path of the site's group, such as hq/guangdong")
	f.StringVar(&id.Site, "site", "", "name of the site")
	f.StringVar(&id.User, "user", "", "name of the user")
	f.Var(&ttl, "ttl", "how long it is valid, such as 90d or 12h (default 365d)")
	f.StringSliceVar(&dns, "dns", nil, "DNS names to put in as well, for clients that look at them")
	f.IPSliceVar(&ips, "ip", nil, "IP addresses to put in as well")
	f.StringVar(&out, "out", "", "directory to write to (required)")
	require(cmd, "ca-dir", "out")
	cmd.MarkFlagsMutuallyExclusive("site", "user")
	return cmd
}

// require marks flags; that they exist is known here.
func require(cmd *cobra.Command, names ...string) {
	for _, name := range names {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err)
		}
	}
}

// days is a duration that may be given in days.
type days time.Duration

func (d *days) Type() string { return "duration" }

func (d *days) String() string {
	if *d == 0 {
		return "" // help shows no default then
	}
	return time.Duration(*d).String()
}

func (d *days) Set(s string) error {
	if n, ok := strings.CutSuffix(s, "d"); ok {
		count, err := strconv.ParseUint(n, 10, 16)
		if err != nil || count == 0 || count > 36500 {
			return fmt.Errorf("%q: want a number of days such as 90d", s)
		}
		*d = days(time.Duration(count) * 24 * time.Hour)
		return nil
	}
	v, err := time.ParseDuration(s)
	if err != nil || v <= 0 {
		return fmt.Errorf("%q: want a time such as 90d or 12h", s)
	}
	*d = days(v)
	return nil
}
