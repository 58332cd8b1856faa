package agent

import (
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	treev1 "github.com/fanout-io/fanout/proto/fanout/tree/v1"
)

const (
	// diskEvery is how often the room on the disks is looked at for the report.
	diskEvery = 10 * time.Second
	// diskSteps is in how many steps it is reported: a report that changes with every line of a log would cross all links, for ever.
	diskSteps = 200
)

// room is how many bytes a directory's disk has left; false where that can't be said.
func room(dir string) (int64, bool) {
	free, _, ok := diskSpace(dir)
	return free, ok
}

// disks is the room on this site's disks as it is reported. Safe for concurrent use.
type disks struct {
	mu             sync.Mutex
	looked         time.Time
	spool, content *treev1.Disk
}

// put fills in what a report says of the disks and the certificate.
func (a *Agent) putResources(h *treev1.SiteHealth) {
	a.disks.mu.Lock()
	defer a.disks.mu.Unlock()
	if now := time.Now(); now.Sub(a.disks.looked) >= diskEvery {
		a.disks.looked, a.disks.spool, a.disks.content = now, diskOf(a.cfg.DataDir), nil
		if a.embedded != nil {
			a.disks.content = diskOf(a.cfg.Registry.Data)
		}
	}
	h.Disk, h.RegistryDisk = a.disks.spool, a.disks.content
	if a.identity != nil {
		h.CertificateExpires = timestamppb.New(a.identity.NotAfter())
	}
}

func diskOf(dir string) *treev1.Disk {
	free, total, ok := diskSpace(dir)
	if !ok {
		return nil
	}
	return &treev1.Disk{Free: inSteps(free, total), Total: total}
}

// inSteps rounds down, so that small changes are none.
func inSteps(free, total int64) int64 {
	step := max(total/diskSteps, 1)
	return free / step * step
}
