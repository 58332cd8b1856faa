// Package screen is the terminal: what it can do, and how something is drawn on it again and again without flicker.
//
// It decides nothing about content. A Frame and a Board are used by one goroutine at a time.
package screen

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/cheggaaa/pb/v3"
	"golang.org/x/term"

	"github.com/fanout-io/fanout/pkg/view"
)

// Caps says what can be done on an output.
type Caps struct {
	Terminal bool // lines can be drawn again
	Color    bool
	size     func() (width, height int)
}

// Of looks at an output. NO_COLOR and TERM=dumb are honoured.
func Of(w io.Writer, env func(string) string) Caps {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) || env("TERM") == "dumb" {
		return Caps{}
	}
	return Caps{Terminal: true, Color: env("NO_COLOR") == "", size: func() (int, int) {
		width, height, err := term.GetSize(int(f.Fd()))
		if err != nil {
			return 0, 0
		}
		return width, height
	}}
}

// Keyboard says whether somebody types what is read.
func Keyboard(r io.Reader) bool {
	f, ok := r.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Fixed is a terminal of a fixed size, for tests.
func Fixed(width, height int, color bool) Caps {
	return Caps{Terminal: true, Color: color, size: func() (int, int) { return width, height }}
}

// Size in columns and lines; 0 where it is not known.
func (c Caps) Size() (width, height int) {
	if c.size == nil {
		return 0, 0
	}
	return c.size()
}

// Frame draws a text over the one before. The zero number of lines drawn is a first draw.
type Frame struct {
	w     io.Writer
	caps  Caps
	drawn int
	last  []string // as drawn
	width int      // with which they were
}

// NewFrame draws on w, which must be a terminal.
func NewFrame(w io.Writer, caps Caps) *Frame { return &Frame{w: w, caps: caps} }

// Draw shows text in place of what was shown before. Only lines that changed are written, so that nothing flickers. Lines that do not fit are cut, since a
// wrapped line would take room that is not accounted for.
func (f *Frame) Draw(text string) error {
	width, height := f.caps.Size()
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if height > 2 && len(lines) > height-1 {
		hidden := len(lines) - (height - 2)
		lines = append(lines[:height-2:height-2], fmt.Sprintf("… %d more lines; a taller window shows them", hidden))
	}
	for i := range lines {
		lines[i] = Clip(lines[i], width-1) // in the last column some terminals would lose the character to the erasing that follows
	}
	if f.drawn > 0 && width == f.width && slices.Equal(lines, f.last) {
		return nil
	}
	var b strings.Builder
	if f.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", f.drawn)
	}
	for i, line := range lines {
		if width == f.width && i < f.drawn && line == f.last[i] {
			b.WriteByte('\n')
			continue
		}
		b.WriteString("\r" + line + "\x1b[K\n")
	}
	if len(lines) < f.drawn {
		b.WriteString("\x1b[J")
	}
	f.drawn, f.last, f.width = len(lines), lines, width
	_, err := io.WriteString(f.w, b.String())
	return err
}

// Clip cuts a line to a width in columns; escape sequences take none. 0 cuts nothing.
func Clip(line string, width int) string {
	if width <= 0 || pb.CellCount(line) <= width {
		return line
	}
	cut := pb.StripString(line, width)
	if strings.Contains(line, "\x1b[") {
		cut += "\x1b[0m"
	}
	return cut
}

// Clean makes text that came from elsewhere safe to show on a terminal.
func Clean(s string) string { return view.Clean(s) }
