package registry

import (
	"context"
	"net/http"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// bearer sends requests with a token, and once more with a new one when that is refused. The library's own transport would ask for the new token
// without scopes unless the refusal names one, and keep that token without rights: Harbor's refusal names none.
type bearer struct {
	a         *authenticator
	key       string
	scopes    []string
	challenge *transport.Challenge

	mu    sync.Mutex
	token string
}

// RoundTrip implements http.RoundTripper.
func (b *bearer) RoundTrip(req *http.Request) (*http.Response, error) {
	b.mu.Lock()
	token := b.token
	b.mu.Unlock()
	resp, err := b.send(req, token)
	if err != nil || resp.StatusCode != http.StatusUnauthorized || resp.Header.Get("WWW-Authenticate") == "" {
		// Without a challenge another token is no help: so Harbor tells of a missing project.
		return resp, err
	}
	closeBody(resp)
	if token, err = b.renew(req.Context(), token, wantedScopes(resp.Header)); err != nil {
		return nil, err
	}
	return b.send(req, token)
}

func (b *bearer) send(req *http.Request, token string) (*http.Response, error) {
	if req.URL.Host == b.a.reg.RegistryStr() {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return b.a.out.RoundTrip(req)
}

// renew gives another token than the one that was refused. Of many requests that are refused at once one asks for it.
func (b *bearer) renew(ctx context.Context, refused string, more []string) (string, error) {
	unlock, err := b.a.locks.lock(ctx, b.key)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := b.exchange(ctx, refused, more...); err != nil {
		return "", err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.token, nil
}

// exchange asks for a token, unless there is another than the refused one already, and says how long it lives.
func (b *bearer) exchange(ctx context.Context, refused string, more ...string) (time.Duration, error) {
	b.mu.Lock()
	renewed := b.token != refused
	scopes := slices.Clone(b.scopes)
	b.mu.Unlock()
	if renewed {
		return 0, nil
	}
	for _, s := range more {
		if !slices.Contains(scopes, s) {
			// Some token services look at the first alone.
			scopes = slices.Insert(scopes, 0, s)
		}
	}
	token, err := transport.Exchange(ctx, b.a.reg, b.a.creds, b.a.out, scopes, b.challenge)
	if err != nil {
		return 0, err
	}
	b.a.creds.secrets.knowToken(token)
	if token.Token == "" {
		token.Token = token.AccessToken
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.token, b.scopes = token.Token, scopes
	// A token without a lifetime lives for a minute, says the token specification.
	life := 60 * time.Second
	if token.ExpiresIn > 0 {
		life = time.Duration(min(token.ExpiresIn, 3600)) * time.Second
	}
	return life, nil
}

var scopeParameter = regexp.MustCompile(`(?i)^bearer .*\bscope="([^"]+)"`)

// wantedScopes are those that a refusal names.
func wantedScopes(h http.Header) (scopes []string) {
	for _, v := range h.Values("WWW-Authenticate") {
		if m := scopeParameter.FindStringSubmatch(v); m != nil {
			scopes = append(scopes, m[1])
		}
	}
	return scopes
}
