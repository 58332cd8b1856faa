package store_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"sync"
	"testing"

	"github.com/fanout-io/fanout/pkg/store"
	"github.com/fanout-io/fanout/pkg/store/storetest"
)

// fresh gives content another digest each time.
func fresh(data []byte, n uint64) (digest string) {
	binary.LittleEndian.PutUint64(data, n)
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// BenchmarkIngest writes, hashes and commits.
func BenchmarkIngest(b *testing.B) {
	for _, c := range []struct {
		name  string
		size  int
		write int
	}{{"64MiB", 64 << 20, 256 << 10}, {"64MiB/1MiBWrites", 64 << 20, 1 << 20}, {"100KiB", 100 << 10, 256 << 10}} {
		b.Run(c.name, func(b *testing.B) {
			s := open(b, store.Config{Dir: b.TempDir(), SpoolBytes: 512 << 20})
			data, _ := storetest.Content(1, int64(c.size))
			b.SetBytes(int64(c.size))
			b.ReportAllocs()
			n := uint64(0)
			for b.Loop() {
				b.StopTimer()
				n++
				digest := fresh(data, n)
				b.StartTimer()
				in, err := s.Spool().Ingest(digest, int64(len(data)))
				if err != nil {
					b.Fatal(err)
				}
				for off := 0; off < len(data); off += c.write {
					if _, err := in.WriteAt(data[off:min(off+c.write, len(data))], int64(off)); err != nil {
						b.Fatal(err)
					}
				}
				if err := in.Commit(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkFollow writes and commits while four readers follow; bytes are those of the blob, once.
func BenchmarkFollow(b *testing.B) {
	s := open(b, store.Config{Dir: b.TempDir(), SpoolBytes: 512 << 20})
	data, _ := storetest.Content(1, 64<<20)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	n := uint64(0)
	for b.Loop() {
		b.StopTimer()
		n++
		digest := fresh(data, n)
		b.StartTimer()
		in, err := s.Spool().Ingest(digest, int64(len(data)))
		if err != nil {
			b.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 4 {
			r := in.NewReader()
			wg.Go(func() {
				defer r.Close()
				buf := make([]byte, 256<<10)
				for off := int64(0); off < r.Size(); {
					avail, err := r.Wait(b.Context(), off)
					if err != nil {
						b.Error(err)
						return
					}
					k, err := r.ReadAt(buf[:min(int64(len(buf)), avail)], off)
					if err != nil {
						b.Error(err)
						return
					}
					off += int64(k)
				}
			})
		}
		for off := 0; off < len(data); off += 256 << 10 {
			if _, err := in.WriteAt(data[off:off+256<<10], int64(off)); err != nil {
				b.Fatal(err)
			}
		}
		if err := in.Commit(); err != nil {
			b.Fatal(err)
		}
		wg.Wait()
	}
}

// TestAllocs: reading allocates nothing, writing a piece nothing that grows with it.
func TestAllocs(t *testing.T) {
	s := open(t, store.Config{Dir: t.TempDir(), SpoolBytes: 1 << 30})
	data, _ := storetest.Content(1, 300*piece)
	in := ingest(t, s, data)
	defer in.Close()
	r := in.NewReader()
	defer r.Close()
	st := r.Stream(t.Context(), 0)
	defer st.Close()
	buf := make([]byte, 1<<10)
	i := 0
	if n := testing.AllocsPerRun(200, func() { writePieces(t, in, data, i); i++ }); n > 0 && !raceEnabled {
		t.Errorf("WriteAt: %v allocations", n)
	}
	ctx := context.Background()
	for name, fn := range map[string]func(){
		"Wait":   func() { _, _ = r.Wait(ctx, 5) },
		"ReadAt": func() { _, _ = r.ReadAt(buf, 5) },
		"Read":   func() { _, _ = st.Read(buf) },
	} {
		if n := testing.AllocsPerRun(100, fn); n > 0 && !raceEnabled {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	// A Wait that really waits allocates what it waits on.
	gate := make(chan int)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for k := range gate {
			writePieces(t, in, data, k)
		}
	}()
	if n := testing.AllocsPerRun(50, func() {
		gate <- i
		if _, err := r.Wait(ctx, int64(i)*piece); err != nil {
			t.Error(err)
		}
		i++
	}); n > 3 && !raceEnabled {
		t.Errorf("waiting: %v allocations", n)
	}
	close(gate)
	<-done
}
