package web_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/fanout-io/fanout/internal/browser"
	"github.com/fanout-io/fanout/pkg/web"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

var pictures = flag.String("web.pictures", "", "a folder for pictures of the pages that TestPages looks at")

// troubled is a fabric of 400 groups on a day on which everything happens.
func troubled() *fabric {
	f := wideFabric(400)
	f.rollouts = append(f.rollouts, aRollout())
	waiting := aRollout()
	waiting.Id, waiting.Phase, waiting.Wave, waiting.Reason = "waits", "awaiting-approval", 2, "wave rest waits for an approval"
	waiting.Waves[1].Phase, waiting.Waves[2].Phase = "succeeded", "awaiting-approval"
	f.rollouts = append(f.rollouts, waiting)
	sha := func(s string) string { return "sha256:" + strings.Repeat(s, 16) }
	f.conflicts = []*adminv1.ConflictInfo{{
		Ref: "shop/web:2.4.1", Reason: "pushed at two registries within two seconds", NotedAt: timestamppb.Now(),
		Winner: &adminv1.ConflictSide{Digest: sha("3f9a"), Site: "hq-a", PushedAt: timestamppb.Now(), PublishedBy: "webhook"}, Loser: &adminv1.ConflictSide{Digest: sha("77be"), Site: "hq-b", PushedAt: timestamppb.Now()},
	}}
	f.deletions = []*adminv1.DeletionInfo{{Ref: "old/app:1", Site: "hq-a", State: "held", NotedAt: timestamppb.Now(), Digest: sha("11ab")}}
	f.images = []*adminv1.ImagesResponse{
		{Ref: "shop/web:2.4.1", Digest: sha("3f9a"), Size: 734 << 20, Revision: 812, PublishedAt: timestamppb.Now(), PublishedBy: "webhook", Origin: "hq-a", Referrers: 2},
		{Ref: "base/<img src=x onerror=alert(1)>:1", Digest: sha("77be"), Revision: 2, Deleted: true},
	}
	f.events = []*adminv1.EventsResponse{
		{Time: timestamppb.Now(), First: timestamppb.Now(), Type: "Normal", Reason: "Published", Ref: "shop/web:2.4.1", Message: "as revision 812", Count: 1, Site: "hq-a"},
		{Time: timestamppb.Now(), First: timestamppb.Now(), Type: "Warning", Reason: "DeliveryFailed", Ref: "shop/web:2.4.1", Message: "registry answered 413 <script>alert(1)</script>", Count: 4, Site: "hq-a"},
	}
	f.pending["c04-05"] = &adminv1.PendingResponse{Site: "c04-05", Refs: []*adminv1.PendingAtSite{{Ref: "shop/web:2.4.1", At: &adminv1.SiteRef{
		State: "failed", Reason: "registry answered 413: quota of project shop: 3.1 of 3.0 GiB", Attempts: 4, NextAttempt: timestamppb.New(time.Now().Add(time.Minute)), Since: timestamppb.Now(), BytesLeft: 1 << 20,
	}, Trouble: &treev1.Trouble{Cause: "quota", Mend: "raise the quota of project shop <b>"}}}}
	f.why["c04-05 shop/web:2.4.1"] = &adminv1.WhyResponse{
		Ref: "shop/web:2.4.1", Site: "c04-05", Digest: sha("3f9a"), Revision: 812, State: "failed", Cause: "quota", Answer: "shop/web:2.4.1 is not at c04-05: the quota of project shop is used up.", Mend: "raise the quota of project shop <b>",
		Notes: []string{"pushed otherwise at hq-b, where it lost"},
		Hops: []*adminv1.WhyHop{
			{Group: "hq", Root: "hq-a", State: "delivered", Revision: 812, Want: 812, Live: true, Receipt: &adminv1.Receipt{At: timestamppb.Now(), Bytes: 7 << 20, Sources: []string{"hq-b"}}},
			{Group: "hq/province-04", Root: "p04", Carrier: "p04b", Parent: "hq", State: "delivering", Revision: 800, Want: 812, LastContact: timestamppb.Now(), Link: "idle for 4 s", Away: "it hangs", Blob: &treev1.BlobProgress{Digest: sha("77be"), Size: 9 << 20, Have: 3 << 20, Source: "hq-a", Rate: 5 << 20}, BytesLeft: 6 << 20},
			{Group: "hq/province-04/city-05", Site: "c04-05", DetachedSince: timestamppb.Now(), State: "failed", Revision: 812, Want: 812, Live: true, Attempts: 4, NextAttempt: timestamppb.Now(), Reason: "registry answered 413", Trouble: &treev1.Trouble{Cause: "quota", Summary: "the quota of project shop is used up: 3.1 of 3.0 GiB", Mend: "raise the quota of project shop <b>"}},
		},
	}
	for _, g := range f.tree.GetGroups() {
		for _, m := range g.GetMembers() {
			if m.GetSite() == "c04-05" {
				m.Disk, m.CertificateExpires = &treev1.Disk{Free: 3 << 30, Total: 8 << 30}, timestamppb.New(time.Date(2031, 5, 4, 3, 2, 1, 0, time.UTC))
			}
		}
	}
	return f
}

// TestPages looks at the page in Chromium, which is started once.
func TestPages(t *testing.T) {
	b := browser.Start(t)
	t.Run("Every", func(t *testing.T) { everyPage(t, b) })
	t.Run("AsItIs", func(t *testing.T) { asItIs(t, b) })
	t.Run("Search", func(t *testing.T) { search(t, b) })
	t.Run("Reconnect", func(t *testing.T) { reconnect(t, b) })
}

// everyPage looks at all pages of a wide fabric with troubles: nothing goes wrong, and everything can be read. What stands in names is shown as it stands.
func everyPage(t *testing.T, b *browser.Browser) {
	srv := serve(t, web.Config{Fabric: troubled()})
	for _, v := range []struct {
		name string
		browser.View
	}{
		{"wide", browser.View{Width: 1280, Height: 900}}, {"narrow", browser.View{Width: 390, Height: 844, Dark: true, Language: "zh-CN"}},
	} {
		p := b.Open(t, srv.URL+"/", v.View)
		for _, at := range []struct{ name, hash, shown string }{
			{"tree", "/", `document.querySelectorAll('.card').length === 32`},
			{"group", "/group/hq/province-04", `document.querySelectorAll('tbody tr').length > 10`},
			{"site", "/site/c04-05", `['3.1 of 3.0 GiB', 'raise the quota of project shop <b>', '3.0 GiB', '8.0 GiB', '2031'].every((x) => document.querySelector('main').innerText.replace(/\s/g, ' ').includes(x)) && document.querySelector('.more').hash === '#/why/c04-05/shop/web:2.4.1'`},
			{"why", "/why/c04-05/shop/web:2.4.1", `['quota of project shop is used up: 3.1 of 3.0 GiB', 'raise the quota of project shop <b>', '3.0 MiB', '9.0 MiB', '6.0 MiB', 'it hangs', 'idle for 4 s', 'hq-b', 'registry answered 413', 'pushed otherwise'].every((x) => document.querySelector('main').innerText.replace(/\s/g, ' ').includes(x)) && document.querySelectorAll('.hops > li').length === 3`},
			{"ref", "/ref/shop/web:2.4.1", `document.querySelectorAll('.cell').length === 432`},
			{"images", "/images", `document.querySelector('main').innerText.includes('<img src=x onerror=alert(1)>')`},
			{"rollouts", "/rollouts", `document.querySelectorAll('.item').length === 2`},
			{"rollout", "/rollout/k3x9q2mzpa", `document.querySelector('.clock')`},
			{"waits", "/rollout/waits", `document.querySelector('.command')`},
			{"conflicts", "/conflicts", `document.querySelectorAll('.item').length === 2`},
			{"events", "/events", `document.querySelector('main').innerText.includes('<script>alert(1)</script>')`},
		} {
			p.Go(t, at.hash)
			p.Wait(t, patience, at.name, at.shown)
			if chinese := "该项目的配额已用完"; at.name == "why" || at.name == "site" {
				p.Wait(t, patience, "the cause in the language of the page", fmt.Sprintf(`document.querySelector('main').innerText.includes(%q) === %v`, chinese, v.Language != ""))
			}
			for _, w := range append(p.Audit(t), p.Wrong()...) {
				t.Errorf("%s, %s: %s", at.name, v.name, w)
			}
			if *pictures != "" {
				if err := os.WriteFile(filepath.Join(*pictures, fmt.Sprintf("web-400-%s-%s.png", at.name, v.name)), p.Screenshot(t), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		p.Close()
	}
}

// asItIs: what the page makes of a group that answers while a member does not, of contact that is now, of a lag without revisions, of a blob that was asked for just now, and of events in Chinese.
func asItIs(t *testing.T, b *browser.Browser) {
	ago := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(time.Now().Add(-d)) }
	f := newFabric()
	late := member("gd-b", "degraded")
	late.LagSeconds, late.LastContact = 77, ago(40*time.Second)
	gd := group("hq/gd", late, member("gd-a", "unreachable"))
	gd.Answers, gd.LagSeconds, gd.LastContact = true, 77, ago(40*time.Second)
	hn := group("hq/hn", member("hn-a", "unreachable"))
	hn.LastContact = ago(40 * time.Second)
	hn.Members[0].LastContact = ago(40 * time.Second)
	hq := group("hq", member("hq-a", "synced"))
	hq.Answers = true
	f.tree.Groups = []*adminv1.TreeGroup{hq, gd, hn}
	f.events = []*adminv1.EventsResponse{{Time: timestamppb.Now(), First: timestamppb.Now(), Type: "Normal", Reason: "Published", Ref: "shop/web:1", Message: "as revision 812", Count: 1}, {Time: timestamppb.Now(), First: timestamppb.Now(), Reason: "NewWord", Message: "m", Count: 1}}
	asked := func(site string, since time.Duration) {
		f.why[site+" shop/web:1"] = &adminv1.WhyResponse{Ref: "shop/web:1", Site: site, Answer: "it is on its way", Hops: []*adminv1.WhyHop{{Group: "hq/gd", Site: site, State: "delivering", Live: true, Blob: &treev1.BlobProgress{Digest: "sha256:77be", Size: 9 << 20, Source: "hq-a", Since: ago(since)}}}}
	}
	asked("gd-a", -time.Hour) // the test may be slow
	asked("gd-b", 6*time.Second)
	srv := serve(t, web.Config{Fabric: f, Tick: 50 * time.Millisecond, Retry: 50 * time.Millisecond})
	says := func(yes bool, words ...string) string {
		q := make([]string, 0, len(words))
		for _, w := range words {
			q = append(q, fmt.Sprintf(`document.querySelector('main').innerText.replace(/\s/g, ' ').includes(%q) === %v`, w, yes))
		}
		return strings.Join(q, " && ")
	}
	p := b.Open(t, srv.URL+"/", browser.View{Width: 1280, Height: 900})
	p.Wait(t, patience, "one link of two is cut, and the other's group says why it is not well", `document.querySelectorAll('.link').length === 2 && document.querySelectorAll('.link.cut').length === 1 && document.querySelector('[data-path="hq/gd"]').getAttribute('aria-label').includes('a member is unreachable')`)
	for _, at := range []struct{ hash, shown string }{
		{"/group/hq/gd", says(true, "Its root gd-b answers", "Attached to", "To do: start the agent of gd-a, or mend the network to it", "just now", "0 revisions, 1 min 17 s") + " && " + says(false, "s ago")},
		{"/group/hq/hn", says(true, "s ago", "none", "Was attached to", "To do: start the agent of hn-a, or mend the network from hn-a to hq") + " && " + says(false, "just now", "answers")},
		{"/site/gd-b", says(true, "just now", "0 revisions, 1 min 17 s")},
		{"/site/hn-a", says(true, "s ago", "To do: start the agent of hn-a, or mend the network to it") + " && " + says(false, "just now")},
		{"/why/gd-a/shop/web:1", says(true, "asked for just now")},
		{"/why/gd-b/shop/web:1", says(true, "nothing comes")},
		{"/events", says(true, "Published")},
	} {
		p.Go(t, at.hash)
		p.Wait(t, patience, at.hash, at.shown)
	}
	p.Close()
	p = b.Open(t, srv.URL+"/", browser.View{Width: 1280, Height: 900, Language: "zh-CN"})
	for hash, shown := range map[string]string{"/group/hq/hn": "处理办法：启动 hn-a 的代理，或修复从 hn-a 到 hq 的网络", "/site/hn-a": "处理办法：启动 hn-a 的代理，或修复到它的网络"} {
		p.Go(t, hash)
		p.Wait(t, patience, hash+" in Chinese", says(true, shown))
	}
	p.Go(t, "/events")
	p.Wait(t, patience, "events in Chinese, and a word that is new as it came", says(true, "已发布", "NewWord")+` && document.querySelector('[title=Published]')`)
	for _, w := range append(p.Audit(t), p.Wrong()...) {
		t.Error(w)
	}
	p.Close()
}

// search: what is looked for is unfolded and all else pales; a state is looked for in the same way; all can be unfolded.
func search(t *testing.T, b *browser.Browser) {
	srv := serve(t, web.Config{Fabric: wideFabric(400)})
	p := b.Open(t, srv.URL+"/", browser.View{Width: 1280, Height: 900})
	p.Wait(t, patience, "the tree", `document.querySelectorAll('.card').length === 32`)
	p.Click(t, "#tree-search")
	p.Key(t, "c09-02")
	p.Wait(t, patience, "the one province is unfolded", `document.querySelectorAll('.card').length === 44 && document.querySelectorAll('.card:not(.dim)').length === 1`)
	p.Eval(t, `(() => { const s = document.querySelector('#tree-search'); s.value = ''; s.dispatchEvent(new Event('input')); })()`)
	p.Wait(t, patience, "folded again", `document.querySelectorAll('.card').length === 32 && !document.querySelector('.dim')`)
	p.Click(t, ".chip:nth-child(2)") // degraded
	p.Wait(t, patience, "the degraded one", `document.querySelectorAll('.card:not(.dim)').length === 1 && document.querySelector('.card:not(.dim)').dataset.path === 'hq/province-04/city-05'`)
	p.Click(t, ".chip:nth-child(2)")
	p.Click(t, ".zooming button:last-child")
	p.Wait(t, patience, "all", `document.querySelectorAll('.card').length === 400`)
	if w := append(p.Audit(t), p.Wrong()...); len(w) > 0 {
		t.Errorf("%q", w)
	}
	p.Click(t, ".zooming button:nth-last-child(2)")
	p.Wait(t, patience, "the healthy are folded, the others not", `document.querySelector('[data-path="hq/province-04/city-05"]') && !document.querySelector('[data-path="hq/province-05/city-05"]')`)
}

// reconnect: a page whose stream breaks keeps what it shows, and goes on by itself.
func reconnect(t *testing.T, b *browser.Browser) {
	f := wideFabric(40)
	srv := serve(t, web.Config{Fabric: f, Tick: 50 * time.Millisecond})
	p := b.Open(t, srv.URL+"/", browser.View{Width: 1280, Height: 900})
	p.Wait(t, patience, "the tree", `document.querySelectorAll('.card').length > 30`)
	srv.CloseClientConnections()
	f.change(func() { f.tree.Groups[0] = group("hq", member("hq-a", "conflict")) })
	p.Wait(t, patience, "it goes on", `document.querySelector('[data-path="hq"]').getAttribute('aria-label').includes('conflict') && document.querySelector('.status .good')`)
}
