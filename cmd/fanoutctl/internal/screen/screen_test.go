package screen_test

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/fanout-io/fanout/cmd/fanoutctl/internal/screen"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// show plays what was written on a small terminal, so far as we use one.
func show(t *testing.T, written string) []string {
	t.Helper()
	lines := []string{""}
	row := 0
	for len(written) > 0 {
		var n int
		switch {
		case strings.HasPrefix(written, "\x1b[K"):
			written = written[3:]
		case strings.HasPrefix(written, "\x1b[J"):
			lines = append(lines[:row], "")
			written = written[3:]
		case written[0] == '\x1b':
			if _, err := fmt.Sscanf(written, "\x1b[%dA", &n); err != nil {
				t.Fatalf("not understood: %q", written)
			}
			if row -= n; row < 0 {
				t.Fatalf("above the first line")
			}
			written = written[strings.IndexByte(written, 'A')+1:]
		case written[0] == '\r':
			lines[row] = ""
			written = written[1:]
		case written[0] == '\n':
			if row++; row == len(lines) {
				lines = append(lines, "")
			}
			written = written[1:]
		default:
			lines[row] += written[:1]
			written = written[1:]
		}
	}
	return lines
}

func TestFrame_DrawsInPlace(t *testing.T) {
	var b bytes.Buffer
	f := screen.NewFrame(&b, screen.Fixed(20, 6, false))
	want := func(text string, lines ...string) {
		t.Helper()
		if err := f.Draw(text); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(show(t, b.String()), "|"); got != strings.Join(append(lines, ""), "|") {
			t.Errorf("shows %q; want %q", got, lines)
		}
	}
	want("one\ntwo\nthree\n", "one", "two", "three")
	before := b.Len()
	want("one\n2\nthree\n", "one", "2", "three")
	if wrote := b.String()[before:]; strings.Contains(wrote, "one") || strings.Contains(wrote, "three") {
		t.Errorf("it writes lines that did not change: %q", wrote)
	}
	want("one\n", "one")
	want("1\n2\n3\n4\n5\n6\n7\n", "1", "2", "3", "4", "… 3 more lines; a ta"[:len("… 3 more lines; a t")])
	want("a line that is much too long for this\n", "a line that is much")
	size := b.Len()
	want("a line that is much too long for this\n", "a line that is much")
	if b.Len() != size {
		t.Error("it writes where nothing changed")
	}
}

func TestClip_KeepsColors(t *testing.T) {
	got := screen.Clip("\x1b[32mgreen words\x1b[0m", 5)
	if plain := regexp.MustCompile("\x1b\\[[0-9]+m").ReplaceAllString(got, ""); plain != "green" || !strings.HasSuffix(got, "\x1b[0m") {
		t.Errorf("%q", got)
	}
	if got := screen.Clip("广东省", 5); got != "广东 " {
		t.Errorf("%q", got)
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"a\nb\tc":          "a b c",
		"\x1b[2Jx":         "\uFFFD[2Jx",
		"\u009b2J":         "\uFFFD2J",
		"\u202eabc":        "\uFFFDabc",
		"广东 ok":            "广东 ok",
		"bad \xff\xfe end": "bad \uFFFD\uFFFD end",
	} {
		if got := screen.Clean(in); got != want {
			t.Errorf("Clean(%q) = %q; want %q", in, got, want)
		}
	}
}

func TestOf_NotATerminal(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	env := func(string) string { return "" }
	if c := screen.Of(f, env); c.Terminal || c.Color {
		t.Errorf("a file: %+v", c)
	}
	if c := screen.Of(&bytes.Buffer{}, env); c.Terminal || c.Color {
		t.Errorf("a buffer: %+v", c)
	}
	if screen.Keyboard(f) || screen.Keyboard(&bytes.Buffer{}) {
		t.Error("nobody types in a file or a buffer")
	}
}

func TestBoard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		board := screen.NewBoard(&b, screen.Fixed(70, 20, false), []string{"team/app:1", "a:1"})
		board.Set(0, 0.5, "revision 7, 3 of 6 sites")
		board.Set(1, -1, "reading \x1b[2J")
		time.Sleep(time.Second)
		synctest.Wait()
		lines := show(t, b.String())
		if !strings.Contains(lines[0], "team/app:1 [===") || !strings.Contains(lines[0], "50.00% revision 7, 3 of 6 sites") {
			t.Errorf("%q", lines)
		}
		if !strings.HasPrefix(lines[1], "a:1        [") || !strings.Contains(lines[1], "0.00% reading \uFFFD[2J") {
			t.Errorf("%q", lines)
		}
		board.Set(0, 7, "done") // what comes last is shown
		if err := board.Close(); err != nil {
			t.Fatal(err)
		}
		if lines := show(t, b.String()); len(lines) != 3 || !strings.Contains(lines[0], "100.00% done") {
			t.Errorf("%q", lines)
		}
		board.Close()
	})
}
