package integration

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/fanout-io/fanout/pkg/registry/harbortest"
)

// smallDisk is a file system of a few MiB that a test can fill.
type smallDisk struct{ dir string }

// mountDisk mounts one for the time of the test.
func mountDisk(t testing.TB, bytes int64) *smallDisk {
	t.Helper()
	dir := t.TempDir()
	err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes))
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		t.Skipf("a small disk can't be mounted (%v): run this test as root", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmounting the small disk: %v", err)
			_ = syscall.Unmount(dir, syscall.MNT_DETACH)
		}
	})
	return &smallDisk{dir}
}

func (d *smallDisk) data() string    { return filepath.Join(d.dir, "data") }
func (d *smallDisk) ballast() string { return filepath.Join(d.dir, "ballast") }

// fill takes all the room there is but so many bytes.
func (d *smallDisk) fill(t testing.TB, but int64) {
	t.Helper()
	f, err := os.OpenFile(d.ballast(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 4096)
	var n int64
	for {
		k, err := f.WriteAt(block, n)
		n += int64(k)
		if errors.Is(err, syscall.ENOSPC) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(n - but); err != nil {
		t.Fatal(err)
	}
}

// empty gives the room back.
func (d *smallDisk) empty(t testing.TB) {
	t.Helper()
	if err := os.Remove(d.ballast()); err != nil {
		t.Fatal(err)
	}
}

const fullDisk = "no space left on device"

// tags pushes many tags of one image: each is a record in every raft log, and no blob.
func tags(t testing.TB, at *site, repo string, n int) (digest, last string) {
	t.Helper()
	img := image(t, 1<<10, 1)
	digest = push(t, at, repo+":0", img)
	for i := 1; i < n; i++ {
		last = fmt.Sprintf("%s:%d", repo, i)
		if err := remote.Put(reference(t, at, last), img); err != nil {
			t.Fatal(err)
		}
	}
	return digest, last
}

// waits waits until where says that a site has not received a record, with all the words.
func waits(t testing.TB, hq *site, at, ref string, words ...string) {
	t.Helper()
	eventually(t, ref+" is said to wait at "+at, func() error {
		for _, w := range hq.where(ref) {
			if w.Site == at && w.State == "waiting" {
				return says(w.Reason, words...)
			}
		}
		return fmt.Errorf("%+v", hq.where(ref))
	})
}

// alive waits until a site's process answers.
func (s *site) alive() {
	s.t.Helper()
	eventually(s.t, s.name+" is alive", func() error {
		resp, err := http.Get("http://" + s.http + "/healthz")
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
}

// TestFullDisk fills the disk of a province: first so far that no blob finds room, then so far that its raft log doesn't.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	for _, embedded := range []bool{false, true} {
		t.Run(fmt.Sprintf("embedded=%v", embedded), func(t *testing.T) {
			t.Parallel()
			disk := mountDisk(t, 48<<20)
			gd := spec{name: "gd-a", group: "hq/gd", data: disk.data()}
			if !embedded {
				gd.extra = serveFake(t, "oci", harbortest.Config{Knobs: harbortest.Knobs{Plain: true}}).extra
			}
			sites := start(t, spec{name: "hq-a", group: "hq"}, gd, spec{name: "sz-a", group: "hq/gd/sz"}, spec{name: "hn-a", group: "hq/hn"})
			hq := sites["hq-a"]
			hq.quiet("app/first:1", push(t, hq, "app/first:1", image(t, 64<<10, 1)))

			half := ""
			if embedded { // room for the spool's copy, and none for the registry's
				disk.fill(t, 3<<20)
				half = push(t, hq, "app/half:1", image(t, 2<<20, 1))
				fails(t, hq, "gd-a", "app/half:1", "500", "the disk of the embedded registry has ")
				treeSays(t, hq, "gd-a", "degraded", "500", "the disk of the embedded registry has ", "next attempt")
			}
			disk.fill(t, 0)
			web := push(t, hq, "app/web:1", image(t, 2<<20, 2))
			fails(t, hq, "gd-a", "app/web:1", fullDisk)
			if !embedded { // else it is still of the first ref that the tree tells
				treeSays(t, hq, "gd-a", "degraded", fullDisk)
			}
			shows(t, sites["hn-a"], "app/web:1", web)

			many, last := tags(t, hq, "app/many", 300)
			treeSays(t, hq, "gd-a", "degraded", "raft log: ", fullDisk, "every second")
			waits(t, hq, "gd-a", last, "raft log: ", fullDisk, "every second")
			shows(t, sites["hn-a"], last, many)
			sites["gd-a"].alive()

			// One that dies meanwhile comes up again on the full disk.
			sites["gd-a"].kill()
			sites["gd-a"].start()
			sites["gd-a"].alive()
			treeSays(t, hq, "gd-a", "degraded", fullDisk)

			disk.empty(t)
			hq.quiet("app/web:1", web)
			if embedded {
				hq.quiet("app/half:1", half)
			}
			hq.quiet(last, many)
			treeSays(t, hq, "gd-a", "synced")
			treeSays(t, hq, "sz-a", "synced")
		})
	}
}

// TestFullRaftDisk fills the disk of one of three members of headquarters, be it the root or not.
func TestFullRaftDisk(t *testing.T) {
	t.Parallel()
	for _, full := range []string{"root", "follower"} {
		t.Run(full, func(t *testing.T) {
			t.Parallel()
			var specs []spec
			disks := map[string]*smallDisk{}
			for _, name := range []string{"hq-a", "hq-b", "hq-c"} {
				disks[name] = mountDisk(t, 48<<20)
				specs = append(specs, spec{name: name, group: "hq", data: disks[name].data()})
			}
			sites := start(t, append(specs, spec{name: "gd-a", group: "hq/gd"})...)
			root := rootOf(t, sites, sites["hq-a"])
			var other *site
			for _, s := range root.members {
				if s != root {
					other = s
				}
			}
			victim, at := root, other // at stays well
			if full == "follower" {
				victim, at = other, root
			}
			at.quiet("app/first:1", push(t, at, "app/first:1", image(t, 64<<10, 1)))
			disks[victim.name].fill(t, 0)
			many, last := tags(t, at, "app/many", 300)
			shows(t, sites["gd-a"], last, many)
			treeSays(t, at, victim.name, "degraded", "raft log: ", fullDisk, "every second")
			victim.alive()
			if now := rootOf(t, sites, at); now == victim {
				t.Error("the member with the full disk is the root")
			}
			disks[victim.name].empty(t)
			at.quiet(last, many)
			shows(t, victim, last, many)
			treeSays(t, at, victim.name, "synced")
		})
	}
}

// TestFullRaftDiskAlone fills the disk of headquarters that has one member. What is published meanwhile is not acknowledged, and counts when there is room.
func TestFullRaftDiskAlone(t *testing.T) {
	t.Parallel()
	disk := mountDisk(t, 48<<20)
	fake := serveFake(t, "oci", harbortest.Config{Knobs: harbortest.Knobs{Plain: true}})
	sites := start(t,
		spec{name: "hq-a", group: "hq", data: disk.data(), extra: fake.extra + "sweep: {interval: 1s}\n"}, spec{name: "gd-a", group: "hq/gd"})
	hq := sites["hq-a"]
	auth := remote.WithAuth(&authn.Basic{Username: fake.Username(), Password: fake.Password()})
	at := &site{name: "fake", reg: fake.addr}
	img := image(t, 1<<10, 1)
	if err := remote.Write(reference(t, at, "app/many:0"), img, auth); err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	shows(t, sites["gd-a"], "app/many:0", digest.String())
	disk.fill(t, 0)
	last := ""
	for i := range 300 {
		last = fmt.Sprintf("app/many:%d", i)
		if err := remote.Put(reference(t, at, last), img, auth); err != nil {
			t.Fatal(err)
		}
	}
	treeSays(t, hq, "hq-a", "degraded", "raft log: ", fullDisk, "every second")
	if out, code := hq.ctl("publish", last, "--timeout", "2s"); code == 0 {
		t.Errorf("a publish on the full disk is acknowledged: %s", out)
	}
	hq.alive()
	disk.empty(t)
	for i := range 300 {
		shows(t, sites["gd-a"], fmt.Sprintf("app/many:%d", i), digest.String())
	}
	treeSays(t, hq, "hq-a", "synced")
}
