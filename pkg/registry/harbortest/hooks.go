package harbortest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"time"
)

// hooks sends webhooks one after another, each once.
type hooks struct {
	cfg    Config
	ctx    context.Context
	cancel context.CancelFunc
	queue  chan []byte
	wg     sync.WaitGroup
}

func newHooks(cfg Config) *hooks {
	h := &hooks{cfg: cfg, queue: make(chan []byte, 4096)}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	if cfg.HookURL != "" {
		h.wg.Go(h.run)
	}
	return h
}

func (h *hooks) stop() {
	h.cancel()
	h.wg.Wait()
}

func (h *hooks) run() {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for {
		select {
		case <-h.ctx.Done():
			return
		case body := <-h.queue:
			req, err := http.NewRequestWithContext(h.ctx, http.MethodPost, h.cfg.HookURL, bytes.NewReader(body))
			if err != nil {
				continue
			}
			req.Header.Set("Content-Type", "application/json")
			if h.cfg.CloudEvents {
				req.Header.Set("Content-Type", "application/cloudevents+json")
			}
			if h.cfg.HookAuth != "" {
				req.Header.Set("Authorization", h.cfg.HookAuth)
			}
			if resp, err := client.Do(req); err == nil {
				resp.Body.Close()
			}
		}
	}
}

func (h *hooks) send(kind, repo, tag, digest string) {
	if h.cfg.HookURL == "" {
		return
	}
	body, err := json.Marshal(payload(h.cfg.CloudEvents, kind, repo, tag, digest, time.Now()))
	if err != nil {
		return
	}
	select {
	case h.queue <- body:
	default:
	}
}

func payload(cloud bool, kind, repo, tag, digest string, now time.Time) map[string]any {
	project, name, _ := strings.Cut(repo, "/")
	sep := ":"
	if strings.HasPrefix(tag, "sha256:") {
		sep = "@"
	}
	data := map[string]any{
		"repository": map[string]any{
			"date_created": now.Unix(), "name": name, "namespace": project, "repo_full_name": repo, "repo_type": "private",
		},
		"resources": []map[string]any{{"digest": digest, "tag": tag, "resource_url": "harbor.example/" + repo + sep + tag}},
	}
	if !cloud {
		return map[string]any{"type": kind, "occur_at": now.Unix(), "operator": "admin", "event_data": data}
	}
	types := map[string]string{
		"PUSH_ARTIFACT": "harbor.artifact.pushed", "DELETE_ARTIFACT": "harbor.artifact.deleted", "PULL_ARTIFACT": "harbor.artifact.pulled",
	}
	return map[string]any{
		"specversion": "1.0", "id": rand.Text(), "requestid": rand.Text(), "source": "/projects/2/webhook/policies/2", "type": types[kind],
		"time": now.UTC().Format(time.RFC3339), "datacontenttype": "application/json", "operator": "admin", "data": data,
	}
}
