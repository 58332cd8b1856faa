package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
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

// allocated is how many bytes and objects a process has allocated so far, by its own metrics.
func (s *site) allocated() (bytes, objects float64) {
	resp, err := http.Get("http://" + s.http + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	value := func(name string) float64 {
		for line := range strings.Lines(string(body)) {
			if text, ok := strings.CutPrefix(line, name+" "); ok {
				v, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
				if err != nil {
					s.t.Fatal(err)
				}
				return v
			}
		}
		s.t.Fatalf("%s has no metric %s", s.name, name)
		return 0
	}
	return value("go_memstats_alloc_bytes_total"), value("go_memstats_mallocs_total")
}

// BenchmarkOneHop delivers an image of 4 × 64 MiB from headquarters to a province, and copies the same image with crane between two registries of the same make.
func BenchmarkOneHop(b *testing.B) {
	const size, layers = 64 << 20, 4
	sites := start(b, spec{name: "hq-a", group: "hq"}, spec{name: "gd-a", group: "hq/gd"})
	plain := start(b, spec{name: "x-a", group: "x"})["x-a"]
	var fanout, copied, used time.Duration
	var bytes, objects float64
	for i := 0; b.Loop(); i++ {
		img := generatedImage(b, byte(16*i), size, layers)
		ref := fmt.Sprintf("bench/hop:%d", i)
		before := sites["hq-a"].cpu() + sites["gd-a"].cpu()
		bytesBefore, objectsBefore := sites["gd-a"].allocated()
		digest := push(b, sites["hq-a"], ref, img)
		begin := time.Now()
		within(b, 10*time.Minute, "delivery", func() error { return head(b, sites["gd-a"], ref, digest) })
		fanout += time.Since(begin)
		used += sites["hq-a"].cpu() + sites["gd-a"].cpu() - before
		bytesAfter, objectsAfter := sites["gd-a"].allocated()
		bytes, objects = bytes+bytesAfter-bytesBefore, objects+objectsAfter-objectsBefore
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
	b.ReportMetric(used.Seconds()/(mib/1024), "cpu-s/GiB") // the push into headquarters' registry included
	// At the receiver, the registry in it included.
	b.ReportMetric(bytes/(1<<20)/(mib/1024), "alloc-MiB/GiB")
	b.ReportMetric(objects/(mib/1024), "allocs/GiB")
}

func head(t testing.TB, s *site, ref, digest string) error {
	d, err := remote.Head(reference(t, s, ref))
	if err == nil && d.Digest.String() != digest {
		err = fmt.Errorf("it shows %s", d.Digest)
	}
	return err
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

// BenchmarkPeakMemory passes a layer of 128 MiB and then one of 2 GiB through a province and compares the most memory that its agent, the registry in it included, had.
func BenchmarkPeakMemory(b *testing.B) {
	for b.Loop() {
		sites := start(b, spec{name: "hq-a", group: "hq"}, spec{name: "gd-a", group: "hq/gd"}, spec{name: "sz-a", group: "hq/gd/sz"})
		var peaks []int64
		for i, size := range []int64{128 << 20, 2 << 30} {
			ref := fmt.Sprintf("bench/layer:%d", i)
			digest := push(b, sites["hq-a"], ref, generatedImage(b, byte(100+i), size, 1))
			within(b, 10*time.Minute, "delivery", func() error { return head(b, sites["sz-a"], ref, digest) })
			peaks = append(peaks, sites["gd-a"].peak())
		}
		b.ReportMetric(float64(peaks[0])/(1<<20), "MiB-at-128MiB")
		b.ReportMetric(float64(peaks[1])/(1<<20), "MiB-at-2GiB")
		b.ReportMetric(float64(peaks[1])/float64(peaks[0]), "growth")
	}
}
