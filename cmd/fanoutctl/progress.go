package main

import (
	"fmt"
	"sync"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/screen"
	"github.com/fanout-io/fanout/pkg/view"
	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// progress shows publishes on stderr: bars on a terminal, elsewhere a line for each change. It may be used from several goroutines.
type progress struct {
	a     *app
	refs  []string
	wait  bool
	board *screen.Board
	mu    sync.Mutex
	last  []string
	most  []int64 // bytes that were left at most
}

func (a *app) newProgress(refs []string, wait bool) *progress {
	p := &progress{a: a, refs: refs, wait: wait, last: make([]string, len(refs)), most: make([]int64, len(refs))}
	if a.err.Terminal {
		p.board = screen.NewBoard(a.stderr, a.err, refs)
	}
	return p
}

func (p *progress) update(i int, r *adminv1.PublishResponse) {
	p.mu.Lock()
	most := max(p.most[i], r.GetBytesLeft())
	p.most[i] = most
	p.mu.Unlock()
	p.show(i, fraction(r, p.wait, most), progressText(r, p.wait), r.GetBytesLeft())
}

// show shows how far the i-th ref is, from 0 to 1.
func (p *progress) show(i int, done float64, text string, bytesLeft int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.board != nil {
		if bytesLeft > 0 {
			text += ", " + view.Bytes(bytesLeft) + " left"
		}
		p.board.Set(i, done, text)
		return
	}
	if text != p.last[i] {
		p.last[i] = text
		fmt.Fprintln(p.a.stderr, p.refs[i]+": "+screen.Clean(text))
	}
}

func (p *progress) note(i int, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.board != nil {
		p.board.Set(i, 0, text)
		return
	}
	p.last[i] = ""
	fmt.Fprintln(p.a.stderr, p.refs[i]+": "+screen.Clean(text))
}

func (p *progress) close() {
	if p.board != nil {
		// It failed where stderr did; there is nowhere to say so.
		_ = p.board.Close()
	}
}

// progressText leaves the bytes out: they change all the time.
func progressText(r *adminv1.PublishResponse, wait bool) string {
	text := "reading"
	if r.GetRevision() > 0 {
		text = fmt.Sprintf("revision %d, ", r.GetRevision())
		if r.GetCopies() < r.GetCopiesWanted() {
			text += fmt.Sprintf("%d of ", r.GetCopies()) + view.Plural(int(r.GetCopiesWanted()), "copy", "copies")
		} else {
			text += view.Plural(int(r.GetCopies()), "copy", "copies")
		}
		if wait {
			text += fmt.Sprintf(", %d of %s", r.GetDelivered(), view.Plural(int(r.GetSites()), "site"))
		}
		if r.GetFailed() > 0 {
			text += fmt.Sprintf(", %d failed", r.GetFailed())
		}
	}
	if r.GetMessage() != "" {
		text += " (" + r.GetMessage() + ")"
	}
	return text
}

// fraction counts sites, or copies; what is under way counts by its bytes.
func fraction(r *adminv1.PublishResponse, wait bool, most int64) float64 {
	if r.GetDone() {
		return 1
	}
	have, want := r.GetCopies(), r.GetCopiesWanted()
	if wait {
		have, want = r.GetDelivered(), r.GetSites()
	}
	if r.GetRevision() == 0 || want == 0 {
		return 0
	}
	whole := min(float64(have)/float64(want), 1)
	if most > 0 {
		whole += (1 - whole) * (1 - float64(r.GetBytesLeft())/float64(most))
	}
	return min(whole, 0.999)
}
