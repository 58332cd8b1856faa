package store_test

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/fanout-io/fanout/pkg/store"
	"github.com/fanout-io/fanout/pkg/store/storetest"
	"github.com/google/go-cmp/cmp"
	bolt "go.etcd.io/bbolt"
)

// openIn opens dir in a boot of the machine; empty: in one that has no name.
func openIn(t testing.TB, boot, dir string) *store.Store {
	t.Helper()
	return open(t, store.InBoot(store.Config{Dir: dir, CheckpointBytes: 2 * piece}, boot))
}

// TestBoot_Checkpoint: a checkpoint counts in the boot that put it, and in no other, however the store was left.
func TestBoot_Checkpoint(t *testing.T) {
	for _, c := range []struct {
		name, first, then string
		clean             bool
		hashed, readBack  int64
	}{
		{"stopped, same boot", "a", "a", true, 5 * piece, piece},
		{"killed, same boot", "a", "a", false, 4 * piece, 2 * piece},
		{"stopped, next boot", "a", "b", true, 0, 6 * piece},
		{"killed, next boot", "a", "b", false, 0, 6 * piece},
		{"stopped, boots unknown", "", "", true, 0, 6 * piece},
		{"killed, boots unknown", "", "", false, 0, 6 * piece},
		{"boot known afterwards", "", "a", true, 0, 6 * piece},
		{"boot no longer known", "a", "", true, 0, 6 * piece},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			s := openIn(t, c.first, dir)
			data, _ := storetest.Content(1, 8*piece)
			writePieces(t, ingest(t, s, data), data, 0, 1, 2, 3, 4, 6)
			if c.clean {
				_ = s.Close()
			} else {
				dir = clone(t, dir)
			}
			s = openIn(t, c.then, dir)
			in := ingest(t, s, data)
			if got := s.Spool().Counters().ReadBackBytes; in.Status().Hashed != c.hashed || got != c.readBack {
				t.Fatalf("hashed %d, read back %d; want %d, %d", in.Status().Hashed, got, c.hashed, c.readBack)
			}
			want := []store.Range{{Off: 5 * piece, Len: piece}, {Off: 7 * piece, Len: piece}}
			if got := in.Missing(); !cmp.Equal(got, want) {
				t.Fatal(cmp.Diff(want, got))
			}
			_ = in.Close()
			finish(t, s, data)
		})
	}
}

// TestBoot_CheckpointOfBefore: what the boot before checkpointed stays worthless in this one also when nobody touched it.
func TestBoot_CheckpointOfBefore(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, "a", dir)
	data, d := storetest.Content(1, 8*piece)
	writePieces(t, ingest(t, s, data), data, 0, 1, 2, 3, 4, 5, 6)
	_ = s.Close()
	_ = openIn(t, "b", dir).Close()
	corrupt(t, dataPath(dir, d), piece, bytes.Repeat([]byte{0}, int(piece)))
	s = openIn(t, "b", dir)
	in := ingest(t, s, data)
	want := []store.Range{{Off: piece, Len: piece}, {Off: 7 * piece, Len: piece}}
	if got := in.Missing(); !cmp.Equal(got, want) {
		t.Fatal(cmp.Diff(want, got))
	}
	_ = in.Close()
	finish(t, s, data)
}

// TestBoot_CacheReplaced: checkpoints go with a cache.db that is damaged while the store runs, and that costs only reading.
func TestBoot_CacheReplaced(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, "a", dir)
	data, _ := storetest.Content(1, 8*piece)
	in := ingest(t, s, data)
	writePieces(t, in, data, 0, 1, 2, 3)
	fillFile(t, filepath.Join(dir, "cache.db"), 0, 0x5a)
	writePieces(t, in, data, 5)
	if _, err := s.HasManifest(storetest.Digest(data)); err != nil { // meets the damage
		t.Fatal(err)
	}
	killed := clone(t, dir)
	s = openIn(t, "a", killed)
	in = ingest(t, s, data)
	if st := in.Status(); st.Hashed != 0 || st.Received != 5*piece {
		t.Fatalf("Status = %+v", st)
	}
	writePieces(t, in, data, 4) // and checkpoints are put again
	killed = clone(t, killed)
	s = openIn(t, "a", killed)
	in = ingest(t, s, data)
	if st := in.Status(); st.Hashed != 6*piece || st.Received != 6*piece {
		t.Fatalf("Status = %+v", st)
	}
	_ = in.Close()
	finish(t, s, data)
}

// TestUpgrade_Checkpoints: a directory whose meta.db has checkpoints loses those and nothing else.
func TestUpgrade_Checkpoints(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, "a", dir)
	data, d := storetest.Content(1, 4*piece)
	writePieces(t, ingest(t, s, data), data, 0, 2)
	if err := s.PutValue("k", []byte("v")); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	remove(t, filepath.Join(dir, "cache.db"))
	meta := func(fn func(tx *bolt.Tx) error) {
		t.Helper()
		db, err := bolt.Open(filepath.Join(dir, "meta.db"), 0o600, nil)
		if err == nil {
			err = db.Update(fn)
		}
		if err != nil {
			t.Fatal(err)
		}
		_ = db.Close()
	}
	meta(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucket([]byte("checkpoints"))
		if err != nil {
			return err
		}
		return b.Put([]byte(d), []byte("whatever"))
	})
	s = openIn(t, "a", dir)
	in := ingest(t, s, data)
	if st := in.Status(); st.Received != 2*piece {
		t.Fatalf("Status = %+v", st)
	}
	_ = in.Close()
	finish(t, s, data)
	if v, err := s.Value("k"); err != nil || string(v) != "v" {
		t.Fatal(string(v), err)
	}
	_ = s.Close()
	meta(func(tx *bolt.Tx) error {
		if tx.Bucket([]byte("checkpoints")) != nil {
			t.Error("the bucket is still there")
		}
		return nil
	})
}
