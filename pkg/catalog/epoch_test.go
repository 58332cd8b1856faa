package catalog_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/fanout-io/fanout/pkg/catalog"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

func TestSnapshot_EpochOf(t *testing.T) {
	hq := populated(t).Snapshot()
	rec, _ := hq.Get(splitRef("app:v2"))
	later := proto.CloneOf(rec)
	later.Revision += 100
	other := proto.CloneOf(rec)
	other.Sum[0]++
	at := hq.View(scopeOf("**")).Position()
	child := catalog.New()
	var all []*catalogv1.Record
	for r := range hq.Since(0) {
		all = append(all, r)
	}
	child.Apply(&catalogv1.Command{Changes: []*catalogv1.Change{{Kind: &catalogv1.Change_Import{Import: &catalogv1.Import{Records: all, Position: at}}}}})
	below := child.Snapshot()
	for _, c := range []struct {
		name string
		snap *catalog.Snapshot
		rec  *catalogv1.Record
		want string
	}{
		{"held at headquarters", hq, rec, at.Epoch},
		{"newer than what is seen at headquarters", hq, later, at.Epoch},
		{"held below", below, rec, at.Epoch},
		{"newer than what is held below", below, later, ""},
		{"of another history", below, other, ""},
		{"nothing held", catalog.New().Snapshot(), rec, ""},
	} {
		if got := c.snap.EpochOf(c.rec); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
