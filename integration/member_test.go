package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// memberInfo is a line of `member list`.
type memberInfo struct {
	Site, ID, Role, State string
	Voter                 bool
}

// members asks a site for its group's members, by name.
func (s *site) memberList() (map[string]memberInfo, error) {
	s.t.Helper()
	out, code := s.ctl("member", "list", "-o", "json", "--timeout", "5s")
	if code != 0 {
		return nil, fmt.Errorf("member list: exit %d", code)
	}
	var doc struct{ Members []memberInfo }
	if err := json.Unmarshal(out, &doc); err != nil {
		s.t.Fatalf("member list -o json: %v: %s", err, out)
	}
	list := map[string]memberInfo{}
	for _, m := range doc.Members {
		list[m.Site] = m
	}
	return list, nil
}

// vote waits until exactly these sites have a vote, and no others are members.
func vote(t testing.TB, at *site, names ...string) {
	t.Helper()
	eventually(t, fmt.Sprint("members with a vote: ", names), func() error {
		list, err := at.memberList()
		if err != nil {
			return err
		}
		for _, name := range names {
			if !list[name].Voter || list[name].State == "unreachable" {
				return fmt.Errorf("%v", list)
			}
		}
		if len(list) != len(names) {
			return fmt.Errorf("%v", list)
		}
		return nil
	})
}

// does runs fanoutctl, which must succeed.
func (s *site) does(args ...string) string {
	s.t.Helper()
	out, code := s.ctl(args...)
	if code != 0 {
		s.t.Fatalf("fanoutctl %s: exit %d", strings.Join(args, " "), code)
	}
	return string(out)
}

// leads returns who is root.
func (s *site) leads() string {
	list, err := s.memberList()
	if err != nil {
		return ""
	}
	for name, m := range list {
		if m.Role == "root" {
			return name
		}
	}
	return ""
}

// saysRemoved waits until an agent says that it was removed, in its log and at /readyz.
func (s *site) saysRemoved() {
	s.t.Helper()
	const words = "this site was removed from group"
	eventually(s.t, s.name+" says that it was removed", func() error {
		resp, err := http.Get("http://" + s.http + "/readyz?verbose")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		s.mu.Lock()
		log := s.log.String()
		s.mu.Unlock()
		if resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(body), words) || !strings.Contains(log, words) {
			return fmt.Errorf("%s", body)
		}
		return nil
	})
	if _, code := s.ctl("tree"); code != 1 {
		s.t.Errorf("tree at %s: exit %d", s.name, code)
	}
}

// newcomer lays out one more member of a group, whose file lists itself and others.
func newcomer(t testing.TB, name string, lists ...*site) *site {
	t.Helper()
	s := lay(t, lists[0], spec{name: name, group: lists[0].group})
	s.parents = lists[0].parents
	s.members = append([]*site{s}, lists...)
	t.Cleanup(func() {
		if s.cmd != nil {
			s.stop()
		}
	})
	return s
}

// TestMembers_GrowAndShrink grows headquarters from one site to three and back while a province follows; leadership moves by command and by a clean stop.
func TestMembers_GrowAndShrink(t *testing.T) {
	t.Parallel()
	a := start(t, spec{name: "hq-a", group: "hq"})["hq-a"]
	b := newcomer(t, "hq-b", a)
	c := newcomer(t, "hq-c", b) // its file does not list the root
	gd := lay(t, a, spec{name: "gd-a", group: "hq/guangdong"})
	gd.parents = append(gd.parents, b.fabric, c.fabric)
	gd.start()
	t.Cleanup(gd.stop)
	gd.waitReady()

	var digests []string
	pushed := func(at *site, others ...*site) {
		t.Helper()
		ref := fmt.Sprintf("team/app:%d", len(digests))
		digest := push(t, at, ref, image(t, 32<<10, 2))
		digests = append(digests, digest)
		for _, s := range append(others, at, gd) {
			shows(t, s, ref, digest)
		}
	}
	pushed(a)
	for _, s := range []*site{b, c} {
		out := a.does("member", "add", s.name, s.raft)
		if !strings.Contains(out, "may join") {
			t.Errorf("member add: %s", out)
		}
		list, err := a.memberList()
		if err != nil || list[s.name].State != "pending" || list[s.name].Voter {
			t.Errorf("before it has come: %v, %v", list, err)
		}
		pushed(a) // nobody waits for who has not come
		s.start()
	}
	vote(t, a, "hq-a", "hq-b", "hq-c")
	for i, digest := range digests {
		for _, s := range []*site{b, c} {
			shows(t, s, fmt.Sprint("team/app:", i), digest)
		}
	}
	if out := b.does("member", "add", "hq-c", c.raft); !strings.Contains(out, "a member already") {
		t.Errorf("added twice: %s", out)
	}
	pushed(b, a, c)

	for _, name := range []string{"hq-c", "hq-b"} {
		if out := a.does("member", "lead", name); out != name+" is the root\n" {
			t.Errorf("lead: %q", out)
		}
		eventually(t, name+" leads", func() error {
			if now := c.leads(); now != name {
				return fmt.Errorf("%s leads", now)
			}
			return nil
		})
	}
	pushed(c, a, b)

	// A root that is stopped in good order hands leadership over: nobody waits for an election timeout.
	begin := time.Now()
	_ = b.cmd.Process.Signal(syscall.SIGTERM)
	eventually(t, "another leads", func() error {
		if now := a.leads(); now == "" || now == "hq-b" {
			return fmt.Errorf("%q leads", now)
		}
		return nil
	})
	t.Logf("%s leads %s after SIGTERM to hq-b", a.leads(), time.Since(begin).Round(time.Millisecond))
	_ = b.cmd.Wait()
	b.mu.Lock()
	if log := b.log.String(); !strings.Contains(log, `"leadership was handed over"`) {
		t.Error("hq-b did not hand leadership over")
	}
	b.mu.Unlock()
	pushed(a, c)
	b.start()
	b.waitReady() // it has had a vote all along, and what is asked next needs it
	vote(t, a, "hq-a", "hq-b", "hq-c")

	// Back to one; the founder goes first, and whoever is root removes itself.
	a.does("member", "lead", "hq-a")
	a.does("member", "remove", "hq-a")
	vote(t, b, "hq-b", "hq-c")
	a.saysRemoved()
	pushed(b, c)
	eventually(t, "the tree says what a group of two can't survive", func() error {
		return says(b.does("tree"), "two members and no witness", "nothing is published")
	})
	c.does("member", "remove", "hq-c")
	vote(t, b, "hq-b")
	if err := says(b.does("events"), "MemberRemoved", "hq-c was removed from hq, by local"); err != nil {
		t.Error(err)
	}
	c.saysRemoved()
	pushed(b)
	shows(t, a, "team/app:0", digests[0]) // its registry goes on
	if _, code := b.ctl("member", "remove", "hq-b"); code != 1 {
		t.Errorf("the last member was removed: exit %d", code)
	}
	// Those who were removed stay out, whatever their files say.
	for _, s := range []*site{a, c} {
		s.kill()
		s.start()
		s.saysRemoved()
	}
	vote(t, b, "hq-b")
	b.kill()
	b.start()
	b.waitReady()
	pushed(b)
	for _, s := range []*site{b, gd} {
		if n := s.metric("fanout_tree_resyncs_sent_total"); n != 0 {
			t.Errorf("%s sent %v resyncs", s.name, n)
		}
	}
	// And one of them is let in again.
	b.does("member", "add", "hq-c", c.raft)
	vote(t, b, "hq-b", "hq-c")
	pushed(c, b)
	if err := says(b.does("events"), "MemberAdded", "hq-c at "+c.raft+" may join hq, by local"); err != nil {
		t.Error(err)
	}
}

// TestMembers_ReplaceADeadMachine: a new one with an empty disk under the same name needs no command, and a dead one that comes back after its removal is not let in.
func TestMembers_ReplaceADeadMachine(t *testing.T) {
	t.Parallel()
	hq := start(t, spec{name: "hq-a", group: "hq"}, spec{name: "hq-b", group: "hq"}, spec{name: "hq-c", group: "hq"})
	a, b, c := hq["hq-a"], hq["hq-b"], hq["hq-c"]
	first := push(t, a, "team/app:1", image(t, 32<<10, 2))
	for _, s := range hq {
		shows(t, s, "team/app:1", first)
	}
	before, err := a.memberList()
	if err != nil {
		t.Fatal(err)
	}
	c.kill()
	if err := os.RemoveAll(c.dir); err != nil {
		t.Fatal(err)
	}
	digest := push(t, b, "team/app:2", image(t, 32<<10, 2))
	c.start()
	vote(t, a, "hq-a", "hq-b", "hq-c")
	after, err := a.memberList()
	if err != nil || after["hq-c"].ID == before["hq-c"].ID {
		t.Errorf("the server is the one it was: %v, %v", after["hq-c"], err)
	}
	shows(t, c, "team/app:2", digest)
	shows(t, c, "team/app:1", first)

	c.kill()
	eventually(t, "its death is seen", func() error {
		list, err := a.memberList()
		if err == nil && list["hq-c"].State != "unreachable" {
			err = fmt.Errorf("%v", list["hq-c"])
		}
		return err
	})
	if out, code := a.ctl("member", "remove", "hq-b"); code != 1 || len(out) > 0 {
		t.Errorf("one of two that live was removed: exit %d: %s", code, out)
	}
	a.does("member", "remove", "hq-c")
	vote(t, a, "hq-a", "hq-b")
	c.start()
	c.saysRemoved()
	c.kill()
	for _, dir := range []string{"raft", "store"} {
		if err := os.RemoveAll(filepath.Join(c.dir, dir)); err != nil {
			t.Fatal(err)
		}
	}
	c.start()
	c.saysRemoved()
	shows(t, c, "team/app:1", first)
	vote(t, a, "hq-a", "hq-b")
	digest = push(t, a, "team/app:3", image(t, 32<<10, 2))
	shows(t, b, "team/app:3", digest)
}
