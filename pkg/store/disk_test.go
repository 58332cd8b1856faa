package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/fanout-io/fanout/internal/faultfs"
	"github.com/fanout-io/fanout/pkg/store"
	"github.com/fanout-io/fanout/pkg/store/storetest"
	"github.com/google/go-cmp/cmp"
)

func dataPath(dir, digest string) string {
	return filepath.Join(dir, "spool", "ingest", digest[7:]+".data")
}

func piecesPath(dir, digest string) string {
	return filepath.Join(dir, "spool", "ingest", digest[7:]+".pieces")
}

func blobPath(dir, digest string, size int) string {
	return filepath.Join(dir, "spool", "blobs", digest[7:]+"."+strconv.Itoa(size))
}

func ingest(t testing.TB, s *store.Store, data []byte) *store.Ingest {
	t.Helper()
	in, err := s.Spool().Ingest(storetest.Digest(data), int64(len(data)))
	if err != nil {
		t.Fatalf("Ingest: %v", err)
	}
	return in
}

func writePieces(t testing.TB, in *store.Ingest, data []byte, pieces ...int) {
	t.Helper()
	for _, i := range pieces {
		off := int64(i) * piece
		if _, err := in.WriteAt(data[off:min(off+piece, int64(len(data)))], off); err != nil {
			t.Fatalf("WriteAt piece %d: %v", i, err)
		}
	}
}

func fill(in *store.Ingest, data []byte) error {
	for _, r := range in.Missing() {
		if _, err := in.WriteAt(data[r.Off:r.Off+r.Len], r.Off); err != nil {
			return err
		}
	}
	return nil
}

func finish(t testing.TB, s *store.Store, data []byte) {
	t.Helper()
	in := ingest(t, s, data)
	defer in.Close()
	if err := fill(in, data); err != nil {
		t.Fatal(err)
	}
	if err := in.Commit(); err != nil {
		t.Fatalf("Commit: %v", err)
	}
	storetest.Check(t, storetest.Disk(s.Spool()), data)
}

// clone copies the directory as it is on disk now, which is what a kill would leave.
func clone(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	copyDir(t, dir, to)
	return to
}

func copyDir(t testing.TB, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

func corrupt(t testing.TB, path string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func TestLocked(t *testing.T) {
	dir := t.TempDir()
	s := open(t, store.Config{Dir: dir})
	_, err := store.Open(store.Config{Dir: dir})
	if !errors.Is(err, store.ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("second Open: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, store.Config{Dir: dir})
}

func TestIncarnation(t *testing.T) {
	dir := t.TempDir()
	s := open(t, store.Config{Dir: dir})
	inc := s.Incarnation()
	if len(inc) != 32 {
		t.Fatalf("incarnation %q", inc)
	}
	_ = s.Close()
	if got := open(t, store.Config{Dir: dir}).Incarnation(); got != inc {
		t.Fatalf("incarnation changed from %s to %s", inc, got)
	}
	if got := open(t, store.Config{Dir: t.TempDir()}).Incarnation(); got == inc {
		t.Fatal("two directories have one incarnation")
	}
}

// TestKill_PiecesAfterCheckpoint: without a Close the pieces after the checkpoint are read back, those before are neither
// read nor hashed again.
func TestKill_PiecesAfterCheckpoint(t *testing.T) {
	dir := t.TempDir()
	s := open(t, store.Config{Dir: dir, CheckpointBytes: 4 * piece})
	data, d := storetest.Content(1, 12*piece+9)
	in := ingest(t, s, data)
	writePieces(t, in, data, 0, 1, 2, 3, 4, 5, 8, 12)
	killed := clone(t, dir)

	s = open(t, store.Config{Dir: killed, CheckpointBytes: 4 * piece})
	if st, err := s.Spool().Stat(d); err != nil || st.Received != 7*piece+9 {
		t.Fatalf("Stat = %+v, %v", st, err)
	}
	in = ingest(t, s, data)
	want := []store.Range{{Off: 6 * piece, Len: 2 * piece}, {Off: 9 * piece, Len: 3 * piece}}
	if got := in.Missing(); !cmp.Equal(got, want) {
		t.Fatal(cmp.Diff(want, got))
	}
	if st := in.Status(); st.Hashed != 4*piece {
		t.Fatalf("Hashed = %d, want the checkpoint's %d", st.Hashed, 4*piece)
	}
	if c := s.Spool().Counters(); c.ReadBackBytes != 3*piece+9 || c.HashedBytes != 0 {
		t.Fatalf("Counters = %+v", c)
	}
	if err := fill(in, data); err != nil {
		t.Fatal(err)
	}
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	if c := s.Spool().Counters(); c.HashedBytes != 8*piece+9 {
		t.Fatalf("hashed %d bytes after the kill, want %d", c.HashedBytes, 8*piece+9)
	}
}

func TestReopen_DamagedPiece(t *testing.T) {
	for _, c := range []struct {
		name string
		harm func(t *testing.T, dir, d string)
		want []store.Range
	}{
		{"bit of piece 5 flipped", func(t *testing.T, dir, d string) { corrupt(t, dataPath(dir, d), 5*piece+100, []byte{1, 2, 3, 4}) },
			[]store.Range{{Off: 5 * piece, Len: piece}}},
		{"pieces cut within the marks", func(t *testing.T, dir, d string) { truncate(t, piecesPath(dir, d), 128+6*4+2) },
			[]store.Range{{Off: 6 * piece, Len: 2 * piece}}},
		{"pieces cut before the checkpoint", func(t *testing.T, dir, d string) { truncate(t, piecesPath(dir, d), 128+4) },
			[]store.Range{{Off: 4 * piece, Len: 4 * piece}}},
		{"header cut", func(t *testing.T, dir, d string) { truncate(t, piecesPath(dir, d), 60) },
			[]store.Range{{Off: 0, Len: 8 * piece}}},
		{"header altered", func(t *testing.T, dir, d string) { corrupt(t, piecesPath(dir, d), 57, []byte{9}) },
			[]store.Range{{Off: 0, Len: 8 * piece}}},
		{"data cut after the checkpoint", func(t *testing.T, dir, d string) { truncate(t, dataPath(dir, d), 5*piece+3) },
			[]store.Range{{Off: 5 * piece, Len: 3 * piece}}},
		{"data cut before the checkpoint", func(t *testing.T, dir, d string) { truncate(t, dataPath(dir, d), 2*piece) },
			[]store.Range{{Off: 2 * piece, Len: 6 * piece}}},
		{"data gone", func(t *testing.T, dir, d string) { remove(t, dataPath(dir, d)) },
			[]store.Range{{Off: 0, Len: 8 * piece}}},
		{"pieces gone", func(t *testing.T, dir, d string) { remove(t, piecesPath(dir, d)) },
			[]store.Range{{Off: 0, Len: 8 * piece}}},
		{"marks without data (power cut)", func(t *testing.T, dir, d string) { corrupt(t, dataPath(dir, d), 4*piece, make([]byte, 4*piece)) },
			[]store.Range{{Off: 4 * piece, Len: 4 * piece}}},
		{"data longer than it may be", func(t *testing.T, dir, d string) { truncate(t, dataPath(dir, d), 9*piece) }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, store.Config{Dir: dir, CheckpointBytes: 4 * piece})
			data, d := storetest.Content(2, 8*piece)
			writePieces(t, ingest(t, s, data), data, 0, 1, 2, 3, 4, 5, 6, 7)
			killed := clone(t, dir)
			c.harm(t, killed, d)
			s = open(t, store.Config{Dir: killed, CheckpointBytes: 4 * piece})
			in := ingest(t, s, data)
			if got := in.Missing(); !cmp.Equal(got, c.want) {
				t.Error(cmp.Diff(c.want, got))
			}
			_ = in.Close()
			finish(t, s, data)
		})
	}
}

func truncate(t testing.TB, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// TestVerify: damage to a committed blob is found when someone asks, the blob is dropped and can be had again.
func TestVerify(t *testing.T) {
	dir := t.TempDir()
	s := open(t, store.Config{Dir: dir})
	data, d := storetest.Content(3, 3*piece)
	finish(t, s, data)
	if err := s.Spool().Verify(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	corrupt(t, blobPath(dir, d, len(data)), piece, []byte("harm"))
	if err := s.Spool().Verify(t.Context(), d); !errors.Is(err, store.ErrDigestMismatch) {
		t.Fatalf("Verify: %v", err)
	}
	if _, err := s.Spool().Stat(d); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("Stat: %v", err)
	}
	finish(t, s, data)
	truncate(t, blobPath(dir, d, len(data)), piece)
	if err := s.Spool().Verify(t.Context(), d); !errors.Is(err, store.ErrDamaged) {
		t.Fatalf("Verify: %v", err)
	}
	finish(t, s, data)
}

func TestRemove(t *testing.T) {
	s := open(t, store.Config{Dir: t.TempDir()})
	data, d := storetest.Content(4, 2*piece)
	in := ingest(t, s, data)
	if err := s.Spool().Remove(d, nil); !errors.Is(err, store.ErrBusy) {
		t.Fatalf("Remove of what has a writer: %v", err)
	}
	_ = in.Close()
	finish(t, s, data)
	r, err := s.Spool().Open(d)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	why := errors.New("a registry refused it")
	if err := s.Spool().Remove(d, why); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadAt(make([]byte, 1), 0); !errors.Is(err, why) {
		t.Fatalf("ReadAt: %v", err)
	}
	finish(t, s, data)
}

// TestStaleCheckpoint: a checkpoint of an ingest that was dropped says nothing about the next one of that digest.
func TestStaleCheckpoint(t *testing.T) {
	dir := t.TempDir()
	var f faultfs.Faults
	s := open(t, store.Config{Dir: dir, CheckpointBytes: piece, Fault: f.Check})
	data, _ := storetest.Content(5, 4*piece)
	in := ingest(t, s, data)
	writePieces(t, in, data, 0, 1, 2)
	f.FailAll("checkpoint.delete", faultfs.ErrInjected)
	f.FailAll("checkpoint.put", faultfs.ErrInjected)
	_ = in.Abort(nil)
	in = ingest(t, s, data)
	writePieces(t, in, data, 3)
	killed := clone(t, dir)
	s = open(t, store.Config{Dir: killed})
	in = ingest(t, s, data)
	if got, want := in.Missing(), []store.Range{{Off: 0, Len: 3 * piece}}; !cmp.Equal(got, want) {
		t.Fatal(cmp.Diff(want, got))
	}
	_ = in.Close()
	finish(t, s, data)
}

func TestCommittedSize(t *testing.T) {
	dir := t.TempDir()
	s := open(t, store.Config{Dir: dir})
	data, d := storetest.Content(6, 3*piece)
	keep, _ := storetest.Content(7, piece)
	finish(t, s, data)
	finish(t, s, keep)
	_ = s.Close()
	truncate(t, blobPath(dir, d, len(data)), piece)
	for _, name := range []string{"README", "zz.12", d[7:] + ".012", d[7:] + ".-1", d[7:]} {
		if err := os.WriteFile(filepath.Join(dir, "spool", "blobs", name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, store.Config{Dir: dir})
	if _, err := s.Spool().Stat(d); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("a cut blob is still offered: %v", err)
	}
	if used, _ := s.Spool().Usage(); used != piece {
		t.Fatalf("used %d", used)
	}
	finish(t, s, data)
	if _, err := os.Stat(filepath.Join(dir, "spool", "blobs", "README")); err != nil {
		t.Fatalf("a stranger's file was removed: %v", err)
	}
}

func TestSmallerSpoolAfterReopen(t *testing.T) {
	dir := t.TempDir()
	s := open(t, store.Config{Dir: dir})
	var blobs [][]byte
	for i := range 4 {
		data, _ := storetest.Content(uint64(10+i), 4*piece)
		finish(t, s, data)
		blobs = append(blobs, data)
	}
	_ = s.Close()
	s = open(t, store.Config{Dir: dir, SpoolBytes: 9 * piece})
	if used, limit := s.Spool().Usage(); used != 8*piece || limit != 9*piece {
		t.Fatalf("Usage = %d of %d", used, limit)
	}
	storetest.Check(t, storetest.Disk(s.Spool()), blobs[2])
	storetest.Check(t, storetest.Disk(s.Spool()), blobs[3])
	if files, _ := filepath.Glob(filepath.Join(dir, "spool", "*", "*")); len(files) != 2 {
		t.Fatalf("files left: %v", files)
	}
}

func TestDiskFull(t *testing.T) {
	var f faultfs.Faults
	s := open(t, store.Config{Dir: t.TempDir(), Fault: f.Check})
	data, _ := storetest.Content(20, 4*piece)
	in := ingest(t, s, data)
	writePieces(t, in, data, 0)
	for _, op := range []string{"ingest.data.write", "ingest.pieces.write"} {
		f.FailAll(op, &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC})
		if n, err := in.WriteAt(data[piece:], piece); n != 0 || !errors.Is(err, store.ErrNoSpace) {
			t.Fatalf("%s: WriteAt = %d, %v", op, n, err)
		}
		f.FailAll(op, nil)
		if st := in.Status(); st.Received != piece {
			t.Fatalf("%s: progress was lost: %+v", op, st)
		}
	}
	f.FailAll("commit.rename", syscall.ENOSPC)
	if err := fill(in, data); err != nil {
		t.Fatal(err)
	}
	if err := in.Commit(); !errors.Is(err, store.ErrNoSpace) {
		t.Fatalf("Commit: %v", err)
	}
	f.FailAll("commit.rename", nil)
	if err := in.Commit(); err != nil { // the same ingest, once there is room
		t.Fatal(err)
	}
	storetest.Check(t, storetest.Disk(s.Spool()), data)
}

func TestCloseFailsWhatIsOpen(t *testing.T) {
	dir := t.TempDir()
	s := open(t, store.Config{Dir: dir})
	data, d := storetest.Content(30, 3*piece)
	whole, dw := storetest.Content(31, piece)
	finish(t, s, whole)
	in := ingest(t, s, data)
	writePieces(t, in, data, 0, 1)
	r, rw := in.NewReader(), (*store.Reader)(nil)
	rw, err := s.Spool().Open(dw)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error)
	go func() {
		_, err := r.Wait(storetest.Deadline(t), 2*piece)
		got <- err
	}()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, e1 := rw.ReadAt(make([]byte, 1), 0)
	_, e2 := in.WriteAt(data[2*piece:], 2*piece)
	_, e3 := s.Spool().Ingest(d, 3*piece)
	_, e4 := s.Spool().Open(dw)
	_, e5 := s.Value("x")
	_, e6 := s.HasManifest(d)
	e7 := s.PutValue("x", nil)
	_, e8 := in.NewReader().Wait(t.Context(), 0)
	for i, err := range []error{<-got, e1, e2, e3, e4, e5, e6, e7, e8, in.Commit()} {
		if !errors.Is(err, store.ErrClosed) {
			t.Errorf("call %d after Close: %v", i, err)
		}
	}
	if err := errors.Join(in.Close(), r.Close(), rw.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	s = open(t, store.Config{Dir: dir})
	in = ingest(t, s, data)
	if st := in.Status(); st.Hashed != 2*piece || s.Spool().Counters().ReadBackBytes != 0 {
		t.Fatalf("a clean stop kept %+v and read back %d", st, s.Spool().Counters().ReadBackBytes)
	}
	_ = in.Close()
	finish(t, s, data)
}
