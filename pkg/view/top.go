package view

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	adminv1 "github.com/fanout-io/fanout/proto/fanout/admin/v1"
)

// Top is the document of `top`.
type Top struct {
	SchemaVersion int        `json:"schemaVersion"`
	AsOf          *time.Time `json:"asOf,omitempty"`
	Transfers     []Transfer `json:"transfers"`
	Links         []Link     `json:"links"`
	LeftOut       uint64     `json:"leftOut"`
	Absent        []Absent   `json:"absent"`
}

// Transfer is a blob on its way to a site.
type Transfer struct {
	Ref        string     `json:"ref"`
	Blob       string     `json:"blob"`
	Group      string     `json:"group"`
	Site       string     `json:"site"`
	FromGroup  string     `json:"fromGroup"`
	From       string     `json:"from"`
	BytesDone  int64      `json:"bytesDone"`
	BytesTotal int64      `json:"bytesTotal"`
	Rate       int64      `json:"rate"`
	PiecesDone uint64     `json:"piecesDone"`
	Pieces     uint64     `json:"pieces"`
	Since      *time.Time `json:"since"`
	Queued     bool       `json:"queued"`
	Error      string     `json:"error"`
}

// Link sums up what goes from one group to another, or within one.
type Link struct {
	From      string `json:"from"`
	To        string `json:"to"`
	Transfers int    `json:"transfers"`
	BytesLeft int64  `json:"bytesLeft"`
	Rate      int64  `json:"rate"`
}

// Absent did not answer.
type Absent struct {
	Group  string `json:"group"`
	Site   string `json:"site"`
	Reason string `json:"reason"`
}

// TopOf makes the document of an answer.
func TopOf(r *adminv1.TopResponse) Top {
	d := Top{SchemaVersion: SchemaVersion, AsOf: moment(r.GetAsOf()), Transfers: []Transfer{}, Links: []Link{}, LeftOut: r.GetLeftOut(), Absent: []Absent{}}
	for _, t := range r.GetTransfers() {
		d.Transfers = append(d.Transfers, Transfer{
			Ref: t.GetRef(), Blob: t.GetDigest(), Group: t.GetGroup(), Site: t.GetSite(), FromGroup: t.GetFromGroup(), From: t.GetFrom(), BytesDone: t.GetHave(), BytesTotal: t.GetSize(),
			Rate: t.GetRate(), PiecesDone: t.GetPiecesHave(), Pieces: t.GetPieces(), Since: moment(t.GetSince()), Queued: t.GetQueued(), Error: t.GetError(),
		})
	}
	slices.SortStableFunc(d.Transfers, func(x, y Transfer) int {
		return cmp.Or(strings.Compare(x.Group, y.Group), strings.Compare(x.Site, y.Site))
	})
	for _, a := range r.GetAbsent() {
		d.Absent = append(d.Absent, Absent{a.GetGroup(), a.GetSite(), a.GetReason()})
	}
	d.sum()
	return d
}

// sum makes the links. What has no source yet is of none.
func (d *Top) sum() {
	at := map[[2]string]int{}
	for _, t := range d.Transfers {
		if t.From == "" {
			continue
		}
		k := [2]string{t.FromGroup, t.Group}
		i, ok := at[k]
		if !ok {
			i = len(d.Links)
			at[k] = i
			d.Links = append(d.Links, Link{From: k[0], To: k[1]})
		}
		l := &d.Links[i]
		l.Transfers, l.BytesLeft, l.Rate = l.Transfers+1, l.BytesLeft+max(0, t.BytesTotal-t.BytesDone), l.Rate+t.Rate
	}
	slices.SortFunc(d.Links, func(x, y Link) int { return cmp.Or(strings.Compare(x.To, y.To), strings.Compare(x.From, y.From)) })
}

// Text is a line for each link, and one for each transfer.
func (d Top) Text(s Style) string {
	var b strings.Builder
	switch {
	case len(d.Transfers) == 0 && len(d.Absent) > 0:
		b.WriteString("Nothing is on its way where it could be asked.\n")
	case len(d.Transfers) == 0:
		b.WriteString("Nothing is on its way.\n")
	default:
		var rows [][]cell
		for _, l := range d.Links {
			rows = append(rows, []cell{plain(fallback(l.From, "?") + " → " + l.To), number(count(uint64(l.Transfers))), number(fallback(rate(l.Rate), "0 B/s")), number(bytesText(l.BytesLeft)), number(eta(l.BytesLeft, l.Rate))})
		}
		if len(rows) > 0 {
			b.WriteString(table(s, []string{"LINK", "BLOBS", "RATE", "BYTES LEFT", "ETA"}, rows) + "\n")
		}
		rows = nil
		for _, t := range d.Transfers {
			rows = append(rows, t.row(d.AsOf))
		}
		b.WriteString(table(s, []string{"SITE", "FROM", "REF", "BLOB", "DONE", "OF", "PIECES", "RATE", "FOR", "STATE"}, rows))
	}
	if d.LeftOut > 0 {
		fmt.Fprintf(&b, "%s more are not listed\n", count(d.LeftOut))
	}
	for _, a := range d.Absent {
		fmt.Fprintf(&b, "%s did not answer: %s\n", s.paint(yellow, Clean(fallback(a.Site, a.Group))), Clean(a.Reason))
	}
	return b.String()
}

func (t Transfer) row(now *time.Time) []cell {
	state := cell{text: "arriving", color: cyan}
	switch {
	case t.Queued:
		state = cell{text: "queued", color: dim}
	case t.Error != "":
		state = cell{text: t.Error, color: red}
	case t.From == "":
		state = cell{text: "looking for a source", color: yellow}
	case t.Rate == 0:
		state = cell{text: "asked", color: yellow}
	}
	done := fmt.Sprintf("%d%%", 100*t.BytesDone/max(t.BytesTotal, 1))
	return []cell{
		plain(t.Site), plain(t.From), plain(t.Ref), plain(shortDigest(t.Blob)), number(done), number(Bytes(t.BytesTotal)), number(count(t.PiecesDone) + "/" + count(t.Pieces)),
		number(rate(t.Rate)), number(strings.TrimSuffix(ago(now, t.Since), " ago")), state,
	}
}

// eta is how long the rest takes at a rate; empty: it can't be estimated.
func eta(left, rate int64) string {
	if left <= 0 || rate <= 0 {
		return ""
	}
	return span(time.Duration(min(float64(left)/float64(rate), 1e9)) * time.Second)
}
