package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// TestFreeze_Bounds: a freeze keeps tags as they are and ends by itself: at its end, or, for repositories whose policy bounds it, when they have been kept for so long.
func TestFreeze_Bounds(t *testing.T) {
	t.Parallel()
	sites := start(t, spec{name: "hq-a", group: "hq"}, spec{name: "gd-a", group: "hq/gd"}, spec{name: "hn-a", group: "hq/hn"})
	hq, gd, hn := sites["hq-a"], sites["gd-a"], sites["hn-a"]
	const bounded, free = "prod/web:stable", "app/web:stable"
	const most = time.Minute // the least that a policy may say
	p := promotionAt(t, hq)
	was := push(t, hq, bounded, image(t, 1<<16, 1))
	push(t, hq, free, pulled(t, hq, bounded))
	hq.quiet(bounded, was)
	hq.quiet(free, was)
	p.ask("policies", func(ctx context.Context, c adminv1.AdminServiceClient) error {
		_, err := c.SetPolicies(ctx, &adminv1.SetPoliciesRequest{Policies: []*catalogv1.Policy{{Name: "bounded", Repositories: []string{"prod/**"}, Delivery: "cascade", MaxFreeze: durationpb.New(most)}}})
		return err
	})
	freeze := func(s *site, until time.Duration) *catalogv1.Freeze {
		t.Helper()
		f, err := s.admin().SetFreeze(t.Context(), &adminv1.SetFreezeRequest{Group: s.group, Reason: "stocktaking", Until: timestamppb.New(time.Now().Add(until))})
		if err != nil {
			t.Fatal(err)
		}
		return f.GetFreeze()
	}
	long, short := freeze(gd, time.Hour), freeze(hn, 8*time.Second)
	bound, hour := long.GetSince().AsTime().Add(most), long.GetUntil().AsTime()
	is := push(t, hq, bounded, image(t, 1<<16, 2))
	push(t, hq, free, pulled(t, hq, bounded))

	// When each came to show what it is to show.
	var mu sync.Mutex
	first := map[string]time.Time{}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	for _, s := range []*site{gd, hn} {
		for _, ref := range []string{bounded, free} {
			r := reference(t, s, ref)
			wg.Go(func() {
				for ctx.Err() == nil {
					if d, err := remote.Head(r, remote.WithContext(ctx)); err == nil && d.Digest.String() == is {
						mu.Lock()
						first[s.name+" "+ref] = time.Now()
						mu.Unlock()
						return
					}
					select {
					case <-ctx.Done():
					case <-time.After(20 * time.Millisecond):
					}
				}
			})
		}
	}
	refState(t, hq, bounded, "gd-a", "held", "frozen by hq/gd until "+bound.UTC().Format(time.RFC3339), "stocktaking")
	refState(t, hq, free, "gd-a", "held", "frozen by hq/gd until "+hour.UTC().Format(time.RFC3339), "stocktaking")
	moves := func(what string, at time.Time) {
		t.Helper()
		within(t, time.Until(at)+patience, what+" moves", func() error {
			mu.Lock()
			defer mu.Unlock()
			switch moved := first[what]; {
			case moved.IsZero():
				return fmt.Errorf("it is kept until %v", at)
			case moved.Before(at.Add(-time.Second)): // the words of a time are whole seconds
				t.Errorf("%s moved %v before the freeze ended", what, at.Sub(moved))
			default:
				t.Logf("%s moved %v after the freeze ended", what, moved.Sub(at).Round(time.Millisecond))
			}
			return nil
		})
	}
	moves("hn-a "+bounded, short.GetUntil().AsTime())
	moves("hn-a "+free, short.GetUntil().AsTime())
	moves("gd-a "+bounded, bound)
	mu.Lock()
	if at := first["gd-a "+free]; !at.IsZero() {
		t.Errorf("what no policy bounds moved at %v, frozen until %v", at, hour)
	}
	mu.Unlock()
	if _, err := gd.admin().SetFreeze(t.Context(), &adminv1.SetFreezeRequest{Thaw: true}); err != nil {
		t.Fatal(err)
	}
	shows(t, gd, free, is)
	again, err := gd.admin().SetFreeze(t.Context(), &adminv1.SetFreezeRequest{Group: gd.group, Reason: "again", Until: timestamppb.New(time.Now().Add(time.Hour))})
	if err != nil {
		t.Fatal(err)
	}
	if x := again.GetShorter(); len(x) != 1 || x[0].GetRefs() != 1 || x[0].GetExample() != bounded || !x[0].GetUntil().AsTime().Equal(again.GetFreeze().GetSince().AsTime().Add(most)) {
		t.Errorf("a freeze that a policy bounds is said to have no bound: %v", x)
	}

	// Who promotes is told before it begins, of the freeze and of the rollout that ends by it.
	plan := filepath.Join(t.TempDir(), "plan.yaml")
	if err := os.WriteFile(plan, []byte(planOf(`{name: all, groups: ["**"], gates: {before: [{approval: {}}]}}`)), 0o600); err != nil {
		t.Fatal(err)
	}
	var started view.Promotion
	out, code := hq.ctl("promote", bounded, "--as", "fit", "--plan", plan, "--yes", "-o", "json")
	if err := json.Unmarshal(out, &started); err != nil || code != 0 {
		t.Fatalf("exit code %d, %v: %s", code, err, out)
	}
	eventually(t, "the preflight has both", func() error {
		out, code := hq.ctl("promote", bounded, "--as", "fit", "--plan", plan, "--supersede", "--dry-run")
		if code != 0 {
			return fmt.Errorf("exit code %d: %s", code, out)
		}
		return says(strings.Join(strings.Fields(string(out)), " "), "Not ready, of 3 sites", "freeze: its tags are frozen by hq/gd until", "again", "fanoutctl thaw", "rollout "+started.ID+" (awaiting-approval, wave 1 of 1 all)", "ends by this")
	})
}
