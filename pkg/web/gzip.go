package web

import (
	"bytes"
	"compress/gzip"
	"net/http"
	"strings"
)

// worthPacking is the least size at which packing pays, in bytes.
const worthPacking = 1 << 10

// takesGzip says whether a client takes gzip.
func takesGzip(r *http.Request) bool {
	for part := range strings.SplitSeq(r.Header.Get("Accept-Encoding"), ",") {
		name, rest, _ := strings.Cut(strings.TrimSpace(part), ";")
		if name == "gzip" {
			q := strings.ReplaceAll(rest, " ", "")
			return q != "q=0" && q != "q=0.0" && q != "q=0.00" && q != "q=0.000"
		}
	}
	return false
}

// pack compresses; nil where that saves nothing.
func pack(b []byte) ([]byte, error) {
	if len(b) < worthPacking {
		return nil, nil
	}
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(b); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	if out.Len() >= len(b) {
		return nil, nil
	}
	return out.Bytes(), nil
}
