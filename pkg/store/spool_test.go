package store_test

import (
	"testing"

	"github.com/fanout-io/fanout/pkg/store"
	"github.com/fanout-io/fanout/pkg/store/storetest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const piece = int64(store.PieceSize)

func open(t testing.TB, cfg store.Config) *store.Store {
	t.Helper()
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
