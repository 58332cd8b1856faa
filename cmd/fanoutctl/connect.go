package main

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/client"
	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/userconf"
	"github.com/fanout-io/fanout/pkg/identity"
)

// Sockets that agents have where nothing says otherwise.
const (
	runSocket  = "/run/fanoutd/fanoutd.sock"
	dataSocket = "/var/lib/fanoutd/fanoutd.sock"
)

// target is the agent to speak with and the files with which we prove ourselves.
type target struct {
	server client.Address
	tls    userconf.TLS
}

// target decides: flag, environment, context, socket. A context's certificate belongs to that context's server; it is used for another server only
// where one is needed, that is for a server on another machine.
func (a *app) target() (target, error) {
	conf, err := userconf.Load(userconf.Path(a.env))
	if err != nil {
		return target{}, &client.Problem{What: err.Error(), Todo: "Mend the file, or move it away.", Err: err}
	}
	name := a.flags.context
	if name == "" {
		name = conf.Current
	}
	ctx, known := conf.Contexts[name]
	if a.flags.context != "" && !known {
		return target{}, &client.Problem{What: fmt.Sprintf("there is no context %q", a.flags.context), Todo: "See: fanoutctl config contexts", Usage: true, Err: userconf.ErrNoContext}
	}
	t := target{tls: userconf.TLS{
		Cert:        either(a.flags.tls.Cert, a.env("FANOUT_TLS_CERT")),
		Key:         either(a.flags.tls.Key, a.env("FANOUT_TLS_KEY")),
		CA:          either(a.flags.tls.CA, a.env("FANOUT_TLS_CA")),
		TrustDomain: either(a.flags.tls.TrustDomain, a.env("FANOUT_TRUST_DOMAIN")),
	}}
	server := a.flags.server
	fromContext := false
	if server == "" && a.flags.context == "" {
		server = a.env("FANOUT_SERVER")
	}
	if server == "" && known {
		server, fromContext = ctx.Server, true
	}
	if server == "" {
		server = "unix:" + defaultSocket()
	}
	if t.server, err = client.ParseAddress(server); err != nil {
		return target{}, &client.Problem{What: err.Error(), Usage: true, Err: err}
	}
	if known && (fromContext || !t.server.Loopback()) {
		t.tls.Cert = either(t.tls.Cert, ctx.TLS.Cert)
		t.tls.Key = either(t.tls.Key, ctx.TLS.Key)
		t.tls.CA = either(t.tls.CA, ctx.TLS.CA)
		t.tls.TrustDomain = either(t.tls.TrustDomain, ctx.TLS.TrustDomain)
	}
	return t, nil
}

func either(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func defaultSocket() string {
	if _, err := os.Stat(runSocket); err != nil {
		if _, err := os.Stat(dataSocket); err == nil {
			return dataSocket
		}
	}
	return runSocket
}

func (a *app) connect() (*client.Client, error) {
	t, err := a.target()
	if err != nil {
		return nil, err
	}
	cfg := client.Config{Server: t.server}
	if t.server.Socket == "" && t.tls != (userconf.TLS{}) {
		for _, x := range []struct{ flag, value string }{
			{"--tls-cert", t.tls.Cert}, {"--tls-key", t.tls.Key}, {"--tls-ca", t.tls.CA}, {"--trust-domain", t.tls.TrustDomain},
		} {
			if x.value == "" {
				return nil, &client.Problem{What: x.flag + " is missing", Todo: "TLS needs --tls-cert, --tls-key, --tls-ca and --trust-domain together, or a context that has them.", Usage: true}
			}
		}
		cfg.Identity, err = identity.Load(identity.Files{Cert: t.tls.Cert, Key: t.tls.Key, CA: t.tls.CA, TrustDomain: t.tls.TrustDomain}, slog.New(slog.DiscardHandler))
		if err != nil {
			return nil, err
		}
	}
	return client.New(cfg)
}
