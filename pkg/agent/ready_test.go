package agent

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/registry"
	"github.com/fanout-io/fanout/pkg/registry/harbortest"
)

func checkNamed(list []*adminv1.Check, name string) *adminv1.Check {
	for _, c := range list {
		if c.GetName() == name {
			return c
		}
	}
	return nil
}

// TestPreflight_AsksTheSites: every site of a rollout says itself, when it is asked, whether its registry answers and has room; also one two links away. What was heard of it last does not
// count: nothing but the question tells that the registry has just begun to refuse.
func TestPreflight_AsksTheSites(t *testing.T) {
	szReg := newGate(t, embeddedRegistry(t))
	tree := runTree(t, map[string]*gate{"hq/gd/sz": szReg}, "hq", "hq/gd", "hq/gd/sz")
	hq, sz := tree["hq"], tree["hq/gd/sz"]
	hq.push("app/web:1")
	sz.state("app/web:1", "")
	raw, rec := hq.record(at("app/web:1"))
	waitFor(t, "headquarters has heard of all", func() error {
		sites := hq.where(at("app/web:1"), raw).GetSites()
		for _, s := range sites {
			if s.GetState() != "delivered" {
				return fmt.Errorf("%s: %s", s.GetGroup(), s.GetState())
			}
		}
		if len(sites) != 3 {
			return fmt.Errorf("it knows of %d sites", len(sites))
		}
		return nil
	})
	look := func() map[string]*adminv1.PreflightSite {
		r := begun(hq.node.Catalog(), &catalogv1.Rollout{
			Plan: &catalogv1.Plan{Waves: []*catalogv1.Wave{{Name: "one", Groups: []string{"hq", "hq/gd", "hq/gd/sz"}}}},
			Items: []*catalogv1.RolloutItem{{
				Repository: "app/web", Tag: "stable", SourceRepository: "app/web", SourceTag: "1",
				Target: &catalogv1.Descriptor{Digest: rec.GetTarget().GetDigest(), MediaType: rec.GetTarget().GetMediaType(), Size: rec.GetTarget().GetSize()},
			}},
		}, "ann")
		out := map[string]*adminv1.PreflightSite{}
		for _, p := range hq.preflight(t.Context(), r, "ann") {
			out[p.GetGroup()] = p
		}
		return out
	}
	for group, p := range look() {
		for _, c := range p.GetChecks() {
			if c.GetState() != checkOK {
				t.Errorf("%s: %v", group, c)
			}
		}
		want := []string{"registry", "spool", "registry's disk"}
		if group == "hq/gd/sz" {
			want = want[:2] // it is not embedded
		}
		for _, name := range want {
			if checkNamed(p.GetChecks(), name) == nil {
				t.Errorf("%s says nothing of its %s: %v", group, name, p.GetChecks())
			}
		}
	}
	szReg.refuses(func(r *http.Request) bool { return r.URL.Path == "/v2/" })
	all := look()
	if c := checkNamed(all["hq/gd/sz"].GetChecks(), "registry"); c.GetState() != checkFail || !strings.Contains(c.GetDetail(), "403") || c.GetMend() == "" {
		t.Errorf("of a registry that refuses: %v", all["hq/gd/sz"].GetChecks())
	}
	if c := checkNamed(all["hq/gd"].GetChecks(), "registry"); c.GetState() != checkOK {
		t.Errorf("its parent: %v", c)
	}
}

// TestReadiness_Room: a blob that can't pass through the spool, and content for which the disk has no room, are told with the mend.
func TestReadiness_Room(t *testing.T) {
	hq := runTree(t, nil, "hq")["hq"]
	_, limit := hq.store.Spool().Usage()
	r := hq.readiness(t.Context(), []*adminv1.Need{{Repository: "app/web", Bytes: limit + 2, Largest: limit + 1}})
	if c := checkNamed(r.GetChecks(), "spool"); c.GetState() != checkFail || !strings.Contains(c.GetMend(), "limits.spool") {
		t.Errorf("%v", c)
	}
	r = hq.readiness(t.Context(), []*adminv1.Need{{Repository: "app/web", Bytes: 1 << 60, Largest: 1 << 20}, {Repository: "app/api", Bytes: 0, Largest: limit + 1}})
	if c := checkNamed(r.GetChecks(), "registry's disk"); c.GetState() != checkFail || !strings.Contains(c.GetDetail(), "1.0 EiB would come") || !strings.Contains(c.GetMend(), "make room on the disk of") {
		t.Errorf("%v", c)
	}
	if c := checkNamed(r.GetChecks(), "spool"); c.GetState() != checkOK {
		t.Errorf("of what is there already nothing passes through the spool: %v", c)
	}
}

// TestReadiness_Quota: what would come to a Harbor is compared with its projects' quotas; content that is mounted from another project counts, too.
func TestReadiness_Quota(t *testing.T) {
	quotas := func(knobs harbortest.Knobs, needs ...*adminv1.Need) []check {
		h := harbortest.New(harbortest.Config{Knobs: knobs})
		srv := httptest.NewServer(h)
		defer srv.Close()
		defer h.Close()
		c, err := registry.New(registry.Config{Type: registry.TypeHarbor, URL: srv.URL, Username: h.Username(), Password: func() (string, error) { return h.Password(), nil }})
		if err != nil {
			t.Fatal(err)
		}
		defer c.CloseIdle()
		for _, p := range []string{"app", "prod"} {
			if err := c.EnsureRepository(t.Context(), p+"/web"); err != nil {
				t.Fatal(err)
			}
		}
		h.SetProject("prod", harbortest.Project{Quota: 1 << 20})
		return (&Agent{registry: c}).quotas(t.Context(), needs)
	}
	for _, c := range []struct {
		name  string
		knobs harbortest.Knobs
		need  []*adminv1.Need
		want  []string // state, words
	}{
		{"enough", harbortest.Knobs{}, []*adminv1.Need{{Repository: "prod/web", Bytes: 1 << 19}}, []string{"ok", "0 B of 1.0 MiB are used"}},
		{"two refs together", harbortest.Knobs{}, []*adminv1.Need{{Repository: "prod/web", Bytes: 1 << 19}, {Repository: "prod/api", Bytes: 1<<19 + 1}}, []string{"fail", "up to 1.0 MiB would be added"}},
		{"mounted", harbortest.Knobs{}, []*adminv1.Need{{Repository: "prod/web", Counted: 2 << 20}}, []string{"fail", "up to 2.0 MiB would be added"}},
		{"no limit", harbortest.Knobs{}, []*adminv1.Need{{Repository: "app/web", Bytes: 1 << 40}}, []string{"ok", "there is no limit"}},
		{"no project", harbortest.Knobs{}, []*adminv1.Need{{Repository: "new/web", Bytes: 1}}, []string{"unknown", "not there yet"}},
		{"not told", harbortest.Knobs{NoQuotaRight: true}, []*adminv1.Need{{Repository: "prod/web", Bytes: 2 << 20}}, []string{"unknown", "docs/harbor.md"}},
	} {
		got := quotas(c.knobs, c.need...)
		if len(got) != 1 || got[0].state != c.want[0] || !strings.Contains(got[0].detail, c.want[1]) || (got[0].state == checkFail) != (got[0].mend != "") {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

// TestEstimate: the slowest link on the way counts, and where a rate is not known, the time is not.
func TestEstimate(t *testing.T) {
	sites := []*adminv1.PreflightSite{
		{Site: "a", Group: "hq/gd", BytesMissing: 1000}, {Site: "b", Group: "hq/gd", BytesMissing: 0},
		{Site: "c", Group: "hq/gd/sz", BytesMissing: 1000}, {Site: "d", Group: "hq/gd/fs", BytesMissing: 0},
		{Site: "e", Group: "hq/hn", BytesMissing: 10}, {Site: "f", Group: "hq/hn/cs", BytesMissing: 10},
	}
	estimate(sites, []int64{10, 0, 100, 0, 0, 10})
	for i, want := range []float64{100, 0, 100, 0, -1, -1} {
		if got := sites[i].GetSeconds(); got != want {
			t.Errorf("%s: %v, want %v", sites[i].GetSite(), got, want)
		}
	}
}
