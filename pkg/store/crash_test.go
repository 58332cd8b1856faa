package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
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

func (sc scenario) blobs() [][]byte { return [][]byte{sc.small, sc.part, sc.large, sc.bad} }

func (sc scenario) config(dir, boot string) store.Config {
	return store.InBoot(store.Config{Dir: dir, SpoolBytes: 15 * piece, CheckpointBytes: 2 * piece}, boot)
}

// attempt writes what is missing of a blob below upTo, from its end, and then does end.
func attempt(sp *store.Spool, data []byte, upTo int64, end func(*store.Ingest) error) {
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

func leave(*store.Ingest) error { return nil }

// run returns the refs whose state it was told is durable.
func (sc scenario) run(s *store.Store) (durable []string) {
	sp := s.Spool()
	put := func(ref string) {
		if s.PutRefState(ref, store.RefState{Base: ref}) == nil {
			durable = append(durable, ref)
		}
	}
	put("a:1")
	attempt(sp, sc.small, 1<<40, (*store.Ingest).Commit)
	attempt(sp, sc.part, 3*piece, leave)
	attempt(sp, sc.large, 1<<40, (*store.Ingest).Commit)
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
	attempt(sp, sc.part, 5*piece, leave)
	_ = s.AddBlobs("library/x", storetest.Digest(sc.small))
	_ = s.PutManifests(store.Manifest{MediaType: "m", Digest: storetest.Digest([]byte("{}")), Content: []byte("{}")})
	_, _ = s.Manifest(storetest.Digest([]byte("{}")))
	look(sp, sc.large)
	put("c:1")
	return durable
}

func look(sp *store.Spool, data []byte) {
	if r, err := sp.Open(storetest.Digest(data)); err == nil {
		_, _ = r.ReadAt(make([]byte, 100), piece)
		_ = r.Close()
	}
}

// before leaves what next begins with: two blobs and progress, of which a power cut took some.
func (sc scenario) before(t testing.TB, dir string) {
	t.Helper()
	s := open(t, sc.config(dir, "a"))
	attempt(s.Spool(), sc.small, 1<<40, (*store.Ingest).Commit)
	attempt(s.Spool(), sc.large, 1<<40, (*store.Ingest).Commit)
	attempt(s.Spool(), sc.part, 5*piece, leave)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	corrupt(t, blobPath(dir, storetest.Digest(sc.large), len(sc.large)), 3*piece, make([]byte, piece))
	corrupt(t, dataPath(dir, storetest.Digest(sc.part)), piece, make([]byte, 100))
}

// next is what happens in the boot after that: one blob is proved, one found wrong and fetched anew, and progress goes on.
func (sc scenario) next(s *store.Store) (durable []string) {
	sp := s.Spool()
	look(sp, sc.small)
	look(sp, sc.large)
	attempt(sp, sc.large, 1<<40, (*store.Ingest).Commit)
	look(sp, sc.part)
	attempt(sp, sc.part, 1<<40, (*store.Ingest).Commit)
	sp.Evict(storetest.Digest(sc.small))
	return nil
}

// phases are the two, each in a boot of its own.
func (sc scenario) phases() []phase {
	return []phase{
		{boot: "a", before: func(testing.TB, string) {}, run: sc.run},
		{boot: "b", before: sc.before, run: sc.next, harmed: true},
	}
}

type phase struct {
	boot   string
	before func(t testing.TB, dir string)
	run    func(*store.Store) []string
	harmed bool // content on disk may be wrong
}

// check opens the directory without faults and holds it to the invariants. harmed: what is committed may turn out to be
// damaged, but is never served then.
func (sc scenario) check(t testing.TB, dir, boot string, harmed bool, durable []string) {
	t.Helper()
	s, err := store.Open(sc.config(dir, boot))
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	defer s.Close()
	sp := s.Spool()
	for _, st := range sp.List() {
		switch err := sp.Verify(t.Context(), st.Digest); {
		case harmed && errors.Is(err, store.ErrDamaged), !st.Committed && errors.Is(err, store.ErrIncomplete):
		case err != nil:
			t.Fatalf("%+v: %v", st, err)
		}
	}
	sc.serves(t, sp)
	var sum int64
	var n int
	for _, st := range sp.List() {
		sum += st.Size
		if n++; !st.Committed {
			n++
		}
	}
	if used, limit := sp.Usage(); used != sum || used > limit {
		t.Fatalf("used %d of %d, the blobs have %d", used, limit, sum)
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "spool", "*", "*")); n != len(files) {
		t.Fatalf("%d files for %v:\n%s", len(files), sp.List(), strings.Join(files, "\n"))
	}
	for _, ref := range durable {
		if st, ok, err := s.RefState(ref); err != nil || !ok || st.Base != ref {
			t.Fatalf("ref state %s, which was durable, is %+v, %v, %v", ref, st, ok, err)
		}
	}
}

// serves reads all that can be had and compares it. What a source lied about is served while it arrives, so bad is left out.
func (sc scenario) serves(t testing.TB, sp *store.Spool) {
	t.Helper()
	for _, data := range [][]byte{sc.small, sc.part, sc.large} {
		r, err := sp.Open(storetest.Digest(data))
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			t.Fatalf("Open: %v", err)
		}
		buf := make([]byte, piece)
		for off := int64(0); off < r.Size() && off < int64(len(data)); off += piece {
			if n, err := r.ReadAt(buf, off); !bytes.Equal(buf[:n], data[off:off+int64(n)]) {
				t.Fatalf("%s: other bytes at %d (%v)", r.Digest(), off, err)
			}
		}
		_ = r.Close()
	}
}

// keeps holds a directory whose process was killed to what was marked: it is all there, and what was committed in this boot
// is not even looked at.
func (sc scenario) keeps(t testing.TB, dir, boot string) {
	t.Helper()
	type marked struct {
		data   []byte
		pieces []bool
	}
	var progress []marked
	var whole [][]byte
	for _, data := range sc.blobs() {
		d := storetest.Digest(data)
		b, err := os.ReadFile(piecesPath(dir, d))
		switch {
		case exists(blobPath(dir, d, len(data))):
			whole = append(whole, data)
		case err == nil && len(b) > 128 && exists(dataPath(dir, d)):
			m := marked{data: data, pieces: make([]bool, (len(b)-128)/4)}
			for i := range m.pieces {
				m.pieces[i] = !bytes.Equal(b[128+4*i:132+4*i], make([]byte, 4))
			}
			progress = append(progress, m)
		}
	}
	s := open(t, sc.config(dir, boot))
	defer s.Close()
	if boot == "a" {
		for _, data := range whole {
			storetest.Check(t, storetest.Disk(s.Spool()), data)
		}
		if n := s.Spool().Counters().ReadBackBytes; n != 0 {
			t.Fatalf("%d bytes of committed blobs were read back", n)
		}
	}
	for _, m := range progress {
		in, err := s.Spool().Ingest(storetest.Digest(m.data), int64(len(m.data)))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range in.Missing() {
			for i := r.Off / piece; i*piece < r.Off+r.Len; i++ {
				// The piece that before damaged is found, and one only.
				if int(i) < len(m.pieces) && m.pieces[i] && !(boot == "b" && i == 1 && bytes.Equal(m.data, sc.part)) {
					t.Fatalf("%s: piece %d was marked and is missing", storetest.Digest(m.data), i)
				}
			}
		}
		_ = in.Close()
	}
}

// TestCrash_EveryOperation copies the directory before each disk operation, which is what a kill there leaves. Of further
// copies the spool and the cache, which nobody syncs, are harmed as a power cut may, and the machine is started anew.
func TestCrash_EveryOperation(t *testing.T) {
	sc := newScenario()
	type crash struct {
		op, dir string
		phase   phase
	}
	var crashes []crash
	clones := fastDir(t)
	for _, p := range sc.phases() {
		dir := t.TempDir()
		p.before(t, dir)
		var f faultfs.Faults
		cfg := sc.config(dir, p.boot)
		cfg.Fault = f.Check
		f.Before(func(op string) {
			to := filepath.Join(clones, fmt.Sprintf("%03d", len(crashes)))
			copyDir(t, dir, to)
			crashes = append(crashes, crash{op, to, p})
		})
		s := open(t, cfg)
		p.run(s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		f.Before(nil)
	}
	for i, c := range crashes {
		name := fmt.Sprintf("%03d %s", i, c.op)
		t.Run(name, func(t *testing.T) {
			skipSome(t, i)
			t.Run("killed", func(t *testing.T) {
				t.Parallel()
				sc.keeps(t, copyOf(t, c.dir), c.phase.boot)
				sc.converges(t, copyOf(t, c.dir), c.phase.boot, c.phase.harmed)
			})
			for j, harm := range harms {
				if j%2 != i%2 {
					continue
				}
				t.Run("power cut: "+harm.name, func(t *testing.T) {
					t.Parallel()
					dir := copyOf(t, c.dir)
					powerCut(t, dir, rand.New(rand.NewPCG(uint64(i), uint64(j))), harm.do)
					sc.converges(t, dir, "z", true)
				})
			}
		})
	}
	t.Logf("%d crash points", len(crashes))
}

// converges: nothing wrong is served, everything can be had, and a kill after that takes nothing away.
func (sc scenario) converges(t testing.TB, dir, boot string, harmed bool) {
	t.Helper()
	sc.check(t, dir, boot, harmed, nil)
	s := open(t, sc.config(dir, boot))
	for _, data := range sc.blobs() {
		sc.complete(t, s, data)
	}
	sc.check(t, copyOf(t, dir), boot, false, nil)
	_ = s.Close()
}

// powerCut harms each file that nobody synced, and may undo a rename.
func powerCut(t testing.TB, dir string, rnd *rand.Rand, harm func(t testing.TB, path string, rnd *rand.Rand)) {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(dir, "spool", "*", "*"))
	for _, path := range append(files, filepath.Join(dir, "cache.db")) {
		if !exists(path) {
			continue
		}
		harm(t, path, rnd)
		if d, name := filepath.Split(path); exists(path) && filepath.Base(d) == "unproved" && rnd.IntN(2) == 0 {
			if err := os.Rename(path, filepath.Join(dir, "spool", "blobs", name)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// harms are what may have become of a file.
var harms = []struct {
	name string
	do   func(t testing.TB, path string, rnd *rand.Rand)
}{
	{"zeros", func(t testing.TB, path string, _ *rand.Rand) { fillFile(t, path, 0, 0) }},
	{"cut", func(t testing.TB, path string, rnd *rand.Rand) { truncate(t, path, rnd.Int64N(fileSize(t, path)+1)) }},
	{"pages", harmPages},
	{"each another", func(t testing.TB, path string, rnd *rand.Rand) {
		switch rnd.IntN(5) {
		case 0:
			fillFile(t, path, 0, 0)
		case 1:
			truncate(t, path, rnd.Int64N(fileSize(t, path)+1))
		case 2:
			harmPages(t, path, rnd)
		case 3:
			remove(t, path)
		}
	}},
}

// harmPages leaves some pages, zeroes some, and fills some with what was there before.
func harmPages(t testing.TB, path string, rnd *rand.Rand) {
	page, size := int64(4096), fileSize(t, path)
	if size < page {
		page = 16
	}
	for off := int64(0); off < size; off += page {
		b := make([]byte, min(page, size-off))
		switch rnd.IntN(8) {
		case 0:
			corrupt(t, path, off, b)
		case 1:
			for i := range b {
				b[i] = byte(rnd.Uint32())
			}
			corrupt(t, path, off, b)
		}
	}
}

func fileSize(t testing.TB, path string) int64 {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Size()
}

func copyOf(t testing.TB, dir string) string {
	t.Helper()
	to := fastDir(t)
	copyDir(t, dir, to)
	return to
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

// skipSome keeps a short run short, and one under the race detector, which hashes slowly and has nothing to find here.
func skipSome(t testing.TB, i int) {
	if (testing.Short() || raceEnabled) && i%8 != 0 {
		t.Skip("short")
	}
}

// TestFaults_EveryOperation fails each disk operation once, goes on, and opens the directory again.
func TestFaults_EveryOperation(t *testing.T) {
	sc := newScenario()
	i := 0
	for _, p := range sc.phases() {
		var clean faultfs.Faults
		dir := t.TempDir()
		p.before(t, dir)
		before := copyOf(t, dir)
		cfg := sc.config(dir, p.boot)
		cfg.Fault = clean.Check
		s := open(t, cfg)
		want := p.run(s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if p.boot == "a" && len(want) != 3 {
			t.Fatalf("without faults: %v", want)
		}
		count := make(map[string]int)
		for _, op := range clean.Ops() {
			i++
			count[op]++
			n := count[op]
			t.Run(fmt.Sprintf("%s %s %d", p.boot, op, n), func(t *testing.T) {
				skipSome(t, i)
				t.Parallel()
				var f faultfs.Faults
				f.FailNth(op, n, nil)
				dir := copyOf(t, before)
				cfg := sc.config(dir, p.boot)
				cfg.Fault = f.Check
				var durable []string
				s, err := store.Open(cfg)
				if err == nil {
					durable = p.run(s)
					_ = s.Close()
				} else if !errors.Is(err, faultfs.ErrInjected) {
					t.Fatal(err)
				}
				sc.check(t, dir, p.boot, p.harmed, durable)
				sc.converges(t, dir, p.boot, false)
			})
		}
		t.Logf("boot %s: %d operations under %d labels", p.boot, len(clean.Ops()), len(count))
	}
}
