package identity

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// IsLoopback says whether an address, HOST:PORT, is reached from this machine only. Without TLS, nothing else may be listened on or
// dialled. Names are not looked up: of these only localhost is loopback. An empty host means every interface and is not.
func IsLoopback(addr string) (bool, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return false, fmt.Errorf("address %q: %w; want HOST:PORT", clip(addr), err)
	}
	if port == "" {
		return false, fmt.Errorf("address %q: the port is missing; want HOST:PORT", clip(addr))
	}
	if strings.EqualFold(host, "localhost") {
		return true, nil
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return false, nil // a name
	}
	return ip.Unmap().IsLoopback(), nil
}
