package agent

import (
	"fmt"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
)

// rolloutNews finds the steps of rollouts that were not told in this term of office. It begins an hour before the catalog's last change, so that what the last root did not come to tell
// is told: at least once.
type rolloutNews struct {
	tell  func(rolloutStep)
	began time.Time                // the catalog's clock at the first look
	last  map[string]*timesAtClock // by rollout
}

// timesAtClock is a step's place in the history of a rollout: its time, and how many steps there were of that time. Steps have no number, and the oldest are dropped.
type timesAtClock struct {
	at time.Time
	n  int
}

// rolloutStep is one step of a rollout. Its ID is the same at every root.
type rolloutStep struct {
	id      string
	kind    string
	rollout *catalogv1.Rollout
	step    *catalogv1.RolloutStep
	// fresh: it was taken in this term of office.
	fresh bool
}

func newRolloutNews(tell func(rolloutStep)) *rolloutNews {
	return &rolloutNews{tell: tell, last: map[string]*timesAtClock{}}
}

func (n *rolloutNews) look(snap *catalog.Snapshot) {
	if n.began.IsZero() {
		n.began = snap.Clock()
	}
	stays := map[string]bool{}
	for _, r := range snap.Rollouts() {
		stays[r.GetId()] = true
		told := n.last[r.GetId()]
		if told == nil {
			told = &timesAtClock{at: n.began.Add(-noticeAge)}
			n.last[r.GetId()] = told
		}
		at := timesAtClock{}
		for _, s := range r.GetSteps() {
			if t := s.GetAt().AsTime(); !t.Equal(at.at) {
				at = timesAtClock{at: t}
			}
			at.n++
			if at.at.Before(told.at) || at.at.Equal(told.at) && at.n <= told.n {
				continue
			}
			*told = at
			n.tell(rolloutStep{
				id: fmt.Sprintf("%s/%d.%d", r.GetId(), at.at.UnixNano(), at.n), kind: stepKind(s), rollout: r, step: s, fresh: at.at.After(n.began),
			})
		}
	}
	for id := range n.last {
		if !stays[id] {
			delete(n.last, id)
		}
	}
}

// stepKinds are the kinds of steps by the word with which their text begins.
var stepKinds = map[string]string{
	"started": "started", "superseded": "superseded", "paused": "paused", "pause": "paused", "resume": "resumed", "succeeded": "succeeded", "failed": "failed",
	"rolling": "rolling-back", "rollback": "rolling-back", "rolled-back": "rolled-back", "abort": "aborted", "approve": "approved", "reject": "rejected",
	"skip": "skipped", "retry": "retried", "check": "checked", "wave": "wave", "back": "back",
}

// stepKind says what kind of step it is: a change of phase, a person's word, a wave's phase, or (group) what became of a group.
func stepKind(s *catalogv1.RolloutStep) string {
	first, _, _ := strings.Cut(s.GetText(), " ")
	if kind, ok := stepKinds[strings.TrimSuffix(first, ":")]; ok {
		return kind
	}
	return "group"
}

// rolloutData is what an event says of a step.
type rolloutData struct {
	Rollout string    `json:"rollout"`
	Refs    []itemRef `json:"refs"`
	Plan    string    `json:"plan,omitempty"`
	Kind    string    `json:"kind"`
	Text    string    `json:"text"`
	Actor   string    `json:"actor"`
	// Phase is that of the rollout after the step, and Wave the one that was open or next.
	Phase string `json:"phase"`
	Wave  string `json:"wave,omitempty"`
}

type itemRef struct {
	Ref    string `json:"ref"`
	Digest string `json:"digest"`
}

// rolloutNews tells a step to whoever listens.
func (a *Agent) rolloutNews(s rolloutStep) {
	r := s.rollout
	data := rolloutData{
		Rollout: r.GetId(), Plan: r.GetPlan().GetName(), Kind: s.kind, Text: s.step.GetText(), Actor: s.step.GetActor(), Phase: s.step.GetPhase(), Wave: s.step.GetWave(),
	}
	for _, it := range r.GetItems() {
		data.Refs = append(data.Refs, itemRef{it.GetRepository() + ":" + it.GetTag(), it.GetTarget().GetDigest()})
	}
	if s.fresh {
		kind := "Normal"
		switch s.kind {
		case "failed", "paused", "rolling-back", "group":
			kind = "Warning"
		}
		a.events.add(kind, stepReason(s.kind), data.Refs[0].Ref, fmt.Sprintf("rollout %s: %s, by %s", r.GetId(), s.step.GetText(), s.step.GetActor()))
	}
	for _, n := range a.notifiers {
		n.add(cloudEvent{
			SpecVersion: "1.0", ID: s.id, Source: "/fanout/" + a.cfg.Group, Type: "io.fanout.rollout." + s.kind, Subject: r.GetId(), Time: s.step.GetAt().AsTime(),
			DataContentType: "application/json", Data: data,
		})
	}
}

// stepReason is a kind as the reason of an event: RolloutRolledBack.
func stepReason(kind string) string {
	out := "Rollout"
	for part := range strings.SplitSeq(kind, "-") {
		out += strings.ToUpper(part[:1]) + part[1:]
	}
	return out
}

func newRolloutCount(r prometheus.Registerer) (*prometheus.GaugeVec, error) {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "fanout_rollouts", Help: "Rollouts that are kept, by phase; at headquarters' root only."}, []string{"phase"})
	return g, r.Register(g)
}

func countRollouts(g *prometheus.GaugeVec, list []*catalogv1.Rollout) {
	n := map[string]int{}
	for _, r := range list {
		n[r.GetPhase()]++
	}
	for _, phase := range rolloutPhases {
		g.WithLabelValues(phase).Set(float64(n[phase]))
	}
}

var rolloutPhases = []string{
	catalog.RolloutPending, catalog.RolloutStaging, catalog.RolloutRunning, catalog.RolloutSoaking, catalog.RolloutAwaitingApproval, catalog.RolloutAwaitingWindow,
	catalog.RolloutPaused, catalog.RolloutSucceeded, catalog.RolloutFailed, catalog.RolloutAborted, catalog.RolloutRollingBack, catalog.RolloutRolledBack,
}
