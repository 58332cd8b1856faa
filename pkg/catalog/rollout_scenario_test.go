package catalog_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/fanout-io/fanout/pkg/catalog"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// runRollout runs the words of a scenario that have to do with rollouts:
//
//	NAME policy [NAME:DELIVERY:PATTERN[:MAX_FREEZE]]…
//	NAME start ID REF=TARGET… WAVE(GROUP,…[;max=N][;fail=N][;onfail=WORD][;offline=WORD][;soak=D][;deadline=D][;before=GATE,…][;after=GATE,…][;window])…
//	     [all] [supersede] [signed=WORD]                                GATE is approval or check
//	NAME steer ID VERB [GROUP] [reason=WORD]
//	NAME observe ID [GROUP=STATE[:REASON][@SITE+SITE]]… [elapsed=D] [check=passed|failed:DETAIL] [window] [seen=N]     seen is what is right
//	NAME views REF GROUP…                                               what groups are to show
//	NAME wait D                                                         time passes
//
// Start, steer and observe also show where the rollout stands, and the steps that were taken.
func (s *stage) runRollout(t *testing.T, line string) string {
	words := strings.Fields(line)
	name, verb, words := words[0], words[1], words[2:]
	m := s.machine(name)
	var change *catalogv1.Change
	switch verb {
	case "policy":
		return s.apply(m, s.policies(t, words))
	case "views":
		return s.views(m.Snapshot(), words)
	case "wait":
		s.clock += int64(duration(t, words[0]).AsDuration() / time.Second)
		return ""
	case "start":
		change = s.start(t, words)
	case "steer":
		st := &catalogv1.SteerRollout{Id: words[0], Verb: words[1]}
		for _, w := range words[2:] {
			if reason, ok := strings.CutPrefix(w, "reason="); ok {
				st.Reason = reason
			} else {
				st.Group = w
			}
		}
		change = &catalogv1.Change{Kind: &catalogv1.Change_SteerRollout{SteerRollout: st}}
	case "observe":
		change = s.observe(t, m.Snapshot().Rollout(words[0]), words)
	default:
		t.Fatalf("unknown verb: %s", line)
	}
	out := s.apply(m, change)
	if strings.HasPrefix(out, "refused") {
		return out
	}
	return out + s.showRollouts(s.machine(name).Snapshot())
}

func duration(t testing.TB, w string) *durationpb.Duration {
	d, err := time.ParseDuration(w)
	if err != nil {
		t.Fatal(err)
	}
	return durationpb.New(d)
}

func (s *stage) policies(t *testing.T, words []string) *catalogv1.Change {
	set := &catalogv1.SetPolicies{}
	for _, w := range words {
		f := strings.Split(w, ":")
		p := &catalogv1.Policy{Name: f[0], Delivery: f[1], Repositories: f[2:3]}
		if len(f) > 3 {
			p.MaxFreeze = duration(t, f[3])
		}
		set.Policies = append(set.Policies, p)
	}
	return &catalogv1.Change{Kind: &catalogv1.Change_SetPolicies{SetPolicies: set}}
}

func (s *stage) views(snap *catalog.Snapshot, words []string) string {
	rec, _ := snap.Get(splitRef(words[0]))
	var out []string
	for _, g := range words[1:] {
		shows := "nothing"
		if v := catalog.Project(rec, g); v != nil && !v.Deleted {
			shows = s.word(v.Target.Digest)
		}
		out = append(out, g+" "+shows)
	}
	return strings.Join(out, ", ") + "\n"
}

func (s *stage) start(t *testing.T, words []string) *catalogv1.Change {
	start := &catalogv1.StartRollout{Rollout: &catalogv1.Rollout{Id: words[0], Plan: &catalogv1.Plan{}}}
	var signed []*catalogv1.Descriptor
	for _, w := range words[1:] {
		wave, rest, isWave := strings.Cut(strings.TrimSuffix(w, ")"), "(")
		k, v, _ := strings.Cut(w, "=")
		switch {
		case isWave:
			start.Rollout.Plan.Waves = append(start.Rollout.Plan.Waves, parseWave(t, wave, rest))
		case w == "all":
			start.Rollout.Plan.AllGroups = true
		case w == "supersede":
			start.Supersede = true
		case k == "signed":
			signed = append(signed, s.descriptor(v))
		default:
			ref := splitRef(k)
			start.Rollout.Items = append(start.Rollout.Items, &catalogv1.RolloutItem{
				Repository: ref.Repository, Tag: ref.Tag, SourceRepository: ref.Repository, Target: s.descriptor(v), Referrers: signed,
			})
		}
	}
	return &catalogv1.Change{Kind: &catalogv1.Change_StartRollout{StartRollout: start}}
}

func parseWave(t testing.TB, name, rest string) *catalogv1.Wave {
	parts := strings.Split(rest, ";")
	w := &catalogv1.Wave{Name: name, MaxConcurrent: 100, OnFailure: "pause", OnOffline: "skip"}
	if parts[0] != "" {
		w.Groups = strings.Split(parts[0], ",")
	}
	number := func(v string) uint32 {
		n, err := strconv.ParseUint(v, 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		return uint32(n)
	}
	gates := func(v string) (out []*catalogv1.Gate) {
		for _, g := range strings.Split(v, ",") {
			switch g {
			case "approval":
				out = append(out, &catalogv1.Gate{Kind: &catalogv1.Gate_Approval{Approval: &catalogv1.Approval{}}})
			case "check":
				out = append(out, &catalogv1.Gate{Kind: &catalogv1.Gate_Check{Check: &catalogv1.Check{
					Url: "http://metrics/ok", Interval: durationpb.New(30 * time.Second), Timeout: durationpb.New(10 * time.Minute)}}})
			default:
				out = append(out, &catalogv1.Gate{})
			}
		}
		return out
	}
	for _, p := range parts[1:] {
		switch k, v, _ := strings.Cut(p, "="); k {
		case "max":
			w.MaxConcurrent = number(v)
		case "fail":
			w.MaxFailures = number(v)
		case "onfail":
			w.OnFailure = v
		case "offline":
			w.OnOffline = v
		case "soak":
			w.Soak = duration(t, v)
		case "deadline":
			w.Deadline = duration(t, v)
		case "before":
			w.Before = gates(v)
		case "after":
			w.After = gates(v)
		case "window":
			w.Window = &catalogv1.Window{Allow: []string{"0 1 * * * / 4h"}}
		default:
			t.Fatalf("wave %s: %s", name, p)
		}
	}
	return w
}

func (s *stage) observe(t *testing.T, r *catalogv1.Rollout, words []string) *catalogv1.Change {
	o := &catalogv1.ObserveRollout{Id: words[0], Seen: r.GetVersion()}
	for _, w := range words[1:] {
		k, v, _ := strings.Cut(w, "=")
		switch state, reason, _ := strings.Cut(v, ":"); k {
		case "elapsed":
			o.Elapsed = duration(t, v)
		case "window":
			o.WindowOpen = true
		case "seen":
			o.Seen, _ = strconv.ParseUint(v, 10, 64)
		case "check":
			o.Check = &catalogv1.ObservedCheck{Wave: r.GetWave(), Passed: state == "passed", Detail: reason, Took: durationpb.New(time.Second)}
			for _, g := range r.GetWaves()[r.GetWave()].Gates {
				if g.Result == catalog.GateWaiting {
					o.Check.After, o.Check.Index = g.After, g.Index
				}
			}
		default:
			g := &catalogv1.ObservedGroup{Group: k}
			v, sites, at := strings.Cut(v, "@")
			if g.State, g.Reason, _ = strings.Cut(v, ":"); at {
				g.Sites = strings.Split(sites, "+")
			}
			o.Groups = append(o.Groups, g)
		}
	}
	return &catalogv1.Change{Kind: &catalogv1.Change_ObserveRollout{ObserveRollout: o}}
}

// showRollouts shows the steps that were not shown yet, and where each rollout stands that took one or goes on.
func (s *stage) showRollouts(snap *catalog.Snapshot) string {
	var out strings.Builder
	for _, r := range snap.Rollouts() {
		fresh := r.Steps[min(s.steps[r.Id], len(r.Steps)):]
		s.steps[r.Id] = len(r.Steps)
		if len(fresh) == 0 && catalog.Ended(r) {
			continue
		}
		for _, st := range fresh {
			fmt.Fprintf(&out, "  . %s %s: %s\n", r.Id, st.Actor, st.Text)
		}
		fmt.Fprintf(&out, "  %s %s", r.Id, r.Phase)
		if r.Reason != "" {
			fmt.Fprintf(&out, " (%s)", r.Reason)
		}
		if r.Settled {
			out.WriteString(" settled")
		}
		for i, w := range r.Waves {
			fmt.Fprintf(&out, "; %s %s", w.Name, w.Phase)
			if w.Soaked.AsDuration() > 0 {
				fmt.Fprintf(&out, " soaked %v", w.Soaked.AsDuration())
			}
			for _, g := range w.Gates {
				if g.Result == catalog.GateWaiting && g.Waited.AsDuration() > 0 {
					fmt.Fprintf(&out, " waited %v", g.Waited.AsDuration())
				}
			}
			for _, g := range r.Groups {
				if int(g.Wave) == i {
					fmt.Fprintf(&out, ", %s %s", g.Group, g.Phase)
					if g.Reason != "" {
						fmt.Fprintf(&out, " (%s)", g.Reason)
					}
					for _, x := range g.Receipts {
						fmt.Fprintf(&out, " %s@%d", x.Site, x.At.AsTime().Unix())
						if x.Back {
							out.WriteString("-back")
						}
					}
				}
			}
		}
		out.WriteByte('\n')
	}
	return out.String()
}
