package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// masters is a headquarters of two registries, each with an agent, perhaps a witness, and a province below.
type masters struct {
	t        *testing.T
	a, b, w  *site // w is nil where there is no witness
	gd       *site
	expected map[string]string // what all registries should show: ref → digest
}

const witnessRegistry = "registry: {type: none}\n"

func startMasters(t *testing.T, witness bool, more ...spec) (*masters, map[string]*site) {
	t.Helper()
	specs := []spec{{name: "hq-a", group: "hq", registry: true}, {name: "hq-b", group: "hq", registry: true}, {name: "gd-a", group: "hq/gd"}}
	if witness {
		specs = append(specs, spec{name: "hq-w", group: "hq", extra: witnessRegistry})
	}
	sites := start(t, append(specs, more...)...)
	return mastersOf(t, sites), sites
}

// mastersOf are those of a running fabric.
func mastersOf(t *testing.T, sites map[string]*site) *masters {
	return &masters{t: t, a: sites["hq-a"], b: sites["hq-b"], w: sites["hq-w"], gd: sites["gd-a"], expected: map[string]string{}}
}

// other is the other master.
func (m *masters) other(s *site) *site {
	if s == m.a {
		return m.b
	}
	return m.a
}

// push pushes a new image at a master and expects it everywhere from then on.
func (m *masters) push(at *site, ref string) {
	m.t.Helper()
	m.expected[ref] = push(m.t, at, ref, image(m.t, 32<<10, 1))
}

// lead makes a master root of headquarters.
func (m *masters) lead(s *site) {
	m.t.Helper()
	eventually(m.t, s.name+" leads", func() error {
		if now := s.leads(); now == s.name {
			return nil
		}
		out, _ := s.ctl("member", "lead", s.name)
		return fmt.Errorf("%s", out)
	})
}

// equal waits until these show all that was pushed, and proves that what is under it is there.
func (m *masters) equal(sites ...*site) {
	m.t.Helper()
	for _, s := range sites {
		for ref, digest := range m.expected {
			eventually(m.t, s.name+" shows "+ref, func() error { return head(m.t, s, ref, digest) })
		}
	}
}

// peace proves that no conflict is listed: all agents have looked at what was pushed.
func (m *masters) peace() {
	m.t.Helper()
	for ref, digest := range m.expected {
		m.a.quiet(ref, digest)
	}
	var doc conflictDoc
	m.b.document(&doc, "conflicts")
	if len(doc.Conflicts) != 0 {
		m.t.Errorf("conflicts are listed: %+v", doc)
	}
}

// TestTwoMastersAnyOneDown: of two masters and a witness any one process may be down. What is pushed meanwhile is published, by whichever master is whole, and when the process is
// back all registries are equal and no conflict is listed: nobody did anything.
func TestTwoMastersAnyOneDown(t *testing.T) {
	m, sites := startMasters(t, true)
	const moving, settled = "app/web:latest", "app/web:settled"
	m.push(m.a, moving)
	m.push(m.a, settled)
	m.equal(m.a, m.b, m.gd)
	for _, tt := range []struct {
		name  string
		down  victim
		whole []*site // masters that are whole meanwhile
		deaf  *site   // the master whose agent alone is down
	}{
		{"registry-a", victim{"registry", nil, m.a.own.kill, m.a.own.start}, []*site{m.b}, nil},
		{"registry-b", victim{"registry", nil, m.b.own.kill, m.b.own.start}, []*site{m.a}, nil},
		{"agent-a", agentVictim(m.a, "agent"), []*site{m.b}, m.a},
		{"agent-b", agentVictim(m.b, "agent"), []*site{m.a}, m.b},
		{"witness", agentVictim(m.w, "witness"), []*site{m.a, m.b}, nil},
	} {
		for _, root := range []*site{m.a, m.b} {
			t.Run(tt.name+" down, "+root.name+" was root", func(t *testing.T) {
				m := &masters{t, m.a, m.b, m.w, m.gd, m.expected}
				ref := func(tag string) string { return "app/" + tt.name + ":" + tag + "-" + root.name }
				m.lead(root)
				told := ""
				if tt.deaf != nil {
					// Its registry tells nobody, so that only the sweep of its agent can find what is pushed there.
					told = tt.deaf.own.Hook
					tt.deaf.own.tell(t, "")
				}
				tt.down.kill()
				for _, at := range tt.whole {
					m.push(at, ref("new-at-"+at.name))
				}
				m.push(tt.whole[0], moving)
				m.equal(append([]*site{m.gd}, tt.whole...)...)
				if tt.deaf != nil {
					m.push(tt.deaf, ref("unheard"))
					m.push(tt.deaf, settled)
				}
				if tt.name == "witness" {
					eventually(t, "doctor says what may still be down", func() error {
						all, _ := root.doctor()
						return all[root.name]["quorum"].is("warn", "3 members", m.w.name+" can't be reached now", "while one more is down, nothing is published")
					})
				}
				tt.down.start()
				m.equal(m.a, m.b, m.gd)
				if tt.deaf != nil {
					tt.deaf.own.tell(t, told)
				}
				m.peace()
			})
		}
	}
	eventually(t, "the metrics say how many follow the root, and how far each is", func() error {
		for _, s := range []*site{m.a, m.b, m.w} {
			if s.metric("fanout_tree_members_connected") != 3*s.metric("fanout_tree_root") || s.metric("fanout_tree_revision") != m.a.metric("fanout_tree_head_revision") || s.metric("fanout_tree_revision") == 0 {
				return fmt.Errorf("%s: root %v, %v connected, revision %v of %v", s.name, s.metric("fanout_tree_root"), s.metric("fanout_tree_members_connected"), s.metric("fanout_tree_revision"), m.a.metric("fanout_tree_head_revision"))
			}
		}
		return nil
	})
	for _, s := range sites {
		if s != m.w {
			for ref, digest := range m.expected {
				whole(t, s, ref, digest)
			}
		}
	}
}

// tell starts the registry again, telling another address of pushes; empty: nobody.
func (r *ownRegistry) tell(t testing.TB, hook string) {
	t.Helper()
	r.kill()
	r.Hook = hook
	r.start()
}

// TestTwoMastersWithoutAWitness: a group of two says what it can't survive, and it is so: while one agent is down registries serve, but nothing is published.
func TestTwoMastersWithoutAWitness(t *testing.T) {
	t.Parallel()
	m, _ := startMasters(t, false)
	m.push(m.a, "app/web:1")
	m.equal(m.a, m.b, m.gd)
	const words = "two members and no witness: while either is down, nothing is published; a third member, such as a witness, ends that"
	for _, s := range []*site{m.a, m.b} {
		eventually(t, "tree says what two can't survive", func() error { return says(s.does("tree"), words) })
		var doc struct {
			Groups []struct{ Group, State, Reason string }
		}
		s.document(&doc, "tree", "hq")
		if g := doc.Groups[0]; g.Group != "hq" || g.State != "synced" || g.Reason != words {
			t.Errorf("tree -o json says %+v", g)
		}
		out, code := s.ctl("doctor")
		if err := says(string(out), "two members with a vote: while either is down, nothing is published", "a witness"); err != nil || code != 0 {
			t.Errorf("doctor: exit %d: %v", code, err)
		}
	}
	for _, s := range []*site{m.a, m.b} {
		other := m.other(s)
		s.kill()
		m.push(other, "app/web:without-"+s.name)
		eventually(t, other.name+" says that it has no root", func() error {
			resp, err := http.Get("http://" + other.http + "/readyz?verbose")
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			var checks map[string]string
			if err := json.NewDecoder(resp.Body).Decode(&checks); err != nil {
				return err
			}
			return says(checks["raft"], "the group has no root now")
		})
		other.knowsAlone("app/web:1", s.name)
		if _, code := other.ctl("publish", "app/web:without-"+s.name, "--timeout", "3s"); code == 0 {
			t.Error("something was published by one of two")
		}
		if _, err := remote.Head(reference(t, m.gd, "app/web:1")); err != nil {
			t.Errorf("the province's registry: %v", err)
		}
		s.start()
		m.equal(m.a, m.b, m.gd)
		m.peace()
	}
}
