package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/fanout-io/fanout/internal/faultfs"
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

func unprovedPath(dir, digest string, size int) string {
	return filepath.Join(dir, "spool", "unproved", filepath.Base(blobPath(dir, digest, size)))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// TestBoot_Committed: what was committed is served as it is in the same boot, and proved once in the next.
func TestBoot_Committed(t *testing.T) {
	dir := t.TempDir()
	data, d := storetest.Content(1, 3*piece+5)
	s := openIn(t, "a", dir)
	finish(t, s, data)
	s = openIn(t, "a", clone(t, dir))
	storetest.Check(t, storetest.Disk(s.Spool()), data)
	if n := s.Spool().Counters().ReadBackBytes; n != 0 {
		t.Fatalf("%d bytes were read back in the same boot", n)
	}

	dir = clone(t, dir)
	s = openIn(t, "b", dir)
	sp := s.Spool()
	if exists(blobPath(dir, d, len(data))) || !exists(unprovedPath(dir, d, len(data))) {
		t.Fatal("the blob is not where what is unproved is")
	}
	if st, err := sp.Stat(d); err != nil || !st.Committed || st.Received != st.Size {
		t.Fatalf("Stat = %+v, %v", st, err)
	}
	if used, _ := sp.Usage(); used != int64(len(data)) {
		t.Fatalf("used %d", used)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if i%2 == 0 {
				if _, err := sp.Ingest(d, int64(len(data))); !errors.Is(err, store.ErrExists) {
					t.Errorf("Ingest: %v", err)
				}
			}
			storetest.Check(t, storetest.Disk(sp), data)
		})
	}
	wg.Wait()
	if n := sp.Counters().ReadBackBytes; n != int64(len(data)) {
		t.Fatalf("%d bytes were read back, want %d: one proof", n, len(data))
	}
	if !exists(blobPath(dir, d, len(data))) || exists(unprovedPath(dir, d, len(data))) {
		t.Fatal("the blob is not where what is proved is")
	}
	s = openIn(t, "b", clone(t, dir))
	storetest.Check(t, storetest.Disk(s.Spool()), data)
	if n := s.Spool().Counters().ReadBackBytes; n != 0 {
		t.Fatalf("%d bytes were read back in the boot that proved them", n)
	}
}

// TestBoot_CommittedDamaged: what is found to be wrong is dropped for all who ask, and fetched anew.
func TestBoot_CommittedDamaged(t *testing.T) {
	data, d := storetest.Content(1, 3*piece+5)
	size := int64(len(data))
	prepare := func(t *testing.T, first, then string) (*store.Store, string) {
		dir := t.TempDir()
		s := openIn(t, first, dir)
		finish(t, s, data)
		_ = s.Close()
		corrupt(t, blobPath(dir, d, len(data)), piece, make([]byte, 4096))
		return openIn(t, then, dir), dir
	}
	gone := func(t *testing.T, s *store.Store, dir string) {
		t.Helper()
		if used, _ := s.Spool().Usage(); used != 0 {
			t.Fatalf("used %d", used)
		}
		if files, _ := filepath.Glob(filepath.Join(dir, "spool", "*", "*")); len(files) != 0 {
			t.Fatalf("files left: %v", files)
		}
	}
	for _, boots := range [][2]string{{"a", "b"}, {"", ""}, {"a", ""}, {"", "b"}} {
		t.Run(fmt.Sprintf("Open %q", boots), func(t *testing.T) {
			s, dir := prepare(t, boots[0], boots[1])
			var wg sync.WaitGroup
			var damaged atomic.Int32
			for range 8 {
				wg.Go(func() {
					switch _, err := s.Spool().Open(d); {
					case errors.Is(err, store.ErrDamaged):
						damaged.Add(1)
					case !errors.Is(err, store.ErrNotFound): // came later
						t.Errorf("Open: %v", err)
					}
				})
			}
			wg.Wait()
			if n := s.Spool().Counters().ReadBackBytes; n != size || damaged.Load() == 0 {
				t.Fatalf("%d bytes were read back, want %d: one proof; %d were told", n, size, damaged.Load())
			}
			gone(t, s, dir)
			finish(t, s, data)
		})
	}
	t.Run("Ingest", func(t *testing.T) {
		s, _ := prepare(t, "a", "b")
		in := ingest(t, s, data)
		if got, want := in.Missing(), []store.Range{{Off: 0, Len: size}}; !cmp.Equal(got, want) {
			t.Fatal(cmp.Diff(want, got))
		}
		_ = in.Close()
		finish(t, s, data)
	})
	t.Run("Ingest of another size", func(t *testing.T) {
		s, _ := prepare(t, "a", "b")
		in, err := s.Spool().Ingest(d, size+piece) // a liar, but who could know now
		if err != nil {
			t.Fatal(err)
		}
		_ = in.Close()
		finish(t, s, data)
	})
	t.Run("Verify", func(t *testing.T) {
		s, dir := prepare(t, "a", "b")
		if err := s.Spool().Verify(t.Context(), d); !errors.Is(err, store.ErrDamaged) {
			t.Fatalf("Verify: %v", err)
		}
		gone(t, s, dir)
	})
	t.Run("Evict", func(t *testing.T) {
		s, dir := prepare(t, "a", "b")
		if !s.Spool().Evict(d) {
			t.Fatal("not evicted")
		}
		gone(t, s, dir)
	})
	t.Run("cut", func(t *testing.T) {
		s, dir := prepare(t, "a", "b")
		_ = s.Close()
		truncate(t, unprovedPath(dir, d, len(data)), 2*piece)
		gone(t, openIn(t, "b", dir), dir)
	})
	t.Run("unreadable", func(t *testing.T) {
		dir := t.TempDir()
		finish(t, openIn(t, "a", dir), data)
		var f faultfs.Faults
		f.FailNth("blob.read", 2, syscall.EIO)
		s := open(t, store.InBoot(store.Config{Dir: clone(t, dir), Fault: f.Check}, "b"))
		if _, err := s.Spool().Open(d); !errors.Is(err, store.ErrDamaged) || !errors.Is(err, syscall.EIO) {
			t.Fatalf("Open: %v", err)
		}
		finish(t, s, data)
	})
}

// TestBoot_ProofInterrupted: a proof under way hears of what ends it, and believes nothing too much.
func TestBoot_ProofInterrupted(t *testing.T) {
	data, d := storetest.Content(1, 3*piece+5)
	why := errors.New("no longer wanted")
	for _, c := range []struct {
		name string
		op   string
		do   func(*store.Store)
		want error
	}{
		{"removed while it is read", "blob.read", func(s *store.Store) { _ = s.Spool().Remove(d, why) }, why},
		{"not evicted while it is read", "blob.read", func(s *store.Store) { _ = s.Spool().Evict(d) }, nil},
		{"closed while it is read", "blob.read", func(s *store.Store) {
			go s.Close()
			for !closed(s) {
				runtime.Gosched()
			}
		}, store.ErrClosed},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			finish(t, openIn(t, "a", dir), data)
			dir = clone(t, dir)
			var f faultfs.Faults
			s := open(t, store.InBoot(store.Config{Dir: dir, Fault: f.Check}, "b"))
			var once sync.Once
			f.Before(func(op string) {
				if op == c.op {
					once.Do(func() { c.do(s) })
				}
			})
			r, err := s.Spool().Open(d)
			if !errors.Is(err, c.want) {
				t.Fatalf("Open: %v, want %v", err, c.want)
			}
			if err == nil {
				_ = r.Close()
			}
			if n := s.Spool().Counters().ReadBackBytes; err != nil && n != piece {
				t.Fatalf("went on for %d bytes", n)
			}
			_ = s.Close()
			s = openIn(t, "b", dir)
			if c.want == why {
				finish(t, s, data)
			}
			storetest.Check(t, storetest.Disk(s.Spool()), data)
		})
	}
}

func closed(s *store.Store) bool {
	_, err := s.Spool().Open(storetest.Digest(nil))
	return errors.Is(err, store.ErrClosed)
}

// TestBoot_ProvedNotMoved: a proof whose result can't be written down serves, and is given again.
func TestBoot_ProvedNotMoved(t *testing.T) {
	dir := t.TempDir()
	data, d := storetest.Content(1, 3*piece+5)
	finish(t, openIn(t, "a", dir), data)
	dir = clone(t, dir)
	var f faultfs.Faults
	f.FailAll("blob.proved", syscall.ENOSPC)
	s := open(t, store.InBoot(store.Config{Dir: dir, Fault: f.Check}, "b"))
	for i := range int64(2) {
		storetest.Check(t, storetest.Disk(s.Spool()), data)
		if n := s.Spool().Counters().ReadBackBytes; n != (i+1)*int64(len(data)) {
			t.Fatalf("%d bytes were read back", n)
		}
	}
	f.FailAll("blob.proved", nil)
	storetest.Check(t, storetest.Disk(s.Spool()), data)
	if !exists(blobPath(dir, d, len(data))) {
		t.Fatal("the blob is not where what is proved is")
	}
}

// TestBoot_LeftOver: an unproved blob that was found wrong but could not be removed stands in the way of nothing.
func TestBoot_LeftOver(t *testing.T) {
	dir := t.TempDir()
	data, d := storetest.Content(1, 3*piece+5)
	finish(t, openIn(t, "a", dir), data)
	dir = clone(t, dir)
	corrupt(t, blobPath(dir, d, len(data)), piece, make([]byte, 4096))
	var f faultfs.Faults
	f.FailAll("drop.rename", faultfs.ErrInjected)
	f.FailAll("drop.remove", faultfs.ErrInjected)
	s := open(t, store.InBoot(store.Config{Dir: dir, Fault: f.Check}, "b"))
	in := ingest(t, s, data)
	writePieces(t, in, data, 0, 1)
	s = openIn(t, "b", clone(t, dir))
	if st, err := s.Spool().Stat(d); err != nil || st.Committed || st.Received != 2*piece {
		t.Fatalf("Stat = %+v, %v", st, err)
	}
	if err := errors.Join(fill(in, data), in.Commit()); err != nil {
		t.Fatal(err)
	}
	dir = clone(t, dir)
	s = openIn(t, "b", dir)
	storetest.Check(t, storetest.Disk(s.Spool()), data)
	if exists(unprovedPath(dir, d, len(data))) {
		t.Fatal("it is still there")
	}
}

// TestBoot_Eviction: unproved blobs are evicted in the order of their use, as all are.
func TestBoot_Eviction(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, "a", dir)
	var blobs [][]byte
	for i := range 3 {
		data, d := storetest.Content(uint64(i), 5*piece)
		finish(t, s, data)
		blobs = append(blobs, data)
		used := time.Unix(int64(1e9+i), 0)
		if i == 0 {
			used = time.Unix(2e9, 0)
		}
		if err := os.Chtimes(blobPath(dir, d, len(data)), used, used); err != nil {
			t.Fatal(err)
		}
	}
	_ = s.Close()
	s = openIn(t, "b", dir)
	extra, _ := storetest.Content(9, 2*piece)
	finish(t, s, extra)
	for i, want := range []error{nil, store.ErrNotFound, nil} {
		if _, err := s.Spool().Stat(storetest.Digest(blobs[i])); !errors.Is(err, want) {
			t.Fatalf("blob %d: %v, want %v", i, err, want)
		}
	}
}

// TestUpgrade: a directory from before boots were told apart loses its checkpoints in meta.db, and all its content is
// unproved.
func TestUpgrade(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, "a", dir)
	whole, dw := storetest.Content(2, 2*piece)
	finish(t, s, whole)
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
		if err == nil {
			err = tx.Bucket([]byte("state")).Delete([]byte("boot"))
		}
		if err != nil {
			return err
		}
		return b.Put([]byte(d), []byte("whatever"))
	})
	remove(t, filepath.Join(dir, "spool", "unproved"))
	s = openIn(t, "a", dir)
	if !exists(unprovedPath(dir, dw, len(whole))) {
		t.Fatal("a blob of before is believed")
	}
	storetest.Check(t, storetest.Disk(s.Spool()), whole)
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
