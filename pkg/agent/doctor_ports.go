package agent

import (
	"context"
	"net"
)

// checkPorts looks whether the addresses that this site tells others lead to an agent, and whether the raft ports of the other members can be reached from here: raft has a port of its own, which a firewall may close
// though the agents answer each other.
func (a *Agent) checkPorts(ctx context.Context) []check {
	type port struct {
		name, mend string
		look       func(context.Context) error
	}
	own := func(key, addr string, look func(context.Context) error) port {
		return port{key + " " + addr, "set " + key + " to an address of this machine that others reach it by, or open that port; others may reach it though this machine does not", look}
	}
	dial := func(addr string) func(context.Context) error {
		return func(ctx context.Context) error { return dials(ctx, addr) }
	}
	var ports []port
	if addr := a.cfg.Fabric.Advertise; addr != "" {
		ports = append(ports, own("fabric.advertise", addr, func(ctx context.Context) error { return a.answers(ctx, addr) }))
	}
	if addr := a.cfg.Raft.Advertise; addr != "" {
		ports = append(ports, own("raft.advertise", addr, dial(addr)))
	}
	others := len(ports) // from here on without them nothing is decided
	for _, s := range a.node.Servers() {
		if s.Site != a.cfg.Site {
			ports = append(ports, port{"raft port of " + s.Site, a.absent(s.Site), dial(s.Addr)})
		}
	}
	return together(len(ports), func(i int) check {
		p := ports[i]
		if err := p.look(ctx); err == nil {
			return ok(p.name, "it can be reached from here")
		} else if i < others {
			return warn(p.name, "it can't be reached from here: "+callWords(err), p.mend)
		} else {
			return fail(p.name, "it can't be reached from here: "+callWords(err), p.mend)
		}
	})
}

// dials opens a connection to an address, and closes it.
func dials(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	return conn.Close()
}
