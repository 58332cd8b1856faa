package agent

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fanout-io/fanout/pkg/config"
)

const (
	// signatureHeader carries "sha256=" and the HMAC-SHA256 of the body in hex.
	signatureHeader = "Fanout-Signature"
	// maxNotices bounds what waits for one address; of more the oldest are dropped.
	maxNotices = 1000
	// noticeAge is how long a notice is tried, and how far back a new root begins.
	noticeAge = time.Hour
	// noticeTimeout bounds one attempt.
	noticeTimeout = 10 * time.Second
	// noticeBackoff and noticeBackoffMax bound the time between two attempts.
	noticeBackoff, noticeBackoffMax = time.Second, time.Minute
)

// cloudEvent is a CloudEvent 1.0 in its structured form.
type cloudEvent struct {
	SpecVersion     string    `json:"specversion"`
	ID              string    `json:"id"`
	Source          string    `json:"source"`
	Type            string    `json:"type"`
	Subject         string    `json:"subject,omitempty"`
	Time            time.Time `json:"time"`
	DataContentType string    `json:"datacontenttype"`
	Data            any       `json:"data"`
}

// notice waits to be sent.
type notice struct {
	event cloudEvent
	since time.Time
}

// notifier sends events to one address, in their order: the next waits until one was taken, or was tried for noticeAge. Safe for concurrent use.
type notifier struct {
	url    string
	host   string // of url, for the log
	secret func() (string, error)
	client *http.Client
	logger *slog.Logger
	count  *prometheus.CounterVec

	mu    sync.Mutex
	queue []notice
	wake  chan struct{}
}

func newNotifiers(list []config.Notify, logger *slog.Logger, r prometheus.Registerer) ([]*notifier, error) {
	count := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "fanout_notifications_total", Help: "Notifications of rollouts by outcome: sent, again, dropped.",
	}, []string{"outcome"})
	if err := r.Register(count); err != nil {
		return nil, err
	}
	for _, outcome := range []string{"sent", "again", "dropped"} {
		count.WithLabelValues(outcome) // from the start, so that the first is an increase
	}
	var out []*notifier
	for _, n := range list {
		out = append(out, &notifier{
			url: n.URL, host: hostOf(n.URL), client: newCheckClient(), logger: logger, count: count, wake: make(chan struct{}, 1),
			secret: func() (string, error) {
				b, err := os.ReadFile(n.SecretFile)
				return strings.TrimSpace(string(b)), err
			},
		})
	}
	return out, nil
}

// add has an event sent, some time after it returns.
func (n *notifier) add(e cloudEvent) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.queue = append(n.queue, notice{e, time.Now()}); len(n.queue) > maxNotices {
		n.queue = n.queue[1:]
		n.count.WithLabelValues("dropped").Inc()
	}
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// first returns the notice that is to be sent next.
func (n *notifier) first() (notice, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.queue) == 0 {
		return notice{}, false
	}
	return n.queue[0], true
}

// done takes a notice off, unless it was dropped meanwhile.
func (n *notifier) done(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.queue) > 0 && n.queue[0].event.ID == id {
		n.queue = n.queue[1:]
	}
}

// run sends for one term of office; what waits at its end is dropped: the next root begins an hour back.
func (n *notifier) run(ctx context.Context) {
	defer func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.queue = nil
	}()
	wait := noticeBackoff
	for {
		next, ok := n.first()
		if !ok {
			select {
			case <-ctx.Done():
				return
			case <-n.wake:
			}
			continue
		}
		err := n.send(ctx, next.event)
		switch {
		case err == nil:
			n.count.WithLabelValues("sent").Inc()
			wait = noticeBackoff
			n.done(next.event.ID)
			continue
		case ctx.Err() != nil:
			return
		case time.Since(next.since) > noticeAge:
			n.count.WithLabelValues("dropped").Inc()
			n.logger.Warn("a notification was given up", "address", n.host, "id", next.event.ID, "error", err)
			n.done(next.event.ID)
		default:
			n.count.WithLabelValues("again").Inc()
			n.logger.Info("a notification is tried again", "address", n.host, "id", next.event.ID, "error", err, "retry_in", wait)
		}
		if !sleep(ctx, wait) {
			return
		}
		wait = min(2*wait, noticeBackoffMax)
	}
}

func (n *notifier) send(ctx context.Context, e cloudEvent) error {
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	secret, err := n.secret()
	if err != nil {
		return fmt.Errorf("reading notify.secretFile: %w", err)
	}
	if secret == "" {
		return fmt.Errorf("notify.secretFile is empty")
	}
	ctx, cancel := context.WithTimeout(ctx, noticeTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, n.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/cloudevents+json; charset=UTF-8")
	req.Header.Set("User-Agent", "fanoutd")
	req.Header.Set(signatureHeader, signature(secret, body))
	resp, err := n.client.Do(req)
	if err != nil {
		return withoutURL(err)
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, maxCheckBody)
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}

// withoutURL is an HTTP client's error without the address, whose query or password may be a secret.
func withoutURL(err error) error {
	if e := new(url.Error); errors.As(err, &e) {
		return e.Err
	}
	return err
}

// hostOf an address: what may be logged of it.
func hostOf(address string) string {
	if u, err := url.Parse(address); err == nil {
		return u.Host
	}
	return ""
}

// signature of a body, as the header has it.
func signature(secret string, body []byte) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(body)
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}
