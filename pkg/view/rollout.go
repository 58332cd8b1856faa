package view

import (
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/fanout-io/fanout/pkg/catalog"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// Rollouts is the document of `rollout list`.
type Rollouts struct {
	SchemaVersion int              `json:"schemaVersion"`
	AsOf          *time.Time       `json:"asOf,omitempty"`
	Rollouts      []RolloutSummary `json:"rollouts"`
}

// RolloutSummary is one rollout without its groups.
type RolloutSummary struct {
	ID    string       `json:"id"`
	Refs  []RolloutRef `json:"refs"`
	Phase string       `json:"phase"`
	// Wave that is open or comes next, by name; empty once all are over.
	Wave         string     `json:"wave"`
	WaveNumber   int        `json:"waveNumber"` // from 1; that of the last once all are over
	WaveCount    int        `json:"waveCount"`
	Started      *time.Time `json:"started"`
	Ended        *time.Time `json:"ended,omitempty"`
	Plan         string     `json:"plan"`
	Actor        string     `json:"actor"`
	Reason       string     `json:"reason"`
	ResumePhase  string     `json:"resumePhase,omitempty"`
	SupersededBy string     `json:"supersededBy,omitempty"`
}

// RolloutRef is one ref that moves.
type RolloutRef struct {
	Ref    string `json:"ref"`
	Digest string `json:"digest"`
	Source string `json:"source"` // the ref from which the digest was read
}

// Rollout is the document of `rollout show`.
type Rollout struct {
	SchemaVersion int        `json:"schemaVersion"`
	AsOf          *time.Time `json:"asOf,omitempty"`
	RolloutSummary
	Waves []RolloutWave `json:"waves"`
	Sites []RolloutSite `json:"sites"` // the delivery receipt
	Steps []RolloutStep `json:"steps"`
	// Settled: it can't be rolled back any more.
	Settled bool `json:"settled"`

	timezone string
}

// RolloutWave is one wave of a Rollout.
type RolloutWave struct {
	Name   string         `json:"name"`
	Phase  string         `json:"phase"`
	Reason string         `json:"reason"`
	Groups []RolloutGroup `json:"groups"`
	Gates  []RolloutGate  `json:"gates"`
	Opened *time.Time     `json:"opened,omitempty"`
	Closed *time.Time     `json:"closed,omitempty"`

	MaxConcurrent   uint32   `json:"maxConcurrent"`
	MaxFailures     uint32   `json:"maxFailures"`
	SoakSeconds     float64  `json:"soakSeconds"`
	SoakedSeconds   float64  `json:"soakedSeconds"`
	DeadlineSeconds float64  `json:"deadlineSeconds"` // 0: none
	Window          []string `json:"window,omitempty"`
	OnFailure       string   `json:"onFailure"`
	OnOffline       string   `json:"onOffline"`
	// WindowNext is when the window is open: now if it is. Absent: there is no window, or it never opens.
	WindowNext *time.Time `json:"windowNext,omitempty"`

	current bool
}

// RolloutGroup is one group of a wave.
type RolloutGroup struct {
	Group  string `json:"group"`
	Phase  string `json:"phase"`
	Reason string `json:"reason"`
	// Before is what each ref showed there before, in the order of the refs; empty: nothing.
	Before   []string   `json:"before"`
	Released *time.Time `json:"released,omitempty"`
	Since    *time.Time `json:"since,omitempty"`
	Attempts uint32     `json:"attempts"`
	// WaitedSeconds count for the deadline. They are written down now and then.
	WaitedSeconds float64 `json:"waitedSeconds,omitempty"`
}

// RolloutGate is one gate of a wave.
type RolloutGate struct {
	When string `json:"when"` // before or after
	Kind string `json:"kind"` // approval or check
	// Result is waiting, passed or failed; pending: it was not come to.
	Result         string     `json:"result"`
	URL            string     `json:"url,omitempty"`
	By             string     `json:"by,omitempty"`
	Detail         string     `json:"detail,omitempty"`
	Attempts       uint32     `json:"attempts,omitempty"`
	TookSeconds    float64    `json:"tookSeconds,omitempty"`
	WaitedSeconds  float64    `json:"waitedSeconds,omitempty"`
	TimeoutSeconds float64    `json:"timeoutSeconds,omitempty"`
	At             *time.Time `json:"at,omitempty"`
}

// RolloutSite is one ref at one site: a line of the delivery receipt.
type RolloutSite struct {
	Site   string `json:"site"`
	Group  string `json:"group"`
	Ref    string `json:"ref"`
	State  string `json:"state"`
	Digest string `json:"digest"`
	Want   string `json:"want"`
	// Time since when the state is so. Where the agent does not know that of a site that is done, the time when its whole group was seen to be.
	Time   *time.Time `json:"time"`
	Reason string     `json:"reason"`
}

// RolloutStep is a line of a rollout's history.
type RolloutStep struct {
	At    *time.Time `json:"at"`
	Actor string     `json:"actor"`
	Text  string     `json:"text"`
}

// RolloutsOf makes the document of an answer.
func RolloutsOf(r *adminv1.RolloutsResponse) Rollouts {
	doc := Rollouts{SchemaVersion: SchemaVersion, AsOf: moment(r.GetAsOf()), Rollouts: []RolloutSummary{}}
	for _, x := range r.GetRollouts() {
		doc.Rollouts = append(doc.Rollouts, summaryOf(x))
	}
	return doc
}

func summaryOf(r *catalogv1.Rollout) RolloutSummary {
	s := RolloutSummary{
		ID: r.GetId(), Refs: []RolloutRef{}, Phase: r.GetPhase(), WaveNumber: min(int(r.GetWave())+1, len(r.GetWaves())), WaveCount: len(r.GetWaves()),
		Started: moment(r.GetStarted()), Ended: moment(r.GetEnded()), Plan: r.GetPlan().GetName(), Actor: r.GetActor(), Reason: r.GetReason(),
		ResumePhase: r.GetResumePhase(), SupersededBy: r.GetSupersededBy(),
	}
	if i := int(r.GetWave()); i < len(r.GetWaves()) {
		s.Wave = r.GetWaves()[i].GetName()
	}
	for _, it := range r.GetItems() {
		s.Refs = append(s.Refs, RolloutRef{
			Ref: it.GetRepository() + ":" + it.GetTag(), Digest: it.GetTarget().GetDigest(), Source: it.GetSourceRepository() + ":" + it.GetSourceTag(),
		})
	}
	return s
}

// RolloutOf makes the document of one rollout; sites and the time of the picture may be absent.
func RolloutOf(r *catalogv1.Rollout, sites []*adminv1.RolloutSite, asOf *time.Time) Rollout {
	doc := Rollout{
		SchemaVersion: SchemaVersion, AsOf: asOf, RolloutSummary: summaryOf(r), Waves: []RolloutWave{}, Sites: []RolloutSite{}, Steps: []RolloutStep{},
		Settled: r.GetSettled(), timezone: r.GetPlan().GetTimezone(),
	}
	for i, w := range r.GetWaves() {
		doc.Waves = append(doc.Waves, waveOf(r, i, w, asOf))
	}
	shown := map[string]*time.Time{}
	for _, g := range r.GetGroups() {
		if i := int(g.GetWave()); i < len(doc.Waves) {
			doc.Waves[i].Groups = append(doc.Waves[i].Groups, groupOf(g))
		}
		if g.GetPhase() == catalog.GroupSucceeded || g.GetPhase() == catalog.GroupRolledBack {
			shown[g.GetGroup()] = moment(g.GetSince())
		}
	}
	for _, s := range sites {
		for i, ref := range s.GetRefs() {
			if line, ok := receiptOf(r, s, i); ok {
				doc.Sites = append(doc.Sites, line)
				continue
			}
			line := RolloutSite{
				Site: s.GetSite(), Group: s.GetGroup(), State: ref.GetState(), Digest: ref.GetDigest(), Want: ref.GetWant(), Time: moment(ref.GetSince()), Reason: ref.GetReason(),
			}
			if i < len(doc.Refs) {
				line.Ref = doc.Refs[i].Ref
			}
			if line.Time == nil && line.State == "delivered" {
				line.Time = shown[s.GetGroup()]
			}
			doc.Sites = append(doc.Sites, line)
		}
	}
	doc.Sites = append(doc.Sites, receiptsOfOthers(r, sites)...)
	for _, s := range r.GetSteps() {
		doc.Steps = append(doc.Steps, RolloutStep{At: moment(s.GetAt()), Actor: s.GetActor(), Text: s.GetText()})
	}
	return doc
}

// receiptOf is a line of the receipt as the rollout remembers it: of a site that came to show what it was to show, and, when the rollout is over, of one that did not. Not ok: the line is what is the
// case now.
func receiptOf(r *catalogv1.Rollout, s *adminv1.RolloutSite, i int) (RolloutSite, bool) {
	at := slices.IndexFunc(r.GetGroups(), func(g *catalogv1.RolloutGroup) bool { return g.GetGroup() == s.GetGroup() })
	now, over := s.GetRefs()[i], catalog.Ended(r)
	if at < 0 || i >= len(r.GetItems()) || i >= len(r.GetGroups()[at].GetBefore()) || now.GetState() == "unsubscribed" {
		return RolloutSite{}, false
	}
	g, it := r.GetGroups()[at], r.GetItems()[i]
	line := RolloutSite{Site: s.GetSite(), Group: s.GetGroup(), Ref: it.GetRepository() + ":" + it.GetTag()}
	for _, x := range g.GetReceipts() {
		if x.GetSite() != s.GetSite() {
			continue
		}
		line.State, line.Digest = "delivered", it.GetTarget().GetDigest()
		if x.GetBack() {
			line.State, line.Digest = catalog.GroupRolledBack, g.GetBefore()[i]
		}
		line.Want, line.Time = line.Digest, moment(x.GetAt())
		if over || now.GetDigest() == line.Digest && slices.Contains([]string{"delivered", "held", "accepted"}, now.GetState()) {
			return line, true
		}
		return RolloutSite{}, false // it was changed since, or is to show something else again
	}
	done := g.GetPhase() == catalog.GroupSucceeded || g.GetPhase() == catalog.GroupRolledBack // without receipts: by a version that kept none
	asked := g.GetPhase() == catalog.GroupFailed || g.GetPhase() == catalog.GroupRunning
	if over && !done && !(asked && now.GetWant() == it.GetTarget().GetDigest()) {
		line.State, line.Digest, line.Want, line.Time, line.Reason = g.GetPhase(), g.GetBefore()[i], it.GetTarget().GetDigest(), moment(g.GetSince()), g.GetReason()
		if g.GetAttempts() == 0 {
			line.Want = line.Digest // it was never asked to show another
		}
		return line, true
	}
	return RolloutSite{}, false
}

// receiptsOfOthers are those of sites that got there and are not known any more.
func receiptsOfOthers(r *catalogv1.Rollout, sites []*adminv1.RolloutSite) (out []RolloutSite) {
	if len(sites) == 0 {
		return nil // they were not asked for
	}
	for _, g := range r.GetGroups() {
		for _, x := range g.GetReceipts() {
			if slices.ContainsFunc(sites, func(s *adminv1.RolloutSite) bool { return s.GetSite() == x.GetSite() }) {
				continue
			}
			gone := &adminv1.RolloutSite{Site: x.GetSite(), Group: g.GetGroup()}
			for range r.GetItems() {
				gone.Refs = append(gone.Refs, &adminv1.SiteRef{State: "unknown"})
			}
			for i := range gone.GetRefs() {
				if line, ok := receiptOf(r, gone, i); ok {
					out = append(out, line)
				}
			}
		}
	}
	return out
}

func waveOf(r *catalogv1.Rollout, i int, w *catalogv1.RolloutWave, asOf *time.Time) RolloutWave {
	plan := &catalogv1.Wave{}
	if i < len(r.GetPlan().GetWaves()) {
		plan = r.GetPlan().GetWaves()[i]
	}
	doc := RolloutWave{
		Name: w.GetName(), Phase: w.GetPhase(), Reason: w.GetReason(), Groups: []RolloutGroup{}, Gates: []RolloutGate{}, Opened: moment(w.GetOpened()), Closed: moment(w.GetClosed()),
		MaxConcurrent: plan.GetMaxConcurrent(), MaxFailures: plan.GetMaxFailures(), SoakSeconds: seconds(plan.GetSoak()), SoakedSeconds: seconds(w.GetSoaked()),
		DeadlineSeconds: seconds(plan.GetDeadline()), Window: plan.GetWindow().GetAllow(), OnFailure: plan.GetOnFailure(), OnOffline: plan.GetOnOffline(),
		current: i == int(r.GetWave()),
	}
	doc.WindowNext = windowNext(plan.GetWindow(), r.GetPlan().GetTimezone(), asOf)
	doc.Gates = append(gatesOf(w, plan.GetBefore(), false), gatesOf(w, plan.GetAfter(), true)...)
	return doc
}

// gatesOf joins what the plan says of gates with what became of them.
func gatesOf(w *catalogv1.RolloutWave, plan []*catalogv1.Gate, after bool) []RolloutGate {
	when := "before"
	if after {
		when = "after"
	}
	out := []RolloutGate{}
	for i, p := range plan {
		g := RolloutGate{When: when, Kind: "approval", Result: "pending"}
		if c := p.GetCheck(); c != nil {
			g.Kind, g.URL, g.TimeoutSeconds = "check", c.GetUrl(), seconds(c.GetTimeout())
		}
		for _, x := range w.GetGates() {
			if x.GetAfter() == after && int(x.GetIndex()) == i {
				g.Result, g.By, g.Detail, g.Attempts = x.GetResult(), x.GetBy(), x.GetDetail(), x.GetAttempts()
				g.TookSeconds, g.WaitedSeconds, g.At = seconds(x.GetTook()), seconds(x.GetWaited()), moment(x.GetAt())
			}
		}
		out = append(out, g)
	}
	return out
}

func groupOf(g *catalogv1.RolloutGroup) RolloutGroup {
	before := g.GetBefore()
	if before == nil {
		before = []string{}
	}
	return RolloutGroup{
		Group: g.GetGroup(), Phase: g.GetPhase(), Reason: g.GetReason(), Before: before, Released: moment(g.GetReleased()), Since: moment(g.GetSince()), Attempts: g.GetAttempts(), WaitedSeconds: seconds(g.GetWaited()),
	}
}

func seconds(d *durationpb.Duration) float64 {
	if d == nil || !d.IsValid() {
		return 0
	}
	return d.AsDuration().Seconds()
}

// Over says whether a rollout goes on no more.
func (r RolloutSummary) Over() bool { return catalog.Ended(&catalogv1.Rollout{Phase: r.Phase}) }

// Partial names the groups that a rollout which succeeded did not reach, or did not wait for.
func (r Rollout) Partial() (groups []string) {
	for _, w := range r.Waves {
		for _, g := range w.Groups {
			if g.Phase != catalog.GroupSucceeded {
				groups = append(groups, g.Group)
			}
		}
	}
	return groups
}
