package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

const maxSessions = 1024

// credentials holds what is sent to the registry and its token service. It is asked for again after a 401.
type credentials struct {
	load func() (authn.AuthConfig, error)
	// secrets among what was loaded, and the tokens that were got for it.
	secrets secrets

	mu     sync.Mutex
	loaded bool
	config authn.AuthConfig
}

func newCredentials(cfg Config, reg name.Registry) *credentials {
	if cfg.Username == "" {
		return &credentials{load: func() (authn.AuthConfig, error) {
			auth, err := authn.DefaultKeychain.Resolve(reg)
			if err != nil {
				return authn.AuthConfig{}, fmt.Errorf("reading the docker configuration: %w: %w", err, ErrUnauthorized)
			}
			config, err := auth.Authorization()
			if err != nil {
				return authn.AuthConfig{}, fmt.Errorf("reading the docker configuration: %w: %w", err, ErrUnauthorized)
			}
			return *config, nil
		}}
	}
	return &credentials{load: func() (authn.AuthConfig, error) {
		config := authn.AuthConfig{Username: cfg.Username}
		if cfg.Password != nil {
			password, err := cfg.Password()
			if err != nil {
				return config, fmt.Errorf("reading the registry's password: %w: %w", err, ErrUnauthorized)
			}
			config.Password = password
		}
		return config, nil
	}}
}

// Authorization implements authn.Authenticator.
func (c *credentials) Authorization() (*authn.AuthConfig, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.loaded {
		config, err := c.load()
		if err != nil {
			return nil, err
		}
		c.config, c.loaded = config, true
		c.secrets.know(config)
	}
	config := c.config
	return &config, nil
}

// reload says whether the credentials are others than before.
func (c *credentials) reload() (changed bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	config, err := c.load()
	if err != nil {
		return false, err
	}
	changed = c.loaded && config != c.config
	c.config, c.loaded = config, true
	c.secrets.know(config)
	return changed, nil
}

// session is an authenticated transport for some scopes.
type session struct {
	rt      http.RoundTripper
	expires time.Time // zero: never
}

// authenticator keeps the registry's challenge and a token for each set of scopes.
type authenticator struct {
	reg   name.Registry
	creds *credentials
	out   http.RoundTripper
	locks keyedLock

	mu        sync.Mutex
	challenge *transport.Challenge
	sessions  map[string]session
}

// forget drops tokens and the challenge, after credentials changed.
func (a *authenticator) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.challenge, a.sessions = nil, nil
}

// forgetTokens drops tokens, after the rights in them changed.
func (a *authenticator) forgetTokens() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sessions = nil
}

// basic is a transport that sends the credentials themselves, which Harbor's API wants.
func (a *authenticator) basic() (http.RoundTripper, error) {
	return transport.FromToken(a.reg, a.creds, a.out, &transport.Challenge{Scheme: "basic"}, nil)
}

func (a *authenticator) transport(ctx context.Context, scopes []string) (http.RoundTripper, error) {
	key := strings.Join(scopes, " ")
	if s, ok := a.cached(key); ok {
		return s.rt, nil
	}
	unlock, err := a.locks.lock(ctx, key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if s, ok := a.cached(key); ok {
		return s.rt, nil
	}
	s, err := a.handshake(ctx, key, scopes)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sessions == nil || len(a.sessions) >= maxSessions {
		a.sessions = map[string]session{}
	}
	a.sessions[key] = s
	return s.rt, nil
}

func (a *authenticator) cached(key string) (session, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, ok := a.sessions[key]
	if !ok || !s.expires.IsZero() && time.Now().After(s.expires) {
		return session{}, false
	}
	return s, true
}

func (a *authenticator) handshake(ctx context.Context, key string, scopes []string) (session, error) {
	challenge, err := a.ping(ctx)
	if err != nil {
		return session{}, err
	}
	if !strings.EqualFold(challenge.Scheme, "bearer") {
		rt, err := transport.FromToken(a.reg, a.creds, a.out, challenge, nil)
		return session{rt: rt}, err
	}
	b := &bearer{a: a, key: key, scopes: scopes, challenge: challenge}
	life, err := b.exchange(ctx, "")
	if err != nil {
		return session{}, err
	}
	// The transport renews a token that is refused before that.
	return session{rt: b, expires: time.Now().Add(life * 3 / 4)}, nil
}

func (a *authenticator) ping(ctx context.Context) (*transport.Challenge, error) {
	a.mu.Lock()
	challenge := a.challenge
	a.mu.Unlock()
	if challenge != nil {
		return challenge, nil
	}
	challenge, err := transport.Ping(ctx, a.reg, noRedirects{a.out, &a.creds.secrets})
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.challenge = challenge
	return challenge, nil
}

// noRedirects refuses them: where a registry sends its own address elsewhere, the configured address is wrong, and requests with a body would fail.
type noRedirects struct {
	inner   http.RoundTripper
	secrets *secrets
}

func (t noRedirects) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.inner.RoundTrip(req)
	if err != nil || resp.StatusCode/100 != 3 {
		return resp, err
	}
	resp.Body.Close()
	return nil, t.secrets.redirectError(resp)
}

func (s *secrets) redirectError(resp *http.Response) error {
	return fmt.Errorf("the registry redirects to %q; set the registry's url to the address that serves it: %w", s.clean(destination(resp.Header.Get("Location"))), ErrInvalid)
}

// transportError makes an error of the auth transport one of ours.
func (c *Client) transportError(e *Error, err error) {
	var te *transport.Error
	if !errors.As(err, &te) {
		return
	}
	e.Status, e.challenged = te.StatusCode, true
	e.Message = "the registry's token service refuses"
	if te.StatusCode >= 500 {
		e.Message = "the registry's token service fails"
	}
	if len(te.Errors) > 0 {
		e.Code = c.clean(string(te.Errors[0].Code))
		if words := c.ownWords(e.Code, te.Errors[0].Message); words != "" {
			e.Message += ": " + words
		}
	}
}

// keyedLock is a mutex for each key, whose wait ends with a context.
type keyedLock struct {
	mu    sync.Mutex
	locks map[string]*keyLock
}

type keyLock struct {
	ch    chan struct{}
	users int
}

func (k *keyedLock) lock(ctx context.Context, key string) (unlock func(), err error) {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = map[string]*keyLock{}
	}
	l := k.locks[key]
	if l == nil {
		l = &keyLock{ch: make(chan struct{}, 1)}
		k.locks[key] = l
	}
	l.users++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(k.locks, key)
		}
	}
	select {
	case l.ch <- struct{}{}:
		return func() { <-l.ch; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}
