package config

import (
	"fmt"
	"time"
)

// Defaults of what a file may leave out.
const (
	// DefaultSweep is the time between two comparisons of the registry with the catalog.
	DefaultSweep = 5 * time.Minute
	// DefaultScrub is the time in which every blob of the catalog is looked at once.
	DefaultScrub = 168 * time.Hour
	// DefaultCopies is how many registries of headquarters must hold what was published.
	DefaultCopies = 2
	// DefaultSpool is the bound of the spool, in bytes.
	DefaultSpool Size = 20 << 30
	// DefaultGCInterval is the time between two collections of the embedded registry's garbage.
	DefaultGCInterval = 24 * time.Hour
	// DefaultGCGrace is how long what nothing needs stays in the embedded registry after its last use.
	DefaultGCGrace = 24 * time.Hour
	// MinSharedGrace is the least grace where several registries serve one folder.
	MinSharedGrace = time.Hour
	// DefaultHTTPListen is where webhooks, health and metrics are served.
	DefaultHTTPListen = "127.0.0.1:7402"
)

// Config is one agent's configuration.
type Config struct {
	Site      string            `yaml:"site"`
	Group     string            `yaml:"group"`
	Labels    map[string]string `yaml:"labels"`
	DataDir   string            `yaml:"dataDir"`
	Raft      Raft              `yaml:"raft"`
	Fabric    Fabric            `yaml:"fabric"`
	HTTP      HTTP              `yaml:"http"`
	Registry  Registry          `yaml:"registry"`
	Publish   Publish           `yaml:"publish"`
	Subscribe Subscribe         `yaml:"subscribe"`
	Sweep     Interval          `yaml:"sweep"`
	Scrub     Interval          `yaml:"scrub"`
	Drift     Drift             `yaml:"drift"`
	Limits    Limits            `yaml:"limits"`
	TLS       TLS               `yaml:"tls"`
	Webhook   Webhook           `yaml:"webhook"`
	Notify    []Notify          `yaml:"notify"`
}

// Raft is the consensus within the group.
type Raft struct {
	Listen    string            `yaml:"listen"`
	Advertise string            `yaml:"advertise"`
	Members   map[string]string `yaml:"members"`
}

// Fabric is the gRPC surface for children, fellow members and fanoutctl.
type Fabric struct {
	Listen          string   `yaml:"listen"`
	Advertise       string   `yaml:"advertise"`
	Socket          string   `yaml:"socket"`
	Parents         []string `yaml:"parents"`
	FallbackParents []string `yaml:"fallbackParents"`
	Siblings        bool     `yaml:"siblings"`
}

// HTTP serves webhooks, health, metrics and the web page.
type HTTP struct {
	Listen string  `yaml:"listen"`
	TLS    KeyPair `yaml:"tls"`
}

// KeyPair names a certificate and its key, both PEM files.
type KeyPair struct {
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
}

// Registry is the registry beside the agent. Type is harbor, oci, embedded or none (a witness). Listen, Data and GC are of an embedded one.
type Registry struct {
	Type               string `yaml:"type"`
	URL                string `yaml:"url"`
	Listen             string `yaml:"listen"`
	Username           string `yaml:"username"`
	PasswordFile       string `yaml:"passwordFile"`
	CAFile             string `yaml:"caFile"`
	InsecureSkipVerify bool   `yaml:"insecureSkipVerify"`
	Shared             string `yaml:"shared"`
	Data               string `yaml:"data"`
	GC                 GC     `yaml:"gc"`
}

// GC is the collection of the embedded registry's garbage: how often (0: never), and how long what nothing needs stays after its last use.
type GC struct {
	Interval time.Duration `yaml:"interval"`
	Grace    time.Duration `yaml:"grace"`
}

// Publish says what headquarters publishes.
type Publish struct {
	Repositories []string `yaml:"repositories"`
	Exclude      []string `yaml:"exclude"`
	Existing     string   `yaml:"existing"`
	Deletes      string   `yaml:"deletes"`
	Copies       int      `yaml:"copies"`
}

// Subscribe says what the group wants. Keep is how many of the newest tags of a repository its own registries show; 0: all.
type Subscribe struct {
	Repositories []string `yaml:"repositories"`
	Exclude      []string `yaml:"exclude"`
	Keep         int      `yaml:"keep"`
}

// Interval is a period of something that is done again and again.
type Interval struct {
	Interval time.Duration `yaml:"interval"`
}

// Drift says what is done about local changes below headquarters: repair, report or accept.
type Drift struct {
	Changed string `yaml:"changed"`
	Deleted string `yaml:"deleted"`
}

// Limits bound what the agent uses.
type Limits struct {
	Download Rate `yaml:"download"`
	Upload   Rate `yaml:"upload"`
	Spool    Size `yaml:"spool"`
}

// TLS names the files of the agent's identity and the trust domain of its SPIFFE ID.
type TLS struct {
	Cert        string `yaml:"cert"`
	Key         string `yaml:"key"`
	CA          string `yaml:"ca"`
	TrustDomain string `yaml:"trustDomain"`
}

// Enabled says whether the fabric and raft listeners use TLS.
func (t TLS) Enabled() bool { return t != TLS{} }

// Webhook names the file with the secret that the registry sends in the Authorization header.
type Webhook struct {
	SecretFile string `yaml:"secretFile"`
}

// Notify is an address that headquarters' root tells of the steps of rollouts, and the file with the secret that signs what it is told.
type Notify struct {
	URL        string `yaml:"url"`
	SecretFile string `yaml:"secretFile"`
}

// Headquarters says whether the group is at the top of the tree.
func (c *Config) Headquarters() bool { return len(c.Fabric.Parents) == 0 }

// Witness says whether the agent has no registry.
func (c *Config) Witness() bool { return c.Registry.Type == "none" }

func defaults() Config {
	return Config{
		HTTP:      HTTP{Listen: DefaultHTTPListen},
		Registry:  Registry{GC: GC{Interval: DefaultGCInterval, Grace: DefaultGCGrace}},
		Publish:   Publish{Repositories: []string{"**"}, Existing: "ignore", Deletes: "ignore", Copies: DefaultCopies},
		Subscribe: Subscribe{Repositories: []string{"**"}},
		Sweep:     Interval{DefaultSweep},
		Scrub:     Interval{DefaultScrub},
		Drift:     Drift{Changed: "repair", Deleted: "repair"},
		Limits:    Limits{Spool: DefaultSpool},
	}
}

// Doubts says of what is valid and can't be meant, in words with the key.
func (c *Config) Doubts() []string {
	var out []string
	for _, l := range []struct {
		key   string
		addrs []string
	}{{"fabric.parents", c.Fabric.Parents}, {"fabric.fallbackParents", c.Fabric.FallbackParents}} {
		for _, addr := range l.addrs {
			if addr == c.Fabric.Listen || addr == c.Fabric.Advertise {
				out = append(out, fmt.Sprintf("%s names %s, which is this agent's own address; name agents of groups above %s", l.key, addr, c.Group))
			}
		}
	}
	return out
}

// NotInForce names the keys that say something which this version takes in and does not do yet.
func (c *Config) NotInForce() []string {
	var keys []string
	for _, k := range []struct {
		key string
		set bool
	}{
		{"fabric.siblings", c.Fabric.Siblings},
	} {
		if k.set {
			keys = append(keys, k.key)
		}
	}
	return keys
}
