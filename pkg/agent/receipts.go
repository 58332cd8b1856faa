package agent

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/fanout-io/fanout/pkg/catalog"
	"github.com/fanout-io/fanout/pkg/store"
)

// maxReceipts bounds the deliveries of which it is remembered what came for them. It is told to people only, so any one may go.
const maxReceipts = 10_000

// receipts counts what came for each delivery, over all tries, until it is done. Safe for concurrent use.
type receipts struct {
	mu   sync.Mutex
	open map[catalog.Ref]*coming
}

type coming struct {
	digest string
	from   map[string]int64
}

// note adds what sites sent for a delivery. A digest that is not the one before begins anew.
func (r *receipts) note(ref catalog.Ref, digest string, from map[string]int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.open[ref]
	if c == nil || c.digest != digest {
		if r.open == nil || len(r.open) >= maxReceipts {
			r.open = map[catalog.Ref]*coming{}
		}
		c = &coming{digest: digest, from: map[string]int64{}}
		r.open[ref] = c
	}
	for site, n := range from {
		c.from[site] += n
	}
}

// take ends a delivery: it gives its receipt, and forgets it. nil: nothing was to come.
func (r *receipts) take(ref catalog.Ref, digest string) *store.Receipt {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.open[ref]
	if c == nil || c.digest != digest {
		return nil
	}
	delete(r.open, ref)
	out := &store.Receipt{Digest: digest, At: time.Now().UTC()}
	out.Sources = slices.SortedFunc(maps.Keys(c.from), func(x, y string) int {
		return cmp.Or(cmp.Compare(c.from[y], c.from[x]), cmp.Compare(x, y))
	})
	out.Sources = slices.DeleteFunc(out.Sources, func(s string) bool { return c.from[s] == 0 })
	for _, n := range c.from {
		out.Bytes += n
	}
	return out
}

// laterReceipt chooses what is remembered of how a digest came: the later, unless that brought less, as when only a signature was added.
func laterReceipt(old, later *store.Receipt, digest string) *store.Receipt {
	if old == nil || old.Digest != digest || later != nil && later.Bytes >= old.Bytes {
		return later
	}
	return old
}
