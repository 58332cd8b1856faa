package storetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/fanout-io/fanout/pkg/store"
)

// testReadersFollow: readers that are fast, slow, or begin in the middle get every byte while pieces arrive in an odd order.
func testReadersFollow(t *testing.T, s Subject) {
	data, d := Content(20, 12*piece+33)
	in := Begin(t, s.Spool, data)
	ctx := Deadline(t)
	starts := []int64{0, 0, 1, piece - 1, piece, 5*piece + 77, int64(len(data)) - 1, int64(len(data))}
	var wg sync.WaitGroup
	for i, off := range starts {
		r := in.NewReader()
		if i%2 == 1 { // half of them come by digest
			_ = r.Close()
			var err error
			if r, err = s.Spool.Open(d); err != nil {
				t.Fatal(err)
			}
		}
		bufLen := []int{512, 100_000, 1 << 20}[i%3]
		wg.Go(func() {
			defer r.Close()
			st := r.Stream(ctx, off)
			defer st.Close()
			var got bytes.Buffer
			if _, err := io.CopyBuffer(struct{ io.Writer }{&got}, struct{ io.Reader }{st}, make([]byte, bufLen)); err != nil {
				t.Errorf("reader %d from %d: %v", i, off, err)
			}
			if !bytes.Equal(got.Bytes(), data[off:]) {
				t.Errorf("reader %d from %d got %d bytes that are not those", i, off, got.Len())
			}
		})
	}
	for _, i := range []int{3, 12, 0, 1, 7, 2, 4, 11, 6, 5, 10, 8, 9} {
		writePiece(t, in, data, i)
	}
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
}

func testReaderOutlivesWriter(t *testing.T, s Subject) {
	data, d := Content(21, 2*piece)
	in := Begin(t, s.Spool, data)
	writePiece(t, in, data, 0)
	r, err := s.Spool.Open(d)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	got := make(chan []byte)
	go func() {
		st := r.Stream(Deadline(t), 0)
		defer st.Close()
		b, err := io.ReadAll(st)
		if err != nil {
			t.Error(err)
		}
		got <- b
	}()
	in = Begin(t, s.Spool, data)
	Fill(t, in, data)
	if !bytes.Equal(<-got, data) {
		t.Fatal("the reader got something else")
	}
	if err := in.Commit(); err != nil {
		t.Fatal(err)
	}
	checkReader(t, r, data)
}

func testReaderOnlyPresent(t *testing.T, s Subject) {
	data, _ := Content(22, 4*piece)
	in := Begin(t, s.Spool, data)
	writePiece(t, in, data, 1)
	writePiece(t, in, data, 2)
	r := in.NewReader()
	defer r.Close()
	if r.Size() != 4*piece {
		t.Fatalf("Size = %d", r.Size())
	}
	n, err := r.Wait(Deadline(t), piece+10)
	if err != nil || n != 2*piece-10 {
		t.Fatalf("Wait = %d, %v", n, err)
	}
	buf := make([]byte, 4*piece)
	_, err = r.ReadAt(buf[:1], 0)
	wantErr(t, "ReadAt 0", err, store.ErrAbsent)
	k, err := r.ReadAt(buf, piece+10)
	wantErr(t, "ReadAt over a gap", err, store.ErrAbsent)
	if int64(k) != 2*piece-10 || !bytes.Equal(buf[:k], data[piece+10:3*piece]) {
		t.Fatalf("ReadAt = %d", k)
	}
	writePiece(t, in, data, 3)
	k, err = r.ReadAt(buf, 3*piece)
	if int64(k) != piece || err != io.EOF {
		t.Fatalf("ReadAt at the tail = %d, %v", k, err)
	}
	if k, err := r.ReadAt(buf[:10], 3*piece); k != 10 || err != nil {
		t.Fatalf("ReadAt = %d, %v", k, err)
	}
	if k, err := r.ReadAt(buf, 4*piece); k != 0 || err != io.EOF {
		t.Fatalf("ReadAt at the end = %d, %v", k, err)
	}
	if n, err := r.Wait(Deadline(t), 4*piece); n != 0 || err != nil {
		t.Fatalf("Wait at the end = %d, %v", n, err)
	}
}

func testReaderContext(t *testing.T, s Subject) {
	data, _ := Content(23, 2*piece)
	in := Begin(t, s.Spool, data)
	writePiece(t, in, data, 0)
	r := in.NewReader()
	defer r.Close()
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	got := make(chan error)
	for range 3 { // several calls on one reader
		go func() {
			_, err := r.Wait(ctx, piece)
			got <- err
		}()
	}
	cancel(why)
	for range 3 {
		wantErr(t, "Wait", <-got, why)
	}
	if n, err := r.Wait(ctx, 0); n != piece || err != nil { // what is there needs no waiting
		t.Fatalf("Wait = %d, %v", n, err)
	}
	writePiece(t, in, data, 1)
	if n, err := r.Wait(Deadline(t), piece); n != piece || err != nil {
		t.Fatalf("Wait = %d, %v", n, err)
	}
}

func testReaderClose(t *testing.T, s Subject) {
	data, _ := Content(24, piece)
	in := Begin(t, s.Spool, data)
	r, other := in.NewReader(), in.NewReader()
	defer other.Close()
	got := make(chan error, 1)
	otherGot := make(chan error, 1)
	go func() {
		_, err := r.Wait(Deadline(t), 0)
		got <- err
	}()
	go func() {
		_, err := other.Wait(Deadline(t), 0)
		otherGot <- err
	}()
	if err := errors.Join(r.Close(), r.Close()); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "Wait", <-got, store.ErrClosed)
	_, err := r.ReadAt(make([]byte, 1), 0)
	wantErr(t, "ReadAt", err, store.ErrClosed)
	Fill(t, in, data)
	if err := <-otherGot; err != nil {
		t.Fatal(err)
	}
}

func testStreamClose(t *testing.T, s Subject) {
	data, _ := Content(25, 2*piece)
	in := Begin(t, s.Spool, data)
	writePiece(t, in, data, 0)
	r := in.NewReader()
	defer r.Close()
	st := r.Stream(Deadline(t), piece)
	got := make(chan error)
	go func() {
		_, err := st.Read(make([]byte, 10))
		got <- err
	}()
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "Read", <-got, store.ErrClosed)
	if n, err := r.Wait(Deadline(t), 0); n != piece || err != nil { // the reader goes on
		t.Fatalf("Wait = %d, %v", n, err)
	}
}
