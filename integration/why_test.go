package integration

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/fanout-io/fanout/pkg/registry/harbortest"
	"github.com/fanout-io/fanout/pkg/view"
)

// foreignWords are those of libraries: an operator reads none of them.
var foreignWords = []string{"rpc error", "desc = ", "context deadline", "context canceled", "transport:", "x509", "EOF", "dial tcp", "i/o timeout", "unknown error"}

// plain fails where an answer for people has a library's words in it.
func plain(t testing.TB, what string, said []byte) {
	t.Helper()
	for _, w := range foreignWords {
		if strings.Contains(string(said), w) {
			t.Errorf("%s says %q:\n%s", what, w, said)
		}
	}
}

// asks runs a command of fanoutctl that prints a document, and the same in words, which are to be an operator's.
func asks[T any](s *site, args ...string) (doc T, err error) {
	s.t.Helper()
	text, code := s.ctl(args...)
	if code != 0 {
		return doc, fmt.Errorf("fanoutctl %v: exit %d", args, code)
	}
	plain(s.t, fmt.Sprint(args), text)
	out, code := s.ctl(append(args, "-o", "json")...)
	if code != 0 {
		return doc, fmt.Errorf("fanoutctl %v: exit %d", args, code)
	}
	plain(s.t, fmt.Sprint(args), out)
	return doc, json.Unmarshal(out, &doc)
}

// why waits until an agent gives the answer that is wanted.
func (s *site) why(ref, site string, want func(view.Why) bool) view.Why {
	s.t.Helper()
	var w view.Why
	eventually(s.t, fmt.Sprintf("%s says why %s %s", s.name, ref, site), func() (err error) {
		if w, err = asks[view.Why](s, "why", ref, site); err != nil {
			return err
		}
		if !want(w) {
			return fmt.Errorf("it says %+v", w)
		}
		return nil
	})
	return w
}

func causedBy(cause string) func(view.Why) bool {
	return func(w view.Why) bool { return w.Cause == cause }
}

// whyFabric is headquarters, a province, and a city whose registry is a Harbor with a project that has no room: app/web:1 is everywhere, team/app:1 not in the city.
func whyFabric(t *testing.T) (hq, gd, sz *site, harbor *fakeRegistry) {
	t.Helper()
	harbor = serveFake(t, "harbor", harbortest.Config{Knobs: harbortest.Knobs{DeleteRight: true}})
	harbor.SetProject("team", harbortest.Project{Quota: 2048})
	sites := start(t, spec{name: "hq-a", group: "hq", counted: true}, spec{name: "gd-a", group: "hq/gd"}, spec{name: "sz-a", group: "hq/gd/sz", extra: harbor.extra})
	hq, gd, sz = sites["hq-a"], sites["gd-a"], sites["sz-a"]
	shows(t, gd, "app/web:1", push(t, hq, "app/web:1", image(t, 64<<10, 2)))
	shows(t, gd, "team/app:1", push(t, hq, "team/app:1", image(t, 64<<10, 2)))
	return hq, gd, sz, harbor
}

// TestWhy: through real processes, headquarters says what keeps an image from a city, hop by hop, while the city lives, while it is dead, and when the cause is gone.
func TestWhy(t *testing.T) {
	t.Parallel()
	hq, _, sz, harbor := whyFabric(t)

	w := hq.why("team/app:1", "sz-a", func(w view.Why) bool { return w.Cause == "quota" && w.Hops[len(w.Hops)-1].Live })
	if len(w.Hops) != 3 || w.Hops[0].State != "delivered" || w.Hops[1].Site != "gd-a" || w.Hops[1].State != "delivered" {
		t.Errorf("the way: %+v", w.Hops)
	}
	if last := w.Hops[len(w.Hops)-1]; last.State != "failed" || last.Status != 403 || last.Code != "DENIED" || last.Message == "" || last.Attempts == 0 {
		t.Errorf("the city's hop: %+v", last)
	}
	if !strings.Contains(w.Answer, "the quota of project team is used up") || !strings.Contains(w.Mend, "raise the quota of project team") {
		t.Errorf("the answer: %q, %q", w.Answer, w.Mend)
	}
	// A whole delivery is told with its bytes and its source.
	w = hq.why("team/app:1", "gd-a", func(w view.Why) bool { return w.State == "delivered" && w.Hops[len(w.Hops)-1].Receipt != nil })
	if r := w.Hops[len(w.Hops)-1].Receipt; r.Bytes < 64<<10 || !slices.Equal(r.Sources, []string{"hq-a"}) {
		t.Errorf("the receipt: %+v", r)
	}
	if _, errs, code := hq.says("why", "team/app:1", "sz-b"); code != 1 || !strings.Contains(string(errs), "the nearest: sz-a") {
		t.Errorf("of a site that is not there: exit %d: %s", code, errs)
	}
	onItsWay(t, hq)

	sz.kill()
	w = hq.why("app/web:1", "sz-a", causedBy("unreachable"))
	if !strings.Contains(w.Mend, "start the agent") {
		t.Errorf("of a dead city: %+v", w)
	}
	harbor.SetProject("team", harbortest.Project{})
	sz.start()
	hq.why("team/app:1", "sz-a", func(w view.Why) bool { return w.State == "delivered" && w.Cause == "" })
}

// onItsWay: of what is just crossing a link, why and top say from whom it comes and what is left.
func onItsWay(t *testing.T, hq *site) {
	t.Helper()
	hq.link.throttle(256 << 10)
	push(t, hq, "app/big:1", image(t, 4<<20, 1))
	w := hq.why("app/big:1", "gd-a", func(w view.Why) bool { return w.State == "delivering" && w.Hops[len(w.Hops)-1].Rate > 0 })
	if last := w.Hops[len(w.Hops)-1]; !last.Live || last.Source != "hq-a" || last.BytesTotal < 4<<20 || last.BytesLeft == 0 || !strings.Contains(w.Answer, " comes from hq-a at ") {
		t.Errorf("of what is on its way: %+v", w)
	}
	top, err := asks[view.Top](hq, "top")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(top.Links, func(l view.Link) bool { return l.From == "hq" && l.To == "hq/gd" && l.BytesLeft > 0 }) || len(top.Absent) != 0 {
		t.Errorf("top: %+v", top)
	}
	hq.link.free()
}

// watching reads an agent's server-sent events until the test ends.
func (s *site) watching(feeds string) <-chan string {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.http+"/api/v1/watch?"+feeds, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		s.t.Fatalf("watching %s: %s", feeds, resp.Status)
	}
	frames := make(chan string, 1000)
	go func() {
		defer close(frames)
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				select {
				case frames <- data:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return frames
}

// sees waits for a frame that has all of some words.
func sees(t testing.TB, what string, frames <-chan string, words ...string) {
	t.Helper()
	eventually(t, what, func() error {
		for {
			select {
			case f, ok := <-frames:
				if !ok {
					t.Fatalf("%s: the stream has ended", what)
				}
				plain(t, what, []byte(f))
				if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(f, w) }) {
					return nil
				}
			default:
				return errors.New("not yet")
			}
		}
	})
}

// TestProvinceWithoutHeadquarters: while headquarters is unreachable, a province's own agent answers for what is in and below it, at the command line and on its page, and goes on following it.
func TestProvinceWithoutHeadquarters(t *testing.T) {
	t.Parallel()
	hq, gd, sz, _ := whyFabric(t)
	gd.why("team/app:1", "sz-a", causedBy("quota"))
	hq.kill()

	var tree view.Tree
	ofTheProvince := func() error {
		if len(tree.Groups) != 2 || tree.Groups[0].Group != "hq/gd" || tree.Groups[1].Group != "hq/gd/sz" {
			return fmt.Errorf("the groups: %+v", tree.Groups)
		}
		if g := tree.Groups[0]; g.State != "degraded" || !strings.HasPrefix(g.Reason, "not attached to a parent: "+hq.advertised()+": ") {
			return fmt.Errorf("the province is %s: %s", g.State, g.Reason)
		}
		if m := tree.Groups[1].Members[0]; m.Site != "sz-a" || m.State != "degraded" || !strings.Contains(m.Reason, "quota") && !strings.Contains(m.Reason, "DENIED") {
			return fmt.Errorf("the city is %s: %s", m.State, m.Reason)
		}
		return nil
	}
	eventually(t, "the province's tree", func() (err error) {
		if tree, err = asks[view.Tree](gd, "tree"); err != nil {
			return err
		}
		return ofTheProvince()
	})
	eventually(t, "the province's page", func() error {
		tree = view.Tree{}
		if err := gd.api("tree", &tree); err != nil {
			return err
		}
		return ofTheProvince()
	})

	w := gd.why("team/app:1", "sz-a", causedBy("quota"))
	if len(w.Hops) != 2 || w.Hops[0].DetachedSince == nil || !slices.ContainsFunc(w.Notes, func(n string) bool { return strings.Contains(n, "attached to no parent since") }) {
		t.Errorf("why: %+v", w)
	}
	if w = gd.why("app/web:1", "gd-a", func(view.Why) bool { return true }); w.State != "delivered" {
		t.Errorf("of what is here: %+v", w)
	}
	eventually(t, "where, between two attempts", func() error {
		states := map[string]string{}
		for _, s := range gd.where("team/app:1") {
			states[s.Site] = s.State
		}
		if len(states) != 2 || states["gd-a"] != "delivered" || states["sz-a"] != "failed" {
			return fmt.Errorf("it says %v", states)
		}
		return nil
	})
	if out, code := gd.ctl("events"); code != 0 || !strings.Contains(string(out), "team/app:1") {
		t.Errorf("events: exit %d: %s", code, out)
	}

	// The city can't see it: its own way up is as good as ever.
	eventually(t, "the city's tree says what it can't know", func() error {
		city, err := asks[view.Tree](sz, "tree")
		if err != nil {
			return err
		}
		if c := city.CutOff; c == nil || c.Group != "hq/gd" || c.Since == nil || city.Groups[0].Group != "hq/gd/sz" {
			return fmt.Errorf("cut off: %+v", c)
		}
		return says(sz.does("tree"), "hq/gd is attached to no parent since ")
	})
	if at, err := asks[view.Where](sz, "where", "app/web:1"); err != nil || at.CutOff == nil {
		t.Errorf("where, in the city: %v, %+v", err, at.CutOff)
	}
	w = sz.why("app/web:1", "sz-a", func(w view.Why) bool { return w.State == "delivered" })
	if err := says(strings.Join(w.Notes, " "), "hq/gd is attached to no parent since "); err != nil {
		t.Errorf("why, in the city: %v", err)
	}
	if doctor, _ := sz.doctor(); doctor["sz-a"]["parent"].State != "warn" {
		t.Errorf("doctor, in the city: %+v", doctor["sz-a"]["parent"])
	}
	sees(t, "the city's page says so", sz.watching("feed=tree"), `"!limits":{"cutOff":{"group":"hq/gd"`)

	frames := gd.watching("feed=tree&feed=where:team/app:1")
	sees(t, "the page has the city's trouble", frames, "sz-a", "failed")
	sz.kill()
	sees(t, "the page follows", frames, "sz-a", "unreachable")
}

// knowsAlone looks at what an agent says whose group has no root: what it knows itself, why there is no more, and that this is not all.
func (s *site) knowsAlone(ref, lost string) {
	s.t.Helper()
	eventually(s.t, s.name+" draws what it knows", func() error {
		out, errs, code := s.says("tree", "-o", "json")
		var tree view.Tree
		if err := json.Unmarshal(out, &tree); err != nil {
			return err
		}
		states := map[string]string{}
		for _, m := range tree.Groups[0].Members {
			states[m.Site] = m.State
		}
		if code != 1 || tree.NoRoot == "" || tree.Groups[0].State != "degraded" || states[s.name] != "synced" || states[lost] != "unknown" {
			return fmt.Errorf("exit %d: %s", code, out)
		}
		return says(string(errs), "only what this agent knows itself is shown: group hq has no root now: ", lost)
	})
	out, _, code := s.says("where", ref, "-o", "json")
	var where view.Where
	if err := json.Unmarshal(out, &where); err != nil || code != 1 || where.NoRoot == "" {
		s.t.Fatalf("where: %v, exit %d: %s", err, code, out)
	}
	for _, at := range where.Sites {
		if want := map[bool]string{true: "delivered", false: "unknown"}[at.Site == s.name]; at.State != want {
			s.t.Errorf("where: %s at %s, want %s", at.State, at.Site, want)
		}
	}
	if _, errs, code := s.says("where", "app/none:1"); code != 1 || !strings.Contains(string(errs), "has no root now") {
		s.t.Errorf("where of what is not here: exit %d: %s", code, errs)
	}
	if w := s.why(ref, s.name, func(view.Why) bool { return true }); w.State != "delivered" {
		s.t.Errorf("why, of itself: %+v", w)
	}
	if w := s.why(ref, lost, func(view.Why) bool { return true }); w.Cause != "no-root" || !strings.Contains(w.Answer, "not known here") || !strings.Contains(w.Mend, "start the members of hq") {
		s.t.Errorf("why, of another: %+v", w)
	}
	for _, name := range []string{"hq", lost, ref} {
		if err := says(s.does("describe", name), "only what "+s.name+" knows itself: group hq has no root now"); err != nil {
			s.t.Error(err)
		}
	}
	sees(s.t, "the page says so", s.watching("feed=tree"), `"!limits":{"noRoot":"group hq has no root now`)
}
