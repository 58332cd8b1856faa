package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// wipe loses the registries of sites, and what their agents have in their spools, but not what they remember.
func wipe(t testing.TB, sites ...*site) {
	t.Helper()
	for _, s := range sites {
		s.kill()
	}
	for _, s := range sites {
		dirs := []string{filepath.Join(s.dir, "store", "spool"), filepath.Join(s.dir, "registry")}
		if s.own != nil {
			s.own.kill()
			dirs[1] = s.own.Dir
		}
		for _, dir := range dirs {
			if _, err := os.Stat(dir); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, s := range sites {
		if s.own != nil {
			s.own.start()
		}
		s.start()
	}
}

// TestReverseFetch: headquarters and a province lose their registries, and a city alone has what was published. It comes back through the connections that the groups below hold open, though
// nobody can dial them.
func TestReverseFetch(t *testing.T) {
	t.Parallel()
	sites := start(t,
		spec{name: "hq-a", group: "hq", registry: true},
		spec{name: "gd-a", group: "hq/gd"}, spec{name: "hn-a", group: "hq/hn", extra: "subscribe: {repositories: [\"none/**\"]}\n"},
		spec{name: "sz-a", group: "hq/gd/sz"},
	)
	hq, province, city := sites["hq-a"], sites["gd-a"], sites["sz-a"]
	digests := map[string]string{}
	for i := range 3 {
		ref := fmt.Sprintf("app/web-%d:1", i)
		digests[ref] = push(t, hq, ref, image(t, 2*mib, 2))
	}
	for ref, digest := range digests {
		shows(t, city, ref, digest)
	}
	wipe(t, hq, province)
	for ref, digest := range digests {
		for _, s := range []*site{hq, province, city} {
			shows(t, s, ref, digest)
			whole(t, s, ref, digest)
		}
	}
}

// TestReverseFetchWithCertificates: all three members of headquarters lose their registries. One of them has connections to the groups below, and the others get the content through it.
func TestReverseFetchWithCertificates(t *testing.T) {
	t.Parallel()
	issue := authority(t)
	specs := []spec{
		{name: "hq-a", group: "hq"}, {name: "hq-b", group: "hq"}, {name: "hq-c", group: "hq"}, {name: "gd-a", group: "hq/gd"}, {name: "gd-b", group: "hq/gd"}, {name: "gd-c", group: "hq/gd"},
	}
	for i, sp := range specs {
		specs[i].extra = tlsConfig(issue("--group", sp.group, "--site", sp.name))
	}
	sites := start(t, specs...)
	hq := []*site{sites["hq-a"], sites["hq-b"], sites["hq-c"]}
	const ref = "app/web:1"
	digest := push(t, hq[0], ref, image(t, 2*mib, 2))
	for _, s := range sites {
		shows(t, s, ref, digest)
	}
	wipe(t, append(hq, sites["gd-a"])...)
	for _, s := range sites {
		shows(t, s, ref, digest)
		whole(t, s, ref, digest)
	}
}
