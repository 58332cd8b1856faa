package view_test

import (
	"strings"
	"time"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/view"
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
	nobody := &adminv1.ConflictSide{Digest: digestC, Site: "hq-c"}
	return map[string]document{
		"conflicts": view.ConflictsOf(&adminv1.ConflictsResponse{Conflicts: []*adminv1.ConflictInfo{
			conflict("team/app:1.4", lost, won, won),
			conflict("team/deleted:1", lost, won, &adminv1.ConflictSide{PublishedBy: "alice", Revision: 43}),
			conflict("team/superseded:1", lost, won, later),
			conflict("team/three:1", lost, won, won), conflict("team/three:1", nobody, won, won),
		}}),
	}
}
