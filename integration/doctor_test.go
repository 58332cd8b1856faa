package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/fanout-io/fanout/pkg/registry/harbortest"
)

type checked struct{ Name, State, Detail, Mend string }

// doctor runs fanoutctl doctor and gives the checks by site and name.
func (s *site) doctor() (map[string]map[string]checked, int) {
	s.t.Helper()
	out, code := s.ctl("doctor", "-o", "json")
	var doc struct {
		SchemaVersion int
		Sites         []struct {
			Site   string
			Checks []checked
		}
	}
	if err := json.Unmarshal(out, &doc); err != nil || doc.SchemaVersion != 1 {
		s.t.Fatalf("doctor -o json: %v: %s", err, out)
	}
	all := map[string]map[string]checked{}
	for _, x := range doc.Sites {
		all[x.Site] = map[string]checked{}
		for _, c := range x.Checks {
			if (c.State == "ok") != (c.Mend == "") {
				s.t.Errorf("%s: %+v: a mend is wanted where something is not well, and only there", x.Site, c)
			}
			all[x.Site][c.Name] = c
		}
	}
	return all, code
}

func (c checked) is(state string, words ...string) error {
	if c.State != state {
		return fmt.Errorf("want %s: %+v", state, c)
	}
	return says(c.Detail+c.Mend, words...)
}

// TestDoctor: a group of two Harbors is told what it can't survive; a robot that lacks rights, a member that is down and a parent that does not answer are named, with a mend.
// The scratch repository is left clean, and nothing of it is published.
func TestDoctor(t *testing.T) {
	t.Parallel()
	good := serveFake(t, "harbor", harbortest.Config{Knobs: harbortest.Knobs{DeleteRight: true}})
	poor := serveFake(t, "harbor", harbortest.Config{Knobs: harbortest.Knobs{NoProjectRight: true}})
	plain := serveFake(t, "oci", harbortest.Config{Knobs: harbortest.Knobs{Plain: true, NoTagDelete: true}})
	sites := start(t, spec{name: "hq-a", group: "hq", extra: good.extra}, spec{name: "hq-b", group: "hq", extra: poor.extra},
		spec{name: "gd-a", group: "hq/gd", extra: plain.extra},
		spec{name: "sz-a", group: "hq/gd/sz", laid: func(s *site) { s.parents = []string{s.fabric} }}) // its own address, before its parent's
	hq := sites["hq-a"]
	var all map[string]map[string]checked
	eventually(t, "both members are looked at", func() error {
		var code int
		if all, code = hq.doctor(); code != 1 || len(all) != 2 {
			return fmt.Errorf("exit %d: %v", code, all)
		}
		return errors.Join(all["hq-a"]["clock of hq-b"].is("ok"), all["hq-b"]["clock of hq-a"].is("ok"))
	})
	for _, name := range []string{"fabric.advertise " + hq.fabric, "raft port of hq-b", "registry", "registry: push a blob", "registry: push a manifest", "registry: read", "registry: list tags", "registry: list repositories", "registry: delete a tag",
		"configuration", "group's settings", "membership", "certificate", "disk"} {
		want := "ok"
		if c := all["hq-a"][name]; name == "disk" && c.State == "warn" {
			want = "warn" // the machine's disk may be smaller than the spool's bound
		}
		if err := all["hq-a"][name].is(want); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := errors.Join(
		all["hq-a"]["quorum"].is("warn", "two members", "while either is down, nothing is published", "witness"),
		all["hq-b"]["registry: push a blob"].is("fail", "project fanout", "docs/harbor.md"),
	); err != nil {
		t.Error(err)
	}
	if tag := "site-" + digestOf([]byte("hq-a"))[7:23]; good.Tag("fanout/doctor", tag) != "" || good.Tag("fanout/marker", tag) == "" {
		t.Error("the scratch tag is left behind, or has another name than it is looked for by")
	}
	list, code := hq.ctl("images", "-o", "json", "--all")
	var doc struct{ Images []any }
	if err := json.Unmarshal(list, &doc); err != nil || code != 0 || len(doc.Images) != 0 {
		t.Errorf("something of fanout's own was published: %s", list)
	}

	all, code = sites["gd-a"].doctor()
	if err := errors.Join(
		all["gd-a"]["registry: delete a tag"].is("warn", "switch deletion on"), all["gd-a"]["parent"].is("ok", "hq"),
		all["gd-a"]["parent at "+hq.fabric].is("ok", "hq-a of hq answers"), all["gd-a"]["quorum"].is("warn", "one member"),
	); err != nil || code != 0 {
		t.Errorf("exit %d: %v", code, err)
	}
	if all, code := sites["sz-a"].doctor(); code != 0 || all["sz-a"]["registry: delete a tag"].State != "ok" {
		t.Errorf("exit %d: %v", code, all)
	}
	all, _ = sites["sz-a"].doctor()
	if err := errors.Join(all["sz-a"]["parent at "+sites["sz-a"].fabric].is("warn", "this agent itself", "take the address out of fabric.parents"),
		all["sz-a"]["parent at "+sites["gd-a"].fabric].is("ok", "gd-a of hq/gd answers")); err != nil {
		t.Error(err)
	}
	if tags, err := remote.List(repository(t, sites["sz-a"], "fanout/doctor")); err == nil && len(tags) > 0 {
		t.Errorf("the scratch repository keeps %v", tags)
	}

	sites["hq-b"].kill()
	eventually(t, "the dead member, and what is lost with it, is named", func() error {
		all, code := hq.doctor()
		if code != 1 {
			return fmt.Errorf("exit %d", code)
		}
		return errors.Join(all["hq-b"]["agent"].is("fail", "can't be asked", "lost its majority for good"), all["hq-a"]["clock of hq-b"].is("fail"),
			all["hq-a"]["raft port of hq-b"].is("fail", "can't be reached from here", "refused", "start the agent of hq-b"),
			all["hq-a"]["quorum"].is("fail", "no root", "2 must be up"))
	})
	all, _ = sites["gd-a"].doctor()
	if err := all["gd-a"]["parent at "+sites["hq-b"].fabric].is("warn", "does not answer", "fabric.parents"); err != nil {
		t.Error(err)
	}
}

// TestDamagedElsewhere: a registry that is not the agent's own keeps a damaged file whatever is pushed. That is said, with the file's name; once that is removed, the rest goes by itself.
func TestDamagedElsewhere(t *testing.T) {
	t.Parallel()
	sites := start(t, spec{name: "hq-a", group: "hq"}, spec{name: "gd-a", group: "hq/gd", registry: true})
	hq, gd := sites["hq-a"], sites["gd-a"]
	img := image(t, 20<<10, 1)
	digest := push(t, hq, "app/web:1", img)
	hq.quiet("app/web:1", digest)
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	layer := m.Layers[0].Digest.String()
	// Its folder is laid out like that of an embedded one.
	gd.registryDir = gd.own.Dir
	gd.flip(layer)
	v, code := gd.verify("gd-a", "gd-a", "--deep", "--repair")
	i := slices.IndexFunc(v.Differences, func(d verifiedDifference) bool { return d.Digest == layer && d.Kind == "wrong-bytes" })
	if code != 4 || i < 0 || says(v.Differences[i].Reason, "remove the file blobs/sha256/"+layer[7:9]+"/"+layer[7:]+"/data") != nil {
		t.Fatalf("exit %d: %+v", code, v)
	}
	gd.lose(layer)
	if v, code := gd.verify("gd-a", "gd-a", "--deep", "--repair"); code != 0 || v.Repaired != 1 {
		t.Fatalf("exit %d: %+v", code, v)
	}
	if err := gd.intact(layer); err != nil {
		t.Error(err)
	}
	shows(t, gd, "app/web:1", digest)
}
