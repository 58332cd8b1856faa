package view

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// Why is the document of `why`.
type Why struct {
	SchemaVersion int        `json:"schemaVersion"`
	Ref           string     `json:"ref"`
	Site          string     `json:"site"`
	Digest        string     `json:"digest"`
	Revision      uint64     `json:"revision"`
	State         string     `json:"state"`
	Answer        string     `json:"answer"`
	Cause         string     `json:"cause"`
	Mend          string     `json:"mend"`
	AsOf          *time.Time `json:"asOf,omitempty"`
	Notes         []string   `json:"notes"`
	Hops          []Hop      `json:"hops"`
}

// Hop is a group on the way, or at the end the site.
type Hop struct {
	Group         string     `json:"group"`
	Root          string     `json:"root"`
	Parent        string     `json:"parent"`
	DetachedSince *time.Time `json:"detachedSince,omitempty"`
	Link          string     `json:"link"`
	Carrier       string     `json:"carrier"`
	Site          string     `json:"site"`
	Registry      string     `json:"registry"`
	State         string     `json:"state"`
	Revision      uint64     `json:"revision"`
	Want          uint64     `json:"want"`
	Digest        string     `json:"digest"`
	Reason        string     `json:"reason"`
	Cause         string     `json:"cause"`
	Mend          string     `json:"mend"`
	Status        uint32     `json:"status"`
	Code          string     `json:"code"`
	Message       string     `json:"message"`
	Since         *time.Time `json:"since"`
	Source        string     `json:"source"`
	Blob          string     `json:"blob"`
	BytesDone     int64      `json:"bytesDone"`
	BytesTotal    int64      `json:"bytesTotal"`
	BytesLeft     int64      `json:"bytesLeft"`
	Rate          int64      `json:"rate"`
	Attempts      uint32     `json:"attempts"`
	NextAttempt   *time.Time `json:"nextAttempt,omitempty"`
	LastContact   *time.Time `json:"lastContact,omitempty"`
	Live          bool       `json:"live"`
	Away          string     `json:"away"`
	Receipt       *Receipt   `json:"receipt,omitempty"`
	Summary       string     `json:"summary"`
	// BlobSince is since when the blob is asked for.
	BlobSince *time.Time `json:"blobSince,omitempty"`
}

// Receipt says how a ref came to a site.
type Receipt struct {
	At      *time.Time `json:"at,omitempty"`
	Bytes   int64      `json:"bytes"`
	Sources []string   `json:"sources"`
}

// WhyOf makes the document of an answer.
func WhyOf(r *adminv1.WhyResponse) Why {
	w := Why{
		SchemaVersion: SchemaVersion, Ref: r.GetRef(), Site: r.GetSite(), Digest: r.GetDigest(), Revision: r.GetRevision(), State: r.GetState(),
		Answer: r.GetAnswer(), Cause: r.GetCause(), Mend: r.GetMend(), AsOf: moment(r.GetAsOf()), Notes: append([]string{}, r.GetNotes()...), Hops: []Hop{},
	}
	for _, h := range r.GetHops() {
		w.Hops = append(w.Hops, hopOf(h))
	}
	return w
}

func hopOf(h *adminv1.WhyHop) Hop {
	t, b := h.GetTrouble(), h.GetBlob()
	doc := Hop{
		Group: h.GetGroup(), Root: h.GetRoot(), Parent: h.GetParent(), DetachedSince: moment(h.GetDetachedSince()), Link: h.GetLink(), Carrier: h.GetCarrier(),
		Site: h.GetSite(), Registry: h.GetRegistry(), State: h.GetState(), Revision: h.GetRevision(), Want: h.GetWant(), Digest: h.GetDigest(), Reason: h.GetReason(),
		Cause: t.GetCause(), Mend: t.GetMend(), Status: t.GetStatus(), Code: t.GetCode(), Message: t.GetMessage(), Summary: t.GetSummary(),
		Since: moment(h.GetSince()), Source: b.GetSource(), Blob: b.GetDigest(), BytesDone: b.GetHave(), BytesTotal: b.GetSize(), BytesLeft: h.GetBytesLeft(), Rate: b.GetRate(), BlobSince: moment(b.GetSince()),
		Attempts: h.GetAttempts(), NextAttempt: moment(h.GetNextAttempt()), LastContact: moment(h.GetLastContact()), Live: h.GetLive(), Away: h.GetAway(),
	}
	if r := h.GetReceipt(); r != nil {
		doc.Receipt = &Receipt{At: moment(r.GetAt()), Bytes: r.GetBytes(), Sources: append([]string{}, r.GetSources()...)}
	}
	return doc
}

// Text is the answer, the way from the top down, and what to do.
func (w Why) Text(s Style) string {
	var b strings.Builder
	b.WriteString(s.paint(bold, Clean(w.Answer)) + "\n\n")
	for i, h := range w.Hops {
		h.write(&b, s, w.AsOf, i == len(w.Hops)-1)
	}
	for _, n := range w.Notes {
		b.WriteString("\n" + Clean(n) + "\n")
	}
	if w.Mend != "" {
		b.WriteString("\n" + s.paint(bold, "What to do") + "  " + Clean(w.Mend) + "\n")
	}
	return b.String()
}

// write puts one hop: a line with what it is, and under it what there is to say.
func (h Hop) write(b *strings.Builder, s Style, now *time.Time, last bool) {
	who := h.Group
	if h.Site != "" {
		who += "  " + h.Site
	}
	at := fmt.Sprintf("revision %s of %s", count(h.Revision), count(h.Want))
	if h.Revision >= h.Want {
		at = "revision " + count(h.Revision)
	}
	mark, color := "·", stateColor(h.State)
	switch h.State {
	case "delivered":
		mark = "✓"
	case "failed", "drifted":
		mark = "✗"
	case "delivering", "waiting":
		mark = "…"
	case "held":
		mark = "⏸"
	}
	fmt.Fprintf(b, "%s %s  %s  %s\n", s.paint(color, mark), s.paint(bold, Clean(who)), s.paint(color, Clean(h.State)), at)
	for _, line := range h.details(now, last) {
		b.WriteString("    " + Clean(line) + "\n")
	}
}

// waitingCauses are those of which the summary says what the reason says, in other words.
var waitingCauses = []string{"held-for-promotion", "held-by-wave"}

// saysAway says of a text that it has nothing but what is said already of a hop that does not answer.
func (h Hop) saysAway(text string) bool {
	return h.Away != "" && (text == "the site is unreachable" || text == "the site was not heard of yet" || strings.HasSuffix(text, h.Away))
}

func (h Hop) details(now *time.Time, last bool) (lines []string) {
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	var group []string
	if h.Root != "" {
		group = append(group, "root "+h.Root)
	}
	if h.Carrier != "" && h.Carrier != h.Root {
		group = append(group, "carrier "+h.Carrier)
	}
	switch {
	case h.DetachedSince != nil:
		group = append(group, "attached to no parent for "+strings.TrimSuffix(ago(now, h.DetachedSince), " ago"))
	case h.Parent != "":
		group = append(group, "attached to "+h.Parent)
	}
	switch {
	case h.Live:
	case h.LastContact != nil:
		group = append(group, "as reported "+ago(now, h.LastContact))
	case h.Away == "": // else that says since when
		group = append(group, "not heard of")
	}
	if len(group) > 0 {
		add("%s", strings.Join(group, ", "))
	}
	if h.Link != "" {
		add("link: %s", h.Link)
	}
	if h.Away != "" {
		add("it does not answer: %s", h.Away)
	}
	if r := h.Receipt; r != nil && last {
		add("delivered %s, %s%s", ago(now, r.At), Bytes(r.Bytes), from(r.Sources))
	}
	if h.State != "delivered" && h.Summary != "" && !h.saysAway(h.Summary) {
		add("%s", h.Summary)
	}
	if h.Reason != "" && !strings.Contains(h.Summary, h.Reason) && !slices.Contains(waitingCauses, h.Cause) && !h.saysAway(h.Reason) { // the summary says it in more words
		add("%s", h.Reason)
	}
	if h.Attempts > 0 {
		x := Site{Attempts: h.Attempts, NextAttempt: h.NextAttempt}
		add("%s, since %s", x.why(now), fallback(ago(now, h.Since), "an unknown time"))
	}
	if h.Blob != "" {
		line := fmt.Sprintf("blob %s: %s of %s", shortDigest(h.Blob), Bytes(h.BytesDone), Bytes(h.BytesTotal))
		if h.Source != "" {
			line += " from " + h.Source
		}
		still := "nothing comes"
		if now != nil && h.BlobSince != nil && now.Sub(*h.BlobSince) < justAsked {
			still = "asked for just now"
		}
		add("%s, %s", line, fallback(rate(h.Rate), still))
	}
	if h.BytesLeft > 0 {
		add("%s left in all", humanize.IBytes(uint64(h.BytesLeft)))
	}
	return lines
}

// justAsked is for how long nothing has to come of a blob that was asked for.
const justAsked = 5 * time.Second

func from(sources []string) string {
	if len(sources) == 0 {
		return ""
	}
	return " from " + strings.Join(sources, ", ")
}
