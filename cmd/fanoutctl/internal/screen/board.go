package screen

import (
	"io"
	"strings"
	"sync"
	"time"

	"github.com/cheggaaa/pb/v3"
)

// refresh bounds how often a board is drawn.
const refresh = 100 * time.Millisecond

const barTemplate = pb.ProgressBarTemplate(`{{string . "name"}} {{bar . "[" "=" ">" " " "]"}} {{percent .}} {{string . "text"}}`)

// Board shows a bar for each of several things, until Close. Its methods may be called from several goroutines.
type Board struct {
	frame *Frame
	mu    sync.Mutex
	bars  []*pb.ProgressBar
	dirty bool
	err   error
	stop  chan struct{}
	ended chan struct{}
	once  sync.Once
}

// NewBoard starts a board with a bar for each name on a terminal.
func NewBoard(w io.Writer, caps Caps, names []string) *Board {
	b := &Board{frame: NewFrame(w, caps), stop: make(chan struct{}), ended: make(chan struct{}), dirty: true}
	widest := 0
	for _, name := range names {
		widest = max(widest, pb.CellCount(name))
	}
	for _, name := range names {
		bar := pb.New(1000).SetTemplate(barTemplate).SetWriter(io.Discard)
		// Static: the board draws, no bar does; so no bar has a goroutine.
		bar.Set(pb.Static, true).Set(pb.Terminal, true).Set(pb.Color, caps.Color)
		bar.Set("name", name+strings.Repeat(" ", widest-pb.CellCount(name))).Set("text", "")
		b.bars = append(b.bars, bar)
	}
	go b.run()
	return b
}

// Set shows how far the i-th thing is, from 0 to 1, and a text.
func (b *Board) Set(i int, done float64, text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bars[i].SetCurrent(int64(1000*min(max(done, 0), 1))).Set("text", Clean(text))
	b.dirty = true
}

// Close draws the last state and ends the board.
func (b *Board) Close() error {
	b.once.Do(func() { close(b.stop) })
	<-b.ended
	return b.err
}

func (b *Board) run() {
	defer close(b.ended)
	tick := time.NewTicker(refresh)
	defer tick.Stop()
	for {
		b.draw()
		select {
		case <-tick.C:
		case <-b.stop:
			b.draw()
			return
		}
	}
}

func (b *Board) draw() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.dirty || b.err != nil {
		return
	}
	b.dirty = false
	width, _ := b.frame.caps.Size()
	if width <= 0 {
		width = 80
	}
	var lines strings.Builder
	for _, bar := range b.bars {
		lines.WriteString(bar.SetWidth(min(width-1, 120)).String() + "\n")
	}
	b.err = b.frame.Draw(lines.String())
}
