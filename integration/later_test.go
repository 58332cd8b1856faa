package integration

import (
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// clockBound is by how much the times of two pushes must differ at least for the agents to order them by their times.
const clockBound = 2 * time.Second

// signal sends a signal to the agent.
func (s *site) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// TestLaterPushWins: a tag that is pushed at one master and then at the other ends as the later push says, at all registries, and no conflict is listed: when the second
// push comes right after the first was delivered, and when the second master, or the first, could not hear of the other's push.
func TestLaterPushWins(t *testing.T) {
	m, _ := startMasters(t, true)
	const ref = "app/web:latest"
	m.push(m.a, ref)
	m.equal(m.a, m.b, m.gd)
	for _, root := range []*site{m.a, m.b} {
		t.Run("delivered, root "+root.name, func(t *testing.T) {
			m := &masters{t, m.a, m.b, m.w, m.gd, m.expected}
			m.lead(root)
			for _, first := range []*site{m.a, m.b} {
				m.push(first, ref)
				m.equal(m.other(first))
				m.push(m.other(first), ref)
				m.equal(m.a, m.b, m.gd)
			}
			m.peace()
		})
		for _, tt := range []struct {
			name           string
			first, stopped *site
		}{{"the second is stopped", m.a, m.b}, {"the first is stopped", m.b, m.b}} {
			t.Run(tt.name+", root "+root.name, func(t *testing.T) {
				m := &masters{t, m.a, m.b, m.w, m.gd, m.expected}
				m.lead(root)
				tt.stopped.signal(syscall.SIGSTOP)
				begin, before := time.Now(), m.expected[ref]
				m.push(tt.first, ref)
				earlier := m.expected[ref]
				if tt.first != tt.stopped {
					m.published(tt.first, ref) // the other agent and the witness are a majority
				}
				time.Sleep(time.Until(begin.Add(clockBound * 3 / 2))) // what is shown is that time decides
				m.push(m.other(tt.first), ref)
				later := m.expected[ref]
				if tt.first == tt.stopped {
					m.published(m.a, ref)
				}
				stop := sync.OnceFunc(neverOlder(t, map[string]*site{"gd-a": m.gd}, ref, map[string]int{before: 0, earlier: 1, later: 2}))
				defer stop()
				tt.stopped.signal(syscall.SIGCONT)
				m.equal(m.a, m.b, m.gd)
				m.peace()
				stop()
			})
		}
	}
}

// published waits until a master's catalog has what was pushed.
func (m *masters) published(at *site, ref string) {
	m.t.Helper()
	eventually(m.t, ref+" is published", func() error {
		out, _ := at.ctl("images", "app/web", "-o", "json")
		return says(string(out), m.expected[ref])
	})
}

// shown is the digest that a site's registry shows under a ref.
func shown(t testing.TB, s *site, ref string) string {
	t.Helper()
	d, err := remote.Head(reference(t, s, ref))
	if err != nil {
		t.Fatal(err)
	}
	return d.Digest.String()
}

// TestPushesAtOnce: a tag that is pushed at both masters at the same time ends as one of the two everywhere. Where their times can't tell which was later, that the other lost is
// listed with both digests, and it is kept.
func TestPushesAtOnce(t *testing.T) {
	t.Parallel()
	m, sites := startMasters(t, true)
	const ref = "app/web:latest"
	m.push(m.a, ref)
	m.equal(m.a, m.b, m.gd)
	m.peace()
	images := []ggcr.Image{image(t, 32<<10, 1), image(t, 32<<10, 1)}
	pushed := map[string]string{}
	for i, s := range []*site{m.a, m.b} { // their blobs first, so that the tags come at about the same time
		pushed[push(t, s, "app/web:blobs-"+s.name, images[i])] = s.name
		m.expected["app/web:blobs-"+s.name] = shown(t, s, "app/web:blobs-"+s.name)
	}
	m.equal(m.a, m.b, m.gd)
	p := &pushes{t: t, acked: map[string]string{}}
	p.push(ref, images[0], m.a)
	p.push(ref, images[1], m.b)
	p.wg.Wait()
	var doc conflictDoc
	eventually(t, "all agree", func() error {
		winner := shown(t, m.gd, ref)
		for _, s := range []*site{m.a, m.b, m.gd} {
			if err := head(t, s, ref, winner); err != nil {
				return err
			}
		}
		if pushed[winner] == "" {
			return fmt.Errorf("%s is shown still", winner)
		}
		m.expected[ref] = winner
		return nil
	})
	m.a.quiet(ref, m.expected[ref])
	m.a.document(&doc, "conflicts")
	switch len(doc.Conflicts) {
	case 0:
		t.Log("one was delivered before the other was pushed")
	case 1:
		c := doc.Conflicts[0]
		if c.Ref != ref || c.Winner.Digest != m.expected[ref] || pushed[c.Loser.Digest] != c.Loser.Site || c.Loser.Digest == c.Winner.Digest {
			t.Errorf("listed: %+v, pushed: %v", c, pushed)
		}
		if got := holds(t, sites[c.Loser.Site], "app/web"); len(got) != 1 {
			t.Errorf("%s holds %v", c.Loser.Site, got)
		}
		m.expected[ref] = c.Loser.Digest
		m.a.does("conflicts", "settle", ref, "--keep", c.Loser.Digest)
		m.equal(m.a, m.b, m.gd)
		m.peace()
	default:
		t.Errorf("listed: %+v", doc.Conflicts)
	}
}
