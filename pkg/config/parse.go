package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
	"go.yaml.in/yaml/v3"
)

// maxSocket is the length of a unix socket's path that every system allows, in bytes.
const maxSocket = 103

// maxNotify bounds the addresses that are told of rollouts.
const maxNotify = 16

// MaxBytes bounds the size of a configuration file.
const MaxBytes = 1 << 20

var (
	siteName  = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)
	groupPath = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]*[a-z0-9])?(/[a-z0-9]([a-z0-9._-]*[a-z0-9])?){0,15}$`)
	variable  = regexp.MustCompile(`\$\{([A-Za-z_][A-Za-z0-9_]*)\}`)
)

// Parse reads a configuration. name is how the file is called in errors; lookup supplies ${NAME}. The error joins all that is wrong, a line each, as "name:line: key: what; mend".
func Parse(name string, data []byte, lookup func(string) (string, bool)) (*Config, error) {
	c, _, err := parse(name, data, lookup)
	return c, err
}

// Check is Parse, and looks besides whether read can read each file that the configuration names.
func Check(name string, data []byte, lookup func(string) (string, bool), read func(file string) error) (*Config, error) {
	c, v, err := parse(name, data, lookup)
	if err != nil {
		return nil, err
	}
	type named struct{ key, file string }
	files := []named{
		{"registry.passwordFile", c.Registry.PasswordFile},
		{"registry.caFile", c.Registry.CAFile},
		{"tls.cert", c.TLS.Cert},
		{"tls.key", c.TLS.Key},
		{"tls.ca", c.TLS.CA},
		{"http.tls.cert", c.HTTP.TLS.Cert},
		{"http.tls.key", c.HTTP.TLS.Key},
		{"webhook.secretFile", c.Webhook.SecretFile},
	}
	for _, n := range c.Notify {
		files = append(files, named{"notify", n.SecretFile})
	}
	for _, f := range files {
		if f.file == "" {
			continue
		}
		if err := read(f.file); err != nil {
			v.fail(f.key, "can't be read: %v; put the file there, or name another", err)
		}
	}
	if err := v.err(); err != nil {
		return nil, err
	}
	return c, nil
}

func parse(name string, data []byte, lookup func(string) (string, bool)) (*Config, *validator, error) {
	if len(data) > MaxBytes {
		return nil, nil, fmt.Errorf("%s: larger than %d bytes; is this the right file?", name, MaxBytes)
	}
	data, err := expand(name, data, lookup)
	if err != nil {
		return nil, nil, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, nil, decodeError(name, &doc, err)
	}
	c := defaults()
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, decodeError(name, &doc, err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, nil, fmt.Errorf("%s: more than one document; keep the first and remove what follows '---'", name)
	}
	c.fill()
	v := &validator{name: name, doc: &doc}
	c.validate(v)
	if err := v.err(); err != nil {
		return nil, nil, err
	}
	return &c, v, nil
}

// expand replaces ${NAME} line by line, so that an error can name the line. Comments are left alone.
func expand(name string, data []byte, lookup func(string) (string, bool)) ([]byte, error) {
	var errs []error
	lines := strings.Split(string(data), "\n")
	for i, line := range lines {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		lines[i] = variable.ReplaceAllStringFunc(line, func(m string) string {
			key := m[2 : len(m)-1]
			value, ok := lookup(key)
			if !ok {
				errs = append(errs, fmt.Errorf("%s:%d: ${%s} is not set in the environment; set it, or write the value", name, i+1, key))
			}
			if strings.ContainsAny(value, "\n\r") {
				errs = append(errs, fmt.Errorf("%s:%d: ${%s} has a line break in it; use a value of one line", name, i+1, key))
			}
			return value
		})
	}
	return []byte(strings.Join(lines, "\n")), errors.Join(errs...)
}

// fill derives what the file left out from what it says.
func (c *Config) fill() {
	if c.Raft.Advertise == "" {
		c.Raft.Advertise = c.Raft.Listen
	}
	if len(c.Raft.Members) == 0 && c.Site != "" && c.Raft.Advertise != "" {
		c.Raft.Members = map[string]string{c.Site: c.Raft.Advertise}
	}
	if c.Fabric.Advertise == "" {
		c.Fabric.Advertise = c.Fabric.Listen
	}
	if c.Registry.Type == "embedded" && c.Registry.Data == "" && c.DataDir != "" {
		c.Registry.Data = c.DataDir + "/registry"
	}
	if c.Fabric.Socket == "" && c.DataDir != "" {
		c.Fabric.Socket = c.DataDir + "/fanoutd.sock"
	}
}

type validator struct {
	name     string
	doc      *yaml.Node
	problems []problem
}

type problem struct {
	line int // 0: not in the file
	err  error
}

// err joins all problems in the order of the file.
func (v *validator) err() error {
	slices.SortStableFunc(v.problems, func(a, b problem) int {
		return cmp.Or(cmp.Compare(a.line, b.line), strings.Compare(a.err.Error(), b.err.Error()))
	})
	var errs []error
	for _, p := range v.problems {
		errs = append(errs, p.err)
	}
	return errors.Join(errs...)
}

// fail notes what is wrong with the key at a dotted path.
func (v *validator) fail(path, format string, args ...any) {
	where, line := v.name, lineOf(v.doc, strings.Split(path, "."))
	if line > 0 {
		where = fmt.Sprintf("%s:%d", v.name, line)
	}
	v.problems = append(v.problems, problem{line, fmt.Errorf("%s: %s: %s", where, path, fmt.Sprintf(format, args...))})
}

// lineOf finds the line of a key, or of the nearest key above it that the file has.
func lineOf(n *yaml.Node, path []string) int {
	line := 0
	if n.Kind == yaml.DocumentNode && len(n.Content) > 0 {
		n = n.Content[0]
	}
	for _, key := range path {
		found := false
		for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == key {
				line, n, found = n.Content[i].Line, n.Content[i+1], true
				break
			}
		}
		if !found {
			break
		}
	}
	return line
}

// hasKey says whether the file has a key.
func hasKey(n *yaml.Node, path ...string) bool {
	if n.Kind == yaml.DocumentNode && len(n.Content) > 0 {
		n = n.Content[0]
	}
	for _, key := range path {
		found := false
		for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content) && !found; i += 2 {
			if n.Content[i].Value == key {
				n, found = n.Content[i+1], true
			}
		}
		if !found {
			return false
		}
	}
	return true
}

func (c *Config) validate(v *validator) {
	if !siteName.MatchString(c.Site) {
		v.fail("site", "%q is no site name; use lower-case letters, digits, '.', '_' and '-', at most 63", c.Site)
	}
	if !groupPath.MatchString(c.Group) {
		v.fail("group", "%q is no group path; write names joined by '/', such as hq/guangdong", c.Group)
	}
	if c.DataDir == "" {
		v.fail("dataDir", "is missing; name a folder that the agent may write to, such as /var/lib/fanoutd")
	}
	c.validateAddresses(v)
	c.validateTree(v)
	c.validateRegistry(v)
	c.validatePolicy(v)
	c.validateTLS(v)
	c.validateNotify(v)
}

func (c *Config) validateNotify(v *validator) {
	if len(c.Notify) > 0 && !c.Headquarters() {
		v.fail("notify", "is for headquarters only, where rollouts are; remove it")
	}
	if len(c.Notify) > maxNotify {
		v.fail("notify", "has %d addresses; write %d at most", len(c.Notify), maxNotify)
	}
	seen := map[string]bool{}
	for _, n := range c.Notify {
		u, err := url.Parse(n.URL)
		switch {
		case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
			v.fail("notify", "%q is no address; write https://HOST[:PORT]/PATH", n.URL)
		case u.User != nil:
			v.fail("notify", "the address at %s has a user in it; sign by secretFile instead", u.Host)
		case seen[n.URL]:
			v.fail("notify", "%q is named twice; remove one", n.URL)
		}
		seen[n.URL] = true
		if n.SecretFile == "" {
			v.fail("notify", "%q has no secretFile; name a file whose secret signs what is sent, so that the receiver can tell who sent it", n.URL)
		}
	}
}

func (c *Config) validateAddresses(v *validator) {
	check := func(path, addr string, required bool) {
		if addr == "" {
			if required {
				v.fail(path, "is missing; write HOST:PORT")
			}
			return
		}
		host, port, err := net.SplitHostPort(addr)
		if err != nil || port == "" || (strings.HasSuffix(path, "advertise") && (host == "" || port == "0")) {
			v.fail(path, "%q is no address; write HOST:PORT", addr)
		}
	}
	check("raft.listen", c.Raft.Listen, true)
	check("raft.advertise", c.Raft.Advertise, false)
	check("fabric.listen", c.Fabric.Listen, true)
	check("fabric.advertise", c.Fabric.Advertise, false)
	check("http.listen", c.HTTP.Listen, true)
	for _, a := range c.Fabric.Parents {
		check("fabric.parents", a, true)
	}
	for _, a := range c.Fabric.FallbackParents {
		check("fabric.fallbackParents", a, true)
	}
	if len(c.Fabric.Socket) > maxSocket {
		v.fail("fabric.socket", "%q has more than %d bytes, which the system does not allow; name a shorter path", c.Fabric.Socket, maxSocket)
	}
	taken := map[string]string{}
	for _, l := range []struct{ key, addr string }{
		{"raft.listen", c.Raft.Listen}, {"fabric.listen", c.Fabric.Listen}, {"http.listen", c.HTTP.Listen}, {"registry.listen", c.Registry.Listen},
	} {
		if other, ok := taken[l.addr]; ok && l.addr != "" && !strings.HasSuffix(l.addr, ":0") {
			v.fail(l.key, "%q is also %s; give each a port of its own", l.addr, other)
		}
		taken[l.addr] = l.key
	}
	for site, a := range c.Raft.Members {
		check("raft.members."+site, a, true)
		if !siteName.MatchString(site) {
			v.fail("raft.members."+site, "is no site name")
		}
	}
}

func (c *Config) validateTree(v *validator) {
	if len(c.Raft.Members) > 0 {
		switch addr, ok := c.Raft.Members[c.Site]; {
		case !ok:
			v.fail("raft.members", "does not list this site %q; every member lists all, itself too", c.Site)
		case addr != c.Raft.Advertise:
			v.fail("raft.members."+c.Site, "is %q but raft.advertise is %q; make them equal", addr, c.Raft.Advertise)
		}
	}
	if len(c.Raft.Members) > 7 {
		v.fail("raft.members", "has %d members; a group has at most seven", len(c.Raft.Members))
	}
	deep := strings.Contains(c.Group, "/")
	if deep && c.Headquarters() {
		v.fail("fabric.parents", "is missing; the group %q lies below %q, so name the fabric addresses of that group's agents", c.Group, c.Group[:strings.LastIndex(c.Group, "/")])
	}
	if !deep && !c.Headquarters() {
		v.fail("fabric.parents", "is set, but the group %q is the top of the tree; remove it, or write the whole path as in hq/guangdong", c.Group)
	}
	if c.Headquarters() && len(c.Fabric.FallbackParents) > 0 {
		v.fail("fabric.fallbackParents", "is set, but headquarters has no parent; remove it")
	}
}

func (c *Config) validateRegistry(v *validator) {
	r := c.Registry
	switch r.Type {
	case "harbor", "oci":
		u, err := url.Parse(r.URL)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") || u.User != nil {
			v.fail("registry.url", "%q is no registry address; write https://HOST[:PORT], the user by registry.username", r.URL)
		}
		if r.Listen != "" {
			v.fail("registry.listen", "is for type embedded only; remove it")
		}
	case "embedded":
		if _, _, err := net.SplitHostPort(r.Listen); err != nil {
			v.fail("registry.listen", "%q is no address; write HOST:PORT, such as 127.0.0.1:5000", r.Listen)
		}
		if r.URL != "" {
			v.fail("registry.url", "is not for type embedded; remove it")
		}
	case "none":
		if r.URL != "" || r.Listen != "" {
			v.fail("registry.type", "none is a witness, which has no registry; remove url and listen, or choose another type")
		}
		if r.Shared != "" {
			v.fail("registry.shared", "is for a site with a registry, and this is a witness; remove it")
		}
	default:
		v.fail("registry.type", "%q is none of harbor, oci, embedded, none", r.Type)
	}
	c.validateGC(v)
	if (r.Username == "") != (r.PasswordFile == "") {
		v.fail("registry.username", "goes with registry.passwordFile; set both, or neither to use ~/.docker/config.json")
	}
}

// validateGC judges the keys of an embedded registry's folder.
func (c *Config) validateGC(v *validator) {
	r := c.Registry
	if r.Type != "embedded" {
		if r.Data != "" {
			v.fail("registry.data", "is for type embedded only; remove it")
		}
		if hasKey(v.doc, "registry", "gc") {
			v.fail("registry.gc", "is for type embedded only: another registry collects its garbage itself; remove it")
		}
		return
	}
	switch gc := r.GC; {
	case gc.Interval < 0:
		v.fail("registry.gc.interval", "is %s; write a duration such as 24h, or 0s for never", gc.Interval)
	case gc.Grace < 0:
		v.fail("registry.gc.grace", "is %s; write a duration such as 24h", gc.Grace)
	case r.Shared != "" && gc.Grace < MinSharedGrace:
		v.fail("registry.gc.grace", "is %s; where registries share a folder, write %s at least, and the same at each", gc.Grace, MinSharedGrace)
	}
}

func (c *Config) validatePolicy(v *validator) {
	oneOf := func(path, value string, allowed ...string) {
		if !slices.Contains(allowed, value) {
			v.fail(path, "%q is none of %s", value, strings.Join(allowed, ", "))
		}
	}
	oneOf("publish.existing", c.Publish.Existing, "ignore", "publish")
	oneOf("publish.deletes", c.Publish.Deletes, "ignore", "propagate")
	oneOf("drift.changed", c.Drift.Changed, "repair", "report", "accept")
	oneOf("drift.deleted", c.Drift.Deleted, "repair", "report", "accept")
	patterns := func(path string, list []string) {
		for _, p := range list {
			if p == "" || !doublestar.ValidatePattern(p) {
				v.fail(path, "%q is no pattern; write a repository, with * for one part and ** for any", p)
			}
		}
	}
	patterns("publish.repositories", c.Publish.Repositories)
	patterns("publish.exclude", c.Publish.Exclude)
	patterns("subscribe.repositories", c.Subscribe.Repositories)
	patterns("subscribe.exclude", c.Subscribe.Exclude)
	if !c.Headquarters() && lineOf(v.doc, []string{"publish"}) > 0 {
		v.fail("publish", "is for headquarters only; remove it")
	}
	if c.Publish.Copies < 1 {
		v.fail("publish.copies", "is %d; at least one registry holds what is published", c.Publish.Copies)
	}
	if c.Headquarters() && c.Subscribe.Keep > 0 {
		v.fail("subscribe.keep", "is for groups below headquarters, which keeps all that is published; remove it")
	}
	if c.Subscribe.Keep < 0 {
		v.fail("subscribe.keep", "is %d; write how many tags to keep, 0 for all", c.Subscribe.Keep)
	}
	if c.Sweep.Interval <= 0 {
		v.fail("sweep.interval", "is %s; write a duration such as 5m", c.Sweep.Interval)
	}
	if c.Scrub.Interval <= 0 {
		v.fail("scrub.interval", "is %s; write a duration such as 168h", c.Scrub.Interval)
	}
}

func (c *Config) validateTLS(v *validator) {
	t := c.TLS
	if t.Enabled() {
		for key, value := range map[string]string{"tls.cert": t.Cert, "tls.key": t.Key, "tls.ca": t.CA, "tls.trustDomain": t.TrustDomain} {
			if value == "" {
				v.fail(key, "is missing; tls needs cert, key, ca and trustDomain")
			}
		}
	} else {
		c.validateLoopback(v)
	}
	if (c.HTTP.TLS.Cert == "") != (c.HTTP.TLS.Key == "") {
		v.fail("http.tls", "needs cert and key")
	}
}

// validateLoopback holds an agent without TLS to the addresses of its own machine, at both ends of each connection.
func (c *Config) validateLoopback(v *validator) {
	binds := func(key, addr, mend string) {
		if addr != "" && !loopback(addr) {
			v.fail(key, "%q is not a loopback address, and without tls the agent binds no other; set %s, or listen on 127.0.0.1", addr, mend)
		}
	}
	binds("raft.listen", c.Raft.Listen, "tls")
	binds("fabric.listen", c.Fabric.Listen, "tls")
	binds("registry.listen", c.Registry.Listen, "tls")
	if c.HTTP.TLS.Cert == "" {
		binds("http.listen", c.HTTP.Listen, "http.tls or tls")
	}
	speaks := func(key string, addrs ...string) {
		for _, a := range addrs {
			if a != "" && !loopback(a) {
				v.fail(key, "%q is not a loopback address, and without tls the agent speaks to no other; set tls", a)
			}
		}
	}
	speaks("fabric.parents", c.Fabric.Parents...)
	speaks("fabric.fallbackParents", c.Fabric.FallbackParents...)
	for site, a := range c.Raft.Members {
		speaks("raft.members."+site, a)
	}
}

func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return true // an error of its own
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
