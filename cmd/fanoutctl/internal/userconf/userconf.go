// Package userconf is the user's own configuration file of fanoutctl: named contexts, each an agent and how to prove oneself to it.
//
// It is not the agent's configuration. Nothing here is safe for concurrent use by several processes beyond this: a file is replaced whole or not
// at all.
package userconf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"go.yaml.in/yaml/v3"
)

// ErrNoContext: no context has that name.
var ErrNoContext = errors.New("no such context")

const maxFile = 1 << 20

// File is the whole configuration.
type File struct {
	Version  int                `yaml:"version"`
	Current  string             `yaml:"current,omitempty"`
	Contexts map[string]Context `yaml:"contexts,omitempty"`
}

// Context is one agent. Paths are absolute once loaded.
type Context struct {
	Server string `yaml:"server"`
	TLS    TLS    `yaml:"tls,omitempty"`
}

// TLS names the files of the user's identity.
type TLS struct {
	Cert        string `yaml:"cert,omitempty"`
	Key         string `yaml:"key,omitempty"`
	CA          string `yaml:"ca,omitempty"`
	TrustDomain string `yaml:"trustDomain,omitempty"`
}

// Path of the file, from XDG_CONFIG_HOME or HOME; empty where neither is set.
func Path(env func(string) string) string {
	dir := env("XDG_CONFIG_HOME")
	if !filepath.IsAbs(dir) { // so says the XDG specification
		home := env("HOME")
		if home == "" {
			return ""
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "fanout", "config.yaml")
}

// Load reads the file. A file that is not there is an empty configuration.
func Load(path string) (*File, error) {
	empty := &File{Version: 1, Contexts: map[string]Context{}}
	if path == "" {
		return empty, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return empty, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading configuration: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading configuration %s: %w", path, err)
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("reading configuration: %s is larger than %d bytes", path, maxFile)
	}
	c, err := Parse(b)
	if err != nil {
		return nil, fmt.Errorf("reading configuration %s: %w", path, err)
	}
	dir := filepath.Dir(path)
	for name, ctx := range c.Contexts {
		for _, p := range []*string{&ctx.TLS.Cert, &ctx.TLS.Key, &ctx.TLS.CA} {
			if *p != "" && !filepath.IsAbs(*p) {
				*p = filepath.Join(dir, *p)
			}
		}
		c.Contexts[name] = ctx
	}
	return c, nil
}

// Parse reads a configuration strictly.
func Parse(b []byte) (*File, error) {
	c := &File{}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(c); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("it holds more than one YAML document")
	}
	if c.Version == 0 {
		c.Version = 1
	}
	if c.Version != 1 {
		return nil, fmt.Errorf("version %d is not known to this fanoutctl; it knows version 1", c.Version)
	}
	if c.Contexts == nil {
		c.Contexts = map[string]Context{}
	}
	for name, ctx := range c.Contexts {
		if err := ValidName(name); err != nil {
			return nil, err
		}
		if ctx.Server == "" {
			return nil, fmt.Errorf("context %s has no server", name)
		}
	}
	if _, ok := c.Contexts[c.Current]; c.Current != "" && !ok {
		return nil, fmt.Errorf("current: %w: %q", ErrNoContext, c.Current)
	}
	return c, nil
}

var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// ValidName says whether a context may be called so.
func ValidName(name string) error {
	if !namePattern.MatchString(name) {
		return fmt.Errorf("context name %q: want letters, digits and . _ - (at most 63)", name)
	}
	return nil
}

// Names of the contexts in order.
func (f *File) Names() []string {
	names := make([]string, 0, len(f.Contexts))
	for name := range f.Contexts {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Marshal writes the configuration as YAML.
func (f *File) Marshal() ([]byte, error) {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(f); err != nil {
		return nil, err
	}
	return b.Bytes(), enc.Close()
}

// Save replaces the file whole or not at all.
func (f *File) Save(path string) (err error) {
	if path == "" {
		return errors.New("writing configuration: neither XDG_CONFIG_HOME nor HOME is set")
	}
	b, err := f.Marshal()
	if err != nil {
		return fmt.Errorf("writing configuration: %w", err)
	}
	// A file that is a link stays one.
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("writing configuration: %w", err)
	}
	tmp, err := os.CreateTemp(dir, ".config.yaml.*")
	if err != nil {
		return fmt.Errorf("writing configuration: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(b)
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("writing configuration: %w", err)
	}
	return nil
}
