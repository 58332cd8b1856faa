package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode"

	"google.golang.org/protobuf/types/known/durationpb"

	catalogv1 "github.com/fanout-io/fanout/proto/fanout/catalog/v1"

	"github.com/fanout-io/fanout/internal/wording"
	"github.com/fanout-io/fanout/pkg/catalog"
)

const (
	// checkAttempt bounds one attempt of a check: an address that hangs is tried again. The last attempt has what is left of the check's time, and at least lastAttempt.
	checkAttempt = 10 * time.Second
	lastAttempt  = time.Second
	// maxCheckBody is how much of an answer is read, in bytes, and maxCheckWord how much of that is kept.
	maxCheckBody = 4 << 10
	maxCheckWord = 120
	// maxSeenWord is how much is kept of why a group is as it is.
	maxSeenWord = 200
	// maxRedirects that a check follows.
	maxRedirects = 5
)

// newCheckClient makes the client of checks. It follows no redirect to another scheme: a plan that says https means it.
func newCheckClient() *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DisableKeepAlives = true
	return &http.Client{Transport: t, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		switch {
		case req.URL.Scheme != via[0].URL.Scheme:
			return fmt.Errorf("redirected from %s to %s", via[0].URL.Scheme, req.URL.Scheme)
		case len(via) > maxRedirects:
			return fmt.Errorf("more than %d redirects", maxRedirects)
		}
		return nil
	}}
}

// gateKey names a gate of a rollout.
type gateKey struct {
	rollout string
	wave    uint32
	after   bool
	index   uint32
}

// checkDue returns the check that a rollout waits for; nil: none.
func checkDue(r *catalogv1.Rollout) (gateKey, *catalogv1.RolloutGate, *catalogv1.Check) {
	if r.GetPhase() == catalog.RolloutPaused || r.GetPhase() == catalog.RolloutRollingBack || catalog.Ended(r) || int(r.GetWave()) >= len(r.GetWaves()) {
		return gateKey{}, nil, nil
	}
	w, plan := r.GetWaves()[r.GetWave()], r.GetPlan().GetWaves()[r.GetWave()]
	if w.GetPhase() != catalog.WaveChecking {
		return gateKey{}, nil, nil
	}
	for _, g := range w.GetGates() {
		gates := plan.GetBefore()
		if g.GetAfter() {
			gates = plan.GetAfter()
		}
		if check := gates[g.GetIndex()].GetCheck(); check != nil && g.GetResult() == catalog.GateWaiting {
			return gateKey{r.GetId(), r.GetWave(), g.GetAfter(), g.GetIndex()}, g, check
		}
	}
	return gateKey{}, nil, nil
}

// attemptLimit is how long an attempt may take that begins when so much of a check's time is left.
func attemptLimit(left time.Duration) time.Duration {
	return min(checkAttempt, max(left, lastAttempt))
}

// attempt asks the address of a check once.
func attempt(ctx context.Context, client *http.Client, key gateKey, check *catalogv1.Check, limit time.Duration) *catalogv1.ObservedCheck {
	out := &catalogv1.ObservedCheck{Wave: key.wave, After: key.after, Index: key.index}
	begin := time.Now()
	out.Passed, out.Detail = ask(ctx, client, check.GetUrl(), limit)
	out.Took = durationpb.New(time.Since(begin))
	return out
}

func ask(ctx context.Context, client *http.Client, url string, limit time.Duration) (passed bool, detail string) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false, words(wording.Plain(err.Error()))
	}
	req.Header.Set("User-Agent", "fanoutd")
	resp, err := client.Do(req)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return false, fmt.Sprintf("no answer within %s", limit.Round(100*time.Millisecond))
		}
		return false, words(wording.Plain(withoutURL(err).Error()))
	}
	defer resp.Body.Close()
	// The status counts, also where the rest does not come.
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxCheckBody))
	line, _, _ := bytes.Cut(bytes.TrimSpace(body), []byte("\n"))
	said := fmt.Sprintf("status %d", resp.StatusCode)
	if text := words(string(line)); text != "" {
		said += ": " + text
	}
	return resp.StatusCode >= 200 && resp.StatusCode < 300, said
}

// words makes a short line of text of what came from outside.
func words(s string) string { return wordsUpTo(s, maxCheckWord) }

func wordsUpTo(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, " "))
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}
