package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/screen"
	"github.com/fanout-io/fanout/internal/wording"
	"github.com/fanout-io/fanout/pkg/identity"
)

var errNotLoopback = errors.New("not a loopback address")

// Problem is an error for people: what is wrong, and what to do about it.
type Problem struct {
	What  string
	Todo  string // whole sentences; may be empty
	Usage bool   // the command line is at fault
	Err   error
}

func (p *Problem) Error() string { return p.What }
func (p *Problem) Unwrap() error { return p.Err }

// Lost says that the connection broke or could not be made, so that trying again may help.
func Lost(err error) bool { return status.Code(unwrapStatus(err)) == codes.Unavailable }

// unwrapStatus finds the status of a call under what Explain made of it.
func unwrapStatus(err error) error {
	var p *Problem
	if errors.As(err, &p) && p.Err != nil {
		return p.Err
	}
	return err
}

// Explain turns the error of a call into words. nil and errors that are in words already stay as they are.
func (c *Client) Explain(err error) error {
	var p *Problem
	if err == nil || errors.As(err, &p) {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	server := c.cfg.Server.String()
	message := screen.Clean(st.Message())
	problem := func(what, todo string) error { return &Problem{What: what, Todo: todo, Err: err} }
	switch st.Code() {
	case codes.Unavailable:
		return c.unreachable(server, message, err)
	case codes.Canceled:
		return &Problem{What: "the agent at " + server + " broke the call off: " + message, Err: errors.Join(context.Canceled, err)}
	case codes.DeadlineExceeded:
		return &Problem{What: "the agent at " + server + " gave up: " + message, Err: errors.Join(context.DeadlineExceeded, err)}
	case codes.Unimplemented:
		return problem("the agent at "+server+" does not know this command: "+message, "It may be older than this fanoutctl; compare with: fanoutctl version")
	case codes.Unauthenticated:
		return problem("the agent at "+server+" does not know who you are: "+message, "Give --tls-cert, --tls-key, --tls-ca and --trust-domain.")
	case codes.PermissionDenied:
		return problem("not allowed: "+message, "Use a certificate of somebody who may do this, or ask the fabric's administrators.")
	case codes.NotFound:
		if strings.Contains(message, "'fanoutctl ") || strings.Contains(message, "push it first") {
			return problem(message, "") // the agent has said what to do
		}
		if strings.HasPrefix(message, "no rollout ") {
			return problem(message, "See what there is with: fanoutctl rollout list")
		}
		return problem(message, "See what there is with: fanoutctl images")
	case codes.ResourceExhausted:
		return problem("the agent at "+server+" refused for want of room: "+message, "")
	case codes.FailedPrecondition, codes.InvalidArgument, codes.AlreadyExists, codes.Aborted, codes.OutOfRange:
		return problem(message, "")
	}
	return problem("the agent at "+server+" failed ("+st.Code().String()+"): "+message, "Its log says more.")
}

func (c *Client) unreachable(server, message string, err error) error {
	said := wording.Plain(message)
	problem := func(what, todo string) error { return &Problem{What: what, Todo: todo, Err: err} }
	last, heard := c.lastError()
	plain := c.cfg.Identity == nil && c.cfg.Server.Socket == ""
	atOnce := strings.Contains(message, "connection error") // gRPC never came to speak
	var (
		handshake *handshakeError
		dns       *net.DNSError
	)
	switch {
	case last == nil && plain && (!heard || atOnce) && c.wantsTLS():
		return problem("the agent at "+server+" wants TLS", "Give --tls-cert, --tls-key, --tls-ca and --trust-domain, or a context that has them (fanoutctl config set).")
	case last == nil && strings.Contains(message, "use of closed network connection"): // gRPC closes what stays silent
		return problem(fmt.Sprintf("%s takes connections, but did not answer as an agent within %s", server, c.cfg.ConnectTimeout), "Is it fanoutd that listens there, and at its fabric.listen address? If so, it may be stuck.")
	case last == nil && c.cfg.Server.Socket == "" && !heard:
		return problem(server+" takes connections and closes them without an answer", "The agent there, or the one behind a proxy at that address, may be down or about to start; or another program listens there.")
	case last == nil && (!atOnce || strings.Contains(message, "while dialing")):
		// It answered, and said so itself, also of another agent that it asked, or went away in the middle.
		return problem("the agent at "+server+" cannot answer now: "+said, "It may be starting, stopping or without a root; try again, or see: fanoutctl tree")
	case last == nil && plain:
		return problem("cannot speak with "+server+": "+said, "Another program than fanoutd may listen there, or it is not its fabric.listen address.")
	case last == nil && strings.Contains(message, "tls:"):
		return problem("the agent at "+server+" refused our certificate: "+said, "Its certificate authority and trust domain must be the ones of --tls-cert.")
	case errors.As(last, &handshake) && (errors.Is(last, identity.ErrUntrusted) || errors.Is(last, identity.ErrTrustDomain) || errors.Is(last, identity.ErrExpired) || errors.Is(last, identity.ErrID)):
		return problem("the agent at "+server+" is not trusted: "+screen.Clean(handshake.err.Error()), "Check --tls-ca and --trust-domain, and the agent's certificate.")
	case errors.As(last, &handshake):
		return problem("no TLS connection with "+server+": "+screen.Clean(handshake.err.Error()), "The agent may run without TLS, or another program listens there.")
	case errors.Is(last, fs.ErrNotExist) && c.cfg.Server.Socket != "":
		return problem("cannot reach the agent at "+server+": there is no such socket", "Is fanoutd running on this machine? Name another agent with --server HOST:PORT or unix:PATH, or choose a context with: fanoutctl config use NAME")
	case errors.Is(last, fs.ErrPermission) && c.cfg.Server.Socket != "":
		return problem("cannot reach the agent at "+server+": permission denied", "Only the agent's user may open its socket: run fanoutctl as that user, or use --server HOST:PORT with a certificate.")
	case errors.Is(last, syscall.ECONNREFUSED):
		return problem("cannot reach the agent at "+server+": connection refused", "Is fanoutd running there, and is this its fabric.listen address?")
	case errors.As(last, &dns):
		return problem("cannot reach the agent at "+server+": "+dns.Error(), "Check the name in --server.")
	case errors.Is(last, os.ErrDeadlineExceeded), errors.Is(last, context.DeadlineExceeded), isTimeout(last):
		return problem(fmt.Sprintf("cannot reach the agent at %s: no answer within %s", server, c.cfg.ConnectTimeout), "Is the address right, and does a firewall let it through?")
	case errors.Is(last, errNotLoopback):
		return &Problem{What: last.Error(), Todo: "Without TLS fanoutctl speaks to this machine only: give --tls-cert, --tls-key, --tls-ca and --trust-domain.", Usage: true, Err: err}
	case last != nil:
		return problem("cannot reach the agent at "+server+": "+screen.Clean(last.Error()), "Is fanoutd running there?")
	}
	return problem("cannot speak with the agent at "+server+": "+said, "Is fanoutd running there, and is another program not listening at that address?")
}

// wantsTLS looks whether who listens there answers the beginning of a TLS handshake with TLS. Nothing else tells: an agent that wants TLS closes a connection without it as does a proxy whose
// agent is down. No byte of ours goes over that connection.
func (c *Client) wantsTLS() bool {
	ctx, cancel := context.WithTimeout(context.Background(), tlsPatience)
	defer cancel()
	raw, err := c.dialOnce(ctx)
	if err != nil {
		return false
	}
	defer raw.Close()
	conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}}) // who it is does not matter: it is not spoken with
	err = conn.HandshakeContext(ctx)
	var alert tls.AlertError
	var remote *net.OpError
	return err == nil || errors.As(err, &alert) || errors.As(err, &remote) && remote.Op == "remote error"
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}
