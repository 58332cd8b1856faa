package view

import (
	"strings"

	"github.com/cheggaaa/pb/v3"
)

// Style of a text for people.
type Style struct{ Color bool }

const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
)

func (s Style) paint(code, text string) string {
	if !s.Color || code == "" || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// stateColor is of states of sites and of refs. The word is always there too.
func stateColor(state string) string {
	switch state {
	case "synced", "delivered":
		return green
	case "syncing", "delivering":
		return cyan
	case "behind", "waiting", "held":
		return yellow
	case "degraded", "conflict", "failed", "drifted", "unreachable":
		return red
	default: // witness, unsubscribed, unknown, and states of newer agents
		return dim
	}
}

type cell struct {
	text, color string
	right       bool
}

func plain(text string) cell  { return cell{text: text} }
func number(text string) cell { return cell{text: text, right: true} }
func state(text string) cell  { return cell{text: text, color: stateColor(text)} }

// table aligns columns. What is in it came from elsewhere and is made safe here, in one place.
func table(s Style, head []string, rows [][]cell) string {
	widths := make([]int, len(head))
	right := make([]bool, len(head))
	for i, h := range head {
		widths[i] = pb.CellCount(h)
	}
	for _, row := range rows {
		for i := range row {
			row[i].text = Clean(row[i].text)
			widths[i] = max(widths[i], pb.CellCount(row[i].text))
			right[i] = right[i] || row[i].right
		}
	}
	var b strings.Builder
	headRow := make([]cell, len(head))
	for i, h := range head {
		headRow[i] = cell{text: h, color: bold, right: right[i]}
	}
	for _, row := range append([][]cell{headRow}, rows...) {
		last := len(row) - 1
		for last > 0 && row[last].text == "" {
			last--
		}
		for i, c := range row[:last+1] {
			if i > 0 {
				b.WriteString("  ")
			}
			pad := strings.Repeat(" ", widths[i]-pb.CellCount(c.text))
			switch {
			case c.right:
				b.WriteString(pad + s.paint(c.color, c.text))
			case i == last:
				b.WriteString(s.paint(c.color, c.text))
			default:
				b.WriteString(s.paint(c.color, c.text) + pad)
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}
