package transfer_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What is shown of a flight: for whom it is, how far it is and how fast; and afterwards who sent what.
func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFabric(t)
		b := newBlob(35, 2*piece)
		hq := newSite(f, "hq", "hq-a", nil)
		hq.local.put(b)
		hq.local.gate = newGate()
		hq.local.gate.open(piece)
		gd := newSite(f, "hq/gd", "gd-a", upstream("hq-a"))
		fl, err := gd.fetcher.Fetch(t.Context(), b.request())
		if err != nil {
			t.Fatal(err)
		}
		defer fl.Release()
		time.Sleep(time.Second)
		active := gd.fetcher.Active()
		if len(active) != 1 {
			t.Fatalf("%d flights", len(active))
		}
		p := active[0]
		if p.Request != b.request() || p.Have != piece || p.Size != 2*piece || p.Source.Site != "hq-a" || p.Rate <= 0 {
			t.Errorf("%+v", p)
		}
		hq.local.gate.open(2 * piece)
		if err := fl.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(map[string]int64{"hq-a": 2 * piece}, fl.Gave()); d != "" {
			t.Error(d)
		}
	})
}
