package config_test

import (
	"strings"
	"testing"

	"github.com/fanout-io/fanout/pkg/config"
)

const province = `site: gd-a
group: hq/guangdong
labels: {tier: province}
dataDir: /var/lib/fanoutd
raft:
  listen: 127.0.1.1:7401
fabric:
  listen: 127.0.1.1:7400
  parents: [127.0.0.1:7400]
registry:
  type: oci
  url: http://127.0.0.1:5000
limits: {download: 200Mbps, spool: 2GiB}
`

const embedded = `site: hq-a
group: hq
dataDir: /var/lib/fanoutd
raft: {listen: 127.0.0.1:7401}
fabric: {listen: 127.0.0.1:7400}
registry:
  type: embedded
  listen: 127.0.0.1:5000
`

func none(string) (string, bool) { return "", false }

func TestParseFillsDefaults(t *testing.T) {
	c, err := config.Parse("f.yaml", []byte(province), none)
	if err != nil {
		t.Fatal(err)
	}
	if c.Raft.Members["gd-a"] != "127.0.1.1:7401" || c.Fabric.Socket != "/var/lib/fanoutd/fanoutd.sock" || c.Fabric.Advertise != c.Fabric.Listen {
		t.Errorf("derived values are wrong: %+v", c)
	}
	if c.Limits.Download.BytesPerSecond() != 25_000_000 || c.Limits.Spool != 2<<30 || c.Limits.Upload != 0 {
		t.Errorf("limits are wrong: %+v", c.Limits)
	}
	if c.Sweep.Interval != config.DefaultSweep || c.Publish.Copies != config.DefaultCopies || c.Drift.Changed != "repair" {
		t.Errorf("defaults are wrong: %+v", c)
	}
}

func TestParseFillsInTheEmbeddedRegistry(t *testing.T) {
	c, err := config.Parse("f.yaml", []byte(embedded), none)
	if err != nil {
		t.Fatal(err)
	}
	if r := c.Registry; r.Data != "/var/lib/fanoutd/registry" || r.GC.Interval != config.DefaultGCInterval || r.GC.Grace != config.DefaultGCGrace {
		t.Errorf("defaults are wrong: %+v", r)
	}
	c, err = config.Parse("f.yaml", []byte(embedded+"  data: /mnt/nas\n  gc: {interval: 0s}\n"), none)
	if err != nil {
		t.Fatal(err)
	}
	if r := c.Registry; r.Data != "/mnt/nas" || r.GC.Interval != 0 || r.GC.Grace != config.DefaultGCGrace {
		t.Errorf("values are wrong: %+v", r)
	}
}

func TestParseNamesKeyLineAndMend(t *testing.T) {
	edit := func(old, repl string) string { return strings.Replace(province, old, repl, 1) }
	for _, tt := range []struct{ name, in, want string }{
		{"unknown key", edit("dataDir:", "dataDirectory:"), "f.yaml:4: unknown key dataDirectory"},
		{"bad rate", edit("200Mbps", "fast"), "f.yaml:13: limits.download: \"fast\" is not a rate; write unlimited"},
		{"no parents", edit("  parents: [127.0.0.1:7400]\n", ""), "f.yaml:7: fabric.parents: is missing"},
		{"publish below headquarters", province + "publish: {copies: 3}\n", "f.yaml:14: publish: is for headquarters only"},
		{"registry type", edit("oci", "docker"), "f.yaml:11: registry.type: \"docker\" is none of"},
		{"no tls", edit("127.0.1.1:7400", "10.0.0.1:7400"), "f.yaml:8: fabric.listen: \"10.0.0.1:7400\" is not a loopback address"},
		{"no tls, webhooks", province + "http: {listen: '0.0.0.0:7402'}\n", `f.yaml:14: http.listen: "0.0.0.0:7402" is not a loopback address`},
		{"no tls, embedded registry", edit("  type: oci\n  url: http://127.0.0.1:5000", "  type: embedded\n  listen: ':5000'"), `f.yaml:12: registry.listen: ":5000" is not a loopback address`},
		{"no tls, fellow", edit("raft:\n", "raft:\n  members: {gd-a: 127.0.1.1:7401, gd-b: 10.0.0.2:7401}\n"), `f.yaml:6: raft.members.gd-b: "10.0.0.2:7401" is not a loopback`},
		{"no tls, fallback parent", edit("fabric:\n", "fabric:\n  fallbackParents: [10.0.0.2:7401]\n"), `f.yaml:8: fabric.fallbackParents: "10.0.0.2:7401" is not a loopback`},
		{"one address twice", province + "http: {listen: 127.0.1.1:7400}\n", `f.yaml:14: http.listen: "127.0.1.1:7400" is also fabric.listen`},
		{"variable", edit("http://127.0.0.1:5000", "${REG}"), "f.yaml:12: ${REG} is not set"},
		{"pattern", province + "subscribe: {repositories: ['a[']}\n", "f.yaml:14: subscribe.repositories"},
		{"username alone", edit("  type: oci", "  type: oci\n  username: x"), "f.yaml:12: registry.username: goes with"},
		{"garbage of another registry", edit("  type: oci", "  type: oci\n  gc: {grace: 1h}"), "f.yaml:12: registry.gc: is for type embedded only"},
		{"folder of another registry", edit("  type: oci", "  type: oci\n  data: /mnt"), "f.yaml:12: registry.data: is for type embedded only"},
		{"grace", embedded + "  gc: {grace: -1h}\n", "f.yaml:9: registry.gc.grace: is -1h0m0s"},
		{"gc interval", embedded + "  gc: {interval: -1s}\n", "f.yaml:9: registry.gc.interval: is -1s"},
		{"no duration", embedded + "  gc: {interval: daily}\n", "f.yaml:9: registry.gc.interval: "},
		{"shared grace", embedded + "  shared: nas\n  gc: {grace: 1m}\n", "f.yaml:10: registry.gc.grace: is 1m0s; where registries share a folder, write 1h0m0s at least"},
		{"a witness that shares", edit("  type: oci\n  url: http://127.0.0.1:5000", "  type: none\n  shared: nas"), "f.yaml:12: registry.shared: is for a site with a registry"},
		{"notify below headquarters", province + "notify: [{url: 'http://127.0.0.1:9', secretFile: s}]\n", "f.yaml:14: notify: is for headquarters only"},
		{"notify without a secret", embedded + "notify: [{url: 'http://127.0.0.1:9'}]\n", `f.yaml:9: notify: "http://127.0.0.1:9" has no secretFile`},
		{"notify nowhere", embedded + "notify: [{url: '127.0.0.1:9', secretFile: s}]\n", `f.yaml:9: notify: "127.0.0.1:9" is no address`},
		{"notify with a password", embedded + "notify: [{url: 'http://u:p@h/', secretFile: s}]\n", `f.yaml:9: notify: the address at h has a user in it`},
		{"notify twice", embedded + "notify: [{url: 'http://h', secretFile: s}, {url: 'http://h', secretFile: s}]\n", `f.yaml:9: notify: "http://h" is named twice`},
		{"two documents", province + "---\nsite: x\n", "more than one document"},
		{"not yaml", "\tsite", "f.yaml:"},
		{"empty", "", "site"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := config.Parse("f.yaml", []byte(tt.in), none)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
		})
	}
}

func TestParseTakesOtherAddressesWithTLS(t *testing.T) {
	public := strings.Replace(province, "127.0.1.1:7400", "10.0.0.1:7400", 1) + "http: {listen: '0.0.0.0:7402'}\n"
	if _, err := config.Parse("f.yaml", []byte(public+"tls: {cert: c, key: k, ca: a, trustDomain: example.com}\n"), none); err != nil {
		t.Error(err)
	}
	// A certificate of its own is enough for webhooks.
	if _, err := config.Parse("f.yaml", []byte(province+"http: {listen: '0.0.0.0:7402', tls: {cert: c, key: k}}\n"), none); err != nil {
		t.Error(err)
	}
}

func TestParseExpandsEnvironment(t *testing.T) {
	in := strings.Replace(province, "gd-a", "${SITE}", 1) + "# ${NOT_LOOKED_AT}\n"
	c, err := config.Parse("f.yaml", []byte(in), func(k string) (string, bool) { return "gd-b", k == "SITE" })
	if err != nil || c.Site != "gd-b" {
		t.Fatalf("site %v, error %v", c, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(province))
	f.Add([]byte("site: {a: [b"))
	f.Add([]byte("raft: {members: {a: b}}\nlimits: {spool: 1e9TiB}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := config.Parse("f", data, none)
		if (c == nil) == (err == nil) {
			t.Fatal("either a configuration or an error")
		}
	})
}
