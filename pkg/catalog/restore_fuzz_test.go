package catalog_test

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/fanout-io/fanout/pkg/catalog"
	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"
)

// items cuts a snapshot into its items, and says how many bytes of data they are.
func items(data []byte) (n uint64, size int) {
	for size < len(data) {
		length, k := protowire.ConsumeVarint(data[size:])
		if k < 0 || length > uint64(len(data)-size-k) {
			break
		}
		n, size = n+1, size+k+int(length)
	}
	return n, size
}

// trailed puts a right trailer after items.
func trailed(t testing.TB, data []byte) *bytes.Buffer {
	t.Helper()
	n, size := items(data)
	sum := sha256.Sum256(data[:size])
	buf := bytes.NewBuffer(bytes.Clone(data[:size]))
	trailer := &catalogv1.SnapshotItem{Kind: &catalogv1.SnapshotItem_Trailer{Trailer: &catalogv1.SnapshotTrailer{Items: n, Sha256: sum[:]}}}
	if _, err := protodelim.MarshalTo(buf, trailer); err != nil {
		t.Fatal(err)
	}
	return buf
}

// FuzzRestoreItems puts a right trailer after whatever items there are, so that their content is looked at, too, and not their sum alone.
func FuzzRestoreItems(f *testing.F) {
	for _, m := range []*catalog.Machine{populated(f), promoting(f), catalog.New()} {
		data := snapshotBytes(f, m.Snapshot())
		last := 0
		for rest := data; ; { // all but the trailer
			length, k := protowire.ConsumeVarint(rest)
			if next := k + int(length); next < len(rest) {
				rest, last = rest[next:], last+next
				continue
			}
			break
		}
		if _, err := catalog.Restore(trailed(f, data[:last])); err != nil {
			f.Fatal(err)
		}
		f.Add(data[:last])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := catalog.Restore(trailed(t, data))
		if err != nil {
			return
		}
		again, err := catalog.Restore(bytes.NewReader(snapshotBytes(t, m.Snapshot())))
		if err != nil {
			t.Fatalf("what was restored can't be written and read: %v", err)
		}
		if !bytes.Equal(snapshotBytes(t, again.Snapshot()), snapshotBytes(t, m.Snapshot())) {
			t.Fatal("restored twice, it differs")
		}
		m.Apply(foundCommand())
		for _, r := range m.Snapshot().Rollouts() { // whatever a snapshot holds, it can be gone on with
			for _, c := range []*catalogv1.Change{
				{Kind: &catalogv1.Change_ObserveRollout{ObserveRollout: observeWell(r)}},
				{Kind: &catalogv1.Change_SteerRollout{SteerRollout: &catalogv1.SteerRollout{Id: r.Id, Verb: "rollback"}}},
			} {
				m.Apply(&catalogv1.Command{Changes: []*catalogv1.Change{c}})
			}
		}
		if _, err := catalog.Restore(bytes.NewReader(snapshotBytes(t, m.Snapshot()))); err != nil {
			t.Fatalf("gone on with, it can't be written and read: %v", err)
		}
	})
}
