package integration

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/fanout-io/fanout/pkg/view"
)

// refState waits until where says of a ref at a site that it is in a state, for a reason with all the words.
func refState(t testing.TB, hq *site, ref, at, state string, words ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("where says %s of %s at %s", state, ref, at), func() error {
		for _, w := range hq.where(ref) {
			if w.Site != at {
				continue
			}
			if w.State != state {
				return fmt.Errorf("%+v", w)
			}
			return says(w.Reason, words...)
		}
		return fmt.Errorf("no such site")
	})
}

// TestDrift: somebody pushes, retags and deletes in the provinces. Each does with it what its file says, and says so; what headquarters never had is not touched; and the next push at
// headquarters is delivered whatever was done before.
func TestDrift(t *testing.T) {
	t.Parallel()
	sites := start(t,
		spec{name: "hq-a", group: "hq"},
		spec{name: "re-a", group: "hq/re"},
		spec{name: "rp-a", group: "hq/rp", extra: "drift: {changed: report, deleted: report}\n"},
		spec{name: "ac-a", group: "hq/ac", extra: "drift: {changed: accept, deleted: accept}\n"},
	)
	hq := sites["hq-a"]
	provinces := []*site{sites["re-a"], sites["rp-a"], sites["ac-a"]}
	changes, goes := push(t, hq, "app/web:changes", image(t, 1<<14, 1)), push(t, hq, "app/web:goes", image(t, 1<<14, 1))
	hq.quiet("app/web:changes", changes)
	hq.quiet("app/web:goes", goes)
	other, foreign := map[*site]string{}, map[*site]string{}
	for _, s := range provinces {
		other[s] = push(t, s, "app/web:changes", image(t, 1<<14, 1))
		foreign[s] = push(t, s, "local/x:1", image(t, 1<<14, 1))
		if err := remote.Delete(reference(t, s, "app/web:goes")); err != nil {
			t.Fatal(err)
		}
	}

	refState(t, hq, "app/web:changes", "rp-a", "drifted", "changed here")
	refState(t, hq, "app/web:goes", "rp-a", "drifted", "deleted here")
	treeSays(t, hq, "rp-a", "degraded", "2 refs differ")
	refState(t, hq, "app/web:changes", "ac-a", "accepted", "changed here")
	refState(t, hq, "app/web:goes", "ac-a", "accepted", "deleted here")
	if v, code := hq.verify("ac-a", "ac-a"); code != 0 || v.State != "accepted" || len(v.Differences) != 2 {
		t.Errorf("verify where differences are accepted: exit %d, %+v", code, v)
	}
	if v, code := hq.verify("rp-a", "rp-a"); code != 4 || v.State != "different" {
		t.Errorf("verify where differences are reported: exit %d, %+v", code, v)
	}
	treeSays(t, hq, "ac-a", "synced")
	eventually(t, "nothing is left to do where differences are accepted", func() error {
		tree, err := asks[view.Tree](hq, "tree")
		if err != nil {
			return err
		}
		for _, g := range tree.Groups {
			for _, m := range g.Members {
				if m.Site == "ac-a" && m.Pending == 0 {
					return nil
				}
			}
		}
		return fmt.Errorf("%+v", tree.Groups)
	})
	refState(t, hq, "app/web:changes", "re-a", "delivered")
	refState(t, hq, "app/web:goes", "re-a", "delivered")
	treeSays(t, hq, "re-a", "synced")
	shows(t, sites["re-a"], "app/web:changes", changes)
	shows(t, sites["re-a"], "app/web:goes", goes)
	for _, s := range provinces[1:] {
		shows(t, s, "app/web:changes", other[s])
		if err := gone(t, s, "app/web:goes"); err != nil {
			t.Error(err)
		}
		for _, w := range hq.where("app/web:changes") {
			if w.Site == s.name && w.Digest != other[s] {
				t.Errorf("where: %+v, and it shows %s", w, other[s])
			}
		}
	}
	// A publish that waits does not wait for what stays as it is.
	if out, code := hq.ctl("publish", "app/web:changes", "--wait", "-o", "json"); code != 3 {
		t.Errorf("publish --wait: exit code %d, want 3: %s", code, out)
	} else {
		var receipt view.Publish
		if err := json.Unmarshal(out, &receipt); err != nil || receipt.Sites == nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, x := range *receipt.Sites {
			if x.State == "delivered" && (x.Since == nil || x.Since.After(time.Now())) {
				t.Errorf("the receipt has no time: %+v", x)
			}
		}
	}
	// Put back by hand, it is as it should be.
	img, err := remote.Image(reference(t, hq, "app/web:changes"))
	if err != nil {
		t.Fatal(err)
	}
	push(t, sites["rp-a"], "app/web:changes", img)
	refState(t, hq, "app/web:changes", "rp-a", "delivered")
	treeSays(t, hq, "rp-a", "degraded", "app/web:goes differs: deleted here")

	// The next push is everywhere.
	for _, ref := range []string{"app/web:changes", "app/web:goes"} {
		hq.quiet(ref, push(t, hq, ref, image(t, 1<<14, 1)))
	}
	for _, s := range provinces {
		shows(t, s, "local/x:1", foreign[s])
		treeSays(t, hq, s.name, "synced")
	}
	if err := gone(t, hq, "local/x:1"); err != nil {
		t.Error(err)
	}
}
