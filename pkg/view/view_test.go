package view_test

import (
	"bytes"
	"flag"
	"maps"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

var now = time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC)

func before(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(now.Add(-d)) }

const (
	digestA = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	digestB = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

var tree = view.TreeOf(&adminv1.TreeResponse{AsOf: before(0), Groups: []*adminv1.TreeGroup{
	{Group: "hq", Root: "hq-a", Term: 3, State: "synced", Revision: 42, Carrier: "hq-a", LastContact: before(0), Labels: map[string]string{"tier": "hq"}, Members: []*adminv1.TreeMember{
		{Site: "hq-a", State: "synced", Registry: "https://harbor.hq.example.com", Revision: 42, LastContact: before(0), Version: "v0.1.0", RegistryType: "harbor"},
		{Site: "hq-w", State: "witness", Revision: 42, LastContact: before(2 * time.Second), RegistryType: "none"},
	}},
	{Group: "hq/guangdong", Parent: "hq", Tier: 1, Root: "gd-a", Term: 1, State: "degraded", Revision: 40, Lag: 2, LagSeconds: 75.5, Carrier: "gd-b", LastContact: before(time.Second), Reason: "gd-a: 503 from its registry", Members: []*adminv1.TreeMember{
		{Site: "gd-a", State: "degraded", Registry: "http://127.0.0.1:5001", Revision: 40, Pending: 2, Reason: "registry: 503 UNAVAILABLE: try later; next attempt in 12s", LastContact: before(time.Second)},
		{Site: "gd-b", State: "syncing", Revision: 40, BytesLeft: 3 << 29, Rate: 25 << 20, Pending: 1, LastContact: before(time.Second)},
	}},
	{Group: "hq/hunan", Parent: "hq", Tier: 1, State: "unreachable", Revision: 31, Lag: 11, LagSeconds: 100000, LastContact: before(27*time.Hour + 46*time.Minute), Reason: "no contact"},
	{Group: "hq/guangdong/shenzhen", Parent: "hq", Tier: 2, Root: "sz", State: "synced", Revision: 42, Members: []*adminv1.TreeMember{{Site: "sz", State: "synced", Revision: 42}}},
	{Group: "hq/guangdong/foshan", Parent: "hq/guangdong", Tier: 2, Root: "fs", State: "behind", Revision: 39, Lag: 3, Members: []*adminv1.TreeMember{{Site: "fs", State: "behind", Reason: "evil \x1b[2J\nreason"}}},
}})

var where = view.WhereOf(&adminv1.WhereResponse{Ref: "team/app:1.4", Revision: 42, Digest: digestB, AsOf: before(0), Sites: []*adminv1.SiteRef{
	{Site: "hq-a", Group: "hq", State: "delivered", Digest: digestB, Want: digestB, Since: before(90 * time.Minute)},
	{Site: "gd-a", Group: "hq/guangdong", State: "failed", Digest: digestA, Want: digestB, Reason: "413 DENIED: quota of 10 GiB is used up", Since: before(5 * time.Minute), NextAttempt: before(-30 * time.Second), Attempts: 4, BytesLeft: 1 << 20},
	{Site: "gd-b", Group: "hq/guangdong", State: "delivering", Want: digestB, BytesLeft: 3 << 30, Since: before(12 * time.Second)},
	{Site: "hn", Group: "hq/hunan", State: "unsubscribed"},
	{Site: "sz", Group: "hq/guangdong/shenzhen", State: "waiting", Digest: digestA, Want: digestB, Reason: "parent has not got it", NextAttempt: before(time.Second), Attempts: 1},
	{Site: "fs", Group: "hq/guangdong/foshan", State: "held", Held: digestB, Reason: "waits for a promotion; its content is here"},
	{Site: "zh", Group: "hq/guangdong/zhuhai", State: "held", Digest: digestA, Want: digestA, Held: digestB, Reason: "waits for a wave of rollout r1; its content is here"},
}})

var images = view.Images{SchemaVersion: 1, Images: []view.Image{
	view.ImageOf(&adminv1.ImagesResponse{Ref: "base/os:12", Digest: digestA, MediaType: "application/vnd.oci.image.index.v1+json", Size: 123456789, Revision: 1, PublishedAt: before(time.Hour), PublishedBy: "webhook", Origin: "hq-a", Referrers: 2}),
	view.ImageOf(&adminv1.ImagesResponse{Ref: "team/app:1.4", Revision: 42, PublishedBy: "alice", Origin: "hq-b", Deleted: true}),
}}

var event = view.EventOf(&adminv1.EventsResponse{Time: before(0), Type: "Warning", Reason: "DeliveryFailed", Site: "gd-a", Ref: "team/app:1.4", Message: "413 DENIED: quota <10 GiB> & more\x07", Count: 3, First: before(time.Hour)})

var members = view.MembersOf(&adminv1.MembersResponse{Group: "hq", Members: []*adminv1.MemberInfo{
	{Site: "hq-w", Id: "hq-w.77", Voter: true, RaftAddress: "10.0.0.3:7401", FabricAddress: "10.0.0.3:7400", State: "witness", RegistryType: "none"},
	{Site: "hq-a", Id: "hq-a.1f", Role: "root", Voter: true, RaftAddress: "10.0.0.1:7401", FabricAddress: "10.0.0.1:7400", State: "synced", RegistryType: "harbor"},
}})

var verified = func() *view.Verify {
	v := &view.Verify{SchemaVersion: 1}
	done := func(site, group string, d *adminv1.VerifyDone) *adminv1.VerifyResponse {
		return &adminv1.VerifyResponse{Site: site, Group: group, What: &adminv1.VerifyResponse_Done{Done: d}}
	}
	differs := func(site, group string, d *adminv1.Difference) *adminv1.VerifyResponse {
		return &adminv1.VerifyResponse{Site: site, Group: group, What: &adminv1.VerifyResponse_Difference{Difference: d}}
	}
	for _, m := range []*adminv1.VerifyResponse{
		differs("gd-a", "hq/guangdong", &adminv1.Difference{Kind: "catalog-behind", Reason: "its catalog is at revision 40, this one at 42"}),
		differs("gd-a", "hq/guangdong", &adminv1.Difference{Ref: "team/app:1.4", Kind: "missing-blob", Digest: digestA, Reason: "stat blob team/app: 404 Not Found\x07"}),
		done("gd-a", "hq/guangdong", &adminv1.VerifyDone{State: "different", Epoch: "e1", Revision: 40, View: "aa", Shown: "bb", Refs: 9, Manifests: 12, Blobs: 30, Bytes: 3 << 20, Differences: 2, Repaired: 1}),
		done("hq-w", "hq", &adminv1.VerifyDone{State: "witness", Epoch: "e1", Revision: 42, View: "aa"}),
		done("hq-a", "hq", &adminv1.VerifyDone{State: "equal", Epoch: "e1", Revision: 42, View: "aa", Shown: "aa", Refs: 9}),
		done("hn", "hq/hunan", &adminv1.VerifyDone{State: "unreachable", Reason: "hn is in group hq/hunan below"}),
		differs("cs-a", "hq/hunan/changsha", &adminv1.Difference{Kind: "unreadable", Reason: "the registry: 10.2.0.1:443: connection refused"}),
		done("cs-a", "hq/hunan/changsha", &adminv1.VerifyDone{State: "unknown", Reason: "the registry: 10.2.0.1:443: connection refused", Epoch: "e1", Revision: 42, View: "aa", Differences: 1}),
		differs("cs-b", "hq/hunan/changsha", &adminv1.Difference{Ref: "team/app:1.4", Kind: "missing-tag", Digest: digestA, Reason: "404 Not Found; its registry was changed there, and drift says accept", Accepted: true}),
		done("cs-b", "hq/hunan/changsha", &adminv1.VerifyDone{State: "accepted", Epoch: "e1", Revision: 42, View: "aa", Shown: "bb", Refs: 9, Manifests: 12, Blobs: 30, Differences: 1}),
	} {
		v.Add(m)
	}
	v.Sort()
	return v
}()

var doctor = func() *view.Doctor {
	d := &view.Doctor{SchemaVersion: 1}
	d.Add(&adminv1.DoctorResponse{Site: "hq-b", Group: "hq", Checks: []*adminv1.Check{{Name: "agent", State: "fail", Detail: "it can't be asked: connection refused", Mend: "start the agent of hq-b"}}})
	d.Add(&adminv1.DoctorResponse{Site: "hq-a", Group: "hq", Checks: []*adminv1.Check{
		{Name: "quorum", State: "warn", Detail: "two members with a vote\x1b[2J", Mend: "add a third member\n"},
		{Name: "disk", State: "ok", Detail: "/var/lib/fanoutd has 12 GiB left"},
	}})
	return d
}()

func diffOf(list bool) view.Diff {
	v := &view.Verify{}
	for _, site := range []string{"hq-a", "gd-a"} {
		shown := "aa"
		if list {
			shown += site
			v.Add(&adminv1.VerifyResponse{Site: site, What: &adminv1.VerifyResponse_Ref{Ref: &adminv1.VerifiedRef{Ref: "team/app:same", Want: digestA, Revision: 1, Shown: digestA}}})
			r := &adminv1.VerifiedRef{Ref: "team/app:1.4", Want: digestB, Revision: 42, Shown: digestB, Referrers: 1}
			if site == "gd-a" {
				r.Want, r.Revision, r.Shown, r.Referrers = digestA, 40, "", 0
			}
			v.Add(&adminv1.VerifyResponse{Site: site, What: &adminv1.VerifyResponse_Ref{Ref: r}})
		}
		v.Add(&adminv1.VerifyResponse{Site: site, What: &adminv1.VerifyResponse_Done{Done: &adminv1.VerifyDone{State: "equal", Revision: 42, View: "aa", Shown: shown}}})
	}
	return view.DiffOf(v.Sites[0], v.Sites[1])
}

// witnessDiff compares a site with a witness, whose catalog says that.
func witnessDiff(catalog string) view.Diff {
	v := &view.Verify{}
	for _, x := range []struct {
		site, state, view, shown, digest string
	}{{"gd-b", "equal", "aa", "cc", digestA}, {"gd-w", "witness", catalog, "", digestB}} {
		if catalog != "aa" {
			v.Add(&adminv1.VerifyResponse{Site: x.site, What: &adminv1.VerifyResponse_Ref{Ref: &adminv1.VerifiedRef{Ref: "team/app:1.4", Want: x.digest, Revision: 42, Shown: map[bool]string{true: digestA}[x.shown != ""]}}})
			v.Add(&adminv1.VerifyResponse{Site: x.site, What: &adminv1.VerifyResponse_Ref{Ref: &adminv1.VerifiedRef{Ref: "team/app:same", Want: digestA, Revision: 41, Shown: map[bool]string{true: digestA}[x.shown != ""]}}})
		}
		v.Add(&adminv1.VerifyResponse{Site: x.site, What: &adminv1.VerifyResponse_Done{Done: &adminv1.VerifyDone{State: x.state, Revision: 42, View: x.view, Shown: x.shown}}})
	}
	return view.DiffOf(v.Sites[0], v.Sites[1])
}

type document interface{ Text(view.Style) string }

func documents() map[string]document {
	sites := where.Sites
	all := map[string]document{
		"tree": tree, "where": where, "images": images, "event": event, "members": members,
		"publish":      view.PublishOf(&adminv1.PublishResponse{Ref: "team/app:1.4", Digest: digestB, Revision: 42, Copies: 1, Message: "only 1 registry exists"}, nil),
		"publish_wait": view.PublishOf(&adminv1.PublishResponse{Ref: "team/app:1.4", Digest: digestB, Revision: 42, Copies: 2}, &sites),
		"version": view.Version{SchemaVersion: 1, Client: view.ClientVersion{Version: "v0.1.0", Go: "go1.26.8", Platform: "linux/amd64"},
			Server: &view.ServerVersion{Version: "v0.1.0", Site: "hq-a", Group: "hq"}},
		"saved":    view.SavedCatalog{SchemaVersion: 1, File: "/backup/catalog", Epoch: "e1", Revision: 42, Records: 1},
		"restored": view.RestoredOf(&adminv1.RestoreCatalogResponse{Epoch: "e2", From: "e1", Revision: 42, Records: 17}),
		"verify":   verified,
		"doctor":   doctor,
		"why":      why, "why_away": whyAway,

		"tree_wide": view.Picture{Tree: troubled, Wide: true}, "tree_depth": view.Picture{Tree: troubled, Depth: 2}, "tree_fold": view.Picture{Tree: troubled, Fold: true},
		"tree_unhealthy": view.Picture{Tree: troubled, Unhealthy: true},
		"top":            top,
		"top_partly":     view.TopOf(&adminv1.TopResponse{AsOf: before(0), Absent: []*adminv1.Absent{{Group: "hq/gd", Reason: "not attached here"}}}),
		"equal_witness":  witnessDiff("aa"),
		"diff_witness":   witnessDiff("bb"),
		"top_idle":       view.TopOf(&adminv1.TopResponse{AsOf: before(0)}),
		"equal":          diffOf(false),
		"diff":           diffOf(true),
		"accepted":       view.AcceptedOf(&adminv1.AcceptEpochResponse{Epoch: "e9", Held: "e1", HeldRevision: 42}),
		"contexts":       view.Contexts{SchemaVersion: 1, Contexts: []view.Context{{Name: "lab", Server: "127.0.0.1:7400"}, {Name: "prod", Current: true, Server: "hq.example.com:7400", Cert: "/c", Key: "/k", CA: "/ca", TrustDomain: "example.com"}}},
	}
	maps.Copy(all, rolloutDocuments())
	maps.Copy(all, healingDocuments())
	maps.Copy(all, describeDocuments())
	return all
}

func TestGolden(t *testing.T) {
	for name, doc := range documents() {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			b.WriteString("== table\n" + doc.Text(view.Style{}))
			b.WriteString("== color\n" + strings.ReplaceAll(doc.Text(view.Style{Color: true}), "\x1b", "^"))
			for _, f := range []struct {
				head  string
				write func() error
			}{
				{"== json\n", func() error { return view.JSON(&b, doc, true) }},
				{"== json line\n", func() error { return view.JSON(&b, doc, false) }},
				{"== yaml\n", func() error { return view.YAML(&b, doc) }},
			} {
				b.WriteString(f.head)
				if err := f.write(); err != nil {
					t.Fatal(err)
				}
			}
			path := filepath.Join("testdata", name+".golden")
			if *rewrite {
				if err := os.MkdirAll("testdata", 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), b.String()); diff != "" {
				t.Errorf("not as in %s (-rewrite makes it anew):\n%s", path, diff)
			}
		})
	}
}

func TestText_IsSafe(t *testing.T) {
	for name, doc := range documents() {
		for _, r := range doc.Text(view.Style{}) {
			if r != '\n' && (r < 0x20 || r == 0x7f) {
				t.Errorf("%s has control character %q", name, r)
			}
		}
	}
}

func TestOdd_TimesAndNumbers(t *testing.T) {
	doc := view.TreeOf(&adminv1.TreeResponse{
		AsOf:   &timestamppb.Timestamp{Seconds: math.MaxInt64},
		Groups: []*adminv1.TreeGroup{{LagSeconds: math.NaN()}, {LagSeconds: math.Inf(1), LastContact: &timestamppb.Timestamp{}}, {Lag: math.MaxUint64, LagSeconds: math.MaxFloat64}},
	})
	var b bytes.Buffer
	if err := view.JSON(&b, doc, false); err != nil {
		t.Fatal(err)
	}
	if s := b.String(); strings.Contains(s, "asOf") || strings.Contains(s, "lastContact") || strings.Contains(s, "null") {
		t.Error(s)
	}
	_ = doc.Text(view.Style{})
}

func TestTree_ParentsInACircleAreShown(t *testing.T) {
	doc := view.TreeOf(&adminv1.TreeResponse{Groups: []*adminv1.TreeGroup{
		{Group: "hq/a", Parent: "hq/b"}, {Group: "hq/b", Parent: "hq/a"}, {Group: "hq/c", Parent: "hq/c"}, {Group: "hq/d", Parent: "gone"},
	}})
	text := doc.Text(view.Style{})
	for _, g := range []string{"hq/a", "hq/b", "hq/c", "hq/d"} {
		if strings.Count(text, "\n"+g)+strings.Count(text, "\n  "+g) != 1 {
			t.Errorf("%s is not shown once:\n%s", g, text)
		}
	}
}

func TestYAML_WordsThatLookLikeOthers(t *testing.T) {
	var b bytes.Buffer
	e := view.Event{SchemaVersion: 1, Type: "true", Reason: "null", Site: "012", Ref: "1e3", Message: "a: b # c\x7f\u2028\U0001F600", Count: 1}
	if err := view.YAML(&b, e); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`type: "true"`, `reason: "null"`, `site: "012"`, `ref: "1e3"`} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %s in %s", want, b.String())
		}
	}
}
