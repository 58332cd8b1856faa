package tree_test

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/fanout-io/fanout/pkg/tree"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

func FuzzRaftHello(f *testing.F) {
	f.Add([]byte{0xFA, 0, 0, 0, 2, 0x0a, 0})
	f.Add([]byte{0xFA, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0})
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := tree.ReadHello(bytes.NewReader(data))
		if (h == nil) == (err == nil) {
			t.Fatalf("%v, %v", h, err)
		}
	})
}

func FuzzHealthUpdate(f *testing.F) {
	for _, u := range []*treev1.HealthUpdate{
		{Full: true, Sites: []*treev1.SiteHealth{{Site: "gd-a", Group: "hq/gd"}}, Pending: []*treev1.PendingRef{{Site: "gd-a", Repository: "app", Tag: "v1"}}},
		{RemovedSites: []string{"gd-a"}, Settled: []*treev1.SettledRef{{Site: "gd-a", Repository: "app", Tag: "v1"}}, Groups: []*treev1.GroupHealth{{Group: "hq/gd"}}},
	} {
		data, err := proto.Marshal(u)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		u := &treev1.HealthUpdate{}
		if proto.Unmarshal(data, u) != nil {
			return
		}
		hq := tree.NewTable("hq", "", "hq-a")
		gd, hn := hq.Source("hq/gd"), hq.Source("hq/hn")
		if _, err := hn.Merge(&treev1.HealthUpdate{Sites: []*treev1.SiteHealth{{Site: "hn-a", Group: "hq/hn", State: "synced"}}}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			_, _ = gd.Merge(u)
		}
		if s := siteOf(hq.View(), "hn-a"); s.GetState() != "synced" || s.GetGroup() != "hq/hn" {
			t.Fatalf("one child changed what another said: %v", s)
		}
		if len(hq.PendingOf("hn-a")) > 0 || siteOf(hq.View(), "hq-a") != nil {
			t.Fatal("a child spoke of others")
		}
		gd.Leave("gone")
		for more := true; more; {
			_, more = hq.Diff()
		}
	})
}
