package registry

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

const (
	pageSize       = 500
	harborPageSize = 100
	// maxPages bounds a list, so that a registry that pages in a circle ends.
	maxPages = 20_000
)

// Repositories lists all repositories that the credentials may see. After an error nothing follows; what came before it is not the whole list.
func (c *Client) Repositories(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		first := true
		more := true
		for name, err := range c.catalog(ctx) {
			// A robot of one project may not list the catalog; Harbor's API lists what it may see.
			if first && c.harbor && (errors.Is(err, ErrUnauthorized) || errors.Is(err, ErrDenied)) {
				c.harborRepositories(ctx)(yield)
				return
			}
			first = false
			if more = yield(name, err); !more {
				return
			}
		}
	}
}

func (c *Client) catalog(ctx context.Context) iter.Seq2[string, error] {
	// Harbor takes nothing but basic credentials here.
	in := call{op: "list repositories", method: http.MethodGet, path: "/v2/_catalog", scopes: []string{"registry:catalog:*"}, api: c.harbor}
	return c.pages(ctx, in, ValidRepository, func(p *page) []string { return p.Repositories })
}

// Tags lists the tags of a repository. A repository that is not there is ErrNotFound. After an error nothing follows.
func (c *Client) Tags(ctx context.Context, repo string) iter.Seq2[string, error] {
	if err := checkRepository(repo); err != nil {
		return func(yield func(string, error) bool) { yield("", err) }
	}
	in := call{op: "list tags", repo: repo, method: http.MethodGet, path: "/v2/" + repo + "/tags/list", scopes: pull(repo)}
	return c.pages(ctx, in, ValidTag, func(p *page) []string { return p.Tags })
}

type page struct {
	Repositories []string `json:"repositories"`
	Tags         []string `json:"tags"`
}

func (c *Client) pages(ctx context.Context, in call, valid func(string) bool, names func(*page) []string) iter.Seq2[string, error] {
	in.want = []int{http.StatusOK}
	path := in.path
	return func(yield func(string, error) bool) {
		query, seen := url.Values{"n": {strconv.Itoa(pageSize)}}, map[string]bool{}
		for range maxPages {
			in.path = path + "?" + query.Encode()
			seen[query.Encode()] = true
			resp, err := c.do(ctx, in)
			if e := (*Error)(nil); errors.As(err, &e) && e.Code == "PAGINATION_NUMBER_INVALID" && query.Has("n") {
				// It gives no pages as large as that; the size is left to it.
				query.Del("n")
				continue
			}
			if err != nil {
				yield("", err)
				return
			}
			var p page
			if err := c.decode(ctx, in, resp, &p); err != nil {
				yield("", err)
				return
			}
			for _, name := range names(&p) {
				if !valid(name) {
					c.log.Warn("registry lists an impossible name; it is passed over", "name", c.clean(name), "repository", in.repo)
					continue
				}
				if !yield(name, nil) {
					return
				}
			}
			next, err := nextPage(resp.Header)
			if err != nil || next != nil && seen[next.Encode()] {
				yield("", in.invalid(resp, "its list has pages that lead in a circle or nowhere"))
				return
			}
			if next == nil {
				return
			}
			query = next
		}
		yield("", in.invalid(nil, fmt.Sprintf("its list has more than %d pages", maxPages)))
	}
}

// nextPage gives the query of the next page. Its host and path are not followed.
func nextPage(h http.Header) (url.Values, error) {
	for _, link := range strings.Split(strings.Join(h.Values("Link"), ","), ",") {
		target, params, ok := strings.Cut(link, ";")
		rel := strings.ReplaceAll(strings.ToLower(params), `"`, "")
		if !ok || !strings.Contains(rel, "rel=next") {
			continue
		}
		u, err := url.Parse(strings.Trim(strings.TrimSpace(target), "<>"))
		if err != nil {
			return nil, err
		}
		query := u.Query()
		if len(query) == 0 {
			return nil, fmt.Errorf("next page without a query: %w", ErrInvalid)
		}
		return query, nil
	}
	return nil, nil
}
