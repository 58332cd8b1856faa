package store_test

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/fanout-io/fanout/pkg/store"
	"github.com/fanout-io/fanout/pkg/store/storetest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const piece = int64(store.PieceSize)

// open opens in one and the same boot of the machine, unless cfg names another.
func open(t testing.TB, cfg store.Config) *store.Store {
	t.Helper()
	if !store.HasBoot(cfg) {
		cfg = store.InBoot(cfg, "test")
	}
	if cfg.SpoolBytes == 0 {
		cfg.SpoolBytes = storetest.Limit
	}
	s, err := store.Open(cfg)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestSuite(t *testing.T) {
	storetest.Suite(t, func(t testing.TB) storetest.Subject {
		cfg := store.Config{Dir: t.TempDir(), CheckpointBytes: 2 * piece}
		s := open(t, cfg)
		return storetest.Subject{
			Spool: storetest.Disk(s.Spool()),
			Reopen: func() storetest.Spool {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = open(t, cfg)
				return storetest.Disk(s.Spool())
			},
			HashedBytes: func() int64 { return s.Spool().Counters().HashedBytes },
		}
	})
}

// TestEvict: only what is committed and closed goes, and it can be had again.
func TestEvict(t *testing.T) {
	dir := t.TempDir()
	s := open(t, store.Config{Dir: dir})
	sp := s.Spool()
	data, d := storetest.Content(1, 2*piece+7)
	if sp.Evict(d) || sp.Evict("sha256:x") {
		t.Fatal("evicted what is not there")
	}
	in := ingest(t, s, data)
	writePieces(t, in, data, 0)
	if sp.Evict(d) {
		t.Fatal("evicted what has a writer")
	}
	_ = in.Close()
	if sp.Evict(d) {
		t.Fatal("evicted progress")
	}
	finish(t, s, data)
	r, err := sp.Open(d)
	if err != nil {
		t.Fatal(err)
	}
	if sp.Evict(d) {
		t.Fatal("evicted what is read")
	}
	if _, err := r.ReadAt(make([]byte, 10), 0); err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	if !sp.Evict(d) || sp.Evict(d) {
		t.Fatal("what nobody has open is not evicted once")
	}
	if used, _ := sp.Usage(); used != 0 {
		t.Fatalf("used %d", used)
	}
	if _, err := sp.Open(d); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("Open: %v", err)
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "spool", "*", "*")); len(files) != 0 {
		t.Fatalf("files left: %v", files)
	}
	finish(t, s, data)
	_ = s.Close()
	if sp.Evict(d) {
		t.Fatal("evicted from a closed store")
	}
}
