package store_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fanout-io/fanout/internal/faultfs"
	"github.com/fanout-io/fanout/pkg/store"
	"github.com/fanout-io/fanout/pkg/store/storetest"
)

// scenario does one of everything: a committed blob, an eviction, a mismatch, an abort, a partial that is closed and taken up
// again with checkpoints, metadata and caches. Each step tries a few times and goes on whatever comes of it.
type scenario struct {
	small, large, part, bad []byte
}

func newScenario() scenario {
	var sc scenario
	sc.small, _ = storetest.Content(1, piece+5)
	sc.large, _ = storetest.Content(2, 7*piece+1)
	sc.part, _ = storetest.Content(3, 6*piece)
	sc.bad, _ = storetest.Content(4, 2*piece)
	return sc
}

func (sc scenario) config(dir string) store.Config {
	return store.Config{Dir: dir, SpoolBytes: 15 * piece, CheckpointBytes: 2 * piece}
}

// run returns the refs whose state it was told is durable.
func (sc scenario) run(s *store.Store) (durable []string) {
	sp := s.Spool()
	attempt := func(data []byte, upTo int64, end func(*store.Ingest) error) {
		for range 3 {
			in, err := sp.Ingest(storetest.Digest(data), int64(len(data)))
			if errors.Is(err, store.ErrExists) {
				return
			}
			if err != nil {
				continue
			}
			ranges := in.Missing()
			slices.Reverse(ranges)
			for _, r := range ranges {
				for off := r.Off; off < r.Off+r.Len && err == nil; off += piece {
					if off < upTo {
						_, err = in.WriteAt(data[off:min(off+piece, r.Off+r.Len)], off)
					}
				}
			}
			if err == nil {
				err = end(in)
			}
			if cerr := in.Close(); err == nil && cerr == nil {
				return
			}
		}
	}
	put := func(ref string) {
		if s.PutRefState(ref, store.RefState{Base: ref}) == nil {
			durable = append(durable, ref)
		}
	}
	commit, leave := (*store.Ingest).Commit, func(*store.Ingest) error { return nil }
	put("a:1")
	attempt(sc.small, 1<<40, commit)
	attempt(sc.part, 3*piece, leave)
	attempt(sc.large, 1<<40, commit)
	put("b:1")
	wrong := slices.Clone(sc.bad)
	wrong[7]++
	if in, err := sp.Ingest(storetest.Digest(sc.bad), int64(len(wrong))); err == nil { // evicts
		_ = fill(in, wrong)
		_ = in.Commit()
		_ = in.Abort(nil)
	}
	if in, err := sp.Ingest(storetest.Digest(sc.bad), int64(len(sc.bad))); err == nil {
		_, _ = in.WriteAt(sc.bad[:piece], 0)
		_ = in.Abort(errors.New("no more"))
	}
	attempt(sc.part, 5*piece, leave)
	_ = s.AddBlobs("library/x", storetest.Digest(sc.small))
	_ = s.PutManifests(store.Manifest{MediaType: "m", Digest: storetest.Digest([]byte("{}")), Content: []byte("{}")})
	_, _ = s.Manifest(storetest.Digest([]byte("{}")))
	if r, err := sp.Open(storetest.Digest(sc.large)); err == nil {
		_, _ = r.ReadAt(make([]byte, 100), piece)
		_ = r.Close()
	}
	put("c:1")
	return durable
}

// check opens the directory without faults and holds it to the invariants.
func (sc scenario) check(t testing.TB, dir string, durable []string) {
	t.Helper()
	s, err := store.Open(sc.config(dir))
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	defer s.Close()
	sp := s.Spool()
	var sum int64
	for _, st := range sp.List() {
		sum += st.Size
		if st.Committed {
			if err := sp.Verify(t.Context(), st.Digest); err != nil {
				t.Fatalf("committed blob: %v", err)
			}
		}
	}
	if used, limit := sp.Usage(); used != sum || used > limit {
		t.Fatalf("used %d of %d, the blobs have %d", used, limit, sum)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "spool", "*", "*"))
	var n int
	for _, st := range sp.List() {
		n++
		if !st.Committed {
			n++
		}
	}
	if n != len(files) {
		t.Fatalf("%d files for %v:\n%s", len(files), sp.List(), strings.Join(files, "\n"))
	}
	for _, ref := range durable {
		if st, ok, err := s.RefState(ref); err != nil || !ok || st.Base != ref {
			t.Fatalf("ref state %s, which was durable, is %+v, %v, %v", ref, st, ok, err)
		}
	}
}

// TestCrash_EveryOperation copies the directory before each disk operation, which is what a kill there leaves, and again with
// all that no checkpoint covers wiped, which is what a power cut may leave.
func TestCrash_EveryOperation(t *testing.T) {
	sc := newScenario()
	dir := t.TempDir()
	var f faultfs.Faults
	cfg := sc.config(dir)
	cfg.Fault = f.Check
	type crash struct{ op, dir string }
	var crashes []crash
	clones := t.TempDir()
	f.Before(func(op string) {
		to := filepath.Join(clones, fmt.Sprintf("%03d", len(crashes)))
		copyDir(t, dir, to)
		crashes = append(crashes, crash{op, to})
	})
	s := open(t, cfg)
	sc.run(s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	f.Before(nil)
	for i, c := range crashes {
		t.Run(fmt.Sprintf("%03d %s", i, c.op), func(t *testing.T) {
			t.Parallel()
			skipSome(t, i)
			killed, powerless := fastDir(t), fastDir(t)
			copyDir(t, c.dir, killed)
			copyDir(t, c.dir, powerless)
			wipeUnsynced(t, sc, powerless)
			for _, dir := range []string{killed, powerless} {
				sc.check(t, dir, nil)
				s := open(t, sc.config(dir))
				for _, data := range [][]byte{sc.small, sc.part, sc.large, sc.bad} {
					sc.complete(t, s, data)
				}
				_ = s.Close()
			}
		})
	}
	t.Logf("%d crash points", len(crashes))
}

// complete fetches a blob as an agent does: bad content that was left is found, dropped, and fetched again.
func (sc scenario) complete(t testing.TB, s *store.Store, data []byte) {
	t.Helper()
	err := sc.ingest(s, data)
	if errors.Is(err, store.ErrDigestMismatch) {
		err = sc.ingest(s, data)
	}
	if err != nil {
		t.Fatal(err)
	}
	storetest.Check(t, storetest.Disk(s.Spool()), data)
}

func (sc scenario) ingest(s *store.Store, data []byte) error {
	in, err := s.Spool().Ingest(storetest.Digest(data), int64(len(data)))
	if err != nil {
		if errors.Is(err, store.ErrExists) {
			return nil
		}
		return err
	}
	defer in.Close()
	if err := fill(in, data); err != nil {
		return err
	}
	return in.Commit()
}

// fastDir is a directory in memory where there is one: what these tests look at is the order of operations.
func fastDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "fanout-store-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// skipSome keeps a short run short.
func skipSome(t testing.TB, i int) {
	if testing.Short() && i%8 != 0 {
		t.Skip("short")
	}
}

// wipeUnsynced zeroes the content of ingests from their checkpoint on.
func wipeUnsynced(t testing.TB, sc scenario, dir string) {
	t.Helper()
	hashed := make(map[string]int64)
	probe := fastDir(t)
	copyDir(t, dir, probe)
	s, err := store.Open(sc.config(probe))
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	for _, st := range s.Spool().List() {
		if st.Committed {
			continue
		}
		in, err := s.Spool().Ingest(st.Digest, st.Size)
		if err != nil {
			t.Fatal(err)
		}
		hashed[st.Digest] = in.Status().Hashed
		_ = in.Close()
	}
	_ = s.Close()
	for _, data := range [][]byte{sc.small, sc.part, sc.large, sc.bad} {
		d := storetest.Digest(data)
		if h, ok := hashed[d]; ok {
			truncate(t, dataPath(dir, d), h)
			truncate(t, dataPath(dir, d), int64(len(data)))
		}
	}
}

// TestFaults_EveryOperation fails each disk operation once, goes on, and opens the directory again.
func TestFaults_EveryOperation(t *testing.T) {
	sc := newScenario()
	var clean faultfs.Faults
	cfg := sc.config(t.TempDir())
	cfg.Fault = clean.Check
	s := open(t, cfg)
	if got := sc.run(s); len(got) != 3 {
		t.Fatalf("without faults: %v", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	count := make(map[string]int)
	for i, op := range clean.Ops() {
		count[op]++
		n := count[op]
		t.Run(fmt.Sprintf("%s %d", op, n), func(t *testing.T) {
			t.Parallel()
			skipSome(t, i)
			var f faultfs.Faults
			f.FailNth(op, n, nil)
			dir := fastDir(t)
			cfg := sc.config(dir)
			cfg.Fault = f.Check
			var durable []string
			s, err := store.Open(cfg)
			if err == nil {
				durable = sc.run(s)
				_ = s.Close()
			} else if !errors.Is(err, faultfs.ErrInjected) {
				t.Fatal(err)
			}
			sc.check(t, dir, durable)
			s = open(t, sc.config(dir))
			for _, data := range [][]byte{sc.small, sc.part, sc.large, sc.bad} {
				sc.complete(t, s, data)
			}
			_ = s.Close()
		})
	}
	t.Logf("%d operations under %d labels", len(clean.Ops()), len(count))
}
