package agent

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/store"
)

func TestReceipts(t *testing.T) {
	var r receipts
	ref := catalog.Ref{Repository: "team/app", Tag: "1"}
	r.note(ref, "sha256:old", map[string]int64{"gd-a": 1000})
	r.note(ref, "sha256:a", map[string]int64{"hq-a": 10}) // another digest: what came for the old one does not count
	r.note(ref, "sha256:a", map[string]int64{"hq-b": 20, "hq-c": 0})
	if got := r.take(ref, "sha256:b"); got != nil {
		t.Errorf("of another digest: %+v", got)
	}
	want := &store.Receipt{Digest: "sha256:a", Bytes: 30, Sources: []string{"hq-b", "hq-a"}}
	if d := cmp.Diff(want, r.take(ref, "sha256:a"), cmpopts.IgnoreFields(store.Receipt{}, "At")); d != "" {
		t.Error(d)
	}
	if got := r.take(ref, "sha256:a"); got != nil {
		t.Errorf("again: %+v", got)
	}
}

func TestLaterReceipt(t *testing.T) {
	big, small := &store.Receipt{Digest: "a", Bytes: 9}, &store.Receipt{Digest: "a", Bytes: 1}
	for name, tt := range map[string]struct{ old, later, want *store.Receipt }{
		"nothing came now":      {big, nil, big},
		"a signature came":      {big, small, big},
		"it came once more":     {small, big, big},
		"the first":             {nil, small, small},
		"of another content":    {&store.Receipt{Digest: "b", Bytes: 99}, small, small},
		"adopted after another": {&store.Receipt{Digest: "b", Bytes: 99}, nil, nil},
	} {
		if got := laterReceipt(tt.old, tt.later, "a"); got != tt.want {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
