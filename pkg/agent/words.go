package agent

import (
	"errors"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"google.golang.org/grpc/status"

	"github.com/fanout-io/fanout/internal/wording"
	"github.com/fanout-io/fanout/pkg/registry"
)

// count puts a number of things into words. The plural is the word and an s, unless it is given.
func count[N int | uint32 | uint64 | int64](n N, word string, plural ...string) string {
	switch {
	case n == 1:
		return "1 " + word
	case len(plural) > 0:
		return strconv.FormatInt(int64(n), 10) + " " + plural[0]
	}
	return strconv.FormatInt(int64(n), 10) + " " + word + "s"
}

// inBytes puts a number of bytes into words.
func inBytes(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// days puts a time that is some whole days into words.
func days(d time.Duration) string { return count(int64(d/(24*time.Hour)), "day") }

// waitingWords says in one line what a group without a root waits for.
func waitingWords(why string) string { return wording.Plain(strings.ReplaceAll(why, "\n", "; ")) }

// certificateEnded says that the own certificate is no good any more.
func certificateEnded(at time.Time) string {
	return "this site's certificate ended at " + at.UTC().Format(time.RFC3339) + ": no other agent speaks with it; put a new one in place of its files"
}

// callWords says why another agent could not be asked.
func callWords(err error) string { return wording.Plain(status.Convert(err).Message()) }

// plainWords gives an error in an operator's words, and without the path of a file of the agent's own: the log has the rest. What a registry said is in its own words.
func plainWords(err error) string {
	text := err.Error()
	if pe := new(fs.PathError); errors.As(err, &pe) {
		text = strings.ReplaceAll(text, pe.Error(), pe.Op+": "+pe.Err.Error())
	}
	if re := new(registry.Error); errors.As(err, &re) && re.Status != 0 {
		return text
	}
	return wording.Plain(text)
}
