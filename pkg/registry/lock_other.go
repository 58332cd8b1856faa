//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package registry

// lockFile takes no lock on this system: each folder must have one registry that collects.
func lockFile(string) (unlock func(), err error) { return func() {}, nil }
