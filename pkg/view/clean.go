package view

import "strings"

// Clean makes text that came from elsewhere safe to show: no control characters, so no escape sequences, and one line.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case r < 0x20 || r >= 0x7f && r < 0xa0, // C0, DEL, C1
			r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069: // text that turns the direction round
			return '\uFFFD'
		}
		return r
	}, s)
}
