package web

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// maxFeeds bounds what is watched at once, over all watchers.
	maxFeeds = 128
	// maxFeedsEach bounds what one watcher watches.
	maxFeedsEach = 8
	// maxGone bounds how many parts that went are remembered; a watcher that was told of less is sent the whole picture.
	maxGone = 1000
)

// troubleKey is the part that says why a picture can't be had now.
const troubleKey = "!"

// part of a picture.
type part struct {
	seq  uint64 // of the change that made it
	json []byte // nil: it went
}

// feed is one picture in parts, and who watches it. Safe for concurrent use.
type feed struct {
	name, id string // id of this run of it

	mu       sync.Mutex
	parts    map[string]part
	gone     int    // parts that went
	seq      uint64 // of the last change
	floor    uint64 // what went before it is forgotten
	told     bool   // there was a picture, or trouble
	watchers map[*watcher]bool
	cancel   context.CancelFunc
	idle     *time.Timer

	// The frame that was made last: those who watch mostly need the same.
	frame     []byte
	frameFrom uint64
	frameTo   uint64
}

// change puts parts in, and with whole takes away those that are not among them. Parts that are as they were count for nothing.
func (f *feed) change(parts map[string][]byte, whole bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	changed := !f.told
	f.told = true
	next := f.seq + 1
	for key, b := range parts {
		old, known := f.parts[key]
		if known && old.json != nil && bytes.Equal(old.json, b) {
			continue
		}
		if known && old.json == nil {
			f.gone--
		}
		f.parts[key] = part{next, b}
		changed = true
	}
	if whole {
		for key, p := range f.parts {
			if _, there := parts[key]; !there && p.json != nil {
				f.drop(key, next)
				changed = true
			}
		}
	}
	f.changed(changed, next)
}

// remove takes parts away.
func (f *feed) remove(keys ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	changed := false
	for _, key := range keys {
		if f.parts[key].json != nil {
			f.drop(key, f.seq+1)
			changed = true
		}
	}
	f.changed(changed, f.seq+1)
}

func (f *feed) drop(key string, seq uint64) {
	f.parts[key] = part{seq: seq}
	if f.gone++; f.gone > maxGone {
		f.gone, f.floor = 0, seq
		maps.DeleteFunc(f.parts, func(_ string, p part) bool { return p.json == nil })
	}
}

func (f *feed) changed(yes bool, seq uint64) {
	if !yes {
		return
	}
	f.seq = seq
	for w := range f.watchers {
		w.wake()
	}
}

// fail says why there is no picture now; what there was stays.
func (f *feed) fail(t Trouble) {
	b, err := json.Marshal(t)
	if err != nil {
		return
	}
	f.change(map[string][]byte{troubleKey: b}, false)
}

// since makes the message for who was told up to a change: {"feed","at","whole","set":{…},"gone":[…]}. nil: there is nothing to say.
func (f *feed) since(n uint64) (frame []byte, next uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.told || n == f.seq {
		return nil, n
	}
	whole := n == 0 || n < f.floor || n > f.seq
	if whole {
		n = 0
	}
	if f.frame == nil || f.frameFrom != n || f.frameTo != f.seq {
		f.frame, f.frameFrom, f.frameTo = f.compose(n, whole), n, f.seq
	}
	return f.frame, f.seq
}

func (f *feed) compose(n uint64, whole bool) []byte {
	var set, gone []string
	for key, p := range f.parts {
		switch {
		case p.seq <= n:
		case p.json != nil:
			set = append(set, key)
		case !whole:
			gone = append(gone, key)
		}
	}
	slices.Sort(set)
	slices.Sort(gone)
	var b bytes.Buffer
	b.WriteString(`{"feed":` + quote(f.name) + `,"at":` + quote(f.id+"."+strconv.FormatUint(f.seq, 10)))
	if whole {
		b.WriteString(`,"whole":true`)
	}
	b.WriteString(`,"set":{`)
	for i, key := range set {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(quote(key) + ":")
		b.Write(f.parts[key].json)
	}
	b.WriteByte('}')
	for i, key := range gone {
		b.WriteString(map[bool]string{true: `,"gone":[`, false: `,`}[i == 0] + quote(key))
	}
	if len(gone) > 0 {
		b.WriteByte(']')
	}
	b.WriteByte('}')
	return b.Bytes()
}

func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil { // a string always can
		return `""`
	}
	return string(b)
}

// hub runs the feeds that somebody watches. Safe for concurrent use.
type hub struct {
	cfg Config

	mu    sync.Mutex
	feeds map[string]*feed
	ctx   context.Context // nil: it does not run
	group sync.WaitGroup
	count int // watchers
}

func newHub(cfg Config) *hub { return &hub{cfg: cfg, feeds: map[string]*feed{}} }

func (h *hub) run(ctx context.Context) {
	h.mu.Lock()
	h.ctx = ctx
	h.mu.Unlock()
	<-ctx.Done()
	h.mu.Lock()
	h.ctx = nil
	for _, f := range h.feeds {
		if f.idle != nil {
			f.idle.Stop()
		}
	}
	h.feeds = map[string]*feed{}
	h.mu.Unlock()
	h.group.Wait()
}

func (h *hub) watching() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.count
}

// enter takes a watcher in; false: there are too many, or none are served now.
func (h *hub) enter() (<-chan struct{}, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ctx == nil || h.count >= h.cfg.MaxWatchers {
		return nil, false
	}
	h.count++
	return h.ctx.Done(), true
}

func (h *hub) leave(w *watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count--
	for _, s := range w.seen {
		f := s.feed
		f.mu.Lock()
		delete(f.watchers, w)
		left := len(f.watchers)
		f.mu.Unlock()
		if left == 0 && h.feeds[f.name] == f {
			f.idle = time.AfterFunc(h.cfg.Linger, func() { h.stop(f) })
		}
	}
}

// stop ends a feed that nobody watches any more.
func (h *hub) stop(f *feed) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if h.feeds[f.name] == f && len(f.watchers) == 0 {
		delete(h.feeds, f.name)
		f.cancel()
	}
}

// join lets a watcher watch a feed, which is started if it does not run. After is what the watcher was told up to, as the message said it; empty: nothing.
func (h *hub) join(w *watcher, name, after string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.feeds[name]
	if f == nil {
		source := sourceOf(name, h.cfg.Fabric)
		if source == nil || h.ctx == nil || len(h.feeds) >= maxFeeds {
			return false
		}
		ctx, cancel := context.WithCancel(h.ctx)
		f = &feed{name: name, id: rand.Text()[:8], parts: map[string]part{}, watchers: map[*watcher]bool{}, cancel: cancel}
		h.feeds[name] = f
		h.group.Go(func() { defer cancel(); h.feedOn(ctx, f, source) })
	}
	if f.idle != nil {
		f.idle.Stop()
		f.idle = nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watchers[w] = true
	var n uint64
	if id, seq, ok := strings.Cut(after, "."); ok && id == f.id {
		n, _ = strconv.ParseUint(seq, 10, 64)
	}
	w.seen = append(w.seen, &seen{feed: f, upTo: n})
	return true
}

// feedOn keeps a feed's picture new until ctx ends.
func (h *hub) feedOn(ctx context.Context, f *feed, source source) {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := source(ctx, f); err != nil && ctx.Err() == nil {
			f.fail(troubleOf(err))
		}
		t.Reset(h.cfg.Retry)
	}
}
