package registry

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"html"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

const (
	// leastSecret is the length, in bytes, below which a secret is not looked for: so short a word is in any text.
	leastSecret = 4
	// maxCredentials and maxTokens bound how many are remembered, each in some spellings.
	maxCredentials = 256
	maxTokens      = 2 * maxSessions
	struck         = "…"
)

// secrets are what a client authenticates itself with. A registry, or a proxy before it, may repeat a header or a body in its refusal, whose words go into logs, tables and pages: there they are struck
// out. Those of before are remembered too, since an answer may come late. It is safe for concurrent use.
type secrets struct {
	mu                  sync.Mutex
	credentials, tokens []string
}

// know remembers credentials.
func (s *secrets) know(config authn.AuthConfig) {
	s.mu.Lock()
	defer s.mu.Unlock()
	words := []string{config.Password, config.Auth, config.IdentityToken, config.RegistryToken}
	if config.Password != "" {
		words = append(words, inBase64(config.Username+":"+config.Password)...)
		words = append(words, inBase64(config.Password)...)
	}
	s.credentials = remember(s.credentials, maxCredentials, words)
}

// knowToken remembers what the token service gave.
func (s *secrets) knowToken(t *transport.Token) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens = remember(s.tokens, maxTokens, []string{t.Token, t.AccessToken, t.RefreshToken})
}

// inBase64 spells a text as headers do. The padding may be lacking.
func inBase64(text string) []string {
	return []string{base64.RawStdEncoding.EncodeToString([]byte(text)), base64.RawURLEncoding.EncodeToString([]byte(text))}
}

// remember adds words to a list in every spelling that they may have in an answer; the oldest make room.
func remember(list []string, most int, words []string) []string {
	for _, w := range words {
		quoted, _ := json.Marshal(w) // a string always is JSON
		inner := string(quoted[1 : len(quoted)-1])
		for _, spelt := range []string{w, url.QueryEscape(w), url.PathEscape(w), inner, strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(w), html.EscapeString(w)} {
			if len(spelt) >= leastSecret && !slices.Contains(list, spelt) {
				list = append(list, spelt)
			}
		}
	}
	return list[max(0, len(list)-most):]
}

// strike takes the secrets out of a text of a registry.
func (s *secrets) strike(text string) string {
	if len(text) < leastSecret {
		return text
	}
	s.mu.Lock()
	words := slices.Concat(s.credentials, s.tokens)
	s.mu.Unlock()
	// The longest first: a short one may be part of it, and would leave the rest.
	slices.SortFunc(words, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	for _, w := range words {
		text = strings.ReplaceAll(text, w, struck)
	}
	return text
}

// clean makes words of the registry fit for an error: without the client's secrets, bounded, without control characters. What is cut off is so after the striking, lest the half of a secret be left.
func (c *Client) clean(s string) string { return c.auth.creds.secrets.clean(s) }

func (s *secrets) clean(text string) string { return clean(s.strike(text)) }

// destination is an address of an answer without what may be a signature or a secret in it: query, fragment and user.
func destination(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		before, _, _ := strings.Cut(address, "?")
		return before
	}
	if u.RawQuery != "" {
		u.RawQuery = struck
	}
	if u.User != nil {
		u.User = url.User(struck)
	}
	u.Fragment, u.RawFragment = "", ""
	return strings.ReplaceAll(u.String(), url.PathEscape(struck), struck)
}
