package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/crane"
	ggcr "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// generated is a layer that does not compress and is held nowhere: its bytes come from a seed.
type generated struct {
	seed byte
	size int64
	hash ggcr.Hash
}

func generate(t testing.TB, seed byte, size int64) *generated {
	l := &generated{seed: seed, size: size}
	h := sha256.New()
	if _, err := io.Copy(h, l.reader()); err != nil {
		t.Fatal(err)
	}
	l.hash = ggcr.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
	return l
}

func (l *generated) reader() io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{l.seed, byte(l.size >> 20)}), l.size)
}

func (l *generated) Digest() (ggcr.Hash, error)           { return l.hash, nil }
func (l *generated) DiffID() (ggcr.Hash, error)           { return l.hash, nil }
func (l *generated) Size() (int64, error)                 { return l.size, nil }
func (l *generated) MediaType() (types.MediaType, error)  { return types.OCIUncompressedLayer, nil }
func (l *generated) Compressed() (io.ReadCloser, error)   { return io.NopCloser(l.reader()), nil }
func (l *generated) Uncompressed() (io.ReadCloser, error) { return l.Compressed() }

func generatedImage(t testing.TB, seed byte, size int64, layers int) ggcr.Image {
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	for i := range layers {
		var err error
		if img, err = mutate.AppendLayers(img, generate(t, seed+byte(i), size)); err != nil {
			t.Fatal(err)
		}
	}
	return img
}

// cpu is what a process has used so far.
func (s *site) cpu() time.Duration {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(s.cmd.Process.Pid), "stat"))
	if err != nil {
		s.t.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+2:]))
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			s.t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100)
}

// peak is the most memory that a process had resident so far, in bytes.
func (s *site) peak() int64 {
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(s.cmd.Process.Pid), "status"))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, line := range strings.Split(string(status), "\n") {
		if kib, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(kib, "kB")), 10, 64)
			if err != nil {
				s.t.Fatal(err)
			}
			return n << 10
		}
	}
	s.t.Fatal("no VmHWM")
	return 0
}

// BenchmarkOneHop delivers an image of 4 × 64 MiB from headquarters to a province, and copies the same image with crane between two registries of the same make.
func BenchmarkOneHop(b *testing.B) {
	const size, layers = 64 << 20, 4
	sites := start(b, spec{name: "hq-a", group: "hq"}, spec{name: "gd-a", group: "hq/gd"})
	plain := start(b, spec{name: "x-a", group: "x"})["x-a"]
	var fanout, copied, used time.Duration
	var allocated, objects float64
	heap := func(what string) float64 { return sites["hq-a"].metric(what) + sites["gd-a"].metric(what) }
	const bytesMetric, objectsMetric = "go_memstats_alloc_bytes_total", "go_memstats_mallocs_total"
	for i := 0; b.Loop(); i++ {
		img := generatedImage(b, byte(16*i), size, layers)
		ref := fmt.Sprintf("bench/hop:%d", i)
		before := sites["hq-a"].cpu() + sites["gd-a"].cpu()
		heldBytes, heldObjects := heap(bytesMetric), heap(objectsMetric)
		digest := push(b, sites["hq-a"], ref, img)
		begin := time.Now()
		within(b, 10*time.Minute, "delivery", func() error { return head(b, sites["gd-a"], ref, digest) })
		fanout += time.Since(begin)
		used += sites["hq-a"].cpu() + sites["gd-a"].cpu() - before
		allocated, objects = allocated+heap(bytesMetric)-heldBytes, objects+heap(objectsMetric)-heldObjects
		begin = time.Now()
		if err := crane.Copy(sites["hq-a"].reg+"/"+ref, plain.reg+"/"+ref, crane.Insecure); err != nil {
			b.Fatal(err)
		}
		copied += time.Since(begin)
	}
	mib := float64(b.N) * layers * size / (1 << 20)
	b.ReportMetric(mib/fanout.Seconds(), "MiB/s")
	b.ReportMetric(mib/copied.Seconds(), "crane-MiB/s")
	b.ReportMetric(fanout.Seconds()/copied.Seconds(), "time/crane")
	b.ReportMetric(allocated/(1<<20)/(mib/1024), "MiB-allocated/GiB")
	b.ReportMetric(used.Seconds()/(mib/1024), "cpu-s/GiB") // the push into headquarters' registry included
	b.ReportMetric(objects/(mib/1024), "allocations/GiB")
}

func head(t testing.TB, s *site, ref, digest string) error {
	d, err := remote.Head(reference(t, s, ref))
	if err == nil && d.Digest.String() != digest {
		err = fmt.Errorf("it shows %s", d.Digest)
	}
	return err
}

// BenchmarkCutThrough lets one layer go through three tiers over links of a fixed rate. The best that can be is its bytes through one link; hop by hop it is twice that.
func BenchmarkCutThrough(b *testing.B) {
	const size, perSecond = 64 << 20, 16 << 20
	sites := start(b,
		spec{name: "hq-a", group: "hq", counted: true}, spec{name: "gd-a", group: "hq/gd", counted: true},
		spec{name: "sz-a", group: "hq/gd/sz"}, spec{name: "fs-a", group: "hq/gd/fs"},
	)
	sites["hq-a"].link.throttle(perSecond)
	sites["gd-a"].link.throttle(2 * perSecond) // two cities share the proxy
	var province, cities time.Duration
	for i := 0; b.Loop(); i++ {
		ref := fmt.Sprintf("bench/cut:%d", i)
		digest := push(b, sites["hq-a"], ref, generatedImage(b, byte(50+i), size, 1))
		begin := time.Now()
		within(b, 10*time.Minute, "delivery to the province", func() error { return head(b, sites["gd-a"], ref, digest) })
		province += time.Since(begin)
		for _, city := range []string{"sz-a", "fs-a"} {
			within(b, 10*time.Minute, "delivery to the city", func() error { return head(b, sites[city], ref, digest) })
		}
		cities += time.Since(begin)
	}
	best := float64(b.N) * size / perSecond
	b.ReportMetric(province.Seconds()/best, "province/best")
	b.ReportMetric(cities.Seconds()/best, "last-city/best")
	b.ReportMetric((cities-province).Seconds()*1000/float64(b.N), "ms-province-to-last-city")
}

// BenchmarkSmallPublish is the time from the end of a push of some KiB until the city of a three-tier fabric shows it.
func BenchmarkSmallPublish(b *testing.B) {
	sites := start(b, spec{name: "hq-a", group: "hq"}, spec{name: "gd-a", group: "hq/gd"}, spec{name: "sz-a", group: "hq/gd/sz"})
	var took time.Duration
	for i := 0; b.Loop(); i++ {
		ref := fmt.Sprintf("bench/small:%d", i)
		digest := push(b, sites["hq-a"], ref, image(b, 4<<10, 2))
		begin := time.Now()
		within(b, 10*time.Minute, "delivery", func() error { return head(b, sites["sz-a"], ref, digest) })
		took += time.Since(begin)
	}
	b.ReportMetric(float64(took.Milliseconds())/float64(b.N), "ms/publish")
}

// BenchmarkPeakMemory passes layers of 128 MiB, 512 MiB and 2 GiB through a province and compares the most memory that its agent, the registry in it included, had.
func BenchmarkPeakMemory(b *testing.B) {
	for b.Loop() {
		sites := start(b, spec{name: "hq-a", group: "hq"}, spec{name: "gd-a", group: "hq/gd"}, spec{name: "sz-a", group: "hq/gd/sz"})
		var peaks []int64
		for i, size := range []int64{128 << 20, 512 << 20, 2 << 30} {
			ref := fmt.Sprintf("bench/layer:%d", i)
			digest := push(b, sites["hq-a"], ref, generatedImage(b, byte(100+i), size, 1))
			within(b, 10*time.Minute, "delivery", func() error { return head(b, sites["sz-a"], ref, digest) })
			peaks = append(peaks, sites["gd-a"].peak())
		}
		b.ReportMetric(float64(peaks[0])/(1<<20), "MiB-at-128MiB")
		b.ReportMetric(float64(peaks[1])/(1<<20), "MiB-at-512MiB")
		b.ReportMetric(float64(peaks[2])/(1<<20), "MiB-at-2GiB")
		b.ReportMetric(float64(peaks[2])/float64(peaks[1]), "growth-from-512MiB")
	}
}
