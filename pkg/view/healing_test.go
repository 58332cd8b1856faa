package view_test

import (
	"strings"
	"time"

	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

var digestC = "sha256:" + strings.Repeat("c", 64)

func healingDocuments() map[string]document {
	lost := &adminv1.ConflictSide{Digest: digestA, Site: "hq-b", PushedAt: before(time.Hour), PushedBy: "robot$ci"}
	won := &adminv1.ConflictSide{Digest: digestB, Site: "hq-a", PushedAt: before(time.Hour), PublishedBy: "webhook", Revision: 40}
	later := &adminv1.ConflictSide{Digest: digestC, Site: "hq-b", PushedAt: before(time.Minute), PublishedBy: "webhook (alice)", PushedBy: "alice", Revision: 42}
	conflict := func(ref string, loser, winner, now *adminv1.ConflictSide) *adminv1.ConflictInfo {
		return &adminv1.ConflictInfo{Ref: ref, Loser: loser, Winner: winner, Now: now, NotedAt: before(time.Hour), Reason: "pushed differently at two registries"}
	}
	sites := view.SitesOf([]*adminv1.SiteRef{{Site: "hq-a", Group: "hq", State: "delivered"}, {Site: "gd-a", Group: "hq/guangdong", State: "held", Digest: digestA}, {Site: "hn", State: "unsubscribed"}})
	gone := view.UnpublishOf(&adminv1.UnpublishResponse{Ref: "team/app:1.4", Digest: digestA, Revision: 43, UndoUntil: before(-7 * 24 * time.Hour), DeletedBy: "alice", DeletedAt: before(0)})
	waited := gone
	waited.Sites, waited.AsOf = &sites, &now
	nobody := &adminv1.ConflictSide{Digest: digestC, Site: "hq-c"}
	forgotten := &adminv1.ForgetGroupResponse{Groups: []string{"hq/hunan", "hq/hunan/changsha"}, Sites: []string{"cs-a", "hn-a", "hn-b"}, Rollouts: []string{"r1"}}
	return map[string]document{
		"forgotten":      view.ForgottenOf(forgotten, false),
		"forget_would":   view.ForgottenOf(forgotten, true),
		"unpublish":      gone,
		"unpublish_wait": waited,
		"unpublish_again": view.UnpublishOf(&adminv1.UnpublishResponse{
			Ref: "team/app:1.4", Digest: digestA, Revision: 43, UndoUntil: before(-6 * 24 * time.Hour), Already: true, DeletedBy: "alice", DeletedAt: before(24 * time.Hour),
		}),
		"conflicts": view.ConflictsOf(&adminv1.ConflictsResponse{Conflicts: []*adminv1.ConflictInfo{
			conflict("team/app:1.4", lost, won, won),
			conflict("team/deleted:1", lost, won, &adminv1.ConflictSide{PublishedBy: "alice", Revision: 43}),
			conflict("team/superseded:1", lost, won, later),
			conflict("team/three:1", lost, won, won), conflict("team/three:1", nobody, won, won),
		}}),
	}
}
