package integration

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/fanout-io/fanout/internal/browser"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

var webPictures = flag.String("web.pictures", "", "a folder for pictures of the web page; with it TestWebPage runs nine sites in place of three")

const (
	// follows is how soon the page must show what the agent knows.
	follows = 2 * time.Second
	// changes is how often that is tried: what counts is the middle one, since this machine may be busy with other things.
	changes = 5
)

// screens at which every page is looked at.
var screens = []struct {
	name string
	browser.View
}{
	{"wide", browser.View{Width: 1280, Height: 860}},
	{"narrow", browser.View{Width: 390, Height: 844, Dark: true, Language: "zh-CN"}},
}

// webLook looks at pages of one agent.
type webLook struct {
	t    *testing.T
	page *browser.Page
	name string
}

// at turns to a page, waits until it shows something, and audits it.
func (l webLook) at(hash, what, shown string) {
	l.t.Helper()
	l.page.Go(l.t, hash)
	l.page.Wait(l.t, patience, l.name+" at "+hash+": "+what, shown)
	l.audit(hash)
}

func (l webLook) audit(hash string) {
	l.t.Helper()
	for _, w := range l.page.Audit(l.t) {
		l.t.Errorf("%s at %s: %s", l.name, hash, w)
	}
	for _, w := range l.page.Wrong() {
		l.t.Errorf("%s at %s: %s", l.name, hash, w)
	}
}

// picture keeps what is seen, where pictures are wanted.
func (l webLook) picture(name string) {
	l.t.Helper()
	if *webPictures == "" {
		return
	}
	png := l.page.Screenshot(l.t)
	if len(png) > 150<<10 {
		l.t.Errorf("the picture %s has %d bytes", name, len(png))
	}
	if err := os.WriteFile(filepath.Join(*webPictures, "web-"+name+".png"), png, 0o644); err != nil {
		l.t.Fatal(err)
	}
}

// api reads a document of an agent's /api/v1.
func (s *site) api(path string, doc any) error {
	resp, err := http.Get("http://" + s.http + "/api/v1/" + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: status %d", path, resp.StatusCode)
	}
	return json.NewDecoder(resp.Body).Decode(doc)
}

// card is a group in the picture of the tree, says its label.
func card(path, says string) string {
	return fmt.Sprintf(`(document.querySelector('[data-path=%q]')?.getAttribute('aria-label') || '').includes(%q)`, path, says)
}

func reads(words ...string) string {
	b, _ := json.Marshal(words)
	return fmt.Sprintf(`%s.every((x) => document.querySelector('main').innerText.includes(x))`, b)
}

// webFabric is three sites, or where pictures are made, nine; the links from headquarters are as slow as the test wants.
func webFabric(t *testing.T) map[string]*site {
	specs := []spec{{name: "hq-a", group: "hq", counted: true}, {name: "gd-a", group: "hq/guangdong", extra: "labels: {tier: province}\n"}, {name: "sz-a", group: "hq/guangdong/shenzhen"}}
	if *webPictures != "" {
		specs = append(specs, spec{name: "hq-b", group: "hq", counted: true}, spec{name: "hq-c", group: "hq", counted: true}, spec{name: "hn-a", group: "hq/hunan", extra: "labels: {tier: province}\n"},
			spec{name: "fs-a", group: "hq/guangdong/foshan"}, spec{name: "cs-a", group: "hq/hunan/changsha"}, spec{name: "zz-a", group: "hq/hunan/zhuzhou"})
	}
	return start(t, specs...)
}

func pace(sites map[string]*site, limit rate.Limit) {
	for _, s := range sites {
		if s.link == nil {
			continue
		}
		if limit == rate.Inf {
			s.link.pace.Store(nil)
		} else {
			s.link.pace.Store(rate.NewLimiter(limit, 256<<10))
		}
	}
}

// TestWebPage looks at every page in Chromium while a cascade and a rollout run, at two widths, in both themes and languages: nothing goes wrong in the browser, everything can be read and reached, and
// the picture follows what the agent knows. Then headquarters is gone, and a province's own agent shows its subtree.
func TestWebPage(t *testing.T) {
	t.Parallel()
	b := browser.Start(t)
	sites := webFabric(t)
	hq, gd := sites["hq-a"], sites["gd-a"]
	push(t, hq, "base/os:12", image(t, 1<<18, 2))
	digest := push(t, hq, "shop/web:2.4.1", image(t, 1<<18, 3))
	for _, s := range sites {
		shows(t, s, "shop/web:2.4.1", digest)
	}
	var looks []webLook
	for _, v := range screens {
		looks = append(looks, webLook{t, b.Open(t, "http://"+hq.http+"/", v.View), v.name})
	}
	for _, l := range looks {
		l.page.Wait(t, patience, "the tree is drawn", fmt.Sprintf(`document.querySelectorAll('[role=treeitem]').length === %d`, map[bool]int{true: 3, false: 7}[*webPictures == ""]))
		l.audit("/")
	}
	followed(t, gd, hq, looks[0])

	// A cascade that takes its time, and a rollout that soaks and then waits for a person.
	pace(sites, 700<<10)
	newer := push(t, hq, "shop/web:2.5.0", image(t, 4<<20, 2))
	for _, l := range looks {
		l.at("/ref/shop/web:2.5.0", "it is on its way", `document.querySelectorAll('.cell').length > 1 && document.querySelector('.link.flows')`)
		l.at("/", "it is seen in the tree", `document.querySelector('.link.flows')`)
		l.picture("tree-" + l.name)
	}
	if *webPictures != "" {
		pace(sites, rate.Inf) // a picture of a rollout, and not of a link that is too thin for nine sites
		shows(t, sites["zz-a"], "shop/web:2.5.0", newer)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	started, err := hq.admin().StartRollout(ctx, &adminv1.StartRolloutRequest{Refs: []string{"shop/web:2.4.1"}, As: "stable", PlanName: "prod", Plan: []byte(`apiVersion: fanout/v1
kind: Plan
metadata: {name: prod}
spec:
  waves:
  - {name: canary, groups: [hq/guangdong/shenzhen], soak: 1s}
  - {name: provinces, selector: {matchLabels: {tier: province}}, soak: 12s}
  - {name: rest, groups: ['**'], gates: {before: [{approval: {}}]}}
`)})
	if err != nil {
		t.Fatal(err)
	}
	id := started.GetRollout().GetId()
	for _, l := range looks {
		l.at("/rollout/"+id, "the soak of the second wave runs", `document.querySelectorAll('.wave').length === 3 && document.querySelector('.wave:nth-child(2) .clock')`)
		l.picture("rollout-" + l.name)
	}
	first := browser.Value[string](t, looks[0].page, `document.querySelector('.clock').textContent`)
	looks[0].page.Wait(t, patience, "the clock runs", fmt.Sprintf(`document.querySelector('.clock')?.textContent !== %q`, first))
	for _, l := range looks {
		l.at("/rollouts", "the rollout is listed", reads("shop/web:stable"))
		l.at("/images", "the images are listed", reads("base/os:12", "shop/web:2.5.0"))
		l.at("/events", "events are listed", reads("shop/web:2.5.0")+` && document.querySelector('[title=Published]')`)
		l.at("/conflicts", "there is none", `document.querySelector('.calm-note')`)
		l.at("/site/gd-a", "the site's facts", reads("gd-a", "embedded"))
		l.at("/group/hq/guangdong", "the group's facts", reads("gd-a", "shenzhen"))
		l.at("/ref/no/such:1", "a ref that is not there", `document.querySelector('.callout')`)
		l.at("/nothing", "a page that is not there", `document.querySelector('main a')`)
		l.at("/rollout/"+id, "it waits for a person", reads("fanoutctl rollout approve "+id))
		l.at("/ref/shop/web:2.4.1", "it is everywhere", fmt.Sprintf(`document.querySelectorAll('.cell .good').length === %d`, len(sites)))
		l.picture("ref-" + l.name)
	}
	keyboard(t, looks[0])
	switches(t, looks[1])
	for _, l := range looks {
		l.page.Close()
	}

	// Headquarters is gone.
	pace(sites, rate.Inf)
	for name, s := range sites {
		if s.group == "hq" {
			t.Logf("%s is stopped", name)
			s.stop()
		}
	}
	for i, v := range screens {
		l := webLook{t, b.Open(t, "http://"+gd.http+"/", v.View), v.name + ", without headquarters"}
		l.page.Wait(t, patience, "the province shows its subtree", `document.querySelector('[data-path="hq/guangdong"]') && document.querySelector('[data-path="hq/guangdong/shenzhen"]') && document.querySelector('.info') && document.querySelector('.card.ghost')`)
		l.audit("/")
		if i == 0 {
			l.picture("province")
		}
		l.at("/site/sz-a", "a site below", reads("sz-a", "embedded"))
		l.at("/ref/shop/web:2.4.1", "its sites", fmt.Sprintf(`document.querySelectorAll('.cell').length === %d`, map[bool]int{true: 2, false: 3}[*webPictures == ""]))
		l.at("/rollouts", "headquarters alone knows", `document.querySelector('.callout')`)
		l.at("/conflicts", "headquarters alone knows", `document.querySelector('.callout')`)
		l.page.Close()
	}
}

// followed measures how soon the page shows what the agent that serves it knows: a group far below is frozen and thawed.
func followed(t *testing.T, changed, asked *site, l webLook) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c := changed.admin()
	var took []time.Duration
	for i := range changes {
		freeze := i%2 == 0
		if _, err := c.SetFreeze(ctx, &adminv1.SetFreezeRequest{Group: changed.group, Thaw: !freeze, Reason: "a try", Until: timestamppb.New(time.Now().Add(time.Hour))}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the agent knows", func() error {
			var doc struct {
				Groups []struct {
					Group  string
					Freeze *struct{}
				}
			}
			if err := asked.api("tree?group="+url.QueryEscape(changed.group), &doc); err != nil {
				return err
			}
			if len(doc.Groups) == 0 || (doc.Groups[0].Freeze != nil) != freeze {
				return errors.New("not yet")
			}
			return nil
		})
		shown := card(changed.group, "frozen")
		if !freeze {
			shown = "!" + shown
		}
		took = append(took, l.page.Wait(t, patience, "the picture follows", shown))
	}
	if _, err := c.SetFreeze(ctx, &adminv1.SetFreezeRequest{Thaw: true}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(took)
	t.Logf("the picture followed after %s", took)
	if took[len(took)/2] > follows {
		t.Errorf("the picture follows after %s, mostly; want %s", took, follows)
	}
}

// keyboard walks the picture without a mouse.
func keyboard(t *testing.T, l webLook) {
	t.Helper()
	l.page.Go(t, "/")
	l.page.Wait(t, patience, "the tree", `document.querySelector('[data-path="hq"]')`)
	l.page.Eval(t, `void document.querySelector('[data-path="hq"]').focus()`)
	focused := func(path string) string {
		return fmt.Sprintf(`document.activeElement.dataset.path === %q`, path)
	}
	l.page.Key(t, "\u0303") // the right arrow
	l.page.Wait(t, patience, "right goes to the first child", `document.activeElement.getAttribute('aria-level') === '2'`)
	l.page.Key(t, "\u0302") // the left one
	l.page.Wait(t, patience, "left folds nothing here but goes up", focused("hq")+` || document.activeElement.getAttribute('aria-expanded') === 'false'`)
	l.page.Eval(t, `void document.querySelector('[data-path="hq"]').focus()`)
	l.page.Key(t, " ")
	l.page.Wait(t, patience, "space folds", `document.querySelectorAll('[role=treeitem]').length === 1 && `+focused("hq"))
	l.page.Key(t, "/")
	l.page.Wait(t, patience, "the slash goes to the search", `document.activeElement.id === 'tree-search'`)
	l.page.Key(t, "shen")
	l.page.Wait(t, patience, "what is looked for is unfolded", `document.querySelector('[data-path="hq/guangdong/shenzhen"]') && document.querySelector('.card.dim')`)
	l.page.Key(t, "\r")
	l.page.Wait(t, patience, "Enter goes to what was found", focused("hq/guangdong/shenzhen"))
	l.page.Key(t, "\r")
	l.page.Wait(t, patience, "and opens it", `location.hash === '#/group/hq/guangdong/shenzhen'`)
	l.audit("by keyboard")
}

// switches changes language and theme, which the browser remembers.
func switches(t *testing.T, l webLook) {
	t.Helper()
	l.page.Go(t, "/")
	l.page.Wait(t, patience, "Chinese, as the browser asks for", `document.documentElement.lang === 'zh-CN' && document.querySelector('h1')?.textContent === '树'`)
	ground := browser.Value[string](t, l.page, `getComputedStyle(document.body).backgroundColor`)
	l.page.Click(t, `[data-do="theme"]`)
	l.page.Wait(t, patience, "light", fmt.Sprintf(`getComputedStyle(document.body).backgroundColor !== %q`, ground))
	l.audit("in the light")
	l.page.Click(t, `[data-do="language"]`)
	l.page.Wait(t, patience, "English", `document.documentElement.lang === 'en' && document.querySelector('h1')?.textContent === 'Tree'`)
	l.audit("in English")
	l.page.Eval(t, `void (window.old = true, location.reload())`)
	l.page.Wait(t, patience, "as it was left", `!window.old && document.querySelector('h1')?.textContent === 'Tree' && document.documentElement.dataset.theme === 'light'`)
	l.audit("loaded again")
}
