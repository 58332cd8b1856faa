package registry

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"
)

const (
	hookQueue   = 1024
	hookTries   = 5
	hookTimeout = 5 * time.Second
)

// hookSender tells a URL of manifests pushed to, and tags and manifests deleted from, the embedded registry, in the form of the distribution
// registry's notifications. (That one's own sender cannot be stopped and never lets go of an event.) What cannot be delivered is dropped: a webhook only
// makes others look sooner.
type hookSender struct {
	url, secret string
	notify      func(ctx context.Context, body []byte) error // nil: post to url
	log         *slog.Logger
	queue       chan hookEvent
	client      *http.Client
}

type hookEvent struct {
	ID        string      `json:"id"`
	Timestamp time.Time   `json:"timestamp"`
	Action    string      `json:"action"`
	Target    hookTarget  `json:"target"`
	Request   hookRequest `json:"request"`
}

type hookTarget struct {
	MediaType  string `json:"mediaType,omitempty"`
	Digest     string `json:"digest,omitempty"`
	Repository string `json:"repository"`
	Tag        string `json:"tag,omitempty"`
}

type hookRequest struct {
	Addr      string `json:"addr"`
	Host      string `json:"host"`
	Method    string `json:"method"`
	UserAgent string `json:"useragent"`
}

func newHookSender(cfg EmbeddedConfig, log *slog.Logger) *hookSender {
	transport := &http.Transport{IdleConnTimeout: 30 * time.Second}
	return &hookSender{
		url: cfg.HookURL, secret: cfg.HookSecret, notify: cfg.Notify, log: log, queue: make(chan hookEvent, hookQueue),
		client: &http.Client{Timeout: hookTimeout, Transport: transport},
	}
}

func (s *hookSender) run(ctx context.Context) {
	defer s.client.CloseIdleConnections()
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-s.queue:
			s.deliver(ctx, e)
		}
	}
}

func (s *hookSender) deliver(ctx context.Context, e hookEvent) {
	body, err := json.Marshal(map[string]any{"events": []hookEvent{e}})
	if err != nil {
		return
	}
	for try := 1; ; try++ {
		if err = s.post(ctx, body); err == nil || ctx.Err() != nil {
			return
		}
		if try == hookTries || sleep(ctx, time.Duration(try*try)*200*time.Millisecond) != nil {
			s.log.Warn("notification of the embedded registry not delivered", "error", err)
			return
		}
	}
}

func (s *hookSender) post(ctx context.Context, body []byte) error {
	if s.notify != nil {
		return s.notify(ctx, body)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/vnd.docker.distribution.events.v2+json")
	if s.secret != "" {
		req.Header.Set("Authorization", s.secret)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10)
	if resp.StatusCode/100 != 2 {
		return &Error{Op: "deliver notification", Status: resp.StatusCode}
	}
	return nil
}

// watch gives the handler with notice taken of what changes manifests.
func (s *hookSender) watch(next http.Handler) http.Handler {
	if s.url == "" && s.notify == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		repo, reference, ok := manifestPath(r)
		if !ok {
			next.ServeHTTP(w, r)
			return
		}
		sw := &statusWriter{ResponseWriter: w}
		next.ServeHTTP(sw, r)
		if sw.status/100 != 2 {
			return
		}
		e := hookEvent{
			ID: rand.Text(), Timestamp: time.Now().UTC(), Action: ActionPush,
			Target:  hookTarget{Repository: repo},
			Request: hookRequest{Addr: r.RemoteAddr, Host: r.Host, Method: r.Method, UserAgent: r.UserAgent()},
		}
		if ValidDigest(reference) {
			e.Target.Digest = reference
		} else {
			e.Target.Tag = reference
		}
		if r.Method == http.MethodDelete {
			e.Action = ActionDelete
		} else {
			e.Target.Digest = w.Header().Get("Docker-Content-Digest")
			e.Target.MediaType = contentType(r.Header)
		}
		select {
		case s.queue <- e:
		default:
			s.log.Warn("notification of the embedded registry dropped: too many wait")
		}
	})
}

// manifestPath says which manifest a request puts or deletes.
func manifestPath(r *http.Request) (repo, reference string, ok bool) {
	if r.Method != http.MethodPut && r.Method != http.MethodDelete {
		return "", "", false
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	i := strings.LastIndex(path, "/manifests/")
	if !ok || i < 0 {
		return "", "", false
	}
	return path[:i], path[i+len("/manifests/"):], true
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
