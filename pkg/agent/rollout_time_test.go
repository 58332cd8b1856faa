package agent

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
)

// TestRollouts_DeadlineIsMeasured: a deadline is over when so much time has passed, however wrong the clock of the root is that took office meanwhile. While a rollout is paused on its way back,
// nothing is written down of it.
func TestRollouts_DeadlineIsMeasured(t *testing.T) {
	for _, ahead := range []time.Duration{24 * time.Hour, -24 * time.Hour} {
		t.Run(ahead.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := fakes(t, "hq/gd")
				defer func() { f.stop() }()
				f.start(&catalogv1.Wave{Name: "w", Groups: []string{"hq/gd"}, OnOffline: catalog.OnOfflineWait, Deadline: durationpb.New(10 * time.Minute)})
				f.follow("hq/gd")
				f.in(catalog.RolloutRunning, time.Minute)
				begin := time.Now()
				f.site("hq/gd", "unreachable", nil)
				time.Sleep(3 * time.Minute)
				f.mu.Lock()
				f.ahead = ahead
				f.mu.Unlock()
				f.elect()
				r := f.in(catalog.RolloutPaused, 20*time.Minute)
				if took := time.Since(begin); took < 10*time.Minute || took > 11*time.Minute || r.GetGroups()[0].GetPhase() != catalog.GroupFailed {
					t.Errorf("a deadline of 10m was over after %v: %v", took, r)
				}
				f.site("hq/gd", "syncing", nil) // it is back, and has not heard of the rollback yet
				f.steer(catalog.SteerRollback, "")
				f.steer(catalog.SteerPause, "")
				time.Sleep(time.Minute)
				if r := f.catalog().Rollout("r1"); r.GetPhase() != catalog.RolloutPaused || r.GetGroups()[0].GetPhase() != catalog.GroupRollingBack {
					t.Fatalf("%v", r)
				}
				before := f.proposed()
				time.Sleep(time.Hour)
				if n := f.proposed() - before; n > 0 {
					t.Errorf("%d proposals while it is paused on its way back", n)
				}
			})
		})
	}
}

// TestRollouts_CheckHangsToItsEnd: an attempt that hangs for as long as the check may take is one of which is told, and an answer that comes at the last moment counts.
func TestRollouts_CheckHangsToItsEnd(t *testing.T) {
	for _, c := range []struct {
		name  string
		after time.Duration // comes the answer; 0: never
		phase string
		words string
	}{
		{"never", 0, catalog.RolloutPaused, "no answer within 3s"},
		{"late", 2900 * time.Millisecond, catalog.RolloutSucceeded, "status 204"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := fakes(t, "hq/gd")
				defer func() { f.stop() }()
				f.answer = func(req *http.Request) (*http.Response, error) {
					if c.after > 0 {
						time.Sleep(c.after)
						return answers(204, "")(req)
					}
					<-req.Context().Done()
					return nil, req.Context().Err()
				}
				f.start(&catalogv1.Wave{Name: "w", Groups: []string{"hq/gd"}, Before: []*catalogv1.Gate{checkGate(time.Second, 3*time.Second)}})
				begin := time.Now()
				r := f.in(c.phase, 10*time.Second, "hq/gd")
				if took := time.Since(begin); took > 6*time.Second {
					t.Errorf("a gate with a timeout of 3s was waited for for %v", took)
				}
				if g := r.GetWaves()[0].GetGates()[0]; g.GetAttempts() != 1 || !strings.Contains(g.GetDetail(), c.words) || g.GetTook().AsDuration() < 2*time.Second {
					t.Errorf("%v", g)
				}
			})
		})
	}
}
