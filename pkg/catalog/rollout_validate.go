package catalog

import (
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// Bounds of a rollout. They keep it, and each record that it moves, below MaxItem.
const (
	maxItems       = 32
	maxWaves       = 64
	maxPlanGroups  = 8192
	maxPlanPaths   = 384 << 10 // bytes of all paths
	maxBefore      = 1 << 16   // groups times items
	maxGates       = 16
	maxSpans       = 32
	maxConcurrency = maxGroups
	maxSoak        = 30 * 24 * time.Hour
	maxWait        = 366 * 24 * time.Hour
	maxReason      = 240 // bytes of a group's reason
	maxElapsed     = 100 * maxWait
)

// validateStart checks what a person gives.
func validateStart(r *catalogv1.Rollout, actor string) *Refusal {
	if err := validateID("rollout", r.GetId()); err != nil {
		return err
	}
	if err := validateWords(actor, r.GetTraceparent()); err != nil {
		return err
	}
	if err := validateItems(r.Items); err != nil {
		return err
	}
	if err := validatePlan(r.Plan); err != nil {
		return err
	}
	if n := planGroups(r.Plan) * len(r.Items); n > maxBefore {
		return refuse(ErrInvalid, "%d refs at %d groups, at most %d together: promote fewer at once", len(r.Items), planGroups(r.Plan), maxBefore)
	}
	return nil
}

func validateItems(items []*catalogv1.RolloutItem) *Refusal {
	if n := len(items); n == 0 || n > maxItems {
		return refuse(ErrInvalid, "%d refs: 1 to %d move together", n, maxItems)
	}
	seen := map[Ref]bool{}
	referrers := 0
	for _, it := range items {
		ref := itemRef(it)
		if err := ref.validate(); err != nil {
			return err
		}
		if err := validatePublishable(ref); err != nil {
			return err
		}
		if seen[ref] {
			return refuse(ErrInvalid, "%s is named twice", ref)
		}
		seen[ref] = true
		if s := it.SourceRepository; s != "" && !validRepository(s) {
			return refuse(ErrInvalid, "%s: source repository %s", ref, quote(s))
		}
		if s := it.SourceTag; s != "" && !validTag(s) {
			return refuse(ErrInvalid, "%s: source tag %s", ref, quote(s))
		}
		if err := validateDescriptor(ref.String(), it.Target); err != nil {
			return err
		}
		for _, d := range it.Referrers {
			if err := validateDescriptor(ref.String(), d); err != nil {
				return err
			}
		}
		referrers += len(it.Referrers)
	}
	if referrers > maxReferrers {
		return refuse(ErrInvalid, "%d referrers, at most %d can be moved together", referrers, maxReferrers)
	}
	return nil
}

func itemRef(it *catalogv1.RolloutItem) Ref { return Ref{it.GetRepository(), it.GetTag()} }

func planGroups(p *catalogv1.Plan) int {
	n := 0
	for _, w := range p.GetWaves() {
		n += len(w.Groups)
	}
	return n
}

func validatePlan(p *catalogv1.Plan) *Refusal {
	if n := len(p.GetWaves()); n == 0 || n > maxWaves {
		return refuse(ErrInvalid, "a plan with %d waves: write 1 to %d", n, maxWaves)
	}
	if err := validateWords(p.Name, p.Timezone); err != nil {
		return err
	}
	waves, groups, paths := map[string]bool{}, map[string]string{}, 0
	for _, w := range p.Waves {
		if w.GetName() == "" || waves[w.Name] {
			return refuse(ErrInvalid, "wave %s: each needs a name of its own", quote(w.GetName()))
		}
		waves[w.Name] = true
		if err := validateWave(w); err != nil {
			return err
		}
		for _, g := range w.Groups {
			if err := validateGroupPath(g); err != nil {
				return err
			}
			if in, twice := groups[g]; twice {
				return refuse(ErrInvalid, "group %s is in wave %s and again in wave %s", g, quote(in), quote(w.Name))
			}
			groups[g] = w.Name
			paths += len(g)
		}
	}
	if len(groups) > maxPlanGroups || paths > maxPlanPaths {
		return refuse(ErrInvalid, "a plan with %d groups, whose paths have %d bytes; at most %d with %d", len(groups), paths, maxPlanGroups, maxPlanPaths)
	}
	return nil
}

func validateWave(w *catalogv1.Wave) *Refusal {
	where := "wave " + quote(w.Name)
	switch {
	case len(w.Groups) == 0:
		return refuse(ErrInvalid, "%s has no groups", where)
	case w.MaxConcurrent < 1 || w.MaxConcurrent > maxConcurrency:
		return refuse(ErrInvalid, "%s: max_concurrent %d: write 1 to %d", where, w.MaxConcurrent, maxConcurrency)
	case w.MaxFailures > maxGroups:
		return refuse(ErrInvalid, "%s: max_failures %d: write 0 to %d", where, w.MaxFailures, maxGroups)
	case !slices.Contains([]string{OnFailurePause, OnFailureAbort, OnFailureRollback}, w.OnFailure):
		return refuse(ErrInvalid, "%s: on_failure %s: write %s, %s or %s", where, quote(w.OnFailure), OnFailurePause, OnFailureAbort, OnFailureRollback)
	case !slices.Contains([]string{OnOfflineWait, OnOfflineSkip, OnOfflineFail}, w.OnOffline):
		return refuse(ErrInvalid, "%s: on_offline %s: write %s, %s or %s", where, quote(w.OnOffline), OnOfflineWait, OnOfflineSkip, OnOfflineFail)
	}
	if err := validateWords(w.Name); err != nil {
		return err
	}
	if err := validateDuration(where+": soak", w.Soak, 0, maxSoak); err != nil {
		return err
	}
	if err := validateDuration(where+": deadline", w.Deadline, 0, maxWait); err != nil {
		return err
	}
	for _, gates := range [][]*catalogv1.Gate{w.Before, w.After} {
		if len(gates) > maxGates {
			return refuse(ErrInvalid, "%s: %d gates, at most %d before and %d after", where, len(gates), maxGates, maxGates)
		}
		for _, g := range gates {
			if err := validateGate(where, g); err != nil {
				return err
			}
		}
	}
	if w.Window == nil {
		return nil
	}
	if n := len(w.Window.Allow); n == 0 || n > maxSpans {
		return refuse(ErrInvalid, "%s: a window with %d spans: write 1 to %d", where, n, maxSpans)
	}
	return validateWords(w.Window.Allow...)
}

func validateGate(where string, g *catalogv1.Gate) *Refusal {
	switch k := g.GetKind().(type) {
	case *catalogv1.Gate_Approval:
		return nil
	case *catalogv1.Gate_Check:
		if url := k.Check.GetUrl(); !strings.HasPrefix(url, "http://") && !strings.HasPrefix(url, "https://") {
			return refuse(ErrInvalid, "%s: check %s: write an address with http:// or https://", where, quote(url))
		}
		if err := validateWords(k.Check.Url); err != nil {
			return err
		}
		if err := validateDuration(where+": interval of a check", k.Check.Interval, time.Second, 24*time.Hour); err != nil {
			return err
		}
		return validateDuration(where+": timeout of a check", k.Check.Timeout, time.Second, maxSoak)
	}
	return refuse(ErrInvalid, "%s: a gate that is neither an approval nor a check", where)
}

var (
	rolloutPhases = []string{
		RolloutPending, RolloutStaging, RolloutRunning, RolloutSoaking, RolloutAwaitingApproval, RolloutAwaitingWindow, RolloutPaused,
		RolloutSucceeded, RolloutFailed, RolloutAborted, RolloutRollingBack, RolloutRolledBack,
	}
	wavePhases = []string{
		WavePending, WaveAwaitingWindow, WaveAwaitingApproval, WaveChecking, WaveRunning, WaveSoaking, WaveSucceeded, WaveFailed, WaveSkipped,
	}
	groupPhases = []string{
		GroupPending, GroupStaging, GroupStaged, GroupRunning, GroupSucceeded, GroupFailed, GroupSkipped, GroupOffline, GroupRollingBack, GroupRolledBack,
	}
	gateResults = []string{GateWaiting, GatePassed, GateFailed}
)

// validateRollout checks a rollout from a snapshot: it must be one that the machine can go on with.
func validateRollout(r *catalogv1.Rollout) *Refusal {
	if err := validateStart(r, r.GetActor()); err != nil {
		return err
	}
	where := "rollout " + r.Id
	switch {
	case !slices.Contains(rolloutPhases, r.Phase):
		return refuse(ErrInvalid, "%s: phase %s", where, quote(r.Phase))
	case len(r.Waves) != len(r.Plan.Waves) || int(r.Wave) > len(r.Waves):
		return refuse(ErrInvalid, "%s: wave %d, %d waves of %d in the plan", where, r.Wave, len(r.Waves), len(r.Plan.Waves))
	case len(r.Groups) != planGroups(r.Plan):
		return refuse(ErrInvalid, "%s: %d groups of %d in the plan", where, len(r.Groups), planGroups(r.Plan))
	case len(r.Steps) > maxSteps:
		return refuse(ErrInvalid, "%s: %d steps", where, len(r.Steps))
	case Ended(r) != (r.Ended != nil):
		return refuse(ErrInvalid, "%s: %s, but its end says otherwise", where, r.Phase)
	}
	next := 0
	for i, w := range r.Plan.Waves {
		if err := validateRolloutWave(where, r.Waves[i], w); err != nil {
			return err
		}
		for _, path := range w.Groups {
			if err := validateRolloutGroup(where, r.Groups[next], path, uint32(i), len(r.Items)); err != nil {
				return err
			}
			next++
		}
	}
	for _, s := range r.Steps {
		if err := validateTime(where, s.GetAt()); err != nil {
			return err
		}
		if err := validateWords(s.Actor, s.Text); err != nil {
			return err
		}
	}
	return validateRolloutRest(where, r)
}

func validateRolloutRest(where string, r *catalogv1.Rollout) *Refusal {
	for _, t := range []*timestamppb.Timestamp{r.Started, r.Ended} {
		if err := validateTime(where, t); err != nil {
			return err
		}
	}
	if r.SupersededBy != "" {
		if err := validateID("rollout", r.SupersededBy); err != nil {
			return err
		}
	}
	return validateWords(r.Reason, r.ResumePhase)
}

func validateRolloutWave(where string, w *catalogv1.RolloutWave, plan *catalogv1.Wave) *Refusal {
	if w.GetName() != plan.Name || !slices.Contains(wavePhases, w.Phase) || len(w.Gates) > len(plan.Before)+len(plan.After) {
		return refuse(ErrInvalid, "%s: wave %s, phase %s, %d gates", where, quote(w.GetName()), quote(w.GetPhase()), len(w.GetGates()))
	}
	for _, g := range w.Gates {
		gates := plan.Before
		if g.GetAfter() {
			gates = plan.After
		}
		if int(g.GetIndex()) >= len(gates) || !slices.Contains(gateResults, g.Result) {
			return refuse(ErrInvalid, "%s: wave %s: gate %d of %d, %s", where, quote(w.Name), g.GetIndex(), len(gates), quote(g.GetResult()))
		}
		if err := validateWords(g.By, g.Detail); err != nil {
			return err
		}
		if err := validateTime(where, g.At); err != nil {
			return err
		}
		if err := validateDuration(where, g.Took, 0, maxElapsed); err != nil {
			return err
		}
		if err := validateDuration(where, g.Waited, 0, maxElapsed); err != nil {
			return err
		}
	}
	for _, t := range []*timestamppb.Timestamp{w.Opened, w.Closed} {
		if err := validateTime(where, t); err != nil {
			return err
		}
	}
	if err := validateDuration(where, w.Soaked, 0, maxElapsed); err != nil {
		return err
	}
	return validateWords(w.Reason)
}

func validateRolloutGroup(where string, g *catalogv1.RolloutGroup, path string, wave uint32, items int) *Refusal {
	if g.GetGroup() != path || g.Wave != wave || !slices.Contains(groupPhases, g.Phase) || len(g.Before) != items || len(g.Reason) > maxReason {
		return refuse(ErrInvalid, "%s: group %s, phase %s, in the place of %s", where, quote(g.GetGroup()), quote(g.GetPhase()), path)
	}
	for _, d := range g.Before {
		if d != "" && !ValidDigest(d) {
			return refuse(ErrInvalid, "%s: group %s showed %s", where, path, quote(d))
		}
	}
	for _, t := range []*timestamppb.Timestamp{g.Released, g.Since} {
		if err := validateTime(where, t); err != nil {
			return err
		}
	}
	if len(g.Receipts) > maxReceipts {
		return refuse(ErrInvalid, "%s: group %s has receipts of %d sites", where, path, len(g.Receipts))
	}
	for i, x := range g.Receipts {
		if x.GetSite() == "" || i > 0 && x.Site <= g.Receipts[i-1].Site {
			return refuse(ErrInvalid, "%s: group %s has a receipt of %s out of its order", where, path, quote(x.GetSite()))
		}
		if err := validateTime(where, x.At); err != nil {
			return err
		}
		if err := validateWords(x.Site); err != nil {
			return err
		}
	}
	if err := validateDuration(where, g.Waited, 0, maxElapsed); err != nil {
		return err
	}
	return validateWords(g.Reason)
}
