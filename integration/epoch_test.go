package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// lose ends the agents of a group and loses their data directories; then they are built anew. A registry that is a process of its own stays, and so does
// what is kept.
func lose(keep string, sites ...*site) {
	for _, s := range sites {
		s.t.Helper()
		s.kill()
		entries, err := os.ReadDir(s.dir)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() == keep {
				continue
			}
			if err := os.RemoveAll(filepath.Join(s.dir, e.Name())); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	for _, s := range sites {
		s.start()
	}
	for _, s := range sites {
		s.waitReady()
	}
}

// refuses runs a command that must fail, with these words.
func (s *site) refuses(words string, args ...string) {
	s.t.Helper()
	cmd := exec.Command(filepath.Join(binaries, "fanoutctl"), append([]string{"--server", s.fabric}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(stderr.String(), words) {
		s.t.Errorf("fanoutctl %v: %v: %s; want exit code 1 and %q", args, err, stderr.Bytes(), words)
	}
}

// must runs a command that must succeed, and reads its document.
func (s *site) must(doc any, args ...string) {
	s.t.Helper()
	out, code := s.ctl(append(args, "-o", "json")...)
	if code != 0 {
		s.t.Fatalf("fanoutctl %v: exit code %d", args, code)
	}
	if doc == nil {
		return
	}
	if err := json.Unmarshal(out, doc); err != nil {
		s.t.Fatalf("fanoutctl %v: %v: %s", args, err, out)
	}
}

// foreign waits until tree says that a group holds a foreign epoch, and how to accept, with these words.
func foreign(hq, child *site, words ...string) {
	hq.t.Helper()
	eventually(hq.t, child.group+" says foreign epoch", func() error {
		var tree struct {
			Groups []struct{ Group, State, Reason string }
		}
		out, code := hq.ctl("tree", "-o", "json")
		if code != 0 {
			return fmt.Errorf("exit code %d", code)
		}
		if err := json.Unmarshal(out, &tree); err != nil {
			return err
		}
		for _, g := range tree.Groups {
			if g.Group == child.group {
				if g.State == "degraded" {
					return says(g.Reason, append(words, "foreign epoch", "fanoutctl --server "+child.advertised()+" epoch accept")...)
				}
				return fmt.Errorf("%+v", g)
			}
		}
		return fmt.Errorf("it is not in the tree")
	})
}

type restoredDoc struct {
	Epoch, From       string
	Revision, Records int
}

type acceptedDoc struct {
	Epoch, Held  string
	HeldRevision int
}

// TestHeadquartersRestoredFromABackup: who is not ahead of the backup follows on by itself, with nothing sent again; who is ahead keeps what it has until an operator accepts.
func TestHeadquartersRestoredFromABackup(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, keep string
		own        bool // registries are processes of their own
	}{
		{name: "registries lost too"}, {name: "registries survive", own: true}, {name: "embedded registries kept", keep: "registry"},
	} {
		t.Run(c.name, func(t *testing.T) {
			survives := c.own || c.keep != ""
			sites := start(t,
				spec{name: "hq-a", group: "hq", registry: c.own}, spec{name: "hq-b", group: "hq", registry: c.own},
				spec{name: "gd-a", group: "hq/gd"}, spec{name: "fs-a", group: "hq/fs"},
			)
			hq, gd, fs := sites["hq-a"], sites["gd-a"], sites["fs-a"]
			digests := map[string]string{}
			put := func(ref string, at ...*site) {
				t.Helper()
				digests[ref] = push(t, hq, ref, image(t, 1<<16, 1))
				for _, s := range at {
					shows(t, s, ref, digests[ref])
				}
			}
			for i := range 3 {
				put(fmt.Sprintf("app/web:%d", i), gd, fs, sites["hq-b"])
			}
			backup := filepath.Join(t.TempDir(), "catalog")
			var saved restoredDoc
			hq.must(&saved, "catalog", "save", backup)
			if saved.Revision != 3 || saved.Records != 3 {
				t.Fatalf("saved: %+v", saved)
			}
			gd.kill() // and so is not ahead of it
			for i := 3; i < 6; i++ {
				put(fmt.Sprintf("app/web:%d", i), fs, sites["hq-b"])
			}
			hq.refuses("dataDir", "catalog", "restore", backup)

			lose(c.keep, hq, sites["hq-b"])
			gd.start()
			gd.waitReady()
			foreign(hq, fs)
			gd.refuses("not headquarters", "catalog", "restore", backup)
			other := sites["hq-a"]
			if rootOf(t, sites, hq) == other {
				other = sites["hq-b"]
			}
			var restored restoredDoc
			other.must(&restored, "catalog", "restore", backup) // at a member that is not the root
			if restored.Revision != 3 || restored.Records != 3 || restored.From != saved.Epoch || restored.Epoch == saved.Epoch {
				t.Errorf("restored: %+v after %+v", restored, saved)
			}
			// Ahead of the backup, with a base of a higher revision than what now comes.
			foreign(hq, fs, "has epoch "+restored.Epoch)
			put("app/web:5", gd)
			put("app/new:1", gd)
			for _, s := range []string{"hq-a", "hq-b"} {
				if n := sites[s].metric("fanout_tree_resyncs_sent_total"); n != 0 {
					t.Errorf("%s sent %v resyncs", s, n)
				}
			}
			for ref, digest := range map[string]string{"app/web:0": digests["app/web:0"], "app/web:4": digests["app/web:4"]} {
				shows(t, fs, ref, digest)
			}
			if err := gone(t, fs, "app/new:1"); err != nil {
				t.Errorf("a foreign epoch was followed: %v", err)
			}
			var accepted acceptedDoc
			eventually(t, "the foreign epoch is accepted", func() error { // not while it is attached to nobody
				out, code := fs.ctl("epoch", "accept", "-o", "json")
				if code != 0 {
					return fmt.Errorf("exit code %d", code)
				}
				return json.Unmarshal(out, &accepted)
			})
			if accepted.Epoch != restored.Epoch || accepted.Held != saved.Epoch || accepted.HeldRevision != 6 {
				t.Errorf("accepted: %+v", accepted)
			}
			shows(t, fs, "app/new:1", digests["app/new:1"])
			shows(t, fs, "app/web:5", digests["app/web:5"])
			shows(t, fs, "app/web:4", digests["app/web:4"]) // no longer in the catalog: it stays where it is
			fs.refuses("no foreign epoch", "epoch", "accept")
			root := rootOf(t, sites, hq)
			for s, reason := range map[*site]string{root: "CatalogRestored", fs: "EpochAccepted"} {
				out, _ := s.ctl("events", "-o", "json")
				if err := says(string(out), reason, "local"); err != nil {
					t.Errorf("events of %s: %v", s.name, err)
				}
			}
			// What no registry of headquarters has any more comes back from below.
			hq.quiet("app/web:0", digests["app/web:0"])
			for _, s := range []string{"hq-a", "hq-b"} {
				whole(t, sites[s], "app/web:0", digests["app/web:0"])
			}
			if survives {
				// What was pushed after the backup is not taken for a push, but is published when somebody says so.
				hq.must(nil, "publish", "app/web:4", "--wait")
				for _, s := range sites {
					shows(t, s, "app/web:4", digests["app/web:4"])
				}
			}
		})
	}
}

// TestHeadquartersAdoptsFromAProvince: there is no backup, but somebody below still has the catalog.
func TestHeadquartersAdoptsFromAProvince(t *testing.T) {
	t.Parallel()
	sites := start(t,
		spec{name: "hq-a", group: "hq"}, spec{name: "gd-a", group: "hq/gd", extra: "subscribe: {repositories: [\"app/**\"]}\n"}, spec{name: "fs-a", group: "hq/fs"},
	)
	hq, gd, fs := sites["hq-a"], sites["gd-a"], sites["fs-a"]
	web, db := push(t, hq, "app/web:1", image(t, 1<<16, 1)), push(t, hq, "db/x:1", image(t, 1<<16, 1))
	shows(t, gd, "app/web:1", web)
	shows(t, fs, "db/x:1", db)
	shows(t, fs, "app/web:1", web)
	eventually(t, "the provinces are where headquarters was", func() error {
		for _, s := range []*site{gd, fs} {
			if n := s.metric("fanout_tree_revision"); n != 2 {
				return fmt.Errorf("%s is at revision %v", s.name, n)
			}
		}
		return nil
	})
	lose("", hq)
	hq.refuses("app/**", "catalog", "adopt", "--from", gd.fabric)
	var restored restoredDoc
	hq.must(&restored, "catalog", "adopt", "--from", fs.fabric)
	if restored.Revision != 2 || restored.Records != 2 {
		t.Errorf("adopted: %+v", restored)
	}
	next := push(t, hq, "app/web:2", image(t, 1<<16, 1))
	shows(t, gd, "app/web:2", next)
	shows(t, fs, "app/web:2", next)
	if n := hq.metric("fanout_tree_resyncs_sent_total"); n != 0 {
		t.Errorf("%v resyncs", n)
	}
	shows(t, gd, "app/web:1", web)
	shows(t, fs, "db/x:1", db)
}

// TestHeadquartersBuiltAnew: there is no catalog but a new one. Each group below keeps what it has until an operator accepts it there.
func TestHeadquartersBuiltAnew(t *testing.T) {
	t.Parallel()
	sites := start(t, spec{name: "hq-a", group: "hq"}, spec{name: "gd-a", group: "hq/gd"}, spec{name: "sz-a", group: "hq/gd/sz"})
	hq, gd, sz := sites["hq-a"], sites["gd-a"], sites["sz-a"]
	digests := map[string]string{}
	for _, ref := range []string{"app/web:1", "app/old:1", "app/web:2"} {
		digests[ref] = push(t, hq, ref, image(t, 1<<16, 1))
		shows(t, sz, ref, digests[ref])
	}
	lose("", hq)
	// The same revision as in the old catalog, and a lower one.
	first, second := push(t, hq, "app/web:1", image(t, 1<<16, 1)), ""
	eventually(t, "it is published", func() error {
		if len(hq.where("app/web:1")) == 0 {
			return errors.New("not in the catalog")
		}
		return nil
	})
	second = push(t, hq, "app/web:2", image(t, 1<<16, 1))
	foreign(hq, gd)
	for _, s := range []*site{gd, sz} {
		for ref, digest := range digests {
			shows(t, s, ref, digest)
		}
	}
	for _, s := range []*site{gd, sz} {
		foreign(hq, s)
		s.must(nil, "epoch", "accept")
		shows(t, s, "app/web:1", first)
		shows(t, s, "app/web:2", second)
		shows(t, s, "app/old:1", digests["app/old:1"]) // the new catalog does not have it
		if s == gd {
			shows(t, sz, "app/web:1", digests["app/web:1"])
		}
	}
	third := push(t, hq, "app/web:3", image(t, 1<<16, 1))
	shows(t, sz, "app/web:3", third)
	eventually(t, "all is well", func() error {
		for _, w := range hq.where("app/web:1") {
			if w.State != "delivered" {
				return fmt.Errorf("%+v", w)
			}
		}
		return nil
	})
}

// TestRescueThroughAnyMemberNamesWhoAsked: a member that is not the root passes on who restores a catalog, or accepts an epoch.
func TestRescueThroughAnyMemberNamesWhoAsked(t *testing.T) {
	t.Parallel()
	issue := authority(t)
	layout := func(name, group string) spec {
		return spec{name: name, group: group, extra: tlsConfig(issue("--group", group, "--site", name))}
	}
	sites := start(t, layout("hq-a", "hq"), layout("hq-b", "hq"), layout("gd-a", "hq/gd"), layout("gd-b", "hq/gd"))
	digest := push(t, sites["hq-a"], "app/web:1", image(t, 1<<16, 1))
	shows(t, sites["gd-a"], "app/web:1", digest)
	shows(t, sites["gd-b"], "app/web:1", digest)
	user := issue("--user", "alice")
	alice := func(s *site, args ...string) string {
		t.Helper()
		flags := []string{"--tls-cert", user + "/tls.crt", "--tls-key", user + "/tls.key", "--tls-ca", user + "/ca.crt", "--trust-domain", "example.com"}
		out, code := s.ctl(append(flags, args...)...)
		if code != 0 {
			t.Fatalf("%s: fanoutctl %v: exit code %d", s.name, args, code)
		}
		return string(out)
	}
	// members of a group: its root, and another.
	members := func(group string) (root, other *site) {
		t.Helper()
		eventually(t, group+" has a root", func() error {
			root, other = nil, nil
			for _, s := range sites {
				switch {
				case s.group != group:
				case s.metric("fanout_tree_root") == 1:
					root = s
				default:
					other = s
				}
			}
			if root == nil || other == nil {
				return errors.New("none")
			}
			return nil
		})
		return root, other
	}
	backup := filepath.Join(t.TempDir(), "catalog")
	alice(sites["gd-a"], "catalog", "save", backup)
	lose("", sites["hq-a"], sites["hq-b"])
	root, other := members("hq")
	alice(other, "catalog", "restore", backup)
	if err := says(alice(root, "events"), "CatalogRestored", "alice restored"); err != nil {
		t.Error(err)
	}
	root, other = members("hq/gd")
	alice(other, "epoch", "accept", "some-other")
	if err := says(alice(root, "events"), "EpochAccepted", "alice accepted epoch some-other"); err != nil {
		t.Error(err)
	}
}
