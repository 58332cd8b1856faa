package integration

import (
	"fmt"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// TestMetricsTell: after a push has come down, the agents' metrics say so, and by which link.
func TestMetricsTell(t *testing.T) {
	t.Parallel()
	sites := start(t, spec{name: "hq-a", group: "hq"}, spec{name: "gd-a", group: "hq/gd"})
	hq, gd := sites["hq-a"], sites["gd-a"]
	img := image(t, 1<<20, 1)
	shows(t, gd, "app/web:1", push(t, hq, "app/web:1", img))
	shows(t, gd, "app/copy:1", push(t, hq, "app/copy:1", img))
	atLeast := func(s *site, name string, want float64) {
		t.Helper()
		eventually(t, s.name+" counts "+name, func() error {
			if v, ok := s.findMetric(name); !ok || v < want {
				return fmt.Errorf("%v, %v; want %v", v, ok, want)
			}
			return nil
		})
	}
	atLeast(gd, `fanout_link_bytes_total{direction="in",lane="content",link="parent"}`, 1<<20)
	atLeast(hq, `fanout_link_bytes_total{direction="out",lane="content",link="child"}`, 1<<20)
	atLeast(gd, `fanout_link_bytes_total{direction="in",lane="control",link="parent"}`, 100)
	atLeast(hq, `fanout_link_bytes_total{direction="out",lane="control",link="child"}`, 100)
	atLeast(gd, `fanout_deliveries_total{result="delivered"}`, 2)
	atLeast(gd, `fanout_delivery_duration_seconds_count`, 2)
	atLeast(gd, `fanout_delivery_last_success_timestamp_seconds`, 1.7e9)
	atLeast(gd, `fanout_delivery_saved_bytes_total{how="mounted"}`, 1<<20)
	if v := gd.metric(`fanout_delivery_saved_bytes_total{how="present"}`); v != 0 {
		t.Errorf("%v bytes were present before anything else came to their repository", v)
	}
	layer, err := random.Layer(1<<10, types.OCILayer)
	if err != nil {
		t.Fatal(err)
	}
	more, err := mutate.AppendLayers(img, layer)
	if err != nil {
		t.Fatal(err)
	}
	shows(t, gd, "app/web:1", push(t, hq, "app/web:1", more))
	atLeast(gd, `fanout_delivery_saved_bytes_total{how="present"}`, 1<<20)
	if v := gd.metric(`fanout_delivery_saved_bytes_total{how="present"}`); v > 1.2*(1<<20) {
		t.Errorf("%v bytes were present of a layer of 1 MiB", v)
	}
	atLeast(gd, `fanout_tree_attachments_total`, 1)
	atLeast(gd, `fanout_raft_has_root`, 1)
	atLeast(gd, `fanout_registry_up`, 1)
	atLeast(gd, `fanout_sweep_duration_seconds_count`, 1)
	atLeast(gd, `fanout_transfer_duration_seconds_count`, 1)
	atLeast(gd, `fanout_spool_limit_bytes`, 1<<30)
	atLeast(hq, `fanout_site_state{group="hq/gd",site="gd-a",state="synced"}`, 1)
	atLeast(hq, `fanout_site_last_contact_timestamp_seconds{group="hq/gd",site="gd-a"}`, 1.7e9)
	for _, lag := range []string{`fanout_site_lag_revisions{group="hq/gd",site="gd-a"}`, `fanout_site_lag_seconds{group="hq/gd",site="gd-a"}`} {
		eventually(t, "a site that is synced does not lag", func() error { // its word of the last push may be on its way
			if v := hq.metric(lag); v != 0 {
				return fmt.Errorf("%s is %v", lag, v)
			}
			return nil
		})
	}
	if in := gd.metric(`fanout_link_bytes_total{direction="in",lane="content",link="parent"}`); in > 1.2*(1<<20) {
		t.Errorf("%v bytes of content came in for 1 MiB", in)
	}

	gd.kill()
	push(t, hq, "app/web:2", image(t, 1<<10, 1))
	atLeast(hq, `fanout_site_lag_revisions{group="hq/gd",site="gd-a"}`, 1)
	atLeast(hq, `fanout_site_lag_seconds{group="hq/gd",site="gd-a"}`, 0.001)
	atLeast(hq, `fanout_site_state{group="hq/gd",site="gd-a",state="unreachable"}`, 1)
}
