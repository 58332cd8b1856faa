package agent

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"

	"github.com/fanout-io/fanout/pkg/catalog"
)

// judge makes of a way's hops the answer: what keeps a ref from a site, and what a person does about it. raw is the record in the catalog here, rec as the site's group is to show it.
func (a *Agent) judge(resp *adminv1.WhyResponse, raw, rec *catalogv1.Record) {
	resp.Digest, resp.Revision = showsDigest(rec), raw.GetRevision()
	epoch := a.node.Catalog().Position().GetEpoch()
	for _, h := range resp.GetHops() {
		h.Want = raw.GetRevision()
		a.nameWave(h, raw)
	}
	v := verdict{w: resp, epoch: epoch, deleted: catalog.Tombstone(raw), origin: rec.GetOrigin()}
	v.judge()
}

// nameWave says more of the wave for which a group waits, where the rollout is known: at headquarters.
func (a *Agent) nameWave(h *adminv1.WhyHop, raw *catalogv1.Record) {
	if h.GetTrouble().GetCause() != causeWave || len(raw.GetReleases()) == 0 {
		return
	}
	id := raw.GetReleases()[len(raw.GetReleases())-1].GetRollout()
	r := a.node.Catalog().Rollout(id)
	for _, g := range r.GetGroups() {
		if g.GetGroup() != h.GetGroup() || int(g.GetWave()) >= len(r.GetWaves()) {
			continue
		}
		open := r.GetWaves()[min(int(r.GetWave()), len(r.GetWaves())-1)]
		words := fmt.Sprintf("it is held by wave %q of rollout %s, which is %s", r.GetWaves()[g.GetWave()].GetName(), id, r.GetPhase())
		if open.GetPhase() != "" && r.GetEnded() == nil {
			words += fmt.Sprintf(": wave %q is %s", open.GetName(), open.GetPhase())
		}
		if why := strings.TrimSpace(open.GetReason()); why != "" {
			words += ", " + why
		}
		h.Trouble = waitsBecause(causeWave, words+"; its content is there", h.GetTrouble().GetMend())
	}
}

// verdict is the judgement of one way. Pure.
type verdict struct {
	w       *adminv1.WhyResponse
	epoch   string
	deleted bool
	origin  string // site at which it was pushed
}

func (v *verdict) judge() {
	hops := v.w.GetHops()
	last := hops[len(hops)-1]
	v.w.State = last.GetState()
	v.w.Answer, v.w.Mend = v.answer(last)
}

// answer is one sentence, and the mend.
func (v *verdict) answer(last *adminv1.WhyHop) (string, string) {
	ref, site := v.w.GetRef(), v.w.GetSite()
	switch {
	case last.GetState() == "witness":
		return v.because(fmt.Sprintf("%s is a witness: it has no registry, so nothing is delivered to it.", site), last.GetTrouble())
	case last.GetState() == "unsubscribed":
		return v.because(fmt.Sprintf("%s is not wanted at %s: %s.", ref, site, last.GetTrouble().GetSummary()), last.GetTrouble())
	}
	t := last.GetTrouble()
	if last.GetState() == "unknown" {
		if s, up := v.away(); s != "" {
			return v.because(fmt.Sprintf("%s: %s.", v.unknown(), s), up)
		}
		return v.because(fmt.Sprintf("%s: %s.", v.unknown(), t.GetSummary()), t)
	}
	if s, t := v.stuck(); s != "" {
		return v.because(fmt.Sprintf("%s: %s.", v.missing(), s), t)
	}
	switch last.GetState() {
	case "delivered":
		return v.delivered(last)
	case "held", "drifted", "accepted":
		return v.because(fmt.Sprintf("%s: %s.", v.missing(), t.GetSummary()), t)
	case "failed":
		if s, up := v.above(); s != "" && contentIsAway(t) {
			return v.because(fmt.Sprintf("%s: its content is still above: %s.", v.missing(), s), up)
		}
		return v.because(fmt.Sprintf("%s: %s%s.", v.missing(), t.GetSummary(), v.tries(last)), t)
	case "delivering":
		return v.delivering(last)
	}
	if s, up := v.away(); s != "" && t.GetCause() == causeUnreachable {
		return v.because(fmt.Sprintf("%s: %s.", v.missing(), s), up)
	}
	if t == nil {
		t = waitsBecause("", "it waits for its turn", "")
	}
	return v.because(fmt.Sprintf("%s: %s.", v.missing(), t.GetSummary()), t)
}

func (v *verdict) because(answer string, t *treev1.Trouble) (string, string) {
	v.w.Cause = t.GetCause()
	return answer, t.GetMend()
}

// missing begins an answer that is no good news.
func (v *verdict) missing() string {
	if v.deleted {
		return fmt.Sprintf("%s is deleted, and not yet gone from %s", v.w.GetRef(), v.w.GetSite())
	}
	return fmt.Sprintf("%s is not at %s", v.w.GetRef(), v.w.GetSite())
}

// unknown begins an answer that can't be given.
func (v *verdict) unknown() string {
	if v.deleted {
		return fmt.Sprintf("whether %s, which is deleted, is gone from %s is not known", v.w.GetRef(), v.w.GetSite())
	}
	return fmt.Sprintf("whether %s is at %s is not known", v.w.GetRef(), v.w.GetSite())
}

// away finds the first group above the site that does not answer: of what is below it nobody hears.
func (v *verdict) away() (string, *treev1.Trouble) {
	hops := v.w.GetHops()
	for _, h := range hops[:len(hops)-1] {
		if h.GetAway() == "" || h.GetLive() || h.GetGroup() == hops[len(hops)-1].GetGroup() {
			continue
		}
		if h.GetLastContact() == nil {
			t := awayGroup(h.GetGroup())
			t.Mend = "ask again in some seconds; if it stays so, " + t.GetMend()
			return h.GetGroup() + ": " + h.GetAway(), t
		}
		return fmt.Sprintf("%s is unreachable since %s", h.GetGroup(), clock(h.GetLastContact())), awayGroup(h.GetGroup())
	}
	return "", nil
}

func (v *verdict) delivered(last *adminv1.WhyHop) (string, string) {
	ref, site := v.w.GetRef(), v.w.GetSite()
	what := fmt.Sprintf("%s is at %s", ref, site)
	if v.deleted {
		what = fmt.Sprintf("%s is deleted, and gone from %s", ref, site)
	}
	if r := last.GetReceipt(); r != nil && !v.deleted {
		what += " since " + clock(r.GetAt())
		switch {
		case r.GetBytes() == 0:
			what += ": all of it was there already"
		default:
			what += fmt.Sprintf(": %s came from %s", humanize.IBytes(uint64(r.GetBytes())), strings.Join(r.GetSources(), ", "))
		}
	}
	if last.GetReceipt() == nil && !v.deleted && site == v.origin {
		what += ", where it was pushed"
	}
	switch {
	case last.GetTrouble() != nil:
		return v.because(fmt.Sprintf("%s, but it can't be looked at now: %s.", what, last.GetTrouble().GetSummary()), last.GetTrouble())
	case !last.GetLive() && last.GetAway() != "":
		return v.because(fmt.Sprintf("%s, as last heard%s.", what, atTime(last.GetLastContact())), away(site, last.GetAway()))
	case last.GetReason() != "" && last.GetDigest() != v.w.GetDigest():
		return what + ", but " + last.GetReason() + ".", ""
	case last.GetReason() != "":
		return what + ", and " + last.GetReason() + ".", ""
	}
	return what + ".", ""
}

func (v *verdict) delivering(last *adminv1.WhyHop) (string, string) {
	words := fmt.Sprintf("%s is on its way to %s", v.w.GetRef(), v.w.GetSite())
	if n := last.GetBytesLeft(); n > 0 {
		words += fmt.Sprintf(": %s are left", humanize.IBytes(uint64(n)))
	}
	b := last.GetBlob()
	switch {
	case b.GetRate() > 0:
		words += fmt.Sprintf("; blob %s comes from %s at %s/s", shortDigest(b.GetDigest()), b.GetSource(), humanize.IBytes(uint64(b.GetRate())))
	case b != nil:
		if s, t := v.above(); s != "" {
			return v.because(fmt.Sprintf("%s, and nothing comes: %s.", words, s), t)
		}
		if b.GetSource() != "" {
			words += ", asked of " + b.GetSource()
		}
	}
	if strings.HasPrefix(last.GetReason(), aheadOfTag) {
		words += "; it is " + last.GetReason()
	}
	if last.GetAttempts() > 0 && last.GetTrouble() != nil {
		words += fmt.Sprintf("; tried before, and failed %s: %s", times(last.GetAttempts()), last.GetTrouble().GetSummary())
	}
	switch t := last.GetTrouble(); {
	case !last.GetLive() && last.GetAway() != "":
		return v.because(fmt.Sprintf("%s, as last heard%s.", words, atTime(last.GetLastContact())), away(v.w.GetSite(), last.GetAway()))
	case last.GetLive() && last.GetAttempts() == 0 && t != nil: // of its registry
		return v.because(fmt.Sprintf("%s, but %s.", words, t.GetSummary()), t)
	}
	return words + ".", ""
}

// stuck finds the first group on the way that the record has not reached, or that can't be asked while the ref is not known to be there.
func (v *verdict) stuck() (string, *treev1.Trouble) {
	for i, h := range v.w.GetHops() {
		behind := h.GetRevision() < h.GetWant()
		foreign := h.GetEpoch() != "" && v.epoch != "" && h.GetEpoch() != v.epoch
		if !behind && !foreign || i == 0 && len(v.w.GetHops()) > 1 {
			continue
		}
		who, mend := h.GetGroup(), awayGroup(h.GetGroup())
		if i > 0 && i == len(v.w.GetHops())-1 && h.GetSite() == v.w.GetSite() && h.GetRoot() != h.GetSite() && v.w.GetHops()[i-1].GetGroup() == who {
			who = h.GetSite()
			mend = away(who, "")
		}
		switch {
		case foreign && h.GetLive() && h.GetDetachedSince() == nil:
			return who + " holds the catalog of another epoch", waitsBecause(causeForeign, "", "if this headquarters is the right one: fanoutctl epoch accept, at an agent of "+who+"; see docs/operations.md")
		case h.GetDetachedSince() != nil:
			return v.detached(h)
		case h.GetAway() != "" && h.GetLastContact() == nil:
			return fmt.Sprintf("whether its record has reached %s is not known: %s", who, h.GetAway()), mend
		case h.GetAway() != "":
			return fmt.Sprintf("its record has not reached %s, which is unreachable since %s", who, clock(h.GetLastContact())), mend
		default:
			return fmt.Sprintf("its record is on the way to %s, which is at revision %d of %d", who, h.GetRevision(), h.GetWant()), waitsBecause(causeRecord, "", "")
		}
	}
	return "", nil
}

func awayGroup(group string) *treev1.Trouble {
	return waitsBecause(causeUnreachable, "", "start the agents of "+group+", or mend the network from it to the group above; it attaches again by itself")
}

func (v *verdict) detached(h *adminv1.WhyHop) (string, *treev1.Trouble) {
	s := fmt.Sprintf("%s is attached to no parent since %s", h.GetGroup(), clock(h.GetDetachedSince()))
	if why := firstLine(h.GetLink()); why != "" {
		s += ": " + strings.TrimPrefix(why, "not attached to a parent: ")
	}
	return s, waitsBecause("no-parent", "", fmt.Sprintf("mend the network from %s to the group above, or start the agents there; it attaches again by itself", h.GetGroup()))
}

// above finds what keeps content from coming, among the groups above the site: the one that is furthest up, since the others wait for it.
func (v *verdict) above() (string, *treev1.Trouble) {
	hops := v.w.GetHops()
	for i, h := range hops {
		last := i == len(hops)-1
		switch {
		case h.GetDetachedSince() != nil:
			return v.detached(h)
		case h.GetAway() != "":
			s := h.GetGroup() + " is unreachable"
			if h.GetLastContact() != nil {
				s += " since " + clock(h.GetLastContact())
			}
			return s, awayGroup(h.GetGroup())
		case !last && h.GetState() == "failed" && contentIsAway(h.GetTrouble()):
			return fmt.Sprintf("%s does not have it either: %s", h.GetSite(), h.GetTrouble().GetSummary()), h.GetTrouble()
		}
	}
	return "", nil
}

// contentIsAway says of a failure that it is not the site's own.
func contentIsAway(t *treev1.Trouble) bool {
	return slices.Contains([]string{"no-parent", "no-fellow", "content-nowhere", "sources-unreachable", "content-altered"}, t.GetCause())
}

func (v *verdict) tries(h *adminv1.WhyHop) string {
	if h.GetAttempts() == 0 {
		return ""
	}
	s := fmt.Sprintf("; tried %s since %s", times(h.GetAttempts()), clock(h.GetSince()))
	if n := h.GetNextAttempt(); n != nil {
		if d := n.AsTime().Sub(v.w.GetAsOf().AsTime()); d > 0 {
			return s + ", again in " + d.Round(time.Second).String()
		}
		return s + ", and again now"
	}
	return s
}

func times(n uint32) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func clock(t *timestamppb.Timestamp) string {
	if t == nil {
		return "an unknown time"
	}
	return t.AsTime().UTC().Format("2006-01-02 15:04:05Z")
}

// atTime is a time after what happened then; nothing where it is not known.
func atTime(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return " " + clock(t)
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// shortDigest tells a digest from others on a screen.
func shortDigest(d string) string { return d[:min(len(d), len("sha256:")+12)] }
