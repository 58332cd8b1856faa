package storetest

import (
	"strings"
	"testing"

	"github.com/fanout-io/fanout/pkg/store"
)

func testTooLarge(t *testing.T, s Subject) {
	_, d := Content(30, 1)
	_, err := s.Spool.Ingest(d, Limit+1)
	wantErr(t, "Ingest", err, store.ErrTooLarge)
	for _, number := range []string{"4194304", "4194305"} {
		if !strings.Contains(err.Error(), number) {
			t.Errorf("%q does not say %s", err, number)
		}
	}
	_, err = s.Spool.Ingest(d, 1<<62)
	if err == nil {
		t.Fatal("Ingest of 1<<62 bytes succeeded")
	}
	data, _ := Content(31, Limit)
	Put(t, s.Spool, data) // the bound itself fits
	wantUsed(t, s.Spool, Limit)
}

func testReservation(t *testing.T, s Subject) {
	a, _ := Content(32, 10*piece)
	b, db := Content(33, 7*piece)
	in := Begin(t, s.Spool, a) // not a byte written, yet its room is taken
	_, err := s.Spool.Ingest(db, 7*piece)
	wantErr(t, "Ingest", err, store.ErrNoSpace)
	wantUsed(t, s.Spool, 10*piece)
	if err := in.Abort(nil); err != nil {
		t.Fatal(err)
	}
	Put(t, s.Spool, b)
	wantUsed(t, s.Spool, 7*piece)
}

func testEvictionOrder(t *testing.T, s Subject) {
	// Committed a, b, c and a partial p fill the spool; a is used again.
	var ds []string
	var blobs [][]byte
	for i := range 3 {
		data, d := Content(uint64(40+i), 4*piece)
		Put(t, s.Spool, data)
		blobs, ds = append(blobs, data), append(ds, d)
	}
	p, dp := Content(43, 4*piece)
	in := Begin(t, s.Spool, p)
	writePiece(t, in, p, 0)
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	wantUsed(t, s.Spool, Limit)
	Check(t, s.Spool, blobs[0])

	present := func(want ...string) {
		t.Helper()
		got := make(map[string]bool)
		for _, st := range s.Spool.List() {
			got[st.Digest] = true
		}
		for _, d := range want {
			if !got[d] {
				t.Fatalf("%s was evicted", d)
			}
		}
		if len(got) != len(want) {
			t.Fatalf("%d blobs are left, want %d", len(got), len(want))
		}
	}
	x, dx := Content(44, piece)
	Put(t, s.Spool, x) // the longest unused committed blob goes
	present(ds[0], ds[2], dp, dx)
	y, dy := Content(45, 12*piece)
	Put(t, s.Spool, y) // all that is committed goes before the partial does
	present(dp, dy)
	z, dz := Content(46, 16*piece)
	Put(t, s.Spool, z)
	present(dz)
}

func testEvictionSparesOpen(t *testing.T, s Subject) {
	a, da := Content(50, 6*piece)
	b, db := Content(51, 6*piece)
	Put(t, s.Spool, a)
	in := Begin(t, s.Spool, b)
	writePiece(t, in, b, 0)
	r, err := s.Spool.Open(da)
	if err != nil {
		t.Fatal(err)
	}
	_, dc := Content(52, 5*piece)
	_, err = s.Spool.Ingest(dc, 5*piece)
	wantErr(t, "Ingest", err, store.ErrNoSpace)
	checkReader(t, r, a)

	// A partial without a writer, but with a reader, stays too.
	br, err := s.Spool.Open(db)
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = s.Spool.Ingest(dc, 5*piece)
	wantErr(t, "Ingest", err, store.ErrNoSpace)
	_ = br.Close()
	_ = r.Close()
	in, err = s.Spool.Ingest(dc, 5*piece)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	wantGone(t, s.Spool, da)
	if _, err := s.Spool.Stat(db); err != nil {
		t.Fatalf("the partial was evicted before a committed blob: %v", err)
	}
}

func testEvictionAllOrNothing(t *testing.T, s Subject) {
	a, _ := Content(60, 4*piece)
	b, _ := Content(61, 8*piece)
	Put(t, s.Spool, a)
	in := Begin(t, s.Spool, b)
	_, dc := Content(62, 9*piece)
	_, err := s.Spool.Ingest(dc, 9*piece)
	wantErr(t, "Ingest", err, store.ErrNoSpace)
	Check(t, s.Spool, a) // evicting it would not have been enough, so it was not
	if err := in.Abort(nil); err != nil {
		t.Fatal(err)
	}
}
