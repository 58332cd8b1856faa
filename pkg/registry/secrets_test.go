package registry_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/fanout-io/fanout/pkg/registry"
)

// echo is a registry, or a proxy before it, that repeats what was sent in its refusal: in answer, with what the header Authorization had.
func echo(t *testing.T, bearer string, answer func(w http.ResponseWriter, r *http.Request, authorization string)) string {
	t.Helper()
	var srv *httptest.Server
	srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		authorization := r.Header.Get("Authorization")
		switch {
		case r.URL.Path == "/token" && bearer != "":
			fmt.Fprintf(w, `{"token":%q,"expires_in":300}`, bearer)
		case authorization != "":
			answer(w, r, authorization)
		case bearer != "":
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+srv.URL+`/token",service="r"`)
			w.WriteHeader(http.StatusUnauthorized)
		default:
			w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// TestSecretsAreStruckOut: whatever a registry repeats of a request, no error and no line of the log has the password or the token.
func TestSecretsAreStruckOut(t *testing.T) {
	const user, password, token = "robot$fanout", `pl"nted <pw>\ö&6`, "planted.token+/=="
	basic := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	says := func(status int, message string) func(http.ResponseWriter, *http.Request, string) {
		return func(w http.ResponseWriter, _ *http.Request, authorization string) {
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(map[string]any{"errors": []any{map[string]string{"code": "DENIED " + authorization, "message": message + authorization + " or " + password + "; that is all"}}})
		}
	}
	plain := func(status int, body string) func(http.ResponseWriter, *http.Request, string) {
		return func(w http.ResponseWriter, _ *http.Request, authorization string) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, strings.ReplaceAll(body, "AUTH", authorization))
		}
	}
	header := func(status int, key, value string) func(http.ResponseWriter, *http.Request, string) {
		return func(w http.ResponseWriter, _ *http.Request, authorization string) {
			w.Header().Set(key, strings.ReplaceAll(value, "AUTH", authorization))
			w.WriteHeader(status)
		}
	}
	for _, c := range []struct {
		name   string
		answer func(http.ResponseWriter, *http.Request, string)
		// words that are left of what the registry said
		left string
	}{
		{"message", says(403, "you sent "), "; that is all"},
		{"unauthorized", says(401, "you sent "), "; that is all"},
		{"text", plain(502, "bad gateway: AUTH"), "bad gateway: "},
		{"escaped in text", plain(502, "no: "+html.EscapeString(password)+" "+url.QueryEscape(password)+" "+url.PathEscape(password)+" "+url.QueryEscape(basic)+" "+strings.TrimRight(basic, "=")), "no: … … … …"},
		// The bound of a message lies within the secret.
		{"cut", plain(502, strings.Repeat("x", 500)+"AUTH "+password), "xxx"},
		{"cut within the password", plain(502, strings.Repeat("x", 505)+password), "xxx"},
		{"redirect", header(302, "Location", "ftp://me:AUTH@elsewhere/AUTH/x?token=planted&auth=AUTH"), "elsewhere"},
		{"redirect elsewhere", header(307, "Location", "http://169.254.1.1/x?AUTH"), "169.254.1.1"},
		{"upload location", header(202, "Location", "http://elsewhere-AUTH/x?AUTH"), ""},
		{"stored digest", header(201, "Docker-Content-Digest", "AUTH"), ""},
	} {
		for _, bearer := range []string{"", token} {
			t.Run(fmt.Sprintf("%s, token %t", c.name, bearer != ""), func(t *testing.T) {
				var log bytes.Buffer
				reg, err := registry.New(registry.Config{
					URL: echo(t, bearer, c.answer), Username: user, Password: func() (string, error) { return password, nil },
					Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
				})
				if err != nil {
					t.Fatal(err)
				}
				defer reg.CloseIdle()
				_, err = reg.Manifest(t.Context(), "app/web", "1")
				pushErr := reg.PutManifest(t.Context(), "app/web", "1", registry.Manifest{MediaType: registry.MediaTypeOCIManifest, Digest: "sha256:" + strings.Repeat("a", 64), Content: []byte("{}")})
				said := fmt.Sprint(err, reg.Ping(t.Context()), pushErr, &log)
				if err == nil || !strings.Contains(said, c.left) {
					t.Errorf("it says %s, and %q is lost", said, c.left)
				}
				for _, secret := range []string{
					password, url.QueryEscape(password), url.PathEscape(password), html.EscapeString(password), `pl\"nted`, "pl\"nted", basic, strings.TrimRight(basic, "="), basic[:12], token, "planted.token", "token=planted",
				} {
					if strings.Contains(said, secret) {
						t.Errorf("%q is in %s", secret, said)
					}
				}
			})
		}
	}
}

// TestSecretsOfBefore: an answer to the old password may come when there is a new one; and what is too short to be looked for leaves an answer as it is.
func TestSecretsOfBefore(t *testing.T) {
	var asked atomic.Int32
	reg, err := registry.New(registry.Config{
		URL: echo(t, "", func(w http.ResponseWriter, _ *http.Request, _ string) {
			w.WriteHeader(401)
			_, _ = io.WriteString(w, "it was secret-1, is secret-2 and may be abc")
		}),
		Username: "u", Password: func() (string, error) {
			if n := asked.Add(1); n < 3 {
				return fmt.Sprintf("secret-%d", n), nil
			}
			return "abc", nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer reg.CloseIdle()
	for range 3 {
		err = reg.Ping(t.Context())
	}
	if e := new(registry.Error); !errors.As(err, &e) || e.Message != "it was …, is … and may be abc" {
		t.Errorf("%v", err)
	}
}
