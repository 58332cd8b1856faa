package plan_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/plan"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// TestCatalogTakesThem: what is accepted here is not refused when a rollout starts, or policies are set.
func TestCatalogTakesThem(t *testing.T) {
	now := timestamppb.New(time.Unix(1e9, 0))
	apply := func(m *catalog.Machine, c *catalogv1.Change) error {
		return m.Apply(&catalogv1.Command{Time: now, Actor: "ann", Changes: []*catalogv1.Change{c}})[0].Err
	}
	machine := func() *catalog.Machine {
		m := catalog.New()
		if err := apply(m, &catalogv1.Change{Kind: &catalogv1.Change_Found{Found: &catalogv1.Found{Epoch: "e1"}}}); err != nil {
			t.Fatal(err)
		}
		return m
	}
	start := func(name string, p *catalogv1.Plan) {
		r := &catalogv1.Rollout{Id: "r1", Plan: p, Items: []*catalogv1.RolloutItem{{Repository: "app", Tag: "v1", Target: &catalogv1.Descriptor{
			MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: "sha256:" + strings.Repeat("a", 64), Size: 5}}}}
		if err := apply(machine(), &catalogv1.Change{Kind: &catalogv1.Change_StartRollout{StartRollout: &catalogv1.StartRollout{Rollout: r}}}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	largest := "maxConcurrent: 65536, maxFailures: 65536, soak: 720h, deadline: 8760h, gates: {after: [" + strings.Repeat("check: {url: http://a, interval: 24h, timeout: 720h}, ", 16) + "]}, window: {allow: ["
	for i := range 32 {
		largest += fmt.Sprintf("'%d 1 * * * / 744h', ", i)
	}
	largest += "]}"
	plans := 0
	var files []txtar.File
	for _, f := range []string{"plan.txtar", "policy.txtar"} {
		a, err := txtar.ParseFile(filepath.Join("testdata", f))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, a.Files...)
	}
	files = append(files, txtar.File{Name: "largest.yaml", Data: []byte("apiVersion: fanout/v1\nkind: Plan\nmetadata: {name: p}\nspec: {waves: [{name: a, groups: ['**'], " + largest + "}]}\n")})
	for _, f := range files {
		if !strings.HasSuffix(f.Name, ".yaml") {
			continue
		}
		if policies, _, err := plan.ParsePolicies(f.Name, f.Data); err == nil {
			plans++
			if err := apply(machine(), &catalogv1.Change{Kind: &catalogv1.Change_SetPolicies{SetPolicies: &catalogv1.SetPolicies{Policies: policies}}}); err != nil {
				t.Errorf("%s: %v", f.Name, err)
			}
		}
		p, err := plan.Parse(f.Name, f.Data, time.LoadLocation)
		if err != nil {
			continue
		}
		plans++
		groups := append(fabric(), plan.Group{Path: "hq/b", Labels: map[string]string{"tier": "", "x": "1"}}, plan.Group{Path: "hq/c", Labels: map[string]string{"tier": "", "x": "1"}})
		got, _, err := plan.Resolve(p, groups)
		if err != nil {
			t.Log(f.Name, err)
			continue
		}
		start(f.Name, proto.CloneOf(got))
	}
	def, _, err := plan.Resolve(plan.Default(), fabric())
	if err != nil {
		t.Fatal(err)
	}
	start("default", def)
	if plans < 10 {
		t.Errorf("%d files only", plans)
	}
}
