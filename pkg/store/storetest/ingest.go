package storetest

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/fanout-io/fanout/pkg/store"
	"github.com/google/go-cmp/cmp"
)

const piece = int64(store.PieceSize)

func testLifecycle(t *testing.T, s Subject) {
	data, d := Content(1, 3*piece+100)
	wantGone(t, s.Spool, d)
	in := Begin(t, s.Spool, data)
	if got := in.Missing(); !cmp.Equal(got, []store.Range{{Off: 0, Len: int64(len(data))}}) {
		t.Fatalf("Missing = %v", got)
	}
	wantUsed(t, s.Spool, int64(len(data)))
	st := in.Status()
	if st.Digest != d || st.Size != int64(len(data)) || st.Received != 0 || st.Committed || st.StartedAt.IsZero() {
		t.Fatalf("Status = %+v", st)
	}
	Fill(t, in, data)
	if st := in.Status(); st.Received != st.Size || st.Hashed != st.Size || st.Committed {
		t.Fatalf("Status = %+v", st)
	}
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	st, err := s.Spool.Stat(d)
	if err != nil || !st.Committed || st.Received != st.Size {
		t.Fatalf("Stat = %+v, %v", st, err)
	}
	if l := s.Spool.List(); len(l) != 1 || l[0].Digest != d {
		t.Fatalf("List = %+v", l)
	}
	wantUsed(t, s.Spool, int64(len(data)))
	Check(t, s.Spool, data)
	if s.Reopen != nil {
		sp := s.Reopen()
		wantUsed(t, sp, int64(len(data)))
		Check(t, sp, data)
	}
}

func testSizes(t *testing.T, s Subject) {
	for _, size := range []int64{0, 1, piece - 1, piece, piece + 1, 2 * piece} {
		data, _ := Content(uint64(size)&0xff, size)
		Put(t, s.Spool, data)
		Check(t, s.Spool, data)
	}
}

func testInvalidArguments(t *testing.T, s Subject) {
	data, d := Content(2, 2*piece+5)
	for _, bad := range []string{"", "sha256:", "sha256:abc", d[7:], "sha512:" + d[7:], d[:70] + "G", "sha256:../" + d[10:], "SHA256:" + d[7:], d + "0", d[:len(d)-1] + "A"} {
		_, err := s.Spool.Ingest(bad, 1)
		wantErr(t, "Ingest "+bad, err, store.ErrInvalid)
		_, err = s.Spool.Open(bad)
		wantErr(t, "Open "+bad, err, store.ErrInvalid)
		_, err = s.Spool.Stat(bad)
		wantErr(t, "Stat "+bad, err, store.ErrInvalid)
	}
	_, err := s.Spool.Ingest(d, -1)
	wantErr(t, "Ingest of size -1", err, store.ErrInvalid)
	in := Begin(t, s.Spool, data)
	for _, r := range []store.Range{{Off: -1, Len: 1}, {Off: -piece, Len: piece}, {Off: 1, Len: piece}, {Off: 0, Len: 5}, {Off: piece, Len: piece + 4}, {Off: 2 * piece, Len: 6}, {Off: 3 * piece, Len: 1}, {Off: 1 << 62, Len: piece}} {
		_, err := in.WriteAt(make([]byte, r.Len), r.Off)
		wantErr(t, "WriteAt", err, store.ErrInvalid)
	}
	if st := in.Status(); st.Received != 0 {
		t.Fatalf("Status = %+v", st)
	}
	r := in.NewReader()
	defer r.Close()
	for _, off := range []int64{-1, int64(len(data)) + 1} {
		_, err := r.Wait(Deadline(t), off)
		wantErr(t, "Wait", err, store.ErrInvalid)
		_, err = r.ReadAt(make([]byte, 1), off)
		wantErr(t, "ReadAt", err, store.ErrInvalid)
	}
}

func testOutOfOrder(t *testing.T, s Subject) {
	data, _ := Content(3, 10*piece+7)
	in := Begin(t, s.Spool, data)
	for n, i := range rand.New(rand.NewPCG(1, 2)).Perm(11) {
		writePiece(t, in, data, i)
		var missing int64
		for k, r := range in.Missing() {
			missing += r.Len
			if r.Off%piece != 0 || r.Len <= 0 || (r.Off <= int64(i)*piece && int64(i)*piece < r.Off+r.Len) {
				t.Fatalf("after %d pieces range %d = %+v holds piece %d", n, k, r, i)
			}
		}
		if st := in.Status(); st.Received+missing != st.Size {
			t.Fatalf("received %d + missing %d is not %d", st.Received, missing, st.Size)
		}
	}
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	Check(t, s.Spool, data)
}

func testConcurrentWriters(t *testing.T, s Subject) {
	data, _ := Content(4, 12*piece+1)
	in := Begin(t, s.Spool, data)
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() { // each writes everything, in its own order, in runs of its own length
			r := rand.New(rand.NewPCG(uint64(w), 9))
			for _, i := range r.Perm(13) {
				off := int64(i) * piece
				end := min(off+int64(1+r.IntN(4))*piece, int64(len(data)))
				if n, err := in.WriteAt(data[off:end], off); err != nil || int64(n) != end-off {
					t.Errorf("WriteAt = %d, %v", n, err)
				}
			}
		})
	}
	wg.Wait()
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	Check(t, s.Spool, data)
}

func testIdempotent(t *testing.T, s Subject) {
	data, _ := Content(5, 3*piece)
	in := Begin(t, s.Spool, data)
	writePiece(t, in, data, 1)
	other, _ := Content(6, 3*piece)
	write(t, in, other, piece, piece) // present: skipped, whatever it says
	write(t, in, data, 0, 3*piece)
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	Check(t, s.Spool, data)
}

// testSkipped: what is present counts as it is, not as a later write says.
func testSkipped(t *testing.T, s Subject) {
	data, d := Content(17, 3*piece)
	other, _ := Content(6, 3*piece)
	in := Begin(t, s.Spool, data)
	write(t, in, other, piece, piece)
	write(t, in, data, 0, 3*piece)
	wantErr(t, "Commit", in.Commit(), store.ErrDigestMismatch)
	wantGone(t, s.Spool, d)
}

func testBusy(t *testing.T, s Subject) {
	data, d := Content(7, piece)
	in := Begin(t, s.Spool, data)
	_, err := s.Spool.Ingest(d, piece)
	wantErr(t, "second Ingest", err, store.ErrBusy)
	writePiece(t, in, data, 0)
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Begin(t, s.Spool, data).Commit(); err != nil {
		t.Fatal(err)
	}
}

func testExists(t *testing.T, s Subject) {
	data, d := Content(8, piece)
	Put(t, s.Spool, data)
	_, err := s.Spool.Ingest(d, piece)
	wantErr(t, "Ingest of what is committed", err, store.ErrExists)
	_, err = s.Spool.Ingest(d, piece+1)
	wantErr(t, "Ingest with another size", err, store.ErrSizeMismatch)
	Check(t, s.Spool, data)
}

func testIncomplete(t *testing.T, s Subject) {
	data, _ := Content(9, 2*piece)
	in := Begin(t, s.Spool, data)
	writePiece(t, in, data, 1)
	wantErr(t, "Commit", in.Commit(), store.ErrIncomplete)
	writePiece(t, in, data, 0)
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
}

func testMismatch(t *testing.T, s Subject) {
	data, d := Content(10, 2*piece)
	in := Begin(t, s.Spool, data)
	r := in.NewReader()
	defer r.Close()
	bad := append([]byte(nil), data...)
	bad[piece+3] ^= 1
	Fill(t, in, bad)
	wantErr(t, "Commit", in.Commit(), store.ErrDigestMismatch)
	_, err := r.Wait(Deadline(t), 0)
	wantErr(t, "Wait", err, store.ErrDigestMismatch)
	_, err = r.ReadAt(make([]byte, 1), 0)
	wantErr(t, "ReadAt", err, store.ErrDigestMismatch)
	wantGone(t, s.Spool, d)
	wantUsed(t, s.Spool, 0)
	Put(t, s.Spool, data) // the digest is not spoiled by it
	Check(t, s.Spool, data)
}

func testAbort(t *testing.T, s Subject) {
	data, d := Content(11, 2*piece)
	in := Begin(t, s.Spool, data)
	writePiece(t, in, data, 0)
	r := in.NewReader()
	defer r.Close()
	got := make(chan error)
	go func() {
		_, err := r.Wait(Deadline(t), piece)
		got <- err
	}()
	why := errors.New("the reason")
	if err := in.Abort(why); err != nil {
		t.Fatal(err)
	}
	err := <-got
	wantErr(t, "Wait", err, store.ErrAborted)
	wantErr(t, "Wait", err, why)
	wantGone(t, s.Spool, d)
	wantUsed(t, s.Spool, 0)
	Put(t, s.Spool, data)
	_, err = r.ReadAt(make([]byte, 1), 0) // the old reader doesn't come back to life
	wantErr(t, "ReadAt", err, store.ErrAborted)
}

func testEndedIngest(t *testing.T, s Subject) {
	data, _ := Content(12, piece)
	in := Begin(t, s.Spool, data)
	Fill(t, in, data)
	if err := errors.Join(in.Commit(), in.Abort(nil), in.Close()); err != nil { // so both can be deferred
		t.Fatal(err)
	}
	Check(t, s.Spool, data)
	_, err := in.WriteAt(data, 0)
	wantErr(t, "WriteAt", err, store.ErrClosed)
	wantErr(t, "Commit", in.Commit(), store.ErrClosed)
	if m := in.Missing(); len(m) != 0 {
		t.Fatalf("Missing = %v", m)
	}
	r := in.NewReader()
	defer r.Close()
	checkReader(t, r, data)
}

func testOtherSize(t *testing.T, s Subject) {
	data, d := Content(13, 2*piece)
	liar, err := s.Spool.Ingest(d, 3*piece)
	if err != nil {
		t.Fatal(err)
	}
	writePiece(t, liar, data, 0)
	_, err = s.Spool.Ingest(d, 2*piece)
	wantErr(t, "Ingest while the other is open", err, store.ErrBusy)
	r := liar.NewReader()
	defer r.Close()
	if err := liar.Close(); err != nil {
		t.Fatal(err)
	}
	Put(t, s.Spool, data)
	_, err = r.Wait(Deadline(t), piece)
	wantErr(t, "Wait", err, store.ErrSizeMismatch)
	wantUsed(t, s.Spool, 2*piece)
}

func testCloseKeepsProgress(t *testing.T, s Subject) {
	data, d := Content(14, 4*piece)
	in := Begin(t, s.Spool, data)
	writePiece(t, in, data, 0)
	writePiece(t, in, data, 2)
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if st, err := s.Spool.Stat(d); err != nil || st.Received != 2*piece || st.Committed {
		t.Fatalf("Stat = %+v, %v", st, err)
	}
	in = Begin(t, s.Spool, data)
	want := []store.Range{{Off: piece, Len: piece}, {Off: 3 * piece, Len: piece}}
	if got := in.Missing(); !cmp.Equal(got, want) {
		t.Fatal(cmp.Diff(want, got))
	}
	Fill(t, in, data)
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	if s.HashedBytes != nil && s.HashedBytes() != 4*piece {
		t.Fatalf("hashed %d bytes, want %d", s.HashedBytes(), 4*piece)
	}
}

func testCloseDropsNothing(t *testing.T, s Subject) {
	data, d := Content(15, 4*piece)
	if err := Begin(t, s.Spool, data).Close(); err != nil {
		t.Fatal(err)
	}
	wantGone(t, s.Spool, d) // nothing received, nobody reads: the room is free again
	wantUsed(t, s.Spool, 0)
}

func testResumeAfterReopen(t *testing.T, s Subject) {
	if s.Reopen == nil {
		t.Skip("can't be reopened")
	}
	data, _ := Content(16, 10*piece+3)
	in := Begin(t, s.Spool, data)
	for _, i := range []int{0, 1, 2, 3, 4, 7, 10} {
		writePiece(t, in, data, i)
	}
	sp := s.Reopen()
	wantUsed(t, sp, int64(len(data)))
	in = Begin(t, sp, data)
	want := []store.Range{{Off: 5 * piece, Len: 2 * piece}, {Off: 8 * piece, Len: 2 * piece}}
	if got := in.Missing(); !cmp.Equal(got, want) {
		t.Fatal(cmp.Diff(want, got))
	}
	if st := in.Status(); st.Hashed != 5*piece {
		t.Fatalf("Hashed = %d, want %d", st.Hashed, 5*piece)
	}
	Fill(t, in, data)
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	if s.HashedBytes != nil && s.HashedBytes() != 5*piece+3 {
		t.Fatalf("hashed %d bytes after reopening, want %d", s.HashedBytes(), 5*piece+3)
	}
	Check(t, sp, data)
}
