package web

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
)

// watcher is one who watches.
type watcher struct {
	seen  []*seen
	ready chan struct{} // one slot: something changed
}

// seen says up to which change a watcher was told of a feed.
type seen struct {
	feed *feed
	upTo uint64
}

// wake never waits.
func (w *watcher) wake() {
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

// watch sends what changes: first each picture whole, or what changed since the one that the client names, then the changes, at most one message a feed each cfg.Pause.
func (s *Server) watch(w http.ResponseWriter, r *http.Request) {
	refuse := func(code int, name codes.Code, why string) {
		w.Header().Set("Retry-After", "5")
		writeJSON(w, r, code, Trouble{Code: name.String(), Message: why})
	}
	names := r.URL.Query()["feed"]
	if len(names) == 0 || len(names) > maxFeedsEach {
		refuse(http.StatusBadRequest, codes.InvalidArgument, "name one to eight feeds: feed=tree, rollouts, rollout:ID, where:REF, pending:SITE, conflicts or events")
		return
	}
	stopped, ok := s.hub.enter()
	if !ok {
		refuse(http.StatusServiceUnavailable, codes.ResourceExhausted, "too many watch this agent's page now")
		return
	}
	me := &watcher{ready: make(chan struct{}, 1)}
	defer s.hub.leave(me)
	for _, name := range names {
		name, after, _ := strings.Cut(name, "@")
		if !s.hub.join(me, name, after) {
			refuse(http.StatusBadRequest, codes.InvalidArgument, "no feed "+name+" can be watched here")
			return
		}
	}
	out := s.stream(w, r)
	if err := s.tell(r.Context(), stopped, me, out); err != nil && r.Context().Err() == nil {
		s.dropAt.Inc()
		s.cfg.Logger.Info("a watcher was dropped", "error", err)
	}
}

// tell sends until the client or the server leaves (nil), or the client does not read.
func (s *Server) tell(ctx context.Context, stopped <-chan struct{}, me *watcher, out *eventStream) error {
	tick := time.NewTicker(s.cfg.Tick)
	defer tick.Stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	if err := out.tick(); err != nil {
		return err
	}
	for {
		// Not before the pause is over, nor before there is something to say; meanwhile the ticks go on.
		for over, ready := false, false; !over || !ready; {
			wake := me.ready
			if ready {
				wake = nil
			}
			select {
			case <-ctx.Done():
				return nil
			case <-stopped:
				return nil
			case <-tick.C:
				if err := out.tick(); err != nil {
					return err
				}
			case <-pause.C:
				over = true
				ready = ready || me.first()
			case <-wake:
				ready = true
			}
		}
		for _, x := range me.seen {
			frame, next := x.feed.since(x.upTo)
			x.upTo = next
			if frame != nil {
				if err := out.send("part", frame); err != nil {
					return err
				}
			}
		}
		if err := out.flush(); err != nil {
			return err
		}
		pause.Reset(s.cfg.Pause)
	}
}

// first says whether there is something that the watcher was not told of.
func (w *watcher) first() bool {
	for _, x := range w.seen {
		x.feed.mu.Lock()
		news := x.feed.told && x.feed.seq != x.upTo
		x.feed.mu.Unlock()
		if news {
			return true
		}
	}
	return false
}

// eventStream writes server-sent events to one client.
type eventStream struct {
	w       io.Writer
	flush   func() error
	control *http.ResponseController
	timeout time.Duration
}

// stream begins the answer. The server's bound on the time of a request does not hold for it; each message has its own.
func (s *Server) stream(w http.ResponseWriter, r *http.Request) *eventStream {
	h := w.Header()
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // a proxy in between shall not collect
	out := &eventStream{w: w, control: http.NewResponseController(w), timeout: s.cfg.WriteTimeout}
	_ = out.control.SetReadDeadline(time.Time{})
	out.flush = out.control.Flush
	if takesGzip(r) {
		h.Set("Content-Encoding", "gzip")
		z, _ := gzip.NewWriterLevel(w, gzip.BestSpeed) // the level is one that there is
		out.w = z
		out.flush = func() error {
			if err := z.Flush(); err != nil {
				return err
			}
			return out.control.Flush()
		}
	}
	w.WriteHeader(http.StatusOK)
	return out
}

// send writes one event; it is on its way after flush.
func (o *eventStream) send(event string, data []byte) error {
	_ = o.control.SetWriteDeadline(time.Now().Add(o.timeout))
	var b bytes.Buffer
	b.Grow(len(data) + len(event) + 16)
	b.WriteString("event: " + event + "\ndata: ")
	b.Write(data) // JSON as it was encoded has no line breaks
	b.WriteString("\n\n")
	_, err := o.w.Write(b.Bytes())
	return err
}

// tick tells the client that it is not forgotten, and the server's time.
func (o *eventStream) tick() error {
	data, err := json.Marshal(map[string]time.Time{"now": time.Now().UTC()})
	if err != nil {
		return err
	}
	if err := o.send("tick", data); err != nil {
		return err
	}
	return o.flush()
}
